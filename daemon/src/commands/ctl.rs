//! `mergedistill ctl`: a client of the control socket.

use super::{print_json, print_line};
use crate::cli::{CtlAction, CtlArgs};
use crate::failure::{ExitCode, Failure};
use serde_json::{Value, json};
use std::path::Path;

/// Sends one request to a running daemon and prints its answer.
pub fn ctl(args: &CtlArgs) -> Result<(), Failure> {
    let (method, path, body) = request(&args.action);
    let (status, answer) = ops::client::call(&args.socket, method, path, body)?;
    if !(200..300).contains(&status) {
        let error = |field: &str| answer["error"][field].as_str().unwrap_or("unknown").to_owned();
        let code = match status {
            409 | 503.. => ExitCode::TemporaryFailure,
            500.. => ExitCode::IoError,
            _ => ExitCode::Usage,
        };
        return Err(Failure::new(code, format!("{} ({})", error("message"), error("code"))));
    }
    match (&args.action, args.json) {
        (CtlAction::Status, false) => print_status(&answer),
        (_, false) => print_line(answer["path"].as_str().or(answer["state"].as_str()).unwrap_or("done")),
        (_, true) => print_json(&answer),
    }
}

fn request(action: &CtlAction) -> (&'static str, &'static str, Option<Value>) {
    let stage = |stage: &Option<String>| stage.as_ref().map(|stage| json!({ "stage": stage }));
    match action {
        CtlAction::Status => ("GET", "/v1/status", None),
        CtlAction::Pause { stage: name } => ("POST", "/v1/pause", stage(name)),
        CtlAction::Resume { stage: name } => ("POST", "/v1/resume", stage(name)),
        CtlAction::Checkpoint => ("POST", "/v1/checkpoint", None),
        CtlAction::Export { out } => ("POST", "/v1/export", Some(json!({ "out": absolute(out) }))),
        CtlAction::Shutdown => ("POST", "/v1/shutdown", None),
    }
}

/// The daemon's working directory is not the client's.
fn absolute(path: &Path) -> std::path::PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
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
    let train = &status["train"];
    print_line(&format!("   train  step {} of {}, loss {}", train["step"], train["steps"], train["loss"]))
}
