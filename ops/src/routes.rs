//! What there is to ask and to tell: one table of methods and paths. Requests are matched against it, and the OpenAPI document
//! is held against it by a test.

use crate::access::{self, Caller};
use crate::reply::{self, Refusal, ReplyBody};
use crate::request::Asked;
use crate::server::{Shared, Surface};
use crate::teachers;
use crate::{Command, CommandError, Question, commands, corpora, documents, guard, history, operations, questions};
use hyper::body::Incoming;
use hyper::http::{Method, StatusCode, request};
use hyper::{Request, Response};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

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

/// A method of a path, and what answers.
#[derive(Debug)]
pub(crate) struct Endpoint {
    pub(crate) method: Method,
    /// A part in braces stands for any name.
    pub(crate) path: &'static str,
    /// Parameters that the query may have.
    pub(crate) query: &'static [&'static str],
    pub(crate) answers: Answers,
}

/// What answers a request. Questions may be asked by anybody who gets in; the last two need the right to control.
#[derive(Debug)]
pub(crate) enum Answers {
    Page,
    Metrics,
    Health,
    Ready,
    OpenApi,
    Events,
    Status,
    /// A part of the status.
    Listing(&'static str),
    Operations,
    Operation,
    /// The daemon, to this question.
    Question(fn(&Asked) -> Result<Question, Refusal>),
    /// The same about what commands change: with the revision.
    Changing(fn(&Asked) -> Result<Question, Refusal>),
    /// The daemon, once it has carried out this command.
    Command(fn(&Asked) -> Result<Command, Refusal>),
    Documents,
}

const fn get(path: &'static str, answers: Answers) -> Endpoint {
    Endpoint { method: Method::GET, path, query: &[], answers }
}

const fn command(method: Method, path: &'static str, say: fn(&Asked) -> Result<Command, Refusal>) -> Endpoint {
    Endpoint { method, path, query: &[], answers: Answers::Command(say) }
}

/// Every endpoint. A path that can be asked (`GET`) answers `HEAD` as well.
pub(crate) static ENDPOINTS: &[Endpoint] = &[
    get("/", Answers::Page),
    get("/metrics", Answers::Metrics),
    get("/healthz", Answers::Health),
    get("/readyz", Answers::Ready),
    get("/v1/openapi.json", Answers::OpenApi),
    get("/v1/status", Answers::Status),
    get("/v1/events", Answers::Events),
    get("/v1/operations", Answers::Operations),
    get("/v1/operations/{id}", Answers::Operation),
    get("/v1/configuration", Answers::Changing(|_| Ok(Question::Configuration))),
    Endpoint {
        method: Method::GET,
        path: "/v1/history",
        query: history::PARAMETERS,
        answers: Answers::Question(history::question),
    },
    get("/v1/log/segments", Answers::Question(|_| Ok(Question::Segments))),
    command(Method::POST, "/v1/pause", commands::pause),
    command(Method::POST, "/v1/resume", commands::resume),
    command(Method::POST, "/v1/drain", commands::drain),
    command(Method::POST, "/v1/checkpoint", commands::checkpoint),
    command(Method::POST, "/v1/export", commands::export),
    command(Method::POST, "/v1/release", commands::release),
    command(Method::POST, "/v1/release/cancel", commands::cancel_release),
    command(Method::POST, "/v1/quarantine/retry", commands::retry_quarantined),
    command(Method::POST, "/v1/reload", commands::reload),
    get("/v1/log-level", Answers::Changing(|_| Ok(Question::LogLevel))),
    command(Method::PUT, "/v1/log-level", commands::set_log_level),
    get("/v1/retention", Answers::Changing(|_| Ok(Question::Retention))),
    command(Method::PUT, "/v1/retention", commands::set_retention),
    command(Method::POST, "/v1/shutdown", commands::shutdown),
    get("/v1/corpora", Answers::Listing("corpora")),
    command(Method::POST, "/v1/corpora", corpora::add),
    command(Method::DELETE, "/v1/corpora/{name}", corpora::remove),
    command(Method::POST, "/v1/corpora/{name}/pause", corpora::pause),
    command(Method::POST, "/v1/corpora/{name}/resume", corpora::resume),
    Endpoint { method: Method::POST, path: "/v1/corpora/{name}/documents", query: &[], answers: Answers::Documents },
    command(Method::PUT, "/v1/languages/{language}/share", corpora::set_share),
    command(Method::DELETE, "/v1/languages/{language}/share", corpora::clear_share),
    get("/v1/teachers", Answers::Listing("teachers")),
    command(Method::POST, "/v1/teachers", teachers::add),
    command(Method::POST, "/v1/teachers/{name}/pause", teachers::pause),
    command(Method::POST, "/v1/teachers/{name}/resume", teachers::resume),
];

/// Paths of [`Surface::Watching`].
const WATCHING: [&str; 4] = ["/metrics", "/healthz", "/readyz", "/v1/status"];

/// A path that is known.
struct Found<'a> {
    /// As it stands in the table.
    path: &'static str,
    /// The part that the braces stand for.
    name: Option<&'a str>,
}

impl<'a> Found<'a> {
    fn find(path: &'a str) -> Option<Self> {
        ENDPOINTS
            .iter()
            .find_map(|endpoint| matching(endpoint.path, path).map(|name| Self { path: endpoint.path, name }))
    }

    /// Whether a server of this surface has it.
    fn is_on(&self, surface: Surface) -> bool {
        surface == Surface::All || WATCHING.contains(&self.path)
    }

    /// What answers this method.
    fn endpoint(&self, method: &Method) -> Result<&'static Endpoint, Refusal> {
        let method = if *method == Method::HEAD { &Method::GET } else { method };
        let of_path = || ENDPOINTS.iter().filter(|endpoint| endpoint.path == self.path);
        of_path().find(|endpoint| endpoint.method == *method).ok_or_else(|| {
            let methods = of_path().map(|endpoint| match endpoint.method {
                Method::GET => "GET, HEAD",
                ref other => other.as_str(),
            });
            Refusal::method(methods.collect::<Vec<_>>().join(", "))
        })
    }
}

/// Whether a path is of this form; then with the part that the braces stand for.
fn matching<'a>(form: &str, path: &'a str) -> Option<Option<&'a str>> {
    let (mut wanted, mut given) = (form.split('/'), path.split('/'));
    let mut name = None;
    loop {
        match (wanted.next(), given.next()) {
            (None, None) => return Some(name),
            (Some(wanted), Some(part)) if wanted.starts_with('{') && !part.is_empty() => name = Some(part),
            (Some(wanted), Some(part)) if wanted == part => {}
            _ => return None,
        }
    }
}

/// Answers any request, and counts it.
pub(crate) async fn answer(shared: &Arc<Shared>, caller: Caller, request: Request<Incoming>) -> Response<ReplyBody> {
    let started = Instant::now();
    let asked = request.uri().path().to_owned();
    let found = Found::find(&asked).filter(|found| found.is_on(shared.surface));
    let path = found.as_ref().map_or("other", |found| found.path);
    let mut response = respond(shared, caller, found, request).await.unwrap_or_else(Refusal::into_response);
    reply::add_defences(response.headers_mut());
    shared.metrics.answered(path, response.status().as_u16(), started.elapsed());
    response
}

async fn respond(
    shared: &Arc<Shared>,
    caller: Caller,
    found: Option<Found<'_>>,
    request: Request<Incoming>,
) -> Result<Response<ReplyBody>, Refusal> {
    let (head, body) = request.into_parts();
    if let Door::Tcp(bound) = caller.door {
        guard::check(&head.uri, &head.headers, bound)?;
    }
    let found =
        found.ok_or_else(|| Refusal::new(StatusCode::NOT_FOUND, "not_found", "there is nothing at this path"))?;
    let endpoint = found.endpoint(&head.method)?;
    if matches!(endpoint.answers, Answers::Command(_) | Answers::Documents) {
        access::check(shared, caller, &head).await?;
    }
    // Scrapers and probes may be made to send parameters of their own.
    let query = head.uri.query().filter(|_| endpoint.path.starts_with("/v1/"));
    let asked = Asked::new(found.name, query, endpoint.query)?;
    match &endpoint.answers {
        Answers::Command(say) => {
            let asked = asked.with_body(&shared.limits, &head.headers, body).await?;
            operations::carry_out(shared, caller, &head.headers, say(&asked)?).await
        }
        Answers::Documents => documents::take(shared, asked.name(), &head, body).await,
        question => look_up(shared, caller, question, &asked, &head).await,
    }
}

/// Answers a question.
async fn look_up(
    shared: &Arc<Shared>,
    caller: Caller,
    question: &Answers,
    asked: &Asked,
    head: &request::Parts,
) -> Result<Response<ReplyBody>, Refusal> {
    match question {
        Answers::Page => Ok(shared.page.response()),
        Answers::Metrics => questions::scrape(shared).await,
        Answers::Health => questions::health(shared, "alive", "not_alive", |control| control.alive()).await,
        Answers::Ready => questions::health(shared, "ready", "not_ready", |control| control.ready()).await,
        Answers::OpenApi => Ok(reply::content(reply::JSON, shared.document.clone())),
        Answers::Events => questions::events(shared, head),
        Answers::Status => questions::status(shared, caller).await,
        Answers::Listing(part) => questions::listing(shared, part).await,
        Answers::Operations => Ok(reply::json(StatusCode::OK, &shared.operations.list())),
        Answers::Operation => Ok(reply::json(StatusCode::OK, &shared.operations.find(&asked.name())?)),
        Answers::Question(question) => questions::answer(shared, question(asked)?, false).await,
        Answers::Changing(question) => questions::answer(shared, question(asked)?, true).await,
        Answers::Command(_) | Answers::Documents => Err(internal("a command was taken for a question".to_owned())),
    }
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
