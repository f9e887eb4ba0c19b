//! What releases show to Prometheus.

use super::{ReleaseState, ReleaseStatus};
use prometheus::{Gauge, IntCounter, IntCounterVec, IntGauge, Opts, Registry};

/// The metrics of releases.
pub(super) struct Metrics {
    running: IntGauge,
    step: IntGauge,
    steps: IntGauge,
    tokens: IntCounter,
    last_progress: Gauge,
    ended: IntCounterVec,
}

impl Metrics {
    pub(super) fn register(registry: &Registry) -> prometheus::Result<Self> {
        let metrics = Self {
            running: IntGauge::new("mergedistill_release_running", "Whether a release is being trained.")?,
            step: IntGauge::new("mergedistill_release_step", "Steps done of the release that began last.")?,
            steps: IntGauge::new("mergedistill_release_steps", "Steps of the release that began last.")?,
            tokens: IntCounter::new(
                "mergedistill_release_tokens_total",
                "Tokens that releases were trained on by this process.",
            )?,
            last_progress: Gauge::new(
                "mergedistill_release_last_progress_timestamp_seconds",
                "Unix time of the last step of a release; 0: none yet.",
            )?,
            ended: IntCounterVec::new(
                Opts::new("mergedistill_releases_total", "Releases that ended in this process, by result."),
                &["result"],
            )?,
        };
        registry.register(Box::new(metrics.running.clone()))?;
        registry.register(Box::new(metrics.step.clone()))?;
        registry.register(Box::new(metrics.steps.clone()))?;
        registry.register(Box::new(metrics.tokens.clone()))?;
        registry.register(Box::new(metrics.last_progress.clone()))?;
        registry.register(Box::new(metrics.ended.clone()))?;
        // An increase from 0 is seen; a series that begins with 1 shows none.
        for result in ["done", "failed", "cancelled"] {
            metrics.ended.with_label_values(&[result]);
        }
        Ok(metrics)
    }

    /// Shows how a release is while it runs.
    pub(super) fn show(&self, status: &ReleaseStatus) {
        let number = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        self.running.set(1);
        self.step.set(number(status.step));
        self.steps.set(number(status.steps));
    }

    pub(super) fn add_tokens(&self, tokens: u64) {
        self.tokens.inc_by(tokens);
        self.last_progress.set(store::stage::unix_seconds());
    }

    /// A release does not run any more: it ended as `state`, or goes on another time.
    pub(super) fn ended(&self, state: ReleaseState) {
        self.running.set(0);
        let result = match state {
            ReleaseState::Running => return,
            ReleaseState::Done => "done",
            ReleaseState::Failed => "failed",
            ReleaseState::Cancelled => "cancelled",
        };
        self.ended.with_label_values(&[result]).inc();
    }
}
