//! What a process knows of a log without reading it: segments and blocks, a few dozen bytes each.

use crate::log::block::{BlockHeader, Link};
use crate::log::codec::{LastTables, SegmentTables};
use crate::log::mirror::Place;
use crate::log::segment::SegmentHeader;
use crate::{SequenceNumber, SourceCursor};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

/// Segments and blocks, in order.
#[derive(Debug, Default)]
pub(crate) struct Index {
    /// What the first segment follows: nothing, or segments that retention removed.
    begin: Link,
    segments: Vec<Segment>,
    blocks: Vec<Block>,
    languages: Vec<Arc<str>>,
    last_tables: LastTables,
}

/// A segment.
#[derive(Clone, Debug)]
pub(crate) struct Segment {
    pub(crate) path: Arc<Path>,
    pub(crate) header: Arc<SegmentHeader>,
    /// Bytes of the header, where the first block begins.
    pub(crate) header_bytes: u64,
    /// Where the last known block ends.
    pub(crate) end_offset: u64,
    /// What follows the last known block.
    pub(crate) link: Link,
    pub(crate) seal: Seal,
    /// Index of its first block.
    first_block: usize,
}

impl Segment {
    /// Its bytes on disk, as far as they are known.
    pub(crate) fn bytes(&self) -> u64 {
        self.end_offset + if let Seal::Footer { bytes } = self.seal { bytes } else { 0 }
    }
}

/// Whether a segment is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seal {
    /// Blocks may follow.
    Open,
    /// A footer of so many bytes follows the last block.
    Footer { bytes: u64 },
    /// The footer is damaged, but the next segment proves that no block is missing.
    Lost,
}

/// A block.
#[derive(Clone, Debug)]
struct Block {
    first: SequenceNumber,
    entries: u32,
    segment: u32,
    offset: u64,
    bytes: u64,
    /// Bytes of all blocks before it.
    bytes_before: u64,
    /// Number of the language, held out, records.
    summary: Box<[(u16, bool, u32)]>,
}

impl Block {
    fn end(&self) -> SequenceNumber {
        SequenceNumber(self.first.0 + u64::from(self.entries))
    }
}

/// Bytes of a segment's file, to be copied.
#[derive(Clone, Debug)]
pub(crate) struct Cut {
    pub(crate) path: Arc<Path>,
    pub(crate) at: Place,
    /// What the segment follows.
    pub(crate) previous: u32,
    pub(crate) bytes: u64,
    /// The first entry after them.
    pub(crate) end: SequenceNumber,
}

/// Where to find a block.
#[derive(Clone, Debug)]
pub(crate) struct BlockPlace {
    pub(crate) path: Arc<Path>,
    pub(crate) offset: u64,
    pub(crate) first: SequenceNumber,
    /// One past its last entry.
    pub(crate) end: SequenceNumber,
    /// Those of its segment.
    pub(crate) tables: SegmentTables,
}

impl Index {
    /// First sequence number that is not in the log.
    pub(crate) fn end(&self) -> SequenceNumber {
        self.link().next
    }

    /// Where the log begins: 0, or the first entry that retention left.
    pub(crate) fn begin(&self) -> Link {
        self.begin
    }

    /// What the next block must follow.
    pub(crate) fn link(&self) -> Link {
        self.segments.last().map_or(self.begin, |segment| segment.link)
    }

    /// Bytes of all segments.
    pub(crate) fn bytes(&self) -> u64 {
        self.segments.iter().map(Segment::bytes).sum()
    }

    /// Forgets the segments before `begin`, where a segment begins or the log ends.
    pub(crate) fn remove_below(&mut self, begin: Link) {
        let gone = self.segments.partition_point(|segment| segment.header.first_sequence < begin.next);
        let gone_blocks = self.segments.get(gone).map_or(self.blocks.len(), |segment| segment.first_block);
        self.segments.drain(..gone);
        self.blocks.drain(..gone_blocks);
        self.segments.iter_mut().for_each(|segment| segment.first_block -= gone_blocks);
        self.blocks.iter_mut().for_each(|block| block.segment -= gone as u32);
        self.begin = begin;
    }

    pub(crate) fn segments(&self) -> &[Segment] {
        &self.segments
    }

    pub(crate) fn last_segment_mut(&mut self) -> Option<&mut Segment> {
        self.segments.last_mut()
    }

    /// Whether the last segment has no block.
    pub(crate) fn last_segment_is_empty(&self) -> bool {
        self.segments.last().is_some_and(|segment| segment.first_block == self.blocks.len())
    }

    /// Forgets the last segment, which has no block.
    pub(crate) fn pop_empty_segment(&mut self) {
        if self.last_segment_is_empty() {
            self.segments.pop();
        }
    }

    pub(crate) fn push_segment(&mut self, path: &Path, header: SegmentHeader, header_bytes: u64) {
        self.segments.push(Segment {
            path: path.into(),
            link: header.link(),
            header: Arc::new(header),
            header_bytes,
            end_offset: header_bytes,
            seal: Seal::Open,
            first_block: self.blocks.len(),
        });
    }

    /// Adds the next block of the last segment.
    pub(crate) fn push_block(&mut self, header: &BlockHeader) {
        let bytes_before = self.blocks.last().map_or(0, |last| last.bytes_before + last.bytes);
        let rows = header.summary.iter();
        let summary = rows.map(|row| (number(&mut self.languages, &row.language), row.held_out, row.records)).collect();
        let segment_number = self.segments.len().saturating_sub(1) as u32;
        let Some(segment) = self.segments.last_mut() else { return };
        self.blocks.push(Block {
            first: header.first(),
            entries: header.entries,
            segment: segment_number,
            offset: segment.end_offset,
            bytes: header.bytes(),
            bytes_before,
            summary,
        });
        segment.end_offset += header.bytes();
        segment.link = header.link();
    }

    /// The block that holds `sequence`.
    pub(crate) fn block_of(&self, sequence: SequenceNumber) -> Option<BlockPlace> {
        let after = self.blocks.partition_point(|block| block.end() <= sequence);
        self.blocks.get(after).map(|block| self.place(block))
    }

    /// The first block with a wanted record that ends after `from` and begins below `up_to`.
    pub(crate) fn next_with_records(
        &self,
        language: &str,
        held_out: bool,
        from: SequenceNumber,
        up_to: SequenceNumber,
    ) -> Option<BlockPlace> {
        let language = self.language(language)?;
        let start = self.blocks.partition_point(|block| block.end() <= from);
        let candidates = self.blocks[start..].iter().take_while(|block| block.first < up_to);
        let wanted = |block: &&Block| block.summary.iter().any(|row| (row.0, row.1) == (language, held_out));
        candidates.filter(|block| block.end() > from).find(wanted).map(|block| self.place(block))
    }

    /// Records of a language in the blocks that end at or below `up_to`.
    pub(crate) fn count_records(&self, language: &str, held_out: bool, up_to: SequenceNumber) -> u64 {
        let Some(language) = self.language(language) else { return 0 };
        let rows = self.below(up_to).iter().flat_map(|block| block.summary.iter());
        rows.filter(|row| (row.0, row.1) == (language, held_out)).map(|row| u64::from(row.2)).sum()
    }

    /// Languages with records in the blocks that end at or below `up_to`.
    pub(crate) fn languages(&self, up_to: SequenceNumber) -> BTreeSet<Arc<str>> {
        let rows = self.below(up_to).iter().flat_map(|block| block.summary.iter());
        let numbers: BTreeSet<u16> = rows.map(|row| row.0).collect();
        numbers.into_iter().filter_map(|number| self.languages.get(usize::from(number)).cloned()).collect()
    }

    /// Stored bytes of the blocks that hold entries in `from..to`.
    pub(crate) fn bytes_between(&self, from: SequenceNumber, to: SequenceNumber) -> u64 {
        let first = self.blocks.partition_point(|block| block.end() <= from);
        let end = self.blocks.partition_point(|block| block.first < to);
        let before = |index: usize| match self.blocks.get(index) {
            Some(block) => block.bytes_before,
            None => self.blocks.last().map_or(0, |last| last.bytes_before + last.bytes),
        };
        before(end).saturating_sub(before(first))
    }

    /// Places of the blocks that end at or below `up_to`, of segment `segment`.
    pub(crate) fn blocks_of(&self, segment: usize, up_to: SequenceNumber) -> Vec<BlockPlace> {
        let Some(first) = self.segments.get(segment).map(|segment| segment.first_block) else { return Vec::new() };
        let end = self.segments.get(segment + 1).map_or(self.blocks.len(), |next| next.first_block);
        let below = self.blocks[first..end].iter().take_while(|block| block.end() <= up_to);
        below.map(|block| self.place(block)).collect()
    }

    /// Places of the blocks of segment `segment` that hold a held-out record.
    pub(crate) fn held_out_blocks_of(&self, segment: usize) -> Vec<BlockPlace> {
        let Some(first) = self.segments.get(segment).map(|segment| segment.first_block) else { return Vec::new() };
        let end = self.segments.get(segment + 1).map_or(self.blocks.len(), |next| next.first_block);
        let holds = |block: &&Block| block.summary.iter().any(|row| row.1);
        self.blocks[first..end].iter().filter(holds).map(|block| self.place(block)).collect()
    }

    /// The cursors at the beginning of the segment that holds the last entry below `up_to`, and the blocks behind
    /// which the state at `up_to` is found. Entries at or above `up_to` may be among them.
    pub(crate) fn cursor_base(&self, up_to: SequenceNumber) -> (BTreeMap<Arc<str>, SourceCursor>, Vec<BlockPlace>) {
        let after = self.segments.partition_point(|segment| segment.header.first_sequence < up_to);
        let Some(segment) = self.segments.get(after.saturating_sub(1)) else { return Default::default() };
        let cursors = segment.header.cursors.iter().map(|cursor| (cursor.source.clone(), cursor.clone())).collect();
        let blocks = self.blocks[segment.first_block..].iter().take_while(|block| block.first < up_to);
        (cursors, blocks.map(|block| self.place(block)).collect())
    }

    /// What of the files comes next at `from`, up to `durable`: a header (of a segment that holds something), a footer, or as many blocks as have room in
    /// `most_bytes`, one at least. `Some(None)`: nothing yet; `None`: nothing of this log begins there.
    pub(crate) fn cut(&self, from: Place, durable: SequenceNumber, most_bytes: u64) -> Option<Option<Cut>> {
        let at = self.segments.partition_point(|segment| segment.header.first_sequence < from.segment);
        let segment = match self.segments.get(at) {
            Some(segment) if segment.header.first_sequence == from.segment => segment,
            // The segment that will begin where the log ends.
            _ => return (from == Place { segment: self.end(), offset: 0 }).then_some(None),
        };
        let piece = |bytes: u64, end: SequenceNumber| {
            Some(Some(Cut {
                path: Arc::clone(&segment.path),
                at: from,
                previous: segment.header.link().checksum,
                bytes,
                end,
            }))
        };
        let last_block = self.segments.get(at + 1).map_or(self.blocks.len(), |next| next.first_block);
        let blocks = &self.blocks[segment.first_block..last_block];
        let are_durable = blocks.partition_point(|block| block.end() <= durable);
        if from.offset == 0 {
            // An empty one may be replaced.
            return if are_durable > 0 { piece(segment.header_bytes, from.segment) } else { Some(None) };
        }
        if let Ok(first) = blocks.binary_search_by_key(&from.offset, |block| block.offset) {
            let Some(found) = blocks.get(first..are_durable).filter(|found| !found.is_empty()) else {
                return Some(None);
            };
            let fits = found.iter().take_while(|block| block.offset + block.bytes - from.offset <= most_bytes).count();
            let last = &found[fits.max(1) - 1];
            return piece(last.offset + last.bytes - from.offset, last.end());
        }
        match segment.seal {
            Seal::Footer { bytes } if from.offset == segment.end_offset => piece(bytes, segment.link.next),
            _ if from.offset == segment.bytes() => match self.segments.get(at + 1) {
                Some(next) => self.cut(Place { segment: next.header.first_sequence, offset: 0 }, durable, most_bytes),
                None => Some(None),
            },
            _ => None,
        }
    }

    fn below(&self, up_to: SequenceNumber) -> &[Block] {
        &self.blocks[..self.blocks.partition_point(|block| block.end() <= up_to)]
    }

    fn place(&self, block: &Block) -> BlockPlace {
        let segment = &self.segments[block.segment as usize];
        let tables = self.last_tables.of_segment(segment.header.checksum, segment.header.tables.clone());
        BlockPlace {
            path: Arc::clone(&segment.path),
            offset: block.offset,
            first: block.first,
            end: block.end(),
            tables,
        }
    }

    fn language(&self, name: &str) -> Option<u16> {
        self.languages.iter().position(|known| &**known == name).map(|number| number as u16)
    }
}

fn number(languages: &mut Vec<Arc<str>>, name: &Arc<str>) -> u16 {
    let known = languages.iter().position(|known| known == name);
    known.unwrap_or_else(|| {
        languages.push(Arc::clone(name));
        languages.len() - 1
    }) as u16
}
