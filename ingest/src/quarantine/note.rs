//! A note about one document.

use crate::format::Rejection;
use model::random::Philox;
use serde::{Deserialize, Serialize};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};
use store::{SequenceNumber, Span};

/// What is kept about a document that could not be used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// 16 hexadecimal digits: a function of source, document and span.
    pub id: String,
    /// Name of the source in the log.
    pub source: String,
    /// Name of the corpus.
    pub corpus: String,
    /// Identifier of the document in its source.
    pub document: String,
    /// Sequence number of the entry that says so in the log; none: it never came as far as the log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sequence: Option<u64>,
    /// Offset of the document in its decompressed file in bytes; its row for Parquet, its line for what came through a pipe.
    pub offset: u64,
    /// Bytes of the document that this is about; none: all of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub span: Option<(u64, u64)>,
    /// Its size in bytes.
    pub bytes: u64,
    /// The reason's name, as in the log and in metrics.
    pub reason: String,
    /// What is wrong, for people.
    pub detail: String,
    /// Its first bytes, readable.
    pub excerpt: String,
    /// When, in seconds since 1970.
    pub quarantined_at: u64,
    /// The file that it was read from, if it stays there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// What that file was like then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<FileState>,
    /// Its language, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub language: Option<String>,
    /// The text that a retry uses; none: the place in the file is read again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
}

/// What the file system says of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileState {
    /// Size.
    pub bytes: u64,
    /// Unix time of the last change of its content, in nanoseconds.
    pub modified_nanoseconds: i64,
    /// Its number in the file system: a file that is put into its place has another one.
    pub inode: u64,
}

/// Where a document stands.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place<'a> {
    pub(crate) source: &'a str,
    pub(crate) corpus: &'a str,
    pub(crate) document: &'a str,
    /// Of the entry that says so in the log.
    pub(crate) sequence: Option<SequenceNumber>,
    pub(crate) offset: u64,
    /// The file, if it stays there.
    pub(crate) path: Option<&'a Path>,
    /// Bytes of the document that were rejected, if not all.
    pub(crate) span: Option<Span>,
}

impl Note {
    pub(crate) fn new(place: Place, rejection: &Rejection) -> Self {
        let Place { source, corpus, document, sequence, offset, path, span } = place;
        let bounds = span.map_or([0, u64::MAX], |span| [span.first, span.end]).map(u64::to_le_bytes);
        let hash = Philox::new(0, "note", &[source.as_bytes(), document.as_bytes(), &bounds[0], &bounds[1]]);
        Self {
            id: format!("{:016x}", hash.bits(0, 0)),
            source: source.to_owned(),
            corpus: corpus.to_owned(),
            document: document.to_owned(),
            sequence: sequence.map(|sequence| sequence.0),
            offset,
            span: span.map(|span| (span.first, span.end)),
            bytes: rejection.size_bytes,
            reason: rejection.reason.name().to_owned(),
            detail: rejection.detail.clone(),
            excerpt: rejection.excerpt.clone(),
            quarantined_at: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
            path: path.map(Path::to_owned),
            file: path.and_then(FileState::at),
            language: rejection.language.clone(),
            text: rejection.text.clone(),
        }
    }

    pub(super) fn to_json(&self) -> String {
        // Strings and numbers always serialise, a path that is not UTF-8 does not.
        let json = serde_json::to_string_pretty(self);
        let json = json.or_else(|_| serde_json::to_string_pretty(&Self { path: None, ..self.clone() }));
        json.unwrap_or_default() + "\n"
    }
}

impl FileState {
    /// Of the file at `path`; `None`: it is not there, or cannot be looked at.
    pub(super) fn at(path: &Path) -> Option<Self> {
        let metadata = std::fs::metadata(path).ok()?;
        let modified_nanoseconds = metadata.mtime().saturating_mul(1_000_000_000).saturating_add(metadata.mtime_nsec());
        Some(Self { bytes: metadata.len(), modified_nanoseconds, inode: metadata.ino() })
    }
}
