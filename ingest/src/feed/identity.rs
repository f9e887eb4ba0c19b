//! How a file is recognised again: by what the file system says of it and, where that differs, by its content.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// What the file system says of a file. Equal stamps of one path: nobody has replaced, cut or rewritten it in between.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stamp {
    /// Size.
    pub(crate) bytes: u64,
    /// Unix time of the last change of its content, in nanoseconds.
    pub(crate) modified_nanoseconds: i64,
    /// Its number in the file system: a file that is put into its place has another one.
    pub(crate) inode: u64,
}

impl Stamp {
    pub(crate) fn of(metadata: &Metadata) -> Self {
        let modified_nanoseconds = metadata.mtime().saturating_mul(1_000_000_000).saturating_add(metadata.mtime_nsec());
        Self { bytes: metadata.len(), modified_nanoseconds, inode: metadata.ino() }
    }

    pub(crate) fn at(path: &Path) -> io::Result<Self> {
        Ok(Self::of(&std::fs::metadata(path)?))
    }
}

/// A file as it was when it was taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    #[serde(flatten)]
    pub(crate) stamp: Stamp,
    /// SHA-256 of its content.
    pub(crate) fingerprint: String,
}

impl Identity {
    /// Reads the file once. `None`: it changed meanwhile.
    pub(crate) fn of(path: &Path) -> io::Result<Option<Self>> {
        let before = Stamp::at(path)?;
        let fingerprint = fingerprint(path, before.bytes)?;
        Ok((Stamp::at(path)? == before).then_some(Self { stamp: before, fingerprint }))
    }

    /// Whether the file at `path` is still this one; the error says what is different. Its content is read only if
    /// its stamp has changed though its size has not: it may have been copied back or merely touched.
    pub(crate) fn check(&self, path: &Path) -> Result<(), String> {
        let found = Stamp::at(path).map_err(|error| format!("now it cannot be opened ({error})"))?;
        if found == self.stamp {
            return Ok(());
        }
        if found.bytes != self.stamp.bytes {
            return Err(format!("now it has {} bytes instead of {}", found.bytes, self.stamp.bytes));
        }
        match fingerprint(path, found.bytes) {
            Ok(fingerprint) if fingerprint == self.fingerprint => Ok(()),
            Ok(_) => Err("now it holds another text".to_owned()),
            Err(error) => Err(format!("now it cannot be read ({error})")),
        }
    }
}

/// SHA-256 of the first `bytes` bytes of a file, in hexadecimal.
pub(crate) fn fingerprint(path: &Path, bytes: u64) -> io::Result<String> {
    let mut file = File::open(path)?.take(bytes);
    let mut hash = Sha256::new();
    let mut chunk = vec![0; 256 << 10];
    loop {
        match file.read(&mut chunk) {
            Ok(0) => break,
            Ok(count) => {
                hash.update(&chunk[..count]);
                store::pulse::beat();
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}
