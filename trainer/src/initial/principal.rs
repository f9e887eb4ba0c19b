//! The principal axes of many rows: the directions in which they differ most.

use rayon::prelude::*;

/// Rows that the covariance is taken over, at most, evenly spaced: more change nothing that matters.
const SAMPLE_ROWS: usize = 16_384;
/// Rows of the covariance that a thread sums at a time: they stay in its cache.
const BLOCK_ROWS: usize = 16;
/// Two rows whose cosine is no larger count as orthogonal.
const ORTHOGONAL: f64 = 1e-12;
/// Jacobi's method converges quadratically: a dozen sweeps are many.
const SWEEPS_MAX: usize = 60;
/// An axis with less than this share of the largest variance is none.
const VARIANCE_MIN: f64 = 1e-10;
const LANES: usize = 8;

/// The first `count` principal axes of `rows` `[n, width]`, whose means are `means` `[width]`: unit vectors `[≤ count, width]` by
/// descending variance, the largest number of each positive. Fewer if the rows lie in fewer dimensions. Does not depend on the number of threads.
pub(super) fn axes(rows: &[f32], means: &[f64], count: usize) -> Vec<Vec<f64>> {
    let mut covariance = covariance(rows, means);
    orthogonalise(&mut covariance);
    // The rows are now eigenvectors, each as long as its eigenvalue.
    let mut lengths: Vec<(f64, usize)> = covariance.iter().map(|row| dot(row, row).sqrt()).zip(0..).collect();
    lengths.sort_by(|one, other| other.0.total_cmp(&one.0).then(one.1.cmp(&other.1)));
    let largest = lengths.first().map_or(0.0, |(length, _)| *length);
    let found = lengths.into_iter().take(count).take_while(|(length, _)| *length > VARIANCE_MIN * largest);
    found
        .map(|(length, at)| {
            let sign =
                covariance[at].iter().copied().fold(0.0, |best: f64, x| if x.abs() > best.abs() { x } else { best });
            let scale = length.copysign(sign);
            covariance[at].iter().map(|x| x / scale).collect()
        })
        .collect()
}

/// Σ (x − mean)(x − mean)ᵀ over a sample of the rows, `[width, width]`. Threads share out its rows; each element is one sum in the order of the sample.
fn covariance(rows: &[f32], means: &[f64]) -> Vec<Vec<f64>> {
    let width = means.len();
    let stride = (rows.len() / width.max(1)).div_ceil(SAMPLE_ROWS).max(1);
    let mut covariance = vec![vec![0.0; width]; width];
    covariance.par_chunks_mut(BLOCK_ROWS).enumerate().for_each(|(block, sums)| {
        let mut centred = vec![0.0; width];
        for row in rows.chunks_exact(width.max(1)).step_by(stride) {
            centred.iter_mut().zip(row).zip(means).for_each(|((to, x), mean)| *to = f64::from(*x) - mean);
            for (sums, x) in sums.iter_mut().zip(&centred[block * BLOCK_ROWS..]) {
                sums.iter_mut().zip(&centred).for_each(|(sum, other)| *sum += x * other);
            }
        }
    });
    covariance
}

/// Turns the rows of a symmetric positive semi-definite matrix, pair by pair, until all are orthogonal: one-sided Jacobi
/// (Hestenes 1958). A turn is a product with a rotation from the left; of C = QΛQᵀ it leaves ΛQᵀ.
fn orthogonalise(matrix: &mut [Vec<f64>]) {
    for _ in 0..SWEEPS_MAX {
        let mut is_done = true;
        for first in 0..matrix.len() {
            let (before, after) = matrix.split_at_mut(first + 1);
            let one = &mut before[first];
            for other in after {
                is_done &= !rotate(one, other);
            }
        }
        store::pulse::beat();
        if is_done {
            return;
        }
    }
}

/// Makes two rows orthogonal; `false`: they were.
fn rotate(one: &mut [f64], other: &mut [f64]) -> bool {
    let (alpha, beta, gamma) = (dot(one, one), dot(other, other), dot(one, other));
    if gamma.abs() <= ORTHOGONAL * (alpha * beta).sqrt() {
        return false;
    }
    let zeta = (beta - alpha) / (2.0 * gamma);
    let tangent = 1.0_f64.copysign(zeta) / (zeta.abs() + zeta.hypot(1.0));
    let cosine = 1.0 / tangent.hypot(1.0);
    let sine = cosine * tangent;
    for (x, y) in one.iter_mut().zip(other) {
        (*x, *y) = (cosine * *x - sine * *y, sine * *x + cosine * *y);
    }
    true
}

/// In a fixed order, several sums at a time.
pub(super) fn dot(one: &[f64], other: &[f64]) -> f64 {
    let mut sums = [0.0; LANES];
    let ((one, one_rest), (other, other_rest)) = (one.as_chunks::<LANES>(), other.as_chunks::<LANES>());
    for (one, other) in one.iter().zip(other) {
        for lane in 0..LANES {
            sums[lane] += one[lane] * other[lane];
        }
    }
    let rest: f64 = one_rest.iter().zip(other_rest).map(|(one, other)| one * other).sum();
    sums.iter().sum::<f64>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::random::Philox;

    /// Rows with these standard deviations along the columns of a random rotation, and what that rotation is.
    fn scattered(count: usize, deviations: &[f64]) -> (Vec<f32>, Vec<Vec<f64>>) {
        let (stream, width) = (Philox::new(5, "test", &[]), deviations.len());
        let mut basis: Vec<Vec<f64>> = Vec::new();
        for axis in 0..width as u64 {
            let mut row: Vec<f64> = (0..width as u64).map(|at| stream.normal(axis, at)).collect();
            for known in &basis {
                let along = dot(&row, known);
                row.iter_mut().zip(known).for_each(|(x, known)| *x -= along * known);
            }
            let length = dot(&row, &row).sqrt();
            basis.push(row.iter().map(|x| x / length).collect());
        }
        let mut rows = Vec::new();
        for row in 0..count as u64 {
            let mut sums = vec![3.0; width];
            for ((axis, deviation), number) in basis.iter().zip(deviations).zip(1000..) {
                let along = deviation * stream.normal(row, number);
                sums.iter_mut().zip(axis).for_each(|(sum, x)| *sum += along * x);
            }
            rows.extend(sums.iter().map(|x| *x as f32));
        }
        (rows, basis)
    }

    #[test]
    fn axes_are_found_by_descending_variance() {
        let deviations = [0.5, 4.0, 0.01, 2.0, 1.0, 8.0, 0.25, 0.0, 0.1];
        let (rows, basis) = scattered(3000, &deviations);
        let found = axes(&rows, &[3.0; 9], 5);
        assert_eq!(found.len(), 5);
        for (axis, expected) in found.iter().zip([5, 1, 3, 4, 0]) {
            let cosine = dot(axis, &basis[expected]);
            assert!(cosine.abs() > 0.995, "{expected}: {cosine}");
            let largest = axis.iter().copied().fold(0.0, |best: f64, x| if x.abs() > best.abs() { x } else { best });
            assert!(largest > 0.0 && (dot(axis, axis) - 1.0).abs() < 1e-12);
        }
        for (at, one) in found.iter().enumerate() {
            for other in &found[..at] {
                assert!(dot(one, other).abs() < 1e-9);
            }
        }
    }

    #[test]
    fn there_are_no_more_axes_than_dimensions() {
        let (rows, _) = scattered(400, &[1.0, 2.0, 0.0, 0.0]);
        let exact: Vec<f32> = rows.chunks(4).flat_map(|row| [row[0], row[1], row[0], 0.0]).collect();
        let means: Vec<f64> =
            (0..4).map(|at| exact.iter().skip(at).step_by(4).map(|x| f64::from(*x)).sum::<f64>() / 400.0).collect();
        assert_eq!(axes(&exact, &means, 4).len(), 2);
        assert!(axes(&[0.5; 40], &[0.5; 4], 4).is_empty());
    }
}
