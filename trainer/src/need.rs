//! What of the log a run still needs: retention leaves it.
//!
//! | who | what |
//! | --- | --- |
//! | training, from where it is | the oldest record that it has not read |
//! | a resume from the oldest checkpoint that is kept (from the start, if there is none) | the oldest entry that was read by a window that it would form again |
//! | an evaluation after that checkpoint | the cursors at the durable position of the window before |
//!
//! A release has the same needs, from the checkpoint on that it branches from; they count until it has ended.
//!
//! All other checkpoints are newer, and need less. The start is not needed once there is a checkpoint: where training goes back
//! to the start because nothing else helps, and the log does not reach back so far, it ends instead.

use crate::TrainerError;
use crate::checkpoint::Checkpoints;
use crate::journal::Journal;
use crate::records::Records;
use store::SequenceNumber;
use store::log::{Need, Needed};

/// Keeps others informed of what is needed.
#[derive(Debug)]
pub(crate) struct LogNeeds {
    shared: Need,
    /// The release whose needs these are; `None`: they are the run's.
    release: Option<String>,
    oldest: OldestCheckpoint,
    /// The oldest record that training has not read.
    unread: SequenceNumber,
    /// What was told last.
    needed: Needed,
}

/// Where a resume begins at the earliest.
#[derive(Clone, Copy, Debug, Default)]
struct OldestCheckpoint {
    /// `None`: the start.
    step: Option<u64>,
    /// The window that it is in.
    window: u64,
}

impl LogNeeds {
    /// Tells `shared` what a run needs, or its `release`. Until the first update everything is needed.
    pub(crate) fn new(shared: Need, release: Option<String>) -> Self {
        Self {
            shared,
            release,
            oldest: OldestCheckpoint::default(),
            unread: SequenceNumber::default(),
            needed: Needed::default(),
        }
    }

    /// While old entries are looked for nothing may be removed, until [`LogNeeds::let_go`] or an update.
    pub(crate) fn hold(&self, records: &dyn Records) {
        self.shared.include(records.begin(), self.because("training is reading old entries at this moment".to_owned()));
    }

    /// Takes [`LogNeeds::hold`] back.
    pub(crate) fn let_go(&self) {
        self.shared.set(self.needed.from, self.needed.why.clone());
    }

    /// Training has read everything below `unread`, and formed the windows in `journal`.
    pub(crate) fn has_read(&mut self, unread: SequenceNumber, journal: &Journal) {
        self.unread = unread;
        self.tell(journal);
    }

    /// Checkpoints were written or removed, durably.
    pub(crate) fn has_checkpoints(&mut self, checkpoints: &Checkpoints, journal: &Journal) -> Result<(), TrainerError> {
        let state = checkpoints.oldest_state()?;
        self.oldest = state.map_or_else(OldestCheckpoint::default, |state| OldestCheckpoint {
            step: Some(state.step),
            window: state.stream.sampler.window,
        });
        self.tell(journal);
        Ok(())
    }

    fn tell(&mut self, journal: &Journal) {
        let OldestCheckpoint { step, window } = self.oldest;
        let place = step.map_or_else(|| "the start".to_owned(), |step| format!("checkpoint step-{step}"));
        let mut needed = Needed { from: self.unread, why: "training has not read what follows".into() };
        let mut include = |from: SequenceNumber, why: String| {
            if from < needed.from {
                needed = Needed { from, why: why.into() };
            }
        };
        if let Some((formed, oldest)) = journal.oldest_from(window) {
            include(oldest, format!("a resume from {place} forms window {formed} again"));
        }
        if let Some(seen) = window.checked_sub(1).and_then(|before| journal.window(before)) {
            include(seen.end(), format!("an evaluation after {place} reads the log as it was there"));
        }
        self.needed = Needed { from: needed.from, why: self.because(needed.why.into_owned()).into() };
        self.let_go();
    }

    /// A reason, with the name of the release whose it is.
    fn because(&self, why: String) -> String {
        match &self.release {
            Some(name) => format!("release {name}: {why}"),
            None => why,
        }
    }
}

/// Whether the windows from `window` on that the journal knows can be formed again.
pub(crate) fn can_form_again(window: u64, journal: &Journal, records: &dyn Records) -> bool {
    journal.oldest_from(window).is_none_or(|(_, oldest)| oldest >= records.begin())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::journal::{JournalEntry, WindowEntry};
    use crate::sampler::SamplerState;
    use store::DurablePosition;

    /// A journal of windows that read entries from `oldest` to `durable`.
    fn journal(windows: &[(u64, u64)]) -> (tempfile::TempDir, Journal) {
        let folder = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(&folder.path().join("journal")).unwrap();
        for (window, (oldest, durable)) in (0..).zip(windows) {
            let entry = WindowEntry {
                window,
                begin: SequenceNumber::default(),
                durable: DurablePosition::from_log(*durable),
                oldest: SequenceNumber(*oldest),
                open: None,
                state: SamplerState::default(),
            };
            journal.append(JournalEntry::Window(entry)).unwrap();
        }
        (folder, journal)
    }

    #[track_caller]
    fn check(windows: &[(u64, u64)], window: u64, unread: u64, from: u64, why: &str) {
        let (_folder, journal) = journal(windows);
        let mut needs = LogNeeds::new(Need::default(), None);
        assert_eq!(needs.shared.get().from, SequenceNumber(0), "at first everything is needed");
        needs.oldest = OldestCheckpoint { step: (window > 0).then_some(7), window };
        needs.has_read(SequenceNumber(unread), &journal);
        let needed = needs.shared.get();
        assert_eq!(needed.from, SequenceNumber(from), "{needed:?}");
        assert!(needed.why.contains(why), "{needed:?}");
    }

    #[test]
    fn the_oldest_of_what_is_needed_counts() {
        let windows = [(10, 100), (40, 140), (30, 150)];
        check(&[], 0, 5, 5, "not read");
        check(&windows, 0, 60, 10, "the start forms window 0");
        check(&windows, 1, 60, 30, "checkpoint step-7 forms window 2");
        check(&windows, 3, 200, 150, "an evaluation after checkpoint step-7");
        check(&windows, 3, 60, 60, "not read");
    }

    #[test]
    fn what_is_held_is_needed_too() {
        let log = crate::records::memory::MemoryLog::default();
        log.remove_below(20);
        let (_folder, journal) = journal(&[]);
        let mut needs = LogNeeds::new(Need::default(), None);
        needs.has_read(SequenceNumber(50), &journal);
        needs.hold(&log);
        assert_eq!(needs.shared.get().from, SequenceNumber(20));
        needs.let_go();
        assert_eq!(needs.shared.get().from, SequenceNumber(50));
        log.remove_below(60);
        needs.hold(&log);
        assert_eq!(needs.shared.get().from, SequenceNumber(50));
    }
}
