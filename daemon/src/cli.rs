//! The command line. One definition gives parser, help, errors, man pages and completions.

mod bench;
mod ctl;
mod examples;
mod finetune;
mod link;
mod log;
mod place;
mod replay;
mod vocab;
mod worker;

pub use bench::{
    BenchBothArgs, BenchCommand, BenchCommonArgs, BenchIngestArgs, BenchLabelArgs, BenchStoreArgs, BenchTrainArgs,
    LabelWorkArgs, TrainWorkArgs,
};
pub use ctl::{CorpusAction, CtlAction, CtlArgs, PushArgs, QuarantineAction, TeacherAction};
pub use examples::examples;
pub use finetune::{FinetuneArgs, MetricArg, TaskArg};
pub use log::{
    LogArgs, LogAuditArgs, LogCommand, LogCopyArgs, LogDumpArgs, LogExportArgs, LogFollowArgs, LogMergeArgs,
    LogPublishArgs, LogRelabelArgs,
};
pub use place::PlaceArgs;
pub use replay::ReplayArgs;
pub use vocab::{LearnArgs, VocabCommand};
pub use worker::WorkerArgs;

use crate::color::Color;
use clap::builder::RangedU64ValueParser;
use clap::{ArgMatches, Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand, ValueEnum};
use std::convert::Infallible;
use std::ffi::OsString;
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
    /// How much to log: error, warn, info, debug, trace, or tracing's filter syntax [default: `ops.log` of the configuration, or info].
    #[arg(long, global = true, env = "MERGEDISTILL_LOG", value_name = "LEVEL")]
    pub log: Option<String>,
    /// Log lines as JSON.
    #[arg(long, global = true)]
    pub log_json: bool,
    /// When to use colours. `auto`: on a terminal, unless NO_COLOR is set or CLICOLOR is 0; CLICOLOR_FORCE wants them anyway.
    #[arg(long, global = true, value_enum, default_value_t = Color::Auto, value_name = "WHEN")]
    pub color: Color,
    /// Whether the command was asked for a JSON document.
    #[arg(skip)]
    pub json: bool,
}

impl Cli {
    /// The definition of the command line, with examples in the help of every command.
    pub fn definition() -> clap::Command {
        examples::with_examples(Self::command())
    }

    /// The definition without the examples.
    pub fn plain_definition() -> clap::Command {
        Self::command()
    }

    /// Reads a command line, the program's name first.
    ///
    /// # Errors
    /// When it is wrong, or asks for help or the version: what is to be printed then.
    pub fn read(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, clap::Error> {
        let arguments: Vec<OsString> = arguments.into_iter().collect();
        // Help and errors are printed before there is anything to be read from.
        let color = Color::said(&arguments).unwrap_or_default();
        let mut matches = Self::definition().color(color.into()).try_get_matches_from(arguments)?;
        let json = wants_json(&matches);
        Ok(Self { json, ..Self::from_arg_matches_mut(&mut matches)? })
    }
}

/// Whether the subcommand has a `--json`, and it was given.
fn wants_json(matches: &ArgMatches) -> bool {
    match matches.subcommand() {
        Some((_, matches)) => wants_json(matches) || matches!(matches.try_get_one::<bool>("json"), Ok(Some(true))),
        None => false,
    }
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
    /// Label for a run on another machine.
    Worker(WorkerArgs),
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
    /// Fine-tune a model on a task and score it: what a teacher or a student is worth.
    Finetune(FinetuneArgs),
    /// Measure what this machine does: tokens per second and peak memory, on the path that `run` takes.
    #[command(subcommand)]
    Bench(BenchCommand),
    /// Write man pages or completions of this command line: for packages.
    #[command(hide = true)]
    Generate(GenerateArgs),
}

/// Arguments of `generate`.
#[derive(Debug, Args)]
pub struct GenerateArgs {
    /// What to write.
    pub what: Generated,
    /// Folder to write; made if it is not there.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
}

/// What the command line's definition gives besides a parser.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Generated {
    /// A page per command, section 1.
    Man,
    /// For bash, zsh and fish.
    Completions,
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
    /// One JSON document on standard output.
    #[arg(long)]
    pub json: bool,
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
        /// One JSON document on standard output.
        #[arg(long)]
        json: bool,
    },
    /// Go on without a file of a watched folder, or without one that was followed, that is gone or is not what it was. What was not read of it is
    /// given up; what is in its place is read as another file.
    Forget {
        /// Configuration of the run.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// The corpus.
        name: String,
        /// The file, as the message names it.
        #[arg(value_name = "FILE")]
        file: String,
        /// One JSON document on standard output.
        #[arg(long)]
        json: bool,
    },
    /// Find a followed file again that was copied: restored from a backup, moved to another disk, or unpacked after rotation.
    Recognise {
        /// Configuration of the run.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// The corpus.
        name: String,
        /// One JSON document on standard output.
        #[arg(long)]
        json: bool,
    },
}

/// Arguments of `export`.
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// State folder of a run, running or stopped, or of a release: `releases/<name>` in it.
    #[arg(long, value_name = "DIR")]
    pub state_dir: PathBuf,
    /// Folder to write.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Cut the student to the tokens of the teachers of these languages, separated by commas. A teacher's tokenizer cuts texts as before.
    #[arg(long, value_name = "LANGUAGE", value_delimiter = ',', value_parser = trimmed)]
    pub languages: Vec<String>,
    /// One JSON document on standard output.
    #[arg(long)]
    pub json: bool,
}

/// A name in a list that people write with spaces behind the commas.
fn trimmed(name: &str) -> Result<String, Infallible> {
    Ok(name.trim().to_owned())
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
    /// Also write the scores of each held-out document, a line of JSON each: to test differences between students with.
    #[arg(long, value_name = "FILE")]
    pub documents: Option<PathBuf>,
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
