//! How far ingestion has got in one source.

use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The state of one source *after* the log entry that carries it. The cursors in the log are the only
/// record of ingestion's progress: reopening a source at its cursor continues with the next example.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceCursor {
    /// Name of the corpus in the configuration.
    pub source: Arc<str>,
    /// Language of the corpus.
    pub language: Arc<str>,
    /// File being read, as it is named in document identifiers; empty before the first file.
    pub file: Arc<str>,
    /// Offset in that file (bytes) of the document being read.
    pub document_offset_bytes: u64,
    /// First byte of that document which no example has covered yet. `u64::MAX`: the document is done.
    pub next_byte: u64,
    /// Labelling round of a finite corpus, from 0.
    pub round: u32,
    /// n_k: characters available so far (size of a finite corpus, arrivals of a stream); never characters consumed.
    pub characters_available: u64,
    /// Whether the source has no further input: its last round is over.
    pub ended: bool,
}

impl SourceCursor {
    /// `next_byte` of a document that is done.
    pub const DOCUMENT_DONE: u64 = u64::MAX;

    /// A source of which nothing has been read.
    #[must_use]
    pub fn start(source: Arc<str>, language: Arc<str>, characters_available: u64) -> Self {
        Self {
            source,
            language,
            file: Arc::from(""),
            document_offset_bytes: 0,
            next_byte: 0,
            round: 0,
            characters_available,
            ended: false,
        }
    }
}
