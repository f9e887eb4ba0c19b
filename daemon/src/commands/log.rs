//! `mergedistill log stat|verify|dump`.

use super::{print_json, print_line};
use crate::cli::LogCommand;
use crate::failure::Failure;
use serde_json::json;
use std::path::Path;
use store::{Entry, LogReader, Payload, SequenceNumber};

/// Looks into a log, live or stopped.
pub fn log(command: &LogCommand) -> Result<(), Failure> {
    match command {
        LogCommand::Stat(args) => stat(&args.dir, args.json),
        LogCommand::Verify(args) => verify(&args.dir, args.json),
        LogCommand::Dump { log, from, count } => dump(&log.dir, log.json, *from, *count),
    }
}

fn stat(dir: &Path, as_json: bool) -> Result<(), Failure> {
    let stat = store::stat(dir)?;
    if as_json {
        return print_json(&stat);
    }
    let per_token = stat.bytes as f64 / stat.corpus_tokens.max(1) as f64;
    let per_position = stat.label_bytes as f64 / stat.masked_positions.max(1) as f64;
    print_line(&format!("records           {} with {} copies", stat.records, stat.copies))?;
    print_line(&format!("tokens            {} ({per_token:.2} bytes each)", stat.corpus_tokens))?;
    print_line(&format!("masked positions  {} ({per_position:.1} bytes of label each)", stat.masked_positions))?;
    print_line(&format!(
        "bytes             {} in {} segments ({} labels, {} tokens)",
        stat.bytes, stat.segments, stat.label_bytes, stat.token_bytes
    ))?;
    print_line(&format!("entries           {} appended, {} durable", stat.appended, stat.durable))
}

fn verify(dir: &Path, as_json: bool) -> Result<(), Failure> {
    let verification = store::verify(dir)?;
    if as_json {
        return print_json(&verification);
    }
    print_line(&format!("{verification}"))
}

fn dump(dir: &Path, as_json: bool, from: u64, count: Option<u64>) -> Result<(), Failure> {
    let log = LogReader::open(dir)?;
    let end = log.durable().end();
    let mut left = count.unwrap_or(u64::MAX);
    let mut sequence = SequenceNumber(from);
    while sequence < end && left > 0 {
        let entry = log.entry(sequence)?;
        if let Payload::Record(record) = &entry.payload {
            left -= 1;
            let value = store::dump::record_json(log.identity(), &entry);
            print_line(&if as_json { value.to_string() } else { summary(&entry, record) })?;
        }
        sequence = sequence.next();
    }
    Ok(())
}

fn summary(entry: &Entry, record: &store::Record) -> String {
    let masked: usize = record.copies.iter().map(|copy| copy.masked_positions.len()).sum();
    json!([
        entry.sequence,
        record.language,
        record.source,
        record.document,
        [record.span.first, record.span.end],
        format!("{} copies, {masked} masked", record.copies.len())
    ])
    .to_string()
}
