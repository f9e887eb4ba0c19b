//! The loop of fine-tuning.

use super::task_model::{TaskModel, Weights};
use super::{DownstreamError, FineTuneOptions, Sequence};
use crate::optimiser::{Update, clip};
use crate::schedule;
use model::Dropout;
use model::random::Philox;
use serde::{Deserialize, Serialize};

/// What is told while it goes on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Progress {
    /// A step was made.
    Step {
        /// Its number, counted from 1.
        step: u64,
        /// Of so many.
        steps: u64,
        /// Its loss, before the update.
        loss: f64,
    },
    /// A pass over the training examples is complete.
    Epoch(Epoch),
}

/// A pass over the training examples.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Epoch {
    /// Its number, counted from 1.
    pub epoch: u64,
    /// Mean loss of its steps.
    pub loss: f64,
    /// The score after it, if there is a development set.
    pub score: Option<f64>,
}

/// Trains on `train` and leaves `model` as it was after the epoch with the highest score (of equal ones the first; without a
/// score the last). `score` judges a model. Returns the epochs.
///
/// Every epoch has all sequences in an order of its own, in batches of `options.batch`; the last one may be smaller.
///
/// # Errors
/// When a sequence does not fit the model, or [`DownstreamError::Diverged`].
pub fn fine_tune(
    model: &mut TaskModel,
    train: &[Sequence],
    options: &FineTuneOptions,
    mut score: impl FnMut(&mut TaskModel) -> Result<Option<f64>, DownstreamError>,
    mut progress: impl FnMut(Progress),
) -> Result<Vec<Epoch>, DownstreamError> {
    let steps = options.epochs * train.len().div_ceil(options.batch) as u64;
    let warmup_steps = (steps as f64 * options.warmup_ratio).ceil() as u64;
    let order = Philox::new(options.seed, "fine-tuning order", &[]);
    let stream = Philox::new(options.seed, "fine-tuning dropout", &[]);
    let mut epochs: Vec<Epoch> = Vec::new();
    let mut best: Option<(f64, Weights)> = None;
    let mut step = 0;
    for epoch in 1..=options.epochs {
        let mut shuffled: Vec<usize> = (0..train.len()).collect();
        order.shuffle(&mut shuffled, epoch);
        let mut losses = 0.0;
        for batch in shuffled.chunks(options.batch) {
            let dropout = Dropout { stream, step, first_row: 0 };
            let loss = model.accumulate(batch.iter().map(|at| &train[*at]), Some(dropout))?;
            let norm = model.gradient_norm();
            if !(loss.is_finite() && norm.is_finite()) {
                return Err(DownstreamError::Diverged { step: step + 1 });
            }
            model.update(&Update {
                learning_rate: schedule::learning_rate(step, options.learning_rate, warmup_steps, steps),
                weight_decay: options.weight_decay,
                gradient_scale: clip(norm, options.clip_norm),
            });
            step += 1;
            losses += loss;
            progress(Progress::Step { step, steps, loss });
        }
        let score = score(model)?;
        if let Some(score) = score
            && best.as_ref().is_none_or(|(best, _)| score > *best)
        {
            best = Some((score, model.weights()));
        }
        let loss = losses / train.len().div_ceil(options.batch).max(1) as f64;
        epochs.push(Epoch { epoch, loss, score });
        progress(Progress::Epoch(Epoch { epoch, loss, score }));
    }
    if let Some((_, weights)) = best {
        model.set_weights(&weights);
    }
    Ok(epochs)
}
