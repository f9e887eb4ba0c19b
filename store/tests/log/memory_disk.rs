//! A disk in memory that keeps only what was synced, and fails on demand.
//!
//! After a crash any choice of the unsynced changes is there: pieces of writes, lengths and names, each for itself and in
//! whatever order. That is more than most file systems do to a program, and what POSIX lets them do.

use crate::changes::{Change, NameChange};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::SystemTime;
use store::log::disk::{Access, Disk, DiskFile, Lock};

/// Cloning shares the disk.
#[derive(Clone, Debug, Default)]
pub(crate) struct MemoryDisk(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    files: Vec<Node>,
    /// What programs see: the number of a file, or `None` for a folder.
    names: BTreeMap<PathBuf, Option<usize>>,
    /// What is left after a crash.
    durable_names: BTreeMap<PathBuf, Option<usize>>,
    /// Since the folders that hold them were synced.
    pending_names: Vec<NameChange>,
    /// Operations that changed something, or tried to.
    operations: u64,
    fault: Option<(u64, Fault)>,
    /// Operations that change nothing.
    looks: u64,
    failing_look: Option<(u64, io::ErrorKind)>,
    /// Whether a read gives a part of what was asked for.
    short_reads: bool,
    /// Bytes of all files together that have room; `None`: any.
    capacity: Option<u64>,
    crashed: bool,
}

#[derive(Clone, Debug)]
struct Node {
    content: Vec<u8>,
    durable: Vec<u8>,
    /// Since the last sync.
    pending: Vec<Change>,
    exclusive: Weak<()>,
    modified: SystemTime,
    /// Up to here there is room for it.
    reserved: u64,
}

impl Node {
    /// Bytes that it takes of the disk.
    fn room(&self) -> u64 {
        self.reserved.max(self.content.len() as u64)
    }
}

impl Default for Node {
    fn default() -> Self {
        let (content, durable, pending) = Default::default();
        Self { content, durable, pending, exclusive: Weak::new(), modified: SystemTime::now(), reserved: 0 }
    }
}

/// What happens to one operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It fails; a write gets half of its bytes in.
    Error(io::ErrorKind),
    /// It fails; a sync makes every second piece durable, and no later one the others.
    HalfSync,
    /// A write takes half of its bytes and says so.
    ShortWrite,
    /// The machine stops during it; every later operation fails too.
    Crash,
}

impl MemoryDisk {
    /// Lets operation number `operation` (see [`MemoryDisk::operations`]) fail.
    pub(crate) fn fail_at(&self, operation: u64, fault: Fault) {
        self.lock().fault = Some((operation, fault));
    }

    /// Whether that operation is still to come.
    pub(crate) fn fault_pending(&self) -> bool {
        self.lock().fault.is_some()
    }

    /// Number of operations so far.
    pub(crate) fn operations(&self) -> u64 {
        self.lock().operations
    }

    /// Lets a look (opening for reading or writing, listing, reading, asking for a length or a lock) fail: number `look` of
    /// those from now on.
    pub(crate) fn fail_look(&self, look: u64, kind: io::ErrorKind) {
        let mut state = self.lock();
        (state.looks, state.failing_look) = (0, Some((look, kind)));
    }

    /// Whether a failing look is still to come.
    pub(crate) fn look_pending(&self) -> bool {
        self.lock().failing_look.is_some()
    }

    /// From now on a read gives a part of what was asked for.
    pub(crate) fn shorten_reads(&self) {
        self.lock().short_reads = true;
    }

    /// Leaves room for so many bytes more; `None`: any number.
    pub(crate) fn leave_room(&self, bytes: Option<u64>) {
        let mut state = self.lock();
        state.capacity = bytes.map(|bytes| state.used() + bytes);
    }

    /// Says when a file was written last.
    pub(crate) fn set_modified(&self, path: &Path, time: SystemTime) {
        let mut state = self.lock();
        let file = state.names[path].unwrap();
        state.files[file].modified = time;
    }

    pub(crate) fn crashed(&self) -> bool {
        self.lock().crashed
    }

    /// The disk after a crash: what was synced, and those unsynced changes that `survives` picks, in order.
    pub(crate) fn after_crash(&self, mut survives: impl FnMut() -> bool) -> Self {
        let state = self.lock();
        let mut names = state.durable_names.clone();
        for change in &state.pending_names {
            // A file system knows no names in folders that it does not know.
            if survives() && change.target().parent().is_none_or(|above| is_root(above) || names.contains_key(above)) {
                change.apply(&mut names);
            }
        }
        let known = names.clone();
        names.retain(|path, _| path.ancestors().skip(1).all(|above| is_root(above) || known.contains_key(above)));
        let mut files = state.files.clone();
        for node in &mut files {
            let mut content = node.durable.clone();
            let pieces = node.pending.iter().flat_map(Change::pieces);
            pieces.filter(|_| survives()).for_each(|change| change.apply(&mut content));
            if content.len() < node.content.len() && survives() {
                content.resize(node.content.len(), 0); // The length is there, the bytes are not.
            }
            *node = Node { content: content.clone(), durable: content, modified: node.modified, ..Node::default() };
        }
        Self(Arc::new(Mutex::new(State { files, durable_names: names.clone(), names, ..State::default() })))
    }

    /// The disk as another process finds it: nothing is lost, nobody holds a lock, everything is durable.
    pub(crate) fn copy(&self) -> Self {
        let state = self.lock();
        let settle = |node: &Node| Node {
            content: node.content.clone(),
            durable: node.content.clone(),
            pending: Vec::new(),
            exclusive: Weak::new(),
            modified: node.modified,
            reserved: 0,
        };
        Self(Arc::new(Mutex::new(State {
            files: state.files.iter().map(settle).collect(),
            names: state.names.clone(),
            durable_names: state.names.clone(),
            ..State::default()
        })))
    }

    /// All files below `dir`, with their content.
    pub(crate) fn files(&self, dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
        let state = self.lock();
        let files = state.names.iter().filter(|(path, _)| path.starts_with(dir));
        files.filter_map(|(path, file)| file.map(|file| (path.clone(), state.files[file].content.clone()))).collect()
    }

    /// Replaces or creates a file.
    pub(crate) fn put(&self, path: &Path, content: Vec<u8>) {
        let mut state = self.lock();
        state.files.push(Node { content: content.clone(), durable: content, ..Node::default() });
        let file = Some(state.files.len() - 1);
        state.names.insert(path.to_owned(), file);
        state.durable_names.insert(path.to_owned(), file);
    }

    pub(crate) fn delete(&self, path: &Path) {
        let mut state = self.lock();
        state.names.remove(path).unwrap();
        state.durable_names.remove(path);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }
}

fn is_root(path: &Path) -> bool {
    path.as_os_str().is_empty() || path == Path::new("/")
}

impl State {
    /// Counts an operation and says what happens to it.
    fn step(&mut self) -> io::Result<Option<Fault>> {
        if self.crashed {
            return Err(io::Error::other("the machine is off"));
        }
        let operation = self.operations;
        self.operations += 1;
        match self.fault {
            Some((at, fault)) if at == operation => {
                self.fault = None;
                self.crashed = fault == Fault::Crash;
                Ok(Some(fault))
            }
            _ => Ok(None),
        }
    }

    /// An operation that happens whole or not at all.
    fn atomic(&mut self) -> io::Result<()> {
        match self.step()? {
            Some(Fault::Error(kind)) => Err(kind.into()),
            Some(Fault::HalfSync) => Err(io::Error::other("the disk failed")),
            Some(Fault::Crash) => Err(io::Error::other("the machine is off")),
            Some(Fault::ShortWrite) | None => Ok(()),
        }
    }

    /// An operation that changes nothing.
    fn look(&mut self) -> io::Result<()> {
        if self.crashed {
            return Err(io::Error::other("the machine is off"));
        }
        let look = self.looks;
        self.looks += 1;
        match self.failing_look {
            Some((at, kind)) if at == look => {
                self.failing_look = None;
                Err(kind.into())
            }
            _ => Ok(()),
        }
    }

    fn rename(&mut self, change: NameChange) {
        change.apply(&mut self.names);
        self.pending_names.push(change);
    }

    /// Bytes of all files that have a name.
    fn used(&self) -> u64 {
        self.names.values().flatten().map(|file| self.files[*file].room()).sum()
    }

    fn change(&mut self, file: usize, change: Change) {
        let node = &mut self.files[file];
        node.modified = SystemTime::now();
        change.apply(&mut node.content);
        node.pending.push(change);
    }
}

impl Disk for MemoryDisk {
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.lock();
        state.atomic()?;
        let mut missing: Vec<_> = dir.ancestors().filter(|above| !is_root(above)).collect();
        missing.retain(|above| !state.names.contains_key(*above));
        missing.iter().rev().for_each(|above| state.rename(NameChange::Appears((*above).to_owned(), None)));
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut state = self.lock();
        state.look()?;
        let files = state.names.iter().filter(|(path, file)| file.is_some() && path.parent() == Some(dir));
        Ok(files.map(|(path, _)| path.file_name().unwrap().to_str().unwrap().to_owned()).collect())
    }

    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.lock();
        match access {
            Access::Read | Access::Write => state.look()?,
            Access::Replace | Access::Keep => state.atomic()?,
        }
        let known = state.names.get(path).copied().flatten();
        let file = match (known, access) {
            (Some(file), Access::Replace) => {
                state.change(file, Change::Truncate(0));
                file
            }
            (Some(file), _) => file,
            (None, Access::Read | Access::Write) => return Err(io::ErrorKind::NotFound.into()),
            (None, Access::Replace | Access::Keep) => {
                let parent = path.parent().unwrap();
                if !is_root(parent) && !state.names.contains_key(parent) {
                    return Err(io::ErrorKind::NotFound.into());
                }
                state.files.push(Node::default());
                let file = state.files.len() - 1;
                state.rename(NameChange::Appears(path.to_owned(), Some(file)));
                file
            }
        };
        Ok(Arc::new(MemoryFile { disk: self.clone(), file, token: Arc::new(()) }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.lock();
        state.atomic()?;
        let file = *state.names.get(from).ok_or(io::ErrorKind::NotFound)?;
        state.rename(NameChange::Renamed(from.to_owned(), to.to_owned(), file));
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.lock();
        state.atomic()?;
        if !state.names.contains_key(path) {
            return Err(io::ErrorKind::NotFound.into());
        }
        state.rename(NameChange::Vanishes(path.to_owned()));
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.lock();
        state.atomic()?;
        for change in std::mem::take(&mut state.pending_names) {
            let (durable, pending) = change.split(dir);
            durable.into_iter().for_each(|change| change.apply(&mut state.durable_names));
            state.pending_names.extend(pending);
        }
        Ok(())
    }
}

#[derive(Debug)]
struct MemoryFile {
    disk: MemoryDisk,
    file: usize,
    /// Lives as long as this open file, and with it its lock.
    token: Arc<()>,
}

impl DiskFile for MemoryFile {
    fn length(&self) -> io::Result<u64> {
        let mut state = self.disk.lock();
        state.look()?;
        Ok(state.files[self.file].content.len() as u64)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut state = self.disk.lock();
        state.look()?;
        let rest = state.files[self.file].content.get(offset as usize..).unwrap_or_default();
        let asked = if state.short_reads { buffer.len().div_ceil(2) } else { buffer.len() };
        let read = rest.len().min(asked);
        buffer[..read].copy_from_slice(&rest[..read]);
        Ok(read)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        let mut state = self.disk.lock();
        let fault = state.step()?;
        let grows = (offset + bytes.len() as u64).saturating_sub(state.files[self.file].room());
        let fault = match state.capacity {
            Some(capacity) if grows > 0 && state.used() + grows > capacity => {
                fault.or(Some(Fault::Error(io::ErrorKind::StorageFull)))
            }
            _ => fault,
        };
        let taken = if fault.is_some() { bytes.len() / 2 } else { bytes.len() };
        state.change(self.file, Change::Write(offset, bytes[..taken].to_vec()));
        match fault {
            Some(Fault::Error(kind)) => Err(kind.into()),
            Some(Fault::HalfSync) => Err(io::Error::other("the disk failed")),
            Some(Fault::Crash) => Err(io::Error::other("the machine is off")),
            Some(Fault::ShortWrite) | None => Ok(taken),
        }
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.disk.lock();
        let fault = state.step()?;
        let node = &mut state.files[self.file];
        if fault == Some(Fault::Crash) {
            return Err(io::Error::other("the machine is off"));
        }
        // After a failed fsync the kernel calls the pages clean: no later one writes them.
        let pieces = std::mem::take(&mut node.pending).iter().flat_map(Change::pieces).collect::<Vec<_>>();
        match fault {
            Some(Fault::Error(kind)) => Err(kind.into()),
            Some(Fault::HalfSync) => {
                pieces.iter().skip(1).step_by(2).for_each(|change| change.apply(&mut node.durable));
                Err(io::Error::other("the disk failed"))
            }
            Some(Fault::Crash | Fault::ShortWrite) | None => {
                pieces.iter().for_each(|change| change.apply(&mut node.durable));
                Ok(())
            }
        }
    }

    fn truncate(&self, length: u64) -> io::Result<()> {
        let mut state = self.disk.lock();
        state.atomic()?;
        state.change(self.file, Change::Truncate(length));
        Ok(())
    }

    fn reserve(&self, end: u64) -> io::Result<()> {
        let mut state = self.disk.lock();
        state.atomic()?;
        let missing = end.saturating_sub(state.files[self.file].room());
        if missing > 0 && state.used() + missing > state.capacity.unwrap_or(u64::MAX) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let node = &mut state.files[self.file];
        node.reserved = node.reserved.max(end);
        Ok(())
    }

    fn release(&self) -> io::Result<()> {
        let mut state = self.disk.lock();
        state.atomic()?;
        state.files[self.file].reserved = 0;
        Ok(())
    }

    fn modified(&self) -> io::Result<SystemTime> {
        let mut state = self.disk.lock();
        state.look()?;
        Ok(state.files[self.file].modified)
    }

    fn try_lock(&self, lock: Lock) -> io::Result<bool> {
        let mut state = self.disk.lock();
        state.look()?;
        let node = &mut state.files[self.file];
        if node.exclusive.upgrade().is_some_and(|holder| !Arc::ptr_eq(&holder, &self.token)) {
            return Ok(false);
        }
        if lock == Lock::Exclusive {
            node.exclusive = Arc::downgrade(&self.token);
        }
        Ok(true)
    }
}
