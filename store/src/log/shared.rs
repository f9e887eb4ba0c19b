//! What the writer and the readers of its process share.

use crate::DurablePosition;
use crate::log::index::Index;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

#[derive(Debug)]
pub(crate) struct Shared {
    state: Mutex<State>,
    moved: Condvar,
}

#[derive(Debug)]
pub(crate) struct State {
    /// Everything appended.
    pub(crate) index: Index,
    /// How much of it may be read.
    pub(crate) durable: DurablePosition,
}

impl Shared {
    pub(crate) fn new(index: Index, durable: DurablePosition) -> Self {
        Self { state: Mutex::new(State { index, durable }), moved: Condvar::new() }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything that was appended is durable now.
    pub(crate) fn publish(&self) -> DurablePosition {
        let mut state = self.lock();
        state.durable = DurablePosition::from_log(state.index.end().0);
        self.moved.notify_all();
        state.durable
    }

    /// Waits until more than `position` is durable, at most `limit`.
    pub(crate) fn wait_beyond(&self, position: DurablePosition, limit: Duration) -> DurablePosition {
        let start = Instant::now();
        let mut state = self.lock();
        while state.durable <= position {
            let left = limit.saturating_sub(start.elapsed());
            if left.is_zero() {
                break;
            }
            state = self.moved.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        state.durable
    }
}
