//! `mergedistill bench train`: what a student of a given shape trains on per second.

use super::{count, in_pool, median, memory, peak_rss_mib, timed};
use crate::cli::BenchTrainArgs;
use crate::commands::{print_json, print_line};
use crate::failure::{ExitCode, Failure};
use candle_core::Device;
use model::random::Philox;
use model::{Configuration, Parameters};
use serde::Serialize;
use std::sync::Arc;
use store::{Label, MaskedCopy, SequenceNumber};
use trainer::batch::Batch;
use trainer::learner::{Learned, Learner};
use trainer::optimiser::AdamW;
use trainer::student::Student;
use trainer::training_copy::TrainingCopy;
use trainer::{LossNorm, StudentOptions, TrainOptions};

const WARM_UP_STEPS: usize = 2;
const MASKING_PROBABILITY: f64 = 0.15;
/// Ids below it are not drawn: a vocabulary's special tokens.
const FIRST_ORDINARY_ID: usize = 5;
/// The positions of a student that is not told otherwise, as in transformers.
const POSITIONS: usize = 512;

/// What is measured.
#[derive(Debug, Serialize)]
struct TrainFigures {
    threads: usize,
    vocab: usize,
    embedding: usize,
    hidden: usize,
    intermediate: usize,
    layers: usize,
    heads: usize,
    /// Numbers that are trained.
    parameters: usize,
    tokens_per_step: usize,
    /// Mean over the measured steps.
    masked_positions_per_step: f64,
    /// Steps that were measured.
    steps: usize,
    /// Median of a step, making its batch included.
    seconds_per_step: f64,
    tokens_per_second: f64,
    /// Loss of the last step.
    loss: f64,
    peak_rss_mib: Option<u64>,
}

/// Trains a student of random weights on random labels, and prints the figures.
pub(super) fn train(args: &BenchTrainArgs) -> Result<(), Failure> {
    let figures = in_pool(args.threads, || measure(args))?;
    if args.json {
        return print_json(&figures);
    }
    print_line(&format!(
        "{} parameters, {} tokens a step, {:.0} of them masked",
        figures.parameters, figures.tokens_per_step, figures.masked_positions_per_step
    ))?;
    print_line(&format!(
        "{:.0} tokens/s with {}: {:.4} s a step, the median of {}",
        figures.tokens_per_second,
        count(args.threads, "thread"),
        figures.seconds_per_step,
        args.steps
    ))?;
    print_line(&format!("peak memory {}", memory(figures.peak_rss_mib)))
}

fn measure(args: &BenchTrainArgs) -> Result<TrainFigures, Failure> {
    let configuration = configuration(args)?;
    let intermediate = configuration.intermediate_size;
    let (mut learner, parameters) = learner(&configuration, args.seed)?;
    let options = train_options(args);
    let stream = Philox::new(args.seed, "bench", &[b"train"]);
    let (mut seconds, mut masked, mut loss) = (Vec::new(), 0, f64::NAN);
    for step in 0..WARM_UP_STEPS + args.steps {
        let (elapsed, (batch, learned)) = timed(|| train_step(&mut learner, step as u64, args, &options, &stream))?;
        loss = learned.sums.loss;
        if step >= WARM_UP_STEPS {
            seconds.push(elapsed);
            masked += batch.masked_positions;
        }
    }

    let seconds_per_step = median(&seconds);
    let tokens_per_step = args.sequences * args.length;
    Ok(TrainFigures {
        threads: args.threads,
        vocab: args.vocab,
        embedding: args.embedding,
        hidden: args.hidden,
        intermediate,
        layers: args.layers,
        heads: args.heads,
        parameters,
        tokens_per_step,
        masked_positions_per_step: masked as f64 / args.steps as f64,
        steps: args.steps,
        seconds_per_step,
        tokens_per_second: tokens_per_step as f64 / seconds_per_step,
        loss,
        peak_rss_mib: peak_rss_mib(),
    })
}

/// The student's shape, checked.
fn configuration(args: &BenchTrainArgs) -> Result<Configuration, Failure> {
    let student = StudentOptions {
        layers: args.layers,
        hidden_size: args.hidden,
        heads: args.heads,
        intermediate_size: args.intermediate.unwrap_or(4 * args.hidden),
        embedding_size: args.embedding,
        max_sequence_length: args.length.max(POSITIONS),
        dropout: args.dropout,
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
fn train_options(args: &BenchTrainArgs) -> TrainOptions {
    TrainOptions {
        steps: 1 << 40, // So many that the schedule does not decay.
        warmup_steps: 0,
        learning_rate: 1e-4,
        clip_norm: 1.0,
        lambda_start: 0.5,
        lambda_end: 0.5,
        loss_norm: LossNorm::Batch,
        micro_batch_tokens: args.micro_batch_tokens,
        ..TrainOptions::default()
    }
}

fn train_step(
    learner: &mut Learner,
    step: u64,
    args: &BenchTrainArgs,
    options: &TrainOptions,
    stream: &Philox,
) -> Result<(Batch, Learned), Failure> {
    let batch = random_batch(step, args, options, stream);
    let learned = learner.step(step, &batch, options)?;
    match &learned.skipped {
        None => Ok((batch, learned)),
        Some(reason) => Err(Failure::new(ExitCode::Software, format!("step {step} was skipped: {reason}"))),
    }
}

/// A batch for `step`: random tokens, 15 % of them masked, random gold labels and top-k labels whose probabilities are the
/// softmax of normals.
fn random_batch(step: u64, args: &BenchTrainArgs, options: &TrainOptions, stream: &Philox) -> Batch {
    let mut draws = Draws { stream: *stream, step, next: 0 };
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
    });
    Batch::new(copies.collect(), options.kd_target, options.loss_norm, options.micro_batch_tokens)
}

/// Random numbers of one step, one after another.
struct Draws {
    stream: Philox,
    step: u64,
    next: u64,
}

impl Draws {
    /// A sequence with its labels.
    fn copy(&mut self, args: &BenchTrainArgs) -> MaskedCopy {
        let token_ids = (0..args.length).map(|_| self.id(args.vocab)).collect();
        let label = Some(Label { top_k: args.top_k, ..Label::default() });
        let mut copy = MaskedCopy { teacher: 0, token_ids, masked_positions: vec![], gold_ids: vec![], label };
        for position in 0..args.length as u32 {
            if self.uniform() < MASKING_PROBABILITY {
                self.mask(&mut copy, position, args);
            }
        }
        copy
    }

    /// Makes `position` one that is to be predicted, with random labels.
    fn mask(&mut self, copy: &mut MaskedCopy, position: u32, args: &BenchTrainArgs) {
        copy.masked_positions.push(position);
        copy.gold_ids.push(self.id(args.vocab));
        let Some(label) = &mut copy.label else { return };
        let mut logits: Vec<f32> = (0..args.top_k).map(|_| self.normal()).collect();
        logits.sort_by(|a, b| b.total_cmp(a));
        let sum: f32 = logits.iter().map(|logit| logit.exp()).sum();
        label.top_ids.extend((0..args.top_k).map(|_| self.id(args.vocab)));
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
