//! `POST /v1/corpora/{name}/documents`: documents come in, and the answer says that they are durable.
//!
//! A request is the unit: all of its documents are taken, or none. It may have [`Limits::push_bytes`](crate::Limits) of body; who
//! has more sends several requests. Its body is handed on as it comes. A client that says nothing for
//! [`Limits::push_patience`](crate::Limits) is sent away if others find no room because of what it holds.

use crate::control::{Push, PushForm, PushTarget};
use crate::reply::{self, Refusal, ReplyBody};
use crate::routes::{internal, refusal};
use crate::server::Shared;
use http_body_util::BodyExt;
use hyper::Response;
use hyper::body::{Body, Bytes, Incoming};
use hyper::http::{HeaderMap, StatusCode, header, request};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout, timeout_at};

/// For refused documents to be read to their end, so that the client gets to read why.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);
const KEY_LIMIT_BYTES: usize = 255;
/// When to try again: after a moment; once labelling has gone on; once somebody has made room.
const RETRY_SECONDS: [(&str, u32); 3] = [("busy", 1), ("inbox_full", 5), ("no_space", 30)];

/// Takes the documents of a request.
pub(crate) async fn take(
    shared: &Shared,
    corpus: String,
    head: &request::Parts,
    mut body: Incoming,
) -> Result<Response<ReplyBody>, Refusal> {
    let announced_bytes = body.size_hint().lower();
    let outcome = match open(shared, corpus, &head.headers, announced_bytes) {
        Ok(mut push) => match receive(shared, push.as_mut(), &mut body).await {
            Ok(()) => return answer(push).await,
            Err(refused) => refused,
        },
        Err(refused) => refused,
    };
    if announced_bytes <= shared.limits.push_bytes {
        drain(shared.limits.push_bytes, &mut body).await;
    }
    Err(outcome)
}

fn open(shared: &Shared, corpus: String, headers: &HeaderMap, bytes: u64) -> Result<Box<dyn Push>, Refusal> {
    let target = PushTarget { corpus, form: form(headers)?, key: key(headers)? };
    let push = shared.control.push(&target).map_err(refused)?;
    if bytes > shared.limits.push_bytes {
        return Err(too_large(shared));
    }
    Ok(push)
}

/// Hands the body on as it comes. Who sends less than [`Limits::push_window_bytes`](crate::Limits) in a window holds memory that others
/// could use, and is sent away, however often a byte comes.
async fn receive(shared: &Shared, push: &mut dyn Push, body: &mut Incoming) -> Result<(), Refusal> {
    let limits = &shared.limits;
    let deadline = Instant::now() + limits.push_timeout;
    let mut received_bytes = 0;
    let mut heard = Instant::now();
    let (mut window_end, mut window_began_at_bytes) = (heard + limits.push_window, 0);
    loop {
        let now = Instant::now();
        if now >= window_end {
            if received_bytes - window_began_at_bytes < limits.push_window_bytes {
                return Err(too_slow());
            }
            (window_end, window_began_at_bytes) = (now + limits.push_window, received_bytes);
        }
        let until = deadline.min(now + limits.push_patience).min(window_end);
        let frame = match timeout_at(until, body.frame()).await {
            Ok(Some(Ok(frame))) => frame,
            Ok(Some(Err(error))) => {
                let message = format!("the documents cannot be read: {error}");
                return Err(Refusal::new(StatusCode::BAD_REQUEST, "invalid_body", message));
            }
            Ok(None) => return Ok(()),
            Err(_elapsed) => {
                let silence = heard.elapsed();
                let in_the_way = silence >= limits.push_patience && push.pressed();
                if Instant::now() >= deadline || silence > limits.read_timeout || in_the_way {
                    return Err(too_slow());
                }
                continue;
            }
        };
        let Some(data) = frame.data_ref() else { continue };
        received_bytes += data.len() as u64;
        if received_bytes > limits.push_bytes {
            return Err(too_large(shared));
        }
        push.write(data).map_err(refused)?;
        heard = Instant::now();
    }
}

/// Waits until the documents are durable. They become so whether the client waits or not.
async fn answer(push: Box<dyn Push>) -> Result<Response<ReplyBody>, Refusal> {
    let (done, outcome) = oneshot::channel();
    // Whoever waited may have left.
    push.finish(Box::new(move |result| drop(done.send(result))));
    match outcome.await {
        Ok(Ok(value)) => Ok(reply::json(StatusCode::OK, &value)),
        Ok(Err(error)) => Err(refused(error)),
        Err(_dropped) => Err(internal("documents got no answer".to_owned())),
    }
}

/// Reads and forgets what is left of a body, as far as that goes quickly.
async fn drain(limit_bytes: u64, body: &mut Incoming) {
    let read = async {
        let mut bytes = 0;
        while bytes <= limit_bytes
            && let Some(Ok(frame)) = body.frame().await
        {
            bytes += frame.data_ref().map_or(0, Bytes::len) as u64;
        }
    };
    let _best_effort = timeout(DRAIN_TIMEOUT, read).await;
}

fn refused(error: crate::CommandError) -> Refusal {
    let mut refused = refusal(error);
    let seconds = RETRY_SECONDS.iter().find(|(code, _)| *code == refused.code).map(|(_, seconds)| *seconds);
    let later = matches!(refused.status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::INSUFFICIENT_STORAGE);
    refused.retry_after_seconds = seconds.or(later.then_some(10));
    refused
}

fn too_slow() -> Refusal {
    let message = "the documents come too slowly; send fewer at a time, with a key for each request";
    Refusal::new(StatusCode::REQUEST_TIMEOUT, "read_timeout", message)
}

fn too_large(shared: &Shared) -> Refusal {
    let message = format!(
        "a request may have {} bytes of documents, and a document 8 MiB; send them in several requests, each with a key of its own",
        shared.limits.push_bytes
    );
    Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message)
}

fn form(headers: &HeaderMap) -> Result<PushForm, Refusal> {
    let unsupported =
        |message: String| Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", message);
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let mut parts = value.split(';').map(str::trim);
    let media_type = parts.next().unwrap_or_default().to_ascii_lowercase();
    let form = match media_type.as_str() {
        "application/jsonl" | "application/x-ndjson" => PushForm::JsonLines,
        "text/plain" => PushForm::Text,
        _ => {
            let message = "the Content-Type must be application/jsonl, application/x-ndjson or text/plain";
            return Err(unsupported(message.to_owned()));
        }
    };
    let is_utf8 = |parameter: &str| match parameter.to_ascii_lowercase().strip_prefix("charset=") {
        Some(name) => matches!(name.trim_matches('"'), "utf-8" | "utf8" | "us-ascii"),
        None => true,
    };
    if !parts.all(is_utf8) {
        return Err(unsupported("documents must be UTF-8".to_owned()));
    }
    let encoding = headers.get(header::CONTENT_ENCODING).map(|value| value.as_bytes());
    if encoding.is_some_and(|encoding| !encoding.eq_ignore_ascii_case(b"identity")) {
        return Err(unsupported("the body must not be compressed".to_owned()));
    }
    Ok(form)
}

fn key(headers: &HeaderMap) -> Result<Option<String>, Refusal> {
    let mut values = headers.get_all("idempotency-key").iter();
    let Some(value) = values.next() else { return Ok(None) };
    let key = value.to_str().unwrap_or_default();
    let printable = key.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ');
    if values.next().is_some() || key.is_empty() || key.len() > KEY_LIMIT_BYTES || !printable {
        let message = format!("there may be one Idempotency-Key, of 1 to {KEY_LIMIT_BYTES} printable ASCII characters");
        return Err(Refusal::new(StatusCode::BAD_REQUEST, "invalid_key", message));
    }
    Ok(Some(key.to_owned()))
}
