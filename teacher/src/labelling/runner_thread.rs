//! The thread of one runner: batch after batch.

use super::{Job, Message, copy_count};
use crate::{Labeller, TeacherError, TeacherWatch};
use crossbeam::channel::{Receiver, Sender};
use model::{RolePool, Working};
use prometheus::{Histogram, HistogramOpts, IntCounter, Opts, Registry};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use store::stage::StageControl;
use store::{Group, Label, MaskedCopy, Payload};

pub(super) struct RunnerThread<L> {
    pub(super) runner: L,
    pub(super) watch: TeacherWatch,
    pub(super) control: StageControl,
    pub(super) pool: Arc<RolePool>,
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
            if job.given_up[job.batch].load(Ordering::Relaxed) {
                continue;
            }
            let Job { number, batch, group, .. } = job;
            let Some(group) = group.upgrade() else { continue }; // It was complete, or the assembler has ended.
            working.get_or_insert_with(|| self.pool.work());
            let message = match self.label_watched(&group, batch) {
                Ok(labels) => Message::Labelled { number, batch, labels },
                Err(error) => Message::Failed(error),
            };
            drop(group); // before the message, so that the assembler is the group's only owner at its end
            if self.results.send(message).is_err() {
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
        let copies: Vec<&MaskedCopy> = plan.members.iter().map(|&(entry, copy)| copy_of(group, entry, copy)).collect();
        let timer = self.metrics.batch_seconds.start_timer();
        let labels = self.pool.install(|| {
            self.watch.begin(); // Only now: others may be at work on all threads, for as long as they like.
            self.runner.label(&copies)
        })?;
        timer.observe_duration();
        self.metrics.copies.inc_by(copy_count(plan));
        self.metrics.tokens.inc_by(copies.iter().map(|copy| copy.token_ids.len() as u64).sum());
        self.metrics.masked_positions.inc_by(copies.iter().map(|copy| copy.masked_positions.len() as u64).sum());
        Ok(labels)
    }
}

fn copy_of(group: &Group, entry: u32, copy: u32) -> &MaskedCopy {
    match &group.entries[entry as usize].payload {
        Payload::Record(record) => &record.copies[copy as usize],
        Payload::Skip(_) | Payload::End => unreachable!("a batch plan names only records"),
    }
}

pub(super) struct RunnerMetrics {
    copies: IntCounter,
    tokens: IntCounter,
    masked_positions: IntCounter,
    batch_seconds: Histogram,
}

impl RunnerMetrics {
    pub(super) fn register(registry: &Registry, teacher: &str) -> prometheus::Result<Self> {
        let counter =
            |name: &str, help: &str| IntCounter::with_opts(Opts::new(name, help).const_label("teacher", teacher));
        let buckets = prometheus::exponential_buckets(0.004, 2.0, 14)?;
        let seconds = HistogramOpts::new("mergedistill_teacher_batch_seconds", "Time to label one batch.");
        let metrics = Self {
            copies: counter("mergedistill_teacher_copies_total", "Masked copies labelled.")?,
            tokens: counter("mergedistill_teacher_tokens_total", "Tokens of labelled copies.")?,
            masked_positions: counter("mergedistill_teacher_masked_positions_total", "Masked positions labelled.")?,
            batch_seconds: Histogram::with_opts(seconds.const_label("teacher", teacher).buckets(buckets))?,
        };
        registry.register(Box::new(metrics.copies.clone()))?;
        registry.register(Box::new(metrics.tokens.clone()))?;
        registry.register(Box::new(metrics.masked_positions.clone()))?;
        registry.register(Box::new(metrics.batch_seconds.clone()))?;
        Ok(metrics)
    }
}
