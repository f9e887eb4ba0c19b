//! x = dropout(LayerNorm(word[id] + type[t] + position[p])), and the gradients of the tables.

use super::activation::add_to;
use super::dropout::{Mask, Rows};
use super::norm::{self, Norm, Saved, Sums};
use crate::simd::{ARCH, vectorised};
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

/// The embeddings.
#[derive(Clone, Copy, Debug)]
pub struct Tables<'a> {
    /// `[vocabulary, columns]`.
    pub word: &'a [f32],
    /// `[positions, columns]`.
    pub position: &'a [f32],
    /// `[types, columns]`; type 0 alone is enough where all tokens have it.
    pub token_type: &'a [f32],
}

/// `out` `[tokens, columns]` from the tokens' ids, positions and types (empty: all 0). `rows` are the tokens' numbers for `mask`.
///
/// # Panics
/// When the lengths do not fit, or a table lacks a row.
pub fn forward(
    tables: Tables<'_>,
    norm: Norm<'_>,
    (token_ids, positions, types): (&[u32], &[u32], &[u8]),
    mask: Option<Mask>,
    rows: Rows<'_>,
    out: &mut [f32],
    saved: Option<Saved<'_>>,
) {
    ARCH.dispatch(Forward { tables, norm, token_ids, positions, types, mask, rows, out, saved });
}

/// Makes `gradient` `[tokens, columns]`, that of `out`, the gradient of the sum in place, which is that of each token's row of
/// `word`, of `position` and of `token_type`, see [`scatter`]. `saved` is (normalised, scale) of the forward pass. `sums.dense_bias` gets
/// the sum over all tokens: where all have type 0, the gradient of its row.
///
/// # Panics
/// When the lengths do not fit.
pub fn backward(
    norm: Norm<'_>,
    gradient: &mut [f32],
    saved: (&[f32], &[f32]),
    mask: Option<Mask>,
    rows: Rows<'_>,
    sums: Sums<'_>,
) {
    if let Some(mask) = mask {
        for (row, gradient) in gradient.chunks_exact_mut(norm.weight.len()).enumerate() {
            mask.apply(gradient, rows.number(row), 0);
        }
    }
    norm::backward(norm, gradient, saved, None, rows, None, sums);
}

/// Adds row i of `gradient` `[tokens, columns]` to row `ids[i]` of `of_table` `[rows, columns]`, for ascending i: the result does
/// not depend on the number of threads.
///
/// # Panics
/// When the lengths do not fit, or the table lacks a row.
pub fn scatter(ids: &[u32], gradient: &[f32], of_table: &mut [f32]) {
    if ids.is_empty() {
        return;
    }
    let columns = gradient.len() / ids.len();
    assert_eq!(gradient.len(), ids.len() * columns);
    let mut places: Vec<Place> = ids.iter().zip(0..).map(|(id, token)| Place { id: *id, token }).collect();
    places.par_sort_unstable();
    add_rows(&places, gradient, columns, of_table, 0);
}

/// A token, and its row of the table. The order is that of the table, then that of the batch.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    id: u32,
    token: u32,
}

/// `of_table` starts at row `first`; it is halved, at the table row of the middle token, until few tokens are left.
fn add_rows(places: &[Place], gradient: &[f32], columns: usize, of_table: &mut [f32], first: u32) {
    /// Enough to outweigh the hand-over to another thread.
    const VALUES_PER_TASK: usize = 1 << 14;
    let middle = places.get(places.len() / 2).map_or(first, |place| place.id);
    let before = places.partition_point(|place| place.id < middle);
    if places.len() * columns > VALUES_PER_TASK && before > 0 {
        let (low, high) = of_table.split_at_mut((middle - first) as usize * columns);
        rayon::join(
            || add_rows(&places[..before], gradient, columns, low, first),
            || add_rows(&places[before..], gradient, columns, high, middle),
        );
        return;
    }
    vectorised(
        #[inline(always)]
        || {
            for place in places {
                let row = &mut of_table[(place.id - first) as usize * columns..][..columns];
                add_to(row, &gradient[place.token as usize * columns..][..columns]);
            }
        },
    );
}

struct Forward<'a> {
    tables: Tables<'a>,
    norm: Norm<'a>,
    token_ids: &'a [u32],
    positions: &'a [u32],
    types: &'a [u8],
    mask: Option<Mask>,
    rows: Rows<'a>,
    out: &'a mut [f32],
    saved: Option<Saved<'a>>,
}

impl WithSimd for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { tables, norm, token_ids, positions, types, mask, rows, out, mut saved } = self;
        let columns = norm.weight.len();
        let normalised = saved.as_ref().map(|saved| &*saved.normalised);
        let tokens = norm.rows_of(&[Some(out), normalised], saved.as_ref().map(|saved| &*saved.scale));
        assert!([token_ids.len(), positions.len()] == [tokens; 2] && (types.is_empty() || types.len() == tokens));
        let within = |row: u32| row as usize * columns..(row as usize + 1) * columns;
        for (row, out) in out.chunks_exact_mut(columns).enumerate() {
            let word = &tables.word[within(token_ids[row])];
            let position = &tables.position[within(positions[row])];
            let token_type = &tables.token_type[within(types.get(row).copied().unwrap_or(0).into())];
            // The order of the sums is that of transformers.
            for (((out, word), token_type), position) in out.iter_mut().zip(word).zip(token_type).zip(position) {
                *out = word + token_type + position;
            }
            norm.normalise_row(out, saved.as_mut().map(|saved| saved.row(row, columns)));
            if let Some(mask) = mask {
                mask.apply_here(out, rows.number(row), 0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::Dropout;
    use crate::comparison::matrix;
    use crate::fused::dropout::Site;
    use crate::fused::norm::check::{SHAPES, check, normalise, values, vector};
    use crate::random::Philox;
    use crate::simd::archs;
    use candle_core::{Device, Tensor};

    const WORDS: usize = 11;
    const POSITIONS: usize = 5;
    const EPS: f32 = 1e-3;

    fn mask(rate: f64) -> Option<Mask> {
        Mask::new(
            Some(Dropout { stream: Philox::new(1, "dropout", &[]), step: 9, first_row: 0 }),
            Site::Embeddings,
            rate,
        )
    }

    /// Word, position and type embedding, weight and bias.
    fn inputs(columns: usize) -> [Tensor; 5] {
        let tables = [matrix(WORDS, columns, 1), matrix(POSITIONS, columns, 2), matrix(1, columns, 3)];
        let [word, position, token_type] = tables;
        [word, position, token_type, vector(columns, 4), vector(columns, 5)]
    }

    fn tokens(count: usize) -> (Vec<u32>, Vec<u32>) {
        let stream = Philox::new(2, "test tokens", &[]);
        let drawn = |index: u64, below: usize| stream.below(below as u64, index, below as u64) as u32;
        (0..count as u64).map(|token| (drawn(token, WORDS), drawn(token, POSITIONS))).unzip()
    }

    /// Value and gradients of all inputs, with tokens in two calls.
    fn run(
        inputs: &[Vec<f32>],
        gradient: &[f32],
        mask: Option<Mask>,
        tokens: &(Vec<u32>, Vec<u32>),
        cut: usize,
    ) -> (Vec<f32>, Vec<Vec<f32>>) {
        let [word, position, token_type, weight, bias] = inputs else { panic!("five inputs") };
        let (ids, positions) = tokens;
        let (columns, norm) = (weight.len(), Norm { weight, bias, eps: EPS });
        let mut out = vec![f32::NAN; gradient.len()];
        let mut of_sum = gradient.to_vec();
        let mut of: Vec<Vec<f32>> = inputs.iter().map(|input| vec![0.0; input.len()]).collect();
        let [of_word, of_position, of_token_type, of_weight, of_bias] = &mut of[..] else { panic!("five inputs") };
        for tokens in [0..cut, cut..ids.len()] {
            let within = tokens.start * columns..tokens.end * columns;
            let (mut normalised, mut scale) = (vec![0.0; within.len()], vec![0.0; tokens.len()]);
            let saved = Saved { normalised: &mut normalised, scale: &mut scale };
            let rows = Rows::From(tokens.start as u32);
            let these = (&ids[tokens.clone()], &positions[tokens], &[][..]);
            forward(
                Tables { word, position, token_type },
                norm,
                these,
                mask,
                rows,
                &mut out[within.clone()],
                Some(saved),
            );
            let sums = Sums { weight: of_weight, bias: of_bias, dense_bias: Some(of_token_type) };
            backward(norm, &mut of_sum[within], (&normalised, &scale), mask, rows, sums);
        }
        scatter(ids, &of_sum, of_word);
        scatter(positions, &of_sum, of_position);
        (out, of)
    }

    #[test]
    fn agrees_with_the_composition() {
        for ((count, columns), rate) in SHAPES.into_iter().flat_map(|shape| [(shape, 0.0), (shape, 0.3)]) {
            let (mask, tokens) = (mask(rate), tokens(count));
            let [ids, positions] =
                [&tokens.0, &tokens.1].map(|list| Tensor::new(list.as_slice(), &Device::Cpu).unwrap());
            let fused = |inputs: &[Vec<f32>], gradient: &[f32]| run(inputs, gradient, mask, &tokens, count);
            check(&inputs(columns), fused, |t| {
                let x = t[0].index_select(&ids, 0)?.broadcast_add(&t[2])?;
                let x = normalise(&(x + t[1].index_select(&positions, 0)?)?, &t[3], &t[4], f64::from(EPS))?;
                match mask {
                    Some(mask) => x * mask.to_tensor(Rows::From(0), count, columns, &Device::Cpu)?,
                    None => Ok(x),
                }
            });
        }
    }

    #[test]
    fn cuts_and_instructions_do_not_matter() {
        for columns in [1, 7, 33, 256] {
            let inputs = inputs(columns).map(|input| values(&input));
            let (mask, tokens) = (mask(0.2), tokens(9));
            let gradient = values(&matrix(9, columns, 6));
            let whole = run(&inputs, &gradient, mask, &tokens, 9);
            assert_eq!(run(&inputs, &gradient, mask, &tokens, 4), whole);
            let tables = Tables { word: &inputs[0], position: &inputs[1], token_type: &inputs[2] };
            let norm = Norm { weight: &inputs[3], bias: &inputs[4], eps: EPS };
            for arch in archs() {
                let (mut made, rows) = (vec![0.0; 9 * columns], Rows::From(0));
                let (token_ids, positions, out) = (&*tokens.0, &*tokens.1, &mut *made);
                arch.dispatch(Forward { tables, norm, token_ids, positions, types: &[], mask, rows, out, saved: None });
                assert_eq!(made, whole.0);
            }
        }
    }

    #[test]
    fn scattering_is_adding_in_order_on_any_number_of_threads() {
        for (count, columns, rows) in [(0, 3, 2), (1, 1, 1), (700, 33, 1), (3_000, 33, 50), (2_000, 64, 30_000)] {
            let stream = Philox::new(3, "test tokens", &[]);
            // Half of the tokens are one of three.
            let ids: Vec<u32> = (0..count as u64)
                .map(|token| stream.below([3.min(rows), rows][token as usize % 2], token, 0) as u32)
                .collect();
            let gradient = values(&matrix(count.max(1), columns, 4))[..count * columns].to_vec();
            let before = values(&matrix(rows as usize, columns, 5));
            let mut expected = before.clone();
            for (id, row) in ids.iter().zip(gradient.chunks_exact(columns)) {
                add_to(&mut expected[*id as usize * columns..][..columns], row);
            }
            for threads in [1, 4] {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                let mut table = before.clone();
                pool.install(|| scatter(&ids, &gradient, &mut table));
                assert_eq!(table, expected);
            }
        }
    }
}
