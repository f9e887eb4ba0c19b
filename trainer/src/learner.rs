//! One optimiser step: student, optimiser, and a batch.

use crate::TrainerError;
use crate::batch::Batch;
use crate::loss::LossSums;
use crate::optimiser::{self, AdamW, Update};
use crate::options::TrainOptions;
use crate::schedule::{self, Rates};
use crate::student::Student;
use model::Dropout;
use model::random::Philox;

/// Micro-batches of a step have numbers below this, so that each has dropout masks of its own.
const MICRO_BATCHES_MAX: u64 = 1 << 20;

/// What learns: the student and the optimiser's state.
pub struct Learner {
    pub(crate) student: Student,
    pub(crate) optimiser: AdamW,
    dropout: Option<Philox>,
}

/// What came of a step.
#[derive(Clone, Debug)]
pub struct Learned {
    /// Losses over the batch, before the update.
    pub sums: LossSums,
    /// Learning rate of the step.
    pub learning_rate: f64,
    /// Weight of distillation in the step's loss.
    pub lambda: f64,
    /// Euclidean norm of the gradient before clipping.
    pub gradient_norm: f64,
    /// Why the weights were left as they are.
    pub skipped: Option<String>,
}

impl Learner {
    /// `optimiser` is the state that belongs to `student`; dropout, if its configuration has any, follows from `seed`.
    #[must_use]
    pub fn new(student: Student, optimiser: AdamW, seed: u64) -> Self {
        let configuration = student.configuration();
        let drops = configuration.hidden_dropout > 0.0 || configuration.attention_dropout > 0.0;
        Self { student, optimiser, dropout: drops.then(|| Philox::new(seed, "dropout", &[])) }
    }

    /// Trains on `batch` as step `step`, counted from 0. A step whose loss or gradient is not finite changes nothing.
    ///
    /// # Errors
    /// When the batch does not fit the student.
    pub fn step(&mut self, step: u64, batch: &Batch, options: &TrainOptions) -> Result<Learned, TrainerError> {
        let Rates { learning_rate, lambda } = schedule::rates(step, options);
        let mut sums = LossSums::default();
        for (part, number) in batch.micro_batches.iter().zip(0..) {
            let dropout = self.dropout.map(|stream| Dropout { stream, step: step * MICRO_BATCHES_MAX + number });
            match self.student.accumulate(&part.packed, &part.targets(), lambda, dropout) {
                Ok(part) => sums.add(&part),
                Err(error) => {
                    self.student.clear_gradients();
                    return Err(error);
                }
            }
        }
        let gradient_norm = self.student.gradient_norm();
        let skipped = match (sums.loss.is_finite(), gradient_norm.is_finite()) {
            (false, _) => Some(format!("the loss is {}", sums.loss)),
            (true, false) => Some(format!("the gradient's norm is {gradient_norm}")),
            (true, true) => None,
        };
        if skipped.is_none() {
            let gradient_scale = optimiser::clip(gradient_norm, options.clip_norm);
            let update = Update { learning_rate, weight_decay: options.weight_decay, gradient_scale };
            self.student.update(&mut self.optimiser, &update);
        } else {
            self.student.clear_gradients();
        }
        Ok(Learned { sums, learning_rate, lambda, gradient_norm, skipped })
    }
}
