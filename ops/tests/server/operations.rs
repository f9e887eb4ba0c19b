//! Commands that are followed, and changes that depend on what was seen.

use crate::harness::{Answer, Running, exchange, wait_until};
use ops::{Command, Limits};
use serde_json::{Value, json};
use std::io::Write;

/// A command with more fields in its head.
fn ask(running: &Running, path: &str, fields: &str, body: &str) -> Answer {
    let answer = exchange(running.unix(), &request(path, fields, body));
    running.documented("POST", path, answer)
}

fn request(path: &str, fields: &str, body: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{fields}Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

fn operations(running: &Running) -> Vec<Value> {
    running.over_tcp("GET", "/v1/operations", "").json()["operations"].as_array().unwrap().clone()
}

#[test]
fn a_command_is_followed_to_its_end() {
    let running = Running::start();
    running.daemon.set_stuck(true);
    let answer = ask(&running, "/v1/checkpoint", "Prefer: wait=10, Respond-Async\r\n", "");
    assert_eq!((answer.status, answer.header("preference-applied")), (202, Some("respond-async")));
    let place = answer.header("location").unwrap();
    let begun = answer.json();
    assert_eq!((&begun["command"], &begun["state"]), (&json!("checkpoint"), &json!("running")));
    assert_eq!(place, format!("/v1/operations/{}", begun["id"].as_str().unwrap()));
    assert!(begun["by"].as_str().unwrap().starts_with("uid "), "{begun}");
    let found = running.over_tcp("GET", place, "").json();
    assert_eq!((&found["id"], &found["ended_unix_seconds"]), (&begun["id"], &Value::Null));

    running.daemon.set_stuck(false);
    wait_until("it is done", || running.over_tcp("GET", place, "").json()["state"] == "done");
    let done = running.over_tcp("GET", place, "").json();
    assert_eq!(done["result"]["checkpoints"], 1);
    assert!(done["ended_unix_seconds"].as_f64() >= done["started_unix_seconds"].as_f64());
    assert_eq!(running.over_tcp("GET", "/v1/operations/none", "").code(), "unknown_operation");
}

#[test]
fn every_command_is_listed_with_its_end() {
    let running = Running::start();
    ask(&running, "/v1/drain", "", "");
    let out = running.folder.path().join("not/there");
    let refused = ask(&running, "/v1/export", "", &json!({ "out": out }).to_string());
    assert_eq!(refused.code(), "trainer_ended");
    ask(&running, "/v1/export", "", "{}");
    let listed = operations(&running);
    assert_eq!(listed.len(), 2, "what was no command is not listed");
    assert_eq!((&listed[0]["command"], &listed[0]["state"]), (&json!("export"), &json!("failed")));
    assert_eq!(listed[0]["error"]["code"], "trainer_ended");
    assert_eq!((&listed[1]["command"], &listed[1]["state"]), (&json!("drain"), &json!("done")));
    assert_eq!(running.daemon.commands()[0], Command::Drain);
}

#[test]
fn a_hundred_operations_are_remembered_and_those_that_run() {
    let running = Running::start();
    running.daemon.set_stuck(true);
    let first = ask(&running, "/v1/checkpoint", "Prefer: respond-async\r\n", "").json();
    running.daemon.wait_for_stuck(1);
    running.daemon.set_pauses_pass(true);
    for _ in 0..120 {
        assert_eq!(ask(&running, "/v1/pause", "", "").status, 200);
    }
    let listed = operations(&running);
    assert_eq!(listed.len(), 100);
    assert_eq!((&listed[99]["id"], &listed[99]["state"]), (&first["id"], &json!("running")));
    running.daemon.set_stuck(false);
}

#[test]
fn a_command_that_panics_has_failed() {
    let running = Running::start();
    running.daemon.set_command_panics(true);
    let answer = ask(&running, "/v1/pause", "", "");
    assert_eq!((answer.status, answer.code().as_str()), (500, "internal"));
    assert_eq!(operations(&running)[0]["error"]["code"], "internal");
}

fn revision(running: &Running, path: &str) -> String {
    running.over_unix("GET", path, "").header("etag").unwrap().to_owned()
}

#[test]
fn a_change_of_what_was_seen_is_made_and_another_is_not() {
    let running = Running::start();
    let paths = ["/v1/status", "/v1/corpora", "/v1/teachers", "/v1/configuration", "/v1/retention", "/v1/log-level"];
    let seen = paths.map(|path| revision(&running, path));
    assert!(seen.iter().all(|tag| *tag == seen[0]), "{seen:?}");
    let change = |tag: &str| ask(&running, "/v1/pause", &format!("If-Match: {tag}\r\n"), "").status;
    for other in ["\"0\"", "W/\"1\"", "", &format!("W/{}", seen[0]), seen[0].trim_matches('"')] {
        assert_eq!(change(other), 412, "{other}");
    }
    assert_eq!(running.daemon.commands(), []);
    assert_eq!(change(&format!("\"0\", {}", seen[0])), 200);
    assert_eq!(change(&seen[0]), 412);
    assert_ne!(revision(&running, "/v1/status"), seen[0]);
    assert_eq!(change("*"), 200);

    let before = revision(&running, "/v1/status");
    ask(&running, "/v1/checkpoint", "", "");
    assert_eq!(revision(&running, "/v1/status"), before, "a checkpoint changes nothing that is asked for");
    let refused = ask(&running, "/v1/pause", "If-Match: \"0\"\r\n", "");
    assert_eq!(refused.code(), "changed_meanwhile");
    running.server.as_ref().unwrap().revision().grow();
    assert_ne!(revision(&running, "/v1/status"), before);
    assert_ne!(revision(&Running::start(), "/v1/status"), before, "each process counts from elsewhere");
}

#[test]
fn two_changes_of_the_same_revision_are_not_both_made() {
    let running = Running::with(Limits { commands: 8, ..Limits::default() });
    let tag = revision(&running, "/v1/status");
    running.daemon.set_stuck(true);
    let request = request("/v1/drain", &format!("If-Match: {tag}\r\n"), "");
    let mut first = running.unix();
    first.write_all(request.as_bytes()).unwrap();
    running.daemon.wait_for_stuck(1);
    assert_eq!(exchange(running.unix(), &request).status, 412, "the first is under way");
    running.daemon.set_stuck(false);
    assert_eq!(exchange(first, "").status, 200);
    assert_eq!(running.daemon.commands(), [Command::Drain]);
}

#[test]
fn no_command_waits_for_another() {
    let running = Running::start();
    let seen = revision(&running, "/v1/status");
    running.daemon.set_stuck(true);
    running.daemon.set_pauses_pass(true);
    let if_seen = format!("If-Match: {seen}\r\n");
    // What changes nothing is no reason to refuse a change.
    let begun = ask(&running, "/v1/checkpoint", &format!("{if_seen}Prefer: respond-async\r\n"), "");
    assert_eq!(begun.status, 202);
    assert_eq!(ask(&running, "/v1/pause", &if_seen, "").status, 200);
    assert_eq!(ask(&running, "/v1/pause", &if_seen, "").status, 412);

    running.daemon.set_stuck(false);
    wait_until("the checkpoint is written", || running.daemon.commands().contains(&Command::Checkpoint));
    let seen = revision(&running, "/v1/status");
    running.daemon.set_stuck(true);
    let drain = ask(&running, "/v1/drain", &format!("If-Match: {seen}\r\nPrefer: respond-async\r\n"), "");
    running.daemon.wait_for_stuck(1);
    assert_eq!(drain.json()["state"], "running");
    // A drain may end by nothing else.
    assert_eq!(ask(&running, "/v1/resume", "", "").status, 200);
    let mut last = running.unix();
    last.write_all(request("/v1/shutdown", "", "").as_bytes()).unwrap();
    running.daemon.wait_for_stuck(2);
}

#[test]
fn a_change_moves_the_revision_when_it_begins_and_when_it_is_over() {
    let running = Running::start();
    let before = revision(&running, "/v1/status");
    running.daemon.set_command_panics(true);
    assert_eq!(ask(&running, "/v1/pause", "", "").status, 500);
    let after = revision(&running, "/v1/status");
    let number = |tag: &str| tag.trim_matches('"').parse::<u64>().unwrap();
    assert_eq!(number(&after), number(&before) + 2, "it may have been half made");
}

#[test]
fn results_are_not_listed_and_long_ones_not_kept() {
    let running = Running::start();
    running.daemon.set_padding(1 << 20);
    let whole = ask(&running, "/v1/checkpoint", "", "").json();
    assert_eq!(whole["padding"].as_str().unwrap().len(), 1 << 20, "who waits gets all of it");
    running.daemon.set_padding(60_000);
    ask(&running, "/v1/checkpoint", "", "");
    let listed = operations(&running);
    assert!(listed.iter().all(|operation| operation.get("result").is_none()), "{listed:?}");
    let found = |index: usize| {
        let id: &str = listed[index]["id"].as_str().unwrap();
        running.over_tcp("GET", &format!("/v1/operations/{id}"), "").json()
    };
    assert_eq!(found(0)["result"]["padding"].as_str().unwrap().len(), 60_000);
    let long = found(1);
    assert!(long.get("result").is_none() && long["state"] == "done");
    let reason = long["result_left_out"].as_str().unwrap();
    assert!(reason.starts_with("it has 104") && reason.ends_with("results of up to 65536 are kept"), "{reason}");
}
