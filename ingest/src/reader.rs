//! Files → documents, streaming: at most one document is in memory, and its size is bounded.

use crate::{Format, IngestError};
use serde::Deserialize;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// Documents above this size are skipped: nothing downstream has to hold more.
pub(crate) const DOCUMENT_LIMIT_BYTES: usize = 8 << 20;

const EXCERPT_BYTES: usize = 512;
const BUFFER_BYTES: usize = 256 << 10;
const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";

/// One document of a file: its text, or why it has none.
#[derive(Debug)]
pub(crate) struct Document {
    /// Where it begins in the file.
    pub(crate) offset_bytes: u64,
    pub(crate) text: Result<String, Rejection>,
}

/// A document that cannot be used.
#[derive(Debug)]
pub(crate) struct Rejection {
    pub(crate) reason: Reason,
    pub(crate) detail: String,
    /// Size of the document in the file.
    pub(crate) size_bytes: u64,
    /// Its first bytes, readable.
    pub(crate) excerpt: String,
}

/// Why a document, or a part of one, makes no example. The names are metric labels and log entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    NotUtf8,
    NulByte,
    TooLarge,
    MalformedJson,
    MissingText,
    NoText,
    NothingToMask,
    TooManyTokens,
}

impl Reason {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::NotUtf8 => "not_utf8",
            Self::NulByte => "nul_byte",
            Self::TooLarge => "too_large",
            Self::MalformedJson => "malformed_json",
            Self::MissingText => "missing_text",
            Self::NoText => "no_text",
            Self::NothingToMask => "nothing_to_mask",
            Self::TooManyTokens => "too_many_tokens",
        }
    }
}

/// Reads the documents of one file in order.
pub(crate) struct FileReader {
    input: BufReader<File>,
    path: PathBuf,
    format: Format,
    offset_bytes: u64,
}

/// A line that was read: its size with the line end, and whether it holds white space alone.
struct Line {
    size_bytes: u64,
    blank: bool,
}

impl FileReader {
    /// Opens `path` at a document's offset (0: the first). `Ok(None)`: no document begins at that offset.
    pub(crate) fn open(path: &Path, format: Format, offset_bytes: u64) -> Result<Option<Self>, IngestError> {
        let file = File::open(path).map_err(|source| io_error("open", path, source))?;
        let input = BufReader::with_capacity(BUFFER_BYTES, file);
        let mut reader = Self { input, path: path.to_owned(), format, offset_bytes: 0 };
        let found = reader.seek(offset_bytes).map_err(|source| io_error("read", path, source))?;
        Ok(found.then_some(reader))
    }

    /// The next document; `None` at the end of the file.
    pub(crate) fn next_document(&mut self) -> Result<Option<Document>, IngestError> {
        let document = match self.format {
            Format::Text => self.next_text(),
            Format::JsonLines => self.next_json_line(),
        };
        document.map_err(|source| io_error("read", &self.path, source))
    }

    fn seek(&mut self, offset_bytes: u64) -> io::Result<bool> {
        let mut head = Vec::with_capacity(BYTE_ORDER_MARK.len());
        self.input.by_ref().take(BYTE_ORDER_MARK.len() as u64).read_to_end(&mut head)?;
        let first_bytes = if head == BYTE_ORDER_MARK { head.len() as u64 } else { 0 };
        self.offset_bytes = offset_bytes.max(first_bytes);
        if offset_bytes <= first_bytes {
            self.input.seek(SeekFrom::Start(first_bytes))?;
            return Ok(true);
        }
        self.input.seek(SeekFrom::Start(offset_bytes - 1))?;
        let mut before = [0];
        match self.input.read_exact(&mut before) {
            Ok(()) => Ok(before == *b"\n"),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn next_text(&mut self) -> io::Result<Option<Document>> {
        let mut bytes = Vec::new();
        let mut size_bytes = 0;
        let mut offset_bytes = self.offset_bytes;
        loop {
            let kept = bytes.len();
            let Some(line) = self.read_line(&mut bytes)? else { break };
            if !line.blank {
                size_bytes += line.size_bytes;
            } else if size_bytes == 0 {
                bytes.clear();
                offset_bytes = self.offset_bytes;
            } else {
                bytes.truncate(kept);
                break;
            }
        }
        if size_bytes == 0 {
            return Ok(None);
        }
        let whole = size_bytes == bytes.len() as u64;
        if whole {
            trim_line_end(&mut bytes);
            size_bytes = bytes.len() as u64;
        }
        Ok(Some(Document { offset_bytes, text: accept(bytes, size_bytes).and_then(decode) }))
    }

    fn next_json_line(&mut self) -> io::Result<Option<Document>> {
        loop {
            let mut bytes = Vec::new();
            let offset_bytes = self.offset_bytes;
            let Some(line) = self.read_line(&mut bytes)? else { return Ok(None) };
            if line.blank {
                continue;
            }
            let text = accept(bytes, line.size_bytes).and_then(decode).and_then(|line| text_of(&line));
            return Ok(Some(Document { offset_bytes, text }));
        }
    }

    /// Appends the next line to `kept`, up to one byte more than a document may have; the rest is only
    /// counted. `None` at the end of the file.
    fn read_line(&mut self, kept: &mut Vec<u8>) -> io::Result<Option<Line>> {
        let mut line = Line { size_bytes: 0, blank: true };
        loop {
            let available = match self.input.fill_buf() {
                Ok(available) => available,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            let end = memchr::memchr(b'\n', available);
            let part = &available[..end.map_or(available.len(), |at| at + 1)];
            line.blank = line.blank && part.iter().all(u8::is_ascii_whitespace);
            kept.extend_from_slice(&part[..part.len().min(DOCUMENT_LIMIT_BYTES + 1 - kept.len())]);
            let taken = part.len();
            self.input.consume(taken);
            self.offset_bytes += taken as u64;
            line.size_bytes += taken as u64;
            if end.is_some() || taken == 0 {
                return Ok((line.size_bytes > 0).then_some(line));
            }
        }
    }
}

fn trim_line_end(bytes: &mut Vec<u8>) {
    if bytes.last() == Some(&b'\n') {
        bytes.pop();
        if bytes.last() == Some(&b'\r') {
            bytes.pop();
        }
    }
}

/// `bytes` unless the document, `size_bytes` long of which they are the beginning, is too large.
fn accept(bytes: Vec<u8>, size_bytes: u64) -> Result<Vec<u8>, Rejection> {
    if size_bytes <= DOCUMENT_LIMIT_BYTES as u64 {
        return Ok(bytes);
    }
    let detail = format!("the document has {size_bytes} bytes, the limit is {DOCUMENT_LIMIT_BYTES}");
    Err(Rejection { size_bytes, ..Rejection::new(Reason::TooLarge, detail, &bytes) })
}

fn decode(bytes: Vec<u8>) -> Result<String, Rejection> {
    if let Some(at) = memchr::memchr(0, &bytes) {
        return Err(Rejection::new(Reason::NulByte, format!("NUL at byte {at} of the document"), &bytes));
    }
    String::from_utf8(bytes).map_err(|error| {
        let detail = format!("invalid UTF-8 at byte {} of the document", error.utf8_error().valid_up_to());
        Rejection::new(Reason::NotUtf8, detail, error.as_bytes())
    })
}

#[derive(Deserialize)]
struct JsonDocument {
    #[serde(default)]
    text: Option<serde_json::Value>,
}

fn text_of(line: &str) -> Result<String, Rejection> {
    let reject = |reason, detail: String| Rejection::new(reason, detail, line.as_bytes());
    // A derived struct would also accept an array.
    if !line.trim_start().starts_with('{') {
        return Err(reject(Reason::MalformedJson, "the line is not a JSON object".to_owned()));
    }
    let document: JsonDocument =
        serde_json::from_str(line).map_err(|error| reject(Reason::MalformedJson, error.to_string()))?;
    match document.text {
        Some(serde_json::Value::String(text)) if text.contains('\0') => {
            Err(reject(Reason::NulByte, "the text holds a NUL character".to_owned()))
        }
        Some(serde_json::Value::String(text)) => Ok(text),
        Some(_) => Err(reject(Reason::MissingText, "field `text` is not a string".to_owned())),
        None => Err(reject(Reason::MissingText, "the object has no field `text`".to_owned())),
    }
}

impl Rejection {
    fn new(reason: Reason, detail: String, bytes: &[u8]) -> Self {
        let excerpt = String::from_utf8_lossy(&bytes[..bytes.len().min(EXCERPT_BYTES)]).into_owned();
        Self { reason, detail, size_bytes: bytes.len() as u64, excerpt }
    }
}

fn io_error(doing: &'static str, path: &Path, source: io::Error) -> IngestError {
    IngestError::Io { doing, path: path.to_owned(), source }
}
