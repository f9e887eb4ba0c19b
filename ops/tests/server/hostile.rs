//! Many kinds of hostile requests, a few of each, at both doors, while good ones are answered. `tests/ops/control/hostile` sends
//! thousands to a whole daemon.

use crate::harness::Running;
use ops::{Command, Limits};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::time::{Duration, Instant};

const TOKEN: &str = "0123456789abcdef-token";
/// For a good request, while others are hostile.
const PATIENCE: Duration = Duration::from_secs(5);
const ROUNDS: usize = 2;

/// What is sent, with `HOST` for a name of this machine; then the sender says no more.
fn kinds() -> Vec<(&'static str, Vec<u8>)> {
    let get = |line: &str, fields: &str| format!("{line} HTTP/1.1\r\nHost: HOST\r\n{fields}\r\n").into_bytes();
    let post = |fields: &str, body: &str| {
        let head = format!("POST /v1/resume HTTP/1.1\r\nHost: HOST\r\nAuthorization: Bearer {TOKEN}\r\n{fields}\r\n");
        [head.as_bytes(), body.as_bytes()].concat()
    };
    let with_length = |body: &str| post(&format!("Content-Length: {}\r\n", body.len()), body);
    let chunked = |chunks: &str| post("Transfer-Encoding: chunked\r\n", chunks);
    let smuggled = "GET /v1/status HTTP/1.1\r\nHost: HOST\r\n\r\n";
    let long = "a".repeat(300_000);
    vec![
        ("nothing", vec![]),
        ("garbage", (0..=255).cycle().take(5000).collect()),
        ("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 hello".to_vec()),
        ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x12\x04".to_vec()),
        ("HTTP/0.9", b"GET /\r\n".to_vec()),
        ("another version", b"GET / HTTP/9.9\r\n\r\n".to_vec()),
        ("NUL in the head", b"GET /\0 HTTP/1.1\r\nHost: HOST\r\n\r\n".to_vec()),
        ("no UTF-8 in the path", b"GET /\xff\xc0\x80 HTTP/1.1\r\nHost: HOST\r\n\r\n".to_vec()),
        ("no UTF-8 in a field", b"GET / HTTP/1.1\r\nHost: HOST\r\nX: \xff\r\n\r\n".to_vec()),
        ("folded field", get("GET /", "X: a\r\n b\r\n")),
        ("lone line feeds", b"GET / HTTP/1.1\nHost: HOST\n\n".to_vec()),
        ("giant path", get(&format!("GET /{long}"), "")),
        ("giant field", get("GET /", &format!("X: {long}\r\n"))),
        ("many fields", get("GET /", &"A: b\r\n".repeat(1000))),
        ("giant length", post("Content-Length: 18446744073709551615\r\n", "{}")),
        ("impossible length", post("Content-Length: 99999999999999999999999\r\n", "{}")),
        ("negative length", post("Content-Length: -1\r\n", "{}")),
        ("giant body", with_length(&long)),
        ("two lengths", post("Content-Length: 0\r\nContent-Length: 47\r\n", smuggled)),
        (
            "length and chunks",
            post("Content-Length: 4\r\nTransfer-Encoding: chunked\r\n", &format!("0\r\n\r\n{smuggled}")),
        ),
        (
            "chunks twice",
            post("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", &format!("0\r\n\r\n{smuggled}")),
        ),
        ("strange coding", post("Transfer-Encoding: xchunked\r\n", smuggled)),
        ("giant chunk", chunked("ffffffffffffffff1\r\n{}\r\n0\r\n\r\n")),
        ("no chunk", chunked("zz\r\n{}\r\n0\r\n\r\n")),
        ("chunk extensions", chunked(&format!("2;{}\r\n{{}}\r\n0\r\n\r\n", "a=b;".repeat(9000)))),
        ("chunk trailers", chunked(&format!("2\r\n{{}}\r\n0\r\n{}\r\n", "T: x\r\n".repeat(3000)))),
        ("tiny chunks", chunked(&format!("{}0\r\n\r\n", "1\r\n \r\n".repeat(5000)))),
        ("half a body", post("Content-Length: 100\r\n", "{")),
        ("deep JSON", with_length(&r#"{"stage":["#.repeat(5000))),
        ("huge number", with_length(r#"{"stage":1e999999999}"#)),
        ("the same key twice", with_length(r#"{"stage":1,"stage":"none"}"#)),
        ("lone surrogate", with_length(r#"{"stage":"\ud800"}"#)),
        ("wrong type", post("Content-Type: text/html\r\nContent-Length: 2\r\n", "{}")),
        ("compressed", post("Content-Encoding: gzip\r\nContent-Length: 2\r\n", "\x1f{")),
        ("unknown method", get("BREW /v1/status", "")),
        ("CONNECT", get("CONNECT evil.example:443", "")),
        ("another host", b"GET /v1/status HTTP/1.1\r\nHost: evil.example\r\n\r\n".to_vec()),
        ("two hosts", get("GET /v1/status", "Host: evil.example\r\n")),
        ("another origin", get("GET /v1/status", "Origin: http://evil.example\r\n")),
        ("absolute form", get("GET http://evil.example/v1/status", "")),
        ("path traversal", get("GET /v1/../../etc/passwd", "")),
        ("broken percent encoding", get("POST /v1/corpora/%zz/pause", &format!("Authorization: Bearer {TOKEN}\r\n"))),
        ("NUL in a name", get("GET /v1/operations/%00", "")),
        ("strange query", get("GET /v1/status?%ff=%&&=&a=b", "")),
        (
            "websocket",
            get("GET /v1/status", "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: AA==\r\n"),
        ),
        ("HTTP/2 upgrade", get("GET /v1/status", "Upgrade: h2c\r\nConnection: Upgrade\r\nHTTP2-Settings: AA\r\n")),
        ("wrong token", get("POST /v1/resume", "Authorization: Bearer no\r\nContent-Length: 0\r\n")),
        ("strange precondition", post("If-Match: \"\r\nPrefer: ;;,=\r\nContent-Length: 0\r\n", "")),
        ("a hundred at once", smuggled.repeat(100).into_bytes()),
    ]
}

/// Sends it, and reads what comes back until the other side ends.
fn send(mut stream: impl Read + Write, bytes: &[u8], say_no_more: impl Fn()) -> Vec<u8> {
    // Sent away before all is written: the answer may be there.
    let _written = stream.write_all(bytes);
    say_no_more();
    let mut answer = Vec::new();
    let _read = stream.read_to_end(&mut answer);
    answer
}

fn statuses(answer: &[u8]) -> Vec<u16> {
    let text = String::from_utf8_lossy(answer);
    let lines = text.lines().filter(|line| line.starts_with("HTTP/1.1 "));
    lines.map(|line| line.split(' ').nth(1).unwrap().parse().unwrap()).collect()
}

#[test]
fn hostile_requests_do_no_harm() {
    let limits = Limits { read_timeout: Duration::from_secs(2), ..Limits::default() };
    let running = Running::with_token(limits, Some(TOKEN));
    let host = running.address().to_string();
    for (kind, bytes) in (0..ROUNDS).flat_map(|_| kinds()) {
        let bytes = replaced(&bytes, b"HOST", host.as_bytes());
        let (tcp, unix) = (running.tcp(), running.unix());
        let answers = [
            send(&tcp, &bytes, || drop(tcp.shutdown(Shutdown::Write))),
            send(&unix, &bytes, || drop(unix.shutdown(Shutdown::Write))),
        ];
        for answer in answers {
            let statuses = statuses(&answer);
            assert!(statuses.iter().all(|status| *status < 500), "{kind}: {statuses:?}");
            assert!(statuses.len() <= 1 || kind == "a hundred at once", "{kind}: a request inside another is answered");
        }
        let asked = Instant::now();
        assert_eq!(running.over_tcp("GET", "/healthz", "").status, 200, "after {kind}");
        assert!(asked.elapsed() < PATIENCE, "after {kind}");
    }
    let commands = running.daemon.commands();
    let harmless = |command: &Command| matches!(command, Command::Resume { stage: None });
    assert!(commands.iter().all(harmless), "{commands:?}");
    crate::harness::wait_until("all connections have ended", || {
        ["tcp", "unix"]
            .iter()
            .map(|door| running.metric("mergedistill_http_connections", &format!("door=\"{door}\"")))
            .sum::<f64>()
            <= 1.0
    });
}

fn replaced(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut made = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some(byte) = rest.first() {
        if let Some(after) = rest.strip_prefix(from) {
            made.extend_from_slice(to);
            rest = after;
        } else {
            made.push(*byte);
            rest = &rest[1..];
        }
    }
    made
}
