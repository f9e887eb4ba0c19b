//! `ctl status` and `ctl watch` on pipes and on terminals, and the configuration that is shipped.

use crate::harness::{Scene, configuration, mergedistill, text, until};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};

/// A run that does not end by itself.
fn endless() -> Scene {
    Scene::new(&configuration().replace("steps = 12", "steps = 1000000").replace("every_steps = 6", "every_steps = 2"))
}

/// `mergedistill ctl` for people.
fn ctl(scene: &Scene, arguments: &[&str]) -> Command {
    let mut command = mergedistill(&["ctl"]);
    command.args(arguments).env("MERGEDISTILL_SOCKET", scene.path("state/control.sock"));
    for variable in ["NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE"] {
        command.env_remove(variable);
    }
    command
}

#[test]
fn what_does_not_run_is_said_to_with_code_3() {
    let scene = Scene::new("");
    let output = ctl(&scene, &["status"]).output().unwrap();
    let (shown, advice) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(3), "{advice}");
    assert!(shown.starts_with("○ mergedistill - not running\n") && shown.contains("state/control.sock"), "{shown}");
    assert!(advice.contains("systemctl start mergedistill") && advice.contains("MERGEDISTILL_SOCKET"), "{advice}");
    let output = ctl(&scene, &["status", "--json"]).output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    assert_eq!(serde_json::from_slice::<Value>(&output.stdout).unwrap()["state"], "not_running");
    assert_eq!(ctl(&scene, &["checkpoint"]).output().unwrap().status.code(), Some(75));

    let scene = endless();
    let mut daemon = scene.start();
    daemon.address();
    daemon.signal("KILL");
    assert_eq!(daemon.finish().0, None);
    let output = ctl(&scene, &["status"]).output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    assert!(text(&output.stderr).contains("the next start takes its place"), "{}", text(&output.stderr));
}

#[test]
fn status_and_events_in_pipes() {
    let scene = endless();
    let mut daemon = scene.start();
    daemon.address();
    assert!(ctl(&scene, &["corpus", "pause", "de"]).output().unwrap().status.success());
    let output = ctl(&scene, &["status"]).output().unwrap();
    let shown = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    for expected in ["● mergedistill ", "State: running since ", "Stages: ├─ingest ", "└─trainer", "corpus de paused"]
    {
        assert!(shown.contains(expected), "{expected} is not in {shown}");
    }
    assert!(!shown.contains('\x1b'), "{shown}");
    let coloured = text(&ctl(&scene, &["status", "--color", "always"]).output().unwrap().stdout);
    assert!(coloured.starts_with("\x1b["), "{coloured}");

    // Without its text training would come to a standstill.
    assert!(ctl(&scene, &["corpus", "resume", "de"]).output().unwrap().status.success());
    let mut watch = ctl(&scene, &["watch", "--json"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    let first: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
    assert!(first["event"].is_string() && first["at_unix_seconds"].is_number(), "{first}");
    let mut plain = ctl(&scene, &["watch"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut plain_lines = BufReader::new(plain.stdout.take().unwrap()).lines();
    let step = plain_lines.find(|line| line.as_ref().unwrap().contains(": loss ")).unwrap().unwrap();
    assert!(step.contains(" step ") && !step.contains('\x1b'), "{step}");
    daemon.signal("TERM");
    assert!(lines.all(|line| serde_json::from_str::<Value>(&line.unwrap()).is_ok()));
    assert_eq!(plain_lines.filter(|line| line.is_err()).count(), 0);
    assert!(watch.wait().unwrap().success() && plain.wait().unwrap().success(), "they end with the daemon");
    assert_eq!(daemon.finish().0, Some(0));
}

/// A daemon that a terminal's end has to end.
struct OnTerminal {
    script: Child,
    pid: Option<String>,
}

impl Drop for OnTerminal {
    fn drop(&mut self) {
        let _ = self.script.kill();
        let _ = self.script.wait();
        if let Some(pid) = &self.pid {
            let _ = Command::new("kill").args(["-KILL", pid]).stderr(Stdio::null()).status();
        }
    }
}

#[test]
fn a_run_reloads_while_its_terminal_is_there_and_stops_when_it_is_gone() {
    let scene = endless();
    let log = scene.path("stderr");
    let mut command = Command::new("script");
    command.args(["--quiet", "--command", "exec \"$BINARY\" run --config \"$CONFIG\" 2>\"$LOG\"", "/dev/null"]);
    command.env("BINARY", env!("CARGO_BIN_EXE_mergedistill")).env("CONFIG", &scene.config).env("LOG", &log);
    command.env("SHELL", "/bin/sh").stdin(Stdio::piped()).stdout(Stdio::null());
    let mut run = OnTerminal { script: command.spawn().unwrap(), pid: None };
    let said = |what: &str| until(what, || std::fs::read_to_string(&log).ok()?.contains(what).then_some(()));
    let status =
        until("the daemon", || serde_json::from_slice::<Value>(&scene.ctl(&["status"]).stdout).ok()?["pid"].as_u64());
    let pid = run.pid.insert(status.to_string()).clone();
    assert!(Command::new("kill").args(["-HUP", &pid]).status().unwrap().success());
    said("SIGHUP: reading the configuration again");
    run.script.kill().unwrap();
    said("why=\"the terminal is gone\"");
    said("training ended outcome=Stopped");
    until("the end", || (!std::path::Path::new("/proc").join(&pid).exists()).then_some(()));
    run.pid = None;
}

/// A terminal, which `script` makes, and a `ctl watch` that has it.
struct Watch {
    script: Child,
    keyboard: ChildStdin,
    seen: Arc<Mutex<Vec<u8>>>,
}

/// What runs on the terminal: its modes, the process, its exit code, and the modes after it.
const ON_TERMINAL: &str = "stty rows 40 cols 120; echo before=$(stty -g)=; sh -c 'echo pid=$$=; exec \"$0\" ctl watch' \"$BINARY\"; \
                           echo code=$?=; echo after=$(stty -g)=";

impl Watch {
    fn start(scene: &Scene, variables: &[(&str, &str)]) -> Self {
        let mut command = Command::new("script");
        command.args(["--quiet", "--flush", "--command", ON_TERMINAL, "/dev/null"]);
        command.env("BINARY", env!("CARGO_BIN_EXE_mergedistill")).env("TERM", "xterm-256color").env("SHELL", "/bin/sh");
        command.env("MERGEDISTILL_SOCKET", scene.path("state/control.sock"));
        for variable in ["NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE"] {
            command.env_remove(variable);
        }
        command.envs(variables.iter().copied());
        let mut script = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (keyboard, seen) = (script.stdin.take().unwrap(), Arc::new(Mutex::new(Vec::new())));
        let (mut screen, shared) = (script.stdout.take().unwrap(), Arc::clone(&seen));
        std::thread::spawn(move || {
            let mut buffer = [0; 65_536];
            while let Ok(read @ 1..) = screen.read(&mut buffer) {
                shared.lock().unwrap().extend_from_slice(&buffer[..read]);
            }
        });
        Self { script, keyboard, seen }
    }

    /// What was said about the process or its terminal.
    fn said(&self, name: &str) -> String {
        let marker = format!("{name}=");
        let find = || Some(self.seen().split_once(&marker)?.1.split_once('=')?.0.to_owned());
        until(name, find)
    }

    fn seen(&self) -> String {
        text(&self.seen.lock().unwrap())
    }

    fn press(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).unwrap();
        self.keyboard.flush().unwrap();
    }

    /// Its end, in order, after which the terminal must be what it was.
    fn end(mut self) {
        assert_eq!(self.said("code"), "0", "{}", self.seen());
        assert_eq!(self.said("after"), self.said("before"));
        let seen = self.seen();
        let last = |sequence: &str| seen.rfind(sequence);
        assert!(last("\x1b[?1049l") > last("\x1b[?1049h"), "an ordinary screen");
        assert!(last("\x1b[?25h") > last("\x1b[?25l"), "a cursor");
        drop(self.keyboard);
        self.script.wait().unwrap();
    }
}

#[test]
fn a_live_view_on_a_terminal() {
    let scene = endless();
    let mut daemon = scene.start();
    daemon.address();
    let mut watch = Watch::start(&scene, &[]);
    // Words alone: of a line, what was there before is not written again.
    until("the view", || watch.seen().contains("evaluation").then_some(()));
    let seen = watch.seen();
    for expected in ["● running", "teacher", "demo-en-de", "q quit", "\x1b[38;5;"] {
        assert!(seen.contains(expected), "{expected} is not in {seen}");
    }
    let paused = |wanted: bool| {
        let status: Value = serde_json::from_slice(&scene.ctl(&["status"]).stdout).unwrap();
        (status["stages"]["trainer"]["paused"] == json!(wanted)).then_some(())
    };
    watch.press("p");
    until("a pause", || paused(true));
    until("that it is seen", || watch.seen().contains("resume").then_some(()));
    watch.press("p");
    until("its end", || paused(false));
    watch.press("q");
    watch.end();

    let interrupted = Watch::start(&scene, &[("NO_COLOR", "1")]);
    until("the view", || interrupted.seen().contains("q quit").then_some(()));
    assert!(!interrupted.seen().contains("\x1b[38;5;"), "{}", interrupted.seen());
    assert!(Command::new("kill").args(["-TERM", &interrupted.said("pid")]).status().unwrap().success());
    interrupted.end();

    let mut left = Watch::start(&scene, &[]);
    until("the view", || left.seen().contains("q quit").then_some(()));
    daemon.signal("TERM");
    assert_eq!(daemon.finish().0, Some(0));
    until("that it says so", || left.seen().contains("is the daemon running?").then_some(()));
    left.press("\x03");
    left.end();
}

#[test]
fn the_shipped_configuration_is_right() {
    let shipped = include_str!("../../ops/debian/mergedistill.toml");
    let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/demo");
    let scene = Scene::new(&shipped.replace("/usr/share/mergedistill/demo", demo));
    let check = |scene: &Scene| {
        let output = mergedistill(&["check", "--json", "--config", scene.config.to_str().unwrap()]).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        serde_json::from_slice::<Value>(&output.stdout).unwrap()
    };
    let configured = check(&scene);
    assert_eq!(configured["ops"]["socket"], "/run/mergedistill/control.sock");
    assert_eq!(configured["run"]["state_dir"], "/var/lib/mergedistill");
    // What is commented out is right as well.
    let folder = scene.path("incoming");
    std::fs::create_dir(&folder).unwrap();
    let keys = |line: &str| {
        line.strip_prefix("# ").filter(|rest| rest.contains(" = ") || *rest == "[[corpus]]").map(str::to_owned)
    };
    let everything = shipped.lines().map(|line| keys(line).unwrap_or_else(|| line.to_owned()));
    let everything: Vec<String> =
        everything.filter(|line| line != "steps = 500" && !line.starts_with("token_file")).collect();
    let everything = everything.join("\n").replace("/usr/share/mergedistill/demo", demo);
    let everything = everything.replace("/srv/mergedistill/incoming", folder.to_str().unwrap());
    let configured = check(&Scene::new(&everything));
    assert_eq!(
        (&configured["train"]["schedule"], configured["corpus"].as_array().unwrap().len()),
        (&json!("trunk"), 5)
    );
}

#[test]
fn every_group_of_commands_has_help_with_examples() {
    for arguments in
        [&["--help"][..], &["ctl", "--help"], &["ctl", "corpus", "share", "--help"], &["help", "log", "copy"]]
    {
        let output = mergedistill(arguments).output().unwrap();
        let help = text(&output.stdout);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
        assert!(help.contains("Examples:\n") && !help.contains('\x1b'), "{arguments:?}: {help}");
    }
    let coloured = text(&mergedistill(&["--color=always", "ctl", "--help"]).output().unwrap().stdout);
    assert!(coloured.contains("\x1b["), "{coloured}");
}
