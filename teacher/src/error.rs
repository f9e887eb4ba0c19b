//! What can go wrong while labelling.

use model::ModelError;
use model::device::DeviceError;

/// Why labelling stopped.
#[derive(Debug, thiserror::Error)]
pub enum TeacherError {
    /// The teacher's folder could not be used, or a forward pass failed.
    #[error("teacher `{teacher}`: {source}")]
    Model {
        /// Name in the configuration.
        teacher: String,
        /// The cause.
        source: Box<ModelError>,
    },
    /// The teacher's output is not a number: its weights are broken, or they overflow.
    #[error(
        "teacher `{teacher}`: a logit of token {token} is not finite; check its weights, and if it labels in float16, which ends at 65,504, use precision = \"bfloat16\""
    )]
    NonFinite {
        /// Name in the configuration.
        teacher: String,
        /// The first token id whose logit is not finite.
        token: usize,
    },
    /// More labels are wanted per position than the teacher has words.
    #[error("teacher `{teacher}` has {words} words, fewer than store.top_k = {top_k}; lower store.top_k")]
    FewWords {
        /// Name in the configuration.
        teacher: String,
        /// Words of its tokenizer.
        words: usize,
        /// Labels wanted per position.
        top_k: usize,
    },
    /// Workers could not label a batch, time after time; others they may.
    #[error("teacher `{teacher}`: no worker could label a batch: {reason}")]
    Worker {
        /// Name in the configuration.
        teacher: String,
        /// The last one's.
        reason: String,
    },
    /// The note about a batch that nobody could label was not written.
    #[error("cannot write {}, about a batch that no worker could label: {source}", path.display())]
    Quarantine {
        /// The note.
        path: std::path::PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The server over which workers label is not there, or does not do what is asked.
    #[error(transparent)]
    Link(#[from] crate::remote::LinkError),
    /// A thread could not be started.
    #[error("cannot start thread `{thread}`: {source}")]
    Thread {
        /// Name of the thread.
        thread: String,
        /// The cause.
        source: std::io::Error,
    },
    /// A metric could not be registered.
    #[error("cannot register a metric: {0}")]
    Metrics(#[from] prometheus::Error),
    /// A thread of this stage panicked: a programmer's error.
    #[error("thread `{0}` panicked; this is a bug, please report it with the log")]
    Panicked(String),
}

impl TeacherError {
    /// Whether an accelerator failed: it may come back, and nothing is wrong with the teacher.
    pub(crate) fn is_lost_device(&self) -> bool {
        match self {
            Self::Model { source, .. } => matches!(**source, ModelError::Device(DeviceError::Failed { .. })),
            _ => false,
        }
    }
}
