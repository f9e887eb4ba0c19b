//! A new log from the entries of several.

use crate::log::copying::{Input, SYNC_INTERVAL, feed};
use crate::log::error::StoreError;
use crate::log::new_log::{NewLog, Written};
use crate::log::options::{Extras, LogOptions, Precision};
use crate::log::pass::{Meter, Pass};
use crate::log::reader::LogReader;
use crate::{Entry, Identity, Payload, Record, SequenceNumber, SourceCursor, TeacherEntry};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What was merged.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MergeReport {
    /// The logs, in order.
    pub logs: Vec<MergedLog>,
    /// What the new log holds.
    pub written: Written,
}

/// One of the logs that were merged.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MergedLog {
    /// Its folder.
    pub dir: PathBuf,
    /// Entries that were read.
    pub read: u64,
    /// Entries that a log before it has as well; they are written once.
    pub duplicates: u64,
}

/// Writes a new log to `out`, which must not exist or be an empty folder, from the entries of the logs in `dirs`, live or
/// stopped, one log after another. `segment_bytes`: a segment is sealed before it grows beyond this.
///
/// Settings of the identities must agree. Teachers are united by name, and so are sources. Where logs share a source, an entry
/// that several of them have is written once, as the first one has it; the same record with other copies is an error, with a text or
/// without is not. How far ingestion has got in such a
/// source is what the last log says that has something of its own: name the logs in the order in which they were made. About 40
/// bytes per entry of shared sources are kept in memory.
///
/// # Errors
/// [`StoreError::Unmergeable`] says which two logs do not fit, and why; [`StoreError::OutputUnusable`];
/// [`StoreError::Corrupt`]. Nothing is left in `out` then.
pub fn merge(out: &Path, dirs: &[PathBuf], segment_bytes: u64, pass: &Pass<'_>) -> Result<MergeReport, StoreError> {
    let mut logs = Vec::new();
    for dir in dirs {
        logs.push(Log::open(dir)?);
    }
    let (identity, layout) = unite(&mut logs)?;
    let (precision, top_k) = layout;
    let mut extras = Extras::default();
    for log in &logs {
        extras = extras | log.input()?.extras();
    }
    let options = LogOptions {
        segment_bytes,
        sync_interval: SYNC_INTERVAL,
        top_k,
        precision,
        keep_text: extras.text,
        computed_in: extras.computed_in,
        ..LogOptions::default()
    };
    let mut known = Known { shared: shared_sources(&logs)?, first: HashMap::new() };
    let mut output = NewLog::create(out, &identity, &options, precision)?;
    let total = logs.iter().map(|log| log.end.0.saturating_sub(log.reader.begin().0)).sum();
    let meter = Meter::new(pass, total);
    let mut report = MergeReport::default();
    for number in 0..logs.len() {
        match add(&logs, number, &mut known, &mut output, &meter) {
            Ok(merged) => report.logs.push(merged),
            Err(error) => {
                output.discard();
                return Err(error);
            }
        }
    }
    report.written = output.finish()?;
    Ok(report)
}

/// A log to be merged.
struct Log {
    dir: PathBuf,
    reader: LogReader,
    /// Up to where it is read: what was durable when it was opened.
    end: SequenceNumber,
    /// By a teacher's index the one in the new log.
    teachers: Vec<u16>,
}

impl Log {
    fn open(dir: &Path) -> Result<Self, StoreError> {
        let reader = LogReader::open(dir)?;
        let end = reader.durable().end();
        Ok(Self { dir: dir.to_owned(), reader, end, teachers: Vec::new() })
    }

    fn input(&self) -> Result<Input, StoreError> {
        Input::intact(self.reader.clone(), self.reader.begin(), self.end)
    }

    /// Gives copies the teachers of the new log, in the order of its table.
    fn translate(&self, entry: &mut Entry) {
        if let Payload::Record(record) = &mut entry.payload {
            for copy in &mut record.copies {
                copy.teacher = self.teachers.get(usize::from(copy.teacher)).copied().unwrap_or(u16::MAX);
            }
            record.copies.sort_by_key(|copy| copy.teacher);
        }
    }
}

/// Adds the entries of log `number`.
fn add(
    logs: &[Log],
    number: usize,
    known: &mut Known,
    output: &mut NewLog,
    meter: &Meter<'_>,
) -> Result<MergedLog, StoreError> {
    let log = &logs[number];
    let mut merged = MergedLog { dir: log.dir.clone(), ..MergedLog::default() };
    feed(&log.dir, log.input()?, |chunk| {
        let (entries, bytes) = chunk.into_new(output, |output, state| !output.knows(&state.source));
        meter.add(entries.len() as u64);
        for mut entry in entries {
            log.translate(&mut entry);
            merged.read += 1;
            if known.is_duplicate(logs, number, &entry)? {
                merged.duplicates += 1;
            } else {
                output.push(entry);
            }
        }
        output.end_block(bytes)?;
        Ok(true)
    })?;
    Ok(merged)
}

/// The entries of sources that are in several logs.
struct Known {
    shared: BTreeSet<Arc<str>>,
    /// By the hash of an entry's key the log and the place where it was first.
    first: HashMap<u64, (usize, SequenceNumber)>,
}

impl Known {
    /// Whether a log before log `number` has this entry.
    fn is_duplicate(&mut self, logs: &[Log], number: usize, entry: &Entry) -> Result<bool, StoreError> {
        if !self.shared.contains(&entry.cursor.source) {
            return Ok(false);
        }
        let (earlier, sequence) = *self.first.entry(hash(entry)).or_insert((number, entry.sequence));
        if earlier == number {
            return Ok(false);
        }
        let mut other = (*logs[earlier].reader.entry(sequence)?).clone();
        logs[earlier].translate(&mut other);
        match (&entry.payload, &other.payload) {
            (Payload::Record(left), Payload::Record(right)) => {
                let key = |record: &Record| (record.source.clone(), record.document.clone(), record.span, record.round);
                let same = is_same(left, right);
                if key(left) == key(right) && !same {
                    let what = format!(
                        "entry {sequence} of the first and entry {} of the second are the same record with other copies",
                        entry.sequence
                    );
                    return Err(unmergeable(&logs[earlier], &logs[number], vec![what]));
                }
                Ok(same)
            }
            (left, right) => Ok(left == right && place(&entry.cursor) == place(&other.cursor)),
        }
    }
}

/// Whether two records are the same, but for a text that one of them may lack.
fn is_same(left: &Record, right: &Record) -> bool {
    match (&left.text, &right.text) {
        (Some(_), None) => Record { text: None, ..left.clone() } == *right,
        (None, Some(_)) => *left == Record { text: None, ..right.clone() },
        _ => left == right,
    }
}

/// Where a cursor is.
fn place(cursor: &SourceCursor) -> (&str, u32, &str, u64, u64) {
    (&cursor.source, cursor.round, &cursor.file, cursor.document_offset_bytes, cursor.next_byte)
}

/// Hash of what tells entries apart.
fn hash(entry: &Entry) -> u64 {
    let mut hasher = DefaultHasher::new();
    let cursor = &entry.cursor;
    match &entry.payload {
        Payload::Record(record) => (0, &record.source, &record.document, record.span, record.round).hash(&mut hasher),
        Payload::Skip(skip) => (1, &skip.document, &skip.reason, place(cursor)).hash(&mut hasher),
        Payload::End => (2, place(cursor)).hash(&mut hasher),
    }
    hasher.finish()
}

fn shared_sources(logs: &[Log]) -> Result<BTreeSet<Arc<str>>, StoreError> {
    let mut logs_with: BTreeMap<Arc<str>, usize> = BTreeMap::new();
    for log in logs {
        for source in log.reader.cursors(log.reader.durable())?.into_keys() {
            *logs_with.entry(source).or_default() += 1;
        }
    }
    Ok(logs_with.into_iter().filter(|(_, logs)| *logs > 1).map(|(source, _)| source).collect())
}

fn unmergeable(first: &Log, second: &Log, lines: Vec<String>) -> StoreError {
    StoreError::Unmergeable { first: first.dir.clone(), second: second.dir.clone(), lines }
}

/// The identity of the new log, with precision and k. Tells every log the numbers of its teachers.
fn unite(logs: &mut [Log]) -> Result<(Identity, (Precision, usize)), StoreError> {
    let mut united = Identity::default();
    let mut layout = (Precision::default(), 1);
    // By a teacher's number the log that it is from.
    let mut origins: Vec<usize> = Vec::new();
    for number in 0..logs.len() {
        let identity = logs[number].reader.identity().clone();
        let own_layout = logs[number].input()?.layout();
        if number == 0 {
            (united.settings, layout) = (identity.settings.clone(), own_layout);
        }
        let mut lines = differing_settings(&united, &identity);
        if own_layout != layout {
            let ((precision, k), (own_precision, own_k)) = (layout, own_layout);
            lines.push(format!("labels: {precision} top-{k} and {own_precision} top-{own_k}"));
        }
        if !lines.is_empty() {
            return Err(unmergeable(&logs[0], &logs[number], lines));
        }
        for teacher in identity.teachers {
            let at = united.teachers.iter().position(|known| known.name == teacher.name);
            let at = match at {
                Some(at) => {
                    let lines = join(&mut united.teachers[at], &teacher);
                    if !lines.is_empty() {
                        return Err(unmergeable(&logs[origins[at]], &logs[number], lines));
                    }
                    at
                }
                None => {
                    origins.push(number);
                    united.teachers.push(teacher);
                    united.teachers.len() - 1
                }
            };
            logs[number].teachers.push(at as u16);
        }
    }
    Ok((united, layout))
}

fn differing_settings(first: &Identity, second: &Identity) -> Vec<String> {
    let keys: BTreeSet<_> = first.settings.keys().chain(second.settings.keys()).collect();
    let show = |value: Option<&String>| value.cloned().unwrap_or_else(|| "unset".to_owned());
    let pairs = keys.into_iter().map(|key| (key, first.settings.get(key), second.settings.get(key)));
    let differing = pairs.filter(|(_, first, second)| first != second);
    differing.map(|(key, first, second)| format!("{key}: {} and {}", show(first), show(second))).collect()
}

/// Adds the languages of a teacher of the same name; gives what differs otherwise, a line each.
fn join(known: &mut TeacherEntry, teacher: &TeacherEntry) -> Vec<String> {
    let new = teacher.languages.iter().filter(|language| !known.languages.contains(language));
    known.languages.extend(new.cloned().collect::<Vec<_>>());
    let fields = [
        ("tokenizer", known.tokenizer_fingerprint.clone(), &teacher.tokenizer_fingerprint),
        ("weights", known.weights_fingerprint.clone(), &teacher.weights_fingerprint),
        ("labels", known.labels.to_string(), &teacher.labels.to_string()),
        ("vocabulary", known.vocabulary_size.to_string(), &teacher.vocabulary_size.to_string()),
    ];
    let differing = fields.iter().filter(|(_, known, new)| known != *new);
    differing.map(|(field, known, new)| format!("teacher `{}`: {field} `{known}` and `{new}`", teacher.name)).collect()
}
