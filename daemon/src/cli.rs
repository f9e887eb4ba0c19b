//! The command line. One definition gives parser, help and errors.

mod log;

pub use log::{LogArgs, LogAuditArgs, LogCommand, LogCopyArgs, LogDumpArgs, LogExportArgs, LogMergeArgs};

use clap::builder::RangedU64ValueParser;
use clap::{Args, Parser, Subcommand};
use std::ops::RangeInclusive;
use std::path::PathBuf;

/// Merge several pre-trained masked language models into one multilingual student, by distillation, while the
/// text streams in.
#[derive(Debug, Parser)]
#[command(version, propagate_version = true, max_term_width = 110)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// How much to log: error, warn, info, debug, trace, or tracing's filter syntax.
    #[arg(long, global = true, env = "MERGEDISTILL_LOG", default_value = "info", value_name = "LEVEL")]
    pub log: String,
    /// Log lines as JSON.
    #[arg(long, global = true)]
    pub log_json: bool,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Distil embedded tiny teachers on embedded sample text: no network, no GPU, about a minute.
    Demo(DemoArgs),
    /// Run the daemon.
    Run(RunArgs),
    /// Report everything that is wrong with a configuration, or print it with its defaults, or plan its run.
    Check(CheckArgs),
    /// Control a running daemon.
    Ctl(CtlArgs),
    /// Look into a log; works on a live one too.
    #[command(subcommand)]
    Log(LogCommand),
    /// Work with vocabularies.
    #[command(subcommand)]
    Vocab(VocabCommand),
    /// Write the student as a Hugging Face folder.
    Export(ExportArgs),
    /// Compare the student with its teachers on held-out text: MLM loss, accuracy and RDT.
    Evaluate(EvaluateArgs),
    /// Measure what this machine does: tokens per second and peak memory, on the path that `run` takes.
    #[command(subcommand)]
    Bench(BenchCommand),
}

/// Arguments of `demo`.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Where the demo keeps its files.
    #[arg(long, value_name = "DIR", default_value = "mergedistill-demo")]
    pub state_dir: PathBuf,
    /// Optimiser steps.
    #[arg(long, value_name = "N", default_value_t = 500, value_parser = clap::value_parser!(u64).range(1..))]
    pub steps: u64,
    /// Seed of every random choice.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
}

/// Arguments of `run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Configuration file.
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Stop after this step; alters no schedule, and a later run goes on from there.
    #[arg(long, value_name = "N")]
    pub until_step: Option<u64>,
}

/// Arguments of `check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Configuration file.
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Run the stages for a few seconds in a temporary folder, and say how long the whole run takes, how much disk and memory it
    /// needs, and what limits it.
    #[arg(long)]
    pub plan: bool,
    /// How long --plan measures each kind of work: labelling, both, training.
    #[arg(long, value_name = "S", default_value_t = 4.0, value_parser = seconds, requires = "plan")]
    pub seconds: f64,
    /// One JSON document on standard output.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `ctl`.
#[derive(Debug, Args)]
pub struct CtlArgs {
    /// What to ask of the daemon.
    #[command(subcommand)]
    pub action: CtlAction,
    /// The daemon's control socket.
    #[arg(long, global = true, value_name = "PATH", default_value = "state/control.sock")]
    pub socket: PathBuf,
    /// One JSON document on standard output.
    #[arg(long, global = true)]
    pub json: bool,
}

/// What `ctl` can ask.
#[derive(Debug, Subcommand)]
pub enum CtlAction {
    /// State, rates, positions, evaluation.
    Status,
    /// Pause a stage, or all.
    Pause {
        /// ingest, teacher or trainer.
        stage: Option<String>,
    },
    /// Resume a stage, or all.
    Resume {
        /// ingest, teacher or trainer.
        stage: Option<String>,
    },
    /// Write a checkpoint now.
    Checkpoint,
    /// Export the student as it is now.
    Export {
        /// Folder to write.
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
    /// Train a cool-down from the newest checkpoint, beside the training that goes on, and export its student.
    Release {
        /// Optimiser steps in which the learning rate goes to 0.
        #[arg(long, value_name = "N", required_unless_present = "cancel", value_parser = clap::value_parser!(u64).range(1..))]
        steps: Option<u64>,
        /// Folder to write [default: `student` in the release's folder].
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
        /// End the release that is running instead.
        #[arg(long, conflicts_with_all = ["steps", "out"])]
        cancel: bool,
    },
    /// Send documents to a corpus with source = "http"; done when they are durable.
    Push(PushArgs),
    /// Documents that could not be used: what they are, and another try.
    #[command(subcommand)]
    Quarantine(QuarantineAction),
    /// What is read: list, add, remove, pause corpora, and set shares of languages, without a restart.
    #[command(subcommand)]
    Corpus(CorpusAction),
    /// Stop in order: drain, make durable, checkpoint, exit.
    Shutdown,
}

/// Subcommands of `ctl quarantine`. `list` and `show` read the state folder, whether the daemon runs or not.
#[derive(Debug, Subcommand)]
pub enum QuarantineAction {
    /// The documents in the quarantine, oldest first.
    List {
        /// Of this corpus alone.
        #[arg(long, value_name = "NAME")]
        corpus: Option<String>,
        /// State folder [default: the folder of the socket].
        #[arg(long, value_name = "DIR")]
        state_dir: Option<PathBuf>,
    },
    /// All that is known about a document.
    Show {
        /// Identifier, as `list` shows it.
        id: String,
        /// State folder [default: the folder of the socket].
        #[arg(long, value_name = "DIR")]
        state_dir: Option<PathBuf>,
    },
    /// Try documents again: as they are in their files now, or the `text` in their notes. They are labelled before others.
    Retry {
        /// Identifiers, as `list` shows them.
        #[arg(required_unless_present = "all", conflicts_with = "all")]
        ids: Vec<String>,
        /// All documents.
        #[arg(long)]
        all: bool,
        /// With --all: of this corpus alone.
        #[arg(long, value_name = "NAME", requires = "all")]
        corpus: Option<String>,
    },
}

/// Subcommands of `ctl corpus`. Each change applies from a known entry of the log on, and stays over restarts.
#[derive(Debug, Subcommand)]
pub enum CorpusAction {
    /// The corpora that are read, and the shares of the languages.
    List,
    /// Read a corpus no more until it is resumed; what arrives meanwhile is kept.
    Pause {
        /// Name of the corpus, or of one language of it, `NAME:LANGUAGE`.
        name: String,
    },
    /// Read a paused corpus again.
    Resume {
        /// Name of the corpus, or of one language of it.
        name: String,
    },
    /// Give a language a share of the draws; the others divide the rest by their characters.
    Share {
        /// The language.
        language: String,
        /// Above 0, at most 1.
        #[arg(value_name = "VALUE", required_unless_present = "clear", conflicts_with = "clear")]
        value: Option<f64>,
        /// The share that follows from its characters again.
        #[arg(long)]
        clear: bool,
    },
    /// Read one more corpus.
    Add {
        /// TOML file with one [[corpus]] table; relative paths are relative to the file.
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Read a corpus no more. Added again under its name, it goes on where it stood.
    Remove {
        /// Its name.
        name: String,
    },
}

/// Arguments of `ctl push`.
#[derive(Debug, Args)]
pub struct PushArgs {
    /// Name of the corpus.
    #[arg(long, value_name = "NAME")]
    pub corpus: String,
    /// File with documents; `-` is standard input.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// How documents lie in the file: a JSON object a line, or text with empty lines between them [default: jsonl if the
    /// file's name ends in .jsonl or .ndjson, otherwise text].
    #[arg(long, value_name = "FORMAT", value_parser = ["jsonl", "text"])]
    pub format: Option<String>,
    /// Idempotency key: the same file pushed again with the same key adds nothing. A file that takes several requests adds
    /// their numbers to it [default: another one each time].
    #[arg(long, value_name = "KEY")]
    pub key: Option<String>,
}

/// Subcommands of `vocab`.
#[derive(Debug, Subcommand)]
pub enum VocabCommand {
    /// Write the union of teachers' vocabularies and the teacher → student maps.
    Union {
        /// Folder to write.
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// Hugging Face folders.
        #[arg(value_name = "TEACHER", required = true)]
        teachers: Vec<PathBuf>,
        /// One JSON document on standard output.
        #[arg(long)]
        json: bool,
    },
}

/// Arguments of `export`.
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// State folder of a run, running or stopped.
    #[arg(long, value_name = "DIR")]
    pub state_dir: PathBuf,
    /// Folder to write.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
}

/// Arguments of `evaluate`.
#[derive(Debug, Args)]
pub struct EvaluateArgs {
    /// Configuration of the run; its newest checkpoint is evaluated on the held-out records of its log.
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// One JSON document on standard output.
    #[arg(long)]
    pub json: bool,
}

/// Subcommands of `bench`.
#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// A teacher labels text.
    Label(BenchLabelArgs),
    /// A student of a given shape trains on random labels.
    Train(BenchTrainArgs),
    /// Both, each by itself and at the same time: what they cost each other on shares of the cores.
    Both(BenchBothArgs),
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

/// A number of things within `range`.
fn size(range: RangeInclusive<u64>) -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(range)
}

/// A length of time of at most an hour.
fn seconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(seconds) if 0.0 < seconds && seconds <= 3600.0 => Ok(seconds),
        _ => Err("expected a number of seconds above 0, 3600 at most".to_owned()),
    }
}
