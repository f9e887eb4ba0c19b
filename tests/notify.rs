//! What the service manager sees: the unit's own command lines, run on the real binary, with a listener in its place.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod harness;

use harness::{Scene, configuration, http, mergedistill, metric, until};
use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use std::fs::{self, File};
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const UNIT: &str = include_str!("../ops/systemd/mergedistill.service");
const INSTALLED: &str = "/usr/bin/mergedistill";
const CONFIGURATION: &str = "/etc/mergedistill/mergedistill.toml";
const SOCKET: &str = "/run/mergedistill/control.sock";
const JOURNAL: &str = "/run/systemd/journal/socket";

const PATIENCE: Duration = Duration::from_secs(120);
/// A stage without a sign for longer is stuck.
const STUCK: Duration = Duration::from_secs(3);
/// The service manager wants a sign of life this often.
const WATCHDOG: Duration = Duration::from_secs(2);

/// The words of a command line of the unit, with the paths of `scene`.
fn command_line(key: &str, scene: &Scene) -> Vec<String> {
    let line = UNIT.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('=')).unwrap();
    let words = line.trim_start_matches(['-', '+']).split(' ').map(|word| match word {
        INSTALLED => env!("CARGO_BIN_EXE_mergedistill").to_owned(),
        CONFIGURATION => scene.config.to_str().unwrap().to_owned(),
        SOCKET => scene.path("state/control.sock").to_str().unwrap().to_owned(),
        word => word.to_owned(),
    });
    let words: Vec<_> = words.collect();
    assert_eq!(words[0], env!("CARGO_BIN_EXE_mergedistill"), "{line}");
    words
}

/// Training that does not end by itself.
fn scene() -> Scene {
    let text = configuration().replace("steps = 12\n", "steps = 1000000\n");
    let text = text
        .replace("[[corpus]]\n", "[[corpus]]\nrounds = 1000\n")
        .replace("every_steps = 6\n", "every_steps = 1000000\n");
    Scene::new(&format!("{text}\n[run]\nstuck_seconds = {}\n", STUCK.as_secs()))
}

/// The daemon as ExecStart starts it, and what it tells the service manager.
struct Service {
    child: Child,
    messages: UnixDatagram,
    /// The file of its standard error.
    said: PathBuf,
}

impl Service {
    /// With `sockets` from descriptor 3 on, at most two.
    fn start(scene: &Scene, sockets: Vec<OwnedFd>) -> Self {
        let messages = UnixDatagram::bind(scene.path("notify")).unwrap();
        messages.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        // The shell moves what it has as standard input and output to where systemd passes sockets, and becomes the daemon.
        let script = match sockets.len() {
            0 => "exec",
            1 => "exec 3<&0 </dev/null; export LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=control; exec",
            _ => {
                "exec 3<&0 4<&1 </dev/null >/dev/null; export LISTEN_PID=$$ LISTEN_FDS=2 LISTEN_FDNAMES=control:http; exec"
            }
        };
        let mut command = Command::new("sh");
        command.arg("-c").arg(format!("export WATCHDOG_PID=$$; {script} \"$@\"")).arg("sh");
        command.args(command_line("ExecStart", scene)).env("NOTIFY_SOCKET", scene.path("notify"));
        command.env("WATCHDOG_USEC", WATCHDOG.as_micros().to_string()).stdin(Stdio::null());
        let said = scene.path("stderr");
        command.stderr(File::create(&said).unwrap());
        let mut sockets = sockets.into_iter();
        if let Some(socket) = sockets.next() {
            command.stdin(socket);
        }
        if let Some(socket) = sockets.next() {
            command.stdout(socket);
        }
        Self { child: command.spawn().unwrap(), messages, said }
    }

    /// The next message.
    fn told(&mut self) -> String {
        let (mut buffer, limit) = ([0; 4096], Instant::now() + PATIENCE);
        loop {
            if let Ok(length) = self.messages.recv(&mut buffer) {
                return String::from_utf8(buffer[..length].to_vec()).unwrap();
            }
            let ended = self.child.try_wait().unwrap();
            let waits = ended.is_none() && Instant::now() < limit;
            assert!(waits, "no message, {ended:?}: {}", fs::read_to_string(&self.said).unwrap());
        }
    }

    /// All messages up to the first one for which `is_it` holds.
    fn told_until(&mut self, is_it: impl Fn(&str) -> bool) -> Vec<String> {
        let mut messages = Vec::new();
        let limit = Instant::now() + PATIENCE;
        loop {
            messages.push(self.told());
            if messages.last().is_some_and(|message| is_it(message)) {
                return messages;
            }
            assert!(Instant::now() < limit, "{messages:#?}");
        }
    }

    fn signal(&self, name: &str) {
        let status = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status().unwrap();
        assert!(status.success());
    }

    /// Ends it as the unit says; returns what it told then.
    fn stop(mut self) -> Vec<String> {
        self.signal("TERM");
        let status = self.child.wait().unwrap();
        assert_eq!(status.code(), Some(0));
        self.messages.set_nonblocking(true).unwrap();
        let mut buffer = [0; 4096];
        let rest = std::iter::from_fn(|| self.messages.recv(&mut buffer).ok().map(|length| buffer[..length].to_vec()));
        rest.map(|message| String::from_utf8(message).unwrap()).collect()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn is(expected: &'static str) -> impl Fn(&str) -> bool {
    move |message| message == expected
}

fn is_chatter(message: &str) -> bool {
    message.starts_with("STATUS=") || message.starts_with("EXTEND_TIMEOUT_USEC=")
}

fn ctl(socket: &Path, arguments: &[&str]) -> Output {
    mergedistill(&["ctl", "--json", "--socket", socket.to_str().unwrap()]).args(arguments).output().unwrap()
}

/// The address of the live page: of the TCP sockets that listen, the one the daemon has.
fn address(service: &Service) -> String {
    let sockets: Vec<_> = fs::read_dir(format!("/proc/{}/fd", service.child.id())).unwrap().collect();
    let inodes: Vec<String> = sockets
        .into_iter()
        .filter_map(|entry| Some(fs::read_link(entry.ok()?.path()).ok()?.to_str()?.to_owned()))
        .filter_map(|target| Some(target.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned()))
        .collect();
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    let listening = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let port = listening
        .filter(|fields| fields.get(3) == Some(&"0A") && inodes.iter().any(|inode| fields.get(9) == Some(&&**inode)))
        .find_map(|fields| u16::from_str_radix(fields[1].rsplit_once(':')?.1, 16).ok());
    format!("127.0.0.1:{}", port.unwrap())
}

#[test]
fn ready_means_that_everything_runs_and_stopping_comes_first() {
    let scene = scene();
    let mut service = Service::start(&scene, Vec::new());
    let before = service.told_until(is("READY=1"));
    let (_, starting) = before.split_last().unwrap();
    assert!(starting.iter().all(|message| is_chatter(message)), "{before:#?}");
    assert!(starting.iter().any(|message| message.starts_with("STATUS=starting")), "{before:#?}");
    assert!(starting.iter().any(|message| message == "EXTEND_TIMEOUT_USEC=30000000"), "{before:#?}");
    drop(UnixStream::connect(scene.path("state/control.sock")).unwrap());
    let address = address(&service);
    assert_eq!(http(&address, "/readyz", &address).0, 200);
    let stages = ["ingest", "teacher", "log", "trainer"];
    // A thread takes its name when it first runs.
    until("a thread of each stage", || {
        let names: Vec<String> = threads(&service).into_iter().map(|(name, _)| name).collect();
        stages.iter().all(|stage| names.iter().any(|name| name == stage)).then_some(())
    });

    let running =
        service.told_until(|message| message.starts_with("STATUS=running: step ") && message.contains(", loss "));
    assert!(running.iter().any(|message| message == "WATCHDOG=1"), "{running:#?}");
    assert!(running.iter().all(|message| message.starts_with("STATUS=") || message == "WATCHDOG=1"), "{running:#?}");
    let line = running.last().unwrap();
    assert!(line.contains("tokens/s trained") && line.contains("tokens/s labelled"), "{line}");

    let end = service.stop();
    let stopping = end.iter().position(|message| message == "STOPPING=1").unwrap();
    assert!(!end[..stopping].iter().any(|message| message.starts_with("STATUS=stopping")), "{end:#?}");
    assert!(end[stopping + 1..].iter().all(|message| is_chatter(message) || message == "WATCHDOG=1"), "{end:#?}");
}

/// Names and numbers of the daemon's threads.
fn threads(service: &Service) -> Vec<(String, i32)> {
    let tasks = fs::read_dir(format!("/proc/{}/task", service.child.id())).unwrap();
    let thread = |task: fs::DirEntry| {
        let name = fs::read_to_string(task.path().join("comm")).ok()?.trim().to_owned();
        Some((name, task.file_name().to_str()?.parse().ok()?))
    };
    tasks.filter_map(|task| thread(task.ok()?)).collect()
}

/// A thread that the kernel does not let run, as one that waits for a disk that never answers.
struct Held(Pid);

impl Held {
    fn new(service: &Service, thread: &str) -> Self {
        let (_, number) = threads(service).into_iter().find(|(name, _)| name == thread).unwrap();
        let thread = Pid::from_raw(number);
        ptrace::seize(thread, ptrace::Options::empty()).unwrap();
        ptrace::interrupt(thread).unwrap();
        waitpid(thread, Some(WaitPidFlag::__WALL)).unwrap();
        Self(thread)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let _ = ptrace::detach(self.0, None);
    }
}

#[test]
fn a_pause_is_no_reason_for_the_watchdog_and_a_stuck_stage_is() {
    let scene = scene();
    let mut service = Service::start(&scene, Vec::new());
    service.told_until(|message| message.starts_with("STATUS=running: step ") && message.contains(", loss "));
    let socket = scene.path("state/control.sock");
    assert!(ctl(&socket, &["pause"]).status.success());
    service.told_until(|message| {
        message.starts_with("STATUS=paused: ")
            && message.contains("; ingest waits for ") // the end of the pause too, unless labelling paused first
            && message.contains("; trainer waits for the end of the pause")
            && message.contains("; log waits for input")
    });
    let (paused, mut signs) = (Instant::now(), 0);
    while paused.elapsed() < STUCK + WATCHDOG {
        let message = service.told();
        assert!(message == "WATCHDOG=1" || message.starts_with("STATUS=paused: "), "{message}");
        signs += u32::from(message == "WATCHDOG=1");
    }
    assert!(signs >= 5, "{signs} signs in {:?}", paused.elapsed());

    let held = Held::new(&service, "log");
    service.told_until(|message| message.starts_with("STATUS=stuck: log for "));
    // It says so every second, which is longer than the watchdog's interval in the end.
    for _ in 0..3 {
        let message = service.told();
        assert!(message.starts_with("STATUS=stuck: log for "), "{message}");
    }
    let address = address(&service);
    let (code, reason) = http(&address, "/healthz", &address);
    assert!(code == 503 && reason.contains("stuck: log for"), "{code} {reason}");
    let scrape = http(&address, "/metrics", &address).1;
    assert!(scrape.contains("mergedistill_stage_stuck{stage=\"log\"} 1\n"), "{scrape}");
    assert_eq!(metric(&scrape, "mergedistill_stage_stuck"), 1.0, "it alone");

    drop(held);
    service.told_until(is("WATCHDOG=1"));
    assert_eq!(http(&address, "/healthz", &address).0, 200);
    for stage in ["ingest", "trainer"] {
        let held = Held::new(&service, stage);
        service.told_until(|message| message.starts_with(&format!("STATUS=stuck: {stage} for ")));
        drop(held);
        service.told_until(is("WATCHDOG=1"));
    }
    service.stop();
}

#[test]
fn sockets_that_systemd_passes_are_used_and_left_alone() {
    let scene = scene();
    let (path, tcp) = (scene.path("passed.sock"), TcpListener::bind("127.0.0.1:0").unwrap());
    let (unix, address) = (UnixListener::bind(&path).unwrap(), tcp.local_addr().unwrap().to_string());
    let inode = fs::symlink_metadata(&path).unwrap().ino();
    let mut service = Service::start(&scene, vec![unix.into(), tcp.into()]);
    // Whoever connects while it starts waits until it answers.
    let status = ctl(&path, &["status"]);
    assert!(status.status.success(), "{}", String::from_utf8_lossy(&status.stderr));
    service.told_until(is("READY=1"));
    assert_eq!(http(&address, "/readyz", &address).0, 200);
    assert!(!scene.path("state/control.sock").exists(), "it made one of its own");
    service.stop();
    assert_eq!(fs::symlink_metadata(&path).unwrap().ino(), inode, "the file is systemd's");
}

#[test]
fn a_socket_that_is_none_for_us_is_refused() {
    let scene = scene();
    let datagrams = UnixDatagram::unbound().unwrap();
    let mut service = Service::start(&scene, vec![datagrams.into()]);
    assert_eq!(service.child.wait().unwrap().code(), Some(78));
}

/// What `run` says on standard error, which is the journal's stream or is not.
fn said(scene: &Scene, is_journal: bool) -> (Option<i32>, String) {
    let file = File::create(scene.path("stderr")).unwrap();
    let metadata = file.metadata().unwrap();
    let inode = metadata.ino() + u64::from(!is_journal);
    let mut command = mergedistill(&["run", "--config", scene.config.to_str().unwrap(), "--until-step", "2"]);
    let status = command.env("JOURNAL_STREAM", format!("{}:{inode}", metadata.dev())).stderr(file).status().unwrap();
    (status.code(), fs::read_to_string(scene.path("stderr")).unwrap())
}

#[test]
fn the_journal_gets_priorities() {
    let scene = scene();
    let lines = |text: &str| {
        let lines = text.lines().filter(|line| !line.starts_with("live page")).map(str::to_owned);
        lines.collect::<Vec<_>>()
    };
    let (code, text) = said(&scene, true);
    assert_eq!(code, Some(0), "{text}");
    if Path::new(JOURNAL).exists() {
        assert_eq!(lines(&text), [""; 0], "they went to the journal's socket");
    } else {
        assert!(text.contains("<6>training ended"), "{text}");
        assert!(lines(&text).iter().all(|line| line.starts_with("<6>") || line.starts_with("<4>")), "{text}");
    }
    let (_, text) = said(&scene, false);
    assert!(text.contains("training ended") && !text.contains("<6>"), "{text}");

    fs::write(&scene.config, "[run]\nno_such_key = 1\n").unwrap();
    let (code, text) = said(&scene, true);
    assert_eq!(code, Some(78));
    assert!(text.starts_with("<3>mergedistill: ") && lines(&text).iter().all(|line| line.starts_with("<3>")), "{text}");
}

#[test]
fn a_reload_is_told_and_waited_for() {
    let scene = scene();
    let mut service = Service::start(&scene, Vec::new());
    service.told_until(is("READY=1"));
    let reloads = |service: &mut Service| {
        service.signal("HUP");
        let begun = service.told_until(|message| message.starts_with("RELOADING=1\nMONOTONIC_USEC="));
        let done = service.told_until(is("READY=1"));
        let others = begun[..begun.len() - 1].iter().chain(&done[..done.len() - 1]);
        assert!(others.clone().all(|message| is_chatter(message) || message == "WATCHDOG=1"), "{begun:#?} {done:#?}");
    };
    reloads(&mut service);
    let reload = command_line("ExecReload", &scene);
    let reload = || Command::new(&reload[0]).args(&reload[1..]).output().unwrap();
    let accepted = reload();
    assert!(accepted.status.success(), "{}", String::from_utf8_lossy(&accepted.stderr));
    let text = fs::read_to_string(&scene.config).unwrap();
    fs::write(&scene.config, format!("no_such_key = 1\n{text}")).unwrap();
    let refused = reload();
    let reason = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && reason.contains("no_such_key"), "{reason}");
    // What was refused is over too.
    reloads(&mut service);
    service.stop();
}

#[test]
fn the_other_command_lines_are_known() {
    let scene = scene();
    let check = command_line("ExecStartPre", &scene);
    let checked = Command::new(&check[0]).args(&check[1..]).output().unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
    let reload = command_line("ExecReload", &scene);
    let refused = Command::new(&reload[0]).args(&reload[1..]).output().unwrap();
    assert_ne!(refused.status.code(), Some(64), "{}", String::from_utf8_lossy(&refused.stderr));
    assert!(!refused.status.success(), "nobody listens");
}
