//! What holds labelling up, for runners that have nothing to do.

use super::runner_metrics::Spent;
use std::sync::atomic::{AtomicBool, Ordering};

/// What dispatcher and assembler wait for at the moment.
#[derive(Debug, Default)]
pub(super) struct HoldUp {
    /// The dispatcher has a group and no permit.
    pub(super) is_full: AtomicBool,
    /// The assembler has a group that the log does not take yet.
    pub(super) waits_for_log: AtomicBool,
}

impl HoldUp {
    /// What a runner without a batch waits for.
    pub(super) fn of_idle(&self) -> Spent {
        match (self.is_full.load(Ordering::Relaxed), self.waits_for_log.load(Ordering::Relaxed)) {
            (false, _) => Spent::WaitingForInput,
            (true, false) => Spent::WaitingForTeachers,
            (true, true) => Spent::WaitingForLog,
        }
    }
}
