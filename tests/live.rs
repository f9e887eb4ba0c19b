//! Changes of what is read while the daemon runs, through the real binary: they apply from a known entry on, and outlive a
//! SIGKILL.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod harness;

use harness::{Daemon, Scene, configuration, mergedistill, text, until};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;

/// Labels what comes in one corpus; trains nothing.
fn scene() -> Scene {
    let all = configuration();
    let teachers = &all[..all.find("[[corpus]]").unwrap()];
    let scene = Scene::new(&format!(
        "{teachers}[[corpus]]\nname = \"in\"\nlanguage = \"en\"\nwatch = \"in\"\nsettle_seconds = 0.05\npoll_seconds = 0.05\n\
         [queue]\nbatch_tokens = 256\nlinger_ms = 5\n[store]\nsync_interval_ms = 5\nmax_sequence_length = 32\n"
    ));
    fs::create_dir(scene.path("in")).unwrap();
    scene
}

fn start(scene: &Scene) -> Daemon {
    let mut daemon = scene.start();
    assert!(daemon.wait_for("live page").is_some());
    daemon
}

fn kill(daemon: Daemon) {
    daemon.signal("KILL");
    assert_eq!(daemon.finish().0, None);
}

/// The answer to a command that is carried out.
fn answer(scene: &Scene, arguments: &[&str]) -> Value {
    let output = scene.ctl(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// What `ctl corpus …` is refused with.
fn refused(scene: &Scene, arguments: &[&str], expected: &str) {
    let output = scene.ctl(&[&["corpus"], arguments].concat());
    assert!(!output.status.success(), "{arguments:?}");
    assert!(text(&output.stderr).contains(expected), "{arguments:?}: {}", text(&output.stderr));
}

fn write_corpus(scene: &Scene, name: &str, section: &str) -> String {
    let file = scene.path(&format!("{name}.toml"));
    fs::write(&file, format!("[[corpus]]\nname = \"{name}\"\n{section}\n")).unwrap();
    file.to_str().unwrap().to_owned()
}

/// Documents `numbers`, each with a text of its own.
fn documents(numbers: std::ops::Range<usize>) -> String {
    numbers.map(|number| format!("Boat number {number} came back to the harbour in the evening.\n\n")).collect()
}

/// Renames a file with these documents into a watched folder.
fn bring(scene: &Scene, name: &str, numbers: std::ops::Range<usize>) {
    let file = scene.path("file.tmp");
    fs::write(&file, documents(numbers)).unwrap();
    fs::rename(file, scene.path(name)).unwrap();
}

/// By source: how many documents are in the log. Each is there once.
fn labelled(scene: &Scene) -> BTreeMap<String, usize> {
    let mut counts: BTreeMap<(String, String), usize> = BTreeMap::new();
    let mut last = None;
    for record in scene.log_lines("dump") {
        let field = |name: &str| record[name].as_str().unwrap().to_owned();
        let document = (field("source"), field("document"));
        if last.as_ref() != Some(&document) {
            *counts.entry(document.clone()).or_default() += 1;
        }
        last = Some(document);
    }
    let mut sources = BTreeMap::new();
    for ((source, document), runs) in counts {
        assert_eq!(runs, 1, "{source}: {document}");
        *sources.entry(source).or_default() += 1;
    }
    sources
}

fn wait_for(scene: &Scene, source: &str, count: usize) {
    until("documents", || (labelled(scene).get(source).copied().unwrap_or(0) >= count).then_some(()));
}

/// Sequence numbers of the records of a source.
fn sequences(scene: &Scene, source: &str) -> Vec<u64> {
    let records = scene.log_lines("dump").into_iter().filter(|record| record["source"] == source);
    records.map(|record| record["seq"].as_u64().unwrap()).collect()
}

fn corpus(scene: &Scene, name: &str) -> Value {
    let listed = answer(scene, &["corpus", "list"]);
    let corpora = listed["corpora"].as_array().unwrap();
    corpora.iter().find(|corpus| corpus["name"] == name).cloned().unwrap_or(Value::Null)
}

fn push(scene: &Scene, corpus: &str, numbers: std::ops::Range<usize>) -> std::process::Output {
    let file = scene.path("pushed.txt");
    fs::write(&file, documents(numbers)).unwrap();
    scene.ctl(&["push", "--corpus", corpus, file.to_str().unwrap()])
}

#[test]
fn a_corpus_that_is_added_and_paused_is_labelled_once_over_a_kill() {
    let scene = scene();
    fs::create_dir(scene.path("more")).unwrap();
    let file =
        write_corpus(&scene, "more", "language = \"de\"\nwatch = \"more\"\nsettle_seconds = 0.05\npoll_seconds = 0.05");
    let daemon = start(&scene);
    bring(&scene, "in/1.txt", 0..40);
    wait_for(&scene, "in", 40);
    let added = answer(&scene, &["corpus", "add", &file]);
    let from = added["from_sequence"].as_u64().unwrap();
    assert_eq!(added["change"]["kind"], "add_corpus");
    assert!(from >= 40);
    bring(&scene, "more/1.txt", 0..30);
    wait_for(&scene, "more", 30);
    assert!(sequences(&scene, "more").iter().all(|sequence| *sequence >= from));

    let paused = answer(&scene, &["corpus", "pause", "more"])["from_sequence"].as_u64().unwrap();
    answer(&scene, &["corpus", "share", "en", "0.25"]);
    bring(&scene, "more/2.txt", 30..60);
    bring(&scene, "in/2.txt", 40..80);
    wait_for(&scene, "in", 80);
    kill(daemon);
    assert_eq!(labelled(&scene)["more"], 30);
    assert!(sequences(&scene, "more").iter().all(|sequence| *sequence < paused));

    let check = mergedistill(&["check", "--config", scene.config.to_str().unwrap()]).output().unwrap();
    for note in
        ["corpus more was added while the daemon ran", "corpus more was paused", "share of language en was set to 0.25"]
    {
        assert!(text(&check.stdout).contains(note), "{note}: {}", text(&check.stdout));
    }
    let daemon = start(&scene);
    assert_eq!(corpus(&scene, "more")["state"], "paused");
    let status = answer(&scene, &["status"]);
    let kinds: Vec<&Value> =
        status["corpora"]["changes"].as_array().unwrap().iter().map(|made| &made["change"]["kind"]).collect();
    assert_eq!(kinds, ["add_corpus", "pause_corpus", "set_share"]);
    assert_eq!(status["corpora"]["languages"][0]["overridden"], true);
    bring(&scene, "in/3.txt", 80..100);
    wait_for(&scene, "in", 100);
    assert_eq!(labelled(&scene)["more"], 30);
    let resumed = answer(&scene, &["corpus", "resume", "more"])["from_sequence"].as_u64().unwrap();
    wait_for(&scene, "more", 60);
    assert!(sequences(&scene, "more").iter().skip(30).all(|sequence| *sequence >= resumed));
    kill(daemon);
    scene.log_lines("verify");

    let daemon = start(&scene);
    bring(&scene, "more/3.txt", 60..70);
    wait_for(&scene, "more", 70);
    answer(&scene, &["shutdown"]);
    let (code, log) = daemon.finish();
    assert_eq!(code, Some(0), "{log}");
    assert_eq!(labelled(&scene), BTreeMap::from([("in".to_owned(), 100), ("more".to_owned(), 70)]));
}

#[test]
fn a_corpus_that_is_removed_goes_on_where_it_stood_when_it_is_added_again() {
    let scene = scene();
    let file = write_corpus(&scene, "pushed", "language = \"en\"\nsource = \"http\"");
    let daemon = start(&scene);
    assert!(text(&push(&scene, "pushed", 0..1).stderr).contains("unknown_corpus"));
    answer(&scene, &["corpus", "add", &file]);
    assert!(push(&scene, "pushed", 0..20).status.success());
    wait_for(&scene, "pushed", 20);
    answer(&scene, &["corpus", "pause", "pushed"]);
    assert!(push(&scene, "pushed", 20..30).status.success(), "what arrives while it is paused is kept");
    answer(&scene, &["corpus", "remove", "pushed"]);
    assert!(text(&push(&scene, "pushed", 0..1).stderr).contains("unknown_corpus"));
    assert_eq!(corpus(&scene, "pushed"), Value::Null);
    kill(daemon);

    let daemon = start(&scene);
    assert_eq!(corpus(&scene, "pushed"), Value::Null);
    assert_eq!(labelled(&scene)["pushed"], 20);
    answer(&scene, &["corpus", "add", &file]);
    wait_for(&scene, "pushed", 30);
    assert!(push(&scene, "pushed", 30..35).status.success());
    wait_for(&scene, "pushed", 35);
    // A corpus of the configuration file can go, too.
    answer(&scene, &["corpus", "remove", "in"]);
    kill(daemon);
    let daemon = start(&scene);
    assert_eq!(corpus(&scene, "in"), Value::Null);
    assert!(push(&scene, "pushed", 35..40).status.success());
    wait_for(&scene, "pushed", 40);
    answer(&scene, &["shutdown"]);
    let (code, log) = daemon.finish();
    assert_eq!(code, Some(0), "{log}");
    assert_eq!(labelled(&scene)["pushed"], 40);
}

#[test]
fn what_cannot_be_done_is_refused_with_the_reason() {
    let scene = scene();
    let daemon = start(&scene);
    refused(&scene, &["pause", "english"], "there is no corpus `english`; there is: in, ");
    refused(&scene, &["remove", "english"], "there is no corpus `english`; there is: in");
    refused(&scene, &["remove", "in"], "last corpus");
    refused(&scene, &["share", "fi", "0.5"], "there is no language `fi`; there is: de, en");
    refused(&scene, &["share", "en", "1.5"], "a share is above 0, and at most 1");
    let add = |name: &str, section: &str, expected: &str| {
        refused(&scene, &["add", &write_corpus(&scene, name, section)], expected);
    };
    add("in", "language = \"en\"\nsource = \"http\"", "corpus `in` is there already");
    add("fi", "language = \"fi\"\nsource = \"http\"", "no teacher has language `fi`");
    add("gone", "language = \"en\"\npath = \"gone/*.txt\"", "matches no file");
    add("odd", "language = \"en\"\nsource = \"http\"\nformta = \"text\"", "did you mean `format`?");
    add("pipe", "language = \"en\"\nsource = \"stdin\"", "opened when the daemon starts");
    add("two", "language = \"en\"\nsource = \"http\"\n[[corpus]]\nname = \"three\"", "it has 2 [[corpus]] tables");
    let status = answer(&scene, &["status"]);
    assert_eq!(status["corpora"]["changes"], json!([]));
    // What is asked for while a stage is paused is done all the same.
    answer(&scene, &["pause", "ingest"]);
    answer(&scene, &["corpus", "pause", "in"]);
    assert_eq!(corpus(&scene, "in")["state"], "paused");
    drop(daemon);
}

/// The windows of training know the corpus as open input from the moment that it is there.
#[test]
fn training_takes_up_a_corpus_that_is_added() {
    let all = configuration().replace("steps = 12", "schedule = \"trunk\"\nwhen_short = \"replay\"");
    let (from, to) = (all.find("[[corpus]]").unwrap(), all.find("[queue]").unwrap());
    let watched =
        "[[corpus]]\nname = \"in\"\nlanguage = \"en\"\nwatch = \"in\"\nsettle_seconds = 0.05\npoll_seconds = 0.05\n";
    let scene = Scene::new(&format!("{}{watched}{}", &all[..from], &all[to..]));
    fs::create_dir(scene.path("in")).unwrap();
    bring(&scene, "in/1.txt", 0..200);
    let daemon = start(&scene);
    let wait_for_window = |open: &Value| {
        until("a window", || {
            let journal = fs::read_to_string(scene.path("state/journal")).unwrap_or_default();
            let mut windows = journal.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            windows.rfind(|line| line["window"].is_u64()).is_some_and(|window| window["open"] == *open).then_some(())
        });
    };
    wait_for_window(&json!({"in": "en"}));
    let file = write_corpus(&scene, "more", "language = \"de\"\nsource = \"http\"");
    answer(&scene, &["corpus", "add", &file]);
    assert!(push(&scene, "more", 200..300).status.success());
    wait_for_window(&json!({"in": "en", "more": "de"}));
    answer(&scene, &["corpus", "remove", "more"]);
    wait_for_window(&json!({"in": "en"}));
    answer(&scene, &["shutdown"]);
    let (code, log) = daemon.finish();
    assert_eq!(code, Some(0), "{log}");
}

/// Who waits for what does not come is not helped by other text, which would fill the disk.
#[test]
fn the_log_is_bounded_while_training_waits_for_what_is_paused() {
    const LIMIT_BYTES: u64 = 1 << 20;
    let all = configuration().replace("steps = 12", "schedule = \"trunk\"");
    let all =
        all.replace("[[corpus]]", "[[corpus]]\nrounds = 1000000").replace("every_steps = 6", "every_steps = 1000000");
    let scene = Scene::new(&format!("{all}[store]\nsegment_bytes = 65536\nmax_backlog_bytes = {LIMIT_BYTES}\n"));
    let daemon = start(&scene);
    answer(&scene, &["corpus", "pause", "de"]);
    let status = || answer(&scene, &["status"]);
    let waiting = |status: &Value| status["stages"]["trainer"]["waiting"].as_str().map(str::to_owned);
    let mut last = (0, 0);
    let bytes = until("ingestion to wait", || {
        let status = status();
        let (bytes, end) = (status["log"]["bytes"].as_u64().unwrap(), status["log"]["durable"].as_u64().unwrap());
        last = if end == last.0 { (end, last.1 + 1) } else { (end, 0) };
        let is_paused = waiting(&status).is_some_and(|what| what == "labelled text of `de`, which is paused");
        (is_paused && bytes > LIMIT_BYTES && last.1 >= 20).then_some(bytes)
    });
    assert!(bytes < 6 * LIMIT_BYTES, "{bytes}");
    let step = |status: &Value| status["train"]["step"].as_u64().unwrap();
    let before = step(&status());
    answer(&scene, &["corpus", "resume", "de"]);
    until("training to go on", || (step(&status()) > before).then_some(()));
    answer(&scene, &["shutdown"]);
    let (code, log) = daemon.finish();
    assert_eq!(code, Some(0), "{log}");
}
