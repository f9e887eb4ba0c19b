//! The manifest of a feed: which files were taken, in which order. One JSON object a line, in `<corpus>.jsonl`.
//!
//! A line about a part is durable before anything of that part is read, so a cursor in the log never names a part that
//! the manifest lacks. A line that a crash has torn was never acted on: it is cut when the manifest is opened.
//!
//! A manifest that holds much that is not needed any more is written anew beside itself and renamed: a crash leaves the one or
//! the other, which say the same of all that the log can still ask for.

use super::identity::{Identity, Stamp};
use crate::IngestError;
use crate::error::is_no_space;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A line of the manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(crate) enum Line {
    /// A whole file became the next part.
    Taken(Taken),
    /// A file that grows became the next part.
    Followed(Followed),
    /// The part of that name, which grows, had `bytes` bytes, and these characters before byte `counted` of its text.
    Grown { name: Arc<str>, bytes: u64, counted: u64, characters: Characters },
    /// The part of that name grows no more.
    Closed { name: Arc<str>, bytes: u64, characters: Characters },
    /// A source has read a part to its end; its last document begins at `last_document`. If the cursor stands there, the
    /// part may be gone.
    Finished { name: Arc<str>, source: Arc<str>, last_document: u64 },
    /// The part of that name is not to be looked for any more: what was not read of it is given up.
    Forgotten { name: Arc<str> },
    /// The part of that name, which grows or grew, was copied: the copy has this number in the file system.
    Recognised { name: Arc<str>, inode: u64 },
    /// So many parts came before the first one in this manifest. The log has gone beyond them.
    Past { parts: usize, characters: Characters },
    /// What is still known of their files.
    PastFiles { files: Vec<PastFile> },
}

/// Files in a line, at most.
pub(crate) const PAST_FILES_OF_A_LINE: usize = 256;

/// The latest part that was at a path, once it was read. Hashes are the first 64 bits of SHA-256.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "[u64; 5]", into = "[u64; 5]")]
pub(crate) struct PastFile {
    /// Hash of its path in the folder.
    pub(crate) path: u64,
    /// The last of the numbers that were given to names for this path; 1: the path itself.
    pub(crate) names: u64,
    /// Hash of its stamp.
    pub(crate) stamp: u64,
    /// Size of its content.
    pub(crate) bytes: u64,
    /// Hash of its content.
    pub(crate) content: u64,
}

impl From<[u64; 5]> for PastFile {
    fn from([path, names, stamp, bytes, content]: [u64; 5]) -> Self {
        Self { path, names, stamp, bytes, content }
    }
}

impl From<PastFile> for [u64; 5] {
    fn from(PastFile { path, names, stamp, bytes, content }: PastFile) -> Self {
        [path, names, stamp, bytes, content]
    }
}

/// A file that is there as a whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Taken {
    /// As document identifiers name it.
    pub(crate) name: Arc<str>,
    /// In the folder: that may have been moved, or be named in another way.
    pub(crate) path: PathBuf,
    #[serde(flatten)]
    pub(crate) identity: Identity,
    pub(crate) characters: Characters,
}

/// A file that grows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Followed {
    /// As document identifiers name it.
    pub(crate) name: Arc<str>,
    /// Where it was; rotation may have renamed it since.
    pub(crate) path: PathBuf,
    /// As it was when it became a part.
    #[serde(flatten)]
    pub(crate) stamp: Stamp,
    /// SHA-256 of the bytes that it had then.
    pub(crate) fingerprint: String,
}

/// Characters by language; under the empty name where the format tells no languages apart.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Characters(pub(crate) BTreeMap<String, u64>);

impl Characters {
    pub(crate) fn add(&mut self, other: &Self) {
        for (language, characters) in &other.0 {
            *self.0.entry(language.clone()).or_default() += characters;
        }
    }

    /// Takes away what was added.
    pub(crate) fn subtract(&mut self, other: &Self) {
        for (language, characters) in &other.0 {
            let left = self.0.entry(language.clone()).or_default();
            *left = left.saturating_sub(*characters);
        }
    }

    /// Of `language`, or all of them.
    pub(crate) fn of(&self, language: Option<&str>) -> u64 {
        match language {
            Some(language) => self.0.get(language).copied().unwrap_or(0),
            None => self.0.values().sum(),
        }
    }
}

impl From<crate::format::Count> for Characters {
    fn from(count: crate::format::Count) -> Self {
        Self(count.characters.into_iter().map(|(language, count)| (language.unwrap_or_default(), count)).collect())
    }
}

/// Appends to a manifest.
#[derive(Debug)]
pub(crate) struct Manifest {
    file: File,
    path: PathBuf,
}

impl Manifest {
    /// Where the manifest of `corpus` is.
    pub(crate) fn path_of(folder: &Path, corpus: &str) -> PathBuf {
        folder.join(format!("{}.jsonl", crate::quarantine::file_name(corpus)))
    }

    /// Opens the manifest of `corpus` in `folder`, or makes it; returns its lines.
    pub(crate) fn open(folder: &Path, corpus: &str) -> Result<(Self, Vec<Line>), IngestError> {
        let path = Self::path_of(folder, corpus);
        let failed = |doing: &'static str| {
            let path = path.clone();
            move |source| IngestError::Io { doing, path, source }
        };
        create_folder(folder).map_err(failed("make the folder of"))?;
        let mut options = OpenOptions::new();
        let mut file =
            options.create(true).read(true).append(true).open(&path).map_err(failed("open the feed's manifest"))?;
        sync_folder(folder).map_err(failed("make durable"))?;
        let mut bytes = Vec::new();
        io::Read::read_to_end(&mut file, &mut bytes).map_err(failed("read the feed's manifest"))?;
        let whole = memchr::memrchr(b'\n', &bytes).map_or(0, |at| at + 1);
        if whole < bytes.len() {
            tracing::warn!(corpus, path = %path.display(), bytes = bytes.len() - whole, "a torn line was cut");
            file.set_len(whole as u64).map_err(failed("cut the feed's manifest"))?;
        }
        // What a process left that was killed may be in memory only.
        file.sync_all().map_err(failed("make durable"))?;
        let lines = bytes[..whole].split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).enumerate();
        let lines: Result<Vec<Line>, IngestError> = lines
            .map(|(index, line)| {
                serde_json::from_slice(line)
                    .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, format!("line {}: {error}", index + 1)))
                    .map_err(failed("read the feed's manifest"))
            })
            .collect();
        Ok((Self { file, path: path.clone() }, lines?))
    }

    /// Appends `lines`; they are durable when this returns. `false`: the disk is full, and nothing was appended.
    pub(crate) fn append(&mut self, lines: &[Line]) -> Result<bool, IngestError> {
        let before = self.length()?;
        let written = self.write(lines)?;
        match self.file.sync_data() {
            Ok(()) => Ok(written),
            Err(error) if is_no_space(&error) => {
                self.cut(before)?;
                self.file.sync_data().map_err(|source| self.failed(source))?;
                Ok(false)
            }
            Err(error) => Err(self.failed(error)),
        }
    }

    /// Appends a line that is only a hint: a crash of the machine may lose it, and so may a full disk.
    pub(crate) fn append_hint(&mut self, line: Line) -> Result<(), IngestError> {
        self.write(&[line]).map(drop)
    }

    /// Puts `lines` into the place of all others, durably. `false`: the disk is full, and all is as before.
    pub(crate) fn replace(&mut self, lines: impl Iterator<Item = Line>) -> Result<bool, IngestError> {
        let partial = self.path.with_extension("jsonl.partial");
        let written = write_lines(&partial, lines);
        match written.and_then(|()| fs::rename(&partial, &self.path)) {
            Ok(()) => {}
            Err(error) if is_no_space(&error) => {
                // Best effort: the next time it is written over.
                let _ = fs::remove_file(&partial);
                tracing::warn!(path = %self.path.display(), "no space to write the feed's manifest anew; it stays as it is");
                return Ok(false);
            }
            Err(error) => return Err(self.failed(error)),
        }
        // What is appended from now on must not be durable before the name is.
        let folder = self.path.parent().unwrap_or(Path::new("."));
        sync_folder(folder).map_err(|source| self.failed(source))?;
        self.file = OpenOptions::new().append(true).open(&self.path).map_err(|source| self.failed(source))?;
        Ok(true)
    }

    /// There is no space for what has to be written.
    pub(crate) fn no_room(&self) -> IngestError {
        self.failed(io::ErrorKind::StorageFull.into())
    }

    /// `false`: the disk is full. What was written of the lines is cut off again.
    fn write(&mut self, lines: &[Line]) -> Result<bool, IngestError> {
        let mut text = Vec::new();
        for line in lines {
            serde_json::to_writer(&mut text, line).map_err(|error| self.failed(error.into()))?;
            text.push(b'\n');
        }
        let before = self.length()?;
        match self.file.write_all(&text) {
            Ok(()) => Ok(true),
            Err(error) if is_no_space(&error) => self.cut(before).map(|()| false),
            Err(error) => Err(self.failed(error)),
        }
    }

    /// There is no room for what stands behind `length`.
    fn cut(&self, length: u64) -> Result<(), IngestError> {
        tracing::warn!(path = %self.path.display(), "the disk is full; files are taken when there is room");
        self.file.set_len(length).map_err(|source| self.failed(source))
    }

    fn length(&self) -> Result<u64, IngestError> {
        self.file.metadata().map(|metadata| metadata.len()).map_err(|source| self.failed(source))
    }

    fn failed(&self, source: io::Error) -> IngestError {
        IngestError::Io { doing: "write to the feed's manifest", path: self.path.clone(), source }
    }
}

/// Makes a file of `lines`, durably but for its name.
fn write_lines(path: &Path, lines: impl Iterator<Item = Line>) -> io::Result<()> {
    let mut file = BufWriter::new(File::create(path)?);
    for line in lines {
        serde_json::to_writer(&mut file, &line)?;
        file.write_all(b"\n")?;
    }
    file.flush()?;
    file.get_ref().sync_all()
}

/// Makes `folder`, and its name durable.
fn create_folder(folder: &Path) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(folder)?;
    folder.parent().map_or(Ok(()), sync_folder)
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn taken(name: &str) -> Line {
        Line::Taken(Taken {
            name: name.into(),
            path: PathBuf::from(name),
            identity: Identity {
                stamp: Stamp { bytes: 3, modified_nanoseconds: 4, inode: 5 },
                fingerprint: "00".to_owned(),
            },
            characters: Characters([(String::new(), 3)].into()),
        })
    }

    #[test]
    fn a_torn_last_line_is_cut_wherever_it_is_torn() {
        let folder = tempfile::tempdir().unwrap();
        let lines = [taken("a"), Line::Finished { name: "a".into(), source: "c".into(), last_document: 7 }, taken("b")];
        let (mut manifest, none) = Manifest::open(folder.path(), "c/x").unwrap();
        assert_eq!(none, []);
        manifest.append(&lines[..2]).unwrap();
        let path = manifest.path.clone();
        let before = fs::read(&path).unwrap().len();
        manifest.append(&lines[2..]).unwrap();
        let whole = fs::read(&path).unwrap();
        for length in before..whole.len() {
            fs::write(&path, &whole[..length]).unwrap();
            let (mut manifest, found) = Manifest::open(folder.path(), "c/x").unwrap();
            assert_eq!(found, lines[..2], "{length} bytes");
            manifest.append(&lines[2..]).unwrap();
            assert_eq!(fs::read(&path).unwrap(), whole);
        }
        assert_eq!(Manifest::open(folder.path(), "c/x").unwrap().1, lines);
    }

    #[test]
    fn a_manifest_that_is_written_anew_is_the_old_one_or_the_new_one() {
        let folder = tempfile::tempdir().unwrap();
        let file = PastFile { path: u64::MAX, names: 2, stamp: 3, bytes: 4, content: 5 };
        let past = Line::Past { parts: 2, characters: Characters([("en".to_owned(), 7)].into()) };
        let (old, new) = ([taken("a"), taken("b")], [past, Line::PastFiles { files: vec![file] }, taken("b")]);
        let (mut manifest, _) = Manifest::open(folder.path(), "c").unwrap();
        manifest.append(&old).unwrap();
        // What a crash leaves before the new one is renamed, however far it came.
        let partial = folder.path().join("c.jsonl.partial");
        for torn in ["", "{\"event\":\"pas", "{\"event\":\"past\",\"parts\":2,\"characters\":{}}\n"] {
            fs::write(&partial, torn).unwrap();
            assert_eq!(Manifest::open(folder.path(), "c").unwrap().1, old);
        }
        let (mut manifest, _) = Manifest::open(folder.path(), "c").unwrap();
        assert!(manifest.replace(new.iter().cloned()).unwrap());
        assert!(!partial.exists());
        manifest.append(&[taken("c")]).unwrap();
        let expected: Vec<Line> = new.into_iter().chain([taken("c")]).collect();
        assert_eq!(Manifest::open(folder.path(), "c").unwrap().1, expected);
    }

    #[test]
    fn a_broken_line_is_named() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("c.jsonl"), "{\"event\":\"finished\"}\n").unwrap();
        let error = Manifest::open(folder.path(), "c").unwrap_err().to_string();
        assert!(error.contains("c.jsonl") && error.contains("line 1"), "{error}");
    }
}
