//! Metrics of why a stage may stand still: it is paused, the log holds all that it may, there is nothing to train on.
//!
//! They are read off the stages at each scrape, so no stage has to keep them.

use crate::configuration::Configuration;
use crate::live::Effective;
use crate::pipeline::Controls;
use ingest::IngestStatus;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntGauge, IntGaugeVec, Opts, Registry};
use std::sync::Arc;
use store::LogReader;
use trainer::TrainerProgress;

/// Registers the metrics of a pipeline. Those that need a trainer are not there without one.
pub fn register(
    registry: &Registry,
    configuration: &Effective,
    controls: &Controls,
    log: &LogReader,
    progress: &Arc<TrainerProgress>,
    ingest: Option<Arc<IngestStatus>>,
) -> prometheus::Result<()> {
    let paused = Opts::new("mergedistill_stage_paused", "1 while a stage is paused, otherwise 0.");
    let paused = IntGaugeVec::new(paused, &["stage"])?;
    registry.register(Box::new(Pauses { paused, controls: controls.clone() }))?;
    let inbox_limit = IntGauge::new(
        "mergedistill_inbox_limit_bytes",
        "Bytes that the log may not hold yet of an inbox; more is refused.",
    )?;
    let limit_of = |gauge, bytes| Box::new(Limit { gauge, bytes, configuration: configuration.clone() });
    registry.register(limit_of(inbox_limit, |now| now.queue.inbox_bytes))?;
    if configuration.get().student.is_none() {
        return Ok(());
    }
    let limit = IntGauge::new(
        "mergedistill_log_backlog_limit_bytes",
        "Backlog at which ingestion waits until training has caught up.",
    )?;
    registry.register(limit_of(limit, |now| now.store.max_backlog_bytes))?;
    registry.register(Box::new(Training {
        backlog: IntGauge::new(
            "mergedistill_log_backlog_bytes",
            "Bytes of the log that training has still to read; 0 while it waits for more that comes.",
        )?,
        waiting: IntGauge::new("mergedistill_train_waiting", "1 while training waits for labelled text, otherwise 0.")?,
        log: log.clone(),
        progress: Arc::clone(progress),
        ingest,
    }))
}

/// A limit of the configuration, which may change.
struct Limit {
    gauge: IntGauge,
    bytes: fn(&Configuration) -> u64,
    configuration: Effective,
}

impl Collector for Limit {
    fn desc(&self) -> Vec<&Desc> {
        self.gauge.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.gauge.set((self.bytes)(&self.configuration.get()).cast_signed());
        self.gauge.collect()
    }
}

/// Which stages are paused.
struct Pauses {
    paused: IntGaugeVec,
    controls: Controls,
}

impl Collector for Pauses {
    fn desc(&self) -> Vec<&Desc> {
        self.paused.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let Controls { ingest, teacher, trainer, .. } = &self.controls;
        for (stage, control) in [("ingest", ingest), ("teacher", teacher), ("trainer", trainer)] {
            self.paused.with_label_values(&[stage]).set(control.paused().into());
        }
        self.paused.collect()
    }
}

/// How far training is behind.
struct Training {
    backlog: IntGauge,
    waiting: IntGauge,
    log: LogReader,
    progress: Arc<TrainerProgress>,
    ingest: Option<Arc<IngestStatus>>,
}

impl Collector for Training {
    fn desc(&self) -> Vec<&Desc> {
        [self.backlog.desc(), self.waiting.desc()].concat()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let comes = |language: &str| self.ingest.as_ref().is_none_or(|ingest| ingest.standstill(language).is_none());
        let from = self.progress.backlog_from(&comes);
        let backlog = from.map_or(0, |from| self.log.bytes_between(from, self.log.durable().end()));
        self.backlog.set(backlog.cast_signed());
        self.waiting.set(self.progress.waiting_for().is_some().into());
        [self.backlog.collect(), self.waiting.collect()].concat()
    }
}
