use crate::workshop::{Workshop, entries, prose, records, text_of, unmasked};
use ingest::{IngestOptions, IngestTeacher, LaterTeacher, MaskUnit, Masking, NoCopy};
use model::Tokenizer;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use store::{MaskedCopy, Record};

const UNITS: [MaskUnit; 3] = [MaskUnit::Token, MaskUnit::Word, MaskUnit::SharedWord];

/// A teacher that comes to the log of `options`, whose first teachers are `others`.
fn later(options: &IngestOptions, index: u16, teacher: &IngestTeacher, others: &[IngestTeacher]) -> LaterTeacher {
    let masking = Masking { seed: options.seed, probability: options.mask_probability, unit: options.mask_unit };
    LaterTeacher::new(index, teacher, (0..).zip(others), masking, options.max_sequence_length)
}

fn demo(name: &str) -> IngestTeacher {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../daemon/demo/teachers").join(name);
    let tokenizer = Arc::new(Tokenizer::load(&folder).unwrap());
    IngestTeacher { name: name.to_owned(), languages: vec!["en".to_owned()], labels: true, tokenizer }
}

/// Prose, and characters that tokenizers treat in their own ways.
fn text() -> String {
    let odd = "Straße, naïve café — don't! 表格 opens; ﬁnd\u{a0}10€ [MASK] a\u{301}b\tŻÓŁW x²\u{200b}\n\n".repeat(20);
    prose(3, 40) + &odd
}

fn options(workshop: &Workshop, unit: MaskUnit) -> IngestOptions {
    let mut options = workshop.options(vec![workshop.corpus("c", "en", text())]);
    (options.mask_unit, options.keep_text, options.max_sequence_length) = (unit, true, 48);
    options
}

#[test]
fn the_text_is_that_of_the_span_and_is_kept_only_if_wanted() {
    let workshop = Workshop::new();
    let teachers = [workshop.word_teacher("words", &["en"]), demo("demo-es")];
    let mut options = options(&workshop, MaskUnit::Token);
    let kept = entries(&options, &teachers);
    let file = workshop.path("c.txt");
    for record in records(&kept) {
        assert_eq!(record.text.as_deref(), Some(&*text_of(record, &file)));
    }
    options.keep_text = false;
    let not_kept = entries(&options, &teachers);
    assert!(records(&not_kept).len() > 200);
    for (record, with_text) in records(&not_kept).into_iter().zip(records(&kept)) {
        assert_eq!(*record, Record { text: None, ..with_text.clone() });
    }
}

/// The proof that a text and the log's settings are all that a copy is made of.
#[test]
fn a_teacher_masks_its_own_copies_again() {
    for unit in UNITS {
        let workshop = Workshop::new();
        let teachers =
            [workshop.word_teacher("words", &["en"]), demo("demo-es"), workshop.letter_teacher("l", &["en"])];
        let options = options(&workshop, unit);
        let entries = entries(&options, &teachers);
        for (index, teacher) in (0..).zip(&teachers) {
            let later = later(&options, index, teacher, &teachers);
            for record in records(&entries) {
                let copy = later.copy(record, record.text.as_deref().unwrap()).unwrap();
                assert_eq!(copy.as_ref(), Ok(&record.copies[usize::from(index)]), "{unit:?}, {}", teacher.name);
            }
        }
    }
}

/// Bytes of the text that a copy masks.
fn masked_bytes(tokenizer: &Tokenizer, copy: &MaskedCopy, text: &str) -> BTreeSet<usize> {
    let tokens = tokenizer.encode(text).unwrap();
    assert_eq!(tokens.ids, unmasked(copy));
    let masked = copy.masked_positions.iter().map(|position| tokens.offsets[*position as usize - 1]);
    masked.flat_map(|(first, end)| first..end).collect()
}

/// Where words are masked together, a later copy masks words that the others mask, and no others.
#[test]
fn a_later_copy_is_aligned_with_the_others() {
    let workshop = Workshop::new();
    let teachers = [demo("demo-en"), demo("demo-es")];
    let letters = workshop.letter_teacher("letters", &["en"]);
    let mut options = options(&workshop, MaskUnit::SharedWord);
    options.max_sequence_length = 64;
    let found = entries(&options, &teachers);
    let later = later(&options, 2, &letters, &teachers);
    let (mut same, mut fewer, mut none) = (0, 0, 0);
    for record in records(&found) {
        let text = record.text.as_deref().unwrap();
        let first = masked_bytes(&teachers[0].tokenizer, &record.copies[0], text);
        match later.copy(record, text).unwrap() {
            Ok(copy) => {
                let own = masked_bytes(&letters.tokenizer, &copy, text);
                assert!(!own.is_empty() && own.is_subset(&first), "{text}");
                *(if own == first { &mut same } else { &mut fewer }) += 1;
                assert!(!copy.gold_ids.contains(&letters.tokenizer.special().unk));
            }
            Err(NoCopy::TooManyTokens) => {}
            Err(NoCopy::NothingToMask) => none += 1,
        }
    }
    assert!(same > 20 && fewer + none > 5, "{same} {fewer} {none}");
}

#[test]
fn what_cannot_be_a_copy_is_none() {
    let workshop = Workshop::new();
    let words = workshop.word_teacher("words", &["en"]);
    let mut options = workshop.options(vec![workshop.corpus("c", "en", "menu opens a window with cells\n\nж the\n")]);
    (options.keep_text, options.max_sequence_length) = (true, 16);
    let entries = entries(&options, std::slice::from_ref(&words));
    let records = records(&entries);
    let outcomes = |teacher: &IngestTeacher| {
        let later = later(&options, 1, teacher, &[]);
        let copy = |record: &&Record| later.copy(record, record.text.as_deref().unwrap()).unwrap().map(|_| ());
        records.iter().map(copy).collect::<Vec<_>>()
    };
    assert_eq!(outcomes(&workshop.letter_teacher("letters", &["en"])), [Err(NoCopy::TooManyTokens), Ok(())]);
    let digits = workshop.teacher("digits", &["en"], &["9".to_owned()]);
    assert_eq!(outcomes(&digits), [Err(NoCopy::NothingToMask); 2]);
}

#[test]
fn another_text_than_that_of_the_copies_is_noticed() {
    let workshop = Workshop::new();
    let teachers = [workshop.word_teacher("words", &["en"])];
    let mut options = options(&workshop, MaskUnit::SharedWord);
    let entries = entries(&options, &teachers);
    options.max_sequence_length = 512;
    let record = records(&entries)[0];
    let letters = workshop.letter_teacher("letters", &["en"]);
    let failure = |others: &[IngestTeacher], text: &str| {
        later(&options, 1, &letters, others).copy(record, text).map(|_| ()).unwrap_err().to_string()
    };
    let text = record.text.as_deref().unwrap();
    assert!(failure(&teachers, &format!("{text} menu")).contains("another text"));
    assert!(failure(&[], text).contains("the tokenizer of teacher number 0 is needed"));
}
