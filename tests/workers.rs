//! Workers on other machines label for a run, over a real NATS server: the log is the one that the daemon makes by itself, whatever dies on the way.
//!
//! `tests/nats-server` finds the server, or fetches Debian's.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod harness;
#[path = "harness/nats.rs"]
mod nats;

use harness::{Daemon, Scene, checkpoint, configuration, http, mergedistill, text, until};
use nats::Server;
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

/// A worker; killed when dropped.
struct Worker(Child);

impl Worker {
    fn start(server: &Server, teacher: &str) -> Self {
        Self(command(server, teacher).stderr(Stdio::null()).spawn().unwrap())
    }

    fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn folder(teacher: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("demo/teachers").join(teacher)
}

fn command(server: &Server, teacher: &str) -> Command {
    let folder = folder(teacher);
    let arguments = ["worker", "--url", &server.url(), "--run", "test", "--threads", "1", "--teacher"];
    let mut command = mergedistill(&arguments);
    command.arg(folder);
    command
}

const TEACHERS: [&str; 2] = ["demo-en", "demo-en-de"];

/// Labelling alone.
fn local() -> String {
    configuration().split("[student]").next().unwrap().to_owned()
}

/// The same, labelled by workers.
fn remote(local: &str, server: &Server) -> String {
    let cluster = format!("[cluster]\nurl = \"{}\"\nrun = \"test\"\n", server.url());
    local.replace("languages = [", "labelled_by = \"workers\"\nlanguages = [") + &cluster
}

fn ask(address: &str, path: &str) -> (u16, String) {
    http(address, path, address)
}

fn assert_ended(daemon: Daemon) {
    let (code, log) = daemon.finish();
    assert_eq!(code, Some(0), "{log}");
}

#[test]
fn workers_make_the_log_that_the_daemon_makes() {
    let server = Server::start();
    let (alone, together) = (Scene::new(&local()), Scene::new(&remote(&local(), &server)));
    assert!(alone.run(&[]).status.success());
    // Workers that come before the run wait for it.
    let early = Worker::start(&server, TEACHERS[0]);
    let daemon = together.start();
    let workers: Vec<Worker> =
        [TEACHERS[0], TEACHERS[1], TEACHERS[1]].iter().map(|teacher| Worker::start(&server, teacher)).collect();
    assert_ended(daemon);
    drop((early, workers));
    let (expected, found) = (alone.log_lines("dump"), together.log_lines("dump"));
    assert!(expected.len() > 20);
    assert!(expected == found, "the logs differ");
    together.log_lines("verify");
}

#[test]
fn a_teacher_is_labelled_here_and_elsewhere() {
    let server = Server::start();
    // Long enough for both sides to take part.
    let local = local().replace("path = ", "rounds = 30\npath = ").replacen("rounds = 30\n", "", 2);
    let both = remote(&local, &server).replace("\"workers\"", "\"both\"");
    let (alone, together) = (Scene::new(&local), Scene::new(&both));
    assert!(alone.run(&[]).status.success());
    let worker = Worker::start(&server, TEACHERS[1]);
    let mut daemon = together.start();
    let address = daemon.address();
    let batches = |text: &str, worker: &str| -> Option<u64> {
        let status: Value = serde_json::from_str(text).ok()?;
        let workers = status["workers"]
            .as_array()?
            .iter()
            .filter(|one| one["worker"].as_str().is_some_and(|name| name.contains(worker)));
        Some(workers.map(|one| one["batches"].as_u64().unwrap()).sum())
    };
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    until("both sides at work", || {
        let (_, status) = ask(&address, "/v1/status");
        (batches(&status, "daemon/")? > 0 && batches(&status, host.trim())? > 0).then_some(())
    });
    let (_, metrics) = ask(&address, "/metrics");
    assert!(metrics.contains("mergedistill_cluster_workers{teacher=\"demo-en-de\"} 2"), "{metrics}");
    assert!(metrics.contains("mergedistill_cluster_connected 1"));
    assert_ended(daemon);
    drop(worker);
    assert!(alone.log_lines("dump") == together.log_lines("dump"), "the logs differ");
}

#[test]
fn a_worker_says_how_it_goes() {
    let server = Server::start();
    let folder = tempfile::tempdir().unwrap();
    let manager = UnixDatagram::bind(folder.path().join("notify")).unwrap();
    // Read all the time: a service manager's queue is short.
    let reading = std::thread::spawn(move || {
        let (mut told, mut buffer) = (String::new(), [0; 1000]);
        while !told.contains("STOPPING=1") {
            let length = manager.recv(&mut buffer).unwrap();
            told += std::str::from_utf8(&buffer[..length]).unwrap();
            told.push('\n');
        }
        told
    });
    // As the unit starts it.
    let unit = include_str!("../ops/systemd/mergedistill-worker@.service");
    let line = unit.lines().find_map(|line| line.strip_prefix("ExecStart=/usr/bin/mergedistill ")).unwrap();
    assert_eq!(line, "worker --id %H/%i $WORKER");
    let mut command = command(&server, TEACHERS[0]);
    command
        .args(["--id", "here/one"])
        .env("NOTIFY_SOCKET", folder.path().join("notify"))
        .env("WATCHDOG_USEC", "400000");
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    let line = lines.find(|line| line.contains("metrics: http://")).unwrap();
    let address = line.split("http://").nth(1).unwrap().split('/').next().unwrap().to_owned();
    let (code, reason) = ask(&address, "/readyz");
    assert!(code == 503 && reason.contains("the run's coordinator has not been there yet"), "{code} {reason}");
    assert_eq!(ask(&address, "/healthz").0, 200);
    let scene = Scene::new(&remote(&local(), &server));
    let daemon = scene.start();
    let other = Worker::start(&server, TEACHERS[1]);
    assert_ended(daemon);
    until("the worker is ready", || (ask(&address, "/readyz").0 == 200).then_some(()));
    let status: Value = serde_json::from_str(&ask(&address, "/v1/status").1).unwrap();
    assert_eq!(
        (&status["run"], &status["teacher"], &status["state"]),
        (&"test".into(), &"demo-en".into(), &"running".into())
    );
    let metrics = ask(&address, "/metrics").1;
    assert!(metrics.contains("mergedistill_worker_connected{teacher=\"demo-en\"} 1"), "{metrics}");
    assert!(!metrics.contains("mergedistill_worker_batches_total{teacher=\"demo-en\"} 0"), "{metrics}");
    assert_eq!(ask(&address, "/").0, 404);
    assert_eq!(ask(&address, "/v1/configuration").0, 404);
    // An orderly stop.
    let stopped = Command::new("kill").arg(child.id().to_string()).status().unwrap();
    assert!(stopped.success());
    assert!(lines.any(|line| line.contains("the worker has ended")));
    assert!(child.wait().unwrap().success());
    let told = reading.join().unwrap();
    let place = |what: &str| told.find(what).unwrap_or_else(|| panic!("no {what} in {told}"));
    assert!(place("STATUS=waits for the coordinator of run test") < place("READY=1"), "{told}");
    assert!(place("READY=1") < place("WATCHDOG=1") && place("WATCHDOG=1") < place("STOPPING=1"), "{told}");
    drop(other);
}

#[test]
fn whatever_dies_nothing_is_lost_and_nothing_is_there_twice() {
    const KILLS: usize = 24;
    let more = |text: String| text.replace("path = ", "rounds = 30\npath = ").replacen("rounds = 30\n", "", 2);
    let mut server = Server::start();
    let local = more(local());
    let (alone, together) = (Scene::new(&local), Scene::new(&remote(&local, &server)));
    assert!(alone.run(&[]).status.success());
    let mut daemon = together.start();
    let mut workers: Vec<Worker> = (0..4).map(|number| Worker::start(&server, TEACHERS[number % 2])).collect();
    for kill in 0..KILLS {
        // Each after something was made durable since the last one.
        if daemon.wait_for("made durable").is_none() {
            panic!("all was over after {kill} kills: make the text longer");
        }
        match kill % 3 {
            0 => {
                let number = kill / 3 % workers.len();
                workers[number].kill();
                workers[number] = Worker::start(&server, TEACHERS[number % 2]);
            }
            1 => {
                daemon.signal("KILL");
                assert_eq!(daemon.finish().0, None);
                daemon = together.start();
            }
            _ => {
                server.kill();
                server.up();
            }
        }
    }
    assert_ended(daemon);
    let (expected, found) = (alone.log_lines("dump"), together.log_lines("dump"));
    assert!(expected == found, "the logs differ");
    together.log_lines("verify");
}

/// The student's part of the configuration, for a log that is there.
fn student(log: &str) -> String {
    let text = configuration();
    let (teachers, rest) = text.split_once("[[corpus]]").unwrap();
    let (_, student) = rest.split_once("[student]").unwrap();
    format!("{teachers}{log}[student]{student}").replace("max_sequence_length = 32", "max_sequence_length = 128")
}

/// Names and content of the files in a folder.
fn files(folder: PathBuf) -> Vec<(String, Vec<u8>)> {
    let entries = std::fs::read_dir(folder).unwrap().map(Result::unwrap).filter(|entry| entry.path().is_file());
    let mut files: Vec<_> =
        entries.map(|entry| (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap())).collect();
    files.sort();
    files
}

#[test]
fn a_second_trainer_follows_the_published_log_to_the_same_weights() {
    let server = Server::start();
    let cluster = |keys: &str| format!("[cluster]\nurl = \"{}\"\nrun = \"test\"\n{keys}\n", server.url());
    // One that trains from the log before it is there waits for it.
    let follower = Scene::new(&student(&cluster("follow = true")));
    let mut following = follower.start();
    following.wait_for("waits for somebody to publish the log").unwrap();
    let source = Scene::new(&(local() + &cluster("publish = true")));
    let labelled = source.run(&[]);
    assert!(labelled.status.success(), "{}", text(&labelled.stderr));
    // It may have begun with a part of the log; this one begins with all of it, as the one beside the log does.
    let late = Scene::new(&student(&cluster("follow = true")));
    assert_ended(late.start());
    let log = source.path("state/log");
    let beside = Scene::new(&student(&format!("[store]\npath = {log:?}\n")));
    assert_ended(beside.start());
    assert_ended(following);
    let segments = |scene: &Scene| {
        let mut files = files(scene.path("state/log"));
        files.retain(|(name, _)| name.ends_with(".seg"));
        files
    };
    assert!(!segments(&source).is_empty() && segments(&source) == segments(&late), "the logs differ");
    assert!(checkpoint(&beside, 12) == checkpoint(&late, 12), "the weights differ");
    late.log_lines("verify");

    // The same by commands; and another log is refused.
    let (url, copy) = (server.url(), follower.path("copy"));
    let run = |arguments: &[&str]| {
        mergedistill(arguments).args(["--url", &url, "--once", "--run", "other"]).output().unwrap()
    };
    assert!(run(&["log", "publish", log.to_str().unwrap()]).status.success());
    assert!(run(&["log", "publish", log.to_str().unwrap()]).status.success(), "there is nothing more");
    assert!(run(&["log", "follow", copy.to_str().unwrap()]).status.success());
    let mut copied = files(copy);
    copied.retain(|(name, _)| name.ends_with(".seg"));
    assert!(copied == segments(&source));
    let other = Scene::new(&local().replace("[queue]", "[run]\nseed = 2\n[queue]"));
    assert!(other.run(&[]).status.success());
    let refused = run(&["log", "publish", other.path("state/log").to_str().unwrap()]);
    let error = text(&refused.stderr);
    assert!(error.contains("has another log under run `other`: remove stream mergedistill-other-log"), "{error}");
}

#[test]
fn a_followed_log_keeps_what_it_is_told_to_keep() {
    let server = Server::start();
    let cluster = |keys: &str| format!("[cluster]\nurl = \"{}\"\nrun = \"test\"\n{keys}\n", server.url());
    let segments = "[store]\nsegment_bytes = 65536\n";
    // There is more to label than the other reads.
    let endless = local().replace("[[corpus]]", "[[corpus]]\nrounds = 100000");
    let held_out = "[evaluate]\nholdout_fraction = 0.1\n";
    let source = Scene::new(&format!("{endless}{segments}{}{held_out}", cluster("publish = true")));
    let labels = source.start();
    let follower = student(&format!("{segments}{}", cluster("follow = true"))).replace("steps = 12", "steps = 100000");
    let follower = Scene::new(&follower);
    let mut following = follower.start();
    following.wait_for("the log is as it is published").unwrap();
    let socket = follower.path("state/control.sock");
    until("the control socket", || socket.exists().then_some(()));
    let arguments = ["ctl", "retention", "--bytes", "65536", "--json", "--socket", socket.to_str().unwrap()];
    let told = mergedistill(&arguments).output().unwrap();
    assert!(text(&told.stdout).contains("65536"), "{}{}", text(&told.stdout), text(&told.stderr));
    let line = following.wait_for("removed the oldest segments").expect("nothing was removed");
    assert!(line.contains("begin="), "{line}");
    following.signal("TERM");
    assert_ended(following);
    let begin = || follower.log_lines("stat")[0]["begin"].as_u64().unwrap();
    let removed = begin();
    assert!(removed > 0);
    follower.log_lines("verify");
    // What was held out is still there, and it goes on from there at the next start.
    let held_out = follower.path("state/holdout");
    let held_out = mergedistill(&["log", "dump", "--json", held_out.to_str().unwrap()]).output().unwrap();
    let first: Value = serde_json::from_str(text(&held_out.stdout).lines().next().unwrap()).unwrap();
    assert_eq!(first["held_out"], true);
    let limited = std::fs::read_to_string(&follower.config)
        .unwrap()
        .replace(segments, &format!("{segments}retain_bytes = 65536\n"));
    std::fs::write(&follower.config, limited).unwrap();
    let mut again = follower.start();
    again.wait_for("the log is as it is published").unwrap();
    again.wait_for("removed the oldest segments").expect("nothing more was removed");
    again.signal("TERM");
    assert_ended(again);
    assert!(begin() > removed);
    labels.signal("KILL");
}

#[test]
fn what_does_not_fit_is_refused_with_the_difference() {
    let server = Server::start();
    let scene = Scene::new(&remote(&local(), &server));
    let daemon = scene.start();
    let refused = |arguments: &[&str]| {
        let output = command(&server, TEACHERS[0]).args(arguments).output().unwrap();
        assert!(!output.status.success());
        text(&output.stderr)
    };
    assert!(
        refused(&["--name", "demo-en-de"]).contains("this is not the teacher `demo-en-de` of the run: its weights are")
    );
    assert!(
        refused(&["--name", "fr"]).contains("the run has no teacher `fr` for workers; it has: demo-en, demo-en-de")
    );
    daemon.signal("KILL");
    drop(daemon);

    let without = Server::start_with(&[], "");
    let scene = Scene::new(&remote(&local(), &without));
    let error = text(&scene.run(&[]).stderr);
    assert!(error.contains("is JetStream switched on"), "{error}");
    let mut nobody = without;
    nobody.kill();
    let error = text(&scene.run(&[]).stderr);
    assert!(error.contains("cannot connect to nats://127.0.0.1:"), "{error}");
}
