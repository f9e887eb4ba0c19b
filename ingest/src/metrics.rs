//! What ingestion counts for the metrics server.

use crate::quarantine::Quarantine;
use prometheus::{IntCounterVec, IntGaugeVec, Opts, Registry};
use store::stage::StageMetrics;

/// The stage's metrics.
pub(crate) struct IngestMetrics {
    pub(crate) stage: StageMetrics,
    pub(crate) documents: IntCounterVec,
    pub(crate) examples: IntCounterVec,
    pub(crate) characters: IntCounterVec,
    pub(crate) bytes: IntCounterVec,
    pub(crate) available: IntGaugeVec,
    pub(crate) tokens: IntCounterVec,
    pub(crate) quarantined: IntCounterVec,
    pub(crate) duplicates: IntCounterVec,
}

impl IngestMetrics {
    pub(crate) fn register(registry: &Registry, quarantine: &Quarantine) -> prometheus::Result<Self> {
        let counter = |name: &str, help: &str, labels: &[&str]| {
            let counter = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(counter.clone()))?;
            prometheus::Result::Ok(counter)
        };
        let available =
            Opts::new("mergedistill_ingest_available_characters", "Characters that have arrived, read or not.");
        let available = IntGaugeVec::new(available, &["corpus"])?;
        registry.register(Box::new(available.clone()))?;
        for metric in quarantine.metrics() {
            registry.register(metric)?;
        }
        Ok(Self {
            available,
            stage: StageMetrics::register(registry, "ingest")?,
            documents: counter(
                "mergedistill_ingest_documents_total",
                "Documents read to their end, skipped ones included.",
                &["corpus"],
            )?,
            examples: counter("mergedistill_ingest_examples_total", "Examples made.", &["language"])?,
            characters: counter("mergedistill_ingest_characters_total", "Characters in examples.", &["corpus"])?,
            bytes: counter("mergedistill_ingest_bytes_total", "Bytes of text in examples.", &["corpus"])?,
            tokens: counter(
                "mergedistill_ingest_tokens_total",
                "Tokens in copies, [CLS] and [SEP] included.",
                &["teacher"],
            )?,
            duplicates: counter(
                "mergedistill_ingest_duplicates_total",
                "Documents skipped because an earlier one has the same text.",
                &["corpus"],
            )?,
            quarantined: counter(
                "mergedistill_ingest_quarantined_total",
                "Documents that could not be used.",
                &["corpus", "reason"],
            )?,
        })
    }
}
