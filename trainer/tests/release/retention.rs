//! What retention leaves for a release.

use crate::scene::{self, Scene, append, append_ends, copy_folder, mixture};
use crate::trunk::{Report, begun, beside, finish, quiet, released, trunk};
use prometheus::Registry;
use std::sync::{Arc, Mutex};
use store::SequenceNumber;
use store::log::Retention;
use store::stage::StageControl;
use trainer::release::ReleaseState;
use trainer::{Outcome, Trainer};

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
