//! Hyperparameters of fine-tuning, with the paper's as defaults.

use super::{DownstreamError, Task};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Hyperparameters of one run.
///
/// Batch size, learning rate, epochs, warm-up and length are those of the paper (tables 7 and 11). It says nothing of the rest: AdamW with bias
/// correction, a decay of 0.01 for all but biases and LayerNorms, gradients clipped at norm 1 and a rate that falls linearly to 0 are
/// what BERT was published with, but for the correction, whose absence makes small data sets fail
/// (Mosbach et al., "On the stability of fine-tuning BERT", ICLR 2021).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FineTuneOptions {
    /// Passes over the training examples.
    pub epochs: u64,
    /// Peak of the learning rate.
    pub learning_rate: f64,
    /// Sequences of an optimiser step.
    pub batch: usize,
    /// Tokens of a sequence, special tokens included.
    pub max_length: usize,
    /// Part of all steps in which the learning rate rises.
    pub warmup_ratio: f64,
    /// Decoupled decay of matrices.
    pub weight_decay: f64,
    /// Largest Euclidean norm of a step's gradient; 0: any.
    pub clip_norm: f64,
    /// Rate of all dropout; `None`: what the model's folder says.
    pub dropout: Option<f64>,
    /// Tokens from the beginning of one window of a long context to that of the next.
    pub doc_stride: usize,
    /// Seed of the head's parameters, the order of examples and dropout.
    pub seed: u64,
    /// What chooses the best epoch on the development set; `None`: the task's own.
    pub metric: Option<Metric>,
}

/// Hyperparameters that somebody asked for; the rest are the paper's.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Given {
    /// Whose hyperparameters the rest has; `None`: those of the paper's table 7, and for texts PAWS-X's.
    pub preset: Option<Preset>,
    /// See [`FineTuneOptions::epochs`].
    pub epochs: Option<u64>,
    /// See [`FineTuneOptions::learning_rate`].
    pub learning_rate: Option<f64>,
    /// See [`FineTuneOptions::batch`].
    pub batch: Option<usize>,
    /// See [`FineTuneOptions::max_length`].
    pub max_length: Option<usize>,
    /// See [`FineTuneOptions::warmup_ratio`].
    pub warmup_ratio: Option<f64>,
    /// See [`FineTuneOptions::weight_decay`].
    pub weight_decay: Option<f64>,
    /// See [`FineTuneOptions::clip_norm`].
    pub clip_norm: Option<f64>,
    /// See [`FineTuneOptions::dropout`].
    pub dropout: Option<f64>,
    /// See [`FineTuneOptions::doc_stride`].
    pub doc_stride: Option<usize>,
    /// See [`FineTuneOptions::metric`].
    pub metric: Option<Metric>,
}

/// Tasks of XTREME, with the hyperparameters of the paper's table 11: fine-tuned on English, tested in other languages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Preset {
    /// Named entities.
    Panx,
    /// Parts of speech.
    Udpos,
    /// Pairs of texts: paraphrases.
    Pawsx,
    /// Pairs of texts: entailment.
    Xnli,
    /// Questions.
    Xquad,
    /// Questions.
    Mlqa,
    /// Questions.
    Tydiqa,
}

/// A score, in percent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Part of words or texts that are right.
    Accuracy,
    /// Words: of entities, as seqeval's default mode has it. Texts: the mean over classes. Answers: the SQuAD script's.
    F1,
    /// Of entities.
    Precision,
    /// Of entities.
    Recall,
    /// Part of answers that are right to the letter, after the SQuAD script's normalisation.
    ExactMatch,
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Accuracy => "accuracy",
            Self::F1 => "F1",
            Self::Precision => "precision",
            Self::Recall => "recall",
            Self::ExactMatch => "exact match",
        })
    }
}

impl fmt::Display for Preset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Panx => "panx",
            Self::Udpos => "udpos",
            Self::Pawsx => "pawsx",
            Self::Xnli => "xnli",
            Self::Xquad => "xquad",
            Self::Mlqa => "mlqa",
            Self::Tydiqa => "tydiqa",
        })
    }
}

impl Given {
    /// Holds metric and preset against the task.
    fn check_task(&self, task: Task) -> Result<(), DownstreamError> {
        let refused = |what: String, known: Vec<String>| {
            Err(DownstreamError::Options(format!("this task has no {what}; it has {}", known.join(", "))))
        };
        if let Some(metric) = self.metric.filter(|metric| !task.metrics().contains(metric)) {
            return refused(format!("metric {metric}"), task.metrics().iter().map(ToString::to_string).collect());
        }
        match self.preset.filter(|preset| !task.presets().contains(preset)) {
            Some(preset) => {
                refused(format!("preset {preset}"), task.presets().iter().map(ToString::to_string).collect())
            }
            None => Ok(()),
        }
    }
}

impl FineTuneOptions {
    /// What is used for `task` with a model that takes `positions` tokens at most.
    ///
    /// # Errors
    /// When a value is of no use, the metric or the preset is another task's, or the length asked for is more than the model takes.
    pub fn new(task: Task, given: &Given, positions: usize, seed: u64) -> Result<Self, DownstreamError> {
        given.check_task(task)?;
        let usual = given.preset.map_or_else(|| Usual::of(task), Usual::of_xtreme);
        let options = Self {
            epochs: given.epochs.unwrap_or(usual.epochs),
            learning_rate: given.learning_rate.unwrap_or(usual.learning_rate),
            batch: given.batch.unwrap_or(usual.batch),
            max_length: given.max_length.unwrap_or(usual.max_length.min(positions)),
            warmup_ratio: given.warmup_ratio.unwrap_or(0.1),
            weight_decay: given.weight_decay.unwrap_or(0.01),
            clip_norm: given.clip_norm.unwrap_or(1.0),
            dropout: given.dropout,
            doc_stride: given.doc_stride.unwrap_or(128),
            seed,
            metric: given.metric,
        };
        options.validate(positions)?;
        Ok(options)
    }

    fn validate(&self, positions: usize) -> Result<(), DownstreamError> {
        let wrong = |reason: String| Err(DownstreamError::Options(reason));
        if self.max_length > positions {
            return wrong(format!("max_length is {}, but the model takes {positions} tokens", self.max_length));
        }
        for (name, size, least) in [
            ("epochs", self.epochs as usize, 1),
            ("batch", self.batch, 1),
            ("max_length", self.max_length, 8),
            ("doc_stride", self.doc_stride, 1),
        ] {
            if size < least {
                return wrong(format!("{name} is {size}; expected at least {least}"));
            }
        }
        for (name, value, range) in [
            ("learning_rate", self.learning_rate, 0.0..=1.0),
            ("warmup_ratio", self.warmup_ratio, 0.0..=1.0),
            ("weight_decay", self.weight_decay, 0.0..=1.0),
            ("clip_norm", self.clip_norm, 0.0..=f64::MAX),
            ("dropout", self.dropout.unwrap_or(0.0), 0.0..=0.9),
        ] {
            if !range.contains(&value) {
                return wrong(format!("{name} is {value}; expected {} to {}", range.start(), range.end()));
            }
        }
        Ok(())
    }
}

/// What the paper uses for a task.
struct Usual {
    batch: usize,
    learning_rate: f64,
    epochs: u64,
    max_length: usize,
}

impl Usual {
    fn new(batch: usize, learning_rate: f64, epochs: u64, max_length: usize) -> Self {
        Self { batch, learning_rate, epochs, max_length }
    }

    /// Table 7, which has no texts.
    fn of(task: Task) -> Self {
        match task {
            Task::Token => Self::new(32, 3e-5, 10, 256),
            Task::Sequence | Task::Pair => Self::of_xtreme(Preset::Pawsx),
            Task::QuestionAnswering => Self::new(32, 3e-5, 10, 384),
        }
    }

    /// Table 11.
    fn of_xtreme(preset: Preset) -> Self {
        match preset {
            Preset::Panx => Self::new(32, 2e-5, 10, 128),
            Preset::Udpos => Self::new(64, 5e-6, 10, 128),
            Preset::Pawsx => Self::new(32, 2e-5, 5, 128),
            Preset::Xnli => Self::new(32, 2e-5, 3, 128),
            Preset::Xquad | Preset::Mlqa | Preset::Tydiqa => Self::new(32, 3e-5, 2, 384),
        }
    }
}
