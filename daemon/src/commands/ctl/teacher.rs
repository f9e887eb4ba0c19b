//! `mergedistill ctl teacher`: who labels in a running daemon.

use super::call;
use super::corpus::section;
use crate::cli::TeacherAction;
use crate::commands::{print_json, print_line};
use crate::failure::Failure;
use ops::client::encoded;
use serde_json::{Value, json};
use std::path::Path;

/// Lists or changes who labels.
pub fn teacher(action: &TeacherAction, socket: &Path, as_json: bool) -> Result<(), Failure> {
    let of = |name: &str, verb: &str| format!("/v1/teachers/{}/{verb}", encoded(name));
    let (method, path, body) = match action {
        TeacherAction::List => ("GET", "/v1/teachers".to_owned(), None),
        TeacherAction::Pause { name } => ("POST", of(name, "pause"), None),
        TeacherAction::Resume { name } => ("POST", of(name, "resume"), None),
        TeacherAction::Add { file } => ("POST", "/v1/teachers".to_owned(), Some(section(file, "teacher")?)),
    };
    let answer = call(socket, method, &path, body)?;
    match action {
        _ if as_json => print_json(&answer),
        TeacherAction::List => list(&answer),
        _ => print_line(&format!("done: from entry {} of the log on", answer["from_sequence"])),
    }
}

fn list(answer: &Value) -> Result<(), Failure> {
    let mut teachers: Vec<(&String, &Value)> = answer.as_object().into_iter().flatten().collect();
    teachers.sort_by_key(|(_, teacher)| teacher["index"].as_u64());
    for (name, teacher) in teachers {
        let languages = teacher["languages"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let languages: Vec<&str> = languages.collect();
        let state = match (teacher["paused"] == json!(true), teacher["labels"] == json!(true)) {
            (true, _) => "paused",
            (false, false) => "lends its tokenizer",
            (false, true) => teacher["state"].as_str().unwrap_or("?"),
        };
        print_line(&format!("{name}  {}  {state}", languages.join(" ")))?;
    }
    Ok(())
}
