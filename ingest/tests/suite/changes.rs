//! Changes of what is read while the stage runs.

use crate::workshop::{Cursors, Workshop, feed_of, open, prose, reopen};
use ingest::{
    Answer, Change, ChangeError, Changes, CorpusOptions, FeedOptions, Format, Ingest, IngestOptions, Overrides,
};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use store::{Entry, SequenceNumber};

fn ask(changes: &Changes, change: Change) -> Answer {
    changes.ask(change, Box::new(|_| Ok(()))).unwrap()
}

fn share(changes: &Changes, language: &str, share: Option<f64>) -> Answer {
    ask(changes, Change::Share { language: language.to_owned(), share })
}

fn paused(changes: &Changes, corpus: &str, paused: bool) -> Answer {
    let corpus = corpus.to_owned();
    ask(changes, if paused { Change::Pause { corpus } } else { Change::Resume { corpus } })
}

fn refused(answer: &Answer, expected: &str) {
    let error = answer.recv().unwrap().unwrap_err().to_string();
    assert!(error.contains(expected), "{error}");
}

fn status(ingest: &Ingest) -> Value {
    serde_json::to_value(&*ingest.status()).unwrap()
}

/// The entries of so many groups.
fn entries(ingest: &mut Ingest, groups: usize) -> Vec<Entry> {
    (0..groups).flat_map(|_| ingest.next_group().unwrap().unwrap().entries).collect()
}

/// Documents that were read to their end, in order.
fn documents(entries: &[Entry], source: &str) -> Vec<String> {
    let of_source = entries.iter().filter(|entry| &*entry.cursor.source == source);
    let place = |entry: &Entry| format!("{}@{}", entry.cursor.file, entry.cursor.document_offset_bytes);
    let mut documents: Vec<String> = of_source.filter(|entry| !entry.cursor.ended).map(place).collect();
    documents.dedup();
    documents
}

#[test]
fn shares_can_be_overridden_and_corpora_suspended_while_it_runs() {
    let workshop = Workshop::new();
    let lines = |count: usize| "menu\n\n".repeat(count);
    let corpora =
        [("de", 20_000), ("en", 20_000), ("tr", 20_000)].map(|(name, n)| workshop.corpus(name, name, lines(n)));
    let options = IngestOptions { group_tokens: 6000, ..workshop.options(corpora.to_vec()) };
    let mut ingest = open(&options, &[workshop.word_teacher("words", &["de", "en", "tr"])]).unwrap();
    let changes = ingest.changes();
    let mut check = |expected: [f64; 3]| {
        let entries = entries(&mut ingest, 2);
        for (name, share) in ["de", "en", "tr"].iter().zip(expected) {
            let found = entries.iter().filter(|entry| &*entry.cursor.source == *name).count() as f64;
            assert!((found / entries.len() as f64 - share).abs() < 0.03, "{name}: {found} of {}", entries.len());
        }
        (status(&ingest), entries[0].sequence)
    };
    check([1.0 / 3.0; 3]);
    let answer = share(&changes, "en", Some(0.6));
    let (status, first) = check([0.2, 0.6, 0.2]);
    assert_eq!(answer.recv().unwrap().unwrap(), first);
    assert_eq!(status["languages"][1]["overridden"], true);
    assert!((status["corpora"][1]["share"].as_f64().unwrap() - 0.6).abs() < 1e-9);
    assert_eq!(status["overrides_since"], first.0);
    paused(&changes, "de", true);
    assert_eq!(check([0.0, 0.6, 0.4]).0["corpora"][0]["state"], "paused");
    share(&changes, "tr", Some(0.2));
    check([0.0, 0.75, 0.25]);
    paused(&changes, "de", false);
    check([0.2, 0.6, 0.2]);
    for language in ["en", "tr"] {
        share(&changes, language, None);
    }
    check([1.0 / 3.0; 3]);
    let answers = [
        (share(&changes, "fi", Some(0.5)), "no language `fi`; there is: de, en, tr"),
        (share(&changes, "en", Some(0.0)), "not within (0, 1]"),
        (share(&changes, "en", Some(f64::NAN)), "not within"),
    ];
    let taken = share(&changes, "de", Some(0.7));
    let more = [(share(&changes, "en", Some(0.4)), "more than 1"), (paused(&changes, "english", true), "no corpus")];
    check([0.7, 0.15, 0.15]);
    taken.recv().unwrap().unwrap();
    answers.iter().chain(&more).for_each(|(answer, expected)| refused(answer, expected));
}

#[test]
fn it_is_known_why_nothing_of_a_language_comes() {
    let workshop = Workshop::new();
    let folder = workshop.path("in");
    std::fs::create_dir(&folder).unwrap();
    let never = Duration::from_secs(3600);
    let feed = FeedOptions::Watch { folder, settle: never, poll: never };
    let mut corpora = ["de", "en"].map(|name| workshop.corpus(name, name, "menu\n\n".repeat(1000))).to_vec();
    corpora.push(feed_of("tr", "tr", Format::Text, feed));
    let mut ingest = open(&workshop.options(corpora), &[workshop.word_teacher("words", &["de", "en", "tr"])]).unwrap();
    let (changes, known) = (ingest.changes(), ingest.status());
    let mut check = |expected: [Option<&str>; 3]| {
        entries(&mut ingest, 1);
        assert_eq!(["de", "en", "tr"].map(|language| known.standstill(language)), expected);
    };
    let nothing = Some("of which nothing more has arrived");
    check([None, None, nothing]);
    share(&changes, "en", Some(1.0));
    check([Some("which has no share of what is read"), None, nothing]);
    // Then nobody else takes anything, so it is drawn.
    paused(&changes, "en", true);
    check([None, Some("which is paused"), nothing]);
    paused(&changes, "en", false);
    share(&changes, "en", None);
    check([None, None, nothing]);
}

#[test]
fn what_was_set_before_holds_from_the_first_entry_on() {
    let workshop = Workshop::new();
    let corpora = ["de", "en"].map(|name| workshop.corpus(name, name, prose(1, 60)));
    let mut options = workshop.options(corpora.to_vec());
    options.overrides = Overrides {
        shares: BTreeMap::from([("en".into(), 0.5), ("fi".into(), 0.5)]),
        paused: BTreeSet::from(["de".into(), "gone".into()]),
        ..Overrides::default()
    };
    let mut ingest = open(&options, &[workshop.word_teacher("words", &["de", "en"])]).unwrap();
    assert_eq!(documents(&entries(&mut ingest, 2), "de"), [""; 0]);
    let shown = status(&ingest);
    assert_eq!((&shown["corpora"][0]["state"], &shown["languages"][0]["overridden"]), (&"paused".into(), &true.into()));
}

/// An entry that is drawn tells of a change that it was written down before it was made.
#[test]
fn a_change_that_cannot_be_written_down_is_not_made() {
    let workshop = Workshop::new();
    let corpora = ["de", "en"].map(|name| workshop.corpus(name, name, prose(1, 60)));
    let mut ingest =
        open(&workshop.options(corpora.to_vec()), &[workshop.word_teacher("words", &["de", "en"])]).unwrap();
    let changes = ingest.changes();
    let pause = || Change::Pause { corpus: "de".to_owned() };
    let failed = changes.ask(pause(), Box::new(|_| Err("the disk is full".to_owned()))).unwrap();
    entries(&mut ingest, 1);
    refused(&failed, "the disk is full");
    assert_eq!(status(&ingest)["corpora"][0]["state"], "reading");
    let noted = Arc::new(AtomicU64::new(0));
    let note = Arc::clone(&noted);
    let keep = Box::new(move |from: SequenceNumber| {
        note.store(from.0, Ordering::Relaxed);
        Ok(())
    });
    let made = changes.ask(pause(), keep).unwrap();
    let first = entries(&mut ingest, 1)[0].sequence;
    assert_eq!((made.recv().unwrap().unwrap(), noted.load(Ordering::Relaxed)), (first, first.0));
    drop(ingest);
    assert!(matches!(changes.ask(pause(), Box::new(|_| Ok(()))), Err(ChangeError::Ended)));
}

fn add(changes: &Changes, corpus: &CorpusOptions) -> Answer {
    ask(changes, Change::Add(changes.open(corpus, None).unwrap()))
}

fn remove(changes: &Changes, corpus: &str) -> Answer {
    let (gone, _) = crossbeam::channel::bounded(1);
    ask(changes, Change::Remove { corpus: corpus.to_owned(), gone })
}

/// To close it may take as long as reading a file: the stage does not wait for that.
#[test]
fn what_was_removed_is_left_to_whoever_asked_for_it() {
    let workshop = Workshop::new();
    let corpora = ["de", "en"].map(|name| workshop.corpus(name, name, prose(1, 60)));
    let mut ingest =
        open(&workshop.options(corpora.to_vec()), &[workshop.word_teacher("words", &["de", "en"])]).unwrap();
    for (corpus, is_there) in [("de", true), ("de", false)] {
        let (gone, removed) = crossbeam::channel::bounded(1);
        let answer = ask(&ingest.changes(), Change::Remove { corpus: corpus.to_owned(), gone });
        entries(&mut ingest, 1);
        assert_eq!((answer.recv().unwrap().is_ok(), removed.recv().is_ok()), (is_there, is_there));
    }
}

#[test]
fn a_corpus_that_is_removed_and_added_again_goes_on_where_it_stood() {
    let workshop = Workshop::new();
    let teachers = [workshop.word_teacher("words", &["de", "en"])];
    let en = workshop.corpus("en", "en", prose(1, 200));
    let mut de = workshop.corpus("de", "de", prose(2, 60));
    de.deduplicate = 10;
    let whole = documents(&drain(open(&workshop.options(vec![de.clone()]), &teachers).unwrap()), "de");
    std::fs::remove_dir_all(workshop.path("feeds")).unwrap();

    let mut ingest = open(&workshop.options(vec![en]), &teachers).unwrap();
    let changes = ingest.changes();
    let mut read = entries(&mut ingest, 1);
    let added = add(&changes, &de);
    while documents(&read, "de").len() < 5 {
        read.extend(entries(&mut ingest, 1));
    }
    let from = added.recv().unwrap().unwrap();
    assert!(read.iter().filter(|entry| &*entry.cursor.source == "de").all(|entry| entry.sequence >= from));
    assert!(matches!(changes.open(&de, None), Err(ChangeError::InUse(name)) if name == "de"));
    let gone = remove(&changes, "de");
    let without = entries(&mut ingest, 2);
    assert!(without.iter().all(|entry| &*entry.cursor.source == "en"));
    assert_eq!(gone.recv().unwrap().unwrap(), without[0].sequence);
    assert_eq!(status(&ingest)["corpora"].as_array().unwrap().len(), 1);
    let unknown = remove(&changes, "de");
    entries(&mut ingest, 1);
    refused(&unknown, "there is no corpus `de`; there is: en");
    add(&changes, &de);
    read.extend(without);
    read.extend(drain(ingest));
    assert_eq!(documents(&read, "de"), whole);
}

#[test]
fn a_corpus_that_was_added_goes_on_at_its_cursor_after_a_restart() {
    let workshop = Workshop::new();
    let teachers = [workshop.word_teacher("words", &["de", "en"])];
    let (en, de) = (workshop.corpus("en", "en", prose(1, 60)), workshop.corpus("de", "de", prose(2, 60)));
    let whole = documents(&drain(open(&workshop.options(vec![de.clone()]), &teachers).unwrap()), "de");
    let mut ingest = open(&workshop.options(vec![en.clone()]), &teachers).unwrap();
    add(&ingest.changes(), &de);
    let mut read = entries(&mut ingest, 3);
    drop(ingest);
    let cursors: Cursors = read.iter().map(|entry| (Arc::clone(&entry.cursor.source), entry.cursor.clone())).collect();
    let next = read.last().unwrap().sequence.next();
    // A restart without it, in which it is added, and one with it.
    let mut without = reopen(&workshop.options(vec![en.clone()]), &teachers, &cursors, next).unwrap();
    add(&without.changes(), &de);
    let with = reopen(&workshop.options(vec![en, de]), &teachers, &cursors, next).unwrap();
    let rest = documents(&drain(with), "de");
    assert_eq!(documents(&entries_to_end(&mut without), "de"), rest);
    read.retain(|entry| &*entry.cursor.source == "de");
    let mut all = documents(&read, "de");
    all.extend(rest.into_iter().filter(|document| !all.contains(document)).collect::<Vec<_>>());
    assert_eq!(all, whole);
}

#[test]
fn a_corpus_that_cannot_be_read_is_refused() {
    let workshop = Workshop::new();
    let ingest = open(
        &workshop.options(vec![workshop.corpus("en", "en", prose(1, 5))]),
        &[workshop.word_teacher("words", &["en"])],
    )
    .unwrap();
    let check = |corpus: &CorpusOptions, expected: &str| {
        let Err(error) = ingest.changes().open(corpus, None) else { panic!("not refused: {expected}") };
        assert!(error.to_string().contains(expected), "{error}");
    };
    check(&workshop.corpus("fi", "fi", "menu"), "corpus `fi`: no teacher has language `fi`");
    check(&workshop.corpus("en", "en", "menu"), "a corpus `en` is there already");
    check(&CorpusOptions { rounds: 0, ..workshop.corpus("more", "en", "menu") }, "0 rounds");
}

fn entries_to_end(ingest: &mut Ingest) -> Vec<Entry> {
    let mut entries = Vec::new();
    while let Some(group) = ingest.next_group().unwrap() {
        entries.extend(group.entries);
    }
    entries
}

fn drain(mut ingest: Ingest) -> Vec<Entry> {
    entries_to_end(&mut ingest)
}

#[test]
fn a_teacher_that_pauses_gets_no_copies_and_the_others_the_same_ones() {
    let workshop = Workshop::new();
    let corpora = [("en", prose(1, 30)), ("de", prose(2, 30))].map(|(name, text)| workshop.corpus(name, name, text));
    for unit in [ingest::MaskUnit::Token, ingest::MaskUnit::SharedWord] {
        let options = IngestOptions { group_tokens: 500, mask_unit: unit, ..workshop.options(corpora.to_vec()) };
        let teachers = [workshop.word_teacher("words", &["en", "de"]), workshop.letter_teacher("letters", &["en"])];
        let whole = entries(&mut open(&options, &teachers).unwrap(), 12);
        let mut ingest = open(&options, &teachers).unwrap();
        let changes = ingest.changes();
        let teacher = |teacher: &str, pauses: bool| {
            let teacher = teacher.to_owned();
            ask(&changes, if pauses { Change::PauseTeacher { teacher } } else { Change::ResumeTeacher { teacher } })
        };
        let mut all = entries(&mut ingest, 2);
        let paused = teacher("letters", true);
        let without = entries(&mut ingest, 2);
        assert_eq!(paused.recv().unwrap().unwrap(), without[0].sequence);
        assert_eq!(status(&ingest)["overrides_since"], without[0].sequence.0);
        all.extend(without.iter().cloned());
        let resumed = teacher("letters", false);
        let with = entries(&mut ingest, 2);
        let resumed = resumed.recv().unwrap().unwrap();
        assert_eq!(resumed, with[0].sequence);
        all.extend(with);
        for (found, mut expected) in all.iter().cloned().zip(whole) {
            if without.contains(&found)
                && let store::Payload::Record(record) = &mut expected.payload
            {
                record.copies.retain(|copy| copy.teacher == 0);
            }
            assert_eq!(found, expected, "{unit:?}");
        }
        // Nobody is left who knows German.
        let paused = teacher("words", true);
        let english = entries(&mut ingest, 3);
        assert_eq!(paused.recv().unwrap().unwrap(), english[0].sequence);
        assert!(english.iter().all(|entry| &*entry.cursor.language == "en"));
        let states = &status(&ingest)["corpora"];
        assert_eq!((&states[0]["state"], &states[1]["state"]), (&"reading".into(), &"paused".into()));
        let unknown = teacher("numbers", true);
        entries(&mut ingest, 1);
        refused(&unknown, "there is no teacher `numbers`; there is: letters, words");
        // A pause of an earlier run holds from the first entry on.
        let overrides = Overrides { paused_teachers: ["words".into()].into(), ..Overrides::default() };
        let again = entries(&mut open(&IngestOptions { overrides, ..options }, &teachers).unwrap(), 2);
        assert!(again.iter().all(|entry| &*entry.cursor.language == "en"));
    }
}
