//! Metrics of who writes the log, or mirrors one.

use crate::log::error::StoreError;
use crate::log::hint::Positions;
use crate::log::index::Index;
use crate::log::retention::RetentionPass;
use prometheus::core::Collector;
use prometheus::{Histogram, HistogramOpts, IntCounter, IntGauge, Registry, exponential_buckets};
use std::time::Instant;

#[derive(Clone, Debug)]
pub(crate) struct LogMetrics {
    pub(crate) appended_entries: IntCounter,
    pub(crate) bytes: IntCounter,
    pub(crate) torn_bytes: IntCounter,
    pub(crate) fsync_seconds: Histogram,
    pub(crate) appended_sequence: IntGauge,
    pub(crate) durable_sequence: IntGauge,
    pub(crate) begin_sequence: IntGauge,
    pub(crate) size_bytes: IntGauge,
    pub(crate) segments: IntGauge,
    pub(crate) removed_segments: IntCounter,
    pub(crate) removed_bytes: IntCounter,
    pub(crate) held_back_segments: IntGauge,
    pub(crate) retention_seconds: Histogram,
    pub(crate) read_bytes: IntCounter,
    pub(crate) waiting_for_room: IntGauge,
}

impl LogMetrics {
    /// New ones, that nobody sees yet.
    pub(crate) fn new() -> Result<Self, StoreError> {
        Self::try_new().map_err(failed)
    }

    /// Has `registry` show them.
    pub(crate) fn register(&self, registry: &Registry) -> Result<(), StoreError> {
        self.collectors().into_iter().try_for_each(|collector| registry.register(collector)).map_err(failed)
    }

    /// Takes note of how far the log goes, and is durable.
    pub(crate) fn observe_positions(&self, positions: Positions) {
        self.appended_sequence.set(positions.appended.0.cast_signed());
        self.durable_sequence.set(positions.durable.0.cast_signed());
    }

    /// Makes a pass of retention, and takes note of it.
    pub(crate) fn observe_retention(
        &self,
        run: impl FnOnce() -> Result<RetentionPass, StoreError>,
    ) -> Result<RetentionPass, StoreError> {
        let started = Instant::now();
        let pass = run()?;
        self.held_back_segments.set(pass.held_back.as_ref().map_or(0, |held| held.segments as i64));
        if pass.removed_segments > 0 {
            self.removed_segments.inc_by(pass.removed_segments as u64);
            self.removed_bytes.inc_by(pass.removed_bytes);
            self.retention_seconds.observe(started.elapsed().as_secs_f64());
        }
        Ok(pass)
    }

    /// Takes note of what the log holds.
    pub(crate) fn observe(&self, index: &Index) {
        self.size_bytes.set(index.bytes().cast_signed());
        self.segments.set(index.segments().len() as i64);
        self.begin_sequence.set(index.begin().next.0.cast_signed());
    }

    fn try_new() -> prometheus::Result<Self> {
        let buckets = exponential_buckets(0.000_25, 2.0, 16)?; // 0.25 ms to 8 s
        let fsync = HistogramOpts::new("mergedistill_log_fsync_seconds", "Time to make the log durable.");
        let retention = HistogramOpts::new(
            "mergedistill_log_retention_seconds",
            "Time of a pass of retention that removed segments, to keep their held-out records and to remove their files.",
        );
        Ok(Self {
            appended_entries: IntCounter::new(
                "mergedistill_log_appended_entries_total",
                "Entries appended to the log.",
            )?,
            bytes: IntCounter::new("mergedistill_log_bytes_total", "Bytes written to the log.")?,
            torn_bytes: IntCounter::new(
                "mergedistill_log_torn_bytes_total",
                "Bytes of a torn tail that were cut when the log was opened.",
            )?,
            fsync_seconds: Histogram::with_opts(fsync.buckets(buckets.clone()))?,
            appended_sequence: IntGauge::new(
                "mergedistill_log_appended_sequence",
                "Sequence number of the next entry to be appended.",
            )?,
            durable_sequence: IntGauge::new(
                "mergedistill_log_durable_sequence",
                "Entries below this sequence number are on stable storage.",
            )?,
            begin_sequence: IntGauge::new(
                "mergedistill_log_begin_sequence",
                "Sequence number of the first entry that retention left.",
            )?,
            size_bytes: IntGauge::new("mergedistill_log_size_bytes", "Bytes of all segments of the log.")?,
            segments: IntGauge::new("mergedistill_log_segments", "Segments of the log.")?,
            removed_segments: IntCounter::new(
                "mergedistill_log_removed_segments_total",
                "Segments that retention removed.",
            )?,
            removed_bytes: IntCounter::new(
                "mergedistill_log_removed_bytes_total",
                "Bytes of the segments that retention removed.",
            )?,
            held_back_segments: IntGauge::new(
                "mergedistill_log_held_back_segments",
                "Segments that are too much or too old, and stay because somebody needs them.",
            )?,
            retention_seconds: Histogram::with_opts(retention.buckets(buckets))?,
            read_bytes: IntCounter::new(
                "mergedistill_log_read_bytes_total",
                "Bytes of blocks read back from the log by this process, to train or to evaluate.",
            )?,
            waiting_for_room: IntGauge::new(
                "mergedistill_log_waiting_for_room",
                "1 while nothing can be appended because the disk is full.",
            )?,
        })
    }

    fn collectors(&self) -> [Box<dyn Collector>; 15] {
        [
            Box::new(self.appended_entries.clone()),
            Box::new(self.bytes.clone()),
            Box::new(self.torn_bytes.clone()),
            Box::new(self.fsync_seconds.clone()),
            Box::new(self.appended_sequence.clone()),
            Box::new(self.durable_sequence.clone()),
            Box::new(self.begin_sequence.clone()),
            Box::new(self.size_bytes.clone()),
            Box::new(self.segments.clone()),
            Box::new(self.removed_segments.clone()),
            Box::new(self.removed_bytes.clone()),
            Box::new(self.held_back_segments.clone()),
            Box::new(self.retention_seconds.clone()),
            Box::new(self.read_bytes.clone()),
            Box::new(self.waiting_for_room.clone()),
        ]
    }
}

fn failed(error: prometheus::Error) -> StoreError {
    StoreError::Metrics { what: error.to_string() }
}
