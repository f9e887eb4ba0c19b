//! `mergedistill bench train`: what a student of a given shape trains on per second.

use super::training::Training;
use super::{count, in_pool, median, memory, peak_rss_mib, timed};
use crate::cli::{BenchTrainArgs, TrainWorkArgs};
use crate::commands::{print_json, print_line};
use crate::failure::Failure;
use serde::Serialize;

const WARM_UP_STEPS: usize = 2;

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
    /// Losses of all steps, those before the measured ones included.
    losses: Vec<f64>,
    /// Memory on GPUs at the end, when all buffers have grown.
    device_bytes: usize,
    peak_rss_mib: Option<u64>,
}

/// Trains a student of random weights on random labels, and prints the figures.
pub(super) fn train(args: &BenchTrainArgs) -> Result<(), Failure> {
    let figures = in_pool(args.threads, || measure(args))?;
    if args.common.json {
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
    let mut training = Training::new(&args.work, &args.common, &args.place.placement()?)?;
    let (mut seconds, mut masked, mut losses) = (Vec::new(), 0, Vec::new());
    for step in 0..WARM_UP_STEPS + args.steps {
        let (elapsed, (batch, learned)) = timed(|| {
            let batch = training.next_batch();
            let learned = training.learn(&batch)?;
            Ok((batch, learned))
        })?;
        losses.push(learned.sums.loss);
        if step >= WARM_UP_STEPS {
            seconds.push(elapsed);
            masked += batch.masked_positions;
        }
    }

    let seconds_per_step = median(&seconds);
    let TrainWorkArgs { vocab, embedding, hidden, layers, heads, sequences, length, .. } = args.work;
    let tokens_per_step = sequences * length;
    Ok(TrainFigures {
        threads: args.threads,
        vocab,
        embedding,
        hidden,
        intermediate: training.intermediate(),
        layers,
        heads,
        parameters: training.parameters(),
        tokens_per_step,
        masked_positions_per_step: masked as f64 / args.steps as f64,
        steps: args.steps,
        seconds_per_step,
        tokens_per_second: tokens_per_step as f64 / seconds_per_step,
        losses,
        device_bytes: training.device_bytes(),
        peak_rss_mib: peak_rss_mib(),
    })
}
