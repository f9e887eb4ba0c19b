//! A batch: documents that become durable together, in the form in which they are written.

use super::PushError;
use super::shared::Shared;
use super::splitter::{Piece, Splitter};
use crate::FormatOptions;
use crate::format::{DOCUMENT_LIMIT_BYTES, Document, PieceReader, Reason, Rejection};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// Documents of a batch that cannot be used and are named to whoever pushed them, at most. Of what is pumped all are kept, but a
/// batch is worth handing over when it has so many.
const REJECTED_LIMIT: usize = 100;
/// Room in a batch's last line for its commit, without key and characters.
const COMMIT_BYTES: usize = 256;
/// Room in a batch's last line for its commit, with key and characters: the line may not become too large to be read.
const COMMIT_LIMIT_BYTES: usize = 16 << 10;

/// A batch that is complete.
#[derive(Debug)]
pub struct Batch {
    /// One JSON object a line.
    pub(super) lines: Vec<u8>,
    pub(super) documents: u64,
    /// By language; under the empty one where the corpus has a fixed language.
    pub(super) characters: BTreeMap<String, u64>,
    pub(super) key: Option<String>,
    /// Line and reason of those that cannot be used, the first of them.
    pub(super) rejected: Vec<(u64, Rejection)>,
    rejected_total: u64,
    held: Held,
}

/// What became of a batch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Receipt {
    /// Documents that are durable now.
    pub accepted: u64,
    /// Documents that cannot be used, the first 100.
    pub rejected: Vec<RejectedDocument>,
    /// All documents that cannot be used.
    pub rejected_total: u64,
    /// The batch's key was known, so nothing was added.
    pub duplicate: bool,
}

/// A document that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RejectedDocument {
    /// Number of its first line in what was sent, from 1.
    pub line: u64,
    /// The reason's name, as in the log and in metrics.
    pub reason: &'static str,
    /// What is wrong, for people.
    pub detail: String,
}

/// A batch that is being filled.
#[derive(Debug)]
pub struct BatchBuilder {
    splitter: Splitter,
    documents: Documents,
}

/// The documents of a batch so far.
struct Documents {
    shared: Arc<Shared>,
    reader: PieceReader,
    batch: Batch,
    /// Of those that cannot be used so many are kept.
    rejected_limit: usize,
    /// What came, in bytes.
    received_bytes: u64,
}

/// A line of the spool.
#[derive(Serialize)]
struct Line<'a> {
    text: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    language: Option<&'a str>,
    arrived: u64,
}

/// A share of the memory for batches; given back when it is dropped.
struct Held {
    shared: Arc<Shared>,
    bytes: u64,
}

impl Batch {
    fn empty(shared: &Arc<Shared>) -> Self {
        Self {
            lines: Vec::new(),
            documents: 0,
            characters: BTreeMap::new(),
            key: None,
            rejected: Vec::new(),
            rejected_total: 0,
            held: Held { shared: Arc::clone(shared), bytes: 0 },
        }
    }

    /// Bytes of its documents, as they are written.
    pub(super) fn bytes(&self) -> u64 {
        self.lines.len() as u64
    }

    /// Bytes that it takes in the inbox, at most.
    pub(super) fn spooled_bytes(&self) -> u64 {
        (self.lines.len() + COMMIT_BYTES + self.key.as_ref().map_or(0, String::len)) as u64
    }

    /// The same documents again, for one more attempt.
    pub(super) fn copy(&self) -> Self {
        Self {
            lines: self.lines.clone(),
            documents: self.documents,
            characters: self.characters.clone(),
            key: self.key.clone(),
            rejected: Vec::new(),
            rejected_total: self.rejected_total,
            held: Held { shared: Arc::clone(&self.held.shared), bytes: 0 },
        }
    }

    /// What whoever pushed it is told when it is durable.
    pub(super) fn receipt(&self) -> Receipt {
        Receipt {
            accepted: self.documents,
            rejected: self.rejected.iter().map(RejectedDocument::of).collect(),
            rejected_total: self.rejected_total,
            duplicate: false,
        }
    }
}

impl RejectedDocument {
    fn of((line, rejection): &(u64, Rejection)) -> Self {
        Self { line: *line, reason: rejection.reason.name(), detail: rejection.detail.clone() }
    }
}

impl BatchBuilder {
    pub(super) fn new(shared: Arc<Shared>, format: &FormatOptions) -> Self {
        let (batch, reader) = (Batch::empty(&shared), PieceReader::new(format));
        let documents = Documents { batch, reader, shared, rejected_limit: REJECTED_LIMIT, received_bytes: 0 };
        Self { splitter: Splitter::new(format), documents }
    }

    /// The same for input of which nobody is told what cannot be used: all of that is kept.
    pub(super) fn keeping_all_rejected(mut self) -> Self {
        self.documents.rejected_limit = usize::MAX;
        self
    }

    /// Takes the next bytes of what is pushed.
    ///
    /// # Errors
    /// When the batch becomes too large, there is no memory for it, or nothing is taken any more. The batch is of no use then.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), PushError> {
        let limit_bytes = self.documents.shared.options.batch_bytes;
        self.documents.received_bytes += bytes.len() as u64;
        if self.documents.received_bytes > limit_bytes {
            return Err(PushError::TooLarge { limit_bytes });
        }
        self.take(bytes);
        self.documents.hold(self.splitter.held_bytes())?;
        match self.documents.batch.bytes() > limit_bytes {
            true => Err(PushError::TooLarge { limit_bytes }),
            false => Ok(()),
        }
    }

    /// Whether the documents so far take `bytes` bytes, or there is no room to note more that cannot be used.
    pub(super) fn is_worth(&self, bytes: u64) -> bool {
        let batch = &self.documents.batch;
        batch.bytes() >= bytes || batch.rejected.len() >= REJECTED_LIMIT
    }

    /// As [`BatchBuilder::write`], without a limit.
    pub(super) fn take(&mut self, bytes: &[u8]) {
        let documents = &mut self.documents;
        self.splitter.write(bytes, &mut |piece| documents.add(piece));
    }

    /// The documents that have ended so far, as a batch of their own; `None`: there are none.
    pub(super) fn split(&mut self) -> Option<Batch> {
        self.documents.received_bytes = 0;
        let next = Batch::empty(&self.documents.shared);
        let batch = std::mem::replace(&mut self.documents.batch, next);
        (batch.documents > 0 || batch.rejected_total > 0).then_some(batch)
    }

    /// The end of what is pushed: the batch, with its idempotency key.
    ///
    /// # Errors
    /// As [`BatchBuilder::write`].
    pub fn finish(mut self, key: Option<String>) -> Result<Batch, PushError> {
        self.end();
        let limit_bytes = self.documents.shared.options.batch_bytes;
        if self.documents.batch.bytes() > limit_bytes {
            return Err(PushError::TooLarge { limit_bytes });
        }
        self.documents.hold(0)?;
        let mut batch = self.documents.batch;
        batch.key = key;
        Ok(batch)
    }

    /// The stream is at its end, and so is the last document. Another stream may follow.
    pub(super) fn end(&mut self) {
        let documents = &mut self.documents;
        self.splitter.finish(&mut |piece| documents.add(piece));
    }
}

impl Documents {
    fn add(&mut self, piece: Piece) {
        let line = piece.line;
        let Document { id, language, text, .. } = self.reader.document(piece.bytes, piece.size_bytes);
        let text = match text {
            Ok(text) => text,
            Err(rejection) => return self.reject(line, rejection),
        };
        if text.trim().is_empty() {
            return self.reject(line, Rejection::no_text(&text));
        }
        let known = &self.shared.options.languages;
        if let Some(language) = language.as_ref().filter(|language| !known.is_empty() && !known.contains(*language)) {
            let shown: String = language.chars().take(40).collect();
            let detail = format!("no teacher has language `{shown}`");
            let rejection = Rejection::new(Reason::UnknownLanguage, detail, text.as_bytes()).with_text(&text);
            return self.reject(line, rejection.with_language(Some(language.clone())));
        }
        let arrived = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
        let begin = self.batch.lines.len();
        let document = Line { text: &text, id: id.as_deref(), language: language.as_deref(), arrived };
        // Strings and numbers always serialise, and a vector takes them all.
        let _infallible = serde_json::to_writer(&mut self.batch.lines, &document);
        self.batch.lines.push(b'\n');
        let size_bytes = self.batch.lines.len() - begin;
        if size_bytes + COMMIT_LIMIT_BYTES > DOCUMENT_LIMIT_BYTES {
            self.batch.lines.truncate(begin);
            let detail = format!("as JSON it has {size_bytes} bytes, the limit is {DOCUMENT_LIMIT_BYTES}");
            return self.reject(line, Rejection::new(Reason::TooLarge, detail, text.as_bytes()));
        }
        self.batch.documents += 1;
        let characters = bytecount::num_chars(text.as_bytes()) as u64;
        *self.batch.characters.entry(language.unwrap_or_default()).or_default() += characters;
    }

    fn reject(&mut self, line: u64, rejection: Rejection) {
        self.shared.metrics.rejected(rejection.reason.name());
        self.batch.rejected_total += 1;
        if self.batch.rejected.len() < self.rejected_limit {
            self.batch.rejected.push((line, rejection));
        }
    }

    /// Asks for the memory that the batch takes by now, with `others` bytes besides.
    fn hold(&mut self, others: u64) -> Result<(), PushError> {
        let held = &mut self.batch.held;
        let wanted = self.batch.lines.len() as u64 + others;
        if wanted > held.bytes {
            self.shared.hold(wanted - held.bytes)?;
        } else {
            self.shared.let_go(held.bytes - wanted);
        }
        held.bytes = wanted;
        Ok(())
    }
}

impl fmt::Debug for Documents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.batch.fmt(f)
    }
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.bytes)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.shared.let_go(self.bytes);
    }
}
