//! A network whose weights do not change, on an accelerator: what [`crate::Inference`] is on the processor.
//!
//! All of a batch goes through a layer at once. Biases are added by the kernel that reads a product, so that products need none. The last layer computes queries, and all that
//! comes after them, for masked rows only.

use super::batch::DeviceBatch;
use super::calls::{Attention, Calls, EIGHT, Norm, Places, at, f, kind, n};
use super::{Accelerator, Address, Buffer, DecoderPlace, DeviceError, OnDevice, Precision};
use crate::layout::{LayerSlots, NormVectors};
use crate::trial::{self, Difference};
use crate::{Bert, Configuration, Layout, ModelError, PackedBatch, Parameters};
use std::sync::Arc;

/// A BERT or an ELECTRA generator without its decoder, on an accelerator.
#[derive(Debug)]
pub struct Network {
    calls: Calls,
    configuration: Configuration,
    layout: Layout,
    /// The arena in the network's precision: tables and matrices are read from it.
    numbers: Buffer<u8>,
    /// The arena from the first vector up to the matrices.
    vectors: Buffer<f32>,
    batch: DeviceBatch,
    work: Workspace,
}

/// What a batch's layers write, in buffers that grow to those of the largest batch so far.
#[derive(Debug)]
struct Workspace {
    /// `[tokens, hidden]`, twice: a layer's input and output.
    x: [Buffer<u8>; 2],
    /// `[tokens, 3 · hidden]`.
    projected: Buffer<u8>,
    /// `[tokens, hidden]`.
    context: Buffer<u8>,
    dense: Buffer<u8>,
    middle: Buffer<u8>,
    /// `[tokens, intermediate]`.
    inner: Buffer<u8>,
}

impl Network {
    /// Takes the weights over.
    ///
    /// # Errors
    /// When the accelerator has no room, or its kernels cannot do this shape.
    pub fn new(
        device: &Arc<dyn Accelerator>,
        precision: Precision,
        configuration: &Configuration,
        parameters: &Parameters,
    ) -> Result<Self, ModelError> {
        let calls = Calls { device: Arc::clone(device), precision };
        calls.check(configuration, false)?;
        let layout = Layout::of(configuration);
        let arena = layout.gather(parameters)?;
        let numbers = Buffer::of(device, &precision.bits_of(&arena))?;
        let vectors = Buffer::of(device, &arena[layout.embedding.vectors.start..layout.matrices])?;
        let (batch, work) = (DeviceBatch::new(device)?, Workspace::new(device)?);
        Ok(Self { calls, configuration: configuration.clone(), layout, numbers, vectors, batch, work })
    }

    /// The same, and asks it and the plain composition for the same hidden states: on an accelerator that nobody has tried yet, wrong labels
    /// must not go unnoticed.
    ///
    /// # Errors
    /// When they differ.
    pub fn checked(on: &OnDevice, bert: &Bert) -> Result<Self, ModelError> {
        let OnDevice { device, precision } = on;
        let mut network = Self::new(device, *precision, &bert.configuration, &bert.parameters)?;
        let tolerance = match precision {
            Precision::F32 => 1e-3,
            Precision::Bf16 => 5e-2,
            Precision::F16 => 1e-2,
        };
        if let Some(Difference { apart, size, finite }) =
            trial::difference(bert, tolerance, |batch| network.hidden_values(batch))?
        {
            let reason = match (precision, finite) {
                (Precision::F16, false) => {
                    "this model goes beyond 65,504, the largest number of float16; use precision = \"bfloat16\""
                        .to_owned()
                }
                _ => format!(
                    "hidden states in {} differ by {apart} from those of the processor (they go up to {size}): the kernels \
                     compute something else on this GPU; please report its model and driver, and use device = \"cpu\"",
                    precision.name()
                ),
            };
            return Err(DeviceError::Unusable { device: device.name().to_owned(), reason }.into());
        }
        Ok(network)
    }

    /// Its shape.
    #[must_use]
    pub fn configuration(&self) -> &Configuration {
        &self.configuration
    }

    /// Computes the hidden states `[masked, embedding]` of a batch, in the network's precision, and returns their place, at which they are until the next batch. Times the decoder's
    /// weight, plus its bias, they are logits.
    ///
    /// # Errors
    /// When the batch does not fit the model, or the accelerator fails.
    pub fn hidden(&mut self, batch: &PackedBatch) -> Result<Address, ModelError> {
        batch.validate(&self.configuration)?;
        let mut taken = self.take(batch);
        if let Err(DeviceError::OutOfMemory { .. }) = taken {
            // Once more without what was there before, and so without anything to spare.
            self.release()?;
            taken = self.take(batch);
        }
        if let Err(error) = taken {
            // A smaller batch may fit where this one's first buffers are.
            self.release()?;
            return Err(error.into());
        }
        Ok(self.forward()?)
    }

    /// Makes room for a batch, and takes it there.
    fn take(&mut self, batch: &PackedBatch) -> Result<(), DeviceError> {
        self.work.grow(batch.tokens(), &self.configuration, self.calls.precision)?;
        self.batch.take(batch)
    }

    /// Gives the room of batches back.
    ///
    /// # Errors
    /// When the accelerator fails.
    pub fn release(&mut self) -> Result<(), DeviceError> {
        let device = &self.calls.device;
        (self.batch, self.work) = (DeviceBatch::new(device)?, Workspace::new(device)?);
        Ok(())
    }

    /// The hidden states `[masked, embedding]` of a batch, as float32.
    ///
    /// # Errors
    /// See [`Network::hidden`].
    pub fn hidden_values(&mut self, batch: &PackedBatch) -> Result<Vec<f32>, ModelError> {
        let at = self.hidden(batch)?;
        let count = batch.masked_rows.len() * self.configuration.embedding_size;
        // SAFETY: they were just computed there.
        Ok(unsafe { super::numbers(self.calls.device.as_ref(), self.calls.precision, at, count)? })
    }

    /// The decoder's weight `[vocabulary, embedding]`, in the network's precision, and its bias, float32.
    #[must_use]
    pub fn decoder(&self) -> DecoderPlace {
        let (weight, bias) = self.layout.decoder();
        let rows = self.layout.padded_words(EIGHT);
        DecoderPlace { weight: self.places().number(weight.start), bias: self.places().vector(bias.start), rows }
    }

    fn places(&self) -> Places {
        // Where an arena would begin of which only this part is there.
        let vectors = self.vectors.at().wrapping_sub(4 * self.layout.embedding.vectors.start as u64);
        Places { numbers: self.numbers.at(), vectors, precision: self.calls.precision }
    }

    fn norm(&self, first: usize, vectors: &NormVectors) -> Norm {
        let vector = |place: usize| self.places().vector(first + place);
        let (weight, bias) = (vector(vectors.weight.start), vector(vectors.bias.start));
        Norm { weight, bias, epsilon: self.configuration.layer_norm_eps }
    }

    fn forward(&self) -> Result<Address, DeviceError> {
        let (c, places, rows) = (&self.configuration, self.places(), self.batch.rows);
        self.embed()?;
        for (number, layer) in self.layout.layers.iter().enumerate() {
            let (x, out) = (self.work.x[number % 2].at(), self.work.x[(number + 1) % 2].at());
            self.layer(layer, x, out, number + 1 == c.layers)?;
        }
        let x = self.work.x[c.layers % 2].at();
        let (dense, out) = (self.work.dense.at(), self.work.middle.at());
        let transform = places.number(self.layout.transform.start);
        self.calls.map((x, rows, c.hidden_size), transform, c.embedding_size, dense)?;
        let head = &self.layout.head;
        let norm = self.norm(head.vectors.start, &head.norm);
        self.calls.rows(
            "activate_norm",
            rows,
            c.embedding_size,
            &[
                at(dense),
                at(places.vector(head.vectors.start + head.bias.start)),
                n(kind(c.head_activation())),
                at(norm.weight),
                at(norm.bias),
                f(norm.epsilon as f32),
                n(rows),
                n(c.embedding_size),
                at(out),
            ],
        )?;
        Ok(out)
    }

    /// Into `x[0]`.
    fn embed(&self) -> Result<(), DeviceError> {
        let (c, layout, work, batch) = (&self.configuration, &self.layout, &self.work, &self.batch);
        let (places, columns) = (self.places(), c.embedding_size);
        let out = if layout.projection.is_some() { work.context.at() } else { work.x[0].at() };
        let first = layout.embedding.vectors.start;
        let norm = self.norm(first, &layout.embedding.norm);
        self.calls.rows(
            "embed",
            batch.tokens,
            columns,
            &[
                at(batch.ids.at()),
                at(batch.positions.at()),
                at(batch.types()),
                at(places.number(layout.word.start)),
                at(places.number(layout.position.start)),
                at(places.number(layout.token_types.start)),
                at(norm.weight),
                at(norm.bias),
                f(norm.epsilon as f32),
                n(batch.tokens),
                n(columns),
                at(out),
            ],
        )?;
        if let Some(projection) = &layout.projection {
            let (x, matrix) = (work.x[0].at(), places.number(projection.start));
            self.calls.map((out, batch.tokens, columns), matrix, c.hidden_size, x)?;
            let bias = places.vector(first + layout.embedding.projection_bias.start);
            self.calls.add_bias((x, bias), None, [batch.tokens, c.hidden_size])?;
        }
        Ok(())
    }

    /// One layer from `x` `[tokens, hidden]` to `out`, `[tokens, hidden]` or, of the masked rows alone, `[masked, hidden]`.
    fn layer(&self, layer: &LayerSlots, x: Address, out: Address, masked: bool) -> Result<(), DeviceError> {
        let (c, work, batch, calls) = (&self.configuration, &self.work, &self.batch, &self.calls);
        let (hidden, intermediate, tokens) = (c.hidden_size, c.intermediate_size, batch.tokens);
        let (rows, places, first) = (batch.rows_of(masked), self.places(), layer.vectors.start);
        let matrix = |place: usize| places.number(place);
        let vector = |place: usize| places.vector(first + place);
        let bytes = calls.precision.bytes() as u64;
        let projected = work.projected.at();
        // Queries, keys and values of all tokens in one product; or keys and values of all, behind the queries of the masked ones.
        let (query, key_value) = if masked {
            let key_value = projected + bytes * (rows * hidden) as u64;
            calls.gather((x, batch.masked.at()), [rows, hidden], work.dense.at())?;
            calls.map((work.dense.at(), rows, hidden), matrix(layer.query.start), hidden, projected)?;
            calls.map((x, tokens, hidden), matrix(layer.key_value.start), 2 * hidden, key_value)?;
            ((projected, hidden), (key_value, 2 * hidden))
        } else {
            calls.map((x, tokens, hidden), matrix(layer.query.start), 3 * hidden, projected)?;
            ((projected, 3 * hidden), (projected + bytes * hidden as u64, 3 * hidden))
        };
        let bias = vector(layer.within.query_bias.start);
        let attention = Attention { query, key_value, bias, masked, heads: c.heads, size: c.head_size() };
        let (context, dense, middle, inner) = (work.context.at(), work.dense.at(), work.middle.at(), work.inner.at());
        calls.attend(batch, &attention, context, None)?;

        calls.map((context, rows, hidden), matrix(layer.output.start), hidden, dense)?;
        let norm = self.norm(first, &layer.within.middle_norm);
        let with_bias = (dense, vector(layer.within.output_bias.start));
        calls.add_norm(with_bias, (x, batch.numbers_of(masked)), norm, [rows, hidden], middle, None)?;

        calls.map((middle, rows, hidden), matrix(layer.inner.start), intermediate, inner)?;
        let with_bias = (inner, vector(layer.within.inner_bias.start));
        calls.add_bias(with_bias, Some(c.activation), [rows, intermediate])?;
        calls.map((inner, rows, intermediate), matrix(layer.outer.start), hidden, dense)?;
        let norm = self.norm(first, &layer.within.norm);
        let with_bias = (dense, vector(layer.within.outer_bias.start));
        calls.add_norm(with_bias, (middle, 0), norm, [rows, hidden], out, None)
    }
}

impl Workspace {
    fn new(device: &Arc<dyn Accelerator>) -> Result<Self, DeviceError> {
        let numbers = || Buffer::new(device, 0);
        Ok(Self {
            x: [numbers()?, numbers()?],
            projected: numbers()?,
            context: numbers()?,
            dense: numbers()?,
            middle: numbers()?,
            inner: numbers()?,
        })
    }

    /// Grows to a batch of so many tokens.
    fn grow(&mut self, tokens: usize, c: &Configuration, precision: Precision) -> Result<(), DeviceError> {
        let widest = c.hidden_size.max(c.embedding_size);
        let bytes = |columns: usize| tokens * columns * precision.bytes();
        for buffer in [&mut self.context, &mut self.dense, &mut self.middle].into_iter().chain(&mut self.x) {
            buffer.grow(bytes(widest))?;
        }
        self.projected.grow(bytes(3 * c.hidden_size))?;
        self.inner.grow(bytes(c.intermediate_size))
    }
}
