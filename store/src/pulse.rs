//! Whether the threads of the pipeline get on, for whoever watches them.
//!
//! A thread that others wait for has a *pulse* while it is [entered](enter). It gives a sign with every piece of work that is done
//! ([`beat`]), and whenever it looks in vain at what it waits for ([`waits_for`]); a wait looks every second or so. So a thread that
//! waits for input, for those behind it, for room on the disk or the end of a pause is alive, however long that takes. One of which
//! there is no sign for long is not: it is blocked where it should not be, or turns in a circle.
//!
//! Work deep inside a stage (a file that is made durable, a micro-batch) gives its sign to the thread it runs on, and so needs no
//! handle; on a thread without a pulse it goes nowhere.

use std::cell::RefCell;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

/// A wait with a pulse lasts at most this long before it is looked at again what is waited for.
pub const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// The latest stretch of work counts 1/8 in the pace.
const PACE_WEIGHT: u64 = 8;

/// What a thread waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Wait {
    /// Something to work on.
    Input = 1,
    /// Those behind it, which have enough to do.
    Output,
    /// Training, which has a backlog.
    Backlog,
    /// The end of a pause.
    Pause,
    /// Room on the disk.
    Room,
    /// Its turn at the threads that it shares.
    Turn,
    /// A release, which is to be finished.
    Release,
}

/// The signs of one thread, and of those that work for it. Clones share them.
#[derive(Clone, Debug)]
pub struct Pulse(Arc<Inner>);

/// While it lives, the thread that made it has a pulse.
#[derive(Debug)]
pub struct Entered {
    before: Option<Pulse>,
    _not_send: std::marker::PhantomData<*const ()>,
}

/// What is known of a pulse at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reading {
    /// Whose it is.
    pub stage: &'static str,
    /// Time since the latest sign.
    pub quiet: Duration,
    /// What it waits for; `None`: it works.
    pub waits_for: Option<Wait>,
    /// How long a stretch of work takes: a running mean.
    pub pace: Duration,
}

#[derive(Debug)]
struct Inner {
    stage: &'static str,
    /// When the latest sign came, since [`BEGIN`].
    latest_us: AtomicU64,
    pace_us: AtomicU64,
    /// A [`Wait`]; 0: none.
    waits_for: AtomicU8,
}

static BEGIN: LazyLock<Instant> = LazyLock::new(Instant::now);
/// The pulses of this process; those whose threads have ended are gone.
static PULSES: Mutex<Vec<Weak<Inner>>> = Mutex::new(Vec::new());

thread_local! {
    static CURRENT: RefCell<Option<Pulse>> = const { RefCell::new(None) };
}

/// Gives the current thread a pulse, named after its stage.
#[must_use]
pub fn enter(stage: &'static str) -> Entered {
    let inner = Inner { stage, latest_us: now_us().into(), pace_us: 0.into(), waits_for: 0.into() };
    let pulse = Pulse(Arc::new(inner));
    let mut pulses = pulses();
    pulses.retain(|pulse| pulse.strong_count() > 0);
    pulses.push(Arc::downgrade(&pulse.0));
    pulse.enter()
}

/// The pulse of the current thread, for threads that work in its place.
#[must_use]
pub fn current() -> Option<Pulse> {
    CURRENT.with_borrow(Clone::clone)
}

/// A piece of work is done.
pub fn beat() {
    with_current(|inner| inner.beat(now_us()));
}

/// The thread looks at what it waits for, at least every [`LOOK_INTERVAL`].
pub fn waits_for(wait: Wait) {
    with_current(|inner| {
        inner.latest_us.store(now_us(), Ordering::Relaxed);
        inner.waits_for.store(wait as u8, Ordering::Relaxed);
    });
}

/// What is known of each thread that has a pulse.
#[must_use]
pub fn readings() -> Vec<Reading> {
    let now = now_us();
    pulses().iter().filter_map(Weak::upgrade).map(|inner| inner.read(now)).collect()
}

impl Pulse {
    /// What the current thread does from now on is done for this pulse.
    #[must_use]
    pub fn enter(self) -> Entered {
        let before = CURRENT.replace(Some(self));
        Entered { before, _not_send: std::marker::PhantomData }
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        CURRENT.set(self.before.take());
    }
}

impl Inner {
    fn beat(&self, now_us: u64) {
        let stretch = now_us.saturating_sub(self.latest_us.swap(now_us, Ordering::Relaxed));
        // A wait was no work.
        if self.waits_for.swap(0, Ordering::Relaxed) == 0 {
            let pace = self.pace_us.load(Ordering::Relaxed);
            self.pace_us.store((pace * (PACE_WEIGHT - 1) + stretch) / PACE_WEIGHT, Ordering::Relaxed);
        }
    }

    fn read(&self, now_us: u64) -> Reading {
        Reading {
            stage: self.stage,
            quiet: Duration::from_micros(now_us.saturating_sub(self.latest_us.load(Ordering::Relaxed))),
            waits_for: Wait::ALL.into_iter().find(|wait| *wait as u8 == self.waits_for.load(Ordering::Relaxed)),
            pace: Duration::from_micros(self.pace_us.load(Ordering::Relaxed)),
        }
    }
}

impl Wait {
    const ALL: [Self; 7] =
        [Self::Input, Self::Output, Self::Backlog, Self::Pause, Self::Room, Self::Turn, Self::Release];

    /// For people: what it waits for.
    #[must_use]
    pub fn describe(self) -> &'static str {
        match self {
            Self::Input => "input",
            Self::Output => "the stage after it",
            Self::Backlog => "training to catch up",
            Self::Pause => "the end of the pause",
            Self::Room => "disk space",
            Self::Turn => "its turn at the threads",
            Self::Release => "the release",
        }
    }
}

fn with_current(note: impl FnOnce(&Inner)) {
    CURRENT.with_borrow(|current| {
        if let Some(pulse) = current {
            note(&pulse.0);
        }
    });
}

fn pulses() -> MutexGuard<'static, Vec<Weak<Inner>>> {
    PULSES.lock().unwrap_or_else(PoisonError::into_inner)
}

fn now_us() -> u64 {
    u64::try_from(BEGIN.elapsed().as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(stage: &str) -> Option<Reading> {
        readings().into_iter().find(|reading| reading.stage == stage)
    }

    #[test]
    fn a_sign_is_of_the_thread_that_gives_it() {
        beat(); // Without a pulse it goes nowhere.
        assert_eq!(reading("one"), None);
        let entered = enter("one");
        waits_for(Wait::Room);
        assert_eq!(reading("one").and_then(|reading| reading.waits_for), Some(Wait::Room));
        {
            let _inner = enter("two");
            beat();
            assert_eq!(reading("two").and_then(|reading| reading.waits_for), None);
            assert_eq!(reading("one").and_then(|reading| reading.waits_for), Some(Wait::Room));
        }
        assert_eq!(reading("two"), None, "it has ended");
        let pulse = current().expect("it is that of `one` again");
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let _entered = pulse.enter();
                beat();
            });
        });
        assert_eq!(reading("one").and_then(|reading| reading.waits_for), None, "somebody worked in its place");
        drop(entered);
        assert_eq!(reading("one"), None);
        assert!(current().is_none());
    }

    #[test]
    fn the_pace_is_that_of_work_alone() {
        let inner = Inner { stage: "pace", latest_us: 0.into(), pace_us: 0.into(), waits_for: 0.into() };
        assert_eq!(inner.read(3_000_000).quiet, Duration::from_secs(3));
        inner.waits_for.store(Wait::Input as u8, Ordering::Relaxed);
        inner.beat(4_000_000);
        let Reading { quiet, waits_for, pace, .. } = inner.read(5_000_000);
        assert_eq!((quiet, waits_for, pace), (Duration::from_secs(1), None, Duration::ZERO), "it had waited");
        inner.beat(12_000_000);
        assert_eq!(inner.read(12_000_000).pace, Duration::from_secs(1), "an eighth of the stretch");
    }
}
