//! What every stage of the pipeline has in common: a switch to stop or pause it, and four metrics.

use crate::pulse::{self, LOOK_INTERVAL, Wait};
use prometheus::{Gauge, IntCounter, IntGauge, Opts, Registry};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How soon a switch that hangs on another one notices that the other was turned.
const PARENT_INTERVAL: Duration = Duration::from_millis(100);

/// A switch shared between a stage and whoever supervises it. Cloning shares it.
#[derive(Clone, Debug, Default)]
pub struct StageControl {
    inner: Arc<Inner>,
    parent: Option<Arc<StageControl>>,
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
    /// A switch of its own that also stops and pauses whenever this one does: for work that a stage does beside its main work.
    #[must_use]
    pub fn child(&self) -> Self {
        Self { inner: Arc::default(), parent: Some(Arc::new(self.clone())) }
    }

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
        self.lock().stopping || self.parent.as_deref().is_some_and(Self::stopping)
    }

    /// Whether the stage is paused.
    #[must_use]
    pub fn paused(&self) -> bool {
        self.lock().paused || self.parent.as_deref().is_some_and(Self::paused)
    }

    /// Safe point: waits while the stage is paused. Returns `false` if it is to stop.
    #[must_use]
    pub fn proceed(&self) -> bool {
        let mut state = self.lock();
        loop {
            let parent = self.parent.as_deref();
            if state.stopping || parent.is_some_and(Self::stopping) {
                return false;
            }
            if !state.paused && !parent.is_some_and(Self::paused) {
                return true;
            }
            pulse::waits_for(Wait::Pause);
            let limit = if parent.is_some() { PARENT_INTERVAL } else { LOOK_INTERVAL };
            state = self.inner.changed.wait_timeout(state, limit).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits for a change of the switch, at most `limit`. Returns `false` if the stage is to stop.
    #[must_use]
    pub fn wait(&self, limit: Duration) -> bool {
        if self.stopping() {
            return false;
        }
        let limit = if self.parent.is_some() { limit.min(PARENT_INTERVAL) } else { limit };
        let state = self.lock();
        if !state.stopping {
            drop(self.inner.changed.wait_timeout(state, limit).unwrap_or_else(PoisonError::into_inner));
        }
        !self.stopping()
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
        self.last_progress.set(unix_seconds());
    }
}

/// The time now as metrics tell it: seconds since 1970.
#[must_use]
pub fn unix_seconds() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_follows_its_parent_and_never_turns_it() {
        let parent = StageControl::default();
        let child = parent.child();
        assert!(child.proceed() && !child.paused());
        parent.set_paused(true);
        assert!(child.paused() && !child.stopping());
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| child.proceed());
            parent.set_paused(false);
            assert!(waiting.join().is_ok_and(|proceeds| proceeds));
        });
        let other = parent.child();
        child.stop();
        assert!(!child.proceed() && !child.wait(Duration::from_secs(3600)));
        assert!(parent.proceed() && other.proceed(), "its parent and that one's other children go on");
        parent.stop();
        assert!(other.stopping() && !other.wait(Duration::from_secs(3600)));
    }
}
