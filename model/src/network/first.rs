//! The first layer's queries, keys and values by looking them up, for a network whose weights do not change.
//!
//! But for its scale, LayerNorm is linear. With s = word\[id\] + type\[0\] + position\[p\] and centred(s) = s − mean(s), a token enters the first layer
//! as x = scale · γ ∘ centred(s) + β, where only the scale depends on the token and its position together. So
//!
//! W·x + b = scale · (A\[id\] + B\[p\]) + c,  A\[id\] = W·(γ ∘ centred(word\[id\] + type\[0\])),  B\[p\] = W·(γ ∘ centred(position\[p\])),  c = W·β + b.
//!
//! A and B are made once. That saves a quarter of a layer's products, as long as A stays near the cores.

use super::weights::Weights;
use crate::product::{Matrix, Right, Start, multiply};
use crate::simd::vectorised;
use rayon::prelude::*;

/// Bytes that A may have.
const TABLE_BYTES_MAX: usize = 64 << 20;
/// Rows of a table that are made at a time.
const ROWS: usize = 256;

/// The tables; a row holds query, key and value.
#[derive(Debug)]
pub(crate) struct FirstLayer {
    /// `[vocabulary, 3 · hidden]`: A.
    word: Vec<f32>,
    /// `[positions, 3 · hidden]`: B.
    position: Vec<f32>,
    /// `[3 · hidden]`: c.
    constant: Vec<f32>,
    hidden: usize,
}

impl FirstLayer {
    /// `None` where it does not pay: the embedding is factorised, the only layer is the last one, or A would be too large.
    pub(crate) fn new(weights: &Weights<'_>) -> Option<Self> {
        let (configuration, embedding) = (weights.configuration, weights.embedding());
        let hidden = configuration.hidden_size;
        let bytes = configuration.vocabulary_size.saturating_mul(3 * hidden * size_of::<f32>());
        if embedding.projection.is_some() || configuration.layers < 2 || bytes > TABLE_BYTES_MAX {
            return None;
        }
        let norm = embedding.norm();
        let zeros = vec![0.0; hidden];
        let layer = weights.layer(0);
        let mut constant = table(weights, norm.bias, |row| row.copy_from_slice(norm.bias));
        let biases = [&layer.within.query_bias, &layer.within.key_value_bias].map(|range| layer.vector(range));
        constant.iter_mut().zip(biases.concat()).for_each(|(sum, bias)| *sum += bias);
        let centred = |row: &mut [f32], other: &[f32]| {
            row.iter_mut().zip(other).for_each(|(value, other)| *value += other);
            let mean = row.iter().sum::<f32>() / row.len() as f32;
            row.iter_mut().zip(norm.weight).for_each(|(value, weight)| *value = (*value - mean) * weight);
        };
        let type_zero = &embedding.token_types[..hidden];
        let word = table(weights, embedding.word, |row| centred(row, type_zero));
        let position = table(weights, embedding.position, |row| centred(row, &zeros));
        Some(Self { word, position, constant, hidden })
    }

    /// Queries `[tokens, hidden]`, and keys and values side by side `[tokens, 2 · hidden]`; `scales` `[tokens]` are those of the
    /// embedding's LayerNorm.
    pub(crate) fn look_up(
        &self,
        (ids, positions): (&[u32], &[u32]),
        scales: &[f32],
        query: &mut [f32],
        key_value: &mut [f32],
    ) {
        let hidden = self.hidden;
        let outs = query.chunks_exact_mut(hidden).zip(key_value.chunks_exact_mut(2 * hidden));
        for (((id, position), scale), (query, key_value)) in ids.iter().zip(positions).zip(scales).zip(outs) {
            let row = |row: u32| row as usize * 3 * hidden..(row as usize + 1) * 3 * hidden;
            let (word, position) = (&self.word[row(*id)], &self.position[row(*position)]);
            vectorised(
                #[inline(always)]
                || {
                    for (out, from) in [(query, 0..hidden), (key_value, hidden..3 * hidden)] {
                        let sums = word[from.clone()].iter().zip(&position[from.clone()]).zip(&self.constant[from]);
                        for (out, ((word, position), constant)) in out.iter_mut().zip(sums) {
                            *out = (word + position).mul_add(*scale, *constant);
                        }
                    }
                },
            );
        }
    }
}

/// `[rows, 3 · hidden]`: the rows of `from` `[rows, hidden]`, changed, times the first layer's three matrices.
fn table(weights: &Weights<'_>, from: &[f32], change: impl Fn(&mut [f32]) + Sync) -> Vec<f32> {
    let hidden = weights.configuration.hidden_size;
    let matrices = weights.layer(0).matrices;
    let rights: [(Right<'_>, usize); 2] = [(matrices.query.forward(), 0), (matrices.key_value.forward(), hidden)];
    let mut table = vec![0.0; 3 * from.len()];
    table.par_chunks_mut(ROWS * 3 * hidden).zip(from.par_chunks(ROWS * hidden)).for_each(|(out, from)| {
        let mut rows = from.to_vec();
        rows.chunks_exact_mut(hidden).for_each(&change);
        let left = Matrix::new(&rows, rows.len() / hidden, hidden);
        for (right, column) in rights {
            multiply(left, right, Start::Zero, &mut out[column..], 3 * hidden);
        }
    });
    table
}
