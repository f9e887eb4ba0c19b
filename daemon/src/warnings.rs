//! The last warnings and errors of this process's log, for whoever asks for the status and does not read the log.

use crate::visible::visible;
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::fmt::{self, Write as _};
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

/// How many are kept.
const KEPT: usize = 20;
/// Of each, at most.
const MESSAGE_CHARACTERS: usize = 500;

/// A process has one log.
static LATEST: Mutex<VecDeque<Warning>> = Mutex::new(VecDeque::new());

#[derive(Clone, Debug, Serialize)]
struct Warning {
    at_unix_seconds: f64,
    level: &'static str,
    message: String,
}

/// The latest, the newest last: `[{"at_unix_seconds", "level": "warn" | "error", "message"}]`.
pub fn latest() -> Value {
    json!(*LATEST.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Takes note of warnings and errors on their way to the log.
#[derive(Debug)]
pub struct Warnings;

impl<S: Subscriber> Layer<S> for Warnings {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let level = match *event.metadata().level() {
            Level::ERROR => "error",
            Level::WARN => "warn",
            _ => return,
        };
        let mut text = Text::default();
        event.record(&mut text);
        let message: String = format!("{}{}", text.message, text.fields).chars().take(MESSAGE_CHARACTERS).collect();
        let message = visible(&message).into_owned();
        let at_unix_seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64());
        let mut latest = LATEST.lock().unwrap_or_else(PoisonError::into_inner);
        if latest.len() >= KEPT {
            latest.pop_front();
        }
        latest.push_back(Warning { at_unix_seconds, level, message });
    }
}

/// An event as in the log: the message, then the fields.
#[derive(Default)]
struct Text {
    message: String,
    fields: String,
}

impl Visit for Text {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => value.clone_into(&mut self.message),
            _ => self.record_debug(field, &format_args!("{value}")),
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a string cannot fail.
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing_subscriber::layer::SubscriberExt as _;

    #[test]
    fn the_latest_warnings_are_kept() {
        tracing::subscriber::with_default(tracing_subscriber::registry().with(Warnings), || {
            tracing::info!("nothing to see");
            for number in 0..KEPT + 5 {
                tracing::warn!(number, path = "a b", "broken");
            }
            tracing::error!(document = "d\x1b[2J", "worse: {}", 7);
        });
        let latest = latest();
        let latest = latest.as_array().map_or(&[][..], Vec::as_slice);
        assert_eq!(latest.len(), KEPT);
        assert_eq!(latest[0]["message"], "broken number=6 path=a b");
        assert_eq!(
            latest[KEPT - 1],
            json!({"level": "error", "message": "worse: 7 document=d\\u{1b}[2J",
            "at_unix_seconds": latest[KEPT - 1]["at_unix_seconds"]})
        );
    }
}
