//! Passes over a tile of logits `[rows, stride]`, row by row, with positions as lanes: a lane never mixes with another, so
//! nothing depends on the width of the machine's vectors.

use model::elementary::{exp_nonpositive, sum_of};
use model::simd::vectorised;

/// Rows begin at multiples of this many numbers, a cache line: the passes are over whole vectors.
const ALIGNMENT: usize = 16;

/// Numbers from one row of a tile to the next, for `positions` of them. What lies between is never read for a result.
pub(super) fn stride(positions: usize) -> usize {
    positions.next_multiple_of(ALIGNMENT)
}

/// Overwrites every x with e = exp(x + bias − max); `max` `[stride]` is the largest x + bias of the column, `sum` `[stride]`
/// the sum of its e. Not a number is passed over by the maximum and found in the sum.
pub(super) fn exponentiate(tile: &mut [f32], bias: &[f32], max: &mut [f32], sum: &mut [f32]) {
    vectorised(
        #[inline(always)]
        || {
            // Finite, so that a column of nothing but −∞ has sum 0 and not NaN.
            max.fill(f32::MIN);
            sum.fill(0.0);
            let stride = max.len();
            let (some, rest) = bias.as_chunks::<ROWS>();
            let (some_rows, rest_rows) = tile.split_at_mut(some.len() * ROWS * stride);
            for (rows, bias) in some_rows.chunks_exact(ROWS * stride).zip(some) {
                raise(split(rows), bias, max);
            }
            for (row, bias) in rest_rows.chunks_exact(stride).zip(rest) {
                raise([row], &[*bias], max);
            }
            for (rows, bias) in some_rows.chunks_exact_mut(ROWS * stride).zip(some) {
                exponentiate_rows(split_mut(rows), bias, max, sum);
            }
            for (row, bias) in rest_rows.chunks_exact_mut(stride).zip(rest) {
                exponentiate_rows([row], &[*bias], max, sum);
            }
        },
    );
}

/// Rows that are worked on together: so columns' maxima and sums are read and written less often.
const ROWS: usize = 4;

#[inline(always)]
fn split(rows: &[f32]) -> [&[f32]; ROWS] {
    let (low, high) = rows.split_at(rows.len() / 2);
    let (a, b) = low.split_at(low.len() / 2);
    let (c, d) = high.split_at(high.len() / 2);
    [a, b, c, d]
}

#[inline(always)]
fn split_mut(rows: &mut [f32]) -> [&mut [f32]; ROWS] {
    let (low, high) = rows.split_at_mut(rows.len() / 2);
    let (a, b) = low.split_at_mut(low.len() / 2);
    let (c, d) = high.split_at_mut(high.len() / 2);
    [a, b, c, d]
}

/// Raises `max` to the largest x + bias of `rows`.
#[inline(always)]
fn raise<const N: usize>(rows: [&[f32]; N], bias: &[f32; N], max: &mut [f32]) {
    let rows = rows.map(|row| &row[..max.len()]);
    for (i, max) in max.iter_mut().enumerate() {
        for (row, bias) in rows.iter().zip(bias) {
            let x = row[i] + bias;
            *max = if x > *max { x } else { *max };
        }
    }
}

/// Overwrites x with exp(x + bias − max), and adds that to `sum`.
#[inline(always)]
fn exponentiate_rows<const N: usize>(rows: [&mut [f32]; N], bias: &[f32; N], max: &[f32], sum: &mut [f32]) {
    let mut rows = rows.map(|row| &mut row[..max.len()]);
    for (i, (max, sum)) in max.iter().zip(sum).enumerate() {
        for (row, bias) in rows.iter_mut().zip(bias) {
            row[i] = exp_nonpositive((row[i] + bias) - max);
            *sum += row[i];
        }
    }
}

/// Adds tiles' sums up: `max` is the larger of the two maxima, and `total` = Σ sum · exp(its maximum − `max`).
pub(super) fn combine(total: &mut [f64], max: &mut [f32], tile_sum: &[f32], tile_max: &[f32]) {
    vectorised(
        #[inline(always)]
        || {
            let totals = total.iter_mut().zip(max);
            for ((total, max), (sum, tile)) in totals.zip(tile_sum.iter().zip(tile_max)) {
                let larger = if *tile > *max { *tile } else { *max };
                let (before, here) = (exp_nonpositive(*max - larger), exp_nonpositive(tile - larger));
                *total = *total * f64::from(before) + f64::from(*sum) * f64::from(here);
                *max = larger;
            }
        },
    );
}

/// What the exponentials of a tile with the maxima `max` are multiplied by to become gradients, per position:
/// full · exp(max − z) − tail · exp(max − z_tail).
pub(super) fn scales(
    to: &mut [f32],
    max: &[f32],
    (full, log_sum_exp): (&[f64], &[f64]),
    (tail, tail_log_sum_exp): (&[f64], &[f64]),
) {
    vectorised(
        #[inline(always)]
        || {
            let whole = full.iter().zip(log_sum_exp);
            let tails = tail.iter().zip(tail_log_sum_exp);
            for (((to, max), (full, z)), (tail, z_tail)) in to.iter_mut().zip(max).zip(whole).zip(tails) {
                let whole = exp_nonpositive((f64::from(*max) - z) as f32);
                let ghost = exp_nonpositive((f64::from(*max) - z_tail) as f32);
                *to = (full * f64::from(whole) - tail * f64::from(ghost)) as f32;
            }
        },
    );
}

/// Multiplies every row by `scale` `[stride]`.
pub(super) fn multiply_rows(tile: &mut [f32], scale: &[f32]) {
    vectorised(
        #[inline(always)]
        || {
            for row in tile.chunks_exact_mut(scale.len()) {
                for (x, scale) in row.iter_mut().zip(scale) {
                    *x *= scale;
                }
            }
        },
    );
}

/// Adds to each of `sums` `[rows]` its row of `tile`, of which the first `positions` numbers count.
pub(super) fn add_row_sums(sums: &mut [f32], tile: &[f32], stride: usize, positions: usize) {
    vectorised(
        #[inline(always)]
        || {
            for (sum, row) in sums.iter_mut().zip(tile.chunks_exact(stride)) {
                let row = &row[..positions];
                *sum += sum_of(row, row, |x, _| x);
            }
        },
    );
}

/// `to` = Σ of the equally long `parts`, from the first to the last, from number `first` on.
pub(super) fn add_up(to: &mut [f32], parts: &[f32], part_len: usize, first: usize) {
    vectorised(
        #[inline(always)]
        || {
            to.fill(0.0);
            for part in parts.chunks_exact(part_len) {
                for (to, from) in to.iter_mut().zip(&part[first..]) {
                    *to += from;
                }
            }
        },
    );
}
