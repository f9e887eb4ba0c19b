//! Watching a teacher: how long it has been at work on its batch, and what to do when that is too long.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

/// What is done about a teacher that stalls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnStall {
    /// Its groups wait for it, and so do those behind them.
    #[default]
    Wait,
    /// Groups in which other teachers label every record that it was to label are completed without its labels, so that the others
    /// go on; the rest waits. It takes part again once it has answered; what it says of copies that were given up is thrown
    /// away.
    DropCopy,
}

/// When a teacher stalls, and what is done about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StallOptions {
    /// A teacher that is longer than this at work on one batch stalls.
    pub after: Duration,
    /// What is done about it.
    pub on_stall: OnStall,
}

impl Default for StallOptions {
    fn default() -> Self {
        Self { after: Duration::from_secs(600), on_stall: OnStall::default() }
    }
}

/// Watches one teacher. Cloning shares it.
#[derive(Clone, Debug, Default)]
pub struct TeacherWatch {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    options: Mutex<StallOptions>,
    state: Mutex<State>,
    dropped_copies: AtomicU64,
}

#[derive(Clone, Copy, Debug, Default)]
struct State {
    /// When its batch was begun; `None`: it has nothing to do.
    since: Option<(Instant, SystemTime)>,
    stalled: bool,
    /// Its device does not answer: it stalls however short that is.
    lost: bool,
}

/// What a teacher is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activity {
    /// Nothing.
    Idle,
    /// It labels a batch that it began at this time.
    Labelling(SystemTime),
    /// It has been at work for too long on a batch that it began at this time.
    Stalled(SystemTime),
    /// Its device has not answered since this time.
    Lost(SystemTime),
}

impl TeacherWatch {
    /// Watches a teacher that is idle.
    #[must_use]
    pub fn new(options: StallOptions) -> Self {
        let inner = Inner { options: Mutex::new(options), ..Inner::default() };
        Self { inner: Arc::new(inner) }
    }

    /// What the teacher is doing.
    #[must_use]
    pub fn activity(&self) -> Activity {
        let State { since, stalled, lost } = *self.state();
        match (since, stalled) {
            (None, _) => Activity::Idle,
            (Some((_, since)), _) if lost => Activity::Lost(since),
            (Some((_, since)), false) => Activity::Labelling(since),
            (Some((_, since)), true) => Activity::Stalled(since),
        }
    }

    /// Copies that were completed without this teacher's labels because it stalled.
    #[must_use]
    pub fn dropped_copies(&self) -> u64 {
        self.inner.dropped_copies.load(Ordering::Relaxed)
    }

    /// From now on it stalls when these say so. Whether one that has stalled is waited for follows them at once.
    pub fn set_options(&self, options: StallOptions) {
        *self.inner.options.lock().unwrap_or_else(PoisonError::into_inner) = options;
    }

    pub(crate) fn options(&self) -> StallOptions {
        *self.inner.options.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The teacher begins a batch.
    pub(crate) fn begin(&self) {
        *self.state() = State { since: Some((Instant::now(), SystemTime::now())), ..State::default() };
    }

    /// The teacher's device does not answer, until it begins a batch again.
    pub(crate) fn lose(&self) {
        *self.state() = State { since: Some((Instant::now(), SystemTime::now())), stalled: false, lost: true };
    }

    /// The teacher has ended its batch. Returns how long that took, if it had stalled.
    pub(crate) fn end(&self) -> Option<Duration> {
        let State { since, stalled, .. } = std::mem::take(&mut *self.state());
        since.filter(|_| stalled).map(|(since, _)| since.elapsed())
    }

    /// Looks at the clock. Returns whether the teacher has stalled since it was looked at last.
    pub(crate) fn look(&self) -> bool {
        let mut state = self.state();
        let after = self.options().after;
        let is_late = state.lost || state.since.is_some_and(|(since, _)| since.elapsed() >= after);
        is_late && !std::mem::replace(&mut state.stalled, is_late)
    }

    /// Whether the teacher has stalled.
    pub(crate) fn is_stalled(&self) -> bool {
        self.state().stalled
    }

    /// Whether nobody waits for it if others label the same records.
    pub(crate) fn is_given_up(&self) -> bool {
        self.options().on_stall == OnStall::DropCopy && self.is_stalled()
    }

    pub(crate) fn note_dropped(&self, copies: u64) {
        self.inner.dropped_copies.fetch_add(copies, Ordering::Relaxed);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_teacher_stalls_as_it_is_set_now() {
        let watch = TeacherWatch::new(StallOptions { after: Duration::from_secs(3600), on_stall: OnStall::Wait });
        let shared = watch.clone();
        watch.begin();
        assert!(!watch.look());
        shared.set_options(StallOptions { after: Duration::ZERO, on_stall: OnStall::Wait });
        assert!(watch.look() && watch.is_stalled() && !watch.is_given_up());
        shared.set_options(StallOptions { after: Duration::ZERO, on_stall: OnStall::DropCopy });
        assert!(watch.is_given_up());
    }
}
