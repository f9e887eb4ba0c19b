//! A student as a Hugging Face folder: `AutoModelForMaskedLM` and `AutoTokenizer` load it.
//!
//! The folder appears complete or not at all, and replaces nothing but an earlier export, which is there until the new one is
//! complete: it is put aside as `.<name>.replaced`, and put back if a crash or an error came in between.

use crate::checkpoint::Checkpoints;
use crate::evaluate::EvaluationReport;
use crate::language_cut::LanguageCut;
use crate::model_card::{Made, write_model_card};
use crate::run_log::last_evaluation;
use crate::state_folder::{checkpoints_path, metrics_path, tokenizers_path};
use crate::{TrainerError, durable};
use model::Bert;
use serde::Serialize;
use serde_json::{Value, json};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

/// Tells an export from a folder that somebody cares for.
const MARKER: &str = "mergedistill.json";
const MADE_BY: &str = concat!("mergedistill ", env!("CARGO_PKG_VERSION"));

/// What was exported.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Exported {
    /// The student's step.
    pub step: u64,
    /// The folder.
    pub path: PathBuf,
    /// Tokens of the exported student.
    pub tokens: usize,
    /// Bytes of its numbers.
    pub bytes: u64,
    /// Tokens of the whole student.
    pub full_tokens: usize,
    /// Bytes of its numbers.
    pub full_bytes: u64,
}

/// Writes `bert` after `step` steps to `out`, with the tokenizer files in `tokenizers` (see [`crate::tokenizer_export`]) and a model card, which tells of
/// `evaluation`; cut to `languages` unless there are none (see [`crate::language_cut`]).
///
/// # Errors
/// [`TrainerError::ExportTarget`] if `out` (or one of the hidden folders beside it) holds anything but an export;
/// [`TrainerError::Configuration`] if the tokenizer is not the student's, or a language is nobody's; failures to write.
pub fn export(
    out: &Path,
    bert: &Bert,
    tokenizers: &Path,
    step: u64,
    evaluation: Option<&EvaluationReport>,
    languages: &[String],
) -> Result<Exported, TrainerError> {
    let exported = |cut: &Bert| Exported {
        step,
        path: out.to_owned(),
        tokens: cut.configuration.vocabulary_size,
        bytes: 4 * cut.parameters.count() as u64,
        full_tokens: bert.configuration.vocabulary_size,
        full_bytes: 4 * bert.parameters.count() as u64,
    };
    let made = Made { by: MADE_BY, step, evaluation };
    if languages.is_empty() {
        put_in_place(out, |partial| {
            write_marker(partial, &json!({"made_by": MADE_BY, "step": step}))?;
            copy_files(tokenizers, partial)?;
            write_model_card(partial, &bert.configuration, &made)?;
            write_student(partial, bert)
        })?;
        return Ok(exported(bert));
    }
    check_vocabulary(&tokenizers.join("vocab.txt"), bert.configuration.vocabulary_size)?;
    let cut = LanguageCut::new(tokenizers, languages)?;
    let student = cut.student(bert)?;
    put_in_place(out, |partial| {
        write_marker(partial, &json!({"made_by": MADE_BY, "step": step, "languages": languages}))?;
        cut.write_tokenizers(tokenizers, partial)?;
        write_model_card(partial, &student.configuration, &made)?;
        write_student(partial, &student)
    })?;
    Ok(exported(&student))
}

/// Has an export written to a folder beside `out`, and puts it in the place of what is there.
fn put_in_place(out: &Path, write: impl FnOnce(&Path) -> Result<(), TrainerError>) -> Result<(), TrainerError> {
    let parent = out.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(parent).map_err(TrainerError::io("create", parent))?;
    let (partial, replaced) = (beside(parent, out, ".partial"), beside(parent, out, ".replaced"));
    put_back(out, &replaced)?;
    let exists = check_target(out)?;
    remove_export(&partial)?;
    remove_export(&replaced)?;
    let written = write(&partial).and_then(|()| {
        if exists {
            fs::rename(out, &replaced).map_err(TrainerError::io("replace", out))?;
        }
        if let Err(error) = fs::rename(&partial, out) {
            // Best effort: the first error is the one to report, and the next export puts it back too.
            let _ = fs::rename(&replaced, out);
            return Err(TrainerError::io("put in place", out)(error));
        }
        durable::sync_folder(parent)
    });
    if written.is_err() {
        // Best effort: the first error is the one to report.
        let _ = fs::remove_dir_all(&partial);
    }
    written.and_then(|()| remove_export(&replaced))
}

/// Exports the newest checkpoint of a state folder, of a run or of a release, to `out`; returns its step. The run may be going on.
///
/// # Errors
/// When there is no valid checkpoint, and as [`export`].
pub fn export_newest(state_dir: &Path, out: &Path) -> Result<u64, TrainerError> {
    export_languages(state_dir, out, &[]).map(|exported| exported.step)
}

/// The same, cut to `languages` unless there are none.
///
/// # Errors
/// As [`export_newest`].
pub fn export_languages(state_dir: &Path, out: &Path, languages: &[String]) -> Result<Exported, TrainerError> {
    let folder = checkpoints_path(state_dir);
    let Some(loaded) = Checkpoints::at(&folder).newest(|_| true)? else {
        return Err(TrainerError::NoCheckpoint { path: folder });
    };
    let bert = Bert { configuration: loaded.configuration, parameters: loaded.parameters };
    let step = loaded.state.step;
    let evaluation = last_evaluation(&metrics_path(state_dir), step)?;
    export(out, &bert, &tokenizers_path(state_dir), step, evaluation.as_ref(), languages)
}

/// Whether there is something at `out`, which may be replaced then.
pub(crate) fn check_target(out: &Path) -> Result<bool, TrainerError> {
    let refused = || TrainerError::ExportTarget { path: out.to_owned() };
    match fs::read_dir(out) {
        Ok(mut entries) => {
            if entries.next().is_none() || out.join(MARKER).is_file() {
                Ok(true)
            } else {
                Err(refused())
            }
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) if error.kind() == std::io::ErrorKind::NotADirectory => Err(refused()),
        Err(error) => Err(TrainerError::io("read", out)(error)),
    }
}

/// Puts back an export that an interrupted replacement left under another name.
fn put_back(out: &Path, replaced: &Path) -> Result<(), TrainerError> {
    if out.exists() || !replaced.join(MARKER).is_file() {
        return Ok(());
    }
    fs::rename(replaced, out).map_err(TrainerError::io("put back", out))
}

/// Makes the folder. The marker comes first: what a crash leaves is known as ours.
fn write_marker(partial: &Path, marker: &Value) -> Result<(), TrainerError> {
    fs::create_dir(partial).map_err(TrainerError::io("create", partial))?;
    durable::replace(&partial.join(MARKER), &pretty(marker))
}

/// Writes the model beside its tokenizer.
fn write_student(partial: &Path, bert: &Bert) -> Result<(), TrainerError> {
    check_vocabulary(&partial.join("vocab.txt"), bert.configuration.vocabulary_size)?;
    durable::replace(&partial.join("config.json"), &pretty(&bert.configuration.to_hugging_face()))?;
    bert.parameters.save_safetensors(&partial.join("model.safetensors"))?;
    durable::sync_folder(partial)
}

fn pretty(value: &Value) -> Vec<u8> {
    format!("{value:#}\n").into_bytes()
}

/// Refuses a tokenizer with another number of tokens than the student has.
fn check_vocabulary(words: &Path, size: usize) -> Result<(), TrainerError> {
    let content = fs::read(words).map_err(TrainerError::io("read", words))?;
    let tokens = content.iter().filter(|byte| **byte == b'\n').count();
    if tokens == size {
        return Ok(());
    }
    Err(TrainerError::Configuration(format!(
        "the student has {size} tokens, but the tokenizer of the state folder has {tokens}: the newest checkpoint is older \
         than the vocabulary; write a checkpoint first"
    )))
}

fn copy_files(from: &Path, to: &Path) -> Result<(), TrainerError> {
    for entry in fs::read_dir(from).map_err(TrainerError::io("read", from))? {
        let source = entry.map_err(TrainerError::io("read", from))?.path();
        let Some(name) = source.file_name() else { continue };
        let target = to.join(name);
        if source.is_dir() {
            fs::create_dir(&target).map_err(TrainerError::io("create", &target))?;
            copy_files(&source, &target)?;
        } else {
            let bytes = fs::read(&source).map_err(TrainerError::io("read", &source))?;
            durable::replace(&target, &bytes)?;
        }
    }
    durable::sync_folder(to)
}

/// A hidden neighbour of `out`.
fn beside(parent: &Path, out: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(out.file_name().unwrap_or_else(|| "export".as_ref()));
    name.push(suffix);
    parent.join(name)
}

/// Removes an export, whole or not, if there is one.
fn remove_export(folder: &Path) -> Result<(), TrainerError> {
    if !check_target(folder)? {
        return Ok(());
    }
    fs::remove_dir_all(folder).map_err(TrainerError::io("remove", folder))
}
