//! What is where in a state folder, and the vocabulary in it.

use crate::TrainerError;
use crate::durable;
use crate::options::TrainerOptions;
use crate::run_log::RunLog;
use crate::tokenizer_export::{KnownTeacher, export_tokenizers, write_known_teachers};
use crate::vocabulary::{TeacherTokens, Vocabulary};
use model::Tokenizer;
use std::path::{Path, PathBuf};
use store::LogReader;

/// Where the checkpoints of a state folder are.
pub(crate) fn checkpoints_path(state_dir: &Path) -> PathBuf {
    state_dir.join("checkpoints")
}

/// Where its journal is.
pub(crate) fn journal_path(state_dir: &Path) -> PathBuf {
    state_dir.join("journal")
}

/// Where its releases are, each in a state folder of its own.
pub(crate) fn releases_path(state_dir: &Path) -> PathBuf {
    state_dir.join("releases")
}

/// Where its line for every step and evaluation is.
pub(crate) fn metrics_path(state_dir: &Path) -> PathBuf {
    state_dir.join("metrics.jsonl")
}

/// Opens that file, without the lines of steps after `step` and of evaluations after `evaluated`; and event files, if there are to be any.
pub(crate) fn open_run_log(
    options: &TrainerOptions,
    step: u64,
    evaluated: Option<u64>,
) -> Result<RunLog, TrainerError> {
    let run_log = RunLog::open(&metrics_path(&options.state_dir), step, evaluated)?;
    let folder = options.state_dir.join("tensorboard");
    Ok(if options.tensorboard { run_log.with_event_file(&folder) } else { run_log })
}

/// Where the held-out records of a log are kept whose segments were removed.
#[must_use]
pub fn held_out_path(state_dir: &Path) -> PathBuf {
    state_dir.join("holdout")
}

/// Where its vocabulary is.
pub(crate) fn vocabulary_path(state_dir: &Path) -> PathBuf {
    state_dir.join("vocab")
}

/// Where the tokenizers are that go with an exported student.
pub(crate) fn tokenizers_path(state_dir: &Path) -> PathBuf {
    vocabulary_path(state_dir).join("hugging-face")
}

/// Opens the union vocabulary in the state folder, or creates it there. Its maps are in the order of the log's teacher table.
pub(crate) fn open_vocabulary(options: &TrainerOptions, reader: &LogReader) -> Result<Vocabulary, TrainerError> {
    check_teachers(options, reader)?;
    durable::create_folder(&options.state_dir)?;
    Vocabulary::open(&vocabulary_path(&options.state_dir), &teacher_tokens(options))
}

/// The same vocabulary without touching the state folder.
pub(crate) fn union_vocabulary(options: &TrainerOptions, reader: &LogReader) -> Result<Vocabulary, TrainerError> {
    check_teachers(options, reader)?;
    vocabulary_of(options)
}

/// That of the configured teachers.
pub(crate) fn vocabulary_of(options: &TrainerOptions) -> Result<Vocabulary, TrainerError> {
    Vocabulary::union(&teacher_tokens(options))
}

fn teacher_tokens(options: &TrainerOptions) -> Vec<TeacherTokens<'_>> {
    options.teachers.iter().map(|teacher| TeacherTokens::new(&teacher.name, &teacher.tokenizer)).collect()
}

/// Checks that the configured teachers begin with those of the log, in the order of its table.
fn check_teachers(options: &TrainerOptions, reader: &LogReader) -> Result<(), TrainerError> {
    let mut differences = Vec::new();
    for (index, logged) in reader.identity().teachers.iter().enumerate() {
        match options.teachers.get(index) {
            None => differences.push(format!("teacher `{}` of the log is not configured", logged.name)),
            Some(teacher) if teacher.name != logged.name => {
                let number = index + 1;
                differences.push(format!("teacher {number} is `{}` in the log, `{}` here", logged.name, teacher.name));
            }
            Some(teacher) if teacher.tokenizer.fingerprint() != logged.tokenizer_fingerprint => {
                differences.push(format!("the log was made with another tokenizer of teacher `{}`", logged.name));
            }
            Some(_) => {}
        }
    }
    if differences.is_empty() {
        return Ok(());
    }
    Err(TrainerError::Configuration(format!(
        "the log's teachers are not those of the configuration: {}",
        differences.join("; ")
    )))
}

/// Writes the tokenizers that go with an exported student, so that the state folder alone suffices for an export.
pub(crate) fn keep_tokenizers(options: &TrainerOptions, vocabulary: &Vocabulary) -> Result<(), TrainerError> {
    let tokenizers: Vec<&Tokenizer> = options.teachers.iter().map(|teacher| &*teacher.tokenizer).collect();
    let (folder, longest) = (tokenizers_path(&options.state_dir), options.student.max_sequence_length);
    let folders = export_tokenizers(&folder, vocabulary, &tokenizers, longest)?;
    let known = options.teachers.iter().zip(folders).map(|(teacher, path)| KnownTeacher {
        name: teacher.name.clone(),
        languages: teacher.languages.clone(),
        tokenizer: path.strip_prefix(&folder).unwrap_or(&path).to_owned(),
    });
    write_known_teachers(&folder, &known.collect::<Vec<_>>())
}
