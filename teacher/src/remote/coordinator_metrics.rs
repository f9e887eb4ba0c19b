//! What is known of a coordinator from outside.

use prometheus::{IntCounter, IntGauge, Registry};

/// Metrics of a coordinator. Cloning shares them.
#[derive(Clone, Debug)]
pub(super) struct CoordinatorMetrics {
    pub(super) connected: IntGauge,
    pub(super) waiting: IntGauge,
    pub(super) batches: IntCounter,
    pub(super) early: IntCounter,
    pub(super) repeated: IntCounter,
    pub(super) resent: IntCounter,
    pub(super) sent_bytes: IntCounter,
    pub(super) received_bytes: IntCounter,
}

impl CoordinatorMetrics {
    pub(super) fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let metrics = Self {
            connected: IntGauge::new(
                "mergedistill_cluster_connected",
                "1 while there is a connection to the server over which workers label.",
            )?,
            waiting: IntGauge::new(
                "mergedistill_cluster_waiting_batches",
                "Batches that workers have still to label.",
            )?,
            batches: IntCounter::new("mergedistill_cluster_batches_total", "Batches whose labels came from workers.")?,
            early: IntCounter::new(
                "mergedistill_cluster_early_batches_total",
                "Batches whose labels an earlier start of the daemon had asked for.",
            )?,
            repeated: IntCounter::new(
                "mergedistill_cluster_repeated_labels_total",
                "Messages with labels that the log had already, or that came twice.",
            )?,
            resent: IntCounter::new(
                "mergedistill_cluster_resent_batches_total",
                "Batches that went out again because the server had lost them, or their labels.",
            )?,
            sent_bytes: IntCounter::new(
                "mergedistill_cluster_sent_bytes_total",
                "Bytes of batches sent to the server.",
            )?,
            received_bytes: IntCounter::new(
                "mergedistill_cluster_received_bytes_total",
                "Bytes of labels that came from the server.",
            )?,
        };
        registry.register(Box::new(metrics.connected.clone()))?;
        registry.register(Box::new(metrics.waiting.clone()))?;
        registry.register(Box::new(metrics.batches.clone()))?;
        registry.register(Box::new(metrics.early.clone()))?;
        registry.register(Box::new(metrics.repeated.clone()))?;
        registry.register(Box::new(metrics.resent.clone()))?;
        registry.register(Box::new(metrics.sent_bytes.clone()))?;
        registry.register(Box::new(metrics.received_bytes.clone()))?;
        Ok(metrics)
    }
}
