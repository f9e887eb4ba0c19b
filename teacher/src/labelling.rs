//! From unlabelled groups to complete ones: dispatcher → runner threads → assembler.
//!
//! ```text
//!             permit (at most `depth` groups inside)
//!            ┌────────────────────────────────────────────┐
//! groups ─► dispatcher ─► one queue per runner ─► runner ─► assembler ─► complete groups, in order
//!                └──────────── registration ──────────────►
//! ```

use crate::{Runner, TeacherError};
use crossbeam::channel::{Receiver, Sender, bounded, unbounded};
use model::{RolePool, Working};
use prometheus::{Histogram, HistogramOpts, IntCounter, Opts, Registry};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::thread::JoinHandle;
use store::stage::{StageControl, StageMetrics};
use store::{Entry, Group, Label, MaskedCopy, Payload};

/// How labelling runs.
#[derive(Clone, Debug)]
pub struct LabellingOptions {
    /// Groups inside the stage at most.
    pub depth: usize,
    /// Pauses and stops the runners, between batches. Groups that are not complete then are dropped: they are read
    /// again later, from the cursors in the log.
    pub control: StageControl,
    /// The threads that all runners label on. One batch may be begun within another's on the same thread.
    pub pool: Arc<RolePool>,
}

/// The running stage.
#[derive(Debug)]
pub struct Labelling {
    threads: Vec<(String, JoinHandle<Result<(), TeacherError>>)>,
}

impl Labelling {
    /// Starts a thread per runner, a dispatcher and an assembler. The stage ends when `groups` is
    /// disconnected and everything inside was handed on, when it is stopped, when `complete` is disconnected, or at the
    /// first error.
    pub fn start(
        runners: Vec<Runner>,
        options: &LabellingOptions,
        groups: Receiver<Group>,
        complete: Sender<Vec<Entry>>,
        registry: &Registry,
    ) -> Result<Self, TeacherError> {
        let metrics = StageMetrics::register(registry, "teacher")?;
        let (permit_return, permits) = bounded(options.depth);
        for _ in 0..options.depth {
            // Cannot fail: the channel holds `depth` and its receiver is alive.
            let _ = permit_return.send(());
        }
        let (to_assembler, messages) = unbounded(); // bounded by the permits
        let mut labelling = Self { threads: Vec::new() };
        let mut queues = HashMap::new();
        for runner in runners {
            let (queue, jobs) = bounded(options.depth);
            queues.insert(runner.index(), queue);
            let thread = RunnerThread {
                metrics: RunnerMetrics::register(registry, runner.name())?,
                runner,
                control: options.control.clone(),
                pool: Arc::clone(&options.pool),
                results: to_assembler.clone(),
            };
            labelling.spawn(format!("teacher-{}", thread.runner.name()), move || {
                thread.run(&jobs);
                Ok(())
            })?;
        }
        let dispatcher = Dispatcher { permits, queues, to_assembler, metrics: metrics.clone() };
        labelling.spawn("dispatcher".to_owned(), move || {
            dispatcher.run(&groups);
            Ok(())
        })?;
        let assembler = Assembler { permit_return, complete, metrics, pending: BTreeMap::new(), next: 0 };
        labelling.spawn("assembler".to_owned(), move || assembler.run(&messages))?;
        Ok(labelling)
    }

    /// Waits for the stage's end.
    pub fn join(self) -> Result<(), TeacherError> {
        let mut outcome = Ok(());
        for (name, thread) in self.threads {
            let ended = thread.join().unwrap_or_else(|_| Err(TeacherError::Panicked(name)));
            outcome = outcome.and(ended);
        }
        outcome
    }

    fn spawn(
        &mut self,
        name: String,
        body: impl FnOnce() -> Result<(), TeacherError> + Send + 'static,
    ) -> Result<(), TeacherError> {
        let thread = std::thread::Builder::new()
            .name(name.clone())
            .spawn(body)
            .map_err(|source| TeacherError::Thread { thread: name.clone(), source })?;
        self.threads.push((name, thread));
        Ok(())
    }
}

/// One batch of a group, on its way to a runner.
struct Job {
    number: u64,
    batch: usize,
    group: Arc<Group>,
}

enum Message {
    /// Comes before any label of the group: the dispatcher sends it before it hands out the batches.
    Registered {
        number: u64,
        group: Arc<Group>,
    },
    Labelled {
        number: u64,
        batch: usize,
        labels: Vec<Label>,
    },
    Failed(TeacherError),
    /// A runner was told to stop: no group that is not complete by now will be.
    Stopped,
}

struct Dispatcher {
    permits: Receiver<()>,
    queues: HashMap<u16, Sender<Job>>,
    to_assembler: Sender<Message>,
    metrics: StageMetrics,
}

impl Dispatcher {
    fn run(self, groups: &Receiver<Group>) {
        for (number, group) in (0..).zip(groups) {
            if self.permits.recv().is_err() || self.dispatch(number, Arc::new(group)).is_none() {
                return; // The assembler has ended, and says why.
            }
        }
    }

    fn dispatch(&self, number: u64, group: Arc<Group>) -> Option<()> {
        self.metrics.items_in.inc_by(group.entries.len() as u64);
        self.metrics.in_flight.add(group.entries.len() as i64);
        self.to_assembler.send(Message::Registered { number, group: Arc::clone(&group) }).ok()?;
        for (batch, plan) in group.batches.iter().enumerate() {
            let queue = self.queues.get(&plan.teacher);
            assert!(queue.is_some(), "a batch for teacher {}, which has no runner", plan.teacher);
            queue?.send(Job { number, batch, group: Arc::clone(&group) }).ok()?;
        }
        Some(())
    }
}

struct RunnerThread {
    runner: Runner,
    control: StageControl,
    pool: Arc<RolePool>,
    results: Sender<Message>,
    metrics: RunnerMetrics,
}

impl RunnerThread {
    fn run(&self, jobs: &Receiver<Job>) {
        let mut working = None;
        while let Some(job) = self.next(jobs, &mut working) {
            if self.control.paused() {
                working = None;
            }
            if !self.control.proceed() {
                let _ = self.results.send(Message::Stopped); // The assembler may have ended already.
                return;
            }
            working.get_or_insert_with(|| self.pool.work());
            let Job { number, batch, group } = job;
            let labelled = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.label(&group, batch)));
            let panicked = |_| Err(TeacherError::Panicked(format!("teacher-{}", self.runner.name())));
            let message = match labelled.unwrap_or_else(panicked) {
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

    fn label(&self, group: &Group, batch: usize) -> Result<Vec<Label>, TeacherError> {
        let copies: Vec<&MaskedCopy> =
            group.batches[batch].members.iter().map(|&(entry, copy)| copy_of(group, entry, copy)).collect();
        let timer = self.metrics.batch_seconds.start_timer();
        let labels = self.pool.install(|| self.runner.label(&copies))?;
        timer.observe_duration();
        self.metrics.copies.inc_by(copies.len() as u64);
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

struct RunnerMetrics {
    copies: IntCounter,
    tokens: IntCounter,
    masked_positions: IntCounter,
    batch_seconds: Histogram,
}

impl RunnerMetrics {
    fn register(registry: &Registry, teacher: &str) -> prometheus::Result<Self> {
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

struct Assembler {
    permit_return: Sender<()>,
    complete: Sender<Vec<Entry>>,
    metrics: StageMetrics,
    pending: BTreeMap<u64, Pending>,
    next: u64,
}

struct Pending {
    group: Arc<Group>,
    labels: Vec<Option<Vec<Label>>>,
    missing: usize,
}

impl Assembler {
    fn run(mut self, messages: &Receiver<Message>) -> Result<(), TeacherError> {
        for message in messages {
            match message {
                Message::Registered { number, group } => {
                    let missing = group.batches.len();
                    self.pending.insert(number, Pending { labels: vec![None; missing], missing, group });
                }
                Message::Labelled { number, batch, labels } => {
                    if let Some(pending) = self.pending.get_mut(&number) {
                        pending.labels[batch] = Some(labels);
                        pending.missing -= 1;
                    }
                }
                Message::Failed(error) => return Err(error),
                Message::Stopped => return Ok(()),
            }
            if self.hand_on_complete().is_none() {
                return Ok(()); // The log has ended, and says why.
            }
        }
        Ok(())
    }

    /// Hands on every complete group that is next in order.
    fn hand_on_complete(&mut self) -> Option<()> {
        while self.pending.get(&self.next).is_some_and(|pending| pending.missing == 0) {
            let entries = self.pending.remove(&self.next)?.into_entries();
            let count = entries.len();
            self.next += 1;
            self.complete.send(entries).ok()?;
            self.metrics.items_out.inc_by(count as u64);
            self.metrics.in_flight.sub(count as i64);
            self.metrics.progressed();
            let _ = self.permit_return.send(()); // The dispatcher may be gone: its input has ended.
        }
        Some(())
    }
}

impl Pending {
    fn into_entries(self) -> Vec<Entry> {
        let Group { mut entries, batches } = Arc::unwrap_or_clone(self.group);
        for (plan, labels) in batches.iter().zip(self.labels) {
            for (&(entry, copy), label) in plan.members.iter().zip(labels.into_iter().flatten()) {
                if let Payload::Record(record) = &mut entries[entry as usize].payload {
                    record.copies[copy as usize].label = Some(label);
                }
            }
        }
        entries
    }
}
