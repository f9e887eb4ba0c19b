//! Steps made again, one after another, as the trainer makes them.

use super::course::{Beginning, Course};
use super::report::Figures;
use crate::TrainerError;
use crate::batch::Batch;
use crate::checkpoint::TrainerState;
use crate::copy_stream::{CopyStream, Next};
use crate::event::StepReport;
use crate::flops::Cost;
use crate::growth;
use crate::learner::{Learned, Learner};
use crate::optimiser;
use crate::options::TrainOptions;
use crate::resume::{self, Resumed};
use crate::training_copy::TrainingCopy;
use crate::vocabulary::Vocabulary;
use std::sync::Arc;
use std::time::Duration;
use store::LogReader;

/// A training on its way again.
pub(super) struct Runner<'a> {
    course: Course,
    pub(super) log: &'a LogReader,
    pub(super) vocabulary: Arc<Vocabulary>,
    labels: Vec<bool>,
    pub(super) learner: Learner,
    state: TrainerState,
    pub(super) stream: CopyStream,
    /// Returns to earlier checkpoints whose examples are left out.
    applied: usize,
}

impl<'a> Runner<'a> {
    /// Takes `course` up where `beginning` says.
    pub(super) fn begin(
        course: Course,
        beginning: &Beginning,
        log: &'a LogReader,
        vocabulary: Arc<Vocabulary>,
        labels: Vec<bool>,
    ) -> Result<Self, TrainerError> {
        let Resumed { learner, state, .. } = match beginning {
            Beginning::FirstWeights => {
                resume::begin(&course.options, &vocabulary, growth::first_size(&course.journal))?
            }
            Beginning::Checkpoint(step) => {
                let found = course.checkpoints.newest(|state| state.step == *step && course.has_passed(state))?;
                let path = course.checkpoint_path(*step);
                let loaded = found.ok_or(TrainerError::Removed { path })?;
                resume::restore(&course.options, &vocabulary, loaded, course.journal.last_settings().is_none())?
            }
        };
        let stream = resume::stream_of(&course.options, labels.clone(), &vocabulary, &state.stream);
        let applied = usize::try_from(state.rollbacks).unwrap_or(usize::MAX);
        Ok(Self { course, log, vocabulary, labels, learner, state, stream, applied })
    }

    /// Goes on in the `release` that branches here.
    pub(super) fn enter(self, release: Course) -> Self {
        let Self { log, vocabulary, labels, learner, state, applied, .. } = self;
        let stream = resume::stream_of(&release.options, labels.clone(), &vocabulary, &state.stream);
        Self { course: release, log, vocabulary, labels, learner, state, stream, applied }
    }

    /// Steps that are done.
    pub(super) fn step(&self) -> u64 {
        self.state.step
    }

    /// Makes the next step.
    pub(super) fn train(&mut self) -> Result<Figures, TrainerError> {
        let train = self.prepare()?;
        let copies = self.draw()?;
        let batch = self.stream.batch(self.state.step, copies);
        let learned = self.learn(&batch, &train)?;
        Ok(Figures::of(&batch, &learned, &train))
    }

    /// Gets ready for the next step: how it is made.
    pub(super) fn prepare(&mut self) -> Result<TrainOptions, TrainerError> {
        let step = self.state.step;
        let size = growth::size_after(&self.course.journal, step).unwrap_or(0);
        if size > self.state.vocabulary_size {
            resume::grow(&self.course.options, &self.vocabulary, size, &mut self.learner, &mut self.state)?;
        }
        let rollbacks = &self.course.rollbacks;
        while let Some(rest) = rollbacks.get(self.applied..).filter(|rest| !rest.is_empty()) {
            // Who goes back further leaves out what was left out before too, from there on.
            if rest.iter().any(|rollback| rollback.to_step <= step) {
                self.stream.leave_out(&rest[0].left_out);
                self.applied += 1;
            } else {
                break;
            }
        }
        let train = self.course.train_options(step);
        self.stream.set_batches(&train);
        Ok(train)
    }

    /// The copies of the next step.
    pub(super) fn draw(&mut self) -> Result<Vec<TrainingCopy>, TrainerError> {
        let step = self.state.step + 1;
        match self.stream.next_copies(self.log, &mut self.course.journal)? {
            Next::Batch(copies) => Ok(copies),
            Next::Short(_) | Next::End => {
                let reason = format!(
                    "journal and log have no examples for step {step}: training has not got so far in {}",
                    self.course.state_dir().display()
                );
                Err(TrainerError::Unreplayable { step, reason })
            }
        }
    }

    /// Learns from the batch that was drawn.
    pub(super) fn learn(&mut self, batch: &Batch, train: &TrainOptions) -> Result<Learned, TrainerError> {
        let (learner, step) = (&mut self.learner, self.state.step);
        let learned = self.course.options.compute(|| learner.step(step, batch, train))?;
        self.state.step += 1;
        self.state.updates = self.learner.optimiser.updates;
        self.state.stream = self.stream.state().clone();
        Ok(learned)
    }

    /// Does work on training's threads.
    pub(super) fn compute<R: Send>(&mut self, work: impl FnOnce(&mut Learner) -> R + Send) -> R {
        let learner = &mut self.learner;
        self.course.options.compute(|| work(learner))
    }

    /// Whether weights and moments are, bit for bit, those of the checkpoint after `step`, which is the step that was made last. `None`: there is
    /// none on the way, or it has more tokens already.
    pub(super) fn checkpoint_agrees(&self, step: u64) -> Result<Option<bool>, TrainerError> {
        let wanted = |state: &TrainerState| {
            state.step == step && self.course.has_passed(state) && state.vocabulary_size == self.state.vocabulary_size
        };
        let found = match self.course.checkpoints.newest(wanted) {
            // Then nothing can be said about it.
            Err(TrainerError::Corrupt { .. } | TrainerError::Model(_)) => None,
            found => found?,
        };
        let Some(loaded) = found else { return Ok(None) };
        let unknown = self.course.journal.last_settings().is_none();
        let stored = resume::restore(&self.course.options, &self.vocabulary, loaded, unknown)?.learner;
        let is_same = |one: &[f32], other: &[f32]| {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| one.to_bits() == other.to_bits())
        };
        let (made, stored) = (&self.learner, &stored);
        Ok(Some(
            is_same(made.student.arena(), stored.student.arena())
                && is_same(&made.optimiser.first, &stored.optimiser.first)
                && is_same(&made.optimiser.second, &stored.optimiser.second),
        ))
    }

    /// Other attempts in which a step of this number was skipped.
    pub(super) fn skipped_in_attempts(&self, step: u64) -> Vec<u64> {
        let others = self.course.skipped.iter().filter(|(attempt, at)| *at == step && *attempt != self.course.attempt);
        let mut attempts: Vec<u64> = others.map(|(attempt, _)| *attempt).collect();
        attempts.dedup();
        attempts
    }
}

impl Figures {
    /// As `metrics.jsonl` has them, and more.
    pub(super) fn of(batch: &Batch, learned: &Learned, train: &TrainOptions) -> Self {
        let report = StepReport::new(0, batch, learned, Cost::default(), Duration::ZERO);
        Self {
            loss: report.loss,
            kd: report.kd,
            mlm: report.mlm,
            top1: report.top1,
            learning_rate: report.learning_rate,
            lambda: report.lambda,
            grad_norm: report.grad_norm,
            clip: if report.skipped { 0.0 } else { optimiser::clip(report.grad_norm, train.clip_norm) },
            skipped: learned.skipped.clone(),
            copies: report.copies,
            tokens: report.tokens,
            masked_positions: report.masked_positions,
            micro_batches: batch.micro_batches.len() as u64,
        }
    }
}
