//! Every path, at both doors.

use crate::harness::{Running, exchange, read_until, request};
use ops::{Command, Stage};
use serde_json::json;
use std::io::Write;
use std::path::PathBuf;

#[derive(Clone, Copy)]
enum Door {
    Tcp,
    Unix,
}
use Door::{Tcp, Unix};

fn check(running: &Running, door: Door, method: &str, path: &str, status: u16, code: &str) {
    let answer = match door {
        Tcp => running.over_tcp(method, path, ""),
        Unix => running.over_unix(method, path, ""),
    };
    assert_eq!((answer.status, answer.code().as_str()), (status, code), "{method} {path}");
    for (name, value) in [("cache-control", "no-store"), ("x-content-type-options", "nosniff")] {
        assert_eq!(answer.header(name), Some(value), "{method} {path}");
    }
    assert!(answer.header("content-security-policy").unwrap().starts_with("default-src 'none'"));
    assert_eq!(answer.header("allow").is_some(), status == 405, "{method} {path}");
}

#[test]
fn every_path_answers_at_both_doors() {
    let running = Running::start();
    for door in [Tcp, Unix] {
        for path in ["/", "/metrics", "/healthz", "/readyz", "/v1/status"] {
            check(&running, door, "GET", path, 200, "");
            let (status, code) = if path.starts_with("/v1") { (400, "invalid_query") } else { (200, "") };
            check(&running, door, "GET", &format!("{path}?query"), status, code);
            for method in ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PROPFIND"] {
                check(&running, door, method, path, 405, "method_not_allowed");
            }
        }
        for path in ["/v1", "/v1/status/", "/V1/status", "//", "/../etc/passwd", "/%2e%2e/", "/index.html", "*"] {
            check(&running, door, "GET", path, 404, "not_found");
        }
        check(&running, door, "POST", "/v1/events", 405, "method_not_allowed");
        for path in [
            "/v1/pause",
            "/v1/resume",
            "/v1/checkpoint",
            "/v1/export",
            "/v1/release",
            "/v1/release/cancel",
            "/v1/quarantine/retry",
            "/v1/shutdown",
        ] {
            check(&running, door, "GET", path, 405, "method_not_allowed");
            check(&running, Tcp, "POST", path, 403, "control_needs_socket");
        }
    }
    assert_eq!(running.daemon.commands(), []);
}

#[test]
fn a_head_request_gets_the_head_alone() {
    let running = Running::start();
    for path in ["/", "/v1/status", "/v1/events"] {
        let answer = running.over_tcp("HEAD", path, "");
        assert_eq!((answer.status, answer.body.as_str()), (200, ""), "{path}");
        assert!(answer.header("content-type").is_some());
    }
    assert_eq!(running.metric("mergedistill_event_subscribers", ""), 0.0);
}

#[test]
fn the_page_may_run_nothing_but_itself() {
    let running = Running::start();
    let answer = running.over_tcp("GET", "/", "");
    assert_eq!(answer.header("content-type"), Some("text/html; charset=utf-8"));
    assert!(answer.body.starts_with("<!doctype html>"));
    let policy = answer.header("content-security-policy").unwrap();
    for directive in ["script-src 'sha256-", "style-src 'sha256-", "connect-src 'self'", "frame-ancestors 'none'"] {
        assert!(policy.contains(directive), "{directive} in {policy}");
    }
    assert!(!policy.contains("unsafe"));
}

#[test]
fn health_gives_the_reason() {
    let running = Running::start();
    assert_eq!(running.over_tcp("GET", "/healthz", "").json(), json!({ "status": "alive" }));
    assert_eq!(running.over_tcp("GET", "/readyz", "").json(), json!({ "status": "ready" }));
    running.daemon.set_unready(Some("teacher `en` is loading"));
    let answer = running.over_tcp("GET", "/readyz", "");
    assert_eq!(answer.status, 503);
    assert_eq!(answer.json(), json!({ "error": { "code": "not_ready", "message": "teacher `en` is loading" } }));
    assert_eq!(running.over_tcp("GET", "/healthz", "").status, 200);
    running.daemon.set_dead("the log cannot be written");
    let answer = running.over_tcp("GET", "/healthz", "");
    assert_eq!((answer.status, answer.code().as_str()), (503, "not_alive"));
}

#[test]
fn a_status_has_the_counters_of_the_stages() {
    let running = Running::start();
    let gauge = |name: &str, stage: &str, value: f64| {
        let opts = prometheus::Opts::new(name, "A stage's.").const_label("stage", stage);
        let gauge = prometheus::Gauge::with_opts(opts).unwrap();
        gauge.set(value);
        running.registry.register(Box::new(gauge)).unwrap();
    };
    let opts =
        prometheus::Opts::new("mergedistill_stage_items_out_total", "A stage's.").const_label("stage", "trainer");
    let counter = prometheus::IntCounter::with_opts(opts).unwrap();
    counter.inc_by(7);
    running.registry.register(Box::new(counter)).unwrap();
    gauge("mergedistill_stage_items_in_flight", "ingest", 3.0);
    gauge("mergedistill_stage_items_in_flight", "trainer", 4.0);
    gauge("mergedistill_stage_last_progress_timestamp_seconds", "ingest", 0.0);
    gauge("mergedistill_stage_last_progress_timestamp_seconds", "trainer", 12.5);
    assert_eq!(
        running.over_tcp("GET", "/v1/status", "").json()["stages"],
        json!({
            // What the daemon itself says has precedence.
            "ingest": { "in_flight": -1, "last_progress_timestamp_seconds": null },
            "trainer": { "items_out": 7, "in_flight": 4, "last_progress_timestamp_seconds": 12.5 },
        })
    );
}

#[test]
fn commands_reach_the_daemon() {
    let running = Running::start();
    let out = running.folder.path().join("out");
    let export = json!({ "out": out }).to_string();
    let post = |path: &str, body: &str, status: u16| {
        let answer = running.over_unix("POST", path, body);
        assert_eq!(answer.status, status, "{path} {body}: {answer:?}");
        answer
    };
    post("/v1/pause", "", 200);
    assert_eq!(running.over_tcp("GET", "/v1/status", "").json()["paused"], json!(["ingest", "teacher", "trainer"]));
    post("/v1/resume", r#" {"stage": "teacher"} "#, 200);
    assert_eq!(running.over_tcp("GET", "/v1/status", "").json()["paused"], json!(["ingest", "trainer"]));
    post("/v1/resume", r#"{"stage": null}"#, 200);
    assert_eq!(post("/v1/checkpoint", "{}", 200).json()["checkpoints"], 1);
    post("/v1/export", &export, 200);
    assert!(out.is_dir());
    assert_eq!(post("/v1/export", &export, 409).code(), "trainer_ended");
    let cut = json!({ "out": out, "languages": ["de"] }).to_string();
    assert_eq!(post("/v1/export", &cut, 409).code(), "trainer_ended");
    post("/v1/release", r#"{"steps": 9}"#, 200);
    post("/v1/release", r#"{"steps": 10, "out": "/x"}"#, 200);
    post("/v1/release/cancel", "", 200);
    assert_eq!(post("/v1/shutdown", "", 500).code(), "failed", "a status that is none becomes 500");
    assert_eq!(
        running.daemon.commands(),
        [
            Command::Pause { stage: None },
            Command::Resume { stage: Some(Stage::Teacher) },
            Command::Resume { stage: None },
            Command::Checkpoint,
            Command::Export { out: out.clone(), languages: Vec::new() },
            Command::Export { out: out.clone(), languages: Vec::new() },
            Command::Export { out, languages: vec!["de".to_owned()] },
            Command::Release { steps: 9, out: None },
            Command::Release { steps: 10, out: Some("/x".into()) },
            Command::CancelRelease,
            Command::Shutdown,
        ]
    );
}

#[test]
fn bodies_that_say_something_else_are_refused() {
    let running = Running::start();
    for (path, body) in [
        ("/v1/pause", "ingest"),
        ("/v1/pause", "null"),
        ("/v1/pause", "[]"),
        ("/v1/pause", r#""ingest""#),
        ("/v1/pause", r#"{"stage":"Ingest"}"#),
        ("/v1/pause", r#"{"stage":"store"}"#),
        ("/v1/pause", r#"{"stage":["ingest"]}"#),
        ("/v1/pause", r#"{"stag":"ingest"}"#),
        ("/v1/pause", r#"{"stage":"ingest"}{"#),
        ("/v1/resume", r#"{"stage":1}"#),
        ("/v1/checkpoint", r#"{"stage":"ingest"}"#),
        ("/v1/shutdown", r#"{"now":true}"#),
        ("/v1/shutdown", "[]"),
        ("/v1/export", ""),
        ("/v1/export", "{}"),
        ("/v1/export", r#"{"out":"relative"}"#),
        ("/v1/export", r#"{"out":7}"#),
        ("/v1/export", r#"{"out":"/x","force":true}"#),
        ("/v1/release", ""),
        ("/v1/release", r#"{"steps":0}"#),
        ("/v1/release", r#"{"steps":-1}"#),
        ("/v1/release", r#"{"steps":1.5}"#),
        ("/v1/release", r#"{"steps":1,"out":"relative"}"#),
        ("/v1/release/cancel", r#"{"steps":1}"#),
    ] {
        let answer = running.over_unix("POST", path, body);
        assert_eq!((answer.status, answer.code().as_str()), (400, "invalid_body"), "{path} {body}");
    }
    let deep = format!(r#"{{"stage":{}}}"#, "[".repeat(10_000));
    assert_eq!(running.over_unix("POST", "/v1/pause", &deep).code(), "invalid_body");
    assert_eq!(running.daemon.commands(), []);
}

#[test]
fn a_body_is_json_whatever_else_it_says_it_is() {
    let running = Running::start();
    let ask = |fields: &str, body: &str| {
        let head =
            format!("POST /v1/resume HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}", body.len());
        running.documented("POST", "/v1/resume", exchange(running.unix(), &format!("{head}\r\n{fields}\r\n{body}")))
    };
    for fields in ["", "Content-Type: application/json\r\n", "Content-Type: Application/JSON; charset=utf-8\r\n"] {
        assert_eq!(ask(fields, "{}").status, 200, "{fields}");
    }
    assert_eq!(ask("Content-Type: text/plain\r\n", "").status, 200, "nothing is of no type");
    for fields in ["Content-Type: text/plain\r\n", "Content-Type: \r\n", "Content-Encoding: gzip\r\n"] {
        assert_eq!(ask(fields, "{}").code(), "unsupported_media_type", "{fields}");
    }
}

#[test]
fn whole_numbers_may_have_a_point() {
    let running = Running::start();
    for (steps, status) in
        [("5", 200), ("5.0", 200), ("5e2", 200), ("5.5", 400), ("-0.5", 400), ("1e300", 400), ("0.0", 400)]
    {
        let answer = running.over_unix("POST", "/v1/release", &format!("{{\"steps\": {steps}}}"));
        assert_eq!(answer.status, status, "{steps}");
    }
    let steps = |command: &Command| if let Command::Release { steps, .. } = command { *steps } else { 0 };
    assert_eq!(running.daemon.commands().iter().map(steps).collect::<Vec<_>>(), [5, 5, 500]);
}

#[test]
fn a_panic_of_the_daemon_is_an_error_of_one_request() {
    let running = Running::start();
    running.daemon.set_panics(true);
    let answer = running.over_tcp("GET", "/v1/status", "");
    assert_eq!((answer.status, answer.code().as_str()), (500, "internal"));
    running.daemon.set_panics(false);
    assert_eq!(running.over_tcp("GET", "/v1/status", "").status, 200);
}

#[test]
fn a_connection_serves_one_request_after_another() {
    let running = Running::start();
    let mut stream = running.tcp();
    let host = running.address().to_string();
    for _ in 0..3 {
        stream
            .write_all(request("GET", "/healthz", &host, "").replace("Connection: close\r\n", "").as_bytes())
            .unwrap();
        assert!(read_until(&mut stream, "{\"status\":\"alive\"}\n").starts_with("HTTP/1.1 200 OK\r\n"));
    }
}

#[test]
fn stages_have_names() {
    for stage in Stage::ALL {
        assert_eq!(stage.to_string().parse(), Ok(stage));
    }
    let error = "store".parse::<Stage>().unwrap_err().to_string();
    assert_eq!(error, "`store` is not a stage: one of ingest, teacher, trainer");
    let out = PathBuf::from("/x");
    assert_ne!(Command::Export { out, languages: Vec::new() }, Command::Checkpoint);
}
