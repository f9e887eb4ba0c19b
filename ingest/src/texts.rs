//! The texts of a file, for whoever wants nothing else: no cursors, no log, no masks.

use crate::format::DocumentReader;
use crate::{FormatOptions, IngestError};
use std::path::Path;

/// Reads the documents of one file, in order and one at a time, by the same readers as a corpus's.
pub struct Texts(DocumentReader);

/// A document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Text {
    /// What its [`FormatOptions::language_field`] says.
    pub language: Option<String>,
    /// Its text, or why it cannot be used.
    pub text: Result<String, String>,
}

impl Texts {
    /// Opens `path`, which grows no more.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open(path: &Path, options: &FormatOptions) -> Result<Self, IngestError> {
        let nowhere = || IngestError::Options(format!("`{}`: it has no beginning", path.display()));
        DocumentReader::open(path, options, 0, false)?.map(Self).ok_or_else(nowhere)
    }

    /// The next document; `None` at the end.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn next_text(&mut self) -> Result<Option<Text>, IngestError> {
        let document = self.0.next_document()?;
        Ok(document.map(|document| {
            let text = document.text.map_err(|rejection| format!("{}: {}", rejection.reason.name(), rejection.detail));
            Text { language: document.language, text }
        }))
    }
}
