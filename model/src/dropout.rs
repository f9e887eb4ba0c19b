//! Inverted dropout whose masks are a function of (stream, step, site, index): no state, so a step that is computed again
//! drops the same values, and the backward pass makes its mask anew instead of keeping it.

use crate::encoder::Dropout;
use crate::simd::vectorised;
use crate::slices::values;
use candle_core::{CpuStorage, CustomOp1, Device, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

/// Where in the network values are dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Site {
    /// Behind the embeddings' LayerNorm.
    Embeddings,
    /// Attention probabilities of a layer.
    Probabilities(usize),
    /// Behind the dense map of a layer's attention.
    Attention(usize),
    /// Behind the second dense map of a layer.
    Output(usize),
}

impl Site {
    fn number(self) -> u32 {
        let of_layer = |layer: usize, place: u32| 1 + 3 * layer as u32 + place;
        match self {
            Self::Embeddings => 0,
            Self::Probabilities(layer) => of_layer(layer, 0),
            Self::Attention(layer) => of_layer(layer, 1),
            Self::Output(layer) => of_layer(layer, 2),
        }
    }
}

/// The mask of one site: every value gets 16 random bits, and is dropped if they are below the threshold.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mask {
    dropout: Dropout,
    site: u32,
    threshold: u32,
}

/// Philox blocks that are made at once, and the values (16 bits each) for which they suffice: a chunk.
const BLOCKS: usize = 16;
const WORDS: usize = 4 * BLOCKS;
const VALUES: usize = 2 * WORDS;

const CHUNKS_PER_TASK: usize = 128;

impl Mask {
    /// `None` if nothing is to be dropped. The rate is rounded to a multiple of 1/65536.
    pub(crate) fn new(dropout: Option<Dropout>, site: Site, rate: f64) -> Option<Self> {
        let threshold = (rate * 65_536.0).round() as u32;
        let dropout = dropout.filter(|_| threshold > 0)?;
        Some(Self { dropout, site: site.number(), threshold: threshold.min(65_535) })
    }

    /// Chunks that `values` values take.
    pub(crate) fn chunks(values: usize) -> u32 {
        values.div_ceil(VALUES) as u32
    }

    /// Multiplies by the mask: 0 where a value is dropped, and elsewhere what keeps the expectation. The first value is the
    /// first one of chunk `first_chunk`.
    pub(crate) fn apply(&self, values: &mut [f32], first_chunk: u32) {
        values.par_chunks_mut(CHUNKS_PER_TASK * VALUES).enumerate().for_each(|(task, values)| {
            self.apply_here(values, first_chunk.wrapping_add((task * CHUNKS_PER_TASK) as u32));
        });
    }

    /// The same on this thread.
    pub(crate) fn apply_here(&self, values: &mut [f32], first_chunk: u32) {
        vectorised(|| {
            let (chunks, rest) = values.as_chunks_mut::<VALUES>();
            let mut chunk_number = first_chunk;
            for chunk in chunks {
                self.apply_to_chunk(chunk, chunk_number);
                chunk_number = chunk_number.wrapping_add(1);
            }
            if !rest.is_empty() {
                let mut chunk = [0.0; VALUES];
                chunk[..rest.len()].copy_from_slice(rest);
                self.apply_to_chunk(&mut chunk, chunk_number);
                rest.copy_from_slice(&chunk[..rest.len()]);
            }
        });
    }

    #[inline(always)]
    fn apply_to_chunk(&self, chunk: &mut [f32; VALUES], number: u32) {
        let step = self.dropout.step;
        let first = number.wrapping_mul(BLOCKS as u32);
        let words = self.dropout.stream.blocks::<BLOCKS>(first, [self.site, step as u32, (step >> 32) as u32]);
        let words = words.as_flattened();
        let (threshold, scale) = (self.threshold, 65_536.0 / (65_536 - self.threshold) as f32);
        let (low, high) = chunk.split_at_mut(WORDS);
        for ((low, high), word) in low.iter_mut().zip(high).zip(words) {
            *low = if word & 0xffff < threshold { 0.0 } else { *low * scale };
            *high = if word >> 16 < threshold { 0.0 } else { *high * scale };
        }
    }

    /// The mask itself, for devices on which it cannot be applied.
    pub(crate) fn to_tensor(self, shape: impl Into<Shape>, device: &Device, first_chunk: u32) -> Result<Tensor> {
        let shape = shape.into();
        let mut values = vec![1.0; shape.elem_count()];
        self.apply(&mut values, first_chunk);
        Tensor::from_vec(values, shape, device)
    }
}

/// `x` with values dropped as `mask` says.
pub(crate) fn drop_out(x: &Tensor, mask: Option<Mask>) -> Result<Tensor> {
    match mask {
        None => Ok(x.clone()),
        Some(mask) if x.device().is_cpu() => x.contiguous()?.apply_op1(mask),
        Some(mask) => x * mask.to_tensor(x.shape(), x.device(), 0)?,
    }
}

impl CustomOp1 for Mask {
    fn name(&self) -> &'static str {
        "dropout"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let mut values = values(storage, layout)?.to_vec();
        self.apply(&mut values, 0);
        Ok((CpuStorage::F32(values), layout.shape().clone()))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(gradient.contiguous()?.apply_op1_no_bwd(self)?))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::gradient_check::{check, matrix};
    use crate::random::Philox;

    fn mask(step: u64, site: Site, rate: f64) -> Option<Mask> {
        Mask::new(Some(Dropout { stream: Philox::new(5, "dropout", &[]), step }), site, rate)
    }

    fn drawn(step: u64, site: Site, rate: f64, count: usize) -> Vec<f32> {
        let mut values = vec![1.0; count];
        mask(step, site, rate).unwrap().apply(&mut values, 0);
        values
    }

    #[test]
    fn expectation_is_kept_and_masks_differ() {
        let values = drawn(3, Site::Embeddings, 0.1, 100_000);
        let dropped = values.iter().filter(|value| **value == 0.0).count();
        assert!((9_600..10_400).contains(&dropped), "{dropped}");
        assert!(values.iter().all(|value| *value == 0.0 || (value - 1.0 / 0.9).abs() < 1e-4));
        assert_eq!(values, drawn(3, Site::Embeddings, 0.1, 100_000));
        for (step, site) in [(4, Site::Embeddings), (3 | 1 << 40, Site::Embeddings), (3, Site::Probabilities(0))] {
            let other = drawn(step, site, 0.1, 100_000);
            let both = values.iter().zip(&other).filter(|(a, b)| **a == 0.0 && **b == 0.0).count();
            assert!((800..1_200).contains(&both), "{both}");
        }
    }

    #[test]
    fn a_part_of_the_mask_is_the_mask_of_the_part() {
        let whole = drawn(1, Site::Output(2), 0.5, 5 * VALUES + 7);
        let mut part = vec![1.0; 3 * VALUES + 7];
        mask(1, Site::Output(2), 0.5).unwrap().apply(&mut part, 2);
        assert_eq!(part, whole[2 * VALUES..]);
    }

    #[test]
    fn no_mask_without_rate_or_stream() {
        assert!(mask(1, Site::Embeddings, 0.0).is_none());
        assert!(Mask::new(None, Site::Embeddings, 0.5).is_none());
        assert!(drawn(1, Site::Embeddings, 0.999_999, 64).iter().all(|value| value.is_finite()));
    }

    #[test]
    fn agrees_with_the_product() {
        let mask = mask(1, Site::Attention(1), 0.3);
        for (rows, columns) in [(1, 1), (3, 7), (70, 33)] {
            let composed = |t: &[Tensor]| &t[0] * mask.unwrap().to_tensor((rows, columns), &Device::Cpu, 0)?;
            check(&[matrix(rows, columns, 1)], |t| drop_out(&t[0], mask), composed);
        }
    }
}
