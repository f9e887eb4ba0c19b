//! A batch that is written and taken back again for want of space: whoever pushed it was refused, so nobody may read it.

use crate::feeds::{documents, next_entries, options};
use crate::workshop::{Cursors, Workshop, feed_of, open, reopen};
use ingest::spool::{Inbox, InboxMetrics, InboxOptions, PushError, Receipt};
use ingest::{FeedOptions, Format};
use prometheus::Registry;
use std::io;
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Condvar, Mutex};
use std::time::SystemTime;
use store::SequenceNumber;
use store::log::disk::{Access, Disk, DiskFile, Lock, StdDisk};

/// A disk that has no space when something is to be made durable, if it is told so, and holds that up until it is let go.
#[derive(Clone, Debug, Default)]
struct ShortDisk(Arc<(Mutex<Short>, Condvar)>);

#[derive(Debug, Default)]
struct Short {
    full: bool,
    held_up: bool,
    waiting: bool,
}

impl ShortDisk {
    fn set(&self, change: impl FnOnce(&mut Short)) {
        change(&mut self.0.0.lock().unwrap());
        self.0.1.notify_all();
    }

    fn wait_until(&self, condition: impl Fn(&Short) -> bool) {
        drop(self.0.1.wait_while(self.0.0.lock().unwrap(), |state| !condition(state)).unwrap());
    }
}

impl Disk for ShortDisk {
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        StdDisk.create_dir_all(dir)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        StdDisk.list(dir)
    }

    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(ShortFile { file: StdDisk.open(path, access)?, disk: self.clone() }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        StdDisk.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        StdDisk.remove(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        StdDisk.sync_dir(dir)
    }
}

#[derive(Debug)]
struct ShortFile {
    file: Arc<dyn DiskFile>,
    disk: ShortDisk,
}

impl DiskFile for ShortFile {
    fn length(&self) -> io::Result<u64> {
        self.file.length()
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buffer, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        self.file.write_at(bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.disk.set(|state| state.waiting = true);
        self.disk.wait_until(|state| !state.held_up);
        let mut full = false;
        self.disk.set(|state| (full, *state) = (state.full, Short::default()));
        if full { Err(io::ErrorKind::StorageFull.into()) } else { self.file.sync() }
    }

    fn truncate(&self, length: u64) -> io::Result<()> {
        self.file.truncate(length)
    }

    fn reserve(&self, end: u64) -> io::Result<()> {
        self.file.reserve(end)
    }

    fn release(&self) -> io::Result<()> {
        self.file.release()
    }

    fn modified(&self) -> io::Result<SystemTime> {
        self.file.modified()
    }

    fn try_lock(&self, lock: Lock) -> io::Result<bool> {
        self.file.try_lock(lock)
    }
}

fn push(inbox: &Inbox, texts: &[&str]) -> Receiver<Result<Receipt, PushError>> {
    let mut batch = inbox.batch();
    for text in texts {
        batch.write((serde_json::json!({ "text": text }).to_string() + "\n").as_bytes()).unwrap();
    }
    let (answer, answered) = channel();
    inbox.push(batch.finish(None).unwrap(), move |result| answer.send(result).unwrap());
    answered
}

#[test]
fn a_batch_that_was_taken_back_is_never_read() {
    for reopened in [false, true] {
        check(reopened);
    }
}

/// `reopened`: the stage was at work before, and goes on while the batch is in the file.
fn check(reopened: bool) {
    let workshop = Workshop::new();
    let corpus = feed_of("inbox", "en", Format::JsonLines, FeedOptions::Spool);
    let inbox_options = InboxOptions::new(vec!["inbox".to_owned()], corpus.format.clone());
    let metrics = InboxMetrics::register(&Registry::new()).unwrap();
    let disk = ShortDisk::default();
    let folder = workshop.path("inbox");
    let inbox = Inbox::open_on(Arc::new(disk.clone()), "inbox", &folder, inbox_options, &metrics).unwrap();
    let inbox = Arc::new(inbox);
    let mut options = options(&workshop, vec![corpus]);
    options.spools.insert("inbox".to_owned(), Arc::clone(&inbox) as _);
    push(&inbox, &["menu", "row"]).recv().unwrap().unwrap();

    let teachers = [workshop.word_teacher("words", &["en"])];
    let mut entries = Vec::new();
    if reopened {
        entries.extend(next_entries(&mut open(&options, &teachers).unwrap(), 1));
    }

    disk.set(|state| (state.full, state.held_up, state.waiting) = (true, true, false));
    let refused = push(&inbox, &["table", "table", "menu table"]);
    disk.wait_until(|state| state.waiting);
    // It stands in the file now, and is not durable.
    let cursors: Cursors =
        entries.iter().map(|entry| (Arc::clone(&entry.cursor.source), entry.cursor.clone())).collect();
    let next = SequenceNumber(entries.len() as u64);
    let mut ingest = reopen(&options, &teachers, &cursors, next).unwrap();
    entries.extend(next_entries(&mut ingest, 1));
    disk.set(|state| state.held_up = false);
    assert!(matches!(refused.recv().unwrap().unwrap_err(), PushError::NoSpace { .. }));

    push(&inbox, &["row", "menu menu menu menu menu", "row"]).recv().unwrap().unwrap();
    while entries.len() < 5 {
        entries.extend(next_entries(&mut ingest, 1));
    }
    let file = std::fs::read_to_string(folder.join("00000000000000000000.jsonl")).unwrap();
    let starts = file.lines().map(|line| line.as_ptr() as usize - file.as_ptr() as usize);
    let expected: Vec<String> = starts.map(|start| format!("00000000000000000000.jsonl@{start}")).collect();
    assert_eq!(documents(&entries), expected);
    let lengths = entries.iter().map(|entry| match &entry.payload {
        store::Payload::Record(record) => record.span.end - record.span.first,
        other => panic!("{other:?}"),
    });
    assert_eq!(
        lengths.collect::<Vec<_>>(),
        ["menu", "row", "row", "menu menu menu menu menu", "row"].map(|it| it.len() as u64)
    );
}
