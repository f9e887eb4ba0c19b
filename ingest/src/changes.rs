//! Changes of what is read while the stage runs.
//!
//! The stage makes a change between two entries, whatever it waits for meanwhile, and says from which sequence number it
//! applies: no entry from there on was drawn without it, none before it with it. Whoever asks may have that number
//! written down first; what cannot be written down is not done.
//!
//! A corpus that is to be added is opened by whoever asks for it, so that counting its characters holds nobody up; one that was
//! removed is closed by whoever asked for that.

use crate::feed::{Feed, Waker};
use crate::overrides::Overrides;
use crate::sources::Opener;
use crate::stream::CorpusStream;
use crate::{CorpusOptions, IngestError};
use crossbeam::channel::{Receiver, Sender, bounded, unbounded};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use store::{SequenceNumber, SourceCursor};

/// What is to change.
pub enum Change {
    /// Suspends a corpus, or one source of it. What arrives meanwhile is kept.
    Pause {
        /// Its name.
        corpus: String,
    },
    /// Takes a pause back.
    Resume {
        /// Name of the corpus or source.
        corpus: String,
    },
    /// Makes no copies for a teacher.
    PauseTeacher {
        /// Its name.
        teacher: String,
    },
    /// Takes the pause of a teacher back.
    ResumeTeacher {
        /// Its name.
        teacher: String,
    },
    /// Gives a language a share of the draws.
    Share {
        /// The language.
        language: String,
        /// Within (0, 1]; `None`: what follows from its characters.
        share: Option<f64>,
    },
    /// Gives each language a share ∝ n^alpha.
    Alpha(f64),
    /// Reads one more corpus.
    Add(OpenedCorpus),
    /// Reads a corpus no more. Its cursors stay in the log; added again, it goes on there.
    Remove {
        /// Its name.
        corpus: String,
        /// Where what was open goes, before the answer; with room for it.
        gone: Sender<RemovedCorpus>,
    },
}

/// Writes down the sequence number from which a change applies, before it does; or says why it cannot.
pub type Keep = Box<dyn FnOnce(SequenceNumber) -> Result<(), String> + Send>;

/// Where the sequence number comes from which a change applies. Closed without one: the stage has ended.
pub type Answer = Receiver<Result<SequenceNumber, ChangeError>>;

/// Why a change was not made.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// There is no corpus, language or teacher of that name.
    #[error("there is no {what} `{name}`; there is: {known}")]
    Unknown {
        /// `corpus`, `language` or `teacher`.
        what: &'static str,
        /// The name.
        name: String,
        /// The names that there are.
        known: String,
    },
    /// It cannot be so.
    #[error("{0}")]
    Invalid(String),
    /// A corpus, or a source of one, has the name already.
    #[error("a corpus `{0}` is there already; names must differ")]
    InUse(String),
    /// It could not be written down.
    #[error("{0}")]
    NotKept(String),
    /// The corpus cannot be opened.
    #[error(transparent)]
    Open(#[from] IngestError),
    /// Nothing is read any more.
    #[error("all input has ended, or the daemon stops: nothing is read any more")]
    Ended,
}

/// A corpus that is read no more. Dropping it waits for whoever watches its folder or file, who may be reading a large one: that is
/// for whoever asked for the removal, before the corpus is added again.
pub struct RemovedCorpus {
    _streams: Vec<CorpusStream>,
}

/// A corpus that is open, and not read yet.
pub struct OpenedCorpus {
    pub(crate) streams: Vec<CorpusStream>,
}

/// Asks a running stage for changes. Cloning shares it.
#[derive(Clone)]
pub struct Changes {
    inner: Arc<Inner>,
}

struct Inner {
    requests: Sender<Request>,
    waker: Waker,
    opener: Opener,
    /// Sequence number of the first entry of this stage.
    start: SequenceNumber,
    known: Arc<Mutex<Known>>,
    linger_ms: Arc<AtomicU64>,
}

/// A change, and who waits for it.
struct Request {
    change: Change,
    keep: Keep,
    answer: Sender<Result<SequenceNumber, ChangeError>>,
}

/// What both sides know of the corpora.
#[derive(Default)]
struct Known {
    /// Names of corpora and sources that are read.
    in_use: BTreeSet<Arc<str>>,
    /// Where sources stand that are not.
    cursors: BTreeMap<Arc<str>, SourceCursor>,
    /// Sources that this stage has read, and reads no more.
    removed: BTreeSet<Arc<str>>,
}

/// The stage's side.
pub(crate) struct Changing {
    requests: Receiver<Request>,
    languages: BTreeSet<Arc<str>>,
    /// Names of the teachers.
    teachers: BTreeSet<Arc<str>>,
    known: Arc<Mutex<Known>>,
    linger_ms: Arc<AtomicU64>,
}

impl Changes {
    /// Both sides. `cursors` are those of the log, `streams` those that are read.
    pub(crate) fn new(
        opener: Opener,
        cursors: &BTreeMap<Arc<str>, SourceCursor>,
        start: SequenceNumber,
        streams: &[CorpusStream],
        linger: Duration,
    ) -> (Self, Changing) {
        let linger_ms = Arc::new(AtomicU64::new(0));
        let (requests_in, requests) = unbounded(); // Who asks waits for the answer.
        let known = Known { in_use: names(streams), cursors: cursors.clone(), removed: BTreeSet::new() };
        let known = Arc::new(Mutex::new(known));
        let languages = opener.teachers().keys().cloned().collect();
        let teachers = opener.teacher_names().collect();
        let (to_share, linger_of_stage) = (Arc::clone(&known), Arc::clone(&linger_ms));
        let changing = Changing { requests, languages, teachers, known: to_share, linger_ms: linger_of_stage };
        let waker = opener.waker();
        let inner = Inner { requests: requests_in, waker, opener, start, known, linger_ms };
        let changes = Self { inner: Arc::new(inner) };
        changes.set_linger(linger);
        (changes, changing)
    }

    /// From now on a group that is not full is handed on when there is nothing to read and its first entry is this old, to the
    /// millisecond.
    pub fn set_linger(&self, linger: Duration) {
        let linger_ms = u64::try_from(linger.as_millis()).unwrap_or(u64::MAX);
        self.inner.linger_ms.store(linger_ms, Ordering::Relaxed);
    }

    /// Opens a corpus so that it can be added: at its cursors if it was read before. `spool` is its spool if it has one.
    ///
    /// # Errors
    /// When it may not be configured so, its name is in use, or its files cannot be read.
    pub fn open(&self, corpus: &CorpusOptions, spool: Option<&Arc<dyn Feed>>) -> Result<OpenedCorpus, ChangeError> {
        let Inner { opener, start, known, .. } = &*self.inner;
        let names = opener.names(corpus);
        let (cursors, next) = {
            let known = lock(known);
            known.check_free(names.iter())?;
            let read_before = names.iter().any(|name| known.removed.contains(name));
            (known.cursors.clone(), if read_before { SequenceNumber(u64::MAX) } else { *start })
        };
        Ok(OpenedCorpus { streams: opener.open(corpus, spool, &cursors, next)? })
    }

    /// Asks for a change; `keep` is called with the sequence number from which it applies, on the stage's thread.
    ///
    /// # Errors
    /// When nothing is read any more.
    pub fn ask(&self, change: Change, keep: Keep) -> Result<Answer, ChangeError> {
        let (answer, answered) = bounded(1);
        self.inner.requests.send(Request { change, keep, answer }).map_err(|_| ChangeError::Ended)?;
        self.inner.waker.wake();
        Ok(answered)
    }
}

impl Changing {
    pub(crate) fn linger(&self) -> Duration {
        Duration::from_millis(self.linger_ms.load(Ordering::Relaxed))
    }

    /// Leaves out of `overrides` what is about languages and corpora that are not there.
    pub(crate) fn settle(&self, overrides: &mut Overrides) {
        overrides.keep_known(&self.languages, &lock(&self.known).in_use, &self.teachers);
    }

    /// Makes the changes that were asked for; `next` is the sequence number of the next entry. Returns whether there were any.
    pub(crate) fn make(
        &self,
        streams: &mut Vec<CorpusStream>,
        overrides: &mut Overrides,
        next: SequenceNumber,
    ) -> Result<bool, IngestError> {
        let mut changed = false;
        while let Ok(Request { change, keep, answer }) = self.requests.try_recv() {
            let answered = |outcome| drop(answer.send(outcome)); // Whoever asked may have left.
            let has_room = match sync_before(&change, streams) {
                Ok(has_room) => has_room,
                Err(error) => {
                    answered(Err(ChangeError::NotKept(error.to_string())));
                    return Err(error);
                }
            };
            let outcome = match has_room {
                true => self.make_one(change, keep, streams, overrides, next),
                false => Err(ChangeError::NotKept("no space is left on the disk".to_owned())),
            };
            changed |= outcome.is_ok();
            answered(outcome.map(|()| next));
        }
        Ok(changed)
    }

    fn make_one(
        &self,
        change: Change,
        keep: Keep,
        streams: &mut Vec<CorpusStream>,
        overrides: &mut Overrides,
        next: SequenceNumber,
    ) -> Result<(), ChangeError> {
        let mut known = lock(&self.known);
        let mut after = overrides.clone();
        match &change {
            Change::Pause { corpus } => after.set_paused(find(&known.in_use, "corpus", corpus)?, true),
            Change::Resume { corpus } => after.set_paused(find(&known.in_use, "corpus", corpus)?, false),
            Change::PauseTeacher { teacher } => {
                after.set_teacher_paused(find(&self.teachers, "teacher", teacher)?, true);
            }
            Change::ResumeTeacher { teacher } => {
                after.set_teacher_paused(find(&self.teachers, "teacher", teacher)?, false);
            }
            Change::Share { language, share } => {
                after.set_share(&find(&self.languages, "language", language)?, *share)?;
            }
            Change::Alpha(alpha) => after.alpha = Some(*alpha),
            Change::Add(opened) => known.check_free(names(&opened.streams).iter())?,
            Change::Remove { corpus, .. } => {
                let of_corpus = |stream: &&CorpusStream| *stream.source().corpus == **corpus;
                let corpora = streams.iter().map(|stream| Arc::clone(&stream.source().corpus)).collect();
                find(&corpora, "corpus", corpus)?;
                let gone = names(streams.iter().filter(of_corpus));
                after.paused.retain(|name| !gone.contains(name));
            }
        }
        keep(next).map_err(ChangeError::NotKept)?;
        match change {
            Change::Add(opened) => known.add(opened.streams, streams),
            Change::Remove { corpus, gone } => drop(gone.send(known.remove(&corpus, streams))),
            Change::Pause { .. }
            | Change::Resume { .. }
            | Change::PauseTeacher { .. }
            | Change::ResumeTeacher { .. }
            | Change::Share { .. }
            | Change::Alpha(_) => {}
        }
        *overrides = after;
        Ok(())
    }
}

impl Known {
    fn check_free<'a>(&self, mut names: impl Iterator<Item = &'a Arc<str>>) -> Result<(), ChangeError> {
        let taken = names.find(|name| self.in_use.contains(*name));
        taken.map_or(Ok(()), |name| Err(ChangeError::InUse(name.to_string())))
    }

    fn add(&mut self, opened: Vec<CorpusStream>, streams: &mut Vec<CorpusStream>) {
        self.in_use.extend(names(&opened));
        streams.extend(opened);
    }

    fn remove(&mut self, corpus: &str, streams: &mut Vec<CorpusStream>) -> RemovedCorpus {
        let removed: Vec<_> = streams.extract_if(.., |stream| *stream.source().corpus == *corpus).collect();
        for stream in &removed {
            self.in_use.remove(&stream.source().name);
            self.in_use.remove(&stream.source().corpus);
            self.removed.insert(Arc::clone(&stream.source().name));
            self.cursors.insert(Arc::clone(&stream.source().name), stream.cursor().clone());
        }
        RemovedCorpus { _streams: removed }
    }
}

impl fmt::Debug for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Changes").finish_non_exhaustive()
    }
}

/// Before a corpus is removed, what a restart has to know of it is made durable: entries of it may be in the group that is being
/// filled. `false`: there is no space. What is half written then is fatal, as in every other sync.
fn sync_before(change: &Change, streams: &mut [CorpusStream]) -> Result<bool, IngestError> {
    let Change::Remove { corpus, .. } = change else { return Ok(true) };
    let mut of_corpus = streams.iter_mut().filter(|stream| *stream.source().corpus == **corpus);
    of_corpus.try_fold(true, |done, stream| Ok(stream.sync(0)? && done))
}

/// Names of the streams and of their corpora.
fn names<'a>(streams: impl IntoIterator<Item = &'a CorpusStream>) -> BTreeSet<Arc<str>> {
    let names = |stream: &CorpusStream| [Arc::clone(&stream.source().name), Arc::clone(&stream.source().corpus)];
    streams.into_iter().flat_map(names).collect()
}

fn find(names: &BTreeSet<Arc<str>>, what: &'static str, name: &str) -> Result<Arc<str>, ChangeError> {
    names.get(name).cloned().ok_or_else(|| {
        let known: Vec<&str> = names.iter().map(|name| &**name).collect();
        ChangeError::Unknown { what, name: name.to_owned(), known: known.join(", ") }
    })
}

fn lock(known: &Mutex<Known>) -> MutexGuard<'_, Known> {
    known.lock().unwrap_or_else(PoisonError::into_inner)
}
