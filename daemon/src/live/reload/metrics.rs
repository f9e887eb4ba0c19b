//! What reloads came to.

use prometheus::{Gauge, IntCounterVec, Opts, Registry};
use store::stage::unix_seconds;

/// How a reload may end: all that differs is as in the file now; something is not, with the reason; nothing was changed.
const RESULTS: [&str; 3] = ["done", "refused", "failed"];

/// The metrics of reloads.
#[derive(Debug)]
pub(super) struct ReloadMetrics {
    reloads: IntCounterVec,
    last: Gauge,
}

impl ReloadMetrics {
    pub(super) fn register(registry: &Registry) -> prometheus::Result<Self> {
        let reloads = Opts::new(
            "mergedistill_reloads_total",
            "Reloads of the configuration, by result: `refused` if some change needs a restart or another run, `failed` if nothing was changed.",
        );
        let metrics = Self {
            reloads: IntCounterVec::new(reloads, &["result"])?,
            last: Gauge::new(
                "mergedistill_reload_timestamp_seconds",
                "Unix time of the last reload that did not fail; 0: none yet.",
            )?,
        };
        registry.register(Box::new(metrics.reloads.clone()))?;
        registry.register(Box::new(metrics.last.clone()))?;
        // An increase from 0 is seen; a series that begins with 1 shows none.
        for result in RESULTS {
            metrics.reloads.with_label_values(&[result]);
        }
        Ok(metrics)
    }

    /// A reload refused so many changes; `None`: it failed.
    pub(super) fn count(&self, refused: Option<usize>) {
        let [done, some_refused, failed] = RESULTS;
        let result = match refused {
            Some(0) => done,
            Some(_) => some_refused,
            None => failed,
        };
        self.reloads.with_label_values(&[result]).inc();
        if refused.is_some() {
            self.last.set(unix_seconds());
        }
    }
}
