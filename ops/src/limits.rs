//! All bounds of the server in one place.

use std::num::NonZeroUsize;
use std::time::Duration;

/// What one client may cost. The defaults suit a daemon on a machine with other things to do.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Request line and header fields, and the largest piece buffered per connection; at least 8192.
    pub head_bytes: usize,
    /// Header fields of a request.
    pub headers: usize,
    /// Body of a command.
    pub body_bytes: usize,
    /// Documents of one request. What is refused is read up to here, so that the client gets to read why.
    pub push_bytes: u64,
    /// For a request's documents to arrive, from the first byte to the last.
    pub push_timeout: Duration,
    /// Bytes of documents in each [`Limits::push_window`], at least.
    pub push_window_bytes: u64,
    /// For [`Limits::push_window_bytes`] to arrive, from the first byte of the body on, again and again.
    pub push_window: Duration,
    /// Silence after which a client that sends documents makes room for others, if there is none.
    pub push_patience: Duration,
    /// For a request's head, again for its body, and for the pause between two requests of a connection.
    pub read_timeout: Duration,
    /// How long a client may leave an answer, or an event, waiting in its socket.
    pub write_timeout: Duration,
    /// How long status and health may take before the client is told that the daemon does not answer.
    pub query_timeout: Duration,
    /// Connections of each door at a time. Twice this many descriptors stay clear of the usual limit of 1024.
    pub connections: usize,
    /// Readers of `/v1/events` at a time. Below `connections`, so that they cannot take every connection.
    pub subscribers: usize,
    /// Events kept for a reader that is behind; beyond that its oldest are dropped, and counted.
    pub event_backlog: NonZeroUsize,
    /// Between two writes to a reader of events, at least: what happens meanwhile it gets at once. So what readers cost does not grow with
    /// how much happens.
    pub event_rest: Duration,
    /// Silence after which a reader of events is sent a comment, so that both sides notice a dead peer.
    pub heartbeat: Duration,
    /// Status and health questions being answered at a time; more wait their turn within `query_timeout`.
    pub queries: usize,
    /// Commands being carried out at a time; more are refused. Pauses, resumptions and shutdowns have places of their own.
    pub commands: usize,
    /// How long a stop waits for answers under way.
    pub stop_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            head_bytes: 16 * 1024,
            headers: 64,
            body_bytes: 64 * 1024,
            push_bytes: 16 * 1024 * 1024,
            push_timeout: Duration::from_secs(120),
            push_window_bytes: 10 * 1024,
            push_window: Duration::from_secs(10),
            push_patience: Duration::from_secs(1),
            read_timeout: Duration::from_secs(20),
            write_timeout: Duration::from_secs(60),
            query_timeout: Duration::from_secs(10),
            connections: 256,
            subscribers: 200,
            event_backlog: NonZeroUsize::MIN.saturating_add(255),
            event_rest: Duration::from_millis(500),
            heartbeat: Duration::from_secs(15),
            queries: 8,
            commands: 4,
            stop_timeout: Duration::from_secs(5),
        }
    }
}

/// The smallest buffer in which hyper can parse a request.
pub(crate) const LEAST_HEAD_BYTES: usize = 8192;
