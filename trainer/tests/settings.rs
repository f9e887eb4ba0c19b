//! Settings that change from one start to the next, and while training goes on: log, journal and seed determine every step all the same.
#![allow(clippy::unwrap_used)]

mod scene;

use crossbeam::channel::{bounded, unbounded};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use scene::{Example, Scene, checkpoint, copy_folder, example, metrics, mixture, write_log};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::os::fd::AsRawFd;
use store::TAIL_SAMPLES_KEY;
use store::stage::StageControl;
use trainer::{
    Copies, EvaluationOptions, Event, KdTarget, LaterTarget, LossNorm, Outcome, Request, Schedule, Settings, Ticket,
    TrainerError, TrainerOptions,
};

/// Entries of the journal that hold settings.
fn entries(options: &TrainerOptions) -> Vec<Value> {
    let text = fs::read_to_string(options.state_dir.join("journal")).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines.filter(|line| line["event"] == "settings").collect()
}

/// Trains once more, from the start, from log and journal alone: the weights after `step` must be the same, and nothing more be noted.
#[track_caller]
fn check_replay(scene: &Scene, options: &TrainerOptions, step: u64) {
    let mut replay = options.clone();
    replay.state_dir = scene.path(&format!("{}-replay", options.state_dir.file_name().unwrap().to_str().unwrap()));
    replay.train.until_step = Some(step);
    fs::create_dir(&replay.state_dir).unwrap();
    fs::copy(options.state_dir.join("journal"), replay.state_dir.join("journal")).unwrap();
    scene.run(&replay, |_| ()).unwrap();
    assert!(checkpoint(&options.state_dir, step) == checkpoint(&replay.state_dir, step), "other weights");
    let journals = [options, &replay].map(|options| fs::read(options.state_dir.join("journal")).unwrap());
    assert!(journals[0] == journals[1], "the replay noted something else");
}

#[test]
fn a_sampled_tail_is_not_tempered() {
    let later =
        |kd_temperature| Some(LaterTarget { kd_target: KdTarget::Ghost, kd_temperature, from_step: 3, blend_steps: 0 });
    for (samples, kd_temperature, kd_target_later, is_refused) in [
        ("0", 2.0, later(0.5), false),
        ("2", 1.0, None, false),
        ("2", 1.0, later(1.0), false),
        ("2", 2.0, None, true),
        ("2", 0.5, later(1.0), true),
        ("2", 1.0, later(2.0), true),
    ] {
        let scene = Scene::new();
        let settings = BTreeMap::from([(TAIL_SAMPLES_KEY.to_owned(), samples.to_owned())]);
        write_log(scene.writer_under(settings, 1 << 20), &mixture(16));
        let mut options = scene.options("state");
        (options.train.kd_temperature, options.train.kd_target_later) = (kd_temperature, kd_target_later);
        let opened = scene.open(&options).map(drop).map_err(|error| error.to_string());
        match opened {
            Ok(()) => assert!(!is_refused, "{samples} {kd_temperature} {kd_target_later:?}"),
            Err(error) => assert!(is_refused && error.contains("store.tail_samples"), "{error}"),
        }
        // Refused before anything is written.
        assert_eq!(options.state_dir.exists(), !is_refused);
    }
}

#[test]
fn settings_may_differ_from_start_to_start() {
    let scene = Scene::with_log(&mixture(60));
    let mut options = scene.options("state");
    options.train.until_step = Some(3);
    scene.run(&options, |_| ()).unwrap();
    type Change = fn(&mut TrainerOptions);
    let changes: [(u64, Change); 4] = [
        (4, |options| options.train.learning_rate = 3e-2),
        // In the middle of a window, which is formed again as it was.
        (5, |options| (options.alpha, options.train.shuffle_examples) = (0.2, 5)),
        (7, |options| (options.train.copies, options.train.batch_examples) = (Copies::Best, 3)),
        (9, |options| (options.train.loss_norm, options.train.weight_decay) = (LossNorm::Language, 0.3)),
    ];
    for (until, change) in changes {
        change(&mut options);
        options.train.until_step = Some(until);
        scene.run(&options, |_| ()).unwrap();
    }
    let noted: Vec<u64> = entries(&options).iter().map(|entry| entry["step"].as_u64().unwrap()).collect();
    assert_eq!(noted, [0, 3, 4, 5, 7]);
    check_replay(&scene, &options, 9);
    // The settings did matter.
    let first = scene.options("first");
    scene.run(&first, |_| ()).unwrap();
    assert!(checkpoint(&options.state_dir, 9) != checkpoint(&first.state_dir, 9));
}

/// Runs to the end, and after step 5 asks for `wanted`. Returns the answer.
fn run_and_change(
    scene: &Scene,
    options: &TrainerOptions,
    wanted: &TrainerOptions,
    mut events: impl FnMut(&Event),
) -> Result<u64, String> {
    let (requests_in, requests) = unbounded();
    let (reply, answer) = bounded(1);
    let mut reply = Some(reply);
    let mut trainer = scene.open(options).unwrap();
    let outcome = trainer.run(&StageControl::default(), &requests, &mut |event| {
        if matches!(&event, Event::Step(report) if report.step == 5)
            && let Some(reply) = reply.take()
        {
            let settings = Box::new(Settings::of(wanted));
            let evaluation = wanted.evaluation.clone();
            let ticket = Ticket::default();
            requests_in.send(Request::Change { settings, evaluation, ticket, reply }).unwrap();
        }
        events(&event);
    });
    assert_eq!(outcome.unwrap(), Outcome::Finished);
    answer.recv().unwrap()
}

#[test]
fn settings_change_while_training_goes_on_and_a_kill_changes_nothing() {
    let scene = Scene::with_log(&mixture(60));
    let options = scene.options("state");
    let mut wanted = options.clone();
    (wanted.alpha, wanted.train.learning_rate, wanted.train.lambda_end) = (0.1, 5e-2, 0.4);
    (wanted.train.checkpoint_every_steps, wanted.train.keep_checkpoints) = (2, 9);
    wanted.evaluation = EvaluationOptions { every_steps: 1, max_examples: 3 };
    let mut kills = Vec::new();
    let changed = run_and_change(&scene, &options, &wanted, |event| {
        if matches!(event, Event::Step(report) if report.step > 5) {
            kills.push(scene.path(&format!("killed-{}", kills.len())));
            copy_folder(&options.state_dir, kills.last().unwrap());
        }
    });
    assert_eq!(changed, Ok(5));
    let noted: Vec<(u64, f64)> = entries(&options)
        .iter()
        .map(|entry| (entry["step"].as_u64().unwrap(), entry["learning_rate"].as_f64().unwrap()))
        .collect();
    assert_eq!(noted, [(0, 1e-2), (5, 5e-2)]);

    let lines = metrics(&options.state_dir);
    let rate = |step: u64| {
        let line = lines.iter().find(|line| line["step"] == step && line["learning_rate"].is_number()).unwrap();
        line["learning_rate"].as_f64().unwrap()
    };
    // The linear schedule, to its end after step 9: of the one peak, then of the other.
    let linear = |peak: f64, step: u64| trainer::schedule::learning_rate(step - 1, peak, 2, 9);
    for step in 1..=9 {
        assert_eq!(rate(step), linear(if step <= 5 { 1e-2 } else { 5e-2 }, step), "step {step}");
    }
    let evaluated =
        |step: u64| lines.iter().filter(|line| line["step"] == step && line["evaluation"].is_object()).count();
    assert_eq!([3, 4, 5, 6, 7, 9].map(evaluated), [0, 1, 1, 1, 1, 1], "the new interval holds from the next step on");
    assert!(
        options.state_dir.join("checkpoints/step-8").is_dir() && options.state_dir.join("checkpoints/step-6").is_dir()
    );

    assert_eq!(kills.len(), 4);
    for killed in kills {
        let mut again = wanted.clone();
        again.state_dir = killed;
        assert_eq!(scene.run(&again, |_| ()).unwrap(), Outcome::Finished);
        assert!(checkpoint(&again.state_dir, 9) == checkpoint(&options.state_dir, 9));
        assert_eq!(entries(&again), entries(&options));
    }
    wanted.state_dir = options.state_dir;
    check_replay(&scene, &wanted, 9);
}

#[test]
fn what_needs_a_restart_is_refused_and_changes_nothing() {
    let scene = Scene::with_log(&mixture(60));
    let options = scene.options("state");
    let mut wanted = options.clone();
    (wanted.train.batch_examples, wanted.train.learning_rate) = (3, 5e-2);
    let refused = run_and_change(&scene, &options, &wanted, |_| ());
    assert!(refused.unwrap_err().contains("change with a restart alone"));
    assert_eq!(entries(&options).len(), 1);
    let whole = scene.options("whole");
    scene.run(&whole, |_| ()).unwrap();
    assert!(checkpoint(&options.state_dir, 9) == checkpoint(&whole.state_dir, 9));
}

#[test]
fn a_change_that_was_withdrawn_is_not_made() {
    let scene = Scene::with_log(&mixture(60));
    let options = scene.options("state");
    let mut wanted = options.clone();
    wanted.train.learning_rate = 5e-2;
    let (requests_in, requests) = unbounded();
    let ((reply, answer), ticket) = (bounded(1), Ticket::default());
    let (settings, evaluation) = (Box::new(Settings::of(&wanted)), wanted.evaluation);
    requests_in.send(Request::Change { settings, evaluation, ticket: ticket.clone(), reply }).unwrap();
    assert!(ticket.clone().withdraw());
    scene.open(&options).unwrap().run(&StageControl::default(), &requests, &mut |_| ()).unwrap();
    assert!(answer.recv().is_err(), "it was answered");
    assert_eq!(entries(&options).len(), 1);
    assert!(!ticket.take() && !ticket.withdraw());
}

#[test]
fn settings_that_cannot_be_noted_end_training_before_the_next_step() {
    let scene = Scene::with_log(&mixture(60));
    let options = scene.options("state");
    let mut wanted = options.clone();
    wanted.train.learning_rate = 5e-2;
    // A journal to which, from some moment on, nothing can be written.
    let journal = memfd_create("journal", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    fs::create_dir(&options.state_dir).unwrap();
    let path = format!("/proc/self/fd/{}", journal.as_raw_fd());
    std::os::unix::fs::symlink(path, options.state_dir.join("journal")).unwrap();
    let (requests_in, requests) = unbounded();
    let (reply, answer) = bounded(1);
    let mut last = 0;
    let mut events = |event: Event| {
        let Event::Step(report) = event else { return };
        last = report.step;
        if report.step == 5 {
            fcntl_add_seals(&journal, SealFlags::GROW | SealFlags::WRITE).unwrap();
            let (settings, evaluation) = (Box::new(Settings::of(&wanted)), wanted.evaluation.clone());
            let request = Request::Change { settings, evaluation, ticket: Ticket::default(), reply: reply.clone() };
            requests_in.send(request).unwrap();
        }
    };
    let outcome = scene.open(&options).unwrap().run(&StageControl::default(), &requests, &mut events);
    assert!(matches!(outcome, Err(TrainerError::Io { .. })), "{outcome:?}");
    assert!(answer.recv().unwrap().unwrap_err().contains("cannot append to"));
    assert_eq!(last, 5, "a step was made that the journal may say something else of");
    assert!(!options.state_dir.join("checkpoints/step-5").exists());
}

#[test]
fn a_start_from_an_earlier_checkpoint_under_other_settings_takes_the_place_of_later_ones() {
    let scene = Scene::with_log(&mixture(60));
    let mut options = scene.options("state");
    options.train.keep_checkpoints = 9;
    let mut later = options.clone();
    later.train.learning_rate = 5e-2;
    run_and_change(&scene, &options, &later, |_| ()).unwrap();
    // As if the daemon had been killed before the checkpoints after step 3.
    for step in [6, 9] {
        fs::remove_dir_all(options.state_dir.join(format!("checkpoints/step-{step}"))).unwrap();
    }
    options.train.learning_rate = 2e-2;
    scene.run(&options, |_| ()).unwrap();
    let noted: Vec<u64> = entries(&options).iter().map(|entry| entry["step"].as_u64().unwrap()).collect();
    assert_eq!(noted, [0, 5, 3]);
    check_replay(&scene, &options, 9);
}

#[test]
fn a_journal_of_an_earlier_version_has_no_settings() {
    let scene = Scene::with_log(&mixture(60));
    let whole = scene.options("whole");
    scene.run(&whole, |_| ()).unwrap();
    let mut options = scene.options("state");
    options.train.until_step = Some(5);
    scene.run(&options, |_| ()).unwrap();
    let journal = options.state_dir.join("journal");
    let text = fs::read_to_string(&journal).unwrap();
    let kept: String = text.split_inclusive('\n').filter(|line| !line.contains("\"event\":\"settings\"")).collect();
    fs::write(&journal, kept).unwrap();
    options.train.until_step = None;
    scene.run(&options, |_| ()).unwrap();
    assert_eq!(entries(&options).len(), 1);
    assert!(checkpoint(&options.state_dir, 9) == checkpoint(&whole.state_dir, 9));
    check_replay(&scene, &options, 9);
}

#[test]
fn training_goes_back_under_the_latest_settings() {
    // Windows of one batch; those of steps 7 to 9 are poisoned, and so it goes back to step 6, which was under others.
    let poisoned = |batch| matches!(batch, 7..=9);
    let examples: Vec<Example> =
        (0..60).map(|at| Example { poisoned: poisoned(at / 4 + 1), ..example("de") }).collect();
    let scene = Scene::with_log(&examples);
    let mut options = scene.options("state");
    (options.train.shuffle_examples, options.train.batch_examples) = (4, 4);
    options.train.checkpoint_every_steps = 4;
    let mut wanted = options.clone();
    wanted.train.learning_rate = 5e-2;
    assert_eq!(run_and_change(&scene, &options, &wanted, |_| ()), Ok(5));
    let text = fs::read_to_string(options.state_dir.join("journal")).unwrap();
    assert!(text.contains("\"from_step\":9,\"to_step\":4"), "{text}");
    let lines = metrics(&options.state_dir);
    let fifth = lines.iter().rfind(|line| line["step"] == 5 && line["learning_rate"].is_number()).unwrap();
    assert_eq!(fifth["learning_rate"].as_f64(), Some(trainer::schedule::learning_rate(4, 5e-2, 2, 9)));
}

#[test]
fn a_checkpoint_that_another_schedule_has_written_is_gone_back_to() {
    // Windows of one batch; those of steps 5 to 7 are poisoned.
    let poisoned = |batch| matches!(batch, 5..=7);
    let examples: Vec<Example> =
        (0..60).map(|at| Example { poisoned: poisoned(at / 4 + 1), ..example("de") }).collect();
    let scene = Scene::with_log(&examples);
    let mut options = scene.options("state");
    (options.train.shuffle_examples, options.train.batch_examples) = (4, 4);
    (options.train.checkpoint_every_steps, options.train.keep_checkpoints) = (2, 1);
    options.train.until_step = Some(4);
    scene.run(&options, |_| ()).unwrap();
    // 4 is none of its steps.
    options.train.checkpoint_every_steps = 6;
    options.train.until_step = None;
    assert_eq!(scene.run(&options, |_| ()).unwrap(), Outcome::Finished);
    let text = fs::read_to_string(options.state_dir.join("journal")).unwrap();
    assert!(text.contains("\"from_step\":7,\"to_step\":4"), "{text}");
}

#[test]
fn what_cannot_be_trained_with_is_refused_at_the_start() {
    let scene = Scene::with_log(&mixture(40));
    let mut options = scene.options("state");
    options.train.schedule = Schedule::Linear;
    options.train.steps = None;
    assert!(matches!(scene.open(&options).err().unwrap(), TrainerError::Configuration(_)));
    assert!(!options.state_dir.join("journal").exists());
}
