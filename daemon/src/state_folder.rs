//! The state folder: one process at a time, and a file that says what the run is.

use crate::failure::{ExitCode, Failure};
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};
use store::Identity;

/// A state folder that this process owns until it ends.
#[derive(Debug)]
pub struct StateFolder {
    path: PathBuf,
    _lock: File,
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
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    /// Refuses a folder that belongs to another run; notes the start in its history.
    pub fn check_identity(&self, identity: &Identity) -> Result<(), Failure> {
        let path = self.path.join("run.json");
        let mut file = match std::fs::read_to_string(&path) {
            Ok(text) => serde_json::from_str::<RunFile>(&text).map_err(|error| {
                Failure::new(ExitCode::DataError, format!("{} is damaged: {error}", path.display()))
            })?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                RunFile { identity: identity.clone(), history: Vec::new() }
            }
            Err(error) => return Err(Failure::io("read", &path, &error)),
        };
        let differences = file.identity.differences(identity);
        if !differences.is_empty() {
            let message = format!(
                "state folder {} belongs to another configuration:\n  {}\nuse another run.state_dir, or put the configuration back",
                self.path.display(),
                differences.join("\n  ")
            );
            return Err(Failure::new(ExitCode::Configuration, message));
        }
        let event = match () {
            () if file.history.is_empty() => "created".to_owned(),
            () if file.identity == *identity => "started".to_owned(),
            () => format!("started with {} teachers (was {})", identity.teachers.len(), file.identity.teachers.len()),
        };
        file.identity = identity.clone();
        let at_unix_seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        file.history.push(HistoryEntry { at_unix_seconds, version: env!("CARGO_PKG_VERSION").to_owned(), event });
        let text = serde_json::to_string_pretty(&file)
            .map_err(|error| Failure::new(ExitCode::Software, format!("cannot write {}: {error}", path.display())))?;
        write_durably(&path, text.as_bytes()).map_err(|error| Failure::io("write", &path, &error))
    }
}

/// Replaces the file at `path` as one atomic, durable change.
fn write_durably(path: &Path, content: &[u8]) -> std::io::Result<()> {
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
