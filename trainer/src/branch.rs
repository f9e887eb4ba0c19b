//! The beginning of a release's state folder: the trunk's newest checkpoint, and the part of the journal that goes with it.

use crate::TrainerError;
use crate::checkpoint::Checkpoints;
use crate::durable;
use crate::event::BranchPoint;
use crate::journal::Journal;
use crate::options::TrainerOptions;
use crate::resume;
use crate::schedule;
use crate::state_folder::{checkpoints_path, journal_path};
use std::fs;
use std::path::Path;

/// Creates `folder` for a release that goes on from the newest of the trunk's `checkpoints`. Nothing of the trunk changes, and
/// what is in the folder is durable when this returns.
///
/// # Errors
/// [`TrainerError::NoCheckpoint`], and failures to read or write; then there is no such folder.
pub(crate) fn branch(
    folder: &Path,
    options: &TrainerOptions,
    checkpoints: &Checkpoints,
    journal: &Journal,
) -> Result<BranchPoint, TrainerError> {
    let point = write(folder, options, checkpoints, journal);
    if point.is_err() {
        // Best effort: the first error is the one to report, and what is left is removed at the next start.
        let _ = fs::remove_dir_all(folder);
    }
    point
}

fn write(
    folder: &Path,
    options: &TrainerOptions,
    checkpoints: &Checkpoints,
    journal: &Journal,
) -> Result<BranchPoint, TrainerError> {
    durable::create_folder(folder)?;
    let own = Checkpoints::open(&checkpoints_path(folder))?;
    let rollbacks = resume::rollbacks(journal);
    let Some(state) = checkpoints.share_newest(|state| resume::is_valid(state, &rollbacks), &own)? else {
        return Err(TrainerError::NoCheckpoint { path: checkpoints_path(&options.state_dir) });
    };
    // Evaluations look at the log as the window before saw it.
    let first = state.stream.sampler.window.saturating_sub(1);
    journal.branch(&journal_path(folder), state.step, first, state.stream.windows_used())?;
    let train = journal.settings_at(state.step).map_or(&options.train, |settings| &settings.train);
    Ok(BranchPoint { step: state.step, rates: schedule::rates(state.step, train) })
}
