//! One description for both directions: what a column is made of is said once, and run with an encoder or a decoder.
//!
//! The range coder is constriction's. A model gives each symbol an interval of [`TOTAL`]; models adapt to what went by, in the
//! same way on both sides. All of it is integer arithmetic: an encoder on one machine and a decoder on another agree.

use crate::log::error::Damage;
use constriction::backends::Cursor;
use constriction::stream::model::{DecoderModel, EncoderModel, EntropyModel};
use constriction::stream::queue::{RangeDecoder, RangeEncoder};
use constriction::stream::{Decode, Encode};
use std::borrow::Borrow;
use std::num::NonZeroU32;

/// Probabilities are multiples of 2^-PRECISION.
pub(crate) const PRECISION: usize = 28;
/// What the intervals of a model's symbols add up to.
pub(crate) const TOTAL: u32 = 1 << PRECISION;

/// A symbol's share of [`TOTAL`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Interval {
    pub(crate) start: u32,
    /// Not 0.
    pub(crate) width: u32,
}

/// Probabilities of symbols.
pub(crate) trait Model {
    /// The interval of `symbol`; `None`: it is not in the alphabet.
    fn interval(&self, symbol: u32) -> Option<Interval>;

    /// The symbol whose interval holds `quantile`, below [`TOTAL`].
    fn find(&self, quantile: u32) -> (u32, Interval);
}

/// Writes or reads symbols.
pub(crate) trait Coder {
    /// Whether it writes them.
    const ENCODES: bool;

    /// Codes one symbol: an encoder writes `symbol` and returns it, a decoder returns what it reads instead.
    fn code<M: Model>(&mut self, model: &M, symbol: u32) -> Result<u32, Damage>;

    /// Codes the low `bits` ≤ 28 bits of `value`, all values as likely.
    fn bits(&mut self, bits: u32, value: u32) -> Result<u32, Damage> {
        if bits == 0 { Ok(0) } else { self.code(&Bits(bits), value) }
    }

    /// Codes a number below `bound` ≤ 2^28, all as likely.
    fn below(&mut self, bound: u32, value: u32) -> Result<u32, Damage> {
        if bound < 2 { Ok(0) } else { self.code(&Uniform(bound), value) }
    }
}

/// Writes symbols.
#[derive(Default)]
pub(crate) struct Encoder(RangeEncoder<u32, u64>);

/// Reads symbols. Beyond the end it reads zeroes: whoever uses it knows how many symbols there are.
pub(crate) struct Decoder(RangeDecoder<u32, u64, Cursor<u32, Vec<u32>>>);

impl Encoder {
    /// What was written.
    pub(crate) fn finish(self) -> Vec<u8> {
        let words = match self.0.into_compressed() {
            Ok(words) => words,
            Err(impossible) => match impossible {},
        };
        words.into_iter().flat_map(u32::to_le_bytes).collect()
    }
}

impl Decoder {
    pub(crate) fn new(bytes: &[u8]) -> Result<Self, Damage> {
        let (words, rest) = bytes.as_chunks();
        if !rest.is_empty() {
            return Err(Damage::new(format!("{} bytes are no whole number of words", bytes.len())));
        }
        let words = words.iter().map(|word| u32::from_le_bytes(*word)).collect::<Vec<_>>();
        match RangeDecoder::from_compressed(words) {
            Ok(decoder) => Ok(Self(decoder)),
            Err(impossible) => match impossible {},
        }
    }

    /// Nothing may be left.
    pub(crate) fn finish(self) -> Result<(), Damage> {
        if self.0.maybe_exhausted() { Ok(()) } else { Err(Damage::new("bytes behind the last symbol")) }
    }
}

impl Coder for Encoder {
    const ENCODES: bool = true;

    #[inline]
    fn code<M: Model>(&mut self, model: &M, symbol: u32) -> Result<u32, Damage> {
        self.0
            .encode_symbol(symbol, Adapter(model))
            .map_err(|_| Damage::new(format!("{symbol} is not in the alphabet of its column")))?;
        Ok(symbol)
    }
}

impl Coder for Decoder {
    const ENCODES: bool = false;

    #[inline]
    fn code<M: Model>(&mut self, model: &M, _: u32) -> Result<u32, Damage> {
        self.0.decode_symbol(Adapter(model)).map_err(|_| Damage::new("what no encoder writes"))
    }
}

/// A [`Model`] as constriction wants it.
#[derive(Clone, Copy)]
struct Adapter<'a, M>(&'a M);

impl<M> EntropyModel<PRECISION> for Adapter<'_, M> {
    type Symbol = u32;
    type Probability = u32;
}

impl<M: Model> EncoderModel<PRECISION> for Adapter<'_, M> {
    #[inline(always)]
    fn left_cumulative_and_probability(&self, symbol: impl Borrow<u32>) -> Option<(u32, NonZeroU32)> {
        let Interval { start, width } = self.0.interval(*symbol.borrow())?;
        Some((start, NonZeroU32::new(width)?))
    }
}

impl<M: Model> DecoderModel<PRECISION> for Adapter<'_, M> {
    #[inline(always)]
    fn quantile_function(&self, quantile: u32) -> (u32, u32, NonZeroU32) {
        let (symbol, Interval { start, width }) = self.0.find(quantile);
        (symbol, start, NonZeroU32::new(width).unwrap_or(NonZeroU32::MIN))
    }
}

/// Numbers of so many bits, all as likely.
struct Bits(u32);

impl Model for Bits {
    #[inline]
    fn interval(&self, symbol: u32) -> Option<Interval> {
        let shift = PRECISION as u32 - self.0;
        (symbol >> self.0 == 0).then_some(Interval { start: symbol << shift, width: 1 << shift })
    }

    #[inline]
    fn find(&self, quantile: u32) -> (u32, Interval) {
        let shift = PRECISION as u32 - self.0;
        let symbol = quantile >> shift;
        (symbol, Interval { start: symbol << shift, width: 1 << shift })
    }
}

/// Every symbol below a bound, all as likely. The bound is at most [`TOTAL`].
pub(crate) struct Uniform(pub(crate) u32);

impl Uniform {
    fn edge(&self, symbol: u32) -> u32 {
        ((u64::from(symbol) << PRECISION) / u64::from(self.0)) as u32
    }
}

impl Model for Uniform {
    fn interval(&self, symbol: u32) -> Option<Interval> {
        let start = self.edge(symbol);
        (symbol < self.0).then(|| Interval { start, width: self.edge(symbol + 1) - start })
    }

    fn find(&self, quantile: u32) -> (u32, Interval) {
        // The last symbol that begins at or before the quantile: floor(s · TOTAL / n) ≤ q ⟺ s < (q + 1) · n / TOTAL.
        let symbol = (((u64::from(quantile) + 1) * u64::from(self.0) - 1) >> PRECISION) as u32;
        let start = self.edge(symbol);
        (symbol, Interval { start, width: self.edge(symbol + 1) - start })
    }
}
