//! Draining, and what the control interface tells about commands, log and configuration.

use crate::harness::{Daemon, Scene, configuration, mergedistill, text, until};
use serde_json::{Value, json};
use std::fs;

/// A run that does not end by itself, with a token that nobody may see.
fn endless() -> Scene {
    let endless = configuration().replace("steps = 12", "steps = 1000000").replace(".txt\"", ".txt\"\nrounds = 1000");
    let scene = Scene::new(&format!("{endless}[ops]\ntoken_file = \"token\"\n"));
    fs::write(scene.path("token"), "a-token-that-nobody-may-see").unwrap();
    scene
}

/// Starts the daemon, and waits until the log has something.
fn start(scene: &Scene) -> Daemon {
    let mut daemon = scene.start();
    daemon.address();
    until("entries in the log", || (status(scene)["log"]["durable"].as_u64()? > 0).then_some(()));
    daemon
}

fn ctl(scene: &Scene, arguments: &[&str]) -> Value {
    let output = scene.ctl(arguments);
    assert!(output.status.success(), "ctl {arguments:?}: {}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn status(scene: &Scene) -> Value {
    ctl(scene, &["status"])
}

#[test]
fn a_drain_ends_when_all_that_was_read_is_durable() {
    let scene = endless();
    let _daemon = start(&scene);
    let drained = ctl(&scene, &["drain"]);
    assert_eq!(drained["state"], "drained");
    let now = status(&scene);
    assert_eq!(now["log"]["durable"], drained["durable"]);
    assert_eq!(
        (&now["stages"]["ingest"]["paused"], &now["stages"]["trainer"]["paused"]),
        (&json!(true), &json!(false))
    );
    let read = &now["stages"]["ingest"]["items_in"];
    for stage in ["ingest", "teacher", "log"] {
        assert_eq!(&now["stages"][stage]["items_out"], read, "{stage}");
    }
    assert_eq!(ctl(&scene, &["drain"])["durable"], drained["durable"], "nothing more is read");
    ctl(&scene, &["resume", "ingest"]);
    until("more is read", || (status(&scene)["log"]["durable"].as_u64() > drained["durable"].as_u64()).then_some(()));

    ctl(&scene, &["pause", "teacher"]);
    let output = scene.ctl(&["drain"]);
    assert_eq!(output.status.code(), Some(75), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("teacher_paused"), "{}", text(&output.stderr));
    ctl(&scene, &["resume"]);
    assert_eq!(ctl(&scene, &["drain"])["state"], "drained");
    let operations = ctl(&scene, &["operations"]);
    let of = |operation: &Value, key: &str| operation[key].as_str().unwrap().to_owned();
    let listed = operations["operations"].as_array().unwrap().iter();
    let listed: Vec<_> = listed.map(|operation| of(operation, "command") + " " + &of(operation, "state")).collect();
    let expected =
        ["drain done", "resume done", "drain failed", "pause done", "resume done", "drain done", "drain done"];
    assert_eq!(listed, expected);
}

#[test]
fn log_and_configuration_are_told_and_the_token_is_not() {
    let scene = endless();
    let daemon = start(&scene);
    let drained = ctl(&scene, &["drain"]);
    let segments = ctl(&scene, &["segments"]);
    let segments = segments["segments"].as_array().unwrap();
    let mut next = 0;
    for (index, segment) in segments.iter().enumerate() {
        assert_eq!(segment["first_sequence"], next, "{segment}");
        next += segment["entries"].as_u64().unwrap();
        assert_eq!(segment["sealed"], index + 1 < segments.len(), "{segment}");
        let file = scene.path(&format!("state/log/{}", segment["file"].as_str().unwrap()));
        assert!(fs::metadata(file).unwrap().len() >= segment["bytes"].as_u64().unwrap(), "{segment}");
    }
    assert_eq!(json!(next), drained["durable"]);

    let told = ctl(&scene, &["configuration"]);
    assert_eq!((&told["train"]["steps"], &told["ops"]["control"]), (&json!(1_000_000), &json!(["*"])));
    let socket = scene.path("state/control.sock");
    let as_toml =
        text(&mergedistill(&["ctl", "--socket", socket.to_str().unwrap(), "configuration"]).output().unwrap().stdout);
    assert!(as_toml.contains("[train]") && as_toml.contains("steps = 1000000"), "{as_toml}");
    for what in ["status", "operations", "configuration", "segments"] {
        assert!(!ctl(&scene, &[what]).to_string().contains("nobody-may-see"), "{what}");
    }
    daemon.signal("TERM");
    let (code, logged) = daemon.finish();
    assert_eq!(code, Some(0), "{logged}");
    assert!(logged.contains("command taken") && logged.contains("uid "), "{logged}");
    assert!(!logged.contains("nobody-may-see"), "{logged}");
}
