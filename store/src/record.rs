//! Entries of the log: records (one example with its masked copies), and the events that move a
//! source's cursor without making a record.

use crate::{SequenceNumber, SourceCursor};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// One entry of the log.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Place in the log.
    pub sequence: SequenceNumber,
    /// State of the entry's source once this entry is done.
    pub cursor: SourceCursor,
    /// What happened.
    pub payload: Payload,
}

/// What an entry holds.
#[derive(Clone, Debug, PartialEq)]
pub enum Payload {
    /// An example with its copies.
    Record(Record),
    /// A document, or the rest of one, that could not be used.
    Skip(Skip),
    /// The source has no further input.
    End,
}

/// One example: contiguous text of one document, tokenised and masked once per teacher of its language.
/// Its key is (source, document, span, round).
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// Name of the corpus.
    pub source: Arc<str>,
    /// Identifier of the document, unique in its source: `<file>@<offset in bytes>`.
    pub document: Arc<str>,
    /// Bytes of the document that the example covers.
    pub span: Span,
    /// Language of the example.
    pub language: Arc<str>,
    /// Labelling round of a finite corpus, from 0.
    pub round: u32,
    /// Kept for evaluation; never trained on.
    pub held_out: bool,
    /// One copy per teacher of the language, in the order of the teacher table.
    pub copies: Vec<MaskedCopy>,
    /// The bytes of the document that the example covers, if the log keeps text.
    pub text: Option<Arc<str>>,
}

/// A range of bytes, `first..end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Span {
    /// First byte.
    pub first: u64,
    /// One past the last byte.
    pub end: u64,
}

/// An unusable document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skip {
    /// Identifier of the document.
    pub document: Arc<str>,
    /// Why it could not be used.
    pub reason: Arc<str>,
}

/// An example as one teacher sees it: in that teacher's own token ids, with masks applied.
#[derive(Clone, Debug, PartialEq)]
pub struct MaskedCopy {
    /// Index into the teacher table of the log's [`crate::Identity`].
    pub teacher: u16,
    /// `[length]`, with \[CLS\] first and \[SEP\] last, masks in.
    pub token_ids: Vec<u32>,
    /// `[masked]`, ascending, 0-based, counting \[CLS\].
    pub masked_positions: Vec<u32>,
    /// `[masked]`: the ids that stood at the masked positions.
    pub gold_ids: Vec<u32>,
    /// What the teacher says; `None` for a teacher that lends only its tokenizer.
    pub label: Option<Label>,
}

/// What a teacher multiplied to make a label; sums are float32 always.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ComputedIn {
    /// float32, on a processor or a GPU.
    #[default]
    Float32,
    /// bfloat16, on a GPU.
    Bfloat16,
    /// float16, on a GPU.
    Float16,
}

impl ComputedIn {
    /// All that there are.
    pub const ALL: [Self; 3] = [Self::Float32, Self::Bfloat16, Self::Float16];

    /// What configurations call it: `float32`, `bfloat16` or `float16`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Float32 => "float32",
            Self::Bfloat16 => "bfloat16",
            Self::Float16 => "float16",
        }
    }

    /// What [`ComputedIn::name`] says.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|one| one.name() == name)
    }

    /// Its number in logs and messages.
    #[must_use]
    pub fn code(self) -> u8 {
        self as u8
    }

    /// What has this number.
    #[must_use]
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.get(usize::from(code)).copied()
    }
}

/// A teacher's output at the masked positions of one copy.
///
/// The k entries of a position are the teacher's best tokens. In a log with `store.tail_samples` s ([`crate::Identity::tail_samples`]) the
/// first k − s of them are, and the others are drawn from the rest of the vocabulary: an entry's exp(logit − log-sum-exp) is then what it
/// stands for, so that all together add up to 1; exact entries come first, drawn ones after them, by ascending id, with one logit that may be larger than an exact one.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Label {
    /// Entries kept per position, k.
    pub top_k: usize,
    /// `[masked, k]`: token ids by descending logit, ties to the lower id; drawn ones behind.
    pub top_ids: Vec<u32>,
    /// `[masked, k]`: the logits of `top_ids`.
    pub top_logits: Vec<f32>,
    /// `[masked]`: log-sum-exp of the logits over the teacher's whole vocabulary.
    pub log_sum_exp: Vec<f32>,
    /// `[masked]`: the gold token's logit.
    pub gold_logits: Vec<f32>,
    /// What it was computed in.
    pub computed_in: ComputedIn,
}

impl Label {
    /// Number of masked positions.
    #[must_use]
    pub fn positions(&self) -> usize {
        self.log_sum_exp.len()
    }

    /// The first `k` entries of each position.
    #[must_use]
    pub fn head(&self, k: usize) -> Self {
        let k = k.min(self.top_k);
        Self {
            top_k: k,
            top_ids: self.top_ids.chunks(self.top_k.max(1)).flat_map(|row| &row[..k]).copied().collect(),
            top_logits: self.top_logits.chunks(self.top_k.max(1)).flat_map(|row| &row[..k]).copied().collect(),
            log_sum_exp: self.log_sum_exp.clone(),
            gold_logits: self.gold_logits.clone(),
            computed_in: self.computed_in,
        }
    }

    /// The share of the teacher's probability that the entries of a masked position hold: Σ exp(logit − log-sum-exp), without the last
    /// `samples`, which were drawn from the tail and stand for all of it ([`crate::Identity::tail_samples`]).
    ///
    /// # Panics
    /// When there is no such position.
    #[must_use]
    pub fn retained_mass(&self, position: usize, samples: usize) -> f64 {
        let exact = self.top_k.saturating_sub(samples);
        let entries = &self.top_logits[position * self.top_k..][..exact];
        let log_sum_exp = f64::from(self.log_sum_exp[position]);
        // Logits and log-sum-exp were rounded.
        entries.iter().map(|logit| (f64::from(*logit) - log_sum_exp).exp()).sum::<f64>().min(1.0)
    }

    /// The teacher's best guess at a masked position, and its probability. `None`: no entries are kept.
    ///
    /// # Panics
    /// When there is no such position.
    #[must_use]
    pub fn best(&self, position: usize) -> Option<(u32, f64)> {
        let at = position * self.top_k;
        let log_sum_exp = f64::from(self.log_sum_exp[position]);
        let probability = |logit: f32| (f64::from(logit) - log_sum_exp).exp();
        (self.top_k > 0).then(|| (self.top_ids[at], probability(self.top_logits[at])))
    }

    /// The teacher's own loss: mean of (log-sum-exp − gold logit) over the masked positions, in nats.
    #[must_use]
    pub fn mean_loss(&self) -> f64 {
        let total: f64 =
            self.log_sum_exp.iter().zip(&self.gold_logits).map(|(z, g)| f64::from(*z) - f64::from(*g)).sum();
        total / self.positions().max(1) as f64
    }
}
