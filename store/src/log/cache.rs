//! The blocks that were decoded last.

use crate::{Entry, SequenceNumber};
use std::collections::VecDeque;
use std::sync::Arc;

const MAX_BLOCKS: usize = 32;

/// Most memory the cache may take, by a rough count; one block is always kept.
const MAX_BYTES: u64 = 512 << 20;

/// A decoded block.
pub(crate) type Entries = Arc<Vec<Arc<Entry>>>;

/// Least recently used blocks go first.
#[derive(Debug, Default)]
pub(crate) struct BlockCache {
    blocks: VecDeque<CachedBlock>,
}

#[derive(Debug)]
struct CachedBlock {
    first: SequenceNumber,
    entries: Entries,
    bytes: u64,
}

impl BlockCache {
    pub(crate) fn get(&mut self, first: SequenceNumber) -> Option<Entries> {
        let at = self.blocks.iter().position(|block| block.first == first)?;
        let block = self.blocks.remove(at)?;
        let entries = Arc::clone(&block.entries);
        self.blocks.push_back(block);
        Some(entries)
    }

    /// `bytes`: what the entries take in memory, roughly.
    pub(crate) fn insert(&mut self, first: SequenceNumber, entries: Entries, bytes: u64) {
        self.blocks.retain(|block| block.first != first);
        let bytes = bytes.min(MAX_BYTES + 1); // A sum of what damaged headers say must not overflow.
        self.blocks.push_back(CachedBlock { first, entries, bytes });
        while self.blocks.len() > MAX_BLOCKS || self.blocks.len() > 1 && self.bytes() > MAX_BYTES {
            self.blocks.pop_front();
        }
    }

    fn bytes(&self) -> u64 {
        self.blocks.iter().map(|block| block.bytes).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_recently_used_block_goes_first() {
        let mut cache = BlockCache::default();
        for first in 0..MAX_BLOCKS as u64 {
            cache.insert(SequenceNumber(first), Entries::default(), 1);
        }
        assert!(cache.get(SequenceNumber(0)).is_some());
        cache.insert(SequenceNumber(1000), Entries::default(), 1);
        assert!(cache.get(SequenceNumber(1)).is_none());
        assert!(cache.get(SequenceNumber(0)).is_some());
        cache.insert(SequenceNumber(2000), Entries::default(), MAX_BYTES + 1);
        assert!(cache.get(SequenceNumber(0)).is_none());
        assert!(cache.get(SequenceNumber(2000)).is_some());
    }
}
