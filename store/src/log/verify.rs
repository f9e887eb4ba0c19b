//! Reads all of a log and checks whatever can be checked.

use crate::log::block::summarise;
use crate::log::disk::{Disk, StdDisk};
use crate::log::error::StoreError;
use crate::log::hint::last_said;
use crate::log::index::{BlockPlace, Seal, Segment};
use crate::log::pass::{Meter, Pass, read_blocks};
use crate::log::reader::{LogReader, read_block, read_outlines};
use crate::log::recovery::Torn;
use crate::{ComputedIn, DurablePosition, Payload, Record, SequenceNumber, SourceCursor, Span};
use rayon::prelude::*;
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
    /// Bytes of these blocks.
    pub bytes: u64,
    /// Entries that were decoded.
    pub entries: u64,
    /// Records among them.
    pub records: u64,
    /// Everything below is in the log, intact.
    pub durable: DurablePosition,
    /// Bytes behind that. Usually the remains of a write that did not finish; the next writer cuts them.
    pub torn: Option<Torn>,
    /// The file `POSITION` says that entries before this one were durable, but the log ends earlier.
    pub said_durable: Option<SequenceNumber>,
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
            write!(f, "\ntorn tail: {segment} from byte {offset} on, {bytes} bytes")?;
            if self.said_durable.is_none() {
                write!(f, "; nothing that was durable is lost")?;
            }
        }
        if let Some(said) = self.said_durable {
            let missing = said.0 - self.durable.end().0;
            write!(
                f,
                "\nmissing: {missing} entries. POSITION says that the log was durable up to {said}. Restore the file in which they were; if the \
                 folder was copied while it was written, they came after the copy, and the file POSITION may be deleted"
            )?;
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
    verify_with(disk, dir, &Pass::default())
}

/// [`verify`] as `pass` says.
pub fn verify_with(disk: Arc<dyn Disk>, dir: &Path, pass: &Pass<'_>) -> Result<Verification, StoreError> {
    let said = last_said(disk.as_ref(), dir);
    let reader = LogReader::open_on(disk, dir)?;
    let (segments, durable) = {
        let state = reader.state();
        (state.index.segments().to_vec(), state.durable)
    };
    let stopped = reader.follower().filter(|follower| follower.live.is_none());
    let said = said.filter(|said| stopped.is_some() && said.durable > durable.end());
    let torn = stopped.and_then(|follower| Torn::of(&follower.tail));
    let reading = Reading { reader, segments, durable };
    let found = pass.on_pool(dir, || reading.check(pass))??;
    let lost = reading.segments.iter().filter(|segment| segment.seal == Seal::Lost);
    Ok(Verification {
        segments: found.segments,
        blocks: found.blocks,
        bytes: found.bytes,
        entries: found.entries,
        records: found.records,
        durable,
        torn,
        said_durable: said.map(|said| said.durable),
        footers_lost: lost.map(|segment| segment.path.to_path_buf()).collect(),
    })
}

/// A log, as it was when it was opened.
struct Reading {
    reader: LogReader,
    segments: Vec<Segment>,
    durable: DurablePosition,
}

type Cursors = BTreeMap<Arc<str>, SourceCursor>;

/// What a block or several held. `cursors`: the last one of each source.
#[derive(Default)]
struct Found {
    segments: usize,
    blocks: u64,
    bytes: u64,
    entries: u64,
    records: u64,
    hashes: Vec<u64>,
    cursors: Cursors,
}

impl Found {
    fn add(&mut self, mut next: Self) {
        self.blocks += next.blocks;
        self.bytes += next.bytes;
        self.entries += next.entries;
        self.records += next.records;
        self.hashes.append(&mut next.hashes);
        self.cursors.extend(next.cursors);
    }
}

impl Reading {
    /// Blocks are decoded in parallel, and looked at in order.
    fn check(&self, pass: &Pass<'_>) -> Result<Found, StoreError> {
        let parts = Parts::of(self.records(), pass.key_bytes);
        let meter = Meter::new(pass, self.durable.end().0.saturating_sub(self.reader.begin().0) * parts.of);
        let mut found = Found::default();
        let mut cursors = None;
        for (number, segment) in self.segments.iter().enumerate() {
            let previous = number.checked_sub(1).and_then(|previous| self.segments.get(previous));
            check_header(segment, previous, cursors.as_ref())?;
            let read = self.read(segment, &meter, |place| self.block(place, segment, parts))?;
            cursors = read.map(|blocks| {
                let known = segment.header.cursors.iter();
                found.segments += 1;
                found.cursors = known.map(|cursor| (Arc::clone(&cursor.source), cursor.clone())).collect();
                blocks.into_iter().for_each(|block| found.add(block));
                std::mem::take(&mut found.cursors)
            });
        }
        self.check_unique(std::mem::take(&mut found.hashes), &meter)?;
        for part in 1..parts.of {
            let parts = Parts { part, ..parts };
            let mut hashes = Vec::new();
            for segment in &self.segments {
                let read = self.read(segment, &meter, |place| self.hashes(place, parts))?;
                read.into_iter().flatten().for_each(|mut block| hashes.append(&mut block));
            }
            self.check_unique(hashes, &meter)?;
        }
        Ok(found)
    }

    /// What `read` makes of the blocks of a segment; `None` if retention has removed it meanwhile.
    fn read<T: Send>(
        &self,
        segment: &Segment,
        meter: &Meter<'_>,
        read: impl Fn(&BlockPlace) -> Result<T, StoreError> + Sync,
    ) -> Result<Option<Vec<T>>, StoreError> {
        let range = (segment.header.first_sequence, segment.link.next.min(self.durable.end()));
        match read_blocks(&self.reader, range, meter, read) {
            Err(StoreError::Removed { .. }) => Ok(None),
            read => read.map(Some),
        }
    }

    /// Records in the log, by what the index knows.
    fn records(&self) -> u64 {
        let end = self.durable.end();
        let index = &self.reader.state().index;
        let languages = index.languages(end);
        let count = |language: &Arc<str>| [false, true].map(|held_out| index.count_records(language, held_out, end));
        languages.iter().flat_map(count).sum()
    }

    fn block(&self, place: &BlockPlace, segment: &Segment, parts: Parts) -> Result<Found, StoreError> {
        let (header, entries) = read_block(self.reader.disk(), place)?;
        let corrupt = |what: &str| Err(StoreError::corrupt(&place.path, place.offset, what));
        let bytes = header.bytes();
        if (header.totals, header.summary) != summarise(&entries) {
            return corrupt("the block's summary does not fit its entries");
        }
        let teachers = segment.header.identity.teachers.len();
        let mut found = Found { blocks: 1, bytes, entries: entries.len() as u64, ..Found::default() };
        for entry in entries {
            if let Payload::Record(record) = &entry.payload {
                if record.copies.iter().any(|copy| usize::from(copy.teacher) >= teachers) {
                    return corrupt("a copy of a teacher that is not in the teacher table");
                }
                if record.text.is_some() && !segment.header.keep_text {
                    return corrupt("a text in a segment without texts");
                }
                let mut labels = record.copies.iter().filter_map(|copy| copy.label.as_ref());
                if !segment.header.computed_in && labels.any(|label| label.computed_in != ComputedIn::Float32) {
                    return corrupt("labels in something else than float32 in a segment that has none");
                }
                found.hashes.extend(Some(hash(record)).filter(|hash| parts.take(*hash)));
                found.records += 1;
            }
            found.cursors.insert(Arc::clone(&entry.cursor.source), entry.cursor);
        }
        Ok(found)
    }

    fn hashes(&self, place: &BlockPlace, parts: Parts) -> Result<Vec<u64>, StoreError> {
        let (_, outlines) = read_outlines(self.reader.disk(), place)?;
        Ok(outlines.iter().map(|outline| hash(&outline.record)).filter(|hash| parts.take(*hash)).collect())
    }

    /// Equal hashes are looked at again, with their keys.
    fn check_unique(&self, mut hashes: Vec<u64>, meter: &Meter<'_>) -> Result<(), StoreError> {
        hashes.par_sort_unstable();
        let equal = hashes.windows(2).filter(|pair| pair[0] == pair[1]);
        let suspects: BTreeSet<u64> = equal.map(|pair| pair[0]).collect();
        if suspects.is_empty() {
            return Ok(());
        }
        let mut seen: BTreeMap<Key, SequenceNumber> = BTreeMap::new();
        for segment in &self.segments {
            let suspicious = self.read(segment, meter, |place| {
                let (_, mut outlines) = read_outlines(self.reader.disk(), place)?;
                outlines.retain(|outline| suspects.contains(&hash(&outline.record)));
                Ok((place.clone(), outlines))
            })?;
            for (place, outlines) in suspicious.into_iter().flatten() {
                for outline in outlines {
                    if let Some(other) = seen.insert(key(outline.record), outline.sequence) {
                        let what = format!("entries {other} and {} are the same record", outline.sequence);
                        return Err(StoreError::corrupt(&place.path, place.offset, what));
                    }
                }
            }
        }
        Ok(())
    }
}

/// A header repeats what the segments before it say. `cursors`: the last ones of the segment before, if they are known.
fn check_header(segment: &Segment, previous: Option<&Segment>, cursors: Option<&Cursors>) -> Result<(), StoreError> {
    let corrupt = |what: String| Err(StoreError::corrupt(&segment.path, 0, what));
    if let Some(previous) = previous {
        let lines = previous.header.identity.differences(&segment.header.identity);
        if !lines.is_empty() {
            return corrupt(format!("the segment before it was made with another configuration: {}", lines.join("; ")));
        }
    }
    if cursors.is_some_and(|cursors| !cursors.values().eq(&segment.header.cursors)) {
        return corrupt("its cursors are not those at the end of the segment before it".to_owned());
    }
    if segment.header.previous.is_none() && !segment.header.cursors.is_empty() {
        return corrupt("it has cursors of sources before the first entry".to_owned());
    }
    Ok(())
}

/// Which hashes are looked at: those that leave `part` when divided by `of`.
#[derive(Clone, Copy)]
struct Parts {
    part: u64,
    of: u64,
}

impl Parts {
    /// So many that the hashes of a part take about `bytes` of memory at most.
    fn of(records: u64, bytes: usize) -> Self {
        let most = (bytes / size_of::<u64>()).max(1) as u64;
        Self { part: 0, of: records.div_ceil(most).max(1) }
    }

    fn take(self, hash: u64) -> bool {
        hash % self.of == self.part
    }
}

type Key = (Arc<str>, Arc<str>, Span, u32);

fn key(record: Record) -> Key {
    (record.source, record.document, record.span, record.round)
}

/// Hash of a record's key.
pub(crate) fn hash(record: &Record) -> u64 {
    let mut hasher = DefaultHasher::new();
    (&record.source, &record.document, record.span, record.round).hash(&mut hasher);
    hasher.finish()
}
