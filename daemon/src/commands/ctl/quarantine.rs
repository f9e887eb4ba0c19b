//! `mergedistill ctl quarantine`: documents that could not be used.

use super::call;
use super::socket::{SERVICE, SERVICE_STATE};
use crate::cli::QuarantineAction;
use crate::commands::{print_json, print_line};
use crate::failure::{ExitCode, Failure};
use crate::visible::visible;
use ingest::quarantine::{Note, notes};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

/// Characters of a reason's detail, and of a document's identifier, in a list.
const SHOWN_CHARACTERS: usize = 60;

/// Lists and shows what is in the state folder, or asks a running daemon to try documents again.
pub fn quarantine(action: &QuarantineAction, socket: &Path, as_json: bool) -> Result<(), Failure> {
    match action {
        QuarantineAction::List { corpus, state_dir } => {
            let mut notes = notes(&folder(state_dir.as_deref(), socket)?)?;
            notes.retain(|note| corpus.as_deref().is_none_or(|corpus| note.is_of(corpus)));
            if as_json { print_json(&json!({ "documents": notes })) } else { list(&notes) }
        }
        QuarantineAction::Show { id, state_dir } => {
            let folder = folder(state_dir.as_deref(), socket)?;
            let note = notes(&folder)?.into_iter().find(|note| note.id == *id);
            let missing = || Failure::new(ExitCode::NoInput, format!("no note {id} in {}", folder.display()));
            let note = note.ok_or_else(missing)?;
            if as_json { print_json(&note) } else { show(&note) }
        }
        QuarantineAction::Retry { ids, all, corpus } => {
            let body = if *all { json!({"all": true, "corpus": corpus}) } else { json!({ "ids": ids }) };
            retried(&call(socket, "POST", "/v1/quarantine/retry", Some(body))?, as_json)
        }
    }
}

fn folder(state_dir: Option<&Path>, socket: &Path) -> Result<PathBuf, Failure> {
    state_folder(state_dir, socket).map(|folder| folder.join("quarantine"))
}

/// The state folder that was named, or else that of the daemon behind the socket.
pub(super) fn state_folder(state_dir: Option<&Path>, socket: &Path) -> Result<PathBuf, Failure> {
    let of_socket = if socket == Path::new(SERVICE) { Some(Path::new(SERVICE_STATE)) } else { socket.parent() };
    let state_dir = state_dir.or(of_socket).unwrap_or(Path::new(""));
    let here = if state_dir.as_os_str().is_empty() { Path::new(".") } else { state_dir };
    match here.join("run.json").is_file() {
        true => Ok(here.to_owned()),
        false => Err(Failure::new(
            ExitCode::NoInput,
            format!("{} is no state folder: there is no run.json; give it with --state-dir", here.display()),
        )),
    }
}

fn list(notes: &[Note]) -> Result<(), Failure> {
    for note in notes {
        let Note { id, corpus, reason, bytes, .. } = note;
        let (document, detail) = (shortened(&note.document), shortened(&note.detail));
        print_line(&format!("{id}  {corpus}  {reason}  {document}  {bytes} bytes  {detail}"))?;
    }
    print_line(&format!("{} documents", notes.len()))
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(SHOWN_CHARACTERS) {
        Some((end, _)) => format!("{}…", visible(&text[..end])),
        None => visible(text).into_owned(),
    }
}

fn show(note: &Note) -> Result<(), Failure> {
    let age = UNIX_EPOCH + Duration::from_secs(note.quarantined_at);
    let hours = age.elapsed().map_or(0.0, |age| age.as_secs_f64() / 3600.0);
    let mut lines = vec![
        format!("     note  {}, {hours:.1} hours old", note.id),
        format!("   corpus  {}", note.corpus),
        format!(" document  {}, at {}, {} bytes", visible(&note.document), note.offset, note.bytes),
        format!("   reason  {}: {}", note.reason, visible(&note.detail)),
    ];
    lines.extend(note.span.map(|(first, end)| format!("     part  bytes {first} to {end} of the document")));
    lines.extend(note.path.as_ref().map(|path| format!("     file  {}", path.display())));
    lines.extend(note.language.as_ref().map(|language| format!(" language  {language}")));
    let (name, text) = note.text.as_ref().map_or(("  excerpt", &note.excerpt), |text| ("     text", text));
    lines.push(format!("{name}  {text}"));
    lines.iter().try_for_each(|line| print_line(line))
}

/// What became of documents that were tried again. Fails if none could be.
fn retried(answer: &Value, as_json: bool) -> Result<(), Failure> {
    let count = |key: &str| answer[key].as_u64().unwrap_or(0);
    let refused: Vec<String> = answer["refused"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|refused| [&refused["id"], &refused["problem"]].map(|field| field.as_str().unwrap_or("?")).join(": "))
        .collect();
    let (taken, known) = (count("retried"), count("duplicates"));
    if as_json {
        print_json(answer)?;
    } else {
        let known = if known > 0 { format!(", {known} were taken before") } else { String::new() };
        print_line(&format!("{taken} documents are tried again{known}, {} stay in the quarantine", refused.len()))?;
    }
    if taken + known == 0 && !refused.is_empty() {
        return Err(Failure::new(ExitCode::DataError, refused.join("\n")));
    }
    refused.iter().for_each(|refused| tracing::warn!("{refused}"));
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
    use super::*;

    #[test]
    fn what_is_shown_of_a_document_is_short_and_commands_no_terminal() {
        assert_eq!(shortened("a\x1b[2J\nb"), "a\\u{1b}[2J\\u{a}b");
        assert_eq!(shortened(&"ä".repeat(SHOWN_CHARACTERS)), "ä".repeat(SHOWN_CHARACTERS));
        assert_eq!(shortened(&"ä".repeat(SHOWN_CHARACTERS + 1)), "ä".repeat(SHOWN_CHARACTERS) + "…");
    }

    #[test]
    fn what_is_no_state_folder_has_no_quarantine() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("ops.sock");
        let refusal = folder(None, &socket).unwrap_err();
        assert!(refusal.message.contains("there is no run.json; give it with --state-dir"), "{}", refusal.message);
        std::fs::write(dir.path().join("run.json"), "{}").unwrap();
        let expected = dir.path().join("quarantine");
        assert_eq!(folder(None, &socket).unwrap(), expected);
        assert_eq!(folder(Some(dir.path()), Path::new("elsewhere/ops.sock")).unwrap(), expected);
    }
}
