//! Looks through a log's folder and classifies what is there, without changing anything. The table in
//! [`crate::log`] says what each finding means; the writer's recovery acts on it.

use crate::SequenceNumber;
use crate::log::block::{BLOCK_MAGIC, BlockHeader, Link, StoredBlock};
use crate::log::disk::{Access, Disk, DiskFile, read_exact_at};
use crate::log::error::{Damage, Fault, StoreError};
use crate::log::index::{Index, Seal, Segment};
use crate::log::retention::read_begin;
use crate::log::segment::{FOOTER_MAGIC, Footer, HeaderFault, Predecessor, SegmentHeader, file_name, parse_file_name};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Bytes that are searched at once.
const SEARCH_BYTES: usize = 1 << 20;

/// How a log ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Tail {
    /// With a block, a footer or a segment header.
    Clean,
    /// With bytes that are none of these, behind which nothing durable follows.
    Torn {
        /// The last segment.
        path: PathBuf,
        offset: u64,
        bytes: u64,
    },
    /// With a segment that has no valid header, and nothing else.
    TornHeader { path: PathBuf, bytes: u64 },
}

/// Adds to `index` what is in the folder and not yet in the index, and drops what retention has removed. Called again and
/// again it follows a live log.
pub(crate) fn extend(disk: &dyn Disk, dir: &Path, index: &mut Index) -> Result<Tail, StoreError> {
    loop {
        let begin = read_begin(disk, dir)?;
        let tail = extend_from(disk, dir, index, begin);
        // Files may have been removed while they were looked at; where the log begins was said before.
        if read_begin(disk, dir)? == begin {
            return tail;
        }
    }
}

fn extend_from(disk: &dyn Disk, dir: &Path, index: &mut Index, begin: Link) -> Result<Tail, StoreError> {
    index.pop_empty_segment(); // The writer may have replaced it by one with another header.
    if index.begin() != begin {
        index.remove_below(begin);
    }
    let mut files = list_segments(disk, dir)?;
    files.retain(|first| *first >= begin.next); // The others are about to be removed.
    if begin.next.0 > 0 && files.first() != Some(&begin.next) {
        let path = dir.join(file_name(begin.next));
        return Err(StoreError::corrupt(&path, 0, "the log begins with this segment, which is missing"));
    }
    let known = index.segments();
    if let Some(gone) = known.iter().enumerate().find(|(at, segment)| files.get(*at) != Some(&first_of(segment))) {
        return Err(StoreError::corrupt(&gone.1.path, 0, "the segment has disappeared"));
    }
    let mut tail = Tail::Clean;
    for (at, first) in files.iter().enumerate().skip(known.len().saturating_sub(1)) {
        let next = files.get(at + 1).copied();
        let path = dir.join(file_name(*first));
        let file = disk.open(&path, Access::Read).map_err(|error| StoreError::io("opening", &path, error))?;
        if at == index.segments().len() {
            match SegmentHeader::read(file.as_ref(), &path, *first) {
                Ok((header, bytes)) => enter(index, &path, header, bytes)?,
                Err(HeaderFault::Other(error)) => return Err(error),
                Err(HeaderFault::Torn(damage)) => return torn_header(file.as_ref(), path, index, next, damage),
            }
        }
        tail = advance(file.as_ref(), index, next)?;
    }
    Ok(tail)
}

/// First sequence numbers of the segments in a folder, ascending.
fn list_segments(disk: &dyn Disk, dir: &Path) -> Result<Vec<SequenceNumber>, StoreError> {
    let names = disk.list(dir).map_err(|error| StoreError::io("listing", dir, error))?;
    let mut files = Vec::new();
    for name in names {
        match parse_file_name(&name) {
            Some(Ok(first)) => files.push(first),
            Some(Err(Damage(what))) => return Err(StoreError::corrupt(&dir.join(name), 0, what)),
            None => {}
        }
    }
    files.sort_unstable();
    Ok(files)
}

fn first_of(segment: &Segment) -> SequenceNumber {
    segment.header.first_sequence
}

/// Adds a segment that must continue the index.
fn enter(index: &mut Index, path: &Path, header: SegmentHeader, bytes: u64) -> Result<(), StoreError> {
    let link = index.link();
    let expected = link
        .next
        .0
        .checked_sub(1)
        .map(|last| Predecessor { last_sequence: SequenceNumber(last), checksum: link.checksum });
    if header.previous != expected {
        let what = match expected {
            None => format!("the log begins at {}: the segments before it are missing", header.first_sequence),
            Some(_) if index.segments().is_empty() => {
                "it continues another segment than the one that retention removed before it".to_owned()
            }
            Some(_) => "it continues another segment than the one before it".to_owned(),
        };
        return Err(StoreError::corrupt(path, 0, what));
    }
    index.push_segment(path, header, bytes);
    Ok(())
}

/// A header that cannot be read: a segment that was being created, if it is the last and empty.
fn torn_header(
    file: &dyn DiskFile,
    path: PathBuf,
    index: &Index,
    next: Option<SequenceNumber>,
    Damage(what): Damage,
) -> Result<Tail, StoreError> {
    let first = index.end();
    let in_place = path.file_name().is_some_and(|name| *name == *file_name(first));
    let follows = evidence(file, 0, None).map_err(|fault| fault.at(&path, 0))?;
    // A segment that the log begins with after a removal was whole before the removal.
    let was_whole = index.segments().is_empty() && first.0 > 0;
    if next.is_some() || !in_place || follows.is_some() || was_whole {
        return Err(StoreError::corrupt(&path, 0, what));
    }
    let bytes = file.length().map_err(|error| StoreError::io("reading", &path, error))?;
    Ok(Tail::TornHeader { path, bytes })
}

/// What is at the place where the next block of a segment would be.
enum Piece {
    Block(BlockHeader),
    Footer(Footer),
    Nothing,
    Damaged(Damage),
}

/// Reads on in the last segment of the index. `next`: first sequence number of the segment after it.
fn advance(file: &dyn DiskFile, index: &mut Index, next: Option<SequenceNumber>) -> Result<Tail, StoreError> {
    let empty = index.last_segment_is_empty();
    let Some(segment) = index.segments().last() else { return Ok(Tail::Clean) };
    let path = Arc::clone(&segment.path);
    let (mut doubted, mut room) = (None, Vec::new());
    if segment.seal == Seal::Open && empty {
        take_footer(file, index)?;
    }
    loop {
        crate::pulse::beat();
        let Some(segment) = index.segments().last() else { return Ok(Tail::Clean) };
        let offset = segment.end_offset;
        if segment.seal != Seal::Open {
            return continues(segment, next, None).map(|()| Tail::Clean);
        }
        match piece(file, segment, &mut room).map_err(|fault| fault.at(&path, offset))? {
            Piece::Block(header) if header.previous == segment.link => index.push_block(&header),
            Piece::Block(header) => {
                let what = format!("a block from {} on follows entry {}", header.first(), segment.link.next);
                return Err(StoreError::corrupt(
                    &path,
                    offset,
                    what + " or another block (hole, duplicate or mixture)",
                ));
            }
            Piece::Footer(footer) => {
                set_seal(index, Seal::Footer { bytes: footer.bytes });
                return after_footer(file, index, offset + footer.bytes, next);
            }
            Piece::Nothing if next.is_none() => return Ok(Tail::Clean),
            Piece::Nothing => return lose_footer(index, next, "the segment ends here"),
            Piece::Damaged(Damage(what)) if next.is_some() => return lose_footer(index, next, &what),
            Piece::Damaged(Damage(what)) => {
                let found = evidence(file, offset, Some(segment.link.next)).map_err(|fault| fault.at(&path, offset))?;
                match found {
                    None => return torn(file, &path, offset),
                    // The writer may have finished this block and others while they were being read: look again.
                    Some(_) if doubted != Some(offset) => doubted = Some(offset),
                    Some(at) => {
                        let what = format!("{what}, but it had been durable: what begins at byte {at} says so");
                        return Err(StoreError::corrupt(&path, offset, what));
                    }
                }
            }
        }
    }
}

/// Takes a sealed segment's blocks from its footer, if there is one.
fn take_footer(file: &dyn DiskFile, index: &mut Index) -> Result<(), StoreError> {
    let Some(segment) = index.segments().last() else { return Ok(()) };
    match Footer::read_last(file, segment.header_bytes, segment.link) {
        Ok(footer) => {
            footer.blocks.iter().for_each(|header| index.push_block(header));
            set_seal(index, Seal::Footer { bytes: footer.bytes });
            Ok(())
        }
        Err(Fault::Damage(_)) => Ok(()), // Derived: the blocks say the same.
        Err(fault) => Err(fault.at(&segment.path, segment.end_offset)),
    }
}

fn set_seal(index: &mut Index, seal: Seal) {
    if let Some(segment) = index.last_segment_mut() {
        segment.seal = seal;
    }
}

fn piece(file: &dyn DiskFile, segment: &Segment, room: &mut Vec<u8>) -> Result<Piece, Fault> {
    let offset = segment.end_offset;
    let length = file.length()?;
    if offset == length {
        return Ok(Piece::Nothing);
    }
    let checked = BlockHeader::read(file, offset).and_then(|header| {
        StoredBlock { file, offset, header: &header }.check(room)?;
        Ok(header)
    });
    let damage = match checked {
        Ok(header) => return Ok(Piece::Block(header)),
        Err(Fault::Damage(damage)) => damage,
        Err(fault) => return Err(fault),
    };
    match Footer::read(file, offset, segment.header_bytes, segment.header.link()) {
        Ok(footer) => Ok(Piece::Footer(footer)),
        Err(Fault::Damage(_)) => Ok(Piece::Damaged(damage)),
        Err(fault) => Err(fault),
    }
}

/// The segment must end where the next one begins.
fn continues(segment: &Segment, next: Option<SequenceNumber>, what: Option<&str>) -> Result<(), StoreError> {
    match next {
        Some(next) if next != segment.link.next => {
            let what = what.map(|what| format!("{what}; ")).unwrap_or_default();
            let what = format!("{what}its blocks end at {} but the next segment begins at {next}", segment.link.next);
            Err(StoreError::corrupt(&segment.path, segment.end_offset, what))
        }
        _ => Ok(()),
    }
}

/// The blocks end without a readable footer, and another segment follows: it says whether they are complete.
fn lose_footer(index: &mut Index, next: Option<SequenceNumber>, what: &str) -> Result<Tail, StoreError> {
    if let Some(segment) = index.segments().last() {
        continues(segment, next, Some(what))?;
    }
    set_seal(index, Seal::Lost);
    Ok(Tail::Clean)
}

/// Nothing may follow a footer but the remains of a write.
fn after_footer(
    file: &dyn DiskFile,
    index: &Index,
    offset: u64,
    next: Option<SequenceNumber>,
) -> Result<Tail, StoreError> {
    let Some(segment) = index.segments().last() else { return Ok(Tail::Clean) };
    continues(segment, next, None)?;
    let failed = |fault: Fault| fault.at(&segment.path, offset);
    if file.length().map_err(|error| failed(error.into()))? == offset {
        return Ok(Tail::Clean);
    }
    if next.is_some() || evidence(file, offset, None).map_err(failed)?.is_some() {
        return Err(StoreError::corrupt(&segment.path, offset, "something follows the footer"));
    }
    torn(file, &segment.path, offset)
}

fn torn(file: &dyn DiskFile, path: &Path, offset: u64) -> Result<Tail, StoreError> {
    let length = file.length().map_err(|error| StoreError::io("reading", path, error))?;
    Ok(Tail::Torn { path: path.to_owned(), offset, bytes: length.saturating_sub(offset) })
}

/// Looks at and behind `offset` for something that proves that entry `expected` had been durable: a block written when
/// it was (any block, if `expected` is `None`), or a footer. Gives its place.
pub(crate) fn evidence(
    file: &dyn DiskFile,
    offset: u64,
    expected: Option<SequenceNumber>,
) -> Result<Option<u64>, Fault> {
    let length = file.length()?;
    let mut start = offset;
    while start < length {
        crate::pulse::beat();
        let chunk_bytes = usize::try_from(length - start).unwrap_or(SEARCH_BYTES).min(SEARCH_BYTES);
        let chunk = match read_exact_at(file, start, chunk_bytes).map_err(Fault::from) {
            Err(Fault::Damage(_)) => return Ok(None), // A writer cut the file meanwhile.
            chunk => chunk?,
        };
        for (at, window) in (start..).zip(chunk.windows(4)) {
            let proves = match window {
                magic if magic == BLOCK_MAGIC => proves(file, at, expected)?,
                magic if magic == FOOTER_MAGIC => Footer::is_at(file, at)?,
                _ => false,
            };
            if proves {
                return Ok(Some(at));
            }
        }
        if chunk_bytes < SEARCH_BYTES {
            break;
        }
        start += (chunk_bytes - 3) as u64; // a magic may straddle two chunks
    }
    Ok(None)
}

fn proves(file: &dyn DiskFile, offset: u64, expected: Option<SequenceNumber>) -> Result<bool, Fault> {
    match BlockHeader::read(file, offset) {
        Ok(header) => Ok(expected.is_none_or(|expected| header.durable > expected)),
        Err(Fault::Damage(_)) => Ok(false),
        Err(fault) => Err(fault),
    }
}
