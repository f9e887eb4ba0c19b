//! Bytes as they come → the bytes of one document after another.

use crate::format::DOCUMENT_LIMIT_BYTES;
use crate::{Format, FormatOptions, TextDocuments};
use std::mem;

const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";

/// The bytes of one document.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Piece {
    /// Number of its first line, from 1.
    pub(super) line: u64,
    /// Its lines without the last line end; of a document that is too large the beginning.
    pub(super) bytes: Vec<u8>,
    /// All of its bytes.
    pub(super) size_bytes: u64,
}

/// Cuts a stream that comes in pieces of any size. Holds at most one document, up to the size that is used.
#[derive(Debug)]
pub(super) struct Splitter {
    layout: Layout,
    /// Lines so far, with the one that has not ended.
    line: u64,
    /// What is kept of the document, with the line that has not ended.
    kept: Vec<u8>,
    /// Bytes of the document's lines that have ended; 0: it has not begun.
    size_bytes: u64,
    /// Its first line.
    first_line: u64,
    /// Length of `kept` without the line that has not ended.
    whole_lines: usize,
    /// Bytes of the line that has not ended.
    line_bytes: u64,
    /// Whether that line holds white space alone so far.
    blank: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layout {
    Paragraphs,
    Lines,
    Whole,
}

impl Splitter {
    pub(super) fn new(format: &FormatOptions) -> Self {
        let layout = match (format.format, format.documents) {
            (Format::JsonLines | Format::Parquet, _) | (_, TextDocuments::Line) => Layout::Lines,
            (_, TextDocuments::EmptyLine) => Layout::Paragraphs,
            (_, TextDocuments::File) => Layout::Whole,
        };
        Self {
            layout,
            line: 1,
            kept: Vec::new(),
            size_bytes: 0,
            first_line: 1,
            whole_lines: 0,
            line_bytes: 0,
            blank: true,
        }
    }

    /// Bytes in memory.
    pub(super) fn held_bytes(&self) -> u64 {
        self.kept.len() as u64
    }

    /// Takes what came; `found` gets each document that ends in it.
    pub(super) fn write(&mut self, mut bytes: &[u8], found: &mut impl FnMut(Piece)) {
        while !bytes.is_empty() {
            let end = memchr::memchr(b'\n', bytes);
            let (part, rest) = bytes.split_at(end.map_or(bytes.len(), |at| at + 1));
            self.blank = self.blank && part.iter().all(u8::is_ascii_whitespace);
            let room = (DOCUMENT_LIMIT_BYTES + 1).saturating_sub(self.kept.len());
            self.kept.extend_from_slice(&part[..part.len().min(room)]);
            self.line_bytes += part.len() as u64;
            if end.is_some() {
                self.end_line(found);
            }
            bytes = rest;
        }
    }

    /// The end of the stream ends the last document. What comes next is another stream.
    pub(super) fn finish(&mut self, found: &mut impl FnMut(Piece)) {
        if self.line_bytes > 0 {
            self.end_line(found);
        }
        self.end_document(found);
        self.line = 1;
    }

    fn end_line(&mut self, found: &mut impl FnMut(Piece)) {
        if self.line == 1 && self.kept.starts_with(BYTE_ORDER_MARK) {
            self.kept.drain(..BYTE_ORDER_MARK.len());
            self.line_bytes -= BYTE_ORDER_MARK.len() as u64;
            self.blank = self.kept.iter().all(u8::is_ascii_whitespace);
        }
        let (blank, line_bytes) = (mem::replace(&mut self.blank, true), mem::take(&mut self.line_bytes));
        let begun = self.size_bytes > 0;
        if blank && (!begun || self.layout != Layout::Whole) {
            self.kept.truncate(self.whole_lines);
            self.end_document(found);
        } else {
            if !begun {
                self.first_line = self.line;
            }
            self.size_bytes += line_bytes;
            self.whole_lines = self.kept.len();
            if self.layout == Layout::Lines {
                self.end_document(found);
            }
        }
        self.line += 1;
    }

    fn end_document(&mut self, found: &mut impl FnMut(Piece)) {
        let (mut bytes, mut size_bytes) = (mem::take(&mut self.kept), mem::take(&mut self.size_bytes));
        self.whole_lines = 0;
        if size_bytes == 0 {
            return;
        }
        if size_bytes == bytes.len() as u64 {
            trim_line_end(&mut bytes);
            size_bytes = bytes.len() as u64;
        }
        found(Piece { line: self.first_line, bytes, size_bytes });
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

#[cfg(test)]
mod tests {
    use super::*;

    fn check(documents: TextDocuments, stream: &str, expected: &[(u64, &str)]) {
        let format = FormatOptions { documents, ..Format::Text.into() };
        for step in 1..=stream.len() {
            let mut splitter = Splitter::new(&format);
            let mut pieces = Vec::new();
            let mut found = |piece: Piece| {
                assert_eq!(piece.size_bytes, piece.bytes.len() as u64);
                pieces.push((piece.line, String::from_utf8(piece.bytes).expect("text")));
            };
            stream.as_bytes().chunks(step).for_each(|chunk| splitter.write(chunk, &mut found));
            splitter.finish(&mut found);
            let expected: Vec<_> = expected.iter().map(|(line, text)| (*line, (*text).to_owned())).collect();
            assert_eq!(pieces, expected, "{stream:?} in steps of {step}");
        }
    }

    #[test]
    fn documents_end_where_the_form_says() {
        let stream = "\u{FEFF}\n \none\ntwo \r\n\r\n\t\nthree\n\nfour";
        check(TextDocuments::EmptyLine, stream, &[(3, "one\ntwo "), (7, "three"), (9, "four")]);
        check(TextDocuments::Line, stream, &[(3, "one"), (4, "two "), (7, "three"), (9, "four")]);
        check(TextDocuments::File, stream, &[(3, "one\ntwo \r\n\r\n\t\nthree\n\nfour")]);
        for nothing in ["\n", " \n\n", "\u{FEFF}"] {
            for documents in [TextDocuments::EmptyLine, TextDocuments::Line, TextDocuments::File] {
                check(documents, nothing, &[]);
            }
        }
        check(TextDocuments::EmptyLine, "\u{FEFF}one\n\n\u{FEFF}two\n", &[(1, "one"), (3, "\u{FEFF}two")]);
    }

    #[test]
    fn of_a_document_that_is_too_large_the_beginning_is_kept() {
        let mut splitter = Splitter::new(&Format::Text.into());
        let mut pieces = Vec::new();
        for _ in 0..10 {
            splitter.write(&vec![b'x'; 1 << 20], &mut |piece| pieces.push(piece));
            assert!(splitter.held_bytes() <= DOCUMENT_LIMIT_BYTES as u64 + 1);
        }
        splitter.write(b"\n\nsmall\n\n", &mut |piece| pieces.push(piece));
        let sizes: Vec<_> = pieces.iter().map(|piece| (piece.size_bytes, piece.bytes.len())).collect();
        assert_eq!(sizes, [((10 << 20) + 1, DOCUMENT_LIMIT_BYTES + 1), (5, 5)]);
    }
}
