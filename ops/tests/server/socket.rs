//! The control socket in the file system, and the client that uses it.

use crate::harness::{Daemon, Running};
use ops::client::call;
use ops::{ClientError, EventHub, OpsError, OpsOptions, Server};
use prometheus::Registry;
use serde_json::{Value, json};
use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;

fn start(socket: &Path) -> Result<Server, OpsError> {
    let options = OpsOptions { socket: Some(socket.to_owned()), ..OpsOptions::default() };
    Server::start(options, Registry::new(), Arc::new(Daemon::default()), EventHub::new())
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn owner_and_group_may_use_it() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("made/on the way/control.sock");
    let server = start(&socket).unwrap();
    assert_eq!(server.http_address(), None);
    assert_eq!(mode(&socket), 0o660);
    assert_eq!(mode(socket.parent().unwrap()) & 0o027, 0, "others cannot even reach it");
    assert_eq!(call(&socket, "GET", "/healthz", None).unwrap(), (200, json!({ "status": "alive" })));
    server.stop();
    assert!(!socket.exists(), "a stop removes it");
}

#[test]
fn a_dead_process_s_socket_is_replaced_a_living_one_s_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("control.sock");
    drop(UnixListener::bind(&socket).unwrap());
    assert!(socket.exists());
    let server = start(&socket).unwrap();
    let error = start(&socket).unwrap_err();
    assert!(error.in_use() && matches!(error, OpsError::SocketInUse { .. }), "{error}");
    assert!(error.to_string().contains("in use"), "{error}");
    assert_eq!(call(&socket, "GET", "/healthz", None).unwrap().0, 200, "the first is unharmed");
    server.stop();
}

#[test]
fn another_s_file_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("control.sock");
    fs::write(&socket, "precious").unwrap();
    let error = start(&socket).unwrap_err();
    assert!(matches!(error, OpsError::NotASocket { .. }), "{error}");
    assert_eq!(fs::read_to_string(&socket).unwrap(), "precious");

    let link = folder.path().join("link.sock");
    symlink(&socket, &link).unwrap();
    assert!(matches!(start(&link).unwrap_err(), OpsError::NotASocket { .. }));
    let below_a_file = start(&socket.join("control.sock")).unwrap_err();
    assert!(matches!(below_a_file, OpsError::Socket { .. }), "{below_a_file}");

    // A successor has taken the path: the predecessor's end must not remove it.
    fs::remove_file(&socket).unwrap();
    let first = start(&socket).unwrap();
    fs::remove_file(&socket).unwrap();
    let second = start(&socket).unwrap();
    first.stop();
    assert_eq!(call(&socket, "GET", "/healthz", None).unwrap().0, 200);
    second.stop();
}

#[test]
fn a_path_that_is_too_long_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let name = |bytes: usize| folder.path().join("s".repeat(bytes - folder.path().as_os_str().len() - 1));
    let error = start(&name(108)).unwrap_err();
    assert!(matches!(error, OpsError::SocketPathTooLong { length_bytes: 108, limit_bytes: 107, .. }), "{error}");
    assert!(matches!(call(&name(108), "GET", "/", None).unwrap_err(), ClientError::Connect { .. }));
    let server = start(&name(107)).unwrap();
    assert_eq!(call(&name(107), "GET", "/healthz", None).unwrap().0, 200);
    server.stop();
}

#[test]
fn the_client_brings_back_what_the_daemon_says() {
    let running = Running::start();
    let call = |method: &str, path: &str, body| call(&running.socket, method, path, body);
    assert_eq!(call("POST", "/v1/pause", Some(json!({ "stage": "trainer" }))).unwrap().0, 200);
    let (status, value) = call("GET", "/v1/status", None).unwrap();
    assert_eq!((status, &value["paused"]), (200, &json!(["trainer"])));
    let (status, value) = call("GET", "/nowhere", None).unwrap();
    assert_eq!((status, &value["error"]["code"]), (404, &json!("not_found")));
    let (status, value) = call("GET", "/metrics", None).unwrap();
    assert!(status == 200 && value.as_str().unwrap().contains("mergedistill_build_info{"));
    assert_eq!(call("HEAD", "/v1/status", None).unwrap(), (200, Value::Null));
    let error = call("GET", "/v1/events", None).unwrap_err();
    assert!(matches!(error, ClientError::Answer { .. }), "{error}");
    for (method, path) in [("GET", "no path"), ("G T", "/")] {
        let error = call(method, path, None).unwrap_err();
        assert!(matches!(error, ClientError::Request { .. }), "{error}");
    }
}

#[test]
fn the_client_says_why_there_is_no_answer() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("control.sock");
    let check = |hint: &str| {
        let error = call(&socket, "GET", "/v1/status", None).unwrap_err().to_string();
        assert!(error.contains(hint) && error.contains("control.sock"), "{error}");
    };
    check("there is no control socket");
    check("is the daemon running?");
    let listener = UnixListener::bind(&socket).unwrap();
    let rude = std::thread::spawn(move || {
        for answer in ["", "no HTTP at all\r\n\r\n", "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nshort"] {
            let (mut stream, _) = listener.accept().unwrap();
            crate::harness::read_until(&mut stream, "\r\n\r\n");
            stream.write_all(answer.as_bytes()).unwrap();
        }
    });
    check("no answer from the daemon");
    check("no answer from the daemon");
    let error = call(&socket, "GET", "/v1/status", None).unwrap_err();
    assert!(matches!(error, ClientError::Answer { .. }), "{error}");
    rude.join().unwrap();
    check("nobody listens");
}
