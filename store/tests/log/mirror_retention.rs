//! Removing the oldest segments of a mirror while it goes on growing: what goes, what stays, and a fault at every operation.

use crate::changes::survivors;
use crate::memory_disk::{Fault, MemoryDisk};
use crate::mirroring::{content, mirror, pieces};
use crate::retention::{ENDS, check, need, nothing};
use crate::sample::{DIR, read, sealed, segments, verify};
use prometheus::Registry;
use std::io::ErrorKind;
use std::path::Path;
use store::log::{LogMirror, Need, Piece, Taken};
use store::{SequenceNumber, StoreError};

/// The pieces of a log with a segment for each of `ENDS`.
fn all_pieces() -> Vec<Piece> {
    let source = read(&sealed(&ENDS)).unwrap();
    pieces(&source, source.first_place(), 1)
}

#[test]
fn the_oldest_segments_of_a_mirror_go_and_it_goes_on() {
    let all = all_pieces();
    let copy = MemoryDisk::default();
    let mut mirror = mirror(&copy).unwrap();
    assert!(matches!(mirror.reader(), Err(StoreError::NoLog { .. })));
    assert_eq!(mirror.retain(&nothing(), None).unwrap().removed_segments, 0, "there is nothing");
    let (early, late) = all.split_at(all.iter().position(|piece| piece.at.segment == SequenceNumber(28)).unwrap());
    early.iter().for_each(|piece| assert_eq!(mirror.take(piece).unwrap(), Taken::New));
    let (inside, outside) = (mirror.reader().unwrap(), read(&copy).unwrap());
    let pass = mirror.retain(&nothing(), Some(&need(17))).unwrap();
    assert_eq!((pass.removed_segments, pass.held_back.unwrap().segments), (3, 1));
    let [mut seen, mut known] = [0, 0];
    for piece in late {
        outside.refresh().unwrap();
        for reader in [&inside, &outside] {
            check(&copy, reader, 16);
            seen = reader.durable().end().0;
        }
        assert_eq!(seen, mirror.durable().end().0, "readers in the process know at once");
        assert_eq!(mirror.take(piece).unwrap(), Taken::New);
        known += u64::from(mirror.take(&early[0]).unwrap() == Taken::Known);
    }
    assert_eq!(known, late.len() as u64, "what was removed does not come back");
    drop(mirror);
    // After a restart too.
    let mut mirror = self::mirror(&copy).unwrap();
    check(&copy, &mirror.reader().unwrap(), 16);
    assert_eq!(mirror.retain(&nothing(), None).unwrap().removed_segments, 3, "never the last");
    check(&copy, &mirror.reader().unwrap(), 33);
    let whole = sealed(&ENDS);
    assert!(content(&copy).iter().all(|(path, bytes)| content(&whole)[path] == *bytes));
    drop(mirror);
    verify(&copy).unwrap();
}

/// What a counter or gauge says.
fn value(registry: &Registry, name: &str) -> f64 {
    let families = registry.gather();
    let metric = &families.iter().find(|family| family.name() == name).unwrap().get_metric()[0];
    metric.get_counter().get_value() + metric.get_gauge().get_value()
}

#[test]
fn a_mirror_shows_metrics() {
    let (copy, registry) = (MemoryDisk::default(), Registry::new());
    let mut mirror = mirror(&copy).unwrap();
    let value = |name| value(&registry, name);
    let all = all_pieces();
    mirror.take(&all[0]).unwrap();
    mirror.register(&registry).unwrap();
    all[1..].iter().for_each(|piece| assert_eq!(mirror.take(piece).unwrap(), Taken::New));
    let bytes: usize = all.iter().map(|piece| piece.bytes.len()).sum();
    assert_eq!(value("mergedistill_log_bytes_total"), bytes as f64);
    assert_eq!(value("mergedistill_log_size_bytes"), bytes as f64);
    assert_eq!(value("mergedistill_log_appended_entries_total"), 40.0);
    assert_eq!(value("mergedistill_log_durable_sequence"), 40.0);
    mirror.retain(&nothing(), Some(&need(10))).unwrap();
    assert_eq!(value("mergedistill_log_removed_segments_total"), 2.0);
    assert_eq!(value("mergedistill_log_held_back_segments"), 4.0);
    assert_eq!(value("mergedistill_log_begin_sequence"), 9.0);
    mirror.keeps_all();
    assert_eq!(value("mergedistill_log_held_back_segments"), 0.0);
    drop(mirror);
    // What was there before is not counted as appended.
    let again = Registry::new();
    self::mirror(&copy).unwrap().register(&again).unwrap();
    assert_eq!(self::value(&again, "mergedistill_log_appended_entries_total"), 0.0);
}

// --- faults --------------------------------------------------------------------------------------------------------

/// Does `what` again for as long as the disk is full.
fn patiently<T>(mut what: impl FnMut() -> Result<T, StoreError>) -> Result<T, StoreError> {
    loop {
        match what() {
            Err(error) if error.is_no_space() => {}
            done => return done,
        }
    }
}

/// What a retention pass at this end may not remove.
fn needed_at(end: u64) -> Option<Need> {
    match end {
        16 => Some(need(9)),
        33 => Some(need(28)),
        _ => None,
    }
}

/// Takes all pieces, and removes in between, from where the mirror is.
fn run(disk: &MemoryDisk, all: &[Piece]) -> Result<LogMirror, StoreError> {
    let mut mirror = patiently(|| mirror(disk))?;
    for piece in all {
        let taken = patiently(|| mirror.take(piece))?;
        assert_ne!(taken, Taken::Gap);
        if let Some(need) = needed_at(mirror.durable().end().0) {
            match mirror.retain(&nothing(), Some(&need)) {
                Err(error) if error.is_no_space() => {} // The next pass does it.
                pass => drop(pass?),
            }
            let reader = mirror.reader()?;
            if !disk.crashed() {
                check(disk, &reader, reader.begin().0);
            }
        }
    }
    patiently(|| mirror.retain(&nothing(), None))?;
    Ok(mirror)
}

fn operations(all: &[Piece]) -> u64 {
    let disk = MemoryDisk::default();
    run(&disk, all).unwrap();
    disk.operations()
}

/// It has all that it was told to keep, and the bytes of what it mirrors.
fn is_whole(disk: &MemoryDisk, mirror: LogMirror, what: &str) {
    check(disk, &mirror.reader().unwrap(), 33);
    drop(mirror);
    let whole = content(&sealed(&ENDS));
    assert!(content(disk).iter().all(|(path, bytes)| whole[path] == *bytes), "{what}");
    assert_eq!(segments(disk).len(), 1, "{what}");
    verify(disk).unwrap_or_else(|error| panic!("{what}: {error}"));
}

#[test]
fn a_crash_at_any_operation_loses_nothing() {
    let all = all_pieces();
    for operation in 0..operations(&all) {
        for seed in 0..4 {
            let disk = MemoryDisk::default();
            disk.fail_at(operation, Fault::Crash);
            let _ = run(&disk, &all);
            assert!(disk.crashed());
            let (disk, what) = (disk.after_crash(survivors(seed)), format!("crash at {operation}, choice {seed}"));
            // Whether or not anything is to be removed from now on.
            let mirror = self::mirror(&disk).unwrap_or_else(|error| panic!("{what}: {error}"));
            if let Ok(reader) = mirror.reader() {
                check(&disk, &reader, reader.begin().0);
                let first = Path::new(DIR).join(format!("{:020}.seg", reader.begin().0));
                assert_eq!(segments(&disk)[0], first, "{what}: not finished");
            }
            drop(mirror);
            let mirror = run(&disk, &all).unwrap_or_else(|error| panic!("{what}: {error}"));
            is_whole(&disk, mirror, &what);
        }
    }
}

#[test]
fn a_disk_that_is_full_for_an_instant_at_any_operation_stops_nothing() {
    let all = all_pieces();
    for operation in 0..operations(&all) {
        let (disk, what) = (MemoryDisk::default(), format!("full at operation {operation}"));
        disk.fail_at(operation, Fault::Error(ErrorKind::StorageFull));
        let mirror = run(&disk, &all).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert!(!disk.fault_pending(), "{what}");
        is_whole(&disk, mirror, &what);
    }
}

#[test]
fn a_full_disk_changes_nothing_and_is_told() {
    let all = all_pieces();
    let (disk, registry) = (MemoryDisk::default(), Registry::new());
    let mut mirror = mirror(&disk).unwrap();
    mirror.register(&registry).unwrap();
    let waiting = || value(&registry, "mergedistill_log_waiting_for_room");
    for piece in &all {
        let before = content(&disk);
        disk.leave_room(Some(piece.bytes.len() as u64 / 2));
        for _ in 0..2 {
            let error = mirror.take(piece).unwrap_err();
            assert!(error.is_no_space(), "{error}");
            assert_eq!(waiting(), 1.0);
            assert!(content(&disk) == before);
        }
        disk.leave_room(None);
        assert_eq!(mirror.take(piece).unwrap(), Taken::New);
        assert_eq!(waiting(), 0.0);
    }
    disk.leave_room(Some(0));
    let error = mirror.retain(&nothing(), None).unwrap_err();
    assert!(error.is_no_space(), "{error}");
    check(&disk, &mirror.reader().unwrap(), 0);
    disk.leave_room(None);
    mirror.retain(&nothing(), None).unwrap();
    is_whole(&disk, mirror, "with room");
    assert!(disk.files(Path::new(DIR)).keys().all(|path| path.extension().is_none_or(|end| end != "tmp")));
}
