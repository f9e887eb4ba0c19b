//! What a configuration refers to, looked at before anything starts: teachers' folders and corpora's files.
//! Like the configuration itself, everything that is wrong is reported at once.

use crate::configuration::{Configuration, Corpus, CorpusOrigin, Teacher};
use crate::failure::{ExitCode, Failure};
use ingest::{CorpusOptions, FeedOptions, Language};
use model::Tokenizer;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use store::{Identity, TAIL_SAMPLES_KEY, TeacherEntry};

/// Name of the longest example in a log's identity.
pub const SEQUENCE_LENGTH_KEY: &str = "store.max_sequence_length";

/// A configuration whose teachers and corpora are there.
#[derive(Clone, Debug)]
pub struct Inputs {
    /// In the order of the configuration.
    pub teachers: Vec<LoadedTeacher>,
    /// Corpora of `[evaluate] files`, then `[[corpus]]`, in order.
    pub corpora: Vec<CorpusOptions>,
    /// Tokens in an example at most, [CLS] and [SEP] included.
    pub max_sequence_length: usize,
}

/// A teacher's configuration, and its tokenizer.
#[derive(Clone, Debug)]
pub struct LoadedTeacher {
    /// Its section of the configuration.
    pub section: Teacher,
    /// Its tokenizer.
    pub tokenizer: Arc<Tokenizer>,
    /// Hash of its weights; empty for one that does not label.
    pub weights_fingerprint: String,
    /// Its shape, if it labels and its folder says so.
    pub shape: Option<Arc<model::Configuration>>,
}

impl Inputs {
    /// Looks at everything that `configuration` refers to. The error lists all that is wrong, and its code is that
    /// of the first problem.
    pub fn open(configuration: &Configuration) -> Result<Self, Failure> {
        let mut problems = Vec::new();
        let limit = sequence_limit(configuration);
        let mut teachers = Vec::new();
        let mut positions = usize::MAX;
        for section in &configuration.teacher {
            match open_teacher(section, configuration, limit) {
                Ok((teacher, teacher_positions)) => {
                    positions = positions.min(teacher_positions);
                    teachers.push(teacher);
                }
                Err(problem) => problems.push(problem),
            }
        }
        let corpora = open_corpora(configuration, &mut problems);
        let token = configuration.ops.token_file.as_deref().map(ops::Token::read);
        problems.extend(token.and_then(Result::err).map(Failure::from));
        problems.extend(configuration.ops.controllers().err().map(Failure::from));
        let exposure = configuration.ops.token_file.as_deref().and_then(ops::Token::exposure);
        exposure.iter().for_each(|exposure| tracing::warn!("{exposure}"));
        let max_sequence_length = limit.unwrap_or(positions);
        if problems.is_empty() && !configuration.corpus.is_empty() && max_sequence_length == usize::MAX {
            let message = "store.max_sequence_length: missing; there is no [student], and no teacher that labels, so nothing else \
                           says how long an example may be";
            problems.push(Failure::new(ExitCode::Configuration, message));
        }
        match problems.split_first() {
            None => Ok(Self { teachers, corpora, max_sequence_length }),
            Some((first, [])) => Err(first.clone()),
            Some((first, _)) => {
                let lines: Vec<String> = problems.iter().map(|problem| format!("  {problem}")).collect();
                Err(Failure::new(first.code, format!("{} problems:\n{}", problems.len(), lines.join("\n"))))
            }
        }
    }

    /// These, and one more teacher at the end of the table. Under `configuration`, which has it.
    pub fn with_teacher(&self, section: &Teacher, configuration: &Configuration) -> Result<Self, Failure> {
        let (teacher, positions) = open_teacher(section, configuration, sequence_limit(configuration))?;
        let longest = self.max_sequence_length;
        if positions < longest {
            let message = format!(
                "teacher[{}]: it has {positions} positions, but the log has examples of up to {longest} tokens",
                section.name
            );
            return Err(Failure::new(ExitCode::Configuration, message));
        }
        let teachers = self.teachers.iter().cloned().chain([teacher]).collect();
        Ok(Self { teachers, ..self.clone() })
    }

    /// Languages of the teachers, in the order of their table.
    pub fn languages(&self) -> impl Iterator<Item = &str> + Clone {
        self.teachers.iter().flat_map(|teacher| &teacher.section.languages).map(String::as_str)
    }

    /// What determines the content of a log made from these inputs.
    pub fn identity(&self, configuration: &Configuration) -> Identity {
        let settings = [
            ("run.seed", configuration.run.seed.to_string()),
            ("masking.probability", configuration.masking.probability.to_string()),
            ("store.top_k", configuration.store.top_k.to_string()),
            ("store.precision", configuration.store.precision.to_string()),
            (SEQUENCE_LENGTH_KEY, self.max_sequence_length.to_string()),
            ("evaluate.holdout_fraction", configuration.evaluate.holdout_fraction.to_string()),
        ];
        // Settings that came later are there if they are used: a log that was made without them is the same one.
        let masking = &configuration.masking;
        let words = [("masking.whole_word", masking.whole_word), ("masking.align_masks", masking.align_masks)];
        let words = words.into_iter().filter(|(_, used)| *used).map(|(key, used)| (key, used.to_string()));
        let samples = configuration.store.tail_samples;
        let tail = (samples > 0).then(|| (TAIL_SAMPLES_KEY, samples.to_string()));
        Identity {
            settings: settings
                .into_iter()
                .chain(words)
                .chain(tail)
                .map(|(key, value)| (key.to_owned(), value))
                .collect(),
            teachers: self.teachers.iter().map(LoadedTeacher::entry).collect(),
        }
    }

    /// Puts the teachers into the order of a log's table, for a run that only trains: every teacher of the log has
    /// to be there, with the tokenizer that the log was made with.
    pub fn arrange_for(&mut self, identity: &Identity) -> Result<(), Failure> {
        let mut arranged = Vec::new();
        for entry in &identity.teachers {
            let Some(at) = self.teachers.iter().position(|teacher| teacher.section.name == entry.name) else {
                let message = format!("the log has labels of teacher `{}`; add it to the configuration", entry.name);
                return Err(Failure::new(ExitCode::Configuration, message));
            };
            let teacher = self.teachers.remove(at);
            if teacher.tokenizer.fingerprint() != entry.tokenizer_fingerprint {
                let message = format!(
                    "teacher `{}`: the log was made with another tokenizer than that of {}",
                    entry.name,
                    teacher.section.path.display()
                );
                return Err(Failure::new(ExitCode::Configuration, message));
            }
            arranged.push(teacher);
        }
        if let Some(surplus) = self.teachers.first() {
            let message = format!("teacher `{}` is not in the log; leave it out", surplus.section.name);
            return Err(Failure::new(ExitCode::Configuration, message));
        }
        let longest = identity.settings.get(SEQUENCE_LENGTH_KEY).and_then(|length| length.parse().ok()).unwrap_or(0);
        if longest > self.max_sequence_length {
            let message = format!(
                "the log has examples of up to {longest} tokens, but the student takes {}; raise student.max_sequence_length",
                self.max_sequence_length
            );
            return Err(Failure::new(ExitCode::Configuration, message));
        }
        self.teachers = arranged;
        Ok(())
    }
}

impl LoadedTeacher {
    fn entry(&self) -> TeacherEntry {
        TeacherEntry {
            name: self.section.name.clone(),
            languages: self.section.languages.clone(),
            labels: self.section.labels,
            vocabulary_size: self.tokenizer.len() as u32,
            tokenizer_fingerprint: self.tokenizer.fingerprint().to_owned(),
            weights_fingerprint: self.weights_fingerprint.clone(),
        }
    }
}

/// The configured limit; `None`: as far as the teachers' positions go.
fn sequence_limit(configuration: &Configuration) -> Option<usize> {
    let student = configuration.student.as_ref().map(|student| student.max_sequence_length);
    configuration.store.max_sequence_length.or(student)
}

/// Loads tokenizer and configuration (not the weights) of a teacher. Returns how many positions it has.
fn open_teacher(
    section: &Teacher,
    configuration: &Configuration,
    limit: Option<usize>,
) -> Result<(LoadedTeacher, usize), Failure> {
    let fail = |code, message: String| Failure::new(code, format!("teacher[{}]: {message}", section.name));
    let path: &Path = &section.path;
    if !path.is_dir() {
        return Err(fail(ExitCode::NoInput, format!("there is no folder {}; correct its `path`", path.display())));
    }
    let from_model = |error: model::ModelError| fail(ExitCode::of_model(&error), error.to_string());
    let tokenizer = Arc::new(Tokenizer::load(path).map_err(from_model)?);
    let mut positions = usize::MAX;
    let mut weights_fingerprint = String::new();
    let mut shape = None;
    if section.labels && !configuration.corpus.is_empty() {
        let loaded = model::Configuration::load(path).map_err(from_model)?;
        model::check_words(&loaded, &tokenizer).map_err(from_model)?;
        positions = loaded.max_position_embeddings;
        shape = Some(Arc::new(loaded));
        if let Some(limit) = limit.filter(|limit| *limit > positions) {
            let message =
                format!("it has {positions} positions; lower max_sequence_length ({limit}) in [student] or [store]");
            return Err(fail(ExitCode::Configuration, message));
        }
        if tokenizer.len() < configuration.store.top_k {
            let message =
                format!("it has {} words, fewer than store.top_k = {}", tokenizer.len(), configuration.store.top_k);
            return Err(fail(ExitCode::Configuration, message));
        }
        model::check_weights(path).map_err(from_model)?;
        weights_fingerprint = model::fingerprint_weights(path).map_err(from_model)?;
    } else if section.labels {
        // Where the log has its labels already, its shape only says what they have cost.
        shape = model::Configuration::load(path).ok().map(Arc::new);
    }
    Ok((LoadedTeacher { section: section.clone(), tokenizer, weights_fingerprint, shape }, positions))
}

fn open_corpora(configuration: &Configuration, problems: &mut Vec<Failure>) -> Vec<CorpusOptions> {
    if configuration.corpus.is_empty() {
        return Vec::new(); // Train only: held-out records are in the log.
    }
    let mut corpora = Vec::new();
    for (index, file) in configuration.evaluate.files.iter().enumerate() {
        let patterns = std::slice::from_ref(&file.path);
        corpora.push(CorpusOptions {
            name: format!("evaluate/{}-{index}", file.language),
            language: Language::Fixed(file.language.clone()),
            feed: FeedOptions::Files(expand(patterns, "evaluate.files", problems)),
            format: file.format.into(),
            rounds: file.rounds,
            evaluation_only: true,
            deduplicate: 0,
            retry: false,
        });
    }
    corpora.extend(configuration.corpus.iter().map(|corpus| open_corpus(corpus, problems)));
    corpora
}

/// A corpus whose files are there.
pub fn open_corpus(corpus: &Corpus, problems: &mut Vec<Failure>) -> CorpusOptions {
    CorpusOptions {
        name: corpus.name.clone(),
        language: corpus.language.clone().map_or(Language::Field, Language::Fixed),
        feed: open_feed(corpus, problems),
        format: corpus.format_options(),
        rounds: corpus.rounds.unwrap_or(1),
        evaluation_only: false,
        deduplicate: corpus.deduplicate,
        retry: false,
    }
}

/// Where the text of a corpus comes from. What has to be there already is looked for.
fn open_feed(corpus: &Corpus, problems: &mut Vec<Failure>) -> FeedOptions {
    let key = format!("corpus[{}]", corpus.name);
    let seconds = |value: Option<f64>| Duration::from_secs_f64(value.unwrap_or_default());
    let (settle, poll) = (seconds(corpus.settle_seconds), seconds(corpus.poll_seconds));
    let mut needs_folder = |folder: &Path| {
        if !folder.is_dir() {
            let message = format!("{key}: there is no folder {}; make it, or correct the path", folder.display());
            problems.push(Failure::new(ExitCode::NoInput, message));
        }
    };
    match corpus.origin() {
        CorpusOrigin::Files(patterns) => FeedOptions::Files(expand(patterns, &key, problems)),
        CorpusOrigin::Watch(folder) => {
            needs_folder(folder);
            FeedOptions::Watch { folder: folder.to_owned(), settle, poll }
        }
        CorpusOrigin::Follow(file) => {
            needs_folder(file.parent().unwrap_or(Path::new(".")));
            FeedOptions::Follow { file: file.to_owned(), settle, poll }
        }
        CorpusOrigin::Pipe(path) => {
            if !std::fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_fifo()) {
                let message = format!("{key}: there is no named pipe {}; make it with mkfifo", path.display());
                problems.push(Failure::new(ExitCode::NoInput, message));
            }
            FeedOptions::Spool
        }
        CorpusOrigin::Http | CorpusOrigin::Stdin => FeedOptions::Spool,
    }
}

fn expand(patterns: &[String], key: &str, problems: &mut Vec<Failure>) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for pattern in patterns {
        match ingest::expand(Path::new(pattern)) {
            Ok(found) => files.extend(found),
            Err(error) => problems.push(Failure::new(ExitCode::NoInput, format!("{key}: {error}"))),
        }
    }
    files
}
