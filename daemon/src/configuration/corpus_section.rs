//! `[[corpus]]`

use super::sections::path;
use super::table::{Problems, Table};
use ingest::{Compression, Format, FormatOptions, TextDocuments};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// Names of the formats.
pub(super) const FORMATS: &[(&str, Format)] =
    &[("text", Format::Text), ("jsonl", Format::JsonLines), ("parquet", Format::Parquet)];
const DOCUMENTS: &[(&str, TextDocuments)] =
    &[("empty-line", TextDocuments::EmptyLine), ("file", TextDocuments::File), ("line", TextDocuments::Line)];
const COMPRESSIONS: &[(&str, Compression)] = &[
    ("auto", Compression::Auto),
    ("none", Compression::None),
    ("gzip", Compression::Gzip),
    ("bzip2", Compression::Bzip2),
    ("zstd", Compression::Zstd),
];
const SETTLE_SECONDS: f64 = 5.0;
const POLL_SECONDS: f64 = 10.0;
const ORIGINS: &str = "path (files), watch (a folder), follow (a file that grows), source = \"http\", source = \"stdin\", \
                       or source = \"pipe\" with a path";

/// `[[corpus]]`
#[derive(Clone, Debug, Serialize)]
pub struct Corpus {
    /// Name, unique.
    pub name: String,
    /// Language of its text; none: each document says its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub language: Option<String>,
    /// Field with a document's language.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub language_field: Option<String>,
    /// Glob patterns of its files, or the named pipe.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub path: Vec<String>,
    /// Folder whose files are read once they are complete.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub watch: Option<PathBuf>,
    /// File that grows like a log.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub follow: Option<PathBuf>,
    /// Where documents come from that are in no file: `http`, `stdin` or `pipe`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<&'static str>,
    /// How documents lie in a file.
    pub format: Format,
    /// What separates documents of plain text.
    pub documents: TextDocuments,
    /// Field with a document's text.
    pub text_field: String,
    /// Field with a document's own identifier.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id_field: Option<String>,
    /// How the files are compressed.
    pub compression: Compression,
    /// A file of a watched folder that was not renamed into place is complete, and a followed file that was rotated away
    /// has ended, when it has not changed for this long.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub settle_seconds: Option<f64>,
    /// How often a watched folder or followed file is looked at, whatever the kernel reports.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub poll_seconds: Option<f64>,
    /// A document with the text of one of the last so many documents of its source is skipped; 0: none is.
    pub deduplicate: usize,
    /// How often a corpus of files is labelled, each time with new masks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rounds: Option<u32>,
    /// Whether it is not in the configuration file: it was added while the daemon ran.
    #[serde(skip)]
    pub is_added: bool,
}

/// Where a corpus comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CorpusOrigin<'a> {
    /// Files by glob patterns.
    Files(&'a [String]),
    /// A watched folder.
    Watch(&'a Path),
    /// A file that grows.
    Follow(&'a Path),
    /// Clients push documents.
    Http,
    /// Standard input.
    Stdin,
    /// A named pipe.
    Pipe(&'a Path),
}

impl Corpus {
    /// Reads a table that is not in the configuration file; relative paths are relative to `folder`. The error says everything that is wrong.
    pub fn parse(values: toml::Table, folder: &Path) -> Result<Self, String> {
        let problems = Problems::default();
        let name = values.get("name").and_then(toml::Value::as_str).unwrap_or("0");
        let corpus = Self::read(Table::new(format!("corpus[{name}]"), values.clone(), &problems), folder);
        problems.into_text().map_or(Ok(Self { is_added: true, ..corpus }), Err)
    }

    pub(super) fn read(mut table: Table, folder: &Path) -> Self {
        let name = table.required_string("name", "a name that no other corpus has");
        if name.starts_with("evaluate/") {
            table.problem("name", "names that begin with `evaluate/` are kept for [evaluate] files");
        }
        if name.contains(':') {
            table.problem("name", "it has a `:`, which stands between corpus and language in the names of sources");
        }
        if name == "retry" {
            table.problem("name", "this name is kept for documents that are tried again");
        }
        let patterns = table.strings("path");
        let pattern = |pattern: &String| table.resolve("path", folder, pattern).to_string_lossy().into_owned();
        let mut corpus = Self {
            name,
            path: patterns.iter().map(pattern).collect(),
            language: table.optional_string("language"),
            language_field: table.optional_string("language_field"),
            watch: path(&mut table, "watch", folder),
            follow: path(&mut table, "follow", folder),
            source: source(&mut table),
            format: table.choice("format", FORMATS),
            documents: table.choice("documents", DOCUMENTS),
            text_field: table.string("text_field", "text"),
            id_field: table.optional_string("id_field"),
            compression: table.choice("compression", COMPRESSIONS),
            settle_seconds: optional_number(&mut table, "settle_seconds"),
            poll_seconds: optional_number(&mut table, "poll_seconds"),
            deduplicate: table.size("deduplicate", 0, 0..=10_000_000),
            rounds: Some(table.size("rounds", 0, 1..=1_000_000) as u32).filter(|rounds| *rounds > 0),
            is_added: false,
        };
        corpus.validate(&table);
        if corpus.watch.is_some() || corpus.follow.is_some() {
            corpus.settle_seconds.get_or_insert(SETTLE_SECONDS);
            corpus.poll_seconds.get_or_insert(POLL_SECONDS);
        } else if corpus.source.is_none() {
            corpus.rounds.get_or_insert(1);
        }
        table.finish();
        corpus
    }

    /// Where it comes from.
    pub fn origin(&self) -> CorpusOrigin<'_> {
        let pipe = || self.path.first().map_or(Path::new(""), Path::new);
        match (&self.watch, &self.follow, self.source) {
            (Some(folder), ..) => CorpusOrigin::Watch(folder),
            (_, Some(file), _) => CorpusOrigin::Follow(file),
            (.., Some("stdin")) => CorpusOrigin::Stdin,
            (.., Some("pipe")) => CorpusOrigin::Pipe(pipe()),
            (.., Some(_)) => CorpusOrigin::Http,
            _ => CorpusOrigin::Files(&self.path),
        }
    }

    /// How its files, or what is pushed, are to be read.
    pub fn format_options(&self) -> FormatOptions {
        FormatOptions {
            format: self.format,
            documents: self.documents,
            text_field: self.text_field.clone(),
            id_field: self.id_field.clone(),
            language_field: self.language_field.clone(),
            arrived_field: None,
            // What grows begins before anyone can see how it is compressed.
            compression: if self.follow.is_some() { Compression::None } else { self.compression },
        }
    }

    fn validate(&self, table: &Table) {
        match (self.language.as_deref(), self.language_field.as_deref()) {
            (None, None) => table.problem(
                "language",
                "missing; give the language of its text, e.g. \"en\", or the language_field of its documents",
            ),
            (Some(""), _) => table.problem("language", "empty; give the language of its text, e.g. \"en\""),
            (Some(_), Some(_)) => table.problem("language_field", "there is a language too; give one of them"),
            _ => {}
        }
        self.validate_origin(table);
        if let Err(error) = self.format_options().validate(&self.name) {
            table.problem("format", error.to_string());
        }
    }

    fn validate_origin(&self, table: &Table) {
        let files = !self.path.is_empty() && self.source != Some("pipe");
        let origins = [files, self.watch.is_some(), self.follow.is_some(), self.source.is_some()];
        match origins.iter().filter(|there| **there).count() {
            0 => table.problem("path", format!("missing; say where its text comes from: {ORIGINS}")),
            1 => {}
            _ => table.problem("path", format!("it can come from one place only: {ORIGINS}")),
        }
        if self.source == Some("pipe") && self.path.len() != 1 {
            table.problem("path", "give the path of the named pipe");
        }
        let watched = self.watch.is_some() || self.follow.is_some();
        for (key, value) in [("settle_seconds", self.settle_seconds), ("poll_seconds", self.poll_seconds)] {
            if value.is_some() && !watched {
                table.problem(key, "only a corpus with watch or follow has it; leave it out");
            }
        }
        let ends = !watched && self.source.is_none();
        if !ends && self.rounds.is_some() {
            table.problem("rounds", "only a corpus of files has rounds; a stream does not end; leave it out");
        }
        if (self.follow.is_some() || self.source.is_some()) && self.format == Format::Parquet {
            table.problem("format", "a Parquet file cannot grow; watch a folder of them instead");
        }
        let plain = matches!(self.compression, Compression::Auto | Compression::None);
        if (self.follow.is_some() || self.source.is_some()) && !plain {
            table.problem("compression", "what is followed, pushed or piped is plain; leave it out");
        }
        if self.follow.is_some() && self.documents == TextDocuments::File {
            table.problem("documents", "a followed file does not end; use \"line\" or \"empty-line\"");
        }
    }
}

fn source(table: &mut Table) -> Option<&'static str> {
    let value = table.optional_string("source")?;
    let known = ["http", "stdin", "pipe"].into_iter().find(|known| *known == value);
    if known.is_none() {
        table.problem("source", format!("\"{value}\" is not known; use \"http\", \"stdin\" or \"pipe\""));
    }
    known
}

/// Seconds, if the key is there.
fn optional_number(table: &mut Table, key: &'static str) -> Option<f64> {
    Some(table.number(key, 0.0, 0.01..=86_400.0)).filter(|seconds| *seconds > 0.0)
}
