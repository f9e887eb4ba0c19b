//! What is known of a runner from outside.

use crate::Labeller;
use prometheus::{
    Counter, CounterVec, Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntGauge, Opts, Registry,
};
use std::time::Instant;
use store::{Label, MaskedCopy};

/// Bounds of the histogram of retained masses.
const RETAINED_MASSES: [f64; 10] = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0];

/// What a runner's time goes into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spent {
    /// A batch.
    Labelling,
    /// Nothing: ingestion has no batch for it.
    WaitingForInput,
    /// Nothing: other teachers have still to label what came before.
    WaitingForTeachers,
    /// Nothing: the log has still to take what came before.
    WaitingForLog,
    /// A pause.
    Paused,
    /// A lost device.
    Lost,
}

impl Spent {
    const ALL: [Self; 6] = [
        Self::Labelling,
        Self::WaitingForInput,
        Self::WaitingForTeachers,
        Self::WaitingForLog,
        Self::Paused,
        Self::Lost,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Labelling => "labelling",
            Self::WaitingForInput => "waiting_for_input",
            Self::WaitingForTeachers => "waiting_for_teachers",
            Self::WaitingForLog => "waiting_for_log",
            Self::Paused => "paused",
            Self::Lost => "lost",
        }
    }
}

/// A runner's clock: each stretch of its time is counted once.
pub(super) struct Clock {
    since: Instant,
    seconds: CounterVec,
}

impl Clock {
    /// What passed since this was called last went into that.
    pub(super) fn spent(&mut self, on: Spent) {
        let now = Instant::now();
        self.seconds.with_label_values(&[on.name()]).inc_by((now - self.since).as_secs_f64());
        self.since = now;
    }
}

#[derive(Clone)]
pub(super) struct RunnerMetrics {
    queued_copies: IntCounter,
    in_flight: IntGauge,
    last_progress: Gauge,
    copies: IntCounter,
    tokens: IntCounter,
    masked_positions: IntCounter,
    flops: Counter,
    batch_seconds: Histogram,
    halvings: IntCounter,
    device_bytes: IntGauge,
    /// By what it went into.
    seconds: CounterVec,
    /// By language.
    retained_mass: HistogramVec,
}

impl RunnerMetrics {
    pub(super) fn register(registry: &Registry, teacher: &str) -> prometheus::Result<Self> {
        let of_teacher = |name: &str, help: &str| Opts::new(name, help).const_label("teacher", teacher);
        let counter = |name: &str, help: &str| IntCounter::with_opts(of_teacher(name, help));
        let buckets = prometheus::exponential_buckets(0.004, 2.0, 14)?;
        let seconds = HistogramOpts::new("mergedistill_teacher_batch_seconds", "Time to label one batch.");
        let retained_mass = HistogramOpts::new(
            "mergedistill_teacher_retained_mass_ratio",
            "Share of a teacher's probability that its label holds at a masked position.",
        );
        let metrics = Self {
            queued_copies: counter(
                "mergedistill_teacher_queued_copies_total",
                "Masked copies given to a teacher; it labels them, or they are dropped.",
            )?,
            in_flight: IntGauge::with_opts(of_teacher(
                "mergedistill_teacher_copies_in_flight",
                "Masked copies that wait for a teacher, or are at work there.",
            ))?,
            last_progress: Gauge::with_opts(of_teacher(
                "mergedistill_teacher_last_progress_timestamp_seconds",
                "Unix time at which a teacher labelled a batch last; 0: none yet.",
            ))?,
            copies: counter("mergedistill_teacher_copies_total", "Masked copies labelled.")?,
            tokens: counter("mergedistill_teacher_tokens_total", "Tokens of labelled copies.")?,
            masked_positions: counter("mergedistill_teacher_masked_positions_total", "Masked positions labelled.")?,
            flops: Counter::with_opts(of_teacher(
                "mergedistill_teacher_flops_total",
                "Floating-point operations of labelling, by the teacher's shape.",
            ))?,
            halvings: counter(
                "mergedistill_teacher_halved_batches_total",
                "Times that a batch was labelled in two halves, because a GPU had no room for all of it.",
            )?,
            device_bytes: IntGauge::with_opts(of_teacher(
                "mergedistill_teacher_device_bytes",
                "Memory that a teacher has on its GPU; 0: it is on the processor.",
            ))?,
            seconds: CounterVec::new(
                of_teacher("mergedistill_teacher_seconds_total", "What a teacher's time went into."),
                &["state"],
            )?,
            batch_seconds: Histogram::with_opts(seconds.const_label("teacher", teacher).buckets(buckets))?,
            retained_mass: HistogramVec::new(
                retained_mass.const_label("teacher", teacher).buckets(RETAINED_MASSES.to_vec()),
                &["language"],
            )?,
        };
        registry.register(Box::new(metrics.queued_copies.clone()))?;
        registry.register(Box::new(metrics.in_flight.clone()))?;
        registry.register(Box::new(metrics.last_progress.clone()))?;
        registry.register(Box::new(metrics.copies.clone()))?;
        registry.register(Box::new(metrics.tokens.clone()))?;
        registry.register(Box::new(metrics.masked_positions.clone()))?;
        registry.register(Box::new(metrics.flops.clone()))?;
        registry.register(Box::new(metrics.batch_seconds.clone()))?;
        registry.register(Box::new(metrics.halvings.clone()))?;
        registry.register(Box::new(metrics.device_bytes.clone()))?;
        registry.register(Box::new(metrics.seconds.clone()))?;
        Spent::ALL.into_iter().for_each(|spent| drop(metrics.seconds.with_label_values(&[spent.name()])));
        registry.register(Box::new(metrics.retained_mass.clone()))?;
        Ok(metrics)
    }

    /// A clock that begins now.
    pub(super) fn clock(&self) -> Clock {
        Clock { since: Instant::now(), seconds: self.seconds.clone() }
    }

    /// The teacher is given so many copies.
    pub(super) fn queued(&self, copies: u64) {
        self.queued_copies.inc_by(copies);
        self.in_flight.add(copies.cast_signed());
    }

    /// A batch was labelled in `seconds`.
    pub(super) fn labelled<L: Labeller>(&self, runner: &L, copies: &[&MaskedCopy], seconds: f64) {
        self.batch_seconds.observe(seconds);
        self.halvings.inc_by(runner.take_halvings());
        self.device_bytes.set(i64::try_from(runner.device_bytes()).unwrap_or(i64::MAX));
        self.copies.inc_by(copies.len() as u64);
        self.last_progress.set(store::stage::unix_seconds());
        self.tokens.inc_by(copies.iter().map(|copy| copy.token_ids.len() as u64).sum());
        self.masked_positions.inc_by(copies.iter().map(|copy| copy.masked_positions.len() as u64).sum());
        self.flops.inc_by(runner.flops(copies) as f64);
    }

    /// A copy in `language` was labelled; of each position's entries, `samples` were drawn from the tail.
    pub(super) fn observe_retained_mass(&self, language: &str, label: &Label, samples: usize) {
        let histogram = self.retained_mass.with_label_values(&[language]);
        (0..label.positions()).for_each(|position| histogram.observe(label.retained_mass(position, samples)));
    }

    /// They are labelled, or nobody waits for them any more.
    pub(super) fn done_with(&self, copies: u64) {
        self.in_flight.sub(copies.cast_signed());
    }
}
