//! `mergedistill ctl release`: a cool-down beside the training that goes on.

use super::{absolute, call};
use crate::commands::{print_json, print_line};
use crate::failure::Failure;
use serde_json::{Value, json};
use std::path::Path;

/// Begins a release of so many steps; `None`: ends the one that is running.
pub fn release(steps: Option<u64>, out: Option<&Path>, socket: &Path, as_json: bool) -> Result<(), Failure> {
    let answer = match steps {
        None => call(socket, "POST", "/v1/release/cancel", None)?,
        Some(steps) => {
            let out = out.map(absolute).transpose()?;
            call(socket, "POST", "/v1/release", Some(json!({ "steps": steps, "out": out })))?
        }
    };
    if as_json { print_json(&answer) } else { print_line(&release_line(&answer)) }
}

/// How a release is, in a line.
pub(super) fn release_line(release: &Value) -> String {
    let text = |key: &str| release[key].as_str().unwrap_or("?");
    let (name, state, out) = (text("name"), text("state"), text("out"));
    let error = release["error"].as_str().map_or_else(String::new, |error| format!(": {error}"));
    format!("{name}: {state}, step {} of {}, student in {out}{error}", release["step"], release["steps"])
}
