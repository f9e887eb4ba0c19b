//! A temporary log on a real disk: appended to, left as a crash leaves it, recovered, sealed, opened.

use super::disks::MeteredDisk;
use super::records::Records;
use crate::cli::BenchStoreArgs;
use crate::commands::temporary_folder::TemporaryFolder;
use crate::failure::{ExitCode, Failure};
use prometheus::Registry;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use store::{Entry, LogOptions, LogReader, LogWriter, Precision, PreparedBlock, SequenceNumber};

/// Prepared blocks that are appended, at most: the fourth segment of a compact log may have twice as many.
const SEGMENT_BYTES: u64 = 256 << 20;

/// What was measured.
#[derive(Debug)]
pub(super) struct Appended {
    /// Bytes of the segments.
    pub(super) bytes: u64,
    /// Of these, in the segment that is not sealed.
    pub(super) unsealed_bytes: u64,
    pub(super) writes: u64,
    pub(super) syncs: u64,
    /// Until all was durable, encoding included.
    pub(super) seconds: f64,
    /// Of these, in writes and syncs.
    pub(super) disk_seconds: f64,
    /// What a log took whose blocks had been encoded before.
    pub(super) prepared: Prepared,
    /// To open the log for writing, when it is not sealed.
    pub(super) recovery_seconds: f64,
    /// To open it for reading, when it is.
    pub(super) open_sealed_seconds: f64,
}

/// An append of blocks that had been encoded before.
#[derive(Debug, Default)]
pub(super) struct Prepared {
    pub(super) bytes: u64,
    pub(super) writes: u64,
    pub(super) syncs: u64,
    /// Until all was durable.
    pub(super) seconds: f64,
}

/// Appends the records again and again, until the log has as many bytes as asked.
///
/// # Errors
/// When the folder cannot be used, or the log fails.
pub(super) fn measure(records: &mut Records, options: &LogOptions, args: &BenchStoreArgs) -> Result<Appended, Failure> {
    let folder = TemporaryFolder::create(&args.dir)?;
    let dir = folder.path().join("log");
    let mut appended = append(records, options, &dir, args.append_bytes as u64)?;
    appended.unsealed_bytes = last_segment_bytes(&dir).map_err(|error| Failure::io("read", &dir, &error))?;
    let open = Instant::now();
    let (log, recovery) = LogWriter::open(&dir, &records.identity, options, &Registry::new())?;
    appended.recovery_seconds = open.elapsed().as_secs_f64();
    if recovery.torn_bytes > 0 {
        return Err(Failure::new(ExitCode::Software, "the temporary log lost its end; this is a bug"));
    }
    log.seal()?;
    let open = Instant::now();
    LogReader::open(&dir)?;
    appended.open_sealed_seconds = open.elapsed().as_secs_f64();
    fs::remove_dir_all(&dir).map_err(|error| Failure::io("remove", &dir, &error))?;
    appended.prepared = append_prepared(records, options, &dir, args.append_bytes as u64)?;
    Ok(appended)
}

/// The log's own work alone: checksums of headers, room, writes, syncs.
fn append_prepared(records: &mut Records, options: &LogOptions, dir: &Path, bytes: u64) -> Result<Prepared, Failure> {
    let disk = MeteredDisk::default();
    let meter = Arc::clone(&disk.meter);
    let (mut log, _) = LogWriter::open_on(Arc::new(disk), dir, &records.identity, options, &Registry::new())?;
    // Compact labels are encoded for their segment, and the first three are short.
    while options.precision == Precision::Compact && log.segments() < 4 {
        for block in &mut records.blocks {
            number(block, log.next());
            log.append(block)?;
        }
    }
    log.sync()?;
    meter.reset();
    // All before the first is appended: a disk that waits for an encoder between two syncs is slower than fio's, whatever the log does.
    let blocks = prepare(records, &mut log, bytes.min(SEGMENT_BYTES))?;
    let start = Instant::now();
    for block in blocks {
        log.append_prepared(block)?;
        if log.sync_due() == Some(Duration::ZERO) {
            log.sync()?;
        }
    }
    log.sync()?;
    let seconds = start.elapsed().as_secs_f64();
    Ok(Prepared { bytes: meter.bytes(), writes: meter.writes(), syncs: meter.syncs(), seconds })
}

/// Encodes so many bytes of blocks.
fn prepare(records: &mut Records, log: &mut LogWriter, enough_bytes: u64) -> Result<Vec<PreparedBlock>, Failure> {
    let (mut blocks, mut end, mut bytes) = (Vec::new(), log.next(), 0);
    loop {
        for block in &mut records.blocks {
            number(block, end);
            let prepared = log.prepare(block, end)?;
            (end, bytes) = (prepared.end(), bytes + prepared.bytes());
            blocks.push(prepared);
            if bytes >= enough_bytes {
                return Ok(blocks);
            }
        }
    }
}

/// Gives the entries of a block the numbers from `first` on.
fn number(block: &mut [Entry], first: SequenceNumber) {
    for (sequence, entry) in (first.0..).zip(block) {
        entry.sequence.0 = sequence;
    }
}

fn append(records: &mut Records, options: &LogOptions, dir: &Path, bytes: u64) -> Result<Appended, Failure> {
    let disk = MeteredDisk::default();
    let meter = Arc::clone(&disk.meter);
    let (mut log, _) = LogWriter::open_on(Arc::new(disk), dir, &records.identity, options, &Registry::new())?;
    meter.reset();
    let start = Instant::now();
    'appending: loop {
        for block in &mut records.blocks {
            number(block, log.next());
            log.append(block)?;
            if log.sync_due() == Some(Duration::ZERO) {
                log.sync()?;
            }
            if meter.bytes() >= bytes {
                break 'appending;
            }
        }
    }
    log.sync()?;
    Ok(Appended {
        bytes: meter.bytes(),
        unsealed_bytes: 0,
        writes: meter.writes(),
        syncs: meter.syncs(),
        seconds: start.elapsed().as_secs_f64(),
        disk_seconds: meter.time().as_secs_f64(),
        prepared: Prepared::default(),
        recovery_seconds: 0.0,
        open_sealed_seconds: 0.0,
    })
}

/// Length of the segment with the last name.
fn last_segment_bytes(dir: &Path) -> std::io::Result<u64> {
    let mut last = None;
    for file in fs::read_dir(dir)? {
        let path = file?.path();
        if path.extension().is_some_and(|extension| extension == "seg") {
            last = last.max(Some(path));
        }
    }
    last.map_or(Ok(0), |path| Ok(fs::metadata(path)?.len()))
}
