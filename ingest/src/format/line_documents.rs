//! Text and JSON lines: documents that are made of lines.

use super::document::{Document, Reason, Rejection, accept, decode};
use super::json::JsonFields;
use super::lines::{Line, Lines, Next};
use super::options::{Format, FormatOptions, TextDocuments};
use std::io;
use std::path::Path;

/// Reads the documents of a text or JSON-lines file.
pub(super) struct LineDocuments {
    lines: Lines,
    layout: Layout,
    document: Unfinished,
    /// Whether the file was read to its end.
    finished: bool,
}

enum Layout {
    /// Empty lines separate documents.
    Paragraphs,
    /// The file is a document.
    Whole,
    /// A line is a document.
    Lines,
    /// A line is a JSON object.
    Objects(JsonFields),
}

/// What was read of a document.
#[derive(Default)]
struct Unfinished {
    offset_bytes: u64,
    /// Of its lines so far; 0: it has not begun.
    size_bytes: u64,
    /// Whether it holds white space alone.
    blank: bool,
    /// Its lines, up to one byte more than a document may have.
    bytes: Vec<u8>,
    /// Length of `bytes` without the line being read.
    whole_lines: usize,
}

impl LineDocuments {
    /// Opens `path` at a document's offset (0: the first). `Ok(None)`: no document begins at that offset.
    pub(super) fn open(
        path: &Path,
        options: &FormatOptions,
        offset_bytes: u64,
        growing: bool,
    ) -> io::Result<Option<Self>> {
        let layout = match (options.format, options.documents) {
            (Format::JsonLines | Format::Parquet, _) => Layout::Objects(JsonFields::new(options)),
            (Format::Text, TextDocuments::EmptyLine) => Layout::Paragraphs,
            (Format::Text, TextDocuments::File) => Layout::Whole,
            (Format::Text, TextDocuments::Line) => Layout::Lines,
        };
        let Some(lines) = Lines::open(path, options.compression, offset_bytes, growing)? else { return Ok(None) };
        if matches!(layout, Layout::Whole) && lines.unfinished().offset_bytes > 0 {
            return Ok(None);
        }
        Ok(Some(Self { lines, layout, document: Unfinished::default(), finished: false }))
    }

    /// The next document; `None` at the end of the file, or where a growing file has no more yet.
    pub(super) fn next_document(&mut self) -> io::Result<Option<Document>> {
        while !self.finished {
            match self.lines.next(&mut self.document.bytes)? {
                Next::Line(line) => {
                    if let Some(document) = self.add(line) {
                        return Ok(Some(document));
                    }
                }
                Next::End if self.lines.is_growing() => return Ok(None),
                Next::End => {
                    self.finished = true;
                    return Ok(self.finish());
                }
                Next::Broken(detail) => {
                    self.finished = true;
                    return Ok(Some(self.broken(&detail)));
                }
            }
        }
        Ok(None)
    }

    /// Where the next document begins, at the earliest.
    pub(super) fn position_bytes(&self) -> u64 {
        if self.document.size_bytes > 0 { self.document.offset_bytes } else { self.lines.unfinished().offset_bytes }
    }

    pub(super) fn limit(&mut self, readable_bytes: u64) -> io::Result<()> {
        self.lines.limit(readable_bytes)
    }

    pub(super) fn seal(&mut self) {
        self.lines.seal();
    }

    /// Adds a line, which stands at the end of `document.bytes`; the document that ends with it.
    fn add(&mut self, line: Line) -> Option<Document> {
        let document = &mut self.document;
        let ends = match self.layout {
            Layout::Paragraphs => line.blank && document.size_bytes > 0,
            Layout::Lines | Layout::Objects(_) => !line.blank,
            Layout::Whole => false,
        };
        if line.blank && !matches!(self.layout, Layout::Whole) {
            document.bytes.truncate(document.whole_lines);
            return if ends { self.finish() } else { None };
        }
        if document.size_bytes == 0 {
            document.offset_bytes = line.offset_bytes;
            document.blank = true;
        }
        document.size_bytes += line.size_bytes;
        document.blank &= line.blank;
        document.whole_lines = document.bytes.len();
        if ends { self.finish() } else { None }
    }

    /// The document that was read.
    fn finish(&mut self) -> Option<Document> {
        let Unfinished { offset_bytes, mut size_bytes, blank, mut bytes, .. } = std::mem::take(&mut self.document);
        if blank || size_bytes == 0 {
            return None;
        }
        if let Layout::Objects(fields) = &self.layout {
            let line = accept(bytes, size_bytes).and_then(decode);
            return Some(match line {
                Ok(line) => fields.document(offset_bytes, &line),
                Err(rejection) => unmarked(offset_bytes, Err(rejection)),
            });
        }
        if size_bytes == bytes.len() as u64 {
            trim_line_end(&mut bytes);
            size_bytes = bytes.len() as u64;
        }
        Some(unmarked(offset_bytes, accept(bytes, size_bytes).and_then(decode)))
    }

    /// What stands in for the rest of a file that cannot be decompressed: the document in which it breaks.
    fn broken(&mut self, detail: &str) -> Document {
        let offset_bytes = self.position_bytes();
        let size_bytes = self.document.size_bytes + self.lines.unfinished().size_bytes;
        let detail =
            format!("the compressed file cannot be read on from byte {offset_bytes} of what it holds: {detail}");
        let bytes = std::mem::take(&mut self.document).bytes;
        let rejection = Rejection { size_bytes, ..Rejection::new(Reason::BrokenCompression, detail, &bytes) };
        unmarked(offset_bytes, Err(rejection))
    }
}

/// A document of which nothing is known but its text.
fn unmarked(offset_bytes: u64, text: Result<String, Rejection>) -> Document {
    Document { offset_bytes, id: None, language: None, arrived_ms: None, text }
}

fn trim_line_end(bytes: &mut Vec<u8>) {
    if bytes.last() == Some(&b'\n') {
        bytes.pop();
        if bytes.last() == Some(&b'\r') {
            bytes.pop();
        }
    }
}
