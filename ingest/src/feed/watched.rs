//! What the thread that watches a feed shares with those who read it.

use super::Changes;
use super::arrived::Arrived;
use super::manifest::{Line, Manifest};
use crate::IngestError;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use store::SourceCursor;

/// The parts of a feed, its manifest, and how watching goes.
#[derive(Debug)]
pub(super) struct Watched<P> {
    parts: Mutex<P>,
    finished: Mutex<Finished>,
    arrived: Mutex<Arrived>,
    /// Locked before the others, if it is locked with them.
    manifest: Mutex<Manifest>,
    pub(super) changes: Changes,
    problem: Mutex<Option<IngestError>>,
}

/// Parts that were read to their end: by part and source, where the last document begins.
pub(super) type Finished = BTreeMap<(Arc<str>, Arc<str>), u64>;

impl<P> Watched<P> {
    pub(super) fn new(parts: P, finished: Finished, manifest: Manifest) -> Self {
        Self {
            parts: Mutex::new(parts),
            finished: Mutex::new(finished),
            arrived: Mutex::default(),
            manifest: Mutex::new(manifest),
            changes: Changes::default(),
            problem: Mutex::default(),
        }
    }

    pub(super) fn parts(&self) -> MutexGuard<'_, P> {
        lock(&self.parts)
    }

    pub(super) fn finished(&self) -> MutexGuard<'_, Finished> {
        lock(&self.finished)
    }

    /// When what is in the parts arrived.
    pub(super) fn arrived(&self) -> MutexGuard<'_, Arrived> {
        lock(&self.arrived)
    }

    pub(super) fn manifest(&self) -> MutexGuard<'_, Manifest> {
        lock(&self.manifest)
    }

    /// Notes that the source of `cursor`, its latest one, has read a part to its end.
    pub(super) fn finish(&self, part: &str, cursor: &SourceCursor) -> Result<(), IngestError> {
        let (name, source): (Arc<str>, _) = (part.into(), Arc::clone(&cursor.source));
        let last_document = cursor.document_offset_bytes;
        // Who writes the manifest anew meanwhile finds it noted in both places or in none.
        let mut manifest = self.manifest();
        let hint = Line::Finished { name: Arc::clone(&name), source: Arc::clone(&source), last_document };
        manifest.append_hint(hint)?;
        self.finished().insert((name, source), last_document);
        Ok(())
    }

    /// Whether `cursor` stands at the end of a part that its source has read to its end.
    pub(super) fn finished_at(&self, cursor: &SourceCursor) -> bool {
        let place = (Arc::clone(&cursor.file), Arc::clone(&cursor.source));
        cursor.next_byte == SourceCursor::DOCUMENT_DONE
            && self.finished().get(&place) == Some(&cursor.document_offset_bytes)
    }

    /// Watching is given up.
    pub(super) fn fail(&self, error: IngestError) {
        *lock(&self.problem) = Some(error);
        self.changes.announce();
    }

    /// Why watching was given up, once.
    pub(super) fn check(&self) -> Result<(), IngestError> {
        lock(&self.problem).take().map_or(Ok(()), Err)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
