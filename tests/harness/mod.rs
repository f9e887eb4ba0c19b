//! Runs the real binary on small real teachers and text, each test in a folder of its own.

#![allow(dead_code, reason = "each test binary uses its own part")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![allow(unreachable_pub, reason = "a module of test binaries")]

use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Nothing here takes this long; a test that waits longer has failed.
const PATIENCE: Duration = Duration::from_secs(120);

/// A folder with a configuration, and where its state goes.
pub struct Scene {
    pub dir: TempDir,
    pub config: PathBuf,
}

/// Teachers, texts and student of most tests: small, but every stage is the real one.
pub fn configuration() -> String {
    let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/demo");
    format!(
        r#"
[[teacher]]
name = "demo-en"
path = "{demo}/teachers/demo-en"
languages = ["en"]
[[teacher]]
name = "demo-en-de"
path = "{demo}/teachers/demo-en-de"
languages = ["en", "de"]
[[corpus]]
name = "en"
language = "en"
path = "{demo}/corpora/en.txt"
[[corpus]]
name = "de"
language = "de"
path = "{demo}/corpora/de.txt"
[queue]
batch_tokens = 512
[student]
layers = 1
hidden_size = 16
heads = 2
max_sequence_length = 32
[train]
steps = 12
batch_examples = 8
warmup_steps = 2
shuffle_examples = 32
checkpoint_every_steps = 4
[evaluate]
holdout_fraction = 0.1
every_steps = 6
max_examples = 8
"#
    )
}

impl Scene {
    pub fn new(configuration: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("test.toml");
        std::fs::write(&config, configuration).unwrap();
        Self { dir, config }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// `mergedistill run` to its end.
    pub fn run(&self, extra: &[&str]) -> Output {
        mergedistill(&["run", "--config", self.config.to_str().unwrap()]).args(extra).output().unwrap()
    }

    /// `mergedistill run` in the background, at debug level.
    pub fn start(&self) -> Daemon {
        self.start_with(&["--log", "debug"])
    }

    /// The same at the level that the configuration says.
    pub fn start_without_level(&self) -> Daemon {
        self.start_with(&[])
    }

    fn start_with(&self, arguments: &[&str]) -> Daemon {
        let mut command = mergedistill(&["run", "--config", self.config.to_str().unwrap()]);
        command.args(arguments);
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap());
        Daemon { child, lines, seen: Vec::new() }
    }

    /// `mergedistill log …` on the state's log, parsed.
    pub fn log_lines(&self, command: &str) -> Vec<Value> {
        let log = self.path("state/log");
        let output = mergedistill(&["log", command, log.to_str().unwrap(), "--json"]).output().unwrap();
        assert!(output.status.success(), "log {command}: {}", text(&output.stderr));
        let stdout = text(&output.stdout);
        match command {
            "dump" => stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect(),
            _ => vec![serde_json::from_str(&stdout).unwrap()],
        }
    }

    /// `mergedistill ctl` on the running daemon.
    pub fn ctl(&self, arguments: &[&str]) -> Output {
        let socket = self.path("state/control.sock");
        mergedistill(&["ctl", "--json", "--socket", socket.to_str().unwrap()]).args(arguments).output().unwrap()
    }

    pub fn metrics(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.path("state/metrics.jsonl")).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

/// A running daemon; killed when dropped.
pub struct Daemon {
    child: Child,
    lines: BufReader<ChildStderr>,
    seen: Vec<String>,
}

impl Daemon {
    /// Reads log lines until one contains `what`; `None` if the daemon ends first.
    pub fn wait_for(&mut self, what: &str) -> Option<String> {
        loop {
            let mut line = String::new();
            if self.lines.read_line(&mut line).unwrap() == 0 {
                return None;
            }
            self.seen.push(line.clone());
            if line.contains(what) {
                return Some(line);
            }
        }
    }

    pub fn address(&mut self) -> String {
        let line = self.wait_for("live page: http://").unwrap_or_else(|| panic!("no address in {:#?}", self.seen));
        line.trim().rsplit_once("http://").unwrap().1.to_owned()
    }

    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status().unwrap();
        assert!(status.success());
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Reads what is left of the log, and waits for the end. Returns the exit code (`None`: killed) and the log.
    pub fn finish(mut self) -> (Option<i32>, String) {
        let mut rest = String::new();
        self.lines.read_to_string(&mut rest).unwrap();
        let status = self.child.wait().unwrap();
        (status.code(), self.seen.concat() + &rest)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn mergedistill(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mergedistill"));
    command.args(arguments).stdin(Stdio::null());
    command
}

/// One HTTP request over loopback; returns status and body.
pub fn http(address: &str, path: &str, host: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

/// Asks again and again until `condition` gives something.
pub fn until<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let limit = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < limit, "waited too long for {what}");
        std::thread::yield_now();
    }
}

/// Sum of a metric over its labels.
pub fn metric(scrape: &str, name: &str) -> f64 {
    let of_name = |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']));
    scrape.lines().filter(of_name).map(|line| line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap()).sum()
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Bytes of the student (weights, optimiser) in a checkpoint.
pub fn checkpoint(scene: &Scene, step: u64) -> [Vec<u8>; 2] {
    let folder: &Path = &scene.path(&format!("state/checkpoints/step-{step}"));
    ["model.safetensors", "optimizer.safetensors"].map(|name| {
        let path = folder.join(name);
        std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    })
}
