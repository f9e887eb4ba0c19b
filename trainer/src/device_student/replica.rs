//! The student on one accelerator: micro-batches forward and backward, and in parts where there is no room.

use crate::TrainerError;
use crate::batch::MicroBatch;
use crate::loss::{LossSums, Score, Targets};
use model::device::{DeviceError, DeviceTraining, PositionOutcome, RowTargets};
use model::{Dropout, ModelError, PackedBatch};

/// Weights, gradients and moments on one accelerator.
pub(super) struct Replica {
    pub(super) training: DeviceTraining,
    /// Times that a micro-batch was cut in two because there was no room for it.
    pub(super) halvings: u64,
}

impl Replica {
    /// Forward and backward of one micro-batch: adds its gradients. Where there is no room for all of it, the sequences go in two halves, and those in halves again: with the
    /// same dropout, so that only rounding tells.
    ///
    /// # Errors
    /// When the batch does not fit the model, there is no room for one sequence, or the accelerator fails.
    pub(super) fn accumulate(
        &mut self,
        part: &MicroBatch,
        lambda: f64,
        dropout: Option<Dropout>,
    ) -> Result<LossSums, TrainerError> {
        if part.packed.masked_rows.is_empty() {
            return Ok(LossSums::default());
        }
        let targets = part.targets();
        let rows = row_targets(&targets, lambda);
        let outcomes = match self.training.distil(&part.packed, &rows, dropout) {
            Err(ModelError::Device(error @ DeviceError::OutOfMemory { .. })) if part.packed.lengths.len() > 1 => {
                self.halve(&part.packed, &error);
                let (low, high) = part.cut(2);
                let first_row = low.packed.tokens() as u32;
                let mut sums = self.accumulate(&low, lambda, dropout)?;
                let dropout = dropout.map(|dropout| Dropout { first_row: dropout.first_row + first_row, ..dropout });
                sums.add(&self.accumulate(&high, lambda, dropout)?);
                return Ok(sums);
            }
            outcomes => outcomes?,
        };
        self.training.backward(&part.packed)?;
        Ok(sums(&outcomes, &targets, &rows))
    }

    /// How the student predicts `gold_ids` `[masked]` at the batch's masked rows, without dropout.
    ///
    /// # Errors
    /// As [`Replica::accumulate`].
    pub(super) fn score(&mut self, batch: &PackedBatch, gold_ids: &[u32]) -> Result<Vec<Score>, TrainerError> {
        if gold_ids.is_empty() {
            return Ok(Vec::new());
        }
        let outcomes = match self.training.score(batch, &RowTargets::of_gold(gold_ids)) {
            Err(ModelError::Device(error @ DeviceError::OutOfMemory { .. })) if batch.lengths.len() > 1 => {
                self.halve(batch, &error);
                let (low, high) = batch.cut(2);
                let (of_low, of_high) = gold_ids.split_at(low.masked_rows.len());
                let mut scores = self.score(&low, of_low)?;
                scores.extend(self.score(&high, of_high)?);
                return Ok(scores);
            }
            outcomes => outcomes?,
        };
        let score = |outcome: PositionOutcome| Score {
            loss: outcome.mlm,
            correct: outcome.correct,
            best_id: outcome.best_id,
            best_probability: f64::from(outcome.best_probability),
        };
        Ok(outcomes.into_iter().map(score).collect())
    }

    fn halve(&mut self, batch: &PackedBatch, error: &DeviceError) {
        let (sequences, tokens) = (batch.lengths.len(), batch.tokens());
        tracing::warn!(sequences, tokens, "{error}; the micro-batch goes in two halves (train.micro_batch_tokens)");
        self.halvings += 1;
    }
}

/// What an accelerator is to know of the targets: each of the teacher's tokens once, and none without probability.
fn row_targets(targets: &Targets<'_>, lambda: f64) -> RowTargets {
    let mut rows = RowTargets::of_gold(targets.gold_ids);
    rows.weights.copy_from_slice(targets.weights);
    for position in (0..targets.gold_ids.len()).filter(|position| targets.has_teacher[*position]) {
        rows.lambdas[position] = lambda as f32;
        rows.tails[position] = targets.tail_masses.get(position).copied().unwrap_or_default();
        rows.more_of_gold[position] = targets.gold_masses.get(position).copied().unwrap_or_default();
    }
    rows.starts.truncate(1);
    for position in 0..targets.gold_ids.len() {
        let begin = rows.ids.len();
        let labels = position * targets.top_k..(position + 1) * targets.top_k;
        let labels = targets.top_ids[labels.clone()].iter().zip(&targets.probabilities[labels]);
        for (id, p) in labels.filter(|(_, p)| targets.has_teacher[position] && **p != 0.0) {
            match rows.ids[begin..].iter().position(|known| known == id) {
                Some(at) => rows.probabilities[begin + at] += p,
                None => {
                    rows.ids.push(*id);
                    rows.probabilities.push(*p);
                }
            }
        }
        rows.starts.push(rows.ids.len() as u32);
    }
    rows
}

fn sums(outcomes: &[PositionOutcome], targets: &Targets<'_>, rows: &RowTargets) -> LossSums {
    let mut sums = LossSums::default();
    for (position, outcome) in outcomes.iter().enumerate() {
        let (weight, lambda) = (f64::from(rows.weights[position]), f64::from(rows.lambdas[position]));
        sums.add(&LossSums {
            loss: weight * (lambda * outcome.kd + (1.0 - lambda) * outcome.mlm),
            kd: outcome.kd,
            mlm: outcome.mlm,
            correct: u64::from(outcome.correct),
            positions: 1,
            labelled: u64::from(targets.has_teacher[position]),
        });
    }
    sums
}
