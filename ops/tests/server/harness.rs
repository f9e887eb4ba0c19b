//! A daemon with stages that can be paused, a server in front of it, and a client that writes bytes.

use crate::document;
use crate::inbox::{Inbox, Received};
use ops::{
    Command, CommandError, Control, Controllers, EventHub, Limits, OpsOptions, Push, PushTarget, Question, Server,
    Stage, Token,
};
use prometheus::Registry;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Longer than anything here takes; a test that gets there has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Pauses stages, counts checkpoints and makes export folders.
#[derive(Default)]
pub(crate) struct Daemon {
    state: Mutex<State>,
    changed: Condvar,
    pub(crate) inbox: Arc<Inbox>,
}

#[derive(Default)]
struct State {
    commands: Vec<Command>,
    paused: BTreeSet<Stage>,
    checkpoints: u64,
    unready: Option<String>,
    dead: Option<String>,
    stuck: bool,
    waiting: usize,
    panics: bool,
    command_panics: bool,
    pauses_pass: bool,
    padding: usize,
}

impl Daemon {
    pub(crate) fn commands(&self) -> Vec<Command> {
        self.state.lock().unwrap().commands.clone()
    }

    pub(crate) fn set_unready(&self, reason: Option<&str>) {
        self.state.lock().unwrap().unready = reason.map(str::to_owned);
    }

    pub(crate) fn set_dead(&self, reason: &str) {
        self.state.lock().unwrap().dead = Some(reason.to_owned());
    }

    pub(crate) fn set_panics(&self, panics: bool) {
        self.state.lock().unwrap().panics = panics;
    }

    pub(crate) fn set_command_panics(&self, panics: bool) {
        self.state.lock().unwrap().command_panics = panics;
    }

    /// What commands are answered with has so many bytes more.
    pub(crate) fn set_padding(&self, bytes: usize) {
        self.state.lock().unwrap().padding = bytes;
    }

    /// A pause is made, and taken back, though all else is stuck.
    pub(crate) fn set_pauses_pass(&self, pass: bool) {
        self.state.lock().unwrap().pauses_pass = pass;
    }

    /// While stuck, no question and no command returns.
    pub(crate) fn set_stuck(&self, stuck: bool) {
        self.state.lock().unwrap().stuck = stuck;
        self.changed.notify_all();
    }

    /// Waits until `count` questions or commands are stuck.
    pub(crate) fn wait_for_stuck(&self, count: usize) {
        let state = self.state.lock().unwrap();
        let (_state, timeout) =
            self.changed.wait_timeout_while(state, PATIENCE, |state| state.waiting < count).unwrap();
        assert!(!timeout.timed_out(), "nothing got stuck");
    }

    fn enter(&self) -> std::sync::MutexGuard<'_, State> {
        let mut state = self.state.lock().unwrap();
        state.waiting += 1;
        self.changed.notify_all();
        state = self.changed.wait_while(state, |state| state.stuck).unwrap();
        state.waiting -= 1;
        state
    }
}

impl Control for Daemon {
    fn status(&self) -> Value {
        let state = self.enter();
        let panics = state.panics;
        let paused: Vec<&str> = state.paused.iter().map(|stage| stage.name()).collect();
        let status = json!({
            "version": "0", "pid": 1, "state": "running", "failure": null, "uptime_seconds": 0.5,
            "paused": paused, "checkpoints": state.checkpoints, "stages": { "ingest": { "in_flight": -1 } },
            "log": { "appended": 9, "durable": 7 },
            "teachers": {}, "corpora": { "corpora": [], "languages": [], "overrides_since": 3 },
            "train": { "step": 0, "steps": null }, "evaluation": null,
        });
        drop(state);
        assert!(!panics, "asked to panic");
        status
    }

    fn ready(&self) -> Result<(), String> {
        self.enter().unready.clone().map_or(Ok(()), Err)
    }

    fn alive(&self) -> Result<(), String> {
        self.enter().dead.clone().map_or(Ok(()), Err)
    }

    fn answer(&self, question: Question) -> Result<Value, CommandError> {
        drop(self.enter());
        match question {
            Question::Configuration => Ok(json!({ "run": { "seed": 7 } })),
            Question::LogLevel => Ok(json!({ "level": "info" })),
            Question::Retention => Ok(json!({ "retain_bytes": 0, "retain_hours": 0.0 })),
            Question::Segments => Ok(json!({ "segments": [] })),
            Question::History(query) => Ok(json!({
                "since_step": query.since_step, "points": query.points, "complete": true, "steps": { "step": [] },
                "evaluations": { "step": [], "languages": {} }, "releases": [], "samples": [],
            })),
        }
    }

    fn command(&self, command: Command) -> Result<Value, CommandError> {
        let passes =
            matches!(command, Command::Pause { .. } | Command::Resume { .. }) && self.state.lock().unwrap().pauses_pass;
        let mut state = if passes { self.state.lock().unwrap() } else { self.enter() };
        let panics = state.command_panics;
        if panics {
            drop(state);
            panic!("asked to panic");
        }
        state.commands.push(command.clone());
        let stages = |stage: Option<Stage>| stage.map_or(Stage::ALL.to_vec(), |stage| vec![stage]);
        match command.clone() {
            Command::Pause { stage } => state.paused.extend(stages(stage)),
            Command::Resume { stage } => state.paused.retain(|paused| !stages(stage).contains(paused)),
            Command::Checkpoint => state.checkpoints += 1,
            Command::Export { out, .. } => {
                let failed = |error: std::io::Error| CommandError {
                    code: "trainer_ended",
                    message: format!("cannot create {}: {error}", out.display()),
                    status: 409,
                };
                std::fs::create_dir(&out).map_err(failed)?;
            }
            Command::Drain
            | Command::Reload
            | Command::SetLogLevel { .. }
            | Command::SetRetention { .. }
            | Command::Release { .. }
            | Command::CancelRelease
            | Command::RetryQuarantined { .. }
            | Command::ChangeCorpora(_)
            | Command::ChangeTeachers(_) => {}
            Command::Shutdown => {
                return Err(CommandError { code: "failed", message: "status 99 is no status".to_owned(), status: 99 });
            }
        }
        Ok(json!({
            "checkpoints": state.checkpoints,
            "state": if command == Command::Drain { "drained" } else { "paused" }, "durable": 7,
            "path": "/x", "changed": [], "refused": [], "level": "info", "retain_bytes": 0, "retain_hours": 0.0,
            "from_sequence": 7, "at_unix_seconds": 8, "change": { "kind": "pause_corpus" },
            "padding": "x".repeat(state.padding), "name": "step-5", "from_step": 5, "step": 0, "steps": 9, "out": "/x", "error": null, "retried": 0, "duplicates": 0,
        }))
    }

    fn push(&self, target: &PushTarget) -> Result<Box<dyn Push>, CommandError> {
        if target.corpus == "en" || target.corpus == "a/b c" {
            return Ok(Box::new(Received::new(&self.inbox, target)));
        }
        let message = format!("there is no corpus `{}`", target.corpus);
        Err(CommandError { code: "unknown_corpus", message, status: 404 })
    }
}

/// A server with both doors open.
pub(crate) struct Running {
    pub(crate) server: Option<Server>,
    pub(crate) daemon: Arc<Daemon>,
    pub(crate) events: EventHub,
    pub(crate) registry: Registry,
    pub(crate) socket: PathBuf,
    pub(crate) folder: TempDir,
}

impl Running {
    pub(crate) fn start() -> Self {
        Self::with(Limits::default())
    }

    pub(crate) fn with(limits: Limits) -> Self {
        Self::with_token(limits, None)
    }

    pub(crate) fn with_token(limits: Limits, token: Option<&str>) -> Self {
        Self::with_access(limits, token, None)
    }

    pub(crate) fn with_access(limits: Limits, token: Option<&str>, control: Option<Controllers>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("control.sock");
        let path = folder.path().join("token");
        let token = token.map(|token| {
            std::fs::write(&path, token).unwrap();
            Token::read(&path).unwrap()
        });
        let options = OpsOptions {
            http: Some("127.0.0.1:0".parse().unwrap()),
            socket: Some(socket.clone()),
            token,
            control,
            surface: ops::Surface::All,
        };
        let (daemon, events, registry) = (Arc::new(Daemon::default()), EventHub::new(), Registry::new());
        let control: Arc<dyn Control> = Arc::<Daemon>::clone(&daemon);
        let server = Server::start_with_limits(options, limits, registry.clone(), control, events.clone()).unwrap();
        Self { server: Some(server), daemon, events, registry, socket, folder }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.server.as_ref().unwrap().http_address().unwrap()
    }

    pub(crate) fn tcp(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    pub(crate) fn unix(&self) -> UnixStream {
        let stream = UnixStream::connect(&self.socket).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    pub(crate) fn over_tcp(&self, method: &str, path: &str, body: &str) -> Answer {
        let answer = exchange(self.tcp(), &request(method, path, &self.address().to_string(), body));
        self.documented(method, path, answer)
    }

    pub(crate) fn over_unix(&self, method: &str, path: &str, body: &str) -> Answer {
        let answer = exchange(self.unix(), &request(method, path, "localhost", body));
        self.documented(method, path, answer)
    }

    /// An answer that is as the OpenAPI document says.
    pub(crate) fn documented(&self, method: &str, path: &str, answer: Answer) -> Answer {
        document::check(&document::document(self), method, path, &answer);
        answer
    }

    /// Subscribes to the events and returns when that is done.
    pub(crate) fn subscribe(&self) -> UnixStream {
        let mut stream = self.unix();
        stream.write_all(b"GET /v1/events HTTP/1.0\r\n\r\n").unwrap();
        read_until(&mut stream, "retry: 2000\n\n");
        stream
    }

    /// The value of a metric of ours without labels, or with exactly `labels`, as `a="b",c="d"`.
    pub(crate) fn metric(&self, name: &str, labels: &str) -> f64 {
        let text = self.over_unix("GET", "/metrics", "").body;
        let series = if labels.is_empty() { format!("{name} ") } else { format!("{name}{{{labels}}} ") };
        text.lines().find_map(|line| line.strip_prefix(&series)).map_or(0.0, |value| value.parse().unwrap())
    }

    pub(crate) fn stop(&mut self) {
        self.server.take().unwrap().stop();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.daemon.set_stuck(false);
    }
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Names in lower case.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn parse(text: &str) -> Self {
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {text:?}"));
        let mut lines = head.lines();
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let header = |line: &str| {
            let (name, value) = line.split_once(':').unwrap();
            (name.to_ascii_lowercase(), value.trim().to_owned())
        };
        Self { status, headers: lines.map(header).collect(), body: body.to_owned() }
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn json(&self) -> Value {
        assert_eq!(self.header("content-type"), Some("application/json"), "{self:?}");
        serde_json::from_str(&self.body).unwrap()
    }

    /// The stable code of an error; empty if the answer is none.
    pub(crate) fn code(&self) -> String {
        if self.status < 400 {
            return String::new();
        }
        let error = &self.json()["error"];
        assert!(!error["message"].as_str().unwrap().is_empty());
        error["code"].as_str().unwrap().to_owned()
    }
}

pub(crate) fn request(method: &str, path: &str, host: &str, body: &str) -> String {
    format!(
        "{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// Writes the request and reads to the end of the connection.
pub(crate) fn exchange(mut stream: impl Read + Write, request: &str) -> Answer {
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    Answer::parse(&answer)
}

/// Everything up to and including `end`.
pub(crate) fn read_until(stream: &mut impl Read, end: &str) -> String {
    let mut text = Vec::new();
    let mut byte = [0];
    while !text.ends_with(end.as_bytes()) {
        assert_eq!(stream.read(&mut byte).unwrap(), 1, "ended early: {}", String::from_utf8_lossy(&text));
        text.push(byte[0]);
    }
    String::from_utf8(text).unwrap()
}

/// Whether the server closes the connection; what it said before is thrown away.
pub(crate) fn is_closed(stream: &mut impl Read) -> bool {
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return true,
            Err(_) => return false,
        }
    }
}

/// Looks again until it is so.
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < PATIENCE, "never happened: {what}");
        std::thread::yield_now();
    }
}
