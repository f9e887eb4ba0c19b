//! Compact precision: labels in about two fifths of the bytes that exact precision takes.
//!
//! Log-probabilities and log-sum-exps are rounded ([`quantise`], [`label`]), and what is then whole numbers is range-coded with models that
//! adapt ([`coder`], [`models`], [`frequencies`]); token ids begin with the frequencies of the segments before ([`tables`]). What each
//! column is made of is said in [`labels`], once for both directions.

mod coder;
mod frequencies;
mod ids;
mod label;
mod labels;
mod lists;
mod models;
mod positions;
mod quantise;
mod segment_tables;
mod tables;

use crate::log::error::Damage;
use crate::log::labels::Shape;
use crate::{Label, MaskedCopy};
use coder::{Decoder, Encoder};
use label::Distribution;
pub(crate) use labels::Streams;
use labels::{Constants, Models, Numbers};
pub(crate) use segment_tables::{LastTables, SegmentTables};
use std::collections::HashMap;
pub(crate) use tables::{Census, Tables};

/// The level that usually is the right one; see [`quantise`].
const LEVEL_FIRST: u8 = 1;

/// Columns of labels as they are stored.
#[derive(Debug, Default)]
pub(crate) struct Coded {
    pub(crate) columns: Streams<Vec<u8>>,
    /// Masked positions of all copies.
    pub(crate) positions: u64,
    /// Values of the top-k of all copies.
    pub(crate) values: u64,
}

/// What a writer needs to code the labels of a segment: its tables, and what the next segment's will be made of.
#[derive(Clone, Debug, Default)]
pub(crate) struct Compaction {
    pub(crate) tables: Tables,
    pub(crate) census: Census,
    /// What the block that was coded last counts for the next segment's tables, by teacher: ids that were in no list, and tokens.
    last: Vec<(u16, Vec<u32>, Vec<u32>)>,
}

/// What a block counts that is coded long before it is in the log: each id once.
#[derive(Debug, Default)]
pub(crate) struct Counted(Vec<(u16, Times, Times)>);

/// Ids, and how often each of them comes up.
pub(crate) type Times = Vec<(u32, u64)>;

impl Compaction {
    pub(crate) fn new(tables: Tables) -> Self {
        Self { tables, ..Self::default() }
    }

    /// What the block that was coded last counts, if it is to be in the log later.
    pub(crate) fn take_counted(&mut self) -> Counted {
        let last = self.last.drain(..);
        Counted(last.map(|(teacher, missed, tokens)| (teacher, times(missed), times(tokens))).collect())
    }

    /// A block that counts so much is in the log.
    pub(crate) fn appended_counted(&mut self, counted: Counted) {
        counted.0.into_iter().for_each(|(teacher, missed, tokens)| self.census.add(teacher, missed, tokens));
    }

    /// The block that was coded last is in the log: only then it counts, however often it was coded.
    pub(crate) fn appended(&mut self) {
        let once = |ids: Vec<u32>| ids.into_iter().map(|id| (id, 1));
        self.last.drain(..).for_each(|(teacher, missed, tokens)| self.census.add(teacher, once(missed), once(tokens)));
    }
}

fn times(mut ids: Vec<u32>) -> Times {
    ids.sort_unstable();
    ids.chunk_by(|a, b| a == b).map(|same| (same[0], same.len() as u64)).collect()
}

/// Codes the labels of copies, which are in storage order and well-formed.
///
/// # Errors
/// When a label is none that compact precision can hold within its bounds.
pub(crate) fn encode(copies: &[&MaskedCopy], compaction: &mut Compaction) -> Result<Coded, Damage> {
    let mut streams: Streams<Encoder> = Streams::default();
    let mut coded = Coded::default();
    compaction.last.clear();
    for copies in copies.chunk_by(|a, b| a.teacher == b.teacher) {
        let (mut numbers, level) = quantise_all(copies)?;
        let constants = constants_of(copies, &numbers, level).code(&mut streams)?;
        let mut models = Models::new(constants, &compaction.tables, copies[0].teacher)?;
        for (copy, numbers) in copies.iter().zip(&mut numbers) {
            models.copy(&mut streams, Shape::of(copy), &copy.token_ids, numbers)?;
            coded.positions += numbers.masked_positions.len() as u64;
            coded.values += numbers.top_ids.len() as u64;
        }
        let tokens = copies.iter().flat_map(|copy| &copy.token_ids).copied().collect();
        compaction.last.push((copies[0].teacher, models.top_ids.missed, tokens));
    }
    coded.columns = streams.try_map(Encoder::finish)?;
    Ok(coded)
}

/// Decodes what [`encode`] made, for copies of these shapes, in storage order, and their tokens.
pub(crate) fn decode(
    columns: Streams<Vec<u8>>,
    shapes: &[Shape],
    tokens: Vec<Vec<u32>>,
    tables: &Tables,
) -> Result<Vec<MaskedCopy>, Damage> {
    let mut streams = columns.try_map(|bytes| Decoder::new(&bytes))?;
    let mut copies = Vec::with_capacity(shapes.len());
    let mut tokens = tokens.into_iter();
    for shapes in shapes.chunk_by(|a, b| a.teacher == b.teacher) {
        let constants = Constants::default().code(&mut streams)?;
        let mut models = Models::new(constants, tables, shapes[0].teacher)?;
        let mut numbers = Numbers::default();
        for (shape, token_ids) in shapes.iter().zip(&mut tokens) {
            models.copy(&mut streams, *shape, &token_ids, &mut numbers)?;
            let mut label = shape.top_k.map(|top_k| label::label_of(&numbers, top_k));
            if let Some(label) = &mut label {
                label.top_ids = std::mem::take(&mut numbers.top_ids);
                label.computed_in = shape.computed_in;
            }
            copies.push(MaskedCopy {
                teacher: shape.teacher,
                token_ids,
                masked_positions: std::mem::take(&mut numbers.masked_positions),
                gold_ids: std::mem::take(&mut numbers.gold_ids),
                label,
            });
        }
    }
    streams.try_map(Decoder::finish)?;
    Ok(copies)
}

/// The numbers of a teacher's copies, and the lowest level at which they are close enough to its labels.
fn quantise_all(copies: &[&MaskedCopy]) -> Result<(Vec<Numbers>, u8), Damage> {
    let quantised = copies.iter().map(|copy| label::numbers_of(copy)).collect::<Result<Vec<_>, _>>()?;
    let (mut numbers, distributions): (Vec<_>, Vec<_>) = quantised.into_iter().unzip();
    let positions: usize = numbers.iter().map(|numbers| numbers.log_sum_exp.len()).sum();
    if let Some(level) = level_of(copies, &distributions, &mut numbers) {
        return Ok((numbers, level));
    }
    for level in LEVEL_FIRST..quantise::LEVELS {
        let pairs = distributions.iter().zip(&mut numbers);
        let divergence: f64 = pairs.map(|(distribution, numbers)| label::refine(distribution, level, numbers)).sum();
        if divergence <= label::DIVERGENCE_MAX * positions as f64 {
            for (copy, numbers) in copies.iter().zip(&numbers) {
                if let Some(label) = &copy.label {
                    label::check(label, &label::label_of(numbers, label.top_k))?;
                }
            }
            return Ok((numbers, level));
        }
    }
    Err(Damage::new("its labels cannot be stored as closely as compact precision promises"))
}

/// The level at which labels lose nothing, because they come from a log of compact precision: copying one adds no error to its own.
fn level_of(copies: &[&MaskedCopy], distributions: &[Distribution], numbers: &mut [Numbers]) -> Option<u8> {
    let labels = || copies.iter().filter_map(|copy| copy.label.as_ref());
    if !labels().flat_map(|label| &label.log_sum_exp).all(|value| label::is_on_grid(*value)) {
        return None;
    }
    (0..quantise::LEVELS).find(|level| {
        copies.iter().zip(distributions).zip(&mut *numbers).all(|((copy, distribution), numbers)| {
            label::refine(distribution, *level, numbers);
            copy.label.as_ref().is_none_or(|label| {
                let stored = label::label_of(numbers, label.top_k);
                *label == Label { top_ids: label.top_ids.clone(), computed_in: label.computed_in, ..stored }
            })
        })
    })
}

fn constants_of(copies: &[&MaskedCopy], numbers: &[Numbers], level: u8) -> Constants {
    let ids = numbers.iter().flat_map(|numbers| numbers.top_ids.iter().chain(&numbers.gold_ids));
    let mut visible: HashMap<u32, usize> = HashMap::new();
    for copy in copies {
        for position in &copy.masked_positions {
            *visible.entry(copy.token_ids[*position as usize]).or_default() += 1;
        }
    }
    // Of equally frequent ones the smaller, so that the same copies become the same bytes.
    let placeholder = visible.into_iter().max_by_key(|(id, count)| (*count, std::cmp::Reverse(*id)));
    Constants {
        size: ids.max().map_or(1, |largest| largest.saturating_add(1)),
        placeholder: placeholder.map_or(0, |(id, _)| id),
        lowest: numbers.iter().flat_map(|numbers| &numbers.log_sum_exp).min().copied().unwrap_or(0),
        level,
    }
}

#[cfg(test)]
mod tests;
