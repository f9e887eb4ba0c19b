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

/// Writes or reads symbols. What goes wrong is kept until the end, so that nothing has to be asked after each symbol: from then on a
/// decoder reads zeroes.
pub(crate) trait Coder {
    /// Whether it writes them.
    const ENCODES: bool;

    /// Codes one symbol: an encoder writes `symbol` and returns it, a decoder returns what it reads instead.
    fn code<M: Model>(&mut self, model: &M, symbol: u32) -> u32;

    /// What was read means nothing. The first time counts.
    fn fail(&mut self, damage: Damage);

    /// Codes the low `bits` ≤ 28 bits of `value`, all values as likely.
    fn bits(&mut self, bits: u32, value: u32) -> u32 {
        if bits == 0 { 0 } else { self.code(&Bits(bits), value) }
    }

    /// Codes a number below `bound` ≤ 2^28, all as likely.
    fn below(&mut self, bound: u32, value: u32) -> u32 {
        if bound < 2 { 0 } else { self.code(&Uniform(bound), value) }
    }
}

/// Writes symbols.
#[derive(Default)]
pub(crate) struct Encoder {
    range: RangeEncoder<u32, u64>,
    failed: Option<Damage>,
}

/// Reads symbols. Beyond the end it reads zeroes: whoever uses it knows how many symbols there are.
pub(crate) struct Decoder {
    range: RangeDecoder<u32, u64, Cursor<u32, Vec<u32>>>,
    failed: Option<Damage>,
}

impl Encoder {
    /// What was written.
    ///
    /// # Errors
    /// When a symbol was not in the alphabet of its model.
    pub(crate) fn finish(self) -> Result<Vec<u8>, Damage> {
        let words = match self.range.into_compressed() {
            Ok(words) => words,
            Err(impossible) => match impossible {},
        };
        self.failed.map_or(Ok(words.into_iter().flat_map(u32::to_le_bytes).collect()), Err)
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
            Ok(range) => Ok(Self { range, failed: None }),
            Err(impossible) => match impossible {},
        }
    }

    /// Nothing may be left.
    ///
    /// # Errors
    /// When something is, or when what was read is none that an encoder writes.
    pub(crate) fn finish(self) -> Result<(), Damage> {
        match self.failed {
            Some(damage) => Err(damage),
            None if self.range.maybe_exhausted() => Ok(()),
            None => Err(Damage::new("bytes behind the last symbol")),
        }
    }
}

impl Coder for Encoder {
    const ENCODES: bool = true;

    #[inline]
    fn code<M: Model>(&mut self, model: &M, symbol: u32) -> u32 {
        if self.range.encode_symbol(symbol, Adapter(model)).is_err() {
            self.fail(Damage::new(format!("{symbol} is not in the alphabet of its column")));
        }
        symbol
    }

    #[cold]
    fn fail(&mut self, damage: Damage) {
        self.failed.get_or_insert(damage);
    }
}

impl Coder for Decoder {
    const ENCODES: bool = false;

    #[inline]
    fn code<M: Model>(&mut self, model: &M, _: u32) -> u32 {
        self.range.decode_symbol(Adapter(model)).unwrap_or_else(|_| {
            self.fail(Damage::new("what no encoder writes"));
            0
        })
    }

    #[cold]
    fn fail(&mut self, damage: Damage) {
        self.failed.get_or_insert(damage);
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
