//! What a spool folder holds when it is opened.
//!
//! | found | what it is | what is done |
//! | --- | --- | --- |
//! | no file | a new inbox | the first file is made |
//! | a last batch without its end, or whose checksum fails, and nothing behind it proves that it was durable | a write that a crash cut short; nobody was told that it is safe | it is cut off |
//! | damage before a batch that was written when the damaged part was durable | acknowledged documents are damaged | refused, with file and offset |
//! | `keys` covers more documents than there are | acknowledged documents are missing | refused |
//! | `keys` covers all documents of the last file | a crash between `keys` and the next file | goes on in the last file |
//! | `keys` is damaged | it was durable once | refused |
//! | no `keys`, but files | it was removed | a warning; keys of files that are gone are forgotten |
//! | `keys.new` | a crash while it was written | overwritten at the next occasion |

use super::commit::{self, Scan};
use super::keys::{self, KeyHash, KeyWindow, KeysFile};
use super::writer::Tail;
use crate::IngestError;
use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use store::log::disk::{Access, Disk, DiskFile};

pub(super) const KEYS_NAME: &str = "keys";

/// A spool, ready to be written on.
pub(super) struct Recovered {
    /// Oldest first; the last one is written.
    pub(super) files: Vec<SpoolFile>,
    pub(super) tail: Tail,
    pub(super) keys: KeyWindow,
    /// Of all documents that ever arrived, by language.
    pub(super) characters: BTreeMap<String, u64>,
}

/// A file of the spool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SpoolFile {
    /// Number of its first document.
    pub(super) first: u64,
    /// Durable bytes of whole batches.
    pub(super) bytes: u64,
}

/// Name of the file whose first document has this number.
pub(super) fn file_name(first: u64) -> String {
    format!("{first:020}.jsonl")
}

/// The number in a file's name; `None`: it is not a file of documents.
pub(super) fn number_of(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".jsonl").filter(|digits| digits.len() == 20)?;
    digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?
}

/// Brings the folder into a state that can be written on, and makes all that it holds durable.
pub(super) fn recover(disk: &dyn Disk, folder: &Path, key_limit: usize) -> Result<Recovered, IngestError> {
    let failed = |doing| move |source| IngestError::Io { doing, path: folder.to_owned(), source };
    disk.create_dir_all(folder).map_err(failed("create"))?;
    for above in folder.ancestors().skip(1).take(2) {
        disk.sync_dir(above).map_err(failed("sync the folder above"))?;
    }
    let mut firsts: Vec<u64> =
        disk.list(folder).map_err(failed("list"))?.iter().filter_map(|name| number_of(name)).collect();
    firsts.sort_unstable();
    let kept = read_keys(disk, folder, &firsts)?;
    let mut recovery = Recovery::new(disk, folder, kept, key_limit);
    if firsts.is_empty() {
        let first = recovery.covers;
        disk.open(&folder.join(file_name(first)), Access::Replace).map_err(failed("make a file in"))?;
        firsts.push(first);
    }
    for (index, first) in firsts.iter().enumerate() {
        recovery.file(*first, firsts.get(index + 1).copied())?;
    }
    disk.sync_dir(folder).map_err(failed("sync"))?;
    recovery.finish()
}

/// `None`: nothing is covered by a file of keys.
fn read_keys(disk: &dyn Disk, folder: &Path, firsts: &[u64]) -> Result<Option<KeysFile>, IngestError> {
    let path = folder.join(KEYS_NAME);
    let failed = |source| IngestError::Io { doing: "read", path: path.clone(), source };
    let file = match disk.open(&path, Access::Read) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if let Some(first) = firsts.first().filter(|first| **first > 0) {
                let path = path.display();
                tracing::warn!(%path, "there is no file of keys: batches before document {first} could be taken again");
            }
            return Ok(None);
        }
        file => file.map_err(failed)?,
    };
    let bytes = read_all(file.as_ref()).map_err(failed)?;
    let problem = "it is damaged; restore it, or remove it: then a batch that is sent again with a key of before may be \
                   taken twice";
    keys::decode(&bytes).map(Some).ok_or_else(|| IngestError::Inbox { path, problem: problem.to_owned() })
}

/// A walk over the files, oldest first.
struct Recovery<'a> {
    disk: &'a dyn Disk,
    folder: &'a Path,
    covers: u64,
    keys: KeyWindow,
    characters: BTreeMap<String, u64>,
    files: Vec<SpoolFile>,
    tail: Option<Tail>,
}

impl<'a> Recovery<'a> {
    fn new(disk: &'a dyn Disk, folder: &'a Path, kept: Option<KeysFile>, key_limit: usize) -> Self {
        let mut keys = KeyWindow::new(key_limit);
        let KeysFile { covers, characters, keys: known } =
            kept.unwrap_or(KeysFile { covers: 0, characters: BTreeMap::new(), keys: Vec::new() });
        known.into_iter().for_each(|key| keys.insert(key));
        Self { disk, folder, covers, keys, characters, files: Vec::new(), tail: None }
    }

    /// The file that begins with document `first`; `next` is where the one after it begins.
    fn file(&mut self, first: u64, next: Option<u64>) -> Result<(), IngestError> {
        let path = self.folder.join(file_name(first));
        let failed = |doing| {
            let path = path.clone();
            move |source| IngestError::Io { doing, path, source }
        };
        let file = self.disk.open(&path, Access::Write).map_err(failed("open"))?;
        if next.is_some_and(|next| next <= self.covers) {
            self.files.push(SpoolFile { first, bytes: file.length().map_err(failed("read the length of"))? });
            return Ok(());
        }
        let content = read_all(file.as_ref()).map_err(failed("read"))?;
        let scan = commit::scan(&content);
        let inbox = |problem| Err(IngestError::Inbox { path: path.clone(), problem });
        let torn_bytes = content.len() as u64 - scan.end;
        if scan.corrupt_at.is_some() || (next.is_some() && torn_bytes > 0) {
            return inbox(format!("documents that were durable are damaged at byte {}; restore the file", scan.end));
        }
        let end = first + scan.documents;
        let expected = next.unwrap_or(self.covers.max(first));
        if end < expected || next.is_some_and(|next| end != next) {
            return inbox(format!(
                "it ends before document {end}, but documents up to {expected} had arrived; restore it"
            ));
        }
        if torn_bytes > 0 {
            tracing::warn!(path = %path.display(), torn_bytes, "cut a batch off that was not complete: it was never acknowledged");
            file.truncate(scan.end).map_err(failed("cut"))?;
        }
        // What a process left that was killed may be in memory only.
        file.sync().map_err(failed("sync"))?;
        self.note(first, &scan);
        self.files.push(SpoolFile { first, bytes: scan.end });
        if next.is_none() {
            self.tail = Some(Tail::new(file, first, scan.end, scan.documents));
        }
        Ok(())
    }

    /// Keys and characters of the batches that the file of keys does not cover.
    fn note(&mut self, first: u64, scan: &Scan) {
        let mut number = first;
        for commit in &scan.commits {
            if number >= self.covers {
                commit.key.iter().for_each(|key| self.keys.insert(KeyHash::of(key)));
                for (language, characters) in &commit.characters {
                    *self.characters.entry(language.clone()).or_default() += characters;
                }
            }
            number += commit.documents;
        }
    }

    fn finish(self) -> Result<Recovered, IngestError> {
        let Self { folder, keys, characters, files, tail, .. } = self;
        let missing = || IngestError::Inbox { path: folder.to_owned(), problem: "it has no file".to_owned() };
        Ok(Recovered { files, tail: tail.ok_or_else(missing)?, keys, characters })
    }
}

fn read_all(file: &dyn DiskFile) -> io::Result<Vec<u8>> {
    let length = usize::try_from(file.length()?).map_err(io::Error::other)?;
    let mut bytes = vec![0; length];
    let mut done = 0;
    while done < length {
        match file.read_at(&mut bytes[done..], done as u64) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => done += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(bytes)
}
