//! What can be said of a state folder without training: by commands, and before the log is opened.

use crate::TrainerError;
use crate::checkpoint::Checkpoints;
use crate::evaluate::{DocumentEvaluation, EvaluationReport, Evaluator, HeldOut};
use crate::growth;
use crate::journal::Journal;
use crate::need::LogNeeds;
use crate::options::TrainerOptions;
use crate::release;
use crate::resume;
use crate::state_folder::{checkpoints_path, held_out_path, journal_path, union_vocabulary, vocabulary_of};
use crate::student::Student;
use model::Bert;
use std::path::Path;
use store::log::{Need, Needed};
use store::{Identity, LogReader, SequenceNumber, StoreError};

/// Evaluates the newest checkpoint on all held-out records of the log, up to the options' limit. It writes nothing: the run
/// may be going on.
///
/// # Errors
/// When there is no valid checkpoint, or it does not belong to these options.
pub fn evaluate_newest(options: &TrainerOptions, reader: &LogReader) -> Result<EvaluationReport, TrainerError> {
    let report = with_newest(options, reader, |evaluator, step, held_out| {
        evaluator.evaluate(step, held_out, reader.durable(), &mut || true)
    })?;
    Ok(report.unwrap_or_default())
}

/// The same, document by document.
///
/// # Errors
/// As [`evaluate_newest`].
pub fn evaluate_newest_documents(
    options: &TrainerOptions,
    reader: &LogReader,
) -> Result<Vec<DocumentEvaluation>, TrainerError> {
    with_newest(options, reader, |evaluator, _, held_out| evaluator.evaluate_documents(held_out, reader.durable()))
}

/// Calls `evaluate` with the newest checkpoint's student, its step, and the held-out records.
fn with_newest<T>(
    options: &TrainerOptions,
    reader: &LogReader,
    evaluate: impl FnOnce(&mut Evaluator<'_>, u64, &HeldOut) -> Result<T, TrainerError>,
) -> Result<T, TrainerError> {
    let folder = checkpoints_path(&options.state_dir);
    let Some(loaded) = Checkpoints::at(&folder).newest(|_| true)? else {
        return Err(TrainerError::NoCheckpoint { path: folder });
    };
    let vocabulary = union_vocabulary(options, reader)?;
    let (mut bert, _, state) = resume::fit(options, &vocabulary, loaded)?;
    if state.vocabulary_size < vocabulary.size() {
        let configuration = resume::configuration(options, vocabulary.size())?;
        let parameters = growth::grow_parameters(&bert.parameters, &vocabulary, &configuration)?;
        bert = Bert { configuration, parameters };
    }
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
    let tail_samples = reader.identity().tail_samples();
    let mut evaluator = Evaluator { student: &mut student, maps: vocabulary.maps(), options, tail_samples };
    evaluate(&mut evaluator, state.step, &held_out)
}

/// Fails if training cannot begin, or go on from the newest checkpoint, under these options and with a log of this identity. It writes nothing.
///
/// # Errors
/// What differs from what the state folder holds; what is wrong with the options; failures to read.
pub fn check_resume(options: &TrainerOptions, log: &Identity) -> Result<(), TrainerError> {
    options.check()?;
    options.check_log(log)?;
    let vocabulary = vocabulary_of(options)?;
    let checkpoints = Checkpoints::at(&checkpoints_path(&options.state_dir));
    for step in checkpoints.steps()?.into_iter().rev() {
        match checkpoints.state(step) {
            Err(TrainerError::Corrupt { .. }) => {} // There is an older one.
            Err(error) => return Err(error),
            Ok(state) => return resume::check_identity(&checkpoints.path(step), &state, options, &vocabulary),
        }
    }
    resume::configuration(options, vocabulary.size()).map(|_| ())
}

/// From where on a log is needed by the training that a state folder tells of, its releases included; `None`: it tells of none.
/// For a run that does not train.
///
/// # Errors
/// When the journal or a checkpoint cannot be read or is damaged.
pub fn need_of_state(state_dir: &Path, reader: &LogReader) -> Result<Option<Need>, TrainerError> {
    let Some(needed) = needed_by(state_dir, None, reader)? else { return Ok(None) };
    let need = Need::default();
    need.set(needed.from, needed.why);
    for release in release::unfinished(state_dir)? {
        if let Some(needed) = needed_by(&release.path, Some(release.name), reader)? {
            need.include(needed.from, needed.why);
        }
    }
    Ok(Some(need))
}

/// What the run with this state folder, or its `release`, needs of the log.
fn needed_by(folder: &Path, release: Option<String>, reader: &LogReader) -> Result<Option<Needed>, TrainerError> {
    let path = journal_path(folder);
    if !path.exists() {
        return Ok(None);
    }
    let journal = Journal::open(&path)?;
    let need = Need::default();
    let mut needs = LogNeeds::new(need.clone(), release);
    needs.has_checkpoints(&Checkpoints::at(&checkpoints_path(folder)), &journal)?;
    let durable = reader.durable();
    let state = journal.last_state().cloned().unwrap_or_default();
    let unread = state.oldest_unread(reader, durable)?;
    needs.has_read(unread.unwrap_or(durable.end()), &journal);
    Ok(Some(need.get()))
}

/// How far the log must reach: beyond every entry that the journal of a state folder refers to, or that of a release which is to
/// go on.
///
/// # Errors
/// When a journal cannot be read or is damaged.
pub fn required_position(state_dir: &Path) -> Result<SequenceNumber, TrainerError> {
    let releases = release::unfinished(state_dir)?;
    let journals = releases.iter().map(|release| journal_path(&release.path)).chain([journal_path(state_dir)]);
    let mut required = SequenceNumber::default();
    for path in journals.filter(|path| path.exists()) {
        required = required.max(Journal::open(&path)?.highest_durable().end());
    }
    Ok(required)
}
