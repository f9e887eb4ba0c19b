//! A batch that is written and taken back again for want of space: whoever pushed it was refused, so nobody may read it.

use crate::feeds::{documents, next_entries, options};
use crate::gate::{GatedDisk, Misfortune};
use crate::workshop::{Cursors, Workshop, feed_of, open, reopen};
use ingest::spool::{Inbox, InboxMetrics, InboxOptions, PushError, Receipt};
use ingest::{FeedOptions, Format};
use prometheus::Registry;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use store::SequenceNumber;
use store::log::disk::StdDisk;

fn push(inbox: &Inbox, texts: &[&str]) -> Receiver<Result<Receipt, PushError>> {
    let mut batch = inbox.batch();
    for text in texts {
        batch.write((serde_json::json!({ "text": text }).to_string() + "\n").as_bytes()).unwrap();
    }
    let (answer, answered) = channel();
    inbox.push(batch.finish(None).unwrap(), move |result| answer.send(result).unwrap());
    answered
}

#[test]
fn a_batch_that_was_taken_back_is_never_read() {
    for reopened in [false, true] {
        check(reopened);
    }
}

/// `reopened`: the stage was at work before, and goes on while the batch is in the file.
fn check(reopened: bool) {
    let workshop = Workshop::new();
    let corpus = feed_of("inbox", "en", Format::JsonLines, FeedOptions::Spool);
    let inbox_options = InboxOptions::new(vec!["inbox".to_owned()], corpus.format.clone());
    let metrics = InboxMetrics::register(&Registry::new()).unwrap();
    let disk = GatedDisk::new(StdDisk);
    let folder = workshop.path("inbox");
    let inbox = Inbox::open_on(Arc::new(disk.clone()), "inbox", &folder, inbox_options, &metrics).unwrap();
    let inbox = Arc::new(inbox);
    let mut options = options(&workshop, vec![corpus]);
    options.spools.insert("inbox".to_owned(), Arc::clone(&inbox) as _);
    push(&inbox, &["menu", "row"]).recv().unwrap().unwrap();

    let teachers = [workshop.word_teacher("words", &["en"])];
    let mut entries = Vec::new();
    if reopened {
        entries.extend(next_entries(&mut open(&options, &teachers).unwrap(), 1));
    }

    disk.close();
    disk.plan(Misfortune::NoSpace);
    let refused = push(&inbox, &["table", "table", "menu table"]);
    disk.wait_for_sync();
    // It stands in the file now, and is not durable.
    let cursors: Cursors =
        entries.iter().map(|entry| (Arc::clone(&entry.cursor.source), entry.cursor.clone())).collect();
    let next = SequenceNumber(entries.len() as u64);
    let mut ingest = reopen(&options, &teachers, &cursors, next).unwrap();
    entries.extend(next_entries(&mut ingest, 1));
    disk.open();
    assert!(matches!(refused.recv().unwrap().unwrap_err(), PushError::NoSpace { .. }));

    push(&inbox, &["row", "menu menu menu menu menu", "row"]).recv().unwrap().unwrap();
    while entries.len() < 5 {
        entries.extend(next_entries(&mut ingest, 1));
    }
    let file = std::fs::read_to_string(folder.join("00000000000000000000.jsonl")).unwrap();
    let starts = file.lines().map(|line| line.as_ptr() as usize - file.as_ptr() as usize);
    let expected: Vec<String> = starts.map(|start| format!("00000000000000000000.jsonl@{start}")).collect();
    assert_eq!(documents(&entries), expected);
    let lengths = entries.iter().map(|entry| match &entry.payload {
        store::Payload::Record(record) => record.span.end - record.span.first,
        other => panic!("{other:?}"),
    });
    assert_eq!(
        lengths.collect::<Vec<_>>(),
        ["menu", "row", "row", "menu menu menu menu menu", "row"].map(|it| it.len() as u64)
    );
}
