//! The one that appends.

use crate::log::block::{BlockHeader, EncodedBlock, Link};
use crate::log::column::Compressor;
use crate::log::disk::{Access, Disk, DiskFile, StdDisk, write_all_at};
use crate::log::error::{Damage, StoreError};
use crate::log::hint::{HintFile, Positions};
use crate::log::index::{Index, Seal};
use crate::log::metrics::LogMetrics;
use crate::log::options::LogOptions;
use crate::log::reader::{LogReader, read_cursors};
use crate::log::recovery::{Recovery, recover, sync_dir, sync_file};
use crate::log::segment::{Footer, Predecessor, SegmentHeader, UNFINISHED_EXTENSION, file_name};
use crate::log::shared::Shared;
use crate::log::validate::validate;
use crate::{DurablePosition, Entry, Identity, SequenceNumber, SourceCursor};
use prometheus::Registry;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A sync is due, whatever the interval, once so much would be lost without it.
const UNSYNCED_BYTES: u64 = 64 << 20;

/// Appends blocks to a log. There is one per log, in one process.
///
/// After a failed write or sync nothing is known about what is on the disk, so the writer stops for good: every later
/// call returns the first cause. The next [`LogWriter::open`] finds out what is there.
#[derive(Debug)]
pub struct LogWriter {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    identity: Identity,
    options: LogOptions,
    segment: OpenSegment,
    cursors: BTreeMap<Arc<str>, SourceCursor>,
    shared: Arc<Shared>,
    reader: LogReader,
    hint: HintFile,
    compressor: Compressor,
    metrics: LogMetrics,
    /// When the oldest block was appended that is not durable, and the bytes of all of them.
    unsynced: Option<(Instant, u64)>,
    poison: Option<StoreError>,
}

/// The segment that grows.
#[derive(Debug)]
struct OpenSegment {
    file: Arc<dyn DiskFile>,
    path: PathBuf,
    /// Where the next block goes.
    offset: u64,
    link: Link,
    /// Whether there is no block in it.
    empty: bool,
}

impl LogWriter {
    /// Creates the log in `dir`, or recovers the one that is there.
    ///
    /// # Errors
    /// [`StoreError::IdentityMismatch`], [`StoreError::Corrupt`], [`StoreError::TooShort`] and [`StoreError::InUse`]
    /// leave the folder as it was.
    pub fn open(
        dir: &Path,
        identity: &Identity,
        options: &LogOptions,
        registry: &Registry,
    ) -> Result<(Self, Recovery), StoreError> {
        Self::open_on(Arc::new(StdDisk), dir, identity, options, registry)
    }

    /// [`LogWriter::open`] on another file system.
    pub fn open_on(
        disk: Arc<dyn Disk>,
        dir: &Path,
        identity: &Identity,
        options: &LogOptions,
        registry: &Registry,
    ) -> Result<(Self, Recovery), StoreError> {
        let metrics = LogMetrics::register(registry)?;
        create_folder(disk.as_ref(), dir)?;
        let hint = HintFile::acquire(disk.as_ref(), dir)?;
        let (mut index, recovery) = recover(disk.as_ref(), dir, identity, options.required)?;
        let cursors = read_cursors(disk.as_ref(), &index, index.end())?;
        let mut compressor = Compressor::new().map_err(|error| StoreError::io("preparing zstd for", dir, error))?;
        let header = next_header(&index, &cursors, identity, options);
        let segment = first_segment(disk.as_ref(), dir, &mut index, header, &mut compressor)?;
        metrics.torn_bytes.inc_by(recovery.torn_bytes);
        let shared = Arc::new(Shared::new(index, recovery.durable));
        let reader = LogReader::of_writer(Arc::clone(&disk), dir, identity.clone(), Arc::clone(&shared));
        let (dir, identity, options) = (dir.to_owned(), identity.clone(), options.clone());
        let (unsynced, poison) = (None, None);
        let writer = Self {
            disk,
            dir,
            identity,
            options,
            segment,
            cursors,
            shared,
            reader,
            hint,
            compressor,
            metrics,
            unsynced,
            poison,
        };
        writer.publish();
        Ok((writer, recovery))
    }

    /// Appends `block` whole: after a crash all of it is in the log, or nothing. It is durable after the next
    /// [`LogWriter::sync`]. An empty block is no block.
    ///
    /// # Errors
    /// [`StoreError::InvalidEntry`] leaves the log as it was; every other error stops the writer for good.
    pub fn append(&mut self, block: &[Entry]) -> Result<(), StoreError> {
        self.usable()?;
        validate(block, self.next(), self.identity.teachers.len())?;
        let Some(first) = block.first() else { return Ok(()) };
        let encoded = EncodedBlock::new(block, &mut self.compressor)
            .map_err(|Damage(what)| StoreError::InvalidEntry { sequence: first.sequence, what })?;
        let written = self.write(encoded);
        self.remember(written)?;
        for entry in block {
            self.cursors.insert(Arc::clone(&entry.cursor.source), entry.cursor.clone());
        }
        self.metrics.appended_entries.inc_by(block.len() as u64);
        self.metrics.appended_sequence.set(self.next().0.cast_signed());
        Ok(())
    }

    /// Makes everything that was appended durable, and lets readers see it.
    pub fn sync(&mut self) -> Result<DurablePosition, StoreError> {
        self.usable()?;
        let synced = self.flush();
        self.remember(synced)?;
        Ok(self.reader.durable())
    }

    /// How long until [`LogWriter::sync`] should be called; `None` if everything is durable.
    #[must_use]
    pub fn sync_due(&self) -> Option<Duration> {
        self.unsynced.map(|(since, bytes)| match bytes {
            UNSYNCED_BYTES.. => Duration::ZERO,
            _ => self.options.sync_interval.saturating_sub(since.elapsed()),
        })
    }

    /// A clean stop: makes everything durable and gives the last segment its footer. The next writer begins a new segment.
    pub fn seal(mut self) -> Result<(), StoreError> {
        self.usable()?;
        let sealed = self.finish_segment();
        self.remember(sealed)
    }

    /// A reader that follows this writer.
    #[must_use]
    pub fn reader(&self) -> LogReader {
        self.reader.clone()
    }

    /// The sequence number that the next entry must have.
    #[must_use]
    pub fn next(&self) -> SequenceNumber {
        self.segment.link.next
    }

    /// State of every source that has an entry in the log, after the last entry.
    #[must_use]
    pub fn cursors(&self) -> &BTreeMap<Arc<str>, SourceCursor> {
        &self.cursors
    }

    fn usable(&self) -> Result<(), StoreError> {
        self.poison.clone().map_or(Ok(()), Err)
    }

    /// Keeps the first failure.
    fn remember<T>(&mut self, outcome: Result<T, StoreError>) -> Result<T, StoreError> {
        outcome.inspect_err(|cause| self.poison = Some(cause.clone()))
    }

    fn write(&mut self, encoded: EncodedBlock) -> Result<(), StoreError> {
        if !self.segment.empty && self.segment.offset + encoded.bytes() > self.options.segment_bytes {
            self.roll()?;
        }
        let segment = &mut self.segment;
        let (header, bytes) = encoded.place(segment.link, self.reader.durable().end());
        write_all_at(segment.file.as_ref(), &bytes, segment.offset)
            .map_err(|error| StoreError::io("appending to", &segment.path, error))?;
        segment.offset += header.bytes();
        segment.link = header.link();
        segment.empty = false;
        self.shared.lock().index.push_block(&header);
        self.wrote(header.bytes());
        Ok(())
    }

    fn wrote(&mut self, bytes: u64) {
        self.metrics.bytes.inc_by(bytes);
        let (since, before) = self.unsynced.unwrap_or((Instant::now(), 0));
        self.unsynced = Some((since, before + bytes));
    }

    fn flush(&mut self) -> Result<(), StoreError> {
        if self.unsynced.is_none() {
            return Ok(());
        }
        let timer = self.metrics.fsync_seconds.start_timer();
        sync_file(self.segment.file.as_ref(), &self.segment.path)?;
        timer.observe_duration();
        self.unsynced = None;
        self.shared.publish();
        self.publish();
        Ok(())
    }

    /// Tells the metrics and other processes where the log is.
    fn publish(&self) {
        let durable = self.reader.durable().end();
        self.metrics.appended_sequence.set(self.next().0.cast_signed());
        self.metrics.durable_sequence.set(durable.0.cast_signed());
        self.hint.publish(Positions { appended: self.next(), durable });
    }

    /// Seals the segment and begins the next one.
    fn roll(&mut self) -> Result<(), StoreError> {
        self.finish_segment()?;
        let mut state = self.shared.lock();
        let header = next_header(&state.index, &self.cursors, &self.identity, &self.options);
        self.segment = create_segment(self.disk.as_ref(), &self.dir, &mut state.index, header)?;
        Ok(())
    }

    /// Makes the segment's blocks durable, and only then writes its footer: a footer proves that they had been.
    fn finish_segment(&mut self) -> Result<(), StoreError> {
        self.flush()?;
        if self.segment.empty {
            return Ok(());
        }
        let bytes = seal_segment(self.segment.file.as_ref(), &mut self.shared.lock().index, &mut self.compressor)?;
        self.metrics.bytes.inc_by(bytes);
        Ok(())
    }
}

/// Creates the log's folder; its name, and those of the folders above it, are durable afterwards.
fn create_folder(disk: &dyn Disk, dir: &Path) -> Result<(), StoreError> {
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
fn next_header(
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
        precision: options.precision,
        top_k: options.top_k,
        identity: identity.clone(),
        cursors: cursors.values().cloned().collect(),
    }
}

/// The segment in which a writer goes on: the last one, if it is unsealed and its header says what a new one's would;
/// else a new one.
fn first_segment(
    disk: &dyn Disk,
    dir: &Path,
    index: &mut Index,
    header: SegmentHeader,
    compressor: &mut Compressor,
) -> Result<OpenSegment, StoreError> {
    let empty = index.last_segment_is_empty();
    if let Some(last) = index.segments().last().filter(|last| last.seal == Seal::Open) {
        let path = last.path.to_path_buf();
        let file = disk.open(&path, Access::Write).map_err(|error| StoreError::io("opening", &path, error))?;
        let same = |old: &SegmentHeader| {
            (&old.identity, old.top_k, old.precision) == (&header.identity, header.top_k, header.precision)
        };
        if same(&last.header) {
            return Ok(OpenSegment { file, path, offset: last.end_offset, link: last.link, empty });
        }
        if empty {
            index.pop_empty_segment();
        } else {
            seal_segment(file.as_ref(), index, compressor)?;
        }
    }
    create_segment(disk, dir, index, header)
}

/// Creates a segment under a temporary name, so that one with its own name always has a whole header; its name is durable
/// before anything is appended to it.
fn create_segment(
    disk: &dyn Disk,
    dir: &Path,
    index: &mut Index,
    header: SegmentHeader,
) -> Result<OpenSegment, StoreError> {
    let path = dir.join(file_name(header.first_sequence));
    let unfinished = path.with_extension(UNFINISHED_EXTENSION.trim_start_matches('.'));
    let bytes = header.encode().map_err(|error| StoreError::io("describing", &path, error.into()))?;
    let creating = |error| StoreError::io("creating", &path, error);
    let file = disk.open(&unfinished, Access::Replace).map_err(creating)?;
    write_all_at(file.as_ref(), &bytes, 0).map_err(creating)?;
    sync_file(file.as_ref(), &unfinished)?;
    disk.rename(&unfinished, &path).map_err(creating)?;
    sync_dir(disk, dir)?;
    let link = header.link();
    let offset = bytes.len() as u64;
    index.push_segment(&path, header, offset);
    Ok(OpenSegment { file, path, offset, link, empty: true })
}

/// Writes the footer of the last segment, whose blocks are durable; gives its length.
fn seal_segment(file: &dyn DiskFile, index: &mut Index, compressor: &mut Compressor) -> Result<u64, StoreError> {
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
    let bytes = footer.len() as u64;
    if let Some(segment) = index.last_segment_mut() {
        segment.seal = Seal::Footer { bytes };
    }
    Ok(bytes)
}
