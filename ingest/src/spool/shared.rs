//! What the inbox's users, its writer and its readers share.

use super::recovery::{Recovered, SpoolFile, file_name, number_of};
use super::{Arrived, Batch, InboxCounters, InboxOptions, InboxStatus, PushError, Receipt};
use crate::feed::{Changes, Extent, Found, Part};
use std::cmp::Ordering;
use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use store::SourceCursor;

/// Who is told, once, that a batch is durable or will never be.
pub(super) struct Answer(Option<Tell>);

type Tell = Box<dyn FnOnce(Result<Receipt, PushError>) + Send>;

impl Answer {
    pub(super) fn new(tell: impl FnOnce(Result<Receipt, PushError>) + Send + 'static) -> Self {
        Self(Some(Box::new(tell)))
    }

    pub(super) fn give(mut self, outcome: Result<Receipt, PushError>) {
        self.tell(outcome);
    }

    fn tell(&mut self, outcome: Result<Receipt, PushError>) {
        if let Some(tell) = self.0.take() {
            tell(outcome);
        }
    }
}

/// Whoever waits for it hears that nobody will write the batch.
impl Drop for Answer {
    fn drop(&mut self) {
        self.tell(Err(PushError::Failed(PANICKED.to_owned())));
    }
}

/// Why nothing is written any more.
const PANICKED: &str = "the thread that writes the inbox panicked, which is a bug";

/// A batch that is to be written.
pub(super) struct Waiting {
    pub(super) batch: Batch,
    pub(super) answer: Answer,
}

/// What the writer is to do next.
pub(super) struct Work {
    pub(super) batches: Vec<Waiting>,
    pub(super) removable: Vec<SpoolFile>,
}

pub(super) struct Shared {
    pub(super) name: String,
    pub(super) folder: PathBuf,
    pub(super) options: InboxOptions,
    pub(super) metrics: InboxCounters,
    pub(super) changes: Changes,
    state: Mutex<State>,
    work: Condvar,
}

struct State {
    /// Bytes that the log may not hold yet.
    limit_bytes: u64,
    waiting: VecDeque<Waiting>,
    /// Bytes of `waiting` and of what the writer is at.
    waiting_bytes: u64,
    /// Bytes of batches that are being received, waiting or written.
    held_bytes: u64,
    /// When there was last no room for a batch that was being received.
    pressed: Option<Instant>,
    /// Nothing more is taken; the writer ends when nothing waits.
    closing: bool,
    /// The source has ended: what is there is all.
    ended: bool,
    /// Why nothing can be written any more.
    failed: Option<String>,
    /// Nobody writes any more.
    panicked: bool,
    /// Oldest first; the last one is written.
    files: Vec<SpoolFile>,
    removable: Vec<SpoolFile>,
    /// Files that are gone since the inbox was opened.
    removed: usize,
    arrived: Arrived,
    sources: BTreeMap<String, Place>,
}

/// Where the newest durable entry of a source stands: which file, and which document in it. A source that reads a whole file
/// without a document of its language has an entry for that too, so places move on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    file: u64,
    offset_bytes: u64,
}

impl Shared {
    pub(super) fn new(
        name: String,
        folder: PathBuf,
        options: InboxOptions,
        metrics: InboxCounters,
        recovered: &Recovered,
    ) -> Self {
        let sources = options.sources.iter().map(|source| (source.clone(), Place::default())).collect();
        let state = State {
            limit_bytes: options.spooled_bytes,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            held_bytes: 0,
            pressed: None,
            closing: false,
            ended: false,
            failed: None,
            panicked: false,
            files: recovered.files.clone(),
            removable: Vec::new(),
            removed: 0,
            arrived: Arrived { documents: 0, characters: recovered.characters.clone() },
            sources,
        };
        let changes = Changes::default();
        let shared = Self { name, folder, options, metrics, changes, state: Mutex::new(state), work: Condvar::new() };
        shared.advance(&mut shared.lock());
        shared
    }

    /// Hands a batch to the writer.
    pub(super) fn push(&self, batch: Batch, answer: Answer) -> Result<(), (Answer, PushError)> {
        let mut state = self.lock();
        if let Err(error) = self.has_room(&state, batch.spooled_bytes()) {
            return Err((answer, error));
        }
        state.waiting_bytes += batch.spooled_bytes();
        state.waiting.push_back(Waiting { batch, answer });
        self.metrics.waiting_batches.set(state.waiting.len() as i64);
        self.work.notify_all();
        Ok(())
    }

    /// Waits for work; `None`: the inbox is closed, and all is written.
    pub(super) fn next_work(&self) -> Option<Work> {
        let mut state = self.lock();
        while state.waiting.is_empty() && state.removable.is_empty() {
            if state.closing {
                return None;
            }
            state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let batches: Vec<_> = state.waiting.drain(..).collect();
        self.metrics.waiting_batches.set(0);
        Some(Work { batches, removable: std::mem::take(&mut state.removable) })
    }

    /// The writer is done with batches of so many bytes.
    pub(super) fn done(&self, bytes: u64) {
        let mut state = self.lock();
        state.waiting_bytes = state.waiting_bytes.saturating_sub(bytes);
    }

    /// From now on so many bytes may be there that the log does not hold.
    pub(super) fn set_limit(&self, limit_bytes: u64) {
        self.lock().limit_bytes = limit_bytes;
    }

    pub(super) fn limit_bytes(&self) -> u64 {
        self.lock().limit_bytes
    }

    /// Takes `bytes` more of the memory for batches.
    pub(super) fn hold(&self, bytes: u64) -> Result<(), PushError> {
        let mut state = self.lock();
        self.admit(&state)?;
        if state.held_bytes + bytes > self.options.waiting_bytes {
            state.pressed = Some(Instant::now());
            return Err(PushError::Busy { waiting: state.waiting.len() });
        }
        state.held_bytes += bytes;
        Ok(())
    }

    pub(super) fn let_go(&self, bytes: u64) {
        let mut state = self.lock();
        state.held_bytes = state.held_bytes.saturating_sub(bytes);
    }

    /// When there was last no memory for a batch.
    pub(super) fn pressed(&self) -> Option<Instant> {
        self.lock().pressed
    }

    /// Whether anything is taken.
    pub(super) fn check(&self) -> Result<(), PushError> {
        match &self.lock().failed {
            Some(reason) => Err(PushError::Failed(reason.clone())),
            None => Ok(()),
        }
    }

    /// Whether a batch of so many bytes may wait.
    fn has_room(&self, state: &State, bytes: u64) -> Result<(), PushError> {
        self.admit(state)?;
        if state.waiting.len() >= self.options.waiting_batches {
            return Err(PushError::Busy { waiting: state.waiting.len() });
        }
        let (spooled_bytes, limit_bytes) = (state.unread_bytes(), state.limit_bytes);
        match spooled_bytes + state.waiting_bytes + bytes > limit_bytes {
            true => Err(PushError::Full { spooled_bytes, limit_bytes }),
            false => Ok(()),
        }
    }

    fn admit(&self, state: &State) -> Result<(), PushError> {
        if let Some(reason) = &state.failed {
            return Err(PushError::Failed(reason.clone()));
        }
        if state.closing || state.ended {
            return Err(PushError::Closed);
        }
        Ok(())
    }

    /// Nothing can be written any more; the first reason counts.
    pub(super) fn fail(&self, reason: String) -> PushError {
        PushError::Failed(self.lock().failed.get_or_insert(reason).clone())
    }

    /// The thread that writes has panicked: nothing that waits is written, and readers are told.
    pub(super) fn panicked(&self) {
        self.fail(PANICKED.to_owned());
        let mut state = self.lock();
        state.panicked = true;
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        drop(waiting); // Each is told.
        self.changes.announce();
    }

    /// Why the run cannot go on.
    pub(super) fn problem(&self) -> Option<String> {
        self.lock().panicked.then(|| PANICKED.to_owned())
    }

    /// `file` is durable up to its `bytes`, with so many more documents.
    pub(super) fn arrived(&self, file: SpoolFile, documents: u64, characters: &BTreeMap<String, u64>) {
        let mut state = self.lock();
        let before = state.files.last_mut().map_or(file, |last| std::mem::replace(last, file));
        state.arrived.documents += documents;
        state.arrived.characters.clone_from(characters);
        self.metrics.arrived(documents, file.bytes.saturating_sub(before.bytes));
        self.metrics.unread_bytes.set(state.unread_bytes() as i64);
        drop(state);
        self.changes.announce();
    }

    /// The file so far does not grow any more; the next one begins with document `first`.
    pub(super) fn rotated(&self, first: u64) {
        let mut state = self.lock();
        state.files.push(SpoolFile { first, bytes: 0 });
        self.advance(&mut state);
        drop(state);
        self.changes.announce();
    }

    /// The log durably holds the entry of `cursor`.
    pub(super) fn durable(&self, cursor: &SourceCursor) {
        let mut state = self.lock();
        let (Some(place), Some(file)) = (state.sources.get_mut(cursor.source.as_ref()), number_of(&cursor.file)) else {
            return;
        };
        *place = (*place).max(Place { file, offset_bytes: cursor.document_offset_bytes });
        self.metrics.progressed();
        self.advance(&mut state);
    }

    /// Gives files to the writer to be removed: oldest first, never the last, and only what every source has passed.
    fn advance(&self, state: &mut State) {
        while let [oldest, _, ..] = state.files[..] {
            if state.sources.values().any(|place| place.file <= oldest.first) {
                break;
            }
            state.files.remove(0);
            state.removed += 1;
            state.removable.push(oldest);
            self.work.notify_all();
        }
        self.metrics.unread_bytes.set(state.unread_bytes() as i64);
    }

    /// The writer ends once nothing waits; what comes now is refused.
    pub(super) fn close(&self) {
        self.lock().closing = true;
        self.work.notify_all();
    }

    /// Nothing more will come: readers come to an end.
    pub(super) fn end(&self) {
        self.lock().ended = true;
        self.changes.announce();
    }

    pub(super) fn arrivals(&self) -> Arrived {
        self.lock().arrived.clone()
    }

    pub(super) fn status(&self) -> InboxStatus {
        let state = self.lock();
        InboxStatus {
            documents: state.arrived.documents,
            unread_bytes: state.unread_bytes(),
            limit_bytes: state.limit_bytes,
            waiting_batches: state.waiting.len(),
            failed: state.failed.clone(),
        }
    }

    pub(super) fn following(&self, part: Option<&str>) -> Option<Part> {
        let after = part.and_then(number_of);
        let state = self.lock();
        let next = state.files.iter().find(|file| after.is_none_or(|after| file.first > after))?;
        Some(self.part(*next))
    }

    pub(super) fn find(&self, cursor: &SourceCursor) -> Found {
        let state = self.lock();
        let Some(number) = number_of(&cursor.file) else {
            return Found::Missing("that is not a name of a file of an inbox".to_owned());
        };
        match state.files.iter().find(|file| file.first == number) {
            Some(file) if cursor.document_offset_bytes < file.bytes => Found::Part(self.part(*file)),
            Some(file) => Found::Missing(format!("the inbox has only {} bytes of it", file.bytes)),
            None if state.files.first().is_some_and(|oldest| number < oldest.first) => Found::Removed,
            None => Found::Missing(format!("it is not in {}", self.folder.display())),
        }
    }

    pub(super) fn extent(&self, part: &str) -> Extent {
        let state = self.lock();
        match state.files.last() {
            Some(last) if number_of(part) == Some(last.first) => {
                Extent { growing: !state.ended, readable_bytes: last.bytes }
            }
            _ => Extent::WHOLE,
        }
    }

    pub(super) fn parts(&self) -> usize {
        let state = self.lock();
        state.removed + state.files.len()
    }

    pub(super) fn has_ended(&self) -> bool {
        self.lock().ended
    }

    fn part(&self, file: SpoolFile) -> Part {
        let name = file_name(file.first);
        Part { path: self.folder.join(&name), name: name.into() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Bytes that some source has not passed yet.
    fn unread_bytes(&self) -> u64 {
        let behind = self.sources.values().min().copied().unwrap_or_default();
        let unread = |file: &SpoolFile| match file.first.cmp(&behind.file) {
            Ordering::Less => 0,
            Ordering::Equal => file.bytes.saturating_sub(behind.offset_bytes),
            Ordering::Greater => file.bytes,
        };
        self.files.iter().map(unread).sum()
    }
}
