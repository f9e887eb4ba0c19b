//! An exact head and a sampled tail: of the k entries of a position the first k − s are the teacher's best tokens, the other s are drawn
//! from the rest of the vocabulary, so that the k entries stand for the whole distribution without bias (Anshumann et al. 2025, "Sparse
//! Logit Sampling: Accelerating Knowledge Distillation in LLMs", sample all k; keeping the head exact takes most of the variance away).
//!
//! The draw is systematic sampling with probabilities proportional to size (Madow 1949): the rest of the tokens, in the order of their ids, lie side by side on a line, each
//! as long as its probability; the points (u + j)·M/s, j = 0 … s − 1, u uniform in 0..1, M the length of the line, say who is drawn. So
//! a token i is drawn with probability π_i = s·p_i/M, never twice as long as π_i < 1, and counts w = p_i/π_i = M/s: all of
//! them the same. Whoever has π_i ≥ 1 is kept exactly, taken off the line, and the rest drawn with one point less, until nobody has; these are always the next best ones.
//! Then Σ w_i f(i) over the entries, with w = p for exact ones, has the expectation Σ p_i f(i) for any f, and the weights add up to 1 (less what surplus rows have, which no token stands for).
//!
//! Stored is the logit log(w) + log-sum-exp. A flat tail's weight may be larger than an exact probability, so entries are in two parts, each by descending logit and ties
//! to the lower id: exact ones, then drawn ones. The first entry is the teacher's best token, whatever was drawn.
//!
//! While the tiles go by, each row keeps each tile's sum of exponentials. These say in which tile a point lies, so only the tiles that are hit, s at
//! most for a row, are computed a second time, together for all rows that hit them. Products are the same bits however they are cut, so
//! the logits are those of the first time. Where the mass beyond the best k is less than single precision resolves, the best k stand as they are.

use super::{BLOCK_ROWS, Decoder, HeadScratch, Row, TILE_TOKENS};
use model::elementary::exp_nonpositive;
use model::product::{Matrix, Start, multiply};
use model::simd::vectorised;
use store::Label;

/// A share of the whole mass that sums of float32 numbers do not resolve.
const NEGLIGIBLE: f64 = 1.0 / (1 << 22) as f64;

/// How the tails of some rows are drawn.
#[derive(Clone, Copy, Debug)]
pub struct Tail<'a> {
    /// s: entries that are drawn; at least 1, and fewer than k.
    pub samples: usize,
    /// `[masked]`: u of each row, in 0..1.
    pub uniforms: &'a [f64],
}

/// Buffers that are kept from call to call.
#[derive(Debug, Default)]
pub(super) struct TailScratch {
    /// `[rows, tiles]`: Σ exp(logit − maximum) over a tile's words, and that maximum.
    masses: Vec<(f32, f32)>,
    /// `[tiles]`: of one row, without its exact tokens, relative to its maximum.
    line: Vec<f64>,
    /// `[rows]`; `None`: the best k stand.
    draws: Vec<Option<Draw>>,
    hits: Vec<Hit>,
    /// `[≤ BLOCK_ROWS, embedding]`
    hidden: Vec<f32>,
    /// (row, token id)
    drawn: Vec<(usize, u32)>,
}

/// What a row draws.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Draw {
    /// Entries that are exact.
    exact: usize,
    /// What each of the others counts, relative to exp(maximum).
    weight: f64,
}

/// A point on a row's line.
#[derive(Clone, Copy, Debug)]
struct Hit {
    tile: usize,
    row: usize,
    /// Where in the tile, and how long the tile is.
    at: f64,
    length: f64,
}

impl TailScratch {
    pub(super) fn prepare(&mut self, rows: usize, vocabulary: usize) {
        self.masses.resize(rows * vocabulary.div_ceil(TILE_TOKENS), (0.0, 0.0));
        self.draws.clear();
        self.hits.clear();
        self.drawn.clear();
    }

    /// Keeps what tile `number` came to.
    pub(super) fn note(&mut self, rows: &[Row], number: usize) {
        let tiles = self.masses.len() / rows.len().max(1);
        for (row, masses) in rows.iter().zip(self.masses.chunks_mut(tiles.max(1))) {
            masses[number] = (row.tile_sum, row.maximum);
        }
    }
}

/// Draws the tails of all rows, of which `label` has the best k.
pub(super) fn draw(
    decoder: &Decoder,
    hidden: Matrix<'_>,
    tail: &Tail<'_>,
    scratch: &mut HeadScratch,
    label: &mut Label,
) {
    let HeadScratch { rows, logits, tail: state, .. } = scratch;
    for (at, (row, uniform)) in rows.iter().zip(tail.uniforms).enumerate() {
        state.plan(at, row, tail.samples, *uniform, label);
    }
    let mut hits = std::mem::take(&mut state.hits);
    hits.sort_by_key(|hit| (hit.tile, hit.row)); // Stable: the points of a row stay in order.
    for of_tile in hits.chunk_by(|one, other| one.tile == other.tile) {
        let by_row: Vec<&[Hit]> = of_tile.chunk_by(|one, other| one.row == other.row).collect();
        for block in by_row.chunks(BLOCK_ROWS) {
            state.compute(decoder, hidden, block, logits);
            for (hits, line) in block.iter().zip(logits.chunks_mut(TILE_TOKENS)) {
                let row = hits[0].row;
                let exact = state.draws[row].map_or(0, |draw| draw.exact);
                let exact = &label.top_ids[row * label.top_k..][..exact];
                let first = hits[0].tile * TILE_TOKENS;
                let words = decoder.words.saturating_sub(first).min(TILE_TOKENS);
                pick(hits, exact, rows[row].maximum, &mut line[..words], &mut state.drawn);
            }
        }
    }
    state.hits = hits;
    state.write(rows, label);
}

impl TailScratch {
    /// Says what row `at` draws, and where its points are.
    fn plan(&mut self, at: usize, row: &Row, samples: usize, uniform: f64, label: &Label) {
        let tiles = self.masses.len() / label.positions().max(1);
        let masses = &self.masses[at * tiles..][..tiles];
        let top = at * label.top_k..(at + 1) * label.top_k;
        let relative = |logit: f32| f64::from(exp_nonpositive(logit - row.maximum));
        self.line.clear();
        self.line.extend(masses.iter().map(|(sum, maximum)| f64::from(*sum) * relative(*maximum)));
        let best: Vec<f64> = label.top_logits[top.clone()].iter().map(|logit| relative(*logit)).collect();
        let exact = exact_entries(&best, self.line.iter().sum(), row.sum, samples);
        let draws = label.top_k - exact;
        for (id, mass) in label.top_ids[top].iter().zip(&best).take(exact) {
            let left = &mut self.line[*id as usize / TILE_TOKENS];
            *left = (*left - mass).max(0.0);
        }
        let weight = self.line.iter().sum::<f64>() / draws.max(1) as f64;
        let is_drawn = draws > 0 && weight > 0.0;
        self.draws.push(is_drawn.then_some(Draw { exact, weight }));
        if is_drawn {
            self.place(at, draws, weight, uniform);
        }
    }

    /// The points of row `row` on its line.
    fn place(&mut self, row: usize, draws: usize, weight: f64, uniform: f64) {
        let mut points = (0..draws).map(|number| (uniform + number as f64) * weight).peekable();
        let mut before = 0.0;
        for (tile, length) in self.line.iter().copied().enumerate() {
            while let Some(point) = points.next_if(|point| *point < before + length) {
                self.hits.push(Hit { tile, row, at: point - before, length });
            }
            before += length;
        }
    }

    /// The logits of one tile for the rows that hit it.
    fn compute(&mut self, decoder: &Decoder, hidden: Matrix<'_>, block: &[&[Hit]], logits: &mut [f32]) {
        self.hidden.clear();
        block.iter().for_each(|hits| self.hidden.extend_from_slice(hidden.row(hits[0].row)));
        let first = block[0][0].tile * TILE_TOKENS;
        let tokens = TILE_TOKENS.min(decoder.bias.len() - first);
        let rows = Matrix::new(&self.hidden, block.len(), decoder.embedding);
        let weight = decoder.weight.columns(first, tokens);
        multiply(rows, weight, Start::Bias(&decoder.bias[first..first + tokens]), logits, TILE_TOKENS);
    }

    /// Puts what was drawn in place of the last of the best k.
    fn write(&mut self, rows: &[Row], label: &mut Label) {
        self.drawn.sort_unstable();
        self.drawn.dedup();
        for of_row in self.drawn.chunk_by(|one, other| one.0 == other.0) {
            let row = of_row[0].0;
            let Some(Draw { exact, weight }) = self.draws[row] else { continue };
            let places = row * label.top_k + exact..(row + 1) * label.top_k;
            // Rounding lost a point, or let two fall on one token whose share was all but a whole one: then the best k stand.
            if of_row.len() == places.len() {
                label.top_logits[places.clone()].fill((f64::from(rows[row].maximum) + weight.ln()) as f32);
                label.top_ids[places].iter_mut().zip(of_row).for_each(|(id, (_, drawn))| *id = *drawn);
            }
        }
    }
}

/// How many of the `best` k tokens are kept exactly, of which the masses are given: the first k − s, and those after them that
/// would be drawn for certain; all, if hardly anything of `all`, the mass of all rows, is beyond them. `words` is the mass of all words.
fn exact_entries(best: &[f64], words: f64, all: f64, samples: usize) -> usize {
    if words - best.iter().sum::<f64>() <= all * NEGLIGIBLE {
        return best.len();
    }
    let mut exact = best.len() - samples;
    let mut rest = words - best[..exact].iter().sum::<f64>();
    while exact < best.len() && best[exact] * (best.len() - exact) as f64 >= rest {
        rest -= best[exact];
        exact += 1;
    }
    exact
}

/// Finds the tokens on which points of one row in one tile fall, whose logits `line` has and loses. The `exact` ids are not on the line.
fn pick(hits: &[Hit], exact: &[u32], maximum: f32, line: &mut [f32], drawn: &mut Vec<(usize, u32)>) {
    vectorised(
        #[inline(always)]
        || line.iter_mut().for_each(|logit| *logit = exp_nonpositive(*logit - maximum)),
    );
    let Some(Hit { tile, row, length, .. }) = hits.first().copied() else { return };
    let first = tile * TILE_TOKENS;
    for id in exact {
        if let Some(mass) = (*id as usize).checked_sub(first).and_then(|at| line.get_mut(at)) {
            *mass = 0.0;
        }
    }
    // The tile's length is a sum in another order: the points are spread over what is here.
    let here: f64 = line.iter().map(|mass| f64::from(*mass)).sum();
    let (mut at, mut before) = (0, 0.0);
    for hit in hits {
        let point = hit.at / length * here;
        while at < line.len() && before + f64::from(line[at]) <= point {
            before += f64::from(line[at]);
            at += 1;
        }
        if at < line.len() {
            drawn.push((row, (first + at) as u32));
        }
    }
}

#[cfg(test)]
#[path = "tail_tests.rs"]
mod tests;
