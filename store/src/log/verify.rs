//! Reads all of a log and checks whatever can be checked.

use crate::log::block::summarise;
use crate::log::disk::{Disk, StdDisk};
use crate::log::error::StoreError;
use crate::log::index::{BlockPlace, Seal, Segment};
use crate::log::reader::{LogReader, read_block};
use crate::log::recovery::Torn;
use crate::{DurablePosition, Entry, Payload, Record, SequenceNumber, SourceCursor, Span};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What was read, and what was found that is not corruption.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verification {
    /// Segments that were read.
    pub segments: usize,
    /// Blocks that were read.
    pub blocks: u64,
    /// Entries that were decoded.
    pub entries: u64,
    /// Records among them.
    pub records: u64,
    /// Everything below is in the log, intact.
    pub durable: DurablePosition,
    /// The remains of a write that did not finish. The next writer cuts them; nothing durable is lost.
    pub torn: Option<Torn>,
    /// Segments whose footer is damaged or missing although the next segment exists; their blocks say the same.
    pub footers_lost: Vec<PathBuf>,
}

impl fmt::Display for Verification {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "intact up to {}: {} entries ({} records) in {} blocks of {} segments",
            self.durable, self.entries, self.records, self.blocks, self.segments
        )?;
        if let Some(torn) = &self.torn {
            let (segment, offset, bytes) = (torn.segment.display(), torn.offset, torn.bytes);
            write!(f, "\ntorn tail: {segment} from byte {offset} on, {bytes} bytes; nothing that was durable is lost")?;
        }
        for segment in &self.footers_lost {
            write!(f, "\nlost footer: {}; its blocks are intact", segment.display())?;
        }
        Ok(())
    }
}

/// Decodes every block of the log in `dir`, live or stopped, and checks that sequence numbers, cursors, segments and block
/// summaries fit together and that no record is there twice.
///
/// # Errors
/// [`StoreError::Corrupt`] names the first damaged segment and the offset in it.
pub fn verify(dir: &Path) -> Result<Verification, StoreError> {
    verify_on(Arc::new(StdDisk), dir)
}

/// [`verify`] on another file system.
pub fn verify_on(disk: Arc<dyn Disk>, dir: &Path) -> Result<Verification, StoreError> {
    let reader = LogReader::open_on(disk, dir)?;
    let (segments, durable) = {
        let state = reader.state();
        (state.index.segments().to_vec(), state.durable)
    };
    let torn =
        reader.follower().filter(|follower| follower.live.is_none()).and_then(|follower| Torn::of(&follower.tail));
    let mut pass = Pass::default();
    for (number, segment) in segments.iter().enumerate() {
        pass.enter(segment, number.checked_sub(1).and_then(|previous| segments.get(previous)))?;
        let places = reader.state().index.blocks_of(number, durable.end());
        for place in places {
            pass.block(&reader, &place, segment)?;
        }
    }
    pass.keys.check_unique(&reader, durable)?;
    let lost = segments.iter().filter(|segment| segment.seal == Seal::Lost);
    Ok(Verification {
        segments: segments.len(),
        blocks: pass.blocks,
        entries: pass.entries,
        records: pass.records,
        durable,
        torn,
        footers_lost: lost.map(|segment| segment.path.to_path_buf()).collect(),
    })
}

#[derive(Default)]
struct Pass {
    cursors: BTreeMap<Arc<str>, SourceCursor>,
    keys: Keys,
    blocks: u64,
    entries: u64,
    records: u64,
}

impl Pass {
    /// A header repeats what the segments before it say.
    fn enter(&self, segment: &Segment, previous: Option<&Segment>) -> Result<(), StoreError> {
        let corrupt = |what: String| Err(StoreError::corrupt(&segment.path, 0, what));
        if let Some(previous) = previous {
            let lines = previous.header.identity.differences(&segment.header.identity);
            if !lines.is_empty() {
                return corrupt(format!(
                    "the segment before it was made with another configuration: {}",
                    lines.join("; ")
                ));
            }
        }
        if !self.cursors.values().eq(&segment.header.cursors) {
            return corrupt("its cursors are not those at the end of the segment before it".to_owned());
        }
        Ok(())
    }

    fn block(&mut self, reader: &LogReader, place: &BlockPlace, segment: &Segment) -> Result<(), StoreError> {
        let (header, entries) = read_block(reader.disk(), place)?;
        let corrupt = |what: &str| Err(StoreError::corrupt(&place.path, place.offset, what));
        if (header.totals, header.summary) != summarise(&entries) {
            return corrupt("the block's summary does not fit its entries");
        }
        let teachers = segment.header.identity.teachers.len();
        for entry in entries {
            if let Payload::Record(record) = &entry.payload {
                if record.copies.iter().any(|copy| usize::from(copy.teacher) >= teachers) {
                    return corrupt("a copy of a teacher that is not in the teacher table");
                }
                self.keys.add(record);
                self.records += 1;
            }
            self.entries += 1;
            self.cursors.insert(Arc::clone(&entry.cursor.source), entry.cursor);
        }
        self.blocks += 1;
        Ok(())
    }
}

/// Hashes of all records' keys, eight bytes each: the one thing here whose size grows with the log.
#[derive(Default)]
struct Keys(Vec<u64>);

type Key = (Arc<str>, Arc<str>, Span, u32);

impl Keys {
    fn add(&mut self, record: &Record) {
        self.0.push(hash(record));
    }

    /// Equal hashes are looked at again, with their keys.
    fn check_unique(mut self, reader: &LogReader, durable: DurablePosition) -> Result<(), StoreError> {
        self.0.sort_unstable();
        let equal = self.0.windows(2).filter(|pair| pair[0] == pair[1]);
        let suspects: BTreeSet<u64> = equal.map(|pair| pair[0]).collect();
        if suspects.is_empty() {
            return Ok(());
        }
        let mut seen: BTreeMap<Key, SequenceNumber> = BTreeMap::new();
        let places: Vec<_> = {
            let state = reader.state();
            (0..state.index.segments().len()).flat_map(|at| state.index.blocks_of(at, durable.end())).collect()
        };
        for place in places {
            let (_, entries) = read_block(reader.disk(), &place)?;
            for entry in &entries {
                if let Some((key, sequence)) = suspect(entry, &suspects)
                    && let Some(other) = seen.insert(key, sequence)
                {
                    let what = format!("entries {other} and {sequence} are the same record");
                    return Err(StoreError::corrupt(&place.path, place.offset, what));
                }
            }
        }
        Ok(())
    }
}

fn suspect(entry: &Entry, suspects: &BTreeSet<u64>) -> Option<(Key, SequenceNumber)> {
    let Payload::Record(record) = &entry.payload else { return None };
    let key = || (Arc::clone(&record.source), Arc::clone(&record.document), record.span, record.round);
    suspects.contains(&hash(record)).then(|| (key(), entry.sequence))
}

fn hash(record: &Record) -> u64 {
    let mut hasher = DefaultHasher::new();
    (&record.source, &record.document, record.span, record.round).hash(&mut hasher);
    hasher.finish()
}
