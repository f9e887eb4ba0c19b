//! What the live page draws: the course of the training and of its releases, and the rates of the last hours (`GET /v1/history`).
//!
//! The course is what `metrics.jsonl` says, thinned to a bounded number of points. A thread reads the file once, when the daemon starts;
//! what comes meanwhile and later it is told by the trainer's events, as a reader of `/v1/events` is. So a restart changes nothing in it,
//! and memory does not grow with the length of a training. Releases are read off their own files, every few seconds.

mod evaluations;
mod file;
mod samples;
mod steps;

use crate::failure::{ExitCode, Failure};
use crate::figures::Figures;
use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded};
use file::{Course, MetricsFile};
use ops::HistoryQuery;
use prometheus::Registry;
use samples::{INTERVAL, Sample, Samples};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use trainer::Event;

/// Time between two writings of the samples.
const SAVE_INTERVAL: Duration = Duration::from_secs(300);
/// Releases that are drawn: the latest ones.
const RELEASES: usize = 8;

/// The history of a run.
pub struct History {
    shared: Arc<Shared>,
}

/// The threads of a history. When it is dropped they end, and the samples are written.
pub struct Keeper {
    shared: Arc<Shared>,
    /// Disconnected when the threads are to end.
    stop: Option<Sender<()>>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    state_dir: PathBuf,
    stopping: AtomicBool,
    trunk: Mutex<Trunk>,
    /// By name; as they were read last.
    releases: Mutex<Vec<(String, Arc<Course>)>>,
    samples: Mutex<Samples>,
}

/// The course of the training.
#[derive(Default)]
struct Trunk {
    /// Until the file was read: what was told since the start.
    course: Course,
    /// Whether the file was read.
    complete: bool,
    /// While it is read: the step from which training went on. What the file had beyond it does not count.
    cut_at: Option<u64>,
}

/// A release whose file is followed.
struct Release {
    name: String,
    file: MetricsFile,
    course: Course,
    /// The same, for those who ask meanwhile.
    shown: Arc<Course>,
}

impl History {
    /// Reads what is in `state_dir`, and takes samples of `registry`, on threads of its own. The stages must have been opened: they cut
    /// `metrics.jsonl` to where training goes on.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn start(state_dir: &Path, registry: Registry) -> Result<(Self, Keeper), Failure> {
        let path = state_dir.join("samples.json");
        let samples = Samples::read(&path).unwrap_or_else(|error| {
            tracing::warn!(path = %path.display(), %error, "the rates before this start cannot be shown");
            Samples::default()
        });
        let shared = Arc::new(Shared {
            state_dir: state_dir.to_owned(),
            stopping: AtomicBool::new(false),
            trunk: Mutex::default(),
            releases: Mutex::default(),
            samples: Mutex::new(samples),
        });
        let (stop, stopped) = bounded(0);
        let (reading, sampling) = (Arc::clone(&shared), Arc::clone(&shared));
        let threads = vec![
            spawn("history-file", move || reading.read_file())?,
            spawn("history", move || sampling.sample(registry, &path, &stopped))?,
        ];
        let keeper = Keeper { shared: Arc::clone(&shared), stop: Some(stop), threads };
        Ok((Self { shared }, keeper))
    }

    /// Takes note of what the trainer reports.
    pub fn note(&self, event: &Event) {
        let mut trunk = lock(&self.shared.trunk);
        match event {
            Event::Step(report) => trunk.course.steps.push(&report.into()),
            Event::Evaluation(report) => trunk.course.evaluations.push(report.clone()),
            Event::Resumed { step, .. } => {
                trunk.course.cut(*step);
                if !trunk.complete {
                    trunk.cut_at = Some(trunk.cut_at.map_or(*step, |cut_at| cut_at.min(*step)));
                }
            }
            _ => {}
        }
    }

    /// The answer to `GET /v1/history`.
    pub fn answer(&self, query: &HistoryQuery) -> Value {
        let (since, points) = (query.since_step, query.points);
        let shared = &self.shared;
        let course = |course: &Course| (course.steps.columns(since, points), course.evaluations.columns(since, points));
        let (complete, (steps, evaluations)) = {
            let trunk = lock(&shared.trunk);
            (trunk.complete, course(&trunk.course))
        };
        let releases: Vec<Value> = lock(&shared.releases)
            .iter()
            .map(|(name, release)| {
                let (steps, evaluations) = course(release);
                json!({"name": name, "steps": steps, "evaluations": evaluations})
            })
            .collect();
        json!({
            "complete": complete,
            "steps": steps,
            "evaluations": evaluations,
            "releases": releases,
            "samples": lock(&shared.samples).columns(),
        })
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::Relaxed);
        self.stop = None;
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of the history panicked; this is a bug");
            }
        }
    }
}

impl Shared {
    /// Reads `metrics.jsonl` once, and puts what was told meanwhile behind it.
    fn read_file(&self) {
        let mut file = MetricsFile::new(self.state_dir.join("metrics.jsonl"));
        let mut read = Course::default();
        if let Err(error) = file.read(&mut read, &|| !self.stopping.load(Ordering::Relaxed)) {
            tracing::warn!(path = %file.path().display(), %error, "the steps before this start cannot be shown");
        }
        let mut trunk = lock(&self.trunk);
        if let Some(step) = trunk.cut_at {
            read.cut(step);
        }
        read.append(std::mem::take(&mut trunk.course));
        (trunk.course, trunk.complete) = (read, true);
    }

    /// Takes samples until the history is stopped.
    fn sample(&self, registry: Registry, path: &Path, stopped: &Receiver<()>) {
        let mut figures = Figures::new(registry);
        let mut saved = Instant::now();
        let mut is_told = false;
        let mut releases = Vec::new();
        loop {
            self.read_releases(&mut releases);
            let ended = matches!(stopped.recv_timeout(INTERVAL), Ok(()) | Err(RecvTimeoutError::Disconnected));
            if !ended {
                figures.read();
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                lock(&self.samples).push(Sample::of(&figures, now.as_secs_f64()));
            }
            if ended || saved.elapsed() >= SAVE_INTERVAL {
                saved = Instant::now();
                let samples = lock(&self.samples).clone();
                if let Err(error) = samples.write(path)
                    && !std::mem::replace(&mut is_told, true)
                {
                    tracing::warn!(path = %path.display(), %error, "a restart will not know the rates of now");
                }
            }
            if ended {
                return;
            }
        }
    }

    /// Reads on in the files of the latest releases.
    fn read_releases(&self, known: &mut Vec<Release>) {
        let latest = latest_releases(&self.state_dir.join("releases"));
        let read = latest.into_iter().map(|(name, path)| {
            let place = known.iter().position(|release| release.name == name);
            let new =
                || Release { name, file: MetricsFile::new(path), course: Course::default(), shown: Arc::default() };
            let mut release = place.map_or_else(new, |place| known.swap_remove(place));
            match release.file.read(&mut release.course, &|| !self.stopping.load(Ordering::Relaxed)) {
                Ok(true) => release.shown = Arc::new(release.course.clone()),
                Ok(false) => {}
                Err(error) => {
                    tracing::debug!(path = %release.file.path().display(), %error, "a release cannot be shown");
                }
            }
            release
        });
        *known = read.collect();
        *lock(&self.releases) =
            known.iter().map(|release| (release.name.clone(), Arc::clone(&release.shown))).collect();
    }
}

/// Name and `metrics.jsonl` of the releases that were written to last, the latest one last.
fn latest_releases(folder: &Path) -> Vec<(String, PathBuf)> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let found = entries.filter_map(|entry| {
        let entry = entry.ok()?;
        let (name, path) = (entry.file_name().into_string().ok()?, entry.path().join("metrics.jsonl"));
        let written = fs::metadata(&path).and_then(|metadata| metadata.modified()).ok()?;
        // One that begins with a dot is being prepared.
        (!name.starts_with('.')).then_some((written, name, path))
    });
    let mut found: Vec<(SystemTime, String, PathBuf)> = found.collect();
    found.sort();
    let latest = found.split_off(found.len().saturating_sub(RELEASES));
    latest.into_iter().map(|(_, name, path)| (name, path)).collect()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, Failure> {
    let failed = |error| Failure::new(ExitCode::Software, format!("cannot start thread `{name}`: {error}"));
    std::thread::Builder::new().name(name.to_owned()).spawn(body).map_err(failed)
}
