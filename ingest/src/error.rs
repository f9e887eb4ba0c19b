//! What can stop ingestion. Unusable documents do not: they are skipped.

use std::io;
use std::path::PathBuf;

/// Why ingestion cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum IngestError {
    /// A corpus's path names no file.
    #[error("`{pattern}` matches no file: check the path of the corpus")]
    NothingMatches {
        /// The path or glob.
        pattern: String,
    },
    /// A corpus's path is not a valid glob.
    #[error("`{pattern}` is not a valid file pattern: {source}")]
    Pattern {
        /// The path or glob.
        pattern: String,
        /// What is wrong with it.
        source: glob::PatternError,
    },
    /// An option is out of its range, or two of them contradict each other.
    #[error("{0}")]
    Options(String),
    /// Reading a corpus, or writing to the quarantine folder, failed.
    #[error("cannot {doing} `{path}`: {source}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A corpus is no longer what it was when the log was written.
    #[error(
        "corpus `{corpus}`: file `{file}` was read up to byte {offset_bytes} before, but {problem}; \
         restore the file (or, of a watched folder or a followed file, go on without the rest of it: mergedistill corpus forget), or give the corpus a new name \
         to read it from its start"
    )]
    Changed {
        /// Name of the corpus.
        corpus: String,
        /// The file, as document identifiers name it.
        file: String,
        /// Offset of the document at which reading was to go on.
        offset_bytes: u64,
        /// What is different now.
        problem: String,
    },
    /// A file that has its place in the reading order is not there, although it was not read yet.
    #[error(
        "corpus `{corpus}`: file `{file}` has its place in the reading order and was not read to its end yet, but {problem}; \
         put it back as it was (a followed file that was copied back is found by: mergedistill corpus recognise); or, to go on without it: \
         mergedistill corpus forget; or give the corpus a new name to read what is there now"
    )]
    Gone {
        /// Name of the corpus.
        corpus: String,
        /// The file, as document identifiers name it.
        file: String,
        /// Where it was looked for.
        problem: String,
    },
    /// What was durable in an inbox, or is known of a source's earlier texts, is damaged or missing.
    #[error("`{path}`: {problem}")]
    Inbox {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        problem: String,
    },
    /// A tokenizer failed on valid text.
    #[error("cannot tokenise a document of language `{language}` for teacher `{teacher}`: {source}")]
    Tokenise {
        /// Language of the document.
        language: String,
        /// Name of the teacher.
        teacher: String,
        /// What the tokenizer said.
        source: Box<model::ModelError>,
    },
    /// The metrics are registered already, or clash with others.
    #[error("cannot register the metrics of ingest: {0}")]
    Metrics(#[from] prometheus::Error),
}

/// A full disk, an exceeded quota or the process's limit on a file's size.
pub(crate) fn is_no_space(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge)
}
