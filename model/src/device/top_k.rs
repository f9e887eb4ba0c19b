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
    pub fn new(
        device: &Arc<dyn Accelerator>,
        precision: Precision,
        decoder: DecoderPlace,
        (vocabulary, words, embedding): (usize, usize, usize),
    ) -> Result<Self, DeviceError> {
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
        let stride = self.vocabulary.next_multiple_of(8);
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
        let place = |numbers: usize| self.labels.at() + 4 * numbers as u64;
        for first in (0..rows).step_by(at_a_time) {
            let now = at_a_time.min(rows - first);
            let product = Product {
                precision: self.precision,
                rows: now,
                columns: self.decoder.rows,
                inner: self.embedding,
                left: Factor {
                    at: hidden + (first * self.embedding * self.precision.bytes()) as u64,
                    stride: self.embedding,
                    transposed: false,
                },
                right: Factor { at: self.decoder.weight, stride: self.embedding, transposed: true },
                out: Factor { at: self.logits.at(), stride, transposed: false },
                out_precision: Precision::F32,
                accumulate: false,
            };
            let arguments = [
                Argument::Address(self.logits.at()),
                Argument::U32(stride as u32),
                Argument::Address(self.decoder.bias),
                Argument::Address(self.golds.at() + 4 * first as u64),
                Argument::U32(self.vocabulary as u32),
                Argument::U32(self.words as u32),
                Argument::U32(top_k as u32),
                Argument::Address(place(first * top_k)),
                Argument::Address(place((rows + first) * top_k)),
                Argument::Address(place(2 * rows * top_k + first)),
                Argument::Address(place(2 * rows * top_k + rows + first)),
                Argument::Address(not_finite),
            ];
            let (kernel, groups) = if top_k <= 128 { ("top_128", 1) } else { ("top_1024", 8) };
            let shared = 8 * CANDIDATES + THREADS as usize * (4 * groups + 4 + 8) + 8;
            let launch = Launch {
                kernel,
                precision: self.precision,
                blocks: [now as u32, 1, 1],
                threads: THREADS,
                shared_bytes: shared as u32,
                arguments: &arguments,
            };
            // SAFETY: the caller's hidden states and decoder, and buffers that were grown to these rows.
            unsafe {
                self.device.multiply(&product)?;
                self.device.launch(&launch)?;
            }
            let Some(Draws { samples, .. }) = draws else { continue };
            let arguments = [
                Argument::Address(self.logits.at()),
                Argument::U32(stride as u32),
                Argument::Address(self.decoder.bias),
                Argument::U32(self.words as u32),
                Argument::U32(top_k as u32),
                Argument::U32(samples as u32),
                Argument::Address(self.uniforms.at() + 8 * first as u64),
                Argument::Address(place(2 * rows * top_k + first)),
                Argument::Address(place(first * top_k)),
                Argument::Address(place((rows + first) * top_k)),
            ];
            let shared = 8 * self.words.div_ceil(TILE_WORDS) + 16 * top_k;
            let launch = Launch { kernel: "draw_tail", shared_bytes: shared as u32, arguments: &arguments, ..launch };
            // SAFETY: as above; `uniforms` has a number for each row.
            unsafe { self.device.launch(&launch)? };
        }
        // SAFETY: the buffer has `count` numbers.
        let arrival = unsafe { self.device.fetch(self.labels.at(), 4 * count)? };
        Ok(PendingBest { arrival, rows, top_k })
    }
}
