//! Pre-training on gold labels alone, from a tokenizer that is learned to a student that teaches another one.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod harness;

use harness::{Scene, mergedistill, text};
use serde_json::Value;
use std::path::Path;
use std::process::Output;

const CORPORA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/demo/corpora");

/// Gold labels alone, on a tokenizer in `tokenizer`.
fn gold_alone(tokenizer: &Path, train: &str) -> String {
    let tokenizer = tokenizer.display();
    format!(
        r#"
[[teacher]]
name = "gold"
path = "{tokenizer}"
languages = ["en", "de"]
labels = false
[[corpus]]
name = "en"
language = "en"
path = "{CORPORA}/en.txt"
[[corpus]]
name = "de"
language = "de"
path = "{CORPORA}/de.txt"
[student]
layers = 1
hidden_size = 16
heads = 2
max_sequence_length = 32
[train]
steps = 12
batch_examples = 8
learning_rate = 1e-2
warmup_steps = 2
shuffle_examples = 32
{train}
[evaluate]
holdout_fraction = 0.1
every_steps = 6
max_examples = 8
"#
    )
}

fn learn(arguments: &[&str]) -> Output {
    mergedistill(&["vocab", "learn", "--json"]).args(arguments).output().unwrap()
}

fn done(output: &Output) -> String {
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout)
}

#[test]
fn gold_labels_alone_make_a_student_that_teaches() {
    let files = Scene::new("");
    let tokenizer = files.path("tokenizer");
    let out = tokenizer.to_str().unwrap();
    let texts = [format!("{CORPORA}/en.txt"), format!("{CORPORA}/de.txt")];
    let learned = done(&learn(&["--out", out, "--size", "600", &texts[0], &texts[1]]));
    let learned: Value = serde_json::from_str(&learned).unwrap();
    assert_eq!((&learned["size"], &learned["unknown_share"]), (&600.into(), &0.0.into()), "{learned}");

    // As the configuration says it: the same text, and so the same files.
    let lambda = "lambda_start = 0\nlambda_end = 0";
    let gold = Scene::new(&gold_alone(&tokenizer, lambda));
    let config = gold.config.to_str().unwrap();
    let again = gold.path("again");
    let languages = ["--language", "de", "--language", "en"];
    let configured = ["--out", again.to_str().unwrap(), "--size", "600", "--config", config];
    done(&learn(&[&configured[..], &languages[..]].concat()));
    for name in ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"] {
        let read = |folder: &Path| std::fs::read(folder.join(name)).unwrap();
        assert!(read(&tokenizer) == read(&again), "{name}");
    }

    let check = mergedistill(&["check", "--config", config]).output().unwrap();
    done(&check);
    assert!(!text(&check.stderr).contains("WARN"), "{}", text(&check.stderr));
    done(&gold.run(&[]));
    let steps: Vec<Value> = gold.metrics().into_iter().filter(|line| line.get("loss").is_some()).collect();
    assert!(steps.len() == 12 && steps.iter().all(|step| step["kd"] == 0.0 && step["lambda"] == 0.0), "{steps:?}");
    let evaluation = done(&mergedistill(&["evaluate", "--config", config]).output().unwrap());
    // Language, no teacher, none of its figures, the student's loss.
    let own_loss = |language: &str| {
        let lines = evaluation.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let mut own = lines.filter(|words| words.first() == Some(&language) && words.get(1..3) == Some(&["–", "–"]));
        own.next().and_then(|words| words.get(3)?.parse::<f64>().ok())
    };
    assert!(["de", "en"].into_iter().all(|language| own_loss(language) > Some(0.0)), "{evaluation}");
    let first = gold.metrics().iter().find_map(|line| line["evaluation"]["languages"]["en"]["student_loss"].as_f64());
    let last =
        gold.metrics().iter().rev().find_map(|line| line["evaluation"]["languages"]["en"]["student_loss"].as_f64());
    assert!(last < first, "{first:?} {last:?}");

    // What was trained labels for another student.
    let (state, teacher) = (gold.path("state"), gold.path("teacher"));
    let export = ["export", "--state-dir", state.to_str().unwrap(), "--out", teacher.to_str().unwrap()];
    done(&mergedistill(&export).output().unwrap());
    let distilled = Scene::new(&gold_alone(&teacher, "").replace("labels = false", "labels = true"));
    done(&distilled.run(&[]));
    let steps: Vec<Value> = distilled.metrics().into_iter().filter(|line| line.get("loss").is_some()).collect();
    assert!(steps.len() == 12 && steps.iter().all(|step| step["kd"].as_f64() > Some(0.0)), "{steps:?}");
    assert!(distilled.log_lines("dump")[0]["copies"][0]["log_sum_exp"][0].is_number());
}

#[test]
fn what_cannot_be_learned_is_refused() {
    let scene = Scene::new(
        "[[teacher]]\nname = \"t\"\npath = \"t\"\nlanguages = [\"de\", \"en\"]\n[[corpus]]\nname = \"en\"\nlanguage = \"en\"\npath = \"en.txt\"\n\
         [[corpus]]\nname = \"de\"\nlanguage = \"de\"\nwatch = \"no folder\"\n",
    );
    let path = |name: &str| scene.path(name).to_str().unwrap().to_owned();
    let (config, out, blank, en) = (path("test.toml"), path("out"), path("blank.txt"), path("en.txt"));
    std::fs::write(&blank, "\n\n \n").unwrap();
    std::fs::write(&en, "some text\n").unwrap();
    std::fs::create_dir(path("used")).unwrap();
    std::fs::write(path("used/model.safetensors"), "weights").unwrap();
    for (arguments, code, message) in [
        (vec!["--out", &out], 64, "--config <FILE>"),
        (vec!["--out", &out, &path("nowhere.txt")], 66, "matches no file"),
        (vec!["--out", &out, &blank], 66, "there is no word in the text"),
        (vec!["--out", &out, "--size", "9", &en], 64, "too small: 6 characters"),
        (vec!["--out", &out, "--config", &config, "--language", "xx"], 78, "has no [[corpus]] of language xx"),
        (vec!["--out", &out, "--config", &config, "--language", "de"], 66, "corpus[de]: there is no folder"),
        (vec!["--out", &path("used"), &en], 73, "used"),
        (vec!["--out", &out, "--cased", "--uncased", &en], 64, "cannot be used with"),
    ] {
        let output = learn(&arguments);
        let said = text(&output.stderr);
        assert!(output.status.code() == Some(code) && said.contains(message), "{arguments:?}: {said}");
        assert!(!scene.path("out").exists(), "{arguments:?}");
    }
}

#[test]
fn distillation_without_a_teacher_that_labels_is_pointed_out() {
    let files = Scene::new("");
    let tokenizer = files.path("tokenizer");
    done(&learn(&["--out", tokenizer.to_str().unwrap(), "--size", "300", &format!("{CORPORA}/en.txt")]));
    for (train, key) in
        [("", "train.lambda_start is 1"), ("lambda_start = 0\nlambda_end = 0.5", "train.lambda_end is 0.5")]
    {
        let scene = Scene::new(&gold_alone(&tokenizer, train));
        let output = mergedistill(&["check", "--config", scene.config.to_str().unwrap()]).output().unwrap();
        done(&output);
        let said = text(&output.stderr);
        assert!(said.contains(key) && said.contains("no teacher labels"), "{said}");
    }
}

#[test]
fn what_is_read_is_what_a_corpus_would_read() {
    let scene = Scene::new(
        "[[teacher]]\nname = \"t\"\npath = \"not there yet\"\nlanguages = [\"de\", \"en\"]\n\
         [[corpus]]\nname = \"mixed\"\nlanguage_field = \"lang\"\npath = \"mixed.jsonl\"\nformat = \"jsonl\"\n\
         [[corpus]]\nname = \"folder\"\nlanguage = \"de\"\nwatch = \"watched [x]\"\n\
         [[corpus]]\nname = \"empty\"\nlanguage = \"de\"\nwatch = \"empty\"\n\
         [[corpus]]\nname = \"followed\"\nlanguage = \"de\"\nfollow = \"app[1].log\"\n\
         [[corpus]]\nname = \"pushed\"\nlanguage = \"de\"\nsource = \"http\"\nformat = \"jsonl\"\n",
    );
    let path = |name: &str| scene.path(name).to_str().unwrap().to_owned();
    let (config, out, mixed) = (path("test.toml"), path("out"), path("mixed.jsonl"));
    let lines = [
        r#"{"lang": "de", "text": "eins zwei", "title": "vier fünf sechs sieben"}"#,
        r#"{"lang": "en", "text": "one"}"#,
        r#"{"lang": "de"}"#,
    ];
    std::fs::write(&mixed, lines.join("\n")).unwrap();
    for folder in ["watched [x]/.git", "watched [x]/inside", "empty"] {
        std::fs::create_dir_all(path(folder)).unwrap();
    }
    for (file, content) in [
        ("watched [x]/a?.txt", "drei\n\ndrei drei\n"),
        ("watched [x]/inside/b.txt", "acht\n"),
        ("watched [x]/.hidden", "nichts"),
        ("watched [x]/.git/config", "nichts"),
        ("watched [x]/half.txt.part", "nichts"),
        ("app[1].log", "neun zehn\n"),
    ] {
        std::fs::write(path(file), content).unwrap();
    }
    for (arguments, documents, rejected, words) in [
        (vec!["--config", &config, "--language", "de"], 5, 1, 8),
        (vec!["--config", &config, "--language", "en"], 1, 0, 1),
        (vec!["--config", &config], 6, 1, 9),
        (vec!["--format", "jsonl", "--text-field", "title", &mixed], 1, 2, 4),
    ] {
        let output = learn(&[&["--out", &out, "--min-frequency", "1"], &arguments[..]].concat());
        let learned: Value = serde_json::from_str(&done(&output)).unwrap();
        let found = ["documents", "rejected", "words"].map(|figure| learned[figure].as_u64().unwrap());
        assert_eq!(found, [documents, rejected, words], "{arguments:?}: {}", text(&output.stderr));
    }
}
