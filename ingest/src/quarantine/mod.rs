//! The quarantine: a note for every document that could not be used, so that someone can look at it, mend it and have it
//! tried again.
//!
//! A note is a file of JSON, `state/quarantine/<source>/<id>.json`. Its identifier comes from the source, the document and
//! the part of it that the note is about: a document that is read again after a crash, or in a later round, has the same
//! one, and its note takes the place of the earlier one.
//!
//! Invariants
//!
//! - The notes take no more room on the disk than the limit, give or take one: the oldest are dropped, and counted. The
//!   documents are in the log and in the counters all the same.
//! - A note is there as a whole or not at all.
//! - A note of an entry that the log lost in a crash goes: the document is read again.
//! - A note that was retried goes once its document is durable in the inbox that is read instead (see [`Retry`]), not before.

mod note;
mod retry;

pub(crate) use note::Place;
pub use note::{FileState, Note};
pub use retry::{Refused, Retried, Retry, Which, retry_corpus};

use crate::IngestError;
use crate::error::is_no_space;
use model::random::Philox;
use prometheus::core::Collector;
use prometheus::{IntCounter, IntGauge};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;
use store::SequenceNumber;

/// File systems give out room in pieces of this size.
const BLOCK_BYTES: u64 = 4096;
const NAME_LIMIT_BYTES: usize = 180;

/// The notes of a run. Cloning shares them; dropping the oldest works only if all that write share.
#[derive(Clone, Debug)]
pub struct Quarantine {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    folder: PathBuf,
    limit_bytes: AtomicU64,
    /// `None` until it was looked at.
    kept: Mutex<Option<Kept>>,
    dropped: IntCounter,
    bytes: IntGauge,
    notes: IntGauge,
}

/// Writes a note as a whole.
fn write(path: &Path, text: &str) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let partial = path.with_extension("partial");
    fs::write(&partial, text).and_then(|()| fs::rename(&partial, path)).inspect_err(|_| {
        let _ = fs::remove_file(&partial); // It takes room, too.
    })
}

/// What is in the folder.
#[derive(Debug, Default)]
struct Kept {
    /// By age, then path: the room that each note takes.
    by_age: BTreeMap<(SystemTime, PathBuf), u64>,
    ages: BTreeMap<PathBuf, SystemTime>,
    bytes: u64,
}

impl Quarantine {
    /// Notes in `folder`, which is made when the first one comes; they take at most `limit_bytes`.
    ///
    /// # Errors
    /// When its metrics cannot be made.
    pub fn new(folder: PathBuf, limit_bytes: u64) -> Result<Self, IngestError> {
        let (dropped, bytes, notes) = (
            IntCounter::new(
                "mergedistill_ingest_quarantine_dropped_total",
                "Notes that made room for newer ones in the quarantine.",
            )?,
            IntGauge::new("mergedistill_ingest_quarantine_bytes", "Room that the notes in the quarantine take.")?,
            IntGauge::new("mergedistill_ingest_quarantine_notes", "Notes in the quarantine.")?,
        );
        let limit_bytes = AtomicU64::new(limit_bytes);
        Ok(Self { shared: Arc::new(Shared { folder, limit_bytes, kept: Mutex::default(), dropped, bytes, notes }) })
    }

    /// From now on they take at most so many bytes: notes are dropped when the next one comes.
    pub fn set_limit(&self, limit_bytes: u64) {
        self.shared.limit_bytes.store(limit_bytes, Ordering::Relaxed);
    }

    /// Where the notes are.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.shared.folder
    }

    /// Notes that made room for newer ones; the room that all take, and how many there are.
    pub(crate) fn metrics(&self) -> [Box<dyn Collector>; 3] {
        let Shared { dropped, bytes, notes, .. } = &*self.shared;
        [Box::new(dropped.clone()), Box::new(bytes.clone()), Box::new(notes.clone())]
    }

    /// Keeps `note`, and drops the oldest if there are too many now.
    ///
    /// # Errors
    /// When the folder cannot be read or written.
    pub fn keep(&self, note: &Note) -> Result<(), IngestError> {
        let mut kept = self.kept()?;
        let Some(kept) = kept.as_mut() else { return Ok(()) };
        let path = self.path_of(note);
        let text = note.to_json();
        match write(&path, &text) {
            // The document is in the log and in the counters; the stream goes on.
            Err(error) if is_no_space(&error) => {
                tracing::warn!(path = %path.display(), "no space is left on the disk for a note in the quarantine");
                self.shared.dropped.inc();
                return Ok(());
            }
            written => written.map_err(failed("write to the quarantine", &path))?,
        }
        kept.remove(&path);
        kept.add(path, SystemTime::now(), text.len() as u64);
        let limit_bytes = self.shared.limit_bytes.load(Ordering::Relaxed);
        while kept.bytes > limit_bytes && kept.by_age.len() > 1 {
            let Some(((_, oldest), _)) = kept.by_age.first_key_value() else { break };
            let oldest = oldest.clone();
            remove_file(&oldest)?;
            kept.remove(&oldest);
            if self.shared.dropped.get() == 0 {
                tracing::warn!(limit_bytes, "the quarantine is full; its oldest notes are dropped from now on");
            }
            self.shared.dropped.inc();
        }
        self.shared.show(kept);
        Ok(())
    }

    /// Removes the notes of entries that the log does not hold: it goes on with entry `next`, so what they are about is read
    /// again, and may be usable then.
    ///
    /// # Errors
    /// When the folder cannot be read or written.
    pub(crate) fn forget_from(&self, next: SequenceNumber) -> Result<(), IngestError> {
        for note in notes(&self.shared.folder)? {
            if note.sequence.is_some_and(|sequence| sequence >= next.0) {
                self.remove(&note)?;
            }
        }
        Ok(())
    }

    /// Removes a note; that it is not there is no error.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn remove(&self, note: &Note) -> Result<(), IngestError> {
        let mut kept = self.kept()?;
        let path = self.path_of(note);
        remove_file(&path)?;
        if let Some(kept) = kept.as_mut() {
            kept.remove(&path);
            self.shared.show(kept);
        }
        Ok(())
    }

    /// What is in the folder, which is looked at the first time.
    fn kept(&self) -> Result<MutexGuard<'_, Option<Kept>>, IngestError> {
        let mut kept = self.shared.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.is_none() {
            let mut found = Kept::default();
            for path in note_files(&self.shared.folder)? {
                let metadata = match fs::metadata(&path) {
                    Ok(metadata) => metadata,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue, // Someone has removed it.
                    Err(error) => return Err(failed("read", &path)(error)),
                };
                let age = metadata.modified().map_err(failed("read", &path))?;
                found.add(path, age, metadata.len());
            }
            self.shared.show(&found);
            *kept = Some(found);
        }
        Ok(kept)
    }

    fn path_of(&self, note: &Note) -> PathBuf {
        self.shared.folder.join(file_name(&note.source)).join(format!("{}.json", note.id))
    }
}

impl Shared {
    fn show(&self, kept: &Kept) {
        self.bytes.set(kept.bytes as i64);
        self.notes.set(kept.ages.len() as i64);
    }
}

impl Kept {
    fn add(&mut self, path: PathBuf, age: SystemTime, size_bytes: u64) {
        let room = size_bytes.next_multiple_of(BLOCK_BYTES);
        self.bytes += room;
        self.ages.insert(path.clone(), age);
        self.by_age.insert((age, path), room);
    }

    fn remove(&mut self, path: &Path) {
        if let Some(age) = self.ages.remove(path) {
            self.bytes -= self.by_age.remove(&(age, path.to_owned())).unwrap_or(0);
        }
    }
}

/// The notes in a quarantine folder, oldest first. Works beside a daemon that runs. Files that are no notes are passed over.
///
/// # Errors
/// When the folder cannot be read.
pub fn notes(folder: &Path) -> Result<Vec<Note>, IngestError> {
    let mut notes = Vec::new();
    for path in note_files(folder)? {
        match fs::read(&path) {
            Ok(text) => match serde_json::from_slice::<Note>(&text) {
                Ok(note) => notes.push(note),
                Err(error) => tracing::warn!("{} is no note of a document: {error}", path.display()),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {} // Dropped, or retried, meanwhile.
            Err(error) => return Err(failed("read", &path)(error)),
        }
    }
    notes.sort_by(|a, b| (a.quarantined_at, &a.source, a.offset).cmp(&(b.quarantined_at, &b.source, b.offset)));
    Ok(notes)
}

fn note_files(folder: &Path) -> Result<Vec<PathBuf>, IngestError> {
    let mut files = Vec::new();
    for source in entries(folder)? {
        if source.is_dir() {
            files.extend(entries(&source)?.into_iter().filter(|path| path.extension().is_some_and(|it| it == "json")));
        }
    }
    Ok(files)
}

/// What is in `folder`; nothing if it is not there.
fn entries(folder: &Path) -> Result<Vec<PathBuf>, IngestError> {
    let listed = match fs::read_dir(folder) {
        Ok(listed) => listed,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed("list", folder)(error)),
    };
    let mut paths = listed
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<io::Result<Vec<_>>>()
        .map_err(failed("list", folder))?;
    paths.sort();
    Ok(paths)
}

fn remove_file(path: &Path) -> Result<(), IngestError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove from the quarantine", path)(error)),
        _ => Ok(()),
    }
}

fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> IngestError + use<> {
    let path = path.to_owned();
    move |source| IngestError::Io { doing, path, source }
}

/// `identifier` as one safe component of a path; different identifiers give different names. Files and folders of corpora are named
/// so.
#[must_use]
pub fn file_name(identifier: &str) -> String {
    let mut name = String::with_capacity(identifier.len());
    for byte in identifier.bytes() {
        let plain =
            byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'@') || (byte == b'.' && !name.is_empty());
        if plain {
            name.push(char::from(byte));
        } else {
            name.push_str(&format!("%{byte:02X}"));
        }
    }
    if name.len() > NAME_LIMIT_BYTES {
        let hash = Philox::new(0, "quarantine", &[identifier.as_bytes()]).bits(0, 0);
        name = format!("{hash:016x}-{}", &name[name.len() - NAME_LIMIT_BYTES..]);
    }
    name
}
