//! A view of ingestion that others may read at any time without holding it up.

use serde::{Serialize, Serializer};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

/// The state of ingestion. Counts begin when the process starts.
#[derive(Debug, Serialize)]
pub struct IngestStatus {
    /// In the order of the configuration.
    pub corpora: Vec<CorpusStatus>,
}

/// The state of one corpus.
#[derive(Debug, Serialize)]
pub struct CorpusStatus {
    pub(crate) name: String,
    pub(crate) language: String,
    pub(crate) evaluation_only: bool,
    pub(crate) files: usize,
    pub(crate) characters_available: u64,
    /// Share of the draws; 0 once the corpus has ended, and for evaluation-only corpora.
    #[serde(serialize_with = "as_fraction")]
    pub(crate) share: AtomicU64,
    pub(crate) documents: AtomicU64,
    pub(crate) examples: AtomicU64,
    pub(crate) skipped: AtomicU64,
    pub(crate) quarantined: AtomicU64,
    pub(crate) round: AtomicU32,
    pub(crate) ended: AtomicBool,
}

impl CorpusStatus {
    pub(crate) fn set_share(&self, share: f64) {
        self.share.store(share.to_bits(), Ordering::Relaxed);
    }
}

/// Returns the new count.
pub(crate) fn add_one(counter: &AtomicU64) -> u64 {
    counter.fetch_add(1, Ordering::Relaxed) + 1
}

fn as_fraction<S: Serializer>(bits: &AtomicU64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(f64::from_bits(bits.load(Ordering::Relaxed)))
}
