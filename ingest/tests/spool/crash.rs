//! A crash at every operation: what was acknowledged stays, once, and the inbox goes on.

use crate::changes::survivors;
use crate::harness::{DIR, cursor, names, open, options, push, texts};
use crate::memory_disk::{Fault, MemoryDisk};
use ingest::IngestError;
use ingest::spool::{Inbox, InboxOptions, PushError};
use std::io::ErrorKind;
use std::path::Path;

/// So small that the script below fills several files.
const FILE_BYTES: u64 = 500;
const BATCHES: usize = 10;

fn small() -> InboxOptions {
    InboxOptions { file_bytes: FILE_BYTES, ..options() }
}

fn batch_texts(number: usize) -> [String; 2] {
    ["a", "b"].map(|part| format!("{number} {part}"))
}

/// Pushes batch after batch, each with its key, from the first that is not known to be durable. Returns whether all are.
fn run(inbox: &Inbox, acknowledged: &mut usize) -> Result<(), PushError> {
    while *acknowledged < BATCHES {
        let [a, b] = batch_texts(*acknowledged);
        push(inbox, &[&a, &b], Some(&acknowledged.to_string()))?;
        *acknowledged += 1;
        if *acknowledged == 7 {
            let files: Vec<String> = inbox_files(inbox);
            inbox.durable(&cursor("en", &files[files.len() / 2], 0));
        }
    }
    Ok(())
}

fn inbox_files(inbox: &Inbox) -> Vec<String> {
    use ingest::feed::Feed;
    let mut files = Vec::new();
    while let Some(part) = inbox.following(files.last().map(String::as_str)) {
        files.push(part.name.to_string());
    }
    files
}

/// All texts from the first one in the inbox on, each once.
fn check_texts(disk: &MemoryDisk, what: &str) {
    let expected: Vec<_> = (0..BATCHES).flat_map(batch_texts).collect();
    let found = texts(disk);
    assert!(!found.is_empty() && expected.ends_with(&found), "{what}: {found:?}");
    let first: u64 = names(disk)[0].trim_end_matches(".jsonl").parse().unwrap();
    assert_eq!(first as usize, expected.len() - found.len(), "{what}: numbers go on");
}

fn operations() -> u64 {
    let disk = MemoryDisk::default();
    let inbox = open(&disk, small()).unwrap();
    run(&inbox, &mut 0).unwrap();
    inbox.close();
    check_texts(&disk, "without a crash");
    assert!(names(&disk).len() > 2);
    disk.operations()
}

/// The client knows what was acknowledged, and sends the rest again.
fn recovers(disk: &MemoryDisk, mut acknowledged: usize, what: &str) {
    let known = acknowledged;
    let inbox = open(disk, small()).unwrap_or_else(|error| panic!("{what}: {error}"));
    // As if the last answer had been lost as well.
    acknowledged = acknowledged.saturating_sub(1);
    run(&inbox, &mut acknowledged).unwrap_or_else(|error| panic!("{what}: {error}"));
    for number in 0..BATCHES {
        let receipt = push(&inbox, &["again"], Some(&number.to_string())).unwrap();
        assert!(receipt.duplicate, "{what}: batch {number} of {known} acknowledged ones is not known any more");
    }
    inbox.close();
    check_texts(disk, what);
}

#[test]
fn whatever_survives_a_crash_at_any_operation() {
    for operation in 0..operations() {
        for seed in 0..12 {
            let what = format!("operation {operation}, seed {seed}");
            let disk = MemoryDisk::default();
            disk.fail_at(operation, Fault::Crash);
            let mut acknowledged = 0;
            if let Ok(inbox) = open(&disk, small()) {
                let _ = run(&inbox, &mut acknowledged);
                inbox.close();
            }
            let left = disk.after_crash(survivors(seed));
            recovers(&left, acknowledged, &what);
        }
    }
}

/// After any other failure than a full disk nothing is taken, and a new start goes on from what was acknowledged.
#[test]
fn after_a_failed_write_or_sync_nothing_is_taken_until_a_new_start() {
    for fault in [Fault::Error(ErrorKind::Other), Fault::HalfSync, Fault::ShortWrite] {
        for operation in 0..operations() {
            let what = format!("{fault:?} at operation {operation}");
            let disk = MemoryDisk::default();
            disk.fail_at(operation, fault);
            let mut acknowledged = 0;
            if let Ok(inbox) = open(&disk, small()) {
                if let Err(error) = run(&inbox, &mut acknowledged) {
                    assert!(matches!(error, PushError::Failed(_)), "{what}: {error}");
                    assert_eq!(push(&inbox, &["x"], None).unwrap_err(), error, "{what}");
                    assert_ne!(fault, Fault::ShortWrite, "{what}");
                }
                inbox.close();
            }
            recovers(&disk.after_crash(survivors(operation)), acknowledged, &what);
            recovers(&disk.copy(), acknowledged, &what);
        }
    }
}

fn filled() -> MemoryDisk {
    let disk = MemoryDisk::default();
    let inbox = open(&disk, small()).unwrap();
    let mut acknowledged = 0;
    while acknowledged < 6 {
        let [a, b] = batch_texts(acknowledged);
        push(&inbox, &[&a, &b], Some(&acknowledged.to_string())).unwrap();
        acknowledged += 1;
    }
    inbox.close();
    disk
}

fn refused(disk: &MemoryDisk) -> String {
    match open(disk, small()) {
        Err(error @ IngestError::Inbox { .. }) => error.to_string(),
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("it was opened"),
    }
}

#[test]
fn damage_and_loss_are_named() {
    let disk = filled();
    let files = names(&disk);
    let last = Path::new(DIR).join(files.last().unwrap());
    let content = disk.files(Path::new(DIR))[&last].clone();
    assert_eq!(content.iter().filter(|byte| **byte == b'\n').count(), 6, "three batches in the last file");

    let damaged = disk.copy();
    let mut bytes = content.clone();
    bytes[12] ^= 1;
    damaged.put(&last, bytes);
    let error = refused(&damaged);
    assert!(error.contains(files.last().unwrap()) && error.contains("byte 0"), "{error}");

    let keys = Path::new(DIR).join("keys");
    let damaged = disk.copy();
    damaged.put(&keys, vec![0; 100]);
    assert!(refused(&damaged).contains("keys"));

    let missing = disk.copy();
    missing.delete(&last);
    let before = Path::new(DIR).join(&files[files.len() - 2]);
    let content = disk.files(Path::new(DIR))[&before].clone();
    missing.put(&before, content[..content.len() - 1].to_vec());
    let error = refused(&missing);
    assert!(error.contains(&files[files.len() - 2]), "{error}");

    let without = disk.copy();
    without.delete(&keys);
    drop(open(&without, small()).unwrap());
    assert_eq!(texts(&without), texts(&disk));
}

#[test]
fn a_torn_batch_is_cut_off_whole() {
    let disk = filled();
    let files = names(&disk);
    let last = Path::new(DIR).join(files.last().unwrap());
    let content = disk.files(Path::new(DIR))[&last].clone();
    // Where the last batch begins.
    let batch = content[..content.len() - 1].windows(3).rposition(|end| end == b"}}\n").unwrap() + 3;
    for length in batch..content.len() {
        let torn = disk.copy();
        torn.put(&last, content[..length].to_vec());
        let inbox = open(&torn, small()).unwrap();
        assert_eq!(torn.files(Path::new(DIR))[&last].len(), batch, "cut at {length}");
        assert!(!push(&inbox, &["5 a", "5 b"], Some("5")).unwrap().duplicate, "its key went with it");
        inbox.close();
        assert_eq!(texts(&torn), texts(&disk));
    }
}
