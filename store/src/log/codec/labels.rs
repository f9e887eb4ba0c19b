//! The columns of labels, one description for both directions.

use super::coder::Coder;
use super::ids::TopIds;
use super::models::{Bit, Large, Small, Spread};
use super::positions::Positions;
use super::quantise::{Fineness, LEVELS, ONE, probability, times};
use super::tables::{IdModel, Tables};
use crate::log::error::Damage;
use crate::log::labels::Shape;

/// A column each.
#[derive(Debug, Default)]
pub(crate) struct Streams<C> {
    pub(crate) masked_positions: C,
    pub(crate) gold_ranks: C,
    pub(crate) gold_ids: C,
    pub(crate) top_ids: C,
    pub(crate) top_logits: C,
    pub(crate) log_sum_exp: C,
    pub(crate) gold_logits: C,
}

impl<C> Streams<C> {
    pub(crate) fn try_map<D, E>(self, mut f: impl FnMut(C) -> Result<D, E>) -> Result<Streams<D>, E> {
        Ok(Streams {
            masked_positions: f(self.masked_positions)?,
            gold_ranks: f(self.gold_ranks)?,
            gold_ids: f(self.gold_ids)?,
            top_ids: f(self.top_ids)?,
            top_logits: f(self.top_logits)?,
            log_sum_exp: f(self.log_sum_exp)?,
            gold_logits: f(self.gold_logits)?,
        })
    }
}

/// A copy without its tokens, in whole numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Numbers {
    /// `[masked]`
    pub(crate) masked_positions: Vec<u32>,
    /// `[masked, k]`
    pub(crate) top_ids: Vec<u32>,
    /// `[masked, k]`: cells of the log-probabilities.
    pub(crate) cells: Vec<u32>,
    /// `[masked, k]`: into how many parts the cells are cut.
    pub(crate) cuts: Vec<u32>,
    /// `[masked, k]`: which part it is.
    pub(crate) parts: Vec<u32>,
    /// `[masked]`: log-sum-exp in steps.
    pub(crate) log_sum_exp: Vec<i32>,
    /// `[masked]`
    pub(crate) gold_ids: Vec<u32>,
    /// `[masked]`: cells below the last one of the top-k, for a gold token that is not among them.
    pub(crate) gold_below: Vec<u32>,
}

/// What is the same for all copies of a teacher in a block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Constants {
    /// Ids are below it.
    pub(crate) size: u32,
    /// What most masked tokens were replaced by.
    pub(crate) placeholder: u32,
    /// The smallest log-sum-exp, in steps.
    pub(crate) lowest: i32,
    /// See [`Fineness`].
    pub(crate) level: u8,
}

impl Constants {
    /// Codes them, at the beginning of a teacher's copies.
    pub(crate) fn code<C: Coder>(self, streams: &mut Streams<C>) -> Result<Self, Damage> {
        let word = |coder: &mut C, word: u32| coder.bits(16, word & 0xffff) | coder.bits(16, word >> 16) << 16;
        let constants = Self {
            size: word(&mut streams.top_ids, self.size),
            placeholder: word(&mut streams.masked_positions, self.placeholder),
            lowest: word(&mut streams.log_sum_exp, self.lowest.cast_unsigned()).cast_signed(),
            level: streams.top_logits.bits(8, u32::from(self.level)) as u8,
        };
        match constants.level {
            ..LEVELS => Ok(constants),
            level => Err(Damage::new(format!("level {level} of {LEVELS}"))),
        }
    }
}

/// Ranks that have contexts of their own.
const RANKS: usize = 8;
/// Kinds of a largest probability.
const SIZES: usize = 10;
/// Kinds of what is left when some ranks are known.
const RESTS: usize = 48;

/// Models of one teacher's labels.
pub(crate) struct Models {
    constants: Constants,
    positions: Positions,
    cells: Cells,
    large: Large,
    /// By the largest probability.
    log_sum_exp: Vec<Small>,
    pub(crate) top_ids: TopIds,
    /// Whether a masked token that one can see is the gold one.
    kept: Bit,
    /// By the largest probability.
    gold_ranks: Vec<Small>,
    gold_ids: IdModel,
    gold_below: Spread,
}

/// A number's size, roughly in its logarithm.
fn size_of(number: u32) -> usize {
    match number {
        0 => 0,
        1 => 1,
        2 => 2,
        3..=4 => 3,
        5..=7 => 4,
        8..=12 => 5,
        13..=20 => 6,
        21..=32 => 7,
        33..=48 => 8,
        _ => 9,
    }
}

impl Models {
    pub(crate) fn new(constants: Constants, tables: &Tables, teacher: u16) -> Result<Self, Damage> {
        let ids = tables.model(teacher, constants.size)?;
        Ok(Self {
            constants,
            positions: Positions::default(),
            cells: Cells::default(),
            large: Large::default(),
            log_sum_exp: vec![Small::default(); SIZES],
            top_ids: TopIds::new(ids.clone()),
            kept: Bit::default(),
            gold_ranks: vec![Small::default(); SIZES],
            gold_ids: ids,
            gold_below: Spread::default(),
        })
    }

    /// Codes a copy of this shape, whose tokens are known. A decoder ignores what `numbers` holds, and fills it.
    pub(crate) fn copy<C: Coder>(
        &mut self,
        streams: &mut Streams<C>,
        shape: Shape,
        tokens: &[u32],
        numbers: &mut Numbers,
    ) -> Result<(), Damage> {
        let top_k = shape.top_k.unwrap_or(0);
        let cells =
            shape.masked.checked_mul(top_k).ok_or_else(|| Damage::new(format!("{} top-{top_k}", shape.masked)))?;
        numbers.masked_positions.resize(shape.masked, 0);
        numbers.gold_ids.resize(shape.masked, 0);
        let coder = &mut streams.masked_positions;
        self.positions.code(coder, self.constants.placeholder, tokens, &mut numbers.masked_positions)?;
        if shape.top_k.is_none() {
            numbers.log_sum_exp.clear();
            for id in &mut numbers.gold_ids {
                *id = self.gold_ids.code(&mut streams.gold_ids, *id);
            }
            return Ok(());
        }
        for column in [&mut numbers.top_ids, &mut numbers.cells, &mut numbers.cuts, &mut numbers.parts] {
            column.resize(cells, 0);
        }
        numbers.log_sum_exp.resize(shape.masked, 0);
        numbers.gold_below.resize(shape.masked, 0);
        for position in 0..shape.masked {
            let token = numbers.masked_positions[position] as usize;
            let before = token.checked_sub(1).map_or(0, |before| tokens[before]);
            self.position(streams, position, top_k, (before, tokens[token]), numbers);
        }
        Ok(())
    }

    fn position<C: Coder>(
        &mut self,
        streams: &mut Streams<C>,
        position: usize,
        top_k: usize,
        (before, visible): (u32, u32),
        numbers: &mut Numbers,
    ) {
        let top = position * top_k..(position + 1) * top_k;
        let (cells, ids) = (&mut numbers.cells[top.clone()], &mut numbers.top_ids[top.clone()]);
        // By turns, because they do not depend on each other: one does not have to wait for the other.
        let mut left = Left::default();
        let mut place = None;
        for (rank, (cell, id)) in cells.iter_mut().zip(ids.iter_mut()).enumerate() {
            self.cells.code(&mut streams.top_logits, rank, &mut left, cell);
            self.top_ids.code(&mut streams.top_ids, rank, before, &mut place, id);
        }
        self.top_ids.learn(place);
        let fineness = Fineness::of(cells, self.constants.level);
        let first = cells.first().copied().unwrap_or(0);
        let (cuts, parts) = (&mut numbers.cuts[top.clone()], &mut numbers.parts[top]);
        if fineness.is_whole(first) {
            // As are all others, whose probabilities are smaller.
            cuts.fill(1);
            parts.fill(0);
        } else {
            for (cell, (cut, part)) in cells.iter().zip(cuts.iter_mut().zip(parts)) {
                *cut = fineness.parts(*cell);
                *part = streams.top_logits.below(*cut, *part);
            }
        }
        let certainty = size_of(first);

        let log_sum_exp = &mut numbers.log_sum_exp[position];
        let above = log_sum_exp.wrapping_sub(self.constants.lowest).cast_unsigned();
        let coder = &mut streams.log_sum_exp;
        let eights = self.log_sum_exp[certainty].code(coder, &mut self.large, above >> 3);
        let above = eights << 3 | coder.bits(3, above & 7);
        *log_sum_exp = self.constants.lowest.wrapping_add(above.cast_signed());

        let gold = &mut numbers.gold_ids[position];
        if visible != self.constants.placeholder && self.kept.code(&mut streams.gold_ranks, visible == *gold) {
            *gold = visible;
        } else {
            let rank = if C::ENCODES { ids.iter().position(|id| id == gold).unwrap_or(top_k) } else { 0 };
            let model = &mut self.gold_ranks[certainty];
            let rank = model.code(&mut streams.gold_ranks, &mut self.large, rank as u32) as usize;
            *gold = match ids.get(rank) {
                Some(id) => *id,
                None if rank == top_k => self.gold_ids.code(&mut streams.gold_ids, *gold),
                None => {
                    streams.gold_ranks.fail(Damage::new(format!("rank {rank} in a top-{top_k}")));
                    0
                }
            };
        }
        if !ids.contains(gold) {
            let below = &mut numbers.gold_below[position];
            *below = self.gold_below.code(&mut streams.gold_logits, *below);
        }
    }
}

/// Models of the cells of a position.
struct Cells {
    first: Spread,
    /// By the first cell.
    second: Vec<Spread>,
    /// By what is left.
    third: Vec<Spread>,
    /// By rank and what is left.
    others: Vec<Small>,
    large: Large,
}

/// What the cells of a position have left so far.
struct Left {
    before: u32,
    probability: u64,
}

impl Default for Left {
    fn default() -> Self {
        Self { before: 0, probability: ONE }
    }
}

impl Default for Cells {
    fn default() -> Self {
        Self {
            first: Spread::default(),
            second: vec![Spread::default(); SIZES],
            third: vec![Spread::default(); RESTS / 2],
            others: vec![Small::default(); RANKS * RESTS],
            large: Large::default(),
        }
    }
}

impl Cells {
    /// Codes the cell of a rank.
    #[inline(always)]
    fn code<C: Coder>(&mut self, coder: &mut C, rank: usize, left: &mut Left, cell: &mut u32) {
        let gap = cell.wrapping_sub(left.before);
        let times = || times(left.probability, left.before).min(RESTS - 1);
        let gap = match rank {
            0 => self.first.code(coder, gap),
            1 => self.second[size_of(left.before)].code(coder, gap),
            2 => self.third[times() / 2].code(coder, gap),
            _ => {
                let model = &mut self.others[rank.min(RANKS - 1) * RESTS + times()];
                model.code(coder, &mut self.large, gap)
            }
        };
        *cell = left.before.saturating_add(gap);
        *left = Left { before: *cell, probability: left.probability.saturating_sub(probability(*cell)) };
    }
}
