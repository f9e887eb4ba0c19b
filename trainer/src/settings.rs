//! Settings that may change from one start to the next, and while training goes on: from where each holds.
//!
//! The journal has an entry ([`SettingsEntry`]) each time they change, and one of those with which training began. It is durable before
//! what it says takes effect, so log, journal and seed determine every step across changes too.
//!
//! | what | is looked up by | because |
//! | --- | --- | --- |
//! | `alpha`, `shuffle_examples`, `max_passes`, `when_short`, `copies`, `best_by` | window | a window is formed again as it was |
//! | all else | step | a batch is cut, weighed and learnt from when its step is made |
//!
//! Whoever goes on from an earlier checkpoint makes the steps up to a later entry under the earlier settings. If it is to go on
//! under other ones, the entry that says so takes the place of those for the same step and later ones; the windows that were formed under those keep theirs. Going
//! back to a checkpoint because steps were not finite takes nobody's changes back: the latest settings hold from there on. What
//! came before the first entry (the journal is of a version that wrote none) was under the first entry's settings.

use crate::error::TrainerError;
use crate::journal::{Journal, JournalEntry};
use crate::options::{TrainOptions, TrainerOptions};
use crate::schedule::Schedule;
use serde::{Deserialize, Serialize};

/// All that decides a step besides log and seed, and what a run keeps: the student's shape and dropout, and which teachers label.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// A language's share is ∝ n_k^alpha.
    pub alpha: f64,
    /// How the student is trained.
    #[serde(flatten)]
    pub train: TrainOptions,
}

/// Settings, and from where they hold.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SettingsEntry {
    /// Steps that are done before the first that is made under them.
    pub step: u64,
    /// The first window that is formed under them.
    pub window: u64,
    /// The settings.
    #[serde(flatten)]
    pub settings: Settings,
}

impl Settings {
    /// Those of a trainer's options.
    #[must_use]
    pub fn of(options: &TrainerOptions) -> Self {
        Self { alpha: options.alpha, train: TrainOptions { until_step: None, ..options.train.clone() } }
    }

    /// Whether training can go over to `wanted` between two steps. What is left out can change with a restart: a batch that is being
    /// gathered, or the end that others were told, depends on it.
    #[must_use]
    pub fn can_become(&self, wanted: &Self) -> bool {
        let (is, new) = (&self.train, &wanted.train);
        let schedule = match (is.schedule, new.schedule) {
            (Schedule::Trunk { .. }, Schedule::Trunk { .. }) => new.schedule,
            (schedule, _) => schedule,
        };
        let reached = TrainOptions {
            schedule,
            learning_rate: new.learning_rate,
            warmup_steps: new.warmup_steps,
            weight_decay: new.weight_decay,
            clip_norm: new.clip_norm,
            lambda_start: new.lambda_start,
            lambda_end: new.lambda_end,
            lambda_schedule: new.lambda_schedule,
            checkpoint_every_steps: new.checkpoint_every_steps,
            keep_checkpoints: new.keep_checkpoints,
            ..is.clone()
        };
        reached == *new
    }
}

/// Notes in the journal that training goes on under `settings` after `step` steps, unless its latest entry says so: then they hold
/// from where that says.
///
/// # Errors
/// When the journal cannot be written.
pub(crate) fn note(journal: &mut Journal, step: u64, settings: &Settings) -> Result<(), TrainerError> {
    if journal.last_settings() == Some(settings) {
        return Ok(());
    }
    let (window, known) = (journal.next_window(), journal.last_settings().is_some());
    if known {
        tracing::info!(step, window, "training goes on under other settings");
    }
    journal.append(JournalEntry::Settings(SettingsEntry { step, window, settings: settings.clone() }))
}

/// Which settings held when, as the entries of a journal say one after another.
#[derive(Clone, Debug, Default)]
pub(crate) struct Timeline {
    /// In the order of the journal.
    all: Vec<Settings>,
    /// Steps done, and the index of the settings from there on; ascending.
    by_step: Vec<(u64, usize)>,
    /// The same by window.
    by_window: Vec<(u64, usize)>,
}

impl Timeline {
    /// Takes note of an entry.
    pub(crate) fn note(&mut self, entry: &JournalEntry) {
        match entry {
            JournalEntry::Settings(SettingsEntry { step, window, settings }) => {
                let index = self.all.len();
                self.all.push(settings.clone());
                for (held, from) in [(&mut self.by_step, *step), (&mut self.by_window, *window)] {
                    held.retain(|(earlier, _)| *earlier < from);
                    held.push((from, index));
                }
            }
            JournalEntry::Rollback(rollback) => {
                let Some((step, latest)) = self.by_step.last().copied() else { return };
                if step > rollback.to_step {
                    self.by_step.retain(|(earlier, _)| *earlier < rollback.to_step);
                    self.by_step.push((rollback.to_step, latest));
                }
            }
            _ => {}
        }
    }

    pub(crate) fn at_step(&self, step: u64) -> Option<&Settings> {
        self.find(&self.by_step, step)
    }

    pub(crate) fn of_window(&self, window: u64) -> Option<&Settings> {
        self.find(&self.by_window, window)
    }

    pub(crate) fn last(&self) -> Option<&Settings> {
        self.all.last()
    }

    fn find(&self, held: &[(u64, usize)], at: u64) -> Option<&Settings> {
        let later = held.partition_point(|(from, _)| *from <= at);
        let (_, index) = held.get(later.saturating_sub(1))?;
        self.all.get(*index)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::journal::Rollback;

    fn settings(learning_rate: f64) -> Settings {
        Settings { alpha: 0.7, train: TrainOptions { learning_rate, ..TrainOptions::default() } }
    }

    fn entry(step: u64, window: u64, learning_rate: f64) -> JournalEntry {
        JournalEntry::Settings(SettingsEntry { step, window, settings: settings(learning_rate) })
    }

    fn rollback(from_step: u64, to_step: u64) -> JournalEntry {
        JournalEntry::Rollback(Rollback { from_step, to_step, left_out: Vec::new() })
    }

    /// Learning rates by step, and by window.
    #[track_caller]
    fn check(entries: &[JournalEntry], steps: &[(u64, f64)], windows: &[(u64, f64)]) {
        let mut timeline = Timeline::default();
        entries.iter().for_each(|entry| timeline.note(entry));
        for (step, expected) in steps {
            assert_eq!(timeline.at_step(*step).unwrap().train.learning_rate, *expected, "step {step}");
        }
        for (window, expected) in windows {
            assert_eq!(timeline.of_window(*window).unwrap().train.learning_rate, *expected, "window {window}");
        }
    }

    #[test]
    fn settings_hold_from_their_entry_to_the_next() {
        assert!(Timeline::default().at_step(0).is_none());
        let two = [entry(0, 0, 1.0), entry(55, 7, 2.0)];
        check(&two, &[(0, 1.0), (54, 1.0), (55, 2.0), (u64::MAX, 2.0)], &[(6, 1.0), (7, 2.0)]);
        // A journal of a version that wrote none.
        check(&[entry(55, 7, 2.0)], &[(0, 2.0), (60, 2.0)], &[(0, 2.0)]);
        // From a checkpoint after step 50 on under others, when windows up to 9 were formed.
        let other = [&two[..], &[entry(50, 10, 3.0)]].concat();
        check(&other, &[(49, 1.0), (50, 3.0), (56, 3.0)], &[(6, 1.0), (9, 2.0), (10, 3.0)]);
        // Changed twice between two windows, or two steps.
        let twice = [&two[..], &[entry(55, 7, 4.0)]].concat();
        check(&twice, &[(54, 1.0), (55, 4.0)], &[(6, 1.0), (7, 4.0)]);
    }

    #[test]
    fn going_back_takes_no_change_back() {
        let entries = [entry(0, 0, 1.0), entry(40, 5, 2.0), entry(55, 7, 3.0), rollback(57, 45)];
        check(&entries, &[(39, 1.0), (44, 2.0), (45, 3.0), (56, 3.0)], &[(6, 2.0), (7, 3.0)]);
        check(&[&entries[..], &[rollback(50, 40)]].concat(), &[(39, 1.0), (40, 3.0)], &[]);
        check(&[&entries[..], &[rollback(70, 60)]].concat(), &[(44, 2.0), (45, 3.0), (61, 3.0)], &[]);
    }

    #[test]
    fn an_entry_reads_back_to_the_last_bit() {
        let schedule = Schedule::Trunk { lambda_steps: 3, lambda_floor: 0.1 + 0.2 };
        let train = TrainOptions {
            steps: None,
            schedule,
            learning_rate: 1.0 / 3.0,
            clip_norm: 1e-300,
            ..TrainOptions::default()
        };
        let entry = SettingsEntry { step: 3, window: 1, settings: Settings { alpha: 0.3_f64.sqrt(), train } };
        let written = serde_json::to_string(&JournalEntry::Settings(entry.clone())).unwrap();
        assert!(written.starts_with(r#"{"event":"settings","step":3,"window":1,"alpha":"#), "{written}");
        let read: JournalEntry = serde_json::from_str(&written).unwrap();
        assert_eq!(read, JournalEntry::Settings(entry));
        // A key that a later version adds is what it was by default.
        let older = written.replacen("\"weight_decay\":0.01,", "", 1);
        assert_ne!(older, written);
        assert_eq!(serde_json::from_str::<JournalEntry>(&older).unwrap(), read);
    }

    #[test]
    fn what_a_batch_or_an_end_depends_on_needs_a_restart() {
        let is = settings(1.0);
        let becomes = |change: &dyn Fn(&mut Settings)| {
            let mut wanted = is.clone();
            change(&mut wanted);
            is.can_become(&wanted)
        };
        assert!(becomes(&|to| (to.alpha, to.train.learning_rate, to.train.lambda_end) = (0.1, 2.0, 0.5)));
        assert!(becomes(&|to| (to.train.weight_decay, to.train.checkpoint_every_steps) = (0.5, 7)));
        assert!(!becomes(&|to| to.train.batch_examples += 1));
        assert!(!becomes(&|to| to.train.steps = Some(7)));
        assert!(!becomes(&|to| to.train.schedule = Schedule::Trunk { lambda_steps: 0, lambda_floor: 0.5 }));
    }
}
