//! A log that is another one with further copies: the same entries under the same numbers, with the same cursors, in the same
//! blocks, and one teacher more.
//!
//! It grows block by block and is a whole log at any time, so what is interrupted goes on where it was: nothing but the new log
//! says how far that is.

use crate::log::block::Link;
use crate::log::codec::Tables;
use crate::log::copying::{Input, PRECISION_SETTING, SYNC_INTERVAL, feed};
use crate::log::disk::{Disk, StdDisk};
use crate::log::error::StoreError;
use crate::log::index::{BlockPlace, Index, Seal};
use crate::log::new_log::{discard, measure, name, prepare, refuse_inside_log};
use crate::log::options::{Extras, LogOptions, Precision};
use crate::log::pass::{Meter, Pass, places, read_blocks};
use crate::log::reader::{LogReader, read_block, read_outlines};
use crate::log::retention;
use crate::log::segment::UNFINISHED_EXTENSION;
use crate::log::writer::{LogWriter, create_folder, create_segment, next_header};
use crate::{ComputedIn, DurablePosition, Entry, Identity, Payload, SequenceNumber, SourceCursor, TeacherEntry};
use prometheus::Registry;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;
use std::time::Duration;

/// Blocks that wait for the thread that writes.
const WRITTEN_BEHIND_BLOCKS: usize = 1;

/// A log that is to hold what another one holds, and the copies of one teacher more.
#[derive(Debug)]
pub struct ExtendedLog {
    source: PathBuf,
    reader: LogReader,
    out: PathBuf,
    identity: Identity,
    options: LogOptions,
    /// First entry that the new log does not have yet.
    next: SequenceNumber,
    /// First entry that it is not to have: what was durable when the old log was opened.
    end: SequenceNumber,
    /// Whether the new log has everything and is sealed.
    complete: bool,
}

/// Records of some languages that have text, and that have none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Texts {
    /// With text.
    pub with: u64,
    /// Without.
    pub without: u64,
}

impl ExtendedLog {
    /// Looks at the log in `source`, live or stopped, and at the one in `out`, which must not exist, be an empty folder, or be the
    /// beginning of this very log. Nothing is written yet. The new log has `teacher` at the end of its teacher table, and stores
    /// labels as the old one does; `settings` of its identity replace those of the old one. `segment_bytes`: a segment is sealed before it grows beyond this.
    ///
    /// # Errors
    /// [`StoreError::Selection`] if the old log has a teacher of that name, [`StoreError::OutputUnusable`] if `out` holds something
    /// else, [`StoreError::Removed`] if retention has removed what would come next, [`StoreError::Corrupt`].
    pub fn open(
        source: &Path,
        out: &Path,
        teacher: TeacherEntry,
        settings: BTreeMap<String, String>,
        segment_bytes: u64,
        computed_in: ComputedIn,
    ) -> Result<Self, StoreError> {
        let reader = LogReader::open(source)?;
        let end = reader.durable().end();
        let input = Input::intact(reader.clone(), reader.begin(), end)?;
        let (precision, top_k) = input.layout();
        let extras = input.extras();
        let mut identity = with_teacher(source, reader.identity(), precision, teacher)?;
        identity.settings.extend(settings);
        let sync_interval = SYNC_INTERVAL;
        let options = LogOptions {
            segment_bytes,
            sync_interval,
            top_k,
            precision,
            keep_text: extras.text,
            computed_in: extras.computed_in || computed_in != ComputedIn::Float32,
            ..LogOptions::default()
        };
        let (source, out) = (source.to_owned(), out.to_owned());
        let mut log = Self { source, next: reader.begin(), reader, out, identity, options, end, complete: false };
        match LogReader::open(&log.out) {
            Ok(begun) => log.go_on_with(&begun)?,
            Err(StoreError::NoLog { .. }) => log.check_room()?,
            Err(error) => return Err(error),
        }
        Ok(log)
    }

    /// What the new log is made of. Its last teacher is the new one.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Index of the new teacher.
    #[must_use]
    pub fn teacher(&self) -> u16 {
        self.identity.teachers.len().saturating_sub(1) as u16
    }

    /// Entries kept per masked position, k.
    #[must_use]
    pub fn top_k(&self) -> usize {
        self.options.top_k
    }

    /// The first entry that is to be written, and the one after the last.
    #[must_use]
    pub fn range(&self) -> (SequenceNumber, SequenceNumber) {
        (self.next, self.end)
    }

    /// Counts the records of `languages` that are to be written.
    ///
    /// # Errors
    /// When the old log cannot be read.
    pub fn texts(&self, languages: &BTreeSet<String>, pass: &Pass<'_>) -> Result<Texts, StoreError> {
        let meter = Meter::new(pass, self.end.0.saturating_sub(self.next.0));
        let count = |place: &BlockPlace| {
            let (_, outlines) = read_outlines(self.reader.disk(), place)?;
            let mut texts = Texts::default();
            for outline in outlines.iter().filter(|outline| languages.contains(&*outline.record.language)) {
                *(if outline.has_text { &mut texts.with } else { &mut texts.without }) += 1;
            }
            Ok(texts)
        };
        let counted =
            pass.on_pool(&self.source, || read_blocks(&self.reader, (self.next, self.end), &meter, count))??;
        let sum =
            |sum: Texts, block: Texts| Texts { with: sum.with + block.with, without: sum.without + block.without };
        Ok(counted.into_iter().fold(Texts::default(), sum))
    }

    /// Writes the rest of the new log, and seals it: each block as `extend` leaves it, which may add copies to records and change
    /// nothing else. Blocks are read before and written behind, by threads of their own. Gives segments and bytes of the new log.
    ///
    /// # Errors
    /// Those of `extend`, of reading and of writing. What was written before stays, and can be gone on with.
    pub fn write<E: From<StoreError>>(
        self,
        mut extend: impl FnMut(&mut [Entry]) -> Result<(), E>,
    ) -> Result<(u64, u64), E> {
        if self.complete {
            return Ok(measure(&self.out)?);
        }
        let writer = self.writer()?;
        let Self { source, reader, out, next, end, .. } = self;
        let input = Input::intact(reader, next, end)?;
        let mut failure = None;
        let written = thread::scope(|scope| {
            let (blocks, to_write) = sync_channel(WRITTEN_BEHIND_BLOCKS);
            let writing = thread::Builder::new().name("log-write".to_owned());
            let writing = writing.spawn_scoped(scope, || write_all(writer, to_write));
            let writing = writing.map_err(|error| StoreError::io("starting a thread that writes", &out, error))?;
            let fed = feed(&source, input, |chunk| {
                let mut entries = chunk.into_entries();
                if let Err(error) = extend(&mut entries) {
                    failure = Some(error);
                    return Ok(false);
                }
                Ok(blocks.send(entries).is_ok()) // If not, the writer has failed and says why.
            });
            drop(blocks);
            let writer = writing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            fed.map(|_| writer)
        });
        match (failure, written?) {
            (Some(error), writer) => {
                writer.leave()?;
                Err(error)
            }
            (None, writer) => {
                writer.seal()?;
                Ok(measure(&out)?)
            }
        }
    }

    /// Finds out how far the new log is that has been begun.
    fn go_on_with(&mut self, begun: &LogReader) -> Result<(), StoreError> {
        let end = begun.durable().end();
        let (wanted, found) = ((&self.identity, self.layout()), begun.state().index.segments().to_vec());
        let alike = found.iter().all(|segment| {
            let header = &segment.header;
            let computed_in = self.options.computed_in; // Those that come may be computed in something else than those that are there.
            let (precision, top_k, extras) = header.layout();
            (&header.identity, (precision, top_k, Extras { computed_in, ..extras })) == wanted
        });
        if !alike {
            let mut what = "it is a log of other teachers or settings".to_owned();
            let lines = begun.identity().differences(&self.identity);
            what.extend(lines.first().map(|line| format!(" ({line})")));
            return Err(self.unusable(what + "; name another folder"));
        }
        if end > self.end || begun.begin() > self.next {
            let what =
                "it holds entries that the other log does not have: a run has gone on with it; name another folder";
            return Err(self.unusable(what));
        }
        let begin = self.reader.begin();
        if end < begin {
            return Err(StoreError::Removed { sequence: end, begin });
        }
        if !self.is_beginning(begun, end)? {
            return Err(self.unusable("it is not made from that log; name another folder"));
        }
        let sealed = found.last().is_some_and(|last| matches!(last.seal, Seal::Footer { .. }));
        self.complete = end == self.end && sealed;
        self.next = end;
        Ok(())
    }

    fn layout(&self) -> (Precision, usize, Extras) {
        (self.options.precision, self.options.top_k, self.options.extras())
    }

    /// Whether the new log, which ends at `end`, has the old one's cursors there, and its last block the old one's entries.
    fn is_beginning(&self, begun: &LogReader, end: SequenceNumber) -> Result<bool, StoreError> {
        if end == begun.begin() {
            return Ok(true);
        }
        let up_to = DurablePosition::from_log(end.0);
        if begun.cursors(up_to)? != self.reader.cursors(up_to)? {
            return Ok(false);
        }
        let last = SequenceNumber(end.0 - 1);
        if last < self.reader.begin() {
            return Ok(true); // All that can be compared.
        }
        let block = |log: &LogReader| {
            let Some(place) = places(log, last, end)?.pop() else { return Ok(None) };
            let (_, mut entries) = read_block(log.disk(), &place).map_err(|error| log.explain(last, error))?;
            entries.iter_mut().for_each(|entry| self.strip(entry));
            Ok::<_, StoreError>(Some(entries))
        };
        Ok(block(begun)? == block(&self.reader)?)
    }

    /// Leaves of an entry what is the same in both logs, to the last bit.
    fn strip(&self, entry: &mut Entry) {
        if let Payload::Record(record) = &mut entry.payload {
            record.copies.retain(|copy| copy.teacher != self.teacher());
            record.copies.iter_mut().for_each(|copy| copy.label = None);
        }
    }

    /// A folder without a log may hold what a writer makes before the first segment, and nothing else.
    fn check_room(&self) -> Result<(), StoreError> {
        refuse_inside_log(&self.out)?;
        let names = match fs::read_dir(&self.out) {
            Ok(names) => names,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(StoreError::io("reading", &self.out, error)),
        };
        for entry in names {
            let name = entry.map_err(|error| StoreError::io("reading", &self.out, error))?.file_name();
            let name = name.to_string_lossy();
            if name != "POSITION" && !name.ends_with(UNFINISHED_EXTENSION) {
                return Err(self.unusable("it is not empty, and no log; name a folder that does not exist"));
            }
        }
        Ok(())
    }

    fn unusable(&self, what: impl Into<String>) -> StoreError {
        StoreError::OutputUnusable { dir: self.out.clone(), what: what.into() }
    }

    /// The new log's writer, at the entry that comes next.
    fn writer(&self) -> Result<LogWriter, StoreError> {
        let first = self.reader.begin();
        if self.next == first && first.0 > 0 && LogReader::open(&self.out).is_err() {
            self.begin()?;
        }
        let (writer, _) = LogWriter::open(&self.out, &self.identity, &self.options, &Registry::new())?;
        if writer.next() != self.next {
            return Err(self.unusable(format!("another process has written to it: it ends at {}", writer.next())));
        }
        Ok(writer)
    }

    /// Makes a log without entries that begins where retention has left the old one.
    fn begin(&self) -> Result<(), StoreError> {
        let partial = prepare(&self.out)?;
        let begin: Link = self.reader.state().index.begin();
        let cursors = self.reader.cursors(DurablePosition::from_log(begin.next.0))?;
        let begun = begin_at(&StdDisk, &partial, (begin, &cursors), &self.identity, &self.options);
        begun.and_then(|()| name(&StdDisk, &partial, &self.out)).inspect_err(|_| discard(&partial))
    }
}

/// Creates a log without entries in `dir` that begins at `begin`, with the states that sources have there.
fn begin_at(
    disk: &dyn Disk,
    dir: &Path,
    (begin, cursors): (Link, &BTreeMap<Arc<str>, SourceCursor>),
    identity: &Identity,
    options: &LogOptions,
) -> Result<(), StoreError> {
    create_folder(disk, dir)?;
    let mut index = Index::default();
    index.remove_below(begin);
    let header = next_header(&index, cursors, identity, options);
    create_segment(disk, dir, &mut index, header, Tables::default())?;
    retention::begin_at(disk, dir, begin)
}

/// The identity with one teacher more, and the precision that labels are stored with.
fn with_teacher(
    source: &Path,
    identity: &Identity,
    precision: Precision,
    teacher: TeacherEntry,
) -> Result<Identity, StoreError> {
    let mut identity = identity.clone();
    if identity.teachers.iter().any(|known| known.name == teacher.name) {
        let what = format!("it has a teacher `{}` already; give the new one another name", teacher.name);
        return Err(StoreError::Selection { dir: source.to_owned(), what });
    }
    if let Some(setting) = identity.settings.get_mut(PRECISION_SETTING) {
        *setting = precision.to_string();
    }
    identity.teachers.push(teacher);
    Ok(identity)
}

/// Appends what comes. After a failure nothing more is taken.
fn write_all(mut writer: LogWriter, blocks: Receiver<Vec<Entry>>) -> Result<LogWriter, StoreError> {
    for block in blocks {
        writer.append(&block)?;
        if writer.sync_due() == Some(Duration::ZERO) {
            writer.sync()?;
        }
    }
    Ok(writer)
}
