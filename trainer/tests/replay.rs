//! A step that is made again is the one that was made, and its copies account for all of it.
#![allow(clippy::unwrap_used)]

mod scene;

use prometheus::Registry;
use scene::{Example, Scene, append, append_ends, copy_folder, example, mixture};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;
use store::log::Retention;
use trainer::replay::{Part, StepAccount};
use trainer::{
    Copies, CopyWeight, KdTarget, LambdaSchedule, LaterTarget, LossNorm, Outcome, Replay, ReplayOptions, Trainer,
    TrainerError, TrainerOptions,
};

/// Replays a step, with nothing but the state folder and the log.
fn replay_of(scene: &Scene, options: &TrainerOptions, wanted: &ReplayOptions) -> Result<StepAccount, TrainerError> {
    let options = TrainerOptions { teachers: Vec::new(), ..options.clone() };
    let log = scene.reader();
    let mut told = Vec::new();
    let replay = Replay::open(&options, &log, wanted)?;
    let steps = replay.plan().steps;
    let account = replay.run(&mut |done| told.push(done))?;
    assert_eq!(told, (1..=steps).collect::<Vec<_>>(), "progress");
    Ok(account)
}

fn replay(scene: &Scene, options: &TrainerOptions, step: u64) -> StepAccount {
    replay_of(scene, options, &ReplayOptions { step, ..ReplayOptions::default() }).unwrap()
}

/// What was recorded of the step is what was computed, and the copies account for all of it.
#[track_caller]
fn check(account: &StepAccount) {
    let comparison = account.comparison.as_ref().unwrap();
    assert!(comparison.equal && comparison.differs_from.is_none(), "{comparison:?}");
    assert!(comparison.checkpoint_agrees != Some(false), "the weights differ");
    check_sums(account);
}

#[track_caller]
fn check_sums(account: &StepAccount) {
    let figures = &account.figures;
    let close = |sum: f64, whole: f64| (sum - whole).abs() <= 2e-5 * whole.abs().max(1e-3);
    let sum = |of: &dyn Fn(&trainer::replay::CopyAccount) -> f64| account.examples.iter().map(of).sum::<f64>();
    // Sequences do not know of each other: losses are the same to the last bit, but for the order of the sum.
    assert!((sum(&|example| example.loss) - figures.loss).abs() < 1e-12 * figures.loss, "losses");
    assert!(close(sum(&|example| example.loss_share), 1.0), "shares of the loss");
    assert!(close(sum(&|example| example.projection), figures.grad_norm), "projections add up to the norm");
    assert!(account.examples.iter().all(|example| example.projection.abs() <= example.grad_norm * 1.00001));
    assert!(close(account.positions.iter().map(|position| position.loss).sum(), figures.loss), "positions");
    assert_eq!(account.positions.len() as u64, figures.masked_positions);
    for parts in [&account.sources, &account.teachers, &account.languages] {
        let sum = |of: &dyn Fn(&Part) -> f64| parts.iter().map(of).sum::<f64>();
        assert!(close(sum(&|part| part.loss), figures.loss) && close(sum(&|part| part.projection), figures.grad_norm));
        assert_eq!(parts.iter().map(|part| part.copies).sum::<u64>(), figures.copies);
    }
    assert!((1.0 / (figures.copies as f64)..=1.00001).contains(&account.alignment), "{}", account.alignment);
    let squares: f64 = account.parameters.iter().map(|group| group.grad_norm.powi(2)).sum();
    assert!(close(squares.sqrt(), figures.grad_norm), "parts of the student");
    assert!(account.examples.is_sorted_by(|one, other| one.projection.abs() >= other.projection.abs()));
    assert!(account.positions.is_sorted_by(|one, other| one.loss >= other.loss));
}

#[test]
fn every_step_is_what_it_was_and_is_accounted_for() {
    let scene = Scene::with_log(&mixture(40));
    let options = scene.options("state");
    assert_eq!(scene.run(&options, |_| ()).unwrap(), Outcome::Finished);
    for step in 1..=9 {
        let account = replay(&scene, &options, step);
        check(&account);
        // Two checkpoints are kept: steps 6 and 9.
        let from = (step > 6).then_some(6);
        assert_eq!((account.plan.checkpoint, account.plan.steps), (from, step - from.unwrap_or(0)));
        assert_eq!(account.plan.replayable, Some((1, 9)));
        assert!(account.figures.micro_batches > 1, "it is cut into micro-batches");
        assert_eq!(account.figures.copies, 5);
        assert!(account.plan.seconds.unwrap() > 0.0);
        assert_eq!(account.comparison.unwrap().checkpoint_agrees.is_some(), step == 6 || step == 9);
        let names: Vec<&str> = account.parameters.iter().map(|group| group.name.as_str()).collect();
        assert_eq!(names, ["embeddings", "layer 0", "head"]);
        let neighbours = account.neighbours.unwrap();
        assert_eq!(neighbours.steps, 8);
        assert!((0.5..2.0).contains(&neighbours.loss_ratio), "{neighbours:?}");
        for example in &account.examples {
            let entry = scene.reader().entry(store::SequenceNumber(example.sequence)).unwrap();
            let store::Payload::Record(record) = &entry.payload else { panic!("no record") };
            assert_eq!((&record.source, &record.document), (&example.source, &example.document));
            assert_eq!((example.span, example.masked_positions, example.weight), ((0, 40), 2, 1.0));
            assert!(example.labelled && ["first", "second"].contains(&&*example.teacher));
            assert_eq!(example.text.as_ref().unwrap().matches("[[w").count(), 2, "{:?}", example.text);
        }
        for position in &account.positions {
            let teacher_gold = (-f64::from(scene::TEACHER_LOSS)).exp();
            assert!((position.teacher_gold.unwrap() - teacher_gold).abs() < 1e-6);
            assert_eq!(position.teacher_guess.as_ref().unwrap().token, position.gold);
            assert!((position.student_gold.ln() + position.mlm).abs() < 1e-9);
            assert!(position.student.probability >= position.student_gold);
            assert_eq!(account.examples[position.example].sequence, position.sequence);
        }
    }
}

#[test]
fn whatever_a_step_is_made_of_is_accounted_for() {
    let scene = Scene::with_log(&mixture(40));
    let variants: [fn(&mut TrainerOptions); 6] = [
        |options| (options.train.loss_norm, options.train.copy_weight) = (LossNorm::Language, CopyWeight::Shared),
        |options| (options.train.kd_target, options.train.copies) = (KdTarget::GoldResidual, Copies::Best),
        |options| (options.train.kd_target, options.student.embedding_size) = (KdTarget::Ghost, 4),
        |options| (options.student.dropout, options.student.layers) = (0.0, 2),
        |options| options.train.micro_batch_tokens = 1000,
        // At steps 2 and 8 the one target and the mixture.
        |options| {
            options.train.kd_temperature = 0.5;
            options.train.lambda_schedule = LambdaSchedule::Cosine;
            let (kd_target, kd_temperature) = (KdTarget::GoldResidual, 2.0);
            let later = LaterTarget { kd_target, kd_temperature, from_step: 4, blend_steps: 5 };
            options.train.kd_target_later = Some(later);
        },
    ];
    for (number, change) in variants.into_iter().enumerate() {
        let mut options = scene.options(&format!("state-{number}"));
        change(&mut options);
        scene.run(&options, |_| ()).unwrap();
        for step in [2, 8] {
            check(&replay(&scene, &options, step));
        }
    }
}

#[test]
fn nothing_is_touched_and_a_torn_line_is_somebody_elses() {
    let scene = Scene::with_log(&mixture(40));
    let options = scene.options("state");
    scene.run(&options, |_| ()).unwrap();
    let append = |name: &str, torn: &[u8]| {
        let path = options.state_dir.join(name);
        fs::write(&path, [fs::read(&path).unwrap(), torn.to_vec()].concat()).unwrap();
    };
    append("journal", b"{\"event\":\"win");
    append("metrics.jsonl", b"{\"step\":");
    let before = files(&options.state_dir);
    check(&replay(&scene, &options, 5));
    assert_eq!(files(&options.state_dir), before);
}

/// Every file with its content and date.
fn files(folder: &Path) -> BTreeMap<String, (Vec<u8>, SystemTime)> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            let content = fs::read(&path).unwrap();
            found.insert(path.display().to_string(), (content, fs::metadata(&path).unwrap().modified().unwrap()));
        }
    }
    found
}

#[test]
fn settings_and_vocabulary_are_those_of_then() {
    let scene = Scene::with_log(&mixture(40));
    let mut first = scene.options("state");
    first.train.until_step = Some(4);
    scene.run(&first, |_| ()).unwrap();
    let mut then = first.clone();
    then.train.until_step = None;
    (then.train.learning_rate, then.train.batch_examples, then.train.clip_norm) = (3e-3, 4, 0.5);
    (then.alpha, then.train.shuffle_examples) = (0.3, 10);
    then.teachers.push(scene.third_teacher());
    assert_eq!(scene.run(&then, |_| ()).unwrap(), Outcome::Finished);
    // From the start, whatever is configured now.
    fs::remove_dir_all(then.state_dir.join("checkpoints/step-6")).unwrap();
    let mut now = then.clone();
    (now.train.learning_rate, now.train.weight_decay, now.train.batch_examples) = (0.5, 0.5, 2);
    for step in [3, 4, 5, 6, 9] {
        let account = replay(&scene, &now, step);
        check(&account);
        assert_eq!(account.figures.copies, if step <= 4 { 5 } else { 4 });
        assert_eq!(account.plan.checkpoint, if step > 4 { find(&then, 4) } else { find(&then, 3) });
    }
}

/// The checkpoint after `step`, if it is still there.
fn find(options: &TrainerOptions, step: u64) -> Option<u64> {
    options.state_dir.join(format!("checkpoints/step-{step}")).exists().then_some(step)
}

#[test]
fn a_copy_that_is_not_finite_is_found_in_every_attempt() {
    // German alone: a copy an example, a window a batch. Batches 2 to 4 have one poisoned copy, batch 6 has another.
    let poisoned = [6, 9, 15, 21];
    let examples: Vec<Example> =
        (0..48).map(|at| Example { poisoned: poisoned.contains(&at), ..example("de") }).collect();
    let scene = Scene::with_log(&examples);
    let mut options = scene.options("state");
    (options.train.shuffle_examples, options.train.batch_examples) = (4, 4);
    assert_eq!(scene.run(&options, |_| ()).unwrap(), Outcome::Finished);

    // The return to the beginning left out batches 2 to 4, so batch 6 is step 3 of the second attempt.
    let third = replay(&scene, &options, 3);
    check_culprit(&third, 21);
    assert_eq!((third.plan.attempt, third.plan.attempts, third.skipped_in_attempts.clone()), (2, 2, vec![1]));
    assert!(third.comparison.as_ref().unwrap().equal, "{:?}", third.comparison);
    let fourth = replay(&scene, &options, 4);
    check(&fourth);
    assert!(fourth.culprit.is_none() && fourth.skipped_in_attempts == [1]);

    for (step, culprit) in [(2, 6), (3, 9), (4, 15)] {
        let wanted = ReplayOptions { step, attempt: Some(1), ..ReplayOptions::default() };
        let account = replay_of(&scene, &options, &wanted).unwrap();
        check_culprit(&account, culprit);
        assert!(account.comparison.is_none(), "what is recorded is of another attempt");
    }
    let refused = |step, attempt| {
        let wanted = ReplayOptions { step, attempt: Some(attempt), ..ReplayOptions::default() };
        replay_of(&scene, &options, &wanted).unwrap_err().to_string()
    };
    assert!(refused(5, 1).contains("the last step that was made is 4"), "{}", refused(5, 1));
    assert!(refused(2, 3).contains("there is no attempt 3: training has made 2"), "{}", refused(2, 3));
}

#[track_caller]
fn check_culprit(account: &StepAccount, sequence: u64) {
    let culprit = account.culprit.as_ref().unwrap();
    assert_eq!((culprit.example, culprit.sequence), (0, sequence));
    assert!(culprit.what.contains("NaN"), "{culprit:?}");
    assert!(account.weights_finite && account.figures.skipped.is_some());
    assert!(account.examples[1..].iter().all(|example| example.loss.is_finite() && example.grad_norm.is_finite()));
}

#[test]
fn weights_that_are_not_finite_are_nobodys_fault() {
    let scene = Scene::with_log(&mixture(40));
    let options = scene.options("state");
    scene.run(&options, |_| ()).unwrap();
    scene::poison(&options.state_dir.join("checkpoints/step-6"));
    let account = replay(&scene, &options, 7);
    assert!(!account.weights_finite && account.culprit.is_none());
    let comparison = account.comparison.unwrap();
    assert!(!comparison.equal && comparison.differs_from == Some(7), "{comparison:?}");
    assert!(comparison.differences.iter().any(|difference| difference.figure == "loss"), "{comparison:?}");
}

#[test]
fn what_is_gone_is_said_with_what_is_left() {
    let scene = Scene::new();
    let mut writer = scene.writer_of(1);
    append(&mut writer, &mixture(120), 4);
    append_ends(&mut writer);
    let mut options = scene.options("state");
    (options.train.steps, options.train.until_step) = (Some(15), Some(12));
    let progress = Arc::new(trainer::TrainerProgress::default());
    let need = progress.need.clone();
    let mut trainer = Trainer::open(options.clone(), writer.reader(), progress, &Registry::new()).unwrap();
    scene::run(&mut trainer, |_| ()).unwrap();
    drop(trainer);
    let whole = scene.path("whole");
    copy_folder(&scene.log(), &whole);
    let retention = Retention { bytes: 1, age: None, held_out: trainer::held_out_path(&options.state_dir) };
    assert!(writer.retain(&retention, Some(&need)).unwrap().removed_segments > 0);
    writer.seal().unwrap();

    let account = replay(&scene, &options, 11);
    check(&account);
    assert_eq!(account.plan.replayable, Some((10, 12)));
    let refused = |step| {
        let wanted = ReplayOptions { step, ..ReplayOptions::default() };
        replay_of(&scene, &options, &wanted).unwrap_err().to_string()
    };
    for (step, reasons) in [
        (3, ["retention has removed", "steps 10 to 12 can be replayed"]),
        (13, ["step 13 cannot be replayed", "the last step that was made is 12"]),
        (0, ["step 0 cannot be replayed", "the first step is 1"]),
    ] {
        let refused = refused(step);
        assert!(reasons.iter().all(|reason| refused.contains(reason)), "{step}: {refused}");
    }
    // A teacher of another log.
    let other = Scene::new();
    fs::create_dir(other.path("empty")).unwrap();
    let empty = TrainerOptions { state_dir: other.path("empty"), ..options.clone() };
    let wanted = ReplayOptions { step: 1, ..ReplayOptions::default() };
    let refusal = replay_of(&scene, &empty, &wanted).unwrap_err().to_string();
    assert!(refusal.contains("there is no journal"), "{refusal}");
}
