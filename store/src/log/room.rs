//! Room on the disk for what a segment is about to hold, made sure of before anything is written.
//!
//! A write that fails half-way stops the log for good; a disk that is full must not. So the writer keeps room for the next
//! block, for the footer that the segment has with it, and before a segment is sealed for the beginning of the next one. Where there is
//! none the log says so ([`StoreError::NoRoom`]), is unchanged, and can be asked again.

use crate::log::block::BlockHeader;
use crate::log::disk::{Access, Disk, DiskFile};
use crate::log::error::{StoreError, is_full};
use crate::log::index::Index;
use std::io;
use std::path::{Path, PathBuf};

/// Room is reserved this much ahead, if there is so much.
const AHEAD_BYTES: u64 = 8 << 20;

/// A segment's header may be this much larger than that of the one before it: for sources that are new.
const HEADER_GROWTH_BYTES: u64 = 256 << 10;

/// The room of one segment.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Room {
    /// Up to here there is room in the file.
    reserved_end: u64,
    /// Bytes of the headers of all blocks, which the footer holds.
    block_headers: u64,
}

impl Room {
    /// That of the last segment, which goes on.
    pub(crate) fn of_last_segment(file: &dyn DiskFile, index: &Index) -> Result<Self, StoreError> {
        let mut room = Self::default();
        let Some(last) = index.segments().len().checked_sub(1) else { return Ok(room) };
        for block in index.blocks_of(last, index.end()) {
            let header = BlockHeader::read(file, block.offset).map_err(|fault| fault.at(&block.path, block.offset))?;
            room.used(header.header_bytes);
        }
        Ok(room)
    }

    /// Makes sure of room for a block of `bytes` at `offset`, `header_bytes` of which are its header, and for the footer after it.
    /// Room is reserved ahead, by a part of `segment_bytes`.
    pub(crate) fn make(
        &mut self,
        file: &dyn DiskFile,
        path: &Path,
        offset: u64,
        (bytes, header_bytes): (u64, u64),
        segment_bytes: u64,
    ) -> Result<(), StoreError> {
        let end = offset + bytes + largest_footer(self.block_headers + header_bytes);
        if end > self.reserved_end {
            let ahead = end + AHEAD_BYTES.min(segment_bytes / 16);
            self.reserved_end = match file.reserve(ahead) {
                Ok(()) => ahead,
                Err(error) if is_full(&error) => {
                    file.reserve(end).map_err(|error| no_room(path, end - offset, error))?;
                    end
                }
                Err(error) => return Err(no_room(path, end - offset, error)),
            };
        }
        Ok(())
    }

    /// Notes a block that was written.
    pub(crate) fn used(&mut self, header_bytes: u64) {
        self.block_headers += header_bytes;
    }

    /// Creates the file of the segment that will be at `path`, under its name `unfinished`, with room for a header like that of the
    /// segment before it and for a block. Without room there is no such file.
    pub(crate) fn for_next(
        disk: &dyn Disk,
        (path, unfinished): (&Path, &PathBuf),
        header_before: u64,
        (bytes, header_bytes): (u64, u64),
    ) -> Result<Self, StoreError> {
        let end = header_before + HEADER_GROWTH_BYTES + bytes + largest_footer(header_bytes);
        let created = disk.open(unfinished, Access::Replace);
        let reserved = created.and_then(|file| file.reserve(end)).map_err(|error| no_room(path, end, error));
        if reserved.as_ref().is_err_and(StoreError::is_no_room) {
            match disk.remove(unfinished) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(StoreError::io("removing", unfinished, error));
                }
                _ => {}
            }
        }
        reserved.map(|()| Self { reserved_end: end, block_headers: 0 })
    }
}

/// Gives back the room that was reserved behind the end of a segment. A failure wastes it and harms nothing else.
pub(crate) fn give_back(file: &dyn DiskFile, path: &Path) {
    if let Err(error) = file.release() {
        tracing::debug!(path = %path.display(), %error, "could not give reserved room back");
    }
}

fn no_room(path: &Path, bytes: u64, error: io::Error) -> StoreError {
    match is_full(&error) {
        true => StoreError::NoRoom { path: path.to_owned(), bytes },
        false => StoreError::io("reserving room for", path, error),
    }
}

/// Most bytes that the footer of blocks with so many bytes of headers takes: they may not compress at all.
fn largest_footer(block_headers: u64) -> u64 {
    block_headers + block_headers / 128 + 1024
}
