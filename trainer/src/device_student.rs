//! The student on accelerators: the same steps as [`Student`](crate::student::Student) makes on the processor.
//!
//! Several share the work of each batch (data parallelism): every one has the whole student, learns from its pieces of the batch, and then owns a part of the gradients' sum, which it makes
//! an update of ([`Ranks`]). Which pieces are whose follows from the batch alone, and dropout from a token's place in its micro-batch, so that the number of
//! accelerators makes no difference but in the rounding of sums.

mod replica;

use crate::TrainerError;
use crate::batch::MicroBatch;
use crate::loss::{LossSums, Score};
use crate::optimiser::{AdamW, Update};
use crate::student::Student;
use model::device::{DeviceError, DeviceTraining, Rank, Ranks};
use model::{Dropout, ModelError, PackedBatch};
use replica::Replica;
use std::borrow::Cow;

/// A student whose weights, gradients and moments are on accelerators.
pub(crate) struct DeviceStudent {
    on: Ranks,
    /// By rank.
    replicas: Vec<Replica>,
    /// Whether it has learnt since it was copied back.
    changed: bool,
    /// Whether each rank's part of the gradients is the sum over all ranks.
    reduced: bool,
}

/// What a rank computes at a time.
#[derive(Debug)]
struct Piece<'a> {
    part: Cow<'a, MicroBatch>,
    dropout: Option<Dropout>,
}

impl DeviceStudent {
    /// Copies a student and its optimiser's state over.
    ///
    /// # Errors
    /// When there is no room for them, or the kernels cannot do this shape.
    pub(crate) fn new(on: &Ranks, student: &Student, optimiser: &AdamW) -> Result<Self, TrainerError> {
        let of = on.devices().len();
        let replica = |(number, on)| -> Result<Replica, ModelError> {
            let mut training = DeviceTraining::new(&on, student.configuration(), Rank { number, of })?;
            training.set_parameters(student.arena())?;
            training.set_moments(&optimiser.first, &optimiser.second)?;
            Ok(Replica { training, halvings: 0 })
        };
        let replicas = on.devices().enumerate().map(replica).collect::<Result<_, _>>()?;
        let mut student = Self { on: on.clone(), replicas, changed: false, reduced: false };
        // What the exchange needs besides it takes now, before batches take the rest.
        student.reduce()?;
        student.clear_gradients()?;
        Ok(student)
    }

    /// Where it is.
    pub(crate) fn on(&self) -> &Ranks {
        &self.on
    }

    /// Times that a micro-batch was cut in two because there was no room for it, since this was asked last.
    pub(crate) fn take_halvings(&mut self) -> u64 {
        self.replicas.iter_mut().map(|replica| std::mem::take(&mut replica.halvings)).sum()
    }

    /// Bytes that it has on all accelerators together.
    pub(crate) fn device_bytes(&self) -> usize {
        self.on.devices().map(|on| on.device.reserved()).sum()
    }

    /// Copies weights and the optimiser's state back, if they are others.
    ///
    /// # Errors
    /// When an accelerator fails.
    pub(crate) fn fetch(&mut self, student: &mut Student, optimiser: &mut AdamW) -> Result<(), TrainerError> {
        if self.changed {
            let first = &self.replicas[0].training;
            student.rewrite(|arena| first.read_parameters(arena))?;
            for Replica { training, .. } in &self.replicas {
                training.read_moments(&mut optimiser.first, &mut optimiser.second)?;
            }
            self.changed = false;
        }
        Ok(())
    }

    /// Forward and backward of micro-batches, each with its dropout: adds their gradients.
    ///
    /// # Errors
    /// When one does not fit the model, there is no room for one sequence, or an accelerator fails.
    ///
    /// # Panics
    /// When the gradients' norm was asked for, and they were not used up since.
    pub(crate) fn accumulate(
        &mut self,
        parts: Vec<(&MicroBatch, Option<Dropout>)>,
        lambda: f64,
    ) -> Result<LossSums, TrainerError> {
        assert!(!self.reduced, "gradients that were summed over the ranks are used up before others are added");
        let pieces = share_out(parts, self.replicas.len());
        let all = side_by_side(self.replicas.iter_mut().zip(pieces), |(replica, pieces)| {
            let mut sums = LossSums::default();
            for Piece { part, dropout } in pieces {
                sums.add(&replica.accumulate(&part, lambda, dropout)?);
                store::pulse::beat();
            }
            Ok(sums)
        })?;
        let mut sums = LossSums::default();
        all.iter().for_each(|of_rank| sums.add(of_rank));
        Ok(sums)
    }

    /// How the student predicts `gold_ids` `[masked]` at the batch's masked rows, without dropout.
    ///
    /// # Errors
    /// As [`DeviceStudent::accumulate`].
    pub(crate) fn score(&mut self, batch: &PackedBatch, gold_ids: &[u32]) -> Result<Vec<Score>, TrainerError> {
        let (mut pieces, mut rest, mut golds) = (Vec::new(), Cow::Borrowed(batch), gold_ids);
        for parts in (2..=self.replicas.len()).rev() {
            let (low, high) = rest.cut(parts);
            let (of_low, of_high) = golds.split_at(low.masked_rows.len());
            pieces.push((Cow::Owned(low), of_low));
            (rest, golds) = (Cow::Owned(high), of_high);
        }
        pieces.push((rest, golds));
        let scores = side_by_side(self.replicas.iter_mut().zip(pieces), |(replica, (batch, golds))| {
            replica.score(&batch, golds)
        })?;
        Ok(scores.concat())
    }

    /// The Euclidean norm of all gradients together.
    ///
    /// # Errors
    /// When an accelerator fails.
    pub(crate) fn gradient_norm(&mut self) -> Result<f64, TrainerError> {
        self.reduce()?;
        let squares = side_by_side(self.replicas.iter_mut(), |replica| Ok(replica.training.sum_of_squares()?))?;
        Ok(squares.into_iter().sum::<f64>().sqrt())
    }

    /// Forgets all gradients.
    ///
    /// # Errors
    /// When an accelerator fails.
    pub(crate) fn clear_gradients(&mut self) -> Result<(), TrainerError> {
        self.reduced = false;
        Ok(self.replicas.iter_mut().try_for_each(|replica| replica.training.clear_gradients())?)
    }

    /// Moves the parameters along their gradients, which are 0 afterwards.
    ///
    /// # Errors
    /// When an accelerator fails.
    pub(crate) fn update(&mut self, optimiser: &mut AdamW, update: &Update) -> Result<(), TrainerError> {
        self.reduce()?;
        optimiser.updates += 1;
        self.changed = true;
        let factors = optimiser.factors(update);
        self.replicas.iter_mut().try_for_each(|replica| replica.training.update(factors))?;
        if self.replicas.len() > 1 {
            self.on.share_parameters(&mut trainings(&mut self.replicas))?;
            self.clear_gradients()?; // What is left of them outside the own part.
        }
        self.reduced = false;
        Ok(())
    }

    /// Makes each rank's part of the gradients the sum over all ranks.
    fn reduce(&mut self) -> Result<(), DeviceError> {
        if self.replicas.len() > 1 && !self.reduced {
            self.on.reduce_gradients(&mut trainings(&mut self.replicas))?;
            self.reduced = true;
        }
        Ok(())
    }
}

fn trainings(replicas: &mut [Replica]) -> Vec<&mut DeviceTraining> {
    replicas.iter_mut().map(|replica| &mut replica.training).collect()
}

/// By rank, what it computes. As many micro-batches for each, one after another; of what is left over each has a piece.
fn share_out(parts: Vec<(&MicroBatch, Option<Dropout>)>, ranks: usize) -> Vec<Vec<Piece<'_>>> {
    let mut pieces: Vec<Vec<Piece<'_>>> = (0..ranks).map(|_| Vec::new()).collect();
    let rounds = parts.len() / ranks * ranks;
    for (number, (part, dropout)) in parts.into_iter().enumerate() {
        if number < rounds {
            pieces[number % ranks].push(Piece { part: Cow::Borrowed(part), dropout });
            continue;
        }
        let mut first_row = 0;
        for (pieces, part) in pieces.iter_mut().zip(part.pieces(ranks)) {
            let dropout = dropout.map(|dropout| Dropout { first_row: dropout.first_row + first_row, ..dropout });
            first_row += part.packed.tokens() as u32;
            pieces.push(Piece { part: Cow::Owned(part), dropout });
        }
    }
    pieces
}

/// Does `work` for every rank, all at a time. What is done there gives its signs to this thread's pulse. The first error, by rank, is the outcome.
fn side_by_side<T: Send, R: Send>(
    ranks: impl ExactSizeIterator<Item = T>,
    work: impl Fn(T) -> Result<R, TrainerError> + Sync,
) -> Result<Vec<R>, TrainerError> {
    if ranks.len() == 1 {
        return ranks.map(work).collect();
    }
    let (pulse, work) = (store::pulse::current(), &work);
    std::thread::scope(|scope| {
        let begin = |rank| {
            let pulse = pulse.clone();
            scope.spawn(move || {
                let _entered = pulse.map(store::pulse::Pulse::enter);
                work(rank)
            })
        };
        let threads: Vec<_> = ranks.map(begin).collect();
        let done: Vec<_> = threads.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
        done.into_iter().map(|done| done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    })
}

#[cfg(test)]
mod tests;
