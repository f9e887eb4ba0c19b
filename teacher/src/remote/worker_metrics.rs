//! What is known of a worker from outside.

use prometheus::{Counter, CounterVec, IntCounter, IntGauge, Opts, Registry};
use std::time::Instant;

/// Metrics of a worker. Cloning shares them.
#[derive(Clone, Debug)]
pub struct WorkerMetrics {
    pub(super) batches: IntCounter,
    pub(super) tokens: IntCounter,
    pub(super) failed_batches: IntCounter,
    pub(super) sent_bytes: IntCounter,
    pub(super) in_flight: IntGauge,
    pub(super) connected: IntGauge,
    halvings: IntCounter,
    seconds: CounterVec,
}

/// Counts the time from its making to its end.
pub(super) struct Stretch {
    since: Instant,
    seconds: Counter,
}

impl Drop for Stretch {
    fn drop(&mut self) {
        self.seconds.inc_by(self.since.elapsed().as_secs_f64());
    }
}

impl WorkerMetrics {
    /// Registers them: once, however often the worker joins its run.
    ///
    /// # Errors
    /// When they are there already.
    pub fn register(registry: &Registry, teacher: &str) -> Result<Self, prometheus::Error> {
        let opts = |name: &str, help: &str| Opts::new(name, help).const_label("teacher", teacher);
        let counter = |name: &str, help: &str| IntCounter::with_opts(opts(name, help));
        let gauge = |name: &str, help: &str| IntGauge::with_opts(opts(name, help));
        let seconds = opts("mergedistill_worker_seconds_total", "What the worker's labelling time went into.");
        let metrics = Self {
            batches: counter("mergedistill_worker_batches_total", "Batches labelled, whose labels the server has.")?,
            tokens: counter("mergedistill_worker_tokens_total", "Tokens of these batches.")?,
            failed_batches: counter("mergedistill_worker_failed_batches_total", "Batches that could not be labelled.")?,
            sent_bytes: counter("mergedistill_worker_sent_bytes_total", "Bytes of labels that went to the server.")?,
            in_flight: gauge("mergedistill_worker_in_flight", "Batches in hand.")?,
            connected: gauge("mergedistill_worker_connected", "1 while there is a connection to the server.")?,
            halvings: counter(
                "mergedistill_worker_halved_batches_total",
                "Times that a batch was cut in two because the device had no room for it.",
            )?,
            seconds: CounterVec::new(seconds, &["state"])?,
        };
        registry.register(Box::new(metrics.batches.clone()))?;
        registry.register(Box::new(metrics.tokens.clone()))?;
        registry.register(Box::new(metrics.failed_batches.clone()))?;
        registry.register(Box::new(metrics.sent_bytes.clone()))?;
        registry.register(Box::new(metrics.in_flight.clone()))?;
        registry.register(Box::new(metrics.connected.clone()))?;
        registry.register(Box::new(metrics.halvings.clone()))?;
        registry.register(Box::new(metrics.seconds.clone()))?;
        Ok(metrics)
    }

    /// Whether there is a connection to the server.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.connected.get() > 0
    }

    /// Batches whose labels the server has, tokens of these, and batches in hand.
    #[must_use]
    pub fn counts(&self) -> (u64, u64, u64) {
        (self.batches.get(), self.tokens.get(), self.in_flight.get().cast_unsigned())
    }

    pub(super) fn labelling(&self) -> Stretch {
        self.stretch("labelling")
    }

    pub(super) fn waiting(&self) -> Stretch {
        self.stretch("waiting_for_input")
    }

    pub(super) fn halved(&self, times: u64) {
        self.halvings.inc_by(times);
    }

    fn stretch(&self, state: &str) -> Stretch {
        Stretch { since: Instant::now(), seconds: self.seconds.with_label_values(&[state]) }
    }
}
