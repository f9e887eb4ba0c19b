//! `ctl quarantine`, through the real binary.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod harness;

use harness::{Scene, configuration, mergedistill, text, until};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;

/// A corpus of files with a document that cannot be used, and one that keeps the daemon running.
fn scene() -> Scene {
    let all = configuration();
    let teachers = &all[..all.find("[[corpus]]").unwrap()];
    let scene = Scene::new(&format!(
        "{teachers}[[corpus]]\nname = \"files\"\nlanguage = \"de\"\npath = \"some.jsonl\"\nformat = \"jsonl\"\n\
         [[corpus]]\nname = \"in\"\nlanguage = \"en\"\nsource = \"http\"\n\
         [queue]\nbatch_tokens = 256\nlinger_ms = 5\n[store]\nsync_interval_ms = 5\nmax_sequence_length = 32\n"
    ));
    fs::write(scene.path("some.jsonl"), corpus("titel")).unwrap();
    scene
}

/// Three documents; the second one has its text in `field`.
fn corpus(field: &str) -> String {
    let first = json!({"text": "Am Morgen lag das Boot noch im Hafen."});
    let last = json!({"text": "Am Abend war es zurück."});
    format!("{first}\n{{\"{field}\": \"Mittags fuhr es hinaus.\"}}\n{last}\n")
}

/// How often each document is in the log, by its source and its name.
fn documents(scene: &Scene) -> BTreeMap<(String, String), usize> {
    let mut counts = BTreeMap::new();
    for record in scene.log_lines("dump") {
        let [source, document] = ["source", "document"].map(|key| record[key].as_str().unwrap().to_owned());
        *counts.entry((source, document)).or_default() += 1;
    }
    counts
}

fn listed(scene: &Scene, arguments: &[&str]) -> Vec<Value> {
    let output = scene.ctl(&[&["quarantine", "list"], arguments].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    answer["documents"].as_array().unwrap().clone()
}

#[test]
fn a_document_is_looked_at_mended_and_tried_again() {
    let scene = scene();
    let mut daemon = scene.start();
    assert!(daemon.wait_for("live page").is_some());
    until("the good documents", || (documents(&scene).len() == 2).then_some(()));
    let notes = listed(&scene, &["--corpus", "files"]);
    assert_eq!((notes.len(), &notes[0]["reason"]), (1, &json!("missing_text")));
    assert_eq!(listed(&scene, &["--corpus", "in"]).len(), 0);
    let id = notes[0]["id"].as_str().unwrap().to_owned();
    let shown = scene.ctl(&["quarantine", "show", &id]);
    assert_eq!(serde_json::from_slice::<Value>(&shown.stdout).unwrap(), notes[0]);
    assert_eq!(scene.ctl(&["quarantine", "show", "0"]).status.code(), Some(66));
    assert_eq!(scene.ctl(&["quarantine", "retry"]).status.code(), Some(64));

    let refused = scene.ctl(&["quarantine", "retry", &id]);
    assert_eq!(refused.status.code(), Some(65), "it is still the same");
    fs::write(scene.path("some.jsonl"), corpus("text")).unwrap();
    // Refused as long as the log does not durably say that it was skipped.
    let retried = until("another try", || {
        let output = scene.ctl(&["quarantine", "retry", "--all", "--corpus", "files"]);
        output.status.success().then(|| serde_json::from_slice::<Value>(&output.stdout).unwrap())
    });
    assert_eq!((&retried["retried"], &retried["refused"]), (&json!(1), &json!([])));
    daemon.signal("KILL");
    daemon.finish();

    assert_eq!(listed(&scene, &[]).len(), 0, "it works on a daemon that has stopped, too");
    let mut daemon = scene.start();
    let expected = ("retry:de".to_owned(), "00000000000000000000.jsonl@0#files/some.jsonl@".to_owned());
    let again = |scene: &Scene| {
        let of_it = |(source, document): &&(String, String)| *source == expected.0 && document.starts_with(&expected.1);
        documents(scene).iter().filter(|(name, _)| of_it(name)).map(|(_, count)| *count).sum::<usize>()
    };
    assert!(daemon.wait_for("live page").is_some());
    until("the document", || (again(&scene) > 0).then_some(()));
    daemon.signal("TERM");
    let (code, log) = daemon.finish();
    assert_eq!(code, Some(0), "{log}");
    assert_eq!((again(&scene), documents(&scene).len()), (1, 3));
    let missing = mergedistill(&["ctl", "--socket", "/nowhere/control.sock", "quarantine", "list"]).output().unwrap();
    assert_eq!(missing.status.code(), Some(66), "{}", text(&missing.stderr));
}
