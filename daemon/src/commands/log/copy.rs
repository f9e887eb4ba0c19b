//! `mergedistill log copy` and `log merge`.

use super::dump::loss_lines;
use super::{Bar, Pass};
use crate::cli::{LogCopyArgs, LogMergeArgs};
use crate::commands::{print_json, print_line};
use crate::failure::Failure;
use store::SequenceNumber;
use store::log::{CopyOptions, Written};

/// Writes a new log from the entries of one.
pub fn copy(args: &LogCopyArgs) -> Result<(), Failure> {
    let options = CopyOptions {
        teachers: args.teachers.iter().cloned().collect(),
        languages: args.languages.iter().cloned().collect(),
        precision: args.precision,
        segment_bytes: args.new.segment_bytes,
        from: SequenceNumber(args.from),
        to: args.to.map(SequenceNumber),
        skip_corrupt: args.skip_corrupt,
        without_text: args.without_text,
    };
    let bar = Bar::new("copy");
    let watch = |progress| bar.show(progress);
    let pass = Pass { watch: &watch, ..Pass::default() };
    let copied = store::log::copy(&args.source, &args.new.out, &options, &pass);
    drop(bar);
    let report = copied?;
    if args.new.json {
        return print_json(&report);
    }
    print_line(&format!("read     {} entries", report.read))?;
    print_line(&written_line(&report.written))?;
    let texts = if args.without_text { format!(", {} texts", report.dropped_texts) } else { String::new() };
    print_line(&format!("dropped  {} records, {} copies{texts}", report.dropped_records, report.dropped_copies))?;
    loss_lines(&report.losses).iter().try_for_each(|line| print_line(&format!("damage   {line}")))
}

/// Writes a new log from the entries of several.
pub fn merge(args: &LogMergeArgs) -> Result<(), Failure> {
    let bar = Bar::new("merge");
    let watch = |progress| bar.show(progress);
    let pass = Pass { watch: &watch, ..Pass::default() };
    let merged = store::log::merge(&args.new.out, &args.sources, args.new.segment_bytes, &pass);
    drop(bar);
    let report = merged?;
    if args.new.json {
        return print_json(&report);
    }
    for log in &report.logs {
        let (dir, read, duplicates) = (log.dir.display(), log.read, log.duplicates);
        print_line(&format!("read     {read} entries of {dir}, {duplicates} of them in a log before it as well"))?;
    }
    print_line(&written_line(&report.written))
}

fn written_line(written: &Written) -> String {
    let Written { entries, records, skips, cursors, copies, masked_positions, segments, bytes } = written;
    let carriers = match cursors {
        0 => String::new(),
        _ => format!(", {cursors} of these to carry cursors"),
    };
    format!(
        "wrote    {entries} entries: {records} records with {copies} copies and {masked_positions} masked positions, \
         {skips} skips{carriers}; {bytes} bytes in {segments} segments"
    )
}
