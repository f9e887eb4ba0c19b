//! One row of logits: bias, maximum, exponentials and their sum, in three passes that the compiler vectorises.
//!
//! Sums run over lanes and blocks of a fixed size, so a row's result depends on the row alone.

/// Numbers summed in single precision before the sum moves on to double.
const BLOCK: usize = 1024;
const LANES: usize = 16;

/// A row's normaliser.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Row {
    /// log Σ exp(x).
    pub(crate) log_sum_exp: f64,
    /// Σ exp(x − max).
    pub(crate) sum: f64,
}

/// Adds the bias to the logits and returns their maximum. Not a number where it comes up is not lost: it is found by
/// [`exponentiate`].
pub(crate) fn add_bias(logits: &mut [f32], bias: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let whole = logits.len() / LANES * LANES;
    let (head, tail) = logits.split_at_mut(whole);
    let (head_bias, tail_bias) = bias.split_at(whole);
    for (logits, bias) in head.chunks_exact_mut(LANES).zip(head_bias.chunks_exact(LANES)) {
        for lane in 0..LANES {
            logits[lane] += bias[lane];
            lanes[lane] = if logits[lane] > lanes[lane] { logits[lane] } else { lanes[lane] };
        }
    }
    for (logit, bias) in tail.iter_mut().zip(tail_bias) {
        *logit += bias;
        lanes[0] = lanes[0].max(*logit);
    }
    lanes.into_iter().fold(f32::NEG_INFINITY, f32::max)
}

/// Overwrites every x with exp(x − max).
pub(crate) fn exponentiate(logits: &mut [f32], max: f32) -> Row {
    let mut sum = 0.0_f64;
    for block in logits.chunks_mut(BLOCK) {
        let mut lanes = [0.0_f32; LANES];
        let mut pieces = block.chunks_exact_mut(LANES);
        for piece in &mut pieces {
            for lane in 0..LANES {
                piece[lane] = exp(piece[lane] - max);
                lanes[lane] += piece[lane];
            }
        }
        for x in pieces.into_remainder() {
            *x = exp(*x - max);
            lanes[0] += *x;
        }
        sum += lanes.iter().map(|lane| f64::from(*lane)).sum::<f64>();
    }
    Row { log_sum_exp: f64::from(max) + sum.ln(), sum }
}

/// Multiplies every number by `factor`.
pub(crate) fn scale(numbers: &mut [f32], factor: f32) {
    for x in numbers {
        *x *= factor;
    }
}

/// e^x for x ≤ 0, within 2 units in the last place; 0 below −87; not a number stays so.
///
/// x = n·ln 2 + r with |r| ≤ ln 2 / 2; e^r by the polynomial of Cephes' `expf`; no branch, so that it vectorises.
#[inline(always)]
fn exp(x: f32) -> f32 {
    // Adding 1.5 · 2^23 rounds to the nearest integer and leaves that integer in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    // ln 2 in two parts, the first of which has few bits: n times it is exact.
    let r = x - n * 0.693_359_4 - n * -2.121_944_4e-4;
    let mut p = 1.987_569_1e-4;
    for coefficient in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = p * r + coefficient;
    }
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(0x3f80_0000));
    let value = (p * r * r + r + 1.0) * power;
    if x < -87.0 { 0.0 } else { value }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_agrees_with_the_standard_library() {
        for step in 0..=870_000 {
            let x = -(step as f32) * 1e-4;
            let exact = f64::from(x).exp();
            assert!((f64::from(exp(x)) - exact).abs() <= 2.5e-7 * exact, "exp({x}) = {} for {exact}", exp(x));
        }
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-1000.0), 0.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn rows_of_any_length_are_normalised() {
        for length in [1, 7, 16, 17, 1024, 1025, 3000] {
            let logits: Vec<f32> = (0..length).map(|i| ((i * 37 % 101) as f32 - 50.0) / 7.0).collect();
            let bias: Vec<f32> = (0..length).map(|i| (i % 5) as f32 / 10.0).collect();
            let exact: f64 = logits.iter().zip(&bias).map(|(x, b)| f64::from(x + b).exp()).sum::<f64>().ln();
            let mut row = logits.clone();
            let max = add_bias(&mut row, &bias);
            assert!(logits.iter().zip(&bias).all(|(x, b)| x + b <= max));
            let Row { log_sum_exp, sum } = exponentiate(&mut row, max);
            assert!((log_sum_exp - exact).abs() < 1e-6, "{length}: {log_sum_exp} for {exact}");
            scale(&mut row, (1.0 / sum) as f32);
            assert!((row.iter().map(|p| f64::from(*p)).sum::<f64>() - 1.0).abs() < 1e-5);
        }
    }

    #[test]
    fn what_is_not_finite_shows() {
        for wrong in [f32::NAN, f32::INFINITY] {
            let mut row = vec![0.5; 40];
            row[20] = wrong;
            let max = add_bias(&mut row, &[0.0; 40]);
            assert!(!exponentiate(&mut row, max).log_sum_exp.is_finite());
        }
    }
}
