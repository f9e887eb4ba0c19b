//! Clients that ask for too much, or too slowly.

use crate::harness::{Answer, Running, exchange, is_closed, read_until, request, wait_until};
use ops::Limits;
use serde_json::json;
use std::io::{Read, Write};
use std::time::Duration;

/// Long enough for a loaded machine to send what a test sends at once, short enough to wait for.
const SHORT: Duration = Duration::from_millis(1000);

fn quick() -> Limits {
    Limits { read_timeout: SHORT, ..Limits::default() }
}

#[test]
fn a_giant_head_is_refused() {
    let running = Running::start();
    let host = running.address();
    let many = format!("GET /healthz HTTP/1.1\r\nHost: {host}\r\n{}\r\n", "a: b\r\n".repeat(64));
    let mut stream = running.tcp();
    stream.write_all(many.as_bytes()).unwrap();
    assert!(read_until(&mut stream, "\r\n\r\n").starts_with("HTTP/1.1 431 "));

    let big = "x".repeat(1 << 20);
    for head in [format!("GET /{big} HTTP/1.1\r\nHost: {host}"), format!("GET / HTTP/1.1\r\nHost: {host}\r\nA: {big}")]
    {
        let mut stream = running.tcp();
        // The server may have hung up before all of it is written.
        let _written = stream.write_all(format!("{head}\r\n\r\n").as_bytes());
        let mut answer = Vec::new();
        let _read = stream.read_to_end(&mut answer);
        assert!(!answer.starts_with(b"HTTP/1.1 200"));
    }
    for noise in [
        "\0\0\0\0\r\n\r\n",
        "GET\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "\u{16}\u{3}\u{1}\u{2}",
        "GET / HTTP/9\r\n\r\n",
    ] {
        let mut stream = running.tcp();
        stream.write_all(noise.as_bytes()).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        assert!(is_closed(&mut stream), "{noise:?}");
    }
    assert_eq!(running.over_tcp("GET", "/healthz", "").status, 200);
}

#[test]
fn a_giant_body_is_refused() {
    let running = Running::with(Limits { body_bytes: 1000, ..Limits::default() });
    let declared = "POST /v1/pause HTTP/1.1\r\nHost: x\r\nContent-Length: 999999999999\r\n\r\n";
    let answer = exchange(running.unix(), declared);
    assert_eq!((answer.status, answer.code().as_str()), (413, "body_too_large"));

    let (chunked, x) = (
        "POST /v1/pause HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n",
        "x".repeat(600),
    );
    let answer = exchange(running.unix(), &format!("{chunked}258\r\n{x}\r\n258\r\n{x}\r\n0\r\n\r\n"));
    assert_eq!((answer.status, answer.code().as_str()), (413, "body_too_large"));

    let fits = format!("{{}}{}", " ".repeat(998));
    assert_eq!(running.over_unix("POST", "/v1/pause", &fits).status, 200);
    assert_eq!(running.over_unix("POST", "/v1/pause", &format!("{fits} ")).status, 413);
    assert_eq!(running.daemon.commands().len(), 1);
}

#[test]
fn a_slow_head_ends_the_connection() {
    let running = Running::with(quick());
    for start in ["", "GET", "GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Slow: "] {
        let mut stream = running.tcp();
        stream.write_all(start.as_bytes()).unwrap();
        assert!(is_closed(&mut stream), "{start:?}");
    }
    // And so does a pause after a request.
    let mut stream = running.unix();
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    assert!(is_closed(&mut stream));
}

#[test]
fn a_slow_body_is_answered_and_ends_the_connection() {
    let running = Running::with(quick());
    let started = "POST /v1/pause HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{";
    let answer = exchange(running.unix(), started);
    assert_eq!((answer.status, answer.code().as_str()), (408, "read_timeout"));
    assert_eq!(running.daemon.commands(), []);
}

#[test]
fn connections_are_bounded_at_each_door() {
    let running = Running::with(Limits { connections: 3, ..Limits::default() });
    let mut open: Vec<_> = (0..3).map(|_| running.tcp()).collect();
    wait_until("all are accepted", || running.metric("mergedistill_http_connections", r#"door="tcp""#) == 3.0);
    let mut refused = String::new();
    running.tcp().read_to_string(&mut refused).unwrap();
    let answer = Answer::parse(&refused);
    assert_eq!((answer.status, answer.code().as_str()), (503, "too_many_connections"));
    assert_eq!(answer.header("content-length"), Some(answer.body.len().to_string().as_str()));
    assert_eq!(running.metric("mergedistill_http_connections_refused_total", r#"door="tcp""#), 1.0);
    assert_eq!(running.over_unix("GET", "/healthz", "").status, 200, "the other door is open");
    open.pop();
    wait_until("the place is free", || running.metric("mergedistill_http_connections", r#"door="tcp""#) == 2.0);
    assert_eq!(running.over_tcp("GET", "/healthz", "").status, 200);
}

#[test]
fn a_client_that_does_not_read_loses_its_connection() {
    let running = Running::with(Limits { write_timeout: SHORT, ..Limits::default() });
    let stalled = running.subscribe();
    let subscribers = || {
        running
            .registry
            .gather()
            .iter()
            .find(|f| f.name() == "mergedistill_event_subscribers")
            .map(|f| f.get_metric()[0].get_gauge().get_value())
    };
    let text = "x".repeat(64 * 1024);
    wait_until("the stalled reader is gone", || {
        running.events.publish("step", json!({ "text": text }));
        subscribers() == Some(0.0)
    });
    drop(stalled);
}

#[test]
fn a_daemon_that_does_not_answer_is_reported() {
    let running = Running::with(Limits { query_timeout: SHORT, queries: 1, ..Limits::default() });
    running.daemon.set_stuck(true);
    for path in ["/v1/status", "/healthz", "/readyz"] {
        let answer = running.over_tcp("GET", path, "");
        assert_eq!((answer.status, answer.code().as_str()), (504, "timeout"), "{path}");
    }
    assert_eq!(running.over_tcp("GET", "/metrics", "").status, 200, "metrics need no answer");
    running.daemon.set_stuck(false);
    wait_until("it answers again", || running.over_tcp("GET", "/healthz", "").status == 200);
}

#[test]
fn commands_at_a_time_are_bounded() {
    let running = Running::with(Limits { commands: 1, ..Limits::default() });
    running.daemon.set_stuck(true);
    let mut first = running.unix();
    first.write_all(request("POST", "/v1/checkpoint", "x", "").as_bytes()).unwrap();
    running.daemon.wait_for_stuck(1);
    let refused = running.over_unix("POST", "/v1/drain", "");
    assert_eq!((refused.code().as_str(), refused.header("retry-after")), ("busy", Some("1")));
    // Whoever wants the daemon to end, or to go on, need not wait for that.
    running.daemon.set_pauses_pass(true);
    for _ in 0..10 {
        assert_eq!(running.over_unix("POST", "/v1/pause", "").status, 200);
        assert_eq!(running.over_unix("POST", "/v1/resume", "").status, 200);
    }
    let mut last = running.unix();
    last.write_all(request("POST", "/v1/shutdown", "x", "").as_bytes()).unwrap();
    running.daemon.wait_for_stuck(2);
    running.daemon.set_stuck(false);
    assert_eq!(exchange(first, "").json()["checkpoints"], 1);
    wait_until("the place is free", || running.over_unix("POST", "/v1/drain", "").status == 200);
}

#[test]
fn a_command_goes_on_when_its_client_has_left() {
    let running = Running::start();
    running.daemon.set_stuck(true);
    let mut client = running.unix();
    client.write_all(request("POST", "/v1/checkpoint", "x", "").as_bytes()).unwrap();
    running.daemon.wait_for_stuck(1);
    drop(client);
    running.daemon.set_stuck(false);
    wait_until("the checkpoint is written", || running.daemon.commands().len() == 1);
}

#[test]
fn a_stop_waits_for_answers_but_not_for_ever() {
    let mut running = Running::start();
    let mut idle = running.tcp();
    running.daemon.set_stuck(true);
    let mut busy = running.unix();
    busy.write_all(request("POST", "/v1/checkpoint", "x", "").as_bytes()).unwrap();
    running.daemon.wait_for_stuck(1);
    let server = running.server.take().unwrap();
    let stopping = std::thread::spawn(move || server.stop());
    assert!(is_closed(&mut idle), "who is not being answered is sent away");
    running.daemon.set_stuck(false);
    assert_eq!(exchange(busy, "").status, 200);
    stopping.join().unwrap();

    let mut running = Running::with(Limits { stop_timeout: SHORT, ..Limits::default() });
    running.daemon.set_stuck(true);
    let mut busy = running.unix();
    busy.write_all(request("POST", "/v1/checkpoint", "x", "").as_bytes()).unwrap();
    running.daemon.wait_for_stuck(1);
    running.stop();
    assert!(is_closed(&mut busy));
}
