//! The parts of a watched folder: those that are still to be read, and what is kept of those that were.
//!
//! Files may come for years, so what was read leaves memory once no crash can have it read again. Of each such path some
//! hashes stay, about 100 bytes: enough to know the file again if it is still there, was touched, or comes back, to notice that another
//! one took its place, and to give no name a second time.

use super::super::identity::{Identity, Stamp};
use super::super::manifest::{Characters, PastFile, Taken};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;

#[derive(Debug, Default)]
pub(super) struct Parts {
    /// Those that are not past, in order.
    pub(super) list: VecDeque<Taken>,
    /// Their places, counted from the first part that there ever was.
    by_name: BTreeMap<Arc<str>, usize>,
    /// By path inside the folder, the place of the latest one there.
    by_path: HashMap<PathBuf, usize>,
    /// How many are past.
    pub(super) first: usize,
    /// By hash of the path inside the folder, the latest part that was there.
    past: HashMap<u64, PastFile>,
    /// Place of a part before which nothing is read again.
    reached: usize,
    /// Those whose files are not looked for any more.
    forgotten: BTreeSet<Arc<str>>,
    /// Of all parts.
    pub(super) characters: Characters,
}

/// What a file was when it became a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Earlier {
    pub(super) bytes: u64,
    /// Hash of its content.
    pub(super) content: u64,
}

impl Parts {
    pub(super) fn add(&mut self, taken: Taken) {
        self.by_name.insert(Arc::clone(&taken.name), self.count());
        self.by_path.insert(taken.path.clone(), self.count());
        self.characters.add(&taken.characters);
        self.list.push_back(taken);
    }

    /// What was not read of this part is given up.
    pub(super) fn forget(&mut self, name: Arc<str>) {
        self.forgotten.insert(name);
    }

    pub(super) fn is_forgotten(&self, name: &str) -> bool {
        self.forgotten.contains(name)
    }

    /// Parts that were read in earlier runs: how many, with how many characters.
    pub(super) fn add_past(&mut self, count: usize, characters: &Characters) {
        self.first += count;
        self.characters.add(characters);
    }

    pub(super) fn add_past_files(&mut self, files: Vec<PastFile>) {
        self.past.extend(files.into_iter().map(|file| (file.path, file)));
    }

    /// Whether any part is past.
    pub(super) fn has_past(&self) -> bool {
        self.first > 0
    }

    /// Parts so far.
    pub(super) fn count(&self) -> usize {
        self.first + self.list.len()
    }

    pub(super) fn get(&self, name: &str) -> Option<&Taken> {
        self.list.get(self.index(name)?)
    }

    pub(super) fn get_mut(&mut self, name: &str) -> Option<&mut Taken> {
        let index = self.index(name)?;
        self.list.get_mut(index)
    }

    /// The part after the one named, or the first one; forgotten ones are passed over.
    pub(super) fn following(&self, part: Option<&str>) -> Option<&Taken> {
        let index = match part {
            None => 0,
            Some(part) => self.index(part)? + 1,
        };
        self.list.iter().skip(index).find(|taken| !self.is_forgotten(&taken.name))
    }

    fn index(&self, name: &str) -> Option<usize> {
        self.by_name.get(name)?.checked_sub(self.first)
    }

    /// What comes before the part of that name is not read again.
    pub(super) fn reach(&mut self, part: &str) {
        if let Some(place) = self.by_name.get(part) {
            self.reached = self.reached.max(*place);
        }
    }

    /// Lets go of the first part, if it is not read again. `stamp` is that of the file at its path as it was seen last, which may
    /// have been touched since.
    pub(super) fn retire(&mut self, stamp: impl FnOnce(&Taken) -> Option<Stamp>) -> Option<Taken> {
        if self.first >= self.reached {
            return None;
        }
        let taken = self.list.pop_front()?;
        self.by_name.remove(&taken.name);
        let given_up = self.forgotten.remove(&taken.name);
        if self.by_path.get(&taken.path) == Some(&self.first) {
            self.by_path.remove(&taken.path);
        }
        self.first += 1;
        let (path, identity) = (path_hash(&taken.path), &taken.identity);
        let names = number(&taken).max(self.past.get(&path).map_or(0, |past| past.names));
        let seen = stamp_hash(&stamp(&taken).unwrap_or(identity.stamp));
        let earlier = Earlier::of(identity);
        // Of a file that was given up whatever comes in its place is another one, but the file itself if nobody has touched it.
        let bytes = if given_up { u64::MAX } else { earlier.bytes };
        let file = PastFile { path, names, stamp: seen, bytes, content: earlier.content };
        self.past.insert(path, file);
        Some(taken)
    }

    /// The file at a path is, as far as its stamp tells, what a past part was.
    pub(super) fn is_past(&self, inside: &Path, stamp: &Stamp) -> bool {
        self.past.get(&path_hash(inside)).is_some_and(|past| past.stamp == stamp_hash(stamp))
    }

    /// The file at a path was touched, or has grown, and is still that of a past part. `false`: there is none.
    pub(super) fn touch_past(&mut self, inside: &Path, stamp: &Stamp) -> bool {
        let past = self.past.get_mut(&path_hash(inside));
        past.map(|past| past.stamp = stamp_hash(stamp)).is_some()
    }

    /// The latest part that was at a path and is not past.
    pub(super) fn latest_at(&self, inside: &Path) -> Option<&Taken> {
        self.list.get(self.by_path.get(inside)?.checked_sub(self.first)?)
    }

    /// The past part that was at a path.
    pub(super) fn past_at(&self, inside: &Path) -> Option<Earlier> {
        let past = self.past.get(&path_hash(inside))?;
        Some(Earlier { bytes: past.bytes, content: past.content })
    }

    /// Whether a part has, or ever had, the name that is number `number` of those for the path `name`.
    pub(super) fn is_used(&self, path: &str, number: u64, name: &str) -> bool {
        let given = |path: &str, number: u64| {
            self.past.get(&path_hash(Path::new(path))).is_some_and(|past| past.names >= number)
        };
        let as_numbered = name.rsplit_once('~').and_then(|(path, number)| Some((path, number.parse().ok()?)));
        self.by_name.contains_key(name)
            || given(path, number)
            || given(name, 1)
            || as_numbered.is_some_and(|(path, number)| number >= 2 && given(path, number))
    }

    /// All past files, in no order.
    pub(super) fn past_files(&self) -> impl Iterator<Item = &PastFile> {
        self.past.values()
    }

    /// The characters of past parts.
    pub(super) fn past_characters(&self) -> Characters {
        let mut past = self.characters.clone();
        self.list.iter().for_each(|taken| past.subtract(&taken.characters));
        past
    }
}

impl Earlier {
    pub(super) fn of(identity: &Identity) -> Self {
        Self { bytes: identity.stamp.bytes, content: content_hash(&identity.fingerprint) }
    }
}

/// The first 64 bits of a fingerprint.
pub(super) fn content_hash(fingerprint: &str) -> u64 {
    fingerprint.get(..16).and_then(|digits| u64::from_str_radix(digits, 16).ok()).unwrap_or_default()
}

/// The name of a path's part number `number`, counted from 1.
pub(super) fn numbered(path: &str, number: u64) -> String {
    if number == 1 { path.to_owned() } else { format!("{path}~{number}") }
}

/// Which of its path's names a part has.
fn number(taken: &Taken) -> u64 {
    let path = taken.path.to_str().unwrap_or_default();
    let suffix = taken.name.strip_prefix(path).and_then(|suffix| suffix.strip_prefix('~'));
    suffix.and_then(|number| number.parse().ok()).unwrap_or(1)
}

fn path_hash(path: &Path) -> u64 {
    hash(&[path.as_os_str().as_encoded_bytes()])
}

fn stamp_hash(stamp: &Stamp) -> u64 {
    let Stamp { bytes, modified_nanoseconds, inode } = stamp;
    hash(&[&bytes.to_le_bytes(), &modified_nanoseconds.to_le_bytes(), &inode.to_le_bytes()])
}

/// The first 64 bits of SHA-256: it is written down, so it must stay the same.
fn hash(parts: &[&[u8]]) -> u64 {
    let mut hash = Sha256::new();
    parts.iter().for_each(|part| hash.update(part));
    let digest = hash.finalize();
    digest.iter().take(8).fold(0, |bits, byte| bits << 8 | u64::from(*byte))
}

/// Where a path lies inside the folder.
pub(super) fn inside(folder: &Path, path: &Path) -> PathBuf {
    path.strip_prefix(folder).unwrap_or(path).to_owned()
}
