//! `ctl replay`: a step made again by the real binary, beside a running daemon and of a stopped one.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod harness;

use harness::{Scene, configuration, mergedistill, text, until};
use serde_json::Value;
use std::process::Output;

/// `ctl replay` of the scene's state folder.
fn ask(scene: &Scene, arguments: &[&str]) -> Output {
    let state = scene.path("state");
    mergedistill(&["ctl", "replay", "--state-dir", state.to_str().unwrap()]).args(arguments).output().unwrap()
}

/// The document of a replay that succeeds.
#[track_caller]
fn replay(scene: &Scene, step: u64, arguments: &[&str]) -> Value {
    let step = step.to_string();
    let output = ask(scene, &[&["--json", "--step", &step], arguments].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[track_caller]
fn check(document: &Value, scene: &Scene) {
    let comparison = &document["comparison"];
    assert!(comparison["equal"] == true && comparison["differs_from"].is_null(), "{comparison}");
    let is_step = |line: &&Value| line["step"] == document["step"] && line.get("loss").is_some();
    let line = scene.metrics().iter().find(is_step).cloned().unwrap();
    for figure in ["loss", "grad_norm", "kd", "mlm", "top1", "learning_rate", "copies", "masked_positions"] {
        assert_eq!(document["figures"][figure], line[figure], "{figure}");
    }
}

fn sum(list: &Value, key: &str) -> f64 {
    list.as_array().unwrap().iter().map(|item| item[key].as_f64().unwrap()).sum()
}

#[test]
fn a_stopped_run_explains_its_steps() {
    let scene = Scene::new(&configuration());
    assert!(scene.run(&[]).status.success());
    // The teachers are gone: the state folder and the log suffice.
    let kept = scene.path("state/configuration.toml");
    let written = std::fs::read_to_string(&kept).unwrap();
    assert!(
        written.contains("learning_rate") && written.starts_with("# The configuration of this run as"),
        "{written}"
    );
    std::fs::write(&kept, written.replace("demo/teachers", "nowhere")).unwrap();
    for step in [1, 6, 12] {
        let document = replay(&scene, step, &["--all", "--text"]);
        check(&document, &scene);
        let (figures, examples) = (&document["figures"], &document["examples"]);
        assert_eq!(examples.as_array().unwrap().len(), 8);
        let close = |one: f64, other: &Value| (one - other.as_f64().unwrap()).abs() < 1e-4 * one.abs();
        assert!(close(sum(examples, "loss"), &figures["loss"]), "{document}");
        assert!(close(sum(examples, "projection"), &figures["grad_norm"]), "{document}");
        assert!(close(sum(&document["teachers"], "projection"), &figures["grad_norm"]), "{document}");
        assert!(close(sum(&document["positions"], "loss"), &figures["loss"]), "{document}");
        for example in examples.as_array().unwrap() {
            let of_log =
                scene.log_lines("dump").into_iter().find(|record| record["seq"] == example["sequence"]).unwrap();
            for key in ["source", "document", "span", "language", "round"] {
                assert_eq!(example[key], of_log[key], "{key}");
            }
            assert!(example["text"].as_str().unwrap().contains("[["), "{example}");
        }
    }
    let document = replay(&scene, 12, &["--top", "3"]);
    assert_eq!(document["comparison"]["checkpoint_agrees"], true);
    assert_eq!((document["checkpoint"].as_u64(), document["steps"].as_u64()), (Some(8), Some(4)));
    assert_eq!(document["examples"].as_array().unwrap().len(), 3);
    assert!(document["examples"][0]["text"].is_null() && !document["findings"].as_array().unwrap().is_empty());

    let readable = ask(&scene, &["--step", "11", "--top", "2"]);
    let (shown, told) = (text(&readable.stdout), text(&readable.stderr));
    for part in [
        "step 11 of the run",
        "× the median of the 11 steps around",
        "the same figures to the last digit",
        "what stands out",
        "demo-en-de",
        "embeddings",
        "student's guess",
    ] {
        assert!(shown.contains(part), "no {part}: {shown}");
    }
    assert!(told.contains("replaying step 11 from checkpoint step-8: 3 steps"), "{told}");
    let plan = ask(&scene, &["--step", "11", "--from-checkpoint"]);
    assert!(text(&plan.stdout).contains("steps 1 to 12 can be replayed"), "{}", text(&plan.stdout));

    // By the configuration file, and what cannot be.
    let config = scene.config.to_str().unwrap();
    let by_file = mergedistill(&["ctl", "replay", "--json", "--step", "11", "--config", config]).output().unwrap();
    check(&serde_json::from_slice(&by_file.stdout).unwrap(), &scene);
    let late = ask(&scene, &["--step", "13"]);
    assert_eq!(late.status.code(), Some(66));
    assert!(text(&late.stderr).contains("the last step that was made is 12"), "{}", text(&late.stderr));
}

#[test]
fn a_replay_beside_a_live_daemon_and_of_a_release() {
    let trunk = "schedule = \"trunk\"\nlambda_steps = 4\nlambda_floor = 0.5\n";
    let configuration = configuration()
        .replace("steps = 12\n", trunk)
        .replace("checkpoint_every_steps = 4", "checkpoint_every_steps = 1000");
    let scene = Scene::new(&configuration);
    let mut daemon = scene.start();
    daemon.address();
    let steps = || scene.metrics().iter().filter(|line| line.get("loss").is_some()).count();
    until("steps", || (scene.path("state/metrics.jsonl").exists() && steps() > 12).then_some(()));
    let socket = scene.path("state/control.sock");
    // The state folder is that of the socket.
    let document = mergedistill(&["ctl", "replay", "--json", "--socket", socket.to_str().unwrap(), "--step", "9"]);
    let document = { document }.output().unwrap();
    assert!(document.status.success(), "{}", text(&document.stderr));
    check(&serde_json::from_slice(&document.stdout).unwrap(), &scene);

    assert!(scene.ctl(&["checkpoint"]).status.success());
    let begun: Value = serde_json::from_slice(&scene.ctl(&["release", "--steps", "4"]).stdout).unwrap();
    until("the release", || {
        let status: Value = serde_json::from_slice(&scene.ctl(&["status"]).stdout).ok()?;
        (status["release"]["state"] == "done").then_some(())
    });
    let name = begun["name"].as_str().unwrap();
    let from = begun["from_step"].as_u64().unwrap();
    let document = replay(&scene, from + 3, &["--release", name]);
    assert!(document["comparison"]["equal"] == true, "{}", document["comparison"]);
    assert_eq!(document["release"], name);
    assert!(document["figures"]["learning_rate"].as_f64().unwrap() < 5e-4, "{document}");
    daemon.signal("TERM");
    assert_eq!(daemon.finish().0, Some(0));
    check(&replay(&scene, 9, &[]), &scene);
}

#[test]
fn a_step_that_was_skipped_says_why() {
    // Each step multiplies the weights by -9 or so: after some dozens nothing can be computed any more.
    let wild = "warmup_steps = 0\nlearning_rate = 10\nweight_decay = 1\nkd_target = \"renormalised\"";
    // With larger weights, or another target, some copies are still finite.
    let small = "hidden_size = 16\ninitializer_range = 0.02";
    let configuration = configuration().replace("warmup_steps = 2", wild).replace("steps = 12", "steps = 60");
    let configuration = configuration.replace("hidden_size = 16", small);
    let scene = Scene::new(&configuration);
    let output = scene.run(&[]);
    assert!(text(&output.stderr).contains("training diverges"), "{}", text(&output.stderr));
    let journal = std::fs::read_to_string(scene.path("state/journal")).unwrap();
    let entries = journal.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let first = entries.into_iter().find(|entry| entry["event"] == "skipped_step").unwrap();
    let document = replay(&scene, first["step"].as_u64().unwrap(), &["--attempt", "1", "--all"]);
    assert_eq!(document["figures"]["skipped"], first["reason"]);
    assert!(document["attempts"].as_u64().unwrap() > 1 && document["comparison"].is_null(), "{document}");
    let examples = document["examples"].as_array().unwrap();
    let named = &examples[document["culprit"]["example"].as_u64().unwrap() as usize];
    assert_eq!(named["sequence"], document["culprit"]["sequence"]);
    let sequences = first["sequences"].as_array().unwrap();
    assert!(examples.iter().all(|example| sequences.contains(&example["sequence"])), "{document}");
    let findings = document["findings"].to_string();
    assert!(findings.contains("the step was skipped") && findings.contains("look at the weights"), "{findings}");
}

/// All English text is gone through, then comes a document that says one word: copies that all want the same.
#[test]
fn a_spike_has_a_name() {
    let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/demo/corpora/en.txt");
    let first = configuration()
        .replace("steps = 12", "steps = 400\nlearning_rate = 0.01")
        .replace("batch_examples = 8", "batch_examples = 16")
        .replace("checkpoint_every_steps = 4", "checkpoint_every_steps = 20")
        .replace("every_steps = 6", "every_steps = 400")
        .replace("holdout_fraction = 0.1", "holdout_fraction = 0")
        .replace("language = \"de\"\npath", "language = \"de\"\nrounds = 40\npath");
    let scene = Scene::new(&first);
    std::fs::write(scene.path("weird.txt"), "AutoCorrect ".repeat(900)).unwrap();
    assert!(scene.run(&["--until-step", "60"]).status.success());
    let of_english = "[[corpus]]\nname = \"en\"\nlanguage = \"en\"\n";
    let second =
        first.replace(of_english, "[[corpus]]\nname = \"weird\"\nlanguage = \"en\"\n").replace(demo, "weird.txt");
    assert_ne!(first, second);
    std::fs::write(&scene.config, second).unwrap();
    let output = scene.run(&["--until-step", "300"]);
    assert!(output.status.success(), "{}", text(&output.stderr));

    let norm = |line: &Value| line["grad_norm"].as_f64();
    let lines: Vec<Value> = scene.metrics().into_iter().filter(|line| norm(line).is_some()).skip(60).collect();
    let spike = lines.iter().max_by(|one, other| norm(one).unwrap().total_cmp(&norm(other).unwrap())).unwrap();
    let document = replay(&scene, spike["step"].as_u64().unwrap(), &["--text"]);
    check(&document, &scene);
    assert!(document["neighbours"]["grad_norm_ratio"].as_f64().unwrap() > 3.0, "{}", document["neighbours"]);
    let sources = document["sources"].as_array().unwrap();
    let weird = sources.iter().find(|source| source["name"] == "weird").unwrap();
    assert!(weird["projection_share"].as_f64().unwrap() > 0.8, "{weird}");
    let findings = document["findings"].to_string();
    assert!(findings.contains("source weird: ") && findings.contains("point the same way"), "{findings}");
    assert!(document["examples"][0]["text"].as_str().unwrap().contains("AutoCorrect [[AutoCorrect]]"), "{document}");
}
