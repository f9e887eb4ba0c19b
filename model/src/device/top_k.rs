//! The labelling head on an accelerator: hidden states at masked positions → top-k logits, log-sum-exp and gold logit.

use super::{Accelerator, Address, Argument, Arrival, Buffer, DeviceError, Factor, Launch, Precision, Product};
use std::sync::Arc;

const THREADS: u32 = 256;
/// Candidates that a block sorts: as its source says.
const CANDIDATES: usize = 4096;
/// Bytes of the logits that are in memory at a time.
const LOGIT_BYTES: usize = 256 << 20;
const NONE: u32 = u32::MAX;
/// Words of a tile of the line on which a tail's points lie: as its source says.
const TILE_WORDS: usize = 512;

/// Where a decoder lies.
#[derive(Clone, Copy, Debug)]
pub struct DecoderPlace {
    /// `[rows, embedding]`.
    pub weight: Address,
    /// `[vocabulary]`, float32, at a multiple of 16 bytes.
    pub bias: Address,
    /// Rows that can be read: the vocabulary's, and where something is behind them enough for a multiple of eight, which products are fast with.
    pub rows: usize,
}

/// A decoder's place, and the buffers of its labels.
#[derive(Debug)]
pub struct TopK {
    device: Arc<dyn Accelerator>,
    precision: Precision,
    decoder: DecoderPlace,
    vocabulary: usize,
    words: usize,
    embedding: usize,
    logits: Buffer<f32>,
    golds: Buffer<u32>,
    uniforms: Buffer<f64>,
    /// `[rows, k]`, twice, and `[rows]`, twice, one behind the other; the last number is the lowest token whose logit is not finite.
    labels: Buffer<u32>,
}

/// Of each row's labels, how many are drawn from the tail, and how.
#[derive(Clone, Copy, Debug)]
pub struct Draws<'a> {
    /// At least 1, and fewer than k.
    pub samples: usize,
    /// `[rows]`, within 0 and 1: where the first point lies.
    pub uniforms: &'a [f64],
}

/// What is kept of each row's logits.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Best {
    /// `[rows, k]`: the largest logit first; of equal ones the lower id. What was drawn is behind, by id.
    pub top_ids: Vec<u32>,
    /// `[rows, k]`.
    pub top_logits: Vec<f32>,
    /// `[rows]`, over the whole vocabulary.
    pub log_sum_exp: Vec<f32>,
    /// `[rows]`.
    pub gold_logits: Vec<f32>,
    /// The lowest token that has a logit which is not finite.
    pub not_finite: Option<u32>,
}

/// What is kept of some rows' logits, on its way from the accelerator.
#[derive(Debug)]
pub struct PendingBest {
    arrival: Box<dyn Arrival>,
    rows: usize,
    top_k: usize,
}

impl PendingBest {
    /// Waits for it.
    ///
    /// # Errors
    /// When the accelerator failed.
    pub fn wait(self) -> Result<Best, DeviceError> {
        let Self { arrival, rows, top_k } = self;
        let mut labels = vec![NONE; 2 * rows * (top_k + 1) + 1];
        arrival.wait(bytemuck::cast_slice_mut(&mut labels))?;
        let (tops, scalars) = labels.split_at(2 * rows * top_k);
        let floats = |bits: &[u32]| bits.iter().map(|bits| f32::from_bits(*bits)).collect::<Vec<_>>();
        Ok(Best {
            top_ids: tops[..rows * top_k].to_vec(),
            top_logits: floats(&tops[rows * top_k..]),
            log_sum_exp: floats(&scalars[..rows]),
            gold_logits: floats(&scalars[rows..2 * rows]),
            not_finite: Some(scalars[2 * rows]).filter(|token| *token != NONE),
        })
    }
}

impl Best {
    /// Adds those of further rows, as many of each.
    pub fn append(&mut self, other: Self) {
        self.top_ids.extend(other.top_ids);
        self.top_logits.extend(other.top_logits);
        self.log_sum_exp.extend(other.log_sum_exp);
        self.gold_logits.extend(other.gold_logits);
        self.not_finite = self.not_finite.into_iter().chain(other.not_finite).min();
    }
}

impl TopK {
    /// The head of a decoder with `vocabulary` rows, of which only the first `words` can be among the top k.
    ///
    /// # Errors
    /// When there is no room.
    ///
    /// # Panics
    /// When the decoder has fewer rows, or more than up to the next multiple of eight.
    pub fn new(
        device: &Arc<dyn Accelerator>,
        precision: Precision,
        decoder: DecoderPlace,
        (vocabulary, words, embedding): (usize, usize, usize),
    ) -> Result<Self, DeviceError> {
        let rows = vocabulary..=vocabulary.next_multiple_of(8);
        assert!(rows.contains(&decoder.rows), "{} rows of a decoder of {vocabulary} words", decoder.rows);
        Ok(Self {
            device: Arc::clone(device),
            precision,
            decoder,
            vocabulary,
            words,
            embedding,
            logits: Buffer::new(device, 0)?,
            golds: Buffer::new(device, 0)?,
            uniforms: Buffer::new(device, 0)?,
            labels: Buffer::new(device, 0)?,
        })
    }

    /// Gives the room of batches back.
    ///
    /// # Errors
    /// When the accelerator fails.
    pub fn release(&mut self) -> Result<(), DeviceError> {
        self.logits = Buffer::new(&self.device, 0)?;
        self.golds = Buffer::new(&self.device, 0)?;
        self.uniforms = Buffer::new(&self.device, 0)?;
        self.labels = Buffer::new(&self.device, 0)?;
        Ok(())
    }

    /// The most labels a position can have.
    pub const MOST: usize = 1024;

    /// Begins to label `hidden` `[golds, embedding]`, in the head's precision. Without `draws` all labels are the best ones.
    ///
    /// # Errors
    /// When the accelerator fails or has no room.
    ///
    /// # Panics
    /// When `top_k` is 0, more than there are words, or more than [`TopK::MOST`], or all labels would be drawn.
    ///
    /// # Safety
    /// `hidden` holds as many rows, and the decoder that the head was made with is still there.
    pub unsafe fn begin(
        &mut self,
        hidden: Address,
        golds: &[u32],
        top_k: usize,
        draws: Option<Draws<'_>>,
    ) -> Result<PendingBest, DeviceError> {
        assert!((1..=self.words.min(Self::MOST)).contains(&top_k), "the top {top_k} of {} words", self.words);
        assert!(golds.iter().all(|gold| (*gold as usize) < self.vocabulary), "gold ids beyond {}", self.vocabulary);
        let rows = golds.len();
        let stride = self.stride();
        let at_a_time = (LOGIT_BYTES / (4 * stride)).clamp(1, rows.max(1));
        self.logits.grow(at_a_time * stride)?;
        self.golds.grow(rows)?;
        self.golds.write(golds)?;
        if let Some(Draws { samples, uniforms }) = draws {
            assert!((1..top_k).contains(&samples), "{samples} samples of a top {top_k}");
            assert_eq!(uniforms.len(), rows, "a uniform number per gold id");
            self.uniforms.grow(rows)?;
            self.uniforms.write(uniforms)?;
        }
        let count = 2 * rows * (top_k + 1) + 1;
        self.labels.grow(count)?;
        // The kernel only lowers it.
        let not_finite = self.labels.at() + 4 * (count - 1) as u64;
        // SAFETY: the buffer has `count` numbers.
        unsafe { self.device.upload(bytemuck::bytes_of(&NONE), not_finite)? };
        for first in (0..rows).step_by(at_a_time) {
            let part = Part { first, rows: at_a_time.min(rows - first), of: rows, top_k, labels: self.labels.at() };
            // SAFETY: the caller's hidden states and decoder, and buffers that were grown to these rows.
            unsafe {
                self.multiply(hidden, &part)?;
                self.choose(&part, not_finite)?;
                if let Some(Draws { samples, .. }) = draws {
                    self.draw(&part, samples)?;
                }
            }
        }
        // SAFETY: the buffer has `count` numbers.
        let arrival = unsafe { self.device.fetch(self.labels.at(), 4 * count)? };
        Ok(PendingBest { arrival, rows, top_k })
    }

    /// Numbers from one row's logits to the next.
    fn stride(&self) -> usize {
        self.vocabulary.next_multiple_of(8)
    }

    /// The logits of some rows, without the bias.
    ///
    /// # Safety
    /// See [`TopK::begin`].
    unsafe fn multiply(&self, hidden: Address, part: &Part) -> Result<(), DeviceError> {
        let left = hidden + (part.first * self.embedding * self.precision.bytes()) as u64;
        let product = Product {
            precision: self.precision,
            rows: part.rows,
            columns: self.decoder.rows,
            inner: self.embedding,
            left: Factor { at: left, stride: self.embedding, transposed: false },
            right: Factor { at: self.decoder.weight, stride: self.embedding, transposed: true },
            out: Factor { at: self.logits.at(), stride: self.stride(), transposed: false },
            out_precision: Precision::F32,
            accumulate: false,
        };
        // SAFETY: the caller's.
        unsafe { self.device.multiply(&product) }
    }

    /// The best labels of rows whose logits are there.
    ///
    /// # Safety
    /// See [`TopK::begin`].
    unsafe fn choose(&self, part: &Part, not_finite: Address) -> Result<(), DeviceError> {
        let (kernel, groups) = if part.top_k <= 128 { ("top_128", 1) } else { ("top_1024", 8) };
        let arguments = [
            Argument::Address(self.logits.at()),
            Argument::U32(self.stride() as u32),
            Argument::Address(self.decoder.bias),
            Argument::Address(self.golds.at() + 4 * part.first as u64),
            Argument::U32(self.vocabulary as u32),
            Argument::U32(self.words as u32),
            Argument::U32(part.top_k as u32),
            Argument::Address(part.top_ids()),
            Argument::Address(part.top_logits()),
            Argument::Address(part.log_sum_exp()),
            Argument::Address(part.gold_logits()),
            Argument::Address(not_finite),
        ];
        let shared = 8 * CANDIDATES + THREADS as usize * (4 * groups + 4 + 8) + 8;
        // SAFETY: the caller's.
        unsafe { self.launch(kernel, part, shared, &arguments) }
    }

    /// Draws the last labels of these rows from their tails.
    ///
    /// # Safety
    /// See [`TopK::begin`].
    unsafe fn draw(&self, part: &Part, samples: usize) -> Result<(), DeviceError> {
        let arguments = [
            Argument::Address(self.logits.at()),
            Argument::U32(self.stride() as u32),
            Argument::Address(self.decoder.bias),
            Argument::U32(self.words as u32),
            Argument::U32(part.top_k as u32),
            Argument::U32(samples as u32),
            Argument::Address(self.uniforms.at() + 8 * part.first as u64),
            Argument::Address(part.log_sum_exp()),
            Argument::Address(part.top_ids()),
            Argument::Address(part.top_logits()),
        ];
        let shared = 8 * self.words.div_ceil(TILE_WORDS) + 16 * part.top_k;
        // SAFETY: the caller's.
        unsafe { self.launch("draw_tail", part, shared, &arguments) }
    }

    /// A kernel whose blocks have a row each.
    ///
    /// # Safety
    /// See [`TopK::begin`].
    unsafe fn launch(
        &self,
        kernel: &'static str,
        part: &Part,
        shared_bytes: usize,
        arguments: &[Argument],
    ) -> Result<(), DeviceError> {
        let (precision, blocks) = (self.precision, [part.rows as u32, 1, 1]);
        let shared_bytes = shared_bytes as u32;
        // SAFETY: the caller's.
        unsafe { self.device.launch(&Launch { kernel, precision, blocks, threads: THREADS, shared_bytes, arguments }) }
    }
}

/// Rows whose logits are in memory at a time, and the places of their labels.
struct Part {
    first: usize,
    rows: usize,
    /// All rows.
    of: usize,
    top_k: usize,
    /// Of all rows: see [`TopK::labels`].
    labels: Address,
}

impl Part {
    fn top_ids(&self) -> Address {
        self.labels + 4 * (self.first * self.top_k) as u64
    }

    fn top_logits(&self) -> Address {
        self.labels + 4 * ((self.of + self.first) * self.top_k) as u64
    }

    fn log_sum_exp(&self) -> Address {
        self.labels + 4 * (2 * self.of * self.top_k + self.first) as u64
    }

    fn gold_logits(&self) -> Address {
        self.log_sum_exp() + 4 * self.of as u64
    }
}
