//! Answers, as the script of SQuAD 1.1 scores them (Rajpurkar et al., 2016).

use std::collections::HashMap;

/// Whether an answer is one of the gold answers, and its best F1 over common words, both 0 to 1.
#[must_use]
pub fn score<S: AsRef<str>>(predicted: &str, gold: &[S]) -> (f64, f64) {
    let predicted = normalise(predicted);
    let of = |gold: &S| {
        let gold = normalise(gold.as_ref());
        (f64::from(u8::from(gold == predicted)), f1(&predicted, &gold))
    };
    gold.iter().map(of).fold((0.0, 0.0), |best, one| (f64::max(best.0, one.0), f64::max(best.1, one.1)))
}

/// Lower case, without ASCII punctuation and English articles, a space between words.
#[must_use]
pub fn normalise(answer: &str) -> String {
    let text: String = answer.to_lowercase().chars().filter(|c| !c.is_ascii_punctuation()).collect();
    // Articles become spaces, wherever a word begins and ends: inside `x—the—y` too.
    let mut without = String::with_capacity(text.len());
    let mut rest = &text[..];
    while !rest.is_empty() {
        let in_word = rest.starts_with(is_word);
        let end = rest.find(|c| is_word(c) != in_word).unwrap_or(rest.len());
        let (run, others) = rest.split_at(end);
        without.push_str(if in_word && ["a", "an", "the"].contains(&run) { " " } else { run });
        rest = others;
    }
    // Python counts the ASCII separators as white space.
    let is_space = |c: char| c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c);
    without.split(is_space).filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn f1(predicted: &str, gold: &str) -> f64 {
    let words = |answer: &str| answer.split(' ').filter(|word| !word.is_empty()).count();
    let mut left: HashMap<&str, usize> = HashMap::new();
    gold.split(' ').filter(|word| !word.is_empty()).for_each(|word| *left.entry(word).or_default() += 1);
    let mut common = 0;
    for word in predicted.split(' ') {
        if let Some(count) = left.get_mut(word).filter(|count| **count > 0) {
            *count -= 1;
            common += 1;
        }
    }
    if common == 0 {
        return 0.0;
    }
    let (precision, recall) = (f64::from(common) / words(predicted) as f64, f64::from(common) / words(gold) as f64);
    2.0 * precision * recall / (precision + recall)
}
