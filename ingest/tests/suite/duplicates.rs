//! Documents with the text of an earlier one.

use crate::feeds::{check_resume, options};
use crate::workshop::{Cursors, Workshop, entries, groups, records, reopen, skips};
use std::sync::Arc;
use store::SequenceNumber;

const TEXT: &str = "menu\n\nrow\n\nmenu \n\ncell\n\nrow\n\n row\n\nmenu\n";

#[test]
fn duplicates_within_the_window_are_skipped_wherever_it_stops() {
    let workshop = Workshop::new();
    let mut corpus = workshop.corpus("c", "en", TEXT);
    (corpus.deduplicate, corpus.rounds) = (2, 2);
    let options = options(&workshop, vec![corpus]);
    let teachers = [workshop.word_teacher("words", &["en"])];
    let whole = entries(&options, &teachers);
    let round = [("c.txt@11", "duplicate"), ("c.txt@29", "duplicate")];
    assert_eq!(skips(&whole), [round, round].concat());
    assert_eq!(records(&whole).len(), 10);
    assert_eq!(workshop.quarantined("c").len(), 0);
    check_resume(&options, &teachers, &whole);
}

#[test]
fn each_source_has_a_window_of_its_own_and_none_by_default() {
    let workshop = Workshop::new();
    let mut one = workshop.corpus("one", "en", TEXT);
    one.deduplicate = 100;
    let other = workshop.corpus("other", "en", TEXT);
    let mut third = workshop.corpus("third", "en", "menu\n\nrow\n");
    third.deduplicate = 100;
    let teachers = [workshop.word_teacher("words", &["en"])];
    let mut options = options(&workshop, vec![one, other, third]);
    let whole = entries(&options, &teachers);
    let mut found = skips(&whole);
    found.sort_unstable();
    let of_one = ["one.txt@11", "one.txt@24", "one.txt@29", "one.txt@35"].map(|document| (document, "duplicate"));
    assert_eq!(found, of_one);
    assert_eq!(records(&whole).len(), 3 + 7 + 2);

    // Switched off, the texts are forgotten: they would not be the last ones any more.
    let seen = workshop.path("feeds/one.seen");
    assert!(seen.is_file());
    options.corpora[0].deduplicate = 0;
    let cursors: Cursors = whole.iter().map(|entry| (Arc::clone(&entry.cursor.source), entry.cursor.clone())).collect();
    drop(reopen(&options, &teachers, &cursors, SequenceNumber(whole.len() as u64)).unwrap());
    assert!(!seen.exists());
}

/// What the log lost is not known when its numbers are those of other entries.
#[test]
fn a_source_that_is_away_when_the_log_goes_on_is_read_on_as_if_it_had_been_there() {
    let workshop = Workshop::new();
    let text: String = ["menu", "row", "cell", "table", "page"].map(|word| format!("{word}\n\n")).concat();
    let mut away = workshop.corpus("away", "en", text);
    away.deduplicate = 100;
    let teachers = [workshop.word_teacher("words", &["en"])];
    let whole = entries(&options(&workshop, vec![away.clone()]), &teachers);
    // All of them are known; the log holds two.
    let mut cursors = Cursors::from([(Arc::clone(&whole[1].cursor.source), whole[1].cursor.clone())]);
    let other = options(&workshop, vec![workshop.corpus("other", "en", "menu\n\n".repeat(9))]);
    let mut next = SequenceNumber(2);
    for entry in groups(reopen(&other, &teachers, &cursors, next).unwrap()).into_iter().flat_map(|group| group.entries)
    {
        next = entry.sequence.next();
        cursors.insert(Arc::clone(&entry.cursor.source), entry.cursor);
    }
    let back = groups(reopen(&options(&workshop, vec![away]), &teachers, &cursors, next).unwrap());
    let back: Vec<_> = back.into_iter().flat_map(|group| group.entries).collect();
    assert_eq!(skips(&back), []);
    assert_eq!(records(&back).len(), 3);
}
