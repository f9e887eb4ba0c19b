#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use super::*;

const OPTIONS: LearningOptions = LearningOptions { size: 60, min_frequency: 1, limit_alphabet: 1000 };

fn counted(lowercase: bool, text: &str) -> WordCounts {
    let mut counts = WordCounts::new(lowercase);
    text.lines().for_each(|line| counts.add(line).unwrap());
    counts
}

#[test]
fn words_are_counted_as_bert_cuts_them() {
    for (lowercase, text, expected) in [
        (false, "Ein Haus, ein Haus!", &[("!", 1), (",", 1), ("Ein", 1), ("Haus", 2), ("ein", 1)][..]),
        (true, "Été été\tETE", &[("ete", 3)]),
        (false, "漢字 a\u{0}b", &[("ab", 1), ("字", 1), ("漢", 1)]),
        (false, &"x".repeat(101), &[]),
    ] {
        let words: BTreeMap<String, u64> = counted(lowercase, text).words.into_iter().collect();
        let expected: BTreeMap<String, u64> =
            expected.iter().map(|(word, count)| ((*word).to_owned(), *count)).collect();
        assert_eq!(words, expected, "{text}");
    }
}

#[test]
fn frequent_pairs_are_joined_first() {
    let learned = counted(false, "abab abab abab cd cd ce").learn(&LearningOptions { size: 16, ..OPTIONS }).unwrap();
    let expected = "[PAD] [UNK] [CLS] [SEP] [MASK] a b c d e ##a ##b ##d ##e ab ##ab";
    // `ab` and `##ab`, each three times, come before `cd`.
    assert_eq!(learned.tokens, expected.split(' ').collect::<Vec<_>>());
    assert_eq!((learned.characters, learned.special.mask), (5, 4));
}

#[test]
fn the_same_text_gives_the_same_vocabulary_in_any_order() {
    let text = "der Hund und die Katze und das Pferd sehen den Hund der Katze und die Pferde der Hunde \
                the dog and the cat and the horse see the dog of the cat and the horses of the dogs";
    let words: Vec<&str> = text.split(' ').collect();
    let learn = |words: &[&str]| counted(false, &words.join("\n")).learn(&OPTIONS).unwrap().tokens;
    let expected = learn(&words);
    let backwards: Vec<&str> = words.into_iter().rev().collect();
    // Each map has an order of its own.
    (0..10).for_each(|_| assert_eq!(learn(&backwards), expected));
    assert!(expected.len() == 60 && expected.contains(&"the".to_owned()), "{expected:?}");
}

#[test]
fn options_limit_what_is_learned() {
    let text = "aa aa aa ab ab ac";
    for (size, min_frequency, limit_alphabet, expected) in [
        // Of `a`, `b`, `c`: words with `c` teach nothing.
        (40, 1, 2, Ok("a b ##a ##b aa ab")),
        (40, 3, 1000, Ok("a b c ##a ##b ##c aa")),
        (11, 1, 1000, Ok("a b c ##a ##b ##c")),
        (10, 1, 1000, Err("a vocabulary of 10 tokens is too small: 3 characters")),
        (10, 1, 0, Err("there is no word in the text")),
    ] {
        let learned = counted(false, text).learn(&LearningOptions { size, min_frequency, limit_alphabet });
        match (learned, expected) {
            (Ok(learned), Ok(expected)) => assert_eq!(learned.tokens[5..].join(" "), expected),
            (Err(error), Err(expected)) => assert!(error.to_string().starts_with(expected), "{error}"),
            (learned, expected) => panic!("{learned:?} instead of {expected:?}"),
        }
    }
}

#[test]
fn counts_beyond_32_bits_give_what_smaller_ones_give() {
    let mut counts = counted(false, "aa aa aa ab ab ac de");
    let options = LearningOptions { min_frequency: 2, ..OPTIONS };
    let expected = counts.learn(&options).unwrap();
    assert!(expected.tokens.contains(&"ab".to_owned()) && !expected.tokens.contains(&"ac".to_owned()));
    counts.words.values_mut().for_each(|count| *count <<= 40);
    let options = LearningOptions { min_frequency: 2 << 40, ..OPTIONS };
    assert_eq!(counts.learn(&options).unwrap(), expected);
}

#[test]
fn rare_words_are_forgotten_when_there_are_too_many() {
    let mut counts = WordCounts { words_max: 3, ..WordCounts::new(false) };
    counts.add("a a a b b c d a").unwrap();
    let words: BTreeMap<&str, u64> = counts.words.iter().map(|(word, count)| (word.as_str(), *count)).collect();
    assert_eq!((words, counts.forgotten()), ([("a", 4), ("b", 2), ("d", 1)].into(), 1));
}
