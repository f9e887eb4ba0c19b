//! One teacher.

use crate::{Decoder, HeadScratch, Labeller, NonFinite, Tail, TeacherError, label_rows};
use candle_core::{Device, Tensor};
use model::random::Philox;
use model::{Bert, Inference, ModelError, PackedBatch, Tokenizer};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use store::{Label, MaskedCopy};

/// What a runner needs to know besides the teacher's folder.
#[derive(Clone, Debug)]
pub struct RunnerOptions {
    /// Name in the configuration.
    pub name: String,
    /// Index in the teacher table.
    pub index: u16,
    /// Labels kept per masked position, k.
    pub top_k: usize,
    /// How the last of them are drawn from the rest of the vocabulary; `None`: all are the best ones.
    pub tail: Option<TailOptions>,
}

/// An exact head with a sampled tail ([`Tail`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TailOptions {
    /// s: labels that are drawn; at least 1, and fewer than k.
    pub samples: usize,
    /// Seed of the run.
    pub seed: u64,
}

impl TailOptions {
    /// `samples` of the k labels are drawn; `None`: it is 0.
    #[must_use]
    pub fn of(samples: usize, seed: u64) -> Option<Self> {
        (samples > 0).then_some(Self { samples, seed })
    }
}

/// A loaded teacher. Labels one batch at a time, in the rayon pool that it is called in.
#[derive(Debug)]
pub struct Runner {
    options: RunnerOptions,
    network: Inference,
    decoder: Decoder,
    /// The head's buffers, of threads that are done with them.
    spare: Mutex<Vec<HeadScratch>>,
}

impl Runner {
    /// Loads the teacher of folder `path`; `tokenizer` is the one of that folder.
    pub fn load(path: &Path, tokenizer: &Tokenizer, options: RunnerOptions) -> Result<Self, TeacherError> {
        let failed = |source| TeacherError::Model { teacher: options.name.clone(), source: Box::new(source) };
        let bert = Bert::load(path, &Device::Cpu).map_err(failed)?;
        model::check_words(&bert.configuration, tokenizer).map_err(failed)?;
        let words = tokenizer.len();
        if words < bert.configuration.vocabulary_size {
            tracing::warn!(
                teacher = options.name,
                words,
                rows = bert.configuration.vocabulary_size,
                "more embedding rows than words: the surplus counts in the log-sum-exp, never in the top-k"
            );
        }
        if words < options.top_k {
            return Err(TeacherError::FewWords { teacher: options.name, words, top_k: options.top_k });
        }
        let network = Inference::checked(&bert).map_err(failed)?;
        let (weight, bias) = bert.decoder();
        let decoder = values(weight)
            .and_then(|weight| Ok(Decoder::new(&weight, &values(bias)?, words)))
            .map_err(|error| failed(ModelError::from(error)))?;
        Ok(Self { options, network, decoder, spare: Mutex::default() })
    }

    /// Name in the configuration.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.options.name
    }

    /// Index in the teacher table.
    #[must_use]
    pub fn index(&self) -> u16 {
        self.options.index
    }

    /// The teacher's shape.
    #[must_use]
    pub fn configuration(&self) -> &model::Configuration {
        self.network.configuration()
    }

    /// Labels of each position that are drawn from the tail.
    #[must_use]
    pub fn tail_samples(&self) -> usize {
        self.options.tail.map_or(0, |tail| tail.samples)
    }

    /// Floating-point operations of the matrix products and the attention that [`Runner::label`] does for `copies`; a multiplication
    /// and an addition count as two. With M masked positions, E embedding size and V rows of the decoder, 2·M·E·V more than
    /// [`Inference::flops`]. Tiles that are computed again for a sampled tail do not count.
    pub fn flops<'a>(&self, copies: impl Iterator<Item = &'a MaskedCopy> + Clone) -> u64 {
        let configuration = self.configuration();
        let decoder = 2 * configuration.embedding_size as u64 * configuration.vocabulary_size as u64;
        let masked: u64 = copies.clone().map(|copy| copy.masked_positions.len() as u64).sum();
        decoder * masked + self.network.flops(copies.map(|copy| (copy.token_ids.len(), copy.masked_positions.len())))
    }

    /// Labels `copies` (this teacher's own) in one forward pass; one label per copy, in order.
    pub fn label(&self, copies: &[&MaskedCopy]) -> Result<Vec<Label>, TeacherError> {
        let (batch, gold_ids) = pack(copies);
        let top_k = self.options.top_k;
        let uniforms = self.options.tail.map(|tail| self.uniforms(tail.seed, copies));
        let failed = |source| TeacherError::Model { teacher: self.options.name.clone(), source: Box::new(source) };
        let parts = self.network.map_shards(&batch, |masked, hidden| {
            let spare = || self.spare.lock().unwrap_or_else(PoisonError::into_inner);
            let mut scratch = spare().pop().unwrap_or_default();
            let samples = self.tail_samples();
            let uniforms = uniforms.as_deref().map(|uniforms| &uniforms[masked.clone()]);
            let tail = uniforms.map(|uniforms| Tail { samples, uniforms });
            let labels = label_rows(&self.decoder, hidden, &gold_ids[masked], top_k, tail, &mut scratch);
            spare().push(scratch);
            labels
        });
        let mut all = Label { top_k, ..Label::default() };
        for part in parts.map_err(failed)? {
            let part =
                part.map_err(|NonFinite(token)| TeacherError::NonFinite { teacher: self.options.name.clone(), token })?;
            all.top_ids.extend(part.top_ids);
            all.top_logits.extend(part.top_logits);
            all.log_sum_exp.extend(part.log_sum_exp);
            all.gold_logits.extend(part.gold_logits);
        }
        Ok(split(&all, copies))
    }

    /// A uniform number for each masked position: a function of seed, teacher, the copy's tokens (masks in) and the position, so that a label
    /// depends on the copy alone, in whichever batch it is. A copy that says the same at another place has the same draws.
    fn uniforms(&self, seed: u64, copies: &[&MaskedCopy]) -> Vec<f64> {
        let mut uniforms = Vec::new();
        for copy in copies {
            let tokens: Vec<u8> = copy.token_ids.iter().flat_map(|id| id.to_le_bytes()).collect();
            let stream = Philox::new(seed, "tail", &[self.options.name.as_bytes(), &tokens]);
            uniforms.extend(copy.masked_positions.iter().map(|position| stream.uniform(u64::from(*position), 0)));
        }
        uniforms
    }
}

impl Labeller for Runner {
    fn name(&self) -> &str {
        self.name()
    }

    fn index(&self) -> u16 {
        self.index()
    }

    fn label(&self, copies: &[&MaskedCopy]) -> Result<Vec<Label>, TeacherError> {
        self.label(copies)
    }

    fn flops(&self, copies: &[&MaskedCopy]) -> u64 {
        let sizes = copies.iter().map(|copy| (copy.token_ids.len(), copy.masked_positions.len()));
        self.configuration().flops(sizes)
    }

    fn tail_samples(&self) -> usize {
        self.tail_samples()
    }
}

/// The tensor's values, row after row.
fn values(tensor: &Tensor) -> candle_core::Result<Vec<f32>> {
    tensor.flatten_all()?.to_vec1()
}

/// Sequences one after another, and the gold id of each masked row.
fn pack(copies: &[&MaskedCopy]) -> (PackedBatch, Vec<u32>) {
    let mut batch = PackedBatch::default();
    let mut gold_ids = Vec::new();
    for copy in copies {
        let first_row = batch.token_ids.len() as u32;
        batch.masked_rows.extend(copy.masked_positions.iter().map(|position| first_row + position));
        batch.token_ids.extend_from_slice(&copy.token_ids);
        batch.lengths.push(copy.token_ids.len());
        gold_ids.extend_from_slice(&copy.gold_ids);
    }
    (batch, gold_ids)
}

/// Gives each copy its part of the batch's labels.
fn split(all: &Label, copies: &[&MaskedCopy]) -> Vec<Label> {
    let k = all.top_k;
    let mut first = 0;
    copies
        .iter()
        .map(|copy| {
            let end = first + copy.masked_positions.len();
            let label = Label {
                top_k: k,
                top_ids: all.top_ids[first * k..end * k].to_vec(),
                top_logits: all.top_logits[first * k..end * k].to_vec(),
                log_sum_exp: all.log_sum_exp[first..end].to_vec(),
                gold_logits: all.gold_logits[first..end].to_vec(),
            };
            first = end;
            label
        })
        .collect()
}
