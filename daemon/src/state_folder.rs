//! The state folder: one process at a time, and a file that says what the run is.

use crate::failure::{ExitCode, Failure};
use crate::live::{Change, MadeChange};
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};
use store::Identity;

/// A state folder that this process owns until it ends.
#[derive(Debug)]
pub struct StateFolder {
    path: PathBuf,
    _lock: File,
    /// One change of `run.json` at a time.
    writing: Mutex<()>,
}

/// `run.json`: what the run is, and what changed when.
#[derive(Debug, Serialize, Deserialize)]
struct RunFile {
    identity: Identity,
    history: Vec<HistoryEntry>,
}

#[derive(Debug, Serialize, Deserialize)]
struct HistoryEntry {
    at_unix_seconds: u64,
    version: String,
    event: String,
    /// A change that was made while the daemon ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    change: Option<Change>,
    /// Sequence number of the first entry of the log that was drawn with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    from_sequence: Option<u64>,
}

impl HistoryEntry {
    fn now(event: String) -> Self {
        let version = env!("CARGO_PKG_VERSION").to_owned();
        Self { at_unix_seconds: unix_seconds(), version, event, change: None, from_sequence: None }
    }

    fn of_change(from_sequence: u64, change: &Change) -> Self {
        let now = Self::now(change.describe());
        Self { change: Some(change.clone()), from_sequence: Some(from_sequence), ..now }
    }
}

/// The time.
pub fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

impl StateFolder {
    /// Creates the folder if need be, and locks it.
    pub fn open(path: &Path) -> Result<Self, Failure> {
        std::fs::create_dir_all(path).map_err(|error| Failure::io("create the state folder", path, &error))?;
        let lock_path = path.join("LOCK");
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&lock_path)
            .map_err(|error| Failure::io("open", &lock_path, &error))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(in_use(path, &mut lock)),
            Err(TryLockError::Error(error)) => return Err(Failure::io("lock", &lock_path, &error)),
        }
        let written = lock.set_len(0).and_then(|()| writeln!(lock, "{}", std::process::id()));
        written.map_err(|error| Failure::io("write", &lock_path, &error))?;
        Ok(Self { path: path.to_owned(), _lock: lock, writing: Mutex::new(()) })
    }

    /// Whether somebody is at work in the state folder at `path`.
    pub fn is_in_use(path: &Path) -> bool {
        let lock = std::fs::File::open(path.join("LOCK"));
        lock.is_ok_and(|lock| matches!(lock.try_lock_shared(), Err(TryLockError::WouldBlock)))
    }

    /// The changes of what is read, and of who labels, that were made in the state folder at `path`, in order.
    pub fn changes(path: &Path) -> Result<Vec<MadeChange>, Failure> {
        let history = RunFile::read(&path.join("run.json"))?.map_or(Vec::new(), |file| file.history);
        let made = history.into_iter().filter_map(|entry| {
            let (at_unix_seconds, from_sequence) = (entry.at_unix_seconds, entry.from_sequence.unwrap_or(0));
            entry.change.map(|change| MadeChange { from_sequence, at_unix_seconds, change })
        });
        Ok(made.collect())
    }

    /// Names of the teachers of the run in the state folder at `path`, in the order of their table.
    pub fn teachers(path: &Path) -> Result<Vec<String>, Failure> {
        let teachers = RunFile::read(&path.join("run.json"))?.map_or(Vec::new(), |file| file.identity.teachers);
        Ok(teachers.into_iter().map(|teacher| teacher.name).collect())
    }

    /// Durably notes a change that applies from entry `from_sequence` on.
    pub fn note_change(&self, from_sequence: u64, change: &Change) -> Result<(), Failure> {
        self.rewrite(|file| file.history.push(HistoryEntry::of_change(from_sequence, change)))
    }

    /// Durably notes that something happened.
    pub fn note_event(&self, event: &str) -> Result<(), Failure> {
        self.rewrite(|file| file.history.push(HistoryEntry::now(event.to_owned())))
    }

    /// Durably notes a change that applies from entry `from_sequence` on, and by which the run becomes one of `identity`.
    pub fn note_teacher(&self, from_sequence: u64, change: &Change, identity: &Identity) -> Result<(), Failure> {
        self.rewrite(|file| {
            file.identity = identity.clone();
            file.history.push(HistoryEntry::of_change(from_sequence, change));
        })
    }

    /// The log goes on with entry `next`. What was drawn from there on before was lost, so changes that were to apply later
    /// apply from here on.
    pub fn resume_at(&self, next: u64) -> Result<(), Failure> {
        let late = |entry: &HistoryEntry| entry.from_sequence.is_some_and(|from| from > next);
        let file = RunFile::read(&self.path.join("run.json"))?;
        if !file.is_some_and(|file| file.history.iter().any(late)) {
            return Ok(());
        }
        self.rewrite(|file| {
            file.history.iter_mut().filter(|entry| late(entry)).for_each(|entry| entry.from_sequence = Some(next));
        })
    }

    fn rewrite(&self, change: impl FnOnce(&mut RunFile)) -> Result<(), Failure> {
        let _one_at_a_time = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let path = self.path.join("run.json");
        let missing = || Failure::new(ExitCode::DataError, format!("{} is gone", path.display()));
        let mut file = RunFile::read(&path)?.ok_or_else(missing)?;
        change(&mut file);
        file.write(&path)
    }

    /// Fails if the state folder at `path` belongs to another run. It need not be there.
    pub fn compare(path: &Path, identity: &Identity) -> Result<(), Failure> {
        let file = RunFile::read(&path.join("run.json"))?;
        let differences = file.map_or(Vec::new(), |file| file.identity.differences(identity));
        if differences.is_empty() {
            return Ok(());
        }
        let message = format!(
            "state folder {} belongs to another configuration:\n  {}\nuse another run.state_dir, or put the configuration back",
            path.display(),
            differences.join("\n  ")
        );
        Err(Failure::new(ExitCode::Configuration, message))
    }

    /// Notes in the history that a run of this identity starts.
    pub fn note_start(&self, identity: &Identity) -> Result<(), Failure> {
        let path = self.path.join("run.json");
        let fresh = || RunFile { identity: identity.clone(), history: Vec::new() };
        let mut file = RunFile::read(&path)?.unwrap_or_else(fresh);
        let event = match () {
            () if file.history.is_empty() => "created".to_owned(),
            () if file.identity == *identity => "started".to_owned(),
            () => format!("started with {} teachers (was {})", identity.teachers.len(), file.identity.teachers.len()),
        };
        file.identity = identity.clone();
        file.history.push(HistoryEntry::now(event));
        file.write(&path)
    }
}

impl RunFile {
    /// `None`: there is none yet.
    fn read(path: &Path) -> Result<Option<Self>, Failure> {
        let damaged = |error| Failure::new(ExitCode::DataError, format!("{} is damaged: {error}", path.display()));
        match std::fs::read_to_string(path) {
            Ok(text) => serde_json::from_str(&text).map(Some).map_err(damaged),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Failure::io("read", path, &error)),
        }
    }

    fn write(&self, path: &Path) -> Result<(), Failure> {
        let text = serde_json::to_string_pretty(self)
            .map_err(|error| Failure::new(ExitCode::Software, format!("cannot write {}: {error}", path.display())))?;
        write_durably(path, text.as_bytes()).map_err(|error| Failure::io("write", path, &error))
    }
}

/// Replaces the file at `path` as one atomic, durable change.
pub fn write_durably(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let temporary = path.with_extension("tmp");
    let mut file = File::create(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
}

fn in_use(path: &Path, lock: &mut File) -> Failure {
    let mut pid = String::new();
    let owner = match lock.read_to_string(&mut pid) {
        Ok(_) if !pid.trim().is_empty() => format!(" by process {}", pid.trim()),
        _ => String::new(),
    };
    let message = format!(
        "state folder {} is in use{owner}; stop that process first, or use another run.state_dir",
        path.display()
    );
    Failure::new(ExitCode::TemporaryFailure, message)
}
