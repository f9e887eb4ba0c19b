//! `mergedistill check --plan`: what is planned is what a run comes to.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod harness;

use harness::{Scene, configuration, mergedistill, text};
use serde_json::Value;

fn plan(scene: &Scene, extra: &[&str]) -> String {
    plan_in("0.2", scene, extra)
}

fn plan_in(seconds: &str, scene: &Scene, extra: &[&str]) -> String {
    let config = scene.config.to_str().unwrap();
    let arguments = ["check", "--plan", "--seconds", seconds, "--config", config];
    let output = mergedistill(&arguments).args(extra).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout)
}

fn json(scene: &Scene) -> Value {
    serde_json::from_str(&plan(scene, &["--json"])).unwrap()
}

fn assert_close(what: &str, planned: &Value, actual: f64, tolerance: f64) {
    let planned = planned.as_f64().unwrap_or_else(|| panic!("no {what}"));
    assert!((planned / actual - 1.0).abs() < tolerance, "{what}: {planned} planned, {actual} in the end");
}

#[test]
fn a_plan_is_what_a_run_comes_to_and_leaves_nothing_behind() {
    let scene = Scene::new(&configuration().replace("steps = 12", "steps = 400"));
    let plan = json(&scene);
    assert!(!scene.path("state").exists(), "a plan makes no state folder");
    let derived = &plan["derived"];
    for figure in ["days", "label_days", "train_days", "steps_per_second", "label_tokens_per_second"] {
        assert!(derived[figure].as_f64().unwrap() > 0.0, "{figure}: {derived:#}");
    }
    let memory = &derived["memory"];
    assert_eq!(memory["optimiser_bytes"].as_f64().unwrap(), 2.0 * memory["student_bytes"].as_f64().unwrap());
    assert!(memory["peak_bytes"].as_f64().unwrap() > 4.0 * memory["student_bytes"].as_f64().unwrap());

    // Long enough for all the text to be labelled.
    let output = scene.run(&[]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let stat = &scene.log_lines("stat")[0];
    assert_close("tokens", &derived["corpus_tokens"], stat["corpus_tokens"].as_f64().unwrap(), 0.15);
    let per_token = stat["bytes"].as_f64().unwrap() / stat["corpus_tokens"].as_f64().unwrap();
    assert_close("bytes a token", &plan["measured"]["log"]["bytes_per_token"], per_token, 0.25);
    let checkpoint = scene.path("state/checkpoints/step-400");
    let files = std::fs::read_dir(checkpoint).unwrap().map(|file| file.unwrap().metadata().unwrap().len());
    assert_close("a checkpoint", &plan["measured"]["checkpoint_bytes"], files.sum::<u64>() as f64, 0.05);
    // A log without corpora: training alone, from that log.
    let (teachers, rest) = (configuration(), configuration());
    let (teachers, rest) = (teachers.split("[[corpus]]").next().unwrap(), rest.split_once("[student]").unwrap().1);
    let log = scene.path("state/log");
    let train_only = Scene::new(&format!("{teachers}[store]\npath = {log:?}\n[student]{rest}"));
    let derived = &json(&train_only)["derived"];
    assert!(derived["label_days"].is_null() && derived["train_days"].as_f64().unwrap() > 0.0, "{derived:#}");
    assert_eq!(derived["limited_by"], "trainer");
    assert_eq!(derived["log_bytes"].as_f64(), stat["bytes"].as_f64(), "the log is there, and does not grow");
    assert!(!self::plan(&train_only, &[]).contains("labelling"), "nothing is labelled");
}

#[test]
fn a_batch_that_would_take_too_long_is_measured_in_part_and_scaled_up() {
    let whole = configuration();
    let batch = whole.lines().find(|line| line.starts_with("batch_examples")).unwrap().to_owned();
    let scene = Scene::new(&whole.replace(&batch, "batch_examples = 100000\nmicro_batch_tokens = 65536"));
    let plan: Value = serde_json::from_str(&plan_in("0.02", &scene, &["--json"])).unwrap();
    let (sizes, train) = (&plan["measured"]["sizes"], &plan["measured"]["train"]);
    let copies = sizes["batch_examples"].as_u64().unwrap();
    assert!((2..100_000).contains(&copies), "{sizes}");
    assert!(sizes["micro_batch_tokens"].as_u64().unwrap() < 65_536, "{sizes}");
    assert_close("copies of a step", &train["copies_per_step"], 100_000.0, 0.01);
    let seconds = train["seconds_per_step_alone"].as_f64().unwrap();
    assert!(seconds > 1.0, "{seconds} s for a step of 100,000 copies");
    let notes = plan["notes"].as_array().unwrap();
    assert!(notes.iter().any(|note| note.as_str().unwrap().contains("train.batch_examples was")), "{notes:?}");

    let small = json(&Scene::new(&whole));
    assert_eq!(batch, format!("batch_examples = {}", small["measured"]["sizes"]["batch_examples"]));
}

#[test]
fn what_is_only_labelled_has_no_training_in_its_plan() {
    let configuration = configuration();
    let scene = Scene::new(configuration.split_once("[student]").unwrap().0);
    let derived = &json(&scene)["derived"];
    assert!(derived["train_days"].is_null() && derived["days"].as_f64().unwrap() > 0.0, "{derived:#}");
    let lines = plan(&scene, &[]);
    for expected in ["Measured:", "corpus en:", "teacher demo-en:", "Derived", "labelling", "limited by"] {
        assert!(lines.contains(expected), "{expected} not in {lines}");
    }
    assert!(!lines.contains("training:") && !lines.contains("beside training"), "nothing is trained: {lines}");

    let gold = configuration.replace("languages = [\"en\"", "labels = false\nlanguages = [\"en\"");
    let gold = gold.split_once("[student]").unwrap().0;
    let unbounded = Scene::new(gold);
    let output = mergedistill(&["check", "--config", unbounded.config.to_str().unwrap()]).output().unwrap();
    assert_eq!(output.status.code(), Some(78));
    assert!(text(&output.stderr).contains("store.max_sequence_length: missing"), "{}", text(&output.stderr));
    let scene = Scene::new(&format!("{gold}[store]\nmax_sequence_length = 32\n"));
    let derived = &json(&scene)["derived"];
    assert!(derived["days"].is_null() && derived["log_bytes"].as_f64().unwrap() > 0.0, "{derived:#}");
    assert_eq!(derived["limited_by"], "ingest");
}

#[test]
fn text_that_has_not_come_cannot_be_measured() {
    let pushed = "[[corpus]]\nname = \"en\"\nlanguage = \"en\"\nsource = \"http\"\n";
    let configuration = configuration();
    let teachers = configuration.split("[[corpus]]").next().unwrap();
    let scene = Scene::new(&format!("{teachers}{pushed}"));
    let config = scene.config.to_str().unwrap();
    let output = mergedistill(&["check", "--plan", "--config", config]).output().unwrap();
    assert_eq!(output.status.code(), Some(78));
    assert!(text(&output.stderr).contains("whose text is there to measure with"), "{}", text(&output.stderr));

    let watched = pushed.replace("source = \"http\"", "watch = \"in\"\nsettle_seconds = 0.1");
    let scene = Scene::new(&format!("{teachers}{watched}"));
    std::fs::create_dir(scene.path("in")).unwrap();
    let config = scene.config.to_str().unwrap();
    let output = mergedistill(&["check", "--plan", "--seconds", "0.05", "--config", config]).output().unwrap();
    assert_eq!(output.status.code(), Some(65));
    assert!(text(&output.stderr).contains("nothing has come for 0.6 s"), "{}", text(&output.stderr));
}
