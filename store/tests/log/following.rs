//! Readers while the log is being written.

use crate::memory_disk::MemoryDisk;
use crate::sample::{DIR, append_blocks, block, check_content, durable, identity, open, options, read, verify};
use prometheus::Registry;
use std::fmt;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;
use store::log::disk::{Access, Disk, DiskFile};
use store::{LogOptions, LogReader, LogWriter, SequenceNumber};

const LONG: Duration = Duration::from_secs(60);

/// A thread that follows the tail sees everything, in order, and nothing that is not durable.
#[test]
fn a_reader_in_the_same_process_follows() {
    let disk = MemoryDisk::default();
    let (mut log, _) = open(&disk, &options(5000)).unwrap();
    let reader = log.reader();
    let follower = thread::spawn(move || follow(&reader, 200));
    for first in (0..200).step_by(5) {
        log.append(&block(first..first + 5)).unwrap();
        if first % 15 == 0 {
            assert!(log.reader().durable() <= durable(first));
            assert_eq!(log.sync().unwrap(), durable(first + 5));
        }
    }
    log.seal().unwrap();
    follower.join().unwrap();
}

/// The same from outside, on a real file system, across segments.
#[test]
fn a_reader_in_another_place_follows() {
    let folder = tempfile::tempdir().unwrap();
    let (mut log, _) = LogWriter::open(folder.path(), &identity(), &options(5000), &Registry::new()).unwrap();
    let reader = LogReader::open(folder.path()).unwrap();
    assert_eq!(reader.durable(), durable(0));
    let follower = thread::spawn(move || follow(&reader, 200));
    for first in (0..200).step_by(5) {
        log.append(&block(first..first + 5)).unwrap();
        log.sync().unwrap();
    }
    log.seal().unwrap();
    follower.join().unwrap();
    assert_eq!(store::verify(folder.path()).unwrap().entries, 200);
}

fn follow(reader: &LogReader, end: u64) {
    let mut seen = durable(0);
    while seen < durable(end) {
        let now = reader.wait_beyond(seen, LONG);
        assert!(now > seen, "nothing came in time");
        for sequence in seen.end().0..now.end().0 {
            assert_eq!(*reader.entry(SequenceNumber(sequence)).unwrap(), crate::sample::entry(sequence));
        }
        seen = now;
    }
}

/// From outside nobody sees what is not durable while the writer lives; what a crash left counts.
#[test]
fn durable_is_respected_from_outside() {
    let disk = MemoryDisk::default();
    let (mut log, _) = open(&disk, &options(1 << 20)).unwrap();
    log.append(&block(0..4)).unwrap();
    log.sync().unwrap();
    log.append(&block(4..9)).unwrap();
    assert_eq!(check_content(&log.reader()), 4);
    assert_eq!(check_content(&read(&disk).unwrap()), 4);
    let live = store::log::stat_on(std::sync::Arc::new(disk.clone()), crate::sample::DIR.as_ref()).unwrap();
    assert_eq!((live.durable, live.live), (durable(4), true));
    assert_eq!(verify(&disk).unwrap().entries, 4);
    drop(log);
    assert_eq!(check_content(&read(&disk).unwrap()), 9);
}

/// A writer whose word cannot be read is not believed to have made anything durable.
#[test]
fn durable_is_respected_when_the_positions_are_damaged() {
    let disk = MemoryDisk::default();
    let (mut log, _) = open(&disk, &options(1)).unwrap();
    append_blocks(&mut log, &[4, 7]);
    log.append(&block(7..9)).unwrap(); // In a segment of its own.
    let position = disk.open(&Path::new(DIR).join("POSITION"), Access::Write).unwrap();
    position.write_at(b"damage", 6).unwrap();
    assert_eq!(check_content(&read(&disk).unwrap()), 7);
    log.sync().unwrap();
    assert_eq!(check_content(&read(&disk).unwrap()), 9);
}

/// Something happens between a reader's look at the writer and its look at the segments.
struct Meanwhile(MemoryDisk, Mutex<Option<Box<dyn FnOnce() + Send>>>);

impl fmt::Debug for Meanwhile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Disk for Meanwhile {
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        self.0.create_dir_all(dir)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let happening = self.1.lock().unwrap().take();
        happening.into_iter().for_each(|happening| happening());
        self.0.list(dir)
    }

    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn DiskFile>> {
        self.0.open(path, access)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.0.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.0.remove(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.0.sync_dir(dir)
    }
}

/// A writer that begins while a reader looks is not taken for one that has ended.
#[test]
fn durable_is_respected_when_a_writer_comes_while_a_reader_looks() {
    let disk = MemoryDisk::default();
    append_blocks(&mut open(&disk, &options(1 << 20)).unwrap().0, &[4]);
    let writer = Arc::new(Mutex::new(None));
    let (place, shared) = (Arc::clone(&writer), disk.clone());
    let begins: Box<dyn FnOnce() + Send> = Box::new(move || {
        let (mut log, _) = open(&shared, &options(1 << 20)).unwrap();
        log.append(&block(4..9)).unwrap();
        *place.lock().unwrap() = Some(log);
    });
    let meanwhile = Meanwhile(disk, Mutex::new(Some(begins)));
    let reader = LogReader::open_on(Arc::new(meanwhile), Path::new(DIR)).unwrap();
    assert!(writer.lock().unwrap().is_some());
    assert_eq!(check_content(&reader), 4);
}

#[test]
fn waiting_ends_in_time() {
    let (log, _) = open(&MemoryDisk::default(), &options(1 << 20)).unwrap();
    assert_eq!(log.reader().wait_beyond(durable(0), Duration::from_millis(1)), durable(0));
}

#[test]
fn a_sync_is_due_when_there_is_something_to_sync() {
    let disk = MemoryDisk::default();
    let (mut log, _) = open(&disk, &options(1 << 20)).unwrap();
    assert_eq!(log.sync_due(), None);
    log.append(&block(0..4)).unwrap();
    assert!(log.sync_due().is_some_and(|due| !due.is_zero() && due <= LONG * 60));
    log.sync().unwrap();
    assert_eq!(log.sync_due(), None);
    drop(log);
    let hasty = LogOptions { sync_interval: Duration::ZERO, ..options(1 << 20) };
    let (mut log, _) = open(&disk, &hasty).unwrap();
    log.append(&block(4..5)).unwrap();
    assert_eq!(log.sync_due(), Some(Duration::ZERO));
}
