//! `mergedistill ctl push`: a file's documents to a corpus of a running daemon.

use crate::cli::PushArgs;
use crate::commands::{print_json, print_line};
use crate::failure::{ExitCode, Failure};
use ops::PushForm;
use ops::client::{Documents, PushReply};
use serde_json::{Value, json};
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::Path;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A request ends with the document that reaches this: half of what the daemon takes, so that no other document passes it.
const REQUEST_BYTES: usize = 8 << 20;
/// When to try again if the daemon does not say.
const RETRY: Duration = Duration::from_secs(1);
/// Rejected documents that are named on standard error.
const NAMED: u64 = 20;

/// What became of the file's documents so far.
#[derive(Default)]
struct Sum {
    accepted: u64,
    rejected: u64,
    requests: u64,
    duplicates: u64,
    /// Lines in the requests before.
    lines: u64,
}

/// Sends the documents of a file, in as many requests as it takes. While the daemon is busy or its inbox full, waits.
pub fn push(args: &PushArgs, socket: &Path, as_json: bool) -> Result<(), Failure> {
    let path = &args.file;
    let key = args.key.clone().unwrap_or_else(own_key);
    let mut input: Box<dyn BufRead> = match path.as_os_str() == "-" {
        true => Box::new(io::stdin().lock()),
        false => Box::new(BufReader::new(File::open(path).map_err(|error| Failure::io("open", path, &error))?)),
    };
    let form = form(args, input.as_mut()).map_err(|error| Failure::io("read", path, &error))?;
    let mut sum = Sum::default();
    loop {
        let (body, lines) =
            next_request(&mut input, form, REQUEST_BYTES).map_err(|error| Failure::io("read", path, &error))?;
        if lines == 0 {
            break;
        }
        let key = if sum.requests == 0 { key.clone() } else { format!("{key}-{}", sum.requests) };
        let documents = Documents { corpus: args.corpus.clone(), form, key, body };
        let answer = send(socket, &documents)?;
        sum.add(&answer, lines);
    }
    let Sum { accepted, rejected, requests, duplicates, .. } = sum;
    if as_json {
        let answer =
            json!({"accepted": accepted, "rejected": rejected, "requests": requests, "duplicates": duplicates});
        print_json(&answer)?;
    } else {
        let known =
            if duplicates > 0 { format!(", {duplicates} of {requests} requests known before") } else { String::new() };
        print_line(&format!("{accepted} documents taken, {rejected} rejected{known}"))?;
    }
    if accepted == 0 && rejected > 0 {
        let message =
            format!("{} has no document that can be used; a compressed file is unpacked first", path.display());
        return Err(Failure::new(ExitCode::DataError, message));
    }
    Ok(())
}

impl Sum {
    fn add(&mut self, answer: &Value, lines: u64) {
        for document in answer["rejected"].as_array().into_iter().flatten() {
            if self.rejected < NAMED {
                let line = self.lines + document["line"].as_u64().unwrap_or(0);
                let text = |key: &str| document[key].as_str().unwrap_or_default().to_owned();
                tracing::warn!("line {line}: {} ({})", text("detail"), text("reason"));
            }
        }
        self.accepted += answer["accepted"].as_u64().unwrap_or(0);
        self.rejected += answer["rejected_total"].as_u64().unwrap_or(0);
        self.duplicates += u64::from(answer["duplicate"] == json!(true));
        self.requests += 1;
        self.lines += lines;
    }
}

/// Sends a request until it is taken. Sending it again is safe: it has a key.
fn send(socket: &Path, documents: &Documents) -> Result<Value, Failure> {
    let mut told = false;
    loop {
        let PushReply { status, retry_after, body } = ops::client::push(socket, documents)?;
        let text = |key: &str| body["error"][key].as_str().unwrap_or("unknown").to_owned();
        match (status, text("code").as_str()) {
            (200, _) => return Ok(body),
            (503, "busy" | "inbox_full") | (507, _) => {
                if !std::mem::replace(&mut told, true) {
                    tracing::info!("waiting: {}", text("message"));
                }
                thread::sleep(retry_after.unwrap_or(RETRY));
            }
            _ => {
                let code = match status {
                    403 => ExitCode::NotPermitted,
                    404 => ExitCode::NoInput,
                    408 | 503.. => ExitCode::TemporaryFailure,
                    500.. => ExitCode::IoError,
                    _ => ExitCode::DataError,
                };
                return Err(Failure::new(code, format!("{} ({})", text("message"), text("code"))));
            }
        }
    }
}

/// The next documents, and how many lines they are; 0: the input is at its end.
fn next_request(input: &mut dyn BufRead, form: PushForm, least_bytes: usize) -> io::Result<(Vec<u8>, u64)> {
    let (mut body, mut lines) = (Vec::new(), 0);
    loop {
        let begin = body.len();
        if input.read_until(b'\n', &mut body)? == 0 {
            return Ok((body, lines));
        }
        lines += 1;
        let ends = match form {
            PushForm::JsonLines => true,
            PushForm::Text => body[begin..].iter().all(u8::is_ascii_whitespace),
        };
        if ends && body.len() >= least_bytes {
            return Ok((body, lines));
        }
    }
}

fn form(args: &PushArgs, input: &mut dyn BufRead) -> io::Result<PushForm> {
    let named = args.file.extension().is_some_and(|extension| extension == "jsonl" || extension == "ndjson");
    Ok(match args.format.as_deref() {
        Some("jsonl") => PushForm::JsonLines,
        Some(_) => PushForm::Text,
        None if named || begins_with_an_object(input.fill_buf()?) => PushForm::JsonLines,
        None => PushForm::Text,
    })
}

/// Whether the first line is one of JSON: labelled as text, braces and quotes would go into the student.
fn begins_with_an_object(bytes: &[u8]) -> bool {
    let mut visible = bytes.iter().filter(|byte| !byte.is_ascii_whitespace());
    visible.next() == Some(&b'{') && matches!(visible.next(), Some(b'"' | b'}'))
}

/// A key that no other call has.
fn own_key() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("ctl-{}-{}", std::process::id(), now.as_nanos())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(form: PushForm, text: &str, expected: &[(&str, u64)]) {
        let mut input = text.as_bytes();
        let mut requests = Vec::new();
        loop {
            let (body, lines) = next_request(&mut input, form, 4).expect("memory");
            if lines == 0 {
                break;
            }
            requests.push((String::from_utf8(body).expect("text"), lines));
        }
        let expected: Vec<_> = expected.iter().map(|(body, lines)| ((*body).to_owned(), *lines)).collect();
        assert_eq!(requests, expected);
    }

    #[test]
    fn json_is_known_by_its_beginning() {
        for (text, expected) in
            [("{\"text\": 1}", true), ("\n { \"a", true), ("{}", true), ("{ text }", false), ("", false)]
        {
            assert_eq!(begins_with_an_object(text.as_bytes()), expected, "{text}");
        }
    }

    #[test]
    fn a_file_is_cut_between_documents() {
        check(PushForm::JsonLines, "1\n2\n3\n\n4\n5", &[("1\n2\n", 2), ("3\n\n4\n", 3), ("5", 1)]);
        check(PushForm::Text, "one\ntwo\n\nthree\n \n\n4", &[("one\ntwo\n\n", 3), ("three\n \n", 2), ("\n4", 2)]);
        check(PushForm::Text, "", &[]);
    }
}
