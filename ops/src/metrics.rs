//! This crate's own metrics, and how the registry becomes text.

use crate::events::EventHub;
use prometheus::core::Collector;
use prometheus::process_collector::ProcessCollector;
use prometheus::{
    HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, Result, TextEncoder,
};
use std::time::Duration;

/// Version 0.0.4 of Prometheus' text format, as its server asks for it.
pub(crate) const MEDIA_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// From the page out of memory to an export of a large student.
const DURATION_BUCKETS_SECONDS: [f64; 9] = [0.000_5, 0.002, 0.01, 0.05, 0.2, 1.0, 5.0, 30.0, 120.0];

#[derive(Clone, Debug)]
pub(crate) struct HttpMetrics {
    requests: IntCounterVec,
    durations: HistogramVec,
    pub(crate) connections: IntGaugeVec,
    pub(crate) refused: IntCounterVec,
}

impl HttpMetrics {
    /// Registers what this crate measures: requests, connections, events, the process and the build.
    pub(crate) fn register(registry: &Registry, events: &EventHub) -> Result<Self> {
        let metrics = Self {
            requests: IntCounterVec::new(
                Opts::new("mergedistill_http_requests_total", "Requests answered, by path and status code."),
                &["path", "code"],
            )?,
            durations: HistogramVec::new(
                HistogramOpts::new("mergedistill_http_request_duration_seconds", "Time until a request is answered.")
                    .buckets(DURATION_BUCKETS_SECONDS.to_vec()),
                &["path"],
            )?,
            connections: IntGaugeVec::new(
                Opts::new("mergedistill_http_connections", "Open connections, by door."),
                &["door"],
            )?,
            refused: IntCounterVec::new(
                Opts::new("mergedistill_http_connections_refused_total", "Connections beyond the limit, by door."),
                &["door"],
            )?,
        };
        let build_info = IntGauge::with_opts(
            Opts::new("mergedistill_build_info", "Always 1; what the program was built from, and how, are its labels.")
                .const_label("version", env!("CARGO_PKG_VERSION"))
                .const_label("revision", env!("MERGEDISTILL_REVISION"))
                .const_label("profile", if cfg!(debug_assertions) { "debug" } else { "release" })
                .const_label("target", format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS)),
        )?;
        build_info.set(1);
        let collectors: [Box<dyn Collector>; 9] = [
            Box::new(metrics.requests.clone()),
            Box::new(metrics.durations.clone()),
            Box::new(metrics.connections.clone()),
            Box::new(metrics.refused.clone()),
            Box::new(events.metrics().published.clone()),
            Box::new(events.metrics().dropped.clone()),
            Box::new(events.metrics().subscribers.clone()),
            Box::new(build_info),
            Box::new(ProcessCollector::for_self()),
        ];
        for collector in collectors {
            registry.register(collector)?;
        }
        // An increase from 0 is seen; a series that begins with 1 shows none.
        for door in ["tcp", "unix"] {
            metrics.refused.with_label_values(&[door]);
        }
        Ok(metrics)
    }

    /// Counts an answer. `path` is one of the known paths or `other`, so that labels stay few.
    pub(crate) fn answered(&self, path: &str, status: u16, took: Duration) {
        self.requests.with_label_values(&[path, &status.to_string()]).inc();
        self.durations.with_label_values(&[path]).observe(took.as_secs_f64());
    }
}

/// Everything registered, in the text format.
pub(crate) fn encode(registry: &Registry) -> Result<String> {
    TextEncoder::new().encode_to_string(&registry.gather())
}
