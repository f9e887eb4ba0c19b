//! Elementary functions of float32 without branches or calls, so that loops over them become vector code: see
//! [`crate::simd::vectorised`].
//!
//! Sums are kept in a fixed number of lanes, so their order, and with it the result, is the same whatever the width of the
//! machine's vectors and the number of threads.

use std::f32::consts::{FRAC_2_SQRT_PI, LOG2_E};

/// Lanes of a sum. Two vectors of the widest kind.
const LANES: usize = 32;

/// eˣ for x ≤ 0, with a relative error below 2⁻²²; below −87.3 about 1e-38. Not a number stays so.
///
/// Cephes' `expf`: x = n·ln 2 + r with |r| ≤ ln 2 / 2, and a polynomial in r.
#[inline(always)]
pub fn exp_nonpositive(x: f32) -> f32 {
    const LOWEST: f32 = -87.3;
    /// Added and taken away, it rounds to an integer, which then stands in the low bits.
    const ROUND: f32 = 12_582_912.0;
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    // Written so that NaN passes.
    let x = if x < LOWEST { LOWEST } else { x };
    let rounded = x * LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = x - n * LN_2_HIGH - n * LN_2_LOW;
    let mut p = 1.987_569_1e-4;
    for coefficient in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_6e-1, 5.0e-1] {
        p = p * r + coefficient;
    }
    let power_of_two = f32::from_bits((rounded.to_bits() << 23).wrapping_add(127 << 23));
    (p * r * r + r + 1.0) * power_of_two
}

/// The error function, with an absolute error below 2⁻²¹·⁴. Not a number stays so.
///
/// The rational approximation of Eigen and XLA: an odd polynomial over an even one, and ±1 beyond 3.83.
#[inline(always)]
pub fn erf(x: f32) -> f32 {
    const LARGEST: f32 = 3.832_507;
    let square = x * x;
    let mut p = 2.290_506_5e-4;
    for coefficient in [3.408_291_e-3, 5.095_569_5e-2, 1.852_083_2e-1, FRAC_2_SQRT_PI] {
        p = p * square + coefficient;
    }
    let mut q = -1.179_160_3e-7;
    for coefficient in [2.354_796_6e-5, 1.017_962_6e-3, 1.407_047_e-2, 1.109_850_5e-1, 4.974_692_5e-1, 1.0] {
        q = q * square + coefficient;
    }
    let inside = x * p / q;
    let below = if x <= -LARGEST { -1.0 } else { inside };
    if x >= LARGEST { 1.0 } else { below }
}

/// Σ term(a, b) over two slices of equal length.
#[inline(always)]
pub fn sum_of(a: &[f32], b: &[f32], term: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0.0_f32; LANES];
    let (a_chunks, a_rest) = a.as_chunks::<LANES>();
    let (b_chunks, b_rest) = b.as_chunks::<LANES>();
    for (a, b) in a_chunks.iter().zip(b_chunks) {
        for lane in 0..LANES {
            lanes[lane] += term(a[lane], b[lane]);
        }
    }
    for (lane, (a, b)) in a_rest.iter().zip(b_rest).enumerate() {
        lanes[lane] += term(*a, *b);
    }
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] += lanes[lane + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// The largest value; NaN is passed over.
#[inline(always)]
pub fn largest(values: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = values.as_chunks::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            lanes[lane] = if chunk[lane] > lanes[lane] { chunk[lane] } else { lanes[lane] };
        }
    }
    rest.iter().chain(&lanes).copied().fold(f32::NEG_INFINITY, f32::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worst(range: std::ops::Range<i32>, step: f32, error: impl Fn(f32) -> f64) -> f64 {
        range.map(|i| error(i as f32 * step)).fold(0.0, f64::max)
    }

    #[test]
    fn exp_is_close() {
        let error = |x: f32| (f64::from(exp_nonpositive(x)) / f64::from(x).exp() - 1.0).abs();
        let worst = worst(-87_000..1, 1e-3, error);
        assert!(worst < 2.4e-7, "{worst:e}");
        assert!(exp_nonpositive(f32::NEG_INFINITY) < 2e-38 && exp_nonpositive(f32::NAN).is_nan());
        assert_eq!(exp_nonpositive(0.0), 1.0);
    }

    #[test]
    fn erf_is_close() {
        // candle's float64 version is a port of FreeBSD's.
        let reference = |x: f32| {
            let x = candle_core::Tensor::new(f64::from(x) * std::f64::consts::SQRT_2, &candle_core::Device::Cpu);
            let doubled = x.and_then(|x| (x.gelu_erf()? / x)?.to_scalar::<f64>());
            doubled.map_or(f64::NAN, |phi| 2.0 * phi - 1.0)
        };
        let worst = worst(1..6_000, 1e-3, |x| {
            (f64::from(erf(x)) - reference(x)).abs().max((f64::from(erf(-x)) + reference(x)).abs())
        });
        assert!(worst < 3.6e-7, "{worst:e}");
        assert!(erf(f32::NAN).is_nan() && erf(0.0) == 0.0);
    }

    #[test]
    fn sums_and_maxima_of_any_length() {
        for length in [0, 1, 31, 32, 33, 64, 100] {
            let values: Vec<f32> = (0..length).map(|i| ((i * 7) % 13) as f32).collect();
            assert_eq!(sum_of(&values, &values, |a, b| a * b), values.iter().map(|v| v * v).sum::<f32>());
            assert_eq!(largest(&values), values.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        }
    }
}
