//! From unlabelled groups to complete ones: dispatcher → runner threads → assembler.
//!
//! ```text
//!             permit (at most `depth` groups inside)
//!            ┌────────────────────────────────────────────┐
//! groups ─► dispatcher ─► one queue per runner ─► runner ─► assembler ─► complete groups, in order
//!                └──────────── registration ──────────────►
//! ```
//!
//! The assembler also looks at the runners' clocks ([`TeacherWatch`]). What a runner that is given up
//! ([`OnStall::DropCopy`](crate::OnStall)) was to label is marked as given up: the group is complete without it, the runner passes over it
//! if it comes to it, and labels that come nevertheless are not taken. That is done only where every record keeps the labels of
//! another teacher: a stall makes nobody read text without learning from it. Other groups wait, and so does ingestion.

mod assembler;
mod dispatcher;
mod giving_up;
mod hold_up;
mod pending;
mod quarantine;
mod runner_metrics;
mod runner_thread;

pub use pending::PendingLabels;

use crate::{Activity, TeacherError, TeacherWatch};
use assembler::{Assembler, WatchedRunner};
use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};
use dispatcher::{Dispatcher, RunnerQueue};
use hold_up::HoldUp;
use model::RolePool;
use prometheus::Registry;
use quarantine::BatchQuarantine;
use runner_metrics::RunnerMetrics;
use runner_thread::RunnerThread;
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::Duration;
use store::stage::{StageControl, StageMetrics};
use store::{BatchPlan, Entry, Group, Label, MaskedCopy, Payload, SequenceNumber};

/// While the stage's end waits for a runner, its clock is looked at this often.
const JOIN_INTERVAL: Duration = Duration::from_millis(100);

/// What labels the copies of one teacher.
pub trait Labeller: Send + Sync + 'static {
    /// Name in the configuration.
    fn name(&self) -> &str;

    /// Index in the teacher table.
    fn index(&self) -> u16;

    /// Begins to label `copies` (this teacher's own), of a group of entries up to `group_end`. Called in the pool of labelling, if it needs that, and then
    /// done at once.
    ///
    /// # Errors
    /// When the teacher fails; labelling then stops.
    fn begin(&self, copies: &[&MaskedCopy], group_end: SequenceNumber) -> Result<PendingLabels, TeacherError>;

    /// Floating-point operations that a teacher of this shape takes to label `copies`.
    fn flops(&self, copies: &[&MaskedCopy]) -> u64;

    /// Entries of each label that are drawn from the tail.
    fn tail_samples(&self) -> usize {
        0
    }

    /// Whether it computes on threads of the pool. One that does not leaves them to the others.
    fn needs_pool(&self) -> bool {
        true
    }

    /// Batches that are begun before it is done with one.
    fn ahead(&self) -> usize {
        0
    }

    /// Whether others label for it, who may be away.
    fn is_elsewhere(&self) -> bool {
        false
    }

    /// Bytes that it has on an accelerator.
    fn device_bytes(&self) -> usize {
        0
    }

    /// How often a batch was cut in two because an accelerator had no room for it, since this was asked last.
    fn take_halvings(&self) -> u64 {
        0
    }

    /// Opens its accelerator anew, after that failed.
    ///
    /// # Errors
    /// When it still does not answer.
    fn recover(&self) -> Result<(), TeacherError> {
        Ok(())
    }
}

impl<L: Labeller + ?Sized> Labeller for Arc<L> {
    fn name(&self) -> &str {
        L::name(self)
    }

    fn index(&self) -> u16 {
        L::index(self)
    }

    fn begin(&self, copies: &[&MaskedCopy], group_end: SequenceNumber) -> Result<PendingLabels, TeacherError> {
        L::begin(self, copies, group_end)
    }

    fn ahead(&self) -> usize {
        L::ahead(self)
    }

    fn is_elsewhere(&self) -> bool {
        L::is_elsewhere(self)
    }

    fn flops(&self, copies: &[&MaskedCopy]) -> u64 {
        L::flops(self, copies)
    }

    fn tail_samples(&self) -> usize {
        L::tail_samples(self)
    }

    fn needs_pool(&self) -> bool {
        L::needs_pool(self)
    }

    fn device_bytes(&self) -> usize {
        L::device_bytes(self)
    }

    fn take_halvings(&self) -> u64 {
        L::take_halvings(self)
    }

    fn recover(&self) -> Result<(), TeacherError> {
        L::recover(self)
    }
}

/// How labelling runs.
#[derive(Clone, Debug)]
pub struct LabellingOptions {
    /// Groups inside the stage at most.
    pub depth: usize,
    /// Pauses and stops the runners, between batches. Groups that are not complete then are dropped: they are read
    /// again later, from the cursors in the log.
    pub control: StageControl,
    /// How long a runner waits before it opens a lost accelerator anew.
    pub recovery_interval: Duration,
    /// The threads that all runners label on. One batch may be begun within another's on the same thread.
    pub pool: Arc<RolePool>,
    /// Folder of notes about batches that nobody could label.
    pub quarantine: PathBuf,
}

/// The running stage.
#[derive(Debug)]
pub struct Labelling {
    /// Dispatcher and assembler.
    threads: Vec<(String, Thread)>,
    runners: Vec<JoinableRunner>,
}

type Thread = JoinHandle<Result<(), TeacherError>>;

#[derive(Debug)]
struct JoinableRunner {
    name: String,
    watch: TeacherWatch,
    thread: Thread,
    /// Disconnected once the thread is at its end.
    end: Receiver<()>,
}

impl Labelling {
    /// Starts a thread per runner, a dispatcher and an assembler. The stage ends when `groups` is
    /// disconnected and everything inside was handed on, when it is stopped, when `complete` is disconnected, or at the
    /// first error. What each runner is doing is seen through its watch.
    pub fn start<L: Labeller>(
        runners: Vec<(L, TeacherWatch)>,
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
        let mut labelling = Self { threads: Vec::new(), runners: Vec::new() };
        let (mut queues, mut watched) = (HashMap::new(), Vec::new());
        let hold_up = Arc::new(HoldUp::default());
        for (runner, watch) in runners {
            let (queue, jobs) = unbounded(); // bounded by the permits too: see the dispatcher
            let metrics = RunnerMetrics::register(registry, runner.name())?;
            queues.insert(runner.index(), RunnerQueue { jobs: queue, watch: watch.clone(), metrics: metrics.clone() });
            watched.push(WatchedRunner::register(
                registry,
                runner.name(),
                runner.index(),
                watch.clone(),
                runner.is_elsewhere(),
            )?);
            let quarantine = BatchQuarantine::register(registry, runner.name(), options.quarantine.clone())?;
            let thread = RunnerThread {
                quarantine,
                metrics,
                hold_up: Arc::clone(&hold_up),
                runner,
                watch,
                control: options.control.clone(),
                pool: Arc::clone(&options.pool),
                recovery_interval: options.recovery_interval,
                results: to_assembler.clone(),
            };
            labelling.spawn_runner(thread, jobs)?;
        }
        let dispatcher =
            Dispatcher { permits, queues, to_assembler, metrics: metrics.clone(), hold_up: Arc::clone(&hold_up) };
        let dispatch = move || {
            dispatcher.run(&groups);
            Ok(())
        };
        labelling.threads.push(("dispatcher".to_owned(), spawn("dispatcher", dispatch)?));
        let (pending, next, ended) = (BTreeMap::new(), 0, false);
        let control = options.control.clone();
        let assembler =
            Assembler { permit_return, complete, metrics, control, hold_up, runners: watched, pending, next, ended };
        let pulse = store::pulse::current();
        let assemble = move || {
            let _entered = pulse.map(store::pulse::Pulse::enter);
            assembler.run(&messages)
        };
        labelling.threads.push(("assembler".to_owned(), spawn("assembler", assemble)?));
        Ok(labelling)
    }

    /// Waits for the stage's end. A runner that stalls then is not waited for: nothing that it would still say is used.
    pub fn join(self) -> Result<(), TeacherError> {
        let mut outcome = Ok(());
        for (name, thread) in self.threads {
            outcome = outcome.and(join(name, thread));
        }
        let watches: Vec<TeacherWatch> = self.runners.iter().map(|runner| runner.watch.clone()).collect();
        for runner in self.runners {
            outcome = outcome.and(runner.join(&watches));
        }
        outcome
    }

    fn spawn_runner<L: Labeller>(&mut self, thread: RunnerThread<L>, jobs: Receiver<Job>) -> Result<(), TeacherError> {
        let (name, watch) = (format!("teacher-{}", thread.runner.name()), thread.watch.clone());
        let (end_of_thread, end) = bounded::<()>(0);
        let body = move || {
            thread.run(&jobs);
            drop(end_of_thread);
            Ok(())
        };
        let thread = spawn(&name, body)?;
        self.runners.push(JoinableRunner { name, watch, thread, end });
        Ok(())
    }
}

impl JoinableRunner {
    /// `all` are the watches of all runners: one that is idle may wait for the thread of one that stalls.
    fn join(self, all: &[TeacherWatch]) -> Result<(), TeacherError> {
        while self.end.recv_timeout(JOIN_INTERVAL) == Err(RecvTimeoutError::Timeout) {
            for watch in all {
                let _ = watch.look(); // Nobody else looks any more.
            }
            let one_stalls = all.iter().any(TeacherWatch::is_stalled);
            if self.watch.is_stalled() || (one_stalls && self.watch.activity() == Activity::Idle) {
                tracing::warn!(thread = self.name, "the teacher does not answer; it is left behind");
                return Ok(());
            }
        }
        join(self.name, self.thread)
    }
}

fn join(name: String, thread: Thread) -> Result<(), TeacherError> {
    thread.join().unwrap_or_else(|_| Err(TeacherError::Panicked(name)))
}

fn spawn(name: &str, body: impl FnOnce() -> Result<(), TeacherError> + Send + 'static) -> Result<Thread, TeacherError> {
    let failed = |source| TeacherError::Thread { thread: name.to_owned(), source };
    std::thread::Builder::new().name(name.to_owned()).spawn(body).map_err(failed)
}

/// One batch of a group, on its way to a runner.
struct Job {
    number: u64,
    batch: usize,
    copies: u64,
    /// The assembler holds it: what is complete without this batch takes no memory while the runner stalls.
    group: Weak<Group>,
    /// By batch of the group: whether it is no longer waited for.
    given_up: Arc<[AtomicBool]>,
}

enum Message {
    /// Comes before any label of the group: the dispatcher sends it before it hands out the batches, those that are given up
    /// already excepted.
    Registered {
        number: u64,
        group: Arc<Group>,
        given_up: Arc<[AtomicBool]>,
    },
    Labelled {
        number: u64,
        batch: usize,
        labels: Vec<Label>,
    },
    /// Nobody could label it.
    Unlabelled {
        number: u64,
        batch: usize,
    },
    Failed(TeacherError),
    /// All groups are registered.
    Ended,
    /// A runner was told to stop: no group that is not complete by now will be.
    Stopped,
}

/// A batch's copies, and the languages of their records.
fn members(group: &Group, batch: usize) -> impl Iterator<Item = (&str, &MaskedCopy)> {
    group.batches[batch].members.iter().map(|&(entry, copy)| copy_of(group, entry, copy))
}

/// A copy, and the language of its record.
fn copy_of(group: &Group, entry: u32, copy: u32) -> (&str, &MaskedCopy) {
    match &group.entries[entry as usize].payload {
        Payload::Record(record) => (&record.language, &record.copies[copy as usize]),
        Payload::Skip(_) | Payload::End => unreachable!("a batch plan names only records"),
    }
}

fn copy_count(plan: &BatchPlan) -> u64 {
    plan.members.len() as u64
}
