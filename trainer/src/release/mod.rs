//! Releases: cool-downs beside an endless training.
//!
//! A trunk ([`crate::schedule::Schedule::Trunk`]) never lowers its learning rate, so what it has learned is not at its best at
//! any time. A release takes the trunk's newest checkpoint and trains from there for some steps in which the learning rate
//! goes to 0 and λ to its end, then writes the student as a Hugging Face folder and evaluates it. The trunk goes on
//! meanwhile, and is afterwards what it would have been, bit for bit: a release reads from it one checkpoint (its files are
//! shared, and never written again) and a few lines of its journal, between two of its steps.
//!
//! A release is a [`Trainer`](crate::Trainer) with a thread and a state folder of its own, `releases/<name>/`: journal,
//! checkpoints, `metrics.jsonl`, and `release.json`, which says what it is and how it is. So it reads the same log with its own
//! cursors, its steps follow from log, journal and seed too, and it goes on after a crash. As long as it runs, what it needs of
//! the log is part of what the run needs ([`Need::join`]).
//!
//! Trunk and release share the threads of training: they take turns, step by step ([`crate::Turns`]). Memory for a second student,
//! its gradients, moments and activations, is needed while it runs. There is one release at a time.

mod folder;
mod metrics;
mod work;

pub use folder::ReleaseState;

pub(crate) use folder::Folder;

use crate::TrainerError;
use crate::evaluate::EvaluationReport;
use crate::event::{BranchPoint, Event, Outcome, Request, TrainerProgress};
use crate::export;
use crate::options::{EvaluationOptions, TrainOptions, TrainerOptions};
use crate::schedule::Rates;
use crate::settings::Settings;
use crate::trainer::Trainer;
use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded};
use folder::Wanted;
use metrics::Metrics;
use prometheus::Registry;
use serde::Serialize;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};
use store::LogReader;
use store::log::Need;
use store::pulse::{LOOK_INTERVAL, Wait, waits_for};
use store::stage::StageControl;
use work::Running;

/// How long the trunk may take until it is between two steps, or between two batches of an evaluation, and a release until it has stopped.
const ANSWER_LIMIT: Duration = Duration::from_secs(120);
/// How often it is looked whether the trunk is still there to answer.
const ATTENTION: Duration = Duration::from_millis(100);

/// The releases of a run. Clones share them.
#[derive(Clone)]
pub struct Releases(Arc<Shared>);

/// What the one that commands and the one that trains share.
struct Shared {
    /// The trunk's, for the releases that begin.
    options: RwLock<TrainerOptions>,
    /// The trunk's.
    state_dir: PathBuf,
    reader: LogReader,
    /// The trunk's, and what it needs of the log.
    progress: Arc<TrainerProgress>,
    /// The trunk's: a release stops and pauses with it.
    control: StageControl,
    /// To the trunk.
    requests: Sender<Request>,
    report: Box<dyn Fn(Event) + Send + Sync>,
    metrics: Metrics,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    /// The release that began last.
    latest: Option<ReleaseStatus>,
    /// Number of the next one.
    next: u64,
    /// No release begins any more.
    trunk_ended: bool,
    /// Nor is one started that has begun.
    stopping: bool,
    place: Place,
    /// Threads of releases; one more than runs while it tells how it ended.
    threads: usize,
}

/// There is one place for a release to run in.
enum Place {
    Free,
    /// The trunk is asked for a checkpoint.
    Taken,
    /// One goes on when the trunk does.
    Unfinished(Box<Folder>, Need),
    Running(Running),
    /// The latest one has ended, but its file does not say so yet. Until it does, no other one may begin: after a restart both
    /// would be running.
    Ended(Box<Folder>),
}

/// How a release is.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ReleaseStatus {
    /// Its name: that of its folder in `releases/`.
    pub name: String,
    /// How it is.
    pub state: ReleaseState,
    /// Steps of the trunk that it builds on.
    pub from_step: u64,
    /// Steps of its own that are done.
    pub step: u64,
    /// Steps of its own in all.
    pub steps: u64,
    /// Learning rate of the last step.
    pub learning_rate: f64,
    /// Weight of distillation in the last step.
    pub lambda: f64,
    /// Loss of the last step; `None` if none was made since the start of this process.
    pub loss: Option<f64>,
    /// The language whose records it waits for.
    pub waiting: Option<String>,
    /// Where the student goes.
    pub out: PathBuf,
    /// Why it failed.
    pub error: Option<String>,
    /// Its last evaluation; the step in it is counted from the trunk's first one.
    pub evaluation: Option<EvaluationReport>,
}

/// Why a release does not begin or end as asked.
#[derive(Debug, thiserror::Error)]
pub enum ReleaseError {
    /// One is running, and there is one at a time.
    #[error("release {name} is running (step {step} of {steps}); wait until it is done, or cancel it")]
    Running {
        /// Its name.
        name: String,
        /// Steps done.
        step: u64,
        /// Steps in all.
        steps: u64,
    },
    /// Another one is just beginning.
    #[error("another release is just beginning; look at the status")]
    Beginning,
    /// There is nothing to cancel.
    #[error("no release is running")]
    NoneRunning,
    /// A release without a step would be the trunk as it is.
    #[error("a release has at least 1 step; `export` writes the student as it is")]
    NoSteps,
    /// The trunk has ended.
    #[error("training has ended: there is nothing beside which a release could run")]
    TrunkEnded,
    /// The trunk did not answer in time.
    #[error(
        "training was busy for {} s (with a checkpoint?), and no release was begun; ask again",
        ANSWER_LIMIT.as_secs()
    )]
    NoAnswer,
    /// The release did not stop in time.
    #[error("release {name} has not stopped after {} s, but it will; look at the status later", ANSWER_LIMIT.as_secs())]
    NotStopped {
        /// Its name.
        name: String,
    },
    /// The one before has ended, which cannot be written down.
    #[error("the end of release {name} cannot be written down: {error}; see to that, and ask again")]
    EndNotWritten {
        /// Its name.
        name: String,
        /// Why.
        error: Box<TrainerError>,
    },
    /// The trunk has no checkpoint that can be branched from.
    #[error("cannot branch from the trunk: {0}")]
    Branch(String),
    /// Something could not be read or written.
    #[error(transparent)]
    Trainer(#[from] TrainerError),
}

/// The options of the trainer of release `name` of the run with the options `trunk`.
///
/// # Errors
/// When there is no such release; when the folder of one cannot be read.
pub(crate) fn options_of(trunk: &TrainerOptions, name: &str) -> Result<TrainerOptions, TrainerError> {
    let folders = folder::all(&trunk.state_dir)?;
    if let Some(folder) = folders.iter().find(|folder| folder.name == name) {
        return Ok(work::options(trunk, folder));
    }
    let names: Vec<&str> = folders.iter().map(|folder| folder.name.as_str()).collect();
    let known = if names.is_empty() { "there is none".to_owned() } else { format!("there are {}", names.join(", ")) };
    Err(TrainerError::Configuration(format!("there is no release `{name}`: {known}")))
}

/// The releases of a state folder that are to go on.
pub(crate) fn unfinished(state_dir: &Path) -> Result<Vec<Folder>, TrainerError> {
    let mut folders = folder::all(state_dir)?;
    folders.retain(|folder| folder.file.state == ReleaseState::Running);
    Ok(folders)
}

impl Releases {
    /// The releases of the run that `options` are of. One that was running goes on with [`Self::run`].
    ///
    /// `progress` is that of the run's trainer, `control` its switch, `requests` lead to it, and `report` is told
    /// ([`Event::Release`]), in the release's thread, when one begins, is evaluated, and has ended.
    ///
    /// # Errors
    /// When the folder cannot be read or cleaned.
    pub fn open(
        options: TrainerOptions,
        reader: LogReader,
        progress: Arc<TrainerProgress>,
        control: StageControl,
        requests: Sender<Request>,
        report: Box<dyn Fn(Event) + Send + Sync>,
        registry: &Registry,
    ) -> Result<Self, TrainerError> {
        folder::clean(&options.state_dir)?;
        let folders = folder::all(&options.state_dir)?;
        let latest = folders.last().map(ReleaseStatus::of);
        let next = folders.last().map_or(0, |folder| folder.file.number + 1);
        let unfinished = folders.into_iter().rfind(|folder| folder.file.state == ReleaseState::Running);
        let place = match unfinished {
            Some(folder) => Place::Unfinished(Box::new(folder), joined(&progress.need)),
            None => Place::Free,
        };
        let (state, changed) = (
            Mutex::new(State { latest, next, trunk_ended: false, stopping: false, place, threads: 0 }),
            Condvar::new(),
        );
        let metrics = Metrics::register(registry)?;
        let (state_dir, options) = (options.state_dir.clone(), RwLock::new(options));
        let shared =
            Shared { options, state_dir, reader, progress, control, requests, report, metrics, state, changed };
        Ok(Self(Arc::new(shared)))
    }

    /// Runs the trunk, and beside it a release that was not finished and those that are asked for. If the trunk ends by itself, a
    /// release that is running is finished; if it is stopped or fails, the release stops too, and goes on at the next start.
    ///
    /// # Errors
    /// Those of the trunk. A release that fails says so in its status, and is no reason to stop.
    pub fn run(
        &self,
        trunk: &mut Trainer,
        requests: Receiver<Request>,
        events: &mut dyn FnMut(Event),
    ) -> Result<Outcome, TrainerError> {
        self.go_on();
        let outcome = trunk.run(&self.0.control, &requests, events);
        self.0.lock().trunk_ended = true;
        drop(requests);
        match outcome {
            Ok(Outcome::Finished | Outcome::Exhausted { .. }) => self.0.progress.has_ended(),
            Ok(Outcome::Stopped { .. }) | Err(_) => self.stop(),
        }
        self.wait();
        if let Err(error) = self.0.lock().write_end() {
            tracing::error!(%error, "a release that has ended may be run again after a restart");
        }
        outcome
    }

    /// Begins a release of `steps` steps from the newest checkpoint, whose student goes to `out` (an absolute path; `None`: into the
    /// release's folder). It runs when this returns.
    ///
    /// # Errors
    /// When one is running, when the trunk has ended, is busy for too long, or has no checkpoint, or when `out` holds anything but
    /// an export. Then nothing is left of it.
    pub fn begin(&self, steps: u64, out: Option<PathBuf>) -> Result<ReleaseStatus, ReleaseError> {
        if steps == 0 {
            return Err(ReleaseError::NoSteps);
        }
        if let Some(out) = &out {
            export::check_target(out)?;
        }
        let number = self.take_place()?;
        let need = joined(&self.0.progress.need);
        let TrainOptions { lambda_end, lambda_schedule, .. } = self.0.options().train;
        let wanted = Wanted { steps, lambda_end, lambda_schedule, out };
        let begun = self.branch(number, wanted).and_then(|folder| {
            let path = folder.path.clone();
            self.start(folder, need).map_err(|error| {
                // Best effort: the first error is the one to report.
                let _ = fs::remove_dir_all(path);
                error.into()
            })
        });
        if begun.is_err() {
            self.0.lock().place = Place::Free;
            self.0.changed.notify_all();
        }
        begun
    }

    /// Ends the release that is running; it cannot go on later.
    ///
    /// # Errors
    /// When none is running, or it does not stop in time.
    pub fn cancel(&self) -> Result<ReleaseStatus, ReleaseError> {
        let state = self.0.lock();
        match &state.place {
            Place::Running(running) => running.cancel(),
            _ => return Err(ReleaseError::NoneRunning),
        }
        let name = state.latest.as_ref().map(|status| status.name.clone());
        let runs = |state: &mut State| {
            state
                .latest
                .as_ref()
                .is_some_and(|status| status.state == ReleaseState::Running && Some(&status.name) == name.as_ref())
        };
        let waited = self.0.changed.wait_timeout_while(state, ANSWER_LIMIT, runs);
        let (state, waited) = waited.unwrap_or_else(PoisonError::into_inner);
        if waited.timed_out() {
            return Err(ReleaseError::NotStopped { name: name.unwrap_or_default() });
        }
        state.latest.clone().ok_or(ReleaseError::NoneRunning)
    }

    /// The release that began last; `None`: there never was one.
    #[must_use]
    pub fn status(&self) -> Option<ReleaseStatus> {
        self.0.lock().latest.clone()
    }

    /// Releases that begin from now on have these settings of the trunk. One that has begun keeps those that it began with.
    pub fn change(&self, settings: &Settings, evaluation: &EvaluationOptions) {
        let mut options = self.0.options.write().unwrap_or_else(PoisonError::into_inner);
        options.alpha = settings.alpha;
        options.train = TrainOptions { until_step: options.train.until_step, ..settings.train.clone() };
        options.evaluation = evaluation.clone();
    }

    /// Takes the place, which must be free; returns the number of the release that is to run there.
    fn take_place(&self) -> Result<u64, ReleaseError> {
        let mut state = self.0.lock();
        state.write_end()?;
        match (&state.place, &state.latest) {
            (Place::Free, _) if state.trunk_ended => return Err(ReleaseError::TrunkEnded),
            (Place::Free, _) => {}
            (Place::Taken | Place::Ended(_), _) | (_, None) => return Err(ReleaseError::Beginning),
            (Place::Unfinished(..) | Place::Running(_), Some(latest)) => {
                let (name, step, steps) = (latest.name.clone(), latest.step, latest.steps);
                return Err(ReleaseError::Running { name, step, steps });
            }
        }
        state.place = Place::Taken;
        state.next += 1;
        Ok(state.next - 1)
    }

    /// Asks the trunk for its newest checkpoint, and makes a folder of it.
    fn branch(&self, number: u64, wanted: Wanted) -> Result<Folder, ReleaseError> {
        let state_dir = &self.0.state_dir;
        let partial = folder::partial(state_dir, number);
        let deadline = Instant::now() + ANSWER_LIMIT;
        // Without capacity: the trunk knows whether its answer was taken.
        let (reply, answer) = bounded(0);
        let request = Request::Branch { folder: partial.clone(), reply };
        self.0
            .requests
            .send_deadline(request, deadline)
            .map_err(|error| if error.is_timeout() { ReleaseError::NoAnswer } else { ReleaseError::TrunkEnded })?;
        let point: BranchPoint = loop {
            // Asked first: what it answered before it ended counts.
            let trunk_ended = self.0.lock().trunk_ended;
            match answer.recv_timeout(ATTENTION) {
                Ok(Ok(point)) => break point,
                Ok(Err(reason)) => return Err(ReleaseError::Branch(reason)),
                Err(RecvTimeoutError::Disconnected) => return Err(ReleaseError::TrunkEnded),
                Err(RecvTimeoutError::Timeout) if trunk_ended => return Err(ReleaseError::TrunkEnded),
                Err(RecvTimeoutError::Timeout) if Instant::now() >= deadline => return Err(ReleaseError::NoAnswer),
                Err(RecvTimeoutError::Timeout) => {}
            }
        };
        Folder::begin(&partial, state_dir, number, point, wanted).map_err(|error| {
            // Best effort: the first error is the one to report, and what is left is removed at the next start.
            let _ = fs::remove_dir_all(&partial);
            error.into()
        })
    }

    /// Starts the release that was running when the run ended.
    fn go_on(&self) {
        let mut state = self.0.lock();
        let (folder, need) = match std::mem::replace(&mut state.place, Place::Taken) {
            Place::Unfinished(folder, need) => (folder, need),
            place => {
                state.place = place;
                return;
            }
        };
        drop(state);
        if let Err(error) = self.start((*folder).clone(), need.clone()) {
            tracing::error!(%error, "a release cannot go on before the next start");
            self.0.lock().place = Place::Unfinished(folder, need);
        }
    }

    /// Starts a thread for a release, in the place that was taken for it.
    fn start(&self, folder: Folder, need: Need) -> Result<ReleaseStatus, TrainerError> {
        let status = ReleaseStatus::of(&folder);
        let mut state = self.0.lock();
        state.place = if state.stopping {
            self.0.changed.notify_all();
            Place::Unfinished(Box::new(folder), need)
        } else {
            // It cannot end before its place is noted: it waits for the lock.
            let running = work::start(&self.0, folder, need)?;
            state.threads += 1;
            Place::Running(running)
        };
        state.latest = Some(status.clone());
        Ok(status)
    }

    /// Asks the release that is running to stop; it goes on at the next start.
    fn stop(&self) {
        let mut state = self.0.lock();
        state.stopping = true;
        if let Place::Running(running) = &state.place {
            running.stop();
        }
    }

    /// Waits until no release runs or begins, and all was told of those that ran.
    fn wait(&self) {
        let busy = |state: &mut State| state.threads > 0 || matches!(state.place, Place::Taken);
        let mut state = self.0.lock();
        while busy(&mut state) {
            waits_for(Wait::Release);
            state = self.0.changed.wait_timeout(state, LOOK_INTERVAL).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl State {
    /// Writes down how the latest release has ended, if that was not possible before.
    fn write_end(&mut self) -> Result<(), ReleaseError> {
        let (Place::Ended(folder), Some(latest)) = (&mut self.place, &self.latest) else { return Ok(()) };
        let name = folder.name.clone();
        folder.end(latest).map_err(|error| ReleaseError::EndNotWritten { name, error: error.into() })?;
        self.place = Place::Free;
        Ok(())
    }
}

impl Shared {
    fn options(&self) -> TrainerOptions {
        self.options.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ReleaseStatus {
    /// A release as its folder tells of it, without what was done since the last checkpoint.
    fn of(folder: &Folder) -> Self {
        let file = &folder.file;
        let cool_down = file.cool_down;
        let evaluation = file.evaluation.clone();
        Self {
            name: folder.name.clone(),
            state: file.state,
            from_step: cool_down.from_step,
            step: file.step,
            steps: cool_down.steps,
            learning_rate: cool_down.learning_rate,
            lambda: cool_down.lambda_start,
            loss: None,
            waiting: None,
            out: folder.out(),
            error: file.error.clone(),
            evaluation: evaluation.and_then(|evaluation| serde_json::from_value(evaluation).ok()),
        }
    }

    /// After `step` steps of the trunk and the release together, with the rates of the last of them.
    fn set_step(&mut self, step: u64, rates: Rates) {
        self.step = step.saturating_sub(self.from_step);
        (self.learning_rate, self.lambda) = (rates.learning_rate, rates.lambda);
    }
}

/// A need of one's own that counts as the trunk's.
fn joined(trunk: &Need) -> Need {
    let need = Need::default();
    trunk.join(&need);
    need
}
