//! Turns at the threads of training.
//!
//! A trunk and its release compute on the same threads, and neither may starve the other. So each takes a turn for each unit
//! of work: a step, or a batch of an evaluation. Whoever asks first goes first; as both ask again after each unit, they
//! alternate while both have something to do. One that waits for the log, or is paused, asks for nothing, and the other has
//! the threads for itself. Units do not overlap: two at once would only push each other out of the caches.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use store::pulse::{LOOK_INTERVAL, Wait, waits_for};

/// Hands out turns in the order in which they are asked for. Clones share the queue.
#[derive(Clone, Debug, Default)]
pub struct Turns(Arc<Queue>);

#[derive(Debug, Default)]
struct Queue {
    tickets: Mutex<Tickets>,
    changed: Condvar,
}

/// Every turn has a number.
#[derive(Debug, Default)]
struct Tickets {
    /// That of the next one that is asked for.
    next: u64,
    /// That of the one that is on, or may begin.
    served: u64,
}

/// A turn, until it is dropped.
#[derive(Debug)]
pub(crate) struct Turn<'a>(&'a Queue);

impl Turns {
    /// Waits until everybody who asked before is done.
    pub(crate) fn take(&self) -> Turn<'_> {
        let mut tickets = self.0.lock();
        let ticket = tickets.next;
        tickets.next += 1;
        while tickets.served != ticket {
            waits_for(Wait::Turn);
            tickets = self.0.changed.wait_timeout(tickets, LOOK_INTERVAL).unwrap_or_else(PoisonError::into_inner).0;
        }
        Turn(&self.0)
    }

    /// Whether nobody waits for the turn that is on.
    #[cfg(test)]
    fn is_alone(&self) -> bool {
        let tickets = self.0.lock();
        tickets.next == tickets.served + 1
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.lock().served += 1;
        self.0.changed.notify_all();
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Tickets> {
        self.tickets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn two_who_always_ask_again_alternate() {
        let turns = Turns::default();
        let order = Mutex::new(Vec::new());
        let both = std::sync::Barrier::new(2);
        std::thread::scope(|scope| {
            for name in 0..2 {
                let (turns, order, both) = (turns.clone(), &order, &both);
                scope.spawn(move || {
                    both.wait();
                    for _ in 0..200 {
                        let _turn = turns.take();
                        order.lock().unwrap().push(name);
                        // The other one is in the queue before this turn ends, unless it has had all of its own.
                        while order.lock().unwrap().iter().filter(|by| **by != name).count() < 200 && turns.is_alone() {
                            std::thread::yield_now();
                        }
                    }
                });
            }
        });
        let order = order.into_inner().unwrap();
        assert_eq!(order.len(), 400);
        assert!(order.windows(2).all(|pair| pair[0] != pair[1]), "{order:?}");
    }

    #[test]
    fn a_turn_ends_when_its_work_panics() {
        let turns = Turns::default();
        let work = || {
            let _turn = turns.take();
            panic!("on purpose");
        };
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).is_err());
        drop(turns.take());
    }
}
