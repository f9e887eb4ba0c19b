//! The sections of the file, with every default.

use super::cluster_section::Cluster;
use super::corpus_section::{Corpus, FORMATS};
use super::hub;
use super::ops_section::Ops;
use super::placement::Placement;
use super::store_section::Store;
use super::student_section::Student;
use super::table::{Problem, Problems, Table};
use super::threads::Threads;
use super::train_section::Train;
use ingest::{Format, MaskUnit};
use serde::Serialize;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;
use teacher::{OnStall, StallOptions};

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
    /// `[quarantine]`
    pub quarantine: Quarantine,
    /// `[store]`
    pub store: Store,
    /// `[student]`; none: label only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub student: Option<Student>,
    /// `[train]`
    pub train: Train,
    /// `[evaluate]`
    pub evaluate: Evaluate,
    /// `[cluster]`; none: everything is labelled here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster: Option<Cluster>,
    /// `[ops]`
    pub ops: Ops,
    /// Where it was read from.
    #[serde(skip)]
    pub file: Option<PathBuf>,
}

/// Who labels for a teacher.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LabelledBy {
    /// The daemon.
    Daemon,
    /// Workers, on whichever machines.
    Workers,
    /// Whoever has time.
    Both,
}

impl LabelledBy {
    /// Whether the daemon does.
    #[must_use]
    pub fn is_here(self) -> bool {
        self != Self::Workers
    }

    /// Whether workers do.
    #[must_use]
    pub fn is_elsewhere(self) -> bool {
        self != Self::Daemon
    }
}

impl Configuration {
    /// The longest time that one of the teachers that label may be at work on a batch before it stalls.
    pub fn longest_stall(&self) -> Duration {
        let labelling = self.teacher.iter().filter(|teacher| teacher.labels);
        labelling.map(|teacher| teacher.stall_options().after).max().unwrap_or_default()
    }

    /// Whether the log is one that others publish.
    pub fn follows(&self) -> bool {
        self.cluster.as_ref().is_some_and(|cluster| cluster.follow)
    }

    /// What is odd about training with λ above 0 where nobody labels. A log that is there may hold labels.
    pub fn labels_warning(&self) -> Option<String> {
        let nobody = !self.corpus.is_empty() && !self.teacher.iter().any(|teacher| teacher.labels);
        let train = self.student.as_ref().filter(|_| nobody).map(|_| &self.train)?;
        let floor = train.lambda_floor.unwrap_or_default();
        let weights = [("lambda_start", train.lambda_start), ("lambda_end", train.lambda_end), ("lambda_floor", floor)];
        let above_0 = weights.into_iter().filter(|(_, weight)| *weight > 0.0);
        let (found, wanted): (Vec<String>, Vec<String>) =
            above_0.map(|(key, weight)| (format!("train.{key} is {weight}"), format!("{key} = 0"))).unzip();
        (!found.is_empty()).then(|| {
            format!(
                "{}, but no teacher labels: the student learns from gold labels alone, as with λ = 0; set {}, or have a \
                 teacher label",
                found.join(", "),
                wanted.join(" and ")
            )
        })
    }
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
    /// A stage that neither gets on nor waits for anything is stuck after this time. At least 3: who waits gives a sign every second.
    pub stuck_seconds: u64,
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
    #[serde(flatten)]
    pub place: Placement,
    /// `false`: it lends only its tokenizer (gold labels alone).
    pub labels: bool,
    /// Who labels for it.
    pub labelled_by: LabelledBy,
    /// It stalls when it is longer than this at work on one batch.
    pub stall_seconds: f64,
    /// What happens then: labelling waits for it (`wait`), or what others label too goes to the log without its
    /// labels (`drop-copy`).
    pub on_stall: &'static str,
}

/// `[masking]`
#[derive(Clone, Debug, Serialize)]
pub struct Masking {
    /// Probability that a token is masked.
    pub probability: f64,
    /// All tokens of a word are masked together.
    pub whole_word: bool,
    /// The copies of an example mask the same words; implies whole words.
    pub align_masks: bool,
}

/// `[queue]`
#[derive(Clone, Debug, Serialize)]
pub struct Queue {
    /// Tokens in a batch, at most.
    pub batch_tokens: usize,
    /// Groups of batches in flight, at most.
    pub depth: usize,
    /// A group that is not full is labelled when there is nothing to read and its first entry is this old.
    pub linger_ms: u64,
    /// Bytes of an inbox that are not labelled yet, at most.
    pub inbox_bytes: u64,
}

/// `[quarantine]`
#[derive(Clone, Debug, Serialize)]
pub struct Quarantine {
    /// Room on the disk for notes on documents that could not be used; the oldest are dropped beyond it.
    pub max_bytes: u64,
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
    pub format: Format,
    /// How often it is labelled, each time with new masks.
    pub rounds: u32,
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
        let quarantine = Quarantine::read(root.table("quarantine"));
        let store = Store::read(root.table("store"), folder, &run);
        let student = root.table_if_present("student").map(Student::read);
        let train = Train::read(root.table("train"));
        let evaluate = Evaluate::read(root.table("evaluate"), folder);
        let cluster = root.table_if_present("cluster").map(|table| Cluster::read(table, folder));
        let ops = Ops::read(root.table("ops"), folder, &run);
        root.finish();
        let labels = !corpus.is_empty() && teacher.iter().any(|teacher| teacher.labels);
        let threads = threads.resolve(labels, student.is_some(), crate::threads::cores());
        let configuration = Self {
            run,
            threads,
            corpus,
            sampling,
            teacher,
            masking,
            queue,
            quarantine,
            store,
            student,
            train,
            evaluate,
            cluster,
            ops,
            file: None,
        };
        configuration.validate(&problems);
        match problems.into_vec() {
            none if none.is_empty() => Ok(configuration),
            problems => Err(problems),
        }
    }

    /// The same with these corpora and teachers instead. The error says everything that is wrong.
    pub fn with_inputs(&self, corpus: Vec<Corpus>, teacher: Vec<Teacher>) -> Result<Self, String> {
        let labels = !corpus.is_empty() && teacher.iter().any(|teacher| teacher.labels);
        let threads = self.threads.resolve(labels, self.student.is_some(), crate::threads::cores());
        let configuration = Self { corpus, teacher, threads, ..self.clone() };
        let problems = Problems::default();
        configuration.validate(&problems);
        problems.into_text().map_or(Ok(configuration), Err)
    }

    /// The same, and one more teacher, which comes last. The error says everything that is wrong.
    pub fn with_teacher(&self, teacher: &Teacher) -> Result<Self, String> {
        self.with_inputs(self.corpus.clone(), self.teacher.iter().cloned().chain([teacher.clone()]).collect())
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
        let from_stdin = self.corpus.iter().filter(|corpus| corpus.source == Some("stdin"));
        for corpus in from_stdin.skip(1) {
            let key = format!("corpus[{}].source", corpus.name);
            problems.add(&key, "another corpus reads standard input already; use a named pipe (source = \"pipe\")");
        }
        for corpus in &self.corpus {
            let language = corpus.language.as_deref().unwrap_or_default();
            self.needs_teacher(&format!("corpus[{}].language", corpus.name), language, problems);
            let own = [("state folder", &self.run.state_dir), ("log", &self.store.path)];
            let watched = corpus.watch.as_ref().and_then(|folder| std::path::absolute(folder).ok());
            let inside = |path: &&PathBuf| {
                let (Some(folder), Ok(path)) = (&watched, std::path::absolute(path)) else { return false };
                // Hidden folders are not read.
                let is_hidden = |part: &Path| part.iter().any(|name| name.to_string_lossy().starts_with('.'));
                path.strip_prefix(folder).is_ok_and(|inside| !is_hidden(inside))
            };
            if let Some((what, path)) = own.iter().find(|(_, path)| inside(path)) {
                let message =
                    format!("the run's own {what}, {}, lies in it and would be read; put it elsewhere", path.display());
                problems.add(format!("corpus[{}].watch", corpus.name), message);
            }
        }
        if let Some(teacher) =
            self.teacher.iter().find(|teacher| teacher.labelled_by.is_elsewhere()).filter(|_| self.cluster.is_none())
        {
            let message = "workers need a server: add [cluster] with url and run".to_owned();
            problems.add(format!("teacher[{}].labelled_by", teacher.name), message);
        }
        if let Some(cluster) = &self.cluster {
            if cluster.follow && !self.corpus.is_empty() {
                problems.add("cluster.follow", "a log that is followed is not written to: leave [[corpus]] out");
            }
            if cluster.publish && self.corpus.is_empty() {
                let message = "nothing writes this log: `mergedistill log publish` publishes one that is there";
                problems.add("cluster.publish", message);
            }
        }
        for file in &self.evaluate.files {
            self.needs_teacher("evaluate.files", &file.language, problems);
        }
        if let Some(student) = &self.student {
            student.validate(problems);
            if student.init == "teachers" && !self.teacher.iter().any(|teacher| teacher.labels) {
                let message = "\"teachers\" needs one with labels = true: the others lend only their tokenizers";
                problems.add("student.init", message);
            }
            self.train.validate(problems);
            if self.store.tail_samples > 0 {
                self.train.validate_sampled_tails(problems);
            }
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

impl Run {
    fn read(mut table: Table, folder: &Path) -> Self {
        let run = Self {
            state_dir: path(&mut table, "state_dir", folder).unwrap_or_else(|| folder.join("state")),
            seed: table.integer("seed", 0, ..),
            stop_limit_seconds: table.integer("stop_limit_seconds", 60, 1..=3600),
            stuck_seconds: table.integer("stuck_seconds", 300, 3..=86_400),
        };
        table.finish();
        run
    }
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
    /// Reads a table that stands alone; relative paths are relative to `folder`. The error says everything that is wrong.
    pub fn parse(values: toml::Table, folder: &Path) -> Result<Self, String> {
        let problems = Problems::default();
        let name = values.get("name").and_then(toml::Value::as_str).unwrap_or("0");
        let teacher = Self::read(Table::new(format!("teacher[{name}]"), values.clone(), &problems), folder);
        problems.into_text().map_or(Ok(teacher), Err)
    }

    fn read(mut table: Table, folder: &Path) -> Self {
        let name = table.required_string("name", "a name that no other teacher has");
        let path = table.required_string("path", "a Hugging Face folder with config.json, weights and tokenizer");
        let languages = table.strings("languages");
        if languages.is_empty() {
            table.problem("languages", "missing; list the languages that it teaches, e.g. [\"en\"]");
        }
        let path = match path
            .strip_prefix(hub::SCHEME)
            .map(|name| hub::find(name, &hub::cache(|name| std::env::var(name).ok())))
        {
            None => table.resolve("path", folder, &path),
            Some(found) => found.unwrap_or_else(|message| {
                table.problem("path", message);
                PathBuf::new()
            }),
        };
        let teacher = Self {
            name,
            path,
            languages,
            place: Placement::read(&mut table),
            labels: table.boolean("labels", true),
            labelled_by: table.choice(
                "labelled_by",
                &[("daemon", LabelledBy::Daemon), ("workers", LabelledBy::Workers), ("both", LabelledBy::Both)],
            ),
            stall_seconds: table.number("stall_seconds", 600.0, 0.001..=1e7),
            on_stall: table.choice("on_stall", &[("wait", "wait"), ("drop-copy", "drop-copy")]),
        };
        table.finish();
        teacher
    }
}

impl Teacher {
    /// When it stalls, and what is done about it.
    pub fn stall_options(&self) -> StallOptions {
        let on_stall = if self.on_stall == "drop-copy" { OnStall::DropCopy } else { OnStall::Wait };
        StallOptions { after: Duration::from_secs_f64(self.stall_seconds), on_stall }
    }
}

impl Masking {
    fn read(mut table: Table) -> Self {
        let align_masks = table.boolean("align_masks", false);
        let masking = Self {
            probability: table.number("probability", 0.15, 0.001..=0.9),
            whole_word: table.boolean("whole_word", align_masks),
            align_masks,
        };
        if align_masks && !masking.whole_word {
            table.problem("whole_word", "align_masks = true masks whole words; leave whole_word out");
        }
        table.finish();
        masking
    }

    /// What is masked together.
    pub fn unit(&self) -> MaskUnit {
        match (self.align_masks, self.whole_word) {
            (true, _) => MaskUnit::SharedWord,
            (false, true) => MaskUnit::Word,
            (false, false) => MaskUnit::Token,
        }
    }
}

impl Queue {
    fn read(mut table: Table) -> Self {
        let queue = Self {
            batch_tokens: table.size("batch_tokens", 8192, 64..=1_048_576),
            depth: table.size("depth", 4, 1..=1024),
            linger_ms: table.integer("linger_ms", 1000, 1..=3_600_000),
            inbox_bytes: table.integer("inbox_bytes", 1 << 30, 64 << 20..=1 << 50),
        };
        table.finish();
        queue
    }
}

impl Quarantine {
    fn read(mut table: Table) -> Self {
        let quarantine = Self { max_bytes: table.integer("max_bytes", 128 << 20, 1 << 20..=1 << 50) };
        table.finish();
        quarantine
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
            rounds: table.size("rounds", 1, 1..=1_000_000) as u32,
        };
        table.finish();
        file
    }
}
