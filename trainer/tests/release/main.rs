//! Releases beside a trunk: they leave it as it was, survive a crash, and come one at a time.
#![allow(clippy::unwrap_used)]

#[path = "../scene/mod.rs"]
mod scene;

mod replay;
mod retention;
mod troubles;
mod trunk;

use scene::{Scene, checkpoint, copy_folder, metrics, mixture};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};
use store::stage::StageControl;
use trainer::release::ReleaseState;
use trainer::{Event, Outcome, ReleaseError, TrainerError};
use trunk::{FLOOR, RATE, Report, begun, beside, finish, quiet, released, trunk};

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
