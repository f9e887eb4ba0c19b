//! `mergedistill ctl`: a client of the control socket.

mod corpus;
mod lists;
mod push;
mod quarantine;
mod release;
mod replay;
mod settings;
mod socket;
mod status;
mod teacher;
mod text;
mod watch;

use crate::cli::{CtlAction, CtlArgs};
use crate::commands::{print_json, print_line};
use crate::failure::{ExitCode, Failure};
use serde_json::{Value, json};
use std::path::Path;

/// Asks a running daemon and prints its answer.
pub fn ctl(args: &CtlArgs) -> Result<(), Failure> {
    let (socket, as_json) = (&socket::find(args.socket.as_deref()), args.json);
    match &args.action {
        CtlAction::Status => status::status(socket, as_json),
        CtlAction::Watch => watch::watch(socket, as_json),
        CtlAction::Push(documents) => push::push(documents, socket, as_json),
        CtlAction::Quarantine(action) => quarantine::quarantine(action, socket, as_json),
        CtlAction::Corpus(action) => corpus::corpus(action, socket, as_json),
        CtlAction::Teacher(action) => teacher::teacher(action, socket, as_json),
        CtlAction::Release { steps, out, .. } => release::release(*steps, out.as_deref(), socket, as_json),
        CtlAction::Replay(args) => replay::replay(args, socket, as_json),
        CtlAction::Pause { stage } => told(socket, "/v1/pause", of_stage(stage.as_deref()), as_json),
        CtlAction::Resume { stage } => told(socket, "/v1/resume", of_stage(stage.as_deref()), as_json),
        CtlAction::Drain => told(socket, "/v1/drain", None, as_json),
        CtlAction::Checkpoint => told(socket, "/v1/checkpoint", None, as_json),
        CtlAction::Export { out, languages } => {
            let mut body = json!({ "out": absolute(out)? });
            if !languages.is_empty() {
                body["languages"] = json!(languages);
            }
            told(socket, "/v1/export", Some(body), as_json)
        }
        CtlAction::Operations { id } => lists::operations(id.as_deref(), socket, as_json),
        CtlAction::Segments => lists::segments(socket, as_json),
        CtlAction::Configuration => lists::configuration(socket, as_json),
        CtlAction::Reload => settings::reload(socket, as_json),
        CtlAction::LogLevel { level } => settings::log_level(level.as_deref(), socket, as_json),
        CtlAction::Retention { bytes, hours } => settings::retention(*bytes, *hours, socket, as_json),
        CtlAction::Shutdown => told(socket, "/v1/shutdown", None, as_json),
    }
}

/// Has one command carried out, and prints what came of it: a path, or the state.
fn told(socket: &Path, path: &str, body: Option<Value>, as_json: bool) -> Result<(), Failure> {
    let answer = call(socket, "POST", path, body)?;
    match as_json {
        true => print_json(&answer),
        false => print_line(answer["path"].as_str().or(answer["state"].as_str()).unwrap_or("done")),
    }
}

fn of_stage(stage: Option<&str>) -> Option<Value> {
    stage.map(|stage| json!({ "stage": stage }))
}

/// The answer to one request.
fn call(socket: &Path, method: &str, path: &str, body: Option<Value>) -> Result<Value, Failure> {
    let (status, answer) = ops::client::call(socket, method, path, body)?;
    answered(status, answer)
}

/// An answer, or what is wrong.
fn answered(status: u16, answer: Value) -> Result<Value, Failure> {
    if (200..300).contains(&status) {
        return Ok(answer);
    }
    let error = |field: &str| answer["error"][field].as_str().unwrap_or("unknown").to_owned();
    let code = match status {
        403 => ExitCode::NotPermitted,
        409 | 503.. => ExitCode::TemporaryFailure,
        500.. => ExitCode::IoError,
        _ => ExitCode::Usage,
    };
    Err(Failure::new(code, format!("{} ({})", error("message"), error("code"))))
}

/// A path for a request: the daemon's working directory is not the client's.
fn absolute(path: &Path) -> Result<String, Failure> {
    let path = std::path::absolute(path).map_err(|error| Failure::io("find", path, &error))?;
    let unsayable = |path: std::ffi::OsString| {
        let message =
            format!("{} is not UTF-8, so a request cannot name it; use another path", Path::new(&path).display());
        Failure::new(ExitCode::Usage, message)
    };
    path.into_os_string().into_string().map_err(unsayable)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
    use super::*;
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt as _;

    #[test]
    fn a_refusal_has_an_exit_code() {
        for (status, code) in [
            (400, ExitCode::Usage),
            (403, ExitCode::NotPermitted),
            (409, ExitCode::TemporaryFailure),
            (500, ExitCode::IoError),
            (503, ExitCode::TemporaryFailure),
        ] {
            let failure = answered(status, json!({"error": {"code": "c", "message": "m"}})).unwrap_err();
            assert_eq!((failure.code, &*failure.message), (code, "m (c)"), "{status}");
        }
    }

    #[test]
    fn a_path_in_a_request_is_absolute_and_text() {
        assert_eq!(absolute(Path::new("/a/../b")).unwrap(), "/a/../b");
        assert!(absolute(Path::new("out")).unwrap().ends_with("/out"));
        let refusal = absolute(Path::new(OsStr::from_bytes(b"/a\xff/out"))).unwrap_err();
        assert!(refusal.message.contains("is not UTF-8, so a request cannot name it"), "{}", refusal.message);
    }
}
