//! Reading the configuration again while the daemon runs, through the real binary: what changes live takes effect, what does not is
//! refused with the reason, a broken file changes nothing, and a restart goes on as it was.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod harness;

use harness::{Daemon, Scene, checkpoint, configuration, http, metric, text, until};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

/// What would take effect without a reload takes at least twice as long.
const SOON: Duration = Duration::from_secs(30);

/// Training without end.
fn trunk() -> String {
    configuration()
        .replace("steps = 12", "schedule = \"trunk\"")
        .replace("checkpoint_every_steps = 4", "checkpoint_every_steps = 1000000")
        .replace("every_steps = 6", "every_steps = 1000000")
        .replace("batch_tokens = 512", "batch_tokens = 256")
        .replace("language = \"en\"\npath", "language = \"en\"\nrounds = 400\npath")
        .replace("language = \"de\"\npath", "language = \"de\"\nrounds = 400\npath")
        .replace("[train]", "[store]\nmax_backlog_bytes = 1048576\nsync_interval_ms = 20\n[train]")
}

/// Labels what comes in one watched folder; trains nothing.
fn labelling(rest: &str) -> Scene {
    let all = configuration();
    let teachers = &all[..all.find("[[corpus]]").unwrap()];
    let scene = Scene::new(&format!(
        "{teachers}[[corpus]]\nname = \"in\"\nlanguage = \"en\"\nwatch = \"in\"\nsettle_seconds = 0.05\npoll_seconds = 0.05\n{rest}"
    ));
    fs::create_dir(scene.path("in")).unwrap();
    scene
}

fn start(scene: &Scene) -> (Daemon, String) {
    let mut daemon = scene.start();
    let address = daemon.address();
    (daemon, address)
}

fn stop(scene: &Scene, daemon: Daemon) -> String {
    answer(scene, &["shutdown"]);
    let (code, log) = daemon.finish();
    assert_eq!(code, Some(0), "{log}");
    log
}

fn answer(scene: &Scene, arguments: &[&str]) -> Value {
    let output = scene.ctl(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Writes the file with `from` replaced by `to`.
fn edit(scene: &Scene, from: &str, to: &str) {
    let text = fs::read_to_string(&scene.config).unwrap();
    assert_eq!(text.matches(from).count(), 1, "{from}");
    fs::write(&scene.config, text.replace(from, to)).unwrap();
}

/// Reloads, which must refuse nothing. Returns the keys that were changed.
fn reload(scene: &Scene) -> Vec<String> {
    let answer = answer(scene, &["reload"]);
    assert_eq!(answer["refused"], json!([]), "{answer}");
    keys(&answer["changed"])
}

fn keys(list: &Value) -> Vec<String> {
    list.as_array().unwrap().iter().map(|entry| entry["key"].as_str().unwrap().to_owned()).collect()
}

fn status(scene: &Scene) -> Value {
    answer(scene, &["status"])
}

fn step(scene: &Scene) -> u64 {
    status(scene)["train"]["step"].as_u64().unwrap_or(0)
}

fn wait_for_step(scene: &Scene, wanted: u64) {
    until("a step", || (step(scene) >= wanted).then_some(()));
}

fn figure(address: &str, name: &str) -> f64 {
    metric(&http(address, "/metrics", address).1, name)
}

/// Lines of the journal of this kind.
fn journal(scene: &Scene, event: &str) -> Vec<Value> {
    let text = fs::read_to_string(scene.path("state/journal")).unwrap();
    // The last line may be just being written.
    let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter(|line| line["event"] == event).collect()
}

/// What `metrics.jsonl` says of a step that was made.
fn line_of(scene: &Scene, step: u64) -> Value {
    let lines = scene.metrics();
    lines.into_iter().find(|line| line["step"] == step && line["learning_rate"].is_number()).unwrap()
}

/// Renames a file with documents of these numbers into the watched folder.
fn bring(scene: &Scene, name: &str, numbers: std::ops::Range<usize>) {
    let documents = numbers.map(|number| format!("Boat number {number} came back to the harbour in the evening.\n\n"));
    fs::write(scene.path("file.tmp"), documents.collect::<String>()).unwrap();
    fs::rename(scene.path("file.tmp"), scene.path(name)).unwrap();
}

fn events_of_history(scene: &Scene) -> Vec<String> {
    let file: Value = serde_json::from_slice(&fs::read(scene.path("state/run.json")).unwrap()).unwrap();
    file["history"].as_array().unwrap().iter().map(|entry| entry["event"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn training_goes_on_under_other_settings() {
    let scene = Scene::new(&trunk());
    let (mut daemon, _) = start(&scene);
    wait_for_step(&scene, 5);
    edit(
        &scene,
        "warmup_steps = 2",
        "warmup_steps = 2\nlearning_rate = 2e-3\nlambda_floor = 0.25\nweight_decay = 0.2\nclip_norm = 0.5\nkeep_checkpoints = 2",
    );
    edit(&scene, "checkpoint_every_steps = 1000000", "checkpoint_every_steps = 7");
    edit(&scene, "every_steps = 1000000\nmax_examples = 8", "every_steps = 5\nmax_examples = 3");
    edit(&scene, "[store]", "[sampling]\nalpha = 0.0\n[store]");
    let share = |language: &str| {
        let status = status(&scene);
        let languages = status["corpora"]["languages"].clone();
        let find = |languages: &Value| match languages {
            Value::Array(languages) => languages.iter().find(|entry| entry["language"] == language).cloned(),
            languages => languages.get(language).cloned(),
        };
        find(&languages).unwrap_or_else(|| panic!("{languages}"))["share"].as_f64().unwrap()
    };
    assert!((share("en") - 0.5).abs() > 1e-3, "the languages are not of one size");
    daemon.signal("HUP");
    daemon.wait_for("SIGHUP: reading the configuration again").unwrap();
    // The reload says so at its end.
    daemon.wait_for("changed by a reload change=\"train.weight_decay 0.01 → 0.2\"").unwrap();
    until("α in force", || ((share("en") - 0.5).abs() < 1e-9).then_some(()));
    let settings = journal(&scene, "settings");
    assert_eq!(settings.len(), 2);
    let (at, after) = (settings[1]["step"].as_u64().unwrap(), &settings[1]);
    for (key, value) in [("learning_rate", 2e-3), ("weight_decay", 0.2), ("clip_norm", 0.5), ("alpha", 0.0)] {
        assert_eq!(after[key], json!(value));
    }
    wait_for_step(&scene, at + 25);
    let rates = |step: u64| {
        let line = line_of(&scene, step);
        (line["learning_rate"].as_f64().unwrap(), line["lambda"].as_f64().unwrap())
    };
    assert_eq!((rates(at), rates(at + 1)), ((5e-4, 0.5), (2e-3, 0.25)));
    let evaluated: Vec<u64> = scene
        .metrics()
        .iter()
        .filter(|line| line["evaluation"].is_object() && line["step"] != 0)
        .map(|line| line["step"].as_u64().unwrap())
        .collect();
    assert!(
        evaluated.len() >= 4 && evaluated.iter().all(|step| *step > at - 1 && step.is_multiple_of(5)),
        "{evaluated:?}"
    );
    let checkpoints = || -> BTreeSet<u64> {
        let names = fs::read_dir(scene.path("state/checkpoints")).unwrap();
        let names = names.map(|entry| entry.unwrap().file_name().to_str().unwrap().to_owned());
        names.filter_map(|name| name.strip_prefix("step-")?.parse().ok()).collect()
    };
    until("two checkpoints of the new schedule", || {
        let steps = checkpoints();
        (steps.len() == 2 && steps.iter().all(|step| step.is_multiple_of(7))).then_some(())
    });

    // A restart with the same file changes nothing; nor does a reload.
    daemon.signal("KILL");
    assert_eq!(daemon.finish().0, None);
    let (daemon, _) = start(&scene);
    assert_eq!(reload(&scene), [""; 0]);
    wait_for_step(&scene, step(&scene) + 3);
    assert_eq!(journal(&scene, "settings").len(), 2);
    stop(&scene, daemon);
    let events = events_of_history(&scene);
    assert!(
        events
            .iter()
            .any(|event| event.starts_with("reloaded: ") && event.contains("train.learning_rate 0.0005 → 0.002"))
    );
    assert!(events.contains(&"sampling.alpha set to 0".to_owned()), "{events:?}");
}

#[test]
fn the_log_is_made_durable_and_removed_as_the_file_says() {
    let scene = labelling(
        "[queue]\nbatch_tokens = 256\nlinger_ms = 3600000\n[store]\nsync_interval_ms = 60000\nsegment_bytes = 65536\nmax_sequence_length = 32\n",
    );
    let (daemon, address) = start(&scene);
    bring(&scene, "in/1.txt", 0..1);
    until("the document to be read", || (figure(&address, "mergedistill_ingest_documents_total") >= 1.0).then_some(()));
    // A group that nobody fills waits for an hour.
    assert_eq!(figure(&address, "mergedistill_log_appended_sequence"), 0.0);
    edit(&scene, "linger_ms = 3600000", "linger_ms = 5");
    assert_eq!(reload(&scene), ["queue.linger_ms"]);
    let asked = Instant::now();
    until("the group to be handed on", || {
        (figure(&address, "mergedistill_log_appended_sequence") >= 1.0).then_some(())
    });
    edit(&scene, "sync_interval_ms = 60000", "sync_interval_ms = 5");
    assert_eq!(reload(&scene), ["store.sync_interval_ms"]);
    until("what was appended to be durable", || (status(&scene)["log"]["durable"].as_u64() >= Some(1)).then_some(()));
    assert!(asked.elapsed() < SOON, "{:?}", asked.elapsed());

    bring(&scene, "in/2.txt", 1..1500);
    let log = || status(&scene)["log"].clone();
    until("segments", || (log()["segments"].as_u64() >= Some(5)).then_some(()));
    assert_eq!(log()["begin"], 0);
    edit(&scene, "segment_bytes = 65536", "segment_bytes = 65536\nretain_bytes = 131072");
    assert_eq!(reload(&scene), ["store.retain_bytes"]);
    until("segments to go", || (log()["begin"].as_u64() > Some(0)).then_some(()));
    // Until the next reload the limit may be another one.
    let set = answer(&scene, &["retention", "--bytes", "10000000"]);
    assert_eq!(set, json!({"retain_bytes": 10_000_000, "retain_hours": 0.0}));
    assert_eq!(answer(&scene, &["retention"]), set);
    let refused = scene.ctl(&["retention", "--bytes", "5"]);
    assert!(text(&refused.stderr).contains("less than one segment (65536)"), "{}", text(&refused.stderr));
    assert_eq!(reload(&scene), ["store.retain_bytes"]);
    assert_eq!(answer(&scene, &["retention"])["retain_bytes"], 131_072);
    stop(&scene, daemon);
    scene.log_lines("verify");
}

#[test]
fn limits_change_at_once() {
    let scene = Scene::new(&format!(
        "{}[[corpus]]\nname = \"pushed\"\nlanguage = \"en\"\nsource = \"http\"\nformat = \"jsonl\"\n",
        trunk()
    ));
    let (daemon, address) = start(&scene);
    let limit = || figure(&address, "mergedistill_log_backlog_limit_bytes");
    assert_eq!(limit(), 1_048_576.0);
    answer(&scene, &["pause", "trainer"]);
    let backlog = || figure(&address, "mergedistill_log_backlog_bytes");
    until("the backlog to be full", || (backlog() >= 1_048_576.0).then_some(()));
    edit(&scene, "max_backlog_bytes = 1048576", "max_backlog_bytes = 2097152");
    edit(&scene, "batch_tokens = 256", "batch_tokens = 256\ninbox_bytes = 70000000");
    edit(&scene, "name = \"demo-en\"\n", "name = \"demo-en\"\nstall_seconds = 0.001\n");
    fs::write(&scene.config, fs::read_to_string(&scene.config).unwrap() + "[quarantine]\nmax_bytes = 2000000\n")
        .unwrap();
    let changed = reload(&scene);
    let expected =
        ["quarantine.max_bytes", "queue.inbox_bytes", "store.max_backlog_bytes", "teacher[demo-en].stall_seconds"];
    assert_eq!(changed, expected);
    assert_eq!((limit(), figure(&address, "mergedistill_inbox_limit_bytes")), (2_097_152.0, 70_000_000.0));
    assert_eq!(status(&scene)["inboxes"]["pushed"]["limit_bytes"], 70_000_000);
    until("the new limit to be reached", || (backlog() >= 2_097_152.0).then_some(()));
    let shown: Value = serde_json::from_str(&http(&address, "/v1/configuration", &address).1).unwrap();
    assert_eq!(
        (&shown["store"]["max_backlog_bytes"], &shown["quarantine"]["max_bytes"]),
        (&json!(2_097_152), &json!(2_000_000))
    );
    daemon.signal("KILL");
    daemon.finish();
}

#[test]
fn a_file_with_problems_changes_nothing() {
    let scene = Scene::new(&trunk());
    let (mut daemon, address) = start(&scene);
    let before = http(&address, "/v1/configuration", &address).1;
    let good = fs::read_to_string(&scene.config).unwrap();
    edit(
        &scene,
        "warmup_steps = 2",
        "warmup_steps = 2\nlearning_rate = 2e-3\nlearning_rates = 1\nclip_norm = \"much\"",
    );
    let output = scene.ctl(&["reload"]);
    assert_eq!(output.status.code(), Some(78));
    let message = text(&output.stderr);
    for part in [
        "2 problems",
        "train.learning_rates: unknown key",
        "train.clip_norm: must be a number",
        "(invalid_configuration)",
    ] {
        assert!(message.contains(part), "{part}: {message}");
    }
    daemon.signal("HUP");
    daemon.wait_for("the configuration stays as it was").unwrap();
    fs::remove_file(&scene.config).unwrap();
    assert_eq!(scene.ctl(&["reload"]).status.code(), Some(78));
    assert_eq!(http(&address, "/v1/configuration", &address).1, before);
    wait_for_step(&scene, 3);
    assert_eq!(journal(&scene, "settings").len(), 1);
    fs::write(&scene.config, good).unwrap();
    assert_eq!(reload(&scene), [""; 0]);
    stop(&scene, daemon);
}

#[test]
fn what_needs_a_restart_is_refused_with_the_reason_and_the_rest_changes() {
    let scene = Scene::new(&trunk());
    let (daemon, address) = start(&scene);
    wait_for_step(&scene, 2);
    edit(&scene, "warmup_steps = 2", "warmup_steps = 2\nlearning_rate = 2e-3");
    edit(&scene, "batch_examples = 8", "batch_examples = 4");
    edit(&scene, "holdout_fraction = 0.1", "holdout_fraction = 0.2");
    edit(
        &scene,
        "rounds = 400\npath = \"{demo}/corpora/de.txt\""
            .replace("{demo}", concat!(env!("CARGO_MANIFEST_DIR"), "/demo"))
            .as_str(),
        "rounds = 300\npath = \"nowhere.txt\"",
    );
    let third = format!(
        "[[teacher]]\nname = \"late\"\npath = \"{}/demo/teachers/demo-es\"\nlanguages = [\"es\"]\n",
        env!("CARGO_MANIFEST_DIR")
    );
    let text_of_file = fs::read_to_string(&scene.config).unwrap();
    fs::write(&scene.config, format!("[run]\nseed = 7\n{third}{text_of_file}")).unwrap();
    let output = scene.ctl(&["reload"]);
    assert_eq!(output.status.code(), Some(75));
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(keys(&answer["changed"]), ["train.learning_rate"]);
    let refused = ["corpus[de]", "evaluate.holdout_fraction", "run.seed", "teacher[late]", "train.batch_examples"];
    let mut found = keys(&answer["refused"]);
    found.sort();
    assert_eq!(found, refused);
    let message = text(&output.stderr);
    for part in [
        "5 keys were not changed",
        "run.seed: cannot change: it says what the log is; another value needs another run.state_dir",
        "teacher[late]: needs a restart: a run gets a teacher so, or by `mergedistill ctl teacher add`",
        "train.batch_examples: needs a restart",
    ] {
        assert!(message.contains(part), "{part}: {message}");
    }
    let shown: Value = serde_json::from_str(&http(&address, "/v1/configuration", &address).1).unwrap();
    assert_eq!((&shown["train"]["learning_rate"], &shown["train"]["batch_examples"]), (&json!(2e-3), &json!(8)));
    stop(&scene, daemon);
}

#[test]
fn corpora_come_and_go_with_the_file() {
    let scene = labelling(
        "[queue]\nbatch_tokens = 256\nlinger_ms = 5\n[store]\nsync_interval_ms = 5\nmax_sequence_length = 32\n",
    );
    let more = "[[corpus]]\nname = \"more\"\nlanguage = \"de\"\nwatch = \"more\"\nsettle_seconds = 0.05\npoll_seconds = 0.05\n";
    fs::create_dir(scene.path("more")).unwrap();
    let documents = |source: &str| -> Vec<String> {
        let records = scene.log_lines("dump").into_iter().filter(|record| record["source"] == source);
        records.map(|record| record["document"].as_str().unwrap().to_owned()).collect()
    };
    let wait_for = |source: &str, count: usize| {
        until("documents", || (documents(source).len() >= count).then_some(()));
        let found = documents(source);
        assert_eq!(found.iter().collect::<BTreeSet<_>>().len(), found.len(), "twice: {found:?}");
    };
    let (daemon, _) = start(&scene);
    bring(&scene, "in/1.txt", 0..10);
    wait_for("in", 10);
    let without = fs::read_to_string(&scene.config).unwrap();
    fs::write(&scene.config, format!("{more}{without}")).unwrap();
    assert_eq!(reload(&scene), ["corpus[more]"]);
    // It stands before the other one in the file, and came after it.
    assert_eq!(reload(&scene), [""; 0]);
    bring(&scene, "more/1.txt", 0..10);
    wait_for("more", 10);
    daemon.signal("KILL");
    daemon.finish();

    // The file has it, so a start reads it; taken out of the file it is read no more, and put back it goes on where it stood.
    let (daemon, _) = start(&scene);
    assert_eq!(reload(&scene), [""; 0]);
    bring(&scene, "more/2.txt", 10..20);
    wait_for("more", 20);
    fs::write(&scene.config, &without).unwrap();
    assert_eq!(reload(&scene), ["corpus[more]"]);
    bring(&scene, "more/3.txt", 20..30);
    bring(&scene, "in/2.txt", 10..20);
    wait_for("in", 20);
    assert_eq!(documents("more").len(), 20);
    fs::write(&scene.config, format!("{more}{without}")).unwrap();
    assert_eq!(reload(&scene), ["corpus[more]"]);
    assert_eq!(reload(&scene), [""; 0]);
    wait_for("more", 30);
    // Without any there would be nothing to do: the file may not say so.
    let teachers = &without[..without.find("[[corpus]]").unwrap()];
    fs::write(&scene.config, teachers).unwrap();
    assert_eq!(scene.ctl(&["reload"]).status.code(), Some(78));
    stop(&scene, daemon);
    let events = events_of_history(&scene);
    let of_file = events.iter().filter(|event| event.starts_with("corpus more of the configuration file")).count();
    assert_eq!(of_file, 3, "{events:?}");
}

#[test]
fn a_release_keeps_what_it_began_with() {
    let scene = Scene::new(&trunk().replace("checkpoint_every_steps = 1000000", "checkpoint_every_steps = 10"));
    let (mut daemon, _) = start(&scene);
    daemon.wait_for("checkpoint written").unwrap();
    let begun = answer(&scene, &["release", "--steps", "40"]);
    let name = begun["name"].as_str().unwrap().to_owned();
    let release = || status(&scene)["release"].clone();
    until("the release to run", || (release()["step"].as_u64() >= Some(5)).then_some(()));
    edit(&scene, "warmup_steps = 2", "warmup_steps = 2\nlearning_rate = 2e-3\nweight_decay = 0.2");
    assert_eq!(reload(&scene), ["train.learning_rate", "train.weight_decay"]);
    let done = until("the release", || Some(release()).filter(|release| release["state"] != "running"));
    assert_eq!((&done["state"], &done["step"], &done["error"]), (&json!("done"), &json!(40), &Value::Null));
    let lines = fs::read_to_string(scene.path(&format!("state/releases/{name}/metrics.jsonl"))).unwrap();
    let rates: Vec<f64> = lines
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).unwrap()["learning_rate"].as_f64())
        .collect();
    assert_eq!((rates.len(), rates[0]), (40, 5e-4));
    assert!(rates.windows(2).all(|pair| pair[1] < pair[0]), "one line down to 0: {rates:?}");
    let own = fs::read_to_string(scene.path(&format!("state/releases/{name}/journal"))).unwrap();
    assert_eq!(own.matches("\"weight_decay\":0.2").count(), 0, "{own}");
    // The next one has what the trunk has now.
    until("a later checkpoint", || {
        let step = fs::read_dir(scene.path("state/checkpoints")).unwrap().count();
        let changed = journal(&scene, "settings").last()?["step"].as_u64()?;
        (step > 0 && self::step(&scene) > changed + 21).then_some(())
    });
    let next = answer(&scene, &["release", "--steps", "3"]);
    assert_eq!(next["learning_rate"], json!(2e-3));
    stop(&scene, daemon);
}

#[test]
fn how_much_is_logged_changes() {
    let scene = Scene::new(&trunk());
    let level = |arguments: &[&str]| answer(&scene, &[&["log-level"], arguments].concat())["level"].clone();
    // What the command line says stands against the file.
    let (daemon, _) = start(&scene);
    assert_eq!(level(&[]), "debug");
    fs::write(&scene.config, trunk() + "[ops]\nlog = \"error\"\n").unwrap();
    assert_eq!(reload(&scene), [""; 0]);
    assert_eq!(level(&["warn"]), "warn");
    let refused = scene.ctl(&["log-level", "loud"]);
    assert!(text(&refused.stderr).contains("\"loud\" is no level"), "{}", text(&refused.stderr));
    assert_eq!(reload(&scene), ["ops.log"]);
    assert_eq!(level(&[]), "debug");
    stop(&scene, daemon);

    // Without that the file says it.
    fs::write(&scene.config, trunk() + "[ops]\nlog = \"info\"\n").unwrap();
    let mut daemon = scene.start_without_level();
    daemon.address();
    edit(&scene, "log = \"info\"", "log = \"info,mergedistill=debug,trainer=debug\"");
    assert_eq!(reload(&scene), ["ops.log"]);
    daemon.wait_for("DEBUG").unwrap();
    let log = stop(&scene, daemon);
    assert!(!log.contains("ERROR"), "{log}");
}

/// With the harness's `checkpoint`, so that two runs under different histories are told apart.
#[test]
fn a_changed_rate_changes_the_student() {
    let steps = configuration();
    let run = |changed: bool| {
        let scene = Scene::new(&steps);
        assert!(scene.run(&["--until-step", "6"]).status.success());
        if changed {
            edit(&scene, "warmup_steps = 2", "warmup_steps = 2\nlearning_rate = 2e-3");
        }
        assert!(scene.run(&[]).status.success());
        checkpoint(&scene, 12)
    };
    assert!(run(false) != run(true));
}
