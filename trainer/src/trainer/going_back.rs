//! Steps that are skipped, and going back to a checkpoint after several in a row.

use super::targets::is_target;
use super::{Desk, Trainer};
use crate::TrainerError;
use crate::batch::Batch;
use crate::checkpoint::TrainerState;
use crate::journal::{JournalEntry, Rollback, SkippedStep};
use crate::need::can_form_again;
use crate::resume;
use crate::state_folder::open_run_log;
use std::collections::BTreeSet;
use store::SequenceNumber;

/// Times that training goes back to its start, without getting anywhere, before it gives up.
const ROLLBACKS_MAX: usize = 5;

impl Trainer {
    /// Notes in the journal that the step about to be counted was skipped, unless it knows.
    pub(super) fn note_skip(&mut self, reason: String, batch: &Batch) -> Result<(), TrainerError> {
        let skip = SkippedStep { step: self.state.step + 1, reason, sequences: batch.sequences.clone() };
        tracing::warn!(step = skip.step, reason = skip.reason, "a step was skipped");
        if self.skips_since_rollback().any(|known| known.step == skip.step && known.sequences == skip.sequences) {
            return Ok(());
        }
        self.journal.append(JournalEntry::SkippedStep(skip))
    }

    /// Steps skipped since training last went back, the latest first.
    fn skips_since_rollback(&self) -> impl Iterator<Item = &SkippedStep> {
        let entries = self.journal.events().iter().rev();
        entries.take_while(|entry| !matches!(entry, JournalEntry::Rollback(_))).filter_map(|entry| match entry {
            JournalEntry::SkippedStep(skip) => Some(skip),
            _ => None,
        })
    }

    /// Goes back to the last checkpoint of the schedule, without the examples of the batches that were skipped in a row.
    pub(super) fn roll_back(&mut self, desk: &mut Desk<'_>) -> Result<(), TrainerError> {
        let from_step = self.state.step;
        let in_a_row = from_step - u64::from(self.state.skipped_in_a_row)..from_step;
        let skips = self.skips_since_rollback().filter(|skip| in_a_row.contains(&(skip.step - 1)));
        let left_out: BTreeSet<SequenceNumber> = skips.flat_map(|skip| skip.sequences.iter().copied()).collect();

        let (options, journal) = (&self.options, &self.journal);
        let rollbacks = resume::rollbacks(&self.journal);
        // Weights from before these steps: those of a later checkpoint are the ones that do not work. Nor do those that
        // training went back to in vain.
        let is_target = |step| {
            step <= in_a_row.start
                && is_target(options, journal, step)
                && (step == options.first_step() || resume::returns_to(&rollbacks, step) == 0)
        };
        // Of what is found only the state: the weights are read again below, and are too large to be there twice.
        let find = |wanted: &dyn Fn(u64) -> bool| {
            resume::resume(options, &self.vocabulary, &self.checkpoints, journal, wanted).map(|found| found.state)
        };
        self.needs.hold(&self.reader);
        let may_help = |target: &TrainerState| {
            resume::returns_to(&rollbacks, target.step) < ROLLBACKS_MAX
                && can_form_again(target.stream.sampler.window, journal, &self.reader)
        };
        let mut target = find(&is_target)?;
        if !may_help(&target) {
            // Of no schedule, but sound: better than to give up.
            let last = self.resumed_from.filter(|at| *at <= in_a_row.start && resume::returns_to(&rollbacks, *at) == 0);
            let last = last.and_then(|at| find(&|step| step == at).ok().filter(|found| found.step == at));
            let Some(last) = last.filter(may_help) else {
                let left_out = target.stream.left_out.len();
                return Err(TrainerError::Diverged { step: target.step, left_out });
            };
            target = last;
        }
        let to_step = target.step;
        tracing::warn!(from_step, to_step, left_out = left_out.len(), "going back to a checkpoint");
        let rollback = Rollback { from_step, to_step, left_out: left_out.into_iter().collect() };
        self.journal.append(JournalEntry::Rollback(rollback))?;
        for step in self.checkpoints.steps()?.into_iter().filter(|step| *step > to_step) {
            self.checkpoints.remove(step)?;
        }
        // Read again, now that the journal says what to leave out.
        self.restart(|step| step <= to_step)?;
        desk.report(self.resumed());
        Ok(())
    }

    fn restart(&mut self, wanted: impl Fn(u64) -> bool) -> Result<(), TrainerError> {
        let resumed = resume::resume(&self.options, &self.vocabulary, &self.checkpoints, &self.journal, wanted)?;
        (self.learner, self.state) = (resumed.learner, resumed.state);
        self.options.on.iter().try_for_each(|on| self.learner.place(on))?;
        self.needs.has_checkpoints(&self.checkpoints, &self.journal)?;
        self.stream = resume::stream(&self.options, &self.vocabulary, &self.state.stream);
        (self.drawn, self.progress_window) = (None, None);
        self.run_log = open_run_log(&self.options, self.state.step, self.state.evaluated)?;
        self.run_log.evaluation().into_iter().for_each(|evaluation| self.metrics.observe_evaluation(evaluation));
        self.metrics.step.set(i64::try_from(self.state.step).unwrap_or(i64::MAX));
        Ok(())
    }
}
