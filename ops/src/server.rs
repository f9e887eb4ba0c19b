//! The server's life: listen, accept, stop.

use crate::access::{Access, Caller, Controllers, Peer};
use crate::connection;
use crate::listen::{self, SocketFile};
use crate::metrics::HttpMetrics;
use crate::operations::Operations;
use crate::page::Page;
use crate::routes::Door;
use crate::{Activated, Control, EventHub, Limits, OpsError, Revision, Token, openapi};
use hyper::body::Bytes;
use prometheus::Registry;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::runtime::{self, Runtime};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// How long to leave the system alone when it cannot give us a connection (no descriptors left).
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// Where to listen.
#[derive(Clone, Debug, Default)]
pub struct OpsOptions {
    /// Loopback address of the live page, metrics and status; port 0 takes any free one.
    pub http: Option<SocketAddr>,
    /// Path of the control socket. Missing folders on the way are created.
    pub socket: Option<PathBuf>,
    /// Opens control on TCP, for requests that carry it.
    pub token: Option<Token>,
    /// Who may change something over the socket; `None`: everybody whom its permissions let in.
    pub control: Option<Controllers>,
    /// What there is to ask and to tell.
    pub surface: Surface,
}

/// What a server answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Surface {
    /// Everything.
    #[default]
    All,
    /// Metrics, health and status.
    Watching,
}

/// A running server. Dropping it stops it.
#[derive(Debug)]
pub struct Server {
    http_address: Option<SocketAddr>,
    revision: Revision,
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
    /// Removed from the file system when the server is gone.
    _socket: Option<SocketFile>,
}

/// Shutdowns that are asked for at a time, beside other commands.
const SHUTDOWNS: usize = 1;
/// Pauses and resumptions at a time, beside other commands. They take no time.
const PAUSES: usize = 4;
/// Scrapes at a time, beside questions; more wait their turn within `query_timeout`.
const SCRAPES: usize = 2;

/// What every connection needs.
pub(crate) struct Shared {
    pub(crate) control: Arc<dyn Control>,
    pub(crate) registry: Registry,
    pub(crate) events: EventHub,
    pub(crate) limits: Limits,
    pub(crate) surface: Surface,
    pub(crate) metrics: HttpMetrics,
    pub(crate) page: Page,
    /// The OpenAPI document.
    pub(crate) document: Bytes,
    pub(crate) queries: Arc<Semaphore>,
    pub(crate) commands: Arc<Semaphore>,
    /// A shutdown waits for no other command.
    pub(crate) shutdowns: Arc<Semaphore>,
    /// A pause and what takes it back wait for none that takes long: they may be what it waits for.
    pub(crate) pauses: Arc<Semaphore>,
    /// Metrics are there though questions are not answered.
    pub(crate) scrapes: Arc<Semaphore>,
    pub(crate) access: Access,
    pub(crate) operations: Operations,
    pub(crate) revision: Revision,
}

/// Becomes true once, when the server is to stop.
#[derive(Clone, Debug)]
pub(crate) struct Stop(watch::Receiver<bool>);

impl Stop {
    pub(crate) async fn asked(&mut self) {
        // An error means that the server's handle is gone: the same.
        drop(self.0.wait_for(|stop| *stop).await);
    }
}

enum Listener {
    Tcp(TcpListener, SocketAddr),
    Unix(UnixListener),
}

enum Client {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Server {
    /// Listens on both addresses and serves them on a thread named `ops`. Registers the server's own metrics.
    pub fn start(
        options: OpsOptions,
        registry: Registry,
        control: Arc<dyn Control>,
        events: EventHub,
    ) -> Result<Self, OpsError> {
        Self::start_with_limits(options, Limits::default(), registry, control, events)
    }

    /// [`Server::start`] with other limits than the default ones.
    pub fn start_with_limits(
        options: OpsOptions,
        limits: Limits,
        registry: Registry,
        control: Arc<dyn Control>,
        events: EventHub,
    ) -> Result<Self, OpsError> {
        Self::start_activated(Activated::default(), options, limits, registry, control, events)
    }

    /// [`Server::start_with_limits`] on the sockets that were passed, and for doors without one on the addresses of `options`.
    pub fn start_activated(
        activated: Activated,
        options: OpsOptions,
        limits: Limits,
        registry: Registry,
        control: Arc<dyn Control>,
        events: EventHub,
    ) -> Result<Self, OpsError> {
        let tcp = match activated.http {
            Some(tcp) => Some(tcp),
            None => options.http.map(listen::tcp).transpose()?,
        };
        let (unix, socket) = match activated.control {
            Some(unix) => (Some(unix), None),
            None => options.socket.as_deref().map(listen::unix).transpose()?.unzip(),
        };
        if let Some(problem) = options.control.as_ref().and_then(Controllers::unseen) {
            tracing::warn!("{problem}");
        }
        let metrics = HttpMetrics::register(&registry, &events)?;
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(limits.queries + limits.commands + SHUTDOWNS + PAUSES + SCRAPES)
            .build()
            .map_err(OpsError::Thread)?;
        let listeners = {
            let _context = runtime.enter();
            let tcp = tcp.map(Listener::tcp).transpose().map_err(OpsError::Thread)?;
            let unix = unix.map(UnixListener::from_std).transpose().map_err(OpsError::Thread)?;
            tcp.into_iter().chain(unix.map(Listener::Unix)).collect::<Vec<_>>()
        };
        let http_address = listeners.iter().find_map(|listener| match listener.door() {
            Door::Tcp(address) => Some(address),
            Door::Unix => None,
        });
        let revision = Revision::default();
        let shared = Arc::new(Shared {
            control,
            registry,
            events,
            surface: options.surface,
            metrics,
            page: Page::new(),
            document: openapi::served(),
            queries: Arc::new(Semaphore::new(limits.queries)),
            commands: Arc::new(Semaphore::new(limits.commands)),
            shutdowns: Arc::new(Semaphore::new(SHUTDOWNS)),
            pauses: Arc::new(Semaphore::new(PAUSES)),
            scrapes: Arc::new(Semaphore::new(SCRAPES)),
            limits,
            access: Access::new(options.token, options.control),
            operations: Operations::default(),
            revision: revision.clone(),
        });
        let (stop, stopped) = watch::channel(false);
        let thread = std::thread::Builder::new()
            .name("ops".to_owned())
            .spawn(move || run(runtime, listeners, &shared, Stop(stopped)))
            .map_err(OpsError::Thread)?;
        Ok(Self { http_address, revision, stop, thread: Some(thread), _socket: socket })
    }

    /// The address of the live page: the configured one, with the port that was given.
    #[must_use]
    pub fn http_address(&self) -> Option<SocketAddr> {
        self.http_address
    }

    /// What has to grow before and after something changes otherwise than by a command.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.revision.clone()
    }

    /// Takes no more connections, ends the streams of events, waits for answers under way (at most
    /// [`Limits::stop_timeout`]) and removes the socket. Closes the hub of events for good.
    pub fn stop(self) {
        drop(self);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the HTTP server's thread panicked");
        }
    }
}

fn run(runtime: Runtime, listeners: Vec<Listener>, shared: &Arc<Shared>, mut stop: Stop) {
    runtime.block_on(async {
        let mut doors = JoinSet::new();
        for listener in listeners {
            doors.spawn(attend(listener, Arc::clone(shared), stop.clone()));
        }
        stop.asked().await;
        shared.events.close();
        let drained = async { while doors.join_next().await.is_some() {} };
        if timeout(shared.limits.stop_timeout, drained).await.is_err() {
            tracing::warn!(limit = ?shared.limits.stop_timeout, "stopping with HTTP requests unanswered");
        }
    });
    // A command that is still being carried out must not hold up the end of the process.
    runtime.shutdown_background();
}

/// Accepts connections at one door until the server stops, then waits for those that are open.
async fn attend(listener: Listener, shared: Arc<Shared>, mut stop: Stop) {
    let door = listener.door();
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.asked() => break,
            Some(_ended) = connections.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok(client) if connections.len() >= shared.limits.connections => {
                shared.metrics.refused.with_label_values(&[door.name()]).inc();
                client.refuse();
            }
            Ok(client) => {
                connections.spawn(client.serve(door, Arc::clone(&shared), stop.clone()));
            }
            Err(error) => {
                tracing::warn!(door = door.name(), %error, "cannot accept a connection");
                sleep(ACCEPT_RETRY).await;
            }
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

impl Listener {
    fn tcp(listener: std::net::TcpListener) -> io::Result<Self> {
        let address = listener.local_addr()?;
        Ok(Self::Tcp(TcpListener::from_std(listener)?, address))
    }

    fn door(&self) -> Door {
        match self {
            Self::Tcp(_, address) => Door::Tcp(*address),
            Self::Unix(_) => Door::Unix,
        }
    }

    async fn accept(&self) -> io::Result<Client> {
        match self {
            Self::Tcp(listener, _) => listener.accept().await.map(|(stream, _)| Client::Tcp(stream)),
            Self::Unix(listener) => listener.accept().await.map(|(stream, _)| Client::Unix(stream)),
        }
    }
}

impl Client {
    async fn serve(self, door: Door, shared: Arc<Shared>, stop: Stop) {
        let caller = Caller { door, peer: self.peer() };
        match self {
            Self::Tcp(stream) => {
                // Events are small and should not wait for more. A socket that refuses is as good.
                let _best_effort = stream.set_nodelay(true);
                connection::serve(stream, caller, shared, stop).await;
            }
            Self::Unix(stream) => connection::serve(stream, caller, shared, stop).await,
        }
    }

    fn peer(&self) -> Option<Peer> {
        let Self::Unix(stream) = self else { return None };
        let peer = stream.peer_cred().ok()?;
        Some(Peer { uid: peer.uid(), gid: peer.gid(), pid: peer.pid() })
    }

    fn refuse(self) {
        let answer = connection::refusal_of_connection();
        // A client that does not get the reason gets the end of the connection.
        let _best_effort = match self {
            Self::Tcp(stream) => stream.try_write(&answer),
            Self::Unix(stream) => stream.try_write(&answer),
        };
    }
}
