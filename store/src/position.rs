//! Places in the log, as types: a durable position is not a number that anyone can make up.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Number of an entry in the log, given by ingest: 0, 1, 2, … without holes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SequenceNumber(pub u64);

impl SequenceNumber {
    /// The entry after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for SequenceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// All entries below this sequence number are on stable storage. Readers never see past it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DurablePosition(u64);

impl DurablePosition {
    /// Only the log, which made the bytes durable, and the journal, which read the position from
    /// the log earlier, may name one.
    #[must_use]
    pub fn from_log(end: u64) -> Self {
        Self(end)
    }

    /// The sequence number of the first entry that is not durable.
    #[must_use]
    pub fn end(self) -> SequenceNumber {
        SequenceNumber(self.0)
    }

    /// Whether entry `sequence` is durable.
    #[must_use]
    pub fn covers(self, sequence: SequenceNumber) -> bool {
        sequence.0 < self.0
    }
}

impl fmt::Display for DurablePosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
