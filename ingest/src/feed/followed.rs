//! A file that grows like a log. It is the part that grows; when it was rotated away (renamed, and another file put into
//! its place) and has been quiet for a set time, it grows no more, and the file in its place is the next part.
//!
//! A part is recognised by its inode and its first bytes, under whatever name rotation has given it. Rotations that
//! nobody watched are made up for: files named like the one that is followed (`app.log.1`, `app.log-20260401`) which were written after the last
//! part are read before the newest one. A file that was cut instead of renamed may have lost text: that is an error.

use super::identity::{Stamp, fingerprint};
use super::manifest::{Characters, Followed, Line, Manifest};
use super::watched::{Finished, Watched};
use super::watcher::{Happened, Lookout, WatchThread, Watching, is_temporary, present};
use super::{Changes, Extent, Feed, FeedSetup, Found, Part};
use crate::format::{Count, count};
use crate::{FormatOptions, IngestError};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use store::SourceCursor;

/// A file is recognised by its first bytes, at most this many.
pub(super) const HEAD_BYTES: u64 = 4096;

/// The manifest is told how far the file was counted whenever so much of its text was added: a start counts less than that.
const NOTED_BYTES: u64 = 16 << 20;

/// The parts of a followed file.
#[derive(Debug)]
pub(super) struct FollowedFile {
    shared: Arc<Shared>,
    _thread: WatchThread,
}

/// What the watching thread and the readers share.
#[derive(Debug)]
struct Shared {
    corpus: String,
    file: PathBuf,
    watched: Watched<Parts>,
}

#[derive(Debug, Default)]
struct Parts {
    list: Vec<FollowedPart>,
    /// Of all parts, as far as they were counted.
    characters: Characters,
    /// How far the part that grows was counted.
    counted: Counted,
}

/// How far a part that grows was counted.
#[derive(Clone, Debug, Default)]
struct Counted {
    /// Its size when that was done.
    bytes: u64,
    /// Where counting goes on in its text.
    end: u64,
    /// Its characters before that.
    characters: Characters,
}

#[derive(Clone, Debug)]
struct FollowedPart {
    file: Followed,
    closed: bool,
    /// It is not looked for any more.
    forgotten: bool,
}

impl Parts {
    fn index(&self, name: &str) -> Option<usize> {
        self.list.iter().rposition(|part| &*part.file.name == name)
    }

    /// What was not read of this part is given up, so it grows no more.
    fn forget(&mut self, name: &str) {
        for part in self.list.iter_mut().filter(|part| &*part.file.name == name) {
            if !part.closed {
                self.characters.add(&std::mem::take(&mut self.counted).characters);
            }
            (part.closed, part.forgotten) = (true, true);
        }
    }
}

impl Followed {
    /// Whether the file at `path` is this one.
    fn is_at(&self, path: &Path) -> io::Result<bool> {
        let Some(stamp) = present(Stamp::at(path))? else { return Ok(false) };
        let head_bytes = self.stamp.bytes.min(HEAD_BYTES);
        if stamp.inode != self.stamp.inode || stamp.bytes < head_bytes {
            return Ok(false);
        }
        // It may be renamed at this very moment.
        Ok(present(fingerprint(path, head_bytes))?.is_some_and(|found| found == self.fingerprint))
    }
}

impl FollowedFile {
    /// Takes up the manifest, looks at the file, and starts to watch it.
    pub(super) fn open(
        setup: &FeedSetup,
        file: &Path,
        settle: Duration,
        watching: Watching,
    ) -> Result<Self, IngestError> {
        let (manifest, lines) = Manifest::open(setup.manifests, setup.corpus)?;
        let (mut parts, mut finished) = (Parts::default(), Finished::default());
        for line in lines {
            match line {
                Line::Followed(file) => {
                    parts.list.push(FollowedPart { file, closed: false, forgotten: false });
                    parts.counted = Counted::default();
                }
                Line::Grown { bytes, counted, characters, .. } => {
                    parts.counted = Counted { bytes, end: counted, characters };
                }
                Line::Closed { name, characters, .. } => {
                    parts.characters.add(&characters);
                    parts.list.iter_mut().filter(|part| part.file.name == name).for_each(|part| part.closed = true);
                    parts.counted = Counted::default();
                }
                Line::Finished { name, source, last_document } => drop(finished.insert((name, source), last_document)),
                Line::Forgotten { name } => parts.forget(&name),
                Line::Recognised { name, inode } => {
                    let copied = parts.list.iter_mut().filter(|part| part.file.name == name);
                    copied.for_each(|part| part.file.stamp.inode = inode);
                }
                Line::Taken(_) | Line::Past { .. } | Line::PastFiles { .. } => {
                    return Err(setup.refuse("its manifest is that of a watched folder"));
                }
            }
        }
        parts.characters.add(&parts.counted.characters);
        let watched = Watched::new(parts, finished, manifest);
        let shared = Arc::new(Shared { corpus: setup.corpus.to_owned(), file: file.to_owned(), watched });
        let format = setup.format.clone();
        let shared_again = Arc::clone(&shared);
        let mut lookout = FileLookout { settle, format, shared: shared_again, tail: None, denied: false };
        lookout.resume()?;
        lookout.look(&Happened::default())?;
        Ok(Self { shared, _thread: WatchThread::start(watching, lookout)? })
    }
}

impl Feed for FollowedFile {
    fn following(&self, part: Option<&str>) -> Option<Part> {
        let file = {
            let parts = self.shared.watched.parts();
            let index = match part {
                None => 0,
                Some(part) => parts.index(part)? + 1,
            };
            parts.list.iter().skip(index).find(|part| !part.forgotten)?.file.clone()
        };
        let path = self.shared.locate(&file).ok().flatten().unwrap_or(file.path);
        Some(Part { name: file.name, path })
    }

    fn find(&self, cursor: &SourceCursor) -> Found {
        let part = {
            let parts = self.shared.watched.parts();
            let Some(index) = parts.index(&cursor.file) else {
                return Found::Missing("the manifest of the feed does not know it; was it removed?".to_owned());
            };
            parts.list[index].clone()
        };
        let finished = self.shared.watched.finished_at(cursor);
        if part.forgotten {
            return Found::Forgotten;
        }
        match self.shared.locate(&part.file) {
            Ok(Some(path)) => Found::Part(Part { name: part.file.name, path }),
            _ if finished && part.closed => Found::Removed,
            Ok(None) => Found::Missing(format!("now it is not in {} any more", self.shared.folder().display())),
            Err(error) => Found::Missing(format!("now it cannot be opened ({error})")),
        }
    }

    fn extent(&self, part: &str) -> Extent {
        let parts = self.shared.watched.parts();
        let growing = parts.index(part).is_some_and(|index| !parts.list[index].closed);
        Extent { growing, ..Extent::WHOLE }
    }

    fn finished(&self, part: &str, cursor: &SourceCursor) -> Result<(), IngestError> {
        self.shared.watched.finish(part, cursor)
    }

    fn parts(&self) -> usize {
        self.shared.watched.parts().list.len()
    }

    fn arrived_ms(&self, part: &str, offset_bytes: u64) -> Option<u64> {
        self.shared.watched.arrived().reached_ms(part, offset_bytes)
    }

    fn characters_available(&self, language: Option<&str>) -> u64 {
        self.shared.watched.parts().characters.of(language)
    }

    fn closed(&self) -> bool {
        false
    }

    fn changes(&self) -> &Changes {
        &self.shared.watched.changes
    }

    fn check(&self) -> Result<(), IngestError> {
        self.shared.watched.check()
    }
}

impl Shared {
    fn folder(&self) -> &Path {
        self.file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
    }

    /// Where the part is now; `None`: nowhere in the folder.
    fn locate(&self, part: &Followed) -> io::Result<Option<PathBuf>> {
        if part.is_at(&self.file)? {
            return Ok(Some(self.file.clone()));
        }
        for entry in fs::read_dir(self.folder())? {
            let entry = entry?;
            let path = entry.path();
            if entry.file_type()?.is_file() && part.is_at(&path)? {
                return Ok(Some(path));
            }
        }
        Ok(None)
    }

    /// Files that took the place of the last part and were rotated away again, oldest first.
    fn missed(&self) -> io::Result<Vec<PathBuf>> {
        let parts = self.watched.parts().list.clone();
        let Some(last) = parts.last() else { return Ok(Vec::new()) };
        let name = self.file.file_name().unwrap_or_default().to_string_lossy();
        let mut missed = Vec::new();
        for entry in fs::read_dir(self.folder())? {
            let entry = entry?;
            let (path, other) = (entry.path(), entry.file_name());
            let suffix = other.to_string_lossy().strip_prefix(&*name).map(str::to_owned).unwrap_or_default();
            if !suffix.starts_with(['.', '-']) || is_temporary(&path) || !entry.file_type()?.is_file() {
                continue;
            }
            let Some(stamp) = present(Stamp::at(&path))? else { continue };
            if stamp.bytes == 0 || stamp.modified_nanoseconds <= last.file.stamp.modified_nanoseconds {
                continue;
            }
            if [".gz", ".bz2", ".xz", ".zst"].iter().any(|ending| suffix.ends_with(ending)) {
                tracing::warn!(corpus = self.corpus, path = %path.display(), "was rotated and compressed: it is not read");
            } else if !parts.iter().map(|part| part.file.is_at(&path)).collect::<io::Result<Vec<_>>>()?.contains(&true)
            {
                missed.push((stamp.modified_nanoseconds, path));
            }
        }
        missed.sort();
        Ok(missed.into_iter().map(|(_, path)| path).collect())
    }
}

/// Looks at the file.
struct FileLookout {
    settle: Duration,
    format: FormatOptions,
    shared: Arc<Shared>,
    tail: Option<Tail>,
    /// Whether it was told that the next file may not be read.
    denied: bool,
}

/// The part that grows.
struct Tail {
    part: Followed,
    /// Keeps its inode from being used again.
    file: File,
    /// Size when it was last looked at.
    bytes: u64,
    /// Where counting goes on.
    counted: u64,
    characters: Characters,
    /// How far the manifest says that it was counted.
    noted: u64,
    changed: Instant,
    /// Since when another file has had its place.
    replaced: Option<Instant>,
}

impl Lookout for FileLookout {
    fn look(&mut self, _happened: &Happened) -> Result<Option<Instant>, IngestError> {
        loop {
            if self.tail.is_none() && !self.start_next()? {
                return Ok(None);
            }
            self.grow()?;
            let found = self.io("look at", present(Stamp::at(&self.shared.file)))?;
            let Some(tail) = &mut self.tail else { return Ok(None) };
            if found.is_none_or(|found| found.inode == tail.part.stamp.inode) {
                return Ok(None);
            }
            let now = Instant::now();
            let quiet = tail.changed.max(*tail.replaced.get_or_insert(now)) + self.settle;
            if now < quiet {
                return Ok(Some(quiet));
            }
            if !self.close()? {
                return Ok(Some(now + self.settle));
            }
        }
    }

    fn fail(&self, error: IngestError) {
        self.shared.watched.fail(error);
    }
}

impl FileLookout {
    /// Finds the part that was growing when the manifest was last written.
    fn resume(&mut self) -> Result<(), IngestError> {
        let last = self.shared.watched.parts().list.last().filter(|part| !part.closed).map(|part| part.file.clone());
        let Some(part) = last else { return Ok(()) };
        let path = self.io("look for", self.shared.locate(&part))?;
        let Some(path) = path else {
            return Err(IngestError::Gone {
                corpus: self.shared.corpus.clone(),
                file: part.name.to_string(),
                problem: format!("it is not in {} any more, under no name", self.shared.folder().display()),
            });
        };
        let file = self.io("open", File::open(&path))?;
        let mut tail = Tail::new(part, file);
        // What comes before was counted in earlier runs, and what is cut since is noticed.
        let Counted { bytes, end, characters } = self.shared.watched.parts().counted.clone();
        (tail.bytes, tail.counted, tail.noted, tail.characters) = (bytes, end, end, characters);
        self.tail = Some(tail);
        Ok(())
    }

    /// Makes the next file a part, as soon as it has any text.
    fn start_next(&mut self) -> Result<bool, IngestError> {
        let missed = self.io("look for rotated files of", self.shared.missed())?;
        let path = missed.into_iter().next().unwrap_or_else(|| self.shared.file.clone());
        let file = match File::open(&path) {
            // Rotation makes a file first, and gives it to others then.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                if !std::mem::replace(&mut self.denied, true) {
                    let (corpus, path) = (&self.shared.corpus, path.display());
                    tracing::warn!(corpus, %path, "it may not be read; waiting until it may");
                }
                return Ok(false);
            }
            file => self.io("open", present(file))?,
        };
        self.denied = false;
        let Some(file) = file else { return Ok(false) };
        let metadata = self.io("look at", file.metadata())?;
        if metadata.len() == 0 || !metadata.is_file() {
            return Ok(false);
        }
        let stamp = Stamp::of(&metadata);
        let fingerprint = self.io("read", present(fingerprint(&path, stamp.bytes.min(HEAD_BYTES))))?;
        let Some(fingerprint) = fingerprint else { return Ok(false) };
        let number = self.shared.watched.parts().list.len() + 1;
        let base = self.shared.file.file_name().unwrap_or_default().to_string_lossy();
        let name = if number == 1 { base.into() } else { format!("{base}~{number}").into() };
        let part = Followed { name, path, stamp, fingerprint };
        if self.io("look at", present(Stamp::at(&part.path)))?.map(|found| found.inode) != Some(stamp.inode) {
            return Ok(false); // It was rotated at this moment; the kernel reports that.
        }
        if !self.shared.watched.manifest().append(&[Line::Followed(part.clone())])? {
            return Ok(false); // It is looked at again before long.
        }
        self.shared.watched.parts().list.push(FollowedPart { file: part.clone(), closed: false, forgotten: false });
        self.tail = Some(Tail::new(part, file));
        Ok(true)
    }

    /// Takes note of what was appended.
    fn grow(&mut self) -> Result<(), IngestError> {
        let Some(tail) = &mut self.tail else { return Ok(()) };
        let io = |source| IngestError::Io { doing: "look at", path: self.shared.file.clone(), source };
        let bytes = tail.file.metadata().map_err(io)?.len();
        if bytes == tail.bytes {
            return Ok(());
        }
        let changed = |problem: String| IngestError::Changed {
            corpus: self.shared.corpus.clone(),
            file: tail.part.name.to_string(),
            offset_bytes: tail.bytes,
            problem,
        };
        if bytes < tail.bytes {
            return Err(changed(format!(
                "it was cut to {bytes} bytes; have it renamed for rotation, not copied and cut"
            )));
        }
        let path = self.shared.locate(&tail.part).map_err(io)?;
        match path {
            Some(path) => {
                if let Some(count) = count_present(&path, &self.format, tail.counted, true)? {
                    tail.counted = count.end;
                    let characters = count.into();
                    tail.characters.add(&characters);
                    self.shared.watched.parts().characters.add(&characters);
                    if tail.counted.saturating_sub(tail.noted) >= NOTED_BYTES {
                        let (name, characters) = (Arc::clone(&tail.part.name), tail.characters.clone());
                        let counted = tail.counted;
                        self.shared.watched.manifest().append_hint(Line::Grown { name, bytes, counted, characters })?;
                        tail.noted = counted;
                    }
                }
            }
            // Removed while it grows, or renamed just now; what has it open can still read it.
            None => {
                let found = present(Stamp::at(&self.shared.file)).map_err(io)?;
                if found.is_some_and(|found| found.inode == tail.part.stamp.inode) {
                    return Err(changed("now another text stands at its beginning".to_owned()));
                }
            }
        }
        tail.bytes = bytes;
        tail.changed = Instant::now();
        self.shared.watched.arrived().note(&tail.part.name, bytes);
        self.shared.watched.changes.announce();
        Ok(())
    }

    /// The part grows no more. `false`: the disk is too full to say so.
    fn close(&mut self) -> Result<bool, IngestError> {
        let Some(tail) = &self.tail else { return Ok(true) };
        let rest = match self.io("look for", self.shared.locate(&tail.part))? {
            Some(path) => count_present(&path, &self.format, tail.counted, false)?.map(Characters::from),
            None => None,
        };
        let rest = rest.unwrap_or_default();
        let (name, bytes, mut characters) = (Arc::clone(&tail.part.name), tail.bytes, tail.characters.clone());
        characters.add(&rest);
        if !self.shared.watched.manifest().append(&[Line::Closed { name: Arc::clone(&name), bytes, characters }])? {
            return Ok(false);
        }
        self.tail = None;
        self.shared.watched.parts().characters.add(&rest);
        self.shared
            .watched
            .parts()
            .list
            .iter_mut()
            .filter(|part| part.file.name == name)
            .for_each(|part| part.closed = true);
        self.shared.watched.changes.announce();
        Ok(true)
    }

    fn io<T>(&self, doing: &'static str, result: io::Result<T>) -> Result<T, IngestError> {
        result.map_err(|source| IngestError::Io { doing, path: self.shared.file.clone(), source })
    }
}

impl Tail {
    fn new(part: Followed, file: File) -> Self {
        let characters = Characters::default();
        Self { part, file, bytes: 0, counted: 0, characters, noted: 0, changed: Instant::now(), replaced: None }
    }
}

/// As [`count`]; `None`: the file was renamed just now.
fn count_present(path: &Path, format: &FormatOptions, from: u64, growing: bool) -> Result<Option<Count>, IngestError> {
    match count(path, format, from, growing) {
        Err(IngestError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        count => count.map(Some),
    }
}

#[cfg(test)]
mod tests;
