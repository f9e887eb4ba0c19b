//! Which checkpoints training writes by itself, and which of those that are there it may go back to.

use crate::journal::Journal;
use crate::options::TrainerOptions;

/// Whether a checkpoint is due after `step`.
pub(super) fn is_due(options: &TrainerOptions, journal: &Journal, step: u64) -> bool {
    let every = checkpoint_every_steps(options, journal, step);
    step > 0 && every > 0 && step.is_multiple_of(every)
}

/// Whether training may go back to a checkpoint after `step`: one of the schedule, if there is a schedule, or the one that a
/// release branches from.
pub(super) fn is_target(options: &TrainerOptions, journal: &Journal, step: u64) -> bool {
    // When it was written other settings may have been in force than those that the next step was made under.
    let schedules = [step, step.saturating_sub(1)].map(|at| checkpoint_every_steps(options, journal, at));
    schedules.into_iter().any(|every| every == 0 || (step > 0 && step.is_multiple_of(every)))
        || is_branch(options, step)
}

/// Whether a release branches from the checkpoint after `step`, which is its beginning.
pub(super) fn is_branch(options: &TrainerOptions, step: u64) -> bool {
    options.trunk.is_some() && step == options.first_step()
}

/// As it was set after `step`.
fn checkpoint_every_steps(options: &TrainerOptions, journal: &Journal, step: u64) -> u64 {
    journal.settings_at(step).map_or(&options.train, |settings| &settings.train).checkpoint_every_steps
}
