//! A watched folder: each file becomes a part once it is complete, in the order in which files became complete.
//!
//! A file is complete when it was renamed into place, or when it has kept its size and date for a set time. Files that
//! are empty or have a temporary name wait until they are not. What has become a part must stay as it is until it was
//! read; after that it may be removed or replaced, and what replaces it is a new part.
//!
//! Once the log durably says that a part was read, it leaves memory, and after a while the manifest too
//! (`parts.rs` says what of it stays). Where the language is in a field all parts stay: with a later teacher there may be another source,
//! which begins with the first of them.

mod listing;
mod lookout;
mod parts;

use super::identity::Stamp;
use super::manifest::{Line, Manifest, Taken};
use super::watched::{Finished, Watched};
use super::watcher::{WatchThread, Watching};
use super::{Changes, Extent, Feed, FeedSetup, Found, Part};
use crate::IngestError;
pub(super) use listing::files_to_read;
use lookout::FolderLookout;
use parts::Parts;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use store::SourceCursor;

/// The parts of a watched folder.
#[derive(Debug)]
pub(super) struct WatchedFolder {
    folder: PathBuf,
    watched: Arc<Watched<Parts>>,
    /// Whether parts that were read are let go.
    lets_go: bool,
    _thread: WatchThread,
}

impl WatchedFolder {
    /// Takes up the manifest and starts to watch.
    pub(super) fn open(
        setup: &FeedSetup,
        folder: &Path,
        settle: Duration,
        watching: Watching,
    ) -> Result<Self, IngestError> {
        let (mut manifest, lines) = Manifest::open(setup.manifests, setup.corpus)?;
        let (mut parts, mut finished) = load(setup, lines)?;
        if setup.count && parts.has_past() {
            let corpus = setup.corpus;
            tracing::warn!(
                corpus,
                "the log knows nothing of the corpus: the files of its folder are read from the beginning"
            );
            (parts, finished) = Default::default();
            if !manifest.replace(std::iter::empty())? {
                return Err(manifest.no_room());
            }
        }
        let watched = Arc::new(Watched::new(parts, finished, manifest));
        let lookout = FolderLookout::new(setup, folder, settle, &watched);
        let lets_go = setup.format.language_field.is_none();
        let thread = WatchThread::start(watching, lookout)?;
        Ok(Self { folder: folder.to_owned(), watched, lets_go, _thread: thread })
    }

    fn part(&self, taken: &Taken) -> Part {
        Part { name: Arc::clone(&taken.name), path: self.folder.join(&taken.path) }
    }
}

/// What a manifest says.
fn load(setup: &FeedSetup, lines: Vec<Line>) -> Result<(Parts, Finished), IngestError> {
    let (mut parts, mut finished) = (Parts::default(), Finished::default());
    for line in lines {
        match line {
            Line::Taken(taken) => parts.add(taken),
            Line::Finished { name, source, last_document } => drop(finished.insert((name, source), last_document)),
            Line::Past { parts: count, characters } => parts.add_past(count, &characters),
            Line::PastFiles { files } => parts.add_past_files(files),
            Line::Forgotten { name } => parts.forget(name),
            Line::Followed(_) | Line::Grown { .. } | Line::Closed { .. } | Line::Recognised { .. } => {
                return Err(setup.refuse("its manifest is that of a followed file"));
            }
        }
    }
    Ok((parts, finished))
}

impl Feed for WatchedFolder {
    fn following(&self, part: Option<&str>) -> Option<Part> {
        self.watched.parts().following(part).map(|taken| self.part(taken))
    }

    fn find(&self, cursor: &SourceCursor) -> Found {
        if self.watched.parts().is_forgotten(&cursor.file) {
            return Found::Forgotten;
        }
        let Some(part) = self.watched.parts().get(&cursor.file).map(|taken| self.part(taken)) else {
            return Found::Missing("the manifest of the feed does not know it; was it removed?".to_owned());
        };
        match self.verify(&part) {
            Ok(()) => Found::Part(part),
            Err(_) if self.watched.finished_at(cursor) => Found::Removed,
            Err(problem) => Found::Missing(problem),
        }
    }

    fn extent(&self, _part: &str) -> Extent {
        Extent::WHOLE
    }

    fn verify(&self, part: &Part) -> Result<(), String> {
        let Some(identity) = self.watched.parts().get(&part.name).map(|taken| taken.identity.clone()) else {
            return Ok(());
        };
        if Stamp::at(&part.path).is_ok_and(|found| found == identity.stamp) {
            return Ok(());
        }
        identity.check(&part.path)?;
        // Touched or copied back: its content need not be read again as long as it stays so.
        if let (Ok(stamp), Some(taken)) = (Stamp::at(&part.path), self.watched.parts().get_mut(&part.name)) {
            taken.identity.stamp = stamp;
        }
        Ok(())
    }

    fn finished(&self, part: &str, cursor: &SourceCursor) -> Result<(), IngestError> {
        self.watched.finish(part, cursor)
    }

    fn reached(&self, part: &str) {
        if self.lets_go {
            self.watched.parts().reach(part);
        }
    }

    fn parts(&self) -> usize {
        self.watched.parts().count()
    }

    fn arrived_ms(&self, part: &str, offset_bytes: u64) -> Option<u64> {
        self.watched.arrived().reached_ms(part, offset_bytes)
    }

    fn characters_available(&self, language: Option<&str>) -> u64 {
        self.watched.parts().characters.of(language)
    }

    fn closed(&self) -> bool {
        false
    }

    fn changes(&self) -> &Changes {
        &self.watched.changes
    }

    fn check(&self) -> Result<(), IngestError> {
        self.watched.check()
    }
}
