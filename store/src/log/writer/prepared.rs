//! Blocks that are encoded ahead of being appended.

use super::LogWriter;
use crate::log::block::EncodedBlock;
use crate::log::codec::Counted;
use crate::log::error::StoreError;
use crate::log::validate::validate;
use crate::{Entry, SequenceNumber, SourceCursor};
use std::path::PathBuf;

/// A block that is encoded and not appended yet.
#[derive(Debug)]
pub struct PreparedBlock {
    encoded: EncodedBlock,
    /// Its first entry, and the one after its last.
    range: (SequenceNumber, SequenceNumber),
    /// File of the segment that it was encoded for.
    segment: PathBuf,
    counted: Counted,
    last_cursors: Vec<SourceCursor>,
}

impl PreparedBlock {
    /// The sequence number that the next block must begin with.
    #[must_use]
    pub fn end(&self) -> SequenceNumber {
        self.range.1
    }

    /// Bytes it takes in the log.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.encoded.bytes()
    }
}

impl LogWriter {
    /// Encodes `block`, whose first entry is number `first`, for the segment that grows now. Nothing is written.
    ///
    /// # Errors
    /// [`StoreError::InvalidEntry`] if the block is empty, not well-formed, or has other numbers.
    pub fn prepare(&mut self, block: &[Entry], first: SequenceNumber) -> Result<PreparedBlock, StoreError> {
        self.usable()?;
        validate(block, first, self.identity.teachers.len(), self.options.extras())?;
        if block.is_empty() {
            return Err(StoreError::InvalidEntry { sequence: first, what: "a block without entries".to_owned() });
        }
        let encoded = self.encode(block)?;
        let counted = self.segment.compaction.as_mut().map(|compaction| compaction.take_counted());
        Ok(PreparedBlock {
            encoded,
            range: (first, SequenceNumber(first.0 + block.len() as u64)),
            segment: self.segment.path.clone(),
            counted: counted.unwrap_or_default(),
            last_cursors: last_cursors(block),
        })
    }

    /// [`LogWriter::append`] of a block that was prepared.
    ///
    /// # Errors
    /// Those of `append`; [`StoreError::InvalidEntry`] if other entries were appended since, or if compact labels were encoded for
    /// a segment that is full: prepare the block again.
    pub fn append_prepared(&mut self, block: PreparedBlock) -> Result<(), StoreError> {
        self.usable()?;
        let PreparedBlock { encoded, range, segment, counted, last_cursors } = block;
        if range.0 != self.next() {
            let what = format!("a block was prepared to begin with it, but the log goes on with {}", self.next());
            return Err(StoreError::InvalidEntry { sequence: range.0, what });
        }
        if self.segment.compaction.is_some() && segment != self.segment.path {
            return Err(self.prepared_for_another_segment());
        }
        let written = self.write(encoded, None);
        self.remember(written)?;
        if let Some(compaction) = &mut self.segment.compaction {
            compaction.appended_counted(counted);
        }
        self.has_appended((range.1.0 - range.0.0) as usize, last_cursors);
        Ok(())
    }

    pub(super) fn prepared_for_another_segment(&self) -> StoreError {
        let what = "its block was prepared for the segment before; prepare it again".to_owned();
        StoreError::InvalidEntry { sequence: self.next(), what }
    }
}

/// The last cursor of each source of `block`.
pub(super) fn last_cursors(block: &[Entry]) -> Vec<SourceCursor> {
    let mut last: Vec<SourceCursor> = Vec::new();
    for Entry { cursor, .. } in block.iter().rev() {
        if last.iter().all(|later| later.source != cursor.source) {
            last.push(cursor.clone());
        }
    }
    last
}
