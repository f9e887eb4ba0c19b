//! The sections of the file, with every default.

use super::store_section::Store;
use super::table::{Problem, Problems, Table};
use super::threads::Threads;
use serde::Serialize;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// The whole configuration, defaults filled in. Serialises to the same TOML that it is read from.
#[derive(Clone, Debug, Serialize)]
pub struct Configuration {
    /// `[run]`
    pub run: Run,
    /// `[threads]`
    pub threads: Threads,
    /// `[[corpus]]`; none: train only, from a log that is there.
    pub corpus: Vec<Corpus>,
    /// `[sampling]`
    pub sampling: Sampling,
    /// `[[teacher]]`
    pub teacher: Vec<Teacher>,
    /// `[masking]`
    pub masking: Masking,
    /// `[queue]`
    pub queue: Queue,
    /// `[store]`
    pub store: Store,
    /// `[student]`; none: label only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub student: Option<Student>,
    /// `[train]`
    pub train: Train,
    /// `[evaluate]`
    pub evaluate: Evaluate,
    /// `[ops]`
    pub ops: Ops,
}

/// `[run]`
#[derive(Clone, Debug, Serialize)]
pub struct Run {
    /// Everything the run keeps is in this folder.
    pub state_dir: PathBuf,
    /// Every random choice follows from it.
    pub seed: u64,
    /// How long a stop may take before the process gives up waiting.
    pub stop_limit_seconds: u64,
}

/// `[[corpus]]`
#[derive(Clone, Debug, Serialize)]
pub struct Corpus {
    /// Name, unique.
    pub name: String,
    /// Language of its text.
    pub language: String,
    /// Glob patterns of its files.
    pub path: Vec<String>,
    /// How documents lie in a file.
    pub format: CorpusFormat,
    /// How often it is labelled, each time with new masks.
    pub rounds: u32,
}

/// How documents lie in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CorpusFormat {
    /// Documents separated by an empty line.
    Text,
    /// A JSON object with a `text` per line.
    Jsonl,
}

/// `[sampling]`
#[derive(Clone, Debug, Serialize)]
pub struct Sampling {
    /// A language's share is proportional to n^alpha (paper, section 4.1).
    pub alpha: f64,
}

/// `[[teacher]]`
#[derive(Clone, Debug, Serialize)]
pub struct Teacher {
    /// Name, unique.
    pub name: String,
    /// Hugging Face folder.
    pub path: PathBuf,
    /// Languages it teaches.
    pub languages: Vec<String>,
    /// Where it runs.
    pub device: String,
    /// `false`: it lends only its tokenizer (gold labels alone).
    pub labels: bool,
}

/// `[masking]`
#[derive(Clone, Debug, Serialize)]
pub struct Masking {
    /// Probability that a token is masked.
    pub probability: f64,
}

/// `[queue]`
#[derive(Clone, Debug, Serialize)]
pub struct Queue {
    /// Tokens in a batch, at most.
    pub batch_tokens: usize,
    /// Groups of batches in flight, at most.
    pub depth: usize,
}

/// `[student]`
#[derive(Clone, Debug, Serialize)]
pub struct Student {
    /// Encoder layers.
    pub layers: usize,
    /// Hidden size.
    pub hidden_size: usize,
    /// Attention heads.
    pub heads: usize,
    /// Size of the feed-forward layer.
    pub intermediate_size: usize,
    /// Embedding size; smaller than `hidden_size`: factorised, an ELECTRA generator in transformers.
    pub embedding_size: usize,
    /// Tokens in an example, [CLS] and [SEP] included.
    pub max_sequence_length: usize,
    /// Dropout probability.
    pub dropout: f64,
    /// Where it is trained.
    pub device: String,
}

/// `[train]`
#[derive(Clone, Debug, Serialize)]
pub struct Train {
    /// Optimiser steps.
    pub steps: u64,
    /// Copies in a batch.
    pub batch_examples: usize,
    /// Tokens in a micro-batch, at most.
    pub micro_batch_tokens: usize,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Steps of linear warm-up.
    pub warmup_steps: u64,
    /// Decoupled weight decay; not for biases and LayerNorm.
    pub weight_decay: f64,
    /// Largest global gradient norm.
    pub clip_norm: f64,
    /// λ at the first step.
    pub lambda_start: f64,
    /// λ at the last step.
    pub lambda_end: f64,
    /// `all` copies of an example, or the `best` one.
    pub copies: &'static str,
    /// What "best" is measured by: loss per masked `position` or per `character`.
    pub best_by: &'static str,
    /// With `all`: each copy weighs 1 (`equal`) or 1/|T_k| (`shared`).
    pub copy_weight: &'static str,
    /// The loss is a mean over the masked positions of the `batch`, or the paper's sum of per-language means (`language`).
    pub loss_norm: &'static str,
    /// The teacher's distribution: its top-k `renormalised` (the paper's), or its true probabilities with the mass of all
    /// other tokens in one bucket (`ghost`) or on the gold token (`gold-residual`).
    pub kd_target: &'static str,
    /// Examples in a training window.
    pub shuffle_examples: usize,
    /// Passes over retained records after a language's input has ended; 0: as often as needed.
    pub max_passes: u32,
    /// What to do when a language runs short while its input is open: `wait` or `replay`.
    pub when_short: &'static str,
    /// Steps between checkpoints.
    pub checkpoint_every_steps: u64,
    /// Checkpoints kept.
    pub keep_checkpoints: usize,
}

/// `[evaluate]`
#[derive(Clone, Debug, Serialize)]
pub struct Evaluate {
    /// Fraction of each corpus's documents that is never trained on.
    pub holdout_fraction: f64,
    /// Steps between evaluations.
    pub every_steps: u64,
    /// Records that an evaluation looks at, at most, per language and set (unseen text, held-out documents).
    pub max_examples: usize,
    /// Text that no teacher has seen.
    pub files: Vec<EvaluateFile>,
}

/// One of `[evaluate] files`.
#[derive(Clone, Debug, Serialize)]
pub struct EvaluateFile {
    /// Language of the text.
    pub language: String,
    /// Glob pattern.
    pub path: String,
    /// How documents lie in it.
    pub format: CorpusFormat,
}

/// `[ops]`
#[derive(Clone, Debug, Serialize)]
pub struct Ops {
    /// Loopback address of the read-only HTTP endpoint; port 0: any free one.
    pub http: SocketAddr,
    /// Unix socket of the control endpoint.
    pub socket: PathBuf,
}

impl Configuration {
    /// Parses `text`; relative paths are relative to `folder`. Returns everything that is wrong.
    pub fn parse(text: &str, folder: &Path) -> Result<Self, Vec<Problem>> {
        let problems = Problems::default();
        let values = text.parse::<toml::Table>().map_err(|error| {
            vec![Problem { key: String::new(), message: format!("not valid TOML: {}", error.to_string().trim_end()) }]
        })?;
        let mut root = Table::new("", values, &problems);
        let run = Run::read(root.table("run"), folder);
        let threads = Threads::read(root.table("threads"));
        let corpus: Vec<_> = root.tables("corpus").into_iter().map(|table| Corpus::read(table, folder)).collect();
        let sampling = Sampling::read(root.table("sampling"));
        let teacher: Vec<_> = root.tables("teacher").into_iter().map(|table| Teacher::read(table, folder)).collect();
        let masking = Masking::read(root.table("masking"));
        let queue = Queue::read(root.table("queue"));
        let store = Store::read(root.table("store"), folder, &run);
        let student = root.table_if_present("student").map(Student::read);
        let train = Train::read(root.table("train"));
        let evaluate = Evaluate::read(root.table("evaluate"), folder);
        let ops = Ops::read(root.table("ops"), folder, &run);
        root.finish();
        let labels = !corpus.is_empty() && teacher.iter().any(|teacher| teacher.labels);
        let threads = threads.resolve(labels, student.is_some(), crate::threads::cores());
        let configuration =
            Self { run, threads, corpus, sampling, teacher, masking, queue, store, student, train, evaluate, ops };
        configuration.validate(&problems);
        match problems.into_vec() {
            none if none.is_empty() => Ok(configuration),
            problems => Err(problems),
        }
    }

    /// What no single section can see.
    fn validate(&self, problems: &Problems) {
        unique("corpus", self.corpus.iter().map(|corpus| corpus.name.as_str()), problems);
        unique("teacher", self.teacher.iter().map(|teacher| teacher.name.as_str()), problems);
        if self.teacher.is_empty() {
            problems.add("teacher", "there is none; add at least one [[teacher]]");
        }
        if self.corpus.is_empty() && self.student.is_none() {
            problems
                .add("", "neither [[corpus]] (something to label) nor [student] (something to train): nothing to do");
        }
        if self.corpus.is_empty() && !self.evaluate.files.is_empty() {
            let message = "without a [[corpus]] nothing is labelled, so this text would not be looked at; leave it out";
            problems.add("evaluate.files", message);
        }
        for corpus in &self.corpus {
            self.needs_teacher(&format!("corpus[{}].language", corpus.name), &corpus.language, problems);
        }
        for file in &self.evaluate.files {
            self.needs_teacher("evaluate.files", &file.language, problems);
        }
        if let Some(student) = &self.student {
            student.validate(problems);
            if self.store.max_sequence_length.is_some_and(|length| length > student.max_sequence_length) {
                let limit = student.max_sequence_length;
                problems.add("store.max_sequence_length", format!("more than the student takes: {limit}"));
            }
        }
    }

    fn needs_teacher(&self, key: &str, language: &str, problems: &Problems) {
        let taught = |teacher: &Teacher| teacher.languages.iter().any(|name| name == language);
        if !language.is_empty() && !self.teacher.iter().any(taught) {
            let message = format!("no teacher has language `{language}`; add it to the `languages` of a [[teacher]]");
            problems.add(key, message);
        }
    }
}

fn unique<'a>(section: &str, names: impl Iterator<Item = &'a str>, problems: &Problems) {
    let mut seen = BTreeSet::new();
    for name in names {
        if !name.is_empty() && !seen.insert(name) {
            problems.add(format!("{section}[{name}].name"), "used twice; names must be unique");
        }
    }
}

const FORMATS: &[(&str, CorpusFormat)] = &[("text", CorpusFormat::Text), ("jsonl", CorpusFormat::Jsonl)];
const KD_TARGETS: &[(&str, &str)] =
    &[("renormalised", "renormalised"), ("ghost", "ghost"), ("gold-residual", "gold-residual")];

impl Run {
    fn read(mut table: Table, folder: &Path) -> Self {
        let run = Self {
            state_dir: path(&mut table, "state_dir", folder).unwrap_or_else(|| folder.join("state")),
            seed: table.integer("seed", 0, ..),
            stop_limit_seconds: table.integer("stop_limit_seconds", 60, 1..=3600),
        };
        table.finish();
        run
    }
}

impl Corpus {
    fn read(mut table: Table, folder: &Path) -> Self {
        let name = table.required_string("name", "a name that no other corpus has");
        if name.starts_with("evaluate/") {
            table.problem("name", "names that begin with `evaluate/` are kept for [evaluate] files");
        }
        let corpus = Self {
            name,
            language: table.required_string("language", "the language of its text, e.g. \"en\""),
            path: paths(&mut table, folder),
            format: table.choice("format", FORMATS),
            rounds: table.size("rounds", 1, 1..=1_000_000) as u32,
        };
        table.finish();
        corpus
    }
}

/// Glob patterns under `path`, made relative to the file.
fn paths(table: &mut Table, folder: &Path) -> Vec<String> {
    let patterns = table.strings("path");
    if patterns.is_empty() {
        table.problem("path", "missing; give a file or a glob pattern, e.g. \"text/en/*.txt\"");
    }
    patterns.iter().map(|pattern| table.resolve("path", folder, pattern).to_string_lossy().into_owned()).collect()
}

/// The path under `key`, if it is there.
pub(super) fn path(table: &mut Table, key: &'static str, folder: &Path) -> Option<PathBuf> {
    let path = table.optional_string(key)?;
    Some(table.resolve(key, folder, &path))
}

impl Sampling {
    fn read(mut table: Table) -> Self {
        let sampling = Self { alpha: table.number("alpha", 0.7, 0.0..=1.0) };
        table.finish();
        sampling
    }
}

impl Teacher {
    fn read(mut table: Table, folder: &Path) -> Self {
        let name = table.required_string("name", "a name that no other teacher has");
        let path = table.required_string("path", "a Hugging Face folder with config.json, weights and tokenizer");
        let languages = table.strings("languages");
        if languages.is_empty() {
            table.problem("languages", "missing; list the languages that it teaches, e.g. [\"en\"]");
        }
        let teacher = Self {
            name,
            path: table.resolve("path", folder, &path),
            languages,
            device: device(&mut table),
            labels: table.boolean("labels", true),
        };
        table.finish();
        teacher
    }
}

/// A device this build can use.
fn device(table: &mut Table) -> String {
    let device = table.string("device", "cpu");
    if device != "cpu" {
        table.problem("device", format!("\"{device}\" is not available in this build; use \"cpu\""));
    }
    device
}

impl Masking {
    fn read(mut table: Table) -> Self {
        let masking = Self { probability: table.number("probability", 0.15, 0.001..=0.9) };
        if table.boolean("whole_word", false) {
            table.problem("whole_word", "whole-word masking is not available in this version; leave it out");
        }
        table.finish();
        masking
    }
}

impl Queue {
    fn read(mut table: Table) -> Self {
        let queue = Self {
            batch_tokens: table.size("batch_tokens", 8192, 64..=1_048_576),
            depth: table.size("depth", 4, 1..=1024),
        };
        table.finish();
        queue
    }
}

impl Student {
    fn read(mut table: Table) -> Self {
        let hidden_size = table.size("hidden_size", 256, 1..=65_536);
        let student = Self {
            layers: table.size("layers", 4, 1..=256),
            hidden_size,
            heads: table.size("heads", 4, 1..=1024),
            intermediate_size: table.size("intermediate_size", 4 * hidden_size, 1..=1_048_576),
            embedding_size: table.size("embedding_size", hidden_size, 1..=65_536),
            max_sequence_length: table.size("max_sequence_length", 128, 16..=8192),
            dropout: table.number("dropout", 0.1, 0.0..=0.9),
            device: device(&mut table),
        };
        table.finish();
        student
    }

    fn validate(&self, problems: &Problems) {
        if !self.hidden_size.is_multiple_of(self.heads) {
            let message = format!("{} is not a divisor of hidden_size = {}", self.heads, self.hidden_size);
            problems.add("student.heads", message);
        }
        if self.embedding_size > self.hidden_size {
            let message = format!("{} is larger than hidden_size = {}", self.embedding_size, self.hidden_size);
            problems.add("student.embedding_size", message);
        }
    }
}

impl Train {
    fn read(mut table: Table) -> Self {
        let train = Self {
            steps: table.integer("steps", 1000, 1..),
            batch_examples: table.size("batch_examples", 64, 1..=1_048_576),
            micro_batch_tokens: table.size("micro_batch_tokens", 4096, 16..=16_777_216),
            learning_rate: table.number("learning_rate", 5e-4, 0.0..=10.0),
            warmup_steps: table.integer("warmup_steps", 100, ..),
            weight_decay: table.number("weight_decay", 0.01, 0.0..=1.0),
            clip_norm: table.number("clip_norm", 1.0, 1e-6..=1e9),
            lambda_start: table.number("lambda_start", 1.0, 0.0..=1.0),
            lambda_end: table.number("lambda_end", 0.0, 0.0..=1.0),
            copies: table.choice("copies", &[("all", "all"), ("best", "best")]),
            best_by: table.choice("best_by", &[("position", "position"), ("character", "character")]),
            copy_weight: table.choice("copy_weight", &[("equal", "equal"), ("shared", "shared")]),
            loss_norm: table.choice("loss_norm", &[("batch", "batch"), ("language", "language")]),
            kd_target: table.choice("kd_target", KD_TARGETS),
            shuffle_examples: table.size("shuffle_examples", 4096, 1..=16_777_216),
            max_passes: table.size("max_passes", 0, ..=1_000_000) as u32,
            when_short: table.choice("when_short", &[("wait", "wait"), ("replay", "replay")]),
            checkpoint_every_steps: table.integer("checkpoint_every_steps", 500, 1..),
            keep_checkpoints: table.size("keep_checkpoints", 3, 1..=10_000),
        };
        table.finish();
        train
    }
}

impl Evaluate {
    fn read(mut table: Table, folder: &Path) -> Self {
        let evaluate = Self {
            holdout_fraction: table.number("holdout_fraction", 0.005, 0.0..=0.5),
            every_steps: table.integer("every_steps", 250, 1..),
            max_examples: table.size("max_examples", 500, 1..=1_000_000),
            files: table.tables("files").into_iter().map(|table| EvaluateFile::read(table, folder)).collect(),
        };
        table.finish();
        evaluate
    }
}

impl EvaluateFile {
    fn read(mut table: Table, folder: &Path) -> Self {
        let path = table.required_string("path", "a file or a glob pattern");
        let file = Self {
            language: table.required_string("language", "the language of the text"),
            path: table.resolve("path", folder, &path).to_string_lossy().into_owned(),
            format: table.choice("format", FORMATS),
        };
        table.finish();
        file
    }
}

impl Ops {
    fn read(mut table: Table, folder: &Path, run: &Run) -> Self {
        let fallback = SocketAddr::from(([127, 0, 0, 1], 0));
        let http = table.string("http", "127.0.0.1:0");
        let http = http.parse().unwrap_or_else(|_| {
            table.problem("http", format!("\"{http}\" is not an address and port, e.g. \"127.0.0.1:9400\""));
            fallback
        });
        if !http.ip().is_loopback() {
            table.problem("http", format!("{http} is not a loopback address; use 127.0.0.1 or [::1]"));
        }
        let socket = path(&mut table, "socket", folder).unwrap_or_else(|| run.state_dir.join("control.sock"));
        table.finish();
        Self { http, socket }
    }
}
