use crate::workshop::{Workshop, entries, prose, records, skips, text_of, unmasked};
use ingest::IngestTeacher;
use model::Tokenizer;
use std::sync::Arc;

const FEWEST_TOKENS: usize = 8;

/// Cuts `text` (one document) for two usual teachers; see [`check_with`].
fn check(text: &str, max_sequence_length: usize) -> Vec<String> {
    let workshop = Workshop::new();
    let teachers = [workshop.word_teacher("words", &["en"]), workshop.letter_teacher("letters", &["en"])];
    check_with(&workshop, &teachers, text, max_sequence_length)
}

/// Cuts `text` (one document) and checks everything that holds for every document. Returns the spans' texts.
fn check_with(workshop: &Workshop, teachers: &[IngestTeacher], text: &str, max_sequence_length: usize) -> Vec<String> {
    let corpus = workshop.corpus("c", "en", text);
    let file = workshop.path("c.txt");
    let mut options = workshop.options(vec![corpus]);
    options.max_sequence_length = max_sequence_length;
    let entries = entries(&options, teachers);
    assert_eq!(skips(&entries), []);
    let records = records(&entries);

    let mut covered = 0;
    let mut spans = Vec::new();
    for (index, record) in records.iter().enumerate() {
        assert_eq!(record.span.first, covered, "spans tile the document");
        covered = record.span.end;
        let span = text_of(record, &file);
        assert_eq!(record.copies.len(), teachers.len());
        for (copy, teacher) in record.copies.iter().zip(teachers) {
            assert!(copy.token_ids.len() <= max_sequence_length, "{} tokens", copy.token_ids.len());
            assert_eq!(unmasked(copy), teacher.tokenizer.encode(&span).unwrap().ids, "tokens of {span:?}");
        }
        let longest = record.copies.iter().map(|copy| copy.token_ids.len() - 2).max().unwrap();
        let crowded = max_sequence_length == 16; // a span before a long word may have to stay short
        assert!(longest >= FEWEST_TOKENS || records.len() == 1 || crowded, "span {index}: {span:?}");
        spans.push(span);
    }
    assert_eq!(spans.concat(), text.trim_end_matches('\n').trim_end_matches('\r'));
    spans
}

/// Whether each cut lies between words in every tokenisation of the whole text.
fn cuts_between_words(spans: &[String]) -> bool {
    let workshop = Workshop::new();
    let teachers: [IngestTeacher; 2] = [workshop.word_teacher("w", &["en"]), workshop.letter_teacher("l", &["en"])];
    let text = spans.concat();
    let mut cuts: Vec<usize> = Vec::new();
    for span in &spans[..spans.len() - 1] {
        cuts.push(cuts.last().unwrap_or(&0) + span.len());
    }
    teachers.iter().all(|teacher| {
        let tokens = teacher.tokenizer.encode(&text).unwrap();
        cuts.iter().all(|cut| {
            let next = tokens.offsets.partition_point(|(first, _)| first < cut);
            let whole = next == 0 || tokens.offsets[next - 1].1 <= *cut;
            let continues = |id: &u32| teacher.tokenizer.vocabulary()[*id as usize].starts_with("##");
            whole && !tokens.ids.get(next).is_some_and(continues)
        })
    })
}

#[test]
fn documents_of_many_kinds() {
    let single = |seed| prose(seed, 1).trim_end().to_owned();
    let texts = [
        single(1),
        single(2),
        single(3).replace('\n', "\r\n"),
        single(4).replace('\n', " "),
        single(5).replace(['.', ',', '\n'], ""),
        "the menu. ".repeat(200),
        "打开表格。文件格表！".repeat(100),
        "打开表格文件".repeat(100),
        "café Menü\u{a0}naïve\u{2028}row\u{c}s e\u{301}cole \u{200d}cells 🙂 table-column (save) ".repeat(30),
        "   indented\n\tlines\n".repeat(60),
        "save,print;sort!(chart)?".repeat(60),
    ];
    for text in &texts {
        for max_sequence_length in [16, 32, 128] {
            let spans = check(text, max_sequence_length);
            assert!(cuts_between_words(&spans), "{spans:?}");
        }
    }
}

#[test]
fn tokenizers_that_look_across_words() {
    let workshop = Workshop::new();
    let mut teacher = workshop.word_teacher("phrases", &["en"]);
    let added = |content: &str, more: &str| format!(r#"{{"content": "{content}", "normalized": false, {more}}}"#);
    let id = teacher.tokenizer.len();
    let settings = format!(
        r#"{{"do_lower_case": true, "added_tokens_decoder": {{"{}": {}, "{}": {}}}}}"#,
        id,
        added("the menu opens", r#""special": false"#),
        id + 1,
        added("row", r#""single_word": true, "lstrip": true, "special": false"#)
    );
    workshop.write("teachers/phrases/tokenizer_config.json", settings);
    teacher.tokenizer = Arc::new(Tokenizer::load(&workshop.path("teachers/phrases")).unwrap());
    assert_eq!(teacher.tokenizer.encode("the menu opens").unwrap().ids.len(), 1);
    for text in ["the menu opens ".repeat(80), "row a row rows. ".repeat(60), "the menu opens a row\n".repeat(50)] {
        for max_sequence_length in [16, 32] {
            check_with(&workshop, &[teacher.clone()], &text, max_sequence_length);
        }
    }
}

#[test]
fn a_word_longer_than_the_limit_is_cut() {
    let word: String = ('a'..='z').cycle().take(95).collect();
    let spans = check(&format!("the menu {word} opens a window {word} {word}"), 32);
    assert!(!cuts_between_words(&spans));
    // No tokenizer spells more than 100 letters: one unknown word, which any span has room for.
    let spans = check(&format!("the menu {} opens", word.repeat(20)), 128);
    assert_eq!(spans.len(), 1);
}

#[test]
fn cuts_prefer_lines_then_sentences_then_spaces() {
    // 30 tokens fit.
    let check_first = |text: &str, first: &str| assert_eq!(check(text, 32)[0], first);
    check_first(
        "a a a a a a a a a a a a a a a a a\na a a. a a a a a a a a a a a a a a a",
        "a a a a a a a a a a a a a a a a a\n",
    );
    check_first(
        "a a a a a a a a a a a a a a a. (a a.) a a a a a a a a a a a a a a a",
        "a a a a a a a a a a a a a a a. (a a.) ",
    );
    check_first(
        "a a a a a a a a a a a a a a a a a a a a table a a a table, table",
        "a a a a a a a a a a a a a a a a a a a a table a a a ",
    );
    check_first("((((((((((((((((((((((((((((((((((((((((", "((((((((((((((((((((((((((((((");
    // A line end that would leave the example nearly empty does not count.
    check_first(&format!("a\n{}", "a ".repeat(40)), &format!("a\n{}", "a ".repeat(29)));
}

#[test]
fn a_short_rest_takes_from_its_neighbour() {
    for words in (31..50).chain(505..560) {
        let spans = check(&"a ".repeat(words), 32);
        assert_eq!(spans.len(), words.div_ceil(30), "{words} words");
    }
}

#[test]
fn short_documents_stay_whole() {
    assert_eq!(check("menu", 32), ["menu"]);
    assert_eq!(check("a a a a\n", 32), ["a a a a"]);
}

#[test]
fn names_of_special_tokens_in_a_text_are_kept_and_never_masked() {
    let workshop = Workshop::new();
    let teacher = workshop.word_teacher("words", &["en"]);
    let special = teacher.tokenizer.special();
    let corpus = workshop.corpus("c", "en", "a [MASK] [SEP]\n\n".repeat(50));
    let mut options = workshop.options(vec![corpus]);
    options.mask_probability = 1.0;
    let entries = entries(&options, &[teacher]);
    let records = records(&entries);
    assert_eq!(records.len(), 50);
    for record in records {
        assert_eq!(record.copies[0].masked_positions, [1]);
        assert_eq!(record.copies[0].token_ids[2..], [special.mask, special.sep, special.sep]);
    }
}

#[test]
fn text_without_words_is_bounded() {
    let workshop = Workshop::new();
    let text = format!("{}\n\nthe menu opens a window\n", "x".repeat(1 << 20));
    let options = workshop.options(vec![workshop.corpus("c", "en", text)]);
    let entries = entries(&options, &[workshop.word_teacher("words", &["en"])]);
    assert_eq!(records(&entries).len(), 1);
    let skips = skips(&entries);
    assert_eq!(skips.len(), 16, "1 MiB in spans of 64 KiB");
    assert!(skips.iter().all(|skip| *skip == ("c.txt@0", "mostly_unknown")));
}
