//! What the log asks of the operating system reaches it.

use crate::sample::block;
use std::io::ErrorKind;
use std::path::Path;
use store::log::disk::{Access, Disk, Lock, StdDisk};
use store::{LogReader, LogWriter, SequenceNumber};

/// A device that cannot be synced says so; nothing else could.
#[cfg(target_os = "linux")]
#[test]
fn a_sync_reaches_the_kernel() {
    let device = StdDisk.open(Path::new("/dev/null"), Access::Write).unwrap();
    assert_eq!(device.sync().unwrap_err().kind(), ErrorKind::InvalidInput);
}

#[test]
fn folders_are_synced_or_missed() {
    let folder = tempfile::tempdir().unwrap();
    StdDisk.sync_dir(folder.path()).unwrap();
    StdDisk.sync_dir(Path::new("")).unwrap();
    let missing = StdDisk.sync_dir(&folder.path().join("missing")).unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::NotFound);
}

#[test]
fn files_are_opened_as_asked() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    for access in [Access::Read, Access::Write] {
        assert_eq!(StdDisk.open(&path, access).unwrap_err().kind(), ErrorKind::NotFound);
    }
    let file = StdDisk.open(&path, Access::Keep).unwrap();
    assert_eq!(file.write_at(b"abcdef", 2).unwrap(), 6);
    assert_eq!(StdDisk.open(&path, Access::Keep).unwrap().length().unwrap(), 8);
    file.truncate(5).unwrap();
    let mut bytes = [9; 8];
    assert_eq!(file.read_at(&mut bytes, 0).unwrap(), 5);
    assert_eq!(&bytes, b"\0\0abc\x09\x09\x09");
    assert!(StdDisk.open(&path, Access::Read).unwrap().write_at(b"x", 0).is_err());
    assert_eq!(StdDisk.open(&path, Access::Replace).unwrap().length().unwrap(), 0);

    StdDisk.create_dir_all(&folder.path().join("a/b")).unwrap();
    assert_eq!(StdDisk.list(folder.path()).unwrap(), ["file"]);
    assert!(StdDisk.list(&folder.path().join("missing")).unwrap().is_empty());
    StdDisk.rename(&path, &folder.path().join("a/b/other")).unwrap();
    assert_eq!(StdDisk.list(&folder.path().join("a/b")).unwrap(), ["other"]);
    StdDisk.remove(&folder.path().join("a/b/other")).unwrap();
    assert!(StdDisk.list(&folder.path().join("a/b")).unwrap().is_empty());
}

#[test]
fn locks_are_taken_and_given_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    let [first, second] = [(); 2].map(|()| StdDisk.open(&path, Access::Keep).unwrap());
    assert!(first.try_lock(Lock::Shared).unwrap());
    assert!(second.try_lock(Lock::Shared).unwrap());
    drop(second);
    assert!(first.try_lock(Lock::Exclusive).unwrap());
    let other = StdDisk.open(&path, Access::Read).unwrap();
    assert!(!other.try_lock(Lock::Shared).unwrap());
    drop(first);
    assert!(other.try_lock(Lock::Shared).unwrap());
}

/// `log` as a folder beside the process, and one whose parents do not exist.
#[test]
fn a_log_is_created_with_the_folders_above_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state/deep/log");
    let registry = prometheus::Registry::new();
    let (mut log, _) =
        LogWriter::open(&path, &crate::sample::identity(), &crate::sample::options(1 << 20), &registry).unwrap();
    log.append(&block(0..3)).unwrap();
    log.sync().unwrap();
    assert_eq!(*LogReader::open(&path).unwrap().entry(SequenceNumber(2)).unwrap(), crate::sample::entry(2));
}
