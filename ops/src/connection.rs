//! One connection: HTTP/1.1 with every limit set.

use crate::access::Caller;
use crate::limits::LEAST_HEAD_BYTES;
use crate::reply::Refusal;
use crate::routes;
use crate::server::{Shared, Stop};
use crate::write_deadline::WriteDeadline;
use hyper::http::StatusCode;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite};

/// Answers requests until the client leaves, a limit is reached or the server stops.
pub(crate) async fn serve<S>(stream: S, caller: Caller, shared: Arc<Shared>, mut stop: Stop)
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let limits = &shared.limits;
    let door = caller.door;
    let open = shared.metrics.connections.with_label_values(&[door.name()]);
    open.inc();
    let io = TokioIo::new(WriteDeadline::new(stream, limits.write_timeout));
    let service = service_fn(|request| async { Ok::<_, Infallible>(routes::answer(&shared, caller, request).await) });
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(limits.read_timeout)
            .max_headers(limits.headers)
            .max_buf_size(limits.head_bytes.max(LEAST_HEAD_BYTES))
            .serve_connection(io, service)
    );
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = stop.asked() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    open.dec();
    if let Err(error) = result {
        tracing::debug!(door = door.name(), %error, "connection ended early");
    }
}

/// The whole answer to a connection that is one too many: small enough for any socket's buffer, so nobody waits.
pub(crate) fn refusal_of_connection() -> Vec<u8> {
    let message = "the limit of open connections is reached; close one, or try again later";
    let refusal = Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "too_many_connections", message);
    let body = format!("{}\n", refusal.to_json());
    format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\
         connection: close\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}
