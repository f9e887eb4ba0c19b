//! A chunk of positions: its logits in tiles of the vocabulary, worked off twice, from hidden rows to exponentials and from
//! there to gradients.
//!
//! Logits lie transposed, `[V, positions]`: a tile is then a run of rows of W times the packed hidden rows, its softmax has
//! positions as lanes, and its gradient is the left factor both of dL/dW (as it lies) and of dL/dh (transposed). A tile is
//! worked on while it is in the cache. Neighbouring tiles form groups, of which each adds up a part of dL/dh.

use super::picks::Picks;
use super::positions::{Coefficients, TileSums};
use super::{Decoder, sweep};
use model::product::{Matrix, Packed, Right, Start, multiply};
use model::simd::fetch;
use rayon::prelude::*;

/// Numbers per unit of parallel work when the parts of dL/dh are added up.
const PIECE: usize = 1 << 12;
/// Chunks are of multiples of this many positions where they can be: the widest panel of a product.
const POSITIONS_STEP: usize = 64;

/// How the work may be cut.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Bound on a chunk's logits (exceeded only by `positions_min`).
    pub(super) logits_bytes: usize,
    /// A chunk may always have this many positions: every chunk reads all of W and its gradient.
    pub(super) positions_min: usize,
    /// Vocabulary of a tile.
    pub(super) tile_rows: usize,
    /// Most groups of tiles.
    pub(super) groups_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { logits_bytes: 128 << 20, positions_min: 192, tile_rows: 256, groups_max: 16 }
    }
}

/// Buffers, which grow to what the largest chunk needs.
#[derive(Debug, Default)]
pub struct Scratch {
    pub(super) limits: Limits,
    /// `[E, positions]`.
    hidden_transposed: Packed,
    /// `[positions, E]`.
    hidden: Packed,
    /// `[V, stride]`.
    logits: Vec<f32>,
    /// `[tiles, stride]`.
    maxima: Vec<f32>,
    /// `[tiles, stride]`.
    sums: Vec<f32>,
    /// `[groups, positions, E]`: parts of dL/dh.
    partials: Vec<f32>,
    /// Per group: rows of W.
    weights: Vec<Packed>,
}

/// How a chunk is cut: a function of shapes alone.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cut {
    positions: usize,
    stride: usize,
    embedding_size: usize,
    vocabulary: usize,
    tile_rows: usize,
    tiles: usize,
    group_tiles: usize,
    groups: usize,
}

impl Cut {
    /// (first position, positions) of each chunk, about equal.
    pub(super) fn chunks(limits: Limits, n: usize, vocabulary: usize) -> impl Iterator<Item = (usize, usize)> {
        let most = (limits.logits_bytes / (4 * vocabulary)).max(limits.positions_min).max(1);
        let count = n.div_ceil(most).max(1);
        let equal = n.div_ceil(count).max(1);
        let size = match equal.next_multiple_of(POSITIONS_STEP) {
            stepped if stepped <= most => stepped,
            _ => equal,
        };
        (0..n).step_by(size).map(move |first| (first, size.min(n - first)))
    }

    fn new(limits: Limits, decoder: &Decoder<'_>, positions: usize) -> Self {
        let vocabulary = decoder.bias.len();
        let tiles = vocabulary.div_ceil(limits.tile_rows);
        let group_tiles = tiles.div_ceil(limits.groups_max);
        Self {
            positions,
            stride: sweep::stride(positions),
            embedding_size: decoder.embedding_size,
            vocabulary,
            tile_rows: limits.tile_rows,
            tiles,
            group_tiles,
            groups: tiles.div_ceil(group_tiles),
        }
    }
}

/// A chunk on its way.
pub(super) struct Chunk<'a> {
    cut: Cut,
    decoder: Decoder<'a>,
    scratch: &'a mut Scratch,
}

impl<'a> Chunk<'a> {
    /// Packs `hidden` `[positions, E]`.
    pub(super) fn new(decoder: Decoder<'a>, hidden: &[f32], positions: usize, scratch: &'a mut Scratch) -> Self {
        let cut = Cut::new(scratch.limits, &decoder, positions);
        let hidden = Matrix::new(hidden, positions, decoder.embedding_size);
        scratch.hidden_transposed.pack(hidden.transposed());
        scratch.hidden.pack(hidden);
        grow(&mut scratch.logits, cut.vocabulary * cut.stride);
        grow(&mut scratch.maxima, cut.tiles * cut.stride);
        grow(&mut scratch.sums, cut.tiles * cut.stride);
        grow(&mut scratch.partials, cut.groups * cut.positions * cut.embedding_size);
        if scratch.weights.len() < cut.groups {
            scratch.weights.resize_with(cut.groups, Packed::default);
        }
        Self { cut, decoder, scratch }
    }

    /// From hidden rows to logits, of which those in `picks` are read out, and to exponentials relative to each tile's
    /// largest. The teacher's tokens are left out of maxima and sums.
    pub(super) fn exponentiate(&mut self, picks: &mut Picks) {
        let Self { cut, decoder, scratch } = self;
        let Cut { stride, tile_rows, embedding_size, .. } = *cut;
        let hidden = scratch.hidden_transposed.right();
        let picked = picks.by_tile(cut.tiles, tile_rows);
        let logits = scratch.logits[..cut.vocabulary * stride].par_chunks_mut(tile_rows * stride);
        let maxima = scratch.maxima[..cut.tiles * stride].par_chunks_mut(stride);
        let sums = scratch.sums[..cut.tiles * stride].par_chunks_mut(stride);
        let (weights, tile_weights) = (decoder.weight, tile_rows * embedding_size);
        let decoder = weights.par_chunks(tile_weights).zip(decoder.bias.par_chunks(tile_rows));
        let work = logits.zip(maxima.zip(sums)).zip(decoder).zip(picked).enumerate();
        work.for_each(|(tile, (((logits, (max, sum)), (weight, bias)), picked))| {
            let next = (tile + 1) * tile_weights;
            fetch(&weights[next.min(weights.len())..(next + tile_weights).min(weights.len())]);
            // [rows, E] · [E, positions]
            let weight = Matrix::new(weight, bias.len(), embedding_size);
            multiply(weight, hidden, Start::Zero, logits, stride);
            picked.take_out(logits, bias, stride, tile * tile_rows);
            sweep::exponentiate(logits, bias, max, sum);
        });
        picks.collect();
    }

    /// What the tiles have found.
    pub(super) fn tiles(&self) -> TileSums<'_> {
        let count = self.cut.tiles * self.cut.stride;
        TileSums {
            maxima: &self.scratch.maxima[..count],
            sums: &self.scratch.sums[..count],
            stride: self.cut.stride,
            positions: self.cut.positions,
            tile_rows: self.cut.tile_rows,
            vocabulary: self.cut.vocabulary,
        }
    }

    /// The token with the largest logit at `position`, of those that are not the teacher's, and that logit.
    pub(super) fn largest(&self, position: usize) -> (u32, f32) {
        let tiles = self.tiles();
        let maxima = tiles.maxima.chunks_exact(tiles.stride).map(|maxima| maxima[position]).enumerate();
        let highest = |best: (usize, f32), other: (usize, f32)| if other.1 > best.1 { other } else { best };
        let (tile, max) = maxima.reduce(highest).unwrap_or_default();
        let first = tile * tiles.tile_rows;
        let rows = first..(first + tiles.tile_rows).min(tiles.vocabulary);
        let rows = rows.map(|row| (row, self.scratch.logits[row * tiles.stride + position]));
        (rows.reduce(highest).map_or(0, |(row, _)| row as u32), max)
    }

    /// From exponentials to gradients: adds dL/dW to `of_weight` `[V, E]` and dL/db to `of_bias` `[V]`, and overwrites
    /// `of_hidden` `[positions, E]`.
    pub(super) fn differentiate(
        &mut self,
        coefficients: &Coefficients,
        picks: &Picks,
        of_weight: &mut [f32],
        of_bias: &mut [f32],
        of_hidden: &mut [f32],
    ) {
        let Self { cut, decoder, scratch } = self;
        let group_rows = cut.group_tiles * cut.tile_rows;
        let part = cut.positions * cut.embedding_size;
        let logits = scratch.logits[..cut.vocabulary * cut.stride].par_chunks_mut(group_rows * cut.stride);
        let maxima = scratch.maxima[..cut.tiles * cut.stride].par_chunks(cut.group_tiles * cut.stride);
        let scales = scratch.sums[..cut.tiles * cut.stride].par_chunks_mut(cut.group_tiles * cut.stride);
        let partials = scratch.partials[..cut.groups * part].par_chunks_mut(part);
        let of_weight = of_weight.par_chunks_mut(group_rows * cut.embedding_size);
        let outputs = of_weight.zip(of_bias.par_chunks_mut(group_rows)).zip(partials);
        let weights = decoder.weight.par_chunks(group_rows * cut.embedding_size).zip(&mut scratch.weights);
        let hidden = scratch.hidden.right();
        let work = logits.zip(maxima.zip(scales)).zip(outputs).zip(weights).enumerate();
        work.for_each(
            |(group, (((logits, (maxima, scales)), ((of_weight, of_bias), of_hidden)), (weight, packed)))| {
                let group = Group { cut, hidden, coefficients, picks, first: group * group_rows };
                group.differentiate(logits, maxima, scales, (weight, packed), (of_weight, of_bias, of_hidden));
            },
        );
        let partials = &scratch.partials[..cut.groups * part];
        let pieces = of_hidden.par_chunks_mut(PIECE).enumerate();
        pieces.for_each(|(piece, to)| sweep::add_up(to, partials, part, piece * PIECE));
    }
}

/// Neighbouring tiles from row `first` on.
struct Group<'a> {
    cut: &'a Cut,
    /// `[positions, E]`.
    hidden: Right<'a>,
    coefficients: &'a Coefficients,
    picks: &'a Picks,
    first: usize,
}

impl Group<'_> {
    /// One tile after another; the group's part of dL/dh is overwritten.
    fn differentiate(
        &self,
        logits: &mut [f32],
        maxima: &[f32],
        scales: &mut [f32],
        (weight, packed): (&[f32], &mut Packed),
        (of_weight, of_bias, of_hidden): (&mut [f32], &mut [f32], &mut [f32]),
    ) {
        let Cut { positions, stride, embedding_size, tile_rows, .. } = *self.cut;
        let tile_weights = tile_rows * embedding_size;
        let tiles = logits.chunks_mut(tile_rows * stride).zip(maxima.chunks(stride).zip(scales.chunks_mut(stride)));
        let outputs = of_weight.chunks_mut(tile_weights).zip(of_bias.chunks_mut(tile_rows));
        let work = tiles.zip(outputs).zip(weight.chunks(tile_weights)).enumerate();
        for (tile, (((logits, (max, scale)), (of_weight, of_bias)), weight)) in work {
            let rows = of_bias.len();
            // From memory, while the logits are worked on.
            fetch(weight);
            fetch(of_weight);
            self.scale(logits, max, scale, self.first + tile * tile_rows, rows);
            sweep::add_row_sums(of_bias, logits, stride, positions);
            let gradient = Matrix::strided(logits, rows, positions, stride);
            // [rows, positions] · [positions, E]
            multiply(gradient, self.hidden, Start::Out, of_weight, embedding_size);
            let weight = Right::of(Matrix::new(weight, rows, embedding_size), packed);
            let start = if tile == 0 { Start::Zero } else { Start::Out };
            // [positions, rows] · [rows, E]
            multiply(gradient.transposed(), weight, start, of_hidden, embedding_size);
        }
    }

    /// Overwrites the exponentials of the tile that begins with row `first` with gradients.
    fn scale(&self, logits: &mut [f32], max: &[f32], scale: &mut [f32], first: usize, rows: usize) {
        let Coefficients { full, log_sum_exp, tail, tail_log_sum_exp } = self.coefficients;
        sweep::scales(scale, max, (full, log_sum_exp), (tail, tail_log_sum_exp));
        scale[self.cut.positions..].fill(0.0);
        sweep::multiply_rows(logits, scale);
        for pick in self.picks.in_rows(first, first + rows) {
            let x = &mut logits[(pick.id as usize - first) * self.cut.stride + pick.position as usize];
            *x = if pick.probability.is_some() { pick.gradient } else { *x + pick.gradient };
        }
    }
}

fn grow(buffer: &mut Vec<f32>, count: usize) {
    if buffer.len() < count {
        buffer.resize(count, 0.0);
    }
}
