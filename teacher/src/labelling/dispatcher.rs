//! Takes groups in and hands their batches out to the runners.

use super::{Job, Message};
use crate::TeacherWatch;
use crossbeam::channel::{Receiver, Sender};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use store::Group;
use store::stage::StageMetrics;

pub(super) struct Dispatcher {
    pub(super) permits: Receiver<()>,
    /// By index of the teacher. Nothing is put into the queue of a runner that is given up, so the permits bound them all.
    pub(super) queues: HashMap<u16, (Sender<Job>, TeacherWatch)>,
    pub(super) to_assembler: Sender<Message>,
    pub(super) metrics: StageMetrics,
}

impl Dispatcher {
    pub(super) fn run(self, groups: &Receiver<Group>) {
        for (number, group) in (0..).zip(groups) {
            if self.permits.recv().is_err() || self.dispatch(number, Arc::new(group)).is_none() {
                return; // The assembler has ended, and says why.
            }
        }
        let _ = self.to_assembler.send(Message::Ended); // The assembler may have ended already.
    }

    /// Whether a runner gets a batch is decided before the assembler hears of the group: what it then waits for is on its way.
    fn dispatch(&self, number: u64, group: Arc<Group>) -> Option<()> {
        self.metrics.items_in.inc_by(group.entries.len() as u64);
        self.metrics.in_flight.add(group.entries.len() as i64);
        let is_given_up = |teacher: &u16| self.queues.get(teacher).is_some_and(|(_, watch)| watch.is_given_up());
        let given_up: Arc<[AtomicBool]> =
            group.batches.iter().map(|plan| AtomicBool::new(is_given_up(&plan.teacher))).collect();
        let jobs: Vec<usize> = (0..given_up.len()).filter(|batch| !given_up[*batch].load(Ordering::Relaxed)).collect();
        let registered = Message::Registered { number, group: Arc::clone(&group), given_up: Arc::clone(&given_up) };
        self.to_assembler.send(registered).ok()?;
        for batch in jobs {
            let teacher = group.batches[batch].teacher;
            let queue = self.queues.get(&teacher);
            assert!(queue.is_some(), "a batch for teacher {teacher}, which has no runner");
            queue?.0.send(Job { number, batch, group: Arc::clone(&group), given_up: Arc::clone(&given_up) }).ok()?;
        }
        Some(())
    }
}
