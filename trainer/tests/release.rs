//! Releases beside a trunk: they leave it as it was, survive a crash, and come one at a time.
#![allow(clippy::unwrap_used)]

mod scene;

use crossbeam::channel::{Receiver, bounded, unbounded};
use prometheus::Registry;
use scene::{Scene, append, append_ends, checkpoint, copy_folder, metrics, mixture};
use serde_json::{Value, json};
use std::fs;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use store::log::{Need, Retention};
use store::stage::StageControl;
use store::{LogReader, SequenceNumber};
use trainer::release::ReleaseState;
use trainer::{
    Event, Outcome, ReleaseError, ReleaseStatus, Releases, Schedule, Trainer, TrainerError, TrainerOptions,
    TrainerProgress,
};

/// Nothing here takes nearly as long.
const DEADLINE: Duration = Duration::from_secs(60);

/// Numbers of which every digit counts when they are written and read again.
const RATE: f64 = 1e-2 / 1.1;
const FLOOR: f64 = 1.0 / 3.0;

/// An endless training on a log that has ended.
fn trunk(scene: &Scene, state: &str) -> TrainerOptions {
    let mut options = scene.options(state);
    options.train.steps = None;
    options.train.schedule = Schedule::Trunk { lambda_steps: 4, lambda_floor: FLOOR };
    options.train.learning_rate = RATE;
    options.evaluation.every_steps = 100;
    options
}

/// A trunk that runs, and its releases.
struct Trunk {
    releases: Releases,
    control: StageControl,
    /// What the trunk reports.
    events: Receiver<Event>,
    /// What its releases report.
    reports: Receiver<ReleaseStatus>,
    need: Need,
}

impl Trunk {
    fn wait_for_checkpoint(&self, at_least: u64) {
        loop {
            if let Event::Checkpoint { step, .. } = self.events.recv_timeout(DEADLINE).unwrap()
                && step >= at_least
            {
                return;
            }
        }
    }

    fn wait_for_end(&self) -> ReleaseStatus {
        loop {
            let status = self.reports.recv_timeout(DEADLINE).unwrap();
            if status.state != ReleaseState::Running {
                return status;
            }
        }
    }
}

/// Called with what a trunk or its release reports, in its thread.
type Report = Arc<dyn Fn(&Event, &Need) + Send + Sync>;

fn quiet() -> Report {
    Arc::new(|_, _| ())
}

/// Runs a trunk while `work` is done, then stops it, unless it ends by itself. Returns the trunk's outcome too.
fn beside<T>(
    options: &TrainerOptions,
    reader: &LogReader,
    control: &StageControl,
    report: &Report,
    work: impl FnOnce(&Trunk) -> T,
) -> (T, Outcome) {
    let progress = Arc::new(TrainerProgress::default());
    let need = progress.need.clone();
    let registry = Registry::new();
    let mut trainer = Trainer::open(options.clone(), reader.clone(), progress, &registry).unwrap();
    let ((requests_in, requests), (events_in, events), (reports_in, reports)) = (bounded(4), unbounded(), unbounded());
    let (told, of_releases) = (need.clone(), Arc::clone(report));
    let note = Box::new(move |event: Event| {
        of_releases(&event, &told);
        if let Event::Release(status) = event {
            reports_in.send(status).unwrap();
        }
    });
    let (options, reader) = (options.clone(), reader.clone());
    let releases =
        Releases::open(options, reader, need.clone(), control.clone(), requests_in, note, &registry).unwrap();
    let trunk = Trunk { releases, control: control.clone(), events, reports, need };
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
fn released(state: &Path, name: &str) -> ([Vec<u8>; 2], Vec<Value>) {
    let folder = state.join("releases").join(name);
    let file: Value = serde_json::from_slice(&fs::read(folder.join("release.json")).unwrap()).unwrap();
    let steps = |key: &str| file["cool_down"][key].as_u64().unwrap();
    (checkpoint(&folder, steps("from_step") + steps("steps")), metrics(&folder))
}

#[test]
fn two_releases_leave_the_trunk_as_it_was() {
    let scene = Scene::with_log(&mixture(40));
    let options = trunk(&scene, "trunk");
    let (first, second) = (scene.path("out"), options.state_dir.join("releases"));
    let (statuses, outcome) = beside(&options, &scene.reader(), &StageControl::default(), &quiet(), |trunk| {
        trunk.wait_for_checkpoint(6);
        let begun = trunk.releases.begin(8, Some(first.clone())).unwrap();
        assert_eq!((begun.state, begun.steps, begun.out), (ReleaseState::Running, 8, first.clone()));
        let ended = trunk.wait_for_end();
        trunk.wait_for_checkpoint(ended.from_step + 9);
        trunk.releases.begin(5, None).unwrap();
        let statuses = [ended, trunk.wait_for_end()];
        assert_eq!(trunk.releases.status().as_ref(), Some(&statuses[1]));
        trunk.control.stop();
        statuses
    });
    let Outcome::Stopped { step: last } = outcome else { panic!("it has no end: {outcome:?}") };

    // The same trunk without them.
    let mut alone = trunk(&scene, "alone");
    alone.train.until_step = Some(last);
    assert_eq!(scene.run(&alone, |_| ()).unwrap(), Outcome::Stopped { step: last });
    assert!(checkpoint(&alone.state_dir, last) == checkpoint(&options.state_dir, last), "the trunks differ");
    let steps = |state: &Path| -> Vec<Value> {
        let is_before_the_end = |line: &Value| line.get("evaluation").is_none() || line["step"] != last;
        metrics(state).into_iter().filter(is_before_the_end).collect()
    };
    assert_eq!(steps(&alone.state_dir), steps(&options.state_dir));
    let journals = [&alone, &options].map(|options| fs::read(options.state_dir.join("journal")).unwrap());
    assert_eq!(journals[0], journals[1]);
    let constant = |line: &Value| line["learning_rate"] == RATE && line["lambda"] == FLOOR;
    assert!(steps(&options.state_dir).iter().filter(|line| line.get("loss").is_some()).skip(4).all(constant));

    for (status, out) in statuses.iter().zip([first, second.join(&statuses[1].name).join("student")]) {
        assert_eq!((status.state, status.step, &status.out), (ReleaseState::Done, status.steps, &out));
        assert_eq!(status.name, format!("step-{}", status.from_step));
        assert!(status.from_step >= 6 && status.from_step % 3 == 0, "{status:?}");
        let evaluation = status.evaluation.as_ref().unwrap();
        assert_eq!(evaluation.step, status.from_step + status.steps, "the student is evaluated at the end");
        assert_eq!(evaluation.languages.len(), 2);
        let (weights, lines) = released(&options.state_dir, &status.name);
        assert!(fs::read(out.join("model.safetensors")).unwrap().len() > 1000 && out.join("vocab.txt").is_file());
        assert!(weights != checkpoint(&alone.state_dir, last));
        let steps: Vec<&Value> = lines.iter().filter(|line| line.get("loss").is_some()).collect();
        assert_eq!(steps.len() as u64, status.steps);
        for (line, done) in steps.iter().zip(0..) {
            let count = status.steps as f64;
            let (rate, lambda) = (RATE * (count - done as f64) / count, FLOOR - FLOOR * done as f64 / (count - 1.0));
            assert_eq!(line["step"], status.from_step + done + 1);
            assert!((line["learning_rate"].as_f64().unwrap() - rate).abs() < 1e-12, "{line}");
            assert!((line["lambda"].as_f64().unwrap() - lambda).abs() < 1e-12, "{line}");
        }
    }
}

/// A trunk of four steps, with a release of six more that has begun and not made a step.
fn begun(scene: &Scene, reader: &LogReader, state: &str) -> TrainerOptions {
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
fn finish(options: &TrainerOptions, reader: &LogReader, report: &Report) -> ReleaseStatus {
    let (status, outcome) = beside(options, reader, &StageControl::default(), report, Trunk::wait_for_end);
    assert_eq!(outcome, Outcome::Finished);
    status
}

#[test]
fn a_release_that_is_killed_at_any_time_ends_as_one_that_is_not() {
    let scene = Scene::with_log(&mixture(40));
    let reader = scene.reader();
    let options = begun(&scene, &reader, "state");
    let kills = Arc::new(Mutex::new(0));
    let (folder, state, count) = (scene.folder.path().to_owned(), options.state_dir.clone(), Arc::clone(&kills));
    let keep: Report = Arc::new(move |event, _| {
        if let Event::Release(_) = event {
            let mut count = count.lock().unwrap();
            copy_folder(&state, &folder.join(format!("killed-{count}")));
            *count += 1;
        }
    });
    let whole = finish(&options, &reader, &keep);
    assert_eq!((whole.state, whole.step), (ReleaseState::Done, 6));
    let kills = *kills.lock().unwrap();
    assert!(kills > 7, "only {kills} reports");
    for kill in 0..kills {
        let mut killed = options.clone();
        killed.state_dir = scene.path(&format!("killed-{kill}"));
        let folder = killed.state_dir.join("releases/step-4");
        // What a crash in the middle of a write leaves, there and of a release that was about to begin.
        let metrics = folder.join("metrics.jsonl");
        if metrics.exists() {
            fs::write(&metrics, [fs::read(&metrics).unwrap(), b"{\"step\":".to_vec()].concat()).unwrap();
        }
        let torn = killed.state_dir.join("releases/.partial-7");
        fs::create_dir(&torn).unwrap();
        let file: Value = serde_json::from_slice(&fs::read(folder.join("release.json")).unwrap()).unwrap();
        if file["state"] == "running" {
            let status = finish(&killed, &reader, &quiet());
            assert_eq!((status.state, status.step, &status.evaluation), (ReleaseState::Done, 6, &whole.evaluation));
        } else {
            assert_eq!((kill, &file["state"]), (kills - 1, &json!("done")), "the last of the reports");
            continue;
        }
        assert!(!torn.exists(), "kill {kill}");
        assert!(released(&killed.state_dir, "step-4") == released(&options.state_dir, "step-4"), "kill {kill}");
        for step in [3, 4] {
            assert!(checkpoint(&killed.state_dir, step) == checkpoint(&options.state_dir, step), "the trunk");
        }
        let student = |state: &Path| fs::read(state.join("releases/step-4/student/model.safetensors")).unwrap();
        assert!(student(&killed.state_dir) == student(&options.state_dir), "kill {kill}");
    }
    // What is known of it after a restart.
    let (status, _) = beside(&options, &reader, &StageControl::default(), &quiet(), |trunk| trunk.releases.status());
    let status = status.unwrap();
    assert_eq!((status.state, status.step, status.evaluation), (ReleaseState::Done, 6, whole.evaluation));
}

#[test]
fn a_teacher_that_comes_while_a_release_is_stopped_extends_its_student_too() {
    let scene = Scene::with_log(&mixture(40));
    let reader = scene.reader();
    let mut options = begun(&scene, &reader, "state");
    let words = |folder: &Path| fs::read_to_string(folder.join("vocab.txt")).unwrap().lines().count();
    let before = words(&options.state_dir.join("vocab"));
    options.teachers.push(scene.third_teacher());
    let status = finish(&options, &reader, &quiet());
    assert_eq!((status.state, status.step), (ReleaseState::Done, 6), "{:?}", status.error);
    assert_eq!(words(&status.out), before + 1);
    let journal = fs::read_to_string(options.state_dir.join("releases/step-4/journal")).unwrap();
    assert!(journal.contains("\"teachers\":[\"third\"]"), "{journal}");
}

#[test]
fn releases_come_one_at_a_time_and_can_be_cancelled() {
    let scene = Scene::with_log(&mixture(40));
    let options = trunk(&scene, "state");
    let releases = options.state_dir.join("releases");
    beside(&options, &scene.reader(), &StageControl::default(), &quiet(), |trunk| {
        assert!(matches!(trunk.releases.cancel(), Err(ReleaseError::NoneRunning)));
        assert!(matches!(trunk.releases.begin(0, None), Err(ReleaseError::NoSteps)));
        trunk.wait_for_checkpoint(3);
        // A folder that is somebody's.
        let error = trunk.releases.begin(5, Some(scene.path("first"))).unwrap_err();
        assert!(matches!(error, ReleaseError::Trainer(TrainerError::ExportTarget { .. })), "{error}");
        let first = trunk.releases.begin(1 << 40, None).unwrap();
        let error = trunk.releases.begin(5, None).unwrap_err().to_string();
        let refusal = format!("release {} is running (step ", first.name);
        assert!(error.starts_with(&refusal) && error.contains(" of 1099511627776)"), "{error}");
        let cancelled = trunk.releases.cancel().unwrap();
        assert_eq!((&cancelled.name, cancelled.state), (&first.name, ReleaseState::Cancelled));
        assert!(releases.join(&first.name).join("release.json").exists());
        assert!(!releases.join(&first.name).join("checkpoints").exists(), "its weights are of no use to anybody");
        assert!(matches!(trunk.releases.cancel(), Err(ReleaseError::NoneRunning)));
        assert_eq!(trunk.wait_for_end(), cancelled, "it is reported too");
        trunk.releases.begin(5, None).unwrap();
        assert_eq!(trunk.wait_for_end().state, ReleaseState::Done);
        trunk.control.stop();
    });
    assert_eq!(fs::read_dir(&releases).unwrap().count(), 2);
    // Nothing goes on at the next start.
    let (status, _) = beside(&options, &scene.reader(), &StageControl::default(), &quiet(), |trunk| {
        trunk.control.stop();
        trunk.releases.status()
    });
    assert_eq!(status.unwrap().state, ReleaseState::Done);
}

#[test]
fn a_release_needs_a_checkpoint_and_something_to_train_on() {
    let scene = Scene::with_log(&mixture(40));
    let mut options = trunk(&scene, "state");
    options.train.max_passes = 2;
    let control = StageControl::default();
    control.set_paused(true);
    beside(&options, &scene.reader(), &control, &quiet(), |trunk| {
        let error = trunk.releases.begin(5, None).unwrap_err();
        assert!(matches!(error, ReleaseError::Branch(_)), "{error}");
        assert!(error.to_string().contains("holds no checkpoint yet"), "{error}");
        control.stop();
    });
    // Stopped, it has one.
    let control = StageControl::default();
    control.set_paused(true);
    let (ended, outcome) = beside(&options, &scene.reader(), &control, &quiet(), |trunk| {
        // In two passes over 40 records there are not that many batches.
        trunk.releases.begin(1000, None).unwrap();
        control.set_paused(false);
        trunk.wait_for_end()
    });
    assert!(matches!(outcome, Outcome::Exhausted { .. }), "{outcome:?}");
    assert_eq!(ended.state, ReleaseState::Failed);
    let reason = ended.error.unwrap();
    assert!(reason.contains("of 1000 steps nothing was left to train on (train.max_passes)"), "{reason}");
    // It is not tried again, and nothing begins beside a trunk that has ended.
    let (_, outcome) = beside(&options, &scene.reader(), &StageControl::default(), &quiet(), |trunk| {
        while !matches!(trunk.events.recv_timeout(DEADLINE), Err(_) | Ok(Event::Checkpoint { .. })) {}
        assert_eq!(trunk.releases.status().unwrap().state, ReleaseState::Failed);
        let error = trunk.releases.begin(5, None).unwrap_err();
        assert!(matches!(error, ReleaseError::TrunkEnded), "{error}");
    });
    assert!(matches!(outcome, Outcome::Exhausted { .. }), "{outcome:?}");
}

#[test]
fn retention_leaves_what_a_release_needs() {
    let scene = Scene::new();
    let mut writer = scene.writer_of(1);
    append(&mut writer, &mixture(300), 4);
    append_ends(&mut writer);
    let reader = writer.reader();
    let mut options = begun(&scene, &reader, "state");
    let mut kept = options.clone();
    kept.state_dir = scene.path("kept");
    copy_folder(&options.state_dir, &kept.state_dir);
    let whole = finish(&kept, &reader, &quiet());
    assert_eq!(whole.state, ReleaseState::Done);

    // The trunk goes far beyond, while all is removed that nobody needs; first while the release does not run.
    (options.train.steps, options.train.keep_checkpoints) = (Some(40), 1);
    let need_of_both = trainer::need_of_state(&options.state_dir, &reader).unwrap().unwrap().get();
    assert!(trainer::required_position(&options.state_dir).unwrap() > SequenceNumber(0));
    let mut trainer = Trainer::open(options.clone(), reader.clone(), Arc::default(), &Registry::new()).unwrap();
    assert_eq!(scene::run(&mut trainer, |_| ()).unwrap(), Outcome::Finished);
    drop(trainer);
    let needed = trainer::need_of_state(&options.state_dir, &reader).unwrap().unwrap().get();
    assert_eq!(needed.from, need_of_both.from);
    assert!(needed.why.starts_with("release step-4: "), "{needed:?}");

    let writer = Arc::new(Mutex::new(writer));
    let (retaining, held_out) = (Arc::clone(&writer), trainer::held_out_path(&options.state_dir));
    let retain: Report = Arc::new(move |_, need| {
        let retention = Retention { bytes: 1, age: None, held_out: held_out.clone() };
        retaining.lock().unwrap().retain(&retention, Some(need)).unwrap();
    });
    let ended = finish(&options, &reader, &retain);
    assert_eq!((ended.state, &ended.evaluation), (ReleaseState::Done, &whole.evaluation), "{:?}", ended.error);
    assert!(released(&options.state_dir, "step-4") == released(&kept.state_dir, "step-4"), "the students differ");
    // And when it is done, its part may go too.
    let needed = trainer::need_of_state(&options.state_dir, &reader).unwrap().unwrap().get();
    assert!(needed.from > need_of_both.from && !needed.why.starts_with("release"), "{needed:?}");
    assert!(reader.begin() >= need_of_both.from);
}

#[test]
fn retention_leaves_what_a_stopped_release_needs() {
    let scene = Scene::with_log(&mixture(300));
    let mut options = trunk(&scene, "state");
    options.train.until_step = Some(4);
    assert_eq!(scene.run(&options, |_| ()).unwrap(), Outcome::Stopped { step: 4 });
    (options.train.until_step, options.train.keep_checkpoints) = (Some(40), 1);
    let control = StageControl::default();
    control.set_paused(true);
    // The log may be written for a while after training has stopped: both live until that has ended.
    let ((_releases, need), outcome) = beside(&options, &scene.reader(), &control, &quiet(), |trunk| {
        trunk.releases.begin(1 << 40, None).unwrap();
        control.set_paused(false);
        (trunk.releases.clone(), trunk.need.clone())
    });
    assert_eq!(outcome, Outcome::Stopped { step: 40 });
    let from_folder = trainer::need_of_state(&options.state_dir, &scene.reader()).unwrap().unwrap().get();
    assert!(from_folder.why.starts_with("release "), "{from_folder:?}");
    let needed = need.get();
    assert!(needed.from <= from_folder.from && needed.why.starts_with("release "), "{needed:?}");
}
