//! The student on an accelerator: the same steps as [`Student`](crate::Student) makes on the processor.

use crate::TrainerError;
use crate::batch::MicroBatch;
use crate::loss::{LossSums, Score, Targets};
use crate::optimiser::{AdamW, Update};
use crate::student::Student;
use model::device::{DeviceError, DeviceTraining, OnDevice, PositionOutcome, RowTargets};
use model::{Dropout, ModelError, PackedBatch};

/// A student whose weights, gradients and moments are on an accelerator.
pub(crate) struct DeviceStudent {
    on: OnDevice,
    training: DeviceTraining,
    /// Whether it has learnt since it was copied back.
    changed: bool,
    /// Times that a micro-batch was cut in two because there was no room for it.
    pub(crate) halvings: u64,
}

impl DeviceStudent {
    /// Copies a student and its optimiser's state over.
    ///
    /// # Errors
    /// When there is no room for them, or the kernels cannot do this shape.
    pub(crate) fn new(on: &OnDevice, student: &Student, optimiser: &AdamW) -> Result<Self, TrainerError> {
        let mut training = DeviceTraining::new(on, student.configuration())?;
        training.set_parameters(student.arena()).map_err(ModelError::from)?;
        training.set_moments(&optimiser.first, &optimiser.second).map_err(ModelError::from)?;
        Ok(Self { on: on.clone(), training, changed: false, halvings: 0 })
    }

    /// Where it is.
    pub(crate) fn on(&self) -> &OnDevice {
        &self.on
    }

    /// Copies weights and the optimiser's state back, if they are others.
    ///
    /// # Errors
    /// When the accelerator fails.
    pub(crate) fn fetch(&mut self, student: &mut Student, optimiser: &mut AdamW) -> Result<(), TrainerError> {
        if self.changed {
            let training = &self.training;
            student.rewrite(|arena| training.read_parameters(arena)).map_err(ModelError::from)?;
            training.read_moments(&mut optimiser.first, &mut optimiser.second).map_err(ModelError::from)?;
            self.changed = false;
        }
        Ok(())
    }

    /// Forward and backward of one micro-batch: adds its gradients. Where there is no room for all of it, the sequences go in two halves, and those in halves again: with the
    /// same dropout, so that only rounding tells.
    ///
    /// # Errors
    /// When the batch does not fit the model, there is no room for one sequence, or the accelerator fails.
    pub(crate) fn accumulate(
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
                let (low, high) = part.halves();
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
    /// As [`DeviceStudent::accumulate`].
    pub(crate) fn score(&mut self, batch: &PackedBatch, gold_ids: &[u32]) -> Result<Vec<Score>, TrainerError> {
        if gold_ids.is_empty() {
            return Ok(Vec::new());
        }
        let outcomes = match self.training.score(batch, &RowTargets::of_gold(gold_ids)) {
            Err(ModelError::Device(error @ DeviceError::OutOfMemory { .. })) if batch.lengths.len() > 1 => {
                self.halve(batch, &error);
                let (low, high) = batch.halves();
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

    /// The Euclidean norm of all gradients together.
    ///
    /// # Errors
    /// When the accelerator fails.
    pub(crate) fn gradient_norm(&mut self) -> Result<f64, TrainerError> {
        Ok(self.training.sum_of_squares().map_err(ModelError::from)?.sqrt())
    }

    /// Forgets all gradients.
    ///
    /// # Errors
    /// When the accelerator fails.
    pub(crate) fn clear_gradients(&mut self) -> Result<(), TrainerError> {
        Ok(self.training.clear_gradients().map_err(ModelError::from)?)
    }

    /// Moves the parameters along their gradients, which are 0 afterwards.
    ///
    /// # Errors
    /// When the accelerator fails.
    pub(crate) fn update(&mut self, optimiser: &mut AdamW, update: &Update) -> Result<(), TrainerError> {
        optimiser.updates += 1;
        self.changed = true;
        Ok(self.training.update(optimiser.factors(update)).map_err(ModelError::from)?)
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

#[cfg(test)]
#[path = "device_student_tests.rs"]
mod tests;
