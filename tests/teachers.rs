//! A teacher that is added, paused and resumed while the daemon trains: it labels from a known entry on, the vocabulary grows at
//! its end, and whatever is killed meanwhile, the student is the one that log and journal say.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod harness;

use harness::{Daemon, Scene, checkpoint, configuration, mergedistill, text, until};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Stdio;

const DEMO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/demo");

/// Training without end, on text that does not end soon.
fn trunk() -> String {
    configuration()
        .replace("steps = 12", "schedule = \"trunk\"\nlambda_steps = 20")
        .replace("checkpoint_every_steps = 4", "checkpoint_every_steps = 10")
        .replace("every_steps = 6", "every_steps = 25")
        .replace("batch_tokens = 512", "batch_tokens = 256")
        .replace("language = \"en\"\npath", "language = \"en\"\nrounds = 400\npath")
        .replace("language = \"de\"\npath", "language = \"de\"\nrounds = 400\npath")
        .replace("[train]", "[store]\nmax_backlog_bytes = 1048576\nsync_interval_ms = 20\n[train]")
}

fn answer(scene: &Scene, arguments: &[&str]) -> Value {
    let output = scene.ctl(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn start(scene: &Scene) -> Daemon {
    let mut daemon = scene.start();
    daemon.address();
    daemon
}

fn stop(scene: &Scene, daemon: Daemon) -> String {
    answer(scene, &["shutdown"]);
    let (code, log) = daemon.finish();
    assert_eq!(code, Some(0), "{log}");
    log
}

fn wait_for_step(scene: &Scene, step: u64) {
    until("a step", || (answer(scene, &["status"])["train"]["step"].as_u64() >= Some(step)).then_some(()));
}

/// Waits until training has taken English records from entry `from` on, and a few steps more.
fn wait_until_read_from(scene: &Scene, from: u64) {
    until("training to get there", || {
        let next = journal(scene, "window").pop()?["state"]["cursors"]["en"]["next"].as_u64();
        (next > Some(from)).then_some(())
    });
    let at = step(scene);
    wait_for_step(scene, at + 10);
}

fn step(scene: &Scene) -> u64 {
    answer(scene, &["status"])["train"]["step"].as_u64().unwrap_or(0)
}

/// A file with a section for `teacher`, whose folder is that of a demo teacher.
fn write_teacher(scene: &Scene, name: &str, folder: &str, rest: &str) -> String {
    let file = scene.path(&format!("{name}.toml"));
    fs::write(&file, format!("[[teacher]]\nname = \"{name}\"\npath = \"{folder}\"\n{rest}\n")).unwrap();
    file.to_str().unwrap().to_owned()
}

/// The Spanish teacher, for English text: its tokens are new ones.
fn late_teacher(scene: &Scene) -> String {
    write_teacher(scene, "late", &format!("{DEMO}/teachers/demo-es"), "languages = [\"en\", \"es\"]")
}

fn words(scene: &Scene) -> Vec<String> {
    let words = fs::read_to_string(scene.path("state/vocab/vocab.txt")).unwrap();
    words.lines().map(str::to_owned).collect()
}

fn copies_of(record: &Value) -> Vec<&str> {
    record["copies"].as_array().unwrap().iter().map(|copy| copy["teacher"].as_str().unwrap()).collect()
}

/// Entries of the history that are about teachers: sequence number and kind.
fn history(scene: &Scene) -> Vec<(u64, String)> {
    let file: Value = serde_json::from_slice(&fs::read(scene.path("state/run.json")).unwrap()).unwrap();
    let entries = file["history"].as_array().unwrap().iter();
    let changes = entries.filter(|entry| entry["change"]["kind"].as_str().is_some_and(|kind| kind.contains("teacher")));
    changes
        .map(|entry| (entry["from_sequence"].as_u64().unwrap(), entry["change"]["kind"].as_str().unwrap().to_owned()))
        .collect()
}

/// Lines of the journal of this kind.
fn journal(scene: &Scene, event: &str) -> Vec<Value> {
    let text = fs::read_to_string(scene.path("state/journal")).unwrap();
    // The last line may be just being written.
    let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter(|line| line["event"] == event).collect()
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let (path, target) = entry.map(|entry| (entry.path(), to.join(entry.file_name()))).unwrap();
        if path.is_dir() {
            copy_folder(&path, &target);
        } else {
            fs::copy(&path, &target).unwrap();
        }
    }
}

/// Trains once more, from the start: from log, journal and history alone, without a kill, a release or anybody who labels. The
/// weights must be those that `scene` had after `step`.
fn check_replay(scene: &Scene, step: u64) {
    let all = fs::read_to_string(&scene.config).unwrap();
    let (from, to) = (all.find("[[corpus]]").unwrap(), all.find("[queue]").unwrap());
    let replay = Scene::new(&format!("{}{}", &all[..from], &all[to..]));
    copy_folder(&scene.path("state/log"), &replay.path("state/log"));
    for file in ["journal", "run.json"] {
        fs::copy(scene.path("state").join(file), replay.path("state").join(file)).unwrap();
    }
    let output = replay.run(&["--until-step", &step.to_string()]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(checkpoint(&replay, step) == checkpoint(scene, step), "the trunks differ after step {step}");
    let journals = [scene, &replay].map(|scene| fs::read_to_string(scene.path("state/journal")).unwrap());
    assert!(journals[0] == journals[1], "the replay noted something else");
}

#[test]
fn a_teacher_that_is_added_labels_and_teaches_from_a_known_entry_on() {
    let scene = Scene::new(&trunk());
    let late = late_teacher(&scene);
    let mut daemon = scene.start();
    let address = daemon.address();
    daemon.wait_for("checkpoint written").unwrap();
    let before = words(&scene);
    let added = answer(&scene, &["teacher", "add", &late]);
    assert_eq!(
        (&added["change"]["kind"], &added["change"]["teacher"]["name"]),
        (&json!("add_teacher"), &json!("late"))
    );
    let from = added["from_sequence"].as_u64().unwrap();
    let at = step(&scene);
    assert!(at >= 10, "training goes on where it was");
    wait_until_read_from(&scene, from);
    let listed = answer(&scene, &["teacher", "list"]);
    assert_eq!((&listed["late"]["index"], &listed["late"]["labels"]), (&json!(2), &json!(true)));
    // The same server, and figures of the new stages.
    let (code, scrape) = harness::http(&address, "/metrics", &address);
    assert_eq!(code, 200);
    assert!(scrape.contains("mergedistill_teacher_tokens_total{teacher=\"late\"}"), "{scrape}");
    assert_eq!(scrape.matches("\nmergedistill_train_step ").count(), 1);
    assert_eq!(harness::http(&address, "/readyz", &address).0, 200);
    let log = stop(&scene, daemon);
    assert!(!log.contains("ERROR"), "{log}");

    let records = scene.log_lines("dump");
    let of_english = |record: &&Value| record["language"] == "en";
    assert!(records.iter().filter(of_english).any(|record| record["seq"].as_u64() >= Some(from)));
    for record in records.iter().filter(of_english) {
        let expected: &[&str] = match record["seq"].as_u64() >= Some(from) {
            true => &["demo-en", "demo-en-de", "late"],
            false => &["demo-en", "demo-en-de"],
        };
        assert_eq!(copies_of(record), expected, "{}", record["seq"]);
        assert!(record["copies"].as_array().unwrap().iter().all(|copy| copy["top_ids"].is_array()));
    }
    scene.log_lines("verify");
    let after = words(&scene);
    assert!(after.len() > before.len() && after.starts_with(&before), "ids never change");
    let growth = &journal(&scene, "vocabulary_growth")[..];
    assert_eq!(growth.len(), 1);
    assert_eq!((&growth[0]["from_size"], &growth[0]["to_size"]), (&json!(before.len()), &json!(after.len())));
    assert_eq!(history(&scene), [(from, "add_teacher".to_owned())]);
    let last = scene.metrics().iter().filter_map(|line| line["step"].as_u64()).max().unwrap();
    check_replay(&scene, last);

    // The next start has it too, and so has one whose file lists it.
    let check = mergedistill(&["check", "--config", scene.config.to_str().unwrap()]).output().unwrap();
    assert!(text(&check.stdout).contains("teacher late was added while the daemon ran"), "{}", text(&check.stdout));
    let section = fs::read_to_string(&late).unwrap();
    fs::write(&scene.config, format!("{section}\n{}", trunk())).unwrap();
    let output = scene.run(&["--until-step", &(last + 5).to_string()]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("the configuration file has it too"), "{}", text(&output.stderr));
}

/// Asks for the late teacher, and kills the daemon when its log says `moment`.
fn kill_while_adding(scene: &Scene, moment: &str) {
    let mut daemon = start(scene);
    let at = step(scene);
    wait_for_step(scene, at + 7);
    let (late, socket) = (late_teacher(scene), scene.path("state/control.sock"));
    let ask = ["ctl", "--socket", socket.to_str().unwrap(), "teacher", "add", &late];
    let mut ask = mergedistill(&ask);
    let mut asking = ask.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    assert!(daemon.wait_for(moment).is_some(), "{moment}");
    daemon.signal("KILL");
    asking.wait().unwrap();
    assert_eq!(daemon.finish().0, None);
    scene.log_lines("verify");
}

#[test]
fn sigkill_around_an_addition_changes_nothing() {
    // What the log says when the daemon is killed: before the note in run.json, and after it.
    let moments: [(&[&str], &str); 3] = [
        (&["opening the stages anew"], "the vocabulary grows at its end"),
        (&["stage=\"teacher\""], "the student has grown"),
        (&["training stopped", "stage=\"log\""], "teacher late added"),
    ];
    for (before, after) in moments {
        let scene = Scene::new(&trunk());
        for moment in before {
            kill_while_adding(&scene, moment);
            // The last stage may have ended before the kill came.
            if !history(&scene).is_empty() {
                break;
            }
        }
        if history(&scene).is_empty() {
            kill_while_adding(&scene, after);
        }
        assert_eq!(history(&scene).len(), 1, "{after}");
        let daemon = start(&scene);
        assert_eq!(answer(&scene, &["teacher", "list"])["late"]["index"], 2);
        wait_until_read_from(&scene, history(&scene)[0].0);
        stop(&scene, daemon);
        assert_eq!(journal(&scene, "vocabulary_growth").len(), 1, "{after}");
        let mut keys = BTreeSet::new();
        for record in scene.log_lines("dump") {
            let key = ["source", "document", "span", "round"].map(|field| record[field].to_string());
            assert!(keys.insert(key), "twice in the log: {record}");
        }
        let last = scene.metrics().iter().filter_map(|line| line["step"].as_u64()).max().unwrap();
        check_replay(&scene, last);
    }
}

#[test]
fn releases_an_addition_live_changes_a_reload_and_kills_leave_the_trunk_as_log_and_journal_say() {
    let scene = Scene::new(&trunk());
    let late = late_teacher(&scene);
    let release = |is_so: &dyn Fn(&Value) -> bool| {
        until("the release", || {
            let release = answer(&scene, &["status"])["release"].clone();
            is_so(&release).then_some(release)
        })
    };
    let mut daemon = start(&scene);
    daemon.wait_for("checkpoint written").unwrap();
    answer(&scene, &["release", "--steps", "120"]);
    release(&|release| release["step"].as_u64() >= Some(10));
    // The release goes on with the vocabulary as it is then.
    let from = answer(&scene, &["teacher", "add", &late])["from_sequence"].as_u64().unwrap();
    let done = release(&|release| release["state"] != "running");
    assert_eq!((&done["state"], &done["step"], &done["error"]), (&json!("done"), &json!(120), &Value::Null));
    answer(&scene, &["corpus", "share", "de", "0.5"]);
    // The file changes in the middle: rates, shares, the schedule of checkpoints.
    let all = fs::read_to_string(&scene.config).unwrap();
    let rates = "warmup_steps = 2\nlearning_rate = 2e-3\nlambda_floor = 0.25\nweight_decay = 0.1";
    let changed = all
        .replace("warmup_steps = 2", rates)
        .replace("checkpoint_every_steps = 10", "checkpoint_every_steps = 15")
        .replace("[train]", "[sampling]\nalpha = 0.2\n[train]");
    fs::write(&scene.config, changed).unwrap();
    let reloaded = answer(&scene, &["reload"]);
    assert_eq!(reloaded["changed"].as_array().unwrap().len(), 5, "{reloaded}");
    assert_eq!(reloaded["refused"], json!([]));
    let settings = journal(&scene, "settings");
    assert_eq!(settings.len(), 2);
    assert_eq!((&settings[1]["learning_rate"], &settings[1]["alpha"]), (&json!(2e-3), &json!(0.2)));
    let at = settings[1]["step"].as_u64().unwrap();
    wait_for_step(&scene, at + 15);
    let rate = |step: u64| {
        let lines = scene.metrics();
        let line = lines.iter().find(|line| line["step"] == step && line["learning_rate"].is_number()).unwrap();
        line["learning_rate"].as_f64().unwrap()
    };
    // Lines are numbered by the steps that are done.
    assert_eq!((rate(at), rate(at + 1)), (5e-4, 2e-3));
    daemon.signal("KILL");
    assert_eq!(daemon.finish().0, None);

    let daemon = start(&scene);
    let begun = answer(&scene, &["release", "--steps", "60"]);
    release(&|release| release["step"].as_u64() >= Some(20));
    daemon.signal("KILL");
    assert_eq!(daemon.finish().0, None);
    let daemon = start(&scene);
    let done = release(&|release| release["state"] != "running");
    assert_eq!((&done["name"], &done["state"]), (&begun["name"], &json!("done")));
    wait_until_read_from(&scene, from);
    stop(&scene, daemon);
    let after = words(&scene);
    for release in fs::read_dir(scene.path("state/releases")).unwrap() {
        let student = fs::read_to_string(release.unwrap().path().join("student/vocab.txt")).unwrap();
        assert!(
            student.lines().eq(after.iter().map(String::as_str)),
            "a release has the tokens of the new teacher too"
        );
    }
    assert_eq!(journal(&scene, "settings").len(), 2, "no start has changed anything");
    let last = scene.metrics().iter().filter_map(|line| line["step"].as_u64()).max().unwrap();
    check_replay(&scene, last);
}

#[test]
fn a_teacher_that_pauses_gets_no_copies_over_a_restart() {
    let scene = Scene::new(&trunk());
    let daemon = start(&scene);
    let durable = || answer(&scene, &["status"])["log"]["durable"].as_u64().unwrap();
    let grow = |by: u64| {
        let from = durable();
        until("entries", || (durable() >= from + by).then_some(()));
    };
    grow(60);
    let paused = answer(&scene, &["teacher", "pause", "demo-en-de"])["from_sequence"].as_u64().unwrap();
    // Nobody else knows German.
    let status = until("the corpus to pause", || {
        let status = answer(&scene, &["status"]);
        (status["corpora"]["corpora"][1]["state"] == "paused").then_some(status)
    });
    assert_eq!(
        (&status["teachers"]["demo-en-de"]["paused"], &status["teachers"]["demo-en"]["paused"]),
        (&json!(true), &json!(false))
    );
    let printed = mergedistill(&["ctl", "--socket", scene.path("state/control.sock").to_str().unwrap(), "status"]);
    assert!(text(&{ printed }.output().unwrap().stdout).contains("─demo-en-de  paused"));
    daemon.signal("KILL");
    assert_eq!(daemon.finish().0, None);
    let daemon = start(&scene);
    assert_eq!(answer(&scene, &["teacher", "list"])["demo-en-de"]["paused"], true);
    // Entries before it that were not durable are drawn again, with it.
    let paused = history(&scene)[0].0.min(paused);
    until("entries", || (durable() >= paused + 40).then_some(()));
    let resumed = answer(&scene, &["teacher", "resume", "demo-en-de"])["from_sequence"].as_u64().unwrap();
    until("entries", || (durable() >= resumed + 40).then_some(()));
    stop(&scene, daemon);
    for record in scene.log_lines("dump") {
        let sequence = record["seq"].as_u64().unwrap();
        let pauses = (paused..resumed).contains(&sequence);
        let expected: &[&str] = match (record["language"].as_str().unwrap(), pauses) {
            ("en", true) => &["demo-en"],
            ("en", false) => &["demo-en", "demo-en-de"],
            ("de", false) => &["demo-en-de"],
            other => panic!("entry {sequence}: {other:?}"),
        };
        assert_eq!(copies_of(&record), expected, "entry {sequence}");
    }
    scene.log_lines("verify");
    assert_eq!(history(&scene), [(paused, "pause_teacher".to_owned()), (resumed, "resume_teacher".to_owned())]);
}

/// The inbox of a corpus of one language is open all the time; one whose documents say their language knows the new one then.
#[test]
fn documents_are_taken_while_a_teacher_is_added() {
    let all = configuration();
    let scene = Scene::new(&format!(
        "{}[[corpus]]\nname = \"plain\"\nlanguage = \"en\"\nsource = \"http\"\nformat = \"jsonl\"\n\
         [[corpus]]\nname = \"mixed\"\nlanguage_field = \"language\"\nsource = \"http\"\nformat = \"jsonl\"\n\
         [queue]\nbatch_tokens = 256\nlinger_ms = 5\n[store]\nsync_interval_ms = 5\nmax_sequence_length = 32\n",
        &all[..all.find("[[corpus]]").unwrap()]
    ));
    let (late, socket) = (late_teacher(&scene), scene.path("state/control.sock"));
    let daemon = start(&scene);
    let push = |corpus: &str, number: usize, language: &str| {
        let file = scene.path("pushed.jsonl");
        let document = json!({"text": format!("Boat number {number} came back to the harbour."), "language": language});
        fs::write(&file, format!("{document}\n")).unwrap();
        let output = scene.ctl(&["push", "--corpus", corpus, file.to_str().unwrap()]);
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
        let accepted = answer["accepted"].as_u64().unwrap();
        assert_eq!(output.status.code(), Some(if accepted > 0 { 0 } else { 65 }), "{}", text(&output.stderr));
        accepted
    };
    assert_eq!((push("mixed", 0, "de"), push("mixed", 0, "es")), (1, 0), "nobody knows Spanish");
    let ask = ["ctl", "--socket", socket.to_str().unwrap(), "teacher", "add", &late];
    let mut adding = mergedistill(&ask).stdout(Stdio::null()).spawn().unwrap();
    let mut pushed = 0;
    while adding.try_wait().unwrap().is_none() {
        assert_eq!(push("plain", pushed, "en"), 1);
        pushed += 1;
    }
    assert!(adding.wait().unwrap().success());
    assert_eq!((push("mixed", 1, "es"), push("mixed", 2, "en")), (1, 1));
    let labelled = || {
        let records = scene.log_lines("dump");
        let field = |record: &Value, name: &str| record[name].as_str().unwrap().to_owned();
        let documents = records.iter().map(|record| (field(record, "source"), field(record, "document")));
        let documents: Vec<_> = documents.collect();
        assert_eq!(documents.iter().collect::<BTreeSet<_>>().len(), documents.len(), "twice: {documents:?}");
        let sources = ["plain", "mixed:de", "mixed:es", "mixed:en"];
        sources.map(|source| documents.iter().filter(|(found, _)| found == source).count())
    };
    until("all documents", || (labelled() == [pushed, 1, 1, 1]).then_some(()));
    stop(&scene, daemon);
    assert_eq!(labelled(), [pushed, 1, 1, 1]);
}

/// A reload that is asked for meanwhile waits for the new stages.
#[test]
fn a_sighup_while_a_teacher_is_added_is_not_lost() {
    let scene = Scene::new(&trunk());
    let (late, socket) = (late_teacher(&scene), scene.path("state/control.sock"));
    let mut daemon = start(&scene);
    wait_for_step(&scene, 3);
    let file = fs::read_to_string(&scene.config).unwrap();
    assert!(file.contains("warmup_steps = 2\n"));
    fs::write(&scene.config, file.replace("warmup_steps = 2\n", "warmup_steps = 2\nlearning_rate = 2e-3\n")).unwrap();
    let ask = ["ctl", "--socket", socket.to_str().unwrap(), "teacher", "add", &late];
    let mut adding = mergedistill(&ask).stdout(Stdio::null()).spawn().unwrap();
    daemon.wait_for("opening the stages anew").unwrap();
    daemon.signal("HUP");
    daemon.wait_for("changed by a reload").unwrap();
    assert!(adding.wait().unwrap().success());
    assert_eq!(journal(&scene, "settings").last().unwrap()["learning_rate"], json!(2e-3));
    stop(&scene, daemon);
}

#[test]
fn what_cannot_be_added_is_refused_with_the_reason() {
    let scene = Scene::new(&trunk());
    let daemon = start(&scene);
    let refused = |arguments: &[&str], expected: &str| {
        let output = scene.ctl(&[&["teacher"], arguments].concat());
        assert!(!output.status.success(), "{arguments:?}");
        assert!(text(&output.stderr).contains(expected), "{arguments:?}: {}", text(&output.stderr));
    };
    refused(&["pause", "nobody"], "there is no teacher `nobody`; there is: demo-en, demo-en-de (unknown_teacher)");
    let add = |name: &str, folder: &str, rest: &str, expected: &str| {
        refused(&["add", &write_teacher(&scene, name, folder, rest)], expected);
    };
    let (en, languages) = (format!("{DEMO}/teachers/demo-en"), "languages = [\"en\"]");
    add("demo-en", &en, languages, "a teacher `demo-en` is there already; names must differ (teacher_exists)");
    add("gone", "nowhere", languages, "there is no folder");
    add("none", &en, "", "teacher[none].languages: missing");
    add("gpu", &en, "languages = [\"en\"]\ndevice = \"cuda\"", "is not a device; use");
    add("odd", &en, "languages = [\"en\"]\nlabel = false", "did you mean `labels`?");
    // Weights that are not whole are found out before anything stops.
    let broken = scene.path("broken");
    copy_folder(Path::new(&en), &broken);
    let weights = fs::read(broken.join("model.safetensors")).unwrap();
    fs::write(broken.join("model.safetensors"), &weights[..weights.len() / 2]).unwrap();
    add("broken", broken.to_str().unwrap(), languages, "(invalid_teacher)");
    assert_eq!(answer(&scene, &["status"])["corpora"]["changes"], json!([]));
    assert!(history(&scene).is_empty());
    let log = stop(&scene, daemon);
    assert!(!log.contains("opening the stages anew"));
}
