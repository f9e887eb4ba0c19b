//! Adding a teacher while the daemon runs.
//!
//! What may be wrong with it is found out while all goes on: its folder is read, its weights are loaded and compared with
//! candle's result, its tokens united with the others'. Then the supervisor stops the stages in order, notes the change with
//! the number of the log's next entry, and opens the stages anew with one more teacher. That is what a restart does, only that
//! the weights of the others, the inboxes and the pipes into them, the sockets and the lock stay. So an addition has no state of
//! its own: up to the note in `run.json` there is none, and from there on a crash changes nothing.

use super::{Change, Live, refusal};
use crate::configuration::{Configuration, CorpusOrigin, Teacher};
use crate::inputs::Inputs;
use crate::pipeline::load_runner;
use crossbeam::channel::{Sender, bounded};
use ingest::{CorpusOptions, Language};
use ops::{CommandError, TeachersChange};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, PoisonError};
use teacher::Runner;
use trainer::{TeacherTokens, Vocabulary};

/// A teacher that is ready to be added, and what the run is with it.
pub struct Addition {
    /// Its section of the configuration.
    pub teacher: Teacher,
    /// The inputs with it.
    pub inputs: Inputs,
    /// Its weights; `None`: it does not label.
    pub runner: Option<Arc<Runner>>,
    /// For the history.
    pub change: Change,
    answer: Sender<Result<Value, CommandError>>,
}

impl Addition {
    /// Tells whoever waits for it what came of it.
    pub fn answer(&self, answer: Result<Value, CommandError>) {
        let _ = self.answer.send(answer); // Whoever asked may have left.
    }
}

impl Live {
    /// Makes a change. A teacher that is to be added is sent to `additions` once nothing is wrong with it. Returns the change
    /// and the sequence number from which it applies.
    pub fn change_teachers(&self, change: TeachersChange, additions: &Sender<Addition>) -> Result<Value, CommandError> {
        let now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        self.check_in_charge()?;
        let made = match change {
            TeachersChange::Pause { teacher } => {
                let noted = Change::PauseTeacher { teacher: teacher.clone() };
                self.make(ingest::Change::PauseTeacher { teacher }, noted)?
            }
            TeachersChange::Resume { teacher } => {
                let noted = Change::ResumeTeacher { teacher: teacher.clone() };
                self.make(ingest::Change::ResumeTeacher { teacher }, noted)?
            }
            TeachersChange::Add { section, folder } => {
                let (answer, answered) = bounded(1);
                let addition = prepare(&self.configuration.get(), &now, section, &folder, answer)?;
                let stopping = || refusal(503, "stopping", "the daemon is stopping".to_owned());
                additions.send(addition).map_err(|_| stopping())?;
                return answered.recv().map_err(|_| stopping())?;
            }
        };
        Ok(self.has_made(made, &now))
    }
}

/// Does all for the addition of a teacher that can be done, or go wrong, while everything goes on.
fn prepare(
    configuration: &Configuration,
    now: &Inputs,
    section: Value,
    folder: &Path,
    answer: Sender<Result<Value, CommandError>>,
) -> Result<Addition, CommandError> {
    let invalid = |message: String| refusal(400, "invalid_teacher", message);
    let table: toml::Table = serde_json::from_value(section).map_err(|error| invalid(error.to_string()))?;
    let teacher = Teacher::parse(table, folder).map_err(invalid)?;
    let name = &teacher.name;
    if now.teachers.iter().any(|known| known.section.name == *name) {
        let message = format!("a teacher `{name}` is there already; names must differ");
        return Err(refusal(409, "teacher_exists", message));
    }
    let before = configuration;
    let configuration = before.with_teacher(&teacher).map_err(invalid)?;
    let inputs = now.with_teacher(&teacher, &configuration).map_err(|problem| invalid(problem.message))?;
    check_vocabulary(&inputs).map_err(invalid)?;
    check_pipes(before, now, &inputs)?;
    let noted = toml::Table::try_from(&teacher).map_err(|error| refusal(500, "failed", error.to_string()))?;
    let added = inputs.teachers.len() - 1;
    let index = u16::try_from(added).map_err(|_| invalid(format!("there are {added} teachers, as many as can be")))?;
    let load = |teacher| load_runner(&configuration, index, teacher);
    let labels =
        inputs.teachers.last().filter(|teacher| teacher.section.labels && teacher.section.labelled_by.is_here());
    let runner = labels.map(load).transpose().map_err(|problem| invalid(problem.message))?;
    Ok(Addition { runner, change: Change::AddTeacher { teacher: noted }, teacher, inputs, answer })
}

/// The union of the teachers' vocabularies, which the student's is made of.
fn check_vocabulary(inputs: &Inputs) -> Result<(), String> {
    let tokens: Vec<TeacherTokens<'_>> =
        inputs.teachers.iter().map(|teacher| TeacherTokens::new(&teacher.section.name, &teacher.tokenizer)).collect();
    let vocabulary = Vocabulary::union(&tokens).map_err(|error| error.to_string())?;
    vocabulary.warnings().iter().for_each(|warning| tracing::warn!("{warning}"));
    Ok(())
}

/// An inbox that a pipe fills cannot be told of another language while it is filled.
fn check_pipes(before: &Configuration, now: &Inputs, inputs: &Inputs) -> Result<(), CommandError> {
    let known: BTreeSet<&str> = now.languages().collect();
    let Some(language) = inputs.languages().find(|language| !known.contains(language)) else { return Ok(()) };
    let is_piped = |corpus: &&CorpusOptions| {
        let section = before.corpus.iter().find(|section| section.name == corpus.name);
        let origin = section.map(|section| section.origin());
        corpus.language == Language::Field && matches!(origin, Some(CorpusOrigin::Stdin | CorpusOrigin::Pipe(_)))
    };
    match inputs.corpora.iter().find(is_piped) {
        Some(corpus) => {
            let message = format!(
                "corpus `{}` takes documents of all languages through a pipe, and `{language}` is a new one: add the teacher to \
                 the configuration file, and restart",
                corpus.name
            );
            Err(refusal(409, "corpus_is_piped", message))
        }
        None => Ok(()),
    }
}
