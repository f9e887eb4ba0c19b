//! What can go wrong between a model's folder and its output.

use std::io;
use std::path::PathBuf;

/// An error of this crate. Messages name the file and the tensor, token or key.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// An accelerator has no room, fails, or cannot run this model.
    #[error(transparent)]
    Device(#[from] crate::device::DeviceError),
    /// A file could not be read.
    #[error("cannot read {path}: {source}", path = path.display())]
    Read {
        /// File that was read.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file could not be written.
    #[error("cannot write {path}: {reason}", path = path.display())]
    Write {
        /// File that was written.
        path: PathBuf,
        /// What went wrong.
        reason: String,
    },
    /// A file is not what its name promises.
    #[error("{path} is malformed: {reason}", path = path.display())]
    Malformed {
        /// File that was read.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The folder holds something that this crate does not compute.
    #[error("{path}: {reason}", path = path.display())]
    Unsupported {
        /// File that says so.
        path: PathBuf,
        /// What is not supported, and what is.
        reason: String,
    },
    /// The folder has no weights.
    #[error("{dir} has no weights: looked for {looked_for}", dir = dir.display())]
    NoWeights {
        /// Folder of the model.
        dir: PathBuf,
        /// Names of the files that would do.
        looked_for: String,
    },
    /// The folder has no tokenizer.
    #[error("{dir} has no tokenizer: looked for {looked_for}", dir = dir.display())]
    NoTokenizer {
        /// Folder of the model.
        dir: PathBuf,
        /// Names of the files that would do.
        looked_for: String,
    },
    /// A tensor is not in the checkpoint.
    #[error("{path} lacks the tensor `{name}` (expected shape {expected:?}){hint}", path = path.display())]
    MissingTensor {
        /// File of the weights.
        path: PathBuf,
        /// Canonical Hugging Face name.
        name: String,
        /// Shape that the configuration asks for.
        expected: Vec<usize>,
        /// A guess at the cause, or nothing.
        hint: String,
    },
    /// A tensor has another shape than the configuration says.
    #[error("{path}: the tensor `{name}` has shape {found:?}, but the configuration asks for {expected:?}", path = path.display())]
    Shape {
        /// File of the weights.
        path: PathBuf,
        /// Name as it is in the file.
        name: String,
        /// Shape that the configuration asks for.
        expected: Vec<usize>,
        /// Shape in the file.
        found: Vec<usize>,
    },
    /// A set of parameters does not fit its configuration.
    #[error("parameters do not fit the configuration: {0}")]
    Parameters(String),
    /// A special token is not in the vocabulary.
    #[error("{path}: the vocabulary has no {role} token `{token}`; name another in tokenizer_config.json (`{role}_token`)", path = path.display())]
    NoSpecialToken {
        /// File of the vocabulary.
        path: PathBuf,
        /// `pad`, `unk`, `cls`, `sep` or `mask`.
        role: &'static str,
        /// The token looked for.
        token: String,
    },
    /// The embedding has fewer rows than the tokenizer has words.
    #[error(
        "the tokenizer has {words} words but the checkpoint only {rows} embedding rows; the tokenizer and the weights do not belong together"
    )]
    FewerRowsThanWords {
        /// Rows of the word embedding.
        rows: usize,
        /// Words of the tokenizer.
        words: usize,
    },
    /// A text could not be tokenised.
    #[error("cannot tokenise a text of {bytes} bytes: {reason}")]
    Tokenise {
        /// Its length.
        bytes: usize,
        /// What the tokenizer said.
        reason: String,
    },
    /// A batch cannot be computed by this model.
    #[error("unusable batch: {0}")]
    Batch(String),
    /// The network written by hand is wrong on this machine.
    #[error(
        "hidden states differ by {apart} from those of the plain composition (they go up to {size}): the vector \
         instructions of this machine compute something else; please report the machine's model"
    )]
    Instructions {
        /// The largest difference.
        apart: f32,
        /// The largest value.
        size: f32,
    },
    /// The system gives no threads.
    #[error("cannot start {threads} threads ({reason}); lower [threads] or the process's limits")]
    Threads {
        /// How many were asked for.
        threads: usize,
        /// What the system says.
        reason: String,
    },
    /// A tensor operation failed.
    #[error("tensor operation failed: {0}")]
    Compute(#[from] candle_core::Error),
}
