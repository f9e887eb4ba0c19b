//! What a writer does about the way a log ends. The decision table is in [`crate::log`].

use crate::log::block::BlockHeader;
use crate::log::disk::{Access, Disk, DiskFile, read_exact_at, write_all_at};
use crate::log::error::StoreError;
use crate::log::index::{Index, Seal, Segment};
use crate::log::retention;
use crate::log::segment::UNFINISHED_EXTENSION;
use crate::log::survey::{Tail, extend};
use crate::{DurablePosition, Identity, SequenceNumber};
use serde::Serialize;
use std::io;
use std::path::{Path, PathBuf};

/// Folder in which cut tails are kept.
const TORN_FOLDER: &str = "torn";

/// Bytes copied at once.
const COPY_BYTES: u64 = 1 << 20;

/// What was found when a log was opened for writing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Recovery {
    /// Everything below is in the log, and durable.
    pub durable: DurablePosition,
    /// Number of segments that were found.
    pub segments: usize,
    /// Bytes of the torn tail; 0 after a clean stop.
    pub torn_bytes: u64,
    /// The torn tail that was cut.
    pub torn: Option<Torn>,
    /// Segments whose footer is damaged; their blocks were scanned instead.
    pub footers_lost: usize,
    /// Segments whose removal by retention had been interrupted; they are removed now.
    pub removed_segments: usize,
}

/// A torn tail: the remains of a write that did not finish. Nothing in it had been durable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Torn {
    /// The last segment.
    pub segment: PathBuf,
    /// Where the tail begins.
    pub offset: u64,
    /// Its length.
    pub bytes: u64,
    /// Where it was put aside; `None` where a reader only reports it.
    pub kept: Option<PathBuf>,
}

impl Torn {
    /// A tail as a reader reports it.
    pub(crate) fn of(tail: &Tail) -> Option<Self> {
        let (segment, offset, bytes) = match tail {
            Tail::Clean => return None,
            Tail::Torn { path, offset, bytes } => (path, *offset, *bytes),
            Tail::TornHeader { path, bytes } => (path, 0, *bytes),
        };
        Some(Self { segment: segment.clone(), offset, bytes, kept: None })
    }
}

/// Reads the log in `dir`, refuses it if it is another's or incomplete, and only then cuts what is torn.
pub(crate) fn recover(
    disk: &dyn Disk,
    dir: &Path,
    identity: &Identity,
    required: SequenceNumber,
) -> Result<(Index, Recovery), StoreError> {
    let mut index = Index::default();
    let tail = extend(disk, dir, &mut index)?;
    if let Some(last) = index.segments().last() {
        let lines = last.header.identity.differences(identity);
        if !lines.is_empty() {
            return Err(StoreError::IdentityMismatch { dir: dir.to_owned(), lines });
        }
    }
    require(dir, &index, required)?;
    let mut torn = Torn::of(&tail);
    let kept = match &tail {
        Tail::Clean => None,
        Tail::Torn { path, offset, bytes } => Some(cut(disk, dir, path, *offset, *bytes)?),
        Tail::TornHeader { path, .. } => Some(set_aside(disk, dir, path)?),
    };
    if let Some(torn) = &mut torn {
        torn.kept = kept;
    }
    remove_unfinished(disk, dir)?;
    let removed_segments = retention::finish(disk, dir, index.begin())?;
    make_durable(disk, dir, &index)?;
    let recovery = Recovery {
        durable: DurablePosition::from_log(index.end().0),
        segments: index.segments().len(),
        torn_bytes: torn.as_ref().map_or(0, |torn| torn.bytes),
        torn,
        footers_lost: index.segments().iter().filter(|segment| segment.seal == Seal::Lost).count(),
        removed_segments,
    };
    Ok((index, recovery))
}

/// Something refers to all entries below `required`.
pub(crate) fn require(dir: &Path, index: &Index, required: SequenceNumber) -> Result<(), StoreError> {
    if index.end() < required {
        let required = DurablePosition::from_log(required.0);
        return Err(StoreError::TooShort { dir: dir.to_owned(), end: index.end(), required });
    }
    Ok(())
}

/// Copies the tail aside, and cuts it only when the copy is durable.
fn cut(disk: &dyn Disk, dir: &Path, path: &Path, offset: u64, bytes: u64) -> Result<PathBuf, StoreError> {
    let reading = |error| StoreError::io("reading", path, error);
    let file = disk.open(path, Access::Write).map_err(|error| StoreError::io("opening", path, error))?;
    let kept = free_name(disk, dir, path, offset)?;
    let keeping = |error| StoreError::io("putting a torn tail aside in", &kept, error);
    let copy = disk.open(&kept, Access::Replace).map_err(keeping)?;
    let mut done = 0;
    while done < bytes {
        let length = (bytes - done).min(COPY_BYTES);
        let chunk = read_exact_at(file.as_ref(), offset + done, length as usize).map_err(reading)?;
        write_all_at(copy.as_ref(), &chunk, done).map_err(keeping)?;
        done += length;
    }
    copy.sync().map_err(keeping)?;
    sync_aside(disk, dir)?;
    // `make_durable` syncs it.
    file.truncate(offset).map_err(|error| StoreError::io("cutting the torn tail of", path, error))?;
    Ok(kept)
}

/// Moves a segment without a header aside.
fn set_aside(disk: &dyn Disk, dir: &Path, path: &Path) -> Result<PathBuf, StoreError> {
    let kept = free_name(disk, dir, path, 0)?;
    sync_dir(disk, dir)?; // The folder's name, before the segment loses its own.
    disk.rename(path, &kept).map_err(|error| StoreError::io("putting aside", path, error))?;
    sync_aside(disk, dir)?;
    Ok(kept)
}

/// A name in the folder of torn tails that no file has.
fn free_name(disk: &dyn Disk, dir: &Path, path: &Path, offset: u64) -> Result<PathBuf, StoreError> {
    let folder = dir.join(TORN_FOLDER);
    let failed = |error| StoreError::io("creating", &folder, error);
    disk.create_dir_all(&folder).map_err(failed)?;
    let taken = disk.list(&folder).map_err(failed)?;
    let segment = path.file_name().unwrap_or_default().to_string_lossy();
    let names = (0_u64..).map(|number| match number {
        0 => format!("{segment}@{offset}"),
        number => format!("{segment}@{offset}.{number}"),
    });
    let name = names.into_iter().find(|name| !taken.contains(name)).unwrap_or_default();
    Ok(folder.join(name))
}

fn sync_aside(disk: &dyn Disk, dir: &Path) -> Result<(), StoreError> {
    sync_dir(disk, &dir.join(TORN_FOLDER))?;
    sync_dir(disk, dir)
}

/// A file whose writing was never finished has no name of its own yet, and no content.
fn remove_unfinished(disk: &dyn Disk, dir: &Path) -> Result<(), StoreError> {
    let names = disk.list(dir).map_err(|error| StoreError::io("listing", dir, error))?;
    let is_unfinished = |name: &&String| name.ends_with(UNFINISHED_EXTENSION) || *name == retention::UNFINISHED_NAME;
    for name in names.iter().filter(is_unfinished) {
        let path = dir.join(name);
        match disk.remove(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(StoreError::io("removing", &path, error));
            }
            _ => {}
        }
    }
    Ok(())
}

/// What was found may be in the page cache alone, even after a sync: when one has failed, the kernel calls the pages clean, and
/// no later sync writes them. So whatever no block proves to be durable is written once more.
fn make_durable(disk: &dyn Disk, dir: &Path, index: &Index) -> Result<(), StoreError> {
    if let Some(last) = index.segments().last() {
        let path = &*last.path;
        let file = disk.open(path, Access::Write).map_err(|error| StoreError::io("opening", path, error))?;
        let (mut offset, end) = match last.seal {
            Seal::Open => (first_unproven(file.as_ref(), index, last)?, last.end_offset),
            Seal::Footer { bytes } => (last.end_offset, last.end_offset + bytes), // It proves the blocks, nothing proves it.
            Seal::Lost => (last.end_offset, last.end_offset),
        };
        while offset < end {
            let length = (end - offset).min(COPY_BYTES);
            let bytes = read_exact_at(file.as_ref(), offset, length as usize)
                .map_err(|error| StoreError::io("reading", path, error))?;
            write_all_at(file.as_ref(), &bytes, offset).map_err(|error| StoreError::io("rewriting", path, error))?;
            offset += length;
        }
        sync_file(file.as_ref(), path)?;
    }
    sync_dir(disk, dir)
}

/// Where the first block of the last segment is that the last block does not prove to be durable.
fn first_unproven(file: &dyn DiskFile, index: &Index, last: &Segment) -> Result<u64, StoreError> {
    let blocks = index.blocks_of(index.segments().len() - 1, index.end());
    let Some(place) = blocks.last() else { return Ok(last.end_offset) };
    let header = BlockHeader::read(file, place.offset).map_err(|fault| fault.at(&place.path, place.offset))?;
    let unproven = blocks.iter().find(|block| block.end > header.durable);
    Ok(unproven.map_or(last.end_offset, |block| block.offset))
}

pub(crate) fn sync_file(file: &dyn DiskFile, path: &Path) -> Result<(), StoreError> {
    file.sync().map_err(|error| StoreError::io("making durable", path, error))
}

pub(crate) fn sync_dir(disk: &dyn Disk, dir: &Path) -> Result<(), StoreError> {
    disk.sync_dir(dir).map_err(|error| StoreError::io("making durable the names in", dir, error))
}
