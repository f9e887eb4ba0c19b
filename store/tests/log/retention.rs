//! Removing the oldest segments: what goes, what stays, and a fault at every operation.

use crate::changes::survivors;
use crate::memory_disk::{Fault, MemoryDisk};
use crate::sample::{
    DIR, append_blocks, block, durable, entry, identity, open, open_as, options, read, sealed, segments, textless,
    verify,
};
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use store::log::{HeldOutLog, Need, Retention};
use store::{Entry, LogOptions, LogReader, LogWriter, Payload, SequenceNumber, StoreError};

const HELD_OUT: &str = "/state/holdout";

/// Blocks of a log with a segment for each. Entries 3, 14, 25, 36 and 47 are held out.
pub(crate) const ENDS: [u64; 7] = [5, 9, 16, 20, 28, 33, 40];

fn retention(bytes: u64, age: Option<Duration>) -> Retention {
    Retention { bytes, age, held_out: HELD_OUT.into() }
}

/// Nothing but the segment that grows is kept.
pub(crate) fn nothing() -> Retention {
    retention(1, None)
}

pub(crate) fn need(from: u64) -> Need {
    let need = Need::default();
    need.set(SequenceNumber(from), "a test");
    need
}

/// A log that is being written, with a segment for each of `ENDS`; the last one grows.
fn growing() -> (MemoryDisk, LogWriter) {
    let disk = MemoryDisk::default();
    let mut log = open(&disk, &options(1)).unwrap().0;
    append_blocks(&mut log, &ENDS);
    (disk, log)
}

fn retained_file() -> PathBuf {
    Path::new(DIR).join("RETAINED")
}

/// The held-out records of both languages: those that were kept, then those in the log.
fn held_out(disk: &MemoryDisk, reader: &LogReader) -> Vec<Entry> {
    let (begin, end) = (reader.begin(), reader.durable());
    let kept = HeldOutLog::open_on(Arc::new(disk.clone()), Path::new(HELD_OUT)).unwrap();
    let mut found = BTreeMap::new();
    let mut add = |entry: &Entry| assert!(found.insert(entry.sequence, entry.clone()).is_none(), "twice");
    for language in ["en", "de"] {
        let mut from = SequenceNumber(0);
        while let Some(record) = kept.as_ref().and_then(|kept| kept.next_record(language, from, begin).unwrap()) {
            add(&record.entry);
            from = record.after;
        }
        from = SequenceNumber(0);
        while let Some(entry) = reader.next_record(language, true, from, end).unwrap() {
            add(&entry);
            from = entry.sequence.next();
        }
    }
    found.into_values().collect()
}

/// The log must begin at `begin`, say so of everything before, hold the rest, and have lost no held-out record.
#[track_caller]
pub(crate) fn check(disk: &MemoryDisk, reader: &LogReader, begin: u64) {
    assert_eq!(reader.begin(), SequenceNumber(begin));
    let end = reader.durable().end();
    for sequence in 0..begin {
        let error = reader.entry(SequenceNumber(sequence)).unwrap_err();
        assert!(matches!(error, StoreError::Removed { .. }) && !error.is_corruption(), "{error}");
    }
    for sequence in begin..end.0 {
        assert_eq!(*reader.entry(SequenceNumber(sequence)).unwrap(), entry(sequence));
    }
    let expected: Vec<_> = (0..end.0).map(entry).filter(is_held_out).collect();
    let found = held_out(disk, reader);
    let payloads = |entries: &[Entry]| entries.iter().map(|e| (e.sequence, e.payload.clone())).collect::<Vec<_>>();
    assert_eq!(payloads(&found), payloads(&expected));
    assert_eq!(reader.cursors(reader.durable()).unwrap(), cursors(end.0), "cursors of removed segments are kept");
}

fn cursors(end: u64) -> BTreeMap<Arc<str>, store::SourceCursor> {
    (0..end).map(|sequence| (entry(sequence).cursor.source.clone(), entry(sequence).cursor)).collect()
}

fn is_held_out(entry: &Entry) -> bool {
    matches!(&entry.payload, Payload::Record(record) if record.held_out)
}

#[test]
fn the_oldest_segments_go_when_the_log_is_too_large() {
    let (disk, mut log) = growing();
    let sizes: Vec<u64> = segments(&disk).iter().map(|path| disk.files(Path::new(DIR))[path].len() as u64).collect();
    let last = |count: usize| sizes[sizes.len() - count..].iter().sum::<u64>();
    assert_eq!(log.retain(&retention(0, None), None).unwrap().removed_segments, 0, "no limit");
    assert_eq!(log.retain(&retention(last(7), None), None).unwrap().removed_segments, 0);
    let pass = log.retain(&retention(last(7) - 1, None), None).unwrap();
    assert_eq!((pass.removed_segments, pass.removed_bytes, pass.begin), (1, sizes[0], SequenceNumber(5)));
    check(&disk, &log.reader(), 5);
    assert_eq!(log.retain(&retention(last(4), None), None).unwrap().removed_segments, 2);
    check(&disk, &log.reader(), 16);
    check(&disk, &read(&disk).unwrap(), 16);
    assert_eq!(log.retain(&nothing(), None).unwrap().removed_segments, 3, "never the one that grows");
    assert_eq!(log.retain(&nothing(), None).unwrap().removed_segments, 0);
    assert_eq!(segments(&disk).len(), 1);

    // It goes on, now and after a restart.
    append_blocks(&mut log, &[45]);
    check(&disk, &log.reader(), 33);
    drop(log);
    let mut log = open(&disk, &options(1)).unwrap().0;
    check(&disk, &log.reader(), 33);
    append_blocks(&mut log, &[50]);
    log.retain(&nothing(), None).unwrap();
    log.seal().unwrap();
    let reader = read(&disk).unwrap();
    check(&disk, &reader, 45);
    assert_eq!(verify(&disk).unwrap().entries, 5);
}

#[test]
fn old_segments_go_by_the_time_of_their_files() {
    let (disk, mut log) = growing();
    let hour = Duration::from_secs(3600);
    let files = segments(&disk);
    for (file, hours) in files.iter().zip([9, 8, 2, 7, 1, 0, 0]) {
        disk.set_modified(file, SystemTime::now() - hours * hour);
    }
    assert_eq!(log.retain(&retention(0, Some(10 * hour)), None).unwrap().removed_segments, 0);
    // The third one keeps the fourth: only the beginning of a log can go.
    assert_eq!(log.retain(&retention(0, Some(6 * hour)), None).unwrap().removed_segments, 2);
    check(&disk, &log.reader(), 9);
    disk.set_modified(&files[6], SystemTime::now() - 99 * hour);
    disk.set_modified(&files[2], SystemTime::now() + hour);
    assert_eq!(log.retain(&retention(0, Some(hour)), None).unwrap().removed_segments, 0, "a time to come");
}

#[test]
fn what_is_needed_stays() {
    let (disk, mut log) = growing();
    let held = |log: &mut LogWriter, from: u64| log.retain(&nothing(), Some(&need(from))).unwrap();
    let pass = held(&mut log, 0);
    let back = pass.held_back.unwrap();
    assert_eq!((pass.removed_segments, &back.segment, back.segments), (0, &segments(&disk)[0], 6));
    assert_eq!((back.needed.from, &*back.needed.why), (SequenceNumber(0), "a test"));
    assert_eq!(held(&mut log, 4).removed_segments, 0);
    assert_eq!(held(&mut log, 15).removed_segments, 2);
    check(&disk, &log.reader(), 9);
    assert_eq!(held(&mut log, 16).held_back.unwrap().segments, 3);
    check(&disk, &log.reader(), 16);
    let pass = held(&mut log, 1000);
    assert_eq!((pass.removed_segments, pass.held_back), (3, None));
}

#[test]
fn a_need_is_extended_and_set() {
    let need = Need::default();
    assert_eq!(need.get().from, SequenceNumber(0), "everything");
    need.set(SequenceNumber(20), "one");
    need.include(SequenceNumber(30), "another");
    assert_eq!((need.get().from, &*need.get().why), (SequenceNumber(20), "one"));
    need.clone().include(SequenceNumber(10), "another");
    assert_eq!((need.get().from, &*need.get().why), (SequenceNumber(10), "another"));
}

#[test]
fn a_need_counts_those_who_joined_it_while_they_live() {
    let need = need(20);
    let other = Need::default();
    need.join(&other);
    assert_eq!(need.clone().get().from, SequenceNumber(0), "at first the other needs everything");
    other.set(SequenceNumber(10), "another");
    assert_eq!((need.get().from, &*need.get().why), (SequenceNumber(10), "another"));
    need.set(SequenceNumber(5), "one");
    assert_eq!((need.get().from, other.get().from), (SequenceNumber(5), SequenceNumber(10)));
    need.set(SequenceNumber(30), "one");
    let clone = other.clone();
    drop(other);
    assert_eq!(need.get().from, SequenceNumber(10), "a clone is left");
    drop(clone);
    assert_eq!(need.get().from, SequenceNumber(30));
}

#[test]
fn readers_keep_working_while_segments_go() {
    let (disk, mut log) = growing();
    let (inside, outside) = (log.reader(), read(&disk).unwrap());
    let both = [&inside, &outside];
    // Entry 17 is cached, entry 1 is not.
    both.iter().for_each(|reader| assert_eq!(*reader.entry(SequenceNumber(17)).unwrap(), entry(17)));
    log.retain(&nothing(), Some(&need(20))).unwrap();
    for reader in both {
        let removed = |sequence: u64| match reader.entry(SequenceNumber(sequence)) {
            Err(StoreError::Removed { sequence: asked, begin }) => (asked.0, begin.0) == (sequence, 20),
            _ => false,
        };
        assert!(removed(1));
        reader.refresh().unwrap();
        assert!(removed(17) && removed(19));
        check(&disk, reader, 20);
        let first = reader.next_record("en", false, SequenceNumber(0), durable(40)).unwrap().unwrap();
        assert!(first.sequence >= SequenceNumber(20));
        let below = reader.cursors(durable(19)).unwrap_err();
        assert!(matches!(below, StoreError::Removed { .. }), "{below}");
        assert_eq!(reader.cursors(durable(20)).unwrap(), cursors(20));
        assert!(reader.bytes_between(SequenceNumber(0), SequenceNumber(40)) > 0);
    }
    // One that has not looked for so long that all it knew is gone.
    append_blocks(&mut log, &[44, 50]);
    log.retain(&nothing(), None).unwrap();
    outside.refresh().unwrap();
    check(&disk, &outside, 44);
}

#[test]
fn held_out_records_are_kept_as_they_were() {
    let (disk, mut log) = growing();
    log.retain(&nothing(), None).unwrap();
    let kept = LogReader::open_on(Arc::new(disk.clone()), Path::new(HELD_OUT)).unwrap();
    assert_eq!(kept.durable(), durable(3), "it is an ordinary log");
    let verified = store::log::verify_on(Arc::new(disk.clone()), Path::new(HELD_OUT)).unwrap();
    assert_eq!(verified.entries, 3);
    // Teachers may be appended meanwhile.
    drop(log);
    let mut grown = identity();
    let mut teacher = grown.teachers[0].clone();
    teacher.name = "new".to_owned();
    grown.teachers.push(teacher);
    let mut log = open_as(&disk, &grown, &options(1)).unwrap().0;
    append_blocks(&mut log, &[50]);
    log.retain(&nothing(), None).unwrap();
    check(&disk, &log.reader(), 40);
}

/// Their texts too, if texts are no longer kept when their segments are removed.
#[test]
fn texts_of_held_out_records_are_kept_when_others_are_not() {
    let (disk, log) = growing();
    drop(log);
    let (mut log, _) = open(&disk, &LogOptions { keep_text: false, ..options(1) }).unwrap();
    log.append(&[textless(entry(40))]).unwrap();
    log.sync().unwrap();
    log.retain(&nothing(), None).unwrap();
    assert_eq!(log.reader().begin(), SequenceNumber(40));
    let is_held_out = |entry: &Entry| matches!(&entry.payload, Payload::Record(record) if record.held_out);
    let expected: Vec<_> = block(0..40).into_iter().filter(is_held_out).collect();
    let payloads = |entries: &[Entry]| entries.iter().map(|entry| entry.payload.clone()).collect::<Vec<_>>();
    let has_text = |entry: &Entry| matches!(&entry.payload, Payload::Record(record) if record.text.is_some());
    assert!(expected.iter().any(has_text));
    assert_eq!(payloads(&held_out(&disk, &log.reader())), payloads(&expected));
}

// --- rows of the decision table ------------------------------------------------------------------------------------

/// Writer, reader and verify must all call it corrupt, in this file, and change nothing.
#[track_caller]
fn is_corrupt(disk: &MemoryDisk, path: &Path) {
    let before = disk.files(Path::new(DIR));
    let failures = [
        open(disk, &options(1)).map(|_| ()).unwrap_err(),
        read(disk).map(|_| ()).unwrap_err(),
        verify(disk).map(|_| ()).unwrap_err(),
    ];
    for failure in failures {
        let StoreError::Corrupt { segment, offset: 0, .. } = &failure else { panic!("{failure}") };
        assert_eq!(segment, path, "{failure}");
    }
    let mut after = disk.files(Path::new(DIR));
    after.retain(|path, _| before.contains_key(path));
    assert_eq!(before, after);
}

/// A log that begins at 16 and ends at 40, stopped, and its segments.
fn retained() -> (MemoryDisk, Vec<PathBuf>) {
    let (disk, mut log) = growing();
    log.retain(&nothing(), Some(&need(16))).unwrap();
    log.seal().unwrap();
    let files = segments(&disk);
    (disk.copy(), files)
}

#[test]
fn a_log_that_begins_where_retention_says_is_whole() {
    let (disk, files) = retained();
    assert_eq!(files.len(), 4);
    check(&disk, &read(&disk).unwrap(), 16);
    let (log, recovery) = open(&disk, &options(1)).unwrap();
    assert_eq!((recovery.removed_segments, recovery.torn), (0, None));
    check(&disk, &log.reader(), 16);
    // Without the file it is a log whose beginning is missing.
    drop(log);
    disk.delete(&retained_file());
    is_corrupt(&disk, &files[0]);
}

#[test]
fn an_interrupted_removal_is_finished() {
    let whole = sealed(&ENDS);
    let (disk, _) = retained();
    for path in &segments(&whole)[1..3] {
        disk.put(path, whole.files(Path::new(DIR)).remove(path).unwrap());
    }
    // Whatever they hold by now.
    disk.put(&segments(&whole)[0], b"the remains of a segment".to_vec());
    check(&disk, &read(&disk).unwrap(), 16);
    assert_eq!(verify(&disk).unwrap().entries, 24);
    let (log, recovery) = open(&disk, &options(1)).unwrap();
    assert_eq!(recovery.removed_segments, 3);
    assert!(segments(&disk).iter().all(|path| *path >= segments(&whole)[3]));
    check(&disk, &log.reader(), 16);
}

#[test]
fn a_missing_first_segment_is_corrupt() {
    let (disk, files) = retained();
    disk.delete(&files[0]);
    is_corrupt(&disk, &files[0]);
    files[1..].iter().for_each(|path| disk.delete(path));
    is_corrupt(&disk, &files[0]);
}

#[test]
fn another_first_segment_is_corrupt() {
    let (disk, files) = retained();
    // The same place in a log with other blocks before.
    let other = MemoryDisk::default();
    append_blocks(&mut open(&other, &options(1)).unwrap().0, &[7, 16, 20]);
    disk.put(&files[0], other.files(Path::new(DIR)).remove(&files[0]).unwrap());
    is_corrupt(&disk, &files[0]);
}

#[test]
fn a_first_segment_without_header_is_corrupt() {
    let (disk, mut log) = growing();
    log.retain(&nothing(), None).unwrap();
    let disk = disk.copy();
    let path = segments(&disk).remove(0);
    for content in [Vec::new(), vec![0; 300], b"MDlogseg".to_vec()] {
        disk.put(&path, content);
        is_corrupt(&disk, &path);
    }
}

#[test]
fn damage_to_what_retention_says_is_corrupt() {
    let (disk, _) = retained();
    let whole = disk.files(Path::new(DIR)).remove(&retained_file()).unwrap();
    for bit in 0..8 * whole.len() {
        let mut bytes = whole.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        disk.put(&retained_file(), bytes);
        is_corrupt(&disk, &retained_file());
    }
    for bytes in [Vec::new(), whole[..19].to_vec(), [&whole[..], &[0]].concat(), vec![0; 20]] {
        disk.put(&retained_file(), bytes);
        is_corrupt(&disk, &retained_file());
    }
}

#[test]
fn what_was_never_finished_is_removed() {
    let (disk, _) = retained();
    let unfinished = Path::new(DIR).join("RETAINED.tmp");
    disk.put(&unfinished, b"MDrt".to_vec());
    check(&disk, &read(&disk).unwrap(), 16);
    open(&disk, &options(1)).unwrap();
    assert!(!disk.files(Path::new(DIR)).contains_key(&unfinished));
}

// --- faults --------------------------------------------------------------------------------------------------------

/// Appends and removes, from where the log is.
fn run(disk: &MemoryDisk) -> Result<(), StoreError> {
    let mut log = open(disk, &options(1))?.0;
    for end in ENDS {
        if log.next() < SequenceNumber(end) {
            log.append(&block(log.next().0..end))?;
            log.sync()?;
        }
        match end {
            16 => drop(log.retain(&nothing(), Some(&need(9)))?),
            33 => drop(log.retain(&nothing(), Some(&need(28)))?),
            40 => drop(log.retain(&nothing(), None)?),
            _ => {}
        }
    }
    log.seal()
}

fn operations() -> u64 {
    let disk = MemoryDisk::default();
    run(&disk).unwrap();
    disk.operations()
}

/// Whatever is left must be a log without gap, with all held-out records once, and finish the script.
fn survives(disk: &MemoryDisk, what: &str) {
    if let Ok(reader) = read(disk) {
        check(disk, &reader, reader.begin().0);
    }
    let (log, _) = open(disk, &options(1)).unwrap_or_else(|error| panic!("{what}: {error}"));
    check(disk, &log.reader(), log.reader().begin().0);
    let first = segments(disk).remove(0);
    assert_eq!(first, Path::new(DIR).join(format!("{:020}.seg", log.reader().begin().0)), "{what}: not finished");
    drop(log);
    run(disk).unwrap_or_else(|error| panic!("{what}: {error}"));
    let reader = read(disk).unwrap();
    check(disk, &reader, reader.begin().0);
    assert!(reader.begin() >= SequenceNumber(33), "{what}");
    verify(disk).unwrap_or_else(|error| panic!("{what}: {error}"));
}

#[test]
fn a_crash_at_any_operation_loses_nothing() {
    for operation in 0..operations() {
        for seed in 0..6 {
            let disk = MemoryDisk::default();
            disk.fail_at(operation, Fault::Crash);
            let _ = run(&disk);
            assert!(disk.crashed());
            survives(&disk.after_crash(survivors(seed)), &format!("crash at operation {operation}, choice {seed}"));
        }
    }
}

#[test]
fn a_second_crash_loses_nothing() {
    for first in (0..operations()).step_by(4) {
        for second in (0..30).step_by(3) {
            let seed = 2 + (first + second) % 4;
            let disk = MemoryDisk::default();
            disk.fail_at(first, Fault::Crash);
            let _ = run(&disk);
            let disk = disk.after_crash(survivors(seed));
            disk.fail_at(second, Fault::Crash);
            let _ = run(&disk);
            let what = format!("crashes at {first} and {second}, choice {seed}");
            survives(&disk.after_crash(survivors(seed + 1)), &what);
        }
    }
}

#[test]
fn an_error_at_any_operation_loses_nothing() {
    for operation in 0..operations() {
        for kind in [ErrorKind::StorageFull, ErrorKind::Other] {
            let disk = MemoryDisk::default();
            disk.fail_at(operation, Fault::Error(kind));
            let _ = run(&disk);
            survives(&disk, &format!("{kind} at operation {operation}"));
            survives(&disk.after_crash(|| false), &format!("{kind} at operation {operation}, later a crash"));
        }
    }
}

/// What was told to be removed is gone, and a crash brings at most one segment back that was not.
#[test]
fn a_removal_is_durable() {
    let (whole, log) = growing();
    let sealed_before = segments(&whole).len();
    drop(log);
    let start = |disk: &MemoryDisk| open(disk, &options(1)).unwrap().0;
    let disk = whole.copy();
    let mut log = start(&disk);
    let before = disk.operations();
    log.retain(&nothing(), None).unwrap();
    let after = disk.operations();
    let left = segments(&disk.after_crash(|| false)).len();
    assert_eq!(left, 1);
    for operation in before..after {
        let disk = whole.copy();
        let mut log = start(&disk);
        disk.fail_at(operation, Fault::Crash);
        let _ = log.retain(&nothing(), None);
        let (seen, durable) = (segments(&disk).len(), segments(&disk.after_crash(|| false)).len());
        assert!(seen <= durable && durable <= seen + 1 && durable <= sealed_before, "operation {operation}");
    }
}

/// A failed removal is finished by a later pass; until then readers are told the truth.
#[test]
fn a_full_disk_is_no_failure_of_the_log() {
    let (disk, mut log) = growing();
    disk.leave_room(Some(0));
    let error = log.retain(&nothing(), None).unwrap_err();
    assert!(error.is_no_space(), "{error}");
    check(&disk, &log.reader(), 0);
    let full = log.append(&block(40..45)).unwrap_err();
    assert!(full.is_no_room() && full.is_no_space(), "{full}");
    assert!(full.to_string().contains("free some space and it goes on"), "{full}");
    assert_eq!(segments(&disk).len(), 7, "no remains of a next segment");
    log.sync().unwrap();
    disk.leave_room(None);
    log.retain(&nothing(), None).unwrap();
    append_blocks(&mut log, &[45]);
    check(&disk, &log.reader(), 33);
}
