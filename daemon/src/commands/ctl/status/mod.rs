//! `mergedistill ctl status`: what the daemon does, laid out as `systemctl status` lays out a unit.

mod parts;
#[cfg(test)]
mod sample;

use super::answered;
use super::text::{bytes, day_and_time, fitted, span};
use crate::commands::{print_json, print_line};
use crate::failure::{ExitCode, Failure};
use console::{Style, Term};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use ops::ClientError;
use serde_json::{Value, json};
use std::path::Path;

pub(super) use parts::{change_line, warning_line};
#[cfg(test)]
pub(super) use sample::sample;

/// Columns of the keys.
const KEY_COLUMNS: usize = 11;

/// Prints the status of the daemon that listens on `socket`. Exit code 3: it does not run; 4: that cannot be told.
pub fn status(socket: &Path, as_json: bool) -> Result<(), Failure> {
    let status = match ops::client::call(socket, "GET", "/v1/status", None) {
        Ok((200..300, status)) => status,
        Ok((code, answer)) => {
            let failure = answered(code, answer).err();
            let message = failure.map_or_else(|| format!("HTTP status {code}"), |failure| failure.message);
            return not_told(socket, "unknown", Failure::new(ExitCode::UnknownStatus, message), as_json);
        }
        Err(error @ (ClientError::NoSocket { .. } | ClientError::NobodyListens { .. })) => {
            let failure = Failure { code: ExitCode::NotRunning, ..error.into() };
            return not_told(socket, "not running", failure, as_json);
        }
        Err(error) => {
            let failure = Failure { code: ExitCode::UnknownStatus, ..error.into() };
            return not_told(socket, "unknown", failure, as_json);
        }
    };
    if as_json {
        return print_json(&status);
    }
    let columns = Term::stdout().size_checked().map(|(_, columns)| usize::from(columns));
    let lines = lines(&status, socket, Timestamp::now().as_second() as f64, &TimeZone::system());
    lines.iter().try_for_each(|line| print_line(&fitted(line, columns)))
}

fn not_told(socket: &Path, state: &str, failure: Failure, as_json: bool) -> Result<(), Failure> {
    if as_json {
        // The first line says what is the matter, the others what to do about it.
        let reason = failure.message.lines().next();
        print_json(&json!({"state": state.replace(' ', "_"), "socket": socket, "reason": reason}))?;
    } else {
        print_line(&format!("{} mergedistill - {state}", Style::new().bold().apply_to('○')))?;
        print_line(&format!("{:>KEY_COLUMNS$}: {}", "Socket", socket.display()))?;
    }
    Err(failure)
}

/// All lines, for people. `now`: seconds since 1970.
fn lines(status: &Value, socket: &Path, now: f64, zone: &TimeZone) -> Vec<String> {
    let number = |value: &Value| value.as_f64().unwrap_or(0.0);
    let state = status["state"].as_str().unwrap_or("?");
    let uptime = number(&status["uptime_seconds"]);
    let (dot, style) = parts::sign(status);
    let version = status["version"].as_str().unwrap_or("?");
    let mut lines = vec![
        format!("{} mergedistill {version} - merges language models into one student", style.apply_to(dot)),
        key(
            "State",
            &format!("{} since {}; {} ago", style.apply_to(state), day_and_time(now - uptime, zone), span(uptime)),
        ),
    ];
    if let Some(failure) = status["failure"].as_str() {
        lines.push(key("Failure", &super::text::bad().apply_to(failure).to_string()));
    }
    lines.push(key("Main PID", &status["pid"].to_string()));
    lines.extend(status["memory_bytes"].as_f64().map(|memory| key("Memory", &bytes(memory))));
    lines.push(key("Socket", &socket.display().to_string()));
    lines.extend(parts::train(status).iter().map(|line| key("Train", line)));
    lines.push(key("Rates", &parts::rates(status)));
    lines.push(key("Log", &parts::log(status)));
    lines.extend(parts::arrival(status).iter().map(|line| key("Arrival", line)));
    lines.extend(parts::release(status).iter().map(|line| key("Release", line)));
    for (name, tree) in [
        ("Stages", parts::stages(status)),
        ("Teachers", parts::teachers(status)),
        ("Workers", parts::workers(status)),
        ("Corpora", parts::corpora(status)),
        ("Inboxes", parts::inboxes(status)),
        ("Scores", parts::scores(status)),
    ] {
        lines.extend(below(name, &tree));
    }
    let events = parts::events(status, zone);
    if !events.is_empty() {
        lines.push(String::new());
        lines.extend(events);
    }
    lines
}

fn key(name: &str, value: &str) -> String {
    format!("{name:>KEY_COLUMNS$}: {value}")
}

/// A key whose value is a tree.
fn below(name: &str, leaves: &[String]) -> Vec<String> {
    let indented = |(index, leaf): (usize, &String)| {
        let branch = if index + 1 == leaves.len() { "└─" } else { "├─" };
        match index {
            0 => key(name, &format!("{branch}{leaf}")),
            _ => format!("{:KEY_COLUMNS$}  {branch}{leaf}", ""),
        }
    };
    leaves.iter().enumerate().map(indented).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
    use super::*;
    use std::io::{BufRead as _, BufReader, Write as _};
    use std::os::unix::net::UnixListener;

    fn shown(status: &Value) -> String {
        let lines = lines(status, Path::new("/run/m/control.sock"), 1_795_284_245.0, &TimeZone::UTC);
        console::strip_ansi_codes(&lines.join("\n")).into_owned()
    }

    #[test]
    fn what_is_shown() {
        let shown = shown(&sample());
        let expected = "\
● mergedistill 1.2.3 - merges language models into one student
      State: paused since Sat 2026-11-21 17:01:59 UTC; 1h 2min ago
   Main PID: 4711
     Memory: 523.4 MB
     Socket: /run/m/control.sock
      Train: step 250 of 1,000 (25 %), loss 5.082, λ 0.75, learning rate 5.00e-4
      Rates: 16,561 tokens/s labelled, 0 tokens/s trained
        Log: 1,090 entries durable, 10 more appended; 3.2 MB in 2 segments; backlog 1.2 MB of 1.0 MB, full
    Arrival: to first gradient 1.2 s (p50), 3.5 s (p99), 12 records
    Release: may: running, step 3 of 50, student in /students/may
     Stages: ├─ingest   in 1,200, out 1,200, in flight 0, waits for training to catch up
             ├─teacher  in 1,200, out 1,100, in flight 100, paused, stuck
             ├─log      in 1,100, out 1,100, in flight 0, waiting for disk space
             └─trainer  in 64, out 64, in flight 0, waiting for labelled text of `de`
   Teachers: ├─en      labelling  en de
             └─日本語  paused     ja
    Workers: ├─gpu-1/17  en      16,561 tokens/s, 120 batches, 2 in hand
             └─gpu-2/4   日本語  0 tokens/s, 7 batches, 0 in hand, silent
    Corpora: └─wiki  en  reading  share 0.250 (set)  898 documents, 9,625 characters since the start, 39,625 there, 3 quarantined
     Scores: ├─step 200
             └─en  en  student loss 6.100, top-1 0.100; teacher 5.700, 0.200; RDT -50.0 %

Nov 21 18:01:40 from entry 900 of the log on: share of language en set to 0.25
Nov 21 18:03:20 warn: wiki.txt: no UTF-8";
        assert_eq!(shown, expected);
    }

    #[test]
    fn a_status_of_another_version_is_shown_as_far_as_it_goes() {
        assert!(shown(&json!({})).starts_with("● mergedistill ? - "));
        let odd = json!({"stages": [], "teachers": 3, "corpora": {"corpora": {}}, "train": "x", "log": null});
        assert!(shown(&odd).contains("Main PID"));
    }

    #[test]
    fn what_others_wrote_commands_no_terminal() {
        let status = json!({"warnings": [{"at_unix_seconds": 1.0, "level": "warn", "message": "\x1b[2J\nNov 21 info: all is well"}]});
        let shown = shown(&status);
        assert!(shown.ends_with("warn: \\u{1b}[2J\\u{a}Nov 21 info: all is well"), "{shown}");
    }

    #[test]
    fn a_daemon_that_cannot_say_is_asked_once() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("control.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let daemon = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            drop(listener);
            let head = BufReader::new(&stream).lines().map_while(Result::ok).take_while(|line| !line.is_empty());
            assert!(head.count() > 0);
            let body = r#"{"error": {"code": "no_answer", "message": "not for 10 s"}}"#;
            let length = body.len();
            let head = "HTTP/1.1 504 Gateway Timeout\r\nContent-Type: application/json";
            write!(stream, "{head}\r\nContent-Length: {length}\r\n\r\n{body}").unwrap();
        });
        let failure = status(&socket, false).unwrap_err();
        daemon.join().unwrap();
        assert_eq!((failure.code, &*failure.message), (ExitCode::UnknownStatus, "not for 10 s (no_answer)"));
    }

    #[test]
    fn lines_fit_a_narrow_terminal() {
        for line in lines(&sample(), Path::new("/run/m/control.sock"), 1_795_284_245.0, &TimeZone::UTC) {
            assert!(console::measure_text_width(&fitted(&line, Some(30))) <= 30);
        }
    }
}
