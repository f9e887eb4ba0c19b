//! Paths that change what is read.

use crate::harness::Running;
use ops::{Command, CorporaChange};
use serde_json::json;
use std::path::PathBuf;

#[test]
fn changes_reach_the_daemon() {
    let running = Running::start();
    let section = json!({"name": "more", "language": "en"});
    let ask = |method: &str, path: &str, body: &str| {
        let answer = running.over_unix(method, path, body);
        assert_eq!(answer.status, 200, "{method} {path}: {answer:?}");
    };
    ask("POST", "/v1/corpora", &json!({"corpus": section, "folder": "/configured"}).to_string());
    ask("POST", "/v1/corpora/wiki%3Ade/pause", "");
    ask("POST", "/v1/corpora/wiki/resume", "{}");
    ask("PUT", "/v1/languages/de/share", r#"{"share": 0.25}"#);
    ask("DELETE", "/v1/languages/de/share", "");
    ask("DELETE", "/v1/corpora/more", "");
    let change = Command::ChangeCorpora;
    let language = || "de".to_owned();
    assert_eq!(
        running.daemon.commands(),
        [
            change(CorporaChange::Add { section, folder: PathBuf::from("/configured") }),
            change(CorporaChange::Pause { corpus: "wiki:de".to_owned() }),
            change(CorporaChange::Resume { corpus: "wiki".to_owned() }),
            change(CorporaChange::Share { language: language(), share: Some(0.25) }),
            change(CorporaChange::Share { language: language(), share: None }),
            change(CorporaChange::Remove { corpus: "more".to_owned() }),
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
    check("POST", "/v1/corpora", r#"{"corpus": {}, "folder": "here"}"#, 400, "invalid_body");
    check("POST", "/v1/corpora", r#"{"corpus": []}"#, 400, "invalid_body");
    check("PUT", "/v1/languages/de/share", "", 400, "invalid_body");
    check("PUT", "/v1/languages/de/share", r#"{"share": "half"}"#, 400, "invalid_body");
    for share in ["0", "-0.1", "1.01", "1e300"] {
        check("PUT", "/v1/languages/de/share", &format!("{{\"share\": {share}}}"), 400, "invalid_share");
    }
    for retention in
        [r#"{"retain_hours": -1}"#, r#"{"retain_hours": 1000001}"#, r#"{"retain_bytes": 9223372036854775808}"#]
    {
        check("PUT", "/v1/retention", retention, 400, "invalid_retention");
    }
    check("DELETE", "/v1/corpora/more", r#"{"really": true}"#, 400, "invalid_body");
    check("PUT", "/v1/corpora", "", 405, "method_not_allowed");
    check("GET", "/v1/corpora/more", "", 405, "method_not_allowed");
    check("GET", "/v1/corpora/more/pause", "", 405, "method_not_allowed");
    check("POST", "/v1/languages/de/share", "", 405, "method_not_allowed");
    for path in
        ["/v1/corpora/", "/v1/corpora//pause", "/v1/corpora/a/b/pause", "/v1/corpora/a/stop", "/v1/languages/de"]
    {
        check("POST", path, "", 404, "not_found");
    }
    assert_eq!(running.daemon.commands(), []);
}

#[test]
fn anybody_may_ask_what_is_read_and_nobody_may_change_it_without_a_token() {
    let running = Running::start();
    assert_eq!(running.over_tcp("GET", "/v1/corpora", "").status, 200);
    for (method, path) in [("POST", "/v1/corpora"), ("DELETE", "/v1/corpora/a"), ("PUT", "/v1/languages/de/share")] {
        let answer = running.over_tcp(method, path, "");
        assert_eq!((answer.status, answer.code().as_str()), (403, "control_needs_socket"), "{method} {path}");
    }
}
