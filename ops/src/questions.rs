//! Requests that ask, which anybody may who gets in.

use crate::access::Caller;
use crate::events::Refused;
use crate::reply::{self, Refusal, ReplyBody};
use crate::routes::{internal, refusal};
use crate::server::Shared;
use crate::stream::EventBody;
use crate::{Control, Question, metrics, stages};
use http_body_util::BodyExt;
use hyper::Response;
use hyper::body::Bytes;
use hyper::http::{Method, StatusCode, header, request};
use serde_json::{Value, json};
use std::sync::Arc;
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// Not among the questions: metrics say what is wrong with a daemon that answers none.
pub(crate) async fn scrape(shared: &Arc<Shared>) -> Result<Response<ReplyBody>, Refusal> {
    let registry = shared.registry.clone();
    match in_turn(shared, &shared.scrapes, move || metrics::encode(&registry)).await? {
        Ok(text) => Ok(reply::content(metrics::MEDIA_TYPE, Bytes::from(text))),
        Err(error) => Err(internal(format!("the metrics cannot be written: {error}"))),
    }
}

pub(crate) async fn health(
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

pub(crate) async fn status(shared: &Arc<Shared>, caller: Caller) -> Result<Response<ReplyBody>, Refusal> {
    let server = Arc::clone(shared);
    let status = move |control: &dyn Control| {
        let mut status = control.status();
        stages::add(&mut status, &server.registry);
        if let Value::Object(fields) = &mut status {
            fields.insert("control".to_owned(), json!(server.access.offer(caller)));
        }
        Ok(status)
    };
    tagged(shared, status).await
}

/// What is read, or who labels, as the status says it.
pub(crate) async fn listing(shared: &Arc<Shared>, part: &'static str) -> Result<Response<ReplyBody>, Refusal> {
    tagged(shared, move |control| Ok(control.status()[part].take())).await
}

/// Asks the daemon. The revision goes with what commands change.
pub(crate) async fn answer(
    shared: &Arc<Shared>,
    question: Question,
    changes: bool,
) -> Result<Response<ReplyBody>, Refusal> {
    let asked = move |control: &dyn Control| control.answer(question).map_err(refusal);
    if changes {
        return tagged(shared, asked).await;
    }
    encoded(shared, asked).await
}

/// With the revision of before the answer: what is changed meanwhile is noticed.
async fn tagged(
    shared: &Arc<Shared>,
    question: impl FnOnce(&dyn Control) -> Result<Value, Refusal> + Send + 'static,
) -> Result<Response<ReplyBody>, Refusal> {
    let tag = shared.revision.tag();
    let mut response = encoded(shared, question).await?;
    response.headers_mut().insert(header::ETAG, tag);
    Ok(response)
}

/// Asks the daemon, and has the thread that asked write the answer.
async fn encoded(
    shared: &Arc<Shared>,
    question: impl FnOnce(&dyn Control) -> Result<Value, Refusal> + Send + 'static,
) -> Result<Response<ReplyBody>, Refusal> {
    let body = ask(shared, |control| question(control).map(|answer| reply::encoded(&answer))).await??;
    Ok(reply::content(reply::JSON, body))
}

pub(crate) fn events(shared: &Shared, head: &request::Parts) -> Result<Response<ReplyBody>, Refusal> {
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
    // What cannot be a number of ours is as good as none.
    let seen = head.headers.get("last-event-id").and_then(|id| id.to_str().ok()?.parse().ok());
    let subscription = shared.events.subscribe(limits.subscribers, limits.event_backlog, seen).map_err(refused)?;
    let mut response = reply::content(MEDIA_TYPE, Bytes::new());
    *response.body_mut() = EventBody::new(subscription, limits.event_rest, limits.heartbeat).boxed_unsync();
    Ok(response)
}

/// Puts a question to the daemon, as [`on_pool`] does.
async fn ask<T: Send + 'static>(
    shared: &Arc<Shared>,
    question: impl FnOnce(&dyn Control) -> T + Send + 'static,
) -> Result<T, Refusal> {
    let control = Arc::clone(&shared.control);
    on_pool(shared, move || question(control.as_ref())).await
}

/// Finds something out on a thread of the pool, and stops waiting at the limit. What does not answer holds `limits.queries`
/// threads, not one per request.
pub(crate) async fn on_pool<T: Send + 'static>(
    shared: &Arc<Shared>,
    question: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Refusal> {
    in_turn(shared, &shared.queries, question).await
}

/// The same with other places than those of questions.
async fn in_turn<T: Send + 'static>(
    shared: &Shared,
    places: &Arc<Semaphore>,
    question: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Refusal> {
    let answer = async {
        let permit = Arc::clone(places).acquire_owned().await.map_err(|error| error.to_string())?;
        let asked = tokio::task::spawn_blocking(move || {
            let _until_answered = permit;
            question()
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
