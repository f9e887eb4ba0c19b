//! Training without end, a release beside it, and SIGKILL in the middle of both: the release is finished, and the trunk is what it
//! would have been without either.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod harness;

use harness::{Daemon, Scene, checkpoint, configuration, mergedistill, text, until};
use serde_json::{Value, json};

fn trunk() -> String {
    configuration()
        .replace("steps = 12", "schedule = \"trunk\"\nlambda_steps = 20")
        .replace("checkpoint_every_steps = 4", "checkpoint_every_steps = 10")
        .replace("every_steps = 6", "every_steps = 100")
        // Labelled once and for all, the text would soon be through.
        .replace("language = \"en\"\npath", "language = \"en\"\nrounds = 400\npath")
        .replace("language = \"de\"\npath", "language = \"de\"\nrounds = 400\npath")
        .replace("[train]", "[store]\nmax_backlog_bytes = 1048576\n[train]")
}

fn answer(scene: &Scene, arguments: &[&str]) -> Value {
    let output = scene.ctl(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The release in the status, when `is_so` holds for it.
fn release(scene: &Scene, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
    until(what, || {
        let release = answer(scene, &["status"])["release"].clone();
        is_so(&release).then_some(release)
    })
}

/// A daemon that answers.
fn start(scene: &Scene) -> Daemon {
    let mut daemon = scene.start();
    daemon.address();
    daemon
}

#[test]
fn a_release_survives_sigkill_and_leaves_the_trunk_alone() {
    let scene = Scene::new(&trunk());
    let mut daemon = start(&scene);
    let refused = scene.ctl(&["release", "--cancel"]);
    assert!(text(&refused.stderr).contains("no release is running (no_release)"), "{}", text(&refused.stderr));
    daemon.wait_for("checkpoint written").unwrap();
    let out = scene.path("student");
    let begun = answer(&scene, &["release", "--steps", "300", "--out", out.to_str().unwrap()]);
    assert_eq!((&begun["state"], &begun["steps"], &begun["out"]), (&json!("running"), &json!(300), &json!(out)));
    let second = scene.ctl(&["release", "--steps", "5"]);
    assert_eq!(second.status.code(), Some(75));
    let message = format!("release {} is running (step ", begun["name"].as_str().unwrap());
    assert!(text(&second.stderr).contains(&message), "{}", text(&second.stderr));
    release(&scene, "a few steps", |release| release["step"].as_u64() >= Some(20));
    daemon.signal("KILL");
    assert_eq!(daemon.finish().0, None);

    let daemon = start(&scene);
    let status = answer(&scene, &["status"]);
    assert_eq!((&status["release"]["name"], &status["train"]["steps"]), (&begun["name"], &Value::Null));
    let done = release(&scene, "the end of the release", |release| release["state"] != "running");
    assert_eq!((&done["state"], &done["step"], &done["error"]), (&json!("done"), &json!(300), &Value::Null));
    let last = begun["from_step"].as_u64().unwrap() + 300;
    assert_eq!(done["evaluation"]["step"], last);
    assert!(done["evaluation"]["languages"]["en"]["student_loss"].as_f64().is_some());
    for file in ["config.json", "model.safetensors", "vocab.txt", "tokenizer.json"] {
        assert!(out.join(file).is_file(), "{file}");
    }
    let cut = scene.path("cut");
    let export = ["export", "--out", cut.to_str().unwrap(), "--languages", "de"];
    answer(&scene, &export);
    let of_release = scene.path("state/releases").join(begun["name"].as_str().unwrap());
    let mut command = mergedistill(&[&export[..], &["--json", "--state-dir", of_release.to_str().unwrap()]].concat());
    let exported: Value = serde_json::from_slice(&command.output().unwrap().stdout).unwrap();
    assert_eq!(exported["step"], last, "the release's student in place of the run's");
    assert!(exported["tokens"].as_u64() < exported["full_tokens"].as_u64(), "{exported}");
    assert!(cut.join("tokenizers/demo-en-de").is_dir() && !cut.join("tokenizers/demo-en").exists());
    let unknown = scene.ctl(&["export", "--out", cut.to_str().unwrap(), "--languages", "de, xx"]);
    assert!(text(&unknown.stderr).contains("no teacher has language \"xx\"; there are: de, en"));
    answer(&scene, &["shutdown"]);
    let (code, log) = daemon.finish();
    assert_eq!(code, Some(0), "{log}");

    let step = scene.metrics().iter().filter_map(|line| line["step"].as_u64()).max().unwrap();
    let alone = Scene::new(&trunk());
    let output = alone.run(&["--until-step", &step.to_string()]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(checkpoint(&alone, step) == checkpoint(&scene, step), "the trunks differ");
}
