//! Takes groups in and hands their batches out to the runners.

use super::giving_up::can_go_without;
use super::hold_up::HoldUp;
use super::runner_metrics::RunnerMetrics;
use super::{Job, Message, copy_count};
use crate::TeacherWatch;
use crossbeam::channel::{Receiver, Sender};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use store::Group;
use store::stage::StageMetrics;

pub(super) struct Dispatcher {
    pub(super) permits: Receiver<()>,
    /// By index of the teacher. The permits bound them: of a group that does not wait for a runner it is given nothing, and what it
    /// was given before is only a number.
    pub(super) queues: HashMap<u16, RunnerQueue>,
    pub(super) to_assembler: Sender<Message>,
    pub(super) metrics: StageMetrics,
    pub(super) hold_up: Arc<HoldUp>,
}

/// The way to one runner.
pub(super) struct RunnerQueue {
    pub(super) jobs: Sender<Job>,
    pub(super) watch: TeacherWatch,
    pub(super) metrics: RunnerMetrics,
}

impl Dispatcher {
    pub(super) fn run(self, groups: &Receiver<Group>) {
        for (number, group) in (0..).zip(groups) {
            self.hold_up.is_full.store(self.permits.is_empty(), Ordering::Relaxed);
            let permitted = self.permits.recv().is_ok();
            self.hold_up.is_full.store(false, Ordering::Relaxed);
            if !permitted || self.dispatch(number, Arc::new(group)).is_none() {
                return; // The assembler has ended, and says why.
            }
        }
        let _ = self.to_assembler.send(Message::Ended); // The assembler may have ended already.
    }

    /// Whether a runner gets a batch is decided before the assembler hears of the group: what it then waits for is on its way.
    fn dispatch(&self, number: u64, group: Arc<Group>) -> Option<()> {
        self.metrics.items_in.inc_by(group.entries.len() as u64);
        self.metrics.in_flight.add(group.entries.len() as i64);
        let given_up: Arc<[AtomicBool]> = self.given_up(&group).into_iter().map(AtomicBool::new).collect();
        let jobs: Vec<usize> = (0..given_up.len()).filter(|batch| !given_up[*batch].load(Ordering::Relaxed)).collect();
        let registered = Message::Registered { number, group: Arc::clone(&group), given_up: Arc::clone(&given_up) };
        self.to_assembler.send(registered).ok()?;
        for batch in jobs {
            let (teacher, copies) = (group.batches[batch].teacher, copy_count(&group.batches[batch]));
            let queue = self.queues.get(&teacher);
            assert!(queue.is_some(), "a batch for teacher {teacher}, which has no runner");
            let (group, given_up) = (Arc::downgrade(&group), Arc::clone(&given_up));
            queue?.metrics.queued(copies);
            queue?.jobs.send(Job { number, batch, copies, group, given_up }).ok()?;
        }
        Some(())
    }

    /// By batch, whether nobody waits for its labels.
    fn given_up(&self, group: &Group) -> Vec<bool> {
        let stalled: HashSet<u16> =
            self.queues.iter().filter(|(_, queue)| queue.watch.is_given_up()).map(|(teacher, _)| *teacher).collect();
        let is_labelled = |batch: usize| !stalled.contains(&group.batches[batch].teacher);
        let left_out: HashSet<u16> =
            stalled.iter().copied().filter(|teacher| can_go_without(group, *teacher, |_| true, is_labelled)).collect();
        group.batches.iter().map(|plan| left_out.contains(&plan.teacher)).collect()
    }
}
