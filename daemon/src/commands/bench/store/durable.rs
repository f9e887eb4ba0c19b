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
use store::{LogOptions, LogReader, LogWriter};

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
    /// To open the log for writing, when it is not sealed.
    pub(super) recovery_seconds: f64,
    /// To open it for reading, when it is.
    pub(super) open_sealed_seconds: f64,
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
    Ok(appended)
}

fn append(records: &mut Records, options: &LogOptions, dir: &Path, bytes: u64) -> Result<Appended, Failure> {
    let disk = MeteredDisk::default();
    let meter = Arc::clone(&disk.meter);
    let (mut log, _) = LogWriter::open_on(Arc::new(disk), dir, &records.identity, options, &Registry::new())?;
    meter.reset();
    let start = Instant::now();
    'appending: loop {
        for block in &mut records.blocks {
            for (sequence, entry) in (log.next().0..).zip(block.iter_mut()) {
                entry.sequence.0 = sequence;
            }
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
