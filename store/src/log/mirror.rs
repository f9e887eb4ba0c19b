//! A log's bytes for another place: what is durable, piece by piece, and a mirror that is made of the pieces.
//!
//! A piece is a segment's header, whole blocks, or a footer, as they are in the file. A mirror has the same files, byte for byte, and is a log as any other: it
//! may be read while it grows, and verified.
//!
//! # Order of operations
//!
//! A segment's header is written under another name, made durable, renamed, and the name made durable. What follows is written behind what is there, checked as
//! recovery checks it, and made durable; then readers are told. Whatever is interrupted before has not happened: the next start cuts it off, and the piece
//! comes again.

use crate::log::block::Link;
use crate::log::disk::{Access, Disk, DiskFile, StdDisk, read_exact_at, write_all_at};
use crate::log::error::StoreError;
use crate::log::hint::{HintFile, Positions};
use crate::log::index::Index;
use crate::log::reader::LogReader;
use crate::log::recovery::{sync_dir, sync_file};
use crate::log::retention::{begin_at, forget_begin_without_segments};
use crate::log::segment::{UNFINISHED_EXTENSION, file_name};
use crate::log::survey::{Tail, extend};
use crate::log::writer::create_folder;
use crate::{DurablePosition, SequenceNumber};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A place in a log's files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// First entry of the segment.
    pub segment: SequenceNumber,
    /// Byte of its file.
    pub offset: u64,
}

/// Bytes of a segment's file, whole: its header, blocks, or its footer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Where they are.
    pub at: Place,
    /// Header checksum of the last block before the segment: what the segment follows.
    pub previous: u32,
    /// The bytes.
    pub bytes: Vec<u8>,
    /// The first entry that comes after them.
    pub end: SequenceNumber,
}

impl Piece {
    /// Where the next one may begin: there, or with the next segment.
    #[must_use]
    pub fn after(&self) -> Place {
        Place { segment: self.at.segment, offset: self.at.offset.saturating_add(self.bytes.len() as u64) }
    }
}

impl LogReader {
    /// Where the log's files begin.
    #[must_use]
    pub fn first_place(&self) -> Place {
        Place { segment: self.begin(), offset: 0 }
    }

    /// The durable bytes that come next at `from`: a header, a footer, or as many blocks as have room in `most_bytes`, one at least. `None`: there are none
    /// yet.
    ///
    /// # Errors
    /// [`StoreError::Removed`] if retention has removed them; [`StoreError::Corrupt`] if nothing of this log begins there.
    pub fn piece(&self, from: Place, most_bytes: u64) -> Result<Option<Piece>, StoreError> {
        let durable = self.durable().end();
        let (begin, cut, path) = {
            let state = self.state();
            let path = state.index.segments().last().map(|last| last.path.to_path_buf());
            (state.index.begin().next, state.index.cut(from, durable, most_bytes), path)
        };
        if from.segment < begin {
            return Err(StoreError::Removed { sequence: from.segment, begin });
        }
        let path = path.unwrap_or_default();
        let Some(cut) = cut else {
            let path = path.with_file_name(file_name(from.segment));
            return Err(StoreError::corrupt(&path, from.offset, "nothing of the log begins there"));
        };
        let Some(cut) = cut else { return Ok(None) };
        let read = |error| StoreError::io("reading", &cut.path, error);
        let bytes = match self.disk().open(&cut.path, Access::Read) {
            Ok(file) => read_exact_at(file.as_ref(), cut.at.offset, cut.bytes as usize).map_err(read),
            Err(error) => Err(read(error)),
        };
        let bytes = bytes.map_err(|error| self.explain(cut.at.segment, error))?;
        Ok(Some(Piece { at: cut.at, previous: cut.previous, bytes, end: cut.end }))
    }
}

/// What a mirror makes of a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// It is there now, durably.
    New,
    /// It was there already.
    Known,
    /// Something is missing before it.
    Gap,
}

/// A log that grows by pieces of another. There is one mirror at a time in a folder.
#[derive(Debug)]
pub struct LogMirror {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    hint: HintFile,
    index: Index,
    /// The last segment.
    file: Option<Arc<dyn DiskFile>>,
}

impl LogMirror {
    /// Opens the mirror in `dir`, or begins one. What an interrupted write left is cut off.
    ///
    /// # Errors
    /// [`StoreError::InUse`] if somebody else writes there; [`StoreError::Corrupt`].
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        Self::open_on(Arc::new(StdDisk), dir)
    }

    /// [`LogMirror::open`] on another file system.
    ///
    /// # Errors
    /// As there.
    pub fn open_on(disk: Arc<dyn Disk>, dir: &Path) -> Result<Self, StoreError> {
        create_folder(disk.as_ref(), dir)?;
        let hint = HintFile::acquire(disk.as_ref(), dir)?;
        forget_begin_without_segments(disk.as_ref(), dir)?;
        let mut index = Index::default();
        match extend(disk.as_ref(), dir, &mut index)? {
            Tail::Clean => {}
            Tail::Torn { path, offset, .. } => cut_off(disk.as_ref(), &path, offset)?,
            Tail::TornHeader { path, .. } => {
                disk.remove(&path).map_err(|error| StoreError::io("removing", &path, error))?;
                sync_dir(disk.as_ref(), dir)?;
            }
        }
        let last = index.segments().last().map(|last| last.path.to_path_buf());
        let file = last.map(|path| {
            let file = disk.open(&path, Access::Write).map_err(|error| StoreError::io("opening", &path, error))?;
            sync_file(file.as_ref(), &path)?; // What is there may be in the page cache alone.
            Ok(file)
        });
        let mirror = Self { file: file.transpose()?, disk, dir: dir.to_owned(), hint, index };
        mirror.publish();
        Ok(mirror)
    }

    /// How far it goes.
    #[must_use]
    pub fn durable(&self) -> DurablePosition {
        DurablePosition::from_log(self.index.end().0)
    }

    /// Where the next piece begins, if it is of the last segment; `None`: there is no segment.
    #[must_use]
    pub fn next(&self) -> Option<Place> {
        let last = self.index.segments().last()?;
        Some(Place { segment: last.header.first_sequence, offset: last.bytes() })
    }

    /// Adds a piece, durably.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] if it does not continue what is there, or is damaged: then nothing has changed.
    pub fn take(&mut self, piece: &Piece) -> Result<Taken, StoreError> {
        let path = self.dir.join(file_name(piece.at.segment));
        let before = match self.next() {
            Some(next) if piece.at.segment < next.segment || piece.after() <= next => return Ok(Taken::Known),
            Some(next) if piece.at.segment == next.segment && piece.at.offset <= next.offset => next.offset,
            Some(next) if piece.at.segment == next.segment => return Ok(Taken::Gap),
            _ if piece.at.offset > 0 => return Ok(Taken::Gap),
            Some(_) => {
                let link = self.index.link();
                if piece.at.segment != link.next {
                    return Ok(Taken::Gap);
                }
                if piece.previous != link.checksum {
                    let what = "what came follows another log than the one that is there: remove the folder, or take another one";
                    return Err(StoreError::corrupt(&path, 0, what));
                }
                self.begin_segment(piece, &path)?;
                0
            }
            None => {
                if piece.at.segment.0 > 0 {
                    let begin = Link { next: piece.at.segment, checksum: piece.previous };
                    begin_at(self.disk.as_ref(), &self.dir, begin)?;
                }
                self.begin_segment(piece, &path)?;
                0
            }
        };
        let written = if before > 0 { self.append(piece, &path, before) } else { self.look(piece, &path) };
        if written.is_err() {
            self.take_back(&path, before)?;
        }
        written?;
        self.publish();
        Ok(Taken::New)
    }

    /// Begins a segment with its header.
    fn begin_segment(&mut self, piece: &Piece, path: &Path) -> Result<(), StoreError> {
        let unfinished = path.with_extension(UNFINISHED_EXTENSION.trim_start_matches('.'));
        let writing = |error| StoreError::io("writing", &unfinished, error);
        let file = self.disk.open(&unfinished, Access::Replace).map_err(writing)?;
        write_all_at(file.as_ref(), &piece.bytes, 0).map_err(writing)?;
        sync_file(file.as_ref(), &unfinished)?;
        self.disk.rename(&unfinished, path).map_err(writing)?;
        sync_dir(self.disk.as_ref(), &self.dir)?;
        self.file = Some(file);
        Ok(())
    }

    /// Writes what is not there yet.
    fn append(&mut self, piece: &Piece, path: &Path, before: u64) -> Result<(), StoreError> {
        let new = &piece.bytes[(before - piece.at.offset) as usize..];
        let Some(file) = &self.file else { return Err(StoreError::corrupt(path, before, "there is no segment")) };
        write_all_at(file.as_ref(), new, before).map_err(|error| StoreError::io("writing", path, error))?;
        sync_file(file.as_ref(), path)?;
        self.look(piece, path)
    }

    /// Reads what was written, as recovery would.
    fn look(&mut self, piece: &Piece, path: &Path) -> Result<(), StoreError> {
        let tail = extend(self.disk.as_ref(), &self.dir, &mut self.index)?;
        let ends = self.next() == Some(piece.after()) && self.index.end() == piece.end;
        if tail == Tail::Clean && ends {
            return Ok(());
        }
        Err(StoreError::corrupt(
            path,
            piece.at.offset,
            "what came is damaged, or does not continue the log that is there",
        ))
    }

    /// Removes what a piece that cannot be used has left.
    fn take_back(&mut self, path: &Path, before: u64) -> Result<(), StoreError> {
        if before > 0 {
            cut_off(self.disk.as_ref(), path, before)?;
        } else {
            self.disk.remove(path).map_err(|error| StoreError::io("removing", path, error))?;
            sync_dir(self.disk.as_ref(), &self.dir)?;
            forget_begin_without_segments(self.disk.as_ref(), &self.dir)?;
        }
        let mut index = Index::default();
        extend(self.disk.as_ref(), &self.dir, &mut index)?;
        let last = index.segments().last().map(|last| last.path.to_path_buf());
        let open = |path: PathBuf| {
            self.disk.open(&path, Access::Write).map_err(|error| StoreError::io("opening", &path, error))
        };
        self.file = last.map(open).transpose()?;
        self.index = index;
        Ok(())
    }

    fn publish(&self) {
        let end = self.index.end();
        self.hint.publish(Positions { appended: end, durable: end });
    }
}

fn cut_off(disk: &dyn Disk, path: &Path, at: u64) -> Result<(), StoreError> {
    let cutting = |error| StoreError::io("cutting", path, error);
    let file = disk.open(path, Access::Write).map_err(cutting)?;
    file.truncate(at).map_err(cutting)?;
    sync_file(file.as_ref(), path)
}
