//! Inboxes: which corpora have one, who may push to it, what is pumped into it, and what the log has taken out of it.

use crate::configuration::{Configuration, CorpusOrigin};
use crate::failure::{ExitCode, Failure};
use crate::inputs::Inputs;
use ingest::feed::Feed;
use ingest::quarantine::{Quarantine, Retry, Which, file_name, retry_corpus};
use ingest::spool::{BatchBuilder, Inbox, InboxMetrics, InboxOptions, InboxStatus, Pump, PumpSource, PushError};
use ingest::{CorpusOptions, Format, FormatOptions, IngestError, Language, TextDocuments};
use ops::{CommandError, Push, PushAnswer, PushForm, PushTarget};
use prometheus::Registry;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;
use store::stage::StageControl;
use store::{SequenceNumber, SourceCursor};

/// Who is slow to send makes room for this long after somebody found none.
const PRESSURE: Duration = Duration::from_secs(2);

/// The inboxes of a run.
#[derive(Debug, Default)]
pub struct Inboxes {
    open: RwLock<Open>,
    /// The newest durable cursor of each source.
    durable: Mutex<BTreeMap<Arc<str>, SourceCursor>>,
    /// What another inbox is opened with; `None`: there are none in this run.
    opening: Option<Opening>,
    pumped: Vec<Pumped>,
    retry: Option<RwLock<Retry>>,
    /// For documents that cannot be used.
    quarantine: Option<Quarantine>,
}

/// The inboxes that are open.
#[derive(Debug, Default)]
struct Open {
    by_corpus: BTreeMap<String, Arc<Inbox>>,
    by_source: BTreeMap<String, Arc<Inbox>>,
}

#[derive(Debug)]
struct Opening {
    metrics: InboxMetrics,
    /// Folder of all inboxes.
    folder: PathBuf,
    /// Bytes of an inbox that the log may not hold yet.
    limit_bytes: AtomicU64,
    /// Languages of the teachers.
    languages: RwLock<Vec<String>>,
}

/// An inbox that is filled from here.
#[derive(Debug)]
struct Pumped {
    inbox: Arc<Inbox>,
    source: PumpSource,
    /// For documents that cannot be used.
    quarantine: Quarantine,
    /// Nothing more is taken.
    ended: bool,
}

impl Inboxes {
    /// Opens the inbox of every corpus that has one. `cursors` are those of the log.
    pub fn open(
        configuration: &Configuration,
        inputs: &Inputs,
        cursors: &BTreeMap<Arc<str>, SourceCursor>,
        quarantine: &Quarantine,
        registry: &Registry,
    ) -> Result<Self, Failure> {
        let metrics = InboxMetrics::register(registry)
            .map_err(|error| Failure::new(ExitCode::Software, format!("cannot register a metric: {error}")))?;
        let opening = Opening {
            metrics,
            folder: configuration.run.state_dir.join("inbox"),
            limit_bytes: configuration.queue.inbox_bytes.into(),
            languages: RwLock::new(inputs.languages().map(str::to_owned).collect()),
        };
        let mut inboxes = Self {
            durable: Mutex::new(cursors.clone()),
            opening: Some(opening),
            quarantine: Some(quarantine.clone()),
            ..Self::default()
        };
        for corpus in &configuration.corpus {
            let pumped = match corpus.origin() {
                CorpusOrigin::Http => None,
                CorpusOrigin::Stdin => Some(PumpSource::StandardInput),
                CorpusOrigin::Pipe(path) => Some(PumpSource::Pipe(path.to_owned())),
                CorpusOrigin::Files(_) | CorpusOrigin::Watch(_) | CorpusOrigin::Follow(_) => continue,
            };
            let Some(options) = inputs.corpora.iter().find(|options| options.name == corpus.name) else { continue };
            let (inbox, ended) = inboxes.open_inbox(options)?;
            if ended {
                let corpus = &corpus.name;
                tracing::warn!(
                    corpus,
                    "the corpus has ended in the log: nothing more is taken; a new name begins a new one"
                );
                inbox.end();
            }
            let quarantine = quarantine.clone();
            inboxes.pumped.extend(pumped.map(|source| Pumped { inbox: Arc::clone(&inbox), source, quarantine, ended }));
        }
        let (inbox, _) = inboxes.open_inbox(&retry_corpus())?;
        inboxes.retry = Some(RwLock::new(Retry::new(quarantine.clone(), &inputs.corpora, inbox)));
        Ok(inboxes)
    }

    /// Opens the inbox of a corpus, at the cursors of the log. Returns whether all of its sources have ended there.
    fn open_inbox(&self, corpus: &CorpusOptions) -> Result<(Arc<Inbox>, bool), IngestError> {
        let Some(opening) = &self.opening else {
            return Err(IngestError::Options("this run has no corpus, so it labels nothing".to_owned()));
        };
        let taught = read(&opening.languages).clone();
        let languages = taught.iter().map(String::as_str);
        let sources: Vec<String> = corpus.sources(languages).into_iter().map(|(name, _)| name).collect();
        // What the log's thread says from now on is for the inbox that is opened here.
        sources.iter().for_each(|source| drop(write(&self.open).by_source.remove(source)));
        let mut options = InboxOptions::new(sources.clone(), corpus.format.clone());
        options.spooled_bytes = opening.limit_bytes.load(Ordering::Relaxed);
        if corpus.language == Language::Field {
            options.languages = taught.iter().cloned().collect();
        }
        let folder = opening.folder.join(file_name(&corpus.name));
        let inbox = Arc::new(Inbox::open(&corpus.name, &folder, options, &opening.metrics)?);
        let durable = lock(&self.durable);
        let known: Vec<&SourceCursor> = sources.iter().filter_map(|source| durable.get(source.as_str())).collect();
        known.iter().for_each(|cursor| inbox.durable(cursor));
        let ended = known.len() == sources.len() && known.iter().all(|cursor| cursor.ended);
        let mut open = write(&self.open);
        open.by_source.extend(sources.into_iter().map(|source| (source, Arc::clone(&inbox))));
        open.by_corpus.insert(corpus.name.clone(), Arc::clone(&inbox));
        Ok((inbox, ended))
    }

    /// The stages are opened anew, with these inputs: the inboxes stay, but for those whose documents say their language. They are
    /// closed for a moment if there is another language now.
    pub fn renew(&self, inputs: &Inputs, cursors: &BTreeMap<Arc<str>, SourceCursor>) -> Result<(), IngestError> {
        cursors.values().for_each(|cursor| self.durable(cursor));
        let (Some(opening), Some(retry), Some(quarantine)) = (&self.opening, &self.retry, &self.quarantine) else {
            return Ok(());
        };
        let languages: Vec<String> = inputs.languages().map(str::to_owned).collect();
        let known = std::mem::replace(&mut *write(&opening.languages), languages.clone());
        if languages.iter().all(|language| known.contains(language)) {
            return Ok(());
        }
        let by_field = |corpus: &&CorpusOptions| {
            corpus.language == Language::Field && read(&self.open).by_corpus.contains_key(&corpus.name)
        };
        for corpus in inputs.corpora.iter().filter(by_field) {
            self.remove(&corpus.name);
            self.open_inbox(corpus)?;
        }
        self.remove(&retry_corpus().name);
        let (inbox, _) = self.open_inbox(&retry_corpus())?;
        *write(retry) = Retry::new(quarantine.clone(), &inputs.corpora, inbox);
        Ok(())
    }

    /// From now on an inbox may have so many bytes that the log does not hold, and the notes of the quarantine take so many.
    pub fn set_limits(&self, inbox_bytes: u64, quarantine_bytes: u64) {
        self.opening.iter().for_each(|opening| opening.limit_bytes.store(inbox_bytes, Ordering::Relaxed));
        read(&self.open).by_corpus.values().for_each(|inbox| inbox.set_limit(inbox_bytes));
        self.quarantine.iter().for_each(|quarantine| quarantine.set_limit(quarantine_bytes));
    }

    /// For documents that cannot be used; `None`: there are no inboxes in this run.
    pub fn quarantine(&self) -> Option<Quarantine> {
        self.quarantine.clone()
    }

    /// Opens the inbox of a corpus that documents are pushed to.
    pub fn add(&self, corpus: &CorpusOptions) -> Result<Arc<dyn Feed>, IngestError> {
        Ok(self.open_inbox(corpus)?.0)
    }

    /// Takes no more documents for a corpus. What came stays where it is.
    pub fn remove(&self, corpus: &str) {
        let inbox = write(&self.open).by_corpus.remove(corpus);
        inbox.iter().for_each(|inbox| inbox.close());
    }

    /// Whether the corpus is filled through its pipe.
    pub fn is_pumped(&self, corpus: &str) -> bool {
        let open = read(&self.open);
        let inbox = open.by_corpus.get(corpus);
        inbox.is_some_and(|inbox| self.pumped.iter().any(|pumped| Arc::ptr_eq(&pumped.inbox, inbox)))
    }

    /// The corpora whose documents may be tried again.
    pub fn set_corpora(&self, corpora: &[CorpusOptions]) {
        self.retry.iter().for_each(|retry| write(retry).set_corpora(corpora));
    }

    /// Has quarantined documents tried again; `durable_end` is the first sequence number that the log does not durably hold.
    pub fn retry(&self, which: &Which, durable_end: SequenceNumber) -> Result<Value, CommandError> {
        let error = |status, code, message| CommandError { status, code, message };
        let Some(retry) = &self.retry else {
            return Err(error(409, "no_corpus", "this run has no corpus, so it labels nothing".to_owned()));
        };
        let retry = read(retry).clone();
        let retried = retry.retry(which, durable_end.0).map_err(|failed| error(500, "failed", failed.to_string()))?;
        serde_json::to_value(retried).map_err(|failed| error(500, "failed", failed.to_string()))
    }

    /// What ingest reads, by corpus.
    pub fn feeds(&self) -> BTreeMap<String, Arc<dyn Feed>> {
        let feed = |inbox: &Arc<Inbox>| Arc::clone(inbox) as Arc<dyn Feed>;
        read(&self.open).by_corpus.iter().map(|(name, inbox)| (name.clone(), feed(inbox))).collect()
    }

    /// What moves documents into inboxes until `control` says stop: a name and a body for each thread.
    pub fn pumps(
        &self,
        control: &StageControl,
    ) -> Vec<(&'static str, impl FnOnce() -> Result<(), Failure> + Send + use<>)> {
        let pump = |Pumped { inbox, source, quarantine, .. }: &Pumped| {
            let name = match source {
                PumpSource::StandardInput => "stdin",
                PumpSource::Pipe(_) => "pipe",
            };
            let (inbox, source, control) = (Arc::clone(inbox), source.clone(), control.clone());
            let quarantine = quarantine.clone();
            (name, move || Pump::new(source, &inbox, &control, quarantine).run().map_err(Failure::from))
        };
        self.pumped.iter().filter(|pumped| !pumped.ended).map(pump).collect()
    }

    /// Whether the source reads an inbox.
    pub fn holds(&self, source: &str) -> bool {
        read(&self.open).by_source.contains_key(source)
    }

    /// The log durably holds the entry that carries `cursor`.
    pub fn durable(&self, cursor: &SourceCursor) {
        lock(&self.durable).insert(Arc::clone(&cursor.source), cursor.clone());
        let inbox = read(&self.open).by_source.get(cursor.source.as_ref()).cloned();
        inbox.iter().for_each(|inbox| inbox.durable(cursor));
    }

    /// Opens a batch for documents that a client is about to send.
    pub fn push(&self, target: &PushTarget) -> Result<Box<dyn Push>, CommandError> {
        let unknown = |message| Err(CommandError { status: 404, code: "unknown_corpus", message });
        let name = &target.corpus;
        let open = read(&self.open);
        let Some(inbox) = open.by_corpus.get(name) else {
            return unknown(format!("there is no corpus `{name}` with source = \"http\""));
        };
        if *name == retry_corpus().name {
            return unknown("documents come back out of the quarantine with `ctl quarantine retry` alone".to_owned());
        }
        if self.pumped.iter().any(|pumped| Arc::ptr_eq(&pumped.inbox, inbox)) {
            return unknown(format!("corpus `{name}` takes what comes through its pipe, and nothing else"));
        }
        let format = match target.form {
            PushForm::JsonLines => json_lines(inbox.format()),
            PushForm::Text => text(inbox.format())?,
        };
        Ok(Box::new(Pushing { batch: inbox.batch_of(&format), inbox: Arc::clone(inbox), key: target.key.clone() }))
    }

    /// How each inbox is, by corpus.
    pub fn status(&self) -> BTreeMap<String, InboxStatus> {
        read(&self.open).by_corpus.iter().map(|(name, inbox)| (name.clone(), inbox.status())).collect()
    }

    /// Why an inbox takes nothing any more, if one does.
    pub fn failure(&self) -> Option<String> {
        read(&self.open).by_corpus.values().find_map(|inbox| inbox.status().failed)
    }

    /// Takes no more. Returns when everything that waited is durable.
    pub fn close(&self) {
        let inboxes: Vec<Arc<Inbox>> = read(&self.open).by_corpus.values().cloned().collect();
        inboxes.iter().for_each(|inbox| inbox.close());
    }
}

/// A request whose documents are being received.
struct Pushing {
    inbox: Arc<Inbox>,
    batch: BatchBuilder,
    key: Option<String>,
}

impl Push for Pushing {
    fn write(&mut self, bytes: &[u8]) -> Result<(), CommandError> {
        self.batch.write(bytes).map_err(refusal)
    }

    fn pressed(&self) -> bool {
        self.inbox.pressed_within(PRESSURE)
    }

    fn finish(self: Box<Self>, answer: PushAnswer) {
        let batch = match self.batch.finish(self.key) {
            Ok(batch) => batch,
            Err(error) => return answer(Err(refusal(error))),
        };
        self.inbox.push(batch, move |outcome| {
            answer(outcome.map(|receipt| serde_json::to_value(receipt).unwrap_or(Value::Null)).map_err(refusal));
        });
    }
}

/// JSON lines as the corpus has them; where it is one of text, with their usual fields.
fn json_lines(configured: &FormatOptions) -> FormatOptions {
    match configured.format {
        Format::Text => Format::JsonLines.into(),
        Format::JsonLines | Format::Parquet => configured.clone(),
    }
}

/// Text with an empty line between documents, unless the corpus says otherwise. Text has no language of its own.
fn text(configured: &FormatOptions) -> Result<FormatOptions, CommandError> {
    if configured.language_field.is_some() {
        let message = "the corpus takes the language of each document from a field: send JSON lines".to_owned();
        return Err(CommandError { status: 415, code: "unsupported_media_type", message });
    }
    let documents = match configured.format {
        Format::Text => configured.documents,
        Format::JsonLines | Format::Parquet => TextDocuments::EmptyLine,
    };
    Ok(FormatOptions { documents, ..Format::Text.into() })
}

fn refusal(error: PushError) -> CommandError {
    let (status, code) = match &error {
        PushError::Busy { .. } => (503, "busy"),
        PushError::Full { .. } => (503, "inbox_full"),
        PushError::NoSpace { .. } => (507, "no_space"),
        PushError::TooLarge { .. } => (413, "body_too_large"),
        PushError::Closed => (503, "stopping"),
        _ => (503, "inbox_failed"),
    };
    CommandError { status, code, message: error.to_string() }
}

fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
