//! What each path answers.

use crate::events::Refused;
use crate::reply::{self, Refusal, ReplyBody};
use crate::server::Shared;
use crate::stream::EventBody;
use crate::{Command, CommandError, Control, Stage, corpora, documents, guard, metrics, stages, teachers};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::{Body, Bytes, Incoming};
use hyper::http::{Method, StatusCode, request};
use hyper::{Request, Response};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;
use tokio::time::timeout;

/// Where a request came in.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Door {
    /// The loopback address that is listened on.
    Tcp(SocketAddr),
    Unix,
}

impl Door {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Door::Tcp(_) => "tcp",
            Door::Unix => "unix",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Route<'a> {
    Page,
    Metrics,
    Health,
    Ready,
    Status,
    Events,
    Control(Verb),
    /// To the corpus of this name, as it stands in the path.
    Documents(&'a str),
    Corpora(corpora::Route<'a>),
    Teachers(teachers::Route<'a>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verb {
    Pause,
    Resume,
    Checkpoint,
    Export,
    Release,
    CancelRelease,
    RetryQuarantined,
    Shutdown,
}

const ROUTES: [(&str, Route<'static>); 14] = [
    ("/", Route::Page),
    ("/metrics", Route::Metrics),
    ("/healthz", Route::Health),
    ("/readyz", Route::Ready),
    ("/v1/status", Route::Status),
    ("/v1/events", Route::Events),
    ("/v1/pause", Route::Control(Verb::Pause)),
    ("/v1/resume", Route::Control(Verb::Resume)),
    ("/v1/checkpoint", Route::Control(Verb::Checkpoint)),
    ("/v1/export", Route::Control(Verb::Export)),
    ("/v1/release", Route::Control(Verb::Release)),
    ("/v1/release/cancel", Route::Control(Verb::CancelRelease)),
    ("/v1/quarantine/retry", Route::Control(Verb::RetryQuarantined)),
    ("/v1/shutdown", Route::Control(Verb::Shutdown)),
];

/// Answers any request, and counts it.
pub(crate) async fn answer(shared: &Arc<Shared>, door: Door, request: Request<Incoming>) -> Response<ReplyBody> {
    let started = Instant::now();
    let asked = request.uri().path().to_owned();
    let found = find(&asked);
    let route = found.map(|(_, route)| route);
    let mut response = respond(shared, door, route, request).await.unwrap_or_else(Refusal::into_response);
    reply::add_defences(response.headers_mut());
    let path = found.map_or("other", |(path, _)| path);
    shared.metrics.answered(path, response.status().as_u16(), started.elapsed());
    response
}

/// The route of a path, and the name under which it is counted.
fn find(path: &str) -> Option<(&'static str, Route<'_>)> {
    let corpus = path.strip_prefix("/v1/corpora/").and_then(|rest| rest.strip_suffix("/documents"));
    if let Some(name) = corpus.filter(|name| !name.is_empty() && !name.contains('/')) {
        return Some(("/v1/corpora/{name}/documents", Route::Documents(name)));
    }
    if let Some((name, route)) = corpora::find(path) {
        return Some((name, Route::Corpora(route)));
    }
    if let Some((name, route)) = teachers::find(path) {
        return Some((name, Route::Teachers(route)));
    }
    ROUTES.iter().find(|(known, _)| *known == path).copied()
}

async fn respond(
    shared: &Arc<Shared>,
    door: Door,
    route: Option<Route<'_>>,
    request: Request<Incoming>,
) -> Result<Response<ReplyBody>, Refusal> {
    let (head, body) = request.into_parts();
    if let Door::Tcp(bound) = door {
        guard::check(&head.uri, &head.headers, bound)?;
    }
    let route =
        route.ok_or_else(|| Refusal::new(StatusCode::NOT_FOUND, "not_found", "there is nothing at this path"))?;
    match route {
        Route::Control(verb) => {
            check_control(shared, door, &head)?;
            let body = read_body(shared, body).await?;
            carry_out(shared, command(verb, &body)?).await
        }
        Route::Corpora(route) if route.asks(&head.method) => listing(shared, "corpora").await,
        Route::Corpora(route) => {
            route.check_method(&head.method)?;
            check_door(shared, door, &head)?;
            let body = read_body(shared, body).await?;
            carry_out(shared, route.command(&head.method, &body)?).await
        }
        Route::Teachers(route) if route.asks(&head.method) => listing(shared, "teachers").await,
        Route::Teachers(route) => {
            route.check_method(&head.method)?;
            check_door(shared, door, &head)?;
            let body = read_body(shared, body).await?;
            carry_out(shared, route.command(&body)?).await
        }
        Route::Documents(corpus) => {
            check_control(shared, door, &head)?;
            documents::take(shared, corpus, &head, body).await
        }
        _ if head.method != Method::GET && head.method != Method::HEAD => Err(Refusal::method("GET, HEAD")),
        Route::Page => Ok(shared.page.response()),
        Route::Metrics => scrape(shared),
        Route::Health => health(shared, "alive", "not_alive", |control| control.alive()).await,
        Route::Ready => health(shared, "ready", "not_ready", |control| control.ready()).await,
        Route::Status => status(shared).await,
        Route::Events => events(shared, &head),
    }
}

fn check_control(shared: &Shared, door: Door, head: &request::Parts) -> Result<(), Refusal> {
    if head.method != Method::POST {
        return Err(Refusal::method("POST"));
    }
    check_door(shared, door, head)
}

fn check_door(shared: &Shared, door: Door, head: &request::Parts) -> Result<(), Refusal> {
    match (door, &shared.token) {
        (Door::Unix, _) => Ok(()),
        (Door::Tcp(_), Some(token)) => token.check(&head.headers),
        (Door::Tcp(_), None) => Err(Refusal::forbidden(
            "control_needs_socket",
            "without ops.token_file commands and documents are taken on the unix socket alone; try `mergedistill ctl`"
                .to_owned(),
        )),
    }
}

fn scrape(shared: &Shared) -> Result<Response<ReplyBody>, Refusal> {
    match metrics::encode(&shared.registry) {
        Ok(text) => Ok(reply::content(metrics::MEDIA_TYPE, Bytes::from(text))),
        Err(error) => Err(internal(format!("the metrics cannot be written: {error}"))),
    }
}

async fn health(
    shared: &Arc<Shared>,
    good: &'static str,
    bad: &'static str,
    question: fn(&dyn Control) -> Result<(), String>,
) -> Result<Response<ReplyBody>, Refusal> {
    match ask(shared, question).await? {
        Ok(()) => Ok(reply::json(StatusCode::OK, &json!({ "status": good }))),
        Err(reason) => Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, bad, reason)),
    }
}

async fn status(shared: &Arc<Shared>) -> Result<Response<ReplyBody>, Refusal> {
    let registry = shared.registry.clone();
    let status = ask(shared, move |control| {
        let mut status = control.status();
        stages::add(&mut status, &registry);
        status
    });
    Ok(reply::json(StatusCode::OK, &status.await?))
}

/// What is read, or who labels, as the status says it.
async fn listing(shared: &Arc<Shared>, part: &'static str) -> Result<Response<ReplyBody>, Refusal> {
    let listed = ask(shared, move |control| control.status()[part].take());
    Ok(reply::json(StatusCode::OK, &listed.await?))
}

fn events(shared: &Shared, head: &request::Parts) -> Result<Response<ReplyBody>, Refusal> {
    const MEDIA_TYPE: &str = "text/event-stream";
    if head.method == Method::HEAD {
        return Ok(reply::content(MEDIA_TYPE, Bytes::new()));
    }
    let limits = &shared.limits;
    let refused = |refused| match refused {
        Refused::TooMany => Refusal::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "too_many_subscribers",
            format!("all {} places for readers of events are taken", limits.subscribers),
        ),
        Refused::Closed => Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "stopping", "the daemon is stopping"),
    };
    let subscription = shared.events.subscribe(limits.subscribers, limits.event_backlog).map_err(refused)?;
    let mut response = reply::content(MEDIA_TYPE, Bytes::new());
    *response.body_mut() = EventBody::new(subscription, limits.heartbeat).boxed_unsync();
    Ok(response)
}

/// Puts a question to the daemon on a thread of the pool, and stops waiting at the limit. A daemon that does not
/// answer holds `limits.queries` threads, not one per request.
async fn ask<T: Send + 'static>(
    shared: &Arc<Shared>,
    question: impl FnOnce(&dyn Control) -> T + Send + 'static,
) -> Result<T, Refusal> {
    let answer = async {
        let permit = Arc::clone(&shared.queries).acquire_owned().await.map_err(|error| error.to_string())?;
        let control = Arc::clone(&shared.control);
        let asked = tokio::task::spawn_blocking(move || {
            let _until_answered = permit;
            question(control.as_ref())
        });
        asked.await.map_err(|error| error.to_string())
    };
    match timeout(shared.limits.query_timeout, answer).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(reason)) => Err(internal(format!("the question failed: {reason}"))),
        Err(_elapsed) => {
            let message = format!("the daemon has not answered for {:?}", shared.limits.query_timeout);
            Err(Refusal::new(StatusCode::GATEWAY_TIMEOUT, "timeout", message))
        }
    }
}

/// Carries out a command on a thread of the pool; it goes on if the client leaves.
async fn carry_out(shared: &Arc<Shared>, command: Command) -> Result<Response<ReplyBody>, Refusal> {
    let permits = if matches!(command, Command::Shutdown) { &shared.shutdowns } else { &shared.commands };
    let Ok(permit) = Arc::clone(permits).try_acquire_owned() else {
        let message = format!("{} commands are being carried out; try again later", shared.limits.commands);
        return Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "busy", message));
    };
    tracing::info!(?command, "command taken");
    let control = Arc::clone(&shared.control);
    let done = tokio::task::spawn_blocking(move || {
        let _until_done = permit;
        let outcome = control.command(command.clone());
        if let Err(error) = &outcome {
            tracing::warn!(?command, code = error.code, %error, "command failed");
        }
        outcome
    });
    match done.await {
        Ok(Ok(value)) => Ok(reply::json(StatusCode::OK, &value)),
        Ok(Err(error)) => Err(refusal(error)),
        Err(error) => Err(internal(format!("the command failed: {error}"))),
    }
}

async fn read_body(shared: &Shared, body: Incoming) -> Result<Bytes, Refusal> {
    let limits = &shared.limits;
    let too_large = || {
        let message = format!("a request's body may have {} bytes", limits.body_bytes);
        Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message)
    };
    if body.size_hint().lower() > limits.body_bytes as u64 {
        return Err(too_large());
    }
    match timeout(limits.read_timeout, Limited::new(body, limits.body_bytes).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large()),
        Ok(Err(error)) => Err(invalid_body(&format!("it cannot be read: {error}"))),
        Err(_elapsed) => {
            let message = format!("the request's body was not complete after {:?}", limits.read_timeout);
            Err(Refusal::new(StatusCode::REQUEST_TIMEOUT, "read_timeout", message))
        }
    }
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct StageBody {
    stage: Option<Stage>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ExportBody {
    out: PathBuf,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ReleaseBody {
    steps: u64,
    out: Option<PathBuf>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RetryBody {
    ids: Vec<String>,
    all: bool,
    corpus: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EmptyBody {}

fn command(verb: Verb, body: &[u8]) -> Result<Command, Refusal> {
    Ok(match verb {
        Verb::Pause => Command::Pause { stage: parse::<StageBody>(body)?.stage },
        Verb::Resume => Command::Resume { stage: parse::<StageBody>(body)?.stage },
        Verb::Checkpoint => {
            let EmptyBody {} = parse(body)?;
            Command::Checkpoint
        }
        Verb::Shutdown => {
            let EmptyBody {} = parse(body)?;
            Command::Shutdown
        }
        Verb::Export => {
            let ExportBody { out } = parse(body)?;
            check_absolute(&out)?;
            Command::Export { out }
        }
        Verb::Release => {
            let ReleaseBody { steps, out } = parse(body)?;
            if steps == 0 {
                return Err(invalid_body("`steps` must be at least 1"));
            }
            out.as_deref().map_or(Ok(()), check_absolute)?;
            Command::Release { steps, out }
        }
        Verb::CancelRelease => {
            let EmptyBody {} = parse(body)?;
            Command::CancelRelease
        }
        Verb::RetryQuarantined => {
            let RetryBody { ids, all, corpus } = parse(body)?;
            if ids.is_empty() != all || (corpus.is_some() && !all) {
                return Err(invalid_body("give `ids`, or `all` = true and then, if it is about one alone, `corpus`"));
            }
            Command::RetryQuarantined { ids, corpus }
        }
    })
}

fn check_absolute(out: &Path) -> Result<(), Refusal> {
    if out.is_absolute() {
        return Ok(());
    }
    Err(invalid_body("`out` must be an absolute path: the daemon's working directory is not yours"))
}

/// A JSON object; no body at all is the empty one.
pub(crate) fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Refusal> {
    let value: Value = match body.trim_ascii() {
        [] => json!({}),
        body => serde_json::from_slice(body).map_err(|error| invalid_body(&error.to_string()))?,
    };
    if !value.is_object() {
        return Err(invalid_body("it must be a JSON object"));
    }
    T::deserialize(value).map_err(|error| invalid_body(&error.to_string()))
}

pub(crate) fn invalid_body(reason: &str) -> Refusal {
    Refusal::new(StatusCode::BAD_REQUEST, "invalid_body", format!("the request's body: {reason}"))
}

/// What the daemon says no with.
pub(crate) fn refusal(error: CommandError) -> Refusal {
    let status = StatusCode::from_u16(error.status).ok().filter(|s| s.is_client_error() || s.is_server_error());
    Refusal::new(status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), error.code, error.message)
}

pub(crate) fn internal(message: String) -> Refusal {
    tracing::error!(message, "a request failed");
    Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", message)
}
