//! The command line of `bench`.

use super::place::{PlaceArgs, StudentPlaceArgs};
use super::{seconds, size};
use clap::{Args, Subcommand};
use std::path::PathBuf;

/// Subcommands of `bench`.
#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// A teacher labels text.
    Label(BenchLabelArgs),
    /// A student of a given shape trains on random labels.
    Train(BenchTrainArgs),
    /// Both, each by itself and at the same time: what they cost each other on shares of the cores.
    Both(BenchBothArgs),
    /// Ingestion: reads, segments, tokenises and masks text.
    Ingest(BenchIngestArgs),
    /// The log: encoding, decoding, durable appending, recovery.
    Store(BenchStoreArgs),
}

/// What every `bench` takes.
#[derive(Debug, Args)]
pub struct BenchCommonArgs {
    /// Labels per masked position.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = size(1..=512))]
    pub top_k: usize,
    /// Seed of masks, weights, batches and dropout.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// One JSON document on standard output.
    #[arg(long)]
    pub json: bool,
}

/// The teacher, and what it labels.
#[derive(Debug, Args)]
pub struct LabelWorkArgs {
    /// Hugging Face folder of the teacher.
    #[arg(long, value_name = "DIR")]
    pub teacher: PathBuf,
    /// Text to label; an empty line ends a document.
    #[arg(long, value_name = "FILE")]
    pub text: PathBuf,
    /// Tokens of a sequence at most, [CLS] and [SEP] included.
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = size(3..=8192))]
    pub max_length: usize,
    /// Stop reading after the document that reaches this many tokens.
    #[arg(long, value_name = "N", default_value_t = 60_000, value_parser = size(1..=1 << 40))]
    pub limit_tokens: usize,
    /// How many of the labels are drawn from the tail, as `[store] tail_samples` says.
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = size(0..=511))]
    pub tail_samples: usize,
    /// Tokens per forward pass; the default is that of `[queue] batch_tokens`.
    #[arg(long, value_name = "N", default_value_t = 8192, value_parser = size(64..=1_048_576))]
    pub batch_tokens: usize,
}

/// The student, and what it trains on.
#[derive(Debug, Args)]
pub struct TrainWorkArgs {
    /// Tokens of the student's vocabulary.
    #[arg(long, value_name = "N", default_value_t = 40_000, value_parser = size(6..=1 << 28))]
    pub vocab: usize,
    /// Width of the embeddings; another one than the hidden size factorises the embedding.
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = size(1..=1 << 20))]
    pub embedding: usize,
    /// Width of the layers.
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = size(1..=1 << 20))]
    pub hidden: usize,
    /// Width of the feed-forward networks [default: 4 × hidden].
    #[arg(long, value_name = "N", value_parser = size(1..=1 << 22))]
    pub intermediate: Option<usize>,
    /// Transformer layers.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = size(1..=4096))]
    pub layers: usize,
    /// Attention heads.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = size(1..=1 << 20))]
    pub heads: usize,
    /// Sequences per step.
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = size(1..=1 << 20))]
    pub sequences: usize,
    /// Tokens per sequence.
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = size(1..=8192))]
    pub length: usize,
    /// Dropout of embeddings, layers and attention.
    #[arg(long, value_name = "RATE", default_value_t = 0.1)]
    pub dropout: f64,
    /// Tokens per forward and backward pass; the default is that of `[train] micro_batch_tokens`.
    #[arg(long, value_name = "N", default_value_t = 4096, value_parser = size(16..=16_777_216))]
    pub micro_batch_tokens: usize,
}

/// Arguments of `bench label`.
#[derive(Debug, Args)]
pub struct BenchLabelArgs {
    /// What is labelled.
    #[command(flatten)]
    pub work: LabelWorkArgs,
    /// Threads of the teacher.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = size(1..=1024))]
    pub threads: usize,
    /// Passes over the text whose median is reported; one more goes before them.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = size(1..=10_000))]
    pub repeat: usize,
    /// Write the masked copies with their labels, one JSON document a line.
    #[arg(long, value_name = "FILE")]
    pub dump: Option<PathBuf>,
    /// Where it computes.
    #[command(flatten)]
    pub place: PlaceArgs,
    /// What every bench takes.
    #[command(flatten)]
    pub common: BenchCommonArgs,
}

/// Arguments of `bench train`.
#[derive(Debug, Args)]
pub struct BenchTrainArgs {
    /// What is trained.
    #[command(flatten)]
    pub work: TrainWorkArgs,
    /// Threads of the trainer.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = size(1..=1024))]
    pub threads: usize,
    /// Steps whose median is reported; two more go before them.
    #[arg(long, value_name = "N", default_value_t = 12, value_parser = size(1..=1_000_000))]
    pub steps: usize,
    /// Where it computes.
    #[command(flatten)]
    pub place: StudentPlaceArgs,
    /// What every bench takes.
    #[command(flatten)]
    pub common: BenchCommonArgs,
}

/// Arguments of `bench both`.
#[derive(Debug, Args)]
pub struct BenchBothArgs {
    /// What is labelled.
    #[command(flatten)]
    pub label: LabelWorkArgs,
    /// What is trained.
    #[command(flatten)]
    pub train: TrainWorkArgs,
    /// Threads of the teacher.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = size(1..=1024))]
    pub label_threads: usize,
    /// Threads of the trainer.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = size(1..=1024))]
    pub train_threads: usize,
    /// How long each measurement takes: labelling alone, training alone, both.
    #[arg(long, value_name = "S", default_value_t = 10.0, value_parser = seconds)]
    pub seconds: f64,
    /// Rounds of the three measurements whose medians are reported; both run once before them.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = size(1..=1000))]
    pub rounds: usize,
    /// Where it computes.
    #[command(flatten)]
    pub place: PlaceArgs,
    /// What every bench takes.
    #[command(flatten)]
    pub common: BenchCommonArgs,
}

/// Arguments of `bench store`.
#[derive(Debug, Args)]
pub struct BenchStoreArgs {
    /// Log whose records are encoded, decoded and appended; without one they are made up, with Zipf-distributed tokens.
    #[arg(long, value_name = "DIR")]
    pub from_log: Option<PathBuf>,
    /// Folder, on the disk to be measured, for a temporary log.
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub dir: PathBuf,
    /// How labels are stored: exact or compact.
    #[arg(long, value_name = "PRECISION", default_value_t = store::Precision::Exact)]
    pub precision: store::Precision,
    /// Threads that encode, and threads that decode; each works on a log of its own.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = size(1..=1024))]
    pub threads: usize,
    /// Stop reading or making up records after this many masked positions; they are kept in memory.
    #[arg(long, value_name = "N", default_value_t = 200_000, value_parser = size(1..=100_000_000))]
    pub positions: usize,
    /// Tokens of a block; a run makes them as large as a batch of each teacher together.
    #[arg(long, value_name = "N", default_value_t = 16_384, value_parser = size(1..=16_777_216))]
    pub block_tokens: usize,
    /// Words of the teacher whose labels are made up.
    #[arg(long, value_name = "V", default_value_t = 8000, value_parser = size(1024..=1 << 24))]
    pub teacher_vocab: usize,
    /// Bytes to append to the temporary log: again and again the same records.
    #[arg(long, value_name = "N", default_value_t = 268_435_456, value_parser = size(1..=1 << 40))]
    pub append_bytes: usize,
    /// Time between syncs; the default is that of `[store] sync_interval_ms`.
    #[arg(long, value_name = "MS", default_value_t = 200, value_parser = size(0..=60_000))]
    pub sync_interval_ms: usize,
    /// Passes over the records whose median is reported; one more goes before them.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = size(1..=10_000))]
    pub repeat: usize,
    /// What every bench takes.
    #[command(flatten)]
    pub common: BenchCommonArgs,
}

/// Arguments of `bench ingest`.
#[derive(Debug, Args)]
pub struct BenchIngestArgs {
    /// Hugging Face folder of a teacher, of which the tokenizer is used; each gets a copy of every example.
    #[arg(long = "teacher", value_name = "DIR", required = true)]
    pub teachers: Vec<PathBuf>,
    /// Texts to read; an empty line ends a document.
    #[arg(long, value_name = "FILE", num_args = 1.., required = true)]
    pub text: Vec<PathBuf>,
    /// Stages that read at the same time, with a thread each; a run has one.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = size(1..=1024))]
    pub threads: usize,
    /// Tokens of a sequence at most, [CLS] and [SEP] included.
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = size(16..=8192))]
    pub max_length: usize,
    /// Stop reading after the group that reaches this many tokens [default: read everything].
    #[arg(long, value_name = "N", value_parser = size(1..=1 << 40))]
    pub limit_tokens: Option<usize>,
    /// Tokens of a batch; the default is that of `[queue] batch_tokens`.
    #[arg(long, value_name = "N", default_value_t = 8192, value_parser = size(64..=1_048_576))]
    pub batch_tokens: usize,
    /// Passes over the text whose median is reported; one more goes before them.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = size(1..=10_000))]
    pub repeat: usize,
    /// Seed of the masks.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// One JSON document on standard output.
    #[arg(long)]
    pub json: bool,
}
