//! The command line of `finetune`.

use super::size;
use clap::{Args, ValueEnum};
use std::path::PathBuf;
use trainer::downstream::Preset;

/// Arguments of `finetune`.
#[derive(Debug, Args)]
pub struct FinetuneArgs {
    /// Hugging Face folder of a BERT or an ELECTRA: a teacher, an exported student, or any other.
    #[arg(long, value_name = "DIR", required_unless_present = "suite")]
    pub model: Option<PathBuf>,
    /// Folder of another tokenizer in the model's ids: of an exported student `tokenizers/TEACHER` [default: the model's folder].
    #[arg(long, value_name = "DIR", requires = "model")]
    pub tokenizer: Option<PathBuf>,
    /// Kind of task.
    #[arg(long, value_enum, required_unless_present = "suite")]
    pub task: Option<TaskArg>,
    /// Training examples.
    #[arg(long, value_name = "FILE", required_unless_present = "suite")]
    pub train: Option<PathBuf>,
    /// Development examples: the epoch with the best score on them is kept. Without them the last epoch is.
    #[arg(long, value_name = "FILE")]
    pub dev: Option<PathBuf>,
    /// Examples to score in the end; a name tells several files apart.
    #[arg(long = "test", value_name = "[NAME=]FILE", num_args = 1..)]
    pub tests: Vec<String>,
    /// Cut the training file into training, development and test examples in these proportions, the same for every seed and model.
    #[arg(long, value_name = "A/B/C", conflicts_with = "dev", value_parser = proportions)]
    pub split: Option<[u32; 3]>,
    /// Column of the word, counted from 1 [default: 1; in a .conllu file 2].
    #[arg(long, value_name = "N", value_parser = size(1..=1000))]
    pub word_column: Option<usize>,
    /// Column of the tag, counted from 1 [default: the last; in a .conllu file 4].
    #[arg(long, value_name = "N", value_parser = size(1..=1000))]
    pub tag_column: Option<usize>,
    /// Hyperparameters of a task of XTREME instead of the in-language ones: panx, udpos, pawsx, xnli, xquad, mlqa or tydiqa.
    #[arg(long, value_name = "TASK", value_parser = preset)]
    pub preset: Option<Preset>,
    /// What chooses the best epoch [default: of the task].
    #[arg(long, value_enum)]
    pub metric: Option<MetricArg>,
    /// Passes over the training examples [default: 10, for texts 5].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=100_000))]
    pub epochs: Option<u64>,
    /// Peak of the learning rate [default: 3e-5, for texts 2e-5].
    #[arg(long, value_name = "RATE")]
    pub learning_rate: Option<f64>,
    /// Sequences of a step [default: 32].
    #[arg(long, value_name = "N", value_parser = size(1..=65_536))]
    pub batch: Option<usize>,
    /// Tokens of a sequence [default: 256, for questions 384, for texts 128; what the model takes if that is less].
    #[arg(long, value_name = "N", value_parser = size(8..=65_536))]
    pub max_length: Option<usize>,
    /// Part of all steps in which the learning rate rises [default: 0.1].
    #[arg(long, value_name = "PART")]
    pub warmup_ratio: Option<f64>,
    /// Decay of matrices [default: 0.01].
    #[arg(long, value_name = "RATE")]
    pub weight_decay: Option<f64>,
    /// Tokens from one window of a long context to the next [default: 128].
    #[arg(long, value_name = "N", value_parser = size(1..=65_536))]
    pub doc_stride: Option<usize>,
    /// Rate of dropout [default: what the model's folder says].
    #[arg(long, value_name = "RATE")]
    pub dropout: Option<f64>,
    /// Seed of the head's parameters, the order of examples and dropout.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Threads that compute; the result does not depend on them [default: all cores].
    #[arg(long, value_name = "N", value_parser = size(1..=4096))]
    pub threads: Option<usize>,
    /// Run all models of this file on all its tasks, and compare them; what was done before is not done again.
    #[arg(long, value_name = "FILE", requires = "out", conflicts_with_all = [
        "model", "task", "train", "dev", "tests", "split", "word_column", "tag_column", "preset", "metric", "epochs", "learning_rate", "batch",
        "max_length", "warmup_ratio", "weight_decay", "doc_stride", "dropout", "seed",
    ])]
    pub suite: Option<PathBuf>,
    /// Write the fine-tuned model here, as a Hugging Face folder; of a suite the results, a file for each run.
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Write here what the model says of each test example, beside what is right, as JSON lines; of a suite this is a folder, with a file for each run (runs
    /// that were done without are done again).
    #[arg(long, value_name = "PATH")]
    pub predictions: Option<PathBuf>,
    /// The tables of a suite in Markdown.
    #[arg(long, requires = "suite", conflicts_with = "json")]
    pub markdown: bool,
    /// One JSON document on standard output.
    #[arg(long)]
    pub json: bool,
}

/// A kind of task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TaskArg {
    /// A tag for each word (parts of speech, named entities): CoNLL-style files or JSON lines.
    Token,
    /// A class for each text: TSV or JSON lines.
    Sequence,
    /// A class for each pair of texts: TSV or JSON lines.
    Pair,
    /// Where a text answers a question: SQuAD's JSON, version 1.1.
    QuestionAnswering,
}

/// A score.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum MetricArg {
    /// Part of words or texts that are right.
    Accuracy,
    /// Of entities, of classes, or of answers.
    F1,
    /// Of entities.
    Precision,
    /// Of entities.
    Recall,
    /// Part of answers that are right to the letter.
    ExactMatch,
}

fn preset(text: &str) -> Result<Preset, String> {
    serde_json::from_value(text.into()).map_err(|error| error.to_string())
}

/// Three numbers as `80/10/10`.
fn proportions(text: &str) -> Result<[u32; 3], String> {
    let parts: Option<Vec<u32>> = text.split('/').map(|part| part.parse().ok()).collect();
    match parts.as_deref() {
        Some(&[train, dev, test]) if train > 0 && train.max(dev).max(test) <= 1 << 20 => Ok([train, dev, test]),
        _ => Err("expected three whole numbers, the first above 0, as in 80/10/10".to_owned()),
    }
}
