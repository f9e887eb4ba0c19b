//! The whole pipeline through the binary: from text to an exported student.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod harness;

use harness::{Scene, checkpoint, configuration, http, mergedistill, metric, text, until};
use serde_json::Value;

#[test]
fn text_in_student_out() {
    let scene = Scene::new(&configuration());
    let output = scene.run(&[]);
    assert!(output.status.success(), "{}", text(&output.stderr));

    let stat = &scene.log_lines("stat")[0];
    for field in ["records", "copies", "masked_positions", "corpus_tokens", "bytes", "label_bytes", "token_bytes"] {
        assert!(stat[field].as_u64().unwrap() > 0, "{field} in {stat}");
    }
    assert_eq!(stat["appended"], stat["durable"]);
    scene.log_lines("verify");

    let metrics = scene.metrics();
    let steps: Vec<u64> = metrics.iter().filter(|line| line.get("loss").is_some()).map(step).collect();
    assert_eq!(steps, (1..=12).collect::<Vec<_>>());
    let evaluated: Vec<u64> = metrics.iter().filter(|line| line.get("evaluation").is_some()).map(step).collect();
    assert_eq!(evaluated, [0, 6, 12]);

    let out = scene.path("student");
    let state = scene.path("state");
    let export = ["export", "--state-dir", state.to_str().unwrap(), "--out", out.to_str().unwrap()];
    assert!(mergedistill(&export).status().unwrap().success());
    for file in ["config.json", "model.safetensors", "tokenizer.json", "vocab.txt"] {
        assert!(out.join(file).is_file(), "{file}");
    }

    let documents = scene.dir.path().join("documents.jsonl");
    let mut evaluate = mergedistill(&["evaluate", "--json", "--config", scene.config.to_str().unwrap()]);
    let evaluate = evaluate.arg("--documents").arg(&documents).output().unwrap();
    assert!(evaluate.status.success(), "{}", text(&evaluate.stderr));
    let report: Value = serde_json::from_slice(&evaluate.stdout).unwrap();
    let lines = std::fs::read_to_string(&documents).unwrap();
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(!lines.is_empty() && lines.iter().all(|line| line["positions"].as_u64() > Some(0)), "{lines:?}");
    let pair = &report["evaluation"]["languages"]["en"]["teachers"]["demo-en-de"];
    assert_eq!(report["evaluation"]["step"], 12);
    for figure in ["loss", "top1", "student_loss", "student_top1"] {
        assert!(pair[figure].as_f64().unwrap().is_finite(), "{report}");
    }
}

fn step(line: &Value) -> u64 {
    line["step"].as_u64().unwrap()
}

#[test]
fn records_follow_the_rules() {
    let scene = Scene::new(&configuration());
    assert!(scene.run(&["--until-step", "1"]).status.success());
    let mut held_out = 0;
    for (record, sequences) in scene.log_lines("dump").iter().zip(0..) {
        let _: u64 = sequences;
        let language = record["language"].as_str().unwrap();
        let copies = record["copies"].as_array().unwrap();
        let teachers: Vec<&str> = copies.iter().map(|copy| copy["teacher"].as_str().unwrap()).collect();
        let expected: &[&str] = if language == "en" { &["demo-en", "demo-en-de"] } else { &["demo-en-de"] };
        assert_eq!(teachers, expected);
        held_out += u32::from(record["held_out"].as_bool().unwrap());
        for copy in copies {
            let length = |field: &str| copy[field].as_array().unwrap().len();
            assert!(length("token_ids") <= 32 && length("masked_positions") >= 1);
            for field in ["gold_ids", "top_ids", "top_logits", "log_sum_exp", "gold_logits"] {
                assert_eq!(length(field), length("masked_positions"), "{field}");
            }
            let logits: Vec<f64> =
                copy["top_logits"][0].as_array().unwrap().iter().map(|l| l.as_f64().unwrap()).collect();
            assert!(logits.len() == 8 && logits.is_sorted_by(|a, b| a >= b), "{logits:?}");
            assert!(copy["log_sum_exp"][0].as_f64().unwrap() >= logits[0]);
        }
    }
    assert!(held_out > 0);
}

#[test]
fn stages_run_at_the_same_time_and_can_be_watched_and_controlled() {
    let scene = Scene::new(&configuration().replace("steps = 12", "steps = 100000"));
    let mut daemon = scene.start();
    let address = daemon.address();

    let scrape = || http(&address, "/metrics", &address).1;
    until("both labels and steps", || {
        let scrape = scrape();
        let moving = |name| metric(&scrape, name) > 0.0;
        (moving("mergedistill_teacher_copies_total") && moving("mergedistill_train_steps_total")).then_some(())
    });
    assert_eq!(http(&address, "/healthz", &address).0, 200);
    assert_eq!(http(&address, "/readyz", &address).0, 200);
    assert_eq!(http(&address, "/v1/status", "attacker.example").0, 403);

    assert!(scene.ctl(&["pause"]).status.success());
    let status: Value = serde_json::from_slice(&scene.ctl(&["status"]).stdout).unwrap();
    assert_eq!(status["state"], "paused");
    assert!(scene.ctl(&["resume"]).status.success());
    let status: Value = serde_json::from_str(&http(&address, "/v1/status", &address).1).unwrap();
    assert_eq!(status["state"], "running");

    assert!(scene.ctl(&["checkpoint"]).status.success());
    let out = scene.path("exported");
    assert!(scene.ctl(&["export", "--out", out.to_str().unwrap()]).status.success());
    assert!(out.join("model.safetensors").is_file());

    // A second daemon on the same state folder is refused.
    let second = scene.run(&[]);
    assert_eq!(second.status.code(), Some(75), "{}", text(&second.stderr));
    assert!(text(&second.stderr).contains(&format!("in use by process {}", daemon.pid())));

    // A live log can be read.
    assert!(scene.log_lines("stat")[0]["durable"].as_u64().unwrap() > 0);
    scene.log_lines("verify");

    daemon.signal("TERM");
    let (code, log) = daemon.finish();
    assert_eq!(code, Some(0), "{log}");
    scene.log_lines("verify");
}

#[test]
fn a_stopped_run_goes_on_to_the_same_student() {
    let whole = Scene::new(&configuration());
    assert!(whole.run(&[]).status.success());
    let parts = Scene::new(&configuration());
    for until in ["3", "7", "12"] {
        let output = parts.run(&["--until-step", until]);
        assert!(output.status.success(), "{}", text(&output.stderr));
    }
    assert!(checkpoint(&whole, 12) == checkpoint(&parts, 12), "the students differ");

    let other = Scene::new(&configuration().replace("[queue]", "[run]\nseed = 1\n[queue]"));
    assert!(other.run(&[]).status.success());
    assert!(checkpoint(&whole, 12) != checkpoint(&other, 12), "the seed does nothing");
}

#[test]
fn label_first_and_train_later() {
    let all = configuration();
    let student_at = all.find("[student]").unwrap();
    let corpus_at = all.find("[[corpus]]").unwrap();
    let queue_at = all.find("[queue]").unwrap();

    let settings = "[store]\nmax_sequence_length = 32\n[evaluate]\nholdout_fraction = 0.1\n";
    let labels = Scene::new(&format!("{}{settings}", &all[..student_at]));
    let output = labels.run(&[]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let log = labels.path("state/log");
    let log_section = format!("[store]\npath = \"{}\"\n", log.display());

    let train = Scene::new(&format!("{}{}{log_section}", &all[..corpus_at], &all[queue_at..]));
    let output = train.run(&[]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(train.metrics().iter().filter(|line| line.get("loss").is_some()).count(), 12);

    // The state folder of the labels will do as well.
    let same = labels.path("same.toml");
    std::fs::write(&same, format!("{}{}", &all[..corpus_at], &all[queue_at..])).unwrap();
    let output = mergedistill(&["run", "--config", same.to_str().unwrap(), "--until-step", "1"]).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));

    // A student that is too short for the log is refused before anything is trained.
    let short = train.path("short.toml");
    let text_of = std::fs::read_to_string(&train.config).unwrap();
    std::fs::write(&short, text_of.replace("max_sequence_length = 32", "max_sequence_length = 16")).unwrap();
    let output = mergedistill(&["run", "--config", short.to_str().unwrap()]).output().unwrap();
    assert_eq!(output.status.code(), Some(78), "{}", text(&output.stderr));
}

#[test]
fn old_segments_go_and_training_does_not_notice() {
    // There is more to label than training reads: segments are sealed, and looked at, as long as it goes on.
    let all = configuration().replace("[[corpus]]", "[[corpus]]\nrounds = 1000").replace("steps = 12", "steps = 240");
    let store = "[store]\nsegment_bytes = 65536\nmax_backlog_bytes = 1048576\n";
    let whole = Scene::new(&format!("{all}{store}"));
    assert!(whole.run(&[]).status.success());
    let scene = Scene::new(&format!("{all}{store}retain_bytes = 65536\n"));
    let mut daemon = scene.start();
    let line = daemon.wait_for("removed the oldest segments").expect("nothing was removed");
    assert!(line.contains("begin="), "{line}");
    let (code, log) = daemon.finish();
    assert_eq!(code, Some(0), "{log}");
    assert!(checkpoint(&whole, 240) == checkpoint(&scene, 240), "the student is the same");
    assert_eq!(last_evaluation(&whole), last_evaluation(&scene), "held-out records are kept");
    assert!(scene.log_lines("stat")[0]["begin"].as_u64().unwrap() > 0);
    scene.log_lines("verify");
    let evaluate = mergedistill(&["evaluate", "--json", "--config", scene.config.to_str().unwrap()]).output().unwrap();
    assert!(evaluate.status.success(), "{}", text(&evaluate.stderr));
}

/// When it is made all held-out records that are looked at have long arrived; the first ones depend on how fast they do.
fn last_evaluation(scene: &Scene) -> Value {
    scene.metrics().into_iter().rfind(|line| line.get("evaluation").is_some()).unwrap()
}

/// Sampled tails, words of the teachers, a target that another one follows: in the log, in training, across a restart.
#[test]
fn every_target_goes_all_the_way() {
    let targets = "kd_target = \"renormalised\"\nkd_target_later = \"ghost\"\nkd_target_later_from_step = 3\nkd_target_blend_steps = 4\n\
                   lambda_schedule = \"cosine\"\nsteps = 12";
    let configuration = configuration()
        .replace("[student]", "[store]\ntail_samples = 4\n[student]\ninit = \"teachers\"")
        .replace("steps = 12", targets);
    let (whole, parted) = (Scene::new(&configuration), Scene::new(&configuration));
    for (scene, arguments) in [(&whole, vec![]), (&parted, vec!["--until-step", "5"]), (&parted, vec![])] {
        let output = scene.run(&arguments);
        assert!(output.status.success(), "{}", text(&output.stderr));
    }
    assert!(checkpoint(&whole, 12) == checkpoint(&parted, 12), "interrupted, it ends in other weights");

    let numbers = |value: &Value| value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect::<Vec<_>>();
    let (mut positions, mut drawn) = (0, 0);
    for record in whole.log_lines("dump") {
        for copy in record["copies"].as_array().unwrap() {
            for (logits, sum) in copy["top_logits"].as_array().unwrap().iter().zip(numbers(&copy["log_sum_exp"])) {
                let logits = numbers(logits);
                let mass: f64 = logits.iter().map(|logit| (logit - sum).exp()).sum();
                assert!((mass - 1.0).abs() < 1e-4, "{mass}");
                assert!(logits[..4].is_sorted_by(|a, b| a >= b), "{logits:?}");
                positions += 1;
                drawn += u64::from(logits[6] == logits[7]);
            }
        }
    }
    assert!(drawn * 10 > positions * 9, "{drawn} of {positions} positions have a sampled tail");
    let (log, demo) = (whole.path("state/log"), concat!(env!("CARGO_MANIFEST_DIR"), "/demo/teachers/demo-en-de"));
    let audit = mergedistill(&["log", "audit", log.to_str().unwrap(), "--teacher", demo]).output().unwrap();
    assert!(audit.status.success(), "{}", text(&audit.stderr));

    // Another log than before, and one whose weights cannot be tempered.
    for (from, to, expected) in [
        ("tail_samples = 4", "tail_samples = 3", "store.tail_samples: 4 in the log, 3 in the configuration"),
        ("init = \"teachers\"", "init = \"random\"", "student.init was teachers, is unset"),
        (
            "init = \"teachers\"",
            "init = \"teachers\"\ninitializer_range = 0.05",
            "student.initializer_range was 0.1386, is 0.05",
        ),
        ("steps = 12", "steps = 12\nkd_temperature = 2", "train.kd_temperature: has to be 1"),
    ] {
        std::fs::write(&parted.config, configuration.replacen(from, to, 1)).unwrap();
        let output = parted.run(&[]);
        assert_eq!(output.status.code(), Some(78), "{}", text(&output.stderr));
        assert!(text(&output.stderr).contains(expected), "{}", text(&output.stderr));
    }
}
