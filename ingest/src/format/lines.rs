//! Lines of a file, bounded in memory: of a line that is too long the beginning is kept and the rest counted.

use super::byte_stream::{ByteStream, Fill};
use super::document::DOCUMENT_LIMIT_BYTES;
use super::options::Compression;
use std::io;
use std::path::Path;

const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";

/// A line, or as much of it as was read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Line {
    pub(super) offset_bytes: u64,
    /// With the line end.
    pub(super) size_bytes: u64,
    /// Whether it holds white space alone.
    pub(super) blank: bool,
}

/// What comes next in a file.
pub(super) enum Next {
    Line(Line),
    /// Nothing more; if the file grows, nothing more yet.
    End,
    /// The rest cannot be decompressed; says why.
    Broken(String),
}

/// Reads lines.
pub(super) struct Lines {
    stream: ByteStream,
    line: Line,
}

impl Lines {
    /// Opens `path` at the beginning of a line (0: the first). `Ok(None)`: no line begins at that offset.
    pub(super) fn open(
        path: &Path,
        compression: Compression,
        offset_bytes: u64,
        growing: bool,
    ) -> io::Result<Option<Self>> {
        let mut stream = ByteStream::open(path, compression, growing)?;
        if offset_bytes > 0 {
            stream.fill(BYTE_ORDER_MARK.len())?;
            let marked = stream.buffer().starts_with(BYTE_ORDER_MARK);
            if !marked || offset_bytes > BYTE_ORDER_MARK.len() as u64 {
                let found = stream.skip_to(offset_bytes - 1)? && {
                    stream.fill(1)?;
                    stream.buffer().first() == Some(&b'\n')
                };
                if !found {
                    return Ok(None);
                }
                stream.consume(1);
            }
        }
        let line = Line { offset_bytes: stream.position_bytes(), size_bytes: 0, blank: true };
        Ok(Some(Self { stream, line }))
    }

    /// Appends the next line, or the rest of it, to `kept`, up to one byte more than a document may have. A growing
    /// file's last line is left unfinished until it has an end.
    pub(super) fn next(&mut self, kept: &mut Vec<u8>) -> io::Result<Next> {
        if self.stream.position_bytes() == 0 && !self.pass_mark()? {
            return Ok(Next::End);
        }
        loop {
            match self.stream.fill(1)? {
                Fill::Bytes => {}
                Fill::End if self.line.size_bytes == 0 || self.stream.is_growing() => return Ok(Next::End),
                Fill::End => return Ok(self.finish()),
                Fill::Broken(detail) => return Ok(Next::Broken(detail)),
            }
            let available = self.stream.buffer();
            let end = memchr::memchr(b'\n', available);
            let part = &available[..end.map_or(available.len(), |at| at + 1)];
            self.line.blank = self.line.blank && part.iter().all(u8::is_ascii_whitespace);
            kept.extend_from_slice(&part[..part.len().min(DOCUMENT_LIMIT_BYTES + 1 - kept.len())]);
            let taken = part.len();
            self.stream.consume(taken);
            self.line.size_bytes += taken as u64;
            if end.is_some() {
                return Ok(self.finish());
            }
        }
    }

    /// The line that has not ended yet.
    pub(super) fn unfinished(&self) -> Line {
        self.line
    }

    pub(super) fn is_growing(&self) -> bool {
        self.stream.is_growing()
    }

    pub(super) fn limit(&mut self, readable_bytes: u64) -> io::Result<()> {
        self.stream.limit(readable_bytes)
    }

    pub(super) fn seal(&mut self) {
        self.stream.seal();
    }

    fn finish(&mut self) -> Next {
        let next = Line { offset_bytes: self.stream.position_bytes(), size_bytes: 0, blank: true };
        Next::Line(std::mem::replace(&mut self.line, next))
    }

    /// Passes over the byte order mark; `false`: the file is still too short to say whether there is one.
    fn pass_mark(&mut self) -> io::Result<bool> {
        let whole = self.stream.fill(BYTE_ORDER_MARK.len())? == Fill::Bytes;
        let head = self.stream.buffer();
        if head.starts_with(BYTE_ORDER_MARK) {
            self.stream.consume(BYTE_ORDER_MARK.len());
            self.line.offset_bytes = self.stream.position_bytes();
        } else if !whole && self.stream.is_growing() && BYTE_ORDER_MARK.starts_with(head) {
            return Ok(false);
        }
        Ok(true)
    }
}
