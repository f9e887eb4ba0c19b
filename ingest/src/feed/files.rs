//! A fixed list of files.

use super::identity::Stamp;
use super::manifest::Characters;
use super::{Changes, Extent, Feed, Found, Part};
use crate::format::count;
use crate::{FormatOptions, IngestError};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use store::SourceCursor;

/// The files of a corpus, in the order of their paths. Nothing is ever added.
#[derive(Debug)]
pub(super) struct FileList {
    parts: Vec<Part>,
    by_name: BTreeMap<Arc<str>, usize>,
    /// Of each part that was opened, as it was then.
    stamps: Mutex<BTreeMap<usize, Stamp>>,
    characters: Characters,
    changes: Changes,
}

impl FileList {
    pub(super) fn new(corpus: &str, paths: &[PathBuf]) -> Result<Self, IngestError> {
        let parts = name_files(corpus, paths)?;
        let by_name = parts.iter().enumerate().map(|(index, part)| (Arc::clone(&part.name), index)).collect();
        let (stamps, characters, changes) = Default::default();
        Ok(Self { parts, by_name, stamps, characters, changes })
    }

    /// Reads every file once to know its characters; otherwise none are said to be available.
    pub(super) fn count(&mut self, format: &FormatOptions) -> Result<(), IngestError> {
        for part in &self.parts {
            self.characters.add(&count(&part.path, format, 0, false)?.into());
        }
        Ok(())
    }
}

impl Feed for FileList {
    fn following(&self, part: Option<&str>) -> Option<Part> {
        let index = match part {
            None => 0,
            Some(part) => self.by_name.get(part)? + 1,
        };
        self.parts.get(index).cloned()
    }

    fn find(&self, cursor: &SourceCursor) -> Found {
        match self.by_name.get(&cursor.file) {
            Some(index) => Found::Part(self.parts[*index].clone()),
            None => Found::Missing("it is not among the files of the corpus any more".to_owned()),
        }
    }

    fn extent(&self, _part: &str) -> Extent {
        Extent::WHOLE
    }

    /// A file that has grown since it was opened is read to its new end.
    fn verify(&self, part: &Part) -> Result<(), String> {
        let Some(index) = self.by_name.get(&part.name) else { return Ok(()) };
        let found = Stamp::at(&part.path).map_err(|error| format!("now it cannot be opened ({error})"))?;
        let mut stamps = self.stamps.lock().unwrap_or_else(PoisonError::into_inner);
        let before = *stamps.entry(*index).or_insert(found);
        if found.inode != before.inode || (found.bytes == before.bytes && found != before) {
            return Err("another file has taken its place while it was read".to_owned());
        }
        if found.bytes < before.bytes {
            return Err(format!("now it has {} bytes instead of {}", found.bytes, before.bytes));
        }
        Ok(())
    }

    fn parts(&self) -> usize {
        self.parts.len()
    }

    fn characters_available(&self, language: Option<&str>) -> u64 {
        self.characters.of(language)
    }

    fn closed(&self) -> bool {
        true
    }

    fn changes(&self) -> &Changes {
        &self.changes
    }
}

/// Sorts the files and names each: by its file name where that is unique in the corpus, else by its path
/// below the files' common parent.
fn name_files(corpus: &str, paths: &[PathBuf]) -> Result<Vec<Part>, IngestError> {
    let mut paths = paths.to_vec();
    paths.sort();
    paths.dedup();
    let base_name = |path: &Path| path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
    let mut occurrences: BTreeMap<String, usize> = BTreeMap::new();
    for path in &paths {
        *occurrences.entry(base_name(path)).or_default() += 1;
    }
    let parent = common_parent(&paths);
    let mut taken: BTreeMap<Arc<str>, PathBuf> = BTreeMap::new();
    let mut files = Vec::with_capacity(paths.len());
    for path in paths {
        let base = base_name(&path);
        let name: Arc<str> = if occurrences.get(&base) == Some(&1) {
            base.into()
        } else {
            path.strip_prefix(&parent).unwrap_or(&path).to_string_lossy().into()
        };
        if let Some(other) = taken.insert(Arc::clone(&name), path.clone()) {
            return Err(IngestError::Options(format!(
                "corpus `{corpus}`: `{}` and `{}` cannot be told apart by name; rename one of them",
                other.display(),
                path.display()
            )));
        }
        files.push(Part { name, path });
    }
    Ok(files)
}

fn common_parent(paths: &[PathBuf]) -> PathBuf {
    let mut parents = paths.iter().filter_map(|path| path.parent());
    let Some(first) = parents.next() else { return PathBuf::new() };
    let mut common: Vec<_> = first.components().collect();
    for parent in parents {
        let shared = common.iter().zip(parent.components()).take_while(|(a, b)| **a == *b).count();
        common.truncate(shared);
    }
    common.into_iter().collect()
}
