//! Which source the next entry comes from: languages ∝ n_k^α, sources inside a language ∝ their characters.
//!
//! n_k counts what is available, never what was consumed. Only sources that have something now are drawn, and those
//! that have nothing leave their share to the others meanwhile. Before that, each list of files makes one entry.

use crate::overrides::Overrides;
use model::random::Philox;
use std::collections::BTreeMap;
use std::sync::Arc;
use store::{SequenceNumber, SourceCursor};

/// Draws sources. A draw is a function of the seed, the sequence number, the candidates and the overrides.
pub(crate) struct Sampler {
    alpha: f64,
    language: Philox,
    corpus: Philox,
}

/// A source as the sampler sees it.
#[derive(Clone, Copy)]
pub(crate) struct Candidate<'a> {
    pub(crate) cursor: &'a SourceCursor,
    /// Read before everything else; has no share.
    pub(crate) before_others: bool,
    /// A list of files without an entry so far. It makes its first one before the draws by share, however small its share is:
    /// training waits for that.
    pub(crate) unread: bool,
    /// It has not ended, and nobody has suspended it.
    pub(crate) open: bool,
    /// It has something now.
    pub(crate) ready: bool,
}

/// A language with open sources.
#[derive(Clone, Debug)]
pub(crate) struct LanguageShare {
    pub(crate) language: Arc<str>,
    /// n_k, of all its sources: those that have ended were available too.
    pub(crate) characters: u64,
    /// Of the draws while all have something.
    pub(crate) share: f64,
    /// n_k^α.
    weight: f64,
    /// Indices of its open sources.
    open: Vec<usize>,
}

impl Sampler {
    pub(crate) fn new(seed: u64, alpha: f64) -> Self {
        Self { alpha, language: Philox::new(seed, "language", &[]), corpus: Philox::new(seed, "corpus", &[]) }
    }

    /// Index of the source that entry `sequence` comes from; `None` if none has anything.
    pub(crate) fn draw(
        &self,
        sequence: SequenceNumber,
        candidates: &[Candidate],
        overrides: &Overrides,
    ) -> Option<usize> {
        let ready = |candidate: &Candidate| candidate.open && candidate.ready;
        let first = |is_first: fn(&Candidate) -> bool| {
            candidates.iter().position(|candidate| is_first(candidate) && ready(candidate))
        };
        let first = first(|candidate| candidate.before_others).or_else(|| first(|candidate| candidate.unread));
        if first.is_some() {
            return first;
        }
        let mut languages = self.languages(candidates, overrides);
        for language in &mut languages {
            language.open.retain(|index| candidates[*index].ready);
        }
        languages.retain(|language| !language.open.is_empty());
        let mut weights: Vec<f64> = languages.iter().map(|language| language.share).collect();
        if weights.iter().sum::<f64>() <= 0.0 {
            weights = languages.iter().map(|language| language.weight).collect();
        }
        let open = &languages.get(pick(&weights, self.language.uniform(sequence.0, 0))?)?.open;
        let weights: Vec<f64> = open.iter().map(|index| characters(&candidates[*index]) as f64).collect();
        Some(open[pick(&weights, self.corpus.uniform(sequence.0, 0))?])
    }

    /// Each source's share of the draws from now on, as long as all open ones have something.
    pub(crate) fn shares(&self, candidates: &[Candidate], languages: &[LanguageShare]) -> Vec<f64> {
        let mut shares = vec![0.0; candidates.len()];
        for language in languages {
            let open_characters: u64 = language.open.iter().map(|index| characters(&candidates[*index])).sum();
            for index in &language.open {
                let part = characters(&candidates[*index]) as f64 / open_characters as f64;
                shares[*index] = part * language.share;
            }
        }
        shares
    }

    /// The languages with open sources, by name. Those that are overridden have the share that was set; the others
    /// divide the rest ∝ n_k^α.
    pub(crate) fn languages(&self, candidates: &[Candidate], overrides: &Overrides) -> Vec<LanguageShare> {
        let mut languages: BTreeMap<&Arc<str>, LanguageShare> = BTreeMap::new();
        for (index, candidate) in candidates.iter().enumerate().filter(|(_, candidate)| !candidate.before_others) {
            let language = &candidate.cursor.language;
            let entry = languages.entry(language).or_insert_with(|| LanguageShare::new(Arc::clone(language)));
            entry.characters += characters(candidate);
            if candidate.open {
                entry.open.push(index);
            }
        }
        let alpha = overrides.alpha.unwrap_or(self.alpha);
        let mut languages: Vec<LanguageShare> =
            languages.into_values().filter(|language| !language.open.is_empty()).collect();
        let (mut set, mut free) = (0.0, 0.0);
        for language in &mut languages {
            language.weight = (language.characters as f64).powf(alpha);
            match overrides.shares.get(&language.language) {
                Some(share) => set += share,
                None => free += language.weight,
            }
        }
        let rest = (1.0 - set).max(0.0);
        // Without any language that divides the rest, those that are set divide all.
        let whole = if free > 0.0 { set + rest } else { set };
        for language in &mut languages {
            language.share = match overrides.shares.get(&language.language) {
                Some(share) => share / whole,
                None => rest / whole * language.weight / free,
            };
        }
        languages
    }
}

impl LanguageShare {
    fn new(language: Arc<str>) -> Self {
        Self { language, characters: 0, share: 0.0, weight: 0.0, open: Vec::new() }
    }
}

/// At least 1, so that an empty source is drawn at last and its end recorded.
fn characters(candidate: &Candidate) -> u64 {
    candidate.cursor.characters_available.max(1)
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const LANGUAGES: [&str; 4] = ["de", "en", "fi", "tr"];
    const DRAWS: u64 = 400_000;

    fn cursors(sizes: [u64; 4]) -> Vec<SourceCursor> {
        let cursors = LANGUAGES.iter().zip(sizes);
        cursors.map(|(language, size)| SourceCursor::start((*language).into(), (*language).into(), size)).collect()
    }

    fn candidates<'a>(cursors: &'a [SourceCursor], ready: &[bool]) -> Vec<Candidate<'a>> {
        let candidates = cursors.iter().zip(ready);
        candidates
            .map(|(cursor, ready)| Candidate { cursor, before_others: false, unread: false, open: true, ready: *ready })
            .collect()
    }

    /// Sizes that change while it runs, and consumption that is anything but proportional to them: the realised shares of
    /// each stretch follow the sizes alone, and over all stretches they are the mean of what each stretch is due.
    #[test]
    fn realised_shares_follow_the_sizes_within_one_percent() {
        let stretches = [
            [1_000, 1_000, 1_000, 1_000],
            [9_000_000, 1_000, 40_000, 700_000],
            [9_000_000, 5_000_000, 40_000, 700_000],
            [9_000_000, 80_000_000, 900_000, 700_001],
        ];
        for alpha in [0.3, 0.7] {
            let sampler = Sampler::new(11, alpha);
            let (mut total, mut due) = ([0.0; 4], [0.0; 4]);
            for (stretch, sizes) in stretches.iter().enumerate() {
                let mut cursors = cursors(*sizes);
                let weights = sizes.map(|size| (size as f64).powf(alpha));
                let sum: f64 = weights.iter().sum();
                let mut drawn = [0.0; 4];
                for sequence in (0..DRAWS).map(|draw| SequenceNumber(stretch as u64 * DRAWS + draw)) {
                    let candidates = candidates(&cursors, &[true; 4]);
                    let index = sampler.draw(sequence, &candidates, &Overrides::default()).unwrap();
                    drawn[index] += 1.0;
                    // Consumption moves the cursor far, in one language further than in another.
                    cursors[index].document_offset_bytes += 1_000 * (1 + index as u64 * index as u64);
                }
                for index in 0..4 {
                    let (found, expected) = (drawn[index] / DRAWS as f64, weights[index] / sum);
                    assert!((found - expected).abs() < 0.01 * expected.max(0.1), "α {alpha}, {sizes:?}: {drawn:?}");
                    total[index] += found;
                    due[index] += expected;
                }
            }
            for (found, expected) in total.iter().zip(due) {
                assert!((found - expected).abs() < 0.01 * expected, "α {alpha}: {total:?}, not {due:?}");
            }
        }
    }

    #[test]
    fn what_nobody_has_read_of_makes_a_first_entry() {
        let sampler = Sampler::new(5, 0.7);
        let cursors = cursors([1 << 40, 1 << 40, 1, 0]);
        let overrides = Overrides { shares: [("de".into(), 1.0)].into(), ..Overrides::default() };
        let mut candidates = candidates(&cursors, &[true; 4]);
        let draw = |candidates: &[Candidate]| sampler.draw(SequenceNumber(0), candidates, &overrides);
        candidates.iter_mut().skip(2).for_each(|candidate| candidate.unread = true);
        assert_eq!(draw(&candidates), Some(2));
        candidates[2].open = false;
        assert_eq!(draw(&candidates), Some(3));
        candidates[3].unread = false;
        assert_eq!(draw(&candidates), Some(0));
    }

    #[test]
    fn languages_without_anything_leave_their_share_to_the_others() {
        let sampler = Sampler::new(3, 0.5);
        let cursors = cursors([40_000, 10_000, 90_000, 1_000_000]);
        let overrides = Overrides { shares: [("tr".into(), 0.4)].into(), ..Overrides::default() };
        let check = |ready: [bool; 4], overrides: &Overrides, expected: [f64; 4]| {
            let candidates = candidates(&cursors, &ready);
            let mut drawn = [0.0; 4];
            for sequence in 0..100_000 {
                drawn[sampler.draw(SequenceNumber(sequence), &candidates, overrides).unwrap()] += 1e-5;
            }
            for (found, expected) in drawn.iter().zip(expected) {
                assert!((found - expected).abs() < 0.01, "{ready:?}: {drawn:?}, not {expected:?}");
            }
        };
        check([true; 4], &Overrides::default(), [0.125, 0.0625, 0.1875, 0.625]);
        check([true, true, true, false], &Overrides::default(), [1.0 / 3.0, 1.0 / 6.0, 0.5, 0.0]);
        check([true; 4], &overrides, [0.2, 0.1, 0.3, 0.4]);
        check([true, false, false, true], &overrides, [1.0 / 3.0, 0.0, 0.0, 2.0 / 3.0]);
        check([false, false, false, true], &overrides, [0.0, 0.0, 0.0, 1.0]);
        // What is set takes everything: the others are drawn when it has nothing.
        let all = Overrides { shares: [("tr".into(), 1.0)].into(), ..Overrides::default() };
        check([true; 4], &all, [0.0, 0.0, 0.0, 1.0]);
        check([true, true, false, false], &all, [2.0 / 3.0, 1.0 / 3.0, 0.0, 0.0]);
        let none = candidates(&cursors, &[false; 4]);
        assert_eq!(sampler.draw(SequenceNumber(0), &none, &Overrides::default()), None);
    }
}
