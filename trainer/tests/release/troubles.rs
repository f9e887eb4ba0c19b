//! Releases for which something is missing, in the way, or late.

use crate::scene::{Example, Scene, append, append_ends, example, inputs, mixture};
use crate::trunk::{DEADLINE, Report, Trunk, beside, quiet, trunk, wait_until};
use crossbeam::channel::bounded;
use model::RolePool;
use prometheus::Registry;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use store::SequenceNumber;
use store::stage::StageControl;
use trainer::release::ReleaseState;
use trainer::{Event, Outcome, ReleaseError, Request, Trainer};

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
fn a_release_that_outlives_the_trunk_has_its_backlog_and_its_threads() {
    let scene = Scene::new();
    let mut writer = scene.writer();
    append(&mut writer, &mixture(64), 8);
    let reader = writer.reader();
    let [label, train] = RolePool::pair(("label", 1), ("train", 1)).unwrap();
    let _unused = label.work();
    let mut options = trunk(&scene, "state");
    (options.train.steps, options.pool, options.inputs) = (Some(4), Some(train), inputs().into());
    let control = StageControl::default();
    control.set_paused(true);
    let end = |trunk: &Trunk| {
        while !matches!(trunk.events.recv_timeout(DEADLINE).unwrap(), Event::Checkpoint { step: 4, .. }) {}
    };
    // The checkpoint that the release branches from.
    options.train.until_step = Some(3);
    scene.run(&options, |_| ()).unwrap();
    options.train.until_step = None;
    beside(&options, &reader, &control, &quiet(), |trunk| {
        trunk.releases.begin(50, None).unwrap();
        assert!(trunk.progress.backlog_from(&|_| true).is_some(), "the trunk has not ended");
        control.set_paused(false);
        end(trunk);
        let waits = || trunk.releases.status().unwrap().waiting.is_some();
        wait_until("the release waits", waits);
        wait_until("nothing is a backlog while it waits", || trunk.progress.backlog_from(&|_| true).is_none());
        let threads = || label.install(rayon::current_num_threads);
        wait_until("labelling has all threads while nobody trains", || threads() == 2);
        control.set_paused(true);
        append(&mut writer, &mixture(400), 8);
        let durable = writer.reader().durable().end();
        control.set_paused(false);
        let has_backlog =
            || trunk.progress.backlog_from(&|_| true).is_some_and(|from| from > SequenceNumber(0) && from < durable);
        wait_until("what the release has not read is a backlog", has_backlog);
        assert_eq!(trunk.wait_for_end().state, ReleaseState::Done);
        wait_until("nobody reads any more", || trunk.progress.backlog_from(&|_| true).is_none());
    });
}

#[test]
fn nothing_is_left_of_a_release_that_nobody_waits_for() {
    let scene = Scene::with_log(&mixture(40));
    let mut options = trunk(&scene, "state");
    options.train.until_step = Some(4);
    scene.run(&options, |_| ()).unwrap();
    let mut trainer = scene.open(&options).unwrap();
    let folders = ["given-up", "waited-for"].map(|name| options.state_dir.join("releases").join(name));
    let (requests_in, requests) = bounded(2);
    let (reply, answer) = bounded(1);
    let given_up = bounded(0).0;
    requests_in.send(Request::Branch { folder: folders[0].clone(), reply: given_up }).unwrap();
    requests_in.send(Request::Branch { folder: folders[1].clone(), reply }).unwrap();
    trainer.run(&StageControl::default(), &requests, &mut |_| ()).unwrap();
    assert_eq!(answer.recv_timeout(DEADLINE).unwrap().unwrap().step, 4);
    assert_eq!(folders.map(|folder| folder.exists()), [false, true]);
}

#[test]
fn a_release_whose_end_cannot_be_written_down_keeps_the_next_from_beginning() {
    let scene = Scene::with_log(&mixture(40));
    let options = trunk(&scene, "state");
    let (state, blocked) = (options.state_dir.clone(), AtomicBool::new(false));
    // As a full disk would: what is to be replaced is a folder that is not empty.
    let block: Report = Arc::new(move |event, _| {
        if let Event::Release(status) = event
            && !blocked.swap(true, Ordering::Relaxed)
        {
            let file = state.join("releases").join(&status.name).join("release.json");
            fs::rename(&file, file.with_extension("kept")).unwrap();
            fs::create_dir_all(file.join("in-the-way")).unwrap();
        }
    });
    let file = |name: &str| options.state_dir.join("releases").join(name).join("release.json");
    beside(&options, &scene.reader(), &StageControl::default(), &block, |trunk| {
        trunk.wait_for_checkpoint(3);
        trunk.releases.begin(2, None).unwrap();
        let first = trunk.wait_for_end();
        assert_eq!(first.state, ReleaseState::Done);
        let error = trunk.releases.begin(2, None).unwrap_err();
        assert!(matches!(error, ReleaseError::EndNotWritten { .. }), "{error}");
        assert!(error.to_string().contains(&first.name), "{error}");
        let path = file(&first.name);
        fs::remove_dir_all(&path).unwrap();
        fs::rename(path.with_extension("kept"), &path).unwrap();
        trunk.releases.begin(1 << 40, None).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains("\"done\""), "one is running at a time: {text}");
        trunk.control.stop();
    });
}

#[test]
fn a_release_counts_its_own_skipped_steps_alone() {
    // German alone: a copy an example, a window a batch. The trunk's checkpoint is written after a step that was skipped.
    for (poisoned, rollbacks) in [(3..=5, 0), (3..=6, 1)] {
        let examples: Vec<Example> =
            (0..60).map(|at| Example { poisoned: poisoned.contains(&(at / 4 + 1)), ..example("de") }).collect();
        let scene = Scene::with_log(&examples);
        let mut options = trunk(&scene, "state");
        (options.train.shuffle_examples, options.train.batch_examples) = (4, 4);
        options.train.until_step = Some(3);
        scene.run(&options, |_| ()).unwrap();
        options.train.steps = Some(3);
        let control = StageControl::default();
        control.set_paused(true);
        let (ended, _) = beside(&options, &scene.reader(), &control, &quiet(), |trunk| {
            trunk.releases.begin(5, None).unwrap();
            control.set_paused(false);
            trunk.wait_for_end()
        });
        assert_eq!((ended.state, ended.step), (ReleaseState::Done, 5), "{:?}", ended.error);
        let journal = fs::read_to_string(options.state_dir.join("releases/step-3/journal")).unwrap();
        assert_eq!(journal.matches("\"event\":\"rollback\"").count(), rollbacks, "{journal}");
    }
}

#[test]
fn a_release_need_not_wait_for_an_evaluation() {
    let scene = Scene::new();
    let mut writer = scene.writer();
    append(&mut writer, &mixture(8), 8);
    let mut options = trunk(&scene, "state");
    (options.train.steps, options.inputs) = (Some(1), inputs().into());
    let mut trainer = Trainer::open(options, writer.reader(), Arc::default(), &Registry::new()).unwrap();
    let ((requests_in, requests), (reply, answer)) = (bounded(1), bounded(1));
    let (mut more, mut answered_meanwhile) = (Some((writer, reply)), None);
    let mut note = |event| match event {
        Event::Waiting { .. } => {
            // The log grows at once, so the next thing that is done is the evaluation before the first step.
            if let Some((mut writer, reply)) = more.take() {
                append(&mut writer, &mixture(40), 8);
                append_ends(&mut writer);
                requests_in.send(Request::Branch { folder: scene.path("release"), reply }).unwrap();
            }
        }
        Event::Evaluation(report) if report.step == 0 => answered_meanwhile = Some(answer.len() == 1),
        _ => {}
    };
    trainer.run(&StageControl::default(), &requests, &mut note).unwrap();
    assert_eq!(answered_meanwhile, Some(true));
    let reason = answer.recv().unwrap().unwrap_err();
    assert!(reason.contains("holds no checkpoint yet"), "{reason}");
}
