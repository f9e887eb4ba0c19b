//! Bad input: a clear message that names what is wrong, and the right exit code; what can go on goes on.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod harness;

use harness::{Scene, configuration, mergedistill, text, until};
use serde_json::Value;
use std::fs;
use std::io::Write;
use std::process::{Command, Output, Stdio};

/// Runs `configuration` and expects this exit code, and all of `words` in the message.
#[track_caller]
fn check(configuration: &str, code: i32, words: &[&str]) {
    let scene = Scene::new(configuration);
    expect(&scene.run(&[]), code, words);
}

#[track_caller]
fn expect(output: &Output, code: i32, words: &[&str]) {
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    for word in words {
        assert!(stderr.contains(word), "`{word}` is not in: {stderr}");
    }
}

#[test]
fn wrong_configurations() {
    let good = configuration();
    check(&good.replace("batch_tokens", "batch_tokns"), 78, &["queue.batch_tokns", "did you mean `batch_tokens`?"]);
    check(&good.replace("teachers/demo-en\"", "teachers/no-such\""), 66, &["teacher[demo-en]", "teachers/no-such"]);
    check(
        &good.replace("language = \"de\"", "language = \"fi\""),
        78,
        &["corpus[de].language", "no teacher has language `fi`"],
    );
    check(&good.replace("corpora/de.txt", "corpora/*.nothing"), 66, &["corpus[de]", "corpora/*.nothing"]);
    check("[[corpus", 78, &["not valid TOML"]);
}

#[test]
fn check_reports_everything_at_once() {
    let scene = Scene::new(&configuration().replace("batch_tokens", "batch_tokns").replace("layers", "layer"));
    let output = mergedistill(&["check", "--config", scene.config.to_str().unwrap()]).output().unwrap();
    expect(&output, 78, &["2 problems", "queue.batch_tokns", "student.layer"]);
}

#[test]
fn a_failure_is_a_json_document_too() {
    let scene = Scene::new(&configuration().replace("layers", "layer"));
    let config = scene.config.to_str().unwrap();
    for (arguments, code, word) in [
        (&["check", "--config", config, "--json"][..], 78, "student.layer"),
        (&["log", "verify", "/no/such/log", "--json"], 66, "/no/such/log"),
        (&["log", "dump", "/no/such/log", "--json"], 66, "/no/such/log"),
        (&["evaluate", "--config", config, "--json"], 78, "student.layer"),
    ] {
        let output = mergedistill(arguments).output().unwrap();
        expect(&output, code, &[word]);
        let document: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(document["exit_code"], code, "{document}");
        assert!(document["error"].as_str().unwrap().contains(word), "{document}");
    }
    // Asked for no document, it prints none; and a status that was printed is the only one.
    assert!(mergedistill(&["check", "--config", config]).output().unwrap().stdout.is_empty());
    let output = mergedistill(&["ctl", "--socket", "/no/such.sock", "status", "--json"]).output().unwrap();
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(document["state"], "not_running", "{document}");
}

#[test]
fn usage_and_missing_files() {
    expect(&mergedistill(&["frobnicate"]).output().unwrap(), 64, &["frobnicate"]);
    expect(&mergedistill(&["run", "--config", "/no/such.toml"]).output().unwrap(), 66, &["/no/such.toml"]);
    expect(&mergedistill(&["log", "stat", "/no/such/log"]).output().unwrap(), 66, &["/no/such/log"]);
    expect(&mergedistill(&["ctl", "pause", "--socket", "/no/such.sock"]).output().unwrap(), 75, &["/no/such.sock"]);
}

#[test]
fn a_teacher_without_weights() {
    let scene = Scene::new("");
    let teacher = concat!(env!("CARGO_MANIFEST_DIR"), "/demo/teachers/demo-en");
    let copy = scene.path("weightless");
    fs::create_dir(&copy).unwrap();
    for file in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        fs::copy(format!("{teacher}/{file}"), copy.join(file)).unwrap();
    }
    fs::write(&scene.config, configuration().replace(&format!("\"{teacher}\""), "\"weightless\"")).unwrap();
    expect(&scene.run(&[]), 66, &["teacher[demo-en]", "weightless", "model.safetensors", "pytorch_model.bin"]);
}

#[test]
fn unusable_documents_are_quarantined_and_the_stream_goes_on() {
    let scene = Scene::new("");
    let good = "The menu bar lists every command of the program, and each command has a shortcut key of its own.";
    let mut corpus = Vec::new();
    for document in [
        good.as_bytes(),
        b"Not UTF-8: \xff\xfe\xfa and more of it in the same document of the corpus.",
        "x".repeat(50_000_000).as_bytes(),
        b"A null byte\0in the middle of a document is not text either, so it cannot be used.",
        good.replace("menu", "tool").as_bytes(),
    ] {
        corpus.extend_from_slice(document);
        corpus.extend_from_slice(b"\n\n");
    }
    fs::write(scene.path("broken.txt"), corpus).unwrap();
    let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/demo/corpora/en.txt");
    let all = configuration().replace(demo, "broken.txt").replace("holdout_fraction = 0.1", "holdout_fraction = 0.0");
    let label_only = format!("{}[evaluate]\nholdout_fraction = 0.0\n", &all[..all.find("[student]").unwrap()]);
    fs::write(&scene.config, label_only).unwrap();
    let output = scene.run(&[]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let records = scene.log_lines("dump");
    let documents: std::collections::BTreeSet<String> =
        records.iter().filter(|record| record["source"] == "en").map(|record| record["document"].to_string()).collect();
    assert_eq!(documents.len(), 2, "{documents:?}");
    let quarantined: String =
        walk(&scene.path("state/quarantine")).iter().map(|path| fs::read_to_string(path).unwrap()).collect();
    assert_eq!(quarantined.matches("reason").count(), 3, "{quarantined}");
}

fn walk(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files.extend(walk(&path)) } else { files.push(path) }
    }
    files
}

/// The files in a folder, but for the lock.
fn content(folder: &std::path::Path) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    let paths = walk(folder).into_iter().filter(|path| !path.ends_with("LOCK"));
    let mut files: Vec<_> = paths.map(|path| (path.clone(), fs::read(path).unwrap())).collect();
    files.sort();
    files
}

/// `check` and `run` refuse with the same words, and leave everything as it was.
#[track_caller]
fn refused_alike(scene: &Scene, configuration: &str, words: &[&str]) {
    fs::write(&scene.config, configuration).unwrap();
    let before = content(&scene.path("state"));
    expect(&mergedistill(&["check", "--config", scene.config.to_str().unwrap()]).output().unwrap(), 78, words);
    expect(&scene.run(&[]), 78, words);
    let after = content(&scene.path("state"));
    let changed: Vec<_> = after.iter().filter(|file| !before.contains(file)).map(|(path, _)| path).collect();
    assert!(changed.is_empty() && after.len() == before.len(), "{changed:?}");
}

const DEMO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/demo");

#[test]
fn a_start_that_is_refused_changes_nothing() {
    let one = configuration();
    let scene = Scene::new(&one);
    assert!(scene.run(&["--until-step", "4"]).status.success());
    let third = one.replacen(
        "[[corpus]]",
        &format!("[[teacher]]\nname = \"late\"\npath = \"{DEMO}/teachers/demo-es\"\nlanguages = [\"es\"]\n[[corpus]]"),
        1,
    );
    // A teacher more would be taken, another student is not.
    let other = third.replace("layers = 1", "layers = 2");
    refused_alike(&scene, &other, &["student.layers was 1, is 2", "state folder"]);
    let masking = |setting: &str| one.replace("[queue]", &format!("[masking]\n{setting}\n[queue]"));
    refused_alike(&scene, &masking("probability = 0.3"), &["masking.probability: 0.15", "0.3", "state_dir"]);
    let words = ["masking.align_masks: unset", "true", "masking.whole_word", "state_dir"];
    refused_alike(&scene, &masking("align_masks = true"), &words);
    fs::write(&scene.config, &one).unwrap();
    let output = scene.run(&[]);
    assert!(output.status.success(), "{}", text(&output.stderr));

    // Somebody listens there already: a fresh folder stays fresh.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let fresh = Scene::new(&format!("{one}[ops]\nhttp = \"{}\"\n", listener.local_addr().unwrap()));
    expect(&fresh.run(&[]), 75, &["[ops] http", "choose another port"]);
    assert!(!fresh.path("state/run.json").exists() && !fresh.path("state/log").exists());
}

#[test]
fn weights_that_are_there_in_part() {
    let dir = tempfile::tempdir().unwrap();
    for file in fs::read_dir(format!("{DEMO}/teachers/demo-en")).unwrap().map(Result::unwrap) {
        fs::copy(file.path(), dir.path().join(file.file_name())).unwrap();
    }
    let weights = dir.path().join("model.safetensors");
    let whole = fs::read(&weights).unwrap();
    let altered =
        configuration().replace(&format!("{DEMO}/teachers/demo-en\""), &format!("{}\"", dir.path().display()));
    let scene = Scene::new(&altered);
    let size = format!("has {} bytes of {}", whole.len() - 1, whole.len());
    for (bytes, words) in [(whole.len() - 1, &*size), (100, "incomplete"), (3, "incomplete"), (0, "incomplete")] {
        fs::write(&weights, &whole[..bytes]).unwrap();
        let check = mergedistill(&["check", "--config", scene.config.to_str().unwrap()]).output().unwrap();
        for output in [check, scene.run(&[])] {
            expect(&output, 65, &["teacher[demo-en]", "model.safetensors", words]);
        }
    }
}

#[test]
fn a_union_goes_into_an_empty_folder() {
    let teacher = format!("{DEMO}/teachers/demo-en");
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("union");
    let union = || mergedistill(&["vocab", "union", "--out", out.to_str().unwrap(), &teacher]).output().unwrap();
    assert!(union().status.success());
    let before = content(&out);
    expect(&union(), 73, &["something is in", "another --out"]);
    assert_eq!(content(&out), before);
}

/// Everything else is on another file system than the log, which is a small one, in a mount namespace of its own.
#[test]
fn a_full_disk_is_waited_for() {
    let able = Command::new("unshare").args(["--user", "--map-root-user", "--mount", "true"]).status();
    assert!(
        able.is_ok_and(|status| status.success()),
        "this test mounts a small file system: it needs `unshare` (util-linux) and unprivileged user namespaces"
    );
    let all = configuration().replace("[[corpus]]", "[[corpus]]\nrounds = 1000");
    let store = "[store]\npath = \"small/log\"\nsegment_bytes = 131072\n";
    let scene = Scene::new(&format!("{}{store}", &all[..all.find("[student]").unwrap()]));
    let small = scene.path("small");
    fs::create_dir(&small).unwrap();
    let script = r#"
        mount -t tmpfs -o size=4m tmpfs "$0" && head -c 2500000 /dev/zero > "$0/ballast" || exit 99
        "$1" run --config "$2" & daemon=$!
        read room && rm "$0/ballast"
        read end; kill $daemon; wait $daemon; code=$?
        "$1" log verify "$0/log" && exit $code"#;
    let mut shell = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "-c", script])
        .args([small.to_str().unwrap(), env!("CARGO_BIN_EXE_mergedistill"), scene.config.to_str().unwrap()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();

    let status = || -> Option<Value> { serde_json::from_slice(&scene.ctl(&["status"]).stdout).ok() };
    let waits = || status().filter(|status| status["stages"]["log"]["waiting"] == "disk space");
    let durable = |status: &Value| status["log"]["durable"].as_u64().unwrap();
    let first = durable(&until("a full disk", waits));
    assert!(text(&mergedistill_status(&scene)).contains("waiting for disk space"));
    shell.stdin.as_mut().unwrap().write_all(b"room\n").unwrap();
    let goes_on = |status: &Value| status["stages"]["log"]["waiting"].is_null() && durable(status) > first;
    until("more of the log", || status().filter(goes_on));
    let second = durable(&until("a disk that is full again", || waits().filter(|status| durable(status) > first)));
    assert!(second > first);
    assert!(scene.ctl(&["shutdown"]).status.success(), "it can be stopped while it waits");
    until("its end", || (!scene.ctl(&["status"]).status.success()).then_some(()));
    let output = shell.wait_with_output().unwrap();
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    assert_eq!(stderr.matches("WARN waiting for disk space").count(), 2, "a line each time: {stderr}");
    assert_eq!(stderr.matches("there is disk space again").count(), 1, "{stderr}");
    assert!(text(&output.stdout).contains("intact up to"), "{}", text(&output.stdout));
}

/// `mergedistill ctl status`, for people.
fn mergedistill_status(scene: &Scene) -> Vec<u8> {
    let socket = scene.path("state/control.sock");
    mergedistill(&["ctl", "--socket", socket.to_str().unwrap(), "status"]).output().unwrap().stdout
}
