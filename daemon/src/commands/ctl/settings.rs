//! `mergedistill ctl reload`, `log-level` and `retention`: settings that change while the daemon runs.

use super::{answered, call};
use crate::commands::{print_json, print_line};
use crate::failure::{ExitCode, Failure};
use serde_json::{Map, Value, json};
use std::path::Path;

/// Has the configuration file read again, and prints what came of it.
pub fn reload(socket: &Path, as_json: bool) -> Result<(), Failure> {
    let (status, answer) = ops::client::call(socket, "POST", "/v1/reload", None)?;
    let answer = answered(status, answer).map_err(|failure| match status {
        422 => Failure { code: ExitCode::Configuration, ..failure },
        _ => failure,
    })?;
    let list = |name: &str| answer[name].as_array().cloned().unwrap_or_default();
    let (changed, refused) = (list("changed"), list("refused"));
    if as_json {
        print_json(&answer)?;
    } else {
        changed.iter().try_for_each(|change| print_line(&change_line(change)))?;
        if changed.is_empty() && refused.is_empty() {
            print_line("nothing has changed")?;
        }
    }
    if refused.is_empty() {
        return Ok(());
    }
    let text = |of: &Value, field: &str| of[field].as_str().unwrap_or("?").to_owned();
    let lines = refused.iter().map(|refused| format!("  {}: {}", text(refused, "key"), text(refused, "reason")));
    let count = if refused.len() == 1 { "1 key was".to_owned() } else { format!("{} keys were", refused.len()) };
    let message = format!("{count} not changed:\n{}", lines.collect::<Vec<_>>().join("\n"));
    Err(Failure::new(ExitCode::TemporaryFailure, message))
}

/// Prints how much is logged, or changes it.
pub fn log_level(level: Option<&str>, socket: &Path, as_json: bool) -> Result<(), Failure> {
    let answer = match level {
        None => call(socket, "GET", "/v1/log-level", None)?,
        Some(level) => call(socket, "PUT", "/v1/log-level", Some(json!({ "level": level })))?,
    };
    if as_json { print_json(&answer) } else { print_line(answer["level"].as_str().unwrap_or("?")) }
}

/// Prints what is kept of the log, or changes it.
pub fn retention(bytes: Option<u64>, hours: Option<f64>, socket: &Path, as_json: bool) -> Result<(), Failure> {
    let wanted: Map<String, Value> = [
        bytes.map(|bytes| ("retain_bytes".to_owned(), json!(bytes))),
        hours.map(|hours| ("retain_hours".to_owned(), json!(hours))),
    ]
    .into_iter()
    .flatten()
    .collect();
    let answer = match wanted.is_empty() {
        true => call(socket, "GET", "/v1/retention", None)?,
        false => call(socket, "PUT", "/v1/retention", Some(Value::Object(wanted)))?,
    };
    if as_json {
        return print_json(&answer);
    }
    let limit = |key: &str, unit: &str| match &answer[key] {
        limit if limit.as_f64() == Some(0.0) => format!("{key} = 0 (no limit)"),
        limit => format!("{key} = {limit} {unit}"),
    };
    print_line(&format!("{}, {}", limit("retain_bytes", "bytes"), limit("retain_hours", "hours")))
}

fn change_line(change: &Value) -> String {
    let key = change["key"].as_str().unwrap_or("?");
    match (&change["from"], &change["to"]) {
        (Value::Null, Value::Object(_)) => format!("{key} added"),
        (Value::Object(_), Value::Null) => format!("{key} removed"),
        (from, to) => {
            let show = |value: &Value| if value.is_null() { "unset".to_owned() } else { value.to_string() };
            format!("{key} {} → {}", show(from), show(to))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_a_line() {
        for (from, to, expected) in [
            (json!(0.0005), json!(0.001), "k 0.0005 → 0.001"),
            (Value::Null, json!("a"), "k unset → \"a\""),
            (Value::Null, json!({"name": "c"}), "k added"),
            (json!({"name": "c"}), Value::Null, "k removed"),
        ] {
            assert_eq!(change_line(&json!({"key": "k", "from": from, "to": to})), expected);
        }
    }
}
