//! One run: fine-tune a model on one file, and score it on others.

use super::fine_tune::{Epoch, Progress, fine_tune};
use super::head::HeadKind;
use super::scores::Scores;
use super::task_model::TaskModel;
use super::{DataSet, DownstreamError, FineTuneOptions, Metric, Predictions, Task};
use model::{Encoder, Tokenizer, check_words};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What a run needs.
#[derive(Clone, Copy, Debug)]
pub struct FineTuning<'a> {
    /// What is fine-tuned.
    pub encoder: &'a Encoder,
    /// Its tokenizer, or another one in its ids.
    pub tokenizer: &'a Tokenizer,
    /// Kind of task.
    pub task: Task,
    /// What is trained on.
    pub train: &'a DataSet,
    /// What chooses the best epoch.
    pub dev: Option<&'a DataSet>,
    /// What is scored in the end.
    pub tests: &'a [Test],
    /// Hyperparameters.
    pub options: &'a FineTuneOptions,
}

/// Examples that are scored in the end.
#[derive(Clone, Debug)]
pub struct Test {
    /// What the report calls them.
    pub name: String,
    /// The examples.
    pub data: DataSet,
    /// A tokenizer in the model's ids, if it is another one than that of the training examples.
    pub tokenizer: Option<Tokenizer>,
}

impl Test {
    /// Examples with the tokenizer of the training examples.
    #[must_use]
    pub fn new(name: impl Into<String>, data: DataSet) -> Self {
        Self { name: name.into(), data, tokenizer: None }
    }
}

/// An epoch, as the report has it.
pub type EpochReport = Epoch;

/// What came of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Kind of task.
    pub task: Task,
    /// Hyperparameters.
    pub options: FineTuneOptions,
    /// What chose the best epoch, and what tables show.
    pub metric: Metric,
    /// Classes, in the order of their numbers.
    pub classes: Vec<String>,
    /// Training examples.
    pub train_examples: usize,
    /// Sequences that they make.
    pub train_sequences: usize,
    /// All epochs.
    pub epochs: Vec<EpochReport>,
    /// The epoch whose weights were kept.
    pub best_epoch: u64,
    /// Scores on the development set, of the best epoch.
    pub dev: Option<Scores>,
    /// Scores on each test file.
    pub tests: BTreeMap<String, Scores>,
    /// By test: the classes in it that the training examples lack. Words and texts that have them count as wrong.
    pub unknown_classes: BTreeMap<String, Vec<String>>,
}

/// What came of a run, the model and its predictions too.
#[derive(Debug)]
pub struct Outcome {
    /// Scores, and what led to them.
    pub report: Report,
    /// The model, fine-tuned.
    pub model: TaskModel,
    /// What it says of each example, by test.
    pub predictions: BTreeMap<String, Predictions>,
}

/// Fine-tunes and scores.
///
/// # Errors
/// When data, options and model do not go together, or training diverges.
pub fn run(work: &FineTuning<'_>, progress: impl FnMut(Progress)) -> Result<Outcome, DownstreamError> {
    let FineTuning { encoder, tokenizer, task, train, dev, tests, options } = *work;
    check_words(&encoder.configuration, tokenizer)?;
    let classes = train.classes();
    let metric = options.metric.unwrap_or_else(|| train.usual_metric());
    let head = train.head(classes.len());
    if matches!(head, HeadKind::Tokens(0 | 1) | HeadKind::Texts(0 | 1)) {
        return Err(DownstreamError::Options(format!("the training examples have no two classes: {classes:?}")));
    }
    let encoded = train.encode(tokenizer, options, &classes)?;
    let encoded_dev = dev.map(|dev| dev.encode(tokenizer, options, &classes)).transpose()?;
    let mut model = TaskModel::new(encoder, head, options.seed, options.dropout)?;
    let mut dev_scores: Option<Scores> = None;
    let score = |model: &mut TaskModel| -> Result<Option<f64>, DownstreamError> {
        let (Some(dev), Some(encoded)) = (dev, &encoded_dev) else { return Ok(None) };
        let scores = dev.predictions(&model.predict(&encoded.sequences)?, encoded, &classes).scores();
        let of = |scores: &Scores| scores.get(&metric).copied().unwrap_or(0.0);
        let score = of(&scores);
        if dev_scores.as_ref().is_none_or(|best| score > of(best)) {
            dev_scores = Some(scores);
        }
        Ok(Some(score))
    };
    let epochs = fine_tune(&mut model, &encoded.sequences, options, score, progress)?;
    let mut predictions = BTreeMap::new();
    let mut unknown_classes = BTreeMap::new();
    for Test { name, data: test, tokenizer: own } in tests {
        let tokenizer = own.as_ref().unwrap_or(tokenizer);
        check_words(&encoder.configuration, tokenizer)?;
        let encoded = test.encode(tokenizer, options, &classes)?;
        let logits = model.predict(&encoded.sequences)?;
        predictions.insert(name.clone(), test.predictions(&logits, &encoded, &classes));
        let unknown: Vec<String> = test.classes().into_iter().filter(|class| !classes.contains(class)).collect();
        if !unknown.is_empty() {
            unknown_classes.insert(name.clone(), unknown);
        }
    }
    let report = Report {
        task,
        options: options.clone(),
        metric,
        train_examples: train.len(),
        train_sequences: encoded.sequences.len(),
        best_epoch: best_epoch(&epochs),
        epochs,
        dev: dev_scores,
        tests: predictions.iter().map(|(name, of)| (name.clone(), of.scores())).collect(),
        unknown_classes,
        classes,
    };
    Ok(Outcome { report, model, predictions })
}

/// The first epoch with the highest score; without scores the last.
fn best_epoch(epochs: &[Epoch]) -> u64 {
    let mut best: Option<(f64, u64)> = None;
    for epoch in epochs {
        if let Some(score) = epoch.score
            && best.is_none_or(|(highest, _)| score > highest)
        {
            best = Some((score, epoch.epoch));
        }
    }
    best.map_or(epochs.len() as u64, |(_, epoch)| epoch)
}
