//! Commands being carried out, and the latest that were.
//!
//! A command is answered when it is done. With `Prefer: respond-async` it is answered at once, with 202 and the place where it
//! can be followed. Either way it goes on if the client leaves.
//!
//! No command waits for another here. Those that can take long share a few places; those that get a daemon out of trouble, a pause,
//! a resumption and a shutdown, have places of their own. What a command is answered with is kept up to [`KEPT_RESULT_BYTES`].

use crate::access::Caller;
use crate::reply::{self, Refusal, ReplyBody};
use crate::revision::Changing;
use crate::routes::{internal, refusal};
use crate::server::Shared;
use crate::{Command, CommandError};
use hyper::Response;
use hyper::body::Bytes;
use hyper::http::{HeaderMap, HeaderValue, StatusCode, header};
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::sync::Semaphore;

/// Operations that are remembered.
const REMEMBERED: usize = 100;
/// Of a result that is remembered. A longer one goes to who waits for it alone.
const KEPT_RESULT_BYTES: usize = 64 * 1024;
/// Of an error's message that is remembered.
const KEPT_MESSAGE_CHARACTERS: usize = 2000;
/// What is logged of a command: sections may be long.
const LOGGED_CHARACTERS: usize = 500;

/// The latest operations, oldest first.
#[derive(Debug, Default)]
pub(crate) struct Operations {
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    operations: VecDeque<Operation>,
    begun: u64,
}

#[derive(Debug)]
struct Operation {
    number: u64,
    id: String,
    command: &'static str,
    by: String,
    started_unix_seconds: f64,
    ended: Option<(f64, Result<Kept, CommandError>)>,
}

/// What is remembered of a result.
#[derive(Debug)]
enum Kept {
    Whole(Value),
    /// Its length.
    LeftOut(usize),
}

impl Operation {
    /// All that is known of it.
    fn to_json(&self) -> Value {
        let mut value = self.summary();
        match &self.ended {
            Some((_, Ok(Kept::Whole(result)))) => value["result"] = result.clone(),
            Some((_, Ok(Kept::LeftOut(bytes)))) => {
                let message = format!("it has {bytes} bytes; results of up to {KEPT_RESULT_BYTES} are kept");
                value["result_left_out"] = json!(message);
            }
            Some((_, Err(_))) | None => {}
        }
        value
    }

    /// All but its result.
    fn summary(&self) -> Value {
        let state = match &self.ended {
            None => "running",
            Some((_, Ok(_))) => "done",
            Some((_, Err(_))) => "failed",
        };
        let mut value = json!({
            "id": self.id,
            "command": self.command,
            "by": self.by,
            "state": state,
            "started_unix_seconds": self.started_unix_seconds,
            "ended_unix_seconds": self.ended.as_ref().map(|(ended, _)| ended),
        });
        if let Some((_, Err(error))) = &self.ended {
            value["error"] = json!({ "code": error.code, "message": error.message });
        }
        value
    }
}

impl Operations {
    fn begin(&self, command: &Command, caller: Caller) -> (u64, String) {
        let started_unix_seconds = unix_seconds();
        let mut known = self.known();
        known.begun += 1;
        let number = known.begun;
        // Not the same one twice, after a restart either.
        let id = format!("{:x}-{number}", (started_unix_seconds * 1e3) as u64);
        let (command, by) = (command.name(), caller.to_string());
        known.operations.push_back(Operation {
            number,
            id: id.clone(),
            command,
            by,
            started_unix_seconds,
            ended: None,
        });
        let ended = known.operations.iter().position(|operation| operation.ended.is_some());
        // Those that run stay; there are few of them.
        if let Some(oldest) = ended.filter(|_| known.operations.len() > REMEMBERED) {
            known.operations.remove(oldest);
        }
        (number, id)
    }

    fn end(&self, number: u64, outcome: Result<Kept, CommandError>) {
        let outcome = outcome.map_err(|error| {
            let message = error.message.chars().take(KEPT_MESSAGE_CHARACTERS).collect();
            CommandError { message, ..error }
        });
        let mut known = self.known();
        let operation = known.operations.iter_mut().find(|operation| operation.number == number);
        if let Some(operation) = operation.filter(|operation| operation.ended.is_none()) {
            operation.ended = Some((unix_seconds(), outcome));
        }
    }

    /// All that are remembered, the newest first, without their results.
    pub(crate) fn list(&self) -> Value {
        json!({ "operations": self.known().operations.iter().rev().map(Operation::summary).collect::<Vec<_>>() })
    }

    pub(crate) fn find(&self, id: &str) -> Result<Value, Refusal> {
        let known = self.known();
        let found = known.operations.iter().find(|operation| operation.id == id).map(Operation::to_json);
        found.ok_or_else(|| {
            let message = format!("there is no operation `{id}` among the latest {REMEMBERED} of this process");
            Refusal::new(StatusCode::NOT_FOUND, "unknown_operation", message)
        })
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Carries out a command on a thread of the pool.
pub(crate) async fn carry_out(
    shared: &Arc<Shared>,
    caller: Caller,
    headers: &HeaderMap,
    command: Command,
) -> Result<Response<ReplyBody>, Refusal> {
    let Ok(permit) = Arc::clone(places(shared, &command)).try_acquire_owned() else {
        let message = "as many commands are being carried out as may be at a time; try again later";
        return Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "busy", message).retry_after(1));
    };
    let changing = if command.changes() {
        Some(shared.revision.begin(headers)?)
    } else {
        shared.revision.check(headers)?;
        None
    };
    let (number, id) = shared.operations.begin(&command, caller);
    let shown: String = format!("{command:?}").chars().take(LOGGED_CHARACTERS).collect();
    tracing::info!(command = shown, by = %caller, operation = id, "command taken");
    let running = Running { shared: Arc::clone(shared), number, changing };
    let done = tokio::task::spawn_blocking(move || {
        let _until_done = permit;
        running.carry_out(command)
    });
    if prefers_to_follow(headers) {
        return shared.operations.find(&id).map(|operation| accepted(&id, &operation));
    }
    match done.await {
        Ok(Ok(result)) => Ok(reply::content(reply::JSON, result)),
        Ok(Err(error)) => Err(refusal(error)),
        Err(error) => Err(internal(format!("the command failed: {error}"))),
    }
}

/// The places that a command takes one of.
fn places<'a>(shared: &'a Shared, command: &Command) -> &'a Arc<Semaphore> {
    match command {
        Command::Shutdown => &shared.shutdowns,
        Command::Pause { .. } | Command::Resume { .. } => &shared.pauses,
        _ => &shared.commands,
    }
}

/// An operation that has begun, and ends with this if not before: a command that panics has failed.
struct Running {
    shared: Arc<Shared>,
    number: u64,
    changing: Option<Changing>,
}

impl Running {
    /// Returns the answer's body: long ones are not for the thread that serves to write.
    fn carry_out(mut self, command: Command) -> Result<Bytes, CommandError> {
        let name = command.name();
        let outcome = self.shared.control.command(command);
        // Whoever sees that it is over sees the revision of after it.
        drop(self.changing.take());
        let operations = &self.shared.operations;
        match outcome {
            Ok(result) => {
                let body = reply::encoded(&result);
                let is_kept = body.len() <= KEPT_RESULT_BYTES;
                let kept = if is_kept { Kept::Whole(result) } else { Kept::LeftOut(body.len()) };
                operations.end(self.number, Ok(kept));
                Ok(body)
            }
            Err(error) => {
                tracing::warn!(command = name, code = error.code, %error, "command failed");
                operations.end(self.number, Err(error.clone()));
                Err(error)
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.changing.take());
        let message = "the command failed; see the log".to_owned();
        self.shared.operations.end(self.number, Err(CommandError { code: "internal", message, status: 500 }));
    }
}

/// Whether the client wants to follow the operation instead of waiting for its end (RFC 7240).
fn prefers_to_follow(headers: &HeaderMap) -> bool {
    let values = headers.get_all("prefer").iter().filter_map(|value| value.to_str().ok());
    let mut preferences = values.flat_map(|value| value.split(','));
    preferences.any(|preference| preference.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case(ASYNC))
}

const ASYNC: &str = "respond-async";

fn accepted(id: &str, operation: &Value) -> Response<ReplyBody> {
    let mut response = reply::json(StatusCode::ACCEPTED, operation);
    let headers = response.headers_mut();
    if let Ok(place) = HeaderValue::from_str(&format!("/v1/operations/{id}")) {
        headers.insert(header::LOCATION, place);
    }
    headers.insert("preference-applied", HeaderValue::from_static(ASYNC));
    response
}

fn unix_seconds() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}
