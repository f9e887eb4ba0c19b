//! Reading a log, by sequence number or language by language, never past what is durable.

use crate::log::block::{BlockHeader, StoredBlock};
use crate::log::cache::{BlockCache, Entries};
use crate::log::disk::{Access, Disk, DiskFile, StdDisk};
use crate::log::entries::Outline;
use crate::log::error::{Damage, Fault, StoreError};
use crate::log::hint::{Positions, Presence, look};
use crate::log::index::{BlockPlace, Index};
use crate::log::recovery::require;
use crate::log::shared::{Shared, State};
use crate::log::survey::{Tail, extend};
use crate::{DurablePosition, Entry, Identity, Payload, Precision, SequenceNumber, SourceCursor};
use prometheus::IntCounter;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// A reader without a writer in its process looks at the folder again after this long.
const REFRESH_INTERVAL: Duration = Duration::from_millis(50);

/// Reads a log while it is being written, or afterwards. Cloning shares index and cache.
///
/// What it is asked for must be durable; positions beyond are cut back to what is. It never changes a file.
#[derive(Clone, Debug)]
pub struct LogReader {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    identity: Identity,
    shared: Arc<Shared>,
    /// `None`: the writer is in this process and keeps `shared` up to date.
    follower: Option<Mutex<Follower>>,
    cache: Mutex<BlockCache>,
    /// Of the writer's metrics; `None`: there is no writer in this process.
    read_bytes: Option<IntCounter>,
}

/// What a reader without a writer in its process saw last.
#[derive(Clone, Debug)]
pub(crate) struct Follower {
    looked: Instant,
    pub(crate) tail: Tail,
    /// What the writer in another process said, if there is one.
    pub(crate) live: Option<Positions>,
}

impl LogReader {
    /// Opens the log in `dir`, whether a writer is at work there or not. With a live writer the reader sees what that one has
    /// made durable; without, everything valid on disk.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        Self::open_on(Arc::new(StdDisk), dir)
    }

    /// [`LogReader::open`] on another file system.
    pub fn open_on(disk: Arc<dyn Disk>, dir: &Path) -> Result<Self, StoreError> {
        let shared = Shared::new(Index::default(), DurablePosition::default());
        let follower = follow(disk.as_ref(), dir, &mut shared.lock())?;
        let identity = shared.lock().index.segments().last().map(|last| last.header.identity.clone());
        let identity = identity.ok_or_else(|| StoreError::NoLog { dir: dir.to_owned() })?;
        let inner = Inner {
            disk,
            dir: dir.to_owned(),
            identity,
            shared: Arc::new(shared),
            follower: Some(Mutex::new(follower)),
            cache: Mutex::default(),
            read_bytes: None,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    pub(crate) fn of_writer(
        disk: Arc<dyn Disk>,
        dir: &Path,
        identity: Identity,
        shared: Arc<Shared>,
        read_bytes: IntCounter,
    ) -> Self {
        let (dir, cache, read_bytes) = (dir.to_owned(), Mutex::default(), Some(read_bytes));
        Self { inner: Arc::new(Inner { disk, dir, identity, shared, follower: None, cache, read_bytes }) }
    }

    /// What the log is made of, as it was when the reader was opened.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.inner.identity
    }

    /// How labels are stored; where segments differ, the less exact way.
    #[must_use]
    pub fn precision(&self) -> Precision {
        let state = self.inner.shared.lock();
        let mut precisions = state.index.segments().iter().map(|segment| segment.header.precision);
        precisions.find(|precision| *precision != Precision::Exact).unwrap_or_default()
    }

    /// How far the log may be read. A failure to look keeps the position; [`LogReader::refresh`] tells it.
    #[must_use]
    pub fn durable(&self) -> DurablePosition {
        if let Some(follower) = self.follower()
            && follower.looked.elapsed() >= REFRESH_INTERVAL
        {
            drop(follower);
            let _ = self.refresh();
        }
        self.inner.shared.lock().durable
    }

    /// Looks at the folder again, unless the writer is in this process.
    pub fn refresh(&self) -> Result<DurablePosition, StoreError> {
        if let Some(mut follower) = self.follower() {
            let found = follow(self.inner.disk.as_ref(), &self.inner.dir, &mut self.inner.shared.lock());
            follower.looked = Instant::now();
            *follower = found.inspect_err(|error| tracing::warn!(%error, "could not follow the log"))?;
        }
        Ok(self.inner.shared.lock().durable)
    }

    /// Waits until more than `position` is durable, at most `timeout`. Gives how far the log may be read.
    #[must_use]
    pub fn wait_beyond(&self, position: DurablePosition, timeout: Duration) -> DurablePosition {
        if self.inner.follower.is_none() {
            return self.inner.shared.wait_beyond(position, timeout);
        }
        let start = Instant::now();
        loop {
            let _ = self.refresh(); // A failure is logged; the position stays.
            let left = timeout.saturating_sub(start.elapsed());
            let durable = self.inner.shared.lock().durable;
            if durable > position || left.is_zero() {
                return durable;
            }
            thread::sleep(left.min(REFRESH_INTERVAL));
        }
    }

    /// The first entry that is in the log: 0, or the first that retention left.
    #[must_use]
    pub fn begin(&self) -> SequenceNumber {
        self.inner.shared.lock().index.begin().next
    }

    /// Fails if the log does not hold every entry below `required`, which a checkpoint or the journal refers to.
    pub fn require(&self, required: DurablePosition) -> Result<(), StoreError> {
        require(&self.inner.dir, &self.inner.shared.lock().index, required.end())
    }

    /// One entry.
    ///
    /// # Errors
    /// [`StoreError::Removed`] if retention removed it, [`StoreError::NotDurable`] if it is not there yet.
    pub fn entry(&self, sequence: SequenceNumber) -> Result<Arc<Entry>, StoreError> {
        let durable = self.durable();
        let (begin, place) = {
            let state = self.inner.shared.lock();
            (state.index.begin().next, state.index.block_of(sequence).filter(|_| durable.covers(sequence)))
        };
        if sequence < begin {
            return Err(StoreError::Removed { sequence, begin });
        }
        let place = place.ok_or(StoreError::NotDurable { sequence, durable })?;
        let entries = self.block(&place).map_err(|error| match error {
            StoreError::Removed { begin, .. } => StoreError::Removed { sequence, begin },
            error => error,
        })?;
        let entry = usize::try_from(sequence.0 - place.first.0).ok().and_then(|at| entries.get(at));
        entry.cloned().ok_or_else(|| StoreError::corrupt(&place.path, place.offset, "the block is too short"))
    }

    /// The first record of `language`, held out or not, at or after `from` and below `up_to`, of those that retention left.
    /// Blocks without one are skipped unread.
    pub fn next_record(
        &self,
        language: &str,
        held_out: bool,
        from: SequenceNumber,
        up_to: DurablePosition,
    ) -> Result<Option<Arc<Entry>>, StoreError> {
        let up_to = up_to.min(self.durable()).end();
        let wanted = |entry: &Entry| match &entry.payload {
            Payload::Record(record) => *record.language == *language && record.held_out == held_out,
            Payload::Skip(_) | Payload::End => false,
        };
        let mut from = from;
        loop {
            let place = self.inner.shared.lock().index.next_with_records(language, held_out, from, up_to);
            let Some(place) = place else { return Ok(None) };
            let entries = match self.block(&place) {
                // Since it was found. It is no longer in the index.
                Err(StoreError::Removed { .. }) => continue,
                entries => entries?,
            };
            let skipped = from.0.saturating_sub(place.first.0) as usize;
            let visible = entries.iter().skip(skipped).take_while(|entry| entry.sequence < up_to);
            if let Some(entry) = visible.into_iter().find(|entry| wanted(entry)) {
                return Ok(Some(Arc::clone(entry)));
            }
            from = place.end;
            crate::pulse::beat();
        }
    }

    /// Records of `language`, held out or not, below `up_to`. Counts whole blocks; a durable position always is the end of one.
    #[must_use]
    pub fn count_records(&self, language: &str, held_out: bool, up_to: DurablePosition) -> u64 {
        let up_to = up_to.min(self.durable()).end();
        self.inner.shared.lock().index.count_records(language, held_out, up_to)
    }

    /// Languages that have records below `up_to`.
    #[must_use]
    pub fn languages(&self, up_to: DurablePosition) -> BTreeSet<Arc<str>> {
        let up_to = up_to.min(self.durable()).end();
        self.inner.shared.lock().index.languages(up_to)
    }

    /// State of every source that has an entry below `up_to`, after the last of them.
    ///
    /// # Errors
    /// [`StoreError::Removed`] if retention removed what comes before and after `up_to`.
    pub fn cursors(&self, up_to: DurablePosition) -> Result<BTreeMap<Arc<str>, SourceCursor>, StoreError> {
        let up_to = up_to.min(self.durable()).end();
        loop {
            let (begin, base) = {
                let state = self.inner.shared.lock();
                (state.index.begin().next, state.index.cursor_base(up_to))
            };
            if up_to < begin {
                return Err(StoreError::Removed { sequence: up_to, begin });
            }
            match apply_cursors(self.inner.disk.as_ref(), base, up_to) {
                // Blocks of the first segments may have been removed since.
                Err(_) if self.look_for_begin() > begin => {}
                cursors => return cursors,
            }
        }
    }

    /// Bytes of all segments, and how many there are.
    #[must_use]
    pub fn size(&self) -> (u64, usize) {
        let state = self.inner.shared.lock();
        (state.index.bytes(), state.index.segments().len())
    }

    /// Stored bytes of the blocks that hold entries in `from..to`.
    #[must_use]
    pub fn bytes_between(&self, from: SequenceNumber, to: SequenceNumber) -> u64 {
        self.inner.shared.lock().index.bytes_between(from, to)
    }

    /// The index, and how far it may be used.
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.inner.shared.lock()
    }

    pub(crate) fn disk(&self) -> &dyn Disk {
        self.inner.disk.as_ref()
    }

    /// What was seen last; `None` for a reader of a writer in this process.
    pub(crate) fn follower(&self) -> Option<MutexGuard<'_, Follower>> {
        self.inner.follower.as_ref().map(|follower| follower.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The failure of reading what was found in the index: that it was removed since, if it was.
    pub(crate) fn explain(&self, sequence: SequenceNumber, error: StoreError) -> StoreError {
        let begin = self.look_for_begin();
        if sequence < begin { StoreError::Removed { sequence, begin } } else { error }
    }

    /// Where the log begins now.
    fn look_for_begin(&self) -> SequenceNumber {
        let _ = self.refresh(); // A failure is logged; what is asked for then is what was known before.
        self.begin()
    }

    fn block(&self, place: &BlockPlace) -> Result<Entries, StoreError> {
        if let Some(entries) = self.cache().get(place.first) {
            return Ok(entries);
        }
        let read = read_block(self.disk(), place);
        let (header, entries) = read.map_err(|error| self.explain(place.first, error))?;
        let entries: Entries = Arc::new(entries.into_iter().map(Arc::new).collect());
        if let Some(read_bytes) = &self.inner.read_bytes {
            read_bytes.inc_by(header.bytes());
        }
        let totals = header.totals;
        let bytes = (400 * u64::from(header.entries))
            .saturating_add(200 * u64::from(totals.copies))
            .saturating_add(totals.corpus_tokens.saturating_mul(4)) // A damaged header may say anything.
            .saturating_add(3 * header.directory.iter().map(|row| u64::from(row.raw_bytes)).sum::<u64>());
        self.cache().insert(place.first, Arc::clone(&entries), bytes);
        Ok(entries)
    }

    fn cache(&self) -> MutexGuard<'_, BlockCache> {
        self.inner.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Brings the index up to date, and the durable position with it.
fn follow(disk: &dyn Disk, dir: &Path, state: &mut State) -> Result<Follower, StoreError> {
    let looked = Instant::now();
    // First the writer's word, then the files: what it called durable is there to be found.
    let presence = look(disk, dir)?;
    let tail = extend(disk, dir, &mut state.index)?;
    // A writer that came meanwhile may have appended what is not durable yet.
    let presence = if presence == Presence::Stopped { look(disk, dir)? } else { presence };
    let end = state.index.end();
    // A segment is begun when everything before it is durable, which may be news to a writer's earlier word.
    let begun = state.index.segments().last().map_or(end, |last| last.header.first_sequence);
    let live = match presence {
        Presence::Live(positions) => Some(positions.unwrap_or(Positions { appended: end, durable: begun })),
        Presence::Stopped => None,
    };
    let durable = live.map_or(end, |positions| positions.durable.clamp(begun, end));
    state.durable = state.durable.max(DurablePosition::from_log(durable.0));
    Ok(Follower { looked, tail, live })
}

/// Reads and decodes a block.
pub(crate) fn read_block(disk: &dyn Disk, place: &BlockPlace) -> Result<(BlockHeader, Vec<Entry>), StoreError> {
    with_block(disk, place, |block| block.entries(&place.tables))
}

/// Reads a block's header, and what its records are without the content of their copies.
pub(crate) fn read_outlines(disk: &dyn Disk, place: &BlockPlace) -> Result<(BlockHeader, Vec<Outline>), StoreError> {
    with_block(disk, place, |block| block.outlines())
}

fn with_block<T>(
    disk: &dyn Disk,
    place: &BlockPlace,
    read: impl FnOnce(&StoredBlock<'_>) -> Result<T, Fault>,
) -> Result<(BlockHeader, T), StoreError> {
    with_block_of(open(disk, place)?.as_ref(), place, read)
}

fn open(disk: &dyn Disk, place: &BlockPlace) -> Result<Arc<dyn DiskFile>, StoreError> {
    disk.open(&place.path, Access::Read).map_err(|error| StoreError::io("opening", &place.path, error))
}

fn with_block_of<T>(
    file: &dyn DiskFile,
    place: &BlockPlace,
    read: impl FnOnce(&StoredBlock<'_>) -> Result<T, Fault>,
) -> Result<(BlockHeader, T), StoreError> {
    let block = BlockHeader::read(file, place.offset).and_then(|header| {
        if (header.first(), header.link().next) != (place.first, place.end) {
            return Err(Damage::new("another block than the index says").into());
        }
        let content = read(&StoredBlock { file, offset: place.offset, header: &header })?;
        Ok((header, content))
    });
    block.map_err(|fault| fault.at(&place.path, place.offset))
}

/// State of every source after the last entry below `up_to`.
pub(crate) fn read_cursors(
    disk: &dyn Disk,
    index: &Index,
    up_to: SequenceNumber,
) -> Result<BTreeMap<Arc<str>, SourceCursor>, StoreError> {
    apply_cursors(disk, index.cursor_base(up_to), up_to)
}

fn apply_cursors(
    disk: &dyn Disk,
    (mut cursors, blocks): (BTreeMap<Arc<str>, SourceCursor>, Vec<BlockPlace>),
    up_to: SequenceNumber,
) -> Result<BTreeMap<Arc<str>, SourceCursor>, StoreError> {
    // They are of one segment.
    let Some(file) = blocks.first().map(|place| open(disk, place)).transpose()? else { return Ok(cursors) };
    for place in blocks {
        let below = up_to.0.saturating_sub(place.first.0) as usize;
        let (_, last) = with_block_of(file.as_ref(), &place, |block| block.last_cursors(below))?;
        cursors.extend(last.into_iter().map(|cursor| (Arc::clone(&cursor.source), cursor)));
        crate::pulse::beat();
    }
    Ok(cursors)
}
