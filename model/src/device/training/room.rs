//! Buffers of a step, which grow to those of the largest micro-batch so far.

use super::super::calls::{Calls, EIGHT, SQUARE_BLOCKS};
use super::super::{Accelerator, Buffer, DeviceError, Precision};
use crate::{Configuration, PackedBatch};
use std::sync::Arc;

/// Bytes of the logits that are in memory at a time.
const LOGIT_BYTES: usize = 256 << 20;

/// A layer's input and what it keeps for its backward pass. `rows` are the tokens, or the masked rows.
#[derive(Debug)]
pub(super) struct LayerRoom {
    /// `[tokens, hidden]`.
    pub(super) x: Buffer<u8>,
    /// `[tokens, 3 · hidden]`, without biases.
    pub(super) projected: Buffer<u8>,
    /// `[rows, heads]`.
    pub(super) log_sum_exp: Buffer<f32>,
    /// `[rows, hidden]`.
    pub(super) context: Buffer<u8>,
    pub(super) middle: Buffer<u8>,
    pub(super) middle_normalised: Buffer<u8>,
    pub(super) middle_scales: Buffer<f32>,
    /// `[rows, intermediate]`: before the activation.
    pub(super) before: Buffer<u8>,
    /// `[rows, hidden]`.
    pub(super) normalised: Buffer<u8>,
    pub(super) scales: Buffer<f32>,
}

#[derive(Debug)]
pub(super) struct Room {
    device: Arc<dyn Accelerator>,
    pub(super) layers: Vec<LayerRoom>,
    /// `[tokens, embedding]`: the first layer's input before its projection.
    pub(super) embedded: Buffer<u8>,
    pub(super) embedded_normalised: Buffer<u8>,
    pub(super) embedded_scales: Buffer<f32>,
    /// `[masked, hidden]`: the last layer's input at the masked rows, and its output.
    pub(super) input_rows: Buffer<u8>,
    pub(super) output: Buffer<u8>,
    /// `[masked, embedding]`: the head before its activation, and its output.
    pub(super) transformed: Buffer<u8>,
    pub(super) transformed_normalised: Buffer<u8>,
    pub(super) transformed_scales: Buffer<f32>,
    pub(super) hidden: Buffer<u8>,
    /// `[masked, embedding]`: the gradient of `hidden`.
    pub(super) of_hidden: Buffer<u8>,
    /// `[tokens, hidden]`, twice: the gradient on its way down, and where it is spread to.
    pub(super) flow: [Buffer<u8>; 2],
    /// `[tokens, hidden]`, whichever is wider.
    pub(super) dense: Buffer<u8>,
    pub(super) of_context: Buffer<u8>,
    pub(super) of_query: Buffer<u8>,
    /// `[tokens, 2 · hidden]`.
    pub(super) of_key_value: Buffer<u8>,
    /// `[tokens, intermediate]`, and its gradient.
    pub(super) inner: Buffer<u8>,
    pub(super) of_inner: Buffer<u8>,
    /// `[tokens, heads]`.
    pub(super) dots: Buffer<f32>,
    /// Sums that are summed up again.
    pub(super) partial: Buffer<f32>,
    /// `[positions, stride]`: some positions' logits, and their gradient, unless that takes their place.
    pub(super) logits: Buffer<f32>,
    pub(super) of_logits: Buffer<u8>,
    /// Of all masked rows.
    pub(super) golds: Buffer<u32>,
    pub(super) starts: Buffer<u32>,
    pub(super) ids: Buffer<u32>,
    /// Probabilities of the entries; then tail masses, gold masses, weights and λ of the rows.
    pub(super) targets: Buffer<f32>,
    pub(super) losses: Buffer<f64>,
    pub(super) found: Buffer<u32>,
    pub(super) squares: Buffer<f64>,
    /// Rows by the embedding's row that they have: the order, where each group begins, and whose it is; behind them the groups that are cut, by their parts.
    pub(super) order: Buffer<u32>,
    pub(super) groups: Buffer<u32>,
    pub(super) group_rows: Buffer<u32>,
}

/// Numbers from one position's logits to the next.
pub(super) fn stride(vocabulary: usize) -> usize {
    vocabulary.next_multiple_of(EIGHT)
}

/// Rows of one group of an embedding's gradient that a warp sums; those of larger groups are cut.
pub(super) const PART_ROWS: usize = 64;

/// Parts of all groups that are cut, at most.
fn most_parts(tokens: usize) -> usize {
    // Each has more than PART_ROWS rows, so its parts are half as long at least.
    tokens.div_ceil(PART_ROWS / 2)
}

/// Positions whose logits are in memory at a time, of `rows`.
pub(super) fn positions_at_a_time(vocabulary: usize, rows: usize) -> usize {
    (LOGIT_BYTES / (4 * stride(vocabulary))).clamp(1, rows.max(1))
}

impl Room {
    pub(super) fn new(device: &Arc<dyn Accelerator>, c: &Configuration) -> Result<Self, DeviceError> {
        fn empty<T: bytemuck::Pod>(device: &Arc<dyn Accelerator>) -> Result<Buffer<T>, DeviceError> {
            Buffer::new(device, 0)
        }
        let layer = || {
            Ok(LayerRoom {
                x: empty(device)?,
                projected: empty(device)?,
                log_sum_exp: empty(device)?,
                context: empty(device)?,
                middle: empty(device)?,
                middle_normalised: empty(device)?,
                middle_scales: empty(device)?,
                before: empty(device)?,
                normalised: empty(device)?,
                scales: empty(device)?,
            })
        };
        Ok(Self {
            device: Arc::clone(device),
            layers: (0..c.layers).map(|_| layer()).collect::<Result<_, _>>()?,
            embedded: empty(device)?,
            embedded_normalised: empty(device)?,
            embedded_scales: empty(device)?,
            input_rows: empty(device)?,
            output: empty(device)?,
            transformed: empty(device)?,
            transformed_normalised: empty(device)?,
            transformed_scales: empty(device)?,
            hidden: empty(device)?,
            of_hidden: empty(device)?,
            flow: [empty(device)?, empty(device)?],
            dense: empty(device)?,
            of_context: empty(device)?,
            of_query: empty(device)?,
            of_key_value: empty(device)?,
            inner: empty(device)?,
            of_inner: empty(device)?,
            dots: empty(device)?,
            partial: empty(device)?,
            logits: empty(device)?,
            of_logits: empty(device)?,
            golds: empty(device)?,
            starts: empty(device)?,
            ids: empty(device)?,
            targets: empty(device)?,
            losses: empty(device)?,
            found: empty(device)?,
            squares: empty(device)?,
            order: empty(device)?,
            groups: empty(device)?,
            group_rows: empty(device)?,
        })
    }

    /// Makes room for all passes over a batch. When there is none, everything is given back: a smaller batch may fit.
    pub(super) fn grow(
        &mut self,
        batch: &PackedBatch,
        c: &Configuration,
        precision: Precision,
        entries: usize,
    ) -> Result<(), DeviceError> {
        let device = Arc::clone(&self.device);
        let mut grown = self.try_grow(batch, c, precision, entries);
        if let Err(DeviceError::OutOfMemory { .. }) = grown {
            // Once more without what was there before, and so without anything to spare.
            *self = Self::new(&device, c)?;
            grown = self.try_grow(batch, c, precision, entries);
        }
        if grown.is_err() {
            *self = Self::new(&device, c)?;
        }
        grown
    }

    fn try_grow(
        &mut self,
        batch: &PackedBatch,
        c: &Configuration,
        precision: Precision,
        entries: usize,
    ) -> Result<(), DeviceError> {
        let (tokens, masked) = (batch.tokens(), batch.masked_rows.len());
        let (hidden, embedding, wide) = (c.hidden_size, c.embedding_size, c.intermediate_size);
        let widest = hidden.max(embedding);
        let bytes = |rows: usize, columns: usize| rows * columns * precision.bytes();
        for (number, layer) in self.layers.iter_mut().enumerate() {
            let rows = if number + 1 == c.layers { masked } else { tokens };
            layer.x.grow(bytes(tokens, hidden))?;
            layer.projected.grow(bytes(rows + 2 * tokens, hidden))?;
            layer.log_sum_exp.grow(rows * c.heads)?;
            for buffer in [&mut layer.context, &mut layer.middle, &mut layer.middle_normalised, &mut layer.normalised] {
                buffer.grow(bytes(rows, hidden))?;
            }
            layer.middle_scales.grow(rows)?;
            layer.scales.grow(rows)?;
            layer.before.grow(bytes(rows, wide))?;
        }
        if embedding != hidden {
            self.embedded.grow(bytes(tokens, embedding))?;
        }
        self.embedded_normalised.grow(bytes(tokens, embedding))?;
        self.embedded_scales.grow(tokens)?;
        for buffer in [&mut self.input_rows, &mut self.output] {
            buffer.grow(bytes(masked, hidden))?;
        }
        for buffer in [&mut self.transformed, &mut self.transformed_normalised, &mut self.hidden, &mut self.of_hidden] {
            buffer.grow(bytes(masked, embedding))?;
        }
        self.transformed_scales.grow(masked)?;
        let [flow, spread] = &mut self.flow;
        for buffer in [flow, spread, &mut self.dense, &mut self.of_context, &mut self.of_query] {
            // Zeros are written 16 bytes at a time.
            buffer.grow(bytes(tokens, widest).next_multiple_of(16))?;
        }
        self.of_key_value.grow(bytes(tokens, 2 * hidden))?;
        for buffer in [&mut self.inner, &mut self.of_inner] {
            buffer.grow(bytes(tokens, wide))?;
        }
        self.dots.grow(tokens * c.heads)?;
        let stride = stride(c.vocabulary_size);
        let positions = positions_at_a_time(c.vocabulary_size, masked);
        let sums = Calls::partials(tokens, (2 * hidden).max(wide)).max(Calls::partials(positions, stride));
        self.partial.grow(sums.max(most_parts(tokens) * embedding))?;
        self.logits.grow(positions * stride)?;
        if precision != Precision::F32 {
            self.of_logits.grow(bytes(positions, stride))?;
        }
        self.golds.grow(masked)?;
        self.starts.grow(masked + 1)?;
        self.ids.grow(entries)?;
        self.targets.grow(entries + 4 * masked)?;
        self.losses.grow(2 * masked)?;
        self.found.grow(3 * masked)?;
        self.squares.grow(SQUARE_BLOCKS)?;
        self.order.grow(tokens)?;
        self.groups.grow(tokens + most_parts(tokens) + 2)?;
        self.group_rows.grow(tokens + most_parts(tokens))
    }
}
