//! A student as a Hugging Face folder: `AutoModelForMaskedLM` and `AutoTokenizer` load it.
//!
//! The folder appears complete or not at all, and replaces nothing but an earlier export, which is there until the new one is
//! complete: it is put aside as `.<name>.replaced`, and put back if a crash or an error came in between.

use crate::checkpoint::Checkpoints;
use crate::state_folder::{checkpoints_path, tokenizers_path};
use crate::{TrainerError, durable};
use model::Bert;
use serde_json::json;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

/// Tells an export from a folder that somebody cares for.
const MARKER: &str = "mergedistill.json";

/// Writes `bert` after `step` steps to `out`, with the tokenizer files in `tokenizers` (see [`crate::tokenizer_export`]).
///
/// # Errors
/// [`TrainerError::ExportTarget`] if `out` (or one of the hidden folders beside it) holds anything but an export;
/// [`TrainerError::Configuration`] if the tokenizer is not the student's; failures to write.
pub fn export(out: &Path, bert: &Bert, tokenizers: &Path, step: u64) -> Result<(), TrainerError> {
    let parent = out.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(parent).map_err(TrainerError::io("create", parent))?;
    let (partial, replaced) = (beside(parent, out, ".partial"), beside(parent, out, ".replaced"));
    put_back(out, &replaced)?;
    let exists = check_target(out)?;
    remove_export(&partial)?;
    remove_export(&replaced)?;
    let written = write_files(&partial, bert, tokenizers, step).and_then(|()| {
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

/// Exports the newest checkpoint of a state folder to `out`; returns its step. The run may be going on.
///
/// # Errors
/// When there is no valid checkpoint, and as [`export`].
pub fn export_newest(state_dir: &Path, out: &Path) -> Result<u64, TrainerError> {
    let folder = checkpoints_path(state_dir);
    let Some(loaded) = Checkpoints::at(&folder).newest(|_| true)? else {
        return Err(TrainerError::NoCheckpoint { path: folder });
    };
    let bert = Bert { configuration: loaded.configuration, parameters: loaded.parameters };
    export(out, &bert, &tokenizers_path(state_dir), loaded.state.step)?;
    Ok(loaded.state.step)
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

fn write_files(partial: &Path, bert: &Bert, tokenizers: &Path, step: u64) -> Result<(), TrainerError> {
    let pretty = |value: &serde_json::Value| format!("{value:#}\n").into_bytes();
    // The marker comes first: what a crash leaves is known as ours.
    fs::create_dir(partial).map_err(TrainerError::io("create", partial))?;
    let marker = json!({"made_by": concat!("mergedistill ", env!("CARGO_PKG_VERSION")), "step": step});
    durable::replace(&partial.join(MARKER), &pretty(&marker))?;
    copy_files(tokenizers, partial)?;
    check_vocabulary(&partial.join("vocab.txt"), bert.configuration.vocabulary_size)?;
    durable::replace(&partial.join("config.json"), &pretty(&bert.configuration.to_hugging_face()))?;
    bert.parameters.save_safetensors(&partial.join("model.safetensors"))?;
    durable::sync_folder(partial)
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
