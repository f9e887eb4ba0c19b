//! Inverted dropout whose masks are a function of (stream, step, site, row, part, column): no state, so the backward pass makes its
//! mask anew instead of keeping it, and no dependence on how a batch is cut.
//!
//! Every value has 16 random bits, and is dropped if they are below the threshold. They come from Philox blocks, eight values each,
//! with the counter
//!
//! ```text
//! word 0   part << 16 | block       part: attention head, or 0
//! word 1   row                      of the batch's packed tokens, from `first_row` on
//! word 2   step, low 32 bits
//! word 3   site << 16 | step, bits 32 to 47
//! ```
//!
//! Blocks are taken in groups of 16, which make 128 columns: column 128·g + 64·h + 16·w + i is half h of word w of block 16·g + i.
//! Counters are distinct up to 524 288 columns, 65 536 parts and sites (21 845 layers) and 2⁴⁸ steps; beyond that masks repeat.

use crate::Dropout;
use crate::simd::ARCH;
use candle_core::{Device, Result, Tensor};
use pulp::{Simd, WithSimd};

/// Where in the network values are dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Site {
    /// Behind the embeddings' LayerNorm.
    Embeddings,
    /// Attention probabilities of a layer.
    Probabilities(usize),
    /// Behind the dense map of a layer's attention.
    Attention(usize),
    /// Behind the second dense map of a layer.
    Output(usize),
    /// In the head of a task, before one of its dense maps.
    Task(usize),
}

/// The number that each of some rows has in its batch.
#[derive(Clone, Copy, Debug)]
pub enum Rows<'a> {
    /// This one and those that follow.
    From(u32),
    /// These.
    Listed(&'a [u32]),
}

/// The mask of one site.
#[derive(Clone, Copy, Debug)]
pub struct Mask {
    dropout: Dropout,
    site: u32,
    /// Values are dropped if their 16 bits are below it.
    threshold: u32,
}

/// Blocks of a group, and the columns for which they suffice.
const BLOCKS: usize = 16;
const COLUMNS: usize = 8 * BLOCKS;

impl Rows<'_> {
    /// Number of the row at `index`.
    #[inline(always)]
    pub fn number(self, index: usize) -> u32 {
        match self {
            Self::From(first) => first.wrapping_add(index as u32),
            Self::Listed(numbers) => numbers[index],
        }
    }
}

impl Site {
    fn number(self) -> u32 {
        let of_layer = |layer: usize, place: u32| 1 + 3 * layer as u32 + place;
        match self {
            Self::Embeddings => 0,
            Self::Probabilities(layer) => of_layer(layer, 0),
            Self::Attention(layer) => of_layer(layer, 1),
            Self::Output(layer) => of_layer(layer, 2),
            // The last sites of those that have counters of their own.
            Self::Task(map) => 0xffff - map as u32,
        }
    }
}

impl Mask {
    /// `None` if nothing is to be dropped. The rate is rounded to a multiple of 1/65536.
    pub fn new(dropout: Option<Dropout>, site: Site, rate: f64) -> Option<Self> {
        let threshold = (rate * 65_536.0).round() as u32;
        let dropout = dropout.filter(|_| threshold > 0)?;
        Some(Self { dropout, site: site.number(), threshold: threshold.min(65_535) })
    }

    /// What another processor needs to make the same: both words of the key, the step's lower half, the counter's last word, the number of the first row, and the
    /// threshold.
    pub(crate) fn words(&self) -> [u32; 6] {
        let Dropout { stream, step, first_row } = self.dropout;
        let [first, second] = stream.key();
        [first, second, step as u32, self.site << 16 | (step >> 32) as u32 & 0xffff, first_row, self.threshold]
    }

    /// Multiplies one row by its mask: 0 where a value is dropped, and elsewhere what keeps the expectation.
    pub fn apply(&self, values: &mut [f32], row: u32, part: u32) {
        ARCH.dispatch(Apply { mask: self, values, row, part });
    }

    /// The same with the vector instructions of the function that calls it.
    #[inline(always)]
    pub fn apply_here(&self, values: &mut [f32], row: u32, part: u32) {
        let (groups, rest) = values.as_chunks_mut::<COLUMNS>();
        let mut block = part << 16;
        for group in groups {
            self.apply_to_group(group, row, block);
            block = block.wrapping_add(BLOCKS as u32);
        }
        if !rest.is_empty() {
            let mut group = [0.0; COLUMNS];
            group[..rest.len()].copy_from_slice(rest);
            self.apply_to_group(&mut group, row, block);
            rest.copy_from_slice(&group[..rest.len()]);
        }
    }

    /// `[columns]`: the mask of a row.
    pub fn values_of(&self, row: u32, part: u32, columns: usize) -> Vec<f32> {
        let mut values = vec![1.0; columns];
        self.apply(&mut values, row, part);
        values
    }

    /// `[count, columns]`: the mask of `count` rows.
    pub fn to_tensor(self, rows: Rows<'_>, count: usize, columns: usize, device: &Device) -> Result<Tensor> {
        let values = (0..count).flat_map(|index| self.values_of(rows.number(index), 0, columns)).collect();
        Tensor::from_vec(values, (count, columns), device)
    }

    /// `[heads, queries, keys]`: the mask of a sequence's attention probabilities; `rows` are those of the queries.
    pub fn to_tensor_of_heads(
        self,
        heads: usize,
        rows: Rows<'_>,
        (queries, keys): (usize, usize),
        device: &Device,
    ) -> Result<Tensor> {
        let of_head = |head| (0..queries).flat_map(move |query| self.values_of(rows.number(query), head as u32, keys));
        Tensor::from_vec((0..heads).flat_map(of_head).collect(), (heads, queries, keys), device)
    }

    #[inline(always)]
    fn apply_to_group(&self, group: &mut [f32; COLUMNS], row: u32, first_block: u32) {
        let (step, row) = (self.dropout.step, self.dropout.first_row.wrapping_add(row));
        let last = self.site << 16 | (step >> 32) as u32 & 0xffff;
        let words = self.dropout.stream.blocks::<BLOCKS>(first_block, [row, step as u32, last]);
        let words = words.as_flattened();
        let (threshold, scale) = (self.threshold, 65_536.0 / (65_536 - self.threshold) as f32);
        let (low, high) = group.split_at_mut(COLUMNS / 2);
        for ((low, high), word) in low.iter_mut().zip(high).zip(words) {
            *low *= if word & 0xffff < threshold { 0.0 } else { scale };
            *high *= if word >> 16 < threshold { 0.0 } else { scale };
        }
    }
}

struct Apply<'a> {
    mask: &'a Mask,
    values: &'a mut [f32],
    row: u32,
    part: u32,
}

impl WithSimd for Apply<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        self.mask.apply_here(self.values, self.row, self.part);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::random::Philox;
    use crate::simd::archs;

    fn mask(step: u64, site: Site, rate: f64) -> Option<Mask> {
        Mask::new(Some(Dropout { stream: Philox::new(5, "dropout", &[]), step, first_row: 0 }), site, rate)
    }

    /// `[100, 1000]`: the masks of some rows, one behind the other.
    fn drawn(step: u64, site: Site, part: u32, first_row: u32) -> Vec<f32> {
        let mask = mask(step, site, 0.1).unwrap();
        (0..100).flat_map(|row| mask.values_of(first_row + row, part, 1_000)).collect()
    }

    #[test]
    fn expectation_is_kept_and_masks_differ() {
        let values = drawn(3, Site::Embeddings, 0, 0);
        let dropped = values.iter().filter(|value| **value == 0.0).count();
        assert!((9_600..10_400).contains(&dropped), "{dropped}");
        assert!(values.iter().all(|value| *value == 0.0 || (value - 1.0 / 0.9).abs() < 1e-4));
        assert_eq!(values, drawn(3, Site::Embeddings, 0, 0));
        for other in [
            drawn(4, Site::Embeddings, 0, 0),
            drawn(3 | 1 << 40, Site::Embeddings, 0, 0),
            drawn(3, Site::Probabilities(0), 0, 0),
            drawn(3, Site::Output(4_095), 0, 0),
            drawn(3, Site::Embeddings, 1, 0),
            drawn(3, Site::Embeddings, 0, 100),
            [&values[1_000..], &values[..1_000]].concat(),
            [&values[1..], &values[..1]].concat(),
            [&values[64..], &values[..64]].concat(),
        ] {
            let both = values.iter().zip(&other).filter(|(a, b)| **a == 0.0 && **b == 0.0).count();
            assert!((800..1_200).contains(&both), "{both}");
        }
    }

    #[test]
    fn every_column_is_dropped_as_often() {
        let mask = mask(7, Site::Attention(1), 0.25).unwrap();
        let mut dropped = [0; 200];
        for row in 0..2_000 {
            let values = mask.values_of(row, 3, dropped.len());
            dropped.iter_mut().zip(&values).for_each(|(count, value)| *count += i32::from(*value == 0.0));
        }
        // Five standard deviations of about 19.
        assert!(dropped.iter().all(|count| (400..600).contains(count)), "{dropped:?}");
    }

    #[test]
    fn bits_are_those_of_the_documented_counter() {
        let (stream, step) = (Philox::new(5, "dropout", &[]), 9 | 3 << 32);
        let mask = mask(step, Site::Output(2), 0.5).unwrap();
        for (column, value) in mask.values_of(11, 2, 300).into_iter().enumerate() {
            let block = 16 * (column / 128) + column % 16;
            let words = stream.block([2 << 16 | block as u32, 11, 9, 9 << 16 | 3]);
            let bits = words[column % 64 / 16] >> (16 * (column / 64 % 2)) & 0xffff;
            assert_eq!(value, if bits < 32_768 { 0.0 } else { 2.0 }, "{column}");
        }
    }

    #[test]
    fn the_mask_of_fewer_columns_is_its_beginning() {
        let mask = mask(1, Site::Output(2), 0.5).unwrap();
        let whole = mask.values_of(4, 1, 400);
        for columns in [0, 1, 3, 7, 33, 63, 64, 65, 127, 128, 129, 192, 256, 399] {
            assert_eq!(mask.values_of(4, 1, columns), whole[..columns]);
            for arch in archs() {
                let mut values = vec![1.0; columns];
                arch.dispatch(Apply { mask: &mask, values: &mut values, row: 4, part: 1 });
                assert_eq!(values, whole[..columns]);
            }
        }
    }

    #[test]
    fn tensors_hold_the_masks_of_their_rows() {
        let mask = mask(1, Site::Probabilities(1), 0.5).unwrap();
        let rows = mask.to_tensor(Rows::Listed(&[5, 2]), 2, 7, &Device::Cpu).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(rows, [mask.values_of(5, 0, 7), mask.values_of(2, 0, 7)]);
        let heads = mask.to_tensor_of_heads(2, Rows::From(5), (3, 7), &Device::Cpu).unwrap();
        let heads = heads.to_vec3::<f32>().unwrap();
        for (head, query) in [(0, 0), (1, 2)] {
            assert_eq!(heads[head][query], mask.values_of(5 + query as u32, head as u32, 7));
        }
    }

    #[test]
    fn no_mask_without_rate_or_stream() {
        assert!(mask(1, Site::Embeddings, 0.0).is_none());
        assert!(Mask::new(None, Site::Embeddings, 0.5).is_none());
        let mask = mask(1, Site::Embeddings, 0.999_999).unwrap();
        assert!(mask.values_of(0, 0, 64).iter().all(|value| value.is_finite()));
    }
}
