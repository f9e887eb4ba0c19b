//! What a segment knows about token ids before its first block: how often each, in the segments before it, came where its list did not
//! have it (see [`super::ids`]).

use super::coder::Coder;
use super::frequencies::Frequencies;
use crate::log::error::Damage;
use crate::log::wire::{Wire, put_varint};

/// Ids have at most this many bits.
const ID_BITS: u32 = 24;
/// Larger vocabularies are counted in buckets of neighbouring ids, so many of them.
const BUCKET_BITS: u32 = 20;
/// What the weights of a table add up to, about: as much as so many ids in a block. A block's own ids count beside them.
const WEIGHT: u64 = 32 * 16_384;
/// Largest code of a weight: 2^(88/4) is [`Frequencies::ROOM`].
const CODE_MAX: u8 = 88;
/// Bytes that the tables of a segment may have before compression.
const BYTES_MAX: usize = 64 << 20;

/// How often ids came, by teacher: a code per id, four for each doubling.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tables(Vec<Vec<u8>>);

/// Counts ids while a segment grows.
#[derive(Clone, Debug, Default)]
pub(crate) struct Census {
    /// By teacher, then by id.
    counts: Vec<Vec<u64>>,
}

/// A model of one teacher's ids.
#[derive(Clone, Debug)]
pub(crate) struct IdModel {
    buckets: Frequencies,
    /// Bits of an id that are not modelled.
    low_bits: u32,
}

/// Low bits of an id that say only where in its bucket it is.
fn low_bits(size: u32) -> u32 {
    (u32::BITS - size.saturating_sub(1).leading_zeros()).saturating_sub(BUCKET_BITS)
}

/// The weight that a code stands for: 2^(code/4), rounded down.
fn weight(code: u8) -> u32 {
    /// 2^(i/4) · 2^16.
    const QUARTERS: [u64; 4] = [65_536, 77_936, 92_682, 110_218];
    ((QUARTERS[usize::from(code % 4)] << (code / 4)) >> 16) as u32
}

/// The code of the largest weight that is not above `weight`.
fn code(weight: u64) -> u8 {
    let mut code = (weight.max(1).ilog2() as u8).saturating_mul(4).min(CODE_MAX - 4);
    while code < CODE_MAX && u64::from(self::weight(code + 1)) <= weight {
        code += 1;
    }
    code
}

impl IdModel {
    /// For ids below `size`, at most 2^24.
    fn new(codes: &[u8], size: u32) -> Self {
        let low_bits = low_bits(size);
        let buckets = (size.max(1).div_ceil(1 << low_bits)) as usize;
        let known = codes.iter().map(|code| weight(*code));
        Self { buckets: Frequencies::new(known.chain(std::iter::repeat(1)).take(buckets).collect()), low_bits }
    }

    pub(crate) fn code(&mut self, coder: &mut impl Coder, id: u32) -> Result<u32, Damage> {
        let bucket = self.buckets.code(coder, id >> self.low_bits)?;
        Ok(bucket << self.low_bits | coder.bits(self.low_bits, id & ((1 << self.low_bits) - 1))?)
    }
}

impl Tables {
    /// A model of a teacher's ids below `size`.
    ///
    /// # Errors
    /// When there can be no such ids.
    pub(crate) fn model(&self, teacher: u16, size: u32) -> Result<IdModel, Damage> {
        if size > 1 << ID_BITS {
            return Err(Damage::new(format!("token ids up to {size}, beyond 2^{ID_BITS}")));
        }
        // Ids are counted one by one, so a table says nothing of buckets.
        let codes = self.0.get(usize::from(teacher)).filter(|_| low_bits(size) == 0);
        Ok(IdModel::new(codes.map_or(&[], Vec::as_slice), size))
    }

    /// As it stands in a segment's header: one zstd frame of, for each teacher, the number of codes and the codes.
    pub(crate) fn encode(&self) -> std::io::Result<Vec<u8>> {
        let mut raw = Vec::new();
        for codes in &self.0 {
            put_varint(codes.len() as u64, &mut raw);
            raw.extend_from_slice(codes);
        }
        zstd::bulk::compress(&raw, 19)
    }

    /// Reads what [`Tables::encode`] wrote.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, Damage> {
        let broken = |error| Damage::new(format!("the tables do not decompress: {error}"));
        let raw = zstd::bulk::decompress(bytes, BYTES_MAX).map_err(broken)?;
        let mut wire = Wire::new(&raw);
        let mut tables = Vec::new();
        while wire.remaining() > 0 {
            let count = wire.varint()?;
            let codes = wire.take(usize::try_from(count).unwrap_or(usize::MAX))?;
            let weights: u64 = codes.iter().map(|code| u64::from(weight((*code).min(CODE_MAX)))).sum();
            if codes.iter().any(|code| *code > CODE_MAX) || weights > u64::from(Frequencies::ROOM) {
                return Err(Damage::new("weights of token ids that are too large"));
            }
            tables.push(codes.to_vec());
        }
        Ok(Self(tables))
    }
}

impl Census {
    /// Counts ids of a teacher.
    pub(crate) fn add(&mut self, teacher: u16, ids: &[u32]) {
        let teacher = usize::from(teacher);
        if self.counts.len() <= teacher {
            self.counts.resize_with(teacher + 1, Vec::new);
        }
        let counts = &mut self.counts[teacher];
        for id in ids.iter().map(|id| *id as usize).filter(|id| *id < 1 << BUCKET_BITS) {
            if counts.len() <= id {
                counts.resize(id + 1, 0);
            }
            counts[id] += 1;
        }
    }

    /// Tables for the next segment; then counting begins anew. A teacher that was not heard of keeps the table of `before`.
    pub(crate) fn tables(&mut self, before: &Tables) -> Tables {
        let counts = std::mem::take(&mut self.counts);
        let of = |teacher: usize| match counts.get(teacher).filter(|counts| !counts.is_empty()) {
            None => before.0.get(teacher).cloned().unwrap_or_default(),
            Some(counts) => {
                let total: u64 = counts.iter().sum::<u64>().max(1);
                counts.iter().map(|count| code(count * WEIGHT / total)).collect()
            }
        };
        Tables((0..counts.len().max(before.0.len())).map(of).collect())
    }

    /// Counts, by teacher and id.
    #[cfg(test)]
    pub(crate) fn set(&mut self, counts: &[Vec<u32>]) {
        self.counts = counts.iter().map(|counts| counts.iter().map(|count| u64::from(*count)).collect()).collect();
    }
}
