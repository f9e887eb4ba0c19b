//! The command line of `log`.

use super::link::LinkArgs;
use super::place::{PlaceArgs, precision};
use super::size;
use clap::builder::RangedU64ValueParser;
use clap::{Args, Subcommand};
use model::device::Precision as Numbers;
use std::path::PathBuf;
use store::Precision;

/// Subcommands of `log`.
#[derive(Debug, Subcommand)]
pub enum LogCommand {
    /// Counts and sizes: per column, teacher and language.
    Stat(LogArgs),
    /// Read everything and check it; exit code 65 if the log is corrupt.
    Verify {
        /// The log, and how to print.
        #[command(flatten)]
        log: LogArgs,
        /// Threads that read [default: as many as there are cores].
        #[arg(long, value_name = "N", value_parser = size(1..=1024))]
        threads: Option<usize>,
    },
    /// Print records.
    Dump(LogDumpArgs),
    /// Write a new log from the entries of one: filtered by teacher, language or place, or in another precision.
    ///
    /// Entries keep their order and are numbered from 0. Skips, ends and the cursor of every source are kept.
    Copy(LogCopyArgs),
    /// Write a new log from the entries of several, one log after another.
    ///
    /// Their settings must agree. Teachers and sources are united by name; a record that is in several logs is
    /// written once, as the first log has it (text or no text). Name the logs in the order in which they were made: the last one says how far a
    /// source has got.
    Merge(LogMergeArgs),
    /// Compute labels again with the teacher that made them, and compare; exit code 65 if they differ by more than the
    /// log's precision allows.
    ///
    /// The teacher is found in the log by the fingerprints of its weights and tokenizer.
    Audit(LogAuditArgs),
    /// Write a new log that is this one with the labels of another teacher, made from the texts that the log keeps
    /// (`[store] keep_text = true`).
    ///
    /// Entries keep their numbers and cursors, so a run goes on with the new log (`[store] path = OUT`), or trains from it, once the
    /// teacher is at the end of the configuration's list. Masks are those that the teacher would have had in the run. Called again
    /// after an interruption, it goes on.
    Relabel(LogRelabelArgs),
    /// Write copies and labels for other programs, as a Parquet file.
    ///
    /// A row is a copy: seq, source, document, span_first, span_end, language, round, held_out, teacher, token_ids,
    /// masked_positions, gold_ids, and of labelled copies top_k, top_ids and top_logits (a list per masked position),
    /// log_sum_exp, gold_logits (null without a label), and the text (null where the log has none). pyarrow, pandas, polars and datasets read it.
    Export(LogExportArgs),
    /// Publish a log to a NATS stream, while it grows or once: others make the same log of it (`log follow`), or train from it
    /// (`[cluster] follow = true`).
    Publish(LogPublishArgs),
    /// Make the log that somebody publishes, byte for byte, and go on as it grows.
    Follow(LogFollowArgs),
}

/// Arguments of `log publish`.
#[derive(Debug, Args)]
pub struct LogPublishArgs {
    /// Folder of the log.
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
    /// The server and the run.
    #[command(flatten)]
    pub link: LinkArgs,
    /// End when all that is durable is published.
    #[arg(long)]
    pub once: bool,
    /// Copies that the server's cluster keeps of each message.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = size(1..=5))]
    pub replicas: usize,
    /// The most bytes that the stream holds; beyond, its oldest go. 0: all stay.
    #[arg(long, value_name = "BYTES", default_value_t = 0)]
    pub stream_bytes: u64,
}

/// Arguments of `log follow`.
#[derive(Debug, Args)]
pub struct LogFollowArgs {
    /// Folder of the log that is made.
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
    /// The server and the run.
    #[command(flatten)]
    pub link: LinkArgs,
    /// End when all that is published is there.
    #[arg(long)]
    pub once: bool,
}

/// A log's folder.
#[derive(Debug, Args)]
pub struct LogArgs {
    /// Folder of the log.
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
    /// JSON on standard output (`dump`: a line per record).
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `log dump`.
#[derive(Debug, Args)]
pub struct LogDumpArgs {
    /// The log, and how to print.
    #[command(flatten)]
    pub log: LogArgs,
    /// First sequence number.
    #[arg(long, value_name = "SEQ", default_value_t = 0)]
    pub from: u64,
    /// Records at most.
    #[arg(long, value_name = "N")]
    pub count: Option<u64>,
    /// Read past damage, and report on standard error what is lost.
    #[arg(long)]
    pub skip_corrupt: bool,
}

/// Arguments of `log copy`.
#[derive(Debug, Args)]
pub struct LogCopyArgs {
    /// Folder of the log to read; it may be live.
    #[arg(value_name = "SRC")]
    pub source: PathBuf,
    /// What the new log is.
    #[command(flatten)]
    pub new: NewLogArgs,
    /// Keep the copies of this teacher alone; may be given several times. Records without a copy are left out.
    #[arg(long = "teacher", value_name = "NAME")]
    pub teachers: Vec<String>,
    /// Keep the records of this language alone; may be given several times.
    #[arg(long = "language", value_name = "LANGUAGE")]
    pub languages: Vec<String>,
    /// How labels are stored: exact or compact [default: as in SRC].
    #[arg(long, value_name = "PRECISION")]
    pub precision: Option<Precision>,
    /// First sequence number to copy.
    #[arg(long, value_name = "SEQ", default_value_t = 0)]
    pub from: u64,
    /// Copy entries below this sequence number [default: all that are durable].
    #[arg(long, value_name = "SEQ")]
    pub to: Option<u64>,
    /// Read past damage, and report what is lost.
    #[arg(long)]
    pub skip_corrupt: bool,
    /// Leave the texts of examples out.
    #[arg(long)]
    pub without_text: bool,
}

/// Arguments of `log merge`.
#[derive(Debug, Args)]
pub struct LogMergeArgs {
    /// What the new log is.
    #[command(flatten)]
    pub new: NewLogArgs,
    /// Folders of the logs to read; they may be live.
    #[arg(value_name = "SRC", required = true, num_args = 2..)]
    pub sources: Vec<PathBuf>,
}

/// A log to be written.
#[derive(Debug, Args)]
pub struct NewLogArgs {
    /// Folder of the new log; it must not exist, or be empty.
    #[arg(value_name = "OUT")]
    pub out: PathBuf,
    /// A segment is sealed before it grows beyond this.
    #[arg(long, value_name = "N", default_value_t = 134_217_728, value_parser = RangedU64ValueParser::<u64>::new().range(65_536..))]
    pub segment_bytes: u64,
    /// One JSON document on standard output.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `log audit`.
#[derive(Debug, Args)]
pub struct LogAuditArgs {
    /// The log, and how to print.
    #[command(flatten)]
    pub log: LogArgs,
    /// Hugging Face folder of the teacher.
    #[arg(long, value_name = "FOLDER")]
    pub teacher: PathBuf,
    /// The teacher's name in the log; needed where it has the same weights under two names.
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Records to draw from those that it has labelled.
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = size(1..=100_000))]
    pub sample: usize,
    /// Seed of the draw.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Where the teacher runs.
    #[command(flatten)]
    pub place: PlaceArgs,
    /// Draw from labels alone that were computed in these. The bounds are those of the coarsest numbers, the labels' or the audit's own.
    #[arg(long, value_name = "NUMBERS", value_parser = precision(Numbers::ALL))]
    pub computed_in: Option<Numbers>,
    /// Threads of the teacher.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = size(1..=1024))]
    pub threads: usize,
}

/// Arguments of `log relabel`.
#[derive(Debug, Args)]
pub struct LogRelabelArgs {
    /// Folder of the log to read; it may be live.
    #[arg(value_name = "LOG")]
    pub dir: PathBuf,
    /// Folder of the new log; it must not exist, or be the beginning of this very log.
    #[arg(long, value_name = "OUT")]
    pub out: PathBuf,
    /// Hugging Face folder of the teacher.
    #[arg(long, value_name = "FOLDER")]
    pub teacher: PathBuf,
    /// The teacher's name, as it will be in the configuration; masks depend on it [default: that of its folder].
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Languages that it labels, as they will be in the configuration, separated by commas [default: the log's, if it has only one].
    #[arg(long, value_name = "LANGUAGES", value_delimiter = ',')]
    pub languages: Vec<String>,
    /// Folder of a teacher of the log, for its tokenizer; may be given several times. Needed where `masking.align_masks` was set.
    #[arg(long = "tokenizer", value_name = "FOLDER")]
    pub tokenizers: Vec<PathBuf>,
    /// Longest copy, [CLS] and [SEP] included; examples were cut for the teachers of that time, and what is longer gets no copy.
    /// The new log then has this `store.max_sequence_length`, and so must runs that use it [default: the log's].
    #[arg(long, value_name = "N", value_parser = size(16..=8192))]
    pub max_sequence_length: Option<usize>,
    /// Leave records that have no text without a copy of this teacher.
    #[arg(long)]
    pub skip_without_text: bool,
    /// Threads of the teacher [default: as many as there are cores].
    #[arg(long, value_name = "N", value_parser = size(1..=1024))]
    pub threads: Option<usize>,
    /// Tokens in a batch, at most.
    #[arg(long, value_name = "N", default_value_t = 8192, value_parser = size(1..=1_048_576))]
    pub batch_tokens: usize,
    /// Where the teacher runs.
    #[command(flatten)]
    pub place: PlaceArgs,
    /// A segment is sealed before it grows beyond this.
    #[arg(long, value_name = "N", default_value_t = 134_217_728, value_parser = RangedU64ValueParser::<u64>::new().range(65_536..))]
    pub segment_bytes: u64,
    /// One JSON document on standard output.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `log export`.
#[derive(Debug, Args)]
pub struct LogExportArgs {
    /// Folder of the log; it may be live.
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
    /// File to write; one of that name is replaced when the new one is complete.
    #[arg(long, value_name = "FILE")]
    pub parquet: PathBuf,
    /// Copies of this teacher alone.
    #[arg(long, value_name = "NAME")]
    pub teacher: Option<String>,
    /// Records of this language alone.
    #[arg(long, value_name = "LANGUAGE")]
    pub language: Option<String>,
    /// First sequence number.
    #[arg(long, value_name = "SEQ", default_value_t = 0)]
    pub from: u64,
    /// Records below this sequence number [default: all that are durable].
    #[arg(long, value_name = "SEQ")]
    pub to: Option<u64>,
    /// One JSON document on standard output.
    #[arg(long)]
    pub json: bool,
}
