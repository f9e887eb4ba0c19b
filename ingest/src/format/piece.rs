//! A document from its bytes alone, for what does not come as a file.

use super::document::{Document, accept, decode};
use super::json::JsonFields;
use super::options::{Format, FormatOptions};
use std::fmt;

/// Makes documents of bytes that somebody else has cut: a text, or a line of JSON.
pub(crate) struct PieceReader(Option<JsonFields>);

impl fmt::Debug for PieceReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "PieceReader(json)" } else { "PieceReader(text)" })
    }
}

impl PieceReader {
    pub(crate) fn new(options: &FormatOptions) -> Self {
        Self((options.format != Format::Text).then(|| JsonFields::new(options)))
    }

    /// The document of `size_bytes` bytes, of which `bytes` are all, or the beginning if they are too many.
    pub(crate) fn document(&self, bytes: Vec<u8>, size_bytes: u64) -> Document {
        let plain = |text| Document { offset_bytes: 0, id: None, language: None, arrived_ms: None, text };
        match (accept(bytes, size_bytes).and_then(decode), &self.0) {
            (Ok(line), Some(fields)) => fields.document(0, &line),
            (text, _) => plain(text),
        }
    }
}
