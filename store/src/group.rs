//! A group: the consecutive entries that are labelled together and appended as one block.
//!
//! Groups end at places that depend on the entries alone, and recovery keeps or drops a block whole, so a
//! run that was interrupted forms the same batches as one that was not, and a teacher's rounding is the same.

use crate::Entry;

/// Consecutive entries on their way to the log, with the batches in which their copies are labelled.
#[derive(Clone, Debug, Default)]
pub struct Group {
    /// Entries in sequence order, labels not filled in yet.
    pub entries: Vec<Entry>,
    /// Every copy of a labelling teacher is in exactly one batch.
    pub batches: Vec<BatchPlan>,
}

/// Copies of one teacher that are labelled in one forward pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchPlan {
    /// Index into the teacher table.
    pub teacher: u16,
    /// (index into the group's entries, index into that record's copies), by ascending length.
    pub members: Vec<(u32, u32)>,
}
