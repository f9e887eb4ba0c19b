use crate::workshop::{Workshop, entries, feed_of, prose, records, skips, text_of, unmasked};
use ingest::{Format, IngestTeacher, MaskUnit};
use model::Tokenizer;
use std::collections::BTreeSet;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use store::{Entry, MaskedCopy};

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
    let copies = copies(&"ж a ж b\n\n".repeat(100), |options| options.mask_probability = 1.0);
    assert_eq!(copies.len(), 100);
    for copy in copies {
        assert_eq!(copy.masked_positions, [2, 4]);
        assert_eq!((copy.token_ids[1], copy.token_ids[3]), (unknown, unknown));
        assert!(!copy.gold_ids.contains(&unknown));
    }
}

#[test]
fn an_example_that_one_teacher_cannot_mask_is_skipped() {
    let workshop = Workshop::new();
    let options = workshop.options(vec![workshop.corpus("c", "en", "ж cell\n\nmenu\n\n9 ж\n")]);
    let only_digits = workshop.teacher("digits", &["en"], &["9".to_owned()]);
    let entries = entries(&options, &[workshop.word_teacher("words", &["en"]), only_digits]);
    assert_eq!(skips(&entries), [("c.txt@0", "nothing_to_mask"), ("c.txt@9", "nothing_to_mask")]);
    assert_eq!(records(&entries).len(), 1);
    assert_eq!(workshop.quarantined("c").len(), 0);
}

#[test]
fn text_that_no_tokenizer_covers_is_quarantined() {
    let workshop = Workshop::new();
    let text = "ж ж menu\n\nж menu\n\nж ж 9\n\nжук\n\nmenu ж 9\n";
    let options = workshop.options(vec![workshop.corpus("c", "en", text)]);
    let only_digits = workshop.teacher("digits", &["en"], &["9".to_owned(), "menu".to_owned()]);
    let covering = workshop.teacher("covering", &["en"], &["9".to_owned(), "ж".to_owned()]);
    let words = workshop.word_teacher("words", &["en"]);
    let unknown = |teachers: &[IngestTeacher]| {
        let entries = entries(&options, teachers);
        assert_eq!(records(&entries).len() + skips(&entries).len(), 5);
        skips(&entries).iter().map(|(document, reason)| format!("{document} {reason}")).collect::<Vec<_>>()
    };
    let mostly = ["c.txt@0 mostly_unknown", "c.txt@21 mostly_unknown", "c.txt@30 mostly_unknown"];
    assert_eq!(unknown(&[words.clone(), only_digits]), mostly);
    let notes = workshop.quarantined("c");
    let mut texts: Vec<_> = notes.iter().map(|note| note["text"].as_str().unwrap()).collect();
    texts.sort_unstable();
    assert_eq!(texts, ["ж ж 9", "ж ж menu", "жук"]);
    assert!(notes.iter().all(|note| note["reason"] == "mostly_unknown" && note["language"] == "en"));
    assert_eq!(unknown(&[words, covering]), ["c.txt@30 mostly_unknown"], "one that covers it is enough");
}

#[test]
fn masks_depend_on_seed_corpus_teacher_and_round_and_on_nothing_else() {
    let workshop = Workshop::new();
    let text = prose(3, 8);
    let mut one = workshop.corpus("one", "en", &text);
    one.rounds = 2;
    let same_text = feed_of("two", "en", Format::Text, one.feed.clone());
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

/// What a run without further settings makes must stay what earlier logs were made of.
#[test]
fn masks_of_single_tokens_stay_as_they_are() {
    let copies = copies(&prose(11, 40), |_| {});
    let mut bytes = Vec::new();
    for copy in &copies {
        for part in [&copy.token_ids, &copy.masked_positions, &copy.gold_ids] {
            bytes.extend(part.iter().flat_map(|number| number.to_le_bytes()));
        }
    }
    assert_eq!((copies.len(), crc32fast::hash(&bytes)), (223, 2_317_692_342));
}

/// Tokens of a copy that stand for one word, by their continuation.
fn words(tokenizer: &Tokenizer, ids: &[u32]) -> Vec<Range<usize>> {
    let mut words: Vec<Range<usize>> = Vec::new();
    for (at, id) in ids.iter().enumerate() {
        match words.last_mut() {
            Some(word) if tokenizer.vocabulary()[*id as usize].starts_with("##") => word.end = at + 1,
            _ => words.push(at..at + 1),
        }
    }
    words
}

#[test]
fn whole_words_are_masked_at_the_same_rates() {
    let workshop = Workshop::new();
    let teacher = workshop.teacher("pieces", &["en"], &pieces());
    let mask = teacher.tokenizer.special().mask;
    let mut options = workshop.options(vec![workshop.corpus("c", "en", prose(1, 250))]);
    (options.max_sequence_length, options.mask_unit) = (128, MaskUnit::Word);
    let entries = entries(&options, std::slice::from_ref(&teacher));
    let (mut tokens, mut masked, mut as_mask, mut kept, mut split) = (0, 0, 0, 0, 0);
    for record in records(&entries) {
        let copy = &record.copies[0];
        let whole = unmasked(copy);
        tokens += whole.len();
        masked += copy.masked_positions.len();
        let seen = |position: &u32| copy.token_ids[*position as usize];
        as_mask += copy.masked_positions.iter().filter(|position| seen(position) == mask).count();
        kept += copy.masked_positions.iter().zip(&copy.gold_ids).filter(|(at, gold)| seen(at) == **gold).count();
        assert!(!copy.masked_positions.is_empty() && copy.masked_positions.is_sorted());
        for word in words(&teacher.tokenizer, &whole) {
            let pieces = word.len();
            let of_it = word.filter(|at| copy.masked_positions.contains(&(*at as u32 + 1))).count();
            assert!(of_it == 0 || of_it == pieces, "{of_it} of {pieces} pieces of a word");
            split += usize::from(of_it > 1);
        }
    }
    assert!(tokens > 40_000 && split > 1000, "{tokens} tokens, {split} masked words of several pieces");
    let near = |count: usize, of: usize, expected: f64| (count as f64 / of as f64 - expected).abs() < 0.01;
    assert!(near(masked, tokens, 0.15), "{masked} of {tokens}");
    assert!(near(as_mask, masked, 0.8) && near(kept, masked, 0.1), "{as_mask} and {kept} of {masked}");
}

/// Word pieces of two letters.
fn pieces() -> Vec<String> {
    let letters = 'a'..='z';
    let pairs = letters.clone().flat_map(|a| letters.clone().map(move |b| format!("{a}{b}")));
    let tokens = pairs.chain(letters.clone().map(String::from));
    let continued: Vec<String> = tokens.flat_map(|token| [format!("##{token}"), token]).collect();
    continued.into_iter().chain([",", "."].map(str::to_owned)).collect()
}

/// The words of the text that a copy masks, as bytes of it; `text` is the example's.
fn masked_words(tokenizer: &Tokenizer, copy: &MaskedCopy, text: &str) -> BTreeSet<(usize, usize)> {
    let tokens = tokenizer.encode(text).unwrap();
    assert_eq!(tokens.ids, unmasked(copy));
    let masked = |at: usize| copy.masked_positions.contains(&(at as u32 + 1));
    let of_words = words(tokenizer, &tokens.ids).into_iter().filter_map(|word| {
        assert!(word.clone().all(masked) || !word.clone().any(masked), "a word is masked in part");
        masked(word.start).then(|| (tokens.offsets[word.start].0, tokens.offsets[word.end - 1].1))
    });
    of_words.collect()
}

#[test]
fn aligned_copies_mask_the_same_words() {
    let workshop = Workshop::new();
    let golden = |name: &str| {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../daemon/demo/teachers").join(name);
        let tokenizer = Arc::new(Tokenizer::load(&folder).unwrap());
        IngestTeacher { name: name.to_owned(), languages: vec!["en".to_owned()], labels: true, tokenizer }
    };
    let teachers = [golden("demo-en"), golden("demo-es"), workshop.letter_teacher("letters", &["en"])];
    let odd = "Straße, naïve café — don't! 表格 opens; ﬁnd 10€ [MASK] a\u{301}b ŻÓŁW x²\n\n".repeat(30);
    let corpus = workshop.corpus("c", "en", prose(5, 60) + &odd);
    let mut options = workshop.options(vec![corpus]);
    (options.max_sequence_length, options.mask_unit) = (64, MaskUnit::SharedWord);
    let found = entries(&options, &teachers);
    let (mut masked, mut shared, mut of_several_pieces) = (0, 0, 0);
    for record in records(&found) {
        let text = text_of(record, &workshop.path("c.txt"));
        let each = |index: usize| masked_words(&teachers[index].tokenizer, &record.copies[index], &text);
        let covered = |words: BTreeSet<(usize, usize)>| -> BTreeSet<usize> {
            words.into_iter().flat_map(|(first, end)| first..end).collect()
        };
        let first = covered(each(0));
        assert!(!first.is_empty() && first == covered(each(1)) && first == covered(each(2)), "{text}");
        masked += each(0).len();
        shared += words(&teachers[0].tokenizer, &unmasked(&record.copies[0])).len();
        of_several_pieces += record.copies[2].masked_positions.len() - each(2).len();
        for (copy, teacher) in record.copies.iter().zip(&teachers) {
            assert!(!copy.gold_ids.contains(&teacher.tokenizer.special().unk));
        }
    }
    assert!(records(&found).len() > 500 && of_several_pieces > 1000, "{of_several_pieces}");
    let rate = masked as f64 / shared as f64;
    assert!((0.13..0.17).contains(&rate), "{masked} of {shared} words");
    assert_eq!(found, entries(&options, &teachers), "a function of seed and text");

    options.seed += 1;
    let reseeded = entries(&options, &teachers);
    let masks = |entries: &[Entry]| {
        records(entries).iter().map(|record| record.copies[0].masked_positions.clone()).collect::<Vec<_>>()
    };
    assert_ne!(masks(&found), masks(&reseeded));
}
