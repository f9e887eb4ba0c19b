//! Entities in tags, as seqeval's default mode finds them (`seqeval.metrics.f1_score` without `mode`), which is what the
//! script `conlleval` of CoNLL 2000 does: an entity also begins where a tag says that it goes on, but nothing came before it, or
//! something of another type.

use super::percent;
use std::collections::HashSet;

/// An entity: its type, and its first and last word, counted over all sentences.
pub type Entity<'a> = (&'a str, usize, usize);

/// How many entities there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// In the gold tags.
    pub gold: usize,
    /// In the predicted tags.
    pub predicted: usize,
    /// In both.
    pub common: usize,
}

impl Counts {
    /// Precision, recall and F1 in percent; 0 where there is nothing to divide by.
    #[must_use]
    pub fn percentages(self) -> [f64; 3] {
        let (precision, recall) = (percent(self.common, self.predicted), percent(self.common, self.gold));
        let sum = precision + recall;
        [precision, recall, if sum == 0.0 { 0.0 } else { 2.0 * precision * recall / sum }]
    }
}

/// Counts the entities of sentences.
#[must_use]
pub fn count<S: AsRef<str>>(gold: &[Vec<S>], predicted: &[Vec<S>]) -> Counts {
    let of = |sentences| -> HashSet<Entity<'_>> { entities(sentences).into_iter().collect() };
    let (gold, predicted) = (of(gold), of(predicted));
    Counts { gold: gold.len(), predicted: predicted.len(), common: gold.intersection(&predicted).count() }
}

/// The entities of sentences, in order. Behind each sentence one word is counted that belongs to none.
#[must_use]
pub fn entities<S: AsRef<str>>(sentences: &[Vec<S>]) -> Vec<Entity<'_>> {
    let tags = sentences.iter().flat_map(|sentence| sentence.iter().map(AsRef::as_ref).chain(["O"]));
    let mut found = Vec::new();
    let (mut before, mut first) = (Tag::of("O"), 0);
    before.kind = "";
    for (at, tag) in tags.chain(["O"]).map(Tag::of).enumerate() {
        if ends(before, tag) {
            found.push((before.kind, first, at.saturating_sub(1)));
        }
        if starts(before, tag) {
            first = at;
        }
        before = tag;
    }
    found
}

/// A tag in its parts: `B-PER` is `B` and `PER`.
#[derive(Clone, Copy)]
struct Tag<'a> {
    place: char,
    kind: &'a str,
}

impl<'a> Tag<'a> {
    fn of(tag: &'a str) -> Self {
        let mut rest = tag.chars();
        let place = rest.next().unwrap_or('O');
        let rest = rest.as_str();
        let kind = rest.split_once('-').map_or(rest, |(_, kind)| kind);
        Self { place, kind: if kind.is_empty() { "_" } else { kind } }
    }
}

fn ends(before: Tag<'_>, tag: Tag<'_>) -> bool {
    matches!((before.place, tag.place), ('E' | 'S', _) | ('B' | 'I', 'B' | 'S' | 'O'))
        || (!matches!(before.place, 'O' | '.') && before.kind != tag.kind)
}

fn starts(before: Tag<'_>, tag: Tag<'_>) -> bool {
    matches!((before.place, tag.place), (_, 'B' | 'S') | ('E' | 'S' | 'O', 'E' | 'I'))
        || (!matches!(tag.place, 'O' | '.') && before.kind != tag.kind)
}
