//! `log relabel`: the labels of a teacher that comes later are those that it would have given in the run.

use crate::harness::{Scene, mergedistill, text};
use crate::scene::{expect, folder};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Output, Stdio};

const DOCUMENTS: usize = 90;

/// A folder with a corpus whose documents each become one example.
fn scene() -> Scene {
    let scene = Scene::new("");
    let (subjects, verbs) = (["menu", "window", "table", "page"], ["opens", "moves", "saves", "prints"]);
    let line = |number: usize| {
        let (subject, verb) = (subjects[number % 4], verbs[number / 4 % 4]);
        format!("The {subject} {verb} row {number} of the document – naïve “{}” cells.\n", "a".repeat(number % 5 + 1))
    };
    fs::write(scene.path("en.txt"), (0..DOCUMENTS).map(line).collect::<String>()).unwrap();
    scene
}

/// Runs a configuration with these teachers, which label the corpus, and these settings.
fn run(scene: &Scene, teachers: &[(&str, &str)], corpus: &str, settings: &str) -> Output {
    let mut configuration = settings.to_owned();
    for (name, teacher) in teachers {
        let path = folder(teacher);
        let languages = if *teacher == "demo-en" { r#"["en"]"# } else { r#"["en", "de"]"# };
        configuration += &format!("[[teacher]]\nname = \"{name}\"\npath = {path:?}\nlanguages = {languages}\n");
    }
    if !corpus.is_empty() {
        configuration += "[[corpus]]\nname = \"en\"\nlanguage = \"en\"\npath = \"en.txt\"\ndocuments = \"line\"\n";
        configuration += corpus;
    }
    fs::write(&scene.config, configuration).unwrap();
    scene.run(&[])
}

/// State and log of a run of the given name, in which the texts are kept.
fn keeping(name: &str) -> String {
    format!(
        "[run]\nstate_dir = \"{name}-state\"\nseed = 5\n[queue]\nbatch_tokens = 300\n[evaluate]\nholdout_fraction = 0.1\n\
         [store]\npath = \"{name}\"\nkeep_text = true\nmax_sequence_length = 64\ntop_k = 4\n"
    )
}

const EN: (&str, &str) = ("en", "demo-en");
const LATER: (&str, &str) = ("later", "demo-en-de");

/// `mergedistill log relabel` with the later teacher.
fn relabel(scene: &Scene, log: &str, out: &str, arguments: &[&str]) -> Output {
    relabel_with(LATER.1, scene, log, out, arguments)
}

fn relabel_with(teacher: &str, scene: &Scene, log: &str, out: &str, arguments: &[&str]) -> Output {
    let (log, out, teacher) = (scene.path(log), scene.path(out), folder(teacher));
    let paths = [log.to_str().unwrap(), "--out", out.to_str().unwrap(), "--teacher", teacher.to_str().unwrap()];
    mergedistill(&["log", "relabel"]).args(paths).args(arguments).output().unwrap()
}

const AS_LATER: [&str; 4] = ["--name", "later", "--languages", "en,de"];

fn log(command: &str, dir: &Path) -> Vec<Value> {
    let output = mergedistill(&["log", command, dir.to_str().unwrap(), "--json"]).output().unwrap();
    expect(&output, 0, &[]);
    match command {
        "dump" => text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect(),
        _ => vec![serde_json::from_slice(&output.stdout).unwrap()],
    }
}

/// Takes the copies of a teacher out of a record.
fn take(record: &mut Value, teacher: &str) -> Vec<Value> {
    let copies = record["copies"].as_array_mut().unwrap();
    copies.extract_if(.., |copy| copy["teacher"] == teacher).collect()
}

fn floats(value: &Value) -> Vec<f64> {
    match value {
        Value::Array(values) => values.iter().flat_map(floats).collect(),
        value => vec![value.as_f64().unwrap()],
    }
}

/// The copies of two logs are the same but for the rounding of batches of other shapes.
fn check_alike(left: &Value, right: &Value) {
    for field in ["teacher", "token_ids", "masked_positions", "gold_ids", "top_ids"] {
        assert_eq!(left[field], right[field], "{field}");
    }
    for field in ["top_logits", "log_sum_exp", "gold_logits"] {
        let (left, right) = (floats(&left[field]), floats(&right[field]));
        assert_eq!(left.len(), right.len());
        for (left, right) in left.iter().zip(&right) {
            assert!((left - right).abs() < 1e-4, "{field}: {left} and {right}");
        }
    }
}

#[test]
fn a_later_teacher_labels_the_past() {
    let scene = scene();
    expect(&run(&scene, &[EN], " ", &keeping("first")), 0, &[]);
    expect(&run(&scene, &[EN, LATER], " ", &keeping("both")), 0, &[]);
    let output = relabel(&scene, "first", "out", &[&AS_LATER[..], &["--json", "--threads", "2"]].concat());
    expect(&output, 0, &[]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&report["copies"], &report["without_text"]), (&DOCUMENTS.into(), &0.into()));
    assert_eq!((&report["from"], &report["teacher"]), (&0.into(), &"later".into()));
    assert_eq!(report["languages"], serde_json::json!(["en", "de"]), "in the order in which a configuration has them");

    let [first, both, out] = ["first", "both", "out"].map(|name| log("dump", &scene.path(name)));
    assert_eq!((first.len(), both.len(), out.len()), (DOCUMENTS, DOCUMENTS, DOCUMENTS));
    assert!(first.iter().any(|record| record["held_out"] == true));
    let by_place = |record: Value| ((record["document"].to_string(), record["span"].to_string()), record);
    let mut both: BTreeMap<_, _> = both.into_iter().map(by_place).collect();
    for (before, mut after) in first.into_iter().zip(out) {
        let labelled = take(&mut after, "later");
        assert_eq!(after, before, "nothing else has changed, texts and numbers included");
        let mut together = both.remove(&(after["document"].to_string(), after["span"].to_string())).unwrap();
        assert_eq!((labelled.len(), &together["text"]), (1, &before["text"]));
        check_alike(&labelled[0], &take(&mut together, "later")[0]);
        check_alike(&before["copies"][0], &together["copies"][0]);
    }
    log("verify", &scene.path("out"));
    let stat = log("stat", &scene.path("out")).remove(0);
    assert_eq!(
        (&stat["teachers"]["later"]["labelled"], &stat["languages"]["en"]["texts"]),
        (&DOCUMENTS.into(), &DOCUMENTS.into())
    );
    assert!(stat["text_bytes"].as_u64() > Some(0) && stat["column_bytes"]["texts"] == stat["text_bytes"]);
    for (_, teacher) in [EN, LATER] {
        let audited = mergedistill(&["log", "audit", scene.path("out").to_str().unwrap(), "--teacher"]);
        expect(&{ audited }.arg(folder(teacher)).output().unwrap(), 0, &[]);
    }
}

#[test]
fn runs_train_from_it_and_go_on_with_it() {
    let scene = scene();
    expect(&run(&scene, &[EN], " ", &keeping("first")), 0, &[]);
    expect(&relabel(&scene, "first", "out", &AS_LATER), 0, &[]);
    let student = "[student]\nlayers = 1\nhidden_size = 16\nheads = 2\nmax_sequence_length = 64\n\
                   [train]\nsteps = 3\nbatch_examples = 8\nwarmup_steps = 1\nshuffle_examples = 32\n";
    let training = format!("[run]\nstate_dir = \"training\"\n[store]\npath = \"out\"\n{student}");
    expect(&run(&scene, &[EN, LATER], "", &training), 0, &[]);
    assert!(scene.path("training/checkpoints/step-3").is_dir());

    let before = log("dump", &scene.path("out"));
    let going_on = keeping("out").replace("keep_text = true", "keep_text = false");
    let refused = run(&scene, &[EN], "rounds = 2\n", &going_on);
    expect(&refused, 78, &["`later`"]);
    expect(&run(&scene, &[EN, LATER], "rounds = 2\n", &going_on), 0, &[]);
    let after = log("dump", &scene.path("out"));
    assert_eq!((&after[..DOCUMENTS], after.len()), (&before[..], 2 * DOCUMENTS));
    for record in &after[DOCUMENTS..] {
        assert_eq!((&record["round"], &record["text"]), (&1.into(), &Value::Null));
        assert_eq!(record["copies"].as_array().unwrap().len(), 2);
    }

    // What was labelled since has no text.
    let third = ["--name", "third", "--languages", "en"];
    expect(&relabel(&scene, "out", "third", &third), 65, &["90 of 180 records have no text", "--skip-without-text"]);
    assert!(!scene.path("third").exists());
    let output = relabel(&scene, "out", "third", &[&third[..], &["--skip-without-text"]].concat());
    expect(&output, 0, &[]);
    assert!(text(&output.stdout).contains("90 records, which have no text"), "{}", text(&output.stdout));
    let copies = |record: &Value| record["copies"].as_array().unwrap().len();
    let counts: Vec<usize> = log("dump", &scene.path("third")).iter().map(copies).collect();
    assert_eq!(counts, [[3; DOCUMENTS], [2; DOCUMENTS]].concat());
}

#[test]
fn what_was_killed_goes_on() {
    let scene = scene();
    expect(&run(&scene, &[EN], " ", &keeping("first")), 0, &[]);
    expect(&relabel(&scene, "first", "whole", &AS_LATER), 0, &[]);
    let (log_dir, out) = (scene.path("first"), scene.path("out"));
    let mut command =
        mergedistill(&["log", "relabel", log_dir.to_str().unwrap(), "--out", out.to_str().unwrap(), "--teacher"]);
    let mut child = command.arg(folder(LATER.1)).args(AS_LATER).stdout(Stdio::null()).spawn().unwrap();
    let segment = out.join(format!("{:020}.seg", 0));
    let begun = || fs::metadata(&segment).is_ok_and(|metadata| metadata.len() > 8192);
    while !begun() && child.try_wait().unwrap().is_none() {
        std::thread::yield_now();
    }
    let _ = child.kill();
    child.wait().unwrap();
    expect(&relabel(&scene, "first", "out", &AS_LATER), 0, &[]);
    assert_eq!(log("dump", &out), log("dump", &scene.path("whole")), "to the last bit");
    expect(&relabel(&scene, "first", "out", &AS_LATER), 0, &[]);
    expect(&relabel(&scene, "first", "out", &["--name", "another", "--languages", "en"]), 73, &["other teachers"]);
}

#[test]
fn aligned_masks_need_the_tokenizers() {
    let scene = scene();
    let aligned = keeping("first") + "[masking]\nalign_masks = true\n";
    expect(&run(&scene, &[EN], " ", &aligned), 0, &[]);
    expect(&relabel(&scene, "first", "out", &AS_LATER), 64, &["align_masks", "`en`", "--tokenizer"]);
    let tokenizer = folder(EN.1);
    let output = relabel(
        &scene,
        "first",
        "out",
        &[&AS_LATER[..], &["--tokenizer", tokenizer.to_str().unwrap(), "--json"]].concat(),
    );
    expect(&output, 0, &[]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let sum = report["copies"].as_u64().unwrap() + report["nothing_to_mask"].as_u64().unwrap();
    assert!(sum as usize == DOCUMENTS && report["copies"].as_u64().unwrap() > 30, "{report}");
}

/// No copy is truncated: what is too long gets none, unless longer ones are allowed.
#[test]
fn longer_copies_are_made_only_if_that_is_asked_for() {
    let scene = scene();
    let short = keeping("first").replace("max_sequence_length = 64", "max_sequence_length = 16");
    expect(&run(&scene, &[EN], " ", &short), 0, &[]);
    let report = |out: &str, arguments: &[&str]| -> Value {
        let output = relabel_with("demo-es", &scene, "first", out, &[&["--json", "--name", "es"], arguments].concat());
        expect(&output, 0, &[]);
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let cut = report("cut", &[]);
    let (copies, too_long) = (cut["copies"].as_u64().unwrap(), cut["too_many_tokens"].as_u64().unwrap());
    assert!(copies > 0 && too_long > 0, "{cut}");
    let whole = report("whole", &["--max-sequence-length", "64"]);
    assert_eq!((&whole["copies"], &whole["too_many_tokens"]), (&(copies + too_long).into(), &0.into()));
    expect(&relabel(&scene, "first", "less", &["--max-sequence-length", "15"]), 64, &["--max-sequence-length"]);
    let going_on = |length: &str| {
        let settings = keeping("whole").replace("max_sequence_length = 64", &format!("max_sequence_length = {length}"));
        run(&scene, &[EN, ("es", "demo-es")], "rounds = 2\n", &settings.replace("keep_text = true\n", ""))
    };
    expect(&going_on("16"), 78, &["store.max_sequence_length: 64 in the log, 16"]);
}

#[test]
fn what_cannot_be_relabelled_is_refused() {
    let scene = scene();
    let without = keeping("first").replace("keep_text = true\n", "");
    expect(&run(&scene, &[EN], " ", &without), 0, &[]);
    expect(&relabel(&scene, "first", "out", &AS_LATER), 65, &["90 of 90 records have no text", "keep_text = true"]);
    expect(&relabel(&scene, "first", "out", &["--name", "en"]), 64, &["a teacher `en` already"]);
    expect(&relabel(&scene, "first", "out", &["--languages", "fi"]), 64, &["only of `en`"]);
    expect(&relabel(&scene, "nothing", "out", &AS_LATER), 66, &["nothing"]);
    expect(&relabel(&scene, "first", "first", &AS_LATER), 73, &["other teachers"]);
    assert!(!scene.path("out").exists());
}
