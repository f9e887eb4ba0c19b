//! The labelling head: hidden states at masked positions → top-k logits, log-sum-exp and gold logit.
//!
//! The vocabulary goes by in tiles. Of each masked position, a row, only what the tiles so far came to is kept: the largest
//! logit, the sum of exponentials below it, and the candidates for the top k. So the logits of one tile are all that is ever in
//! memory. The tiles are the same for every batch, and a row's labels depend on that row alone. The last of the k entries may be drawn from the rest of the vocabulary instead ([`Tail`]).

mod tail;

pub use tail::Tail;

use model::elementary::{exp_nonpositive, sum_of};
use model::product::{Matrix, Packed, Start, multiply};
use model::simd::vectorised;
use store::Label;
use tail::TailScratch;

/// Tokens of a tile: a whole number of panels on every machine.
const TILE_TOKENS: usize = 512;
/// Rows whose logits of one tile are computed before they are looked at: few enough (192 KiB) for the second-level cache.
const BLOCK_ROWS: usize = 96;
/// Logits that are compared at a time. One vector of the widest kind holds half of them.
const LANES: usize = 32;

/// The decoder of a teacher, ready for products.
#[derive(Debug)]
pub struct Decoder {
    /// `[embedding, vocabulary]`
    weight: Packed,
    /// `[vocabulary]`
    bias: Vec<f32>,
    embedding: usize,
    words: usize,
}

impl Decoder {
    /// From `weight` `[vocabulary, embedding]` and `bias` `[vocabulary]`. Only the first `words` rows can be among the top k
    /// (the others are padding); all of them count in the log-sum-exp.
    ///
    /// # Panics
    /// When `weight` and `bias` are not of one vocabulary, or `words` are more than that.
    #[must_use]
    pub fn new(weight: &[f32], bias: &[f32], words: usize) -> Self {
        let vocabulary = bias.len();
        let embedding = weight.len() / vocabulary.max(1);
        assert_eq!(weight.len(), vocabulary * embedding, "a row of the weight per bias");
        assert!(words <= vocabulary, "{words} words in {vocabulary} rows");
        let weight = Packed::new(Matrix::new(weight, vocabulary, embedding).transposed());
        Self { weight, bias: bias.to_vec(), embedding, words }
    }

    /// Words that can be among the top k.
    #[must_use]
    pub fn words(&self) -> usize {
        self.words
    }
}

/// Buffers that are kept from call to call.
#[derive(Debug, Default)]
pub struct HeadScratch {
    /// `[≤ BLOCK_ROWS, TILE_TOKENS]`
    logits: Vec<f32>,
    rows: Vec<Row>,
    /// `[rows, capacity]`: a row's candidates, as [`key`]s.
    candidates: Vec<u64>,
    tail: TailScratch,
}

/// A logit that is not finite, by the lowest token id that has one in any row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NonFinite(pub usize);

/// Labels `hidden` `[masked, embedding]`, whose tokens were `gold_ids` `[masked]`: logits = hidden · weightᵀ + bias. Without a `tail` all k
/// entries are the best ones. Serial: callers cut the rows among threads, and get the same labels however they cut.
///
/// # Errors
/// When a logit is not finite.
///
/// # Panics
/// When the shapes do not agree, a gold id is not in the vocabulary, `top_k` is 0 or more than there are words, or the
/// tail has no sample or as many as `top_k`.
pub fn label_rows(
    decoder: &Decoder,
    hidden: &[f32],
    gold_ids: &[u32],
    top_k: usize,
    tail: Option<Tail<'_>>,
    scratch: &mut HeadScratch,
) -> Result<Label, NonFinite> {
    let (rows, vocabulary) = (gold_ids.len(), decoder.bias.len());
    assert_eq!(hidden.len(), rows * decoder.embedding, "a hidden state per gold id");
    assert!(gold_ids.iter().all(|&id| (id as usize) < vocabulary), "gold ids beyond {vocabulary}");
    assert!((1..=decoder.words).contains(&top_k), "the top {top_k} of {} words", decoder.words);
    let hidden = Matrix::new(hidden, rows, decoder.embedding);
    let capacity = scratch.prepare(rows, top_k);
    if let Some(tail) = &tail {
        assert!((1..top_k).contains(&tail.samples), "{} samples of a top {top_k}", tail.samples);
        assert_eq!(tail.uniforms.len(), rows, "a uniform number per gold id");
        scratch.tail.prepare(rows, vocabulary);
    }
    for (number, first) in (0..vocabulary).step_by(TILE_TOKENS).enumerate() {
        let tokens = TILE_TOKENS.min(vocabulary - first);
        let tile = Tile { first, words: decoder.words.saturating_sub(first).min(tokens), top_k };
        let (weight, bias) = (decoder.weight.columns(first, tokens), &decoder.bias[first..first + tokens]);
        let mut broken = None;
        let blocks = scratch.rows.chunks_mut(BLOCK_ROWS).zip(scratch.candidates.chunks_mut(BLOCK_ROWS * capacity));
        for ((block, candidates), start) in blocks.zip((0..).step_by(BLOCK_ROWS)) {
            let hidden = hidden.sub_rows(start, block.len());
            multiply(hidden, weight, Start::Bias(bias), &mut scratch.logits, TILE_TOKENS);
            let golds = &gold_ids[start..start + block.len()];
            let lines = scratch.logits.chunks(TILE_TOKENS).map(|line| &line[..tokens]);
            for (((row, line), candidates), &gold) in
                block.iter_mut().zip(lines).zip(candidates.chunks_mut(capacity)).zip(golds)
            {
                if vectorised(
                    #[inline(always)]
                    || row.add(&tile, line, candidates),
                )
                .is_none()
                {
                    let token = line.iter().position(|logit| !logit.is_finite()).map(|at| first + at);
                    broken = broken.into_iter().chain(token).min();
                }
                if let Some(&logit) = (gold as usize).checked_sub(first).and_then(|at| line.get(at)) {
                    row.gold_logit = logit;
                }
            }
        }
        if let Some(token) = broken {
            return Err(NonFinite(token));
        }
        if tail.is_some() {
            scratch.tail.note(&scratch.rows, number);
        }
    }
    let mut label = scratch.label(top_k, capacity);
    if let Some(tail) = &tail {
        tail::draw(decoder, hidden, tail, scratch, &mut label);
    }
    Ok(label)
}

impl HeadScratch {
    /// Begins `rows` rows. Returns how many candidates each may have at a time.
    fn prepare(&mut self, rows: usize, top_k: usize) -> usize {
        let capacity = (2 * top_k).max(LANES);
        self.logits.resize(BLOCK_ROWS.min(rows) * TILE_TOKENS, 0.0);
        self.rows.clear();
        self.rows.resize(rows, Row::default());
        self.candidates.resize(rows * capacity, 0);
        capacity
    }

    /// The labels of all rows, after the last tile.
    fn label(&mut self, top_k: usize, capacity: usize) -> Label {
        let rows = self.rows.len();
        let mut label = Label {
            top_k,
            top_ids: Vec::with_capacity(rows * top_k),
            top_logits: Vec::with_capacity(rows * top_k),
            log_sum_exp: Vec::with_capacity(rows),
            gold_logits: Vec::with_capacity(rows),
            ..Label::default()
        };
        for (row, candidates) in self.rows.iter_mut().zip(self.candidates.chunks_mut(capacity)) {
            row.keep_best(candidates, top_k);
            let best = &mut candidates[..top_k];
            best.sort_unstable_by(|a, b| b.cmp(a));
            label.top_ids.extend(best.iter().map(|&key| id_of(key)));
            label.top_logits.extend(best.iter().map(|&key| logit_of(key)));
            label.log_sum_exp.push((f64::from(row.maximum) + row.sum.ln()) as f32);
            label.gold_logits.push(row.gold_logit);
        }
        label
    }
}

/// What the rows of a tile have in common.
struct Tile {
    /// Its first token.
    first: usize,
    /// How many of its tokens can be among the top k.
    words: usize,
    top_k: usize,
}

/// What the tiles so far came to.
#[derive(Clone, Debug)]
struct Row {
    /// The largest logit.
    maximum: f32,
    /// Σ exp(logit − maximum). In f64: a vocabulary of 300,000 small terms loses digits in f32.
    sum: f64,
    /// The last tile's part of it, over the words alone.
    tile_sum: f32,
    gold_logit: f32,
    /// Only larger logits can be among the top k, because as many that are no smaller have lower ids.
    threshold: f32,
    /// Candidates for the top k so far.
    found: usize,
}

impl Default for Row {
    fn default() -> Self {
        let lowest = f32::NEG_INFINITY;
        Self { maximum: lowest, sum: 0.0, tile_sum: 0.0, gold_logit: lowest, threshold: lowest, found: 0 }
    }
}

impl Row {
    /// Adds a tile's logits; `None` if one of them is not finite.
    #[inline(always)]
    fn add(&mut self, tile: &Tile, logits: &[f32], candidates: &mut [u64]) -> Option<()> {
        let lanes = largest_finite(logits)?;
        let maximum = largest_of(lanes);
        if maximum > self.maximum {
            self.sum *= f64::from(self.maximum - maximum).exp();
            self.maximum = maximum;
        }
        let largest = self.maximum;
        let sum = |logits: &[f32]| sum_of(logits, logits, |logit, _| exp_nonpositive(logit - largest));
        let whole = sum(logits);
        self.sum += f64::from(whole);
        self.tile_sum = if tile.words == logits.len() { whole } else { sum(&logits[..tile.words]) };
        if maximum > self.threshold {
            if self.found == 0 && tile.words == TILE_TOKENS && tile.top_k <= LANES {
                self.threshold = just_below(lanes, tile.top_k);
            }
            self.gather(tile, &logits[..tile.words], candidates);
        }
        Some(())
    }

    /// Adds to the candidates what is above the threshold.
    #[inline(always)]
    fn gather(&mut self, tile: &Tile, logits: &[f32], candidates: &mut [u64]) {
        for (group, first) in logits.chunks(LANES).zip((tile.first..).step_by(LANES)) {
            let threshold = self.threshold;
            if group.iter().fold(false, |any, &logit| any | (logit > threshold)) {
                self.gather_from(group, first, tile.top_k, candidates);
            }
        }
    }

    fn gather_from(&mut self, group: &[f32], first: usize, top_k: usize, candidates: &mut [u64]) {
        for (&logit, id) in group.iter().zip(first as u32..) {
            if logit > self.threshold {
                candidates[self.found] = key(logit, id);
                self.found += 1;
                if self.found == candidates.len() {
                    self.keep_best(candidates, top_k);
                }
            }
        }
    }

    /// Forgets all candidates but the best `top_k`, of which there must be as many, and raises the threshold to the least.
    fn keep_best(&mut self, candidates: &mut [u64], top_k: usize) {
        let (_, least, _) = candidates[..self.found].select_nth_unstable_by(top_k - 1, |a, b| b.cmp(a));
        self.threshold = logit_of(*least);
        self.found = top_k;
    }
}

/// The largest value of every lane; `None` if one is not finite.
#[inline(always)]
fn largest_finite(values: &[f32]) -> Option<[f32; LANES]> {
    const INFINITY: u32 = f32::INFINITY.to_bits();
    let mut lanes = [f32::NEG_INFINITY; LANES];
    // Magnitudes in the order of their bits; infinity and what is not a number are at the end.
    let mut magnitudes = [0_u32; LANES];
    let mut add = |lane: usize, value: f32| {
        lanes[lane] = if value > lanes[lane] { value } else { lanes[lane] };
        magnitudes[lane] = magnitudes[lane].max(value.abs().to_bits());
    };
    let (chunks, rest) = values.as_chunks::<LANES>();
    for chunk in chunks {
        chunk.iter().enumerate().for_each(|(lane, &value)| add(lane, value));
    }
    rest.iter().enumerate().for_each(|(lane, &value)| add(lane, value));
    magnitudes.iter().all(|&magnitude| magnitude < INFINITY).then_some(lanes)
}

/// The largest lane, by halves.
#[inline(always)]
fn largest_of(mut lanes: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] = if lanes[lane + width] > lanes[lane] { lanes[lane + width] } else { lanes[lane] };
        }
        width /= 2;
    }
    lanes[0]
}

/// A threshold that at least `count` values exceed: as many lanes have one that is no smaller than the `count`-th of `largest`.
fn just_below(mut largest: [f32; LANES], count: usize) -> f32 {
    let (_, bound, _) = largest.select_nth_unstable_by(count - 1, |a, b| b.total_cmp(a));
    bound.next_down()
}

/// Orders tokens: the larger logit is the larger key; of equal ones the lower id.
fn key(logit: f32, id: u32) -> u64 {
    let bits = (logit + 0.0).to_bits(); // The sum makes −0 a 0: they are equal.
    let ordered = if bits >> 31 == 0 { bits | 1 << 31 } else { !bits };
    u64::from(ordered) << 32 | u64::from(!id)
}

fn id_of(key: u64) -> u32 {
    !(key as u32)
}

fn logit_of(key: u64) -> f32 {
    let ordered = (key >> 32) as u32;
    f32::from_bits(if ordered >> 31 == 1 { ordered & !(1 << 31) } else { !ordered })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers out of `levels` different ones within −3..3; few levels: many ties.
    fn values(count: usize, levels: u64, seed: u64) -> Vec<f32> {
        let stream = model::random::Philox::new(seed, "test", &[]);
        (0..count as u64).map(|i| stream.below(levels, i, 0) as f32 / levels as f32 * 6.0 - 3.0).collect()
    }

    /// An input that is the row's logits: the decoder's weight is the identity, so that every logit is exact.
    fn identity(bias: &[f32], words: usize) -> Decoder {
        let vocabulary = bias.len();
        let weight: Vec<f32> =
            (0..vocabulary * vocabulary).map(|at| if at % (vocabulary + 1) == 0 { 1.0 } else { 0.0 }).collect();
        Decoder::new(&weight, bias, words)
    }

    fn label(decoder: &Decoder, hidden: &[f32], golds: &[u32], top_k: usize) -> Result<Label, NonFinite> {
        label_rows(decoder, hidden, golds, top_k, None, &mut HeadScratch::default())
    }

    /// Sorts everything, and sums in f64: slow and obvious. `logits` `[rows, vocabulary]`.
    fn reference(logits: &[f32], vocabulary: usize, golds: &[u32], words: usize, top_k: usize) -> Label {
        let mut label = Label { top_k, ..Label::default() };
        for (row, &gold) in logits.chunks(vocabulary).zip(golds) {
            let mut all: Vec<(f32, u32)> = row[..words].iter().copied().zip(0..).collect();
            all.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
            label.top_logits.extend(all[..top_k].iter().map(|(logit, _)| logit));
            label.top_ids.extend(all[..top_k].iter().map(|(_, id)| id));
            let maximum = all[0].0.max(row[words..].iter().copied().fold(f32::MIN, f32::max));
            let sum: f64 = row.iter().map(|&logit| f64::from(logit - maximum).exp()).sum();
            label.log_sum_exp.push((f64::from(maximum) + sum.ln()) as f32);
            label.gold_logits.push(row[gold as usize]);
        }
        label
    }

    /// Tops and gold logits to the bit, log-sum-exp within the rounding of its exponentials.
    fn assert_same(got: &Label, want: &Label, what: &str) {
        assert_eq!(got.top_ids, want.top_ids, "{what}");
        assert_eq!(got.top_logits, want.top_logits, "{what}");
        assert_eq!(got.gold_logits, want.gold_logits, "{what}");
        assert_eq!(got.log_sum_exp.len(), want.log_sum_exp.len(), "{what}");
        for (got, want) in got.log_sum_exp.iter().zip(&want.log_sum_exp) {
            assert!((got - want).abs() <= 1e-6 * want.abs().max(1.0), "{what}: {got} for {want}");
        }
    }

    #[test]
    fn agrees_with_a_full_sort_and_ties_go_to_the_lower_id() {
        let rows = 3;
        for (vocabulary, words) in [(1, 1), (31, 31), (64, 60), (513, 513), (513, 512), (700, 130), (2000, 1990)] {
            let decoder = identity(&vec![0.0; vocabulary], words);
            for levels in [2, 7, 1 << 20] {
                let logits = values(rows * vocabulary, levels, vocabulary as u64);
                let golds: Vec<u32> = (1..=rows).map(|row| (row * 997 % vocabulary) as u32).collect();
                for top_k in [1, 8, 32, 64, 512] {
                    if top_k <= words {
                        let got = label(&decoder, &logits, &golds, top_k).expect("finite");
                        let want = reference(&logits, vocabulary, &golds, words, top_k);
                        assert_same(&got, &want, &format!("{vocabulary} {words} {levels} {top_k}"));
                    }
                }
            }
        }
    }

    #[test]
    fn any_order_of_the_logits_gives_the_same_top() {
        let (vocabulary, top_k) = (1500, 40);
        let decoder = identity(&vec![0.0; vocabulary], vocabulary);
        let ascending: Vec<f32> = (0..vocabulary).map(|id| id as f32 / 16.0 - 50.0).collect();
        let descending: Vec<f32> = ascending.iter().rev().copied().collect();
        let equal = vec![-0.5; vocabulary];
        let zeros: Vec<f32> = (0..vocabulary).map(|id| if id % 3 == 0 { -0.0 } else { 0.0 }).collect();
        for logits in [&ascending, &descending, &equal] {
            for top_k in [3, top_k] {
                let got = label(&decoder, logits, &[7], top_k).expect("finite");
                assert_same(&got, &reference(logits, vocabulary, &[7], vocabulary, top_k), &format!("{top_k}"));
            }
        }
        let got = label(&decoder, &zeros, &[7], top_k).expect("finite");
        assert_eq!(got.top_ids, (0..40).collect::<Vec<u32>>());
    }

    #[test]
    fn multiplies_by_the_decoder_and_the_cut_of_rows_changes_nothing() {
        let (masked, embedding, vocabulary, words, top_k) = (2 * BLOCK_ROWS + 5, 24, 1100, 1090, 9);
        let hidden = values(masked * embedding, 17, 1);
        let (weight, bias) = (values(vocabulary * embedding, 17, 2), values(vocabulary, 1 << 20, 3));
        let golds: Vec<u32> = (0..masked as u32).map(|row| row * 31 % words as u32).collect();
        let decoder = Decoder::new(&weight, &bias, words);
        let mut scratch = HeadScratch::default();
        let whole = label_rows(&decoder, &hidden, &golds, top_k, None, &mut scratch).expect("finite");
        assert_eq!(whole.positions(), masked);
        for (row, hidden) in hidden.chunks(embedding).enumerate() {
            let of = |id: usize| {
                let terms = weight[id * embedding..][..embedding].iter().zip(hidden);
                terms.map(|(w, h)| f64::from(*w) * f64::from(*h)).sum::<f64>() + f64::from(bias[id])
            };
            let logits: Vec<f64> = (0..vocabulary).map(of).collect();
            let sum: f64 = logits.iter().map(|logit| logit.exp()).sum();
            assert!((f64::from(whole.log_sum_exp[row]) - sum.ln()).abs() < 1e-4);
            assert!((f64::from(whole.gold_logits[row]) - logits[golds[row] as usize]).abs() < 1e-4);
            let mut sorted = logits[..words].to_vec();
            sorted.sort_by(|a, b| b.total_cmp(a));
            for ((id, got), want) in
                whole.top_ids[row * top_k..].iter().zip(&whole.top_logits[row * top_k..]).zip(&sorted[..top_k])
            {
                assert!((f64::from(*got) - want).abs() < 1e-4 && (f64::from(*got) - logits[*id as usize]).abs() < 1e-4);
            }
        }
        for size in [1, 7, BLOCK_ROWS, BLOCK_ROWS + 1] {
            let mut pieces = Label { top_k, ..Label::default() };
            for (hidden, golds) in hidden.chunks(size * embedding).zip(golds.chunks(size)) {
                let piece = label_rows(&decoder, hidden, golds, top_k, None, &mut scratch).expect("finite");
                pieces.top_ids.extend(piece.top_ids);
                pieces.top_logits.extend(piece.top_logits);
                pieces.log_sum_exp.extend(piece.log_sum_exp);
                pieces.gold_logits.extend(piece.gold_logits);
            }
            assert_eq!(pieces, whole, "{size} rows at a time");
        }
    }

    #[test]
    fn no_masked_position_gives_an_empty_label() {
        let got = label(&identity(&[0.0; 5], 5), &[], &[], 2);
        assert_eq!(got, Ok(Label { top_k: 2, ..Label::default() }));
    }

    #[test]
    fn what_is_not_finite_is_named() {
        for broken in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for (vocabulary, token) in [(1, 0), (40, 39), (600, 3), (600, 511), (600, 599)] {
                let mut bias = vec![0.0; vocabulary];
                bias[token] = broken;
                let weight = vec![0.0; 2 * vocabulary];
                let decoder = Decoder::new(&weight, &bias, vocabulary.min(598));
                assert_eq!(label(&decoder, &[1.0; 4], &[0, 0], 1), Err(NonFinite(token)), "{broken} at {token}");
            }
        }
        // Of several, the lowest token of any row, whichever row comes first.
        let mut logits = vec![0.0; 2 * 600];
        (logits[20], logits[550], logits[600 + 10]) = (f32::MAX, f32::MAX, f32::MAX);
        let mut bias = vec![0.0; 600];
        (bias[20], bias[550], bias[10]) = (f32::MAX, f32::MAX, f32::MAX);
        assert_eq!(label(&identity(&bias, 600), &logits, &[0, 0], 4), Err(NonFinite(10)));
    }
}
