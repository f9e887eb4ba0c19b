//! `ctl operations`, `ctl segments`, `ctl configuration`: what the daemon was told, what its log is made of, what holds.

use super::{call, text};
use crate::commands::{print_json, print_line};
use crate::failure::{ExitCode, Failure};
use serde_json::Value;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// The operations, newest first; or one of them, as it is answered.
pub(super) fn operations(id: Option<&str>, socket: &Path, as_json: bool) -> Result<(), Failure> {
    if let Some(id) = id {
        let operation = call(socket, "GET", &format!("/v1/operations/{}", ops::client::encoded(id)), None)?;
        return if as_json { print_json(&operation) } else { print_line(&operation_line(&operation)) };
    }
    let answer = call(socket, "GET", "/v1/operations", None)?;
    if as_json {
        return print_json(&answer);
    }
    let listed = answer["operations"].as_array().map_or(&[][..], Vec::as_slice);
    if listed.is_empty() {
        return print_line("nothing was asked of this process yet");
    }
    listed.iter().try_for_each(|operation| print_line(&operation_line(operation)))
}

/// An operation in a line: identifier, state, command, how long ago and how long it took, by whom, and what failed.
fn operation_line(operation: &Value) -> String {
    let of = |key: &str| operation[key].as_str().unwrap_or("?");
    let started = operation["started_unix_seconds"].as_f64().unwrap_or_default();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(started, |since| since.as_secs_f64());
    let took = operation["ended_unix_seconds"].as_f64().unwrap_or(now) - started;
    let error = operation["error"]["message"].as_str().map_or_else(String::new, |message| format!(": {message}"));
    let (id, state, command, by, ago) = (of("id"), of("state"), of("command"), of("by"), now - started);
    let ago = text::span(ago);
    format!("{id}  {state:<7}  {command}  {ago} ago, took {took:.1} s, by {by}{error}")
}

/// The segments of the log, oldest first.
pub(super) fn segments(socket: &Path, as_json: bool) -> Result<(), Failure> {
    let answer = call(socket, "GET", "/v1/log/segments", None)?;
    if as_json {
        return print_json(&answer);
    }
    print_line(&format!("{:>12} {:>10} {:>12}  {:<6}  file", "first", "entries", "bytes", "state"))?;
    answer["segments"].as_array().into_iter().flatten().try_for_each(|segment| {
        let number = |key: &str| segment[key].as_u64().unwrap_or_default();
        let state = if segment["sealed"] == true { "sealed" } else { "open" };
        let (first, entries, bytes) = (number("first_sequence"), number("entries"), number("bytes"));
        let file = segment["file"].as_str().unwrap_or("?");
        print_line(&format!("{first:>12} {entries:>10} {bytes:>12}  {state:<6}  {file}"))
    })
}

/// The configuration that holds, as a file of it would say.
pub(super) fn configuration(socket: &Path, as_json: bool) -> Result<(), Failure> {
    let answer = call(socket, "GET", "/v1/configuration", None)?;
    if as_json {
        return print_json(&answer);
    }
    let failed = |error: &dyn std::fmt::Display| {
        Failure::new(ExitCode::Software, format!("the daemon's answer is no configuration: {error}; try --json"))
    };
    let table: toml::Table = serde_json::from_value(answer).map_err(|error| failed(&error))?;
    print_line(toml::to_string(&table).map_err(|error| failed(&error))?.trim_end())
}
