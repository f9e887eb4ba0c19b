//! No more memory, inbox or disk than there may be: whoever is one too many hears so at once.

use crate::gate::GatedDisk;
use crate::harness::{PATIENCE, batch, begin, cursor, lines, open, options, push, texts, wait_until};
use crate::memory_disk::{Fault, MemoryDisk};
use ingest::spool::{InboxOptions, PushError};
use std::io::ErrorKind;
use std::time::Duration;

#[test]
fn batches_that_wait_are_bounded_in_number() {
    let disk = GatedDisk::new(MemoryDisk::default());
    let inbox = open(&disk, InboxOptions { waiting_batches: 2, ..options() }).unwrap();
    disk.close();
    let mut taken = vec![begin(&inbox, batch(&inbox, &["at work"], None).unwrap()).unwrap()];
    wait_until("the writer is at work", || disk.is_waited_for());
    for text in ["one", "two"] {
        taken.push(begin(&inbox, batch(&inbox, &[text], None).unwrap()).unwrap());
    }
    let refused = begin(&inbox, batch(&inbox, &["three"], None).unwrap()).unwrap_err();
    assert_eq!(refused, PushError::Busy { waiting: 2 });
    disk.open();
    taken.into_iter().for_each(|outcome| drop(outcome.recv_timeout(PATIENCE).unwrap().unwrap()));
    assert_eq!(push(&inbox, &["three"], None).unwrap().accepted, 1);
    assert_eq!(texts(&disk.disk), ["at work", "one", "two", "three"]);
}

#[test]
fn batches_in_memory_are_bounded_in_bytes() {
    let disk = MemoryDisk::default();
    let inbox = open(&disk, InboxOptions { waiting_bytes: 1000, ..options() }).unwrap();
    let text = "x".repeat(800);
    let mut slow = inbox.batch();
    slow.write(lines(&[&text]).as_bytes()).unwrap();
    assert!(!inbox.pressed_within(PATIENCE));
    // A document that has not ended counts too.
    assert!(matches!(inbox.batch().write(text.as_bytes()).unwrap_err(), PushError::Busy { .. }));
    assert!(inbox.pressed_within(PATIENCE) && !inbox.pressed_within(Duration::ZERO));
    drop(slow);
    assert_eq!(push(&inbox, &[&text], None).unwrap().accepted, 1, "what was given up makes room");
    assert_eq!(push(&inbox, &[&text], None).unwrap().accepted, 1, "what is written makes room");
}

#[test]
fn a_batch_has_a_limit() {
    let disk = MemoryDisk::default();
    let inbox = open(&disk, InboxOptions { batch_bytes: 200, ..options() }).unwrap();
    let refused = PushError::TooLarge { limit_bytes: 200 };
    assert_eq!(inbox.batch().write(&[b' '; 201]).unwrap_err(), refused, "as it comes");
    assert_eq!(push(&inbox, &["x", "x", "x", "x", "x", "x"], None).unwrap_err(), refused, "as it is written");
    assert_eq!(push(&inbox, &["x"], None).unwrap().accepted, 1);
}

/// What is acknowledged is not too large to be read again, however long its key.
#[test]
fn a_document_is_small_enough_with_its_commit_or_is_refused() {
    const LINE_LIMIT_BYTES: usize = 8 << 20;
    let disk = MemoryDisk::default();
    let inbox = open(&disk, options()).unwrap();
    let key = "\"".repeat(255);
    let mut refused = 0;
    for less in [100, 400, 700, 1000, 20_000] {
        let text = "x".repeat(LINE_LIMIT_BYTES - less);
        refused += push(&inbox, &[&text], Some(&format!("{key}{less}"))).unwrap().rejected_total;
    }
    let files = disk.files(std::path::Path::new(crate::harness::DIR));
    let lines = files.values().flat_map(|content| content.split_inclusive(|byte| *byte == b'\n'));
    assert_eq!(lines.map(|line| assert!(line.len() <= LINE_LIMIT_BYTES)).count() as u64 + refused, 5);
}

#[test]
fn an_inbox_that_nobody_empties_is_full() {
    let disk = MemoryDisk::default();
    let inbox = open(&disk, InboxOptions { spooled_bytes: 1000, file_bytes: 300, ..options() }).unwrap();
    let mut accepted = 0;
    let refused = loop {
        match push(&inbox, &["a text of some length"], None) {
            Ok(receipt) => accepted += receipt.accepted,
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, PushError::Full { spooled_bytes: 600..=1000, limit_bytes: 1000 }), "{refused}");
    assert!(accepted > 3);
    // More room, and then less than is there.
    inbox.set_limit(2000);
    assert_eq!((push(&inbox, &["one more"], None).unwrap().accepted, inbox.status().limit_bytes), (1, 2000));
    inbox.set_limit(1000);
    assert!(matches!(push(&inbox, &["one more"], None).unwrap_err(), PushError::Full { limit_bytes: 1000, .. }));
    let last = crate::harness::names(&disk).pop().unwrap();
    inbox.durable(&cursor("en", &last, 0));
    assert_eq!(push(&inbox, &["another"], None).unwrap().accepted, 1);
}

#[test]
fn a_full_disk_is_not_the_end() {
    let disk = MemoryDisk::default();
    let inbox = open(&disk, options()).unwrap();
    push(&inbox, &["first"], None).unwrap();
    disk.leave_room(Some(500));
    let long = "long ".repeat(200);
    let refused = push(&inbox, &[&long], Some("long")).unwrap_err();
    assert!(matches!(refused, PushError::NoSpace { .. }), "{refused}");
    assert_eq!(push(&inbox, &["short"], None).unwrap().accepted, 1, "what fits is taken");
    disk.leave_room(None);
    assert!(!push(&inbox, &[&long], Some("long")).unwrap().duplicate, "its key was not taken");
    assert_eq!(texts(&disk), ["first", "short", &long]);
    drop(inbox);
    drop(open(&disk.after_crash(|| false), options()).unwrap());
    assert_eq!(texts(&disk.after_crash(|| false)), ["first", "short", &long]);
}

/// One operation after another fails once for want of space: nothing is lost, nothing is twice, and no restart is needed.
#[test]
fn no_space_at_any_operation() {
    let script: Vec<String> = (0..12).map(|number| format!("text number {number}")).collect();
    let options = || InboxOptions { file_bytes: 500, ..options() };
    for operation in 0.. {
        let disk = MemoryDisk::default();
        let inbox = open(&disk, options()).unwrap();
        disk.fail_at(disk.operations() + operation, Fault::Error(ErrorKind::StorageFull));
        let mut refused = 0;
        for text in &script {
            while let Err(error) = push(&inbox, &[text], Some(text)) {
                assert!(matches!(error, PushError::NoSpace { .. } | PushError::Failed(_)), "{error}");
                refused += 1;
                if matches!(error, PushError::Failed(_)) {
                    break;
                }
            }
        }
        assert!(refused <= 1, "operation {operation}: {refused}");
        assert_eq!(texts(&disk), script, "operation {operation}");
        if disk.fault_pending() {
            assert!(operation > 20, "the script reaches few operations: {operation}");
            break;
        }
    }
}
