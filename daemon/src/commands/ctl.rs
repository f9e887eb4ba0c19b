//! `mergedistill ctl`: a client of the control socket.

use super::{print_json, print_line};
use crate::cli::{CorpusAction, CtlAction, CtlArgs, PushArgs, QuarantineAction, TeacherAction};
use crate::failure::{ExitCode, Failure};
use serde_json::{Value, json};
use std::path::Path;

/// Asks a running daemon and prints its answer.
pub fn ctl(args: &CtlArgs) -> Result<(), Failure> {
    let (method, path, body) = match ask(&args.action)? {
        Ask::Request(method, path, body) => (method, path, body),
        Ask::Push(documents) => return super::push::push(documents, &args.socket, args.json),
        Ask::Quarantine(action) => return super::quarantine::quarantine(action, &args.socket, args.json),
        Ask::Corpus(action) => return super::corpus::corpus(action, &args.socket, args.json),
        Ask::Teacher(action) => return super::teacher::teacher(action, &args.socket, args.json),
    };
    let answer = call(&args.socket, method, path, body)?;
    match (&args.action, args.json) {
        (CtlAction::Status, false) => print_status(&answer),
        (CtlAction::Release { .. }, false) => print_line(&release_line(&answer)),
        (_, false) => print_line(answer["path"].as_str().or(answer["state"].as_str()).unwrap_or("done")),
        (_, true) => print_json(&answer),
    }
}

/// The answer to one request.
pub(super) fn call(socket: &Path, method: &str, path: &str, body: Option<Value>) -> Result<Value, Failure> {
    let (status, answer) = ops::client::call(socket, method, path, body)?;
    if (200..300).contains(&status) {
        return Ok(answer);
    }
    let error = |field: &str| answer["error"][field].as_str().unwrap_or("unknown").to_owned();
    let code = match status {
        409 | 503.. => ExitCode::TemporaryFailure,
        500.. => ExitCode::IoError,
        _ => ExitCode::Usage,
    };
    Err(Failure::new(code, format!("{} ({})", error("message"), error("code"))))
}

/// What an action takes.
enum Ask<'a> {
    /// One request: method, path and body.
    Request(&'static str, &'static str, Option<Value>),
    /// Requests with documents.
    Push(&'a PushArgs),
    /// What the state folder says, or a request that names documents.
    Quarantine(&'a QuarantineAction),
    /// What is read.
    Corpus(&'a CorpusAction),
    /// Who labels.
    Teacher(&'a TeacherAction),
}

fn ask(action: &CtlAction) -> Result<Ask<'_>, Failure> {
    let stage = |stage: &Option<String>| stage.as_ref().map(|stage| json!({ "stage": stage }));
    let (method, path, body) = match action {
        CtlAction::Push(documents) => return Ok(Ask::Push(documents)),
        CtlAction::Quarantine(action) => return Ok(Ask::Quarantine(action)),
        CtlAction::Corpus(action) => return Ok(Ask::Corpus(action)),
        CtlAction::Teacher(action) => return Ok(Ask::Teacher(action)),
        CtlAction::Status => ("GET", "/v1/status", None),
        CtlAction::Pause { stage: name } => ("POST", "/v1/pause", stage(name)),
        CtlAction::Resume { stage: name } => ("POST", "/v1/resume", stage(name)),
        CtlAction::Checkpoint => ("POST", "/v1/checkpoint", None),
        CtlAction::Export { out } => ("POST", "/v1/export", Some(json!({ "out": absolute(out)? }))),
        CtlAction::Release { cancel: true, .. } => ("POST", "/v1/release/cancel", None),
        CtlAction::Release { steps, out, .. } => {
            let out = out.as_deref().map(absolute).transpose()?;
            ("POST", "/v1/release", Some(json!({ "steps": steps, "out": out })))
        }
        CtlAction::Shutdown => ("POST", "/v1/shutdown", None),
    };
    Ok(Ask::Request(method, path, body))
}

/// A path for a request: the daemon's working directory is not the client's.
pub(super) fn absolute(path: &Path) -> Result<String, Failure> {
    let path = std::path::absolute(path).map_err(|error| Failure::io("find", path, &error))?;
    let unsayable = |path: std::ffi::OsString| {
        let message =
            format!("{} is not UTF-8, so a request cannot name it; use another path", Path::new(&path).display());
        Failure::new(ExitCode::Usage, message)
    };
    path.into_os_string().into_string().map_err(unsayable)
}

fn print_status(status: &Value) -> Result<(), Failure> {
    let number = |value: &Value| value.as_f64().unwrap_or(0.0);
    print_line(&format!(
        "{} (process {}, {:.0} s)",
        status["state"].as_str().unwrap_or("?"),
        status["pid"],
        number(&status["uptime_seconds"])
    ))?;
    for stage in ["ingest", "teacher", "log", "trainer"] {
        let of = &status["stages"][stage];
        let paused = if of["paused"] == json!(true) { ", paused" } else { "" };
        let waiting = of["waiting"].as_str().map_or_else(String::new, |what| format!(", waiting for {what}"));
        print_line(&format!(
            "{stage:>8}  in {}, out {}, in flight {}{paused}{waiting}",
            of["items_in"], of["items_out"], of["in_flight"]
        ))?;
    }
    print_line(&format!(
        "   rates  {:.0} tokens/s labelled, {:.0} tokens/s trained",
        number(&status["rates"]["label_tokens_per_second"]),
        number(&status["rates"]["train_tokens_per_second"])
    ))?;
    let teachers = status["teachers"].as_object().into_iter().flatten();
    let paused = teachers.filter(|(_, teacher)| teacher["paused"] == json!(true)).map(|(name, _)| name.as_str());
    let paused: Vec<&str> = paused.collect();
    if !paused.is_empty() {
        print_line(&format!("  paused  teachers {}", paused.join(", ")))?;
    }
    let delays = &status["arrival_to_gradient"];
    if let (Some(p50), Some(p99)) = (delays["p50_seconds"].as_f64(), delays["p99_seconds"].as_f64()) {
        let records = &delays["records"];
        print_line(&format!(" arrival  to first gradient: {p50:.1} s (p50), {p99:.1} s (p99), {records} records"))?;
    }
    let train = &status["train"];
    let of = train["steps"].as_u64().map_or_else(String::new, |steps| format!(" of {steps}"));
    print_line(&format!("   train  step {}{of}, loss {}", train["step"], train["loss"]))?;
    match &status["release"] {
        Value::Null => Ok(()),
        release => print_line(&format!(" release  {}", release_line(release))),
    }
}

/// How a release is, in a line.
fn release_line(release: &Value) -> String {
    let text = |key: &str| release[key].as_str().unwrap_or("?");
    let (name, state, out) = (text("name"), text("state"), text("out"));
    let error = release["error"].as_str().map_or_else(String::new, |error| format!(": {error}"));
    format!("{name}: {state}, step {} of {}, student in {out}{error}", release["step"], release["steps"])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
    use super::*;
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt as _;

    #[test]
    fn a_path_in_a_request_is_absolute_and_text() {
        assert_eq!(absolute(Path::new("/a/../b")).unwrap(), "/a/../b");
        assert!(absolute(Path::new("out")).unwrap().ends_with("/out"));
        let refusal = absolute(Path::new(OsStr::from_bytes(b"/a\xff/out"))).unwrap_err();
        assert!(refusal.message.contains("is not UTF-8, so a request cannot name it"), "{}", refusal.message);
    }
}
