use crate::workshop::{Cursors, Workshop, corpus_of, groups, open, prose, reopen};
use ingest::{Format, IngestError, IngestOptions, IngestTeacher};
use std::fs;
use std::sync::Arc;
use store::{Group, SequenceNumber, SourceCursor};

fn content(groups: &[Group]) -> Vec<(&[store::Entry], &[store::BatchPlan])> {
    groups.iter().map(|group| (&*group.entries, &*group.batches)).collect()
}

/// Corpora of every kind, with bad documents, held-out ones and several rounds.
fn everything(workshop: &Workshop) -> (IngestOptions, Vec<IngestTeacher>) {
    let lines: String = prose(4, 6)
        .split("\n\n")
        .map(|text| serde_json::json!({"id": 1, "text": text}).to_string() + "\n")
        .collect::<String>()
        .replacen('\n', "\nnot json\n\n{\"title\": 1}\n", 3);
    let files = ["x/a.txt", "y/a.txt", "y/b.txt"]
        .iter()
        .enumerate()
        .map(|(seed, name)| workshop.write(name, prose(seed as u64, 2) + "\n\nж ж\n\n"))
        .collect();
    let mut many = corpus_of("many", "en", Format::Text, files);
    many.rounds = 3;
    let mut bad = workshop.corpus("bad", "de", b"\xff\xfe broken\n\nmenu\n\nthe \0 menu\n\n");
    bad.rounds = 2;
    let mut valid = workshop.corpus("valid", "en", prose(9, 2));
    (valid.evaluation_only, valid.rounds) = (true, 2);
    let marked = workshop.corpus("marked", "tr", format!("\u{feff}{}", prose(8, 2)).replace('\n', "\r\n"));
    let corpora = vec![
        many,
        workshop.json_corpus("json", "de", lines),
        bad,
        valid,
        marked,
        workshop.corpus("none", "de", "\n\n"),
    ];
    let mut options = workshop.options(corpora);
    options.group_tokens = 300;
    options.holdout_fraction = 0.2;
    let teachers =
        vec![workshop.word_teacher("words", &["en", "de", "tr"]), workshop.letter_teacher("letters", &["en", "tr"])];
    (options, teachers)
}

#[test]
fn the_same_groups_follow_from_every_group_boundary() {
    let workshop = Workshop::new();
    let (options, teachers) = everything(&workshop);
    let whole = groups(open(&options, &teachers).unwrap());
    assert!((30..100).contains(&whole.len()), "{} groups", whole.len());
    assert_eq!(content(&whole), content(&groups(open(&options, &teachers).unwrap())));
    let mut cursors = Cursors::new();
    for (index, group) in whole.iter().enumerate() {
        let next = group.entries[0].sequence;
        let rest = groups(reopen(&options, &teachers, &cursors, next).unwrap());
        assert_eq!(content(&rest), content(&whole[index..]), "from group {index}");
        for entry in &group.entries {
            cursors.insert(Arc::clone(&entry.cursor.source), entry.cursor.clone());
        }
    }
    assert!(cursors.values().all(|cursor| cursor.ended));
    assert_eq!(groups(reopen(&options, &teachers, &cursors, SequenceNumber(10_000)).unwrap()).len(), 0);
}

#[test]
fn an_ended_corpus_goes_on_when_it_gets_more_rounds() {
    let workshop = Workshop::new();
    let teachers = [workshop.word_teacher("words", &["en"])];
    let mut options = workshop.options(vec![workshop.corpus("c", "en", prose(1, 3))]);
    let once: Vec<_> = groups(open(&options, &teachers).unwrap()).into_iter().flat_map(|group| group.entries).collect();
    let last = once.last().unwrap();
    let cursors = Cursors::from([("c".into(), last.cursor.clone())]);
    options.corpora[0].rounds = 2;
    let again = groups(reopen(&options, &teachers, &cursors, last.sequence.next()).unwrap());
    let again: Vec<_> = again.into_iter().flat_map(|group| group.entries).collect();
    assert_eq!(again.len(), once.len());
    assert!(again.iter().all(|entry| entry.cursor.round == 1));
    assert!(again[0].sequence == last.sequence.next());
}

fn cursor(file: &str, document_offset_bytes: u64, next_byte: u64) -> Cursors {
    let start = SourceCursor::start("c".into(), "en".into(), 100);
    Cursors::from([("c".into(), SourceCursor { file: file.into(), document_offset_bytes, next_byte, ..start })])
}

#[test]
fn a_corpus_that_changed_is_named() {
    let workshop = Workshop::new();
    let text = "a ".repeat(40) + "\n\nmenu\n";
    let options = workshop.options(vec![workshop.corpus("c", "en", &text)]);
    let teachers = [workshop.word_teacher("words", &["en"])];
    let check = |cursors: &Cursors, expected: Option<&str>| {
        let opened = reopen(&options, &teachers, cursors, SequenceNumber(3));
        match (opened.err(), expected) {
            (None, None) => {}
            (Some(error @ IngestError::Changed { .. }), Some(problem)) => {
                let message = error.to_string();
                assert!(message.contains("corpus `c`") && message.contains(problem), "{message}");
            }
            (error, expected) => panic!("{error:?}, not {expected:?}"),
        }
    };
    check(&cursor("c.txt", 0, 60), None);
    check(&cursor("c.txt", 82, SourceCursor::DOCUMENT_DONE), None);
    check(&cursor("c.txt", 0, 59), Some("`c.txt`"));
    check(&cursor("c.txt", 0, 600), Some("shorter"));
    check(&cursor("c.txt", 3, SourceCursor::DOCUMENT_DONE), Some("another text"));
    check(&cursor("c.txt", 81, SourceCursor::DOCUMENT_DONE), Some("another text"));
    check(&cursor("c.txt", 87, SourceCursor::DOCUMENT_DONE), Some("another text"));
    check(&cursor("gone.txt", 0, 60), Some("`gone.txt`"));
    fs::remove_file(workshop.path("c.txt")).unwrap();
    check(&cursor("c.txt", 0, 60), Some("cannot be opened"));
    let error = open(&options, &teachers).err().unwrap().to_string();
    assert!(error.contains("c.txt"), "{error}");
}

#[test]
fn a_corpus_that_changed_its_language_is_refused() {
    let workshop = Workshop::new();
    let options = workshop.options(vec![workshop.corpus("c", "de", "menu")]);
    let teachers = [workshop.word_teacher("words", &["de"])];
    let error = reopen(&options, &teachers, &cursor("c.txt", 0, SourceCursor::DOCUMENT_DONE), SequenceNumber(1)).err();
    assert!(error.unwrap().to_string().contains("language `en` in the log"));
}

/// A teacher is added at every place where a group ends, most of them inside a document, and whatever comes then may be
/// interrupted again.
#[test]
fn a_teacher_that_is_added_inside_a_document_gets_the_rest_of_it() {
    let workshop = Workshop::new();
    let mut options = workshop.options(vec![workshop.corpus("c", "en", prose(5, 8))]);
    options.group_tokens = 60;
    // The second one needs more tokens, so documents are cut otherwise.
    let teachers = [workshop.word_teacher("words", &["en"]), workshop.letter_teacher("letters", &["en"])];
    let before = groups(open(&options, &teachers[..1]).unwrap());
    let cursors_after = |groups: &[Group]| {
        let entries = groups.iter().flat_map(|group| &group.entries);
        entries.fold((Cursors::new(), SequenceNumber(0)), |(mut cursors, _), entry| {
            cursors.insert(Arc::clone(&entry.cursor.source), entry.cursor.clone());
            (cursors, entry.sequence.next())
        })
    };
    let mut inside = 0;
    for at in 1..before.len() {
        let (cursors, next) = cursors_after(&before[..at]);
        inside += usize::from(cursors["c"].next_byte != SourceCursor::DOCUMENT_DONE);
        let after = groups(reopen(&options, &teachers, &cursors, next).unwrap());
        let mut covered = cursors["c"].clone();
        for entry in after.iter().flat_map(|group| &group.entries) {
            let store::Payload::Record(record) = &entry.payload else { continue };
            assert_eq!(record.copies.len(), 2);
            // Nothing is left out, and nothing is there twice.
            let same = covered.document_offset_bytes == entry.cursor.document_offset_bytes;
            assert_eq!(record.span.first, if same { covered.next_byte } else { 0 }, "after group {at}");
            covered = SourceCursor { next_byte: record.span.end, ..entry.cursor.clone() };
        }
        for again in (0..after.len().min(12)).step_by(3) {
            let all = [&before[..at], &after[..again]].concat();
            let (cursors, next) = cursors_after(&all);
            let rest = groups(reopen(&options, &teachers, &cursors, next).unwrap());
            assert_eq!(content(&rest), content(&after[again..]), "after groups {at} and {again}");
        }
    }
    assert!(inside > 5, "only {inside} inside a document");
    // Text that was cut so by nobody has changed.
    let (mut cursors, next) = cursors_after(&before[..4]);
    let cursor = cursors.get_mut("c").unwrap();
    cursor.next_byte -= 1;
    let error = reopen(&options, &teachers, &cursors, next).err().unwrap();
    assert!(matches!(error, IngestError::Changed { .. }), "{error}");
}
