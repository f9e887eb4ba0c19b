//! Counter-based random numbers: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as
//! 1, 2, 3", SC 2011). A number is a function of (seed, purpose, indices); no generator has hidden state,
//! so any part of a run can be repeated alone.

use sha2::{Digest, Sha256};

const MULTIPLIERS: [u64; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];

/// A stream of random numbers for one purpose. Draws are addressed by two indices.
#[derive(Clone, Copy, Debug)]
pub struct Philox {
    key: [u32; 2],
}

impl Philox {
    /// The stream for `purpose` (and whatever `parts` identify an object) under `seed`.
    #[must_use]
    pub fn new(seed: u64, purpose: &str, parts: &[&[u8]]) -> Self {
        let mut hash = Sha256::new();
        hash.update(seed.to_le_bytes());
        for part in std::iter::once(purpose.as_bytes()).chain(parts.iter().copied()) {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        let digest = hash.finalize();
        let word = |at: usize| u32::from_le_bytes([digest[at], digest[at + 1], digest[at + 2], digest[at + 3]]);
        Self { key: [word(0), word(4)] }
    }

    /// The blocks of `LANES` counters that differ in their first word: `first`, `first` + 1, … The result holds the blocks'
    /// first words, then their second ones, and so on. Made for loops that the compiler turns into vector code.
    #[inline(always)]
    #[must_use]
    pub(crate) fn blocks<const LANES: usize>(&self, first: u32, rest: [u32; 3]) -> [[u32; LANES]; 4] {
        let mut words = [[0; LANES], [rest[0]; LANES], [rest[1]; LANES], [rest[2]; LANES]];
        for (lane, word) in words[0].iter_mut().enumerate() {
            *word = first.wrapping_add(lane as u32);
        }
        let mut key = self.key;
        for _ in 0..10 {
            let [a, b, c, d] = words;
            for lane in 0..LANES {
                let first = MULTIPLIERS[0] * u64::from(a[lane]);
                let second = MULTIPLIERS[1] * u64::from(c[lane]);
                words[0][lane] = (second >> 32) as u32 ^ b[lane] ^ key[0];
                words[1][lane] = second as u32;
                words[2][lane] = (first >> 32) as u32 ^ d[lane] ^ key[1];
                words[3][lane] = first as u32;
            }
            key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
        }
        words
    }

    /// Both words of its key.
    pub(crate) fn key(&self) -> [u32; 2] {
        self.key
    }

    /// Four random words for a counter.
    #[must_use]
    pub fn block(&self, counter: [u32; 4]) -> [u32; 4] {
        let [mut a, mut b, mut c, mut d] = counter;
        let mut key = self.key;
        for _ in 0..10 {
            let first = MULTIPLIERS[0] * u64::from(a);
            let second = MULTIPLIERS[1] * u64::from(c);
            (a, b, c, d) =
                ((second >> 32) as u32 ^ b ^ key[0], second as u32, (first >> 32) as u32 ^ d ^ key[1], first as u32);
            key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
        }
        [a, b, c, d]
    }

    /// A random 64-bit number.
    #[must_use]
    pub fn bits(&self, first: u64, second: u64) -> u64 {
        let [low, high, ..] = self.block([first as u32, (first >> 32) as u32, second as u32, (second >> 32) as u32]);
        u64::from(high) << 32 | u64::from(low)
    }

    /// Uniform in [0, 1).
    #[must_use]
    pub fn uniform(&self, first: u64, second: u64) -> f64 {
        (self.bits(first, second) >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Uniform in 0..bound; `bound` must not be 0. The bias is below bound / 2^64.
    #[must_use]
    pub fn below(&self, bound: u64, first: u64, second: u64) -> u64 {
        ((u128::from(self.bits(first, second)) * u128::from(bound)) >> 64) as u64
    }

    /// Standard normal (Box–Muller).
    #[must_use]
    pub fn normal(&self, first: u64, second: u64) -> f64 {
        let [a, b, c, d] = self.block([first as u32, (first >> 32) as u32, second as u32, (second >> 32) as u32]);
        let unit = |high: u32, low: u32| ((u64::from(high) << 32 | u64::from(low)) >> 11) as f64 / (1_u64 << 53) as f64;
        let radius = (-2.0 * (1.0 - unit(a, b)).ln()).sqrt();
        radius * (std::f64::consts::TAU * unit(c, d)).cos()
    }

    /// Shuffles in place (Fisher–Yates); `stream` tells one shuffle of this purpose from another.
    pub fn shuffle<T>(&self, items: &mut [T], stream: u64) {
        for last in (1..items.len()).rev() {
            let other = self.below(last as u64 + 1, stream, last as u64) as usize;
            items.swap(last, other);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_answers_of_random123() {
        for (key, counter, expected) in [
            ([0, 0], [0; 4], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            ([u32::MAX; 2], [u32::MAX; 4], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (
                [0xa409_3822, 0x299f_31d0],
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ] {
            assert_eq!(Philox { key }.block(counter), expected);
        }
    }

    #[test]
    fn many_blocks_at_once_are_the_same_blocks() {
        let stream = Philox::new(1, "test", &[]);
        let words = stream.blocks::<8>(u32::MAX - 2, [1, 2, 3]);
        for lane in 0..8_usize {
            let block = stream.block([(u32::MAX - 2).wrapping_add(lane as u32), 1, 2, 3]);
            assert_eq!(words.map(|word| word[lane]), block);
        }
    }

    #[test]
    fn normal_has_unit_moments() {
        let stream = Philox::new(1, "test", &[]);
        let draws: Vec<f64> = (0..20_000).map(|i| stream.normal(i, 0)).collect();
        let mean = draws.iter().sum::<f64>() / draws.len() as f64;
        let variance = draws.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / draws.len() as f64;
        assert!(mean.abs() < 0.03 && (variance - 1.0).abs() < 0.05, "{mean} {variance}");
    }
}
