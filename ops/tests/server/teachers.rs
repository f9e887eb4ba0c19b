//! Paths that change who labels.

use crate::harness::Running;
use ops::{Command, TeachersChange};
use serde_json::json;
use std::path::PathBuf;

#[test]
fn changes_reach_the_daemon() {
    let running = Running::start();
    let section = json!({"name": "fi", "path": "teachers/fi", "languages": ["fi"]});
    let ask = |path: &str, body: &str| {
        let answer = running.over_unix("POST", path, body);
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
    };
    ask("/v1/teachers", &json!({"teacher": section, "folder": "/configured"}).to_string());
    ask("/v1/teachers/a%20b/pause", "");
    ask("/v1/teachers/fi/resume", "{}");
    let change = Command::ChangeTeachers;
    assert_eq!(
        running.daemon.commands(),
        [
            change(TeachersChange::Add { section, folder: PathBuf::from("/configured") }),
            change(TeachersChange::Pause { teacher: "a b".to_owned() }),
            change(TeachersChange::Resume { teacher: "fi".to_owned() }),
        ]
    );
}

#[test]
fn what_is_no_change_is_refused() {
    let running = Running::start();
    let check = |method: &str, path: &str, body: &str, status: u16, code: &str| {
        let answer = running.over_unix(method, path, body);
        assert_eq!((answer.status, answer.code().as_str()), (status, code), "{method} {path} {body}");
    };
    check("POST", "/v1/teachers", r#"{"teacher": {}, "folder": "here"}"#, 400, "invalid_body");
    check("POST", "/v1/teachers", r#"{"corpus": {}, "folder": "/here"}"#, 400, "invalid_body");
    check("POST", "/v1/teachers/fi/pause", r#"{"really": true}"#, 400, "invalid_body");
    check("DELETE", "/v1/teachers", "", 405, "method_not_allowed");
    check("GET", "/v1/teachers/fi/pause", "", 405, "method_not_allowed");
    for path in ["/v1/teachers/", "/v1/teachers/fi", "/v1/teachers//pause", "/v1/teachers/a/b/pause"] {
        check("POST", path, "", 404, "not_found");
    }
    assert_eq!(running.daemon.commands(), []);
}

#[test]
fn anybody_may_ask_who_labels_and_nobody_may_change_it_without_a_token() {
    let running = Running::start();
    assert_eq!(running.over_tcp("GET", "/v1/teachers", "").status, 200);
    for path in ["/v1/teachers", "/v1/teachers/fi/pause"] {
        let answer = running.over_tcp("POST", path, "");
        assert_eq!((answer.status, answer.code().as_str()), (403, "control_needs_socket"), "{path}");
    }
}
