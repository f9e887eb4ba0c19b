//! The other end of `/v1/events`, for the command line.

use crate::client::{ClientError, causes, request, send, within};
use http_body_util::BodyExt;
use hyper::StatusCode;
use serde_json::Value;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Duration;

/// An event is kilobytes; what is longer is none of this daemon's.
const EVENT_LIMIT_BYTES: usize = 4 * 1024 * 1024;
const PATH: &str = "/v1/events";
/// A daemon from which nothing came for so long is gone, or stopped: where nothing happens it sends a comment every 15 s (`Limits::heartbeat`).
const SILENCE: Duration = Duration::from_secs(60);

/// An event of the daemon.
#[derive(Clone, Debug, PartialEq)]
pub struct DaemonEvent {
    /// What happened: `step`, `evaluation`, …; `missed` tells how many events came too fast for this reader.
    pub name: String,
    /// More about it; a string if it is not JSON.
    pub data: Value,
}

/// Reads the events of the daemon that listens on `socket`, each when it happens, until `take` breaks or the daemon ends the
/// feed. Blocks; not to be called on a thread that drives an async runtime.
///
/// # Errors
/// If the feed cannot be opened, breaks, or falls silent.
pub fn follow(socket: &Path, mut take: impl FnMut(DaemonEvent) -> ControlFlow<()>) -> Result<(), ClientError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| ClientError::Connect { socket: socket.to_owned(), source })?;
    runtime.block_on(async {
        let failed = |reason: String| ClientError::Answer { path: PATH.to_owned(), reason };
        let mut response = within(Some(SILENCE), socket, send(socket, request("GET", PATH, None)?)).await?;
        if response.status() != StatusCode::OK {
            return Err(failed(format!("HTTP status {}", response.status())));
        }
        let mut parser = Parser::default();
        loop {
            let next = async {
                let no_answer = |error| ClientError::NoAnswer { socket: socket.to_owned(), reason: causes(&error) };
                response.body_mut().frame().await.transpose().map_err(no_answer)
            };
            let Some(frame) = within(Some(SILENCE), socket, next).await? else { return Ok(()) };
            let events = parser.feed(frame.data_ref().map_or(&[][..], |bytes| bytes)).map_err(failed)?;
            for event in events {
                if take(event).is_break() {
                    return Ok(());
                }
            }
        }
    })
}

/// Server-sent events, as the HTML standard has them: fields `event` and `data`, others are passed over.
#[derive(Debug, Default)]
struct Parser {
    line: Vec<u8>,
    name: String,
    data: Vec<String>,
    held_bytes: usize,
}

impl Parser {
    /// The events that end in `bytes`.
    fn feed(&mut self, bytes: &[u8]) -> Result<Vec<DaemonEvent>, String> {
        let mut events = Vec::new();
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.line.extend_from_slice(part);
            self.held_bytes += part.len();
            if self.held_bytes > EVENT_LIMIT_BYTES {
                return Err(format!("an event has more than {EVENT_LIMIT_BYTES} bytes"));
            }
            if self.line.ends_with(b"\n") {
                let line = std::mem::take(&mut self.line);
                events.extend(self.take_line(String::from_utf8_lossy(&line).trim_end_matches(['\r', '\n'])));
            }
        }
        Ok(events)
    }

    fn take_line(&mut self, line: &str) -> Option<DaemonEvent> {
        if line.is_empty() {
            self.held_bytes = 0;
            let (name, data) = (std::mem::take(&mut self.name), std::mem::take(&mut self.data));
            let name = if name.is_empty() { "message".to_owned() } else { name };
            return (!data.is_empty()).then(|| {
                let text = data.join("\n");
                DaemonEvent { name, data: serde_json::from_str(&text).unwrap_or(Value::String(text)) }
            });
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => value.clone_into(&mut self.name),
            "data" => self.data.push(value.to_owned()),
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
    use super::*;
    use serde_json::json;

    fn check(text: &str, expected: &[(&str, Value)]) {
        let expected: Vec<DaemonEvent> =
            expected.iter().map(|(name, data)| DaemonEvent { name: (*name).to_owned(), data: data.clone() }).collect();
        for size in [1, 3, text.len().max(1)] {
            let mut parser = Parser::default();
            let chunks = text.as_bytes().chunks(size);
            let events: Vec<DaemonEvent> = chunks.flat_map(|chunk| parser.feed(chunk).unwrap()).collect();
            assert_eq!(events, expected, "{text:?} in pieces of {size} bytes");
        }
    }

    #[test]
    fn events_end_with_an_empty_line() {
        check("retry: 2000\n\nid: 7\nevent: step\ndata: {\"step\":7}\n\n", &[("step", json!({"step": 7}))]);
        check(
            ": still there\n\nevent: a\r\ndata:1\r\n\r\ndata: no JSON\n\n",
            &[("a", json!(1)), ("message", json!("no JSON"))],
        );
        check("event: b\ndata: {\ndata: }\n\n", &[("b", json!({}))]);
        check("event: without data\n\nevent: cut\ndata: 1\n", &[]);
    }

    #[test]
    fn an_event_without_end_is_refused() {
        let mut parser = Parser::default();
        let piece = [b'x'; 1 << 20];
        assert!((0..5).any(|_| parser.feed(&piece).is_err()));
    }
}
