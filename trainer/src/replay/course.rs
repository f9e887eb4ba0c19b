//! The way that a training took, as its state folder tells of it.

use crate::TrainerError;
use crate::checkpoint::{Checkpoints, TrainerState};
use crate::journal::{Journal, JournalEntry, Rollback};
use crate::need::can_form_again;
use crate::options::{TrainOptions, TrainerOptions};
use crate::resume;
use crate::state_folder::{checkpoints_path, journal_path};
use std::path::Path;
use store::LogReader;

/// The attempt of a run, or of a release, in which a step was made.
pub(super) struct Course {
    /// Its trainer's; what the journal has of settings counts more.
    pub(super) options: TrainerOptions,
    /// As it was in this attempt.
    pub(super) journal: Journal,
    /// Returns to earlier checkpoints before this attempt.
    pub(super) rollbacks: Vec<Rollback>,
    /// Those that are there.
    pub(super) checkpoints: Checkpoints,
    /// Which attempt it is, from 1.
    pub(super) attempt: u64,
    /// Attempts so far.
    pub(super) attempts: u64,
    /// Steps up to here are also those of the last attempt.
    pub(super) shared_until: u64,
    /// The step that this attempt reached; `None`: it is the last one.
    reached: Option<u64>,
    /// (attempt, step) of every step that was skipped.
    pub(super) skipped: Vec<(u64, u64)>,
}

/// Where a replay begins.
pub(super) enum Beginning {
    /// With the first weights.
    FirstWeights,
    /// With the checkpoint after this many steps.
    Checkpoint(u64),
}

impl Beginning {
    /// Steps that are done there.
    pub(super) fn step(&self) -> u64 {
        self.checkpoint().unwrap_or(0)
    }

    /// The checkpoint, if it is one.
    pub(super) fn checkpoint(&self) -> Option<u64> {
        match self {
            Self::FirstWeights => None,
            Self::Checkpoint(step) => Some(*step),
        }
    }
}

impl Course {
    /// The attempt of this number of the training with these options; `None`: the last one.
    pub(super) fn open(options: TrainerOptions, attempt: Option<u64>) -> Result<Self, TrainerError> {
        let path = journal_path(&options.state_dir);
        if !path.is_file() {
            let reason = "there is no journal: nothing was trained with this state folder".to_owned();
            return Err(TrainerError::Configuration(format!("{}: {reason}", options.state_dir.display())));
        }
        let whole = Journal::view(&path, None)?;
        let all = resume::rollbacks(&whole);
        let attempts = all.len() as u64 + 1;
        let attempt = attempt.unwrap_or(attempts);
        if attempt == 0 || attempt > attempts {
            let message = format!("there is no attempt {attempt}: training has made {attempts}, counted from 1");
            return Err(TrainerError::Configuration(message));
        }
        let skipped = skipped(&whole);
        let returns = attempt - 1;
        let later = &all[usize::try_from(returns).unwrap_or(usize::MAX).min(all.len())..];
        let shared_until = later.iter().map(|rollback| rollback.to_step).min().unwrap_or(u64::MAX);
        let reached = later.first().map(|rollback| rollback.from_step);
        let journal = if later.is_empty() { whole } else { Journal::view(&path, Some(returns))? };
        Ok(Self {
            rollbacks: resume::rollbacks(&journal),
            checkpoints: Checkpoints::at(&checkpoints_path(&options.state_dir)),
            options,
            journal,
            attempt,
            attempts,
            shared_until,
            reached,
            skipped,
        })
    }

    /// The attempt of the run with the options `run` from which a release branched.
    pub(super) fn before(release: &Self, run: &TrainerOptions) -> Result<Self, TrainerError> {
        let all = resume::rollbacks(&Journal::view(&journal_path(&run.state_dir), None)?);
        let known = all.iter().zip(&release.rollbacks).take_while(|(of_run, known)| of_run == known).count();
        Self::open(run.clone(), Some(known as u64 + 1))
    }

    /// Checks that a step was made, as far as anybody knows; `last` is the last one that is recorded.
    pub(super) fn check_done(&self, step: u64, last: Option<u64>) -> Result<(), TrainerError> {
        let first = self.options.first_step() + 1;
        let refuse = |reason: String| Err(TrainerError::Unreplayable { step, reason });
        let in_attempts: Vec<String> = self
            .skipped
            .iter()
            .filter(|(_, skipped)| *skipped == step)
            .map(|(attempt, _)| attempt.to_string())
            .collect();
        let hint = match &in_attempts[..] {
            [] => String::new(),
            attempts => format!("; a step {step} was skipped in attempt {}: ask for that one", attempts.join(", ")),
        };
        if step < first {
            return refuse(format!("the first step is {first}"));
        }
        match self.reached.or(last) {
            Some(reached) if step > reached => refuse(format!("the last step that was made is {reached}{hint}")),
            _ => Ok(()),
        }
    }

    /// The newest place at or before `step` steps from which training can be done again; `None`: a release has none of its own.
    pub(super) fn beginning(&self, step: u64) -> Result<Option<Beginning>, TrainerError> {
        for at in self.checkpoints.steps()?.into_iter().rev().filter(|at| *at <= step) {
            if self.state(at)?.is_some() {
                return Ok(Some(Beginning::Checkpoint(at)));
            }
        }
        Ok(self.options.trunk.is_none().then_some(Beginning::FirstWeights))
    }

    /// Whether a checkpoint with this state lies on the way.
    pub(super) fn has_passed(&self, state: &TrainerState) -> bool {
        state.rollbacks < self.attempt && resume::is_valid(state, &self.rollbacks)
    }

    /// The state of the checkpoint after `step`; `None`: it is damaged, or not on the way.
    fn state(&self, step: u64) -> Result<Option<TrainerState>, TrainerError> {
        match self.checkpoints.state(step) {
            Ok(state) => Ok(Some(state).filter(|state| self.has_passed(state))),
            // Damaged, or removed meanwhile.
            Err(TrainerError::Corrupt { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The first step that can be replayed from a place of this course; `None`: none can.
    pub(super) fn first_replayable(&self, log: &LogReader) -> Result<Option<u64>, TrainerError> {
        if self.options.trunk.is_none() && can_form_again(0, &self.journal, log) {
            return Ok(Some(1));
        }
        for step in self.checkpoints.steps()? {
            let state = self.state(step)?;
            if state.is_some_and(|state| can_form_again(state.stream.sampler.window, &self.journal, log)) {
                return Ok(Some(step + 1));
            }
        }
        Ok(None)
    }

    /// Whether all windows that the journal knows can be formed again.
    pub(super) fn can_form_all(&self, log: &LogReader) -> bool {
        can_form_again(0, &self.journal, log)
    }

    /// How the step is made that comes after `step` steps.
    pub(super) fn train_options(&self, step: u64) -> TrainOptions {
        self.journal.settings_at(step).map_or(&self.options.train, |settings| &settings.train).clone()
    }

    /// The folder of the checkpoint after `step`.
    pub(super) fn checkpoint_path(&self, step: u64) -> std::path::PathBuf {
        self.checkpoints.path(step)
    }

    /// Its state folder.
    pub(super) fn state_dir(&self) -> &Path {
        &self.options.state_dir
    }
}

/// (attempt, step) of every step that was skipped.
fn skipped(journal: &Journal) -> Vec<(u64, u64)> {
    let mut attempt = 1;
    let mut skipped = Vec::new();
    for event in journal.events() {
        match event {
            JournalEntry::Rollback(_) => attempt += 1,
            JournalEntry::SkippedStep(skip) => skipped.push((attempt, skip.step)),
            _ => {}
        }
    }
    skipped
}
