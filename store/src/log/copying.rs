//! A new log from the entries of one.

use crate::log::error::StoreError;
use crate::log::new_log::{NewLog, Written, memory_bytes};
use crate::log::options::{Extras, LogOptions, Precision};
use crate::log::pass::{Meter, Pass, places};
use crate::log::reader::{LogReader, read_block};
use crate::log::salvage::{Loss, Salvage, common_layout};
use crate::{DurablePosition, Entry, Identity, Payload, SequenceNumber, SourceCursor};
use serde::Serialize;
use std::collections::BTreeSet;
use std::ops::BitOr;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

/// Blocks that are decoded before they are wanted.
const AHEAD_BLOCKS: usize = 2;

/// Setting of an identity that says how labels are stored.
pub(crate) const PRECISION_SETTING: &str = "store.precision";

/// Between two syncs of a log that is being copied.
pub(crate) const SYNC_INTERVAL: Duration = Duration::from_secs(2);

/// What of a log is copied, and how.
#[derive(Clone, Debug)]
pub struct CopyOptions {
    /// Teachers whose copies are kept, by name; empty: all.
    pub teachers: BTreeSet<String>,
    /// Languages whose records are kept; empty: all.
    pub languages: BTreeSet<String>,
    /// How labels are stored; `None`: as they are. Where segments differ, in the exact precision.
    pub precision: Option<Precision>,
    /// A segment is sealed before it grows beyond this.
    pub segment_bytes: u64,
    /// First entry that is copied.
    pub from: SequenceNumber,
    /// First entry after it that is not; `None`: all that are durable.
    pub to: Option<SequenceNumber>,
    /// Read past damage.
    pub skip_corrupt: bool,
    /// Leave the records' texts out.
    pub without_text: bool,
}

impl Default for CopyOptions {
    fn default() -> Self {
        Self {
            teachers: BTreeSet::new(),
            languages: BTreeSet::new(),
            precision: None,
            segment_bytes: LogOptions::default().segment_bytes,
            from: SequenceNumber::default(),
            to: None,
            skip_corrupt: false,
            without_text: false,
        }
    }
}

/// What was copied, and what was not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CopyReport {
    /// Entries that were read.
    pub read: u64,
    /// What the new log holds.
    pub written: Written,
    /// Records that were left out, as they are of another language or have no copy of a wanted teacher.
    pub dropped_records: u64,
    /// Copies that were left out, those of these records among them.
    pub dropped_copies: u64,
    /// Texts that were left out of records that are in the new log.
    pub dropped_texts: u64,
    /// Entries that damage took, as far as that is known.
    pub lost_entries: u64,
    /// The damage; empty unless reading past it was asked for.
    pub losses: Vec<Loss>,
}

/// Writes a new log to `out`, which must not exist or be an empty folder, from the entries of the log in `source`, live or
/// stopped. Entries keep their order and get numbers from 0 on.
///
/// Skips and ends are kept, whatever their language. The last cursor of every source is in the result: where the entry that
/// carried it is left out and no later one is kept, a skip at the end of the new log carries it ([`crate::log::LEFT_OUT`]). So
/// ingestion would go on behind what was copied.
///
/// # Errors
/// [`StoreError::Corrupt`] unless damage is to be skipped; [`StoreError::OutputUnusable`]; [`StoreError::Selection`] for
/// teachers, languages or places that the log does not have. Nothing is left in `out` then.
pub fn copy(source: &Path, out: &Path, options: &CopyOptions, pass: &Pass<'_>) -> Result<CopyReport, StoreError> {
    let to = options.to.unwrap_or(SequenceNumber(u64::MAX));
    if options.from >= to {
        let what = format!("there is no entry from {} on and below {to}", options.from);
        return Err(StoreError::Selection { dir: source.to_owned(), what });
    }
    let input = Input::open(source, options, to)?;
    let (selection, identity) = Selection::new(source, &input, options)?;
    let (old_precision, top_k) = input.layout();
    let precision = options.precision.unwrap_or(old_precision);
    if precision == Precision::Compact && identity.tail_samples() > 0 {
        let what =
            "its labels have sampled tails (store.tail_samples), whose weights compact precision would lose; keep \
                    precision exact"
                .to_owned();
        return Err(StoreError::Selection { dir: source.to_owned(), what });
    }
    let extras = input.extras();
    let log_options = LogOptions {
        segment_bytes: options.segment_bytes,
        sync_interval: SYNC_INTERVAL,
        top_k,
        precision,
        keep_text: extras.text && !options.without_text,
        computed_in: extras.computed_in,
        ..LogOptions::default()
    };
    let mut output = NewLog::create(out, &with_precision(identity, precision), &log_options, old_precision)?;
    let mut report = CopyReport::default();
    let meter = Meter::new(pass, input.total());
    let copied = feed(source, input, |chunk| {
        let (entries, bytes) = chunk.into_new(&mut output, |_, _| true);
        meter.add(entries.len() as u64);
        let mut past = false;
        for entry in entries {
            past |= entry.sequence >= to;
            match past {
                true => {}
                false if entry.sequence < options.from => output.reach(entry.cursor),
                false => selection.take(entry, &mut output, &mut report),
            }
        }
        output.end_block(bytes)?;
        Ok(!past)
    });
    match copied {
        Ok(losses) => report.losses = losses,
        Err(error) => {
            output.discard();
            return Err(error);
        }
    }
    let within = |loss: &Loss| loss.first < to && loss.end.is_none_or(|end| end >= options.from);
    report.losses.retain(within);
    report.lost_entries = report.losses.iter().filter_map(Loss::entries).sum();
    report.written = output.finish()?;
    Ok(report)
}

/// An identity whose settings name `precision`, if they name any: a run that goes on with the copy compares them.
fn with_precision(mut identity: Identity, precision: Precision) -> Identity {
    if let Some(setting) = identity.settings.get_mut(PRECISION_SETTING) {
        *setting = precision.to_string();
    }
    identity
}

/// A block of an old log.
pub(crate) struct Chunk {
    /// States of sources before it, where they are news.
    states: Vec<SourceCursor>,
    entries: Vec<Entry>,
}

impl Chunk {
    /// The entries alone.
    pub(crate) fn into_entries(self) -> Vec<Entry> {
        self.entries
    }

    /// Tells the new log the states that are `news`, and gives the entries and what they take in memory.
    pub(crate) fn into_new(
        self,
        output: &mut NewLog,
        news: impl Fn(&NewLog, &SourceCursor) -> bool,
    ) -> (Vec<Entry>, u64) {
        for state in self.states {
            if news(output, &state) {
                output.reach(state);
            }
        }
        let bytes = self.entries.iter().map(memory_bytes).sum();
        (self.entries, bytes)
    }
}

/// An old log, read block by block.
pub(crate) enum Input {
    /// Fails at the first damage.
    Intact { reader: LogReader, next: SequenceNumber, end: SequenceNumber, states: Vec<SourceCursor> },
    /// Reads past it.
    Damaged(Box<Salvage>),
}

impl Input {
    fn open(source: &Path, options: &CopyOptions, to: SequenceNumber) -> Result<Self, StoreError> {
        if options.skip_corrupt {
            return Salvage::open(source).map(|salvage| Self::Damaged(Box::new(salvage)));
        }
        Self::intact(LogReader::open(source)?, options.from, to)
    }

    /// The entries of `from..to` that are in the log and durable.
    pub(crate) fn intact(reader: LogReader, from: SequenceNumber, to: SequenceNumber) -> Result<Self, StoreError> {
        let end = reader.durable().end().min(to);
        let next = from.max(reader.begin());
        let states = reader.cursors(DurablePosition::from_log(next.min(end).0))?.into_values().collect();
        Ok(Self::Intact { reader, next, end, states })
    }

    fn identity(&self) -> &Identity {
        match self {
            Self::Intact { reader, .. } => reader.identity(),
            Self::Damaged(salvage) => salvage.identity(),
        }
    }

    /// Precision and k.
    pub(crate) fn layout(&self) -> (Precision, usize) {
        match self {
            Self::Intact { reader, .. } => {
                let state = reader.state();
                common_layout(state.index.segments().iter().map(|segment| &*segment.header))
            }
            Self::Damaged(salvage) => salvage.layout(),
        }
    }

    /// What records may hold.
    pub(crate) fn extras(&self) -> Extras {
        match self {
            Self::Intact { reader, .. } => {
                let state = reader.state();
                let segments = state.index.segments().iter();
                segments.map(|segment| segment.header.extras()).fold(Extras::default(), BitOr::bitor)
            }
            Self::Damaged(salvage) => salvage.extras(),
        }
    }

    /// Entries that are to be read; 0 if nobody knows.
    pub(crate) fn total(&self) -> u64 {
        match self {
            Self::Intact { next, end, .. } => end.0.saturating_sub(next.0),
            Self::Damaged(_) => 0,
        }
    }

    /// Languages that have records; `None` if nobody knows.
    fn languages(&self) -> Option<BTreeSet<Arc<str>>> {
        match self {
            Self::Intact { reader, .. } => Some(reader.languages(reader.durable())),
            Self::Damaged(_) => None,
        }
    }

    /// The next block; the first one if only because of the states.
    fn next(&mut self) -> Result<Option<Chunk>, StoreError> {
        match self {
            Self::Damaged(salvage) => {
                let entries = salvage.next_block()?;
                let states = salvage.take_states();
                let any = entries.is_some() || !states.is_empty();
                Ok(any.then(|| Chunk { states, entries: entries.unwrap_or_default() }))
            }
            Self::Intact { reader, next, end, states } => {
                let states = std::mem::take(states);
                if *next >= *end {
                    return Ok((!states.is_empty()).then(|| Chunk { states, entries: Vec::new() }));
                }
                let [place] = &places(reader, *next, next.next())?[..] else { return Ok(None) };
                let read = read_block(reader.disk(), place);
                let (_, mut entries) = read.map_err(|error| reader.explain(*next, error))?;
                entries.retain(|entry| (*next..*end).contains(&entry.sequence));
                *next = place.end;
                Ok(Some(Chunk { states, entries }))
            }
        }
    }
}

/// Reads `input` in a thread of its own and gives every block to `take`, until that says `false`; gives what is lost.
pub(crate) fn feed(
    source: &Path,
    input: Input,
    take: impl FnMut(Chunk) -> Result<bool, StoreError>,
) -> Result<Vec<Loss>, StoreError> {
    let (sender, receiver) = sync_channel(AHEAD_BLOCKS);
    thread::scope(|scope| {
        let reading =
            thread::Builder::new().name("log-read".to_owned()).spawn_scoped(scope, || read_all(input, sender));
        let reading = reading.map_err(|error| StoreError::io("starting a thread that reads", source, error))?;
        let taken = take_all(receiver, take);
        let read = reading.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        taken.and(read)
    })
}

fn read_all(mut input: Input, chunks: SyncSender<Chunk>) -> Result<Vec<Loss>, StoreError> {
    while let Some(chunk) = input.next()? {
        if chunks.send(chunk).is_err() {
            break; // Nobody wants more.
        }
    }
    Ok(match input {
        Input::Intact { .. } => Vec::new(),
        Input::Damaged(salvage) => salvage.losses().to_vec(),
    })
}

fn take_all(
    chunks: Receiver<Chunk>,
    mut take: impl FnMut(Chunk) -> Result<bool, StoreError>,
) -> Result<(), StoreError> {
    for chunk in chunks {
        if !take(chunk)? {
            break;
        }
    }
    Ok(())
}

/// What is kept.
struct Selection {
    languages: BTreeSet<String>,
    /// By a teacher's old index its new one.
    teachers: Vec<Option<u16>>,
    without_text: bool,
}

impl Selection {
    /// The selection, and the new log's identity.
    fn new(source: &Path, input: &Input, options: &CopyOptions) -> Result<(Self, Identity), StoreError> {
        let refuse = |what: String| StoreError::Selection { dir: source.to_owned(), what };
        let mut identity = input.identity().clone();
        let known: Vec<&str> = identity.teachers.iter().map(|teacher| &*teacher.name).collect();
        if let Some(name) = options.teachers.iter().find(|name| !known.contains(&name.as_str())) {
            return Err(refuse(format!("it has no teacher `{name}`, but {}", known.join(", "))));
        }
        if let Some(known) = input.languages()
            && let Some(language) = options.languages.iter().find(|language| !known.contains(language.as_str()))
        {
            let known: Vec<&str> = known.iter().map(|language| &**language).collect();
            return Err(refuse(format!("it has no record of language `{language}`, but of {}", known.join(", "))));
        }
        let wanted = |name: &str| options.teachers.is_empty() || options.teachers.contains(name);
        let mut kept = 0..;
        let teachers = identity.teachers.iter().map(|teacher| wanted(&teacher.name).then(|| kept.next()).flatten());
        let selection = Self {
            languages: options.languages.clone(),
            teachers: teachers.collect(),
            without_text: options.without_text,
        };
        identity.teachers.retain(|teacher| wanted(&teacher.name));
        Ok((selection, identity))
    }

    /// Gives an entry to the new log, or its cursor alone.
    fn take(&self, mut entry: Entry, output: &mut NewLog, report: &mut CopyReport) {
        report.read += 1;
        if let Payload::Record(record) = &mut entry.payload {
            let had = record.copies.len();
            let wanted = self.languages.is_empty() || self.languages.contains(&*record.language);
            record.copies.retain_mut(|copy| match self.teachers.get(usize::from(copy.teacher)) {
                Some(Some(teacher)) if wanted => {
                    copy.teacher = *teacher;
                    true
                }
                _ => false,
            });
            report.dropped_copies += (had - record.copies.len()) as u64;
            if !wanted || record.copies.is_empty() && had > 0 {
                report.dropped_records += 1;
                return output.reach(entry.cursor);
            }
            if self.without_text {
                report.dropped_texts += u64::from(record.text.take().is_some());
            }
        }
        output.push(entry);
    }
}
