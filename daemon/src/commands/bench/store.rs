//! `mergedistill bench store`: what the log does on this machine.
//!
//! Encoding is [`store::LogWriter::append`] to a log in memory, decoding is reading one entry of each block of it through a
//! [`store::LogReader`] that has never seen the block. Appending, recovery and opening use a temporary log on a real disk; what they
//! read is in the page cache.

mod disks;
mod durable;
mod made_up;
mod records;

use super::{count, median, memory, peak_rss_mib};
use crate::cli::BenchStoreArgs;
use crate::commands::{print_json, print_line};
use crate::failure::{ExitCode, Failure};
use disks::MemoryDisk;
use prometheus::Registry;
use records::Records;
use serde::Serialize;
use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};
use store::log::disk::Disk;
use store::{LogOptions, LogReader, LogStat, LogWriter, Precision};

/// Folder of the log on a disk in memory.
const DIR: &str = "/log";

/// What is measured. A GB is 10^9 bytes.
#[derive(Debug, Serialize)]
struct StoreFigures {
    precision: Precision,
    top_k: usize,
    threads: usize,
    records: u64,
    positions: u64,
    /// Tokens of all copies.
    tokens: u64,
    blocks: u64,
    /// Of all threads together.
    encode_positions_per_second: f64,
    decode_positions_per_second: f64,
    /// Of labels: positions, gold ids, top-k, log-sum-exp, gold logits.
    bytes_per_position: f64,
    /// Of the whole log.
    bytes_per_token: f64,
    /// Durable at the end, encoding included.
    append_bytes_per_second: f64,
    /// The same bytes over the time spent in writes and syncs alone.
    disk_bytes_per_second: f64,
    append_bytes: u64,
    /// Mean length of a write, which is a block.
    write_bytes: u64,
    writes_per_sync: f64,
    /// Durable at the end, of blocks that were encoded before.
    prepared_bytes_per_second: f64,
    prepared_writes_per_sync: f64,
    sync_interval_ms: usize,
    recovery_seconds_per_gb: f64,
    open_sealed_seconds: f64,
    peak_rss_mib: Option<u64>,
}

/// Measures the log, and prints the figures.
pub(super) fn store(args: &BenchStoreArgs) -> Result<(), Failure> {
    let figures = measure(args)?;
    if args.common.json {
        return print_json(&figures);
    }
    let StoreFigures { precision, records, positions, blocks, top_k, .. } = figures;
    print_line(&format!(
        "{records} records, {positions} masked positions of top-{top_k}, {blocks} blocks, precision {precision}"
    ))?;
    print_line(&format!(
        "encode {:.0}, decode {:.0} positions/s with {}: medians of {}",
        figures.encode_positions_per_second,
        figures.decode_positions_per_second,
        count(args.threads, "thread"),
        args.repeat
    ))?;
    print_line(&format!(
        "{:.2} bytes of label a position, {:.2} bytes a token in all",
        figures.bytes_per_position, figures.bytes_per_token
    ))?;
    print_line(&format!(
        "append {:.1} MiB/s, durable: writes of {} bytes, {:.1} a sync, a sync every {} ms; {:.1} MiB/s of disk",
        figures.append_bytes_per_second / MIB,
        figures.write_bytes,
        figures.writes_per_sync,
        args.sync_interval_ms,
        figures.disk_bytes_per_second / MIB
    ))?;
    print_line(&format!(
        "append {:.1} MiB/s of blocks that were encoded before, {:.1} a sync",
        figures.prepared_bytes_per_second / MIB,
        figures.prepared_writes_per_sync
    ))?;
    print_line(&format!(
        "recovery {:.3} s per GB of unsealed log; {:.4} s to open the same log sealed",
        figures.recovery_seconds_per_gb, figures.open_sealed_seconds
    ))?;
    print_line(&format!("peak memory {}", memory(figures.peak_rss_mib)))
}

const MIB: f64 = (1 << 20) as f64;

fn measure(args: &BenchStoreArgs) -> Result<StoreFigures, Failure> {
    let mut records = match &args.from_log {
        Some(dir) => Records::read(dir, args.positions, args.block_tokens)?,
        None => made_up::records(args),
    };
    if records.positions == 0 {
        return Err(Failure::new(ExitCode::DataError, "there is no masked position in the log; give another one"));
    }
    let options = LogOptions {
        segment_bytes: u64::MAX,
        sync_interval: Duration::from_millis(args.sync_interval_ms as u64),
        top_k: records.top_k,
        precision: args.precision,
        keep_text: records.keep_text,
        computed_in: true,
        ..LogOptions::default()
    };
    let encode = rate(args, records.positions, || encode(&records, &options, MemoryDisk::default()))?;
    let disk = MemoryDisk::default();
    self::encode(&records, &options, disk.clone())?;
    let stat = store::log::stat_on(Arc::new(disk.clone()), Path::new(DIR))?;
    let decode = rate(args, records.positions, || decode(&records, disk.clone()))?;
    drop(disk);
    let appended = durable::measure(&mut records, &options, args)?;
    Ok(figures(args, &records, &stat, [encode, decode], &appended))
}

fn figures(
    args: &BenchStoreArgs,
    records: &Records,
    stat: &LogStat,
    [encode, decode]: [f64; 2],
    appended: &durable::Appended,
) -> StoreFigures {
    let prepared = &appended.prepared;
    StoreFigures {
        precision: args.precision,
        top_k: records.top_k,
        threads: args.threads,
        records: stat.records,
        positions: stat.masked_positions,
        tokens: stat.corpus_tokens,
        blocks: stat.blocks,
        encode_positions_per_second: encode,
        decode_positions_per_second: decode,
        bytes_per_position: stat.label_bytes as f64 / stat.masked_positions.max(1) as f64,
        bytes_per_token: stat.bytes as f64 / stat.corpus_tokens.max(1) as f64,
        append_bytes_per_second: appended.bytes as f64 / appended.seconds,
        disk_bytes_per_second: appended.bytes as f64 / appended.disk_seconds,
        append_bytes: appended.bytes,
        write_bytes: appended.bytes / appended.writes.max(1),
        writes_per_sync: appended.writes as f64 / appended.syncs.max(1) as f64,
        prepared_bytes_per_second: prepared.bytes as f64 / prepared.seconds,
        prepared_writes_per_sync: prepared.writes as f64 / prepared.syncs.max(1) as f64,
        sync_interval_ms: args.sync_interval_ms,
        recovery_seconds_per_gb: appended.recovery_seconds / (appended.unsealed_bytes as f64 / 1e9),
        open_sealed_seconds: appended.open_sealed_seconds,
        peak_rss_mib: peak_rss_mib(),
    }
}

/// Positions per second of all threads together: the median of as many passes as asked, after one more. A pass gives the
/// seconds that its thread took.
fn rate(args: &BenchStoreArgs, positions: u64, pass: impl Fn() -> Result<f64, Failure> + Sync) -> Result<f64, Failure> {
    let mut rates = Vec::new();
    for _ in 0..=args.repeat {
        let seconds: Result<Vec<f64>, Failure> = thread::scope(|scope| {
            let threads: Vec<_> = (0..args.threads).map(|_| scope.spawn(&pass)).collect();
            let panicked = |_| Failure::new(ExitCode::Software, "a thread of the bench panicked; this is a bug");
            threads.into_iter().map(|thread| thread.join().map_err(panicked)?).collect()
        });
        rates.push(seconds?.iter().map(|seconds| positions as f64 / seconds).sum());
    }
    Ok(median(&rates[1..]))
}

/// Appends all records to a new log on `disk`. Returns how many seconds that took.
fn encode(records: &Records, options: &LogOptions, disk: MemoryDisk) -> Result<f64, Failure> {
    let disk: Arc<dyn Disk> = Arc::new(disk);
    let (mut log, _) = LogWriter::open_on(disk, Path::new(DIR), &records.identity, options, &Registry::new())?;
    let start = Instant::now();
    for block in &records.blocks {
        log.append(block)?;
    }
    Ok(start.elapsed().as_secs_f64())
}

/// Decodes every block of the log on `disk` once. Returns how many seconds that took.
fn decode(records: &Records, disk: MemoryDisk) -> Result<f64, Failure> {
    let log = LogReader::open_on(Arc::new(disk), Path::new(DIR))?;
    let start = Instant::now();
    for first in records.blocks.iter().filter_map(|block| block.first()) {
        black_box(log.entry(first.sequence)?);
    }
    Ok(start.elapsed().as_secs_f64())
}
