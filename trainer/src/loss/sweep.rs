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
            raise(tile, bias, max);
            exponentiate_below(tile, bias, max, sum);
        },
    );
}

#[inline(always)]
fn raise(tile: &[f32], bias: &[f32], max: &mut [f32]) {
    // Finite, so that a column of nothing but −∞ has sum 0 and not NaN.
    max.fill(f32::MIN);
    for (row, bias) in tile.chunks_exact(max.len()).zip(bias) {
        for (max, x) in max.iter_mut().zip(row) {
            let x = x + bias;
            *max = if x > *max { x } else { *max };
        }
    }
}

#[inline(always)]
fn exponentiate_below(tile: &mut [f32], bias: &[f32], max: &[f32], sum: &mut [f32]) {
    sum.fill(0.0);
    for (row, bias) in tile.chunks_exact_mut(max.len()).zip(bias) {
        for ((x, max), sum) in row.iter_mut().zip(max).zip(&mut *sum) {
            *x = exp_nonpositive((*x + bias) - max);
            *sum += *x;
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
            let (whole, tails) = (full.iter().zip(log_sum_exp), tail.iter().zip(tail_log_sum_exp));
            for (((to, max), (full, z)), (tail, z_tail)) in to.iter_mut().zip(max).zip(whole).zip(tails) {
                let of_whole = exp_nonpositive((f64::from(*max) - z) as f32);
                let of_tail = exp_nonpositive((f64::from(*max) - z_tail) as f32);
                *to = (full * f64::from(of_whole) - tail * f64::from(of_tail)) as f32;
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
                *sum += sum_of(
                    row,
                    row,
                    #[inline(always)]
                    |x, _| x,
                );
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
