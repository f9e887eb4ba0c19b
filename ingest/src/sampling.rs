//! Which corpus the next entry comes from: languages ∝ n_k^α, corpora inside a language ∝ their characters.

use model::random::Philox;
use std::collections::BTreeMap;
use std::sync::Arc;
use store::{SequenceNumber, SourceCursor};

/// Draws corpora. A draw is a function of the seed, the sequence number and the cursors.
pub(crate) struct Sampler {
    alpha: f64,
    language: Philox,
    corpus: Philox,
}

/// A corpus as the sampler sees it.
#[derive(Clone, Copy)]
pub(crate) struct Supply<'a> {
    pub(crate) cursor: &'a SourceCursor,
    /// Read before everything else; has no share.
    pub(crate) evaluation_only: bool,
}

impl Sampler {
    pub(crate) fn new(seed: u64, alpha: f64) -> Self {
        Self { alpha, language: Philox::new(seed, "language", &[]), corpus: Philox::new(seed, "corpus", &[]) }
    }

    /// Index of the corpus that entry `sequence` comes from; `None` once all have ended.
    pub(crate) fn draw(&self, sequence: SequenceNumber, corpora: &[Supply]) -> Option<usize> {
        let evaluation = corpora.iter().position(|corpus| corpus.evaluation_only && !corpus.cursor.ended);
        if evaluation.is_some() {
            return evaluation;
        }
        let languages: Vec<Language> = self.languages(corpora).into_values().collect();
        let weights: Vec<f64> = languages.iter().map(|language| language.weight).collect();
        let open = &languages.get(pick(&weights, self.language.uniform(sequence.0, 0))?)?.open;
        let weights: Vec<f64> = open.iter().map(|index| characters(&corpora[*index]) as f64).collect();
        Some(open[pick(&weights, self.corpus.uniform(sequence.0, 0))?])
    }

    /// Each corpus's share of the draws from now on, until one of them ends.
    pub(crate) fn shares(&self, corpora: &[Supply]) -> Vec<f64> {
        let mut shares = vec![0.0; corpora.len()];
        let languages = self.languages(corpora);
        let total: f64 = languages.values().map(|language| language.weight).sum();
        for language in languages.values() {
            let open_characters: u64 = language.open.iter().map(|index| characters(&corpora[*index])).sum();
            for index in &language.open {
                let part = characters(&corpora[*index]) as f64 / open_characters as f64;
                shares[*index] = part * language.weight / total;
            }
        }
        shares
    }

    /// The languages with input left. n_k counts all their corpora: those that have ended were available too.
    fn languages(&self, corpora: &[Supply]) -> BTreeMap<Arc<str>, Language> {
        let mut languages: BTreeMap<Arc<str>, Language> = BTreeMap::new();
        for (index, corpus) in corpora.iter().enumerate().filter(|(_, corpus)| !corpus.evaluation_only) {
            let language = languages.entry(Arc::clone(&corpus.cursor.language)).or_default();
            language.characters += characters(corpus);
            if !corpus.cursor.ended {
                language.open.push(index);
            }
        }
        languages.retain(|_, language| !language.open.is_empty());
        for language in languages.values_mut() {
            language.weight = (language.characters as f64).powf(self.alpha);
        }
        languages
    }
}

#[derive(Default)]
struct Language {
    characters: u64,
    weight: f64,
    /// Corpora that have not ended.
    open: Vec<usize>,
}

/// At least 1, so that an empty corpus is drawn at last and its end recorded.
fn characters(corpus: &Supply) -> u64 {
    corpus.cursor.characters_available.max(1)
}

/// The index at which `uniform` (in [0, 1)) of the total weight falls.
fn pick(weights: &[f64], uniform: f64) -> Option<usize> {
    let mut left = uniform * weights.iter().sum::<f64>();
    for (index, weight) in weights.iter().enumerate() {
        if left < *weight {
            return Some(index);
        }
        left -= weight;
    }
    weights.len().checked_sub(1)
}
