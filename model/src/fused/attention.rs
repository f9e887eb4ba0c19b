//! Attention inside one sequence: softmax(Q · Kᵀ / √size) · V for every head, and its gradients.
//!
//! No probability outlives a call: the forward pass leaves one log-sum-exp per query and head, from which the backward pass makes
//! the probabilities anew (Dao et al., "FlashAttention", 2022, appendix B). With M the dropout mask, P = exp(S − log-sum-exp),
//! P̃ = P ∘ M, O = P̃ · V and D = rowsum(dO ∘ O):
//!
//! dV = P̃ᵀ · dO, dS = P ∘ ((dO · Vᵀ) ∘ M − D), dQ = dS · K / √size, dK = dSᵀ · Q / √size.
//!
//! Queries are taken in blocks whose scores stay in a core's cache. Each query's context and gradient depend on no other query,
//! and the sums over queries run in their order, so that neither the size of a block nor where a caller cuts the queries changes
//! a bit of them.

use super::dropout::{Mask, Rows};
use crate::elementary::{exp2_nonpositive, sum_of};
use crate::product::{Matrix, Packed, Right, Start, TILE_ROWS, multiply, panel_columns, transpose};
use crate::simd::{ARCH, vectorised};
use std::f32::consts::LOG2_E;

/// The heads of a layer: each has its own columns of queries, keys, values and context.
#[derive(Clone, Copy, Debug)]
pub struct Heads {
    /// How many.
    pub count: usize,
    /// Columns of one head.
    pub size: usize,
}

/// One sequence, with hidden = heads · size.
#[derive(Clone, Copy, Debug)]
pub struct Sequence<'a> {
    /// `[q, hidden]`, of some or all tokens.
    pub queries: Matrix<'a>,
    /// `[length, hidden]`
    pub keys: Matrix<'a>,
    /// `[length, hidden]`
    pub values: Matrix<'a>,
    /// `[q]`: the queries' rows in the batch, which choose what dropout drops.
    pub query_rows: Rows<'a>,
}

/// Where gradients are written.
#[derive(Debug)]
pub struct Gradients<'a> {
    /// `[q, hidden]`
    pub queries: &'a mut [f32],
    /// `[length, 2 · hidden]`: a key's, and beside it that of its value.
    pub keys_values: &'a mut [f32],
}

/// Buffers, kept from one call to the next.
#[derive(Debug, Default)]
pub struct Scratch {
    keys: Panels,
    values: Panels,
    packed: Packed,
    scores: Vec<f32>,
    of_scores: Vec<f32>,
    mask: Vec<f32>,
    /// Of the queries of a block: 1 / Σ exp.
    of_rows: Vec<f32>,
}

/// `context` `[q, hidden]` = softmax(Q · Kᵀ / √size) · V by head, dropping probabilities as `dropout` says. The logarithms of the
/// softmax's denominators go to `log_sum_exp` `[q, heads]`, for [`backward`].
///
/// # Panics
/// When the shapes do not agree, or there are no keys.
pub fn forward(
    heads: Heads,
    sequence: Sequence<'_>,
    dropout: Option<&Mask>,
    context: &mut [f32],
    mut log_sum_exp: Option<&mut [f32]>,
    scratch: &mut Scratch,
) {
    let shape = Shape::of(heads, sequence);
    assert_eq!(context.len(), shape.queries * shape.hidden, "context");
    assert!(log_sum_exp.as_ref().is_none_or(|values| values.len() == shape.queries * heads.count), "log_sum_exp");
    if shape.queries == 0 {
        return;
    }
    scratch.reserve(shape);
    let Scratch { keys: panels, packed, scores, of_rows, .. } = scratch;
    for head in 0..heads.count {
        let [queries, keys, values] = sequence.of_head(heads, head);
        panels.fill(keys);
        let values = Right::of(values, packed);
        for (first, count) in shape.blocks() {
            let (scores, of_rows) = (&mut scores[..count * shape.stride], &mut of_rows[..count]);
            panels.multiply(queries.sub_rows(first, count), scores, shape.stride);
            let block = Block { heads, head, first, shape, rows: sequence.query_rows, dropout };
            vectorised(
                #[inline(always)]
                || block.probabilities(scores, of_rows, log_sum_exp.as_deref_mut()),
            );
            let context = &mut context[first * shape.hidden + head * heads.size..];
            let scores = Matrix::strided(scores, count, shape.length, shape.stride);
            multiply(scores, values, Start::Zero, context, shape.hidden);
            vectorised(
                #[inline(always)]
                || {
                    for (row, factor) in context.chunks_mut(shape.hidden).zip(of_rows) {
                        row[..heads.size].iter_mut().for_each(|value| *value *= *factor);
                    }
                },
            );
        }
    }
}

/// The gradients of queries, keys and values, written over what `of` holds. `context` and `log_sum_exp` are what [`forward`] made
/// of the same sequence and mask, and `gradient` `[q, hidden]` is that of the context.
///
/// # Panics
/// When the shapes do not agree, or there are no keys.
pub fn backward(
    heads: Heads,
    sequence: Sequence<'_>,
    dropout: Option<&Mask>,
    (context, log_sum_exp): (&[f32], &[f32]),
    gradient: &[f32],
    of: Gradients<'_>,
    scratch: &mut Scratch,
) {
    let shape = Shape::of(heads, sequence);
    let (count, hidden) = (shape.queries * shape.hidden, shape.hidden);
    assert_eq!([context.len(), log_sum_exp.len()], [count, shape.queries * heads.count], "context and log_sum_exp");
    assert_eq!([gradient.len(), of.queries.len()], [count; 2], "gradients of context and queries");
    assert_eq!(of.keys_values.len(), shape.length * 2 * hidden, "gradients of keys and values");
    scratch.reserve(shape);
    let of_context = Matrix::new(gradient, shape.queries, shape.hidden);
    for head in 0..heads.count {
        let [queries, keys, values] = sequence.of_head(heads, head);
        let of_context = of_context.sub_columns(head * heads.size, heads.size);
        scratch.keys.fill(keys);
        scratch.values.fill(values);
        for (first, count) in shape.blocks() {
            let scores = &mut scratch.scores[..count * shape.stride];
            let of_scores = &mut scratch.of_scores[..count * shape.stride];
            let (queries, of_context) = (queries.sub_rows(first, count), of_context.sub_rows(first, count));
            scratch.keys.multiply(queries, scores, shape.stride);
            scratch.values.multiply(of_context, of_scores, shape.stride);
            let block = Block { heads, head, first, shape, rows: sequence.query_rows, dropout };
            let mask = &mut scratch.mask[..shape.padded];
            vectorised(
                #[inline(always)]
                || block.gradients(scores, of_scores, (context, log_sum_exp), gradient, mask),
            );
            let scores = Matrix::strided(scores, count, shape.length, shape.stride);
            let of_scores = Matrix::strided(of_scores, count, shape.length, shape.stride);
            // Sums over the queries go on from block to block.
            let start = if first == 0 { Start::Zero } else { Start::Out };
            let column = head * heads.size;
            let right = Right::of(of_context, &mut scratch.packed);
            let out = &mut of.keys_values[hidden + column..];
            multiply(scores.transposed(), right, start, out, 2 * hidden);
            let right = Right::of(queries, &mut scratch.packed);
            multiply(of_scores.transposed(), right, start, &mut of.keys_values[column..], 2 * hidden);
            if count > 0 {
                let right = Right::of(keys, &mut scratch.packed);
                multiply(of_scores, right, Start::Zero, &mut of.queries[first * hidden + column..], hidden);
            }
        }
    }
}

impl Heads {
    fn scale(self) -> f32 {
        1.0 / (self.size as f32).sqrt()
    }
}

impl<'a> Sequence<'a> {
    /// Queries `[q, size]`, keys and values `[length, size]`.
    fn of_head(self, heads: Heads, head: usize) -> [Matrix<'a>; 3] {
        [self.queries, self.keys, self.values].map(|matrix| matrix.sub_columns(head * heads.size, heads.size))
    }
}

/// Lanes of maxima and sums: one vector of the widest kind.
const LANES: usize = 16;

/// Scores of a block of queries: few enough to stay in a core's cache, twice.
const SCORES_PER_BLOCK: usize = 1 << 15;

#[derive(Clone, Copy)]
struct Shape {
    queries: usize,
    length: usize,
    hidden: usize,
    /// The length up to the next multiple of [`LANES`]: rows of scores are gone through without a rest.
    padded: usize,
    /// From one row of scores to the next: whole panels, and one cache line so that a column does not fall into few sets of the
    /// cache.
    stride: usize,
}

impl Shape {
    fn of(heads: Heads, sequence: Sequence<'_>) -> Self {
        let Sequence { queries, keys, values, query_rows } = sequence;
        let hidden = heads.count * heads.size;
        assert_eq!([queries, keys, values].map(|matrix| matrix.columns()), [hidden; 3], "columns of a sequence");
        assert!(keys.rows() > 0 && keys.rows() == values.rows(), "{} keys, {} values", keys.rows(), values.rows());
        if let Rows::Listed(rows) = query_rows {
            assert_eq!(rows.len(), queries.rows(), "a row number per query");
        }
        let length = keys.rows();
        let stride = length.next_multiple_of(panel_columns().max(LANES)) + LANES;
        Self { queries: queries.rows(), length, hidden, padded: length.next_multiple_of(LANES), stride }
    }

    /// Most queries of a block: whole tiles of the product.
    fn block(self) -> usize {
        (SCORES_PER_BLOCK / self.stride / TILE_ROWS * TILE_ROWS).max(TILE_ROWS)
    }

    /// First query and number of queries of each block; there is at least one, if only to find that a sum over none is 0.
    fn blocks(self) -> impl Iterator<Item = (usize, usize)> {
        let firsts = (0..self.queries.max(1)).step_by(self.block());
        firsts.map(move |first| (first, self.block().min(self.queries - first)))
    }
}

/// The queries from `first` on, in one head.
#[derive(Clone, Copy)]
struct Block<'a> {
    heads: Heads,
    head: usize,
    first: usize,
    shape: Shape,
    rows: Rows<'a>,
    dropout: Option<&'a Mask>,
}

impl Block<'_> {
    /// Scores become probabilities times Σ exp, of which some are dropped; 1 / Σ exp goes to `of_rows`.
    #[inline(always)]
    fn probabilities(&self, scores: &mut [f32], of_rows: &mut [f32], mut log_sum_exp: Option<&mut [f32]>) {
        let (shape, scale) = (self.shape, self.heads.scale());
        let rows = scores.chunks_exact_mut(shape.stride).zip(of_rows);
        for (index, (row, of_row)) in (self.first..).zip(rows) {
            let (highest, sum) = exponentials(row, shape, scale * LOG2_E);
            *of_row = 1.0 / sum;
            if let Some(log_sum_exp) = &mut log_sum_exp {
                log_sum_exp[index * self.heads.count + self.head] = scale * highest + sum.ln();
            }
            if let Some(mask) = self.dropout {
                mask.apply_here(&mut row[..shape.length], self.rows.number(index), self.head as u32);
            }
        }
    }

    /// [`gradients_of_scores`], row by row. `gradient` is that of the context, and `mask` a row's buffer.
    #[inline(always)]
    fn gradients(
        &self,
        scores: &mut [f32],
        of_scores: &mut [f32],
        (context, log_sum_exp): (&[f32], &[f32]),
        gradient: &[f32],
        mask: &mut [f32],
    ) {
        let (shape, heads, head) = (self.shape, self.heads, self.head);
        let rows = scores.chunks_exact_mut(shape.stride).zip(of_scores.chunks_exact_mut(shape.stride));
        for (index, (scores, of_scores)) in (self.first..).zip(rows) {
            let (scores, of_scores) = (&mut scores[..shape.padded], &mut of_scores[..shape.padded]);
            let at = index * shape.hidden + head * heads.size;
            let along = sum_of(&context[at..][..heads.size], &gradient[at..][..heads.size], |o, g| o * g);
            let ends = (log_sum_exp[index * heads.count + head], along);
            let mask = self.dropout.map(|dropout| {
                mask.fill(1.0);
                dropout.apply_here(&mut mask[..shape.length], self.rows.number(index), head as u32);
                &*mask
            });
            gradients_of_scores(scores, of_scores, mask, heads.scale(), ends);
        }
    }
}

impl Scratch {
    fn reserve(&mut self, shape: Shape) {
        let rows = shape.block().min(shape.queries);
        for (buffer, count) in [
            (&mut self.scores, rows * shape.stride),
            (&mut self.of_scores, rows * shape.stride),
            (&mut self.mask, shape.padded),
            (&mut self.of_rows, rows),
        ] {
            if buffer.len() < count {
                buffer.resize(count, 0.0);
            }
        }
    }
}

/// The transpose of a head's keys or values, `[size, length]`, as a right factor. Rows are filled up with zeros.
#[derive(Debug, Default)]
struct Panels {
    values: Vec<f32>,
    size: usize,
    /// Columns with a score for each query, and zeros behind the last key.
    columns: usize,
    width: usize,
}

impl Panels {
    /// `matrix` is `[length, size]`.
    fn fill(&mut self, matrix: Matrix<'_>) {
        let length = matrix.rows();
        (self.size, self.columns) = (matrix.columns(), length.next_multiple_of(LANES));
        self.width = panel_columns().max(LANES);
        let panels = length.div_ceil(self.width);
        self.values.resize(panels * self.size * self.width, 0.0);
        for (panel, first) in self.values.chunks_exact_mut(self.size * self.width).zip((0..length).step_by(self.width))
        {
            let count = self.width.min(length - first);
            if count < self.width {
                panel.chunks_exact_mut(self.width).for_each(|row| row[count..].fill(0.0));
            }
            transpose(*ARCH, matrix.sub_rows(first, count), panel, self.width);
        }
    }

    /// `out` takes `[rows, columns]`, a row every `stride` values.
    fn multiply(&self, left: Matrix<'_>, out: &mut [f32], stride: usize) {
        for (panel, first) in self.values.chunks_exact(self.size * self.width).zip((0..).step_by(self.width)) {
            let right = Matrix::strided(panel, self.size, self.width.min(self.columns - first), self.width);
            // Whole panels are read where they lie.
            let mut none = Packed::default();
            let from = first.min(out.len());
            multiply(left, Right::of(right, &mut none), Start::Zero, &mut out[from..], stride);
        }
    }
}

/// Scores become 2^(scale · (score − highest)); returns the highest and the sum.
#[inline(always)]
fn exponentials(row: &mut [f32], shape: Shape, scale: f32) -> (f32, f32) {
    row[shape.length..shape.padded].fill(f32::NEG_INFINITY);
    let (chunks, _) = row[..shape.padded].as_chunks_mut::<LANES>();
    let mut highest = [f32::NEG_INFINITY; LANES];
    for chunk in chunks.iter() {
        for lane in 0..LANES {
            highest[lane] = if chunk[lane] > highest[lane] { chunk[lane] } else { highest[lane] };
        }
    }
    let highest = halve(highest, |a, b| if a > b { a } else { b });
    let mut sums = [0.0_f32; LANES];
    for chunk in chunks {
        for lane in 0..LANES {
            chunk[lane] = exp2_nonpositive(scale * (chunk[lane] - highest));
            sums[lane] += chunk[lane];
        }
    }
    (highest, halve(sums, |a, b| a + b))
}

/// Reduces the lanes by halves, in the same order on every machine.
#[inline(always)]
fn halve(mut lanes: [f32; LANES], combine: impl Fn(f32, f32) -> f32) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] = combine(lanes[lane], lanes[lane + width]);
        }
        width /= 2;
    }
    lanes[0]
}

/// One query's scores become dropped probabilities, and gradients of these become gradients of unscaled scores. `along` is D. What
/// is written behind the last key means nothing.
#[inline(always)]
fn gradients_of_scores(
    scores: &mut [f32],
    of_scores: &mut [f32],
    mask: Option<&[f32]>,
    scale: f32,
    (log_sum_exp, along): (f32, f32),
) {
    let (scale_2, log_sum_exp_2) = (scale * LOG2_E, log_sum_exp * LOG2_E);
    let pairs = scores.as_chunks_mut::<LANES>().0.iter_mut().zip(of_scores.as_chunks_mut::<LANES>().0);
    match mask {
        None => {
            for (scores, of_scores) in pairs {
                for lane in 0..LANES {
                    scores[lane] = exp2_nonpositive(scale_2 * scores[lane] - log_sum_exp_2);
                    of_scores[lane] = scale * scores[lane] * (of_scores[lane] - along);
                }
            }
        }
        Some(mask) => {
            for ((scores, of_scores), mask) in pairs.zip(mask.as_chunks::<LANES>().0) {
                for lane in 0..LANES {
                    let probability = exp2_nonpositive(scale_2 * scores[lane] - log_sum_exp_2);
                    scores[lane] = probability * mask[lane];
                    of_scores[lane] = scale * probability * (of_scores[lane] * mask[lane] - along);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
