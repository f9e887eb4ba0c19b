//! The thread that writes: all batches that wait, one sync, then their answers.

use super::commit::{self, Commit};
use super::keys::{self, KeyHash, KeyWindow};
use super::recovery::{KEYS_NAME, SpoolFile, file_name};
use super::shared::{Answer, Shared, Waiting};
use super::{Batch, PushError, Receipt};
use crate::error::is_no_space;
use std::collections::{BTreeMap, HashSet};
use std::io;
use std::mem;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;
use store::log::disk::{Access, Disk, DiskFile, write_all_at};

/// The file at the end of the spool.
#[derive(Debug)]
pub(super) struct Tail {
    file: Arc<dyn DiskFile>,
    /// Number of its first document.
    first: u64,
    /// Bytes of whole batches, durable or not.
    written: u64,
    /// Bytes that are durable.
    durable: u64,
    /// Documents in what is written.
    documents: u64,
    /// Whether something was cut off since the last sync.
    cut: bool,
}

impl Tail {
    /// A file whose `bytes` are durable.
    pub(super) fn new(file: Arc<dyn DiskFile>, first: u64, bytes: u64, documents: u64) -> Self {
        Self { file, first, written: bytes, durable: bytes, documents, cut: false }
    }
}

/// What is written and not yet durable.
#[derive(Default)]
struct Unsettled {
    /// What all batches that are to be answered were admitted with.
    spooled_bytes: u64,
    answers: Vec<(Answer, Result<Receipt, PushError>)>,
    keys: Vec<KeyHash>,
    known: HashSet<KeyHash>,
    documents: u64,
    characters: BTreeMap<String, u64>,
}

/// Owns the folder.
pub(super) struct Writer {
    pub(super) shared: Arc<Shared>,
    pub(super) disk: Arc<dyn Disk>,
    pub(super) folder: PathBuf,
    pub(super) tail: Tail,
    pub(super) keys: KeyWindow,
    /// Of all durable documents that ever arrived, by language.
    pub(super) characters: BTreeMap<String, u64>,
    /// Whether it was told that there is no space, and not yet that there is some again.
    pub(super) no_space: bool,
}

impl Writer {
    /// Until the inbox is closed and nothing waits.
    pub(super) fn run(mut self) {
        while let Some(work) = self.shared.next_work() {
            for file in work.removable {
                self.remove(file);
            }
            if !work.batches.is_empty() {
                let started = Instant::now();
                self.commit(work.batches);
                self.shared.metrics.commit_seconds.observe(started.elapsed().as_secs_f64());
            }
        }
    }

    /// Makes batches durable, in order, and answers.
    fn commit(&mut self, batches: Vec<Waiting>) {
        // Several files at least, so that those that were read make room.
        let file_bytes = self.shared.options.file_bytes.min(self.shared.limit_bytes() / 4);
        let mut group = Unsettled::default();
        for Waiting { batch, answer } in batches {
            let is_full = self.tail.written > 0 && self.tail.written + batch.bytes() > file_bytes;
            let begun = if is_full { self.next_file(&mut group) } else { Ok(()) };
            group.spooled_bytes += batch.spooled_bytes();
            let outcome = begun.and_then(|()| self.append(batch, &mut group));
            group.answers.push((answer, outcome));
        }
        self.settle(group);
    }

    /// Settles what the file so far holds, and begins the next one.
    fn next_file(&mut self, group: &mut Unsettled) -> Result<(), PushError> {
        self.settle(mem::take(group));
        self.rotate().map_err(|error| self.failure("begin a file in the inbox", error))
    }

    fn append(&mut self, mut batch: Batch, group: &mut Unsettled) -> Result<Receipt, PushError> {
        self.shared.check()?;
        let key = batch.key.as_deref().map(KeyHash::of);
        if key.is_some_and(|key| self.keys.contains(key) || group.known.contains(&key)) {
            self.shared.metrics.duplicates.inc();
            return Ok(Receipt { duplicate: true, ..Receipt::default() });
        }
        let mut commit = Commit {
            documents: batch.documents,
            bytes: 0,
            durable: self.tail.durable,
            characters: mem::take(&mut batch.characters),
            key: batch.key.take(),
        };
        commit::seal(&mut batch.lines, &mut commit);
        if let Err(error) = write_all_at(self.tail.file.as_ref(), &batch.lines, self.tail.written) {
            self.cut(self.tail.written);
            return Err(self.failure("write to the inbox", error));
        }
        self.tail.written += batch.lines.len() as u64;
        self.tail.documents += batch.documents;
        group.documents += batch.documents;
        for (language, characters) in commit.characters {
            *group.characters.entry(language).or_default() += characters;
        }
        group.keys.extend(key);
        group.known.extend(key);
        Ok(batch.receipt())
    }

    /// Makes what was written durable, and answers.
    fn settle(&mut self, group: Unsettled) {
        let outcome = self.sync(group.documents);
        if outcome.is_ok() {
            group.keys.into_iter().for_each(|key| self.keys.insert(key));
            for (language, characters) in group.characters {
                *self.characters.entry(language).or_default() += characters;
            }
            if group.documents > 0 {
                self.no_space = false;
                let file = SpoolFile { first: self.tail.first, bytes: self.tail.durable };
                self.shared.arrived(file, group.documents, &self.characters);
            }
        }
        self.shared.done(group.spooled_bytes);
        for (answer, result) in group.answers {
            answer.give(outcome.clone().and(result));
        }
    }

    fn sync(&mut self, documents: u64) -> Result<(), PushError> {
        if self.tail.written == self.tail.durable && !self.tail.cut {
            return Ok(());
        }
        self.shared.check()?;
        match self.tail.file.sync() {
            Ok(()) => {
                self.tail.durable = self.tail.written;
                self.tail.cut = false;
                Ok(())
            }
            Err(error) if is_no_space(&error) => {
                self.tail.documents -= documents;
                self.cut(self.tail.durable);
                if let Err(again) = self.tail.file.sync() {
                    return Err(self.stop("sync the inbox", &again));
                }
                self.tail.cut = false;
                Err(self.failure("sync the inbox", error))
            }
            Err(error) => Err(self.stop("sync the inbox", &error)),
        }
    }

    /// Takes back what stands behind `length`; durable with the next sync.
    fn cut(&mut self, length: u64) {
        self.tail.written = length;
        self.tail.cut = true;
        if let Err(error) = self.tail.file.truncate(length) {
            self.stop("cut a batch off that was not complete", &error);
        }
    }

    /// Begins the next file. What the one so far says about keys and characters goes to the file of keys first.
    fn rotate(&mut self) -> io::Result<()> {
        if self.tail.written != self.tail.durable {
            return Err(io::Error::other("the file before it could not be made durable"));
        }
        let next = self.tail.first + self.tail.documents;
        let bytes = keys::encode(next, &self.characters, &self.keys);
        let partial = self.folder.join(format!("{KEYS_NAME}.new"));
        let file = self.disk.open(&partial, Access::Replace)?;
        write_all_at(file.as_ref(), &bytes, 0)?;
        file.sync()?;
        self.disk.rename(&partial, &self.folder.join(KEYS_NAME))?;
        self.disk.sync_dir(&self.folder)?;
        let file = self.disk.open(&self.folder.join(file_name(next)), Access::Replace)?;
        self.disk.sync_dir(&self.folder)?;
        self.tail = Tail::new(file, next, 0, 0);
        self.shared.rotated(next);
        Ok(())
    }

    fn remove(&self, file: SpoolFile) {
        let path = self.folder.join(file_name(file.first));
        match self.disk.remove(&path) {
            Ok(()) => tracing::debug!(path = %path.display(), "removed a file of the inbox: the log has its documents"),
            // It is looked at again when the inbox is opened.
            Err(error) => tracing::warn!(path = %path.display(), %error, "cannot remove a file of the inbox"),
        }
    }

    /// What becomes of a failed operation: without space others may fit later, anything else ends the inbox.
    fn failure(&mut self, doing: &str, error: io::Error) -> PushError {
        if is_no_space(&error) {
            let (doing, error) = (doing.to_owned(), error.to_string());
            if !mem::replace(&mut self.no_space, true) {
                tracing::warn!(
                    inbox = self.shared.name,
                    "cannot {doing}: {error}; documents are refused that do not fit"
                );
            }
            return PushError::NoSpace { doing, error };
        }
        self.stop(doing, &error)
    }

    fn stop(&self, doing: &str, error: &io::Error) -> PushError {
        let message = format!("cannot {doing} ({}): {error}", self.folder.display());
        tracing::error!(inbox = self.shared.name, "{message}; nothing more is taken until the daemon is started again");
        self.shared.fail(message)
    }
}
