//! A disk whose syncs wait until they are let through, and may fail.

use std::io;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};
use std::time::SystemTime;
use store::log::disk::{Access, Disk, DiskFile, Lock};

/// `D` with a gate before its syncs. Cloning shares the disk.
#[derive(Clone, Debug)]
pub(crate) struct GatedDisk<D> {
    pub(crate) disk: D,
    gate: Arc<Gate>,
}

/// What becomes of a sync that is not to succeed.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Misfortune {
    /// The disk is full.
    NoSpace,
    /// The program has a bug.
    Panic,
}

#[derive(Debug, Default)]
struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    closed: bool,
    waiting: usize,
    syncs: usize,
    /// For the next sync.
    misfortune: Option<Misfortune>,
}

impl<D> GatedDisk<D> {
    pub(crate) fn new(disk: D) -> Self {
        Self { disk, gate: Arc::default() }
    }

    pub(crate) fn close(&self) {
        self.gate.state.lock().unwrap().closed = true;
    }

    pub(crate) fn open(&self) {
        self.gate.state.lock().unwrap().closed = false;
        self.gate.changed.notify_all();
    }

    /// What is to become of the next sync.
    pub(crate) fn plan(&self, misfortune: Misfortune) {
        self.gate.state.lock().unwrap().misfortune = Some(misfortune);
    }

    /// Whether a sync waits.
    pub(crate) fn is_waited_for(&self) -> bool {
        self.gate.state.lock().unwrap().waiting > 0
    }

    /// Returns when a sync waits.
    pub(crate) fn wait_for_sync(&self) {
        let state = self.gate.state.lock().unwrap();
        drop(self.gate.changed.wait_while(state, |state| state.waiting == 0).unwrap());
    }

    /// Syncs of files so far.
    pub(crate) fn syncs(&self) -> usize {
        self.gate.state.lock().unwrap().syncs
    }
}

impl Gate {
    fn pass(&self) -> io::Result<()> {
        let mut state = self.state.lock().unwrap();
        state.syncs += 1;
        state.waiting += 1;
        self.changed.notify_all();
        state = self.changed.wait_while(state, |state| state.closed).unwrap();
        state.waiting -= 1;
        let misfortune = state.misfortune.take();
        drop(state);
        match misfortune {
            None => Ok(()),
            Some(Misfortune::NoSpace) => Err(io::ErrorKind::StorageFull.into()),
            Some(Misfortune::Panic) => panic!("on purpose"),
        }
    }
}

impl<D: Disk> Disk for GatedDisk<D> {
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        self.disk.create_dir_all(dir)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.disk.list(dir)
    }

    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(GatedFile { file: Disk::open(&self.disk, path, access)?, gate: Arc::clone(&self.gate) }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.disk.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.disk.remove(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.disk.sync_dir(dir)
    }
}

#[derive(Debug)]
struct GatedFile {
    file: Arc<dyn DiskFile>,
    gate: Arc<Gate>,
}

impl DiskFile for GatedFile {
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
        self.gate.pass()?;
        self.file.sync()
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
