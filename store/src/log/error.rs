//! What can go wrong with the log, and what to do about it.

use crate::{DurablePosition, SequenceNumber};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A failure of the log. Clonable, because a log that stopped for good repeats the first cause.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// The disk, or the quota, is full.
    #[error(
        "no space left on the device while {doing} {}: free some space and start again; nothing that was reported as durable is lost",
        path.display()
    )]
    NoSpace {
        /// What was being done.
        doing: &'static str,
        /// To which file or folder.
        path: PathBuf,
    },
    /// There is no room for what was to be appended. Nothing was written: the log is unchanged, and goes on when there is room.
    #[error(
        "no room for {bytes} bytes more in {}: nothing was written, and nothing is lost; free some space and it goes on",
        path.display()
    )]
    NoRoom {
        /// The segment that would have grown.
        path: PathBuf,
        /// How much is missing at most.
        bytes: u64,
    },
    /// The operating system refused.
    #[error("{doing} {}: {source}", path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To which file or folder.
        path: PathBuf,
        /// Why it failed.
        source: Arc<io::Error>,
    },
    /// Something that had been durable is damaged or missing.
    #[error(
        "corrupt log: {} at byte {offset}: {what}; restore the segment from a copy, or move the log away and label again",
        segment.display()
    )]
    Corrupt {
        /// The damaged file.
        segment: PathBuf,
        /// Where the damage begins.
        offset: u64,
        /// What is wrong there.
        what: String,
    },
    /// The log ends before something that refers to it.
    #[error(
        "corrupt log: {} ends at sequence number {end}, but a checkpoint or the journal refers to entries up to {required}; \
         restore the missing segments, or remove what refers to them",
        dir.display()
    )]
    TooShort {
        /// Folder of the log.
        dir: PathBuf,
        /// First sequence number that is not in the log.
        end: SequenceNumber,
        /// What must be in the log.
        required: DurablePosition,
    },
    /// A segment was written by a newer version of this program.
    #[error(
        "{} has format version {version}, this program reads up to version {supported}: use a newer mergedistill",
        segment.display()
    )]
    NewerVersion {
        /// The segment.
        segment: PathBuf,
        /// Its format version.
        version: u32,
        /// The newest version that can be read.
        supported: u32,
    },
    /// The log was made under settings or teachers that the configuration does not have.
    #[error(
        "the log in {} was made with another configuration: {}; restore those settings, or use another state folder",
        dir.display(),
        lines.join("; ")
    )]
    IdentityMismatch {
        /// Folder of the log.
        dir: PathBuf,
        /// What differs, a line each.
        lines: Vec<String>,
    },
    /// There is no log.
    #[error("{} holds no log (no *.seg file)", dir.display())]
    NoLog {
        /// Where one was expected.
        dir: PathBuf,
    },
    /// What was to continue a log is of another one.
    #[error(
        "the log in {} is another log than the one that comes: they differ in the segment that begins with entry {segment}; take another folder for it",
        dir.display()
    )]
    AnotherLog {
        /// Folder of the log.
        dir: PathBuf,
        /// First entry of the segment.
        segment: SequenceNumber,
    },
    /// Another process writes this log.
    #[error("the log in {} is being written by another process: stop it, or try again later", dir.display())]
    InUse {
        /// Folder of the log.
        dir: PathBuf,
    },
    /// An entry that must not get into a log. The log is unchanged and goes on.
    #[error("entry {sequence} cannot be appended: {what}")]
    InvalidEntry {
        /// Its sequence number.
        sequence: SequenceNumber,
        /// What is wrong with it.
        what: String,
    },
    /// A reader asked for what is not durable yet.
    #[error("entry {sequence} is not durable: the log is durable up to {durable}")]
    NotDurable {
        /// What was asked for.
        sequence: SequenceNumber,
        /// How far the log may be read.
        durable: DurablePosition,
    },
    /// A reader asked for what retention removed.
    #[error(
        "entry {sequence} is no longer in the log, which begins at {begin}: retention removed it; \
         raise store.retain_bytes or store.retain_hours if it is needed"
    )]
    Removed {
        /// What was asked for.
        sequence: SequenceNumber,
        /// The first entry that is there.
        begin: SequenceNumber,
    },
    /// A new log cannot be written where it was wanted.
    #[error("cannot write a new log: {}: {what}", dir.display())]
    OutputUnusable {
        /// The folder.
        dir: PathBuf,
        /// What is wrong with it, and what to do.
        what: String,
    },
    /// What was to be copied is not in the log.
    #[error("nothing can be copied from the log in {}: {what}", dir.display())]
    Selection {
        /// Folder of the log.
        dir: PathBuf,
        /// What was asked for, and what is there.
        what: String,
    },
    /// Two logs that do not fit together.
    #[error(
        "the logs in {} and {} cannot be merged: {}",
        first.display(),
        second.display(),
        lines.join("; ")
    )]
    Unmergeable {
        /// Folder of one.
        first: PathBuf,
        /// Folder of the other.
        second: PathBuf,
        /// What differs, a line each.
        lines: Vec<String>,
    },
    /// The log's metrics could not be registered.
    #[error("registering the log's metrics: {what}")]
    Metrics {
        /// What the registry said.
        what: String,
    },
}

impl StoreError {
    /// Whether stored data is damaged or missing (exit code 65), as opposed to a failing environment.
    #[must_use]
    pub fn is_corruption(&self) -> bool {
        matches!(self, Self::Corrupt { .. } | Self::TooShort { .. })
    }

    /// Whether the disk is full.
    #[must_use]
    pub fn is_no_space(&self) -> bool {
        matches!(self, Self::NoSpace { .. } | Self::NoRoom { .. })
    }

    /// Whether there was no room, and therefore nothing was written: the log goes on when there is.
    #[must_use]
    pub fn is_no_room(&self) -> bool {
        matches!(self, Self::NoRoom { .. })
    }

    pub(crate) fn io(doing: &'static str, path: &Path, source: io::Error) -> Self {
        match is_full(&source) {
            true => Self::NoSpace { doing, path: path.to_owned() },
            false => Self::Io { doing, path: path.to_owned(), source: Arc::new(source) },
        }
    }

    pub(crate) fn corrupt(segment: &Path, offset: u64, what: impl Into<String>) -> Self {
        Self::Corrupt { segment: segment.to_owned(), offset, what: what.into() }
    }
}

/// Whether it is the disk, or the quota, that is full.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Bytes that are not what the format says.
#[derive(Debug)]
pub(crate) struct Damage(pub(crate) String);

impl Damage {
    pub(crate) fn new(what: impl Into<String>) -> Self {
        Self(what.into())
    }
}

/// Why something could not be read from a file: it failed, or gave damaged bytes.
#[derive(Debug)]
pub(crate) enum Fault {
    Io(io::Error),
    Damage(Damage),
}

impl Fault {
    /// The error of reading `path` at `offset`.
    pub(crate) fn at(self, path: &Path, offset: u64) -> StoreError {
        match self {
            Self::Io(source) => StoreError::io("reading", path, source),
            Self::Damage(Damage(what)) => StoreError::corrupt(path, offset, what),
        }
    }
}

impl From<io::Error> for Fault {
    fn from(source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::UnexpectedEof => Self::Damage(Damage::new("the file ends in the middle of it")),
            _ => Self::Io(source),
        }
    }
}

impl From<Damage> for Fault {
    fn from(damage: Damage) -> Self {
        Self::Damage(damage)
    }
}
