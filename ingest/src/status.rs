//! A view of ingestion that others may read at any time without holding it up.

use crate::overrides::Overrides;
use crate::sampling::LanguageShare;
use crate::stream::CorpusStream;
use serde::{Serialize, Serializer};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use store::SequenceNumber;

/// The state of ingestion. Counts begin when the process starts.
#[derive(Debug, Serialize)]
pub struct IngestStatus {
    /// In the order of the configuration, then as they were added; a corpus with several languages is there once per
    /// language. What is tried again is shown once there is something.
    #[serde(serialize_with = "as_shown")]
    pub(crate) corpora: RwLock<Vec<Arc<CorpusStatus>>>,
    /// Languages with input that has not ended, by name.
    #[serde(serialize_with = "as_list")]
    pub(crate) languages: Mutex<Vec<LanguageStatus>>,
    /// Sequence number of the first entry since the last change of what is read, or of how.
    pub(crate) overrides_since: AtomicU64,
    /// Whether the disk has no room for what a restart has to know.
    #[serde(skip)]
    pub(crate) lacks_space: AtomicBool,
    /// Sequence number of the next entry.
    #[serde(skip)]
    pub(crate) next: AtomicU64,
    /// Whether all that was read is handed on, and nothing more is read until a pause ends.
    #[serde(skip)]
    pub(crate) at_rest: AtomicBool,
    #[serde(skip)]
    draining: AtomicBool,
}

/// The state of one corpus, or of one language of it.
#[derive(Debug, Serialize)]
pub struct CorpusStatus {
    pub(crate) name: String,
    pub(crate) language: String,
    pub(crate) evaluation_only: bool,
    #[serde(skip)]
    retry: bool,
    #[serde(serialize_with = "as_state")]
    pub(crate) state: AtomicU8,
    /// Files so far.
    pub(crate) files: AtomicUsize,
    pub(crate) characters_available: AtomicU64,
    /// Characters in examples.
    pub(crate) characters_consumed: AtomicU64,
    /// Share of the draws; 0 while it is suspended and once it has ended, and for evaluation-only corpora.
    #[serde(serialize_with = "as_fraction")]
    pub(crate) share: AtomicU64,
    pub(crate) documents: AtomicU64,
    pub(crate) examples: AtomicU64,
    pub(crate) skipped: AtomicU64,
    pub(crate) quarantined: AtomicU64,
    pub(crate) round: AtomicU32,
    pub(crate) ended: AtomicBool,
}

/// The state of one language.
#[derive(Debug, Serialize)]
pub(crate) struct LanguageStatus {
    language: String,
    characters_available: u64,
    /// Share of the draws while every language has something.
    share: f64,
    /// Whether the share was set by hand.
    overridden: bool,
}

/// What a corpus is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum CorpusState {
    Reading,
    /// It has nothing until something arrives.
    Waiting,
    Paused,
    Ended,
}

impl CorpusState {
    const NAMES: [&str; 4] = ["reading", "waiting", "paused", "ended"];
}

impl CorpusStatus {
    pub(crate) fn new(stream: &CorpusStream) -> Self {
        let (source, cursor) = (stream.source(), stream.cursor());
        Self {
            name: source.name.to_string(),
            language: source.language.to_string(),
            evaluation_only: source.evaluation_only,
            retry: source.retry,
            state: (CorpusState::Reading as u8).into(),
            files: stream.files().into(),
            characters_available: cursor.characters_available.into(),
            characters_consumed: 0.into(),
            share: 0.into(),
            documents: 0.into(),
            examples: 0.into(),
            skipped: 0.into(),
            quarantined: 0.into(),
            round: cursor.round.into(),
            ended: cursor.ended.into(),
        }
    }

    pub(crate) fn set_share(&self, share: f64) {
        self.share.store(share.to_bits(), Ordering::Relaxed);
    }

    pub(crate) fn set_state(&self, state: CorpusState) {
        self.state.store(state as u8, Ordering::Relaxed);
        self.ended.store(state == CorpusState::Ended, Ordering::Relaxed);
    }
}

impl IngestStatus {
    pub(crate) fn new(next: SequenceNumber) -> Self {
        Self {
            corpora: RwLock::default(),
            languages: Mutex::default(),
            overrides_since: 0.into(),
            lacks_space: false.into(),
            next: next.0.into(),
            at_rest: false.into(),
            draining: false.into(),
        }
    }

    /// Whether a pause drains: what was read by then is handed on, though its group is not full or the log holds more than the
    /// backlog.
    pub fn set_draining(&self, draining: bool) {
        self.draining.store(draining, Ordering::Relaxed);
    }

    pub(crate) fn draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Whether ingestion rests, and the log, which holds the entries before `durable_end`, has all that was read.
    #[must_use]
    pub fn is_drained(&self, durable_end: SequenceNumber) -> bool {
        self.at_rest.load(Ordering::Acquire) && self.next.load(Ordering::Relaxed) == durable_end.0
    }

    /// Whether ingestion waits for room on the disk.
    #[must_use]
    pub fn lacks_space(&self) -> bool {
        self.lacks_space.load(Ordering::Relaxed)
    }

    /// Why nothing of a language is drawn now, for people; `None`: it is drawn.
    #[must_use]
    pub fn standstill(&self, language: &str) -> Option<&'static str> {
        let languages = self.languages.lock().unwrap_or_else(PoisonError::into_inner);
        let corpora = self.corpora.read().unwrap_or_else(PoisonError::into_inner);
        let any = |language: &str, state: CorpusState| {
            let mut own = corpora.iter().filter(|corpus| corpus.language == language && !corpus.evaluation_only);
            own.any(|corpus| corpus.state.load(Ordering::Relaxed) == state as u8)
        };
        let drawn = |language: &&LanguageStatus| language.share > 0.0 && any(&language.language, CorpusState::Reading);
        match () {
            () if any(language, CorpusState::Reading) => {
                // Without a share it is drawn when the others have nothing.
                let mut others = languages.iter().filter(drawn);
                let is_left_out = others.clone().all(|other| other.language != language) && others.next().is_some();
                is_left_out.then_some("which has no share of what is read")
            }
            () if any(language, CorpusState::Paused) => Some("which is paused"),
            () => Some("of which nothing more has arrived"),
        }
    }

    pub(crate) fn set_corpora(&self, corpora: Vec<Arc<CorpusStatus>>) {
        *self.corpora.write().unwrap_or_else(PoisonError::into_inner) = corpora;
    }

    pub(crate) fn set_languages(&self, languages: &[LanguageShare], overrides: &Overrides) {
        let languages = languages.iter().map(|language| LanguageStatus {
            language: language.language.to_string(),
            characters_available: language.characters,
            share: language.share,
            overridden: overrides.shares.contains_key(&language.language),
        });
        *self.languages.lock().unwrap_or_else(PoisonError::into_inner) = languages.collect();
    }
}

/// Returns the new count.
pub(crate) fn add_one(counter: &AtomicU64) -> u64 {
    counter.fetch_add(1, Ordering::Relaxed) + 1
}

fn as_fraction<S: Serializer>(bits: &AtomicU64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(f64::from_bits(bits.load(Ordering::Relaxed)))
}

fn as_state<S: Serializer>(state: &AtomicU8, serializer: S) -> Result<S::Ok, S::Error> {
    let index = usize::from(state.load(Ordering::Relaxed));
    serializer.serialize_str(CorpusState::NAMES.get(index).copied().unwrap_or_default())
}

fn as_shown<S: Serializer>(corpora: &RwLock<Vec<Arc<CorpusStatus>>>, serializer: S) -> Result<S::Ok, S::Error> {
    let corpora = corpora.read().unwrap_or_else(PoisonError::into_inner);
    let shown =
        corpora.iter().filter(|corpus| !corpus.retry || corpus.characters_available.load(Ordering::Relaxed) > 0);
    serializer.collect_seq(shown.map(|corpus| &**corpus))
}

fn as_list<S: Serializer>(list: &Mutex<Vec<LanguageStatus>>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(list.lock().unwrap_or_else(PoisonError::into_inner).iter())
}
