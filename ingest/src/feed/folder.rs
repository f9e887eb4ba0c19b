//! A watched folder: each file becomes a part once it is complete, in the order in which files became complete.
//!
//! A file is complete when it was renamed into place, or when it has kept its size and date for a set time. Files that
//! are empty or have a temporary name wait until they are not. What has become a part must stay as it is until it was
//! read; after that it may be removed or replaced, and what replaces it is a new part.

use super::identity::{Identity, Stamp, fingerprint};
use super::manifest::{Characters, Line, Manifest, Taken};
use super::watcher::{Happened, Lookout, WatchThread, Watching, is_temporary, present};
use super::{Changes, Extent, Feed, FeedSetup, Found, Part};
use crate::format::count;
use crate::{FormatOptions, IngestError};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use store::SourceCursor;

/// Files that become parts with one write to the manifest, at most.
const BATCH_FILES: usize = 64;
/// No more files are read for that once they have this many bytes together: between batches the thread can be stopped.
const BATCH_BYTES: u64 = 256 << 20;

/// The parts of a watched folder.
#[derive(Debug)]
pub(super) struct WatchedFolder {
    shared: Arc<Shared>,
    _thread: WatchThread,
}

/// What the watching thread and the readers share.
#[derive(Debug)]
struct Shared {
    folder: PathBuf,
    parts: Mutex<Parts>,
    /// Locked before `parts`, if both are.
    manifest: Mutex<Manifest>,
    changes: Changes,
    problem: Mutex<Option<IngestError>>,
}

#[derive(Debug, Default)]
struct Parts {
    list: Vec<Taken>,
    by_name: BTreeMap<Arc<str>, usize>,
    characters: Characters,
    /// By part and source: where the last document begins.
    finished: BTreeMap<(Arc<str>, Arc<str>), u64>,
}

impl Parts {
    fn add(&mut self, taken: Taken) {
        self.by_name.insert(Arc::clone(&taken.name), self.list.len());
        self.characters.add(&taken.characters);
        self.list.push(taken);
    }

    fn get(&self, name: &str) -> Option<&Taken> {
        self.list.get(*self.by_name.get(name)?)
    }

    fn finished_at(&self, cursor: &SourceCursor) -> bool {
        let last = self.finished.get(&(Arc::clone(&cursor.file), Arc::clone(&cursor.source)));
        cursor.next_byte == SourceCursor::DOCUMENT_DONE && last == Some(&cursor.document_offset_bytes)
    }
}

impl WatchedFolder {
    /// Takes up the manifest and starts to watch.
    pub(super) fn open(
        setup: &FeedSetup,
        folder: &Path,
        settle: Duration,
        watching: Watching,
    ) -> Result<Self, IngestError> {
        let (manifest, lines) = Manifest::open(setup.manifests, setup.corpus)?;
        let mut parts = Parts::default();
        for line in lines {
            match line {
                Line::Taken(taken) => parts.add(taken),
                Line::Finished { name, source, last_document } => {
                    parts.finished.insert((name, source), last_document);
                }
                Line::Followed(_) | Line::Closed { .. } => {
                    return Err(setup.refuse("its manifest is that of a followed file"));
                }
            }
        }
        let known = parts.list.iter().map(|taken| (folder.join(&taken.path), taken.identity.stamp)).collect();
        let shared = Arc::new(Shared {
            folder: folder.to_owned(),
            parts: Mutex::new(parts),
            manifest: Mutex::new(manifest),
            changes: Changes::default(),
            problem: Mutex::new(None),
        });
        let lookout = FolderLookout {
            corpus: setup.corpus.to_owned(),
            folder: folder.to_owned(),
            settle,
            format: setup.format.clone(),
            sources: setup.sources.to_vec(),
            shared: Arc::clone(&shared),
            pending: BTreeMap::new(),
            known,
            reported: BTreeSet::new(),
        };
        Ok(Self { shared, _thread: WatchThread::start(watching, lookout)? })
    }
}

impl Feed for WatchedFolder {
    fn following(&self, part: Option<&str>) -> Option<Part> {
        let parts = self.shared.parts();
        let index = match part {
            None => 0,
            Some(part) => parts.by_name.get(part)? + 1,
        };
        parts.list.get(index).map(|taken| self.shared.part(taken))
    }

    fn find(&self, cursor: &SourceCursor) -> Found {
        let (part, finished) = {
            let parts = self.shared.parts();
            let Some(taken) = parts.get(&cursor.file) else {
                return Found::Missing("the manifest of the feed does not know it; was it removed?".to_owned());
            };
            (self.shared.part(taken), parts.finished_at(cursor))
        };
        match self.verify(&part) {
            Ok(()) => Found::Part(part),
            Err(_) if finished => Found::Removed,
            Err(problem) => Found::Missing(problem),
        }
    }

    fn extent(&self, _part: &str) -> Extent {
        Extent::WHOLE
    }

    fn verify(&self, part: &Part) -> Result<(), String> {
        let Some(identity) = self.shared.parts().get(&part.name).map(|taken| taken.identity.clone()) else {
            return Ok(());
        };
        if Stamp::at(&part.path).is_ok_and(|found| found == identity.stamp) {
            return Ok(());
        }
        identity.check(&part.path)?;
        // Touched or copied back: its content need not be read again as long as it stays so.
        if let (Ok(stamp), mut parts) = (Stamp::at(&part.path), self.shared.parts())
            && let Some(index) = parts.by_name.get(&part.name).copied()
        {
            parts.list[index].identity.stamp = stamp;
        }
        Ok(())
    }

    fn finished(&self, part: &str, cursor: &SourceCursor) -> Result<(), IngestError> {
        let (name, source): (Arc<str>, _) = (part.into(), Arc::clone(&cursor.source));
        let last_document = cursor.document_offset_bytes;
        let hint = Line::Finished { name: Arc::clone(&name), source: Arc::clone(&source), last_document };
        self.shared.manifest().append_hint(hint)?;
        self.shared.parts().finished.insert((name, source), last_document);
        Ok(())
    }

    fn parts(&self) -> usize {
        self.shared.parts().list.len()
    }

    fn characters_available(&self, language: Option<&str>) -> u64 {
        self.shared.parts().characters.of(language)
    }

    fn closed(&self) -> bool {
        false
    }

    fn changes(&self) -> &Changes {
        &self.shared.changes
    }

    fn check(&self) -> Result<(), IngestError> {
        self.shared.problem.lock().unwrap_or_else(PoisonError::into_inner).take().map_or(Ok(()), Err)
    }
}

impl Shared {
    fn part(&self, taken: &Taken) -> Part {
        Part { name: Arc::clone(&taken.name), path: self.folder.join(&taken.path) }
    }

    fn parts(&self) -> MutexGuard<'_, Parts> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn manifest(&self) -> MutexGuard<'_, Manifest> {
        self.manifest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Decides when a file is complete.
struct FolderLookout {
    corpus: String,
    folder: PathBuf,
    settle: Duration,
    format: FormatOptions,
    sources: Vec<Arc<str>>,
    shared: Arc<Shared>,
    /// Files that are not parts yet.
    pending: BTreeMap<PathBuf, Pending>,
    /// Files that are parts, or were looked at and are none, as they were then.
    known: BTreeMap<PathBuf, Stamp>,
    /// Paths with a problem that was reported.
    reported: BTreeSet<PathBuf>,
}

struct Pending {
    stamp: Stamp,
    /// Since when it has been so.
    since: Instant,
    /// Renamed into place.
    complete: bool,
}

impl Lookout for FolderLookout {
    fn look(&mut self, happened: &Happened) -> Result<Option<Instant>, IngestError> {
        let now = Instant::now();
        if happened.anything {
            self.look_through(&self.folder.clone(), now);
        }
        for (path, complete) in &happened.paths {
            if path.symlink_metadata().is_ok_and(|metadata| metadata.is_dir()) {
                self.look_through(path, now);
            } else {
                self.look_at(path, *complete, now);
            }
        }
        let more = self.take_ready(now)?.then_some(now);
        Ok(more.or_else(|| self.pending.values().map(|pending| pending.since + self.settle).min()))
    }

    fn fail(&self, error: IngestError) {
        *self.shared.problem.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
        self.shared.changes.announce();
    }
}

impl FolderLookout {
    fn look_through(&mut self, folder: &Path, now: Instant) {
        let entries = match fs::read_dir(folder) {
            Ok(entries) => entries,
            Err(error) => return self.report(folder, &format!("cannot list it: {error}")),
        };
        for entry in entries.flatten() {
            let path = entry.path();
            match entry.file_type() {
                Ok(kind) if kind.is_dir() && !is_temporary(&path) => self.look_through(&path, now),
                Ok(kind) if !kind.is_dir() => self.look_at(&path, false, now),
                _ => {}
            }
        }
    }

    /// Notes the file's state. It waits from now on if it is new or has changed.
    fn look_at(&mut self, path: &Path, complete: bool, now: Instant) {
        let Ok(inside) = path.strip_prefix(&self.folder) else { return };
        let hidden = inside.ancestors().filter(|part| !part.as_os_str().is_empty()).any(is_temporary);
        let stamp = match present(fs::metadata(path)) {
            Ok(Some(metadata)) if !hidden && metadata.is_file() && metadata.len() > 0 => Stamp::of(&metadata),
            Ok(_) => {
                self.pending.remove(path);
                return;
            }
            Err(error) => return self.report(path, &error.to_string()),
        };
        if self.known.get(path) == Some(&stamp) {
            self.pending.remove(path);
            return;
        }
        let pending = self.pending.entry(path.to_owned()).or_insert(Pending { stamp, since: now, complete });
        if pending.stamp != stamp {
            *pending = Pending { stamp, since: now, complete: false };
        }
        pending.complete |= complete;
    }

    /// Makes parts of the files that are complete, the ones written first before the others. Returns whether there are more.
    fn take_ready(&mut self, now: Instant) -> Result<bool, IngestError> {
        let ready = |pending: &Pending| pending.complete || now >= pending.since + self.settle;
        let mut paths: Vec<(i64, PathBuf)> = self
            .pending
            .iter()
            .filter(|(_, pending)| ready(pending))
            .map(|(path, pending)| (pending.stamp.modified_nanoseconds, path.clone()))
            .collect();
        paths.sort();
        let (mut taken, mut taken_bytes, mut more) = (Vec::new(), 0, false);
        for (_, path) in &paths {
            more = taken.len() >= BATCH_FILES || taken_bytes >= BATCH_BYTES;
            if more {
                break;
            }
            match self.take(path, &taken) {
                Ok(Some(part)) => {
                    taken_bytes += part.identity.stamp.bytes;
                    taken.push(part);
                }
                Ok(None) => {}
                Err(error) => self.report(path, &error.to_string()),
            }
        }
        self.add(taken)?;
        Ok(more)
    }

    /// The file as a part; `None`: it is none, or not yet. `others` become parts with it.
    fn take(&mut self, path: &Path, others: &[Taken]) -> io::Result<Option<Taken>> {
        let Some(pending) = self.pending.get_mut(path) else { return Ok(None) };
        let seen = pending.stamp;
        // If it is not taken now, it waits again.
        *pending = Pending { stamp: seen, since: Instant::now(), complete: false };
        let Some(found) = present(Stamp::at(path))? else {
            self.pending.remove(path);
            return Ok(None);
        };
        pending.stamp = found;
        if found != seen {
            return Ok(None); // Nobody has reported that it is still being written.
        }
        if let Some((previous, read)) = self.previous(path) {
            if !read {
                return Ok(None); // Its reader finds out that it was replaced.
            }
            if seen.bytes >= previous.stamp.bytes && fingerprint(path, previous.stamp.bytes)? == previous.fingerprint {
                if seen.bytes > previous.stamp.bytes {
                    self.report(path, "it has grown after it was taken, and the addition is not read: use `follow`");
                }
                self.forget(path, seen);
                return Ok(None);
            }
        }
        let Some(name) = self.name(path, others) else {
            self.report(path, "its name is not valid UTF-8; rename it");
            self.forget(path, seen);
            return Ok(None);
        };
        let Some(identity) = Identity::of(path)? else { return Ok(None) };
        let characters = count(path, &self.format, 0, false).map_err(io::Error::other)?.into();
        if identity.stamp != seen || Stamp::at(path)? != seen {
            return Ok(None);
        }
        let inside = path.strip_prefix(&self.folder).unwrap_or(path).to_owned();
        Ok(Some(Taken { name, path: inside, identity, characters }))
    }

    /// The part that the file at `path` was before, and whether every source has read it.
    fn previous(&self, path: &Path) -> Option<(Identity, bool)> {
        self.known.get(path)?;
        let parts = self.shared.parts();
        let inside = path.strip_prefix(&self.folder).unwrap_or(path);
        let taken = parts.list.iter().rev().find(|taken| taken.path == inside)?;
        let read = |source: &Arc<str>| parts.finished.contains_key(&(Arc::clone(&taken.name), Arc::clone(source)));
        Some((taken.identity.clone(), self.sources.iter().all(read)))
    }

    /// Its path in the folder, with a number if an earlier part had that name.
    fn name(&self, path: &Path, others: &[Taken]) -> Option<Arc<str>> {
        let name = path.strip_prefix(&self.folder).unwrap_or(path).to_str()?;
        let parts = self.shared.parts();
        let used = |name: &str| parts.by_name.contains_key(name) || others.iter().any(|other| &*other.name == name);
        let numbered = (2..).map(|number| format!("{name}~{number}"));
        std::iter::once(name.to_owned()).chain(numbered).find(|name| !used(name)).map(Arc::from)
    }

    fn add(&mut self, taken: Vec<Taken>) -> Result<(), IngestError> {
        if taken.is_empty() {
            return Ok(());
        }
        let lines: Vec<Line> = taken.iter().cloned().map(Line::Taken).collect();
        if !self.shared.manifest().append(&lines)? {
            return Ok(()); // They are still pending.
        }
        for part in &taken {
            self.forget(&self.folder.join(&part.path), part.identity.stamp);
        }
        let mut parts = self.shared.parts();
        taken.into_iter().for_each(|part| parts.add(part));
        drop(parts);
        self.shared.changes.announce();
        Ok(())
    }

    fn forget(&mut self, path: &Path, stamp: Stamp) {
        self.pending.remove(path);
        self.reported.remove(path);
        self.known.insert(path.to_owned(), stamp);
    }

    /// Warns, once for each path.
    fn report(&mut self, path: &Path, problem: &str) {
        if self.reported.insert(path.to_owned()) {
            tracing::warn!(corpus = self.corpus, path = %path.display(), problem, "a file of the watched folder is left out for now");
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::Format;

    fn lookout(root: &Path, settle: Duration) -> FolderLookout {
        let (manifest, _) = Manifest::open(&root.join("feeds"), "c").unwrap();
        let shared = Shared {
            folder: root.join("in"),
            parts: Mutex::default(),
            manifest: Mutex::new(manifest),
            changes: Changes::default(),
            problem: Mutex::default(),
        };
        FolderLookout {
            corpus: "c".to_owned(),
            folder: root.join("in"),
            settle,
            format: Format::Text.into(),
            sources: vec!["c".into()],
            shared: Arc::new(shared),
            pending: BTreeMap::new(),
            known: BTreeMap::new(),
            reported: BTreeSet::new(),
        }
    }

    fn names(lookout: &FolderLookout) -> Vec<String> {
        lookout.shared.parts().list.iter().map(|taken| taken.name.to_string()).collect()
    }

    #[test]
    fn a_file_that_changes_is_never_taken_whether_or_not_the_kernel_reports_it() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("in/a.txt");
        fs::create_dir(root.path().join("in")).unwrap();
        fs::write(&path, "half").unwrap();
        let mut patient = lookout(root.path(), Duration::from_secs(3600));
        let anything = Happened { anything: true, ..Happened::default() };
        assert!(patient.look(&anything).unwrap().is_some_and(|wanted| wanted > Instant::now()));
        assert_eq!(names(&patient), [""; 0], "it has not been quiet for long enough");

        let mut lookout = lookout(root.path(), Duration::ZERO);
        lookout.look_at(&path, true, Instant::now());
        fs::write(&path, "half and more").unwrap();
        lookout.take_ready(Instant::now()).unwrap();
        assert_eq!(names(&lookout), [""; 0], "it has changed since it was seen");
        lookout.take_ready(Instant::now()).unwrap();
        assert_eq!(names(&lookout), ["a.txt"]);
        assert_eq!(lookout.shared.parts().characters.of(None), 13);
    }

    #[test]
    fn many_files_are_taken_in_batches_and_one_that_is_gone_is_forgotten() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("in")).unwrap();
        let path = |number: usize| root.path().join(format!("in/{number}.txt"));
        (0..=BATCH_FILES + 1).for_each(|number| fs::write(path(number), "menu").unwrap());
        let mut lookout = lookout(root.path(), Duration::ZERO);
        lookout.look_through(&root.path().join("in"), Instant::now());
        fs::remove_file(path(0)).unwrap();
        assert_eq!([0, 1].map(|_| lookout.take_ready(Instant::now()).unwrap()), [true, false]);
        assert_eq!((names(&lookout).len(), lookout.pending.len()), (BATCH_FILES + 1, 0));
    }

    #[test]
    fn what_is_added_to_a_file_that_was_read_is_not_read_and_another_text_is() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("in/a.txt");
        fs::create_dir(root.path().join("in")).unwrap();
        let mut lookout = lookout(root.path(), Duration::ZERO);
        let mut write = |text: &str, expected: &[&str]| {
            fs::write(&path, text).unwrap();
            lookout.look(&Happened { anything: true, ..Happened::default() }).unwrap();
            assert_eq!(names(&lookout), expected, "{text}");
            let read = |name: &&str| ((*name).into(), "c".into());
            lookout.shared.parts().finished.extend(expected.iter().map(|name| (read(name), 0)));
        };
        write("", &[]);
        write("menu", &["a.txt"]);
        write("menu and row", &["a.txt"]);
        write("table", &["a.txt", "a.txt~2"]);
        lookout.shared.parts().finished.clear();
        fs::write(&path, "another one").unwrap();
        lookout.look(&Happened { anything: true, ..Happened::default() }).unwrap();
        assert_eq!(names(&lookout).len(), 2, "the last one was not read yet");
    }
}
