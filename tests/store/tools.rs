//! `log stat`, `verify`, `dump`, `copy` and `merge`.

use crate::harness::{mergedistill, text};
use crate::scene::{ENTRIES, Scene, entries, expect};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;
use store::Precision;

/// `mergedistill log COMMAND FOLDER …`
fn log(command: &str, arguments: &[&str]) -> Output {
    mergedistill(&["log", command]).args(arguments).output().unwrap()
}

fn name(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The JSON document that a command prints.
#[track_caller]
fn json(output: &Output) -> Value {
    expect(output, 0, &[]);
    serde_json::from_slice(&output.stdout).unwrap()
}

#[track_caller]
fn dump(dir: &Path) -> Vec<Value> {
    let output = log("dump", &[name(dir), "--json"]);
    expect(&output, 0, &[]);
    text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The only segment of a log.
fn segment(dir: &Path) -> PathBuf {
    dir.join("00000000000000000000.seg")
}

/// Overwrites the header of a log's second block.
fn damage(dir: &Path) {
    let mut bytes = fs::read(segment(dir)).unwrap();
    let blocks: Vec<usize> =
        bytes.windows(4).enumerate().filter(|(_, window)| window == b"MDbk").map(|(at, _)| at).collect();
    bytes[blocks[1]..blocks[1] + 8].fill(0);
    fs::write(segment(dir), bytes).unwrap();
}

#[test]
fn stat_and_verify() {
    let scene = Scene::new(Precision::Exact);
    let stat = json(&scene.run("stat", &["--json"]));
    assert_eq!((&stat["begin"], &stat["durable"]), (&0.into(), &ENTRIES.into()));
    assert_eq!(stat["precisions"][0]["precision"], "exact");
    let sum = |map: &str, field: &str| {
        stat[map].as_object().unwrap().values().map(|row| row[field].as_u64().unwrap()).sum::<u64>()
    };
    for map in ["teachers", "languages"] {
        assert_eq!(sum(map, "copies"), stat["copies"]);
        assert_eq!(sum(map, "tokens"), stat["corpus_tokens"]);
        assert_eq!(sum(map, "masked_positions"), stat["masked_positions"]);
    }
    assert_eq!(stat["teachers"]["plain"]["labelled"], 0);
    let output = scene.run("stat", &[]);
    let lines = text(&output.stdout);
    for word in ["top_ids", "per masked position", "labelled", "held out", "both", "exact, top 4"] {
        assert!(lines.contains(word), "`{word}` is not in: {lines}");
    }
    let verified = json(&scene.run("verify", &["--json", "--threads", "3"]));
    assert_eq!((&verified["entries"], &verified["records"]), (&ENTRIES.into(), &stat["records"]));
}

#[test]
fn parts_are_copied_and_merged_again() {
    let scene = Scene::new(Precision::Exact);
    let (first, second, whole) = (scene.path("first"), scene.path("second"), scene.path("whole"));
    expect(&scene.run("copy", &[name(&first), "--to", "25"]), 0, &[]);
    let report = json(&scene.run("copy", &[name(&second), "--from", "15", "--json"]));
    assert_eq!(report["written"]["entries"], ENTRIES - 15);
    let report = json(&log("merge", &[name(&whole), name(&first), name(&second), "--json"]));
    assert_eq!((&report["logs"][1]["duplicates"], &report["written"]["entries"]), (&10.into(), &ENTRIES.into()));
    expect(&log("verify", &[name(&whole)]), 0, &[]);
    assert_eq!(dump(&whole), scene.dump());

    let english = scene.path("english");
    expect(&scene.run("copy", &[name(&english), "--teacher", "both", "--language", "en"]), 0, &[]);
    let expected = scene.dump().into_iter().filter(|record| record["language"] == "en").count();
    let records = dump(&english);
    assert_eq!(records.len(), expected);
    for record in &records {
        let teachers: Vec<&Value> = record["copies"].as_array().unwrap().iter().map(|copy| &copy["teacher"]).collect();
        assert_eq!((teachers, &record["language"]), (vec![&"both".into()], &"en".into()));
    }
    let (compact, exact) = (scene.path("compact"), scene.log());
    expect(&scene.run("copy", &[name(&compact), "--precision", "compact"]), 0, &[]);
    assert!(fs::metadata(segment(&compact)).unwrap().len() < fs::metadata(segment(&exact)).unwrap().len());
}

#[test]
fn what_cannot_be_done_has_its_exit_code() {
    let scene = Scene::new(Precision::Exact);
    let out = scene.path("out");
    expect(&scene.run("copy", &[name(&out), "--teacher", "nobody"]), 64, &["nobody", "en, both, plain"]);
    expect(&scene.run("copy", &[name(&out), "--precision", "vague"]), 64, &["vague", "exact or compact"]);
    expect(&scene.run("copy", &[name(&scene.log())]), 73, &["not empty"]);
    expect(&log("copy", &["/no/such/log", name(&out)]), 66, &["/no/such/log"]);
    expect(&log("merge", &[name(&out), name(&scene.log())]), 64, &["SRC"]);
    let mut others = entries().to_vec();
    for copy in others.iter_mut().flat_map(crate::scene::copies_of) {
        copy.token_ids[0] += 1;
    }
    let other = Scene::with(Precision::Exact, &crate::scene::identity(), others);
    expect(&log("merge", &[name(&out), name(&scene.log()), name(&other.log())]), 65, &["same record"]);
    assert!(!out.exists() && !scene.path("out.partial").exists());
}

#[test]
fn damage_is_skipped_only_when_that_is_asked_for() {
    let scene = Scene::new(Precision::Compact);
    let whole = scene.dump();
    damage(&scene.log());
    let out = scene.path("out");
    for command in ["verify", "dump"] {
        expect(&scene.run(command, &[]), 65, &[".seg at byte"]);
    }
    expect(&scene.run("copy", &[name(&out)]), 65, &[".seg at byte"]);

    let output = scene.run("dump", &["--skip-corrupt", "--json"]);
    expect(&output, 0, &["entries 10 to 19 are lost (10)", "10 entries are lost"]);
    let left: Vec<Value> =
        whole.into_iter().filter(|record| !(10..20).contains(&record["seq"].as_u64().unwrap())).collect();
    let dumped: Vec<Value> = text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(dumped, left);

    let output = scene.run("copy", &[name(&out), "--skip-corrupt"]);
    expect(&output, 0, &[]);
    assert!(text(&output.stdout).contains("10 entries are lost"), "{}", text(&output.stdout));
    expect(&log("verify", &[name(&out)]), 0, &[]);
    assert_eq!(dump(&out).len(), left.len());
}

/// A live log: what is durable is printed, and beyond it nothing.
#[test]
fn dump_ends_where_the_log_is_durable() {
    let (scene, mut log) = Scene::live();
    assert!(scene.dump().is_empty());
    log.append(&entries()[..10]).unwrap();
    log.sync().unwrap();
    log.append(&entries()[10..20]).unwrap();
    let numbers = |arguments: &[&str]| -> Vec<u64> {
        let output = scene.run("dump", &[&["--json"], arguments].concat());
        expect(&output, 0, &[]);
        let lines = text(&output.stdout);
        lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["seq"].as_u64().unwrap()).collect()
    };
    let none: Vec<u64> = Vec::new();
    assert_eq!(numbers(&[]), [0, 1, 2, 3, 4, 5, 6, 8, 9]);
    assert_eq!(numbers(&["--skip-corrupt"]), numbers(&[]));
    assert_eq!(numbers(&["--from", "6", "--count", "2"]), [6, 8]);
    assert_eq!(numbers(&["--from", "6", "--count", "2", "--skip-corrupt"]), [6, 8]);
    assert_eq!(numbers(&["--count", "0"]), none);
    for beyond in ["10", "18446744073709551615"] {
        assert_eq!(numbers(&["--from", beyond]), none);
    }
}
