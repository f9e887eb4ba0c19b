//! Why the server could not start.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

/// Why the server could not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpsError {
    /// The page and the metrics carry no authentication, so they stay on this machine.
    #[error(
        "[ops] http = \"{address}\": not a loopback address; the page and the metrics are served to this machine alone: \
         use \"127.0.0.1:{port}\" (an SSH tunnel of the same port reaches it from elsewhere)",
        port = address.port()
    )]
    NotLoopback {
        /// The configured address.
        address: SocketAddr,
    },
    /// The TCP port could not be taken.
    #[error("[ops] http: cannot listen on {address}: {source}; choose another port, or 0 for any free one")]
    Http {
        /// The configured address.
        address: SocketAddr,
        /// The system's reason.
        source: io::Error,
    },
    /// The kernel's limit on the length of a socket's path.
    #[error(
        "[ops] socket: the path {path} has {length_bytes} bytes, and a unix socket's may have {limit_bytes}; \
         set a shorter one, e.g. under /run"
    )]
    SocketPathTooLong {
        /// The configured path.
        path: PathBuf,
        /// Its length.
        length_bytes: usize,
        /// The longest possible.
        limit_bytes: usize,
    },
    /// Another process answers on the socket.
    #[error("[ops] socket: {path} is in use by a running process; stop it, or set another path")]
    SocketInUse {
        /// The configured path.
        path: PathBuf,
    },
    /// Something else than a socket has the path, and is not ours to remove.
    #[error("[ops] socket: {path} exists and is not a socket; remove it, or set another path")]
    NotASocket {
        /// The configured path.
        path: PathBuf,
    },
    /// The socket could not be made.
    #[error("[ops] socket: cannot {action} {path}: {source}")]
    Socket {
        /// What was being done.
        action: &'static str,
        /// To which path.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The file with the token cannot be read.
    #[error("[ops] token_file: cannot read {path}: {source}")]
    TokenFile {
        /// The configured path.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// What stands in the file is no token.
    #[error(
        "[ops] token_file: {path} must hold a token of {least_bytes} to {most_bytes} printable ASCII characters and \
         nothing else, e.g. from `openssl rand -hex 32`"
    )]
    Token {
        /// The configured path.
        path: PathBuf,
        /// Shortest one.
        least_bytes: usize,
        /// Longest one.
        most_bytes: usize,
    },
    /// Who is to be in control is not known.
    #[error(
        "[ops] control: `{name}`: {reason}; name users as \"alice\", groups as \"@staff\", both as this machine knows them"
    )]
    Controller {
        /// As it stands in the configuration.
        name: String,
        /// Why it names nobody.
        reason: String,
    },
    /// The service manager passed a socket that is none for us.
    #[error(
        "socket {number} ({name}) of the service manager: {reason}; correct the ListenStream= lines of its .socket unit"
    )]
    Activation {
        /// Its place among those that were passed.
        number: usize,
        /// Its name there.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A metric of this crate could not be registered: the registry already serves another server.
    #[error("cannot register the metrics of the HTTP server: {0}")]
    Metrics(#[from] prometheus::Error),
    /// The thread or its event loop could not be made.
    #[error("cannot start the thread of the HTTP server: {0}")]
    Thread(#[source] io::Error),
}

impl OpsError {
    /// Whether another running process is the reason, and trying again later may help.
    #[must_use]
    pub fn in_use(&self) -> bool {
        match self {
            Self::SocketInUse { .. } => true,
            Self::Http { source, .. } => source.kind() == io::ErrorKind::AddrInUse,
            _ => false,
        }
    }
}
