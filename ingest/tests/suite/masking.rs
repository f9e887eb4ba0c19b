use crate::workshop::{Workshop, corpus_of, entries, prose, records, skips};
use ingest::Format;
use std::collections::BTreeSet;
use store::MaskedCopy;

fn copies(text: &str, change: impl Fn(&mut ingest::IngestOptions)) -> Vec<MaskedCopy> {
    let workshop = Workshop::new();
    let mut options = workshop.options(vec![workshop.corpus("c", "en", text)]);
    change(&mut options);
    let entries = entries(&options, &[workshop.word_teacher("words", &["en"])]);
    records(&entries).iter().flat_map(|record| record.copies.clone()).collect()
}

#[test]
fn rates_are_those_of_the_paper() {
    let workshop = Workshop::new();
    let teacher = workshop.word_teacher("words", &["en"]);
    let special = teacher.tokenizer.special();
    let copies = copies(&prose(1, 250), |options| options.max_sequence_length = 128);
    let (mut tokens, mut masked, mut as_mask, mut kept, mut other) = (0, 0, 0, 0, BTreeSet::new());
    let mut replaced = 0;
    for copy in &copies {
        tokens += copy.token_ids.len() - 2;
        masked += copy.masked_positions.len();
        assert!(copy.masked_positions.is_sorted() && copy.masked_positions.len() == copy.gold_ids.len());
        for (position, gold) in copy.masked_positions.iter().zip(&copy.gold_ids) {
            let seen = copy.token_ids[*position as usize];
            if seen == special.mask {
                as_mask += 1;
            } else if seen == *gold {
                kept += 1;
            } else {
                assert!(!teacher.tokenizer.is_special(seen));
                replaced += 1;
                other.insert(seen);
            }
        }
    }
    assert!(tokens > 20_000, "{tokens}");
    let near = |count: usize, of: usize, expected: f64| (count as f64 / of as f64 - expected).abs() < 0.015;
    assert!(near(masked, tokens, 0.15), "{masked} of {tokens}");
    assert!(near(as_mask, masked, 0.8) && near(kept, masked, 0.1) && near(replaced, masked, 0.1), "{as_mask} {kept}");
    assert!(other.len() > 80, "random tokens come from the whole vocabulary, {}", other.len());
}

#[test]
fn at_least_one_token_is_masked() {
    let copies = copies(&"menu opens\n\n".repeat(300), |options| options.mask_probability = 0.01);
    assert_eq!(copies.len(), 300);
    assert!(copies.iter().all(|copy| !copy.masked_positions.is_empty()));
    let positions: BTreeSet<u32> = copies.iter().flat_map(|copy| copy.masked_positions.clone()).collect();
    assert_eq!(positions, BTreeSet::from([1, 2]));
}

#[test]
fn unknown_words_are_never_masked() {
    let workshop = Workshop::new();
    let teacher = workshop.word_teacher("words", &["en"]);
    let unknown = teacher.tokenizer.special().unk;
    let copies = copies(&"ж a ж\n\n".repeat(100), |options| options.mask_probability = 1.0);
    assert_eq!(copies.len(), 100);
    for copy in copies {
        assert_eq!(copy.masked_positions, [2]);
        assert_eq!((copy.token_ids[1], copy.token_ids[3]), (unknown, unknown));
        assert!(!copy.gold_ids.contains(&unknown));
    }
}

#[test]
fn an_example_that_one_teacher_cannot_mask_is_skipped() {
    let workshop = Workshop::new();
    let options = workshop.options(vec![workshop.corpus("c", "en", "ж ж ж\n\nmenu\n\n9 ж\n")]);
    let only_digits = workshop.teacher("digits", &["en"], &["9".to_owned()]);
    let entries = entries(&options, &[workshop.word_teacher("words", &["en"]), only_digits]);
    assert_eq!(skips(&entries), [("c.txt@0", "nothing_to_mask"), ("c.txt@10", "nothing_to_mask")]);
    assert_eq!(records(&entries).len(), 1);
    assert_eq!(workshop.quarantined("c").len(), 0);
}

#[test]
fn masks_depend_on_seed_corpus_teacher_and_round_and_on_nothing_else() {
    let workshop = Workshop::new();
    let text = prose(3, 8);
    let mut one = workshop.corpus("one", "en", &text);
    one.rounds = 2;
    let same_text = corpus_of("two", "en", Format::Text, one.files.clone());
    let twin = workshop.word_teacher("twin", &["en"]);
    let teachers = [workshop.word_teacher("words", &["en"]), twin.clone()];
    let masks = |options: &ingest::IngestOptions,
                 teachers: &[ingest::IngestTeacher],
                 source: &str,
                 round: u32,
                 teacher: usize| {
        let entries = entries(options, teachers);
        let mut masks: Vec<_> = records(&entries)
            .iter()
            .filter(|record| &*record.source == source && record.round == round)
            .map(|record| (record.document.clone(), record.span, record.copies[teacher].masked_positions.clone()))
            .collect();
        masks.sort();
        assert!(!masks.is_empty());
        masks
    };
    let options = workshop.options(vec![one.clone(), same_text]);
    let base = masks(&options, &teachers, "one", 0, 0);
    assert_ne!(base, masks(&options, &teachers, "one", 1, 0), "round");
    assert_ne!(base, masks(&options, &teachers, "one", 0, 1), "teacher");
    assert_ne!(base, masks(&options, &teachers, "two", 0, 0), "corpus");
    let mut reseeded = options.clone();
    reseeded.seed += 1;
    assert_ne!(base, masks(&reseeded, &teachers, "one", 0, 0), "seed");
    let mut regrouped = workshop.options(vec![one]);
    regrouped.group_tokens = 77;
    assert_eq!(base, masks(&regrouped, &[twin, teachers[0].clone()], "one", 0, 1), "neither order nor company");
}
