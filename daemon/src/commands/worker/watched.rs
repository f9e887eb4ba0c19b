//! What a worker tells of itself: over HTTP, and to the service manager.

use crate::failure::{ExitCode, Failure};
use crate::watchdog::Watch;
use ops::{Command, CommandError, Push, PushTarget, Question};
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use store::stage::StageControl;
use teacher::remote::{WorkerMetrics, WorkerOptions, without_secrets};

/// The service manager is told this often how it goes.
const TELL_INTERVAL: Duration = Duration::from_secs(2);

/// A worker, as others see it.
pub(super) struct Watched {
    options: WorkerOptions,
    metrics: WorkerMetrics,
    watch: Watch,
    started: Instant,
    joined: AtomicBool,
}

/// The thread that tells the service manager how it goes.
pub(super) struct Teller(JoinHandle<()>);

impl Teller {
    pub(super) fn join(self) {
        let _ = self.0.join(); // It cannot panic; if it did, the process ends anyway.
    }
}

impl Watched {
    pub(super) fn new(options: &WorkerOptions, metrics: WorkerMetrics, watch: Watch) -> Self {
        let (options, started, joined) = (options.clone(), Instant::now(), AtomicBool::new(false));
        Self { options, metrics, watch, started, joined }
    }

    /// It has a teacher, and takes batches.
    pub(super) fn is_ready(&self) {
        self.joined.store(true, Ordering::Relaxed);
        self.watch.is_ready();
    }

    /// Tells the service manager how it goes, until `control` is stopped.
    pub(super) fn tell(self: &Arc<Self>, control: StageControl) -> Result<Teller, Failure> {
        let watched = Arc::clone(self);
        let body = move || {
            let (mut before, mut at) = (0, Instant::now());
            loop {
                let (batches, tokens, _) = watched.metrics.counts();
                let rate = (tokens - before) as f64 / at.elapsed().as_secs_f64().max(1e-3);
                (before, at) = (tokens, Instant::now());
                let WorkerOptions { teacher, link, .. } = &watched.options;
                let line = match (watched.joined.load(Ordering::Relaxed), watched.metrics.is_connected()) {
                    (false, _) => format!("waits for the coordinator of run {}", link.run),
                    (true, false) => format!("has lost {}", without_secrets(&link.url)),
                    (true, true) => {
                        format!("{teacher} for run {}: {rate:.0} tokens/s, {batches} batches", link.run)
                    }
                };
                watched.watch.says(line);
                if !control.wait(TELL_INTERVAL) {
                    return;
                }
            }
        };
        let failed = |error| Failure::new(ExitCode::Software, format!("cannot start a thread: {error}"));
        std::thread::Builder::new().name("teller".to_owned()).spawn(body).map(Teller).map_err(failed)
    }
}

fn not_here() -> CommandError {
    let message = "this is a worker: it labels, and is told nothing; ask the run's daemon".to_owned();
    CommandError { status: 404, code: "not_found", message }
}

impl ops::Control for Watched {
    fn status(&self) -> Value {
        let WorkerOptions { link, teacher, name, device, .. } = &self.options;
        let (batches, tokens, in_flight) = self.metrics.counts();
        let state = match () {
            () if !self.joined.load(Ordering::Relaxed) => "waiting",
            () if !self.metrics.is_connected() => "disconnected",
            () => "running",
        };
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "pid": std::process::id(),
            "state": state,
            "uptime_seconds": self.started.elapsed().as_secs_f64(),
            "run": link.run,
            "url": without_secrets(&link.url),
            "teacher": teacher,
            "worker": name,
            "device": device,
            "batches": batches,
            "tokens": tokens,
            "in_flight": in_flight,
            "stuck": self.watch.stuck(),
        })
    }

    fn ready(&self) -> Result<(), String> {
        match (self.joined.load(Ordering::Relaxed), self.metrics.is_connected()) {
            (false, _) => Err("the run's coordinator has not been there yet".to_owned()),
            (true, false) => Err("there is no connection to the server".to_owned()),
            (true, true) => Ok(()),
        }
    }

    fn alive(&self) -> Result<(), String> {
        self.watch.trouble().map_or(Ok(()), Err)
    }

    fn answer(&self, _: Question) -> Result<Value, CommandError> {
        Err(not_here())
    }

    fn command(&self, _: Command) -> Result<Value, CommandError> {
        Err(not_here())
    }

    fn push(&self, _: &PushTarget) -> Result<Box<dyn Push>, CommandError> {
        Err(not_here())
    }
}
