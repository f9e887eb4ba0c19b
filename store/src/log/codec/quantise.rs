//! Log-probabilities as small numbers, and back.
//!
//! A log-probability lies in a cell: number q holds those around −q·[`STEP`], so that the middle of its cell is nowhere
//! further than half a step away. Where probability is concentrated that is not enough: an error in the largest
//! probabilities falls on the tail, whose own share may be tiny. So cells are cut into parts, of which each decodes to its
//! middle, and how many parts is a function of the cells' numbers alone:
//!
//! To second order, an error δ of a log-probability with probability p costs p·δ²/2, and what it takes from a tail of
//! probability t costs (p·δ)²/(2·t), so w·δ²/2 with w = p·(p + t)/t. With n parts δ² is 1/n² of what it was: n = ⌈√(w/c)⌉,
//! where c follows from the level that the encoder chose for a block.
//!
//! Everything that decides about bits is integer arithmetic.

/// Width of a cell in nats: a little below 1/16, so that rounding to float32 stays within 1/32.
pub(crate) const STEP: f32 = 255.0 / 4096.0;

/// Most parts of a cell.
pub(crate) const PARTS_MAX: u32 = 1024;
/// Levels that an encoder may choose; each refines twice as much of the weight.
pub(crate) const LEVELS: u8 = 14;
/// A tail is never taken for smaller.
const TAIL_MIN: u64 = ONE / 4096;
/// Probability 1.
pub(crate) const ONE: u64 = 1 << 32;
/// Numbers from here on have probabilities below 2^-32.
const NUMBERS: usize = 358;

/// exp(−q·STEP) out of [`ONE`]: products of one factor, so that all machines agree.
static PROBABILITIES: [u64; NUMBERS] = {
    /// exp(−255/4096) · 2^62.
    const FACTOR: u128 = 4_333_335_901_507_320_270;
    let mut probabilities = [0; NUMBERS];
    let (mut power, mut number) = (1_u128 << 62, 0);
    while number < NUMBERS {
        probabilities[number] = (power >> 30) as u64;
        power = (power * FACTOR) >> 62;
        number += 1;
    }
    probabilities
};

/// Eight times the binary logarithms of [`PROBABILITIES`], about.
static EIGHTHS: [u16; NUMBERS] = {
    let mut logarithms = [0; NUMBERS];
    let mut number = 0;
    while number < NUMBERS {
        logarithms[number] = eighths(PROBABILITIES[number]) as u16;
        number += 1;
    }
    logarithms
};

/// Eight times the binary logarithm of a number, between powers of two as if it were straight.
const fn eighths(number: u64) -> u32 {
    let number = if number < 8 { 8 } else { number };
    let power = number.ilog2();
    8 * power + (number >> (power - 3) & 7) as u32
}

/// How many times the probability of a cell is `left`, in half powers of two from 2^-6 on.
pub(crate) fn times(left: u64, cell: u32) -> usize {
    let of_cell = EIGHTHS.get(cell as usize).copied().map_or(eighths(0), u32::from);
    ((eighths(left) + 8 * 6).saturating_sub(of_cell) / 4) as usize
}

/// The probability of a cell's middle.
pub(crate) fn probability(number: u32) -> u64 {
    PROBABILITIES.get(number as usize).copied().unwrap_or(0)
}

/// The number of the cell that holds a log-probability; those above 0 count as 0.
pub(crate) fn number_of(log_probability: f64) -> u32 {
    (-log_probability / f64::from(STEP)).round().clamp(0.0, f64::from(u32::MAX)) as u32
}

/// The log-probability in the middle of part `part` of `parts` of a cell.
pub(crate) fn middle(number: u32, part: u32, parts: u32) -> f64 {
    let offset = if parts == 1 { 0.0 } else { (2.0 * f64::from(part) + 1.0) / (2.0 * f64::from(parts)) - 0.5 };
    -(f64::from(number) - offset) * f64::from(STEP)
}

/// How finely the cells of one position are cut.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fineness {
    /// Probability of the tail.
    tail: u64,
    level: u8,
}

impl Fineness {
    /// For the cells of a position, by descending probability.
    pub(crate) fn of(numbers: &[u32], level: u8) -> Self {
        let sum: u64 = numbers.iter().map(|number| probability(*number)).sum();
        let least = numbers.last().map_or(0, |number| probability(*number));
        Self { tail: ONE.saturating_sub(sum).max(least).max(TAIL_MIN), level }
    }

    /// Whether it is easily seen that the cell with this number has one part, as most have: p ≤ t, so w ≤ 2·p, and that is at
    /// most c.
    pub(crate) fn is_whole(self, number: u32) -> bool {
        let p = probability(number);
        p <= self.tail && p << self.level <= 2 * ONE
    }

    /// Parts of the cell with this number.
    pub(crate) fn parts(self, number: u32) -> u32 {
        if self.is_whole(number) {
            return 1;
        }
        let p = probability(number);
        // 2^-16 of the weight: w = p·(p + t)/t, below 2^13 · ONE.
        let weight = ((p >> 8) * ((p + self.tail) >> 8) / self.tail).max(1);
        // At level 0, c = 4.
        let squared = (weight << self.level) >> 18;
        let root = squared.isqrt();
        let up = if root * root < squared { root + 1 } else { root };
        up.clamp(1, u64::from(PARTS_MAX)) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_are_exponentials() {
        for (number, probability) in PROBABILITIES.iter().enumerate() {
            let expected = (-(number as f64) * f64::from(STEP)).exp() * ONE as f64;
            assert!(
                (*probability as f64 - expected).abs() < 2.0 + expected * 1e-9,
                "{number}: {probability} {expected}"
            );
        }
        assert!(PROBABILITIES[NUMBERS - 1] <= 1);
    }

    #[test]
    fn cells_and_parts_hold_what_they_stand_for() {
        for hundredths in 0..5_000 {
            let log_probability = -f64::from(hundredths) / 100.0;
            let number = number_of(log_probability);
            assert!((middle(number, 0, 1) - log_probability).abs() <= f64::from(STEP) / 2.0 + 1e-12);
            for parts in [2, 3, 16, PARTS_MAX] {
                let nearest = (0..parts).map(|part| (middle(number, part, parts) - log_probability).abs());
                assert!(nearest.fold(f64::MAX, f64::min) <= f64::from(STEP) / f64::from(2 * parts) + 1e-12);
            }
        }
    }

    #[test]
    fn a_small_tail_makes_fine_parts() {
        let parts = |numbers: &[u32], level| Fineness::of(numbers, level).parts(numbers[0]);
        assert_eq!(parts(&[60, 61], 3), 1);
        assert!(parts(&[0, 100], 3) > parts(&[2, 30], 3));
        assert!(parts(&[2, 30], 6) > parts(&[2, 30], 3));
    }
}
