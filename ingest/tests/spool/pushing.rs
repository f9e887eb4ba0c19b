//! What is pushed, in which form, by how many at once.

use crate::gate::{GatedDisk, Misfortune};
use crate::harness::{PATIENCE, batch, begin, open, options, push, texts, wait_until};
use crate::memory_disk::MemoryDisk;
use ingest::feed::Feed;
use ingest::spool::{InboxOptions, PushError, Receipt};
use ingest::{Format, FormatOptions, TextDocuments};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

fn whole(receipt: &Receipt) -> (u64, bool) {
    assert_eq!(receipt.rejected_total, receipt.rejected.len() as u64);
    (receipt.accepted, receipt.duplicate)
}

/// Pushes `body` in pieces, and compares the lines in the inbox and what was rejected: line and reason.
fn check(options: InboxOptions, body: &[u8], lines: &[serde_json::Value], rejected: &[(u64, &str)]) {
    for step in [1, 7, 4096] {
        let disk = MemoryDisk::default();
        let inbox = open(&disk, options.clone()).unwrap();
        let mut batch = inbox.batch();
        body.chunks(step).for_each(|chunk| batch.write(chunk).unwrap());
        let receipt = begin(&inbox, batch.finish(None).unwrap()).unwrap().recv_timeout(PATIENCE).unwrap().unwrap();
        assert_eq!(whole(&receipt), (lines.len() as u64, false));
        let told: Vec<_> = receipt.rejected.iter().map(|document| (document.line, document.reason)).collect();
        assert_eq!(told, rejected);
        let files = disk.files(Path::new(crate::harness::DIR));
        let content = files.values().flat_map(|content| content.split_inclusive(|byte| *byte == b'\n'));
        let found: Vec<serde_json::Value> = content.map(|line| serde_json::from_slice(line).unwrap()).collect();
        assert_eq!(found.len(), lines.len());
        for (found, expected) in found.iter().zip(lines) {
            assert!(found["arrived"].as_u64().unwrap() > 1_600_000_000_000);
            for field in ["text", "id", "language"] {
                assert_eq!(found.get(field), expected.get(field), "{field}");
            }
        }
    }
}

#[test]
fn json_lines_are_written_under_names_of_our_own() {
    let format = FormatOptions {
        text_field: "body".to_owned(),
        id_field: Some("nr".to_owned()),
        language_field: Some("lang".to_owned()),
        ..Format::JsonLines.into()
    };
    let languages = BTreeSet::from(["en".to_owned(), "de".to_owned()]);
    let body = r#"{"body":"Good \"morning\".","nr":7,"lang":"en","other":[1,{"body":2}]}

{"lang":"de","body":"Guten Tag.\nWie geht's?","nr":"a"}
{"body":"Bonjour.","lang":"fr"}
{"body":"Hello."}
{"body":"  \n","lang":"en"}
{"body":"a\u0000b","lang":"en"}
[1]
{"body":7,"lang":"en"}
{"body":"The last one has no line end.","lang":"en"}"#;
    check(
        InboxOptions { languages, ..InboxOptions::new(vec!["x:en".to_owned()], format) },
        body.as_bytes(),
        &[
            serde_json::json!({"text": "Good \"morning\".", "id": "7", "language": "en"}),
            serde_json::json!({"text": "Guten Tag.\nWie geht's?", "id": "a", "language": "de"}),
            serde_json::json!({"text": "The last one has no line end.", "language": "en"}),
        ],
        &[
            (4, "unknown_language"),
            (5, "missing_language"),
            (6, "no_text"),
            (7, "nul_byte"),
            (8, "malformed_json"),
            (9, "missing_text"),
        ],
    );
}

#[test]
fn text_is_cut_as_the_corpus_says() {
    let text = |documents| InboxOptions::new(vec!["en".to_owned()], FormatOptions { documents, ..Format::Text.into() });
    let body = b"one\ntwo\n\n\nthree\n\n\xFF\n\nfour";
    let lines = |texts: &[&str]| texts.iter().map(|text| serde_json::json!({ "text": text })).collect::<Vec<_>>();
    check(text(TextDocuments::EmptyLine), body, &lines(&["one\ntwo", "three", "four"]), &[(7, "not_utf8")]);
    check(text(TextDocuments::Line), body, &lines(&["one", "two", "three", "four"]), &[(7, "not_utf8")]);
    check(text(TextDocuments::File), b"one\n\ntwo\n", &lines(&["one\n\ntwo"]), &[]);
    check(text(TextDocuments::File), b"", &[], &[]);
}

#[test]
fn a_document_that_no_reader_would_take_is_rejected() {
    let disk = MemoryDisk::default();
    let inbox = open(&disk, InboxOptions::new(vec!["en".to_owned()], Format::Text.into())).unwrap();
    let mut batch = inbox.batch();
    // As JSON each of its bytes takes two.
    batch.write(&[vec![b'"'; 5 << 20], b"\n\nsmall".to_vec()].concat()).unwrap();
    let receipt = begin(&inbox, batch.finish(None).unwrap()).unwrap().recv_timeout(PATIENCE).unwrap().unwrap();
    assert_eq!((receipt.accepted, receipt.rejected[0].line, receipt.rejected[0].reason), (1, 1, "too_large"));
    assert_eq!(texts(&disk), ["small"]);
}

#[test]
fn many_rejected_documents_are_counted_and_the_first_are_named() {
    let disk = MemoryDisk::default();
    let inbox = open(&disk, options()).unwrap();
    let mut batch = inbox.batch();
    batch.write("{}\n".repeat(1000).as_bytes()).unwrap();
    let receipt = begin(&inbox, batch.finish(None).unwrap()).unwrap().recv_timeout(PATIENCE).unwrap().unwrap();
    assert_eq!((receipt.accepted, receipt.rejected_total, receipt.rejected.len()), (0, 1000, 100));
    assert!(texts(&disk).is_empty());
}

#[test]
fn many_clients_push_at_once() {
    let disk = MemoryDisk::default();
    let inbox = open(&disk, InboxOptions { file_bytes: 4000, ..options() }).unwrap();
    std::thread::scope(|scope| {
        for client in 0..16 {
            let inbox = &inbox;
            scope.spawn(move || {
                for number in 0..25 {
                    let (first, second) = (format!("{client} {number} a"), format!("{client} {number} b"));
                    let key = format!("{client} {number}");
                    assert_eq!(whole(&push(inbox, &[&first, &second], Some(&key)).unwrap()), (2, false));
                    if number % 3 == 0 {
                        assert_eq!(whole(&push(inbox, &[&first, &second], Some(&key)).unwrap()), (0, true));
                    }
                }
            });
        }
    });
    let texts = texts(&disk);
    assert_eq!(texts.iter().collect::<BTreeSet<_>>().len(), 16 * 50);
    assert_eq!(texts.len(), 16 * 50);
    let mut of_clients: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    texts.iter().for_each(|text| of_clients.entry(text.split(' ').next().unwrap()).or_default().push(text));
    for (client, texts) in of_clients {
        let expected: Vec<_> =
            (0..25).flat_map(|number| ["a", "b"].map(|part| format!("{client} {number} {part}"))).collect();
        assert_eq!(texts, expected, "in the order of the client");
    }
    assert!(
        texts.chunks(2).all(|pair| pair[0].trim_end_matches('a') == pair[1].trim_end_matches('b')),
        "a batch is whole"
    );
    let characters = texts.iter().map(|text| text.len() as u64).sum::<u64>();
    assert_eq!((inbox.arrived().documents, inbox.characters_available(None)), (800, characters));
}

#[test]
fn one_sync_serves_all_that_wait_and_nobody_hears_before_it() {
    let disk = GatedDisk::new(MemoryDisk::default());
    let inbox = open(&disk, options()).unwrap();
    let before = disk.syncs();
    disk.close();
    let first = begin(&inbox, batch(&inbox, &["first"], Some("1")).unwrap()).unwrap();
    wait_until("the first one is written", || disk.is_waited_for());
    let others: Vec<_> =
        (0..100).map(|number| begin(&inbox, batch(&inbox, &[&format!("{number}")], None).unwrap()).unwrap()).collect();
    let again = begin(&inbox, batch(&inbox, &["first"], Some("1")).unwrap()).unwrap();
    assert!(first.is_empty() && others.iter().all(|other| other.is_empty()) && again.is_empty());
    assert_eq!(
        (inbox.arrived().documents, inbox.characters_available(None)),
        (0, 0),
        "what may be lost has not arrived"
    );
    disk.open();
    assert_eq!(whole(&first.recv_timeout(PATIENCE).unwrap().unwrap()), (1, false));
    for other in others {
        assert_eq!(whole(&other.recv_timeout(PATIENCE).unwrap().unwrap()), (1, false));
    }
    assert_eq!(whole(&again.recv_timeout(PATIENCE).unwrap().unwrap()), (0, true));
    assert_eq!(disk.syncs() - before, 2);
    assert_eq!(texts(&disk.disk).len(), 101);
}

#[test]
fn a_reader_sees_what_is_durable_and_is_told_when_there_is_more() {
    let disk = GatedDisk::new(MemoryDisk::default());
    let inbox = open(&disk, options()).unwrap();
    let part = inbox.following(None).unwrap();
    assert_eq!((&*part.name, part.path.parent()), ("00000000000000000000.jsonl", Some(Path::new(crate::harness::DIR))));
    assert!(inbox.following(Some(&part.name)).is_none());
    let changes = inbox.changes().count();
    disk.close();
    let first = begin(&inbox, batch(&inbox, &["first"], None).unwrap()).unwrap();
    wait_until("it is written", || disk.is_waited_for());
    let extent = inbox.extent(&part.name);
    assert_eq!((extent.growing, extent.readable_bytes, inbox.changes().count()), (true, 0, changes));
    disk.open();
    first.recv_timeout(PATIENCE).unwrap().unwrap();
    assert!(inbox.extent(&part.name).readable_bytes > 0 && inbox.changes().count() > changes);
    assert!(!inbox.closed());
    inbox.end();
    assert!(inbox.closed() && !inbox.extent(&part.name).growing);
}

#[test]
fn a_writer_that_panics_leaves_nobody_waiting() {
    let disk = GatedDisk::new(MemoryDisk::default());
    let inbox = open(&disk, options()).unwrap();
    disk.close();
    disk.plan(Misfortune::Panic);
    let first = begin(&inbox, batch(&inbox, &["first"], None).unwrap()).unwrap();
    wait_until("it is written", || disk.is_waited_for());
    let second = begin(&inbox, batch(&inbox, &["second"], None).unwrap()).unwrap();
    let changes = inbox.changes().count();
    inbox.check().unwrap();
    disk.open();
    let is_told = |error: &PushError| matches!(error, PushError::Failed(reason) if reason.contains("panicked"));
    for outcome in [first, second] {
        let error = outcome.recv_timeout(PATIENCE).unwrap().unwrap_err();
        assert!(is_told(&error), "{error}");
    }
    wait_until("readers are woken", || inbox.changes().count() > changes);
    let problem = inbox.check().unwrap_err().to_string();
    assert!(problem.contains("panicked"), "{problem}");
    let error = push(&inbox, &["third"], None).unwrap_err();
    assert!(is_told(&error), "{error}");
}
