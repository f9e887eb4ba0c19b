//! Who is let in at the loopback port.

use crate::harness::{Running, exchange};
use ops::{EventHub, OpsError, OpsOptions, Server};
use prometheus::Registry;
use std::sync::Arc;

/// `head` is what stands between the method and the empty line; `PORT` stands for the port.
fn check(running: &Running, head: &str, expected: &str) {
    let head = head.replace("PORT", &running.address().port().to_string());
    let answer = exchange(running.tcp(), &format!("GET {head}\r\nConnection: close\r\n\r\n"));
    assert_eq!(answer.code(), expected, "{head}");
    assert_eq!(answer.status, if expected.is_empty() { 200 } else { 403 }, "{head}");
}

#[test]
fn a_foreign_host_is_refused() {
    let running = Running::start();
    for ours in ["localhost:PORT", "127.0.0.1:PORT", "[::1]:PORT", "LOCALHOST:PORT"] {
        check(&running, &format!("/v1/status HTTP/1.1\r\nHost: {ours}"), "");
    }
    for foreign in ["evil.example:PORT", "evil.example", "localhost", "localhost:1", "127.0.0.1.evil.example:PORT", ""]
    {
        check(&running, &format!("/v1/status HTTP/1.1\r\nHost: {foreign}"), "foreign_host");
    }
    for path in ["/", "/metrics", "/healthz", "/v1/events", "/v1/pause", "/nowhere"] {
        check(&running, &format!("{path} HTTP/1.1\r\nHost: evil.example:PORT"), "foreign_host");
    }
    check(&running, "/v1/status HTTP/1.0", "foreign_host");
    check(&running, "/v1/status HTTP/1.1\r\nHost: localhost:PORT\r\nHost: evil.example", "foreign_host");
    check(&running, "http://evil.example/v1/status HTTP/1.1\r\nHost: localhost:PORT", "foreign_host");
    check(&running, "http://localhost:PORT/v1/status HTTP/1.1\r\nHost: localhost:PORT", "");
}

#[test]
fn a_foreign_origin_is_refused() {
    let running = Running::start();
    let with = |origin: &str| format!("/v1/status HTTP/1.1\r\nHost: localhost:PORT\r\nOrigin: {origin}");
    for ours in ["http://localhost:PORT", "http://127.0.0.1:PORT", "http://[::1]:PORT"] {
        check(&running, &with(ours), "");
    }
    for foreign in ["null", "http://evil.example", "https://localhost:PORT", "http://localhost:1", "localhost:PORT", ""]
    {
        check(&running, &with(foreign), "foreign_origin");
    }
    check(&running, &format!("{}\r\nOrigin: http://evil.example", with("http://localhost:PORT")), "foreign_origin");
}

#[test]
fn the_socket_has_permissions_instead() {
    let running = Running::start();
    let request = "GET /healthz HTTP/1.1\r\nHost: anything\r\nOrigin: null\r\nConnection: close\r\n\r\n";
    assert_eq!(exchange(running.unix(), request).status, 200);
}

#[test]
fn only_loopback_addresses_are_listened_on() {
    let start = |http: &str| {
        let options = OpsOptions { http: Some(http.parse().unwrap()), ..OpsOptions::default() };
        let daemon = Arc::new(crate::harness::Daemon::default());
        Server::start(options, Registry::new(), daemon, EventHub::new())
    };
    for beyond in ["0.0.0.0:0", "[::]:0", "192.0.2.1:9000", "[2001:db8::1]:9000"] {
        let error = start(beyond).unwrap_err();
        assert!(matches!(error, OpsError::NotLoopback { .. }), "{error}");
        assert!(error.to_string().contains(beyond), "{error}");
    }
    let server = start("127.0.0.1:0").unwrap();
    let taken = server.http_address().unwrap();
    let error = start(&taken.to_string()).unwrap_err();
    assert!(error.in_use() && error.to_string().contains(&taken.to_string()), "{error}");
    server.stop();
    start(&taken.to_string()).unwrap().stop();
}
