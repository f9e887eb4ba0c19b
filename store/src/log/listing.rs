//! The segments of a log, as they are listed.

use crate::SequenceNumber;
use crate::log::index::Seal;
use crate::log::reader::LogReader;
use std::path::Path;
use std::sync::Arc;

/// A segment, as far as it is durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedSegment {
    /// Its file.
    pub path: Arc<Path>,
    /// Its first entry.
    pub first: SequenceNumber,
    /// Entries that are durable.
    pub entries: u64,
    /// Bytes on disk, header and footer included.
    pub bytes: u64,
    /// Whether nothing more is written to it.
    pub sealed: bool,
}

impl LogReader {
    /// The segments, oldest first. Reads no file.
    #[must_use]
    pub fn segments(&self) -> Vec<ListedSegment> {
        let durable = self.durable().end();
        let state = self.state();
        let segments = state.index.segments();
        let ends = segments.iter().skip(1).map(|next| next.header.first_sequence).chain([durable]);
        let listed = segments.iter().zip(ends).map(|(segment, end)| ListedSegment {
            path: Arc::clone(&segment.path),
            first: segment.header.first_sequence,
            entries: end.0.min(durable.0).saturating_sub(segment.header.first_sequence.0),
            bytes: segment.bytes(),
            sealed: segment.seal != Seal::Open,
        });
        listed.collect()
    }
}
