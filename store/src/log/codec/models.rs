//! Adaptive models of small alphabets.

use super::coder::{Coder, Interval, Model, PRECISION, TOTAL};
use crate::log::error::Damage;

/// How fast a model forgets: after many symbols each new one counts for 2^-RATE.
const RATE_MAX: u32 = 8;

/// The share of a new symbol after `seen` symbols, as a power of two: at first about 1 / (seen + 1.5), as if counting.
fn rate(seen: u16) -> u32 {
    (u32::from(seen) + 2).ilog2().clamp(1, RATE_MAX)
}

/// A yes or no.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bit {
    /// Probability of a yes, out of [`TOTAL`].
    yes: u32,
    seen: u16,
}

/// Neither answer ever gets less than this.
pub(crate) const BIT_FLOOR: u32 = TOTAL >> 12;

impl Default for Bit {
    fn default() -> Self {
        Self { yes: TOTAL / 2, seen: 0 }
    }
}

impl Bit {
    pub(crate) fn code(&mut self, coder: &mut impl Coder, yes: bool) -> bool {
        let yes = coder.code(self, u32::from(yes)) == 1;
        self.learn(yes);
        yes
    }

    /// Probability of a yes, out of [`TOTAL`]; at least [`BIT_FLOOR`].
    pub(crate) fn probability(&self) -> u32 {
        self.yes
    }

    pub(crate) fn learn(&mut self, yes: bool) {
        let rate = rate(self.seen);
        let towards = if yes { TOTAL - BIT_FLOOR } else { BIT_FLOOR };
        self.yes =
            if yes { self.yes + ((towards - self.yes) >> rate) } else { self.yes - ((self.yes - towards) >> rate) };
        self.seen = self.seen.saturating_add(1);
    }
}

impl Model for Bit {
    fn interval(&self, symbol: u32) -> Option<Interval> {
        match symbol {
            0 => Some(Interval { start: 0, width: TOTAL - self.yes }),
            1 => Some(Interval { start: TOTAL - self.yes, width: self.yes }),
            _ => None,
        }
    }

    fn find(&self, quantile: u32) -> (u32, Interval) {
        let no = TOTAL - self.yes;
        if quantile < no { (0, Interval { start: 0, width: no }) } else { (1, Interval { start: no, width: self.yes }) }
    }
}

/// Symbols of a [`Nibble`].
const SYMBOLS: usize = 16;
/// Its probabilities are multiples of 2^-15: the sixteen of them then fit half a cache line.
const NIBBLE_PRECISION: u32 = 15;
/// Share that every symbol keeps, so that none becomes impossible.
const FLOOR: i16 = 4;
/// What is divided by probability.
const SHARED: i16 = ((1 << NIBBLE_PRECISION) - SYMBOLS as i32 * FLOOR as i32) as i16;

/// A number below 16.
#[derive(Clone, Debug)]
#[repr(align(32))]
pub(crate) struct Nibble {
    /// Of [`SHARED`]: what the symbols up to and including each have. The last one has the rest; in its place stands how many symbols went
    /// by, up to [`SEEN_MAX`], so that a model is half a cache line.
    up_to: [i16; SYMBOLS],
}

/// A model no longer learns faster or slower then.
const SEEN_MAX: i16 = 1 << RATE_MAX;

impl Default for Nibble {
    fn default() -> Self {
        let mut up_to = std::array::from_fn(|symbol| SHARED / SYMBOLS as i16 * (symbol as i16 + 1));
        up_to[SYMBOLS - 1] = 0;
        Self { up_to }
    }
}

impl Nibble {
    #[inline]
    pub(crate) fn code(&mut self, coder: &mut impl Coder, symbol: u32) -> u32 {
        let symbol = coder.code(self, symbol);
        let seen = self.up_to[SYMBOLS - 1];
        let rate = rate(seen.cast_unsigned());
        for (at, up_to) in (0..).zip(&mut self.up_to) {
            let towards = if at >= symbol as i16 { SHARED } else { 0 };
            // Signed, so that there is one way to round.
            *up_to += (towards - *up_to) >> rate;
        }
        self.up_to[SYMBOLS - 1] = (seen + 1).min(SEEN_MAX);
        symbol
    }

    /// The last value of each symbol's interval.
    fn lasts(&self) -> [i16; SYMBOLS] {
        let last = |symbol: usize| self.up_to[symbol] + ((symbol as i16 + 1) * FLOOR - 1);
        std::array::from_fn(|symbol| if symbol == SYMBOLS - 1 { i16::MAX } else { last(symbol) })
    }

    fn between(lasts: &[i16; SYMBOLS], symbol: usize) -> Interval {
        let end = |last: i16| (u32::from(last.cast_unsigned()) + 1) << (PRECISION as u32 - NIBBLE_PRECISION);
        let start = symbol.checked_sub(1).map_or(0, |before| end(lasts[before]));
        Interval { start, width: end(lasts[symbol]) - start }
    }
}

impl Model for Nibble {
    #[inline]
    fn interval(&self, symbol: u32) -> Option<Interval> {
        let at = symbol as usize;
        (at < SYMBOLS).then(|| Self::between(&self.lasts(), at))
    }

    #[inline]
    fn find(&self, quantile: u32) -> (u32, Interval) {
        let lasts = self.lasts();
        let quantile = (quantile >> (PRECISION as u32 - NIBBLE_PRECISION)) as i16;
        let passed: i16 = lasts.iter().map(|last| i16::from(*last < quantile)).sum();
        let symbol = passed as usize % SYMBOLS;
        (symbol as u32, Self::between(&lasts, symbol))
    }
}

/// A number whose size matters more than its last bits: one of fifteen ranges and, all as likely, a place in it; larger ones behind an
/// escape.
#[derive(Clone, Debug, Default)]
pub(crate) struct Spread {
    range: Nibble,
    large: Large,
}

/// Where the ranges begin: they are 2^[`RANGE_BITS`] long.
const RANGES: [u32; SYMBOLS] = {
    let (mut ranges, mut range) = ([0; SYMBOLS], 1);
    while range < SYMBOLS {
        ranges[range] = ranges[range - 1] + (1 << RANGE_BITS[range - 1]);
        range += 1;
    }
    ranges
};
const RANGE_BITS: [u32; SYMBOLS - 1] = [0, 0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 4];

impl Spread {
    #[inline]
    pub(crate) fn code(&mut self, coder: &mut impl Coder, value: u32) -> u32 {
        let range: u32 = RANGES[1..].iter().map(|first| u32::from(*first <= value)).sum();
        let range = self.range.code(coder, range) as usize;
        let first = RANGES[range];
        let above = value.wrapping_sub(first);
        let above = match RANGE_BITS.get(range) {
            Some(0) => 0,
            Some(bits) => coder.bits(*bits, above & ((1 << bits) - 1)),
            None => self.large.code(coder, above),
        };
        first.saturating_add(above)
    }
}

/// A number below 15, or any other behind an escape; then it is coded by a model that several of these may share.
#[derive(Clone, Debug, Default)]
pub(crate) struct Small(Nibble);

impl Small {
    pub(crate) fn code(&mut self, coder: &mut impl Coder, large: &mut Large, value: u32) -> u32 {
        let escape = SYMBOLS as u32 - 1;
        let symbol = self.0.code(coder, value.min(escape));
        if symbol == escape {
            return large.code(coder, value.wrapping_sub(escape)).saturating_add(escape);
        }
        symbol
    }
}

/// Any number: how many bits it has, and those below the highest.
#[derive(Clone, Debug, Default)]
pub(crate) struct Large {
    lengths: [Nibble; 3],
}

impl Large {
    pub(crate) fn code(&mut self, coder: &mut impl Coder, value: u32) -> u32 {
        // 0 to 32 bits: two nibbles of at most 15, and a third for what they leave.
        let length = u32::BITS - value.leading_zeros();
        let mut read = 0;
        for nibble in &mut self.lengths {
            let part = nibble.code(coder, (length.saturating_sub(read)).min(15));
            read += part;
            if part < 15 {
                break;
            }
        }
        if read > u32::BITS {
            coder.fail(Damage::new(format!("a number of {read} bits")));
            return 0;
        }
        let Some(below) = read.checked_sub(1) else { return 0 };
        let (first, second) = (below.min(PRECISION as u32), below.saturating_sub(PRECISION as u32));
        let low = coder.bits(first, value & ((1_u64 << first) - 1) as u32);
        let high = coder.bits(second, (u64::from(value) >> first) as u32 & ((1_u32 << second) - 1));
        (1_u64 << below | u64::from(high) << first | u64::from(low)) as u32
    }
}
