//! The quarantine: what is kept, for how long, and documents that are tried again.

use crate::workshop::{Cursors, Workshop, groups, open, records, reopen, skips};
use ingest::quarantine::{Note, Quarantine, Retried, Retry, Which, notes, retry_corpus};
use ingest::spool::{Inbox, InboxMetrics, InboxOptions};
use ingest::{CorpusOptions, FeedOptions, Ingest, IngestOptions, IngestTeacher};
use prometheus::Registry;
use std::fs;
use std::sync::Arc;
use std::time::Duration;
use store::{Entry, Payload, SequenceNumber};

/// A run whose documents can be tried again.
struct Scene {
    workshop: Workshop,
    options: IngestOptions,
    teachers: Vec<IngestTeacher>,
    inbox: Arc<Inbox>,
    retry: Retry,
}

impl Scene {
    fn new(corpus: impl Fn(&Workshop) -> CorpusOptions) -> Self {
        let workshop = Workshop::new();
        let mut options = workshop.options(vec![corpus(&workshop), retry_corpus()]);
        let format = retry_corpus().format;
        let mut inbox = InboxOptions::new(vec!["retry:en".to_owned()], format);
        inbox.languages = ["en".to_owned()].into();
        let metrics = InboxMetrics::register(&Registry::new()).unwrap();
        let inbox = Arc::new(Inbox::open("retry", &workshop.path("inbox"), inbox, &metrics).unwrap());
        options.spools.insert("retry".to_owned(), Arc::clone(&inbox) as _);
        let retry = Retry::new(options.quarantine.clone(), &options.corpora, Arc::clone(&inbox));
        let teachers = vec![workshop.word_teacher("words", &["en"])];
        Self { workshop, options, teachers, inbox, retry }
    }

    /// All entries from these cursors on.
    fn entries(&self, cursors: &Cursors, next: u64) -> Vec<Entry> {
        let ingest = reopen(&self.options, &self.teachers, cursors, SequenceNumber(next)).unwrap();
        groups(ingest).into_iter().flat_map(|group| group.entries).collect()
    }

    fn notes(&self) -> Vec<Note> {
        notes(&self.workshop.path("quarantine")).unwrap()
    }

    fn all(&self, durable_end: u64) -> Retried {
        self.retry.retry(&Which::All { corpus: None }, durable_end).unwrap()
    }
}

fn cursors(entries: &[Entry]) -> Cursors {
    entries.iter().map(|entry| (Arc::clone(&entry.cursor.source), entry.cursor.clone())).collect()
}

#[test]
fn a_document_that_was_mended_is_used_once() {
    let lines = |text: &str| format!("{{\"text\": \"menu\"}}\n{text}\n{{\"text\": \"row\"}}\n");
    let scene = Scene::new(|workshop| workshop.json_corpus("c", "en", lines("{\"txt\": \"the table\"}")));
    let before = scene.entries(&Cursors::new(), 0);
    assert_eq!(skips(&before), [("c.jsonl@17", "missing_text")]);
    assert_eq!(before.last().unwrap().payload, Payload::End, "the run does not wait for what may be tried again");
    assert!(before.iter().all(|entry| &*entry.cursor.source == "c"));
    let durable = before.len() as u64;
    let note = scene.notes().remove(0);
    assert_eq!((note.reason.as_str(), note.sequence, note.text.as_deref()), ("missing_text", Some(1), None));

    let problem = |retried: Retried| retried.refused.first().map(|refused| refused.problem.clone()).unwrap();
    assert!(problem(scene.all(1)).starts_with("the log does not hold its entry durably yet"));
    assert!(problem(scene.all(durable)).starts_with("missing_text: "), "it is still the same");
    let other = Which::All { corpus: Some("other".to_owned()) };
    assert_eq!(scene.retry.retry(&other, durable).unwrap(), Retried::default());
    let unknown = scene.retry.retry(&Which::Notes(vec!["none".to_owned()]), durable).unwrap();
    assert!(problem(unknown).contains("no such note"));

    scene.workshop.write("c.jsonl", lines("{\"text\": \"the table\"}"));
    let one = Which::Notes(vec![note.id.clone()]);
    assert_eq!(scene.retry.retry(&one, durable).unwrap().retried, 1);
    assert_eq!(scene.notes(), []);
    // As after a crash between the document's being durable and its note's removal.
    scene.options.quarantine.keep(&note).unwrap();
    let again = scene.all(durable);
    assert_eq!((again.retried, again.duplicates, scene.notes().len()), (0, 1, 0));

    let after = scene.entries(&cursors(&before), durable);
    let found: Vec<_> = records(&after).iter().map(|record| (&*record.source, &*record.document)).collect();
    assert_eq!(found, [("retry:en", "00000000000000000000.jsonl@0#c/c.jsonl@17")]);
    assert_eq!(after.len(), 1, "{after:?}");
    let mut known = cursors(&before);
    known.extend(cursors(&after));
    assert_eq!(scene.entries(&known, durable + 1), []);
    assert_eq!(scene.inbox.arrived().documents, 1);
}

#[test]
fn what_a_corpus_reads_by_itself_is_not_read_for_a_retry_too() {
    let scene = Scene::new(|workshop| workshop.json_corpus("c", "en", "{\"txt\": \"menu\"}\n"));
    let durable = scene.entries(&Cursors::new(), 0).len() as u64;
    let (file, never) = (scene.workshop.path("c.jsonl"), Duration::from_secs(3600));
    let feeds = [
        FeedOptions::Watch { folder: scene.workshop.path("."), settle: never, poll: never },
        FeedOptions::Follow { file: file.clone(), settle: never, poll: never },
    ];
    let check = |expected: &str| {
        for feed in &feeds {
            let corpus = CorpusOptions { feed: feed.clone(), ..scene.options.corpora[0].clone() };
            let retry = Retry::new(scene.options.quarantine.clone(), &[corpus], Arc::clone(&scene.inbox));
            let retried = retry.retry(&Which::All { corpus: None }, durable).unwrap();
            let problems: Vec<&str> = retried.refused.iter().map(|refused| refused.problem.as_str()).collect();
            assert!(matches!(&problems[..], [problem] if problem.contains(expected)), "{feed:?}: {problems:?}");
        }
    };
    check("missing_text: ");
    let mended = scene.workshop.write("mended.jsonl", "{\"text\": \"menu\"}\n");
    fs::rename(mended, &file).unwrap();
    check("reads that by itself; put the text that is to be used into the note");
    assert_eq!(scene.notes().len(), 1);
    // Nobody else reads a file of a list again.
    assert_eq!(scene.all(durable).retried, 1);
}

#[test]
fn what_is_tried_again_comes_first_and_may_come_from_the_note() {
    let text = "menu\n\nж ж ж\n\nna\0me\n\n".to_owned() + &"row\n\n".repeat(50);
    let scene = Scene::new(|workshop| workshop.corpus("c", "en", &text));
    let mut first: Vec<Entry> = Vec::new();
    let mut ingest: Ingest =
        open(&IngestOptions { group_tokens: 1, ..scene.options.clone() }, &scene.teachers).unwrap();
    while first.len() < 4 {
        first.extend(ingest.next_group().unwrap().unwrap().entries);
    }
    let mut notes = scene.notes();
    assert_eq!(notes.iter().map(|note| note.reason.as_str()).collect::<Vec<_>>(), ["mostly_unknown", "nul_byte"]);
    let retried = scene.all(4);
    assert_eq!((retried.retried, retried.refused.len()), (1, 1), "{retried:?}");
    // Someone mends what a note says.
    let mut mended = notes.remove(1);
    mended.text = Some("name of the menu".to_owned());
    scene.options.quarantine.keep(&mended).unwrap();
    assert_eq!(scene.all(4).retried, 1);
    drop(ingest);
    let after = scene.entries(&cursors(&first), 4);
    let sources: Vec<&str> = after.iter().map(|entry| &*entry.cursor.source).collect();
    assert_eq!(sources.iter().filter(|source| **source == "retry:en").count(), 2);
    assert!(sources.starts_with(&["retry:en", "retry:en"]), "{sources:?}");
    let notes = scene.notes();
    assert_eq!(notes.len(), 1, "no tokenizer covers it now either");
    assert_eq!((notes[0].source.as_str(), notes[0].text.as_deref()), ("retry:en", Some("ж ж ж")));
}

#[test]
fn notes_of_entries_that_were_lost_go() {
    let scene = Scene::new(|workshop| workshop.corpus("c", "en", "a\0b\n\nmenu\n\nc\0d\n\ne\0f\n"));
    let entries = scene.entries(&Cursors::new(), 0);
    assert_eq!((entries.len(), scene.notes().len()), (5, 3));
    // The log holds the first three entries alone.
    let ingest = reopen(&scene.options, &scene.teachers, &cursors(&entries[..3]), SequenceNumber(3)).unwrap();
    let kept: Vec<_> = scene.notes().iter().map(|note| note.sequence).collect();
    assert_eq!(kept, [Some(0), Some(2)]);
    groups(ingest);
    assert_eq!(scene.notes().len(), 3);
}

#[test]
fn the_oldest_notes_make_room_for_newer_ones() {
    let scene = Scene::new(|workshop| workshop.corpus("c", "en", "a\0b\n\n".repeat(12)));
    let quarantine = Quarantine::new(scene.workshop.path("quarantine"), 5 * 4096).unwrap();
    let options = IngestOptions { quarantine, ..scene.options.clone() };
    let registry = Registry::new();
    let mut ingest =
        Ingest::open(options.clone(), scene.teachers.clone(), &Cursors::new(), SequenceNumber(0), &registry).unwrap();
    while ingest.next_group().unwrap().is_some() {}
    let kept: Vec<_> = scene.notes().iter().map(|note| note.sequence.unwrap()).collect();
    assert_eq!(kept, [7, 8, 9, 10, 11]);
    let metric = |name: &str| {
        let family = registry.gather().into_iter().find(|family| family.name() == name).unwrap();
        let metric = &family.get_metric()[0];
        metric.get_counter().get_value() + metric.get_gauge().get_value()
    };
    assert_eq!(metric("mergedistill_ingest_quarantine_dropped_total"), 7.0);
    assert_eq!(metric("mergedistill_ingest_quarantine_bytes"), 5.0 * 4096.0);

    // What is there counts after a restart, too, and what is no note is left alone.
    fs::write(scene.workshop.path("quarantine/c/README.json"), "no note").unwrap();
    let quarantine = Quarantine::new(scene.workshop.path("quarantine"), 5 * 4096).unwrap();
    let note = scene.notes().remove(0);
    quarantine.keep(&Note { id: "f".repeat(16), ..note.clone() }).unwrap();
    assert!(scene.notes().len() < 6);

    // Another limit holds from the next note on.
    quarantine.clone().set_limit(2 * 4096);
    quarantine.keep(&Note { id: "e".repeat(16), ..note }).unwrap();
    assert_eq!(scene.notes().len(), 2);
}
