//! What comes from the daemon while it is watched, gathered by threads so that the view never waits.

use crate::failure::{ExitCode, Failure};
use crossbeam::channel::{Receiver, Sender, bounded};
use ops::DaemonEvent;
use serde_json::Value;
use std::ops::ControlFlow;
use std::path::Path;
use std::thread;
use std::time::Duration;

/// The status is asked for this often, and a daemon that is gone looked for.
const INTERVAL: Duration = Duration::from_secs(1);
/// Events that wait for the view; when it is busy the daemon's own ring overwrites the oldest.
const QUEUE: usize = 256;

/// Something new.
#[derive(Debug)]
pub(super) enum News {
    /// The status at this moment.
    Status(Value),
    /// Losses of the steps before.
    History(Value),
    /// Something happened.
    Event(DaemonEvent),
    /// Nobody answers; the reason.
    Lost(String),
    /// What came of a command.
    Told(String),
}

/// Begins to gather; ends when the receiver is dropped.
pub(super) fn gather(socket: &Path) -> Result<(Sender<News>, Receiver<News>), Failure> {
    let (send, receive) = bounded(QUEUE);
    let (statuses, events) = (send.clone(), send.clone());
    let (socket_of_statuses, socket_of_events) = (socket.to_owned(), socket.to_owned());
    spawn("statuses", move || gather_statuses(&socket_of_statuses, &statuses))?;
    spawn("events", move || gather_events(&socket_of_events, &events))?;
    Ok((send, receive))
}

/// Has a command carried out beside everything else.
pub(super) fn tell(socket: &Path, path: &'static str, news: &Sender<News>) -> Result<(), Failure> {
    let (socket, news) = (socket.to_owned(), news.clone());
    spawn("command", move || {
        let told = match ops::client::call(&socket, "POST", path, None) {
            Ok((200..300, answer)) => answer["state"].as_str().unwrap_or("done").to_owned(),
            Ok((_, answer)) => answer["error"]["message"].as_str().unwrap_or("refused").to_owned(),
            Err(error) => error.to_string(),
        };
        let _ = news.send(News::Told(told)); // Nobody may be watching any more.
    })
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), Failure> {
    let spawned = thread::Builder::new().name(name.to_owned()).spawn(work);
    spawned.map(drop).map_err(|error| Failure::new(ExitCode::Software, format!("cannot start a thread: {error}")))
}

fn gather_statuses(socket: &Path, news: &Sender<News>) {
    loop {
        let status = match ops::client::call(socket, "GET", "/v1/status", None) {
            Ok((200..300, status)) => News::Status(status),
            Ok((code, _)) => News::Lost(format!("HTTP status {code}")),
            Err(error) => News::Lost(error.to_string()),
        };
        if news.send(status).is_err() {
            return;
        }
        thread::sleep(INTERVAL);
    }
}

fn gather_events(socket: &Path, news: &Sender<News>) {
    let mut watched = true;
    while watched {
        // That it ended, the status will tell.
        let _ = ops::follow(socket, |event| match news.send(News::Event(event)) {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => {
                watched = false;
                ControlFlow::Break(())
            }
        });
        thread::sleep(INTERVAL);
    }
}
