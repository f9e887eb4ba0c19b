//! Documents that are pushed into an inbox, as the stage reads them.

use crate::feeds::{content, documents, next_entries, options};
use crate::workshop::{Cursors, Workshop, feed_of, open, prose, reopen};
use ingest::spool::{Inbox, InboxMetrics, InboxOptions, Receipt};
use ingest::{FeedOptions, Format, Language};
use prometheus::Registry;
use std::sync::Arc;
use std::sync::mpsc::channel;
use store::{Payload, SequenceNumber};

pub(crate) fn push(inbox: &Inbox, lines: &str) -> Receipt {
    let mut batch = inbox.batch();
    batch.write(lines.as_bytes()).unwrap();
    let (answer, answered) = channel();
    inbox.push(batch.finish(None).unwrap(), move |result| answer.send(result).unwrap());
    answered.recv().unwrap().unwrap()
}

#[test]
fn what_is_pushed_is_read_once_wherever_the_stage_stops() {
    let workshop = Workshop::new();
    let mut corpus = feed_of("inbox", "en", Format::JsonLines, FeedOptions::Spool);
    corpus.language = Language::Field;
    corpus.format.language_field = Some("lang".to_owned());
    let teachers = [workshop.word_teacher("words", &["en", "de"])];
    let sources = corpus.sources(["en", "de"]).into_iter().map(|(name, _)| name).collect();
    let inbox_options = InboxOptions {
        languages: ["en", "de"].map(str::to_owned).into(),
        file_bytes: 2000, // Several files.
        ..InboxOptions::new(sources, corpus.format.clone())
    };
    let metrics = InboxMetrics::register(&Registry::new()).unwrap();
    let inbox = Arc::new(Inbox::open("inbox", &workshop.path("inbox"), inbox_options, &metrics).unwrap());
    let mut options = options(&workshop, vec![corpus]);
    options.spools.insert("inbox".to_owned(), Arc::clone(&inbox) as _);
    let mut ingest = open(&options, &teachers).unwrap();
    let mut entries = Vec::new();
    let (mut pushed, mut characters) = (0, 0);
    for (index, text) in prose(7, 12).split("\n\n").filter(|text| !text.trim().is_empty()).enumerate() {
        let language = ["en", "de", "en"][index % 3];
        characters += text.chars().count();
        pushed += push(&inbox, &(serde_json::json!({"text": text, "lang": language}).to_string() + "\n")).accepted;
        entries.extend(next_entries(&mut ingest, 1)); // Something of it, or of what came before.
    }
    inbox.end();
    let ended = |entries: &[store::Entry]| entries.iter().filter(|entry| entry.payload == Payload::End).count();
    while ended(&entries) < 2 {
        entries.extend(next_entries(&mut ingest, 1));
    }
    assert!(ingest.next_group().unwrap().is_none());
    assert_eq!(documents(&entries).iter().collect::<std::collections::BTreeSet<_>>().len() as u64, pushed);
    let status = serde_json::to_value(&*ingest.status()).unwrap();
    let available = (0..2).map(|index| status["corpora"][index]["characters_available"].as_u64().unwrap()).sum::<u64>();
    assert_eq!((available, pushed), (characters as u64, 12));
    assert!(status["corpora"][0]["files"].as_u64().unwrap() > 2);
    drop(ingest);

    // Which source is drawn depends on what has arrived by then, but each goes on where it was.
    let mut cursors = Cursors::new();
    for (index, entry) in entries.iter().enumerate() {
        let mut ingest = reopen(&options, &teachers, &cursors, entry.sequence).unwrap();
        let found = next_entries(&mut ingest, 1).remove(0);
        let mut later = entries[index..].iter();
        let mut expected = later.find(|later| later.cursor.source == found.cursor.source).unwrap().clone();
        expected.sequence = found.sequence;
        assert_eq!(content(&found), content(&expected), "entry {index}");
        cursors.insert(Arc::clone(&entry.cursor.source), entry.cursor.clone());
    }
    assert!(reopen(&options, &teachers, &cursors, SequenceNumber(9999)).unwrap().next_group().unwrap().is_none());
}
