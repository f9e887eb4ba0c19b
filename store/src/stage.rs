//! What every stage of the pipeline has in common: a switch to stop or pause it, and four metrics.

use prometheus::{Gauge, IntCounter, IntGauge, Opts, Registry};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A switch shared between a stage and whoever supervises it. Cloning shares it.
#[derive(Clone, Debug, Default)]
pub struct StageControl {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Clone, Copy, Debug, Default)]
struct State {
    stopping: bool,
    paused: bool,
}

impl StageControl {
    /// Asks the stage to end at its next safe point. Cannot be taken back.
    pub fn stop(&self) {
        self.lock().stopping = true;
        self.inner.changed.notify_all();
    }

    /// Suspends or resumes the stage at its next safe point.
    pub fn set_paused(&self, paused: bool) {
        self.lock().paused = paused;
        self.inner.changed.notify_all();
    }

    /// Whether the stage was asked to stop.
    #[must_use]
    pub fn stopping(&self) -> bool {
        self.lock().stopping
    }

    /// Whether the stage is paused.
    #[must_use]
    pub fn paused(&self) -> bool {
        self.lock().paused
    }

    /// Safe point: waits while the stage is paused. Returns `false` if it is to stop.
    #[must_use]
    pub fn proceed(&self) -> bool {
        let mut state = self.lock();
        while state.paused && !state.stopping {
            state = self.inner.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        !state.stopping
    }

    /// Waits for a change of the switch, at most `limit`. Returns `false` if the stage is to stop.
    #[must_use]
    pub fn wait(&self, limit: Duration) -> bool {
        let state = self.lock();
        if state.stopping {
            return false;
        }
        let (state, _) = self.inner.changed.wait_timeout(state, limit).unwrap_or_else(PoisonError::into_inner);
        !state.stopping
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The four metrics every stage has, labelled `stage`.
#[derive(Clone, Debug)]
pub struct StageMetrics {
    /// Items taken in.
    pub items_in: IntCounter,
    /// Items handed on.
    pub items_out: IntCounter,
    /// Items inside the stage.
    pub in_flight: IntGauge,
    last_progress: Gauge,
}

impl StageMetrics {
    /// Registers the metrics of `stage`.
    pub fn register(registry: &Registry, stage: &str) -> prometheus::Result<Self> {
        let opts = |name: &str, help: &str| Opts::new(name, help).const_label("stage", stage);
        let metrics = Self {
            items_in: IntCounter::with_opts(opts("mergedistill_stage_items_in_total", "Items taken in by a stage."))?,
            items_out: IntCounter::with_opts(opts(
                "mergedistill_stage_items_out_total",
                "Items handed on by a stage.",
            ))?,
            in_flight: IntGauge::with_opts(opts("mergedistill_stage_items_in_flight", "Items inside a stage."))?,
            last_progress: Gauge::with_opts(opts(
                "mergedistill_stage_last_progress_timestamp_seconds",
                "Unix time at which a stage last made progress.",
            ))?,
        };
        registry.register(Box::new(metrics.items_in.clone()))?;
        registry.register(Box::new(metrics.items_out.clone()))?;
        registry.register(Box::new(metrics.in_flight.clone()))?;
        registry.register(Box::new(metrics.last_progress.clone()))?;
        Ok(metrics)
    }

    /// Notes that the stage made progress now.
    pub fn progressed(&self) {
        self.last_progress.set(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64()));
    }
}
