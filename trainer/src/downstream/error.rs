//! What can go wrong while a model is fine-tuned and scored.

use crate::TrainerError;
use std::io;
use std::path::{Path, PathBuf};

/// An error of fine-tuning. Messages name file, line or key, and say what is expected.
#[derive(Debug, thiserror::Error)]
pub enum DownstreamError {
    /// A file of examples could not be read.
    #[error("cannot read {path}: {source}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A line of a file is not what its format says.
    #[error("{path}:{line}: {reason}", path = path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Its line, counted from 1.
        line: usize,
        /// What is wrong, and what is expected.
        reason: String,
    },
    /// A file as a whole is of no use.
    #[error("{path}: {reason}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what is expected.
        reason: String,
    },
    /// Options that contradict each other, the model or the data.
    #[error("{0}")]
    Options(String),
    /// A folder that a fine-tuned model must not be written to.
    #[error("cannot write a model to {path}: {reason}", path = path.display())]
    Target {
        /// The folder.
        path: PathBuf,
        /// Why not, and what to do.
        reason: String,
    },
    /// The loss or its gradient is not finite.
    #[error("fine-tuning diverges: in step {step} the loss or its gradient is not finite; lower the learning rate")]
    Diverged {
        /// The step, counted from 1.
        step: u64,
    },
    /// The model could not be read, computed or written.
    #[error(transparent)]
    Model(#[from] model::ModelError),
    /// A file could not be written.
    #[error(transparent)]
    Trainer(Box<TrainerError>),
}

impl From<TrainerError> for DownstreamError {
    fn from(error: TrainerError) -> Self {
        Self::Trainer(Box::new(error))
    }
}

impl DownstreamError {
    /// An error in line `line`, counted from 1.
    pub(crate) fn line(path: &Path, line: usize, reason: impl ToString) -> Self {
        Self::Line { path: path.to_owned(), line, reason: reason.to_string() }
    }

    /// An error of a whole file.
    pub(crate) fn file(path: &Path, reason: impl ToString) -> Self {
        Self::File { path: path.to_owned(), reason: reason.to_string() }
    }
}

/// Whether a file holds JSON lines, by its name.
pub(crate) fn is_json(path: &Path) -> bool {
    path.extension().is_some_and(|extension| ["json", "jsonl", "ndjson"].iter().any(|json| extension == *json))
}

/// A text file's contents, without a byte-order mark.
pub(crate) fn read_text(path: &Path) -> Result<String, DownstreamError> {
    let bytes = std::fs::read(path).map_err(|source| DownstreamError::Read { path: path.to_owned(), source })?;
    let text = String::from_utf8(bytes).map_err(|error| {
        let valid = error.utf8_error().valid_up_to();
        let line = 1 + error.as_bytes()[..valid].iter().filter(|byte| **byte == b'\n').count();
        DownstreamError::line(path, line, "not UTF-8")
    })?;
    Ok(match text.strip_prefix('\u{feff}') {
        Some(rest) => rest.to_owned(),
        None => text,
    })
}
