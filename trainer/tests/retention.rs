//! Training while retention removes what it has read: the same student, and every crash can be resumed from.
#![allow(clippy::unwrap_used)]

mod scene;

use prometheus::Registry;
use scene::{Example, Scene, append, append_ends, checkpoint, copy_folder, example, metrics, mixture, no_requests};
use std::fs;
use std::path::Path;
use std::sync::Arc;
use store::log::{HeldOutLog, Need, Retention};
use store::stage::StageControl;
use store::{LogReader, LogWriter, SequenceNumber};
use trainer::{Event, Outcome, Trainer, TrainerError, TrainerOptions, TrainerProgress};

/// A scene whose log has many small segments, and its writer.
fn small_segments(examples: usize) -> (Scene, LogWriter) {
    let scene = Scene::new();
    let mut writer = scene.writer_of(1);
    append(&mut writer, &mixture(examples), 4);
    append_ends(&mut writer);
    (scene, writer)
}

/// Removes all that `need` lets go.
fn retain(writer: &mut LogWriter, state: &Path, need: &Need) -> usize {
    let retention = Retention { bytes: 1, age: None, held_out: trainer::held_out_path(state) };
    writer.retain(&retention, Some(need)).unwrap().removed_segments
}

fn last_step(event: &Event) -> u64 {
    match event {
        Event::Step(report) => report.step,
        _ => 0,
    }
}

/// Trains on the log in `folder` to the end, without any retention.
fn finish(options: &TrainerOptions, folder: &Path) {
    let reader = LogReader::open(&folder.join("log")).unwrap();
    let mut trainer = Trainer::open(options.clone(), reader, Arc::default(), &Registry::new()).unwrap();
    assert_eq!(scene::run(&mut trainer, |_| ()).unwrap(), Outcome::Finished);
}

/// Trains while everything is removed that is not needed, up to the step `retain_until`, and goes on from what a crash at each
/// event after `from_step` would leave. Returns how many segments were removed.
fn check(scene: &Scene, mut writer: LogWriter, options: &TrainerOptions, retain_until: u64, from_step: u64) -> usize {
    let progress = Arc::new(TrainerProgress::default());
    let need = progress.need.clone();
    let mut trainer = Trainer::open(options.clone(), writer.reader(), progress, &Registry::new()).unwrap();
    let (mut kills, mut removed, mut step) = (0, 0, 0);
    let mut events = |event: Event| {
        step = step.max(last_step(&event));
        if step <= retain_until {
            removed += retain(&mut writer, &options.state_dir, &need);
        }
        if step >= from_step {
            let folder = scene.path(&format!("killed-{kills}"));
            copy_folder(&scene.log(), &folder.join("log"));
            copy_folder(&options.state_dir, &folder.join("state"));
            kills += 1;
        }
    };
    let outcome = trainer.run(&StageControl::default(), &no_requests(), &mut events).unwrap();
    assert_eq!(outcome, Outcome::Finished);
    assert!(kills > 5, "only {kills} events");
    for kill in 0..kills {
        let folder = scene.path(&format!("killed-{kill}"));
        let mut killed = options.clone();
        killed.state_dir = folder.join("state");
        // From the newest checkpoint, or, every other time, as if that one were damaged.
        let newest = checkpoints(&killed.state_dir).pop().filter(|_| kill % 2 == 1);
        if let Some(newest) = newest.filter(|_| checkpoints(&killed.state_dir).len() > 1) {
            fs::write(killed.state_dir.join(format!("checkpoints/step-{newest}/model.safetensors")), "damaged")
                .unwrap();
        }
        finish(&killed, &folder);
        let steps = options.train.steps.unwrap();
        assert!(checkpoint(&options.state_dir, steps) == checkpoint(&killed.state_dir, steps), "kill {kill}");
        assert_eq!(metrics(&options.state_dir), metrics(&killed.state_dir), "kill {kill}");
    }
    removed
}

fn checkpoints(state: &Path) -> Vec<u64> {
    let Ok(names) = fs::read_dir(state.join("checkpoints")) else { return Vec::new() };
    let name = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
    let mut steps: Vec<u64> = names.filter_map(|entry| name(entry).strip_prefix("step-")?.parse().ok()).collect();
    steps.sort_unstable();
    steps
}

#[test]
fn what_was_read_may_go_and_changes_nothing() {
    let (scene, writer) = small_segments(120);
    let mut whole = scene.options("whole");
    whole.train.steps = Some(15);
    finish(&whole, scene.folder.path());
    let mut options = whole.clone();
    options.state_dir = scene.path("state");
    let removed = check(&scene, writer, &options, u64::MAX, 0);
    assert!(removed > 3, "only {removed} segments went");
    // No window read anything twice; so the student, and each evaluation, is that of a run without retention.
    assert!(checkpoint(&whole.state_dir, 15) == checkpoint(&options.state_dir, 15));
    assert_eq!(metrics(&whole.state_dir), metrics(&options.state_dir));
    assert!(HeldOutLog::open(&trainer::held_out_path(&options.state_dir)).unwrap().is_some());
}

#[test]
fn replays_of_what_is_left_are_repeated() {
    let (scene, writer) = small_segments(40);
    let mut options = scene.options("state");
    (options.train.steps, options.train.checkpoint_every_steps, options.train.keep_checkpoints) = (Some(24), 2, 3);
    let removed = check(&scene, writer, &options, 14, 15);
    assert!(removed > 1, "only {removed} segments went");
}

#[test]
fn a_run_that_only_labels_leaves_what_training_needs() {
    let (scene, mut writer) = small_segments(120);
    let mut options = scene.options("state");
    assert!(trainer::need_of_state(&options.state_dir, &writer.reader()).unwrap().is_none(), "no training here");
    options.train.until_step = Some(9);
    let progress = Arc::new(TrainerProgress::default());
    let mut trainer = Trainer::open(options.clone(), writer.reader(), progress, &Registry::new()).unwrap();
    scene::run(&mut trainer, |_| ()).unwrap();
    drop(trainer);
    let need = trainer::need_of_state(&options.state_dir, &writer.reader()).unwrap().unwrap();
    assert!(need.get().from > SequenceNumber(0));
    assert!(retain(&mut writer, &options.state_dir, &need) > 0);
    drop(writer);
    options.train.until_step = None;
    (options.train.steps, options.train.warmup_steps) = (Some(15), 2);
    finish(&options, scene.folder.path());
}

/// Nothing else helps, but the beginning of the log is gone.
#[test]
fn training_does_not_go_back_to_a_start_that_is_gone() {
    let (scene, mut writer) = small_segments(300);
    let mut options = scene.options("state");
    (options.train.steps, options.train.until_step, options.evaluation.every_steps) = (Some(12), Some(6), 0);
    let progress = Arc::new(TrainerProgress::default());
    let need = progress.need.clone();
    let mut trainer = Trainer::open(options.clone(), writer.reader(), progress, &Registry::new()).unwrap();
    let mut keep_little = |_| {
        retain(&mut writer, &options.state_dir, &need);
    };
    scene::run(&mut trainer, &mut keep_little).unwrap();
    drop(trainer);
    retain(&mut writer, &options.state_dir, &need);
    assert!(writer.reader().begin() > SequenceNumber(0));
    assert_eq!(checkpoints(&options.state_dir), [3, 6]);
    for step in [3, 6] {
        scene::poison(&options.state_dir.join(format!("checkpoints/step-{step}")));
    }
    options.train.until_step = None;
    let mut trainer = Trainer::open(options, writer.reader(), Arc::default(), &Registry::new()).unwrap();
    let error = scene::run(&mut trainer, |_| ()).unwrap_err();
    assert!(matches!(error, TrainerError::Diverged { step: 0, .. }), "{error}");
}

/// There is no checkpoint of the schedule yet, but one where training was stopped.
#[test]
fn training_goes_back_to_where_it_was_taken_up_if_the_start_is_gone() {
    // Windows of one batch; those of steps 6 to 8 are poisoned.
    let poisoned = |batch| matches!(batch, 6..=8);
    let examples: Vec<Example> =
        (0..80).map(|at| Example { poisoned: poisoned(at / 4 + 1), ..example("de") }).collect();
    let scene = Scene::new();
    let mut writer = scene.writer_of(1);
    append(&mut writer, &examples, 4);
    append_ends(&mut writer);
    let mut options = scene.options("state");
    (options.train.shuffle_examples, options.train.batch_examples) = (4, 4);
    (options.train.checkpoint_every_steps, options.train.keep_checkpoints) = (100, 1);
    (options.train.until_step, options.evaluation.every_steps) = (Some(5), 0);
    let progress = Arc::new(TrainerProgress::default());
    let need = progress.need.clone();
    let mut trainer = Trainer::open(options.clone(), writer.reader(), progress, &Registry::new()).unwrap();
    scene::run(&mut trainer, |_| ()).unwrap();
    drop(trainer);
    assert!(retain(&mut writer, &options.state_dir, &need) > 0);
    options.train.until_step = None;
    let mut trainer = Trainer::open(options.clone(), writer.reader(), Arc::default(), &Registry::new()).unwrap();
    assert_eq!(scene::run(&mut trainer, |_| ()).unwrap(), Outcome::Finished);
    let text = fs::read_to_string(options.state_dir.join("journal")).unwrap();
    assert!(text.contains("\"from_step\":8,\"to_step\":5"), "{text}");
}
