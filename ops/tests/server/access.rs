//! Who may change something, and what nobody gets to see.

use crate::harness::{Answer, Running, exchange, request};
use ops::{Controllers, Limits, OpsError, OpsOptions, Token};
use serde_json::json;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::{Arc, Mutex};

const TOKEN: &str = "a-token-that-nobody-may-see";

#[test]
fn names_of_users_and_groups_are_looked_up() {
    for names in [vec!["root"], vec!["0"], vec!["@root"], vec!["@0", "root", "12345"], vec![]] {
        Controllers::find(names.iter().copied()).unwrap();
    }
    for unknown in ["nobody here", "@no such group", "-1", "@", ""] {
        let error = Controllers::find(["root", unknown]).unwrap_err();
        assert!(matches!(&error, OpsError::Controller { name, .. } if name == unknown), "{error}");
        assert!(error.to_string().contains("[ops] control"), "{error}");
    }
}

#[test]
fn the_daemon_s_own_user_is_in_control_whoever_is_listed() {
    let running = Running::with_access(Limits::default(), None, Some(Controllers::find([]).unwrap()));
    assert_eq!(running.over_unix("POST", "/v1/pause", "").status, 200);
}

#[test]
fn who_is_named_is_in_control_though_no_question_is_answered() {
    let limits = Limits { queries: 1, ..Limits::default() };
    let running = Running::with_access(limits, None, Some(Controllers::find(["@root"]).unwrap()));
    running.daemon.set_stuck(true);
    running.daemon.set_pauses_pass(true);
    let mut asks = running.unix();
    asks.write_all(request("GET", "/v1/status", "x", "").as_bytes()).unwrap();
    running.daemon.wait_for_stuck(1);
    assert_eq!(running.over_unix("POST", "/v1/pause", "").status, 200);
    running.daemon.set_stuck(false);
    assert_eq!(exchange(asks, "").json()["control"], "open");
}

/// Clients with the rights of other users: that takes root, and python3 to be them. Others skip it.
#[test]
fn other_users_may_read_and_not_change() {
    if !is_root() {
        return;
    }
    let listed = |names: &[&str]| {
        let running =
            Running::with_access(Limits::default(), None, Some(Controllers::find(names.iter().copied()).unwrap()));
        for (path, mode) in [(running.folder.path(), 0o755), (running.socket.as_path(), 0o666)] {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        }
        running
    };
    let as_user = |running: &Running, user: u32, group: u32, method: &str, path: &str| {
        let script = "import socket, sys\ns = socket.socket(socket.AF_UNIX)\ns.connect(sys.argv[1])\n\
                      s.sendall(sys.argv[2].encode())\nsys.stdout.write(''.join(iter(lambda: s.recv(9999).decode(), '')))";
        let request = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        let mut command = Command::new("python3");
        let output =
            command.uid(user).gid(group).args(["-c", script]).arg(&running.socket).arg(request).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        running.documented(method, path, Answer::parse(&String::from_utf8(output.stdout).unwrap()))
    };
    let running = listed(&["root", "@4321"]);
    for (user, group, status, code) in [(1234, 1234, 403, "read_only"), (1234, 4321, 200, ""), (0, 0, 200, "")] {
        let answer = as_user(&running, user, group, "POST", "/v1/pause");
        assert_eq!((answer.status, answer.code().as_str()), (status, code), "{user}:{group}");
        let seen = as_user(&running, user, group, "GET", "/v1/status");
        assert_eq!((seen.status, &seen.json()["control"]), (200, &json!(if status == 200 { "open" } else { "no" })));
    }
    let answer = as_user(&running, 1234, 1234, "POST", "/v1/corpora/en/documents");
    assert_eq!(answer.code(), "read_only", "documents change what is read");
    assert_eq!(as_user(&listed(&["1234"]), 1234, 1, "POST", "/v1/pause").status, 200);
}

fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}

/// What is logged while a test runs.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn the_token_is_in_no_answer_no_error_and_no_log() {
    let (log, folder) = (Log::default(), tempfile::tempdir().unwrap());
    let writer = log.clone();
    // Of the whole process: requests are answered on other threads.
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .with_max_level(tracing::Level::TRACE);
    tracing::subscriber::set_global_default(subscriber.finish()).unwrap();
    let path = folder.path().join("token");
    fs::write(&path, TOKEN).unwrap();
    let token = Token::read(&path).unwrap();
    let options = OpsOptions { token: Some(token.clone()), ..OpsOptions::default() };
    let mut shown = vec![format!("{token:?} {options:?}")];
    fs::write(&path, format!("{TOKEN} {TOKEN}")).unwrap();
    shown.push(format!("{0} {0:?}", Token::read(&path).unwrap_err()));

    let running = Running::with_token(Limits::default(), Some(TOKEN));
    let host = running.address();
    let questions = ["/", "/metrics", "/v1/status", "/v1/configuration", "/v1/operations", "/v1/openapi.json"];
    let authorizations =
        [format!("Bearer {TOKEN}"), format!("Bearer {TOKEN}x"), format!("Basic {TOKEN}"), format!("Bearer x{TOKEN}")];
    for authorization in &authorizations {
        for (method, path) in
            questions.map(|path| ("GET", path)).into_iter().chain([("POST", "/v1/pause"), ("GET", "/no")])
        {
            let head = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: {authorization}");
            let answer = exchange(running.tcp(), &format!("{head}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"));
            let may = authorization.strip_prefix("Bearer ").is_some_and(|shown| shown == TOKEN);
            let expected = match (path, may) {
                ("/no", _) => 404,
                ("/v1/pause", false) => 401,
                _ => 200,
            };
            assert_eq!(answer.status, expected, "{method} {path} {authorization}");
            shown.push(format!("{answer:?}"));
        }
    }
    let listed = running.over_tcp("GET", "/v1/operations", "").json();
    assert_eq!(listed["operations"][0]["by"], json!("tcp token"));
    let logged = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert!(
        logged.contains("command taken") && logged.contains("by=tcp token"),
        "each command is in the log: {logged}"
    );
    assert!(logged.contains("control refused") && logged.contains("token_needed"), "and who was refused: {logged}");
    shown.push(logged);
    for text in shown {
        assert!(!text.contains(TOKEN), "{text}");
    }
}
