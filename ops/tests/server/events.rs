//! The feed of events over the wire.

use crate::harness::{Running, exchange, is_closed, read_until, request, wait_until};
use ops::Limits;
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

/// Reads events until the one with `last` as its id; returns how many came and how many were reported missed.
fn count(stream: &mut impl Read, last: u64) -> (u64, u64) {
    let (mut came, mut missed) = (0, 0);
    loop {
        let event = read_until(stream, "\n\n");
        let field = |name: &str| event.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        let data: Value = serde_json::from_str(field("data:").unwrap()).unwrap();
        if field("event:") == Some("missed") {
            missed += data["missed"].as_u64().unwrap();
            continue;
        }
        came += 1;
        let id: u64 = field("id:").unwrap().parse().unwrap();
        assert_eq!(data["number"], json!(id), "the event is the one its id says");
        assert_eq!(id + 1, came + missed, "every event either came or was reported missed");
        if id == last {
            return (came, missed);
        }
    }
}

#[test]
fn events_come_in_order() {
    let running = Running::start();
    let mut over_tcp = running.tcp();
    let host = running.address().to_string();
    over_tcp.write_all(format!("GET /v1/events HTTP/1.0\r\nHost: {host}\r\n\r\n").as_bytes()).unwrap();
    let head = read_until(&mut over_tcp, "\r\n\r\n");
    assert!(head.to_ascii_lowercase().contains("content-type: text/event-stream\r\n"), "{head}");
    read_until(&mut over_tcp, "retry: 2000\n\n");
    let mut over_unix = running.subscribe();
    for number in 0..20 {
        running.events.publish("step", json!({ "number": number }));
    }
    assert_eq!(read_until(&mut over_tcp, "\n\n"), "id: 0\nevent: step\ndata: {\"number\":0}\n\n");
    assert_eq!(read_until(&mut over_tcp, "\n\n"), "id: 1\nevent: step\ndata: {\"number\":1}\n\n");
    assert_eq!(count(&mut over_unix, 19), (20, 0));
}

#[test]
fn what_happens_within_a_rest_comes_at_its_end() {
    let rest = Duration::from_millis(300);
    let running = Running::with(Limits { event_rest: rest, ..Limits::default() });
    let mut reader = running.subscribe();
    running.events.publish("step", json!({ "number": 0 }));
    assert_eq!(count(&mut reader, 0), (1, 0));
    let begun = Instant::now();
    for number in 1..100 {
        running.events.publish("step", json!({ "number": number }));
    }
    read_until(&mut reader, "id: 1\n");
    assert!(begun.elapsed() > rest / 2, "it was not written at once");
    read_until(&mut reader, "id: 99\n");
    assert!(begun.elapsed() < 10 * rest, "one rest is enough for all of them");
}

#[test]
fn a_slow_reader_loses_events_and_is_told_how_many() {
    let running = Running::with(Limits { event_backlog: NonZeroUsize::new(8).unwrap(), ..Limits::default() });
    let mut slow = running.subscribe();
    let text = "x".repeat(4096);
    let total = 2000;
    // More than the socket and the ring hold, while nobody reads: that this loop ends is half of the test.
    for number in 0..total {
        running.events.publish("step", json!({ "number": number, "text": text }));
    }
    let (came, missed) = count(&mut slow, total - 1);
    assert!(missed > 0, "the newest are kept, the oldest dropped");
    assert_eq!(came + missed, total);
    assert_eq!(running.metric("mergedistill_events_dropped_total", ""), missed as f64);
    assert_eq!(running.metric("mergedistill_events_published_total", ""), total as f64);
    running.events.publish("step", json!({ "number": total }));
    assert!(read_until(&mut slow, "\n\n").starts_with(&format!("id: {total}\n")), "back in step");
}

#[test]
fn readers_are_bounded() {
    let running = Running::with(Limits { subscribers: 2, ..Limits::default() });
    let first = running.subscribe();
    let _second = running.subscribe();
    let answer = running.over_unix("GET", "/v1/events", "");
    assert_eq!((answer.status, answer.code().as_str()), (503, "too_many_subscribers"));
    drop(first);
    wait_until("the place is free", || running.metric("mergedistill_event_subscribers", "") == 1.0);
    let mut third = running.subscribe();
    running.events.publish("step", json!(1));
    assert_eq!(read_until(&mut third, "\n\n"), "id: 0\nevent: step\ndata: 1\n\n");
}

#[test]
fn silence_is_filled() {
    let running = Running::with(Limits { heartbeat: Duration::from_millis(1), ..Limits::default() });
    let mut reader = running.subscribe();
    for _ in 0..3 {
        assert_eq!(read_until(&mut reader, "\n\n"), ": still here\n\n");
    }
}

#[test]
fn a_stop_ends_the_stream_after_what_was_published() {
    let mut running = Running::start();
    let mut reader = running.subscribe();
    running.events.publish("last", json!({ "number": 0 }));
    running.stop();
    assert_eq!(count(&mut reader, 0), (1, 0));
    assert!(is_closed(&mut reader));
    running.events.publish("nobody listens", json!(null));
}

#[test]
fn chunks_carry_the_same_events() {
    let mut running = Running::start();
    let mut stream = running.unix();
    stream.write_all(request("GET", "/v1/events", "x", "").as_bytes()).unwrap();
    read_until(&mut stream, "retry: 2000\n\n");
    running.events.publish("step", json!(1));
    running.stop();
    let rest = read_until(&mut stream, "0\r\n\r\n");
    assert!(rest.contains("id: 0\nevent: step\ndata: 1\n\n"), "{rest:?}");
    let mut late = Running::start();
    late.events.publish("early", json!(null));
    let reader = late.subscribe();
    late.stop();
    assert_eq!(exchange_rest(reader), "");
}

fn exchange_rest(mut stream: impl Read) -> String {
    let mut rest = String::new();
    stream.read_to_string(&mut rest).unwrap();
    rest
}

#[test]
fn a_request_of_another_kind_is_not_a_reader() {
    let running = Running::start();
    assert_eq!(exchange(running.unix(), &request("DELETE", "/v1/events", "x", "")).status, 405);
    assert_eq!(running.metric("mergedistill_event_subscribers", ""), 0.0);
}
