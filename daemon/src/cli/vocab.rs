//! The command line of `vocab`.

use super::size;
use clap::{Args, Subcommand, ValueEnum};
use std::path::PathBuf;

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
    /// Learn a WordPiece tokenizer from text, for pre-training on gold labels: `[[teacher]] labels = false` takes its folder.
    Learn(LearnArgs),
}

/// Arguments of `vocab learn`.
#[derive(Debug, Args)]
pub struct LearnArgs {
    /// Folder to write; transformers' AutoTokenizer loads it too.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Tokens, special ones included.
    #[arg(long, value_name = "N", default_value_t = 30_000, value_parser = size(1..=16_000_000))]
    pub size: usize,
    /// Keep upper case and accents. This is the default.
    #[arg(long, conflicts_with = "uncased")]
    pub cased: bool,
    /// Make everything lower case, and remove accents.
    #[arg(long)]
    pub uncased: bool,
    /// Pieces that stand together more rarely are not joined.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..))]
    pub min_frequency: u64,
    /// Characters that tokens consist of, the most frequent ones; a word with another one will be [UNK].
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = size(1..=1_114_112))]
    pub limit_alphabet: usize,
    /// Read the corpora of this configuration, as `run` would. The teachers' folders need not be there yet.
    #[arg(long, value_name = "FILE", conflicts_with = "files", required_unless_present = "files")]
    pub config: Option<PathBuf>,
    /// Of the configuration's corpora, only text of this language; may be given more than once.
    #[arg(long, value_name = "LANGUAGE", requires = "config")]
    pub language: Vec<String>,
    /// How documents lie in the files.
    #[arg(long, value_enum, default_value_t = FileFormat::Text, value_name = "FORMAT", conflicts_with = "config")]
    pub format: FileFormat,
    /// Field or column with a document's text.
    #[arg(long, value_name = "NAME", default_value = "text", conflicts_with = "config")]
    pub text_field: String,
    /// Files, or patterns of files, plain or compressed.
    #[arg(value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// One JSON document on standard output.
    #[arg(long)]
    pub json: bool,
}

/// How documents lie in a file, as `[[corpus]] format` has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FileFormat {
    /// Plain text, documents separated by empty lines.
    Text,
    /// A JSON object a line.
    Jsonl,
    /// A row a document.
    Parquet,
}

impl From<FileFormat> for ingest::Format {
    fn from(format: FileFormat) -> Self {
        match format {
            FileFormat::Text => Self::Text,
            FileFormat::Jsonl => Self::JsonLines,
            FileFormat::Parquet => Self::Parquet,
        }
    }
}
