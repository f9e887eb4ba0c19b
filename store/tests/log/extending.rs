//! The same log with the copies of one teacher more.

use crate::memory_disk::MemoryDisk;
use crate::sample::{
    append_blocks, block, check_same, durable, identity, open, open_as, options, sealed, textless, unsealed,
};
use crate::tools::{Folder, damage_block, entries};
use prometheus::Registry;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use store::log::{ExtendedLog, Need, Pass, Retention, Texts};
use store::{
    ComputedIn, Entry, Identity, LogOptions, LogReader, LogWriter, Payload, Precision, SequenceNumber, StoreError,
    TeacherEntry,
};

fn later() -> TeacherEntry {
    TeacherEntry { name: "later".to_owned(), ..identity().teachers[0].clone() }
}

fn extended(folder: &Folder) -> Result<ExtendedLog, StoreError> {
    ExtendedLog::open(&folder.path("log"), &folder.path("out"), later(), BTreeMap::new(), 1 << 20, ComputedIn::Float32)
}

/// Adds a copy of teacher 3 to every record that has text.
fn extend(entries: &mut [Entry]) {
    for entry in entries {
        if let Payload::Record(record) = &mut entry.payload
            && record.text.is_some()
        {
            let copy = store::MaskedCopy { teacher: 3, ..record.copies[0].clone() };
            record.copies.push(copy);
        }
    }
}

fn write(log: ExtendedLog) -> Result<(u64, u64), StoreError> {
    log.write(|entries| {
        extend(entries);
        Ok(())
    })
}

fn expected(range: std::ops::Range<u64>) -> Vec<Entry> {
    let mut entries = block(range);
    extend(&mut entries);
    entries
}

fn with_later() -> Identity {
    let mut identity = identity();
    identity.teachers.push(later());
    identity
}

#[test]
fn entries_numbers_and_blocks_stay() {
    let folder = Folder::new();
    let source = folder.put("log", &sealed(&[5, 9, 30]));
    let log = extended(&folder).unwrap();
    assert_eq!((log.identity(), log.teacher(), log.top_k()), (&with_later(), 3, 3));
    assert_eq!(log.range(), (SequenceNumber(0), SequenceNumber(30)));
    assert!(!folder.path("out").exists(), "nothing is written before it is asked for");
    let (segments, bytes) = write(log).unwrap();
    assert_eq!(entries(&folder.path("out")), expected(0..30));
    let (new, old) = (store::stat(&folder.path("out")).unwrap(), store::stat(&source).unwrap());
    assert_eq!((new.blocks, new.segments, new.bytes), (old.blocks, segments, bytes));
    assert_eq!((new.sources, new.text_bytes), (old.sources, old.text_bytes));
    assert_eq!(*LogReader::open(&folder.path("out")).unwrap().identity(), with_later());
}

#[test]
fn settings_may_be_others() {
    let folder = Folder::new();
    let source = folder.put("log", &sealed(&[5, 9]));
    let setting = |value: &str| [("run.seed".to_owned(), value.to_owned())].into();
    let open = |value: &str| {
        ExtendedLog::open(&source, &folder.path("out"), later(), setting(value), 1 << 20, ComputedIn::Float32)
    };
    write(open("1").unwrap()).unwrap();
    assert_eq!(LogReader::open(&folder.path("out")).unwrap().identity().settings["run.seed"], "1");
    assert!(open("1").is_ok());
    let failure = open("2").unwrap_err();
    assert!(failure.to_string().contains("run.seed: 1 in the log, 2"), "{failure}");
}

/// The labels that were there are not rounded again.
#[test]
fn compact_labels_stay_as_they_are() {
    let folder = Folder::new();
    let disk = MemoryDisk::default();
    let compact = LogOptions { precision: Precision::Compact, ..options(1 << 20) };
    let (mut log, _) = open(&disk, &compact).unwrap();
    append_blocks(&mut log, &[5, 9, 30]);
    log.seal().unwrap();
    let once = entries(&folder.put("log", &disk));
    write(extended(&folder).unwrap()).unwrap();
    for ((mut new, old), whole) in entries(&folder.path("out")).into_iter().zip(once).zip(expected(0..30)) {
        check_same(&new, &whole, Precision::Compact);
        if let Payload::Record(record) = &mut new.payload {
            record.copies.retain(|copy| copy.teacher != 3);
        }
        assert_eq!(new, old);
    }
}

/// What fails in any block leaves a whole log, and goes on there.
#[test]
fn it_goes_on_where_it_was_interrupted() {
    for failing in 0..4 {
        let folder = Folder::new();
        folder.put("log", &unsealed(&[5, 9, 12, 30]));
        let mut blocks = 0;
        let failed = extended(&folder).unwrap().write(|entries| {
            extend(entries);
            blocks += 1;
            if blocks > failing { Err(StoreError::NoLog { dir: "stopped".into() }) } else { Ok(()) }
        });
        assert!(matches!(failed, Err(StoreError::NoLog { .. })), "{failed:?}");
        let end = [0, 5, 9, 12][failing];
        assert_eq!(entries(&folder.path("out")), expected(0..end));
        let log = extended(&folder).unwrap();
        assert_eq!(log.range(), (SequenceNumber(end), SequenceNumber(30)));
        write(log).unwrap();
        assert_eq!(entries(&folder.path("out")), expected(0..30));
    }
}

#[test]
fn what_is_complete_stays_as_it_is_and_goes_on_with_the_log() {
    let folder = Folder::new();
    let source = folder.path("log");
    let (mut log, _) = LogWriter::open(&source, &identity(), &options(1 << 20), &Registry::new()).unwrap();
    append_blocks(&mut log, &[5, 9]);
    log.append(&block(9..12)).unwrap(); // Not durable: a live log is copied up to where it is.
    let first = write(extended(&folder).unwrap()).unwrap();
    assert_eq!(entries(&folder.path("out")), expected(0..9));
    let again = extended(&folder).unwrap();
    assert_eq!(again.range(), (SequenceNumber(9), SequenceNumber(9)));
    assert_eq!(write(again).unwrap(), first);
    log.sync().unwrap();
    append_blocks(&mut log, &[20]);
    write(extended(&folder).unwrap()).unwrap();
    assert_eq!(entries(&folder.path("out")), expected(0..20));
}

#[test]
fn a_run_goes_on_with_it_if_it_has_the_teacher() {
    let folder = Folder::new();
    folder.put("log", &sealed(&[5, 9, 30]));
    write(extended(&folder).unwrap()).unwrap();
    let open =
        |identity: &Identity| LogWriter::open(&folder.path("out"), identity, &options(1 << 20), &Registry::new());
    assert!(matches!(open(&identity()).map(|_| ()), Err(StoreError::IdentityMismatch { .. })));
    let (mut log, _) = open(&with_later()).unwrap();
    append_blocks(&mut log, &[35]);
    log.seal().unwrap();
    assert_eq!(entries(&folder.path("out"))[30..], block(30..35));
    let failure = extended(&folder).unwrap_err();
    assert!(failure.to_string().contains("a run has gone on with it"), "{failure}");
}

#[test]
fn another_folder_than_its_own_is_refused() {
    let refused = |put: &dyn Fn(&Folder), words: &str| {
        let folder = Folder::new();
        folder.put("log", &sealed(&[5, 9]));
        put(&folder);
        let failure = extended(&folder).unwrap_err();
        assert!(matches!(failure, StoreError::OutputUnusable { .. }), "{failure}");
        assert!(failure.to_string().contains(words), "{failure}");
    };
    let log_of = |entries: &[Entry]| {
        let disk = MemoryDisk::default();
        let (mut log, _) = open_as(&disk, &with_later(), &options(1 << 20)).unwrap();
        log.append(entries).unwrap();
        log.seal().unwrap();
        disk
    };
    refused(&|folder| drop(folder.put("out", &sealed(&[5]))), "other teachers or settings");
    refused(&|folder| drop(folder.put("out", &log_of(&block(0..20)))), "a run has gone on with it");
    let mut other = expected(0..5);
    other[4].cursor.characters_available = 7;
    refused(&|folder| drop(folder.put("out", &log_of(&other))), "not made from that log");
    let mut other = expected(0..5);
    other[1] = textless(other[1].clone());
    refused(&|folder| drop(folder.put("out", &log_of(&other))), "not made from that log");
    refused(
        &|folder| {
            fs::create_dir(folder.path("out")).unwrap();
            fs::write(folder.path("out/notes.txt"), "").unwrap();
        },
        "no log",
    );

    let folder = Folder::new();
    let source = folder.put("log", &sealed(&[5]));
    let twice = ExtendedLog::open(
        &source,
        &folder.path("out"),
        identity().teachers[1].clone(),
        BTreeMap::new(),
        1,
        ComputedIn::Float32,
    )
    .unwrap_err();
    assert!(matches!(twice, StoreError::Selection { .. }) && twice.to_string().contains("`de` already"), "{twice}");
}

#[test]
fn damage_is_told_and_what_was_written_stays() {
    let folder = Folder::new();
    let source = folder.put("log", &sealed(&[5, 9, 30]));
    damage_block(&source, 1);
    let failure = write(extended(&folder).unwrap()).unwrap_err();
    assert!(failure.is_corruption(), "{failure}");
    assert_eq!(entries(&folder.path("out")), expected(0..5));
}

/// A log that begins after 0 is extended from there, under the same numbers.
#[test]
fn what_retention_removed_is_not_there() {
    let folder = Folder::new();
    let source = folder.path("log");
    let (mut log, _) = LogWriter::open(&source, &identity(), &options(1), &Registry::new()).unwrap();
    append_blocks(&mut log, &[5, 9, 13, 20]);
    let retain = |log: &mut LogWriter, from| {
        let need = Need::default();
        need.set(SequenceNumber(from), "");
        let retention = Retention { bytes: 1, age: None, held_out: folder.path("holdout") };
        log.retain(&retention, Some(&need)).unwrap();
    };
    retain(&mut log, 9);
    let mut blocks = 0;
    let stopped = extended(&folder).unwrap().write(|entries| {
        extend(entries);
        blocks += 1;
        if blocks > 1 { Err(StoreError::NoLog { dir: "stopped".into() }) } else { Ok(()) }
    });
    assert!(stopped.is_err());
    assert_eq!(entries(&folder.path("out")), expected(9..13));
    write(extended(&folder).unwrap()).unwrap();
    assert_eq!(entries(&folder.path("out")), expected(9..20));
    let cursors = |dir: &Path| LogReader::open(dir).unwrap().cursors(durable(20)).unwrap();
    assert_eq!(cursors(&folder.path("out")), cursors(&source));

    append_blocks(&mut log, &[25, 30]);
    retain(&mut log, 25);
    let failure = extended(&folder).unwrap_err();
    assert!(matches!(failure, StoreError::Removed { .. }), "{failure}");
}

#[test]
fn texts_are_counted() {
    let folder = Folder::new();
    folder.put("log", &sealed(&[5, 9, 30]));
    let log = extended(&folder).unwrap();
    for languages in
        [BTreeSet::from(["de".to_owned()]), BTreeSet::from(["en".to_owned(), "de".to_owned()]), BTreeSet::new()]
    {
        let mut counted = Texts::default();
        for entry in block(0..30) {
            match &entry.payload {
                Payload::Record(record) if !languages.contains(&*record.language) => {}
                Payload::Record(record) if record.text.is_some() => counted.with += 1,
                Payload::Record(_) => counted.without += 1,
                Payload::Skip(_) | Payload::End => {}
            }
        }
        assert_eq!(log.texts(&languages, &Pass::default()).unwrap(), counted);
        assert_eq!(counted.without > 0, !languages.is_empty());
    }
}
