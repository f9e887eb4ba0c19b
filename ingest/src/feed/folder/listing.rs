//! Which files of a folder are text to read: those that are not empty and have no temporary name, in folders inside it too, but
//! not in hidden ones.

use super::super::watcher::{is_temporary, present};
use crate::IngestError;
use std::fs::{self, Metadata};
use std::io;
use std::path::{Path, PathBuf};

/// What lies in a folder.
pub(super) enum Entry {
    /// A folder that is looked through too.
    Folder(PathBuf),
    /// Something that may be a file to read; [`file_to_read`] says so.
    File(PathBuf),
}

/// What lies directly in `folder`.
///
/// # Errors
/// When it cannot be read.
pub(super) fn entries(folder: &Path) -> io::Result<impl Iterator<Item = Entry>> {
    Ok(fs::read_dir(folder)?.flatten().filter_map(|entry| {
        let path = entry.path();
        match entry.file_type().ok()?.is_dir() {
            true => (!is_temporary(&path)).then_some(Entry::Folder(path)),
            false => Some(Entry::File(path)),
        }
    }))
}

/// `path` lies in the folder as `inside`. `None`: there is no file to read there (yet).
///
/// # Errors
/// When the file system does not say what is there.
pub(super) fn file_to_read(path: &Path, inside: &Path) -> io::Result<Option<Metadata>> {
    let is_hidden = inside.ancestors().filter(|part| !part.as_os_str().is_empty()).any(is_temporary);
    let found = present(fs::metadata(path))?;
    Ok(found.filter(|metadata| !is_hidden && metadata.is_file() && metadata.len() > 0))
}

/// The files to read that are in `folder` now, sorted.
///
/// # Errors
/// When a folder or a file cannot be looked at.
pub(in super::super) fn files_to_read(folder: &Path) -> Result<Vec<PathBuf>, IngestError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| IngestError::Io { doing: "list", path, source }
    };
    let (mut files, mut folders) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(next) = folders.pop() {
        for entry in entries(&next).map_err(failed(&next))? {
            match entry {
                Entry::Folder(path) => folders.push(path),
                Entry::File(path) => {
                    let inside = path.strip_prefix(folder).unwrap_or(&path);
                    if file_to_read(&path, inside).map_err(failed(&path))?.is_some() {
                        files.push(path);
                    }
                }
            }
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn files_to_read_are_those_that_are_complete_and_not_hidden() {
        let root = tempfile::tempdir().unwrap();
        // What leads to the folder may be hidden.
        let folder = root.path().join(".in [x]*");
        assert!(matches!(files_to_read(&folder), Err(IngestError::Io { doing: "list", .. })));
        for inside in ["b", ".git", "c.tmp"] {
            fs::create_dir_all(folder.join(inside)).unwrap();
        }
        assert_eq!(files_to_read(&folder).unwrap(), Vec::<PathBuf>::new());
        let read = ["a?.txt", "b/[c].txt", "z"];
        for name in read.iter().chain(&[".hidden", "b/d.txt.part", "e~", ".git/config", "c.tmp/f.txt"]) {
            fs::write(folder.join(name), "text").unwrap();
        }
        fs::write(folder.join("empty.txt"), "").unwrap();
        std::os::unix::fs::symlink("nowhere", folder.join("dangling")).unwrap();
        assert_eq!(files_to_read(&folder).unwrap(), read.map(|name| folder.join(name)));
    }
}
