//! The watchdog: whether every stage gets on, and what the service manager is told of it.
//!
//! A thread of its own looks at the pulses of the stages and of the supervisor ([`store::pulse`]) and takes no lock of theirs, so
//! nothing that holds them up holds it up. A stage that gets on, or looks every second at what it waits for (input, the stage
//! after it, training's backlog, the end of a pause, disk space), is alive. One of which there was no sign for too long is
//! stuck: then `WATCHDOG=1` is sent no more, so that the service manager ends the process and starts it anew, and until then
//! status line, log, metric and `/healthz` say which stage it is.
//!
//! Too long is `[run] stuck_seconds`, or 20 times what the stage's pieces of work take on average, if that is more; labelling is given
//! `stuck_seconds` from when one of its teachers stalls (`stall_seconds`).
//!
//! During a start, while a teacher is added, and during a stop the service manager is told to wait on, as long as nothing is stuck.

use crate::failure::{ExitCode, Failure};
use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded};
use ops::notify;
use prometheus::{IntGaugeVec, Opts, Registry};
use serde::Serialize;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use store::pulse::{Reading, readings};

/// The pulses are looked at this often, or several times within the watchdog's interval.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// A stage that works this many times slower than usual may be stuck.
const SLOWER: u32 = 20;
/// So much longer the service manager is to wait for a start or a stop, from each time on that it is told.
const EXTENSION: Duration = Duration::from_secs(30);
/// It is told this often.
const EXTEND_INTERVAL: Duration = Duration::from_secs(5);

/// Watches the stages until it is dropped. All but the thread itself is reached through clones of [`Watch`].
#[derive(Debug)]
pub struct Watchdog {
    watch: Watch,
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// What is told to the watchdog, and asked of it. Clones share it.
#[derive(Clone, Debug)]
pub struct Watch(Arc<Shared>);

/// A stage that is stuck.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Stuck {
    /// Its name.
    pub stage: &'static str,
    /// Time since the latest sign of it.
    pub seconds: u64,
}

/// How far the daemon is with its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Starting,
    Running,
    /// The stages are opened anew: a stop that the service manager asked for has to wait.
    Renewing,
    Stopping,
}

#[derive(Debug)]
struct Shared {
    limit: Duration,
    /// For how long a teacher may be at work on one batch.
    teacher_limit_ms: AtomicU64,
    /// Held while the service manager is told, so that it hears of no phase after a later one.
    phase: Mutex<Phase>,
    /// What goes on, for the service manager.
    line: Mutex<String>,
    stuck: Mutex<Vec<Stuck>>,
    gauge: IntGaugeVec,
}

impl Watchdog {
    /// Begins to watch; the daemon is starting. `limit` is how long a stage may give no sign.
    pub fn start(limit: Duration, registry: &Registry) -> Result<Self, Failure> {
        let failed = |error: &dyn std::fmt::Display| {
            Failure::new(ExitCode::Software, format!("cannot watch the stages: {error}"))
        };
        let help =
            "1 while a stage neither gets on nor waits for anything, for longer than [run] stuck_seconds; otherwise 0.";
        let gauge = IntGaugeVec::new(Opts::new("mergedistill_stage_stuck", help), &["stage"]);
        let gauge = gauge.map_err(|error| failed(&error))?;
        registry.register(Box::new(gauge.clone())).map_err(|error| failed(&error))?;
        let shared = Shared {
            limit,
            teacher_limit_ms: 0.into(),
            phase: Mutex::new(Phase::Starting),
            line: Mutex::new("starting".to_owned()),
            stuck: Mutex::default(),
            gauge,
        };
        let watch = Watch(Arc::new(shared));
        let (stop, stopped) = bounded(0);
        let looking = Looking::new(watch.clone(), notify::watchdog_interval());
        let thread = std::thread::Builder::new().name("watchdog".to_owned()).spawn(move || looking.run(&stopped));
        Ok(Self { watch, stop: Some(stop), thread: Some(thread.map_err(|error| failed(&error))?) })
    }

    /// What is told to it, and asked of it.
    pub fn watch(&self) -> Watch {
        self.watch.clone()
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // It cannot panic; if it did, the process ends anyway.
        }
    }
}

impl Watch {
    /// Everything runs. Only the first call is told.
    pub fn is_ready(&self) {
        let mut phase = lock(&self.0.phase);
        match *phase {
            Phase::Starting => {
                *phase = Phase::Running;
                notify::ready();
            }
            Phase::Renewing => *phase = Phase::Running,
            Phase::Running | Phase::Stopping => {}
        }
    }

    /// The stages are being opened anew, until everything runs again.
    pub fn is_renewing(&self) {
        let mut phase = lock(&self.0.phase);
        if *phase == Phase::Running {
            *phase = Phase::Renewing;
        }
    }

    /// The configuration was read again. A stop that has begun meanwhile is not taken back.
    pub fn is_reloaded(&self) {
        let phase = lock(&self.0.phase);
        if *phase != Phase::Stopping {
            notify::ready();
        }
    }

    /// A stop has begun.
    pub fn is_stopping(&self) {
        let mut phase = lock(&self.0.phase);
        if std::mem::replace(&mut *phase, Phase::Stopping) != Phase::Stopping {
            notify::stopping();
        }
    }

    /// What goes on, in a line. The service manager hears of it within a second or so.
    pub fn says(&self, line: String) {
        *lock(&self.0.line) = line;
    }

    /// For how long a teacher may be at work on one batch. What labelling may take counts from then.
    pub fn teachers_may_take(&self, limit: Duration) {
        self.0.teacher_limit_ms.store(u64::try_from(limit.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// The stages that are stuck.
    pub fn stuck(&self) -> Vec<Stuck> {
        lock(&self.0.stuck).clone()
    }

    /// For people: which stages are stuck, if any.
    pub fn trouble(&self) -> Option<String> {
        let stuck = self.stuck();
        let stages = stuck.iter().map(|Stuck { stage, seconds }| format!("{stage} for {seconds} s"));
        (!stuck.is_empty()).then(|| format!("stuck: {}", stages.collect::<Vec<_>>().join(", ")))
    }

    /// How long a stage may give no sign.
    fn limit_of(&self, reading: &Reading) -> Duration {
        let limit = self.0.limit.max(reading.pace.saturating_mul(SLOWER));
        match reading.stage {
            // A batch may begin some time after the last sign, and what is done about a teacher that stalls comes after that.
            "teacher" => limit.max(self.teacher_limit().saturating_add(self.0.limit)),
            _ => limit,
        }
    }

    fn teacher_limit(&self) -> Duration {
        Duration::from_millis(self.0.teacher_limit_ms.load(Ordering::Relaxed))
    }

    fn phase(&self) -> Phase {
        *lock(&self.0.phase)
    }
}

/// What the thread keeps.
struct Looking {
    watch: Watch,
    /// How often the service manager wants to hear of us at the least.
    interval: Option<Duration>,
    /// When we looked last.
    looked: Instant,
    /// Since when this thread has run without a gap: while the whole process was stopped, no stage could give a sign.
    awake: Instant,
    extended: Option<Instant>,
    told: String,
    known: BTreeSet<&'static str>,
}

impl Looking {
    fn new(watch: Watch, interval: Option<Duration>) -> Self {
        let now = Instant::now();
        let (extended, told, known) = Default::default();
        Self { watch, interval, looked: now, awake: now, extended, told, known }
    }

    fn run(mut self, stopped: &Receiver<()>) {
        let every = self.interval.map_or(LOOK_INTERVAL, |interval| LOOK_INTERVAL.min(interval / 4));
        loop {
            let now = Instant::now();
            if now - self.looked > every + LOOK_INTERVAL {
                self.awake = now;
            }
            self.looked = now;
            self.look(readings(), now - self.awake);
            self.tell(now);
            if !matches!(stopped.recv_timeout(every), Err(RecvTimeoutError::Timeout)) {
                return;
            }
        }
    }

    /// Finds out which stages are stuck. They had been able to give signs for the time `awake`.
    fn look(&mut self, readings: Vec<Reading>, awake: Duration) {
        let is_stuck = |reading: &&Reading| reading.quiet.min(awake) >= self.watch.limit_of(reading);
        let stuck = readings.iter().filter(is_stuck);
        let stuck: Vec<_> =
            stuck.map(|reading| Stuck { stage: reading.stage, seconds: reading.quiet.as_secs() }).collect();
        self.known.extend(readings.iter().map(|reading| reading.stage));
        let before = std::mem::replace(&mut *lock(&self.watch.0.stuck), stuck.clone());
        let among = |stages: &[Stuck], stage: &str| stages.iter().any(|stuck| stuck.stage == stage);
        for stage in &self.known {
            self.watch.0.gauge.with_label_values(&[*stage]).set(among(&stuck, stage).into());
        }
        for Stuck { stage, seconds } in stuck.iter().filter(|stuck| !among(&before, stuck.stage)) {
            tracing::error!(stage, seconds, "a stage is stuck: it neither gets on nor waits for anything");
        }
        for Stuck { stage, .. } in before.iter().filter(|gone| !among(&stuck, gone.stage)) {
            tracing::info!(stage, "the stage that was stuck gets on again, or has ended");
        }
    }

    /// Tells the service manager.
    fn tell(&mut self, now: Instant) {
        let (trouble, phase) = (self.watch.trouble(), self.watch.phase());
        if trouble.is_none() && self.interval.is_some() && phase != Phase::Starting {
            notify::watchdog();
        }
        let is_due = self.extended.is_none_or(|extended| now - extended >= EXTEND_INTERVAL);
        if trouble.is_none() && is_due && phase != Phase::Running {
            notify::extend_timeout(EXTENSION);
            self.extended = Some(now);
        }
        let line = trouble.unwrap_or_else(|| lock(&self.watch.0.line).clone());
        if line != self.told {
            notify::status(&line);
            self.told = line;
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use store::pulse::Wait;

    const LIMIT: Duration = Duration::from_secs(300);

    fn watch() -> (Watch, Registry) {
        let registry = Registry::new();
        let watchdog = Watchdog::start(LIMIT, &registry).expect("a thread");
        (watchdog.watch(), registry)
    }

    fn reading(stage: &'static str, quiet: u64, pace: u64) -> Reading {
        let (quiet, pace) = (Duration::from_secs(quiet), Duration::from_secs(pace));
        Reading { stage, quiet, waits_for: None::<Wait>, pace }
    }

    fn gauge(registry: &Registry) -> Vec<(String, f64)> {
        let families = registry.gather();
        let metrics = families.iter().flat_map(|family| family.get_metric());
        metrics.map(|metric| (metric.get_label()[0].value().to_owned(), metric.get_gauge().get_value())).collect()
    }

    #[test]
    fn a_stage_without_a_sign_is_stuck_until_it_gives_one() {
        let (watch, registry) = watch();
        let mut looking = Looking::new(watch.clone(), None);
        let awake = Duration::from_secs(1_000_000);
        looking.look(vec![reading("log", 299, 0), reading("trainer", 1, 0)], awake);
        assert_eq!(watch.trouble(), None);
        looking.look(vec![reading("log", 300, 0), reading("trainer", 2, 0)], awake);
        assert_eq!(watch.trouble().as_deref(), Some("stuck: log for 300 s"));
        assert_eq!(gauge(&registry), [("log".to_owned(), 1.0), ("trainer".to_owned(), 0.0)]);
        looking.look(vec![reading("log", 0, 0)], awake);
        assert_eq!((watch.trouble(), watch.stuck()), (None, Vec::new()));
        assert_eq!(gauge(&registry), [("log".to_owned(), 0.0), ("trainer".to_owned(), 0.0)]);
    }

    #[test]
    fn a_stop_is_the_last_phase() {
        let (watch, _registry) = watch();
        let mut phases = vec![watch.phase()];
        let steps: [fn(&Watch); 7] = [
            Watch::is_renewing,
            Watch::is_ready,
            Watch::is_renewing,
            Watch::is_ready,
            Watch::is_stopping,
            Watch::is_renewing,
            Watch::is_ready,
        ];
        for step in steps {
            step(&watch);
            phases.push(watch.phase());
        }
        use Phase::{Renewing, Running, Starting, Stopping};
        assert_eq!(phases, [Starting, Starting, Running, Renewing, Running, Stopping, Stopping, Stopping]);
    }

    #[test]
    fn slow_work_is_not_stuck() {
        let (watch, _registry) = watch();
        watch.teachers_may_take(Duration::from_secs(600));
        let limit = |reading: Reading| watch.limit_of(&reading).as_secs();
        assert_eq!(limit(reading("trainer", 0, 2)), 300);
        assert_eq!(limit(reading("trainer", 0, 100)), 2_000, "20 times the pace");
        assert_eq!(limit(reading("teacher", 0, 2)), 600 + 300, "a teacher stalls before");
        assert_eq!(limit(reading("teacher", 0, 100)), 2_000);
    }

    #[test]
    fn a_process_that_was_stopped_is_given_time() {
        let (watch, _registry) = watch();
        let mut looking = Looking::new(watch.clone(), None);
        looking.look(vec![reading("log", 5_000, 0)], Duration::ZERO);
        assert_eq!(watch.trouble(), None);
        looking.look(vec![reading("log", 5_300, 0)], LIMIT);
        assert_eq!(watch.trouble().as_deref(), Some("stuck: log for 5300 s"));
    }
}
