//! A student as a Hugging Face folder: `AutoModelForMaskedLM` and `AutoTokenizer` load it.
//!
//! The folder appears complete or not at all, and replaces nothing but an earlier export.

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
/// [`TrainerError::ExportTarget`] if `out` holds anything but an earlier export; failures to write.
pub fn export(out: &Path, bert: &Bert, tokenizers: &Path, step: u64) -> Result<(), TrainerError> {
    let exists = check_target(out)?;
    let parent = out.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(parent).map_err(TrainerError::io("create", parent))?;
    let (partial, replaced) = (beside(parent, out, ".partial"), beside(parent, out, ".replaced"));
    remove_if_there(&partial)?;
    remove_if_there(&replaced)?;
    let written = write_files(&partial, bert, tokenizers, step).and_then(|()| {
        if exists {
            fs::rename(out, &replaced).map_err(TrainerError::io("replace", out))?;
        }
        fs::rename(&partial, out).map_err(TrainerError::io("put in place", out))?;
        durable::sync_folder(parent)
    });
    if written.is_err() {
        // Best effort: the first error is the one to report.
        let _ = fs::remove_dir_all(&partial);
    }
    written.and_then(|()| remove_if_there(&replaced))
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
fn check_target(out: &Path) -> Result<bool, TrainerError> {
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

fn write_files(partial: &Path, bert: &Bert, tokenizers: &Path, step: u64) -> Result<(), TrainerError> {
    copy_folder(tokenizers, partial)?;
    let pretty = |value: &serde_json::Value| format!("{value:#}\n").into_bytes();
    durable::replace(&partial.join("config.json"), &pretty(&bert.configuration.to_hugging_face()))?;
    bert.parameters.save_safetensors(&partial.join("model.safetensors"))?;
    let marker = json!({"made_by": concat!("mergedistill ", env!("CARGO_PKG_VERSION")), "step": step});
    durable::replace(&partial.join(MARKER), &pretty(&marker))
}

fn copy_folder(from: &Path, to: &Path) -> Result<(), TrainerError> {
    fs::create_dir(to).map_err(TrainerError::io("create", to))?;
    for entry in fs::read_dir(from).map_err(TrainerError::io("read", from))? {
        let source = entry.map_err(TrainerError::io("read", from))?.path();
        let Some(name) = source.file_name() else { continue };
        let target = to.join(name);
        if source.is_dir() {
            copy_folder(&source, &target)?;
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

fn remove_if_there(folder: &Path) -> Result<(), TrainerError> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(TrainerError::io("remove", folder)(error)),
        _ => Ok(()),
    }
}
