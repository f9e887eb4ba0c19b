//! What Prometheus gets.

use crate::harness::{Running, exchange, request, wait_until};
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use std::collections::BTreeMap;
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Series by name with labels, of a text that is checked to be in Prometheus' format.
fn parse(text: &str) -> BTreeMap<String, f64> {
    let mut series = BTreeMap::new();
    let mut family = String::new();
    for line in text.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, words) = help.split_once(' ').unwrap();
            assert!(words.ends_with('.'), "help is a sentence: {line}");
            family = name.to_owned();
        } else if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').unwrap();
            assert_eq!(name, family, "TYPE follows HELP");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
        } else {
            let (key, value) = line.rsplit_once(' ').unwrap();
            let name = key.split('{').next().unwrap();
            assert!(name.starts_with(&family), "{line} in the family {family}");
            assert!(name.chars().all(|c| c.is_ascii_lowercase() || c == '_'), "{line}");
            assert!(series.insert(key.to_owned(), value.parse().unwrap()).is_none(), "twice: {line}");
        }
    }
    series
}

#[test]
fn a_scrape_has_the_server_the_process_and_the_build() {
    let running = Running::start();
    for path in ["/v1/status", "/v1/status", "/nowhere", "/elsewhere?x=1"] {
        running.over_tcp("GET", path, "");
    }
    running.over_tcp("POST", "/v1/pause", "");
    let answer = running.over_tcp("GET", "/metrics", "");
    assert_eq!(answer.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    let series = parse(&answer.body);
    let requests =
        |path: &str, code: u16| series[&format!(r#"mergedistill_http_requests_total{{code="{code}",path="{path}"}}"#)];
    assert_eq!(requests("/v1/status", 200), 2.0);
    assert_eq!(requests("other", 404), 2.0, "unknown paths share one label");
    assert_eq!(requests("/v1/pause", 403), 1.0);
    assert_eq!(series[r#"mergedistill_http_request_duration_seconds_count{path="/v1/status"}"#], 2.0);
    let build =
        series.keys().find(|series| series.starts_with("mergedistill_build_info{")).expect("what it was built from");
    let version = format!(r#"version="{}""#, env!("CARGO_PKG_VERSION"));
    for label in ["profile=", "revision=", "target=", &version] {
        assert!(build.contains(label), "{build} has no {label}");
    }
    for name in ["process_resident_memory_bytes", "process_open_fds", "process_threads", "process_start_time_seconds"] {
        assert!(series[name] > 0.0, "{name}");
    }
}

/// A metric whose reader waits for a lock.
struct Held {
    lock: Arc<Mutex<()>>,
    is_read: Arc<AtomicBool>,
}

impl Collector for Held {
    fn desc(&self) -> Vec<&Desc> {
        Vec::new()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.is_read.store(true, Ordering::Relaxed);
        drop(self.lock.lock().unwrap_or_else(PoisonError::into_inner));
        Vec::new()
    }
}

#[test]
fn metrics_that_wait_hold_up_nobody_else() {
    let running = Running::start();
    let (lock, is_read) = (Arc::new(Mutex::new(())), Arc::new(AtomicBool::new(false)));
    let held = lock.lock().unwrap();
    running.registry.register(Box::new(Held { lock: Arc::clone(&lock), is_read: Arc::clone(&is_read) })).unwrap();
    let mut scrape = running.unix();
    scrape.write_all(request("GET", "/metrics", "x", "").as_bytes()).unwrap();
    wait_until("the metrics are read", || is_read.load(Ordering::Relaxed));
    assert_eq!(running.over_tcp("GET", "/healthz", "").status, 200);
    drop(held);
    assert_eq!(exchange(scrape, "").status, 200);
}
