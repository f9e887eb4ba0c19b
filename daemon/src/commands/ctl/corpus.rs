//! `mergedistill ctl corpus`: what a running daemon reads.

use super::{absolute, call};
use crate::cli::CorpusAction;
use crate::commands::{print_json, print_line};
use crate::failure::{ExitCode, Failure};
use ops::client::encoded;
use serde_json::{Value, json};
use std::path::Path;

/// Lists or changes what is read.
pub fn corpus(action: &CorpusAction, socket: &Path, as_json: bool) -> Result<(), Failure> {
    let of = |name: &str, verb: &str| format!("/v1/corpora/{}{verb}", encoded(name));
    let (method, path, body) = match action {
        CorpusAction::List => ("GET", "/v1/corpora".to_owned(), None),
        CorpusAction::Pause { name } => ("POST", of(name, "/pause"), None),
        CorpusAction::Resume { name } => ("POST", of(name, "/resume"), None),
        CorpusAction::Share { language, value, .. } => {
            let path = format!("/v1/languages/{}/share", encoded(language));
            match value {
                Some(share) => ("PUT", path, Some(json!({ "share": share }))),
                None => ("DELETE", path, None),
            }
        }
        CorpusAction::Add { file } => ("POST", "/v1/corpora".to_owned(), Some(section(file, "corpus")?)),
        CorpusAction::Remove { name } => ("DELETE", of(name, ""), None),
    };
    let answer = call(socket, method, &path, body)?;
    match action {
        _ if as_json => print_json(&answer),
        CorpusAction::List => list(&answer),
        _ => print_line(&format!("done: from entry {} of the log on", answer["from_sequence"])),
    }
}

/// The one table of this kind in a file, `[[corpus]]` or `[[teacher]]`, as the daemon takes it.
pub(super) fn section(file: &Path, kind: &str) -> Result<Value, Failure> {
    let text = std::fs::read_to_string(file).map_err(|error| Failure::io("read", file, &error))?;
    let wrong = |problem: String| Failure::new(ExitCode::Configuration, format!("{}: {problem}", file.display()));
    let mut table: toml::Table = text.parse().map_err(|error: toml::de::Error| wrong(error.to_string()))?;
    let sections = match table.remove(kind) {
        Some(toml::Value::Array(sections)) => sections,
        _ => Vec::new(),
    };
    if let Some(key) = table.keys().next() {
        return Err(wrong(format!("there is `{key}` too; one [[{kind}]] table may be in it, and nothing else")));
    }
    let [section] = sections.as_slice() else {
        return Err(wrong(format!("it has {} [[{kind}]] tables; one is needed", sections.len())));
    };
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Ok(json!({ kind: section, "folder": absolute(folder)? }))
}

fn list(answer: &Value) -> Result<(), Failure> {
    let rows = |key: &str| answer[key].as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or("?").to_owned();
    for corpus in rows("corpora") {
        print_line(&format!(
            "{}  {}  {}  share {:.3}  {} characters  since the start: {} characters, {} documents, {} quarantined",
            text(&corpus["name"]),
            text(&corpus["language"]),
            text(&corpus["state"]),
            corpus["share"].as_f64().unwrap_or(0.0),
            corpus["characters_available"],
            corpus["characters_consumed"],
            corpus["documents"],
            corpus["quarantined"]
        ))?;
    }
    for language in rows("languages") {
        let set = if language["overridden"] == json!(true) { ", set by hand" } else { "" };
        let share = language["share"].as_f64().unwrap_or(0.0);
        print_line(&format!("language {}: share {share:.3}{set}", text(&language["language"])))?;
    }
    Ok(())
}
