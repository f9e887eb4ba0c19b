//! Reading rates off a pipeline that runs.

use super::figures::TeacherFigures;
use crate::failure::{ExitCode, Failure};
use crate::pipeline::{Ended, Pipeline};
use ingest::IngestStatus;
use prometheus::Registry;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use store::SequenceNumber;
use trainer::{Event, StepReport};

/// How often figures are looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);
/// A machine on which one kind of work takes longer than this is not measured.
const PATIENCE: Duration = Duration::from_secs(600);

/// Waits until `is_done`, which is given the trainer's new reports, says so.
///
/// # Errors
/// When a stage fails or ends, or the wait is too long.
pub(super) fn wait(pipeline: &Pipeline, mut is_done: impl FnMut(Vec<StepReport>) -> bool) -> Result<(), Failure> {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        let events = pipeline.events.recv_timeout(LOOK_INTERVAL).into_iter().chain(pipeline.events.try_iter());
        let reports = events.filter_map(|event| if let Event::Step(report) = event { Some(report) } else { None });
        if is_done(reports.collect()) {
            return Ok(());
        }
        if let Ok(end) = pipeline.ends.try_recv() {
            return match end.result {
                Err(failure) => Err(failure),
                Ok(Ended::Trainer(_)) => Err(too_small("the training")),
                Ok(Ended::Done) => Err(too_small(end.stage)),
            };
        }
    }
    let message = format!("a measurement took longer than {} s; plan with a smaller configuration", PATIENCE.as_secs());
    Err(Failure::new(ExitCode::TemporaryFailure, message))
}

/// Whether streams have brought nothing for too long.
pub(super) struct Drought {
    patience: Duration,
    end: SequenceNumber,
    since: Instant,
}

impl Drought {
    /// One that begins when there is nothing to read and the log has not grown for `patience`.
    pub(super) fn after(patience: Duration) -> Self {
        Self { patience, end: SequenceNumber(0), since: Instant::now() }
    }

    /// Whether it has begun.
    pub(super) fn has_begun(&mut self, pipeline: &Pipeline) -> bool {
        let end = pipeline.log.durable().end();
        if end != self.end {
            (self.end, self.since) = (end, Instant::now());
        }
        if self.since.elapsed() < self.patience {
            return false;
        }
        let reads = pipeline.ingest.as_deref().is_some_and(is_reading);
        !reads
    }

    /// What to do about it.
    pub(super) fn failure(&self) -> Failure {
        let message = format!(
            "there is too little text to measure: nothing has come for {:.1} s; give a [[corpus]] with `path` to a sample of what will come",
            self.patience.as_secs_f64()
        );
        Failure::new(ExitCode::DataError, message)
    }
}

/// Whether some corpus has something to read.
fn is_reading(status: &IngestStatus) -> bool {
    let status = serde_json::to_value(status).unwrap_or_default();
    let corpora = status["corpora"].as_array().map(Vec::as_slice).unwrap_or_default();
    corpora.iter().any(|corpus| corpus["state"] == "reading")
}

fn too_small(what: &str) -> Failure {
    let message = format!("there is too little to measure: {what} ended at once; just run it, or give --seconds less");
    Failure::new(ExitCode::DataError, message)
}

/// When a counter changed, and to what.
pub(super) struct Changes {
    registry: Registry,
    name: &'static str,
    start: (Instant, f64),
    seen: Vec<(Instant, f64)>,
}

impl Changes {
    pub(super) fn new(registry: &Registry, name: &'static str) -> Self {
        let mut changes = Self { registry: registry.clone(), name, start: (Instant::now(), 0.0), seen: Vec::new() };
        changes.restart();
        changes
    }

    /// Forgets what was seen.
    pub(super) fn restart(&mut self) {
        self.start = (Instant::now(), counter(&self.registry, self.name).values().sum());
        self.seen.clear();
    }

    /// Looks whether the counter has changed. Returns how often it has.
    pub(super) fn look(&mut self) -> usize {
        let value = counter(&self.registry, self.name).values().sum();
        let last = self.seen.last().map_or(self.start.1, |(_, value)| *value);
        if value > last {
            self.seen.push((Instant::now(), value));
        }
        self.seen.len()
    }

    /// Increase per second: from the first change to the last, so that what was under way at either end does not matter. `None`: there was no change.
    pub(super) fn rate(&self) -> Option<f64> {
        let last = self.seen.last()?;
        let first = if self.seen.len() > 1 { self.seen[0] } else { self.start };
        let seconds = (last.0 - first.0).as_secs_f64();
        (seconds > 0.0).then(|| (last.1 - first.1) / seconds)
    }
}

/// Values of a counter by its only label.
fn counter(registry: &Registry, name: &str) -> BTreeMap<String, f64> {
    by_label(registry, name, |metric| metric.get_counter().get_value())
}

fn by_label(
    registry: &Registry,
    name: &str,
    value: impl Fn(&prometheus::proto::Metric) -> f64,
) -> BTreeMap<String, f64> {
    let mut values = BTreeMap::new();
    for family in registry.gather().iter().filter(|family| family.name() == name) {
        for metric in family.get_metric() {
            let label = metric.get_label().first().map_or("", |label| label.value());
            *values.entry(label.to_owned()).or_default() += value(metric);
        }
    }
    values
}

/// What each teacher did in the first `seconds` of labelling.
pub(super) fn teachers(registry: &Registry, seconds: f64) -> BTreeMap<String, TeacherFigures> {
    let tokens = counter(registry, "mergedistill_teacher_tokens_total");
    let busy =
        by_label(registry, "mergedistill_teacher_batch_seconds", |metric| metric.get_histogram().get_sample_sum());
    let figures = tokens.into_iter().map(|(name, tokens)| {
        let busy_seconds = busy.get(&name).copied().unwrap_or_default();
        let figures = TeacherFigures {
            sampled_tokens: tokens as u64,
            tokens_per_busy_second: if busy_seconds > 0.0 { tokens / busy_seconds } else { 0.0 },
            busy_share: (busy_seconds / seconds).min(1.0),
        };
        (name, figures)
    });
    figures.collect()
}

/// Steps that were measured, on average.
#[derive(Clone, Copy, Debug)]
pub(super) struct Measured {
    pub(super) steps: usize,
    pub(super) seconds: f64,
    pub(super) tokens: f64,
    pub(super) copies: f64,
}

impl Measured {
    pub(super) fn of(steps: &[StepReport]) -> Self {
        let mean = |of: fn(&StepReport) -> f64| steps.iter().map(of).sum::<f64>() / steps.len().max(1) as f64;
        Self {
            steps: steps.len(),
            seconds: mean(|step| step.seconds),
            tokens: mean(|step| step.tokens as f64),
            copies: mean(|step| step.copies as f64),
        }
    }
}
