//! What can go wrong while the student is trained.

use std::io;
use std::path::{Path, PathBuf};

/// An error of this crate. Messages say what was being done, to which file, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum TrainerError {
    /// A file or folder could not be read, written or made durable.
    #[error("cannot {doing} {path}: {source}", path = path.display())]
    Io {
        /// What was being done, as a verb.
        doing: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file of the state folder is damaged or not what its name promises.
    #[error("{path} is damaged: {reason}", path = path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and what can be done.
        reason: String,
    },
    /// A checkpoint (or journal, or vocabulary) was made under another configuration.
    #[error("{path} belongs to another configuration: {differences}; restore the old values, or use another state folder", path = path.display())]
    Identity {
        /// The file or folder.
        path: PathBuf,
        /// What differs, and how.
        differences: String,
    },
    /// The log ends before what training has already seen of it.
    #[error(
        "the log ends at entry {durable}, but {witness} refers to entries up to {needed}: part of the log is missing; restore it, or start with an empty state folder"
    )]
    LogBehind {
        /// Where the log ends.
        durable: u64,
        /// Where it ended earlier.
        needed: u64,
        /// Who knows.
        witness: String,
    },
    /// Settings that contradict each other or the log.
    #[error("{0}")]
    Configuration(String),
    /// Going back to a checkpoint does not help.
    #[error(
        "training diverges: after step {step} the loss or its gradient is not finite, even with {left_out} examples left out; lower the learning rate"
    )]
    Diverged {
        /// The checkpoint that was gone back to.
        step: u64,
        /// Examples that were left out in vain.
        left_out: usize,
    },
    /// The folder to export into holds something else.
    #[error("{path} is not empty and not an earlier export; choose another folder, or empty this one", path = path.display())]
    ExportTarget {
        /// The folder.
        path: PathBuf,
    },
    /// A step cannot be made again.
    #[error("step {step} cannot be replayed: {reason}")]
    Unreplayable {
        /// The step.
        step: u64,
        /// What is missing, and which steps can.
        reason: String,
    },
    /// A checkpoint was removed while it was wanted: the run beside goes on.
    #[error("{path} was removed meanwhile; ask again, and another one is taken", path = path.display())]
    Removed {
        /// Its folder.
        path: PathBuf,
    },
    /// There is no checkpoint.
    #[error("{path} holds no checkpoint yet", path = path.display())]
    NoCheckpoint {
        /// Where one was looked for.
        path: PathBuf,
    },
    /// The log could not be read.
    #[error(transparent)]
    Store(#[from] store::StoreError),
    /// The model could not be made, computed or written.
    #[error(transparent)]
    Model(#[from] model::ModelError),
    /// A tensor operation failed.
    #[error("tensor operation failed: {0}")]
    Compute(#[from] candle_core::Error),
    /// A metric could not be registered.
    #[error("cannot register a metric: {0}")]
    Metrics(#[from] prometheus::Error),
}

impl From<model::device::DeviceError> for TrainerError {
    fn from(error: model::device::DeviceError) -> Self {
        Self::Model(error.into())
    }
}

impl TrainerError {
    /// For `map_err` after a system call on `path`; `doing` is a verb.
    pub(crate) fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { doing, path, source }
    }

    /// A damaged file.
    pub(crate) fn corrupt(path: &Path, reason: impl ToString) -> Self {
        Self::Corrupt { path: path.to_owned(), reason: reason.to_string() }
    }
}
