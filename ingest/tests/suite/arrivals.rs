//! When documents arrived, as the stage notes it for each of their records.

use crate::feeds::{next_entries, options, watched};
use crate::pushed::push;
use crate::workshop::{Workshop, feed_of, open, records};
use ingest::spool::{Inbox, InboxMetrics, InboxOptions};
use ingest::{FeedOptions, Format, TextDocuments};
use prometheus::Registry;
use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};
use store::{Arrivals, SequenceNumber};

/// Documents of each corpus, short enough to be a record each.
const DOCUMENTS: usize = 3;

/// Reads a list of files, a watched folder, a followed file and an inbox. Returns how many records have a time.
fn check(holdout_fraction: f64) -> u64 {
    let (start, workshop) = (Instant::now(), Workshop::new());
    let text = ["the menu opens a window\n\n"; DOCUMENTS].concat();
    let list = workshop.corpus("list", "en", &text);
    let folder = watched(&workshop, "folder", Duration::from_millis(1));
    let feed = FeedOptions::Follow {
        file: workshop.path("app.log"),
        settle: Duration::from_millis(1),
        poll: Duration::from_millis(20),
    };
    let mut followed = feed_of("followed", "en", Format::Text, feed);
    followed.format.documents = TextDocuments::Line;
    let pushed = feed_of("pushed", "en", Format::JsonLines, FeedOptions::Spool);
    let inbox_options = InboxOptions::new(vec!["pushed".to_owned()], pushed.format.clone());
    let metrics = InboxMetrics::register(&Registry::new()).unwrap();
    let inbox = Arc::new(Inbox::open("pushed", &workshop.path("inbox"), inbox_options, &metrics).unwrap());

    let arrivals = Arrivals::register(&Registry::new()).unwrap();
    let mut options = options(&workshop, vec![list, folder, followed, pushed]);
    options.spools.insert("pushed".to_owned(), Arc::clone(&inbox) as _);
    options.holdout_fraction = holdout_fraction;
    options.arrivals = Some(arrivals.clone());
    let mut ingest = open(&options, &[workshop.word_teacher("words", &["en"])]).unwrap();
    workshop.write("folder/a.txt", &text);
    fs::write(workshop.path("app.log"), "the row of cells\n".repeat(DOCUMENTS)).unwrap();
    push(&inbox, &"{\"text\": \"save your table\"}\n".repeat(DOCUMENTS));
    let entries = next_entries(&mut ingest, 4 * DOCUMENTS + 1); // And the end of the list.

    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for record in records(&entries) {
        *counts.entry(record.source.to_string()).or_default() += 1;
    }
    let expected = ["followed", "folder", "list", "pushed"].map(|name| (name.to_owned(), DOCUMENTS));
    assert_eq!(counts, BTreeMap::from(expected));
    let sequences: Vec<SequenceNumber> = entries.iter().map(|entry| entry.sequence).collect();
    arrivals.learnt(&sequences);
    arrivals.learnt(&sequences);
    let delays = arrivals.delays();
    assert!(delays.p99_seconds.is_none_or(|seconds| seconds <= start.elapsed().as_secs_f64() + 1.0), "{delays:?}");
    delays.records
}

#[test]
fn records_of_what_arrives_have_a_time_and_those_of_lists_and_held_out_ones_have_none() {
    assert_eq!(check(0.0), 3 * DOCUMENTS as u64);
    assert_eq!(check(1.0), 0);
}
