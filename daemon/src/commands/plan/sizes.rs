//! How much of a batch is measured: less than the run's where that would take too long. What it takes is scaled up.

use crate::configuration::Configuration;
use crate::inputs::Inputs;
use crate::threads::cores;
use serde::Serialize;

/// Floating-point operations that a core makes a second, about.
const CORE_FLOPS: f64 = 5e10;
/// A step is measured with so many copies at least.
const COPIES_MIN: usize = 2;
/// Of a sequence, where nothing says it.
const USUAL_LENGTH: usize = 512;
/// A training pass in forward passes.
const TRAINING_PASSES: f64 = 3.0;

/// Sizes of the measurement: the run's, or smaller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Sizes {
    /// `queue.batch_tokens`.
    pub(super) batch_tokens: usize,
    /// `train.batch_examples`.
    pub(super) batch_examples: usize,
    /// `train.micro_batch_tokens`.
    pub(super) micro_batch_tokens: usize,
}

impl Sizes {
    /// Such that a teacher's batch, and a step, take about `seconds` on a processor; the run's sizes where they take less, and on other
    /// devices. `student`: its shape over the union vocabulary.
    pub(super) fn of(
        configuration: &Configuration,
        inputs: &Inputs,
        student: Option<&model::Configuration>,
        seconds: f64,
    ) -> Self {
        let section = configuration.student.as_ref();
        let asked = section.map(|section| section.max_sequence_length).or(configuration.store.max_sequence_length);
        let length = asked.unwrap_or(USUAL_LENGTH);
        let masked = (length as f64 * configuration.masking.probability).ceil() as usize;
        let budget = seconds * CORE_FLOPS * cores() as f64;
        let sequences = |shape: &model::Configuration, passes: f64| {
            let flops = passes * shape.flops(std::iter::once((length, masked))) as f64;
            ((budget / flops) as usize).max(1)
        };
        let labelling = inputs.teachers.iter().filter(|teacher| teacher.section.labels);
        let shapes = labelling.filter(|teacher| teacher.section.place.is_processor());
        let fewest = shapes.filter_map(|teacher| Some(sequences(teacher.shape.as_deref()?, 1.0))).min();
        let of_step = student
            .filter(|_| section.is_some_and(|section| section.place.is_processor()))
            .map(|shape| sequences(shape, TRAINING_PASSES));
        let (queue, train) = (&configuration.queue, &configuration.train);
        // What is only trained on has no teacher's batch, and a step that fits needs no smaller parts.
        let batch = fewest.filter(|_| !configuration.corpus.is_empty()).map(|sequences| sequences * length);
        let step = of_step.map(|sequences| sequences.max(COPIES_MIN)).filter(|&copies| copies < train.batch_examples);
        Self {
            batch_tokens: batch.map_or(queue.batch_tokens, |tokens| tokens.min(queue.batch_tokens)),
            batch_examples: step.unwrap_or(train.batch_examples),
            micro_batch_tokens: step
                .map_or(train.micro_batch_tokens, |copies| (copies * length).min(train.micro_batch_tokens)),
        }
    }

    /// Makes `configuration` that of the measurement, with a training window of two batches: a large one would wait for much text.
    pub(super) fn apply(self, configuration: &mut Configuration) {
        configuration.queue.batch_tokens = self.batch_tokens;
        configuration.train.batch_examples = self.batch_examples;
        configuration.train.micro_batch_tokens = self.micro_batch_tokens;
        configuration.train.shuffle_examples = configuration.train.shuffle_examples.min(2 * self.batch_examples);
    }
}
