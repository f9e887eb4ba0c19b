//! The quarantine folder: a file per unusable document, so that someone can look at it and mend it.
//!
//! A file's name comes from the document's identifier: a document that is read again after a crash, or in a
//! later round, overwrites its file.

use crate::IngestError;
use crate::reader::Rejection;
use model::random::Philox;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Files kept per corpus. Documents beyond it are still in the log and in the counters.
const LIMIT_FILES: usize = 10_000;
const NAME_LIMIT_BYTES: usize = 180;

/// Writes to the quarantine folder.
pub(crate) struct Quarantine {
    folder: PathBuf,
    /// Files per corpus, for those that have been written to.
    files: BTreeMap<String, usize>,
}

/// What is kept about a document.
#[derive(Serialize)]
pub(crate) struct Note<'a> {
    pub(crate) source: &'a str,
    pub(crate) document: &'a str,
    pub(crate) offset: u64,
    pub(crate) bytes: u64,
    pub(crate) reason: &'a str,
    pub(crate) detail: &'a str,
    pub(crate) excerpt: &'a str,
}

impl<'a> Note<'a> {
    pub(crate) fn new(source: &'a str, document: &'a str, offset: u64, rejection: &'a Rejection) -> Self {
        let (reason, bytes) = (rejection.reason.name(), rejection.size_bytes);
        Self { source, document, offset, bytes, reason, detail: &rejection.detail, excerpt: &rejection.excerpt }
    }
}

impl Quarantine {
    pub(crate) fn new(folder: PathBuf) -> Self {
        Self { folder, files: BTreeMap::new() }
    }

    /// Keeps `note` as `<folder>/<corpus>/<document>.json`.
    pub(crate) fn keep(&mut self, note: &Note) -> Result<(), IngestError> {
        let folder = self.folder.join(file_name(note.source));
        let path = folder.join(format!("{}.json", file_name(note.document)));
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| IngestError::Io { doing: "write to the quarantine", path, source }
        };
        let files = match self.files.get(note.source) {
            Some(files) => *files,
            None => {
                fs::create_dir_all(&folder).map_err(failed(&folder))?;
                fs::read_dir(&folder).map_err(failed(&folder))?.count()
            }
        };
        let known = path.exists();
        if !known && files == LIMIT_FILES {
            tracing::warn!(
                corpus = note.source,
                "quarantine holds {LIMIT_FILES} documents; further ones are only counted"
            );
        }
        self.files.insert(note.source.to_owned(), if known { files } else { files + 1 });
        if !known && files >= LIMIT_FILES {
            return Ok(());
        }
        let text = serde_json::to_string(note).map_err(io::Error::from).map_err(failed(&path))?;
        let partial = path.with_extension("partial");
        fs::write(&partial, text + "\n").map_err(failed(&partial))?;
        fs::rename(&partial, &path).map_err(failed(&path))
    }
}

/// `identifier` as one safe component of a path; different identifiers give different names.
fn file_name(identifier: &str) -> String {
    let mut name = String::with_capacity(identifier.len());
    for byte in identifier.bytes() {
        let plain =
            byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'@') || (byte == b'.' && !name.is_empty());
        if plain {
            name.push(char::from(byte));
        } else {
            name.push_str(&format!("%{byte:02X}"));
        }
    }
    if name.len() > NAME_LIMIT_BYTES {
        let hash = Philox::new(0, "quarantine", &[identifier.as_bytes()]).bits(0, 0);
        name = format!("{hash:016x}-{}", &name[name.len() - NAME_LIMIT_BYTES..]);
    }
    name
}
