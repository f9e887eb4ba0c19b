//! What is encoded and appended: entries in memory, cut into blocks.

use crate::failure::Failure;
use std::path::Path;
use store::{Entry, Identity, LogReader, Payload, SequenceNumber, StoreError};

/// Entries, numbered from 0 on.
#[derive(Debug, Default)]
pub(super) struct Records {
    /// Of the log that they belong to.
    pub(super) identity: Identity,
    /// The largest k of their labels.
    pub(super) top_k: usize,
    /// Not one of them empty.
    pub(super) blocks: Vec<Vec<Entry>>,
    /// Masked positions.
    pub(super) positions: u64,
    /// Whether any has text.
    pub(super) keep_text: bool,
    entries: u64,
    /// Of the last block.
    tokens: usize,
}

impl Records {
    /// None yet.
    pub(super) fn new(identity: Identity) -> Self {
        Self { identity, ..Self::default() }
    }

    /// The first entries of a log, until they have `positions` masked positions.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub(super) fn read(dir: &Path, positions: usize, block_tokens: usize) -> Result<Self, Failure> {
        let log = LogReader::open(dir)?;
        let mut records = Self::new(log.identity().clone());
        let mut sequence = log.begin();
        while sequence < log.durable().end() && records.positions < positions as u64 {
            sequence = match log.entry(sequence) {
                Err(StoreError::Removed { begin, .. }) => begin.max(sequence.next()),
                entry => {
                    records.push(Entry::clone(entry?.as_ref()), block_tokens);
                    sequence.next()
                }
            };
        }
        Ok(records)
    }

    /// Adds an entry; a block ends when its copies have `block_tokens` tokens, as in a run.
    pub(super) fn push(&mut self, mut entry: Entry, block_tokens: usize) {
        entry.sequence = SequenceNumber(self.entries);
        self.entries += 1;
        if self.tokens >= block_tokens || self.blocks.is_empty() {
            self.blocks.push(Vec::new());
            self.tokens = 0;
        }
        if let Payload::Record(record) = &entry.payload {
            self.keep_text |= record.text.is_some();
            for copy in &record.copies {
                self.tokens += copy.token_ids.len();
                self.positions += copy.masked_positions.len() as u64;
                self.top_k = self.top_k.max(copy.label.as_ref().map_or(0, |label| label.top_k));
            }
        }
        if let Some(block) = self.blocks.last_mut() {
            block.push(entry);
        }
    }
}
