//! Reading all of a log: block by block, with several threads, while somebody watches how far it has got.

use crate::SequenceNumber;
use crate::log::error::StoreError;
use crate::log::index::BlockPlace;
use crate::log::reader::LogReader;
use rayon::ThreadPoolBuilder;
use rayon::prelude::*;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

/// How a whole log is read.
#[derive(Clone, Copy)]
pub struct Pass<'a> {
    /// Threads that decode; `None`: as many as there are cores.
    pub threads: Option<usize>,
    /// Is told how far the pass has got, from any thread, about once per block.
    pub watch: &'a (dyn Fn(Progress) + Sync),
    /// [`crate::verify()`] remembers eight bytes per record to find one that is there twice. If all of them took more memory than
    /// this, it reads the records' keys again and again, each time for another part of them.
    pub key_bytes: usize,
}

/// How far a pass has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Entries that have been read.
    pub entries: u64,
    /// Entries that are to be read; 0 where that is not known.
    pub total: u64,
}

impl Default for Pass<'_> {
    fn default() -> Self {
        Self { threads: None, watch: &|_| {}, key_bytes: 512 << 20 }
    }
}

impl Pass<'_> {
    /// Does `work` on a pool of the wanted size. `dir` is named if the threads cannot be started.
    pub(crate) fn on_pool<T: Send>(&self, dir: &Path, work: impl FnOnce() -> T + Send) -> Result<T, StoreError> {
        let cores = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let threads = self.threads.unwrap_or_else(cores);
        let pool = ThreadPoolBuilder::new().num_threads(threads).thread_name(|number| format!("log-{number}")).build();
        let pool = pool.map_err(|error| StoreError::io("starting threads that read", dir, io::Error::other(error)))?;
        Ok(pool.install(work))
    }
}

/// Counts the entries of a pass.
pub(crate) struct Meter<'a> {
    entries: AtomicU64,
    total: u64,
    watch: &'a (dyn Fn(Progress) + Sync),
}

impl<'a> Meter<'a> {
    pub(crate) fn new(pass: &Pass<'a>, total: u64) -> Self {
        Self { entries: AtomicU64::new(0), total, watch: pass.watch }
    }

    pub(crate) fn add(&self, entries: u64) {
        let entries = self.entries.fetch_add(entries, Ordering::Relaxed) + entries;
        (self.watch)(Progress { entries, total: self.total });
    }
}

/// Places of the blocks that hold the durable entries `first..end`.
///
/// # Errors
/// [`StoreError::Removed`] if retention has removed some of them since they were known.
pub(crate) fn places(
    reader: &LogReader,
    first: SequenceNumber,
    end: SequenceNumber,
) -> Result<Vec<BlockPlace>, StoreError> {
    let state = reader.state();
    let mut places = Vec::new();
    let mut from = first;
    while from < end {
        let place = state.index.block_of(from).filter(|place| place.first <= from);
        let place = place.ok_or(StoreError::Removed { sequence: from, begin: state.index.begin().next })?;
        from = place.end;
        places.push(place);
    }
    Ok(places)
}

/// What `read` makes of each block of a segment, in order; of several failures the first. To be called on a pool.
pub(crate) fn read_blocks<T: Send>(
    reader: &LogReader,
    (first, end): (SequenceNumber, SequenceNumber),
    meter: &Meter<'_>,
    read: impl Fn(&BlockPlace) -> Result<T, StoreError> + Sync,
) -> Result<Vec<T>, StoreError> {
    let read_one = |place: &BlockPlace| {
        let read = read(place).map_err(|error| reader.explain(place.first, error));
        meter.add(place.end.0 - place.first.0);
        read
    };
    let places = places(reader, first, end)?;
    let read: Vec<Result<T, StoreError>> = places.par_iter().map(read_one).collect();
    read.into_iter().collect()
}
