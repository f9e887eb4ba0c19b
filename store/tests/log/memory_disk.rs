//! A disk in memory that keeps only what was synced, and fails on demand.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
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
    /// Operations that changed something, or tried to.
    operations: u64,
    fault: Option<(u64, Fault)>,
    crashed: bool,
}

#[derive(Clone, Debug, Default)]
struct Node {
    content: Vec<u8>,
    durable: Vec<u8>,
    /// Since the last sync.
    pending: Vec<Change>,
    exclusive: Weak<()>,
}

#[derive(Clone, Debug)]
enum Change {
    Write(u64, Vec<u8>),
    Truncate(u64),
}

/// What happens to one operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It fails; a write gets half of its bytes in.
    Error(io::ErrorKind),
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

    /// Number of operations so far.
    pub(crate) fn operations(&self) -> u64 {
        self.lock().operations
    }

    pub(crate) fn crashed(&self) -> bool {
        self.lock().crashed
    }

    /// The disk after a crash: what was synced, and those unsynced changes that `survives` picks, in order.
    pub(crate) fn after_crash(&self, mut survives: impl FnMut() -> bool) -> Self {
        let state = self.lock();
        let names = if survives() { &state.names } else { &state.durable_names };
        let present = |path: &Path| path.ancestors().skip(1).all(|above| is_root(above) || names.contains_key(above));
        let names: BTreeMap<_, _> = names.clone().into_iter().filter(|(path, _)| present(path)).collect();
        let mut files = state.files.clone();
        for node in &mut files {
            let mut content = node.durable.clone();
            node.pending.iter().filter(|_| survives()).for_each(|change| change.apply(&mut content));
            *node = Node { content: content.clone(), durable: content, ..Node::default() };
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

impl Change {
    fn apply(&self, content: &mut Vec<u8>) {
        match self {
            Self::Write(offset, bytes) => {
                let end = *offset as usize + bytes.len();
                if content.len() < end {
                    content.resize(end, 0);
                }
                content[*offset as usize..end].copy_from_slice(bytes);
            }
            Self::Truncate(length) => content.resize(*length as usize, 0),
        }
    }
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
            Some(Fault::Crash) => Err(io::Error::other("the machine is off")),
            Some(Fault::ShortWrite) | None => Ok(()),
        }
    }

    fn change(&mut self, file: usize, change: Change) {
        let node = &mut self.files[file];
        change.apply(&mut node.content);
        node.pending.push(change);
    }
}

impl Disk for MemoryDisk {
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.lock();
        state.atomic()?;
        for above in dir.ancestors().filter(|above| !is_root(above)) {
            state.names.entry(above.to_owned()).or_insert(None);
        }
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let state = self.lock();
        let files = state.names.iter().filter(|(path, file)| file.is_some() && path.parent() == Some(dir));
        Ok(files.map(|(path, _)| path.file_name().unwrap().to_str().unwrap().to_owned()).collect())
    }

    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.lock();
        if matches!(access, Access::Replace | Access::Keep) {
            state.atomic()?;
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
                state.names.insert(path.to_owned(), Some(file));
                file
            }
        };
        Ok(Arc::new(MemoryFile { disk: self.clone(), file, token: Arc::new(()) }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.lock();
        state.atomic()?;
        let file = state.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        state.names.insert(to.to_owned(), file);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.lock();
        state.atomic()?;
        state.names.remove(path).map(|_| ()).ok_or(io::ErrorKind::NotFound.into())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.lock();
        state.atomic()?;
        let inside = |path: &Path| path.parent() == Some(dir);
        state.durable_names.retain(|path, _| !inside(path));
        let names: Vec<_> = state.names.iter().filter(|(path, _)| inside(path)).map(|(p, f)| (p.clone(), *f)).collect();
        state.durable_names.extend(names);
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
        Ok(self.disk.lock().files[self.file].content.len() as u64)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let state = self.disk.lock();
        let content = &state.files[self.file].content;
        let rest = content.get(offset as usize..).unwrap_or_default();
        let read = rest.len().min(buffer.len());
        buffer[..read].copy_from_slice(&rest[..read]);
        Ok(read)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        let mut state = self.disk.lock();
        let fault = state.step()?;
        let taken = if fault.is_some() { bytes.len() / 2 } else { bytes.len() };
        state.change(self.file, Change::Write(offset, bytes[..taken].to_vec()));
        match fault {
            Some(Fault::Error(kind)) => Err(kind.into()),
            Some(Fault::Crash) => Err(io::Error::other("the machine is off")),
            Some(Fault::ShortWrite) | None => Ok(taken),
        }
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.disk.lock();
        let done = state.atomic();
        let crashed = state.crashed;
        let node = &mut state.files[self.file];
        match &done {
            Ok(()) => {
                let pending = std::mem::take(&mut node.pending);
                pending.iter().for_each(|change| change.apply(&mut node.durable));
            }
            // After a failed fsync the kernel calls the pages clean: no later one writes them.
            Err(_) if !crashed => node.pending.clear(),
            Err(_) => {}
        }
        done
    }

    fn truncate(&self, length: u64) -> io::Result<()> {
        let mut state = self.disk.lock();
        state.atomic()?;
        state.change(self.file, Change::Truncate(length));
        Ok(())
    }

    fn try_lock(&self, lock: Lock) -> io::Result<bool> {
        let mut state = self.disk.lock();
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
