//! `mergedistill log export --parquet`: copies and labels for other programs.
//!
//! A row is a copy, in the order of sequence numbers, then of the teacher table. Entries that are no records have no row.
//!
//! | column | type | |
//! | --- | --- | --- |
//! | `seq` | int64 | sequence number of the record |
//! | `source`, `document`, `language` | string | corpus, document in it, language |
//! | `span_first`, `span_end` | int64 | bytes of the document that the example covers, `first..end` |
//! | `round` | int32 | labelling round of the corpus, from 0 |
//! | `held_out` | bool | kept for evaluation; not for training |
//! | `teacher` | string (a dictionary in the file) | whose tokens these are |
//! | `token_ids` | list of int32 | the copy with \[CLS\], \[SEP\] and masks, in the teacher's ids |
//! | `masked_positions` | list of int32 | ascending, 0-based, counting \[CLS\] |
//! | `gold_ids` | list of int32 | what stood at the masked positions |
//! | `top_k` | int32 | k; null, like all that follows, for a copy without a label |
//! | `top_ids` | list of lists of int32 | a list per masked position, by descending logit; drawn ones last |
//! | `top_logits` | list of lists of float32 | the logits of `top_ids` |
//! | `log_sum_exp` | list of float32 | over the teacher's whole vocabulary, per masked position |
//! | `gold_logits` | list of float32 | the gold token's logit, per masked position |
//! | `text` | string | the text of the record, as the log keeps it; null where it keeps none |
//!
//! In a log with `store.tail_samples` s the last entries of a position, at most s, were drawn. They stand by ascending id behind the
//! exact ones, and one of them may have a larger logit: such that exp(logit − log-sum-exp) is what it stands for.
//!
//! The file's metadata has the log's settings and teacher table as JSON, under `mergedistill.identity`. Columns are compressed
//! with zstd. Row groups end when their rows take [`rows::GROUP_BYTES`] in memory, so that is what an export needs, whatever the
//! log's size. The file is written under another name and renamed when it is complete and durable.

mod rows;

use super::super::{print_json, print_line};
use super::Bar;
use crate::cli::LogExportArgs;
use crate::failure::{ExitCode, Failure};
use parquet::errors::ParquetError;
use parquet::file::writer::SerializedFileWriter;
use rows::{Row, Rows};
use serde_json::json;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use store::log::Progress;
use store::{Identity, LogReader, Payload, SequenceNumber, StoreError};

/// Entries between two looks at the progress bar.
const PROGRESS_ENTRIES: u64 = 1024;

/// Which rows are wanted.
struct Selection<'a> {
    /// Index in the teacher table.
    teacher: Option<u16>,
    language: Option<&'a str>,
    first: SequenceNumber,
    end: SequenceNumber,
}

/// What was written.
#[derive(Default)]
struct Written {
    records: u64,
    rows: u64,
}

/// Writes the selected copies of a log, live or stopped.
pub(super) fn export(args: &LogExportArgs) -> Result<(), Failure> {
    let log = LogReader::open(&args.dir)?;
    let selection = Selection::new(args, &log)?;
    let target = &args.parquet;
    let unfinished = Unfinished::create(target)?;
    let written = write(&log, &selection, &unfinished, target)?;
    unfinished.rename_to(target)?;
    if args.json {
        return print_json(&json!({ "rows": written.rows, "records": written.records, "path": target }));
    }
    print_line(&format!("{} rows of {} records in {}", written.rows, written.records, target.display()))
}

impl<'a> Selection<'a> {
    fn new(args: &'a LogExportArgs, log: &LogReader) -> Result<Self, Failure> {
        let durable = log.durable();
        let teachers = &log.identity().teachers;
        let teacher = match &args.teacher {
            None => None,
            Some(name) => {
                let found = (0..).zip(teachers).find(|(_, teacher)| teacher.name == *name);
                let names = teachers.iter().map(|teacher| teacher.name.as_str());
                Some(found.ok_or_else(|| unknown("teacher", name, names))?.0)
            }
        };
        if let Some(language) = &args.language {
            let languages = log.languages(durable);
            if !languages.contains(language.as_str()) {
                return Err(unknown("language", language, languages.iter().map(AsRef::as_ref)));
            }
        }
        let end = args.to.map_or(durable.end(), |to| durable.end().min(SequenceNumber(to)));
        let first = log.begin().max(SequenceNumber(args.from));
        Ok(Self { teacher, language: args.language.as_deref(), first, end })
    }
}

fn unknown<'a>(what: &str, name: &str, known: impl Iterator<Item = &'a str>) -> Failure {
    let known: Vec<_> = known.map(|name| format!("`{name}`")).collect();
    let message = format!("the log has no {what} `{name}`, only {}; correct --{what}", known.join(", "));
    Failure::new(ExitCode::Usage, message)
}

fn write(log: &LogReader, selection: &Selection<'_>, file: &Unfinished, target: &Path) -> Result<Written, Failure> {
    let failed = |error| failure(target, error);
    let identity = log.identity();
    let json = serde_json::to_string(identity)
        .map_err(|error| Failure::new(ExitCode::Software, format!("cannot describe the log: {error}")))?;
    let (schema, properties) = rows::layout(json).map_err(failed)?;
    let handle = file.handle.try_clone().map_err(|error| Failure::io("write", target, &error))?;
    let mut writer = SerializedFileWriter::new(handle, schema, properties.into()).map_err(failed)?;
    let mut rows = Rows::default();
    let mut written = Written::default();
    let bar = Bar::new("export");
    let mut sequence = selection.first;
    while sequence < selection.end {
        if sequence.0.is_multiple_of(PROGRESS_ENTRIES) {
            let done = |upper: SequenceNumber| upper.0 - selection.first.0;
            bar.show(Progress { entries: done(sequence), total: done(selection.end) });
        }
        let entry = match log.entry(sequence) {
            Err(StoreError::Removed { begin, .. }) => {
                tracing::warn!(from = %sequence, to = %begin, "retention removed entries before they were exported");
                sequence = begin.max(sequence.next());
                continue;
            }
            entry => entry?,
        };
        if let Payload::Record(record) = &entry.payload
            && selection.language.is_none_or(|language| *record.language == *language)
        {
            let before = written.rows;
            let wanted = |copy: &&store::MaskedCopy| selection.teacher.is_none_or(|teacher| copy.teacher == teacher);
            for copy in record.copies.iter().filter(wanted) {
                let teacher = &*teacher_name(identity, copy.teacher);
                rows.push(&Row { sequence, record, copy, teacher }).map_err(|what| misfit(sequence, &what))?;
                written.rows += 1;
            }
            written.records += u64::from(written.rows > before);
            if rows.bytes() >= rows::GROUP_BYTES {
                rows.write(&mut writer).map_err(failed)?;
            }
        }
        sequence = sequence.next();
    }
    if !rows.is_empty() {
        rows.write(&mut writer).map_err(failed)?;
    }
    writer.close().map_err(failed)?;
    Ok(written)
}

/// The name that `log dump` shows.
fn teacher_name(identity: &Identity, index: u16) -> std::borrow::Cow<'_, str> {
    match identity.teachers.get(usize::from(index)) {
        Some(teacher) => teacher.name.as_str().into(),
        None => format!("#{index}").into(),
    }
}

fn misfit(sequence: SequenceNumber, what: &str) -> Failure {
    Failure::new(ExitCode::DataError, format!("record {sequence} does not fit the file's columns: {what}"))
}

fn failure(target: &Path, error: ParquetError) -> Failure {
    if let ParquetError::External(source) = &error
        && let Some(source) = source.downcast_ref::<io::Error>()
    {
        return Failure::io("write", target, source);
    }
    Failure::new(ExitCode::Software, format!("cannot write {}: {error}", target.display()))
}

/// A file that is being written; removed if that does not come to an end.
struct Unfinished {
    path: PathBuf,
    handle: File,
    complete: bool,
}

impl Unfinished {
    /// A file beside `target`.
    fn create(target: &Path) -> Result<Self, Failure> {
        let failed =
            |what: String| Failure::new(ExitCode::CannotCreate, format!("cannot create {}: {what}", target.display()));
        let name = target.file_name().ok_or_else(|| failed("it is no name of a file".to_owned()))?;
        if target.is_dir() {
            return Err(failed("it is a folder".to_owned()));
        }
        let mut unfinished = name.to_owned();
        unfinished.push(format!(".{}.tmp", std::process::id()));
        let path = target.with_file_name(unfinished);
        let handle = File::create(&path).map_err(|error| failed(error.to_string()))?;
        Ok(Self { path, handle, complete: false })
    }

    /// Gives the file its name, when its content is durable.
    fn rename_to(mut self, target: &Path) -> Result<(), Failure> {
        let failed = |error| Failure::io("write", target, &error);
        self.handle.sync_all().map_err(failed)?;
        fs::rename(&self.path, target).map_err(failed)?;
        self.complete = true;
        Ok(())
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if !self.complete {
            let _ = fs::remove_file(&self.path); // The failure that led here is what is reported.
        }
    }
}
