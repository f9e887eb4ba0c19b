//! The same key twice.

use crate::harness::{cursor, names, open, options, push, texts, wait_until};
use crate::memory_disk::MemoryDisk;
use ingest::spool::{Inbox, InboxOptions};

/// Whether `key` is known.
fn is_known(inbox: &Inbox, key: &str) -> bool {
    push(inbox, &[key], Some(key)).unwrap().duplicate
}

#[test]
fn a_key_is_known_for_as_long_as_the_window_says() {
    let disk = MemoryDisk::default();
    let options = || InboxOptions { keys: 3, file_bytes: 400, ..options() };
    let mut inbox = open(&disk, options()).unwrap();
    for key in ["1", "2", "3", "4"] {
        assert!(!is_known(&inbox, key));
    }
    for round in 0..2 {
        assert!(["2", "3", "4"].iter().all(|key| is_known(&inbox, key)), "{round}");
        drop(inbox);
        inbox = open(&disk, options()).unwrap();
    }
    assert!(!is_known(&inbox, "1"), "it was forgotten");
    assert!(!is_known(&inbox, "2"), "and so was the next one, for it");
    assert!(["4", "1", "2"].iter().all(|key| is_known(&inbox, key)));
    assert_eq!(texts(&disk), ["1", "2", "3", "4", "1", "2"]);
    assert!(names(&disk).len() > 1);
}

#[test]
fn keys_outlive_their_documents() {
    let disk = MemoryDisk::default();
    let options = || InboxOptions { file_bytes: 300, ..options() };
    let inbox = open(&disk, options()).unwrap();
    let keys: Vec<String> = (0..20).map(|number| format!("key {number}")).collect();
    keys.iter().for_each(|key| assert!(!is_known(&inbox, key)));
    let last = names(&disk).pop().unwrap();
    inbox.durable(&cursor("en", &last, 0));
    wait_until("the other files are gone", || names(&disk) == [last.clone()]);
    assert!(keys.iter().all(|key| is_known(&inbox, key)));
    drop(inbox);
    let inbox = open(&disk, options()).unwrap();
    assert!(keys.iter().all(|key| is_known(&inbox, key)));
    assert!(!is_known(&inbox, "another"));
}

#[test]
fn without_a_key_the_same_documents_are_others() {
    let disk = MemoryDisk::default();
    let inbox = open(&disk, options()).unwrap();
    for _ in 0..2 {
        assert_eq!(push(&inbox, &["text"], None).unwrap().accepted, 1);
    }
    assert_eq!(texts(&disk), ["text", "text"]);
}
