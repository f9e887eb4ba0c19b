//! A disk that fails while it is read: an error, never a conclusion about the log.

use crate::memory_disk::MemoryDisk;
use crate::sample::{DIR, append_blocks, block, check_content, durable, open, options, read, verify};
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use store::{LogReader, SequenceNumber, StoreError};

/// Two sealed segments, and one with a torn tail.
fn log() -> MemoryDisk {
    let disk = MemoryDisk::default();
    for ends in [&[3, 5][..], &[9]] {
        let (mut log, _) = open(&disk, &options(1 << 20)).unwrap();
        append_blocks(&mut log, ends);
        log.seal().unwrap();
    }
    append_blocks(&mut open(&disk, &options(1 << 20)).unwrap().0, &[12, 15]);
    let (path, mut bytes) = files(&disk).pop_last().unwrap();
    bytes.extend(b"MDbk and half a block");
    disk.put(&path, bytes);
    disk.copy()
}

/// The segments, and the tails that were put aside.
fn files(disk: &MemoryDisk) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = disk.files(Path::new(DIR));
    files.retain(|path, _| path.extension().is_some_and(|extension| extension == "seg"));
    files
}

/// Lets each look of `act` fail, until `act` needs no more looks.
fn at_every_look(disk: &MemoryDisk, kind: ErrorKind, mut act: impl FnMut(&MemoryDisk)) -> u64 {
    for look in 0.. {
        let disk = disk.copy();
        disk.fail_look(look, kind);
        act(&disk);
        if disk.look_pending() {
            return look;
        }
    }
    unreachable!("the loop ends by itself")
}

fn is_io(error: &StoreError) -> bool {
    matches!(error, StoreError::Io { .. })
}

fn read_all(reader: &LogReader) -> Result<(), StoreError> {
    (0..15).try_for_each(|sequence| {
        let entry = reader.entry(SequenceNumber(sequence))?;
        assert_eq!(*entry, crate::sample::entry(sequence));
        Ok(())
    })
}

#[test]
fn a_failing_read_is_no_damage() {
    let whole = log();
    let looks = at_every_look(&whole, ErrorKind::Other, |disk| {
        let before = disk.files(Path::new(DIR));
        match read(disk).and_then(|reader| read_all(&reader).map(|()| reader.durable())) {
            Ok(seen) => assert_eq!(seen, durable(15)),
            Err(error) => assert!(is_io(&error), "{error}"),
        }
        assert_eq!(disk.files(Path::new(DIR)), before);
    });
    assert!(looks > 20, "{looks} looks");
    at_every_look(&whole, ErrorKind::Other, |disk| match verify(disk) {
        Ok(found) => {
            assert_eq!((found.durable, found.entries, found.torn.map(|torn| torn.bytes)), (durable(15), 15, Some(21)));
            assert!(found.footers_lost.is_empty(), "{:?}", found.footers_lost);
        }
        Err(error) => assert!(is_io(&error), "{error}"),
    });
}

/// A writer that cannot read what is there cuts nothing that is valid.
#[test]
fn a_failing_read_during_recovery_loses_nothing() {
    let whole = log();
    at_every_look(&whole, ErrorKind::Other, |disk| {
        match open(disk, &options(1 << 20)) {
            Ok((_, recovery)) => assert_eq!((recovery.durable, recovery.torn_bytes), (durable(15), 21)),
            Err(error) => assert!(is_io(&error), "{error}"),
        }
        let disk = disk.copy();
        let (mut log, recovery) = open(&disk, &options(1 << 20)).unwrap();
        assert_eq!(recovery.durable, durable(15));
        log.append(&block(15..20)).unwrap();
        log.seal().unwrap();
        assert_eq!(verify(&disk).unwrap().entries, 20);
        assert_eq!(check_content(&read(&disk).unwrap()), 20);
    });
}

/// Reading is repeated when it was interrupted, and goes on when it gave less than was asked for.
#[test]
fn interrupted_and_short_reads_are_continued() {
    let whole = log();
    let short = whole.copy();
    short.shorten_reads();
    assert_eq!(check_content(&read(&short).unwrap()), 15);
    assert_eq!(open(&short, &options(1 << 20)).unwrap().1.torn_bytes, 21);
    at_every_look(&whole, ErrorKind::Interrupted, |disk| {
        match read(disk).and_then(|reader| read_all(&reader)) {
            Ok(()) => {}
            Err(error) => assert!(is_io(&error), "{error}"), // Opening and listing are not repeated.
        }
    });
}
