//! The command line. One definition gives parser, help and errors.

mod bench;
mod log;

pub use bench::{
    BenchBothArgs, BenchCommand, BenchCommonArgs, BenchIngestArgs, BenchLabelArgs, BenchStoreArgs, BenchTrainArgs,
    LabelWorkArgs, TrainWorkArgs,
};
pub use log::{
    LogArgs, LogAuditArgs, LogCommand, LogCopyArgs, LogDumpArgs, LogExportArgs, LogMergeArgs, LogRelabelArgs,
};

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
    /// Change what a daemon reads that does not run.
    #[command(subcommand)]
    Corpus(CorpusCommand),
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
    /// Who labels: list, add, pause teachers, without a restart.
    #[command(subcommand)]
    Teacher(TeacherAction),
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

/// Subcommands of `corpus`.
#[derive(Debug, Subcommand)]
pub enum CorpusCommand {
    /// Read a corpus no more that was added while the daemon ran. One of the configuration file is removed there.
    Remove {
        /// State folder of the run.
        #[arg(long, value_name = "DIR")]
        state_dir: PathBuf,
        /// Its name.
        name: String,
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

/// Subcommands of `ctl teacher`.
#[derive(Debug, Subcommand)]
pub enum TeacherAction {
    /// The teachers, in the order of the log's table.
    List,
    /// Make no copies for a teacher until it is resumed. A language all of whose teachers pause is not read.
    Pause {
        /// Its name.
        name: String,
    },
    /// Make copies for a paused teacher again.
    Resume {
        /// Its name.
        name: String,
    },
    /// Have one more teacher label. The student's vocabulary grows at its end.
    Add {
        /// TOML file with one [[teacher]] table; relative paths are relative to the file.
        #[arg(value_name = "FILE")]
        file: PathBuf,
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
