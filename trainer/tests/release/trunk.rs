//! A trunk that runs, with its releases.

use crate::scene::{self, Scene, checkpoint, metrics};
use crossbeam::channel::{Receiver, bounded, unbounded};
use prometheus::Registry;
use serde_json::Value;
use std::fs;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use store::LogReader;
use store::log::Need;
use store::stage::StageControl;
use trainer::release::ReleaseState;
use trainer::{
    Event, KdTarget, LaterTarget, Outcome, ReleaseStatus, Releases, Schedule, Trainer, TrainerOptions, TrainerProgress,
};

/// Nothing here takes nearly as long.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// Numbers of which every digit counts when they are written and read again.
pub(crate) const RATE: f64 = 1e-2 / 1.1;
pub(crate) const FLOOR: f64 = 1.0 / 3.0;

/// An endless training on a log that has ended.
pub(crate) fn trunk(scene: &Scene, state: &str) -> TrainerOptions {
    let mut options = scene.options(state);
    options.train.steps = None;
    options.train.schedule = Schedule::Trunk { lambda_steps: 4, lambda_floor: FLOOR };
    // From before the branch into the release.
    let (kd_target, kd_temperature) = (KdTarget::Ghost, 1.5);
    let later = LaterTarget { kd_target, kd_temperature, from_step: 3, blend_steps: 4 };
    options.train.kd_target_later = Some(later);
    options.train.learning_rate = RATE;
    options.evaluation.every_steps = 100;
    options
}

/// A trunk that runs, and its releases.
pub(crate) struct Trunk {
    pub(crate) releases: Releases,
    pub(crate) control: StageControl,
    /// What the trunk reports.
    pub(crate) events: Receiver<Event>,
    /// What its releases report.
    pub(crate) reports: Receiver<ReleaseStatus>,
    pub(crate) progress: Arc<TrainerProgress>,
    pub(crate) need: Need,
}

impl Trunk {
    pub(crate) fn wait_for_checkpoint(&self, at_least: u64) {
        loop {
            if let Event::Checkpoint { step, .. } = self.events.recv_timeout(DEADLINE).unwrap()
                && step >= at_least
            {
                return;
            }
        }
    }

    pub(crate) fn wait_for_end(&self) -> ReleaseStatus {
        loop {
            let status = self.reports.recv_timeout(DEADLINE).unwrap();
            if status.state != ReleaseState::Running {
                return status;
            }
        }
    }
}

/// Called with what a trunk or its release reports, in its thread.
pub(crate) type Report = Arc<dyn Fn(&Event, &Need) + Send + Sync>;

pub(crate) fn quiet() -> Report {
    Arc::new(|_, _| ())
}

/// Runs a trunk while `work` is done, then stops it, unless it ends by itself. Returns the trunk's outcome too.
pub(crate) fn beside<T>(
    options: &TrainerOptions,
    reader: &LogReader,
    control: &StageControl,
    report: &Report,
    work: impl FnOnce(&Trunk) -> T,
) -> (T, Outcome) {
    let progress = Arc::new(TrainerProgress::default());
    let need = progress.need.clone();
    let registry = Registry::new();
    let mut trainer = Trainer::open(options.clone(), reader.clone(), Arc::clone(&progress), &registry).unwrap();
    let ((requests_in, requests), (events_in, events), (reports_in, reports)) = (bounded(4), unbounded(), unbounded());
    let (told, of_releases) = (need.clone(), Arc::clone(report));
    let note = Box::new(move |event: Event| {
        of_releases(&event, &told);
        if let Event::Release(status) = event {
            reports_in.send(status).unwrap();
        }
    });
    let (options, reader) = (options.clone(), reader.clone());
    let (of_trunk, of_releases) = (control.clone(), Arc::clone(&progress));
    let releases = Releases::open(options, reader, of_releases, of_trunk, requests_in, note, &registry).unwrap();
    let trunk = Trunk { releases, control: control.clone(), events, reports, progress, need };
    std::thread::scope(|scope| {
        let run = scope.spawn(|| {
            trunk.releases.run(&mut trainer, requests, &mut |event| {
                report(&event, &trunk.need);
                events_in.send(event).unwrap();
            })
        });
        let result = std::panic::catch_unwind(AssertUnwindSafe(|| work(&trunk)));
        if result.is_err() {
            control.stop();
        }
        let outcome = run.join().unwrap().unwrap();
        (result.unwrap_or_else(|panic| std::panic::resume_unwind(panic)), outcome)
    })
}

/// Weights and optimiser at the end of a release, and its lines in `metrics.jsonl`.
pub(crate) fn released(state: &Path, name: &str) -> ([Vec<u8>; 2], Vec<Value>) {
    let folder = state.join("releases").join(name);
    let file: Value = serde_json::from_slice(&fs::read(folder.join("release.json")).unwrap()).unwrap();
    let steps = |key: &str| file["cool_down"][key].as_u64().unwrap();
    (checkpoint(&folder, steps("from_step") + steps("steps")), metrics(&folder))
}
/// A trunk of four steps, with a release of six more that has begun and not made a step.
pub(crate) fn begun(scene: &Scene, reader: &LogReader, state: &str) -> TrainerOptions {
    let mut options = trunk(scene, state);
    (options.train.steps, options.evaluation.every_steps) = (Some(4), 1);
    let mut trainer = Trainer::open(options.clone(), reader.clone(), Arc::default(), &Registry::new()).unwrap();
    assert_eq!(scene::run(&mut trainer, |_| ()).unwrap(), Outcome::Finished);
    drop(trainer);
    // Paused, it does nothing but answer.
    let control = StageControl::default();
    control.set_paused(true);
    let (status, outcome) = beside(&options, reader, &control, &quiet(), |trunk| {
        let status = trunk.releases.begin(6, None).unwrap();
        control.stop();
        status
    });
    assert_eq!((status.from_step, outcome), (4, Outcome::Stopped { step: 4 }));
    options
}

/// Runs a trunk that has ended, beside which a release goes on.
pub(crate) fn finish(options: &TrainerOptions, reader: &LogReader, report: &Report) -> ReleaseStatus {
    let (status, outcome) = beside(options, reader, &StageControl::default(), report, Trunk::wait_for_end);
    assert_eq!(outcome, Outcome::Finished);
    status
}

/// Looks until `is_so`.
#[track_caller]
pub(crate) fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !is_so() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::yield_now();
    }
}
