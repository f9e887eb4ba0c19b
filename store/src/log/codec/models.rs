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
    pub(crate) fn code(&mut self, coder: &mut impl Coder, yes: bool) -> Result<bool, Damage> {
        let yes = coder.code(self, u32::from(yes))? == 1;
        self.learn(yes);
        Ok(yes)
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
/// Share that every symbol keeps, so that none becomes impossible.
const FLOOR: u32 = TOTAL >> 13;
/// What is divided by probability.
const SHARED: u32 = TOTAL - SYMBOLS as u32 * FLOOR;

/// A number below 16.
#[derive(Clone, Debug)]
pub(crate) struct Nibble {
    /// Of [`SHARED`]: what the symbols up to and including each have.
    up_to: [u32; SYMBOLS],
    seen: u16,
}

impl Default for Nibble {
    fn default() -> Self {
        Self { up_to: std::array::from_fn(|symbol| SHARED / SYMBOLS as u32 * (symbol as u32 + 1)), seen: 0 }
    }
}

impl Nibble {
    pub(crate) fn code(&mut self, coder: &mut impl Coder, symbol: u32) -> Result<u32, Damage> {
        let symbol = coder.code(self, symbol)?;
        let rate = rate(self.seen);
        for (at, up_to) in (0..).zip(&mut self.up_to) {
            let towards = if at >= symbol { SHARED } else { 0 };
            // Signed, so that there is one way to round; both are below 2^24.
            let step = (towards.cast_signed() - up_to.cast_signed()) >> rate;
            *up_to = up_to.wrapping_add_signed(step);
        }
        self.up_to[SYMBOLS - 1] = SHARED;
        self.seen = self.seen.saturating_add(1);
        Ok(symbol)
    }

    /// Where the interval of `symbol` ends.
    fn end(&self, symbol: usize) -> u32 {
        self.up_to[symbol] + (symbol as u32 + 1) * FLOOR
    }

    fn start(&self, symbol: usize) -> u32 {
        symbol.checked_sub(1).map_or(0, |before| self.end(before))
    }
}

impl Model for Nibble {
    fn interval(&self, symbol: u32) -> Option<Interval> {
        let at = symbol as usize;
        (at < SYMBOLS).then(|| Interval { start: self.start(at), width: self.end(at) - self.start(at) })
    }

    fn find(&self, quantile: u32) -> (u32, Interval) {
        let passed: u32 = (0..SYMBOLS - 1).map(|symbol| u32::from(self.end(symbol) <= quantile)).sum();
        let at = passed as usize;
        (passed, Interval { start: self.start(at), width: self.end(at) - self.start(at) })
    }
}

/// A number of which small ones, or those near each other, come often: below 240 in two nibbles, the second one knowing the
/// first; larger ones behind an escape.
#[derive(Clone, Debug, Default)]
pub(crate) struct Number {
    high: Nibble,
    low: [Nibble; SYMBOLS],
    large: Large,
}

impl Number {
    pub(crate) fn code(&mut self, coder: &mut impl Coder, value: u32) -> Result<u32, Damage> {
        let escape = SYMBOLS as u32 - 1;
        let high = self.high.code(coder, (value >> 4).min(escape))?;
        if high == escape {
            return Ok(self.large.code(coder, value.wrapping_sub(escape << 4))?.saturating_add(escape << 4));
        }
        let low = self.low[high as usize].code(coder, value & 15)?;
        Ok(high << 4 | low)
    }
}

/// A number below 15, or any other behind an escape; then it is coded by a model that several of these may share.
#[derive(Clone, Debug, Default)]
pub(crate) struct Small(Nibble);

impl Small {
    pub(crate) fn code(&mut self, coder: &mut impl Coder, large: &mut Large, value: u32) -> Result<u32, Damage> {
        let escape = SYMBOLS as u32 - 1;
        let symbol = self.0.code(coder, value.min(escape))?;
        if symbol == escape {
            return Ok(large.code(coder, value.wrapping_sub(escape))?.saturating_add(escape));
        }
        Ok(symbol)
    }
}

/// Any number: how many bits it has, and those below the highest.
#[derive(Clone, Debug, Default)]
pub(crate) struct Large {
    lengths: [Nibble; 3],
}

impl Large {
    pub(crate) fn code(&mut self, coder: &mut impl Coder, value: u32) -> Result<u32, Damage> {
        // 0 to 32 bits: two nibbles of at most 15, and a third for what they leave.
        let length = u32::BITS - value.leading_zeros();
        let mut read = 0;
        for nibble in &mut self.lengths {
            let part = nibble.code(coder, (length.saturating_sub(read)).min(15))?;
            read += part;
            if part < 15 {
                break;
            }
        }
        if read > u32::BITS {
            return Err(Damage::new(format!("a number of {read} bits")));
        }
        let Some(below) = read.checked_sub(1) else { return Ok(0) };
        let (first, second) = (below.min(PRECISION as u32), below.saturating_sub(PRECISION as u32));
        let low = coder.bits(first, value & ((1_u64 << first) - 1) as u32)?;
        let high = coder.bits(second, (u64::from(value) >> first) as u32 & ((1_u32 << second) - 1))?;
        Ok((1_u64 << below | u64::from(high) << first | u64::from(low)) as u32)
    }
}
