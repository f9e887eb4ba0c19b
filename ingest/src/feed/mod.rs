//! Where a corpus's files come from: an ordered list of parts that may go on growing.
//!
//! Everything that arrives becomes files in reading order. A feed knows which files, in which order, and how far they
//! may be read; how documents lie in a file is the format's business. Whatever watches the outside world does so on a
//! thread of its own, so asking a feed never waits.
//!
//! Invariants
//!
//! - The order of the parts never changes: new ones come last. A name is never given to a second file.
//! - A part that was handed out is durable, with its place in the order: after a crash it is at the same place.
//! - A part that does not grow any more never grows again.
//!
//! What it does not do: it keeps no account of what was read. The cursors in the log do.

mod arrived;
mod files;
mod folder;
mod followed;
mod identity;
mod manifest;
pub mod mending;
mod watched;
mod watcher;

use crate::{FormatOptions, IngestError};
use crossbeam::channel::{Receiver, Sender, bounded};
use files::FileList;
use folder::{WatchedFolder, files_to_read};
use followed::FollowedFile;
use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use store::SourceCursor;
use watcher::Watching;

/// Where the files of a corpus come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FeedOptions {
    /// These files (see [`crate::expand`]); they are read in the order of their paths. The corpus ends with them.
    Files(Vec<PathBuf>),
    /// Every file that is there or is put there, in folders inside it too, once it is complete.
    Watch {
        /// The folder.
        folder: PathBuf,
        /// A file that was not renamed into place is complete when it has not changed for this long.
        settle: Duration,
        /// How often the folder is looked through, whatever the kernel reports.
        poll: Duration,
    },
    /// A file that grows like a log. When another one takes its place, it is read to its end first.
    Follow {
        /// The file; it may come later.
        file: PathBuf,
        /// A file that was rotated away grows no more when it has not changed for this long.
        settle: Duration,
        /// How often the file is looked at, whatever the kernel reports.
        poll: Duration,
    },
    /// Documents that others push; the spool is among [`crate::IngestOptions`]'s `spools` under the name of the corpus.
    Spool,
}

impl FeedOptions {
    /// The files that are there now, in the order of their paths: what a feed that is opened now would begin with, once a watched
    /// folder's files have settled. A file that is followed may be missing; of what is pushed there are none.
    ///
    /// # Errors
    /// When a watched folder or a followed file cannot be looked at.
    pub fn files_present(&self) -> Result<Vec<PathBuf>, IngestError> {
        match self {
            Self::Files(files) => Ok(files.clone()),
            Self::Watch { folder, .. } => files_to_read(folder),
            Self::Follow { file, .. } => {
                let is_there = file.try_exists();
                let failed = |source| IngestError::Io { doing: "look at", path: file.clone(), source };
                Ok(if is_there.map_err(failed)? { vec![file.clone()] } else { Vec::new() })
            }
            Self::Spool => Ok(Vec::new()),
        }
    }
}

/// An ordered list of parts that may go on growing. Sources that share a feed (a corpus whose language is in a field)
/// each read all of it.
pub trait Feed: Debug + Send + Sync {
    /// The part after the one named, or the first one; `None`: there is none yet. `part` may have been removed since.
    fn following(&self, part: Option<&str>) -> Option<Part>;

    /// The part in which `cursor` stands.
    fn find(&self, cursor: &SourceCursor) -> Found;

    /// How far the part may be read now. Once it has said that a part does not grow, that stays true.
    fn extent(&self, part: &str) -> Extent;

    /// Whether the part is still the file that it was when it came; the error says what is different.
    ///
    /// # Errors
    /// When it was removed, replaced or cut.
    fn verify(&self, _part: &Part) -> Result<(), String> {
        Ok(())
    }

    /// The source of `cursor`, its latest one, has read the part to its end.
    ///
    /// # Errors
    /// When that cannot be noted.
    fn finished(&self, _part: &str, _cursor: &SourceCursor) -> Result<(), IngestError> {
        Ok(())
    }

    /// The log durably says that a source has come to this part: it reads nothing before it again, whatever happens.
    fn reached(&self, _part: &str) {}

    /// Parts so far, those that are gone included.
    fn parts(&self) -> usize;

    /// When what stands at this offset of the part arrived, in milliseconds since 1970; `None`: nobody knows. The format may know better.
    fn arrived_ms(&self, _part: &str, _offset_bytes: u64) -> Option<u64> {
        None
    }

    /// n_k: characters that have arrived so far, read or not, of this language alone where the format tells languages
    /// apart. Never falls.
    fn characters_available(&self, language: Option<&str>) -> u64;

    /// Whether nothing will come any more: no part, and no growth of the last one.
    fn closed(&self) -> bool;

    /// Counts arrivals, and wakes who waits for them.
    fn changes(&self) -> &Changes;

    /// What went wrong where the feed is watched; reading cannot go on.
    ///
    /// # Errors
    /// The first problem, once.
    fn check(&self) -> Result<(), IngestError> {
        Ok(())
    }
}

/// What a feed is opened with.
pub(crate) struct FeedSetup<'a> {
    pub(crate) corpus: &'a str,
    pub(crate) options: &'a FeedOptions,
    pub(crate) format: &'a FormatOptions,
    /// Folder of the manifests.
    pub(crate) manifests: &'a Path,
    /// Names of all sources that read it.
    pub(crate) sources: &'a [Arc<str>],
    /// Whether the characters of fixed files have to be counted.
    pub(crate) count: bool,
    /// The spool of the corpus.
    pub(crate) spool: Option<&'a Arc<dyn Feed>>,
}

impl FeedSetup<'_> {
    /// Opens the feed. What watches files starts to.
    pub(crate) fn open(&self) -> Result<Arc<dyn Feed>, IngestError> {
        match self.options {
            FeedOptions::Files(files) => {
                let mut list = FileList::new(self.corpus, files)?;
                if self.count {
                    list.count(self.format)?;
                }
                Ok(Arc::new(list))
            }
            FeedOptions::Watch { folder, settle, poll } => {
                let folder = absolute(folder)?;
                let watching = self.watching(&folder, true, *poll);
                Ok(Arc::new(WatchedFolder::open(self, &folder, *settle, watching)?))
            }
            FeedOptions::Follow { file, settle, poll } => {
                let file = absolute(file)?;
                let watching = self.watching(file.parent().unwrap_or(Path::new("/")), false, *poll);
                Ok(Arc::new(FollowedFile::open(self, &file, *settle, watching)?))
            }
            FeedOptions::Spool => match self.spool {
                Some(spool) => Ok(Arc::clone(spool)),
                None => Err(self.refuse("it has no spool")),
            },
        }
    }

    fn watching(&self, folder: &Path, recursive: bool, poll: Duration) -> Watching {
        Watching { corpus: self.corpus.to_owned(), folder: folder.to_owned(), recursive, poll, reports: true }
    }

    fn refuse(&self, problem: &str) -> IngestError {
        IngestError::Options(format!("corpus `{}`: {problem}", self.corpus))
    }
}

/// As the kernel reports it.
fn absolute(path: &Path) -> Result<PathBuf, IngestError> {
    let failed = |source| IngestError::Io { doing: "find the current folder for", path: path.to_owned(), source };
    std::path::absolute(path).map_err(failed)
}

/// One file of a feed.
#[derive(Clone, Debug)]
pub struct Part {
    /// Its name in document identifiers.
    pub name: Arc<str>,
    /// Where it is.
    pub path: PathBuf,
}

/// Where a cursor stands in a feed.
#[derive(Clone, Debug)]
pub enum Found {
    /// In this part.
    Part(Part),
    /// At the end of a part that was removed since; go on with the one that follows.
    Removed,
    /// Anywhere in a part of which the rest was given up; go on with the one that follows.
    Forgotten,
    /// In a part that is not there, although it was not read to its end; says why.
    Missing(String),
}

/// How far a part may be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// More may be appended, so a document that has not ended yet is left for later.
    pub growing: bool,
    /// Documents that begin before this offset may be used; those behind it may still be lost in a crash.
    pub readable_bytes: u64,
}

impl Extent {
    /// A file that is there as a whole.
    pub const WHOLE: Self = Self { growing: false, readable_bytes: u64::MAX };
}

/// Counts what has changed in a feed, so that a reader that found nothing need not look again before something has.
#[derive(Debug, Default)]
pub struct Changes {
    count: AtomicU64,
    waker: Mutex<Option<Waker>>,
}

impl Changes {
    /// Something arrived, a part stopped growing, or the feed was closed.
    pub fn announce(&self) {
        self.count.fetch_add(1, Ordering::Release);
        let waker = self.waker.lock().unwrap_or_else(PoisonError::into_inner);
        waker.iter().for_each(Waker::wake);
    }

    /// Changes so far.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Acquire)
    }

    /// Wakes `waker` at every change from now on.
    pub fn subscribe(&self, waker: Waker) {
        *self.waker.lock().unwrap_or_else(PoisonError::into_inner) = Some(waker);
    }
}

/// Ends the wait of an ingest stage. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Waker(Sender<()>);

impl Waker {
    /// A waker, and what it wakes.
    pub(crate) fn new() -> (Self, Receiver<()>) {
        let (sender, receiver) = bounded(1);
        (Self(sender), receiver)
    }

    /// The stage looks at its feeds again. Never blocks.
    pub fn wake(&self) {
        let _ = self.0.try_send(()); // Full: it is about to look anyway.
    }
}
