//! `mergedistill log dump`.

use crate::cli::LogDumpArgs;
use crate::commands::print_json_line;
use crate::failure::Failure;
use serde_json::{Value, json};
use store::log::{Loss, Salvage};
use store::{Entry, Identity, LogReader, Payload, Record, SequenceNumber, StoreError};

/// Prints the records of a log, from a place on. What comes after the log's durable position is not there; where retention has
/// removed the place, it goes on where the log begins.
pub fn dump(args: &LogDumpArgs) -> Result<(), Failure> {
    let mut printer = Printer { as_json: args.log.json, left: args.count.unwrap_or(u64::MAX) };
    if args.skip_corrupt {
        return dump_damaged(args, &mut printer);
    }
    let log = LogReader::open(&args.log.dir)?;
    let end = log.durable().end();
    let mut sequence = SequenceNumber(args.from);
    while sequence < end && printer.left > 0 {
        match log.entry(sequence) {
            Err(StoreError::Removed { begin, .. }) => {
                eprintln!("mergedistill: retention removed the entries below {begin}; going on there");
                sequence = begin;
            }
            entry => {
                printer.print(log.identity(), entry?.as_ref())?;
                sequence = sequence.next();
            }
        }
    }
    Ok(())
}

/// The same, past damage.
fn dump_damaged(args: &LogDumpArgs, printer: &mut Printer) -> Result<(), Failure> {
    let mut log = Salvage::open(&args.log.dir)?;
    let identity = log.identity().clone();
    while printer.left > 0
        && let Some(entries) = log.next_block()?
    {
        for entry in entries.iter().filter(|entry| entry.sequence.0 >= args.from) {
            printer.print(&identity, entry)?;
        }
    }
    for line in loss_lines(log.losses()) {
        eprintln!("mergedistill: {line}");
    }
    Ok(())
}

/// A line for each part of a log that is damaged, and one for all of them; none for an intact log.
pub fn loss_lines(losses: &[Loss]) -> Vec<String> {
    let mut lines: Vec<String> = losses.iter().map(Loss::to_string).collect();
    if !lines.is_empty() {
        let known: u64 = losses.iter().filter_map(Loss::entries).sum();
        let unknown = losses.iter().filter(|loss| loss.entries().is_none()).count();
        let more = if unknown > 0 { format!(", and an unknown number in {unknown} places") } else { String::new() };
        lines.push(format!("{known} entries are lost{more}"));
    }
    lines
}

/// Prints records until there were enough.
struct Printer {
    as_json: bool,
    left: u64,
}

impl Printer {
    fn print(&mut self, identity: &Identity, entry: &Entry) -> Result<(), Failure> {
        let Payload::Record(record) = &entry.payload else { return Ok(()) };
        if self.left == 0 {
            return Ok(());
        }
        self.left -= 1;
        print_json_line(&match self.as_json {
            true => store::dump::record_json(identity, entry),
            false => summary(entry, record),
        })
    }
}

fn summary(entry: &Entry, record: &Record) -> Value {
    let masked: usize = record.copies.iter().map(|copy| copy.masked_positions.len()).sum();
    json!([
        entry.sequence,
        record.language,
        record.source,
        record.document,
        [record.span.first, record.span.end],
        format!("{} copies, {masked} masked", record.copies.len())
    ])
}
