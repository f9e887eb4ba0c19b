//! The command line of `ctl`.

use super::replay::ReplayArgs;
use clap::{Args, Subcommand};
use std::path::PathBuf;

/// Arguments of `ctl`.
#[derive(Debug, Args)]
pub struct CtlArgs {
    /// What to ask of the daemon.
    #[command(subcommand)]
    pub action: CtlAction,
    /// The daemon's control socket [default: state/control.sock if it is there, else /run/mergedistill/control.sock].
    #[arg(long, global = true, env = "MERGEDISTILL_SOCKET", hide_env_values = true, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// One JSON document on standard output.
    #[arg(long, global = true)]
    pub json: bool,
}

/// What `ctl` can ask.
#[derive(Debug, Subcommand)]
pub enum CtlAction {
    /// What the daemon does, what waits for what, and the last changes and warnings.
    ///
    /// Exit code 0: it runs, paused or not; 3: it does not run; 4: that cannot be told.
    Status,
    /// The same as a live view of the terminal; without one, a line per event.
    ///
    /// Keys: q quits, p pauses everything or takes the pause back, the arrows scroll the events.
    Watch,
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
    /// Pause ingest, and wait until all that it has read is labelled and durable; `resume ingest` goes on.
    Drain,
    /// Write a checkpoint now.
    Checkpoint,
    /// Export the student as it is now.
    Export {
        /// Folder to write.
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// Cut it to the tokens of the teachers of these languages, separated by commas.
        #[arg(long, value_name = "LANGUAGE", value_delimiter = ',', value_parser = super::trimmed)]
        languages: Vec<String>,
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
    /// What the daemon was told, by whom, and what came of it; with ID: one of them.
    Operations {
        /// Identifier, as the list shows it.
        id: Option<String>,
    },
    /// The segments of the log: first sequence number, entries, bytes, when they were created.
    Segments,
    /// The configuration as it takes effect in the running daemon, as TOML.
    Configuration,
    /// Read the configuration file again: what can change while the daemon runs does, the rest is refused with the reason.
    ///
    /// Exit code 0: nothing was refused; 75: something was, and takes effect with the next start; 78: something is wrong with the
    /// file, and nothing has changed.
    Reload,
    /// How much is logged; with LEVEL: log so much, until the next reload or restart.
    LogLevel {
        /// error, warn, info, debug, trace, or tracing's filter syntax.
        level: Option<String>,
    },
    /// What is kept of the log; with options: keep so much, until the next reload or restart.
    Retention {
        /// Segments that nobody needs go while the log is larger; 0: whatever its size.
        #[arg(long, value_name = "BYTES")]
        bytes: Option<u64>,
        /// Segments that nobody needs go when they are older; 0: whatever their age.
        #[arg(long, value_name = "HOURS")]
        hours: Option<f64>,
    },
    /// Make one training step again, and say what each example and teacher contributed to its loss and gradient: what was that spike?
    ///
    /// Reads the state folder and the log, and writes nothing; the daemon need not run, and is not disturbed.
    Replay(ReplayArgs),
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
        /// State folder [default: the folder of the socket; of the service /var/lib/mergedistill].
        #[arg(long, value_name = "DIR")]
        state_dir: Option<PathBuf>,
    },
    /// All that is known about a document.
    Show {
        /// Identifier, as `list` shows it.
        id: String,
        /// State folder [default: the folder of the socket; of the service /var/lib/mergedistill].
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
    /// file's name ends in .jsonl or .ndjson or its first line is an object, otherwise text].
    #[arg(long, value_name = "FORMAT", value_parser = ["jsonl", "text"])]
    pub format: Option<String>,
    /// Idempotency key: the same file pushed again with the same key adds nothing. A file that takes several requests adds
    /// their numbers to it [default: another one each time].
    #[arg(long, value_name = "KEY")]
    pub key: Option<String>,
}
