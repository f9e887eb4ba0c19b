//! A fault at every operation: what was durable stays, what stays is a prefix, and the log goes on.

use crate::changes::survivors;
use crate::memory_disk::{Fault, MemoryDisk};
use crate::sample::{
    DIR, block, check_content, durable, identity, open, options, read, sealed, segments, unsealed, verify,
};
use prometheus::Registry;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;
use store::{DurablePosition, LogWriter, SequenceNumber, StoreError};

/// So small that the log below has several segments.
const SEGMENT_BYTES: u64 = 4000;

/// Blocks that end there; `true`: and are synced.
const SCRIPT: [(u64, bool); 9] =
    [(3, true), (5, false), (9, true), (12, false), (13, false), (17, true), (20, true), (21, false), (24, true)];

/// Runs the script from where the log is. Notes what it was told is durable.
fn run(disk: &MemoryDisk, told: &mut DurablePosition) -> Result<(), StoreError> {
    let (mut log, recovery) = open(disk, &options(SEGMENT_BYTES))?;
    *told = recovery.durable.max(*told);
    for (end, sync) in SCRIPT {
        if SequenceNumber(end) <= log.next() {
            continue;
        }
        log.append(&block(log.next().0..end))?;
        if sync {
            *told = log.sync()?;
        }
    }
    log.seal()?;
    *told = durable(24);
    Ok(())
}

fn operations() -> u64 {
    let disk = MemoryDisk::default();
    run(&disk, &mut durable(0)).unwrap();
    disk.operations()
}

/// The log must hold all that was durable, and finish the script.
fn survives(disk: &MemoryDisk, told: DurablePosition, what: &str) {
    if let Ok(reader) = read(disk) {
        assert!(reader.durable() >= told, "{what}: a reader sees {} of {told}", reader.durable());
        check_content(&reader);
    }
    let (log, recovery) = open(disk, &options(SEGMENT_BYTES)).unwrap_or_else(|error| panic!("{what}: {error}"));
    assert!(recovery.durable >= told, "{what}: {} of {told} are left", recovery.durable);
    assert_eq!(recovery.footers_lost, 0, "{what}: a segment was begun before the one before it was whole");
    check_content(&log.reader());
    drop(log);
    run(disk, &mut durable(0)).unwrap_or_else(|error| panic!("{what}: {error}"));
    let verification = verify(disk).unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_eq!((verification.entries, verification.torn), (24, None), "{what}");
    assert_eq!(check_content(&read(disk).unwrap()), 24);
}

/// What survives of the unsynced changes: nothing, all, or an arbitrary choice.
fn choices() -> impl Iterator<Item = (u64, impl FnMut() -> bool)> {
    (0..8_u64).map(|seed| (seed, survivors(seed)))
}

#[test]
fn a_crash_at_any_operation_loses_nothing_durable() {
    for operation in 0..operations() {
        for (seed, choose) in choices() {
            let disk = MemoryDisk::default();
            disk.fail_at(operation, Fault::Crash);
            let mut told = durable(0);
            let _ = run(&disk, &mut told); // What comes last may fail unnoticed.
            assert!(disk.crashed());
            survives(&disk.after_crash(choose), told, &format!("crash at operation {operation}, choice {seed}"));
        }
    }
}

/// The second crash hits recovery itself.
#[test]
fn a_crash_during_recovery_loses_nothing_durable() {
    for first in (0..operations()).step_by(3) {
        for second in 0..12 {
            for (seed, mut choose) in choices().skip(2) {
                let disk = MemoryDisk::default();
                disk.fail_at(first, Fault::Crash);
                let mut told = durable(0);
                let _ = run(&disk, &mut told); // What comes last may fail unnoticed.
                assert!(disk.crashed());
                let disk = disk.after_crash(&mut choose);
                disk.fail_at(second, Fault::Crash);
                let _ = run(&disk, &mut told); // What comes last may fail unnoticed.
                assert!(disk.crashed() || told == durable(24), "little was left to do");
                survives(&disk.after_crash(choose), told, &format!("crashes at {first} and {second}, choice {seed}"));
            }
        }
    }
}

/// After an error the process ends and another one opens the log; the machine goes on.
#[test]
fn an_error_at_any_operation_loses_nothing_durable() {
    for operation in 0..operations() {
        for kind in [ErrorKind::StorageFull, ErrorKind::Other] {
            let disk = MemoryDisk::default();
            disk.fail_at(operation, Fault::Error(kind));
            let mut told = durable(0);
            match run(&disk, &mut told) {
                Err(error) => assert_eq!(error.is_no_space(), kind == ErrorKind::StorageFull, "{error}"),
                Ok(()) => assert_eq!(told, durable(24)), // It hit the hint for other processes.
            }
            survives(&disk, told, &format!("{kind} at operation {operation}"));
            let lost = disk.after_crash(|| false);
            survives(&lost, told, &format!("{kind} at operation {operation}, later a crash"));
        }
    }
}

/// A process ends after an error, and leaves in the page cache what is not durable; what the next one calls durable must be.
#[test]
fn a_crash_after_an_error_loses_nothing_durable() {
    let operations = operations();
    for first in 0..operations {
        for second in (0..12).chain((12..operations).step_by(7)) {
            for fault in [Fault::Error(ErrorKind::Other), Fault::HalfSync] {
                let disk = MemoryDisk::default();
                disk.fail_at(first, fault);
                let mut told = durable(0);
                let _ = run(&disk, &mut told);
                disk.fail_at(disk.operations() + second, Fault::Crash);
                let _ = run(&disk, &mut told);
                let what = format!("{fault:?} at operation {first}, a crash {second} operations later");
                survives(&disk.after_crash(|| false), told, &what);
                survives(&disk.after_crash(survivors(2 + first + second)), told, &what);
            }
        }
    }
}

/// An interrupted system call is none.
#[test]
fn interrupted_writes_are_repeated() {
    for operation in 0..operations() {
        let disk = MemoryDisk::default();
        disk.fail_at(operation, Fault::Error(ErrorKind::Interrupted));
        let mut told = durable(0);
        let _ = run(&disk, &mut told); // Only writes are repeated.
        survives(&disk, told, &format!("operation {operation} is interrupted"));
    }
    let disk = MemoryDisk::default();
    let (mut log, _) = open(&disk, &options(1 << 20)).unwrap();
    disk.fail_at(disk.operations() + 1, Fault::Error(ErrorKind::Interrupted)); // There is room, and it is written.
    log.append(&block(0..3)).unwrap();
    assert!(!disk.fault_pending());
    log.sync().unwrap();
    assert_eq!(check_content(&log.reader()), 3);
}

/// Recovery cuts a tail only when the copy of it is durable.
#[test]
fn a_torn_tail_is_never_lost() {
    let tail = b"the remains of a write that did not finish".repeat(3);
    for (first, torn_header) in [(unsealed(&[5]), false), (sealed(&[5]), true)] {
        let path = segments(&first).remove(0);
        let whole = first.files(Path::new(DIR)).remove(&path).unwrap();
        match torn_header {
            false => first.put(&path, [&whole[..], &tail].concat()),
            true => first.put(&path.with_file_name("00000000000000000005.seg"), [&[0; 40], &tail[..]].concat()),
        }
        let finished = first.copy();
        open(&finished, &options(1 << 20)).unwrap();
        for operation in 0..=finished.operations() {
            for (seed, choose) in choices() {
                let disk = first.copy();
                disk.fail_at(operation, Fault::Crash);
                let opened = open(&disk, &options(1 << 20));
                assert_eq!(opened.is_ok(), operation >= finished.operations() - 1); // the last one is the hint
                let files = disk.after_crash(choose).files(Path::new(DIR));
                let kept = files.values().any(|content| content.ends_with(&tail));
                assert!(kept, "crash at operation {operation}, choice {seed}");
            }
        }
    }
}

#[test]
fn a_short_write_is_continued() {
    for operation in 0..operations() {
        let disk = MemoryDisk::default();
        disk.fail_at(operation, Fault::ShortWrite);
        run(&disk, &mut durable(0)).unwrap();
        assert_eq!(check_content(&read(&disk).unwrap()), 24);
    }
}

type Action = fn(&mut LogWriter) -> Result<(), StoreError>;

/// The operation in which `act` on a log of one durable and one appended block does its work.
fn poisoned(kind: ErrorKind, act: Action) -> (MemoryDisk, LogWriter, StoreError) {
    let disk = MemoryDisk::default();
    let (mut log, _) = open(&disk, &options(1 << 20)).unwrap();
    log.append(&block(0..3)).unwrap();
    log.sync().unwrap();
    log.append(&block(3..5)).unwrap();
    disk.fail_at(disk.operations(), Fault::Error(kind));
    let error = act(&mut log).unwrap_err();
    (disk, log, error)
}

#[test]
fn after_a_failure_the_writer_stops_for_good() {
    let actions: [Action; 2] = [|log| log.sync().map(|_| ()), |log| log.append(&block(5..9))];
    for kind in [ErrorKind::StorageFull, ErrorKind::Other, ErrorKind::WriteZero] {
        for act in actions {
            let (disk, mut log, first) = poisoned(kind, act);
            assert_eq!(first.is_no_space(), kind == ErrorKind::StorageFull);
            let operations = disk.operations();
            let reader = log.reader();
            let later = [
                log.append(&block(5..9)).unwrap_err(),
                log.append(&[]).unwrap_err(),
                log.sync().map(|_| ()).unwrap_err(),
                log.seal().unwrap_err(),
            ];
            for error in later {
                assert_eq!(error.to_string(), first.to_string());
            }
            assert_eq!(disk.operations(), operations, "nothing is written any more");
            assert_eq!(check_content(&reader), 3, "what was durable can be read");
            assert!(open(&disk, &options(1 << 20)).unwrap().1.durable >= durable(3));
        }
    }
}

/// A real file system that is full says so in the same words.
#[test]
fn no_space_says_what_to_do() {
    let (_, _, error) = poisoned(ErrorKind::StorageFull, |log| log.append(&block(5..9)));
    let message = error.to_string();
    assert!(message.contains("no space left on the device while appending to /state/log/0000"), "{message}");
    assert!(message.contains("free some space"), "{message}");
}

/// One writer at a time, even without the daemon's own lock.
#[test]
fn a_second_writer_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let open = || LogWriter::open(folder.path(), &identity(), &options(1 << 20), &Registry::new());
    let (first, _) = open().unwrap();
    assert!(matches!(open(), Err(StoreError::InUse { .. })));
    drop(first);
    open().unwrap();
}

/// A metric that is registered twice is an error, and nothing is created.
#[test]
fn metrics_move() {
    let disk = MemoryDisk::default();
    let registry = Registry::new();
    let open = |registry: &Registry| {
        LogWriter::open_on(Arc::new(disk.clone()), "/state/log".as_ref(), &identity(), &options(1 << 20), registry)
    };
    let (mut log, _) = open(&registry).unwrap();
    assert!(matches!(open(&registry), Err(StoreError::Metrics { .. })));
    log.append(&block(0..5)).unwrap();
    let value = |name: &str| {
        let families = registry.gather();
        let family = families.iter().find(|family| family.name() == name).unwrap();
        let metric = &family.get_metric()[0];
        metric.get_gauge().get_value()
            + metric.get_counter().get_value()
            + metric.get_histogram().get_sample_count() as f64
    };
    assert_eq!(value("mergedistill_log_appended_sequence"), 5.0);
    assert_eq!(value("mergedistill_log_durable_sequence"), 0.0);
    log.sync().unwrap();
    assert_eq!(value("mergedistill_log_durable_sequence"), 5.0);
    assert_eq!(value("mergedistill_log_appended_entries_total"), 5.0);
    assert_eq!(value("mergedistill_log_fsync_seconds"), 1.0);
    assert_eq!(value("mergedistill_log_torn_bytes_total"), 0.0);
    assert!(value("mergedistill_log_bytes_total") > 500.0);
}
