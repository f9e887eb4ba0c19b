//! The segment that grows: how it begins, goes on after a start, and ends.

use crate::log::block::{BlockHeader, Link};
use crate::log::codec::{Compaction, LastTables, Tables};
use crate::log::column::Compressor;
use crate::log::disk::{Access, Disk, DiskFile, write_all_at};
use crate::log::error::StoreError;
use crate::log::index::{Index, Seal};
use crate::log::options::LogOptions;
use crate::log::recovery::{sync_dir, sync_file};
use crate::log::room::{Room, give_back};
use crate::log::segment::{Footer, Predecessor, SegmentHeader, UNFINISHED_EXTENSION, file_name};
use crate::{Identity, Precision, SequenceNumber, SourceCursor};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// With compact precision the first segment is sealed before it grows beyond this.
const FIRST_BYTES: u64 = 128 << 10;

/// The segment that grows.
#[derive(Debug)]
pub(crate) struct OpenSegment {
    pub(super) file: Arc<dyn DiskFile>,
    pub(super) path: PathBuf,
    /// Where the next block goes.
    pub(super) offset: u64,
    pub(super) link: Link,
    /// Whether there is no block in it.
    pub(super) empty: bool,
    pub(super) room: Room,
    /// With compact precision.
    pub(super) compaction: Option<Compaction>,
    /// It is sealed before it grows beyond this.
    pub(super) bytes_max: u64,
}

/// Creates the log's folder; its name, and those of the folders above it, are durable afterwards.
pub(crate) fn create_folder(disk: &dyn Disk, dir: &Path) -> Result<(), StoreError> {
    disk.create_dir_all(dir).map_err(|error| StoreError::io("creating", dir, error))?;
    for above in dir.ancestors().skip(1) {
        match disk.sync_dir(above) {
            // Not ours, so not created by us either.
            Err(error)
                if [io::ErrorKind::PermissionDenied, io::ErrorKind::ReadOnlyFilesystem].contains(&error.kind()) =>
            {
                break;
            }
            synced => synced.map_err(|error| StoreError::io("making durable the names in", above, error))?,
        }
    }
    Ok(())
}

/// The header of a segment that follows everything in `index`.
pub(crate) fn next_header(
    index: &Index,
    cursors: &BTreeMap<Arc<str>, SourceCursor>,
    identity: &Identity,
    options: &LogOptions,
) -> SegmentHeader {
    let link = index.link();
    let last_sequence = link.next.0.checked_sub(1).map(SequenceNumber);
    SegmentHeader {
        first_sequence: link.next,
        previous: last_sequence.map(|last_sequence| Predecessor { last_sequence, checksum: link.checksum }),
        tables: 0..0,
        checksum: 0,
        precision: options.precision,
        top_k: options.top_k,
        keep_text: options.keep_text,
        computed_in: options.computed_in,
        identity: identity.clone(),
        cursors: cursors.values().cloned().collect(),
    }
}

/// The segment in which a writer goes on: the last one, if it is unsealed and its header says what a new one's would;
/// else a new one.
pub(super) fn first_segment(
    disk: &dyn Disk,
    dir: &Path,
    index: &mut Index,
    header: SegmentHeader,
    compressor: &mut Compressor,
) -> Result<OpenSegment, StoreError> {
    let empty = index.last_segment_is_empty();
    let tables = last_tables(disk, index)?;
    if let Some(last) = index.segments().last().filter(|last| last.seal == Seal::Open) {
        let path = last.path.to_path_buf();
        let file = disk.open(&path, Access::Write).map_err(|error| StoreError::io("opening", &path, error))?;
        let same = |old: &SegmentHeader| old.identity == header.identity && old.layout() == header.layout();
        if same(&last.header) {
            let compaction = compaction(&header, tables);
            let bytes_max = if compaction.is_some() { bytes_max(index, 2) } else { u64::MAX };
            let room = Room::of_last_segment(file.as_ref(), index)?;
            return Ok(OpenSegment {
                file,
                path,
                offset: last.end_offset,
                link: last.link,
                empty,
                room,
                compaction,
                bytes_max,
            });
        }
        if empty {
            index.pop_empty_segment();
        } else {
            seal_segment(file.as_ref(), index, compressor)?;
        }
    }
    create_segment(disk, dir, index, header, tables)
}

/// What compact precision needs.
fn compaction(header: &SegmentHeader, tables: Tables) -> Option<Compaction> {
    (header.precision == Precision::Compact).then(|| Compaction::new(tables))
}

/// The tables of the last segment.
fn last_tables(disk: &dyn Disk, index: &Index) -> Result<Tables, StoreError> {
    let Some(last) = index.segments().last() else { return Ok(Tables::default()) };
    let file = disk.open(&last.path, Access::Read).map_err(|error| StoreError::io("opening", &last.path, error))?;
    let tables = LastTables::default().of_segment(last.header.checksum, last.header.tables.clone());
    let tables = tables.load(file.as_ref()).map_err(|fault| fault.at(&last.path, 0))?;
    Ok(Arc::unwrap_or_clone(tables))
}

/// The tables of a segment are made of what the one before it holds. So the first ones are short: a segment may be sixteen times as long as
/// the one before, which is the `back`-th from the end.
fn bytes_max(index: &Index, back: usize) -> u64 {
    let segments = index.segments();
    let before = segments.len().checked_sub(back).and_then(|at| segments.get(at)).map_or(0, |before| before.end_offset);
    before.saturating_mul(16).max(FIRST_BYTES)
}

/// Creates a segment under a temporary name, so that one with its own name always has a whole header; its name is durable
/// before anything is appended to it.
pub(crate) fn create_segment(
    disk: &dyn Disk,
    dir: &Path,
    index: &mut Index,
    mut header: SegmentHeader,
    tables: Tables,
) -> Result<OpenSegment, StoreError> {
    let path = dir.join(file_name(header.first_sequence));
    let unfinished = unfinished_path(&path);
    let bytes = header.encode(&tables).map_err(|error| StoreError::io("describing", &path, error))?;
    let compaction = compaction(&header, tables);
    let creating = |error| StoreError::io("creating", &path, error);
    // It may be there already, empty, with room reserved.
    let file = disk.open(&unfinished, Access::Keep).map_err(creating)?;
    write_all_at(file.as_ref(), &bytes, 0).map_err(creating)?;
    sync_file(file.as_ref(), &unfinished)?;
    disk.rename(&unfinished, &path).map_err(creating)?;
    sync_dir(disk, dir)?;
    let link = header.link();
    let offset = bytes.len() as u64;
    let bytes_max = if compaction.is_some() { bytes_max(index, 1) } else { u64::MAX };
    index.push_segment(&path, header, offset);
    Ok(OpenSegment { file, path, offset, link, empty: true, room: Room::default(), compaction, bytes_max })
}

pub(super) fn unfinished_path(path: &Path) -> PathBuf {
    path.with_extension(UNFINISHED_EXTENSION.trim_start_matches('.'))
}

/// Writes the footer of the last segment, whose blocks are durable; gives its length.
pub(super) fn seal_segment(
    file: &dyn DiskFile,
    index: &mut Index,
    compressor: &mut Compressor,
) -> Result<u64, StoreError> {
    let Some(last) = index.segments().len().checked_sub(1) else { return Ok(0) };
    let blocks = index.blocks_of(last, index.end());
    let segment = index.segments()[last].clone();
    let mut headers = Vec::new();
    for block in &blocks {
        let bytes =
            BlockHeader::read_bytes(file, block.offset).map_err(|fault| fault.at(&segment.path, block.offset))?;
        headers.extend(bytes);
    }
    let sealing = |error| StoreError::io("sealing", &segment.path, error);
    let footer = Footer::encode(&headers, blocks.len() as u32, segment.link, compressor).map_err(sealing)?;
    write_all_at(file, &footer, segment.end_offset).map_err(sealing)?;
    sync_file(file, &segment.path)?;
    give_back(file, &segment.path);
    let bytes = footer.len() as u64;
    if let Some(segment) = index.last_segment_mut() {
        segment.seal = Seal::Footer { bytes };
    }
    Ok(bytes)
}
