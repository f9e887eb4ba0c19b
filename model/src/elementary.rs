//! Elementary functions of float32 without branches or calls, so that loops over them become vector code: see
//! [`crate::simd::vectorised`].
//!
//! Sums are kept in a fixed number of lanes, so their order, and with it the result, is the same whatever the width of the
//! machine's vectors and the number of threads.

use std::f32::consts::{LN_2, LOG2_E};

/// Lanes of a sum. Two vectors of the widest kind.
const LANES: usize = 32;

/// eˣ for x ≤ 0, with a relative error below 2⁻²²; below −87.3 about 1e-38. Not a number stays so.
///
/// Cephes' `expf`: x = n·ln 2 + r with |r| ≤ ln 2 / 2, and a polynomial in r.
#[inline(always)]
pub fn exp_nonpositive(x: f32) -> f32 {
    const LOWEST: f32 = -87.3;
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    // Written so that NaN passes.
    let x = if x < LOWEST { LOWEST } else { x };
    let rounded = x.mul_add(LOG2_E, ROUND);
    let n = rounded - ROUND;
    let r = n.mul_add(-LN_2_LOW, n.mul_add(-LN_2_HIGH, x));
    let mut p = 1.987_569_1e-4;
    for coefficient in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_6e-1, 5.0e-1, 1.0, 1.0] {
        p = r.mul_add(p, coefficient);
    }
    p * power_of_two(rounded)
}

/// 2ˣ for x ≤ 0, with a relative error below 2⁻²¹·⁷ for x ≥ −125.9; below that an absolute error under 1.2e-38, and exactly 0 below −126.5.
/// Not a number stays so.
///
/// x = n + r with |r| ≤ ½, which is exact, and a polynomial in r, nearly minimax for the relative error.
#[inline(always)]
pub fn exp2_nonpositive(x: f32) -> f32 {
    const LOWEST: f32 = -127.0;
    let x = if x < LOWEST { LOWEST } else { x };
    let rounded = x + ROUND;
    let r = x - (rounded - ROUND);
    let mut p = 1.326_473_9e-3;
    for coefficient in [9.671_517e-3, 5.550_733_6e-2, 2.402_224_2e-1, LN_2, 1.0] {
        p = r.mul_add(p, coefficient);
    }
    p * power_of_two(rounded)
}

/// Added, it rounds to an integer n (ties to even), which then stands in the low bits.
const ROUND: f32 = 12_582_912.0;

/// 2ⁿ from n + [`ROUND`], for −127 ≤ n ≤ 127; 0 for n = −127.
#[inline(always)]
fn power_of_two(rounded: f32) -> f32 {
    f32::from_bits((rounded.to_bits() << 23).wrapping_add(127 << 23))
}

/// The standard normal distribution: (Φ(x), φ(x)), with absolute errors below 2⁻²³. Far below zero both are exactly 0.
///
/// Φ(−z) = e^(−z²/2) · P(z) for z ≥ 0. The polynomial P approximates Mills' ratio over √(2π), which is smooth, and it need not be
/// exact where the factor before it is small: of degree 11, it is minimax for the error of max(z, 1) · Φ, 3.4e-8.
#[inline(always)]
pub fn normal(x: f32) -> (f32, f32) {
    const FRAC_1_SQRT_2_PI: f32 = 0.398_942_3;
    /// The polynomial holds up to here, and Φ is then below 1e-8.
    const LARGEST: f32 = 5.75;
    let bell = exp2_nonpositive(x * (-0.5 * LOG2_E) * x);
    let z = if x.abs() > LARGEST { LARGEST } else { x.abs() };
    let mut p = -2.509_986e-7;
    for coefficient in [
        6.436_009e-6,
        -7.415_881e-5,
        5.147_709e-4,
        -2.453_722_5e-3,
        8.766_285e-3,
        -2.521_488_3e-2,
        6.175_816_4e-2,
        -1.327_474_3e-1,
        2.499_633_7e-1,
        -3.989_403e-1,
        0.5,
    ] {
        p = z.mul_add(p, coefficient);
    }
    let tail = bell * p;
    (if x > 0.0 { 1.0 - tail } else { tail }, FRAC_1_SQRT_2_PI * bell)
}

/// The logistic function 1 / (1 + e⁻ˣ) and its derivative, with absolute errors below 2⁻²². (1 + tanh x) / 2 is that of 2·x.
#[inline(always)]
pub fn sigmoid(x: f32) -> (f32, f32) {
    let small = exp2_nonpositive(-LOG2_E * x.abs());
    let high = 1.0 / (1.0 + small);
    let low = small * high;
    (if x < 0.0 { low } else { high }, low * high)
}

/// Σ term(a, b) over two slices of equal length.
#[inline(always)]
pub fn sum_of(a: &[f32], b: &[f32], term: impl Fn(f32, f32) -> f32) -> f32 {
    let mut of_chunks = [0.0_f32; LANES];
    let (a_chunks, a_rest) = a.as_chunks::<LANES>();
    let (b_chunks, b_rest) = b.as_chunks::<LANES>();
    for (a, b) in a_chunks.iter().zip(b_chunks) {
        for lane in 0..LANES {
            of_chunks[lane] += term(a[lane], b[lane]);
        }
    }
    // A copy: what is indexed by a variable lives in memory, and the sums above belong in registers.
    let mut lanes = of_chunks;
    for (lane, (a, b)) in lanes.iter_mut().zip(a_rest.iter().zip(b_rest)) {
        *lane += term(*a, *b);
    }
    let mut width = LANES / 2;
    while width > 0 {
        let (low, high) = lanes.split_at_mut(width);
        for (low, high) in low.iter_mut().zip(high) {
            *low += *high;
        }
        width /= 2;
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worst(range: std::ops::Range<i32>, step: f32, error: impl Fn(f32) -> f64) -> f64 {
        range.map(|i| error(i as f32 * step)).fold(0.0, f64::max)
    }

    /// Φ. candle's float64 version is a port of FreeBSD's.
    fn distribution(x: f32) -> f64 {
        if x == 0.0 {
            return 0.5;
        }
        let x = candle_core::Tensor::new(f64::from(x), &candle_core::Device::Cpu);
        x.and_then(|x| (x.gelu_erf()? / x)?.to_scalar::<f64>()).unwrap_or(f64::NAN)
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
    fn exp2_is_close() {
        let error = |x: f32| (f64::from(exp2_nonpositive(x)) / f64::from(x).exp2() - 1.0).abs();
        let worst = worst(-125_900..1, 1e-3, error);
        assert!(worst < 2.9e-7, "{worst:e}");
        for x in [-127.0, -127.25, -1e30, f32::NEG_INFINITY] {
            assert_eq!(exp2_nonpositive(x), 0.0);
        }
        assert!((-1_270..-1_258).all(|x| (0.0..1.4e-38).contains(&exp2_nonpositive(x as f32 * 0.1))));
        assert!([f32::NAN, f32::from_bits(0x7fc0_0001), -f32::NAN].iter().all(|nan| exp2_nonpositive(*nan).is_nan()));
        assert_eq!(exp2_nonpositive(0.0), 1.0);
    }

    #[test]
    fn normal_is_close() {
        let density = |x: f32| (-0.5 * f64::from(x).powi(2)).exp() / std::f64::consts::TAU.sqrt();
        let worst_of = |error: &dyn Fn(f32) -> f64| worst(-8_000..8_000, 1e-3, error);
        let of_distribution = worst_of(&|x| (f64::from(normal(x).0) - distribution(x)).abs());
        let of_density = worst_of(&|x| (f64::from(normal(x).1) - density(x)).abs());
        assert!(of_distribution < 1.1e-7 && of_density < 1.1e-7, "{of_distribution:e} {of_density:e}");
        assert_eq!([-200.0, 0.0, 200.0].map(|x| normal(x).0), [0.0, 0.5, 1.0]);
        assert!(normal(f32::NAN).0.is_nan() && normal(f32::NAN).1.is_nan());
    }

    #[test]
    fn sigmoid_is_close() {
        let exact = |x: f32| 1.0 / (1.0 + (-f64::from(x)).exp());
        let worst_of = |error: &dyn Fn(f32) -> f64| worst(-30_000..30_000, 1e-3, error);
        let of_value = worst_of(&|x| (f64::from(sigmoid(x).0) - exact(x)).abs());
        let of_derivative = worst_of(&|x| (f64::from(sigmoid(x).1) - exact(x) * exact(-x)).abs());
        assert!(of_value < 2.4e-7 && of_derivative < 2.4e-7, "{of_value:e} {of_derivative:e}");
        assert_eq!([f32::NEG_INFINITY, 0.0, f32::INFINITY].map(|x| sigmoid(x).0), [0.0, 0.5, 1.0]);
        assert!(sigmoid(f32::NAN).0.is_nan());
    }

    #[test]
    fn sums_and_maxima_of_any_length() {
        for length in [0, 1, 31, 32, 33, 64, 100] {
            let values: Vec<f32> = (0..length).map(|i| ((i * 7) % 13) as f32).collect();
            assert_eq!(sum_of(&values, &values, |a, b| a * b), values.iter().map(|v| v * v).sum::<f32>());
        }
    }
}
