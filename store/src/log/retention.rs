//! Removing the oldest segments of a log, when nothing needs them.
//!
//! # Order of operations
//!
//! 1. The held-out records of the segments are copied to the log of held-out records, and are durable there.
//! 2. The segments are dropped from the index: readers in this process get [`StoreError::Removed`] from now on.
//! 3. `RETAINED` says where the log begins: written under another name, made durable, renamed, the folder made durable.
//! 4. The files are removed, the oldest first, and the folder is made durable after each.
//!
//! Whatever is interrupted before 3 has not happened; the copies of 1 that the log still holds too are not counted
//! ([`HeldOutLog`]) and not copied again. What is interrupted after 3 is finished by the next pass or recovery.
//!
//! # The log of held-out records
//!
//! An ordinary log with sequence numbers of its own, labels `exact`. Its source is the log that the records come from: each
//! entry's cursor has the source `log`, the record's language, its sequence number there as the offset of the document, and the
//! number after it as the next byte. So the log of held-out records knows by its cursor how far copying has got.

use crate::log::block::Link;
use crate::log::disk::{Access, Disk, read_exact_at, write_all_at};
use crate::log::error::StoreError;
use crate::log::index::{Seal, Segment};
use crate::log::options::{Extras, LogOptions, Precision};
use crate::log::reader::{LogReader, read_block};
use crate::log::recovery::{sync_dir, sync_file};
use crate::log::segment::{file_name, parse_file_name};
use crate::log::shared::Shared;
use crate::log::wire::Wire;
use crate::log::writer::LogWriter;
use crate::{Entry, Identity, Payload, SequenceNumber, SourceCursor};
use prometheus::Registry;
use std::borrow::Cow;
use std::io;
use std::ops::BitOr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, SystemTime};

/// Name of the file that says where the log begins.
const NAME: &str = "RETAINED";
/// Its name while it is written.
pub(crate) const UNFINISHED_NAME: &str = "RETAINED.tmp";
const MAGIC: [u8; 4] = *b"MDrt";
const BYTES: usize = 20;

/// Source of the entries in the log of held-out records.
const SOURCE: &str = "log";
/// Segments of the log of held-out records: small, because its last one is looked through at each pass.
const HELD_OUT_SEGMENT_BYTES: u64 = 16 << 20;
/// Held-out records that are copied as one block.
const HELD_OUT_BLOCK_ENTRIES: usize = 256;

/// How much of a log is kept.
#[derive(Clone, Debug)]
pub struct Retention {
    /// Sealed segments are removed while the log is larger than this; 0: whatever its size.
    pub bytes: u64,
    /// Segments are removed that were sealed longer ago, by the modification time of their files; `None`: whatever their age.
    pub age: Option<Duration>,
    /// Folder of the log of held-out records.
    pub held_out: PathBuf,
}

impl Retention {
    /// Whether anything is ever to be removed.
    #[must_use]
    pub fn is_limited(&self) -> bool {
        self.bytes > 0 || self.age.is_some()
    }
}

/// From where on somebody needs the log. Cloning shares it. At first everything is needed.
///
/// Whoever reads old entries sets it to where the log begins ([`LogReader::begin`]) *before* it asks the log where it
/// begins: from then on nothing is removed, until it is set to another place.
#[derive(Clone, Debug, Default)]
pub struct Need {
    own: Arc<Mutex<Needed>>,
    /// Others whose needs count as well, as long as they live.
    others: Arc<Mutex<Vec<Weak<Mutex<Needed>>>>>,
}

/// What is needed of a log, and why.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needed {
    /// Entries from here on must stay.
    pub from: SequenceNumber,
    /// Who needs them, and what for.
    pub why: Cow<'static, str>,
}

impl Need {
    /// Entries from `from` on must stay, and no others.
    pub fn set(&self, from: SequenceNumber, why: impl Into<Cow<'static, str>>) {
        *self.lock() = Needed { from, why: why.into() };
    }

    /// Entries from `from` on must stay too.
    pub fn include(&self, from: SequenceNumber, why: impl Into<Cow<'static, str>>) {
        let mut needed = self.lock();
        if from < needed.from {
            *needed = Needed { from, why: why.into() };
        }
    }

    /// What `other` needs must stay too, until the last clone of `other` is gone. What others joined to it does not count.
    pub fn join(&self, other: &Self) {
        let mut others = self.others.lock().unwrap_or_else(PoisonError::into_inner);
        others.retain(|other| other.strong_count() > 0);
        others.push(Arc::downgrade(&other.own));
    }

    /// What must stay now.
    #[must_use]
    pub fn get(&self) -> Needed {
        let mut needed = self.lock().clone();
        let others = self.others.lock().unwrap_or_else(PoisonError::into_inner);
        for other in others.iter().filter_map(Weak::upgrade) {
            let other = other.lock().unwrap_or_else(PoisonError::into_inner);
            if other.from < needed.from {
                needed = other.clone();
            }
        }
        needed
    }

    fn lock(&self) -> MutexGuard<'_, Needed> {
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a pass of retention came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RetentionPass {
    /// Segments that were removed.
    pub removed_segments: usize,
    /// Their bytes.
    pub removed_bytes: u64,
    /// Where the log begins now.
    pub begin: SequenceNumber,
    /// What keeps a segment that would be removed otherwise.
    pub held_back: Option<HeldBack>,
}

/// Why a segment stays although the log is too large, or the segment too old.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldBack {
    /// The oldest such segment.
    pub segment: PathBuf,
    /// How many there are.
    pub segments: usize,
    /// What keeps it.
    pub needed: Needed,
}

/// One pass, on the writer's side.
pub(crate) struct Pass<'a> {
    pub(crate) disk: &'a Arc<dyn Disk>,
    pub(crate) dir: &'a Path,
    pub(crate) identity: &'a Identity,
    pub(crate) top_k: usize,
    pub(crate) extras: Extras,
    pub(crate) shared: &'a Shared,
}

impl Pass<'_> {
    /// Removes what `retention` says and nobody needs.
    pub(crate) fn run(&self, retention: &Retention, need: Option<&Need>) -> Result<RetentionPass, StoreError> {
        let segments = self.shared.lock().index.segments().to_vec();
        let wanted = &segments[..self.wanted(&segments, retention)?];
        let mut pass = RetentionPass::default();
        let mut free = free_of(wanted, need).0;
        if free > 0 {
            self.keep_held_out(&wanted[..free], &retention.held_out)?;
            let mut state = self.shared.lock();
            // Once more, now that nobody can learn where the log begins: the need may have grown meanwhile.
            free = free_of(wanted, need).0;
            if free > 0 {
                state.index.remove_below(segments[free].header.link());
            }
        }
        let (removed, left) = wanted.split_at(free);
        pass.removed_segments = removed.len();
        pass.removed_bytes = removed.iter().map(Segment::bytes).sum();
        pass.held_back = left.first().and_then(|oldest| {
            let needed = free_of(left, need).1?;
            Some(HeldBack { segment: oldest.path.to_path_buf(), segments: left.len(), needed })
        });
        let begin = self.shared.lock().index.begin();
        pass.begin = begin.next;
        finish(self.disk.as_ref(), self.dir, begin)?;
        Ok(pass)
    }

    /// How many of the oldest segments are too much or too old. Never the last: it is being written.
    fn wanted(&self, segments: &[Segment], retention: &Retention) -> Result<usize, StoreError> {
        let mut left_bytes: u64 = segments.iter().map(Segment::bytes).sum();
        let now = SystemTime::now();
        let sealed = segments.len().saturating_sub(1);
        for (number, segment) in segments[..sealed].iter().enumerate() {
            let too_much = retention.bytes > 0 && left_bytes > retention.bytes;
            let too_old = || match retention.age {
                Some(age) => self.is_older(segment, now, age),
                None => Ok(false),
            };
            if segment.seal == Seal::Open || (!too_much && !too_old()?) {
                return Ok(number);
            }
            left_bytes -= segment.bytes();
        }
        Ok(sealed)
    }

    /// Whether a segment's file was written last longer ago than `age`. A time in the future is no age at all.
    fn is_older(&self, segment: &Segment, now: SystemTime, age: Duration) -> Result<bool, StoreError> {
        let failed = |error| StoreError::io("reading the time of", &segment.path, error);
        let file = self.disk.open(&segment.path, Access::Read).map_err(failed)?;
        let modified = file.modified().map_err(failed)?;
        Ok(now.duration_since(modified).is_ok_and(|since| since > age))
    }

    /// Copies the held-out records of `segments`, so that they are durable elsewhere; those that are there already are
    /// not copied again.
    fn keep_held_out(&self, segments: &[Segment], dir: &Path) -> Result<(), StoreError> {
        let places = {
            let state = self.shared.lock();
            (0..segments.len()).flat_map(|segment| state.index.held_out_blocks_of(segment)).collect::<Vec<_>>()
        };
        if places.is_empty() {
            return Ok(());
        }
        let extras = segments.iter().map(|segment| segment.header.extras()).fold(self.extras, BitOr::bitor);
        let options = LogOptions {
            segment_bytes: HELD_OUT_SEGMENT_BYTES,
            top_k: self.top_k,
            precision: Precision::Exact,
            keep_text: extras.text,
            computed_in: extras.computed_in,
            ..LogOptions::default()
        };
        // Its metrics are not those of the log.
        let (mut copy, _) = LogWriter::open_on(Arc::clone(self.disk), dir, self.identity, &options, &Registry::new())?;
        let copied = copied_up_to(copy.cursors().get(SOURCE));
        let mut block = Vec::new();
        for place in places.iter().filter(|place| place.end > copied) {
            let (_, entries) = read_block(self.disk.as_ref(), place)?;
            for entry in entries.into_iter().filter(|entry| entry.sequence >= copied && is_held_out(entry)) {
                let sequence = SequenceNumber(copy.next().0 + block.len() as u64);
                block.push(moved(entry, sequence));
                if block.len() == HELD_OUT_BLOCK_ENTRIES {
                    copy.append(&std::mem::take(&mut block))?;
                }
            }
            crate::pulse::beat();
        }
        copy.append(&block)?;
        copy.leave()
    }
}

/// How many of the oldest segments nobody needs; if there is one that somebody does, what keeps it.
fn free_of(segments: &[Segment], need: Option<&Need>) -> (usize, Option<Needed>) {
    let Some(need) = need else { return (segments.len(), None) };
    let needed = need.get();
    let free = segments.iter().take_while(|segment| segment.link.next <= needed.from).count();
    (free, (free < segments.len()).then_some(needed))
}

fn is_held_out(entry: &Entry) -> bool {
    matches!(&entry.payload, Payload::Record(record) if record.held_out)
}

/// The first entry of the log that the log of held-out records, whose cursor this is, has not looked at.
fn copied_up_to(cursor: Option<&SourceCursor>) -> SequenceNumber {
    SequenceNumber(cursor.map_or(0, |cursor| cursor.next_byte))
}

/// A held-out record as entry `sequence` of the log of held-out records.
fn moved(entry: Entry, sequence: SequenceNumber) -> Entry {
    let language = match &entry.payload {
        Payload::Record(record) => Arc::clone(&record.language),
        Payload::Skip(_) | Payload::End => entry.cursor.language,
    };
    let original = entry.sequence;
    let mut cursor = SourceCursor::start(SOURCE.into(), language, 0);
    cursor.document_offset_bytes = original.0;
    cursor.next_byte = original.next().0;
    Entry { sequence, cursor, payload: entry.payload }
}

// --- reading what was kept -----------------------------------------------------------------------------------------

/// The held-out records of segments that were removed.
#[derive(Clone, Debug)]
pub struct HeldOutLog {
    reader: LogReader,
}

/// A held-out record that was kept.
#[derive(Clone, Debug)]
pub struct KeptRecord {
    /// As it was in the log, with its number there. Its cursor tells its place alone.
    pub entry: Arc<Entry>,
    /// Where to look for the next one ([`HeldOutLog::next_record`]).
    pub after: SequenceNumber,
}

impl HeldOutLog {
    /// Opens the log of held-out records in `dir`; `None` if nothing was kept there.
    ///
    /// # Errors
    /// When it is there and cannot be read.
    pub fn open(dir: &Path) -> Result<Option<Self>, StoreError> {
        Self::of(LogReader::open(dir))
    }

    /// [`HeldOutLog::open`] on another file system.
    ///
    /// # Errors
    /// When it is there and cannot be read.
    pub fn open_on(disk: Arc<dyn Disk>, dir: &Path) -> Result<Option<Self>, StoreError> {
        Self::of(LogReader::open_on(disk, dir))
    }

    fn of(opened: Result<LogReader, StoreError>) -> Result<Option<Self>, StoreError> {
        match opened {
            Ok(reader) => Ok(Some(Self { reader })),
            Err(StoreError::NoLog { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The first record of `language` at or after `from`, a place in this log, whose number in the log it comes from is
    /// below `begin`: what lies at or above where that log begins is still in it.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn next_record(
        &self,
        language: &str,
        from: SequenceNumber,
        begin: SequenceNumber,
    ) -> Result<Option<KeptRecord>, StoreError> {
        let durable = self.reader.refresh()?;
        let Some(entry) = self.reader.next_record(language, true, from, durable)? else { return Ok(None) };
        let after = entry.sequence.next();
        let sequence = SequenceNumber(entry.cursor.document_offset_bytes);
        if sequence >= begin {
            return Ok(None);
        }
        let entry = Entry { sequence, ..Entry::clone(&entry) };
        Ok(Some(KeptRecord { entry: Arc::new(entry), after }))
    }
}

// --- RETAINED ------------------------------------------------------------------------------------------------------

/// Where the log in `dir` begins, by the file that says so; without it, at 0.
pub(crate) fn read_begin(disk: &dyn Disk, dir: &Path) -> Result<Link, StoreError> {
    let path = dir.join(NAME);
    let failed = |error| StoreError::io("reading", &path, error);
    let file = match disk.open(&path, Access::Read) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Link::default()),
        opened => opened.map_err(failed)?,
    };
    let length = file.length().map_err(failed)?;
    let bytes = read_exact_at(file.as_ref(), 0, BYTES.min(length as usize)).map_err(failed)?;
    let damaged = || StoreError::corrupt(&path, 0, "it does not say where the log begins; it is damaged");
    if length == BYTES as u64 { parse(&bytes).ok_or_else(damaged) } else { Err(damaged()) }
}

fn parse(bytes: &[u8]) -> Option<Link> {
    let (body, stored) = bytes.split_last_chunk()?;
    if crc32fast::hash(body) != u32::from_le_bytes(*stored) {
        return None;
    }
    let mut wire = Wire::new(body);
    if wire.take(4).ok()? != MAGIC {
        return None;
    }
    let begin = Link { next: SequenceNumber(wire.u64().ok()?), checksum: wire.u32().ok()? };
    (begin.next.0 > 0).then_some(begin)
}

/// Says in `RETAINED` that the log begins at `begin`, and removes the segments before it. Gives how many there were.
pub(crate) fn finish(disk: &dyn Disk, dir: &Path, begin: Link) -> Result<usize, StoreError> {
    if begin.next.0 == 0 {
        return Ok(0);
    }
    let before = segments_below(disk, dir, begin.next)?;
    if read_begin(disk, dir)? != begin {
        write_begin(disk, dir, begin)?;
    } else if before.is_empty() {
        return Ok(0);
    }
    // The new name; and one that was given earlier may not be durable either.
    sync_dir(disk, dir)?;
    for first in &before {
        let path = dir.join(file_name(*first));
        disk.remove(&path).map_err(|error| StoreError::io("removing", &path, error))?;
        sync_dir(disk, dir)?;
    }
    Ok(before.len())
}

/// Says of a log that has nothing before `begin` that it begins there.
pub(crate) fn begin_at(disk: &dyn Disk, dir: &Path, begin: Link) -> Result<(), StoreError> {
    write_begin(disk, dir, begin)?;
    sync_dir(disk, dir)
}

/// Takes back what was said of a log of which nothing has come: a mirror says where it begins before its first segment is there.
pub(crate) fn forget_begin_without_segments(disk: &dyn Disk, dir: &Path) -> Result<(), StoreError> {
    let path = dir.join(NAME);
    let names = disk.list(dir).map_err(|error| StoreError::io("listing", dir, error))?;
    if names.iter().any(|name| parse_file_name(name).is_some()) || !names.iter().any(|name| name == NAME) {
        return Ok(());
    }
    disk.remove(&path).map_err(|error| StoreError::io("removing", &path, error))?;
    sync_dir(disk, dir)
}

/// Writes `RETAINED`; its content is durable afterwards, its name is not.
fn write_begin(disk: &dyn Disk, dir: &Path, begin: Link) -> Result<(), StoreError> {
    let (path, unfinished) = (dir.join(NAME), dir.join(UNFINISHED_NAME));
    let mut bytes = MAGIC.to_vec();
    bytes.extend(begin.next.0.to_le_bytes());
    bytes.extend(begin.checksum.to_le_bytes());
    bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
    let writing = |error| StoreError::io("writing", &path, error);
    let file = disk.open(&unfinished, Access::Replace).map_err(writing)?;
    write_all_at(file.as_ref(), &bytes, 0).map_err(writing)?;
    sync_file(file.as_ref(), &unfinished)?;
    disk.rename(&unfinished, &path).map_err(writing)
}

/// First sequence numbers of the segments in `dir` that begin before `begin`, ascending.
fn segments_below(disk: &dyn Disk, dir: &Path, begin: SequenceNumber) -> Result<Vec<SequenceNumber>, StoreError> {
    let names = disk.list(dir).map_err(|error| StoreError::io("listing", dir, error))?;
    let firsts = names.iter().filter_map(|name| parse_file_name(name)?.ok());
    let mut below: Vec<SequenceNumber> = firsts.filter(|first| *first < begin).collect();
    below.sort_unstable();
    Ok(below)
}
