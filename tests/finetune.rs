//! `mergedistill finetune`: one model on one task, and a suite that goes on where it was.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod harness;

use harness::{mergedistill, text};
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::Output;

const TEACHERS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/demo/teachers");

/// Sentences whose tags follow from their words.
fn tagged(words: &[(&str, &str)], sentences: usize) -> String {
    let line = |at: usize| format!("{}\t{}\n", words[at % words.len()].0, words[at % words.len()].1);
    let sentence = |number: usize| (0..3 + number % 4).map(|at| line(number * 5 + at * 3)).collect::<String>() + "\n";
    (0..sentences).map(sentence).collect()
}

const ENGLISH: &[(&str, &str)] =
    &[("the", "DET"), ("house", "NOUN"), ("is", "VERB"), ("old", "ADJ"), ("water", "NOUN")];
const GERMAN: &[(&str, &str)] =
    &[("das", "DET"), ("Haus", "NOUN"), ("ist", "VERB"), ("alt", "ADJ"), ("Wasser", "NOUN")];

fn finetune(arguments: &[&str]) -> Output {
    mergedistill(&["finetune", "--threads", "2"]).args(arguments).output().unwrap()
}

fn json(output: &Output) -> Value {
    assert!(output.status.success(), "{}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn a_tagger_is_tuned_scored_and_saved() {
    let folder = tempfile::tempdir().unwrap();
    let train = folder.path().join("en.tsv");
    fs::write(&train, tagged(ENGLISH, 60)).unwrap();
    let (model, out) = (format!("{TEACHERS}/demo-en"), folder.path().join("tagger"));
    let (train, out) = (train.to_str().unwrap(), out.to_str().unwrap());
    let quick = ["--task", "token", "--epochs", "4", "--learning-rate", "2e-3", "--batch", "8", "--max-length", "16"];
    let predictions = folder.path().join("predictions.jsonl");
    let path = predictions.to_str().unwrap();
    let first =
        ["--model", &model, "--train", train, "--split", "4/1/1", "--out", out, "--predictions", path, "--json"];
    let report = json(&finetune(&[&first[..], &quick].concat()));
    let accuracy = report["tests"]["test"]["accuracy"].as_f64().unwrap();
    assert!(accuracy > 90.0 && report["seconds"].as_f64().unwrap() > 0.0, "{report}");
    assert_eq!(report["epochs"].as_array().unwrap().len(), 4);
    let lines = fs::read_to_string(&predictions).unwrap();
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let words = |key: &'static str| lines.iter().flat_map(move |line| line[key].as_array().unwrap());
    let right = words("gold").zip(words("predicted")).filter(|(gold, predicted)| gold == predicted).count();
    assert!((100.0 * right as f64 / words("gold").count() as f64 - accuracy).abs() < 1e-9, "{accuracy}");
    assert_eq!((&lines[0]["test"], lines[9]["example"].as_u64(), lines.len()), (&Value::from("test"), Some(9), 10));

    // What was saved is a model like any other.
    let again = ["--model", out, "--train", train, "--dev", train, "--test", train, "--seed", "1"];
    let output = finetune(&[&again[..], &quick].concat());
    assert!(output.status.success() && text(&output.stdout).contains("\nen           accuracy "), "{output:?}");

    for (arguments, code, expected) in [
        (&["--model", &model, "--task", "token"][..], 64, "--train"),
        (&["--model", &model, "--task", "token", "--train", train, "--max-length", "999"], 64, "takes 128 tokens"),
        (&["--model", &model, "--task", "question-answering", "--train", train], 65, "en.tsv:1: not SQuAD's format"),
        (&["--model", &model, "--task", "token", "--train", "/nowhere"], 66, "cannot read /nowhere"),
        (&["--model", &model, "--task", "token", "--train", train, "--metric", "exact-match"], 64, "no metric"),
        (&["--model", &model, "--task", "token", "--train", train, "--preset", "xquad"], 64, "preset xquad"),
        (
            &["--model", &model, "--task", "token", "--train", train, "--split", "4/1/1", "--test", "a/test.tsv"],
            64,
            "two test files are called `test`",
        ),
        (&["--suite", "suite.toml"], 64, "--out"),
    ] {
        let output = finetune(arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {output:?}");
        assert!(text(&output.stderr).contains(expected), "{arguments:?}: {output:?}");
    }
}

/// A copy of a teacher that may be altered.
fn copy_of(teacher: &str, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(Path::new(TEACHERS).join(teacher)).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
}

/// What else lives in a folder is safe, and known before hours are spent.
#[test]
fn only_a_fine_tuned_model_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    fs::write(at("en.tsv"), tagged(ENGLISH, 20)).unwrap();
    ["model", "words", "other"].iter().for_each(|name| copy_of("demo-en", &folder.path().join(name)));
    let finetune_to = |model: &str, out: &str| {
        let quick = ["--task", "token", "--train", &at("en.tsv"), "--epochs", "1", "--max-length", "16"];
        finetune(&[&["--model", &at(model), "--tokenizer", &at("words"), "--out", &at(out)][..], &quick].concat())
    };
    for (out, expected) in [
        ("model", "the folder of the model"),
        ("model/../words", "the folder of the tokenizer"),
        ("other", "not a model that was fine-tuned here"),
        ("en.tsv", "en.tsv"),
        ("en.tsv/out", "en.tsv/out"),
    ] {
        let before = ["model", "words", "other"].map(|name| results(&folder.path().join(name)));
        let output = finetune_to("model", out);
        let log = text(&output.stderr);
        assert_eq!(output.status.code(), Some(73), "{out}: {log}");
        assert!(log.contains(expected) && !log.contains("epoch"), "{out}: {log}");
        assert_eq!(before, ["model", "words", "other"].map(|name| results(&folder.path().join(name))), "{out}");
    }
    for model in ["model", "other"] {
        let output = finetune_to(model, "new/tuned");
        assert!(output.status.success(), "{}", text(&output.stderr));
    }
    // Not while it is what is read.
    assert_eq!(finetune_to("new/tuned", "new/tuned").status.code(), Some(73));
}

fn results(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> =
        files.map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(&path).unwrap())).collect();
    files.sort();
    files
}

#[test]
fn a_suite_goes_on_where_it_was() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("en.tsv"), tagged(ENGLISH, 40)).unwrap();
    fs::write(folder.path().join("de.tsv"), tagged(GERMAN, 40)).unwrap();
    let suite = format!(
        r#"
        seeds = [0, 1]
        [[model]]
        name = "en"
        path = "{TEACHERS}/demo-en"
        role = "teacher"
        languages = ["en"]
        [[model]]
        name = "both"
        path = "{TEACHERS}/demo-en-de"
        role = "student"
        [[task]]
        name = "pos"
        kind = "token"
        zero_shot_from = "en"
        options = {{ epochs = 1, learning_rate = 1e-3, batch = 8, max_length = 16 }}
        files.en = {{ train = "en.tsv", split = [6, 1, 1] }}
        files.de = {{ test = "de.tsv" }}
        "#
    );
    let (path, out) = (folder.path().join("suite.toml"), folder.path().join("results"));
    fs::write(&path, &suite).unwrap();
    let arguments = ["--suite", path.to_str().unwrap(), "--out", out.to_str().unwrap()];
    let tables = json(&finetune(&[&arguments[..], &["--json"]].concat()));
    let [in_language, zero_shot] = [0, 1].map(|at| tables["tables"][at].clone());
    assert_eq!((&in_language["setting"], &in_language["languages"][0]), (&"in-language".into(), &"en".into()));
    assert_eq!((&zero_shot["setting"]["zero-shot"], &zero_shot["languages"][0]), (&"en".into(), &"de".into()));
    let student = &in_language["rows"][1];
    assert_eq!((&student["model"], &student["rdt"]["seeds"]), (&"both".into(), &2.into()));
    assert_eq!(zero_shot["rows"][0]["model"], "both");

    let before = results(&out);
    let names: Vec<&str> = before.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["pos.both.en.0.json", "pos.both.en.1.json", "pos.en.en.0.json", "pos.en.en.1.json"]);
    // Nothing is done again; but what is missing, and what follows from other options.
    fs::remove_file(out.join("pos.both.en.1.json")).unwrap();
    let output = finetune(&[&arguments[..], &["--markdown"]].concat());
    assert!(text(&output.stdout).contains("| both | student | "), "{output:?}");
    assert_eq!(text(&output.stderr).matches("fine-tuning").count(), 1, "{}", text(&output.stderr));
    let without_times = |files: Vec<(String, Vec<u8>)>| {
        files.into_iter().map(|(name, bytes)| {
            let mut value: Value = serde_json::from_slice(&bytes).unwrap();
            value["seconds"] = Value::Null;
            (name, value)
        })
    };
    assert!(without_times(results(&out)).eq(without_times(before)));
    fs::write(&path, suite.replace("seeds = [0, 1]", "seeds = [1]").replace("1e-3", "2e-3")).unwrap();
    let output = finetune(&arguments);
    assert_eq!(text(&output.stderr).matches("it is run again").count(), 2, "{}", text(&output.stderr));

    let predictions = folder.path().join("predictions");
    let arguments = [&arguments[..], &["--predictions", predictions.to_str().unwrap()]].concat();
    for expected in [2, 0] {
        let output = finetune(&arguments);
        assert_eq!(text(&output.stderr).matches("fine-tuning").count(), expected, "{}", text(&output.stderr));
        let names: Vec<String> = results(&predictions).into_iter().map(|(name, _)| name).collect();
        assert!(names.len() == 2 && names[0].starts_with("pos.both.en.1."), "{names:?}");
    }
}

/// What only the last run would read is missed before the first.
#[test]
fn a_suite_looks_at_all_of_its_inputs_first() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("en.tsv"), tagged(ENGLISH, 20)).unwrap();
    let suite = format!(
        r#"
        [[model]]
        name = "first"
        path = "{TEACHERS}/demo-en"
        role = "teacher"
        [[model]]
        name = "last"
        path = "{TEACHERS}/demo-en-de"
        role = "student"
        tokenizers = {{ en = "{TEACHERS}/demo-en" }}
        [[task]]
        name = "pos"
        kind = "token"
        options = {{ epochs = 1, max_length = 16 }}
        files.en = {{ train = "en.tsv", test = "en.tsv" }}
        "#
    );
    let (path, out) = (folder.path().join("suite.toml"), folder.path().join("results"));
    let last = format!("path = \"{TEACHERS}/demo-en-de\"");
    let tokenizer = format!("tokenizers = {{ en = \"{TEACHERS}/demo-en\" }}");
    for (from, to, missing) in [
        (last.as_str(), "path = \"no-model\"", "no-model"),
        (&tokenizer, "tokenizers = { en = \"no-words\" }", "no-words"),
        ("test = \"en.tsv\"", "test = \"no-test.tsv\"", "no-test.tsv"),
    ] {
        fs::write(&path, suite.replace(from, to)).unwrap();
        let output = finetune(&["--suite", path.to_str().unwrap(), "--out", out.to_str().unwrap()]);
        let log = text(&output.stderr);
        assert_eq!(output.status.code(), Some(66), "{log}");
        assert!(log.contains(missing) && !log.contains("fine-tuning"), "{log}");
        assert!(results(&out).is_empty());
    }
}

/// Makes one number of a model's weights NaN.
fn spoil(model: &Path) {
    let path = model.join("model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let data = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..data]).unwrap();
    let place = &header["bert.embeddings.LayerNorm.bias"]["data_offsets"][0];
    let start = data + place.as_u64().unwrap() as usize;
    bytes[start..start + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(path, bytes).unwrap();
}

/// A run that diverges is a result: the others are made, and it is made again only with another configuration.
#[test]
fn a_suite_goes_on_after_a_run_that_diverges() {
    let folder = tempfile::tempdir().unwrap();
    let broken = folder.path().join("broken");
    copy_of("demo-en", &broken);
    spoil(&broken);
    fs::write(folder.path().join("en.tsv"), tagged(ENGLISH, 20)).unwrap();
    let suite = format!(
        r#"
        [[model]]
        name = "broken"
        path = "broken"
        role = "teacher"
        [[model]]
        name = "whole"
        path = "{TEACHERS}/demo-en"
        role = "student"
        [[task]]
        name = "pos"
        kind = "token"
        options = {{ epochs = 1, max_length = 16 }}
        files.en = {{ train = "en.tsv", test = "en.tsv" }}
        "#
    );
    let (path, out) = (folder.path().join("suite.toml"), folder.path().join("results"));
    fs::write(&path, &suite).unwrap();
    let run = || finetune(&["--suite", path.to_str().unwrap(), "--out", out.to_str().unwrap(), "--json"]);
    let first = run();
    let log = text(&first.stderr);
    assert_eq!(first.status.code(), Some(65), "{log}");
    assert!(log.contains("fine-tuning diverges") && log.contains("pos.broken.en.0.json"), "{log}");
    let printed: Value = serde_json::from_slice(&first.stdout).unwrap();
    let rows = &printed["tables"][0]["rows"];
    assert_eq!((&rows[0]["model"], &rows[0]["scores"][0]), (&"broken".into(), &Value::Null));
    assert!(rows[1]["scores"][0]["mean"].is_number() && rows[1]["rdt"].is_null(), "{printed}");
    assert_eq!(printed["diverged"], serde_json::json!(["pos.broken.en.0.json"]));

    let before = results(&out);
    let again = run();
    assert_eq!((again.status.code(), &again.stdout), (Some(65), &first.stdout));
    assert!(results(&out) == before);
    let configuration = fs::read_to_string(broken.join("config.json")).unwrap();
    let altered = configuration.replace("\"hidden_dropout_prob\": 0.0", "\"hidden_dropout_prob\": 0.1");
    assert_ne!(altered, configuration);
    fs::write(broken.join("config.json"), altered).unwrap();
    assert_eq!(text(&run().stderr).matches("it is run again").count(), 1);
}
