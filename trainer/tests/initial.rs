//! A student that begins with the word embeddings of its teachers.
#![allow(clippy::unwrap_used)]

mod scene;

use candle_core::Device;
use model::{Configuration, Parameters, WordEmbeddings};
use scene::{Scene, checkpoint, metrics, mixture, write_log};
use std::fs;
use std::path::Path;
use trainer::{Replay, ReplayOptions, StudentInit, StudentOptions, TrainerOptions};

/// Writes the weights of a teacher: random ones, with embeddings of this width.
fn write_teacher(folder: &Path, words: usize, width: usize, seed: u64) {
    let shape =
        StudentOptions { layers: 1, hidden_size: width, heads: 1, embedding_size: width, ..StudentOptions::default() };
    let configuration: Configuration = shape.configuration(words, 0);
    let parameters = Parameters::initialise(&configuration, seed, &Device::Cpu).unwrap();
    fs::write(folder.join("config.json"), configuration.to_hugging_face().to_string()).unwrap();
    parameters.save_safetensors(&folder.join("model.safetensors")).unwrap();
}

/// A scene whose teachers have weights; the student begins with their words.
fn scene_with_weights() -> (Scene, TrainerOptions) {
    let scene = Scene::new();
    for (teacher, width) in scene.teachers.iter().zip([8, 12]) {
        write_teacher(teacher.folder.as_ref().unwrap(), teacher.tokenizer.len(), width, width as u64);
    }
    write_log(scene.writer(), &mixture(40));
    let mut options = scene.options("state");
    options.student.init = StudentInit::Teachers;
    (scene, options)
}

fn initial_words(state: &Path) -> Vec<u8> {
    fs::read(state.join("initial_words.safetensors")).unwrap()
}

#[test]
fn training_begins_with_them_and_is_repeatable_without_the_teachers() {
    let (scene, options) = scene_with_weights();
    let random = TrainerOptions {
        state_dir: scene.path("random"),
        student: StudentOptions { init: StudentInit::Random, ..options.student.clone() },
        ..options.clone()
    };
    for options in [&options, &random] {
        scene.run(options, |_| ()).unwrap();
    }
    assert!(!random.state_dir.join("initial_words.safetensors").exists());
    assert!(checkpoint(&options.state_dir, 9) != checkpoint(&random.state_dir, 9));

    // Elsewhere, from the same teachers.
    let again = TrainerOptions { state_dir: scene.path("again"), ..options.clone() };
    scene.run(&again, |_| ()).unwrap();
    assert!(initial_words(&again.state_dir) == initial_words(&options.state_dir));
    assert!(checkpoint(&again.state_dir, 9) == checkpoint(&options.state_dir, 9));

    // From the state folder alone, to the last bit.
    for teacher in &scene.teachers {
        fs::remove_file(teacher.folder.as_ref().unwrap().join("model.safetensors")).unwrap();
    }
    let wanted = ReplayOptions { step: 2, ..ReplayOptions::default() };
    let looked_at = TrainerOptions { teachers: Vec::new(), ..options.clone() };
    let account = Replay::open(&looked_at, &scene.reader(), &wanted).unwrap().run(&mut |_| ()).unwrap();
    assert!(account.comparison.unwrap().equal && account.plan.checkpoint.is_none());
    fs::remove_dir_all(options.state_dir.join("checkpoints")).unwrap();
    let (before, last) = (metrics(&options.state_dir), checkpoint(&again.state_dir, 9));
    scene.run(&options, |_| ()).unwrap();
    assert!(checkpoint(&options.state_dir, 9) == last && metrics(&options.state_dir) == before);

    // Whoever asks for something else is told what differs.
    for (options, expected) in [
        (TrainerOptions { student: random.student.clone(), ..options.clone() }, "student.init was teachers, is unset"),
        (TrainerOptions { student: options.student.clone(), ..random.clone() }, "student.init was unset, is teachers"),
    ] {
        let error = scene.open(&options).err().unwrap().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn a_teacher_without_weights_gives_nothing() {
    let (scene, mut options) = scene_with_weights();
    options.teachers[0].labels = false;
    options.train.until_step = Some(1);
    scene.run(&options, |_| ()).unwrap();
    let of_second = initial_words(&options.state_dir);
    options.state_dir = scene.path("without");
    (options.teachers[0].labels, options.teachers[0].folder) = (true, None);
    scene.run(&options, |_| ()).unwrap();
    assert!(initial_words(&options.state_dir) == of_second);
    options.state_dir = scene.path("both");
    options.teachers = scene.teachers.clone();
    scene.run(&options, |_| ()).unwrap();
    assert!(initial_words(&options.state_dir) != of_second);
    // A teacher whose weights cannot be read is named.
    fs::write(scene.teachers[1].folder.as_ref().unwrap().join("model.safetensors"), b"").unwrap();
    options.state_dir = scene.path("broken");
    let error = scene.open(&options).err().unwrap().to_string();
    assert!(error.contains("model.safetensors"), "{error}");
}

#[test]
fn before_the_first_checkpoint_they_are_made_anew_from_what_is_set_now() {
    let (scene, options) = scene_with_weights();
    let mut wider = options.clone();
    wider.student.embedding_size = 6;
    let mut fewer = options.clone();
    fewer.teachers[0].folder = None;
    for (at, changed) in [TrainerOptions { seed: 8, ..options.clone() }, wider, fewer].into_iter().enumerate() {
        let state = |name: &str| TrainerOptions { state_dir: scene.path(&format!("{name} {at}")), ..changed.clone() };
        let (used, fresh) = (state("used"), state("fresh"));
        scene.open(&TrainerOptions { state_dir: used.state_dir.clone(), ..options.clone() }).unwrap();
        let before = initial_words(&used.state_dir);
        for options in [&used, &fresh] {
            scene.open(options).unwrap();
        }
        assert!(initial_words(&used.state_dir) == initial_words(&fresh.state_dir), "change {at}");
        assert!(initial_words(&used.state_dir) != before, "change {at}");
    }
}

#[test]
fn they_come_from_the_weights_that_labelled_the_log() {
    let (scene, options) = scene_with_weights();
    let second = &scene.teachers[1];
    write_teacher(second.folder.as_ref().unwrap(), second.tokenizer.len(), 12, 99);
    let error = scene.open(&options).err().unwrap().to_string();
    assert!(error.contains("teacher `second`") && error.contains("labelled the log"), "{error}");
    assert!(!options.state_dir.join("initial_words.safetensors").exists());
}

#[test]
fn words_are_read_from_a_folder_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    write_teacher(folder.path(), 9, 6, 3);
    let words = WordEmbeddings::load(folder.path()).unwrap();
    assert_eq!((words.width, words.rows.len(), words.bias.len()), (6, 54, 9));
    assert!(words.rows[..6].iter().all(|x| *x == 0.0) && words.rows[6..].iter().all(|x| *x != 0.0), "padding is 0");
}
