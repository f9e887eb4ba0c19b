//! Documents that are pushed or piped, through the real binary: each is labelled once, whatever is killed meanwhile.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod harness;

use harness::{Scene, configuration, http, mergedistill, metric, text, until};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

/// Labels what comes in one corpus; trains nothing.
fn scene(corpus: &str) -> Scene {
    let all = configuration();
    let teachers = &all[..all.find("[[corpus]]").unwrap()];
    Scene::new(&format!(
        "{teachers}[[corpus]]\nname = \"in\"\n{corpus}\n[queue]\nbatch_tokens = 256\nlinger_ms = 5\n\
         [store]\nsync_interval_ms = 5\nmax_sequence_length = 32\n"
    ))
}

/// A text of its own for each number.
fn sentence(number: usize) -> String {
    format!("Boat number {number} came back to the harbour in the evening.")
}

/// The documents in the log, with how many runs of examples each has: one, if it was labelled once.
fn documents(scene: &Scene) -> BTreeMap<String, usize> {
    let name =
        |record: &Value| format!("{}/{}", record["source"].as_str().unwrap(), record["document"].as_str().unwrap());
    let mut documents: Vec<String> = scene.log_lines("dump").iter().map(name).collect();
    documents.dedup();
    let mut counts = BTreeMap::new();
    documents.into_iter().for_each(|document| *counts.entry(document).or_default() += 1);
    counts
}

/// Waits until the log has so many documents.
fn wait_for_documents(scene: &Scene, count: usize) {
    until("the documents", || (documents(scene).len() >= count).then_some(()));
}

/// Sends documents as plain text; returns the status and the answer.
fn post(mut stream: impl Read + Write, corpus: &str, fields: &str, body: &str) -> (u16, Value) {
    write!(
        stream,
        "POST /v1/corpora/{corpus}/documents HTTP/1.1\r\nConnection: close\r\nContent-Type: text/plain\r\n\
         Content-Length: {}\r\n{fields}\r\n{body}",
        body.len()
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), serde_json::from_str(body).unwrap())
}

/// Clients that push one document after another and send each again, with its key, until they are told that it is durable;
/// the daemon is killed meanwhile, again and again.
#[test]
fn every_pushed_document_is_labelled_once_however_often_the_daemon_is_killed() {
    const CLIENTS: usize = 4;
    const REQUESTS: usize = 30;
    const KILLS: usize = 8;
    let scene = scene("language = \"en\"\nsource = \"http\"\nformat = \"jsonl\"\nid_field = \"id\"");
    let socket = scene.path("state/control.sock");
    let (answered, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (scene, socket, answered, stop) = (&scene, &socket, &answered, &stop);
            scope.spawn(move || {
                let file = scene.path(&format!("{client}.jsonl"));
                for request in 0..REQUESTS {
                    let number = client * REQUESTS + request;
                    let documents = [2 * number, 2 * number + 1]
                        .map(|number| format!("{}\n", json!({"text": sentence(number), "id": number})));
                    fs::write(&file, documents.concat()).unwrap();
                    let push = || {
                        let arguments =
                            ["ctl", "--socket", socket.to_str().unwrap(), "push", "--corpus", "in", "--key"];
                        let mut command = mergedistill(&arguments);
                        command.arg(number.to_string()).arg(&file).output().unwrap().status.success()
                    };
                    until("an answer", || (stop.load(Ordering::Relaxed) || push()).then_some(()));
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        // Clients that nobody answers end when something here fails.
        let end = StopOnDrop(&stop);
        for kill in 1..=KILLS {
            let mut daemon = scene.start();
            assert!(daemon.wait_for("live page").is_some());
            let enough = kill * CLIENTS * REQUESTS / (KILLS + 1);
            until("answers", || (answered.load(Ordering::Relaxed) >= enough).then_some(()));
            daemon.signal("KILL");
            assert_eq!(daemon.finish().0, None);
            scene.log_lines("verify");
        }
        let mut daemon = scene.start();
        assert!(daemon.wait_for("live page").is_some());
        until("all answers", || (answered.load(Ordering::Relaxed) == CLIENTS * REQUESTS).then_some(()));
        wait_for_documents(&scene, 2 * CLIENTS * REQUESTS);
        daemon.signal("TERM");
        let (code, log) = daemon.finish();
        assert_eq!(code, Some(0), "{log}");
        std::mem::forget(end);
    });
    let identifier = |(document, count): (String, usize)| (document.split_once('#').unwrap().1.to_owned(), count);
    let mut found: Vec<_> = documents(&scene).into_iter().map(identifier).collect();
    let mut expected: Vec<_> = (0..2 * CLIENTS * REQUESTS).map(|number| (number.to_string(), 1)).collect();
    found.sort_unstable();
    expected.sort_unstable();
    assert_eq!(found, expected);
}

struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn the_end_of_standard_input_is_the_end_of_the_corpus() {
    let scene = scene("language = \"en\"\nsource = \"stdin\"");
    let mut child = mergedistill(&["run", "--config", scene.config.to_str().unwrap()])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    for number in 0..50 {
        write!(input, "{}\n\n", sentence(number)).unwrap();
    }
    write!(input, "no text\0here\n\n{}", sentence(50)).unwrap();
    drop(input);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(documents(&scene).len(), 51);
    let quarantined = fs::read_dir(scene.path("state/quarantine/in")).unwrap().count();
    assert_eq!(quarantined, 1);
}

#[test]
fn a_pipe_outlives_those_who_write_to_it() {
    let scene = scene("language_field = \"lang\"\nsource = \"pipe\"\npath = \"pipe\"\nformat = \"jsonl\"");
    let pipe = scene.path("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let mut daemon = scene.start();
    assert!(daemon.wait_for("live page").is_some());
    for round in 0..3 {
        let mut writer = OpenOptions::new().write(true).open(&pipe).unwrap();
        for number in 0..5 {
            let language = if number % 2 == 0 { "en" } else { "de" };
            let line = json!({"text": sentence(10 * round + number), "lang": language});
            writeln!(writer, "{line}").unwrap();
        }
        drop(writer);
        wait_for_documents(&scene, 5 * (round + 1));
    }
    daemon.signal("TERM");
    let (code, log) = daemon.finish();
    assert_eq!(code, Some(0), "{log}");
    let mut sources: BTreeMap<String, usize> = BTreeMap::new();
    for document in documents(&scene).keys() {
        *sources.entry(document.split_once('/').unwrap().0.to_owned()).or_default() += 1;
    }
    assert_eq!(sources, BTreeMap::from([("in:de".to_owned(), 6), ("in:en".to_owned(), 9)]));
}

/// A pipe forgets what was read from it, so a kill may lose what was not durable yet; but nothing comes twice, and what was
/// labelled stays.
#[test]
fn what_came_through_a_pipe_is_labelled_once_at_most() {
    let scene = scene("language = \"en\"\nsource = \"pipe\"\npath = \"pipe\"\nformat = \"jsonl\"\nid_field = \"id\"");
    let pipe = scene.path("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let mut next = 0;
    let mut labelled = Vec::new();
    for round in 0..4 {
        let mut daemon = scene.start();
        assert!(daemon.wait_for("live page").is_some());
        let mut writer = OpenOptions::new().write(true).open(&pipe).unwrap();
        for _ in 0..40 {
            writeln!(writer, "{}", json!({"text": sentence(next), "id": next})).unwrap();
            next += 1;
        }
        let known = labelled.len();
        wait_for_documents(&scene, known + 5 * round + 1);
        daemon.signal("KILL");
        drop(daemon.finish());
        let found = documents(&scene);
        assert!(found.values().all(|count| *count == 1), "{found:?}");
        assert!(labelled.iter().all(|document| found.contains_key(document)), "what was labelled stays");
        labelled = found.into_keys().collect();
    }
    let identifiers: BTreeSet<&str> = labelled.iter().map(|document| document.split_once('#').unwrap().1).collect();
    assert_eq!(identifiers.len(), labelled.len(), "no document is there under two names");
}

#[test]
fn documents_over_tcp_need_the_token() {
    let corpus = "language = \"en\"\nsource = \"http\"\n[ops]\ntoken_file = \"token\"";
    let scene = scene(corpus);
    let token = "a-token-of-some-length";
    fs::write(scene.path("token"), token).unwrap();
    let mut daemon = scene.start();
    let address = daemon.address();
    let push = |corpus: &str, fields: &str, body: &str| {
        post(TcpStream::connect(&address).unwrap(), corpus, &format!("Host: {address}\r\n{fields}"), body)
    };
    let authorised = format!("Authorization: Bearer {token}\r\nIdempotency-Key: one\r\n");
    let (status, answer) = push("in", "", "text");
    assert_eq!((status, &answer["error"]["code"]), (401, &json!("token_needed")));
    let (status, answer) = push("others", &authorised, "text");
    assert_eq!((status, &answer["error"]["code"]), (404, &json!("unknown_corpus")));
    let body = format!("{}\n\n{}\n\na\0b", sentence(1), sentence(2));
    let (status, answer) = push("in", &authorised, &body);
    assert_eq!((status, &answer["accepted"], &answer["duplicate"]), (200, &json!(2), &json!(false)));
    assert_eq!((&answer["rejected"][0]["line"], &answer["rejected"][0]["reason"]), (&json!(5), &json!("nul_byte")));
    let (status, answer) = push("in", &authorised, &body);
    assert_eq!((status, &answer["accepted"], &answer["duplicate"]), (200, &json!(0), &json!(true)));
    wait_for_documents(&scene, 2);
    let status: Value = serde_json::from_slice(&scene.ctl(&["status"]).stdout).unwrap();
    assert_eq!(status["inboxes"]["in"]["documents"], json!(2));
    daemon.signal("TERM");
    assert_eq!(daemon.finish().0, Some(0));
    assert_eq!(documents(&scene).len(), 2);
}

/// The inbox is on another file system than everything else, a small one, in a mount namespace of its own.
#[test]
fn a_full_disk_is_answered_and_is_not_the_end() {
    let scene = scene("language = \"en\"\nsource = \"http\"");
    let inbox = scene.path("state/inbox");
    fs::create_dir_all(&inbox).unwrap();
    let script = r#"mount -t tmpfs -o size=1m tmpfs "$0" || exit 99; exec "$1" run --config "$2""#;
    let daemon = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "-c", script])
        .args([inbox.to_str().unwrap(), env!("CARGO_BIN_EXE_mergedistill"), scene.config.to_str().unwrap()])
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let connect = || UnixStream::connect(scene.path("state/control.sock"));
    drop(until("the socket", || connect().ok()));
    let push = |body: &str| post(connect().unwrap(), "in", "Host: x\r\nIdempotency-Key: one\r\n", body);
    let large: String = (0..30_000).map(|number| format!("{}\n\n", sentence(number))).collect();
    for _ in 0..2 {
        let (status, answer) = push(&large);
        assert_eq!((status, &answer["error"]["code"]), (507, &json!("no_space")), "{answer}");
    }
    let (status, answer) = push(&sentence(1));
    assert_eq!((status, &answer["accepted"]), (200, &json!(1)), "{answer}");
    wait_for_documents(&scene, 1);
    assert!(scene.ctl(&["shutdown"]).status.success());
    let output = daemon.wait_with_output().unwrap();
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    assert_eq!(stderr.matches("No space left").count(), 1, "told once: {stderr}");
    assert_eq!(documents(&scene).len(), 1);
}

/// Documents are pushed while a student trains: each is observed once, when it is first learnt from.
#[test]
fn the_time_from_arrival_to_the_first_gradient_is_measured() {
    const DOCUMENTS: usize = 32;
    const WINDOW: usize = 8;
    let all = configuration();
    let teachers = &all[..all.find("[[corpus]]").unwrap()];
    let scene = Scene::new(&format!(
        "{teachers}[[corpus]]\nname = \"in\"\nlanguage = \"en\"\nsource = \"http\"\n[queue]\nbatch_tokens = 256\nlinger_ms = 5\n\
         [store]\nsync_interval_ms = 5\n[student]\nlayers = 1\nhidden_size = 16\nheads = 2\nmax_sequence_length = 32\n\
         [train]\nsteps = 1000\nbatch_examples = 4\nwarmup_steps = 2\nshuffle_examples = {WINDOW}\n\
         [evaluate]\nholdout_fraction = 0\nevery_steps = 1000\n"
    ));
    let mut daemon = scene.start();
    let address = daemon.address();
    let observed = || {
        let scrape = http(&address, "/metrics", &address).1;
        metric(&scrape, "mergedistill_arrival_to_gradient_seconds_count") as usize
    };
    for number in 0..DOCUMENTS {
        let stream = UnixStream::connect(scene.path("state/control.sock")).unwrap();
        assert_eq!(post(stream, "in", "Host: x\r\n", &sentence(number)).0, 200);
    }
    until("the first gradient of every document", || (observed() >= DOCUMENTS).then_some(()));
    let status: Value = serde_json::from_slice(&scene.ctl(&["status"]).stdout).unwrap();
    let delays = &status["arrival_to_gradient"];
    assert_eq!(delays["records"], json!(DOCUMENTS), "{delays}");
    let [p50, p99] = ["p50_seconds", "p99_seconds"].map(|field| delays[field].as_f64().unwrap());
    assert!(0.0 < p50 && p50 <= p99 && p99 < status["uptime_seconds"].as_f64().unwrap() + 1.0, "{delays}");
    let shown = mergedistill(&["ctl", "--socket", scene.path("state/control.sock").to_str().unwrap(), "status"]);
    let shown = text(&{ shown }.output().unwrap().stdout);
    assert!(shown.contains("(p50)") && shown.contains(&format!("{DOCUMENTS} records")), "{shown}");
    daemon.signal("TERM");
    assert_eq!(daemon.finish().0, Some(0));
    assert_eq!(documents(&scene).len(), DOCUMENTS);
}

#[test]
fn the_command_line_says_what_became_of_the_documents() {
    let scene = scene("language = \"en\"\nsource = \"http\"");
    let file = scene.path("some.txt");
    fs::write(&file, format!("{}\n\na\0b\n\n{}\n", sentence(1), sentence(2))).unwrap();
    let push = |corpus: &str, key: &str| scene.ctl(&["push", "--corpus", corpus, "--key", key, file.to_str().unwrap()]);
    assert_eq!(push("in", "1").status.code(), Some(75), "nobody listens");
    let mut daemon = scene.start();
    assert!(daemon.wait_for("live page").is_some());
    for (key, accepted, duplicates) in [("1", 2, 0), ("1", 0, 1), ("2", 2, 0)] {
        let output = push("in", key);
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!((&answer["accepted"], &answer["duplicates"]), (&json!(accepted), &json!(duplicates)), "{answer}");
        assert_eq!(text(&output.stderr).contains("line 3: "), duplicates == 0, "{}", text(&output.stderr));
    }
    let output = push("others", "1");
    assert_eq!(output.status.code(), Some(66), "{}", text(&output.stderr));
    let missing = scene.ctl(&["push", "--corpus", "in", scene.path("missing.txt").to_str().unwrap()]);
    assert_eq!(missing.status.code(), Some(66), "{}", text(&missing.stderr));
    daemon.signal("TERM");
    assert_eq!(daemon.finish().0, Some(0));
}

/// Labelled as text, braces and quotes would go into the student.
#[test]
fn json_lines_are_read_as_such_whatever_the_corpus_usually_takes() {
    let scene = scene("language = \"en\"\nsource = \"http\"");
    let kept = fs::read_to_string(&scene.config).unwrap() + "keep_text = true\n";
    fs::write(&scene.config, kept).unwrap();
    let mut daemon = scene.start();
    assert!(daemon.wait_for("live page").is_some());
    // Known by its name, or by how it begins.
    for (number, name) in ["lines.jsonl", "lines"].into_iter().enumerate() {
        let lines = [2 * number, 2 * number + 1].map(|number| format!("{}\n", json!({"text": sentence(number)})));
        fs::write(scene.path(name), lines.concat()).unwrap();
        let output = scene.ctl(&["push", "--corpus", "in", scene.path(name).to_str().unwrap()]);
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(answer["accepted"], 2, "{answer}");
    }
    wait_for_documents(&scene, 4);
    daemon.signal("TERM");
    assert_eq!(daemon.finish().0, Some(0));
    let mut texts: Vec<String> =
        scene.log_lines("dump").iter().map(|record| record["text"].as_str().unwrap().to_owned()).collect();
    texts.sort();
    assert_eq!(texts, [0, 1, 2, 3].map(sentence));
}

#[test]
fn a_run_goes_on_without_a_file_that_is_gone_when_it_is_told_so() {
    let scene = scene("language = \"en\"\nwatch = \"in\"\nsettle_seconds = 0.01");
    fs::create_dir(scene.path("in")).unwrap();
    let put = |number: usize| {
        fs::write(scene.path("new.part"), sentence(number)).unwrap();
        fs::rename(scene.path("new.part"), scene.path(&format!("in/{number}.txt"))).unwrap();
    };
    put(1);
    let mut daemon = scene.start();
    assert!(daemon.wait_for("live page").is_some());
    wait_for_documents(&scene, 1);
    assert!(scene.ctl(&["corpus", "pause", "in"]).status.success());
    put(2);
    let manifest = || fs::read_to_string(scene.path("state/feeds/in.jsonl")).unwrap();
    until("the file to be known", || manifest().contains("2.txt").then_some(()));
    fs::remove_file(scene.path("in/2.txt")).unwrap();
    scene.ctl(&["corpus", "resume", "in"]);
    let (code, log) = daemon.finish();
    assert_eq!(code, Some(66), "{log}");
    assert!(log.contains("`2.txt`") && log.contains("mergedistill corpus forget"), "{log}");

    let config = scene.config.to_str().unwrap();
    let corpus = |arguments: &[&str]| {
        let [action, rest @ ..] = arguments else { panic!("{arguments:?}") };
        let output = mergedistill(&[&["corpus", action, "--config", config][..], rest].concat()).output().unwrap();
        (output.status.code(), text(&output.stderr) + &text(&output.stdout))
    };
    for (arguments, code, word) in [
        (&["forget", "others", "2.txt"][..], 64, "no corpus `others`, only in"),
        (&["forget", "in", "3.txt"], 78, "does not wait for a file `3.txt`"),
        (&["recognise", "in"], 64, "follows no file"),
        (&["forget", "in", "2.txt"], 0, "goes on without the rest of `2.txt`"),
    ] {
        let (found, said) = corpus(arguments);
        assert!(found == Some(code) && said.contains(word), "{arguments:?}: {found:?}, {said}");
    }
    let mut daemon = scene.start();
    assert!(daemon.wait_for("live page").is_some());
    assert_eq!(corpus(&["forget", "in", "1.txt"]).0, Some(75), "somebody is at work");
    put(3);
    wait_for_documents(&scene, 2);
    daemon.signal("TERM");
    assert_eq!(daemon.finish().0, Some(0));
    assert!(documents(&scene).keys().eq(["in/1.txt@0", "in/3.txt@0"]), "{:?}", documents(&scene));
}
