use crate::workshop::{Workshop, entries, open, prose, records};
use ingest::{IngestOptions, Language};
use std::collections::BTreeMap;
use store::{Entry, Payload};

/// Draws per corpus while every corpus has input left.
fn draws(entries: &[Entry]) -> BTreeMap<String, f64> {
    let mut counts = BTreeMap::new();
    for entry in entries.iter().take_while(|entry| entry.payload != Payload::End) {
        *counts.entry(entry.cursor.source.to_string()).or_default() += 1.0;
    }
    counts
}

fn one_word_documents(count: usize) -> String {
    "menu\n\n".repeat(count)
}

#[test]
fn languages_are_drawn_by_available_characters_to_the_power_of_alpha() {
    for alpha in [0.0, 0.5, 0.7, 1.0] {
        let workshop = Workshop::new();
        let sizes = [("de", 3000), ("en", 9000), ("tr", 6000)];
        let corpora = sizes.map(|(language, count)| workshop.corpus(language, language, one_word_documents(count)));
        let options = IngestOptions { alpha, ..workshop.options(corpora.to_vec()) };
        let teacher = workshop.word_teacher("words", &["de", "en", "tr"]);
        let draws = draws(&entries(&options, &[teacher]));
        let weights = sizes.map(|(_, count)| (count as f64 * 6.0).powf(alpha));
        let total: f64 = draws.values().sum();
        assert!(total > 7_000.0);
        for ((language, _), weight) in sizes.iter().zip(weights) {
            let (share, expected) = (draws[*language] / total, weight / weights.iter().sum::<f64>());
            assert!((share - expected).abs() < 0.02, "α {alpha}, {language}: {share} for {expected}");
        }
    }
}

#[test]
fn corpora_of_a_language_are_drawn_by_available_characters() {
    let workshop = Workshop::new();
    let small = workshop.corpus("small", "en", one_word_documents(2000));
    let large = workshop.corpus("large", "en", one_word_documents(6000));
    let options = workshop.options(vec![small, large]);
    let draws = draws(&entries(&options, &[workshop.word_teacher("words", &["en"])]));
    let share = draws["small"] / draws.values().sum::<f64>();
    assert!((share - 0.25).abs() < 0.02, "{share}");
}

/// Training waits for the first entry of every list of files.
#[test]
fn every_list_of_files_has_an_entry_before_any_is_drawn_by_its_share() {
    let workshop = Workshop::new();
    let mut by_field = workshop.json_corpus("wiki", "en", "{\"text\": \"menu\", \"lang\": \"en\"}\n".repeat(40));
    (by_field.language, by_field.format.language_field) = (Language::Field, Some("lang".to_owned()));
    let large = workshop.corpus("large", "en", one_word_documents(4000));
    let others = [("tiny", "en"), ("de", "de")].map(|(name, language)| workshop.corpus(name, language, "menu\n"));
    let mut options = workshop.options([vec![large], others.to_vec(), vec![by_field]].concat());
    options.overrides.shares.insert("en".into(), 1.0);
    let entries = entries(&options, &[workshop.word_teacher("words", &["en", "de", "tr"])]);
    let order: Vec<&str> = entries.iter().map(|entry| &*entry.cursor.source).collect();
    assert_eq!(order[..6], ["large", "tiny", "de", "wiki:en", "wiki:de", "wiki:tr"]);
    // Whoever looked for its language in vain says so.
    assert!(
        matches!(&entries[5].payload, Payload::Skip(skip) if &*skip.reason == "other_language"),
        "{:?}",
        entries[5]
    );
}

#[test]
fn a_language_keeps_its_share_when_one_of_its_corpora_ends() {
    let workshop = Workshop::new();
    let sizes = [("small", "en", 5), ("large", "en", 95), ("de", "de", 100)];
    let corpora = sizes.map(|(name, language, count)| workshop.corpus(name, language, one_word_documents(count)));
    let options = IngestOptions { group_tokens: 1, ..workshop.options(corpora.to_vec()) };
    let mut ingest = open(&options, &[workshop.word_teacher("words", &["en", "de"])]).unwrap();
    let status = ingest.status();
    let corpus = |index: usize| serde_json::to_value(&*status).unwrap()["corpora"][index].clone();
    while corpus(0)["ended"] == false {
        ingest.next_group().unwrap().unwrap();
    }
    let shares = [0, 1, 2].map(|index| corpus(index)["share"].as_f64().unwrap());
    assert_eq!(shares, [0.0, 0.5, 0.5]);
    while corpus(1)["ended"] == false {
        ingest.next_group().unwrap().unwrap();
    }
    assert_eq!(corpus(2)["share"], if corpus(2)["ended"] == true { 0.0 } else { 1.0 });
}

#[test]
fn characters_are_counted_not_bytes() {
    let workshop = Workshop::new();
    let corpus = workshop.corpus("c", "en", "café 表格\n\nmenu\n");
    let options = workshop.options(vec![corpus]);
    let entries = entries(&options, &[workshop.word_teacher("words", &["en"])]);
    assert!(entries.iter().all(|entry| entry.cursor.characters_available == 14));
}

#[test]
fn sequence_numbers_have_no_holes_and_every_corpus_ends_once() {
    let workshop = Workshop::new();
    let mut corpora: Vec<_> =
        ["a", "b", "c"].map(|name| workshop.corpus(name, "en", prose(name.len() as u64, 5))).to_vec();
    corpora.push(workshop.corpus("empty", "de", ""));
    let options = workshop.options(corpora);
    let entries = entries(&options, &[workshop.word_teacher("words", &["en", "de"])]);
    assert!(entries.iter().enumerate().all(|(index, entry)| entry.sequence.0 == index as u64));
    for name in ["a", "b", "c", "empty"] {
        let own: Vec<&Entry> = entries.iter().filter(|entry| &*entry.cursor.source == name).collect();
        let (last, others) = own.split_last().unwrap();
        assert!(last.payload == Payload::End && last.cursor.ended, "{name}");
        assert!(others.iter().all(|entry| entry.payload != Payload::End && !entry.cursor.ended), "{name}");
    }
}

#[test]
fn evaluation_corpora_come_first_and_are_held_out_whole() {
    let workshop = Workshop::new();
    let mut second = workshop.corpus("valid-de", "de", prose(5, 4));
    let mut first = workshop.corpus("valid-en", "en", prose(6, 4));
    for corpus in [&mut first, &mut second] {
        corpus.evaluation_only = true;
        corpus.rounds = 2;
    }
    let options = workshop.options(vec![workshop.corpus("en", "en", prose(7, 9)), first, second]);
    let teacher = workshop.word_teacher("words", &["en", "de"]);
    let entries = entries(&options, &[teacher]);
    let mut order: Vec<&str> = entries.iter().map(|entry| &*entry.cursor.source).collect();
    order.dedup();
    assert_eq!(order, ["valid-en", "valid-de", "en"]);
    let mut of_rounds = [0; 2];
    for record in records(&entries) {
        let unseen = record.source.starts_with("valid");
        assert_eq!(record.held_out, unseen);
        assert!(record.round < if unseen { 2 } else { 1 }, "round {}", record.round);
        of_rounds[record.round as usize] += usize::from(unseen);
    }
    assert!(of_rounds[0] > 0 && of_rounds[0] == of_rounds[1], "each round has all of it: {of_rounds:?}");
}

#[test]
fn a_fraction_of_the_documents_is_held_out_whatever_the_seed() {
    let workshop = Workshop::new();
    let mut options = workshop.options(vec![workshop.corpus("c", "en", one_word_documents(4000))]);
    options.holdout_fraction = 0.1;
    let teachers = [workshop.word_teacher("words", &["en"])];
    let held_out = |options: &IngestOptions| -> Vec<String> {
        let entries = entries(options, &teachers);
        records(&entries).iter().filter(|r| r.held_out).map(|r| r.document.to_string()).collect()
    };
    let documents = held_out(&options);
    assert!((320..480).contains(&documents.len()), "{}", documents.len());
    options.seed += 1;
    assert_eq!(documents, held_out(&options));

    options.corpora = vec![workshop.corpus("c", "en", prose(9, 60))];
    options.holdout_fraction = 0.3;
    let entries = entries(&options, &teachers);
    let mut by_document: BTreeMap<&str, Vec<bool>> = BTreeMap::new();
    for record in records(&entries) {
        by_document.entry(&record.document).or_default().push(record.held_out);
    }
    assert!(by_document.values().all(|flags| flags.windows(2).all(|pair| pair[0] == pair[1])));
    assert!(by_document.values().any(|flags| flags[0] && flags.len() > 1));
}

#[test]
fn rounds_repeat_the_corpus_with_new_masks() {
    let workshop = Workshop::new();
    let mut corpus = workshop.corpus("c", "en", prose(2, 6));
    corpus.rounds = 3;
    let options = workshop.options(vec![corpus]);
    let entries = entries(&options, &[workshop.word_teacher("words", &["en"])]);
    let by_round = |round| {
        let own: Vec<_> = records(&entries).into_iter().filter(|record| record.round == round).collect();
        assert!(own.iter().all(|record| !record.copies[0].masked_positions.is_empty()));
        own
    };
    let first = by_round(0);
    for round in 1..3 {
        let other = by_round(round);
        assert!(first.iter().zip(&other).all(|(a, b)| a.document == b.document && a.span == b.span));
        assert_eq!(first.len(), other.len());
        let differing = first.iter().zip(&other).filter(|(a, b)| a.copies != b.copies).count();
        assert!(differing * 10 > first.len() * 9, "{differing} of {}", first.len());
    }
    assert_eq!(records(&entries).len(), 3 * first.len());
    assert_eq!(entries.iter().filter(|entry| entry.payload == Payload::End).count(), 1);
}

#[test]
fn status_shows_shares_and_progress() {
    let workshop = Workshop::new();
    let corpora = vec![workshop.corpus("en", "en", one_word_documents(80)), workshop.corpus("de", "de", "menu\n\nж\n")];
    let mut ingest = open(&workshop.options(corpora), &[workshop.word_teacher("words", &["en", "de"])]).unwrap();
    let status = ingest.status();
    let field = |corpus: usize, key: &str| serde_json::to_value(&*status).unwrap()["corpora"][corpus][key].clone();
    let (a, b) = (480_f64.powf(0.7), 8_f64.powf(0.7));
    assert!((field(0, "share").as_f64().unwrap() - a / (a + b)).abs() < 1e-12);
    assert_eq!(field(1, "characters_available"), 8);
    while ingest.next_group().unwrap().is_some() {}
    assert_eq!((field(0, "share"), field(1, "share")), (0.0.into(), 0.0.into()));
    assert_eq!((field(0, "documents"), field(0, "examples")), (80.into(), 80.into()));
    assert_eq!((field(1, "documents"), field(1, "examples"), field(1, "skipped")), (2.into(), 1.into(), 1.into()));
    assert_eq!(field(1, "ended"), true);
}
