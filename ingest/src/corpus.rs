//! A corpus as it is configured: which files, in which form, in which language.

use crate::IngestError;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// One corpus of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CorpusOptions {
    /// Name, unique among the corpora; the `source` of its records.
    pub name: String,
    /// Language of all its documents.
    pub language: String,
    /// Its files (see [`expand`]); they are read in the order of their paths.
    pub files: Vec<PathBuf>,
    /// Form of the files.
    pub format: Format,
    /// How often the corpus is labelled, each time with new masks; at least 1.
    pub rounds: u32,
    /// Every document is held out, and all are read once, before any other corpus.
    pub evaluation_only: bool,
}

/// How documents are laid out in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Format {
    /// Plain UTF-8 text; documents are separated by one or more empty lines (only ASCII white space counts as empty).
    #[serde(rename = "text")]
    Text,
    /// One JSON object a line, with the document in its field `text`.
    #[serde(rename = "jsonl")]
    JsonLines,
}

/// The files that `pattern` (a path, possibly with `*`, `?`, `[…]`, `**`) names, sorted. Folders are left out.
///
/// # Errors
/// When the pattern is malformed or matches no file, or a folder on the way cannot be read.
pub fn expand(pattern: &Path) -> Result<Vec<PathBuf>, IngestError> {
    if pattern.is_file() {
        return Ok(vec![pattern.to_owned()]);
    }
    let shown = pattern.display().to_string();
    let matches = glob::glob(&shown).map_err(|source| IngestError::Pattern { pattern: shown.clone(), source })?;
    let mut files = Vec::new();
    for found in matches {
        let path = found.map_err(|error| {
            let path = error.path().to_owned();
            IngestError::Io { doing: "list", path, source: error.into() }
        })?;
        if path.is_file() {
            files.push(path);
        }
    }
    if files.is_empty() {
        return Err(IngestError::NothingMatches { pattern: shown });
    }
    files.sort();
    Ok(files)
}

/// A file of a corpus, with its name in document identifiers.
#[derive(Clone, Debug)]
pub(crate) struct CorpusFile {
    pub(crate) path: PathBuf,
    pub(crate) name: Arc<str>,
}

/// Sorts the files and names each: by its file name where that is unique in the corpus, else by its path
/// below the files' common parent.
pub(crate) fn name_files(corpus: &str, paths: &[PathBuf]) -> Result<Vec<CorpusFile>, IngestError> {
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
        files.push(CorpusFile { path, name });
    }
    Ok(files)
}

/// Characters in a file, read as UTF-8; bytes that are none count as they come.
pub(crate) fn count_characters(path: &Path) -> Result<u64, IngestError> {
    let failed = |source| IngestError::Io { doing: "read", path: path.to_owned(), source };
    let mut file = File::open(path).map_err(failed)?;
    let mut chunk = vec![0; 1 << 20];
    let mut characters = 0;
    loop {
        match file.read(&mut chunk) {
            Ok(0) => return Ok(characters),
            Ok(bytes) => characters += bytecount::num_chars(&chunk[..bytes]) as u64,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(failed(error)),
        }
    }
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
