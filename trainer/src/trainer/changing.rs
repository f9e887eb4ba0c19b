//! Settings that change from one start to the next, and while training goes on.

use super::{Trainer, send};
use crate::TrainerError;
use crate::evaluate::HeldOut;
use crate::event::Ticket;
use crate::journal::Journal;
use crate::options::{EvaluationOptions, TrainOptions, TrainerOptions};
use crate::schedule::Schedule;
use crate::settings::{self, Settings};
use crossbeam::channel::Sender;

/// Training goes on after `step` steps: its options become those that the journal has for the next one, and the journal says from where
/// on those that were asked for hold. A release that has begun keeps its own.
pub(super) fn begin(journal: &mut Journal, step: u64, options: &mut TrainerOptions) -> Result<(), TrainerError> {
    let has_begun = journal.last_settings().is_some_and(|last| matches!(last.train.schedule, Schedule::CoolDown(_)));
    if options.trunk.is_none() || !has_begun {
        settings::note(journal, step, &Settings::of(options))?;
    }
    if let Some(settings) = journal.settings_at(step) {
        set(options, settings);
    }
    Ok(())
}

impl Trainer {
    /// Makes the next step under the settings that the journal has for it.
    pub(super) fn take_up_settings(&mut self) {
        self.changed = false;
        let Some(settings) = self.journal.settings_at(self.state.step) else { return };
        if *settings != Settings::of(&self.options) {
            set(&mut self.options, settings);
            self.stream.set_batches(&self.options.train);
        }
    }

    /// Goes on under other settings from the next step on, and answers how many are done; unless they cannot change so, or nobody waits
    /// for it any more.
    ///
    /// # Errors
    /// When the journal cannot be written. Then nobody knows whether it has the new settings, and no step may be made.
    pub(super) fn answer_change(
        &mut self,
        wanted: &Settings,
        evaluation: EvaluationOptions,
        ticket: &Ticket,
        reply: &Sender<Result<u64, String>>,
    ) -> Result<(), TrainerError> {
        if !ticket.take() {
            tracing::info!("settings are not changed: whoever asked for it has stopped waiting");
            return Ok(());
        }
        let last = self.journal.last_settings().cloned().unwrap_or_else(|| Settings::of(&self.options));
        if !last.can_become(wanted) {
            let message = "batches, windows and the end of training change with a restart alone";
            drop(send(reply, Err(TrainerError::Configuration(message.to_owned()))));
            return Ok(());
        }
        if let Err(error) = self.change(wanted, evaluation) {
            let _ = reply.send(Err(error.to_string())); // Whoever asked may have left.
            return Err(error);
        }
        drop(send(reply, Ok(self.state.step)));
        Ok(())
    }

    fn change(&mut self, wanted: &Settings, evaluation: EvaluationOptions) -> Result<(), TrainerError> {
        settings::note(&mut self.journal, self.state.step, wanted)?;
        if evaluation.max_examples != self.options.evaluation.max_examples {
            self.held_out = HeldOut::new(evaluation.max_examples, &self.options.held_out_path());
        }
        self.options.evaluation = evaluation;
        // At once: the next step may come without another look, after an evaluation during which this was asked for.
        self.take_up_settings();
        self.changed = true;
        Ok(())
    }
}

fn set(options: &mut TrainerOptions, settings: &Settings) {
    options.alpha = settings.alpha;
    options.train = TrainOptions { until_step: options.train.until_step, ..settings.train.clone() };
}
