//! Steps of a release, made again.

use crate::scene::{Scene, copy_folder, mixture};
use crate::trunk::{Report, begun, finish};
use std::fs;
use std::sync::{Arc, Mutex};
use trainer::release::ReleaseState;
use trainer::replay::StepAccount;
use trainer::{Event, Replay, ReplayOptions, TrainerError, TrainerOptions};

fn replay(scene: &Scene, options: &TrainerOptions, step: u64, release: &str) -> Result<StepAccount, TrainerError> {
    let options = TrainerOptions { teachers: Vec::new(), ..options.clone() };
    let wanted = ReplayOptions { step, release: Some(release.to_owned()), ..ReplayOptions::default() };
    Replay::open(&options, &scene.reader(), &wanted)?.run(&mut |_| ())
}

/// Replays a step, which is what it was; it begins with the checkpoint after `from` steps.
#[track_caller]
fn check(scene: &Scene, options: &TrainerOptions, step: u64, from: Option<u64>) -> StepAccount {
    let account = replay(scene, options, step, "step-4").unwrap();
    let comparison = account.comparison.as_ref().unwrap();
    assert!(comparison.equal && comparison.differs_from.is_none(), "{comparison:?}");
    assert_eq!((account.plan.checkpoint, account.plan.steps), (from, step - from.unwrap_or(0)));
    assert_eq!(account.plan.release.as_deref(), Some("step-4"));
    account
}

#[test]
fn a_release_is_replayed_from_its_checkpoints_or_the_runs() {
    let scene = Scene::with_log(&mixture(40));
    let reader = scene.reader();
    let options = begun(&scene, &reader, "state");
    // As it was when it had made eight steps of ten: its checkpoint after step 6 is there.
    let (folder, state) = (scene.folder.path().join("earlier"), options.state_dir.clone());
    let copied = Mutex::new(false);
    let keep: Report = Arc::new(move |event, _| {
        let mut copied = copied.lock().unwrap();
        if matches!(event, Event::Release(status) if status.step == 4) && !*copied {
            copy_folder(&state, &folder);
            *copied = true;
        }
    });
    assert_eq!(finish(&options, &reader, &keep).state, ReleaseState::Done);
    let earlier = TrainerOptions { state_dir: scene.path("earlier"), ..options.clone() };
    check(&scene, &earlier, 7, Some(6));
    check(&scene, &earlier, 6, Some(4));

    // Once it is done, its last checkpoint alone is left; those of the run go on being there, and the start.
    assert_eq!(fs::read_dir(options.state_dir.join("releases/step-4/checkpoints")).unwrap().count(), 1);
    let last = check(&scene, &options, 10, Some(4));
    assert_eq!(last.comparison.unwrap().checkpoint_agrees, Some(true));
    assert_eq!(last.plan.replayable, Some((5, 10)));
    let from_branch = check(&scene, &options, 6, Some(4));
    fs::remove_dir_all(options.state_dir.join("checkpoints")).unwrap();
    let from_start = check(&scene, &options, 6, None);
    assert_eq!((from_start.examples, from_start.positions), (from_branch.examples, from_branch.positions));

    let refused = |step, release| replay(&scene, &options, step, release).unwrap_err().to_string();
    assert!(refused(4, "step-4").contains("the first step is 5"), "{}", refused(4, "step-4"));
    let unknown = refused(5, "other");
    assert!(unknown.contains("there is no release `other`: there are step-4"), "{unknown}");
}
