//! The thread that looks at a watched folder: it decides when a file is complete, and lets go of what was read.

use super::super::FeedSetup;
use super::super::identity::{Identity, Stamp, fingerprint};
use super::super::manifest::{Line, PAST_FILES_OF_A_LINE, PastFile, Taken};
use super::super::watched::Watched;
use super::super::watcher::{Happened, Lookout, present};
use super::listing::{Entry, entries, file_to_read};
use super::parts::{Earlier, Parts, content_hash, inside, numbered};
use crate::format::count;
use crate::{FormatOptions, IngestError};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Files that become parts with one write to the manifest, at most.
const BATCH_FILES: usize = 64;
/// No more files are read for that once they have this many bytes together: between batches the thread can be stopped.
const BATCH_BYTES: u64 = 256 << 20;
/// The manifest is written anew when this many parts were let go of since, or a quarter of all: so each is written a few times.
const REWRITE_PARTS: usize = 1024;

/// Decides when a file is complete.
pub(super) struct FolderLookout {
    corpus: String,
    folder: PathBuf,
    settle: Duration,
    format: FormatOptions,
    sources: Vec<Arc<str>>,
    watched: Arc<Watched<Parts>>,
    /// Files that are not parts yet.
    pending: BTreeMap<PathBuf, Pending>,
    /// Files that are parts and not past, or were looked at and are none, as they were then.
    known: BTreeMap<PathBuf, Stamp>,
    /// Paths with a problem that was reported.
    reported: BTreeSet<PathBuf>,
    /// Parts that were let go of since the manifest was written anew.
    retired: usize,
    /// How many make it worth that.
    rewrite_parts: usize,
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
        self.let_go()?;
        let more = self.take_ready(now)?.then_some(now);
        Ok(more.or_else(|| self.pending.values().map(|pending| pending.since + self.settle).min()))
    }

    fn fail(&self, error: IngestError) {
        self.watched.fail(error);
    }
}

impl FolderLookout {
    /// A lookout that has looked at nothing but the manifest.
    pub(super) fn new(setup: &FeedSetup, folder: &Path, settle: Duration, watched: &Arc<Watched<Parts>>) -> Self {
        let known = watched.parts().list.iter().map(|taken| (folder.join(&taken.path), taken.identity.stamp)).collect();
        Self {
            corpus: setup.corpus.to_owned(),
            folder: folder.to_owned(),
            settle,
            format: setup.format.clone(),
            sources: setup.sources.to_vec(),
            watched: Arc::clone(watched),
            pending: BTreeMap::new(),
            known,
            reported: BTreeSet::new(),
            retired: 0,
            rewrite_parts: REWRITE_PARTS,
        }
    }

    /// Lets go of the parts that are not read again.
    fn let_go(&mut self) -> Result<(), IngestError> {
        let known = &mut self.known;
        loop {
            let mut parts = self.watched.parts();
            let Some(taken) = parts.retire(|taken| known.get(&self.folder.join(&taken.path)).copied()) else { break };
            if parts.latest_at(&taken.path).is_none() {
                known.remove(&self.folder.join(&taken.path));
            }
            drop(parts);
            let mut finished = self.watched.finished();
            for source in &self.sources {
                finished.remove(&(Arc::clone(&taken.name), Arc::clone(source)));
            }
            self.retired += 1;
        }
        if self.retired >= self.rewrite_parts.max(self.watched.parts().first / 4) {
            self.rewrite()?;
        }
        Ok(())
    }

    /// Writes the manifest anew, with what is still to be known.
    fn rewrite(&mut self) -> Result<(), IngestError> {
        // Readers go on meanwhile, until one of them finishes a part.
        let mut manifest = self.watched.manifest();
        let lines = self.lines();
        // Without room it is tried again when as many more were let go of.
        manifest.replace(lines.into_iter())?;
        self.retired = 0;
        Ok(())
    }

    /// All that is to be known.
    fn lines(&self) -> Vec<Line> {
        let (parts, finished) = (self.watched.parts(), self.watched.finished());
        let mut lines = vec![Line::Past { parts: parts.first, characters: parts.past_characters() }];
        let files: Vec<PastFile> = parts.past_files().copied().collect();
        lines.extend(files.chunks(PAST_FILES_OF_A_LINE).map(|files| Line::PastFiles { files: files.to_vec() }));
        lines.extend(parts.list.iter().cloned().map(Line::Taken));
        let forgotten = parts.list.iter().filter(|taken| parts.is_forgotten(&taken.name));
        lines.extend(forgotten.map(|taken| Line::Forgotten { name: Arc::clone(&taken.name) }));
        lines.extend(finished.iter().map(|((name, source), last_document)| {
            let (name, source) = (Arc::clone(name), Arc::clone(source));
            Line::Finished { name, source, last_document: *last_document }
        }));
        lines
    }

    fn look_through(&mut self, folder: &Path, now: Instant) {
        let entries = match entries(folder) {
            Ok(entries) => entries,
            Err(error) => return self.report(folder, &format!("cannot list it: {error}")),
        };
        for entry in entries {
            match entry {
                Entry::Folder(path) => self.look_through(&path, now),
                Entry::File(path) => self.look_at(&path, false, now),
            }
        }
    }

    /// Notes the file's state. It waits from now on if it is new or has changed.
    fn look_at(&mut self, path: &Path, complete: bool, now: Instant) {
        let Ok(inside) = path.strip_prefix(&self.folder) else { return };
        let stamp = match file_to_read(path, inside) {
            Ok(Some(metadata)) => Stamp::of(&metadata),
            Ok(None) => {
                self.pending.remove(path);
                return;
            }
            Err(error) => return self.report(path, &error.to_string()),
        };
        let is_known = match self.known.get(path) {
            Some(known) => *known == stamp,
            None => self.watched.parts().is_past(inside, &stamp),
        };
        if is_known {
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
            if seen.bytes >= previous.bytes && content_hash(&fingerprint(path, previous.bytes)?) == previous.content {
                if seen.bytes > previous.bytes {
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
        Ok(Some(Taken { name, path: inside(&self.folder, path), identity, characters }))
    }

    /// What the file at `path` was when it last became a part, and whether every source has read that; `None`: it was none, or one that was given up.
    fn previous(&self, path: &Path) -> Option<(Earlier, bool)> {
        let inside = inside(&self.folder, path);
        let parts = self.watched.parts();
        let Some(taken) = parts.latest_at(&inside) else { return parts.past_at(&inside).map(|past| (past, true)) };
        if parts.is_forgotten(&taken.name) {
            return None;
        }
        let finished = self.watched.finished();
        let read = |source: &Arc<str>| finished.contains_key(&(Arc::clone(&taken.name), Arc::clone(source)));
        Some((Earlier::of(&taken.identity), self.sources.iter().all(read)))
    }

    /// Its path in the folder, with a number if an earlier part had that name.
    fn name(&self, path: &Path, others: &[Taken]) -> Option<Arc<str>> {
        let inside = inside(&self.folder, path);
        let (path, parts) = (inside.to_str()?, self.watched.parts());
        let names = (1..).map(|number| (number, numbered(path, number)));
        let is_free = |(number, name): &(u64, String)| {
            !parts.is_used(path, *number, name) && !others.iter().any(|other| *other.name == **name)
        };
        names.into_iter().find(is_free).map(|(_, name)| name.into())
    }

    fn add(&mut self, taken: Vec<Taken>) -> Result<(), IngestError> {
        if taken.is_empty() {
            return Ok(());
        }
        let lines: Vec<Line> = taken.iter().cloned().map(Line::Taken).collect();
        if !self.watched.manifest().append(&lines)? {
            return Ok(()); // They are still pending.
        }
        let settled: Vec<_> = taken.iter().map(|part| (self.folder.join(&part.path), part.identity.stamp)).collect();
        taken.iter().for_each(|part| self.watched.arrived().note(&part.name, u64::MAX));
        let mut parts = self.watched.parts();
        taken.into_iter().for_each(|part| parts.add(part));
        drop(parts);
        settled.iter().for_each(|(path, stamp)| self.forget(path, *stamp));
        self.watched.changes.announce();
        Ok(())
    }

    fn forget(&mut self, path: &Path, stamp: Stamp) {
        self.pending.remove(path);
        self.reported.remove(path);
        let inside = inside(&self.folder, path);
        let mut parts = self.watched.parts();
        if parts.latest_at(&inside).is_some() || !parts.touch_past(&inside, &stamp) {
            self.known.insert(path.to_owned(), stamp);
        }
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
    use super::super::super::manifest::Manifest;
    use super::super::load;
    use super::*;
    use crate::{FeedOptions, Format};
    use std::fs;
    use std::time::UNIX_EPOCH;
    use store::SourceCursor;

    /// A lookout on the folder `in`, as it is when the feed is opened.
    fn lookout(root: &Path, settle: Duration) -> FolderLookout {
        let setup = FeedSetup {
            corpus: "c",
            options: &FeedOptions::Spool,
            format: &Format::Text.into(),
            manifests: &root.join("feeds"),
            sources: &["c".into()],
            count: false,
            spool: None,
        };
        let (manifest, lines) = Manifest::open(setup.manifests, setup.corpus).unwrap();
        let (parts, finished) = load(&setup, lines).unwrap();
        let watched = Arc::new(Watched::new(parts, finished, manifest));
        FolderLookout::new(&setup, &root.join("in"), settle, &watched)
    }

    fn look(lookout: &mut FolderLookout) {
        lookout.look(&Happened { anything: true, ..Happened::default() }).unwrap();
    }

    /// Its source has read these parts to their ends.
    fn read(lookout: &FolderLookout, names: &[&str]) {
        for name in names {
            let mut cursor = SourceCursor::start("c".into(), "en".into(), 0);
            cursor.file = (*name).into();
            lookout.watched.finish(name, &cursor).unwrap();
        }
    }

    fn names(lookout: &FolderLookout) -> Vec<String> {
        lookout.watched.parts().list.iter().map(|taken| taken.name.to_string()).collect()
    }

    #[test]
    fn what_takes_the_place_of_a_file_that_was_given_up_is_taken_however_late() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("in/a.txt");
        fs::create_dir(root.path().join("in")).unwrap();
        fs::write(&path, "one").unwrap();
        fs::write(root.path().join("in/z.txt"), "two").unwrap();
        let mut lookout = lookout(root.path(), Duration::ZERO);
        look(&mut lookout);
        assert_eq!(names(&lookout), ["a.txt", "z.txt"]);
        lookout.watched.parts().forget("a.txt".into());
        lookout.watched.parts().reach("z.txt");
        look(&mut lookout);
        look(&mut lookout);
        assert_eq!(names(&lookout), ["z.txt"], "nobody has touched the file itself");
        // It begins as the one that was given up.
        fs::write(&path, "one and more").unwrap();
        look(&mut lookout);
        look(&mut lookout);
        assert_eq!(names(&lookout), ["z.txt", "a.txt~2"]);
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
        assert_eq!(lookout.watched.parts().characters.of(None), 13);
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
            look(&mut lookout);
            assert_eq!(names(&lookout), expected, "{text}");
            read(&lookout, expected);
        };
        write("", &[]);
        write("menu", &["a.txt"]);
        write("menu and row", &["a.txt"]);
        write("table", &["a.txt", "a.txt~2"]);
        lookout.watched.finished().clear();
        fs::write(&path, "another one").unwrap();
        look(&mut lookout);
        assert_eq!(names(&lookout).len(), 2, "the last one was not read yet");
    }

    #[test]
    fn what_was_read_leaves_memory_and_manifest_and_is_known_again() {
        let root = tempfile::tempdir().unwrap();
        let inside = root.path().join("in");
        fs::create_dir(&inside).unwrap();
        let write = |name: &str, text: &str| fs::write(inside.join(name), text).unwrap();
        let mut lookout = self::lookout(root.path(), Duration::ZERO);
        lookout.rewrite_parts = 4;
        for name in ["a.txt", "b.txt", "c.txt", "d.txt", "e.txt"] {
            write(name, &format!("the text of {name}"));
            look(&mut lookout);
        }
        write("a.txt", "another text");
        read(&lookout, &["a.txt", "b.txt", "c.txt", "d.txt"]);
        look(&mut lookout);
        let all = ["a.txt", "b.txt", "c.txt", "d.txt", "e.txt", "a.txt~2"];
        assert_eq!(names(&lookout), all, "the log does not say yet that they were read");
        let manifest = root.path().join("feeds/c.jsonl");
        let before = fs::read_to_string(&manifest).unwrap();
        lookout.watched.parts().reach("e.txt");
        look(&mut lookout);
        assert_eq!(names(&lookout), all[4..]);
        let after = fs::read_to_string(&manifest).unwrap();
        assert!(after.len() < before.len() && !after.contains("b.txt"), "{after}");
        assert_eq!((lookout.known.len(), lookout.watched.finished().len()), (2, 0));

        let check = |mut lookout: FolderLookout| {
            let characters = ["a.txt", "b.txt", "c.txt", "d.txt", "e.txt"].map(|name| 12 + name.len() as u64);
            assert_eq!(lookout.watched.parts().count(), 6);
            assert_eq!(lookout.watched.parts().characters.of(None), characters.iter().sum::<u64>() + 12);
            // Touched, copied back, or with something added: it was read.
            fs::File::options().append(true).open(inside.join("b.txt")).unwrap().set_modified(UNIX_EPOCH).unwrap();
            fs::copy(inside.join("c.txt"), root.path().join("copy")).unwrap();
            fs::remove_file(inside.join("c.txt")).unwrap();
            look(&mut lookout);
            fs::rename(root.path().join("copy"), inside.join("c.txt")).unwrap();
            look(&mut lookout);
            assert_eq!(names(&lookout), all[4..]);
            // Replaced: another name.
            write("d.txt", "quite another text");
            look(&mut lookout);
            assert_eq!(names(&lookout), ["e.txt", "a.txt~2", "d.txt~2"]);
            write("a.txt~2", "a file of that name");
            look(&mut lookout);
            assert_eq!(names(&lookout), ["e.txt", "a.txt~2", "d.txt~2", "a.txt~2~2"]);
            for (name, text) in [("d.txt", "the text of d.txt"), ("b.txt", "the text of b.txt")] {
                write(name, text);
            }
            fs::remove_file(inside.join("a.txt~2")).unwrap();
        };
        // What is known after a restart is the same, whether the manifest was written anew or not.
        drop(lookout);
        for content in [&after, &before] {
            fs::write(&manifest, content).unwrap();
            let mut reopened = self::lookout(root.path(), Duration::ZERO);
            reopened.watched.parts().reach("e.txt");
            look(&mut reopened);
            check(reopened);
        }
    }
}
