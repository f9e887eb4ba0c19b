//! A log's bytes for another place: what is durable, piece by piece, and a mirror that is made of the pieces.
//!
//! A piece is a segment's header, whole blocks, or a footer, as they are in the file. A mirror has the same files, byte for byte, and is a log as any other: it
//! may be read while it grows, and verified. Its oldest segments may be removed as those of any log, whatever the published one keeps.
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
use crate::log::index::{Index, Segment};
use crate::log::metrics::LogMetrics;
use crate::log::reader::LogReader;
use crate::log::recovery::{sync_dir, sync_file};
use crate::log::retention::{Need, Pass, Retention, RetentionPass, begin_at, finish, forget_begin_without_segments};
use crate::log::segment::{UNFINISHED_EXTENSION, file_name};
use crate::log::shared::Shared;
use crate::log::survey::{Tail, extend};
use crate::log::writer::create_folder;
use crate::{DurablePosition, SequenceNumber};
use prometheus::Registry;
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
    shared: Arc<Shared>,
    /// The last segment.
    file: Option<Arc<dyn DiskFile>>,
    metrics: LogMetrics,
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
        let (mut index, metrics) = (Index::default(), LogMetrics::new()?);
        match extend(disk.as_ref(), dir, &mut index)? {
            Tail::Clean => {}
            Tail::Torn { path, offset, bytes } => {
                cut_off(disk.as_ref(), &path, offset)?;
                metrics.torn_bytes.inc_by(bytes);
            }
            Tail::TornHeader { path, bytes } => {
                metrics.torn_bytes.inc_by(bytes);
                disk.remove(&path).map_err(|error| StoreError::io("removing", &path, error))?;
                sync_dir(disk.as_ref(), dir)?;
            }
        }
        finish(disk.as_ref(), dir, index.begin())?; // What an interrupted pass of retention left.
        let file = open_last(disk.as_ref(), &index)?;
        if let (Some(file), Some(last)) = (&file, index.segments().last()) {
            sync_file(file.as_ref(), &last.path)?; // What is there may be in the page cache alone.
        }
        let durable = DurablePosition::from_log(index.end().0);
        let shared = Arc::new(Shared::new(index, durable));
        let mirror = Self { file, disk, dir: dir.to_owned(), hint, shared, metrics };
        mirror.publish();
        Ok(mirror)
    }

    /// Has `registry` show the log's metrics.
    ///
    /// # Errors
    /// [`StoreError::Metrics`].
    pub fn register(&self, registry: &Registry) -> Result<(), StoreError> {
        self.metrics.register(registry)
    }

    /// A reader that sees what the mirror takes as soon as it is there.
    ///
    /// # Errors
    /// [`StoreError::NoLog`] before the first piece.
    pub fn reader(&self) -> Result<LogReader, StoreError> {
        let identity = self.shared.lock().index.segments().last().map(|last| last.header.identity.clone());
        let identity = identity.ok_or_else(|| StoreError::NoLog { dir: self.dir.clone() })?;
        let (disk, shared) = (Arc::clone(&self.disk), Arc::clone(&self.shared));
        Ok(LogReader::of_writer(disk, &self.dir, identity, shared, self.metrics.read_bytes.clone()))
    }

    /// How far it goes.
    #[must_use]
    pub fn durable(&self) -> DurablePosition {
        self.shared.lock().durable
    }

    /// Number of segments, the one that grows included.
    #[must_use]
    pub fn segments(&self) -> usize {
        self.shared.lock().index.segments().len()
    }

    /// Where the next piece begins, if it is of the last segment; `None`: there is no segment.
    #[must_use]
    pub fn next(&self) -> Option<Place> {
        let state = self.shared.lock();
        let last = state.index.segments().last()?;
        Some(Place { segment: last.header.first_sequence, offset: last.bytes() })
    }

    /// Adds a piece, durably.
    ///
    /// # Errors
    /// [`StoreError::AnotherLog`] if it is of another log, [`StoreError::Corrupt`] if it is damaged: then nothing has changed. Nor has it when the disk is full
    /// ([`StoreError::is_no_space`]): the same piece may be taken when there is room.
    pub fn take(&mut self, piece: &Piece) -> Result<Taken, StoreError> {
        let taken = self.try_take(piece);
        self.metrics.waiting_for_room.set(taken.as_ref().is_err_and(StoreError::is_no_space).into());
        taken
    }

    fn try_take(&mut self, piece: &Piece) -> Result<Taken, StoreError> {
        let path = self.dir.join(file_name(piece.at.segment));
        let before = match self.next() {
            Some(next) if piece.at.segment < next.segment || piece.after() <= next => {
                self.compare(piece, &piece.bytes)?;
                return Ok(Taken::Known);
            }
            Some(next) if piece.at.segment == next.segment && piece.at.offset <= next.offset => {
                self.compare(piece, &piece.bytes[..(next.offset - piece.at.offset) as usize])?;
                next.offset
            }
            Some(next) if piece.at.segment == next.segment => return Ok(Taken::Gap),
            _ if piece.at.offset > 0 => return Ok(Taken::Gap),
            Some(_) => {
                let link = self.shared.lock().index.link();
                if piece.at.segment != link.next {
                    return Ok(Taken::Gap);
                }
                if piece.previous != link.checksum {
                    return Err(self.another_log(piece));
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

    /// Removes the oldest segments, as far as `retention` says and nobody needs them (`None`: nobody needs anything). Their held-out records
    /// are kept. Never the last segment.
    ///
    /// # Errors
    /// A full disk ([`StoreError::is_no_space`]) leaves what is there to the next pass.
    pub fn retain(&mut self, retention: &Retention, need: Option<&Need>) -> Result<RetentionPass, StoreError> {
        let header = self.shared.lock().index.segments().last().map(|last| Arc::clone(&last.header));
        let Some(header) = header else { return Ok(RetentionPass::default()) };
        let pass = Pass {
            disk: &self.disk,
            dir: &self.dir,
            identity: &header.identity,
            top_k: header.top_k,
            extras: header.extras(),
            shared: &self.shared,
        };
        let outcome = self.metrics.observe_retention(|| pass.run(retention, need));
        if outcome.as_ref().is_err_and(StoreError::is_no_space) {
            self.look_anew()?; // Segments may have left the index, and are in the folder.
        }
        let outcome = outcome?;
        self.publish();
        Ok(outcome)
    }

    /// Nothing is to be removed any more, so nothing is held back.
    pub fn keeps_all(&self) {
        self.metrics.held_back_segments.set(0);
    }

    /// Fails if these bytes, with which `piece` begins, are there and are others. What retention has removed is believed.
    fn compare(&self, piece: &Piece, bytes: &[u8]) -> Result<(), StoreError> {
        let (begin, segment) = {
            let state = self.shared.lock();
            let of_piece = |segment: &&Segment| segment.header.first_sequence == piece.at.segment;
            (state.index.begin().next, state.index.segments().iter().find(of_piece).cloned())
        };
        if piece.at.segment < begin {
            return Ok(());
        }
        let segment = segment.filter(|segment| piece.at.offset.saturating_add(bytes.len() as u64) <= segment.bytes());
        let segment = segment.ok_or_else(|| self.another_log(piece))?;
        let reading = |error| StoreError::io("reading", &segment.path, error);
        let file = self.disk.open(&segment.path, Access::Read).map_err(reading)?;
        let there = read_exact_at(file.as_ref(), piece.at.offset, bytes.len()).map_err(reading)?;
        if there == bytes { Ok(()) } else { Err(self.another_log(piece)) }
    }

    fn another_log(&self, piece: &Piece) -> StoreError {
        StoreError::AnotherLog { dir: self.dir.clone(), segment: piece.at.segment }
    }

    /// Begins a segment with its header.
    fn begin_segment(&mut self, piece: &Piece, path: &Path) -> Result<(), StoreError> {
        let unfinished = path.with_extension(UNFINISHED_EXTENSION.trim_start_matches('.'));
        let writing = |error| StoreError::io("writing", &unfinished, error);
        let file = self.disk.open(&unfinished, Access::Replace).map_err(writing)?;
        write_all_at(file.as_ref(), &piece.bytes, 0).map_err(writing)?;
        sync_file(file.as_ref(), &unfinished)?;
        self.metrics.bytes.inc_by(piece.bytes.len() as u64);
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
        let timer = self.metrics.fsync_seconds.start_timer();
        sync_file(file.as_ref(), path)?;
        timer.observe_duration();
        self.metrics.bytes.inc_by(new.len() as u64);
        self.look(piece, path)
    }

    /// Reads what was written, as recovery would.
    fn look(&mut self, piece: &Piece, path: &Path) -> Result<(), StoreError> {
        let (tail, end) = {
            let mut state = self.shared.lock();
            (extend(self.disk.as_ref(), &self.dir, &mut state.index)?, state.index.end())
        };
        let ends = self.next() == Some(piece.after()) && end == piece.end;
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
        self.look_anew()
    }

    /// Takes what is in the folder for what there is.
    fn look_anew(&mut self) -> Result<(), StoreError> {
        let mut index = Index::default();
        extend(self.disk.as_ref(), &self.dir, &mut index)?;
        self.file = open_last(self.disk.as_ref(), &index)?;
        self.shared.lock().index = index;
        Ok(())
    }

    fn publish(&self) {
        let before = self.durable().end();
        let end = self.shared.publish().end();
        let positions = Positions { appended: end, durable: end };
        self.metrics.appended_entries.inc_by(end.0.saturating_sub(before.0));
        self.metrics.observe(&self.shared.lock().index);
        self.metrics.observe_positions(positions);
        self.hint.publish(positions);
    }
}

/// The file of the last segment, to write on.
fn open_last(disk: &dyn Disk, index: &Index) -> Result<Option<Arc<dyn DiskFile>>, StoreError> {
    let open = |path: &Path| disk.open(path, Access::Write).map_err(|error| StoreError::io("opening", path, error));
    index.segments().last().map(|last| open(&last.path)).transpose()
}

fn cut_off(disk: &dyn Disk, path: &Path, at: u64) -> Result<(), StoreError> {
    let cutting = |error| StoreError::io("cutting", path, error);
    let file = disk.open(path, Access::Write).map_err(cutting)?;
    file.truncate(at).map_err(cutting)?;
    sync_file(file.as_ref(), path)
}
