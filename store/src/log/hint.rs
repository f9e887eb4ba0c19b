//! The file `POSITION`: who writes the log, and how far it is durable, for readers in other processes.
//!
//! The writer holds an exclusive lock on it as long as it lives, and writes both positions into it after each sync.
//! Nothing in it is needed for recovery. As it is written after each sync, a log that ends before what it says has lost something: `verify` looks.

use crate::SequenceNumber;
use crate::log::disk::{Access, Disk, DiskFile, Lock, read_exact_at, write_all_at};
use crate::log::error::StoreError;
use crate::log::wire::Wire;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use std::{io, thread};

/// Name of the file.
pub(crate) const NAME: &str = "POSITION";

const MAGIC: [u8; 4] = *b"MDps";
const BYTES: usize = 24;

/// A reader in another process holds the lock for an instant while it looks whether there is a writer.
const LOCK_ATTEMPTS: u32 = 100;
const LOCK_PAUSE: Duration = Duration::from_millis(5);

/// Positions of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Positions {
    pub(crate) appended: SequenceNumber,
    pub(crate) durable: SequenceNumber,
}

/// The writer's side.
#[derive(Debug)]
pub(crate) struct HintFile {
    file: Arc<dyn DiskFile>,
    path: PathBuf,
}

impl HintFile {
    /// Takes the log for one writer.
    pub(crate) fn acquire(disk: &dyn Disk, dir: &Path) -> Result<Self, StoreError> {
        let path = dir.join(NAME);
        let file = disk.open(&path, Access::Keep).map_err(|error| StoreError::io("opening", &path, error))?;
        for _ in 0..LOCK_ATTEMPTS {
            if file.try_lock(Lock::Exclusive).map_err(|error| StoreError::io("locking", &path, error))? {
                return Ok(Self { file, path });
            }
            thread::sleep(LOCK_PAUSE);
        }
        Err(StoreError::InUse { dir: dir.to_owned() })
    }

    /// Publishes positions. A failure leaves readers in other processes behind and harms nothing else.
    pub(crate) fn publish(&self, positions: Positions) {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(positions.appended.0.to_le_bytes());
        bytes.extend(positions.durable.0.to_le_bytes());
        bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
        if let Err(error) = write_all_at(self.file.as_ref(), &bytes, 0) {
            tracing::warn!(path = %self.path.display(), %error, "could not tell other processes how far the log is durable");
        }
    }
}

/// What a reader in another process can know of the writer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Presence {
    /// Nobody writes: everything valid counts.
    Stopped,
    /// Somebody writes, and this is how far it got, if that can be read.
    Live(Option<Positions>),
}

/// Looks for a writer.
pub(crate) fn look(disk: &dyn Disk, dir: &Path) -> Result<Presence, StoreError> {
    let path = dir.join(NAME);
    let failed = |error| StoreError::io("reading", &path, error);
    let file = match disk.open(&path, Access::Read) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Presence::Stopped),
        opened => opened.map_err(failed)?,
    };
    match file.try_lock(Lock::Shared) {
        Ok(true) => return Ok(Presence::Stopped),
        Ok(false) => {}
        Err(error) if error.kind() == io::ErrorKind::Unsupported => return Ok(Presence::Stopped),
        Err(error) => return Err(failed(error)),
    }
    // A second look, because the writer may have been in the middle of it.
    let read = || read_exact_at(file.as_ref(), 0, BYTES).ok().and_then(|bytes| parse(&bytes));
    Ok(Presence::Live(read().or_else(read)))
}

/// What the last writer said; `None`: nothing that can be read.
pub(crate) fn last_said(disk: &dyn Disk, dir: &Path) -> Option<Positions> {
    let file = disk.open(&dir.join(NAME), Access::Read).ok()?;
    parse(&read_exact_at(file.as_ref(), 0, BYTES).ok()?)
}

fn parse(bytes: &[u8]) -> Option<Positions> {
    let (body, stored) = bytes.split_last_chunk()?;
    if crc32fast::hash(body) != u32::from_le_bytes(*stored) {
        return None;
    }
    let mut wire = Wire::new(body);
    if wire.take(4).ok()? != MAGIC {
        return None;
    }
    let positions = Positions { appended: SequenceNumber(wire.u64().ok()?), durable: SequenceNumber(wire.u64().ok()?) };
    (positions.durable <= positions.appended).then_some(positions)
}
