//! Documents that are pushed: what is let in, how it comes, and when it is answered.

use crate::harness::{Answer, PATIENCE, Running, exchange, wait_until};
use ops::client::{Documents, push};
use ops::{CommandError, Limits, OpsError, PushForm, PushTarget, Token};
use serde_json::json;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::time::{Duration, Instant};

const TOKEN: &str = "0123456789abcdef-token";
const PATH: &str = "/v1/corpora/en/documents";

fn head(path: &str, host: &str, fields: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{fields}\r\n")
}

fn sized(fields: &str, body: &str) -> String {
    head(PATH, "x", &format!("{fields}Content-Length: {}\r\n", body.len())) + body
}

fn target(corpus: &str, form: PushForm, key: Option<&str>) -> PushTarget {
    PushTarget { corpus: corpus.to_owned(), form, key: key.map(str::to_owned) }
}

#[test]
fn documents_come_with_a_length_or_in_chunks() {
    let running = Running::start();
    let body = "{\"text\":\"one\"}\n";
    let answer =
        exchange(running.unix(), &sized("Content-Type: application/jsonl\r\nIdempotency-Key: a b-1\r\n", body));
    assert_eq!((answer.status, &answer.json()["accepted"]), (200, &json!(body.len())));

    let fields = "Content-Type: Text/Plain; charset=\"UTF-8\"\r\nTransfer-Encoding: chunked\r\n";
    let chunks = head("/v1/corpora/a%2Fb%20c/documents", "x", fields) + "3\r\none\r\n5\r\n\n\ntwo\r\n0\r\n\r\n";
    assert_eq!(exchange(running.unix(), &chunks).status, 200);
    let taken = &running.daemon.inbox.state.lock().unwrap().taken;
    assert_eq!(taken[0], (target("en", PushForm::JsonLines, Some("a b-1")), body.as_bytes().to_vec()));
    assert_eq!(taken[1], (target("a/b c", PushForm::Text, None), b"one\n\ntwo".to_vec()));
}

#[test]
fn what_is_not_understood_is_refused() {
    let running = Running::start();
    let check = |request: String, status: u16, code: &str| {
        let answer = exchange(running.unix(), &request);
        assert_eq!((answer.status, answer.code().as_str()), (status, code), "{request}");
    };
    for media_type in ["", "Content-Type: application/json\r\n", "Content-Type: text/plain; charset=latin1\r\n"] {
        check(sized(media_type, "x"), 415, "unsupported_media_type");
    }
    let text = "Content-Type: text/plain\r\n";
    check(sized(&format!("{text}Content-Encoding: gzip\r\n"), "x"), 415, "unsupported_media_type");
    for key in ["", "é", &"k".repeat(256), "one\r\nIdempotency-Key: two"] {
        check(sized(&format!("{text}Idempotency-Key: {key}\r\n"), "x"), 400, "invalid_key");
    }
    check(head("/v1/corpora/de/documents", "x", text), 404, "unknown_corpus");
    check(head("/v1/corpora/%ff/documents", "x", text), 400, "invalid_path");
    check(head("/v1/corpora/%2/documents", "x", text), 400, "invalid_path");
    for path in ["/v1/corpora//documents", "/v1/corpora/en/", "/v1/corpora/a/b/documents"] {
        check(head(path, "x", text), 404, "not_found");
    }
    assert_eq!(running.over_unix("GET", PATH, "").code(), "method_not_allowed");
    let state = running.daemon.inbox.state.lock().unwrap();
    assert!(state.taken.is_empty() && state.open == 0);
    drop(state);
    let counted = |code: &str| {
        let labels = format!("code=\"{code}\",path=\"/v1/corpora/{{name}}/documents\"");
        running.metric("mergedistill_http_requests_total", &labels)
    };
    assert_eq!((counted("415"), counted("404"), counted("405")), (4.0, 1.0, 1.0));
}

#[test]
fn a_request_has_a_limit_whether_it_says_its_size_or_not() {
    let running = Running::with(Limits { push_bytes: 10, ..Limits::default() });
    let text = "Content-Type: text/plain\r\n";
    assert_eq!(exchange(running.unix(), &sized(text, "0123456789")).status, 200);
    let answer = exchange(running.unix(), &sized(text, "0123456789a"));
    assert_eq!((answer.status, answer.code().as_str()), (413, "body_too_large"));
    let chunked = head(PATH, "x", &format!("{text}Transfer-Encoding: chunked\r\n"));
    let answer = exchange(running.unix(), &(chunked + "6\r\n012345\r\n5\r\n6789a\r\n0\r\n\r\n"));
    assert_eq!((answer.status, answer.code().as_str()), (413, "body_too_large"));
    assert_eq!(running.daemon.inbox.state.lock().unwrap().taken.len(), 1);
}

#[test]
fn a_refusal_says_when_to_come_back_and_reaches_a_client_that_is_still_sending() {
    let running = Running::start();
    let text = "Content-Type: text/plain\r\n";
    let body = "x".repeat(4 << 20);
    for (code, status, seconds) in [("busy", 503, "1"), ("inbox_full", 503, "5"), ("no_space", 507, "30")] {
        let error = CommandError { code, message: "no".to_owned(), status };
        running.daemon.inbox.state.lock().unwrap().refuses = Some(error);
        for stream in [exchange(running.unix(), &sized(text, &body)), exchange(running.unix(), &sized(text, "x"))] {
            assert_eq!((stream.status, stream.code().as_str()), (status, code));
            assert_eq!(stream.header("retry-after"), Some(seconds));
        }
    }
    assert_eq!(running.daemon.inbox.state.lock().unwrap().open, 0);
}

#[test]
fn the_answer_comes_when_the_documents_are_durable() {
    let mut running = Running::start();
    running.daemon.inbox.state.lock().unwrap().holds = true;
    let mut streams: Vec<_> = (0..40).map(|_| running.unix()).collect();
    for stream in &mut streams {
        stream.write_all(sized("Content-Type: text/plain\r\n", "text").as_bytes()).unwrap();
    }
    let held = || running.daemon.inbox.state.lock().unwrap().held.len();
    wait_until("all are received", || held() == 40);
    for stream in &mut streams {
        stream.set_nonblocking(true).unwrap();
        assert_eq!(stream.read(&mut [0]).unwrap_err().kind(), std::io::ErrorKind::WouldBlock, "answered too early");
        stream.set_nonblocking(false).unwrap();
    }
    // One of the clients leaves; its documents become durable all the same.
    drop(streams.pop());
    let held = std::mem::take(&mut running.daemon.inbox.state.lock().unwrap().held);
    held.into_iter().for_each(|(answer, value)| answer(Ok(value)));
    for stream in streams {
        assert_eq!(exchange(stream, "").json()["accepted"], 4);
    }
    // An inbox that is gone without a word is an error, not silence.
    let mut last = running.unix();
    last.write_all(sized("Content-Type: text/plain\r\n", "text").as_bytes()).unwrap();
    wait_until("it is received", || running.daemon.inbox.state.lock().unwrap().held.len() == 1);
    running.daemon.inbox.state.lock().unwrap().held.clear();
    assert_eq!(exchange(last, "").code(), "internal");
    running.stop();
}

#[test]
fn a_slow_client_holds_nobody_up_and_makes_room_when_others_need_it() {
    let running = Running::with(Limits { push_patience: Duration::from_millis(20), ..Limits::default() });
    let mut slow = running.unix();
    slow.write_all((head(PATH, "x", "Content-Type: text/plain\r\nContent-Length: 100\r\n") + "some").as_bytes())
        .unwrap();
    wait_until("it has begun", || running.daemon.inbox.state.lock().unwrap().open == 1);
    for _ in 0..20 {
        assert_eq!(exchange(running.unix(), &sized("Content-Type: text/plain\r\n", "text")).status, 200);
    }
    assert_eq!(running.daemon.inbox.state.lock().unwrap().open, 1, "it may be slow while nobody minds");
    running.daemon.inbox.state.lock().unwrap().pressed = true;
    let mut answer = String::new();
    slow.read_to_string(&mut answer).unwrap();
    let answer = Answer::parse(&answer);
    assert_eq!((answer.status, answer.code().as_str()), (408, "read_timeout"));
    assert_eq!(running.daemon.inbox.state.lock().unwrap().open, 0);
}

#[test]
fn a_client_that_sends_a_byte_now_and_then_is_sent_away_and_a_slow_one_is_not() {
    let limits = Limits { push_window: Duration::from_secs(1), push_window_bytes: 200, ..Limits::default() };
    let running = Running::with(limits);
    for (piece, status) in [("x", 408), ("twenty bytes or more\n", 200)] {
        let begun = Instant::now();
        let pieces = 75;
        let mut slow = running.unix();
        let headers = format!("Content-Type: text/plain\r\nContent-Length: {}\r\n", pieces * piece.len());
        slow.write_all(head(PATH, "x", &headers).as_bytes()).unwrap();
        // Fifty pieces a second.
        slow.set_nonblocking(true).unwrap();
        let (mut sent, mut answer) = (0, Vec::new());
        loop {
            let due = pieces.min(1 + (begun.elapsed().as_millis() / 20) as usize);
            while sent < due && slow.write_all(piece.as_bytes()).is_ok() {
                sent += 1;
            }
            match slow.read_to_end(&mut answer) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::yield_now(),
                _ => break,
            }
            assert!(begun.elapsed() < PATIENCE, "no answer");
        }
        assert_eq!(Answer::parse(&String::from_utf8(answer).unwrap()).status, status, "{piece:?}");
    }
}

#[test]
fn half_a_request_adds_nothing() {
    let running = Running::start();
    let mut stream = running.unix();
    stream
        .write_all((head(PATH, "x", "Content-Type: text/plain\r\nContent-Length: 100\r\n") + "some").as_bytes())
        .unwrap();
    wait_until("it has begun", || running.daemon.inbox.state.lock().unwrap().open == 1);
    drop(stream);
    wait_until("it is given up", || running.daemon.inbox.state.lock().unwrap().open == 0);
    assert!(running.daemon.inbox.state.lock().unwrap().taken.is_empty());
}

#[test]
fn the_client_brings_documents_and_says_what_became_of_them() {
    let running = Running::start();
    let mut documents =
        Documents { corpus: "a/b c".to_owned(), form: PushForm::Text, key: "key 1".to_owned(), body: b"text".to_vec() };
    let reply = push(&running.socket, &documents).unwrap();
    assert_eq!((reply.status, reply.retry_after, &reply.body["accepted"]), (200, None, &json!(4)));
    let error = CommandError { code: "busy", message: "no".to_owned(), status: 503 };
    running.daemon.inbox.state.lock().unwrap().refuses = Some(error);
    documents.body = vec![b'x'; 8 << 20];
    let reply = push(&running.socket, &documents).unwrap();
    assert_eq!((reply.status, reply.retry_after), (503, Some(Duration::from_secs(1))));
    assert_eq!(reply.body["error"]["code"], "busy");
    let taken = &running.daemon.inbox.state.lock().unwrap().taken;
    assert_eq!(*taken, [(target("a/b c", PushForm::Text, Some("key 1")), b"text".to_vec())]);
}

#[test]
fn tcp_needs_the_token() {
    let running = Running::with_token(Limits::default(), Some(&format!("  {TOKEN}\n")));
    let host = running.address().to_string();
    let check = |path: &str, fields: &str, status: u16, code: &str| {
        let fields = format!("{fields}Content-Type: text/plain\r\nContent-Length: 0\r\n");
        let answer = exchange(running.tcp(), &head(path, &host, &fields));
        assert_eq!((answer.status, answer.code().as_str()), (status, code), "{path} {fields}");
        assert_eq!(answer.header("www-authenticate"), (status == 401).then_some("Bearer"));
    };
    for path in [PATH, "/v1/pause"] {
        for scheme in ["Bearer", "bearer", "BEARER"] {
            check(path, &format!("Authorization: {scheme} {TOKEN}\r\n"), 200, "");
        }
        let other = format!("{}x", &TOKEN[1..]);
        for wrong in ["", TOKEN, "Bearer", "Bearer ", &format!("Basic {TOKEN}"), &format!("Bearer {other}")] {
            check(path, &format!("Authorization: {wrong}\r\n"), 401, "token_needed");
        }
        check(path, "", 401, "token_needed");
        check(path, &format!("Authorization: Bearer {TOKEN}\r\nAuthorization: Bearer x\r\n"), 401, "token_needed");
        check(
            path,
            &format!("Origin: http://evil.example\r\nAuthorization: Bearer {TOKEN}\r\n"),
            403,
            "foreign_origin",
        );
    }
    assert_eq!(
        exchange(running.unix(), &sized("Content-Type: text/plain\r\n", "x")).status,
        200,
        "the socket needs none"
    );
    let without = Running::start();
    let fields = format!("Authorization: Bearer {TOKEN}\r\nContent-Type: text/plain\r\nContent-Length: 0\r\n");
    let answer = exchange(without.tcp(), &head(PATH, &without.address().to_string(), &fields));
    assert_eq!((answer.status, answer.code().as_str()), (403, "control_needs_socket"));
}

#[test]
fn a_token_is_a_secret_of_some_length() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("token");
    assert!(matches!(Token::read(&path).unwrap_err(), OpsError::TokenFile { .. }));
    for bad in ["", "short", "fifteen-letters", "two words of a token", "umläute-sind-keine-token", &"x".repeat(1025)]
    {
        fs::write(&path, bad).unwrap();
        let error = Token::read(&path).unwrap_err();
        assert!(matches!(error, OpsError::Token { .. }), "{bad}: {error}");
        assert!(error.to_string().contains("token_file"), "{error}");
    }
    fs::write(&path, TOKEN).unwrap();
    assert_eq!(format!("{:?}", Token::read(&path).unwrap()), "Token", "never printed");
}
