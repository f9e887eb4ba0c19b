//! Training as the stage of a run does it, on a student of a given shape: steps on random batches.

use crate::cli::{BenchCommonArgs, TrainWorkArgs};
use crate::configuration::StudentPlacement;
use crate::failure::{ExitCode, Failure};
use candle_core::Device;
use model::random::Philox;
use model::{Configuration, Parameters};
use std::sync::Arc;
use store::{Label, MaskedCopy, SequenceNumber};
use trainer::batch::Batch;
use trainer::learner::{Learned, Learner};
use trainer::optimiser::AdamW;
use trainer::student::Student;
use trainer::training_copy::TrainingCopy;
use trainer::{LossNorm, Schedule, StudentOptions, TrainOptions, TrainerError};

const MASKING_PROBABILITY: f64 = 0.15;
/// Ids below it are not drawn: a vocabulary's special tokens.
const FIRST_ORDINARY_ID: usize = 5;
/// The positions of a student that is not told otherwise, as in transformers.
const POSITIONS: usize = 512;

/// A student that learns from random labels.
pub(super) struct Training<'a> {
    args: &'a TrainWorkArgs,
    top_k: usize,
    options: TrainOptions,
    stream: Philox,
    learner: Learner,
    intermediate: usize,
    parameters: usize,
    /// Steps made.
    steps: u64,
}

impl<'a> Training<'a> {
    /// A student that has not learnt yet.
    ///
    /// # Errors
    /// When there can be no student of this shape.
    pub(super) fn new(
        args: &'a TrainWorkArgs,
        common: &BenchCommonArgs,
        place: &StudentPlacement,
    ) -> Result<Self, Failure> {
        let configuration = configuration(args)?;
        let (mut learner, parameters) = learner(&configuration, common.seed)?;
        let on = place.open().map_err(TrainerError::from)?;
        on.iter().try_for_each(|on| learner.place(on))?;
        Ok(Self {
            args,
            top_k: common.top_k,
            options: train_options(args),
            stream: Philox::new(common.seed, "bench", &[b"train"]),
            learner,
            intermediate: configuration.intermediate_size,
            parameters,
            steps: 0,
        })
    }

    /// Width of the feed-forward networks.
    pub(super) fn intermediate(&self) -> usize {
        self.intermediate
    }

    /// Numbers that are trained.
    pub(super) fn parameters(&self) -> usize {
        self.parameters
    }

    /// Memory on GPUs.
    pub(super) fn device_bytes(&self) -> usize {
        self.learner.device_bytes()
    }

    /// The batch of the next step.
    pub(super) fn next_batch(&self) -> Batch {
        random_batch(self.steps, self.args, self.top_k, &self.options, &self.stream)
    }

    /// Makes a step, in the pool that it is called in.
    ///
    /// # Errors
    /// When the loss or a gradient is not finite.
    pub(super) fn learn(&mut self, batch: &Batch) -> Result<Learned, Failure> {
        let step = self.steps;
        let learned = self.learner.step(step, batch, &self.options)?;
        self.steps += 1;
        match &learned.skipped {
            None => Ok(learned),
            Some(reason) => Err(Failure::new(ExitCode::Software, format!("step {step} was skipped: {reason}"))),
        }
    }
}

/// The student's shape, checked.
fn configuration(args: &TrainWorkArgs) -> Result<Configuration, Failure> {
    let student = StudentOptions {
        layers: args.layers,
        hidden_size: args.hidden,
        heads: args.heads,
        intermediate_size: args.intermediate.unwrap_or(4 * args.hidden),
        embedding_size: args.embedding,
        max_sequence_length: args.length.max(POSITIONS),
        dropout: args.dropout,
        ..StudentOptions::default()
    };
    let configuration = student.configuration(args.vocab, 0);
    configuration.validate().map_err(|reason| Failure::new(ExitCode::Usage, format!("no such student: {reason}")))?;
    Ok(configuration)
}

/// A student that has not learnt yet, and how many numbers it has.
fn learner(configuration: &Configuration, seed: u64) -> Result<(Learner, usize), Failure> {
    let failed = |error: model::ModelError| Failure::new(ExitCode::of_model(&error), error);
    let parameters = Parameters::initialise(configuration, seed, &Device::Cpu).map_err(failed)?;
    let count = parameters.count();
    let student = Student::new(configuration, &parameters)?;
    drop(parameters); // The student has its own: without this the peak would count them twice.
    let optimiser = AdamW::new(student.layout().length());
    Ok((Learner::new(student, optimiser, seed), count))
}

/// A constant learning rate and λ; the rest as a run has it.
fn train_options(args: &TrainWorkArgs) -> TrainOptions {
    TrainOptions {
        steps: None,
        schedule: Schedule::Trunk { lambda_steps: 0, lambda_floor: 0.5 },
        warmup_steps: 0,
        learning_rate: 1e-4,
        clip_norm: 1.0,
        loss_norm: LossNorm::Batch,
        micro_batch_tokens: args.micro_batch_tokens,
        ..TrainOptions::default()
    }
}

/// A batch for `step`: random tokens, 15 % of them masked, random gold labels and top-k labels whose probabilities are the
/// softmax of normals.
fn random_batch(step: u64, args: &TrainWorkArgs, top_k: usize, options: &TrainOptions, stream: &Philox) -> Batch {
    let mut draws = Draws { stream: *stream, step, top_k, next: 0 };
    let mut copies: Vec<MaskedCopy> = (0..args.sequences).map(|_| draws.copy(args)).collect();
    // A step needs something to predict, however small it is.
    if copies.iter().all(|copy| copy.masked_positions.is_empty())
        && let Some(first) = copies.first_mut()
    {
        draws.mask(first, 0, args);
    }
    let copies = copies.into_iter().zip(0..).map(|(copy, number)| TrainingCopy {
        sequence: SequenceNumber(step * args.sequences as u64 + number),
        pass: 0,
        language: Arc::from("xx"),
        weight: 1.0,
        copy,
        labelled: Vec::new(),
    });
    Batch::new(copies.collect(), options.kd_target.into(), options.loss_norm, options.micro_batch_tokens)
}

/// Random numbers of one step, one after another.
struct Draws {
    stream: Philox,
    step: u64,
    top_k: usize,
    next: u64,
}

impl Draws {
    /// A sequence with its labels.
    fn copy(&mut self, args: &TrainWorkArgs) -> MaskedCopy {
        let token_ids = (0..args.length).map(|_| self.id(args.vocab)).collect();
        let label = Some(Label { top_k: self.top_k, ..Label::default() });
        let mut copy = MaskedCopy { teacher: 0, token_ids, masked_positions: vec![], gold_ids: vec![], label };
        for position in 0..args.length as u32 {
            if self.uniform() < MASKING_PROBABILITY {
                self.mask(&mut copy, position, args);
            }
        }
        copy
    }

    /// Makes `position` one that is to be predicted, with random labels.
    fn mask(&mut self, copy: &mut MaskedCopy, position: u32, args: &TrainWorkArgs) {
        copy.masked_positions.push(position);
        copy.gold_ids.push(self.id(args.vocab));
        let Some(label) = &mut copy.label else { return };
        let mut logits: Vec<f32> = (0..self.top_k).map(|_| self.normal()).collect();
        logits.sort_by(|a, b| b.total_cmp(a));
        let sum: f32 = logits.iter().map(|logit| logit.exp()).sum();
        label.top_ids.extend((0..self.top_k).map(|_| self.id(args.vocab)));
        label.gold_logits.push(logits[0]);
        label.top_logits.append(&mut logits);
        // As if the rest of the vocabulary had as much mass as the top k.
        label.log_sum_exp.push((2.0 * sum).ln());
    }

    fn id(&mut self, vocabulary: usize) -> u32 {
        let ordinary = (vocabulary - FIRST_ORDINARY_ID) as u64;
        let number = self.number();
        FIRST_ORDINARY_ID as u32 + self.stream.below(ordinary, number, self.step) as u32
    }

    fn uniform(&mut self) -> f64 {
        let number = self.number();
        self.stream.uniform(number, self.step)
    }

    fn normal(&mut self) -> f32 {
        let number = self.number();
        self.stream.normal(number, self.step) as f32
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}
