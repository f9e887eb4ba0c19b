//! The thread of a release.

use super::{Folder, Place, ReleaseState, ReleaseStatus, Shared};
use crate::TrainerError;
use crate::event::{Event, Outcome, TrainerProgress};
use crate::export::export_newest;
use crate::options::{TrainOptions, TrainerOptions};
use crate::schedule::{Rates, Schedule};
use crate::trainer::Trainer;
use crossbeam::channel::bounded;
use model::ModelError;
use model::device::DeviceError;
use prometheus::Registry;
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use store::log::Need;
use store::stage::StageControl;

/// A release whose thread was started.
#[derive(Clone, Debug)]
pub(super) struct Running {
    control: StageControl,
    cancelled: Arc<AtomicBool>,
}

impl Running {
    /// Stops it; it goes on at the next start.
    pub(super) fn stop(&self) {
        self.control.stop();
    }

    /// Stops it for good.
    pub(super) fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
        self.control.stop();
    }
}

/// How the work ended.
enum Ended {
    As(ReleaseState),
    /// It goes on at the next start, unless it was cancelled.
    Stopped,
    Failed(String),
}

/// Starts the thread of the release in `folder`. `need` is what it needs of the log, until it has ended.
pub(super) fn start(shared: &Arc<Shared>, folder: Folder, need: Need) -> Result<Running, TrainerError> {
    let running = Running { control: shared.control.child(), cancelled: Arc::default() };
    let (shared, path, own) = (Arc::clone(shared), folder.path.clone(), running.clone());
    let body = move || {
        let _pulse = store::pulse::enter("release");
        let worked = catch_unwind(AssertUnwindSafe(|| work(&shared, &folder, need.clone(), &own)));
        let ended = match worked {
            Ok(Ok(ended)) => ended,
            // Nothing is wrong with the release: it goes on at the next start.
            Ok(Err(TrainerError::Model(ModelError::Device(error))))
                if !matches!(error, DeviceError::Unusable { .. }) =>
            {
                tracing::error!(%error, "the release stops; it goes on when the run is started anew");
                Ended::Stopped
            }
            Ok(Err(error)) => Ended::Failed(error.to_string()),
            Err(panic) => Ended::Failed(format!("it panicked, which is a bug: {}", message(panic.as_ref()))),
        };
        conclude(&shared, folder, need, &own, ended);
    };
    thread::Builder::new()
        .name("release".to_owned())
        .spawn(body)
        .map_err(TrainerError::io("start a thread for", &path))?;
    Ok(running)
}

/// Trains and exports.
fn work(shared: &Shared, folder: &Folder, need: Need, running: &Running) -> Result<Ended, TrainerError> {
    let options = options(&shared.options(), folder);
    let (name, out) = (&folder.name, folder.out());
    tracing::info!(name, from_step = options.first_step(), steps = folder.file.cool_down.steps, "a release runs");
    report(shared);
    let progress = Arc::new(TrainerProgress::with_need(need));
    let outcome = {
        // Its metrics are those of a trainer, as the trunk's: shown apart, by the status.
        let mut trainer = Trainer::open(options, shared.reader.clone(), Arc::clone(&progress), &Registry::new())?;
        shared.progress.set_release(&progress);
        let (_nobody, requests) = bounded(0);
        trainer.run(&running.control, &requests, &mut |event| note(shared, event))?
    };
    match outcome {
        Outcome::Finished => {
            let step = export_newest(&folder.path, &out)?;
            tracing::info!(name, step, out = %out.display(), "a release is done");
            Ok(Ended::As(ReleaseState::Done))
        }
        Outcome::Stopped { .. } => Ok(Ended::Stopped),
        Outcome::Exhausted { step } => {
            let done = step.saturating_sub(folder.file.cool_down.from_step);
            let steps = folder.file.cool_down.steps;
            Ok(Ended::Failed(format!(
                "after {done} of {steps} steps nothing was left to train on (train.max_passes); ask for fewer steps"
            )))
        }
    }
}

/// The options of the trainer of a release.
pub(super) fn options(trunk: &TrainerOptions, folder: &Folder) -> TrainerOptions {
    let cool_down = folder.file.cool_down;
    let train = TrainOptions {
        steps: Some(cool_down.from_step.saturating_add(cool_down.steps)),
        until_step: None,
        schedule: Schedule::CoolDown(cool_down),
        ..trunk.train.clone()
    };
    TrainerOptions { state_dir: folder.path.clone(), trunk: Some(trunk.state_dir.clone()), train, ..trunk.clone() }
}

/// Takes note of what the release's trainer reports.
fn note(shared: &Shared, event: Event) {
    let mut state = shared.lock();
    let Some(status) = &mut state.latest else { return };
    status.waiting = None;
    let mut is_news = false;
    match event {
        Event::Step(step) => {
            status.set_step(step.step, Rates { learning_rate: step.learning_rate, lambda: step.lambda });
            status.loss = Some(step.loss);
            shared.metrics.add_tokens(step.tokens);
        }
        Event::Evaluation(evaluation) => {
            status.evaluation = Some(evaluation);
            is_news = true;
        }
        Event::Resumed { step, evaluation } => {
            status.step = step.saturating_sub(status.from_step);
            status.evaluation = evaluation;
        }
        Event::Waiting { language } => status.waiting = Some(language),
        Event::Checkpoint { step, path } => tracing::debug!(step, path = %path.display(), "checkpoint of a release"),
        Event::Release(_) => {}
    }
    shared.metrics.show(status);
    drop(state);
    if is_news {
        report(shared);
    }
}

/// Notes how a release ended, and gives its place free; one that goes on another time keeps its place, and what it needs.
fn conclude(shared: &Shared, folder: Folder, need: Need, running: &Running, ended: Ended) {
    match ended {
        Ended::As(state) => end(shared, folder, state, None),
        Ended::Failed(reason) => end(shared, folder, ReleaseState::Failed, Some(reason)),
        Ended::Stopped => {
            let mut state = shared.lock();
            // Whoever cancels it holds the lock too, and sees whether it still runs.
            if running.cancelled.load(Ordering::Relaxed) {
                drop(state);
                end(shared, folder, ReleaseState::Cancelled, None);
            } else {
                state.place = Place::Unfinished(Box::new(folder), need);
                if let Some(status) = &mut state.latest {
                    status.waiting = None;
                }
                shared.metrics.ended(ReleaseState::Running);
            }
        }
    }
    report(shared);
    shared.lock().threads -= 1;
    shared.changed.notify_all();
}

/// A release does not go on.
fn end(shared: &Shared, mut folder: Folder, state: ReleaseState, error: Option<String>) {
    let name = folder.name.clone();
    if let Some(reason) = &error {
        tracing::error!(name, reason, "a release failed");
    }
    let status = shared.lock().latest.clone().map(|status| ReleaseStatus { state, error, waiting: None, ..status });
    let place = match &status {
        Some(status) => match folder.end(status) {
            Ok(()) => Place::Free,
            Err(error) => {
                tracing::error!(name, %error, "the end of a release cannot be written down; it is tried again before the next one");
                Place::Ended(Box::new(folder))
            }
        },
        None => Place::Free,
    };
    shared.metrics.ended(state);
    // Whoever sees that it has ended may begin another one.
    let mut state = shared.lock();
    (state.latest, state.place) = (status, place);
    shared.changed.notify_all();
}

/// Tells how the release is.
fn report(shared: &Shared) {
    let status = shared.lock().latest.clone();
    if let Some(status) = status {
        (shared.report)(Event::Release(status));
    }
}

/// What a panic said.
fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("without a message")
}
