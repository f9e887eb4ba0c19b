//! Files → documents, streaming.
//!
//! A [`DocumentReader`] reads one file of any format: text, JSON lines or Parquet, the first two plain or compressed.
//!
//! Invariants
//!
//! - A document's offset is one in the decompressed file (its row, in Parquet): however a file is compressed, its
//!   documents and their offsets are the same. Reading on from a document's offset gives that document and those after it.
//! - At most one document is in memory, and its size is bounded: of a longer one the beginning is kept and the rest counted.
//!   To that come a decompressor's window (at most 128 MiB), or a page of each Parquet column (at most 512 MiB).
//! - Nothing that a file holds is an error or a panic. Where it breaks, the documents before come out, then one that is
//!   rejected, in the place of the rest.
//! - A growing file's last document comes out once it has an end: a line its line end, a paragraph its empty line. What
//!   has no end of its own (a file that is one document, a Parquet file) comes out once the file is sealed.

mod byte_stream;
mod document;
mod json;
mod line_documents;
mod lines;
mod options;
mod parquet;
mod piece;
#[cfg(test)]
mod tests;

pub(crate) use document::{DOCUMENT_LIMIT_BYTES, Document, Reason, Rejection};
pub use options::{Compression, Format, FormatOptions, TextDocuments};
pub(crate) use piece::PieceReader;

use crate::IngestError;
use byte_stream::{ByteStream, Fill};
use line_documents::LineDocuments;
use parquet::Rows;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

/// Reads the documents of one file in order.
pub(crate) struct DocumentReader {
    path: PathBuf,
    documents: Documents,
}

enum Documents {
    Lines(LineDocuments),
    Rows(Rows),
}

impl DocumentReader {
    /// Opens `path` at a document's offset (0: the first). `Ok(None)`: no document begins at that offset. `growing`:
    /// more may be appended to the file until [`Self::seal`] is called.
    pub(crate) fn open(
        path: &Path,
        options: &FormatOptions,
        offset_bytes: u64,
        growing: bool,
    ) -> Result<Option<Self>, IngestError> {
        let opened = if options.format == Format::Parquet {
            Rows::open(path, options, offset_bytes, growing).map(|rows| rows.map(Documents::Rows))
        } else {
            LineDocuments::open(path, options, offset_bytes, growing).map(|lines| lines.map(Documents::Lines))
        };
        let documents = opened.map_err(|source| io_error("open", path, source))?;
        Ok(documents.map(|documents| Self { path: path.to_owned(), documents }))
    }

    /// The next document; `None` at the end of the file. Where a growing file has no more yet it is `None` too, and a
    /// later call may return one.
    pub(crate) fn next_document(&mut self) -> Result<Option<Document>, IngestError> {
        let document = match &mut self.documents {
            Documents::Lines(lines) => lines.next_document(),
            Documents::Rows(rows) => rows.next_document(),
        };
        document.map_err(|source| io_error("read", &self.path, source))
    }

    /// Where the next document begins, at the earliest.
    pub(crate) fn position_bytes(&self) -> u64 {
        match &self.documents {
            Documents::Lines(lines) => lines.position_bytes(),
            Documents::Rows(rows) => rows.position(),
        }
    }

    /// What stands behind `readable_bytes` of a plain file may still be taken back and written anew: it is not read.
    pub(crate) fn limit(&mut self, readable_bytes: u64) -> Result<(), IngestError> {
        match &mut self.documents {
            Documents::Lines(lines) => lines.limit(readable_bytes),
            Documents::Rows(_) => Ok(()), // Its end has to be known before anything is read.
        }
        .map_err(|source| io_error("read", &self.path, source))
    }

    /// The file has its final size: what stands at its end is a document now.
    pub(crate) fn seal(&mut self) {
        match &mut self.documents {
            Documents::Lines(lines) => lines.seal(),
            Documents::Rows(rows) => rows.seal(),
        }
    }
}

/// Characters of a file's documents.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Count {
    /// By language; under `None` without a `language_field`.
    pub(crate) characters: BTreeMap<Option<String>, u64>,
    /// Where counting goes on once the file has grown.
    pub(crate) end: u64,
}

/// Counts the characters of a file from `from` (0, or the `end` of an earlier count) to its end, or to where it breaks.
/// Of text all characters count; of other formats those of the texts that can be used.
pub(crate) fn count(path: &Path, options: &FormatOptions, from: u64, growing: bool) -> Result<Count, IngestError> {
    if options.format == Format::Text {
        return count_stream(path, options.compression, from, growing).map_err(|source| io_error("read", path, source));
    }
    let mut count = Count { end: from, ..Count::default() };
    let Some(mut reader) = DocumentReader::open(path, options, from, growing)? else { return Ok(count) };
    while let Some(document) = reader.next_document()? {
        if let Ok(text) = document.text {
            *count.characters.entry(document.language).or_default() += bytecount::num_chars(text.as_bytes()) as u64;
        }
        store::pulse::beat();
    }
    count.end = reader.position_bytes();
    Ok(count)
}

/// Bytes that are not UTF-8 count as they come.
fn count_stream(path: &Path, compression: Compression, from: u64, growing: bool) -> io::Result<Count> {
    let mut stream = ByteStream::open(path, compression, growing)?;
    let mut characters = 0;
    if stream.skip_to(from)? {
        while stream.fill(1)? == Fill::Bytes {
            characters += bytecount::num_chars(stream.buffer()) as u64;
            stream.consume(stream.buffer().len());
            store::pulse::beat();
        }
    }
    Ok(Count { characters: [(None, characters)].into(), end: stream.position_bytes().max(from) })
}

fn io_error(doing: &'static str, path: &Path, source: io::Error) -> IngestError {
    IngestError::Io { doing, path: path.to_owned(), source }
}
