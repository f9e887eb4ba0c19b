//! Puts groups together again, in the order in which they came, and gives up on runners that nobody is to wait for.

use super::giving_up::can_go_without;
use super::hold_up::HoldUp;
use super::{Message, copy_count};
use crate::watch::OnStall;
use crate::{TeacherError, TeacherWatch};
use crossbeam::channel::{Receiver, SendTimeoutError, Sender, select, tick};
use prometheus::{IntCounter, IntGauge, Opts, Registry};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use store::pulse::{self, LOOK_INTERVAL, Wait};
use store::stage::{StageControl, StageMetrics};
use store::{Entry, Group, Label, Payload};

pub(super) struct Assembler {
    pub(super) permit_return: Sender<()>,
    pub(super) complete: Sender<Vec<Entry>>,
    pub(super) metrics: StageMetrics,
    pub(super) control: StageControl,
    pub(super) hold_up: Arc<HoldUp>,
    pub(super) runners: Vec<WatchedRunner>,
    pub(super) pending: BTreeMap<u64, Pending>,
    pub(super) next: u64,
    /// Whether the dispatcher has sent all groups.
    pub(super) ended: bool,
}

/// What the assembler knows of a runner.
pub(super) struct WatchedRunner {
    name: String,
    index: u16,
    watch: TeacherWatch,
    stalled: IntGauge,
    dropped_copies: IntCounter,
    /// Whether others label for it, elsewhere.
    is_elsewhere: bool,
}

pub(super) struct Pending {
    group: Arc<Group>,
    labels: Vec<Option<Vec<Label>>>,
    /// Batches whose copies are completed without labels.
    given_up: Arc<[AtomicBool]>,
    missing: usize,
}

impl Assembler {
    pub(super) fn run(mut self, messages: &Receiver<Message>) -> Result<(), TeacherError> {
        let shortest = self.runners.iter().map(|runner| runner.watch.options().after).min().unwrap_or(LOOK_INTERVAL);
        // Runners are looked at this often, or several times within the shortest time after which one stalls.
        let looks = tick((shortest / 4).clamp(Duration::from_millis(1), LOOK_INTERVAL));
        while !(self.ended && self.pending.is_empty()) {
            self.give_sign();
            select! {
                recv(messages) -> message => match message {
                    Ok(Message::Registered { number, group, given_up }) => self.register(number, group, given_up),
                    Ok(Message::Labelled { number, batch, labels }) => {
                        self.take(number, batch, labels);
                        pulse::beat();
                    }
                    Ok(Message::Unlabelled { number, batch }) => {
                        self.go_without(number, batch);
                        pulse::beat();
                    }
                    Ok(Message::Failed(error)) => {
                        self.control.stop(); // Others may wait for labels that nobody needs any more.
                        return Err(error);
                    }
                    Ok(Message::Ended) => self.ended = true,
                    Ok(Message::Stopped) | Err(_) => return Ok(()),
                },
                recv(looks) -> _ => self.look(),
            }
            if self.hand_on_complete().is_none() {
                return Ok(()); // The log has ended, and says why.
            }
            if self.control.stopping() && self.runners.iter().any(|runner| runner.watch.is_stalled()) {
                return Ok(()); // What waits for it will not be complete, and others may have nothing to do.
            }
        }
        Ok(())
    }

    /// The stage waits if no group is inside, or while it is paused. Otherwise it gets on with each batch that is labelled: who looks at
    /// clocks alone does not.
    fn give_sign(&self) {
        if self.pending.is_empty() {
            pulse::waits_for(Wait::Input);
        } else if self.control.paused() {
            pulse::waits_for(Wait::Pause);
        } else if self.pending.values().all(|pending| pending.waits_for(&self.runners)) {
            pulse::waits_for(Wait::Input); // Of others: they may be away for as long as they like.
        }
    }

    fn register(&mut self, number: u64, group: Arc<Group>, given_up: Arc<[AtomicBool]>) {
        let mut missing = 0;
        for (plan, given_up) in group.batches.iter().zip(&*given_up) {
            match given_up.load(Ordering::Relaxed) {
                true => note_dropped(&self.runners, plan.teacher, copy_count(plan)),
                false => missing += 1,
            }
        }
        self.pending.insert(number, Pending { labels: vec![None; group.batches.len()], given_up, missing, group });
    }

    /// Takes a batch's labels, unless they are no longer waited for.
    fn take(&mut self, number: u64, batch: usize, labels: Vec<Label>) {
        let Some(pending) = self.pending.get_mut(&number) else { return };
        if !pending.given_up[batch].load(Ordering::Relaxed) {
            pending.labels[batch] = Some(labels);
            pending.missing -= 1;
        }
    }

    /// Nobody could label a batch: its copies go to the log without labels.
    fn go_without(&mut self, number: u64, batch: usize) {
        let Some(pending) = self.pending.get_mut(&number) else { return };
        if !pending.given_up[batch].swap(true, Ordering::Relaxed) {
            pending.missing -= 1;
        }
    }

    /// Looks for runners that stall, and gives up what waits for those that nobody is to wait for: but no record altogether.
    fn look(&mut self) {
        for runner in &self.runners {
            let is_new = runner.watch.look();
            runner.stalled.set(runner.watch.is_stalled().into());
            if is_new {
                runner.warn();
            }
        }
        let given_up: Vec<u16> =
            self.runners.iter().filter(|runner| runner.watch.is_given_up()).map(|runner| runner.index).collect();
        for teacher in &given_up {
            for pending in self.pending.values_mut() {
                pending.give_up(*teacher, &given_up, |copies| note_dropped(&self.runners, *teacher, copies));
            }
        }
    }

    /// Hands on every complete group that is next in order.
    fn hand_on_complete(&mut self) -> Option<()> {
        while self.pending.get(&self.next).is_some_and(|pending| pending.missing == 0) {
            let entries = self.pending.remove(&self.next)?.into_entries();
            let count = entries.len();
            self.next += 1;
            self.hold_up.waits_for_log.store(self.complete.is_full(), Ordering::Relaxed);
            let sent = send(&self.complete, entries);
            self.hold_up.waits_for_log.store(false, Ordering::Relaxed);
            sent?;
            self.metrics.items_out.inc_by(count as u64);
            self.metrics.in_flight.sub(count as i64);
            self.metrics.progressed();
            let _ = self.permit_return.send(()); // The dispatcher may be gone: its input has ended.
        }
        Some(())
    }
}

/// Waits until the log takes what is complete. `None`: it has ended.
fn send(complete: &Sender<Vec<Entry>>, mut entries: Vec<Entry>) -> Option<()> {
    loop {
        pulse::waits_for(Wait::Output);
        entries = match complete.send_timeout(entries, LOOK_INTERVAL) {
            Ok(()) => return Some(()),
            Err(SendTimeoutError::Timeout(entries)) => entries,
            Err(SendTimeoutError::Disconnected(_)) => return None,
        };
    }
}

fn note_dropped(runners: &[WatchedRunner], teacher: u16, copies: u64) {
    for runner in runners.iter().filter(|runner| runner.index == teacher) {
        runner.watch.note_dropped(copies);
        runner.dropped_copies.inc_by(copies);
    }
}

impl WatchedRunner {
    pub(super) fn register(
        registry: &Registry,
        name: &str,
        index: u16,
        watch: TeacherWatch,
        is_elsewhere: bool,
    ) -> Result<Self, TeacherError> {
        let opts = |name: &str, help: &str, teacher: &str| Opts::new(name, help).const_label("teacher", teacher);
        let stalled = opts(
            "mergedistill_teacher_stalled",
            "1 while a teacher is longer at work on one batch than its stall_seconds, otherwise 0.",
            name,
        );
        let dropped = opts(
            "mergedistill_teacher_dropped_copies_total",
            "Masked copies that went to the log without the teacher's labels because it stalled.",
            name,
        );
        let (stalled, dropped_copies) = (IntGauge::with_opts(stalled)?, IntCounter::with_opts(dropped)?);
        registry.register(Box::new(stalled.clone()))?;
        registry.register(Box::new(dropped_copies.clone()))?;
        Ok(Self { name: name.to_owned(), index, watch, stalled, dropped_copies, is_elsewhere })
    }

    fn warn(&self) {
        let seconds = self.watch.options().after.as_secs_f64();
        let (teacher, consequence) = match self.watch.options().on_stall {
            OnStall::Wait => (&self.name, "labelling waits for it"),
            OnStall::DropCopy => {
                (&self.name, "what others label too goes to the log without its labels until it answers")
            }
        };
        tracing::warn!(teacher, seconds, "the teacher stalls: one batch takes longer than that; {consequence}");
    }
}

impl Pending {
    /// Whether all that is missing is to come from elsewhere.
    fn waits_for(&self, runners: &[WatchedRunner]) -> bool {
        let missing = self.group.batches.iter().zip(&self.labels).zip(&*self.given_up);
        let mut missing =
            missing.filter(|((_, labels), given_up)| labels.is_none() && !given_up.load(Ordering::Relaxed));
        missing.all(|((plan, _), _)| runners.iter().any(|runner| runner.index == plan.teacher && runner.is_elsewhere))
    }

    /// Gives up the batches of `teacher` that are missing, if each of their records has another labelled copy, now or from a
    /// teacher that is not `stalled`; `note` is told of their copies.
    fn give_up(&mut self, teacher: u16, stalled: &[u16], note: impl Fn(u64)) {
        let is_missing = |batch: usize| self.labels[batch].is_none() && !self.given_up[batch].load(Ordering::Relaxed);
        let is_labelled = |batch: usize| {
            self.labels[batch].is_some() || (is_missing(batch) && !stalled.contains(&self.group.batches[batch].teacher))
        };
        if !can_go_without(&self.group, teacher, is_missing, is_labelled) {
            return;
        }
        let batches = self.group.batches.iter().zip(&*self.given_up).zip(&self.labels);
        for ((plan, given_up), labels) in batches.filter(|((plan, _), _)| plan.teacher == teacher) {
            if labels.is_none() && !given_up.swap(true, Ordering::Relaxed) {
                self.missing -= 1;
                note(copy_count(plan));
            }
        }
    }

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
