//! What can be said of a state folder without training: by commands, and before the log is opened.

use crate::TrainerError;
use crate::checkpoint::Checkpoints;
use crate::evaluate::{EvaluationReport, Evaluator, HeldOut};
use crate::journal::Journal;
use crate::need::LogNeeds;
use crate::options::TrainerOptions;
use crate::resume;
use crate::state_folder::{checkpoints_path, held_out_path, journal_path, union_vocabulary};
use crate::student::Student;
use std::path::Path;
use store::log::Need;
use store::{LogReader, SequenceNumber, StoreError};

/// Evaluates the newest checkpoint on all held-out records of the log, up to the options' limit. It writes nothing: the run
/// may be going on.
///
/// # Errors
/// When there is no valid checkpoint, or it does not belong to these options.
pub fn evaluate_newest(options: &TrainerOptions, reader: &LogReader) -> Result<EvaluationReport, TrainerError> {
    let folder = checkpoints_path(&options.state_dir);
    let Some(loaded) = Checkpoints::at(&folder).newest(|_| true)? else {
        return Err(TrainerError::NoCheckpoint { path: folder });
    };
    let vocabulary = union_vocabulary(options, reader)?;
    let (bert, _, state) = resume::fit(options, &vocabulary, loaded)?;
    let mut student = Student::new(&bert.configuration, &bert.parameters)?;
    drop(bert);
    let up_to = reader.durable();
    let mut held_out = HeldOut::new(options.evaluation.max_examples, &held_out_path(&options.state_dir));
    loop {
        match held_out.extend(reader, up_to) {
            // Meanwhile, by a run that is going on: they are elsewhere now.
            Err(TrainerError::Store(StoreError::Removed { sequence, .. })) if up_to.covers(sequence) => {}
            extended => break extended?,
        }
    }
    let batch_tokens = options.train.micro_batch_tokens;
    let pool = options.pool.as_deref();
    let mut evaluator = Evaluator { student: &mut student, maps: vocabulary.maps(), batch_tokens, pool };
    let report = evaluator.evaluate(state.step, &held_out, up_to, &mut || true)?;
    Ok(report.unwrap_or_default())
}

/// From where on a log is needed by the training that a state folder tells of; `None`: it tells of none. For a run that does
/// not train.
///
/// # Errors
/// When the journal or a checkpoint cannot be read or is damaged.
pub fn need_of_state(state_dir: &Path, reader: &LogReader) -> Result<Option<Need>, TrainerError> {
    let path = journal_path(state_dir);
    if !path.exists() {
        return Ok(None);
    }
    let journal = Journal::open(&path)?;
    let need = Need::default();
    let mut needs = LogNeeds::new(need.clone());
    needs.has_checkpoints(&Checkpoints::at(&checkpoints_path(state_dir)), &journal)?;
    let durable = reader.durable();
    let state = journal.last_state().cloned().unwrap_or_default();
    let unread = state.oldest_unread(reader, durable)?;
    needs.has_read(unread.unwrap_or(durable.end()), &journal);
    Ok(Some(need))
}

/// How far the log must reach: beyond every entry that the journal of a state folder refers to.
///
/// # Errors
/// When the journal cannot be read or is damaged.
pub fn required_position(state_dir: &Path) -> Result<SequenceNumber, TrainerError> {
    let path = journal_path(state_dir);
    if !path.exists() {
        return Ok(SequenceNumber::default());
    }
    Ok(Journal::open(&path)?.highest_durable().end())
}
