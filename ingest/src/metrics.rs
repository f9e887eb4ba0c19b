//! What ingestion counts for the metrics server.

use prometheus::{IntCounterVec, Opts, Registry};
use store::stage::StageMetrics;

/// The stage's metrics.
pub(crate) struct IngestMetrics {
    pub(crate) stage: StageMetrics,
    pub(crate) documents: IntCounterVec,
    pub(crate) examples: IntCounterVec,
    pub(crate) characters: IntCounterVec,
    pub(crate) tokens: IntCounterVec,
    pub(crate) quarantined: IntCounterVec,
}

impl IngestMetrics {
    pub(crate) fn register(registry: &Registry) -> prometheus::Result<Self> {
        let counter = |name: &str, help: &str, labels: &[&str]| {
            let counter = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(counter.clone()))?;
            prometheus::Result::Ok(counter)
        };
        Ok(Self {
            stage: StageMetrics::register(registry, "ingest")?,
            documents: counter(
                "mergedistill_ingest_documents_total",
                "Documents read to their end, skipped ones included.",
                &["corpus"],
            )?,
            examples: counter("mergedistill_ingest_examples_total", "Examples made.", &["language"])?,
            characters: counter("mergedistill_ingest_characters_total", "Characters in examples.", &["corpus"])?,
            tokens: counter(
                "mergedistill_ingest_tokens_total",
                "Tokens in copies, [CLS] and [SEP] included.",
                &["teacher"],
            )?,
            quarantined: counter(
                "mergedistill_ingest_quarantined_total",
                "Documents that could not be used.",
                &["corpus", "reason"],
            )?,
        })
    }
}
