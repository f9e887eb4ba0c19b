//! The one that appends.

mod open_segment;
mod prepared;

pub(crate) use open_segment::{create_folder, create_segment, next_header};
pub use prepared::PreparedBlock;

use self::open_segment::{OpenSegment, first_segment, seal_segment, unfinished_path};
use self::prepared::last_cursors;
use crate::log::block::EncodedBlock;
use crate::log::codec::Compaction;
use crate::log::column::Compressor;
use crate::log::disk::{Disk, StdDisk, write_all_at};
use crate::log::error::{Damage, StoreError};
use crate::log::hint::{HintFile, Positions};
use crate::log::metrics::LogMetrics;
use crate::log::options::LogOptions;
use crate::log::reader::{LogReader, read_cursors};
use crate::log::recovery::{Recovery, recover, sync_file};
use crate::log::retention::{Need, Pass, Retention, RetentionPass};
use crate::log::room::{Room, give_back};
use crate::log::segment::file_name;
use crate::log::shared::Shared;
use crate::log::validate::validate;
use crate::{DurablePosition, Entry, Identity, SequenceNumber, SourceCursor};
use prometheus::Registry;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A sync is due, whatever the interval, once so much would be lost.
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
        let metrics = LogMetrics::new()?;
        metrics.register(registry)?;
        create_folder(disk.as_ref(), dir)?;
        let hint = HintFile::acquire(disk.as_ref(), dir)?;
        let (mut index, recovery) = recover(disk.as_ref(), dir, identity, options.required)?;
        let cursors = read_cursors(disk.as_ref(), &index, index.end())?;
        let mut compressor = Compressor::new().map_err(|error| StoreError::io("preparing zstd for", dir, error))?;
        let header = next_header(&index, &cursors, identity, options);
        let segment = first_segment(disk.as_ref(), dir, &mut index, header, &mut compressor)?;
        metrics.torn_bytes.inc_by(recovery.torn_bytes);
        let shared = Arc::new(Shared::new(index, recovery.durable));
        let read_bytes = metrics.read_bytes.clone();
        let reader = LogReader::of_writer(Arc::clone(&disk), dir, identity.clone(), Arc::clone(&shared), read_bytes);
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
    /// [`StoreError::InvalidEntry`] leaves the log as it was, and so does [`StoreError::NoRoom`]: the same block may be appended
    /// when there is room. Every other error stops the writer for good.
    pub fn append(&mut self, block: &[Entry]) -> Result<(), StoreError> {
        self.usable()?;
        validate(block, self.next(), self.identity.teachers.len(), self.options.extras())?;
        if block.is_empty() {
            return Ok(());
        }
        let written = self.encode(block).and_then(|encoded| self.write(encoded, Some(block)));
        self.remember(written)?;
        self.has_appended(block.len(), last_cursors(block));
        Ok(())
    }

    /// Makes everything that was appended durable, and lets readers see it.
    pub fn sync(&mut self) -> Result<DurablePosition, StoreError> {
        self.usable()?;
        let synced = self.flush();
        self.remember(synced)?;
        Ok(self.reader.durable())
    }

    /// Changes the longest time for which appended records may not be durable.
    pub fn set_sync_interval(&mut self, interval: Duration) {
        self.options.sync_interval = interval;
    }

    /// How long until [`LogWriter::sync`] should be called; `None` if everything is durable.
    #[must_use]
    pub fn sync_due(&self) -> Option<Duration> {
        self.unsynced.map(|(since, bytes)| match bytes {
            UNSYNCED_BYTES.. => Duration::ZERO,
            _ => self.options.sync_interval.saturating_sub(since.elapsed()),
        })
    }

    /// Removes the oldest sealed segments, as far as `retention` says and nobody needs them (`None`: nobody needs anything). Their
    /// held-out records are kept.
    ///
    /// # Errors
    /// A full disk ([`StoreError::is_no_space`]) leaves what is there to the next pass; every other error stops the writer
    /// for good.
    pub fn retain(&mut self, retention: &Retention, need: Option<&Need>) -> Result<RetentionPass, StoreError> {
        self.usable()?;
        let pass = Pass {
            disk: &self.disk,
            dir: &self.dir,
            identity: &self.identity,
            top_k: self.options.top_k,
            extras: self.options.extras(),
            shared: &self.shared,
        };
        let outcome = match self.metrics.observe_retention(|| pass.run(retention, need)) {
            Err(error) if error.is_no_space() => return Err(error),
            outcome => self.remember(outcome)?,
        };
        self.publish();
        Ok(outcome)
    }

    /// Nothing is to be removed any more, so nothing is held back.
    pub fn keeps_all(&self) {
        self.metrics.held_back_segments.set(0);
    }

    /// Stops without sealing: makes everything durable and gives reserved room back. The next writer goes on in the same
    /// segment.
    pub(crate) fn leave(mut self) -> Result<(), StoreError> {
        self.sync()?;
        give_back(self.segment.file.as_ref(), &self.segment.path);
        Ok(())
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

    /// Number of segments, the one that grows included: it changes when one is sealed.
    #[must_use]
    pub fn segments(&self) -> usize {
        self.shared.lock().index.segments().len()
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
        outcome.inspect_err(|cause| {
            if !matches!(cause, StoreError::NoRoom { .. } | StoreError::InvalidEntry { .. }) {
                self.poison = Some(cause.clone());
            }
        })
    }

    fn encode(&mut self, block: &[Entry]) -> Result<EncodedBlock, StoreError> {
        let invalid = |Damage(what)| StoreError::InvalidEntry { sequence: self.segment.link.next, what };
        EncodedBlock::new(block, self.segment.compaction.as_mut(), &mut self.compressor).map_err(invalid)
    }

    fn has_appended(&mut self, entries: usize, last: Vec<SourceCursor>) {
        self.cursors.extend(last.into_iter().map(|cursor| (Arc::clone(&cursor.source), cursor)));
        self.metrics.appended_entries.inc_by(entries as u64);
        self.metrics.appended_sequence.set(self.next().0.cast_signed());
    }

    /// Makes sure of room, and only then writes: a disk that is full is no failed write. `block` is what was encoded.
    fn write(&mut self, mut encoded: EncodedBlock, block: Option<&[Entry]>) -> Result<(), StoreError> {
        let sizes = (encoded.bytes(), encoded.header_bytes());
        let bytes_max = self.segment.bytes_max.min(self.options.segment_bytes);
        let rolls = !self.segment.empty && self.segment.offset + encoded.bytes() > bytes_max;
        let mut made = if rolls { self.roll(sizes) } else { self.make_room(sizes) };
        if rolls && made.is_ok() && self.segment.compaction.is_some() {
            // The new segment has other tables.
            let Some(block) = block else { return Err(self.prepared_for_another_segment()) };
            encoded = self.encode(block)?;
            made = self.make_room((encoded.bytes(), encoded.header_bytes()));
        }
        self.metrics.waiting_for_room.set(made.as_ref().is_err_and(StoreError::is_no_room).into());
        made?;
        let segment = &mut self.segment;
        segment.room.used(encoded.header_bytes());
        let (header, bytes) = encoded.place(segment.link, self.reader.durable().end());
        write_all_at(segment.file.as_ref(), &bytes, segment.offset)
            .map_err(|error| StoreError::io("appending to", &segment.path, error))?;
        segment.offset += header.bytes();
        segment.link = header.link();
        segment.empty = false;
        segment.compaction.iter_mut().for_each(Compaction::appended);
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

    fn make_room(&mut self, sizes: (u64, u64)) -> Result<(), StoreError> {
        let OpenSegment { file, path, offset, room, .. } = &mut self.segment;
        room.make(file.as_ref(), path, *offset, sizes, self.options.segment_bytes)
    }

    /// Tells the metrics and other processes where the log is.
    fn publish(&self) {
        let positions = Positions { appended: self.next(), durable: self.reader.durable().end() };
        self.metrics.observe(&self.shared.lock().index);
        self.metrics.observe_positions(positions);
        self.hint.publish(positions);
    }

    /// Seals the segment and begins the next one, with room for a block.
    fn roll(&mut self, block_sizes: (u64, u64)) -> Result<(), StoreError> {
        let path = self.dir.join(file_name(self.next()));
        let before = self.shared.lock().index.segments().last().map_or(0, |last| last.header_bytes);
        // Its tables have at most a byte for each token of each teacher.
        let header_bytes =
            before + self.identity.teachers.iter().map(|teacher| u64::from(teacher.vocabulary_size)).sum::<u64>();
        let room = Room::for_next(self.disk.as_ref(), (&path, &unfinished_path(&path)), header_bytes, block_sizes)?;
        self.finish_segment()?;
        let mut state = self.shared.lock();
        let header = next_header(&state.index, &self.cursors, &self.identity, &self.options);
        let tables = self.segment.compaction.as_mut().map(|compaction| compaction.census.tables(&compaction.tables));
        let tables = tables.unwrap_or_default();
        self.segment = create_segment(self.disk.as_ref(), &self.dir, &mut state.index, header, tables)?;
        self.segment.room = room;
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
