//! What a segment knows about token ids before its first block: how often each, in the segment before it, came in text, and how often
//! in labels where its list did not have it (see [`super::ids`]).

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

/// How often ids came, by teacher.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tables(Vec<Table>);

/// How often one teacher's ids came: a code per id, four for each doubling.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Table {
    /// In labels, where no list had them.
    missed: Vec<u8>,
    /// What those codes stand for.
    weights: Vec<u32>,
    /// In text.
    tokens: Vec<u8>,
    /// What those codes order.
    ranks: Ranks,
}

/// A teacher's ids in order of their frequency in text, so that frequent ones are small numbers. Ids that nothing is known of keep their
/// places, behind the others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ranks {
    of_ids: Vec<u32>,
    ids: Vec<u32>,
}

/// Counts ids while a segment grows.
#[derive(Clone, Debug, Default)]
pub(crate) struct Census(Vec<Counts>);

#[derive(Clone, Debug, Default)]
struct Counts {
    missed: Vec<u64>,
    tokens: Vec<u64>,
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
    /// For ids below `size`, at most 2^24, of which the first have these weights.
    fn new(weights: &[u32], size: u32) -> Self {
        let low_bits = low_bits(size);
        let buckets = (size.max(1).div_ceil(1 << low_bits)) as usize;
        let mut weights = weights[..weights.len().min(buckets)].to_vec();
        weights.resize(buckets, 1);
        Self { buckets: Frequencies::new(weights), low_bits }
    }

    pub(crate) fn code(&mut self, coder: &mut impl Coder, id: u32) -> u32 {
        let bucket = self.buckets.code(coder, id >> self.low_bits);
        bucket << self.low_bits | coder.bits(self.low_bits, id & ((1 << self.low_bits) - 1))
    }
}

impl Ranks {
    fn new(codes: &[u8]) -> Self {
        let mut ids: Vec<u32> = (0..).take(codes.len()).collect();
        ids.sort_by_key(|id| std::cmp::Reverse(codes[*id as usize]));
        let mut of_ids = vec![0; ids.len()];
        for (rank, id) in (0..).zip(&ids) {
            of_ids[*id as usize] = rank;
        }
        Self { of_ids, ids }
    }

    /// The rank of an id.
    pub(crate) fn of(&self, id: u32) -> u32 {
        self.of_ids.get(id as usize).copied().unwrap_or(id)
    }

    /// The id that has a rank.
    pub(crate) fn id(&self, rank: u32) -> u32 {
        self.ids.get(rank as usize).copied().unwrap_or(rank)
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
        let table = self.0.get(usize::from(teacher)).filter(|_| low_bits(size) == 0);
        Ok(IdModel::new(table.map_or(&[], |table| &table.weights), size))
    }

    /// The order of a teacher's ids.
    pub(crate) fn ranks(&self, teacher: u16) -> &Ranks {
        static NONE: Ranks = Ranks { of_ids: Vec::new(), ids: Vec::new() };
        self.0.get(usize::from(teacher)).map_or(&NONE, |table| &table.ranks)
    }

    /// As it stands in a segment's header: one zstd frame of, for each teacher, the number of codes and the codes, of ids that were
    /// missed, then of tokens.
    pub(crate) fn encode(&self) -> std::io::Result<Vec<u8>> {
        let mut raw = Vec::new();
        for codes in self.0.iter().flat_map(|table| [&table.missed, &table.tokens]) {
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
            tables.push(Table::new(parse_codes(&mut wire)?, parse_codes(&mut wire)?));
        }
        Ok(Self(tables))
    }
}

fn parse_codes(wire: &mut Wire<'_>) -> Result<Vec<u8>, Damage> {
    let count = wire.varint()?;
    let codes = wire.take(usize::try_from(count).unwrap_or(usize::MAX))?;
    let weights: u64 = codes.iter().map(|code| u64::from(weight((*code).min(CODE_MAX)))).sum();
    if codes.iter().any(|code| *code > CODE_MAX) || weights > u64::from(Frequencies::ROOM) {
        return Err(Damage::new("weights of token ids that are too large"));
    }
    Ok(codes.to_vec())
}

impl Table {
    fn new(missed: Vec<u8>, tokens: Vec<u8>) -> Self {
        let weights = missed.iter().map(|code| weight(*code)).collect();
        Self { ranks: Ranks::new(&tokens), weights, missed, tokens }
    }
}

impl Census {
    /// Counts ids of a teacher, each so many times: those that were missed, and tokens.
    pub(crate) fn add<T: IntoIterator<Item = (u32, u64)>>(&mut self, teacher: u16, missed: T, tokens: T) {
        let teacher = usize::from(teacher);
        if self.0.len() <= teacher {
            self.0.resize_with(teacher + 1, Counts::default);
        }
        let counts = &mut self.0[teacher];
        count(&mut counts.missed, missed);
        count(&mut counts.tokens, tokens);
    }

    /// Tables for the next segment; then counting begins anew. A teacher that was not heard of keeps the table of `before`.
    pub(crate) fn tables(&mut self, before: &Tables) -> Tables {
        let counts = std::mem::take(&mut self.0);
        let of = |teacher: usize| match counts.get(teacher).filter(|counts| !counts.tokens.is_empty()) {
            None => before.0.get(teacher).cloned().unwrap_or_default(),
            Some(counts) => Table::new(codes(&counts.missed), codes(&counts.tokens)),
        };
        Tables((0..counts.len().max(before.0.len())).map(of).collect())
    }
}

fn count(counts: &mut Vec<u64>, ids: impl IntoIterator<Item = (u32, u64)>) {
    for (id, times) in ids.into_iter().filter(|(id, _)| *id < 1 << BUCKET_BITS) {
        let id = id as usize;
        if counts.len() <= id {
            counts.resize(id + 1, 0);
        }
        counts[id] += times;
    }
}

fn codes(counts: &[u64]) -> Vec<u8> {
    let total: u64 = counts.iter().sum::<u64>().max(1);
    counts.iter().map(|count| code(count * WEIGHT / total)).collect()
}
