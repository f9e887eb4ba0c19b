//! Changes of what is read, and of who labels, while the daemon runs: corpora that are added, removed, paused, shares that are
//! set, teachers that are added and paused.
//!
//! A change is made by ingest between two entries. Before it is, the history in `run.json` durably says from which sequence
//! number it applies; what cannot be written there is not done. A restart finds it there and makes it again. The
//! configuration file stays the default, and is never written. It can be read again ([`Reload`]).

mod effective;
mod history;
mod reload;
mod teachers;

pub use effective::Effective;
pub use history::{Change, MadeChange, Standing, in_effect, remove_offline, with_advice};
pub use reload::{Reach, Reload};
pub use teachers::Addition;

use crate::configuration::{Configuration, Corpus, CorpusOrigin};
use crate::inputs::{Inputs, open_corpus};
use crate::push::Inboxes;
use crate::state_folder::StateFolder;
use crossbeam::channel::bounded;
use ingest::{ChangeError, Changes, IngestError};
use ops::{CommandError, CorporaChange};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use trainer::Input;

/// Changes that are shown.
const SHOWN_CHANGES: usize = 20;

/// Changes what a running pipeline reads. One change is made at a time.
#[derive(Debug)]
pub struct Live {
    changes: Changes,
    state: Arc<StateFolder>,
    inboxes: Arc<Inboxes>,
    /// What the trainer waits for; `None`: there is no trainer.
    training: Option<trainer::Inputs>,
    /// What is read now: corpora in the order in which they came, those for evaluation too. Held while a change is made.
    now: Mutex<Inputs>,
    configuration: Effective,
    /// Whether others are in charge since: the stages were opened anew.
    replaced: AtomicBool,
    /// Never held for long: a change may take as long as reading a corpus once.
    made: Mutex<Vec<MadeChange>>,
}

impl Live {
    /// For a pipeline that reads `inputs`.
    pub fn new(
        changes: Changes,
        state: Arc<StateFolder>,
        inboxes: Arc<Inboxes>,
        configuration: Effective,
        inputs: &Inputs,
        training: Option<trainer::Inputs>,
    ) -> Result<Self, crate::failure::Failure> {
        let made = StateFolder::changes(&configuration.get().run.state_dir)?;
        let (now, made, replaced) = (Mutex::new(inputs.clone()), Mutex::new(made), AtomicBool::new(false));
        let live = Self { changes, state, inboxes, training, now, configuration, replaced, made };
        live.tell_others(inputs);
        Ok(live)
    }

    /// Makes a change. Returns the change and the sequence number from which it applies.
    pub fn change(&self, change: CorporaChange) -> Result<Value, CommandError> {
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        self.check_in_charge()?;
        let made = match change {
            CorporaChange::Pause { corpus } => {
                let noted = Change::PauseCorpus { corpus: corpus.clone() };
                self.make(ingest::Change::Pause { corpus }, noted)?
            }
            CorporaChange::Resume { corpus } => {
                let noted = Change::ResumeCorpus { corpus: corpus.clone() };
                self.make(ingest::Change::Resume { corpus }, noted)?
            }
            CorporaChange::Share { language, share } => {
                let noted = match share {
                    Some(share) => Change::SetShare { language: language.clone(), share },
                    None => Change::ClearShare { language: language.clone() },
                };
                self.make(ingest::Change::Share { language, share }, noted)?
            }
            CorporaChange::Add { section, folder } => self.add(&mut now, section, &folder)?,
            CorporaChange::Remove { corpus } => {
                let noted = |removed: &Corpus| {
                    let configured = !removed.is_added;
                    Change::RemoveCorpus { corpus: removed.name.clone(), configured }
                };
                self.remove(&mut now, &corpus, &noted)?
            }
        };
        Ok(self.has_made(made, &now))
    }

    /// Another one is in charge from now on.
    pub fn replace(&self) {
        self.replaced.store(true, Ordering::Relaxed);
    }

    /// Teachers that are paused.
    pub fn paused_teachers(&self) -> BTreeSet<String> {
        Standing::of(self.made().iter().map(|made| &made.change)).paused_teachers
    }

    /// The latest changes, the newest last.
    pub fn latest(&self) -> Value {
        let made = self.made();
        json!(made[made.len().saturating_sub(SHOWN_CHANGES)..])
    }

    fn check_in_charge(&self) -> Result<(), CommandError> {
        if self.replaced.load(Ordering::Relaxed) {
            return Err(refusal(503, "renewing", "a teacher was just added; ask again".to_owned()));
        }
        Ok(())
    }

    /// Takes note of a change that was made; returns the answer.
    fn has_made(&self, made: MadeChange, now: &Inputs) -> Value {
        tracing::info!(from_sequence = made.from_sequence, "{}", made.change.describe());
        let answer = json!(made);
        self.made().push(made);
        self.tell_others(now);
        answer
    }

    fn made(&self) -> MutexGuard<'_, Vec<MadeChange>> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads one more corpus, which the configuration file has now.
    pub fn add_from_file(&self, corpus: Corpus) -> Result<(), CommandError> {
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        self.check_in_charge()?;
        let noted = Change::AddCorpusOfFile { corpus: corpus.name.clone() };
        let made = self.read(&mut now, corpus, noted)?;
        self.has_made(made, &now);
        Ok(())
    }

    /// Reads a corpus no more, which the configuration file has no more.
    pub fn remove_from_file(&self, corpus: &str) -> Result<(), CommandError> {
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        self.check_in_charge()?;
        let made = self.remove(&mut now, corpus, &|_| Change::RemoveCorpusOfFile { corpus: corpus.to_owned() })?;
        self.has_made(made, &now);
        Ok(())
    }

    /// Gives each language a share ∝ n^alpha.
    pub fn set_alpha(&self, alpha: f64) -> Result<(), CommandError> {
        let now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        self.check_in_charge()?;
        let made = match self.make(ingest::Change::Alpha(alpha), Change::SetAlpha { alpha }) {
            // Nothing is drawn any more.
            Err(CommandError { code: "ingest_ended", .. }) => return Ok(()),
            made => made?,
        };
        self.has_made(made, &now);
        Ok(())
    }

    /// From now on a group that is not full waits so long.
    pub fn set_linger(&self, linger: Duration) {
        self.changes.set_linger(linger);
    }

    fn add(&self, now: &mut Inputs, section: Value, folder: &Path) -> Result<MadeChange, CommandError> {
        let invalid = |message: String| refusal(400, "invalid_corpus", message);
        let table: toml::Table = serde_json::from_value(section).map_err(|error| invalid(error.to_string()))?;
        let corpus = Corpus::parse(table, folder).map_err(invalid)?;
        let noted = toml::Table::try_from(&corpus).map_err(|error| refusal(500, "failed", error.to_string()))?;
        self.read(now, corpus, Change::AddCorpus { corpus: noted })
    }

    fn read(&self, now: &mut Inputs, corpus: Corpus, noted: Change) -> Result<MadeChange, CommandError> {
        let invalid = |message: String| refusal(400, "invalid_corpus", message);
        if now.corpora.iter().any(|known| known.name == corpus.name) {
            return Err(refuse(ChangeError::InUse(corpus.name)));
        }
        if matches!(corpus.origin(), CorpusOrigin::Stdin | CorpusOrigin::Pipe(_)) {
            let message = "standard input and pipes are opened when the daemon starts: add it to the configuration file, or \
                           use source = \"http\" and `ctl push`";
            return Err(invalid(message.to_owned()));
        }
        let with_it = |now: &Configuration| {
            let sections = now.corpus.iter().cloned().chain([corpus.clone()]).collect();
            now.with_inputs(sections, now.teacher.clone()).map_err(invalid)
        };
        with_it(&self.configuration.get())?;
        let mut problems = Vec::new();
        let options = open_corpus(&corpus, &mut problems);
        if !problems.is_empty() {
            let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
            return Err(invalid(problems.join("; ")));
        }
        let has_inbox = matches!(corpus.origin(), CorpusOrigin::Http);
        let spool = has_inbox.then(|| self.inboxes.add(&options)).transpose().map_err(|error| refuse(error.into()))?;
        let opened = self.changes.open(&options, spool.as_ref()).map_err(refuse);
        let made = opened.and_then(|opened| self.make(ingest::Change::Add(opened), noted));
        if made.is_err() && has_inbox {
            self.inboxes.remove(&corpus.name);
        }
        let made = made?;
        self.configuration.change(with_it)?;
        crate::kept_configuration::keep_latest(&self.configuration);
        now.corpora.push(options);
        Ok(made)
    }

    fn remove(
        &self,
        now: &mut Inputs,
        corpus: &str,
        note: &dyn Fn(&Corpus) -> Change,
    ) -> Result<MadeChange, CommandError> {
        let mut sections = self.configuration.get().corpus.clone();
        let removed = sections.extract_if(.., |section| section.name == corpus).next();
        let Some(removed) = removed else {
            let known = sections.iter().map(|section| section.name.as_str()).collect::<Vec<_>>().join(", ");
            return Err(refuse(ChangeError::Unknown { what: "corpus", name: corpus.to_owned(), known }));
        };
        if sections.is_empty() {
            let message =
                "it is the last corpus, and without any the input would end; pause it instead, or add another first";
            return Err(refusal(409, "last_corpus", message.to_owned()));
        }
        if self.inboxes.is_pumped(corpus) {
            let message =
                "what comes through standard input or a pipe is taken until the daemon stops; pause it instead";
            return Err(refusal(409, "corpus_is_piped", message.to_owned()));
        }
        let (gone_in, gone) = bounded(1);
        let made = self.make(ingest::Change::Remove { corpus: corpus.to_owned(), gone: gone_in }, note(&removed))?;
        drop(gone.recv()); // Here, because it may take as long as to read a file.
        self.inboxes.remove(corpus);
        self.configuration.set(|now| now.corpus.retain(|section| section.name != corpus));
        crate::kept_configuration::keep_latest(&self.configuration);
        now.corpora.retain(|options| options.name != corpus);
        Ok(made)
    }

    /// Has ingest make the change, once the history has it.
    fn make(&self, change: ingest::Change, noted: Change) -> Result<MadeChange, CommandError> {
        let (state, to_note) = (Arc::clone(&self.state), noted.clone());
        let keep = move |from: store::SequenceNumber| {
            state.note_change(from.0, &to_note).map_err(|failure| failure.to_string())
        };
        let answer = self.changes.ask(change, Box::new(keep)).map_err(refuse)?;
        let from = answer.recv().unwrap_or(Err(ChangeError::Ended)).map_err(refuse)?;
        Ok(MadeChange { from_sequence: from.0, at_unix_seconds: crate::state_folder::unix_seconds(), change: noted })
    }

    /// Tells the trainer and the quarantine what is read now.
    fn tell_others(&self, inputs: &Inputs) {
        self.inboxes.set_corpora(&inputs.corpora);
        let Some(training) = &self.training else { return };
        let standing = Standing::of(self.made().iter().map(|made| &made.change));
        let teaches = |language: &String| {
            let mut teachers = inputs.teachers.iter().map(|teacher| &teacher.section);
            teachers.any(|teacher| {
                teacher.languages.contains(language) && !standing.paused_teachers.contains(&teacher.name)
            })
        };
        let for_training = crate::training::inputs_for_training(&inputs.corpora, inputs.languages());
        let waited_for = |input: Input| {
            // What is paused may not write to the log for days.
            let corpus = input.source.rsplit_once(':').map_or(input.source.as_str(), |(corpus, _)| corpus);
            let paused = standing.paused.contains(&input.source)
                || standing.paused.contains(corpus)
                || !teaches(&input.language);
            Input { finite: input.finite && !paused, ..input }
        };
        training.set(for_training.into_iter().map(waited_for).collect());
    }
}

fn refusal(status: u16, code: &'static str, message: String) -> CommandError {
    CommandError { status, code, message }
}

fn refuse(error: ChangeError) -> CommandError {
    let message = error.to_string();
    match error {
        ChangeError::Unknown { what: "language", .. } => refusal(404, "unknown_language", message),
        ChangeError::Unknown { what: "teacher", .. } => refusal(404, "unknown_teacher", message),
        ChangeError::Unknown { .. } => refusal(404, "unknown_corpus", message),
        ChangeError::Invalid(_) => refusal(400, "invalid_share", message),
        ChangeError::InUse(_) => refusal(409, "corpus_exists", message),
        ChangeError::NotKept(_) => refusal(500, "failed", message),
        ChangeError::Open(IngestError::Io { .. } | IngestError::Inbox { .. }) => refusal(500, "failed", message),
        ChangeError::Open(_) => refusal(400, "invalid_corpus", message),
        ChangeError::Ended => refusal(409, "ingest_ended", message),
    }
}
