//! The thread of one runner: batch after batch.

use super::{Job, Message, copy_count};
use crate::{Labeller, TeacherError, TeacherWatch};
use crossbeam::channel::{Receiver, Sender};
use model::{RolePool, Working};
use prometheus::{Counter, Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntGauge, Opts, Registry};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use store::stage::StageControl;
use store::{Group, Label, MaskedCopy, Payload};

/// Times that a lost accelerator is opened anew before the teacher is given up.
const RECOVERIES: u32 = 10;
/// Bounds of the histogram of retained masses.
const RETAINED_MASSES: [f64; 10] = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0];

pub(super) struct RunnerThread<L> {
    pub(super) runner: L,
    pub(super) watch: TeacherWatch,
    pub(super) control: StageControl,
    pub(super) pool: Arc<RolePool>,
    pub(super) recovery_interval: Duration,
    pub(super) results: Sender<Message>,
    pub(super) metrics: RunnerMetrics,
}

impl<L: Labeller> RunnerThread<L> {
    pub(super) fn run(&self, jobs: &Receiver<Job>) {
        let mut working = None;
        while let Some(job) = self.next(jobs, &mut working) {
            if self.control.paused() {
                working = None;
            }
            if !self.control.proceed() {
                let _ = self.results.send(Message::Stopped); // The assembler may have ended already.
                return;
            }
            let Job { number, batch, copies, group, given_up } = job;
            // Without the group it was complete, or the assembler has ended.
            let group = group.upgrade().filter(|_| !given_up[batch].load(Ordering::Relaxed));
            let Some(group) = group else {
                self.metrics.done_with(copies);
                continue;
            };
            if self.runner.needs_pool() {
                working.get_or_insert_with(|| self.pool.work());
            }
            let message = self.message(&group, batch, number);
            let stopped = matches!(message, Message::Stopped);
            self.metrics.done_with(copies);
            drop(group); // before the message, so that the assembler is the group's only owner at its end
            if self.results.send(message).is_err() || stopped {
                return;
            }
        }
    }

    /// The next job; the role is not at work while there is none. `None`: there will be no more.
    fn next(&self, jobs: &Receiver<Job>, working: &mut Option<Working>) -> Option<Job> {
        jobs.try_recv().ok().or_else(|| {
            *working = None;
            jobs.recv().ok()
        })
    }

    /// What came of a batch. Where the accelerator failed, it is opened anew and the batch tried again: what fails with the very same batch is no accident.
    fn message(&self, group: &Group, batch: usize, number: u64) -> Message {
        let mut recovered = false;
        loop {
            match self.label_watched(group, batch) {
                Ok(labels) => return Message::Labelled { number, batch, labels },
                Err(error) if error.is_lost_device() && !recovered => match self.recover(error) {
                    Ok(true) => recovered = true,
                    Ok(false) => return Message::Stopped,
                    Err(error) => return Message::Failed(error),
                },
                Err(error) => return Message::Failed(error),
            }
        }
    }

    /// Waits until its accelerator is there again. Others go on meanwhile. Returns `false` if a stop comes before.
    ///
    /// # Errors
    /// When it is still not there after [`RECOVERIES`] tries: another process may find it.
    fn recover(&self, error: TeacherError) -> Result<bool, TeacherError> {
        let teacher = self.runner.name();
        tracing::error!(teacher, %error, "the teacher's device is lost; its batches wait until it is there again");
        self.watch.lose();
        let mut last = error;
        for _ in 0..RECOVERIES {
            let until = Instant::now() + self.recovery_interval;
            while Instant::now() < until {
                if !self.control.wait(until.saturating_duration_since(Instant::now())) {
                    return Ok(false);
                }
            }
            match self.runner.recover() {
                Ok(()) => {
                    tracing::info!(teacher, "the teacher's device is there again");
                    return Ok(true);
                }
                Err(error) => last = error,
            }
            tracing::warn!(teacher, error = %last, "the teacher's device is still lost");
        }
        Err(last)
    }

    fn label_watched(&self, group: &Group, batch: usize) -> Result<Vec<Label>, TeacherError> {
        let labelled = std::panic::catch_unwind(AssertUnwindSafe(|| self.label(group, batch)));
        if let Some(seconds) = self.watch.end().map(|took| took.as_secs_f64()) {
            let (teacher, dropped_copies) = (self.runner.name(), self.watch.dropped_copies());
            tracing::info!(
                teacher,
                seconds,
                dropped_copies,
                "the teacher that stalled has answered; it takes part again"
            );
        }
        labelled.unwrap_or_else(|_| Err(TeacherError::Panicked(format!("teacher-{}", self.runner.name()))))
    }

    fn label(&self, group: &Group, batch: usize) -> Result<Vec<Label>, TeacherError> {
        let plan = &group.batches[batch];
        let members = || plan.members.iter().map(|&(entry, copy)| copy_of(group, entry, copy));
        let copies: Vec<&MaskedCopy> = members().map(|(_, copy)| copy).collect();
        let timer = self.metrics.batch_seconds.start_timer();
        let labels = if self.runner.needs_pool() {
            self.pool.install(|| {
                self.watch.begin(); // Only now: others may be at work on all threads, for as long as they like.
                self.runner.label(&copies)
            })?
        } else {
            self.watch.begin();
            self.runner.label(&copies)?
        };
        timer.observe_duration();
        self.metrics.halvings.inc_by(self.runner.take_halvings());
        self.metrics.copies.inc_by(copy_count(plan));
        self.metrics.last_progress.set(store::stage::unix_seconds());
        self.metrics.tokens.inc_by(copies.iter().map(|copy| copy.token_ids.len() as u64).sum());
        self.metrics.masked_positions.inc_by(copies.iter().map(|copy| copy.masked_positions.len() as u64).sum());
        self.metrics.flops.inc_by(self.runner.flops(&copies) as f64);
        for ((language, _), label) in members().zip(&labels) {
            self.metrics.observe_retained_mass(language, label, self.runner.tail_samples());
        }
        Ok(labels)
    }
}

/// A copy, and the language of its record.
fn copy_of(group: &Group, entry: u32, copy: u32) -> (&str, &MaskedCopy) {
    match &group.entries[entry as usize].payload {
        Payload::Record(record) => (&record.language, &record.copies[copy as usize]),
        Payload::Skip(_) | Payload::End => unreachable!("a batch plan names only records"),
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
        registry.register(Box::new(metrics.retained_mass.clone()))?;
        Ok(metrics)
    }

    /// The teacher is given so many copies.
    pub(super) fn queued(&self, copies: u64) {
        self.queued_copies.inc_by(copies);
        self.in_flight.add(copies.cast_signed());
    }

    /// A copy in `language` was labelled; of each position's entries, `samples` were drawn from the tail.
    fn observe_retained_mass(&self, language: &str, label: &Label, samples: usize) {
        let histogram = self.retained_mass.with_label_values(&[language]);
        (0..label.positions()).for_each(|position| histogram.observe(label.retained_mass(position, samples)));
    }

    /// They are labelled, or nobody waits for them any more.
    fn done_with(&self, copies: u64) {
        self.in_flight.sub(copies.cast_signed());
    }
}
