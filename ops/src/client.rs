//! The other end of the control socket, for the command line.

use crate::PushForm;
use crate::listen::SOCKET_PATH_BYTES;
use crate::reply;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::http::{HeaderMap, header};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::UnixStream;

/// A status is kilobytes, metrics are hundreds of them.
const ANSWER_LIMIT_BYTES: usize = 64 * 1024 * 1024;

/// For the answer to a question: longer than the daemon takes to say that it cannot (`Limits::query_timeout`).
const QUESTION_LIMIT: Duration = Duration::from_secs(15);

/// Why a call got no answer. An answer with an error in it is an answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// There is no socket.
    #[error("there is no control socket at {socket}: is the daemon running?")]
    NoSocket {
        /// Where it was looked for.
        socket: PathBuf,
    },
    /// There is a socket, left by a process that is gone.
    #[error("nobody listens on the control socket {socket}: is the daemon running?")]
    NobodyListens {
        /// The socket.
        socket: PathBuf,
    },
    /// The socket's permissions.
    #[error("not allowed to use the control socket {socket}: be its owner, or a member of its group")]
    NotAllowed {
        /// The socket.
        socket: PathBuf,
    },
    /// Another reason not to reach the socket.
    #[error("cannot connect to the control socket {socket}: {source}")]
    Connect {
        /// The socket.
        socket: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// Somebody listens, and does not answer.
    #[error(
        "the daemon on {socket} has not answered for {seconds} s: it is starting, stopped (SIGSTOP), or has too much to do"
    )]
    Silent {
        /// The socket.
        socket: PathBuf,
        /// For how long.
        seconds: u64,
    },
    /// Method or path are none.
    #[error("`{method} {path}` is not a request")]
    Request {
        /// As given.
        method: String,
        /// As given.
        path: String,
    },
    /// The connection broke, or the other side does not speak HTTP.
    #[error("no answer from the daemon on {socket}: {reason}")]
    NoAnswer {
        /// The socket.
        socket: PathBuf,
        /// What went wrong.
        reason: String,
    },
    /// The answer cannot be read as what it says it is.
    #[error("cannot make sense of the daemon's answer to {path}: {reason}")]
    Answer {
        /// What was asked for.
        path: String,
        /// What is wrong.
        reason: String,
    },
}

/// Sends one request to the daemon that listens on `socket` and waits for its answer: to a question (`GET`) 15 s, to a command as
/// long as the connection lasts.
///
/// Returns the HTTP status and the body: parsed if it is JSON, a string if it is text. Blocks; not to be called on a thread
/// that drives an async runtime.
///
/// # Errors
///
/// If no complete answer came. An answer with status 400 and above is `Ok`.
pub fn call(socket: &Path, method: &str, path: &str, body: Option<Value>) -> Result<(u16, Value), ClientError> {
    let limit = (method == "GET").then_some(QUESTION_LIMIT);
    exchange(socket, path, request(method, path, body)?, limit).map(|(answer, _)| answer)
}

/// Status and body of an answer, and its head.
type Answered = ((u16, Value), HeaderMap);

fn exchange(
    socket: &Path,
    path: &str,
    request: Request<Full<Bytes>>,
    limit: Option<Duration>,
) -> Result<Answered, ClientError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| ClientError::Connect { socket: socket.to_owned(), source })?;
    runtime.block_on(within(limit, socket, async {
        let response = send(socket, request).await?;
        let headers = response.headers().clone();
        Ok((read(path, response).await?, headers))
    }))
}

/// What comes of `work`, if that is known in time; without a limit it may take as long as it takes.
pub(crate) async fn within<T>(
    limit: Option<Duration>,
    socket: &Path,
    work: impl Future<Output = Result<T, ClientError>>,
) -> Result<T, ClientError> {
    let Some(limit) = limit else { return work.await };
    let late = |_| ClientError::Silent { socket: socket.to_owned(), seconds: limit.as_secs() };
    tokio::time::timeout(limit, work).await.map_err(late)?
}

/// Documents for a corpus of the daemon.
#[derive(Clone, Debug)]
pub struct Documents {
    /// Name of the corpus.
    pub corpus: String,
    /// How they lie in `body`.
    pub form: PushForm,
    /// Idempotency key: the same documents may be sent again with the same key.
    pub key: String,
    /// The documents.
    pub body: Vec<u8>,
}

/// What the daemon says to documents.
#[derive(Clone, Debug)]
pub struct PushReply {
    /// HTTP status; 200: the documents are durable.
    pub status: u16,
    /// When to send them again, if the daemon says so.
    pub retry_after: Option<Duration>,
    /// The answer's body.
    pub body: Value,
}

/// Sends documents to the daemon that listens on `socket`, and waits until they are durable. Blocks, as [`call`] does.
///
/// # Errors
/// As [`call`]: if no complete answer came. Whether the documents were taken is not known then; send them again with the same
/// key.
pub fn push(socket: &Path, documents: &Documents) -> Result<PushReply, ClientError> {
    let path = format!("/v1/corpora/{}/documents", encoded(&documents.corpus));
    let media_type = match documents.form {
        PushForm::JsonLines => "application/jsonl",
        PushForm::Text => "text/plain; charset=utf-8",
    };
    let request = Request::builder()
        .method("POST")
        .uri(&path)
        .header(header::HOST, "localhost")
        .header(header::CONTENT_TYPE, media_type)
        .header("idempotency-key", &documents.key)
        .body(Full::new(Bytes::from(documents.body.clone())))
        .map_err(|_| ClientError::Request { method: "POST".to_owned(), path: path.clone() })?;
    let ((status, body), headers) = exchange(socket, &path, request, None)?;
    let seconds = headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
    Ok(PushReply { status, retry_after: seconds.map(Duration::from_secs), body })
}

/// A name as one component of a path.
#[must_use]
pub fn encoded(name: &str) -> String {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~".contains(byte);
    name.bytes().fold(String::new(), |mut path, byte| {
        if plain(&byte) {
            path.push(char::from(byte));
        } else {
            path.push_str(&format!("%{byte:02X}"));
        }
        path
    })
}

pub(crate) fn request(method: &str, path: &str, body: Option<Value>) -> Result<Request<Full<Bytes>>, ClientError> {
    let mut request = Request::builder().method(method).uri(path).header(header::HOST, "localhost");
    if body.is_some() {
        request = request.header(header::CONTENT_TYPE, reply::JSON);
    }
    let body = body.map_or_else(Bytes::new, |body| Bytes::from(body.to_string()));
    request.body(Full::new(body)).map_err(|_| ClientError::Request { method: method.to_owned(), path: path.to_owned() })
}

pub(crate) async fn send(socket: &Path, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, ClientError> {
    if socket.as_os_str().as_bytes().len() > SOCKET_PATH_BYTES {
        let reason = format!("its path is longer than the {SOCKET_PATH_BYTES} bytes a socket's may have");
        let source = io::Error::new(io::ErrorKind::InvalidInput, reason);
        return Err(ClientError::Connect { socket: socket.to_owned(), source });
    }
    let stream = UnixStream::connect(socket).await.map_err(|source| unreachable(socket, source))?;
    let no_answer = |error: hyper::Error| ClientError::NoAnswer { socket: socket.to_owned(), reason: causes(&error) };
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(no_answer)?;
    // Ends with the runtime; its errors come out of `send_request` and of the body.
    drop(tokio::spawn(connection));
    sender.send_request(request).await.map_err(no_answer)
}

async fn read(path: &str, response: Response<Incoming>) -> Result<(u16, Value), ClientError> {
    let failed = |reason| ClientError::Answer { path: path.to_owned(), reason };
    let (head, body) = response.into_parts();
    let media_type = media_type(&head.headers);
    if media_type == "text/event-stream" {
        return Err(failed("it has no end; read it with an HTTP client".to_owned()));
    }
    let bytes = match Limited::new(body, ANSWER_LIMIT_BYTES).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) if error.is::<LengthLimitError>() => {
            return Err(failed(format!("it has more than {ANSWER_LIMIT_BYTES} bytes")));
        }
        Err(error) => return Err(failed(error.to_string())),
    };
    let value = match media_type.as_str() {
        _ if bytes.is_empty() => Value::Null,
        reply::JSON => serde_json::from_slice(&bytes).map_err(|error| failed(error.to_string()))?,
        _ => Value::String(String::from_utf8(bytes.to_vec()).map_err(|error| failed(error.to_string()))?),
    };
    Ok((head.status.as_u16(), value))
}

fn media_type(headers: &HeaderMap) -> String {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

fn unreachable(socket: &Path, source: io::Error) -> ClientError {
    let socket = socket.to_owned();
    match source.kind() {
        io::ErrorKind::NotFound => ClientError::NoSocket { socket },
        io::ErrorKind::ConnectionRefused => ClientError::NobodyListens { socket },
        io::ErrorKind::PermissionDenied => ClientError::NotAllowed { socket },
        _ => ClientError::Connect { socket, source },
    }
}

/// hyper's errors say the cause in `source`.
pub(crate) fn causes(error: &dyn std::error::Error) -> String {
    std::iter::successors(Some(error), |error| error.source()).map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn who_listens_and_does_not_answer_is_given_up() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("control.sock");
        // Connections wait in its queue, as those of a daemon that starts.
        let _listener = UnixListener::bind(&socket).unwrap();
        let question = request("GET", "/v1/status", None).unwrap();
        let answer = exchange(&socket, "/v1/status", question, Some(Duration::from_millis(20)));
        assert!(matches!(&answer, Err(ClientError::Silent { socket: asked, .. }) if *asked == socket), "{answer:?}");
    }
}
