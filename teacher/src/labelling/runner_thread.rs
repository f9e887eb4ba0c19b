//! The thread of one runner: batch after batch.
//!
//! A runner on an accelerator has its next batch begun before it is done with one, so that the accelerator never waits for the processor to prepare what comes and to hand on what was.

use super::hold_up::HoldUp;
use super::quarantine::BatchQuarantine;
use super::runner_metrics::{Clock, RunnerMetrics, Spent};
use super::{Job, Message, PendingLabels, members};
use crate::{Labeller, TeacherError, TeacherWatch};
use crossbeam::channel::{Receiver, RecvTimeoutError, Select, Sender, TryRecvError};
use model::{RolePool, Working};
use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use store::stage::StageControl;
use store::{Group, Label, MaskedCopy, SequenceNumber};

/// Times that a lost accelerator is opened anew before the teacher is given up.
const RECOVERIES: u32 = 10;
/// While a runner waits for a batch it looks this often what it waits for.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

pub(super) struct RunnerThread<L> {
    pub(super) runner: L,
    pub(super) watch: TeacherWatch,
    pub(super) control: StageControl,
    pub(super) pool: Arc<RolePool>,
    pub(super) recovery_interval: Duration,
    pub(super) results: Sender<Message>,
    pub(super) metrics: RunnerMetrics,
    pub(super) hold_up: Arc<HoldUp>,
    pub(super) quarantine: BatchQuarantine,
}

/// A batch that was begun.
struct Begun {
    number: u64,
    batch: usize,
    copies: u64,
    group: Arc<Group>,
    /// Since when nothing else was at work.
    since: Instant,
    /// `None`: it has to be begun again.
    labels: Option<Result<PendingLabels, TeacherError>>,
}

/// The thread ends: it was told to, or nobody wants its labels any more.
struct End;

/// What a runner does next.
enum Next {
    Begin(Job),
    /// What was begun first.
    EndOldest,
    /// There will be no more jobs, and nothing is at work.
    Nothing,
}

impl<L: Labeller> RunnerThread<L> {
    pub(super) fn run(&self, jobs: &Receiver<Job>) {
        let (mut clock, mut working, mut at_work) = (self.metrics.clock(), None, VecDeque::new());
        loop {
            let done = match self.next(jobs, &at_work, &mut clock, &mut working) {
                Next::Begin(job) => self.take_on(job, &mut at_work, &mut clock, &mut working),
                Next::EndOldest => self.end_oldest(&mut at_work, &mut clock),
                Next::Nothing => return,
            };
            if done.is_err() {
                return;
            }
        }
    }

    fn next(
        &self,
        jobs: &Receiver<Job>,
        at_work: &VecDeque<Begun>,
        clock: &mut Clock,
        working: &mut Option<Working>,
    ) -> Next {
        let Some(oldest) = at_work.front() else { return self.next_job(jobs, clock, working) };
        if at_work.len() > self.runner.ahead() {
            return Next::EndOldest;
        }
        let arrival = oldest.labels.as_ref().and_then(|labels| labels.as_ref().ok()).and_then(PendingLabels::arrival);
        let Some(arrival) = arrival else { return jobs.try_recv().map_or(Next::EndOldest, Next::Begin) };
        // Whichever comes first.
        let mut select = Select::new();
        select.recv(arrival);
        select.recv(jobs);
        loop {
            match select.ready_timeout(LOOK_INTERVAL) {
                Ok(0) => return Next::EndOldest,
                Ok(_) => match jobs.try_recv() {
                    Ok(job) => return Next::Begin(job),
                    Err(TryRecvError::Disconnected) => return Next::EndOldest,
                    Err(TryRecvError::Empty) => {}
                },
                Err(_) if self.control.stopping() => return Next::EndOldest,
                Err(_) => {}
            }
        }
    }

    /// Waits for a job, while nothing is at work.
    fn next_job(&self, jobs: &Receiver<Job>, clock: &mut Clock, working: &mut Option<Working>) -> Next {
        if let Ok(job) = jobs.try_recv() {
            return Next::Begin(job);
        }
        clock.spent(Spent::Labelling);
        *working = None; // The role is not at work while it waits.
        loop {
            let waits_for = self.hold_up.of_idle();
            let job = jobs.recv_timeout(LOOK_INTERVAL);
            clock.spent(if self.control.paused() { Spent::Paused } else { waits_for });
            match job {
                Ok(job) => return Next::Begin(job),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Next::Nothing,
            }
        }
    }

    fn take_on(
        &self,
        job: Job,
        at_work: &mut VecDeque<Begun>,
        clock: &mut Clock,
        working: &mut Option<Working>,
    ) -> Result<(), End> {
        if self.control.paused() || self.control.stopping() {
            while !at_work.is_empty() {
                self.end_oldest(at_work, clock)?;
            }
            clock.spent(Spent::Labelling);
            *working = None;
            let proceeds = self.control.proceed();
            clock.spent(Spent::Paused);
            if !proceeds {
                let _ = self.results.send(Message::Stopped); // The assembler may have ended already.
                return Err(End);
            }
        }
        let begun = self.begin(job, !at_work.is_empty(), working);
        at_work.extend(begun);
        Ok(())
    }

    /// Begins a job's batch, unless nobody waits for it any more.
    fn begin(&self, job: Job, at_work: bool, working: &mut Option<Working>) -> Option<Begun> {
        let Job { number, batch, copies, group, given_up } = job;
        // Without the group it was complete, or the assembler has ended.
        let group = group.upgrade().filter(|_| !given_up[batch].load(Ordering::Relaxed));
        let Some(group) = group else {
            self.metrics.done_with(copies);
            return None;
        };
        if self.runner.needs_pool() {
            working.get_or_insert_with(|| self.pool.work());
        }
        let since = Instant::now();
        let labels = Some(self.begin_labels(&group, batch, at_work));
        Some(Begun { number, batch, copies, group, since, labels })
    }

    /// Waits for the labels of what was begun first, and hands them on.
    fn end_oldest(&self, at_work: &mut VecDeque<Begun>, clock: &mut Clock) -> Result<(), End> {
        let Some(begun) = at_work.pop_front() else { return Ok(()) };
        let (Begun { number, batch, copies, group, mut since, labels }, later) = (begun, at_work);
        let message = match self.labels(&group, batch, (labels, &mut since), later, clock) {
            Ok(Some(labels)) => {
                self.note(&group, batch, &labels, since.elapsed());
                self.quarantine.note_success();
                Message::Labelled { number, batch, labels }
            }
            Ok(None) => Message::Stopped,
            Err(TeacherError::Worker { reason, .. }) => {
                let kept = self.quarantine.keep(&group, batch, reason);
                kept.map_or_else(Message::Failed, |()| Message::Unlabelled { number, batch })
            }
            Err(error) => Message::Failed(error),
        };
        if let Some(seconds) = self.watch.end().map(|took| took.as_secs_f64()) {
            let (teacher, dropped_copies) = (self.runner.name(), self.watch.dropped_copies());
            tracing::info!(
                teacher,
                seconds,
                dropped_copies,
                "the teacher that stalled has answered; it takes part again"
            );
        }
        if let Some(next) = later.front_mut() {
            self.watch.begin();
            next.since = Instant::now();
        }
        clock.spent(Spent::Labelling);
        let stopped = matches!(message, Message::Stopped);
        self.metrics.done_with(copies);
        drop(group); // before the message, so that the assembler is the group's only owner at its end
        if self.results.send(message).is_err() || stopped { Err(End) } else { Ok(()) }
    }

    /// Waits for labels. Where the accelerator failed, it is opened anew and the batch tried again: what fails with the very same batch is no accident. `None`: a stop came before.
    fn labels(
        &self,
        group: &Group,
        batch: usize,
        (begun, since): (Option<Result<PendingLabels, TeacherError>>, &mut Instant),
        later: &mut VecDeque<Begun>,
        clock: &mut Clock,
    ) -> Result<Option<Vec<Label>>, TeacherError> {
        let begin = || self.begin_labels(group, batch, false);
        match begun.unwrap_or_else(begin).map_or_else(|error| Some(Err(error)), |labels| self.wait(labels)) {
            None => Ok(None),
            Some(Err(error)) if error.is_lost_device() => {
                // What was begun behind it is lost too, and may hold what has to go first.
                later.iter_mut().for_each(|later| later.labels = None);
                clock.spent(Spent::Labelling);
                let recovered = self.recover(error);
                clock.spent(Spent::Lost);
                if !recovered? {
                    return Ok(None);
                }
                *since = Instant::now();
                self.wait(begin()?).transpose()
            }
            Some(labels) => labels.map(Some),
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

    /// Begins a batch. It is `at_work` where another one is, which is watched.
    fn begin_labels(&self, group: &Group, batch: usize, at_work: bool) -> Result<PendingLabels, TeacherError> {
        let copies: Vec<&MaskedCopy> = members(group, batch).map(|(_, copy)| copy).collect();
        let group_end = group.entries.last().map_or(SequenceNumber(0), |entry| SequenceNumber(entry.sequence.0 + 1));
        let begin = || {
            if !at_work {
                self.watch.begin();
            }
            self.runner.begin(&copies, group_end)
        };
        self.caught(|| match self.runner.needs_pool() {
            true => self.pool.install(begin), // Only there: others may be at work on all threads, for as long as they like.
            false => begin(),
        })
    }

    /// `None`: a stop came before labels that somebody sends.
    fn wait(&self, labels: PendingLabels) -> Option<Result<Vec<Label>, TeacherError>> {
        self.caught(|| labels.wait_while(|| !self.control.stopping(), LOOK_INTERVAL).transpose()).transpose()
    }

    /// A panic is an error of the teacher's.
    fn caught<T>(&self, work: impl FnOnce() -> Result<T, TeacherError>) -> Result<T, TeacherError> {
        let done = std::panic::catch_unwind(AssertUnwindSafe(work));
        done.unwrap_or_else(|_| Err(TeacherError::Panicked(format!("teacher-{}", self.runner.name()))))
    }

    fn note(&self, group: &Group, batch: usize, labels: &[Label], took: Duration) {
        let copies: Vec<&MaskedCopy> = members(group, batch).map(|(_, copy)| copy).collect();
        self.metrics.labelled(&self.runner, &copies, took.as_secs_f64());
        for ((language, _), label) in members(group, batch).zip(labels) {
            self.metrics.observe_retained_mass(language, label, self.runner.tail_samples());
        }
    }
}
