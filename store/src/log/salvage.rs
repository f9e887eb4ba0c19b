//! Reading past corruption, which nothing does unless it is asked to.
//!
//! Whatever passes its checksums is read: segments by their headers, blocks one after another. Behind damage the next block
//! is found by searching for a block header with a matching checksum that belongs at that place in the log. What lies between
//! is lost, and reported with the sequence numbers that the neighbours leave open. A segment without a readable header is
//! lost as a whole. A torn tail is not there, as for every reader: nothing in it had been durable.

mod search;

use crate::log::block::{BlockHeader, StoredBlock};
use crate::log::codec::{LastTables, SegmentTables};
use crate::log::disk::{Access, Disk, DiskFile, StdDisk};
use crate::log::error::{Damage, Fault, StoreError};
use crate::log::hint::{Presence, look};
use crate::log::options::{Extras, Precision};
use crate::log::retention::read_begin;
use crate::log::segment::{Footer, HeaderFault, SegmentHeader, file_name, parse_file_name};
use crate::log::survey::evidence;
use crate::{Entry, Identity, Payload, SequenceNumber, SourceCursor};
use search::{Magic, find, last_entry};
use serde::Serialize;
use std::ops::BitOr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{fmt, io};

/// A part of a log that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Loss {
    /// The damaged file, or where a missing one should be.
    pub segment: PathBuf,
    /// Where the damage begins.
    pub offset: u64,
    /// How long it is; 0 where nothing is there.
    pub bytes: u64,
    /// The first entry that is lost; none is lost if it equals `end`.
    pub first: SequenceNumber,
    /// One past the last entry that is lost; `None`: nothing says how many they were.
    pub end: Option<SequenceNumber>,
    /// What is wrong.
    pub what: String,
}

impl Loss {
    /// Damage that takes no entry.
    fn of_nothing(segment: PathBuf, what: String) -> Self {
        let none = SequenceNumber::default();
        Self { segment, offset: 0, bytes: 0, first: none, end: Some(none), what }
    }

    /// Entries that are lost, if that is known.
    #[must_use]
    pub fn entries(&self) -> Option<u64> {
        self.end.map(|end| end.0.saturating_sub(self.first.0))
    }
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at byte {}, {} bytes: {}; ", self.segment.display(), self.offset, self.bytes, self.what)?;
        match (self.end, self.entries()) {
            (_, Some(0)) => f.write_str("no entry is lost"),
            (Some(end), Some(count)) => write!(f, "entries {} to {} are lost ({count})", self.first, end.0 - 1),
            _ => write!(f, "entries from {} on are lost, nobody knows how many", self.first),
        }
    }
}

/// What can still be read of a log, block by block.
#[derive(Debug)]
pub struct Salvage {
    disk: Arc<dyn Disk>,
    segments: Vec<Found>,
    identity: Identity,
    /// A live writer's durable position: what lies behind it is not to be read.
    limit: Option<SequenceNumber>,
    /// The first entry that was neither read nor reported as lost.
    next: SequenceNumber,
    /// Header checksum of the block before it, if that is known.
    checksum: Option<u32>,
    /// Number of the segment that comes next.
    at: usize,
    open: Option<OpenSegment>,
    states: Vec<SourceCursor>,
    tables: LastTables,
    losses: Vec<Loss>,
}

/// A file that is named like a segment.
#[derive(Debug)]
struct Found {
    path: PathBuf,
    first: SequenceNumber,
    bytes: u64,
    /// Its header and where that ends, or what is wrong with it.
    header: Result<(Arc<SegmentHeader>, u64), String>,
}

#[derive(Debug)]
struct OpenSegment {
    path: PathBuf,
    file: Arc<dyn DiskFile>,
    header: Arc<SegmentHeader>,
    header_bytes: u64,
    tables: SegmentTables,
    /// Where to read next.
    offset: u64,
    length: u64,
    /// Where the next segment begins; `None`: this is the last.
    end: Option<SequenceNumber>,
}

/// What one step in a segment gave.
enum Step {
    Block(Vec<Entry>),
    On,
    End,
}

impl Salvage {
    /// Opens the log in `dir`, damaged or not, live or stopped.
    ///
    /// # Errors
    /// [`StoreError::NoLog`], [`StoreError::NewerVersion`], and [`StoreError::Corrupt`] if no header of a segment can be read or
    /// they are of several logs.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        Self::open_on(Arc::new(StdDisk), dir)
    }

    /// [`Salvage::open`] on another file system.
    pub fn open_on(disk: Arc<dyn Disk>, dir: &Path) -> Result<Self, StoreError> {
        // First the writer's word, then the files: what it called durable is there to be found.
        let limit = match look(disk.as_ref(), dir)? {
            Presence::Live(positions) => positions.map(|positions| positions.durable),
            Presence::Stopped => None,
        };
        let (mut segments, mut losses) = list(disk.as_ref(), dir)?;
        let begin = match read_begin(disk.as_ref(), dir) {
            Ok(begin) => Some(begin),
            Err(StoreError::Corrupt { segment, what, .. }) => {
                losses.push(Loss::of_nothing(segment, what));
                None
            }
            Err(error) => return Err(error),
        };
        segments.retain(|segment| begin.is_none_or(|begin| segment.first >= begin.next)); // The others are about to be removed.
        let first = segments.first().ok_or_else(|| StoreError::NoLog { dir: dir.to_owned() })?;
        let (next, checksum) = begin.map_or((first.first, None), |begin| (begin.next, Some(begin.checksum)));
        let identity = common_identity(&segments)?;
        let (at, open, states) = (0, None, Vec::new());
        Ok(Self {
            disk,
            segments,
            identity,
            limit,
            next,
            checksum,
            at,
            open,
            states,
            tables: LastTables::default(),
            losses,
        })
    }

    /// What the log is made of.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The entries of the next block that can be read; `None` at the end of the log.
    pub fn next_block(&mut self) -> Result<Option<Vec<Entry>>, StoreError> {
        loop {
            if self.limit.is_some_and(|limit| self.next >= limit) {
                return Ok(None);
            }
            let Some(mut segment) = self.open.take() else {
                match self.enter()? {
                    true => continue,
                    false => return Ok(None),
                }
            };
            let step = self.step(&mut segment);
            if !matches!(step, Step::End) {
                self.open = Some(segment);
            }
            if let Step::Block(entries) = step {
                return Ok(Some(entries));
            }
        }
    }

    /// What could not be read so far.
    #[must_use]
    pub fn losses(&self) -> &[Loss] {
        &self.losses
    }

    /// Precision and k of all segments that can be read; see [`common_layout`].
    pub(crate) fn layout(&self) -> (Precision, usize) {
        let headers = self.segments.iter().filter_map(|segment| segment.header.as_ref().ok());
        common_layout(headers.map(|(header, _)| &**header))
    }

    /// What records may hold.
    pub(crate) fn extras(&self) -> Extras {
        let headers = self.segments.iter().filter_map(|segment| segment.header.as_ref().ok());
        headers.map(|(header, _)| header.extras()).fold(Extras::default(), BitOr::bitor)
    }

    /// States of sources that headers of segments told since this was asked last, from before the latest block.
    pub(crate) fn take_states(&mut self) -> Vec<SourceCursor> {
        std::mem::take(&mut self.states)
    }

    /// Opens the next segment, or reports it as lost. `false`: there is none.
    fn enter(&mut self) -> Result<bool, StoreError> {
        let Some(found) = self.segments.get(self.at) else { return Ok(false) };
        let end = self.segments.get(self.at + 1).map(|next| next.first);
        let (path, first, length) = (found.path.clone(), found.first, found.bytes);
        let header = found.header.clone();
        self.at += 1;
        if first > self.next {
            let missing = path.with_file_name(file_name(self.next));
            self.lose(&missing, (0, 0), Some(first), "the segment is missing");
        }
        let file = match self.disk.open(&path, Access::Read) {
            // Since the folder was listed: by retention, if the log begins later now.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let dir = path.parent().unwrap_or(Path::new(""));
                match read_begin(self.disk.as_ref(), dir)?.next > first {
                    true => self.next = end.unwrap_or(first),
                    false => self.lose(&path, (0, 0), end, "the segment has disappeared"),
                }
                return Ok(true);
            }
            opened => opened.map_err(|error| StoreError::io("opening", &path, error))?,
        };
        match header {
            Ok((header, header_bytes)) => {
                let link = header.link();
                if link.next == self.next && self.checksum.is_some_and(|checksum| checksum != link.checksum) {
                    let what = "the segment continues another one than the one before it";
                    self.lose(&path, (0, 0), Some(self.next), what);
                }
                (self.checksum, self.states) = (Some(link.checksum), header.cursors.clone());
                let tables = self.tables.of_segment(header.checksum, header.tables.clone());
                let offset = header_bytes;
                self.open = Some(OpenSegment { path, file, header, header_bytes, tables, offset, length, end });
            }
            Err(what) => {
                let torn = end.is_none() && evidence(file.as_ref(), 0, None).is_ok_and(|found| found.is_none());
                if !torn {
                    let end = end.or_else(|| last_entry(file.as_ref(), length));
                    self.lose(&path, (0, length), end, &what);
                }
            }
        }
        Ok(true)
    }

    /// Reads what is at the place where the next block would be.
    fn step(&mut self, segment: &mut OpenSegment) -> Step {
        let (path, offset) = (segment.path.clone(), segment.offset);
        if offset >= segment.length {
            if segment.end.is_some_and(|end| end > self.next) {
                self.lose(&path, (offset, 0), segment.end, "the segment ends too early");
            }
            return Step::End;
        }
        match BlockHeader::read(segment.file.as_ref(), offset) {
            Ok(header) if self.limit.is_some_and(|limit| header.first() >= limit) => {
                self.lose(&path, (offset, 0), self.limit, "a hole: blocks are missing before it");
                Step::End
            }
            Ok(header) => self.block(segment, &header),
            Err(fault) => match self.footer(segment, offset) {
                Some((bytes, _)) => {
                    segment.offset = offset + bytes;
                    Step::On
                }
                None => self.search(segment, fault),
            },
        }
    }

    /// A block whose header is intact.
    fn block(&mut self, segment: &mut OpenSegment, header: &BlockHeader) -> Step {
        let (path, offset) = (segment.path.clone(), segment.offset);
        let link = header.link();
        let bytes = header.bytes().min(segment.length - offset);
        let read = StoredBlock { file: segment.file.as_ref(), offset, header }.entries(&segment.tables);
        let teachers = segment.header.identity.teachers.len();
        let read = read.and_then(|entries| known_teachers(&entries, teachers).map(|()| entries));
        if read.as_ref().is_err_and(|fault| self.is_torn(segment, fault)) {
            return Step::End;
        }
        segment.offset = offset + bytes;
        if !self.belongs(segment, header) {
            let what =
                format!("a block of entries {} to {} that does not belong there", header.first(), link.next.0 - 1);
            self.lose(&path, (offset, bytes), Some(self.next), &what);
            return Step::On;
        }
        if header.first() > self.next {
            self.lose(&path, (offset, 0), Some(header.first()), "a hole: blocks are missing before it");
        } else if self.checksum.is_some_and(|checksum| checksum != header.previous.checksum) {
            self.lose(&path, (offset, 0), Some(self.next), "the block follows another one than the one before it");
        }
        self.checksum = Some(link.checksum);
        match read {
            Ok(entries) => {
                self.next = link.next;
                Step::Block(entries)
            }
            Err(fault) => {
                self.lose(&path, (offset, bytes), Some(link.next), &words(fault));
                Step::On
            }
        }
    }

    /// Whether a block can be at this place: after what was read, and before the next segment.
    fn belongs(&self, segment: &OpenSegment, header: &BlockHeader) -> bool {
        header.first() >= self.next && segment.end.is_none_or(|end| header.link().next <= end)
    }

    /// Length and end of the footer at `offset`.
    fn footer(&self, segment: &OpenSegment, offset: u64) -> Option<(u64, SequenceNumber)> {
        let link = segment.header.link();
        let footer = Footer::read(segment.file.as_ref(), offset, segment.header_bytes, link).ok()?;
        Some((footer.bytes, footer.blocks.last().map_or(link, BlockHeader::link).next))
    }

    /// Goes on behind damage, at the next thing that is intact.
    fn search(&mut self, segment: &mut OpenSegment, fault: Fault) -> Step {
        if self.is_torn(segment, &fault) {
            return Step::End;
        }
        let (path, offset) = (segment.path.clone(), segment.offset);
        let file = segment.file.as_ref();
        let mut resumes = None;
        let found = find(file, offset + 1, segment.length, |at, magic| {
            resumes = match magic {
                Magic::Block => {
                    BlockHeader::read(file, at).ok().filter(|header| self.belongs(segment, header)).map(|h| h.first())
                }
                Magic::Footer => self.footer(segment, at).map(|(_, end)| end),
            };
            resumes.is_some()
        });
        let end = resumes.or(segment.end).or(self.limit);
        let end_offset = found.unwrap_or(segment.length);
        self.lose(&path, (offset, end_offset - offset), end, &words(fault));
        self.checksum = None;
        segment.offset = end_offset;
        if found.is_some() { Step::On } else { Step::End }
    }

    /// Whether what is damaged at the current place is a torn tail: see the table in [`crate::log`].
    fn is_torn(&self, segment: &OpenSegment, fault: &Fault) -> bool {
        let durable =
            || evidence(segment.file.as_ref(), segment.offset, Some(self.next)).map_or(true, |at| at.is_some());
        matches!(fault, Fault::Damage(_)) && segment.end.is_none() && self.limit.is_none() && !durable()
    }

    /// Reports `(offset, bytes)` of a file and the entries from `next` to `end` as lost.
    fn lose(&mut self, path: &Path, (offset, bytes): (u64, u64), end: Option<SequenceNumber>, what: &str) {
        let end = end.map(|end| end.max(self.next));
        self.losses.push(Loss {
            segment: path.to_owned(),
            offset,
            bytes,
            first: self.next,
            end,
            what: what.to_owned(),
        });
        if end.is_some_and(|end| end > self.next) {
            self.checksum = None;
        }
        self.next = end.unwrap_or(self.next);
    }
}

/// Precision and k of a log. If segments differ: the exact precision, in which nothing is lost, and the largest k.
pub(crate) fn common_layout<'a>(headers: impl Iterator<Item = &'a SegmentHeader>) -> (Precision, usize) {
    let layouts: Vec<_> = headers.map(|header| (header.precision, header.top_k)).collect();
    let first = layouts.first().map_or(Precision::Exact, |layout| layout.0);
    let alike = layouts.iter().all(|layout| layout.0 == first);
    let top_k = layouts.iter().map(|layout| layout.1).max();
    (if alike { first } else { Precision::Exact }, top_k.unwrap_or(1))
}

/// The files in a log's folder that claim to be segments, in order; those with impossible names as losses.
fn list(disk: &dyn Disk, dir: &Path) -> Result<(Vec<Found>, Vec<Loss>), StoreError> {
    let names = disk.list(dir).map_err(|error| StoreError::io("listing", dir, error))?;
    let mut segments = Vec::new();
    let mut losses = Vec::new();
    for name in names {
        let path = dir.join(&name);
        match parse_file_name(&name) {
            None => {}
            Some(Ok(first)) => segments.push(found(disk, path, first)?),
            Some(Err(Damage(what))) => {
                losses.push(Loss::of_nothing(path, what));
            }
        }
    }
    segments.sort_unstable_by_key(|segment| segment.first);
    Ok((segments, losses))
}

fn found(disk: &dyn Disk, path: PathBuf, first: SequenceNumber) -> Result<Found, StoreError> {
    let file = disk.open(&path, Access::Read).map_err(|error| StoreError::io("opening", &path, error))?;
    let bytes = file.length().map_err(|error| StoreError::io("reading", &path, error))?;
    let header = match SegmentHeader::read(file.as_ref(), &path, first) {
        Ok((header, bytes)) => Ok((Arc::new(header), bytes)),
        Err(HeaderFault::Torn(Damage(what)) | HeaderFault::Other(StoreError::Corrupt { what, .. })) => Err(what),
        Err(HeaderFault::Other(StoreError::Io { source, .. })) => Err(format!("the header cannot be read: {source}")),
        Err(HeaderFault::Other(error)) => return Err(error),
    };
    Ok(Found { path, first, bytes, header })
}

/// The identity of the last segment, which must continue those of all others.
fn common_identity(segments: &[Found]) -> Result<Identity, StoreError> {
    let readable =
        || segments.iter().filter_map(|segment| segment.header.as_ref().ok().map(|(header, _)| (segment, header)));
    let Some((_, last)) = readable().next_back() else {
        let path = segments.first().map_or(Path::new(""), |first| &first.path);
        return Err(StoreError::corrupt(path, 0, "no segment of the log has a header that can be read"));
    };
    for (segment, header) in readable() {
        let lines = header.identity.differences(&last.identity);
        if !lines.is_empty() {
            let what = format!("segments of several logs, which have to be told apart first: {}", lines.join("; "));
            return Err(StoreError::corrupt(&segment.path, 0, what));
        }
    }
    Ok(last.identity.clone())
}

fn known_teachers(entries: &[Entry], teachers: usize) -> Result<(), Fault> {
    let known = entries.iter().all(|entry| match &entry.payload {
        Payload::Record(record) => record.copies.iter().all(|copy| usize::from(copy.teacher) < teachers),
        Payload::Skip(_) | Payload::End => true,
    });
    if known { Ok(()) } else { Err(Damage::new("a copy of a teacher that is not in the teacher table").into()) }
}

fn words(fault: Fault) -> String {
    match fault {
        Fault::Damage(Damage(what)) => what,
        Fault::Io(error) => format!("it cannot be read: {error}"),
    }
}
