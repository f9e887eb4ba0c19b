//! What inboxes count for the metrics server.

use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry,
};

/// From a solid-state disk's sync to that of a disk that is busy.
const COMMIT_BUCKETS_SECONDS: [f64; 9] = [0.000_5, 0.001, 0.002, 0.005, 0.01, 0.05, 0.2, 1.0, 5.0];

/// The metrics of all inboxes, labelled `corpus`.
#[derive(Clone, Debug)]
pub struct InboxMetrics {
    documents: IntCounterVec,
    bytes: IntCounterVec,
    last_progress: GaugeVec,
    rejected: IntCounterVec,
    duplicates: IntCounterVec,
    waiting_batches: IntGaugeVec,
    unread_bytes: IntGaugeVec,
    commit_seconds: HistogramVec,
}

/// The metrics of one inbox.
#[derive(Clone, Debug)]
pub(crate) struct InboxCounters {
    documents: IntCounter,
    bytes: IntCounter,
    last_progress: Gauge,
    /// By reason.
    rejected: IntCounterVec,
    corpus: String,
    pub(super) duplicates: IntCounter,
    pub(super) waiting_batches: IntGauge,
    pub(super) unread_bytes: IntGauge,
    pub(super) commit_seconds: Histogram,
}

impl InboxMetrics {
    /// Registers them.
    ///
    /// # Errors
    /// When they are registered already.
    pub fn register(registry: &Registry) -> prometheus::Result<Self> {
        let counter = |name: &str, help: &str, labels: &[&str]| {
            let counter = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(counter.clone()))?;
            prometheus::Result::Ok(counter)
        };
        let gauge = |name: &str, help: &str| {
            let gauge = IntGaugeVec::new(Opts::new(name, help), &["corpus"])?;
            registry.register(Box::new(gauge.clone()))?;
            prometheus::Result::Ok(gauge)
        };
        let commit_seconds = HistogramVec::new(
            HistogramOpts::new("mergedistill_inbox_commit_seconds", "Time to write and sync all batches that waited.")
                .buckets(COMMIT_BUCKETS_SECONDS.to_vec()),
            &["corpus"],
        )?;
        registry.register(Box::new(commit_seconds.clone()))?;
        let last_progress = GaugeVec::new(
            Opts::new(
                "mergedistill_inbox_last_progress_timestamp_seconds",
                "Unix time at which documents of an inbox were last made durable, there or in the log; 0: not yet.",
            ),
            &["corpus"],
        )?;
        registry.register(Box::new(last_progress.clone()))?;
        Ok(Self {
            documents: counter("mergedistill_inbox_documents_total", "Documents made durable.", &["corpus"])?,
            bytes: counter("mergedistill_inbox_bytes_total", "Bytes of documents made durable.", &["corpus"])?,
            last_progress,
            rejected: counter(
                "mergedistill_inbox_rejected_total",
                "Documents that came and were not taken, because they cannot be used.",
                &["corpus", "reason"],
            )?,
            duplicates: counter(
                "mergedistill_inbox_duplicate_batches_total",
                "Batches whose idempotency key was known.",
                &["corpus"],
            )?,
            waiting_batches: gauge("mergedistill_inbox_waiting_batches", "Batches that wait to be written.")?,
            unread_bytes: gauge(
                "mergedistill_inbox_unread_bytes",
                "Bytes in the inbox that the log does not hold yet.",
            )?,
            commit_seconds,
        })
    }

    pub(super) fn of(&self, corpus: &str) -> InboxCounters {
        InboxCounters {
            documents: self.documents.with_label_values(&[corpus]),
            bytes: self.bytes.with_label_values(&[corpus]),
            last_progress: self.last_progress.with_label_values(&[corpus]),
            rejected: self.rejected.clone(),
            corpus: corpus.to_owned(),
            duplicates: self.duplicates.with_label_values(&[corpus]),
            waiting_batches: self.waiting_batches.with_label_values(&[corpus]),
            unread_bytes: self.unread_bytes.with_label_values(&[corpus]),
            commit_seconds: self.commit_seconds.with_label_values(&[corpus]),
        }
    }
}

impl InboxCounters {
    /// So many documents became durable in the inbox.
    pub(super) fn arrived(&self, documents: u64, bytes: u64) {
        self.documents.inc_by(documents);
        self.bytes.inc_by(bytes);
        self.progressed();
    }

    /// Documents of the inbox became durable, there or in the log.
    pub(super) fn progressed(&self) {
        self.last_progress.set(store::stage::unix_seconds());
    }

    pub(super) fn rejected(&self, reason: &str) {
        self.rejected.with_label_values(&[&self.corpus, reason]).inc();
    }
}
