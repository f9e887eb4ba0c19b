//! An interrupted run reaches the same weights, bit for bit, as one that was not.
#![allow(clippy::unwrap_used)]

mod scene;

use crossbeam::channel::{bounded, unbounded};
use scene::{Example, Scene, append, append_ends, checkpoint, copy_folder, example, inputs, metrics, mixture};
use sha2::{Digest, Sha256};
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};
use store::stage::StageControl;
use trainer::{Event, Input, Outcome, Request, Trainer, TrainerError, TrainerOptions, TrainerProgress};

/// It runs in a thread of its own.
const _: fn() = || {
    fn is_send<T: Send>() {}
    is_send::<Trainer>();
};

#[test]
fn stopped_and_reopened() {
    let scene = Scene::with_log(&mixture(40));
    let whole = scene.options("whole");
    assert_eq!(scene.run(&whole, |_| ()).unwrap(), Outcome::Finished);

    let mut parts = scene.options("parts");
    parts.pool = Some(model::RolePool::alone("train", 2).unwrap());
    for until in [3, 4, 7] {
        parts.train.until_step = Some(until);
        assert_eq!(scene.run(&parts, |_| ()).unwrap(), Outcome::Stopped { step: until });
    }
    // Told to stop in the middle of a step: the step is finished.
    parts.train.until_step = None;
    let (control, requests) = (StageControl::default(), scene::no_requests());
    let stop_at_8 = control.clone();
    let mut events = |event| {
        if matches!(&event, Event::Step(report) if report.step == 8) {
            stop_at_8.stop();
        }
    };
    let outcome = scene.open(&parts).unwrap().run(&control, &requests, &mut events);
    assert_eq!(outcome.unwrap(), Outcome::Stopped { step: 8 });
    assert_eq!(scene.run(&parts, |_| ()).unwrap(), Outcome::Finished);
    assert_same(&whole, &parts, 9);
    // And once more: nothing is left to do.
    let mut reports = 0;
    let count_reports = |event| reports += usize::from(matches!(event, Event::Step(_) | Event::Evaluation(_)));
    assert_eq!(scene.run(&parts, count_reports).unwrap(), Outcome::Finished);
    assert_eq!(reports, 0);
    assert_same(&whole, &parts, 9);
}

#[test]
fn killed_at_any_event() {
    let scene = Scene::with_log(&mixture(40));
    check_kills(&scene, &scene.options("whole"));
}

#[test]
fn killed_at_any_event_around_examples_that_cannot_be_learned() {
    // German alone: a copy an example, a window a batch. Batches 2 to 4, then 6, are poisoned.
    let poisoned = |batch| matches!(batch, 2..=4 | 6);
    let examples: Vec<Example> =
        (0..48).map(|at| Example { poisoned: poisoned(at / 4 + 1), ..example("de") }).collect();
    let scene = Scene::with_log(&examples);
    let mut options = scene.options("whole");
    (options.train.shuffle_examples, options.train.batch_examples) = (4, 4);
    check_kills(&scene, &options);

    let journal = fs::read_to_string(scene.path("whole/journal")).unwrap();
    let count = |what: &str| journal.matches(what).count();
    assert_eq!((count("\"event\":\"skipped_step\""), count("\"event\":\"rollback\"")), (4, 1), "{journal}");
    let lines = metrics(&options.state_dir);
    let skipped: Vec<u64> =
        lines.iter().filter(|line| line["skipped"] == true).map(|line| line["step"].as_u64().unwrap()).collect();
    // The return to the beginning left out batches 2 to 4, so batch 6 is now step 3.
    assert_eq!(skipped, [3]);
}

/// Runs `options` to the end, keeping what a crash at each event would leave, and goes on from each of these.
fn check_kills(scene: &Scene, options: &TrainerOptions) {
    let mut kills = 0;
    let keep = |_| {
        copy_folder(&options.state_dir, &scene.path(&format!("killed-{kills}")));
        kills += 1;
    };
    assert_eq!(scene.run(options, keep).unwrap(), Outcome::Finished);
    assert!(kills > 15, "only {kills} events");
    for kill in 0..kills {
        let mut killed = options.clone();
        killed.state_dir = scene.path(&format!("killed-{kill}"));
        // What a crash in the middle of a write leaves.
        fs::create_dir(killed.state_dir.join("checkpoints/.partial-step-5")).unwrap();
        let metrics = killed.state_dir.join("metrics.jsonl");
        fs::write(&metrics, [fs::read(&metrics).unwrap(), b"{\"step\":".to_vec()].concat()).unwrap();
        assert_eq!(scene.run(&killed, |_| ()).unwrap(), Outcome::Finished, "kill {kill}");
        assert_same(options, &killed, options.train.steps.unwrap());
        assert!(!killed.state_dir.join("checkpoints/.partial-step-5").exists());
    }
}

#[test]
fn a_growing_log_is_waited_for() {
    let examples = mixture(48);
    let scene = Scene::with_log(&examples);
    let whole = scene.options("whole");
    scene.run(&whole, |_| ()).unwrap();

    let growing = Scene::new();
    let mut writer = growing.writer();
    append(&mut writer, &examples[..8], 8);
    let mut options = growing.options("state");
    options.inputs = inputs().into();
    let progress: Arc<TrainerProgress> = Arc::default();
    let registry = prometheus::Registry::new();
    let mut trainer = Trainer::open(options.clone(), writer.reader(), Arc::clone(&progress), &registry).unwrap();
    let (mut waits, mut next) = (0, 8);
    let outcome = scene::run(&mut trainer, |event| {
        if matches!(event, Event::Waiting { .. }) {
            waits += 1;
            let language = progress.waiting_for().expect("it waits");
            assert!(progress.backlog_from(&|comes| comes == language).is_none());
            assert!(progress.backlog_from(&|_| false).is_some(), "what comes instead is a backlog");
            assert!(progress.needed_from.load(Ordering::Relaxed) <= next as u64);
            let end = examples.len().min(next + 8);
            append(&mut writer, &examples[next..end], 8);
            next = end;
            if next == examples.len() {
                append_ends(&mut writer);
            }
        }
    });
    assert_eq!(outcome.unwrap(), Outcome::Finished);
    assert!(waits > 1, "it never waited");
    assert!(progress.waiting_for().is_none());
    assert!(progress.needed_from.load(Ordering::Relaxed) > 8, "what was read is no longer needed");
    assert!(checkpoint(&whole.state_dir, 9) == checkpoint(&options.state_dir, 9), "the students differ");
}

/// Otherwise the log would grow without end while training is paused.
#[test]
fn what_comes_while_a_waiting_trainer_is_paused_is_a_backlog() {
    let scene = Scene::new();
    let mut writer = scene.writer();
    append(&mut writer, &mixture(8), 8);
    let mut options = scene.options("state");
    options.inputs = inputs().into();
    let progress: Arc<TrainerProgress> = Arc::default();
    let mut trainer =
        Trainer::open(options, writer.reader(), Arc::clone(&progress), &prometheus::Registry::new()).unwrap();
    let control = StageControl::default();
    thread::scope(|scope| {
        let running = scope.spawn(|| {
            let outcome = trainer.run(&control, &scene::no_requests(), &mut |event| {
                if matches!(event, Event::Waiting { .. }) {
                    control.set_paused(true);
                }
            });
            outcome.unwrap()
        });
        let limit = Instant::now() + Duration::from_secs(60);
        let came = |is_so: &dyn Fn() -> bool| {
            while !is_so() && Instant::now() < limit && !running.is_finished() {
                thread::yield_now();
            }
            is_so()
        };
        let behind = came(&|| control.paused() && progress.backlog_from(&|_| true).is_some());
        control.set_paused(false);
        let waits = came(&|| progress.backlog_from(&|_| true).is_none());
        control.stop();
        assert!(behind && waits, "a backlog: {behind}; waits again: {waits}");
    });
}

#[test]
fn stops_and_requests_are_attended_to_while_waiting() {
    let scene = Scene::new();
    let mut writer = scene.writer();
    append(&mut writer, &mixture(8), 8);
    let mut options = scene.options("state");
    options.inputs = inputs().into();
    let mut trainer =
        Trainer::open(options.clone(), writer.reader(), Arc::default(), &prometheus::Registry::new()).unwrap();
    let control = StageControl::default();
    let (requests, received) = unbounded();
    let (reply, answer) = bounded(2);
    let outcome = trainer.run(&control, &received, &mut |event| match event {
        Event::Waiting { .. } => {
            requests.send(Request::Checkpoint { reply: reply.clone() }).unwrap();
            requests
                .send(Request::Export { out: scene.path("out"), languages: Vec::new(), reply: reply.clone() })
                .unwrap();
        }
        Event::Checkpoint { .. } => control.stop(),
        _ => {}
    });
    let Outcome::Stopped { step } = outcome.unwrap() else { panic!("it did not stop") };
    assert_eq!(answer.recv().unwrap().unwrap(), options.state_dir.join(format!("checkpoints/step-{step}")));
    assert_eq!(answer.recv().unwrap().unwrap(), scene.path("out"));
    assert!(scene.path("out/model.safetensors").is_file());
}

#[test]
fn requests_are_attended_to_while_another_language_streams_in() {
    let scene = Scene::new();
    let mut writer = scene.writer();
    append(&mut writer, &mixture(8), 8);
    let mut options = scene.options("state");
    options.inputs = inputs().into();
    let mut trainer =
        Trainer::open(options.clone(), writer.reader(), Arc::default(), &prometheus::Registry::new()).unwrap();
    let (control, (requests, received)) = (StageControl::default(), unbounded());
    let (reply, answer) = unbounded();
    thread::scope(|scope| {
        let running = scope.spawn(|| {
            let outcome = trainer.run(&control, &received, &mut |event| {
                if matches!(&event, Event::Waiting { language } if language == "de") {
                    requests.send(Request::Checkpoint { reply: reply.clone() }).unwrap();
                }
            });
            outcome.unwrap()
        });
        // Without a pause, so that no wait for more lasts.
        let limit = Instant::now() + Duration::from_secs(60);
        let mut answered = None;
        while answered.is_none() && Instant::now() < limit && !running.is_finished() {
            append(&mut writer, &[example("en")], 1);
            answered = answer.try_recv().ok();
        }
        control.stop();
        assert!(answered.expect("nobody attends to requests").is_ok());
    });
}

#[test]
fn a_damaged_checkpoint_is_passed_over() {
    let scene = Scene::with_log(&mixture(40));
    let whole = scene.options("whole");
    scene.run(&whole, |_| ()).unwrap();
    let mut options = scene.options("state");
    options.train.until_step = Some(7);
    scene.run(&options, |_| ()).unwrap();
    options.train.until_step = None;
    for file in ["model.safetensors", "optimizer.safetensors", "trainer.json", "config.json", "manifest.json"] {
        let damaged = options.state_dir.join("checkpoints/step-7").join(file);
        let mut bytes = fs::read(&damaged).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0x20;
        let mut copy = options.clone();
        copy.state_dir = scene.path(&format!("damaged-{file}"));
        copy_folder(&options.state_dir, &copy.state_dir);
        fs::write(copy.state_dir.join("checkpoints/step-7").join(file), bytes).unwrap();
        let mut resumed = None;
        let note = |event| {
            if let Event::Resumed { step, .. } = event {
                resumed = Some(step);
            }
        };
        assert_eq!(scene.run(&copy, note).unwrap(), Outcome::Finished);
        assert_eq!(resumed, Some(6), "{file}");
        assert_same(&whole, &copy, 9);
        // With none left, it does not begin anew.
        for step in fs::read_dir(copy.state_dir.join("checkpoints")).unwrap() {
            fs::remove_file(step.unwrap().path().join(file)).unwrap();
        }
        assert!(matches!(scene.run(&copy, |_| ()), Err(TrainerError::Corrupt { .. })), "{file}");
    }
}

#[test]
fn a_checkpoint_of_another_run_is_refused() {
    let scene = Scene::with_log(&mixture(40));
    let mut options = scene.options("state");
    options.train.until_step = Some(3);
    scene.run(&options, |_| ()).unwrap();
    let refused = |change: &dyn Fn(&mut TrainerOptions)| {
        let mut options = options.clone();
        change(&mut options);
        scene.open(&options).err().unwrap().to_string()
    };
    let message = refused(&|options| options.seed = 8);
    assert!(message.contains("run.seed was 7, is 8") && message.contains("checkpoints/step-3"), "{message}");
    let message = refused(&|options| options.student.embedding_size = 4);
    assert!(message.contains("student.embedding_size was 8, is 4"), "{message}");
    let message = refused(&|options| options.student.dropout = 0.2);
    assert!(message.contains("student.dropout was 0.1, is 0.2"), "{message}");
    let message = refused(&|options| options.teachers[1].labels = false);
    assert!(message.contains("teacher[second].labels was true, is false"), "{message}");
    let message = refused(&|options| options.teachers.reverse());
    assert!(message.contains("teacher 1 is `first` in the log, `second` here"), "{message}");
}

/// Earlier versions did not say that in checkpoints; what holds at the next start is kept from then on.
#[test]
fn a_checkpoint_may_not_know_dropout_yet() {
    let scene = Scene::with_log(&mixture(40));
    let mut options = scene.options("state");
    options.train.until_step = Some(3);
    scene.run(&options, |_| ()).unwrap();
    let folder = options.state_dir.join("checkpoints/step-3");
    let read =
        |name: &str| -> serde_json::Value { serde_json::from_slice(&fs::read(folder.join(name)).unwrap()).unwrap() };
    let (mut state, mut manifest) = (read("trainer.json"), read("manifest.json"));
    let identity = state["identity"].as_object_mut().unwrap();
    identity.retain(|key, _| key != "student.dropout" && !key.starts_with("teacher["));
    assert!(identity.contains_key("student.layers"));
    let text = serde_json::to_vec(&state).unwrap();
    let hash: String = Sha256::digest(&text).iter().map(|byte| format!("{byte:02x}")).collect();
    manifest["files"]["trainer.json"] = serde_json::json!({"bytes": text.len(), "sha256": hash});
    fs::write(folder.join("trainer.json"), text).unwrap();
    fs::write(folder.join("manifest.json"), manifest.to_string()).unwrap();
    options.train.until_step = Some(4);
    scene.run(&options, |_| ()).unwrap();
    options.student.dropout = 0.2;
    let message = scene.open(&options).err().unwrap().to_string();
    assert!(message.contains("student.dropout was 0.1, is 0.2") && message.contains("checkpoints/step-4"), "{message}");
}

#[test]
fn a_shorter_log_is_refused() {
    let scene = Scene::with_log(&mixture(40));
    let mut options = scene.options("state");
    options.train.until_step = Some(3);
    scene.run(&options, |_| ()).unwrap();
    let shorter = Scene::with_log(&mixture(8));
    copy_folder(&options.state_dir, &shorter.path("state"));
    let required = trainer::required_position(&shorter.path("state")).unwrap();
    assert!(required > shorter.reader().durable().end());
    let error = shorter.open(&shorter.options("state")).err().unwrap();
    assert!(matches!(error, TrainerError::LogBehind { .. }), "{error}");
}

#[test]
fn old_checkpoints_are_removed() {
    let scene = Scene::with_log(&mixture(40));
    let mut options = scene.options("state");
    for until in [4, 5, 7, 8] {
        options.train.until_step = Some(until);
        scene.run(&options, |_| ()).unwrap();
    }
    let steps = || -> Vec<u64> {
        let names = fs::read_dir(options.state_dir.join("checkpoints")).unwrap();
        let mut steps: Vec<u64> = names
            .map(|entry| entry.unwrap().file_name().to_str().unwrap().strip_prefix("step-").unwrap().parse().unwrap())
            .collect();
        steps.sort_unstable();
        steps
    };
    // The newest two, and the two that training would go back to.
    assert_eq!(steps(), [3, 6, 7, 8]);
}

#[test]
fn a_checkpoint_is_replaced_only_by_a_complete_one() {
    let scene = Scene::with_log(&mixture(40));
    let mut options = scene.options("state");
    options.train.until_step = Some(3);
    scene.run(&options, |_| ()).unwrap();
    let checkpoints = options.state_dir.join("checkpoints");
    let (checkpoint, replaced) = (checkpoints.join("step-3"), checkpoints.join(".replaced-step-3"));
    let stored = || fs::read(checkpoint.join("trainer.json")).unwrap();
    let before = stored();

    // An evaluation after the checkpoint makes it another one; its folder cannot be made, as a file is in the way.
    options.evaluation.every_steps = 3;
    let in_the_way = checkpoints.join(".partial-step-3");
    let error = scene.run(&options, |event| {
        if matches!(event, Event::Evaluation(_)) {
            fs::write(&in_the_way, "").unwrap();
        }
    });
    assert!(matches!(error, Err(TrainerError::Io { .. })));
    assert_eq!(stored(), before);
    fs::remove_file(&in_the_way).unwrap();

    // A crash between putting the old one aside and the new one in place.
    fs::rename(&checkpoint, &replaced).unwrap();
    let mut resumed = None;
    let note = |event| {
        if let Event::Resumed { step, .. } = event {
            resumed = Some(step);
        }
    };
    scene.run(&options, note).unwrap();
    assert_eq!(resumed, Some(3));
    assert_ne!(stored(), before);
    // A crash before the old one was removed.
    copy_folder(&checkpoint, &replaced);
    scene.open(&options).unwrap();
    assert!(checkpoint.exists() && !replaced.exists());
}

#[test]
fn a_checkpoint_that_does_not_work_is_not_gone_back_to_twice() {
    let scene = Scene::with_log(&mixture(300));
    let mut options = scene.options("state");
    (options.train.steps, options.evaluation.every_steps) = (Some(12), 0);
    options.train.until_step = Some(6);
    scene.run(&options, |_| ()).unwrap();
    scene::poison(&options.state_dir.join("checkpoints/step-6"));
    options.train.until_step = None;
    let mut resumed = Vec::new();
    let note = |event| {
        if let Event::Resumed { step, .. } = event {
            resumed.push(step);
        }
    };
    assert_eq!(scene.run(&options, note).unwrap(), Outcome::Finished);
    assert_eq!(resumed, [6, 6, 3]);
    let lines = metrics(&options.state_dir);
    assert!(lines.iter().all(|line| line["skipped"] != true), "all steps that count were made");
}

#[test]
fn a_new_corpus_is_waited_for_once_the_known_windows_are_used() {
    let scene = Scene::new();
    let mut writer = scene.writer();
    append(&mut writer, &mixture(40), 8);
    append_ends(&mut writer);
    let mut options = scene.options("state");
    options.inputs = inputs().into();
    options.train.until_step = Some(4);
    scene.run(&options, |_| ()).unwrap();
    let mut last = None;
    options.train.until_step = None;
    let more = Input { source: "more/en".to_owned(), language: "en".to_owned(), finite: true };
    options.inputs = inputs().into_iter().chain([more]).collect();
    let registry = prometheus::Registry::new();
    let mut trainer = Trainer::open(options, writer.reader(), Arc::default(), &registry).unwrap();
    let outcome = scene::run(&mut trainer, |event| match event {
        Event::Waiting { .. } => append(&mut writer, &[example("more/en"); 60], 60),
        Event::Resumed { step, evaluation } => last = Some((step, evaluation.unwrap().step)),
        _ => {}
    });
    assert_eq!(outcome.unwrap(), Outcome::Finished);
    assert_eq!(last, Some((4, 4)), "the last evaluation is told");
    let figures = registry.gather();
    assert!(figures.iter().any(|family| family.name() == "mergedistill_evaluation_loss_nats"));
}

/// The same weights, optimiser, and lines of `metrics.jsonl`.
fn assert_same(one: &TrainerOptions, other: &TrainerOptions, step: u64) {
    let name = |path: &Path| path.file_name().unwrap().to_string_lossy().into_owned();
    let (one, other) = (&one.state_dir, &other.state_dir);
    assert!(checkpoint(one, step) == checkpoint(other, step), "{} and {} differ", name(one), name(other));
    assert_eq!(metrics(one), metrics(other), "{} and {}", name(one), name(other));
}

/// Training with a teacher more, which begins after step 4, wherever a crash comes in; and the whole of it once more from the
/// journal alone.
#[test]
fn the_vocabulary_grows_after_the_step_that_the_journal_says() {
    let scene = Scene::with_log(&mixture(40));
    let mut first = scene.options("whole");
    first.train.until_step = Some(4);
    assert_eq!(scene.run(&first, |_| ()).unwrap(), Outcome::Stopped { step: 4 });
    let mut whole = first.clone();
    whole.train.until_step = None;
    whole.teachers.push(scene.third_teacher());
    let mut kills = 0;
    let keep = |_| {
        copy_folder(&whole.state_dir, &scene.path(&format!("killed-{kills}")));
        kills += 1;
    };
    assert_eq!(scene.run(&whole, keep).unwrap(), Outcome::Finished);
    assert!(kills > 8, "only {kills} events");
    let tokens = |state: &Path, step: u64| -> u64 {
        let path = state.join(format!("checkpoints/step-{step}/trainer.json"));
        let state: serde_json::Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        state["vocabulary_size"].as_u64().unwrap()
    };
    let grown = tokens(&whole.state_dir, 9);
    let check = |state: &str| {
        let options = TrainerOptions { state_dir: scene.path(state), ..whole.clone() };
        assert_eq!(scene.run(&options, |_| ()).unwrap(), Outcome::Finished, "{state}");
        assert!(checkpoint(&whole.state_dir, 9) == checkpoint(&options.state_dir, 9), "{state}: the students differ");
        assert_eq!(tokens(&options.state_dir, 9), grown, "{state}");
    };
    copy_folder(&scene.path("killed-0"), &scene.path("earlier"));
    for kill in 0..kills {
        check(&format!("killed-{kill}"));
    }
    // Without the checkpoint at which it grew: training goes back to the one before, which had fewer tokens.
    fs::remove_dir_all(scene.path("earlier/checkpoints/step-4")).unwrap();
    assert_eq!(tokens(&scene.path("earlier"), 3) + 1, grown);
    check("earlier");
    // From the start.
    fs::create_dir(scene.path("again")).unwrap();
    fs::copy(whole.state_dir.join("journal"), scene.path("again/journal")).unwrap();
    check("again");
    let journal = fs::read_to_string(scene.path("again/journal")).unwrap();
    assert_eq!(journal, fs::read_to_string(whole.state_dir.join("journal")).unwrap());
    assert_eq!(journal.matches("vocabulary_growth").count(), 1, "{journal}");
}
