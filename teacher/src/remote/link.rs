//! The way to the server: connection, streams and subjects of a run.

use super::spec::{RunSpec, TeacherSpec};
use async_nats::connection::State;
use async_nats::jetstream::context::PublishErrorKind;
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::{self, consumer, stream};
use async_nats::{ConnectErrorKind, ConnectOptions, Event, Subscriber};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

/// Who has a batch in hand says so more often than this; otherwise another one gets it.
pub(super) const ACK_WAIT: Duration = Duration::from_secs(15);
/// The coordinator keeps labels until they are durable; the next one gets what it did not acknowledge at once ([`Link::forget_reader`]).
const LABELS_ACK_WAIT: Duration = Duration::from_secs(600);
/// Who waits for a full stream tries again this often.
pub(super) const RETRY: Duration = Duration::from_millis(250);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A server that does not answer for two of these is gone.
const PING_INTERVAL: Duration = Duration::from_secs(10);
/// What a message needs besides its content.
const HEAD_BYTES: usize = 1024;
/// What was said last is given so long to leave.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);
const MAKE_STREAM: &str = "make a stream (is JetStream switched on, with room for [cluster] stream_bytes, and are there as many servers as replicas?)";
const CERTIFICATE: &str = "; is the server's certificate of an authority in tls_ca, and for this host?";
const READ_LOG: &str = "let read the log's stream";
/// Name of the coordinator as a reader of labels.
const COORDINATOR: &str = "coordinator";

/// Where the server is, and which run is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkOptions {
    /// `nats://host:4222`, `tls://…`; several, of one cluster, with commas.
    pub url: String,
    /// Name of the run: letters, digits, `-` and `_`.
    pub run: String,
    /// User, and the file that has the password.
    pub login: Option<(String, PathBuf)>,
    /// A credentials file.
    pub credentials: Option<PathBuf>,
    /// Certificates of authorities that the server's is believed by, in place of the system's.
    pub tls_ca: Option<PathBuf>,
    /// Certificate and key that the program shows, if the server wants to see one.
    pub tls_identity: Option<(PathBuf, PathBuf)>,
    /// The most bytes of batches, and of labels, that wait on the server.
    pub stream_bytes: u64,
    /// Copies that the server keeps of each message.
    pub replicas: usize,
}

/// Why server and program do not get together.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LinkError {
    /// There is no connection.
    #[error("cannot connect to {url}: {reason}")]
    Connect {
        /// The server's address.
        url: String,
        /// What it said.
        reason: String,
    },
    /// The server does not do what is asked.
    #[error("{url} does not {doing}: {reason}")]
    Refused {
        /// The server's address.
        url: String,
        /// What was asked.
        doing: &'static str,
        /// What it said.
        reason: String,
    },
    /// A message that the server does not take.
    #[error(
        "{url} takes messages of at most {most} bytes, and {what} has {bytes}; raise max_payload in the server's configuration, or lower queue.batch_tokens"
    )]
    TooLarge {
        /// The server's address.
        url: String,
        /// What does not go in.
        what: String,
        /// Its size.
        bytes: usize,
        /// The server's limit.
        most: usize,
    },
    /// There can be one coordinator.
    #[error(
        "another coordinator is at work on run `{run}` at {url}: {who}; stop it, or give this run another name ([cluster] run)"
    )]
    Taken {
        /// The server's address.
        url: String,
        /// The run.
        run: String,
        /// Who it is.
        who: String,
    },
}

impl LinkError {
    /// Whether the server does not permit it: then it is of no use to try again.
    pub(super) fn is_forbidden(&self) -> bool {
        matches!(self, Self::Refused { reason, .. } if reason.contains("Violation"))
    }
}

/// A connection.
#[derive(Clone, Debug)]
pub(super) struct Link {
    pub(super) options: LinkOptions,
    pub(super) client: async_nats::Client,
    pub(super) context: jetstream::Context,
    /// Counts connections.
    connections: watch::Receiver<u64>,
    /// What the server complained of last: what it does not permit it says there, and leaves the request unanswered.
    complaint: Arc<Mutex<Option<String>>>,
}

/// What a worker says of itself, every few seconds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// Who it is.
    pub worker: String,
    /// Whom it labels for.
    pub teacher: String,
    /// Version of its program.
    pub version: String,
    /// Where it labels.
    pub device: String,
    /// Batches labelled so far.
    pub batches: u64,
    /// Tokens labelled so far.
    pub tokens: u64,
    /// Batches in hand.
    pub in_flight: u64,
    /// Whether this is its last one.
    #[serde(default)]
    pub leaving: bool,
}

/// Whether `run` can be part of subjects and names of streams.
#[must_use]
pub fn is_run_name(run: &str) -> bool {
    !run.is_empty() && run.len() <= 64 && run.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
}

impl Link {
    /// Connects, as `role`: a word that the inboxes of its answers begin with, so that they can be permitted to it alone.
    pub(super) async fn open(options: LinkOptions, role: &str, name: &str) -> Result<Self, LinkError> {
        let failed = |reason: String| LinkError::Connect { url: without_secrets(&options.url), reason };
        let inbox = format!("_INBOX.{}.{role}", options.run);
        let mut connect = ConnectOptions::new()
            .name(name)
            .connection_timeout(CONNECT_TIMEOUT)
            .ping_interval(PING_INTERVAL)
            .custom_inbox_prefix(inbox);
        let read = |file: &PathBuf| {
            std::fs::read_to_string(file).map_err(|error| failed(format!("{}: {error}", file.display())))
        };
        let complaint = Arc::<Mutex<Option<String>>>::default();
        let (shown, complained) = (without_secrets(&options.url), Arc::clone(&complaint));
        let (count, connections) = watch::channel(0);
        connect = connect.event_callback(move |event| {
            let (url, complained) = (shown.clone(), Arc::clone(&complained));
            if matches!(event, Event::Connected) {
                count.send_modify(|count| *count += 1);
            }
            async move {
                match event {
                    Event::Connected => tracing::info!(url, "connected to the NATS server"),
                    Event::Disconnected => {
                        tracing::warn!(url, "the connection to the NATS server is lost; it is tried again")
                    }
                    Event::LameDuckMode => tracing::warn!(url, "the NATS server is about to stop"),
                    Event::ServerError(error) => {
                        tracing::warn!(url, %error, "the NATS server complains");
                        *complained.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.to_string());
                    }
                    Event::ClientError(error) => tracing::warn!(url, %error, "the connection to the NATS server"),
                    _ => {}
                }
            }
        });
        if let Some((user, file)) = &options.login {
            connect = connect.user_and_password(user.clone(), read(file)?.trim_end().to_owned());
        }
        if let Some(file) = &options.credentials {
            let text = read(file)?;
            let said = |error| {
                failed(format!(
                    "{} is no credentials file, as `nsc generate creds` makes them: {error}",
                    file.display()
                ))
            };
            connect = connect.credentials(&text).map_err(said)?;
        }
        if let Some((certificate, key)) = &options.tls_identity {
            connect = connect.add_client_certificate(certificate.clone(), key.clone());
        }
        let files = options.tls_ca.iter().chain(options.tls_identity.iter().flat_map(|(one, other)| [one, other]));
        for file in files {
            let text = read(file)?;
            if !text.contains("-----BEGIN ") {
                return Err(failed(format!("{}: neither certificates nor a key, in PEM", file.display())));
            }
        }
        if let Some(file) = &options.tls_ca {
            connect = connect.add_root_certificates(file.clone()).require_tls(true);
        }
        let servers: Vec<String> = options.url.split(',').map(str::to_owned).collect();
        if options.url.contains('@') {
            let reason = "an address has no user and password here; give user and password_file".to_owned();
            return Err(failed(reason));
        }
        let client = connect.connect(servers).await.map_err(|error| failed(explained(&error)))?;
        let context = jetstream::new(client.clone());
        Ok(Self { options, client, context, connections, complaint })
    }

    /// The most bytes that a message may have.
    pub(super) fn most_bytes(&self) -> usize {
        self.client.server_info().max_payload.saturating_sub(HEAD_BYTES)
    }

    /// Changes with each new connection.
    pub(super) fn connections(&self) -> watch::Receiver<u64> {
        self.connections.clone()
    }

    pub(super) fn is_connected(&self) -> bool {
        self.client.connection_state() == State::Connected
    }

    /// Says something to whoever listens.
    pub(super) async fn say(&self, subject: String, message: Vec<u8>) {
        let _ = self.client.publish(subject, message.into()).await; // It is said again, or nobody needs it.
    }

    /// Hears what is said, from now on. `None`: that cannot be.
    pub(super) async fn hear(&self, subject: String) -> Option<Subscriber> {
        let subscriber = self.client.subscribe(subject).await.ok()?;
        self.flush().await;
        Some(subscriber)
    }

    /// Waits a little until all that was said is on its way.
    pub(super) async fn flush(&self) {
        let _ = tokio::time::timeout(FLUSH_TIMEOUT, self.client.flush()).await;
    }

    pub(super) fn work_subject(&self, teacher: u16) -> String {
        format!("mergedistill.{}.work.{teacher}", self.options.run)
    }

    pub(super) fn labels_subject(&self) -> String {
        format!("mergedistill.{}.labels", self.options.run)
    }

    pub(super) fn heartbeat_subject(&self) -> String {
        format!("mergedistill.{}.workers", self.options.run)
    }

    pub(super) fn coordinator_subject(&self) -> String {
        format!("mergedistill.{}.coordinator", self.options.run)
    }

    pub(super) fn spec_subject(&self) -> String {
        format!("mergedistill.{}.spec", self.options.run)
    }

    pub(super) fn stream_name(&self, what: &str) -> String {
        format!("mergedistill-{}-{what}", self.options.run)
    }

    /// A queue on the server, of which each message is somebody's until he has acknowledged it. Who publishes to a full one is told.
    fn queue(&self, what: &str, subject: String) -> stream::Config {
        stream::Config {
            name: self.stream_name(what),
            subjects: vec![subject],
            retention: stream::RetentionPolicy::WorkQueue,
            discard: stream::DiscardPolicy::New,
            max_bytes: i64::try_from(self.options.stream_bytes).unwrap_or(i64::MAX),
            num_replicas: self.options.replicas,
            ..stream::Config::default()
        }
    }

    /// Empties the stream of batches: who asked for them is gone.
    pub(super) async fn empty_work(&self) -> Result<(), LinkError> {
        let work = self.context.get_stream(self.stream_name("work")).await;
        let work = work.map_err(|error| self.refused("find the stream of batches", error.to_string()))?;
        work.purge().await.map_err(|error| self.refused("empty the stream of batches", error.to_string()))?;
        Ok(())
    }

    /// Whether the run's streams are there.
    pub(super) async fn has_streams(&self) -> Result<bool, LinkError> {
        for what in ["work", "labels", "spec"] {
            match self.context.get_stream(self.stream_name(what)).await {
                Ok(_) => {}
                Err(error) if error.to_string().contains("not found") => return Ok(false),
                Err(error) => return Err(self.refused("tell of its streams", error.to_string())),
            }
        }
        Ok(true)
    }

    /// Whether a batch is still in its stream, under this number; `Err`: there is no stream, or no answer.
    pub(super) async fn has_work(&self, number: u64) -> Result<bool, LinkError> {
        let stream = self.context.get_stream_no_info(self.stream_name("work")).await;
        let stream = stream.map_err(|error| self.refused("find the stream of batches", error.to_string()))?;
        match stream.get_raw_message(number).await {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == stream::RawMessageErrorKind::NoMessageFound => Ok(false),
            Err(error) => Err(self.refused("let look for a batch", error.to_string())),
        }
    }

    /// Makes the run's streams and their readers. What is there stays.
    pub(super) async fn prepare(&self, spec: &RunSpec) -> Result<(), LinkError> {
        let work = self.queue("work", format!("mergedistill.{}.work.*", self.options.run));
        let labels = self.queue("labels", self.labels_subject());
        let specs = stream::Config {
            name: self.stream_name("spec"),
            subjects: vec![self.spec_subject()],
            max_messages: 1,
            num_replicas: self.options.replicas,
            ..stream::Config::default()
        };
        for config in [work, labels, specs] {
            self.make_stream(config).await?;
        }
        for TeacherSpec { index, .. } in &spec.teachers {
            self.consumer("work", work_reader(*index), self.work_subject(*index), ACK_WAIT).await?;
        }
        Ok(())
    }

    /// Makes a stream, or changes it.
    pub(super) async fn make_stream(&self, config: stream::Config) -> Result<(), LinkError> {
        let wanted = config.num_replicas;
        let made = self.context.create_or_update_stream(config).await;
        let made = made.map_err(|error| self.refused(MAKE_STREAM, error.to_string()))?;
        let kept = made.config.num_replicas;
        if kept == wanted {
            return Ok(());
        }
        let reason = format!("it keeps {kept} replicas of stream {}, not {wanted}", made.config.name);
        Err(self.refused(MAKE_STREAM, reason))
    }

    /// The server's address and the run, for people.
    pub(super) fn shown(&self) -> (String, String) {
        (without_secrets(&self.options.url), self.options.run.clone())
    }

    /// Subject of the log's pieces.
    pub(super) fn log_subject(&self) -> String {
        format!("mergedistill.{}.log", self.options.run)
    }

    /// Stream of the log's pieces.
    pub(super) fn log_stream(&self) -> String {
        self.stream_name("log")
    }

    /// The latest message of the log's stream; `None`: it is empty.
    pub(super) async fn last_of_log(&self) -> Result<Option<bytes::Bytes>, LinkError> {
        match self.log_range().await? {
            Some((first, last)) if first <= last => self.log_message(last).await,
            _ => Ok(None),
        }
    }

    /// Numbers of the first and the last message of the log's stream, the first one beyond the last if there is none; `None`: there is no stream.
    pub(super) async fn log_range(&self) -> Result<Option<(u64, u64)>, LinkError> {
        match self.context.get_stream(self.log_stream()).await {
            Ok(stream) => {
                let state = &stream.cached_info().state;
                let first = if state.messages == 0 { state.last_sequence + 1 } else { state.first_sequence };
                Ok(Some((first, state.last_sequence)))
            }
            Err(error) if error.to_string().contains("not found") => Ok(None),
            Err(error) => Err(self.refused(READ_LOG, error.to_string())),
        }
    }

    /// A message of the log's stream; `None`: it is not there.
    pub(super) async fn log_message(&self, number: u64) -> Result<Option<bytes::Bytes>, LinkError> {
        let stream = self.context.get_stream_no_info(self.log_stream()).await;
        let stream = stream.map_err(|error| self.refused(READ_LOG, error.to_string()))?;
        match stream.get_raw_message(number).await {
            Ok(message) => Ok(Some(message.payload)),
            Err(error) if error.kind() == stream::RawMessageErrorKind::NoMessageFound => Ok(None),
            Err(error) => Err(self.refused(READ_LOG, error.to_string())),
        }
    }

    /// Which teachers the run means; `None`: its coordinator has not been here yet.
    pub(super) async fn spec(&self) -> Result<Option<RunSpec>, LinkError> {
        let refused = |error: serde_json::Error| self.refused("tell which teachers the run means", error.to_string());
        let message = self.spec_message().await?;
        message.map(|(_, message)| serde_json::from_slice(&message)).transpose().map_err(refused)
    }

    /// The message that says so, and its number in its stream.
    pub(super) async fn spec_message(&self) -> Result<Option<(u64, bytes::Bytes)>, LinkError> {
        let refused = |reason: String| self.refused("tell which teachers the run means", reason);
        let stream = match self.context.get_stream(self.stream_name("spec")).await {
            Ok(stream) => stream,
            Err(error) if error.to_string().contains("not found") => return Ok(None),
            Err(error) => return Err(refused(error.to_string())),
        };
        match stream.get_last_raw_message_by_subject(&self.spec_subject()).await {
            Ok(message) => Ok(Some((message.sequence, message.payload))),
            Err(error) if error.kind() == stream::LastRawMessageErrorKind::NoMessageFound => Ok(None),
            Err(error) => Err(refused(error.to_string())),
        }
    }

    /// Where a teacher's workers find batches. The coordinator has made it: a worker cannot.
    pub(super) async fn work(&self, teacher: u16) -> Result<consumer::PullConsumer, LinkError> {
        let found = self.context.get_consumer_from_stream(work_reader(teacher), self.stream_name("work")).await;
        found.map_err(|error| self.refused("let read the stream of batches", error.to_string()))
    }

    /// Forgets who read labels before: what they did not acknowledge comes again at once.
    pub(super) async fn forget_reader(&self) {
        if let Ok(stream) = self.context.get_stream(self.stream_name("labels")).await {
            let _ = stream.delete_consumer(COORDINATOR).await; // It need not be there.
        }
    }

    /// Where the coordinator finds labels.
    pub(super) async fn labels(&self) -> Result<consumer::PullConsumer, LinkError> {
        self.consumer("labels", COORDINATOR.to_owned(), self.labels_subject(), LABELS_ACK_WAIT).await
    }

    async fn consumer(
        &self,
        what: &str,
        name: String,
        subject: String,
        ack_wait: Duration,
    ) -> Result<consumer::PullConsumer, LinkError> {
        let refused = |reason: String| self.refused("let read from a stream", reason);
        let config = consumer::pull::Config {
            durable_name: Some(name),
            filter_subject: subject,
            ack_wait,
            max_ack_pending: -1,
            ..consumer::pull::Config::default()
        };
        self.context
            .create_consumer_on_stream(config, self.stream_name(what))
            .await
            .map_err(|error| refused(error.to_string()))
    }

    /// Publishes until the server has stored it, however long the stream is full or the server away; once, under this `id`. Gives its number in the stream;
    /// `None`: `proceed` said no before.
    ///
    /// # Errors
    /// When the message is larger than the server takes, or the stream ever holds; with `after`, also when the stream's last message has another number, or
    /// there is no stream.
    pub(super) async fn store(
        &self,
        subject: &str,
        id: &str,
        message: impl Into<bytes::Bytes>,
        after: Option<u64>,
        proceed: impl Fn() -> bool,
    ) -> Result<Option<u64>, LinkError> {
        let (message, mut warned) = (message.into(), false);
        while proceed() {
            if !self.is_connected() {
                tokio::time::sleep(RETRY).await; // What is published now would all go out at once later.
                continue;
            }
            let most = match usize::try_from(self.options.stream_bytes) {
                Ok(bytes) if bytes > 0 => self.most_bytes().min(bytes),
                _ => self.most_bytes(),
            };
            let too_large = || LinkError::TooLarge {
                url: without_secrets(&self.options.url),
                what: format!("a message to {subject}"),
                bytes: message.len(),
                most,
            };
            if message.len() > most {
                return Err(too_large());
            }
            let mut publish = PublishMessage::build().payload(message.clone()).message_id(id);
            if let Some(number) = after {
                publish = publish.expected_last_sequence(number);
            }
            let stored = match self.context.send_publish(subject.to_owned(), publish).await {
                Ok(acknowledged) => acknowledged.await,
                Err(error) => Err(error),
            };
            match stored {
                Ok(stored) => return Ok(Some(stored.sequence)),
                Err(error) if error.kind() == PublishErrorKind::MaxPayloadExceeded => return Err(too_large()),
                Err(error)
                    if after.is_some()
                        && [PublishErrorKind::WrongLastSequence, PublishErrorKind::StreamNotFound]
                            .contains(&error.kind()) =>
                {
                    return Err(self.refused("take what follows in a stream", error.to_string()));
                }
                Err(error) if !warned => {
                    tracing::warn!(subject, %error, "the server does not take a message; it is tried again");
                    warned = true;
                }
                Err(_) => {}
            }
            tokio::time::sleep(RETRY).await;
        }
        Ok(None)
    }

    pub(super) fn refused(&self, doing: &'static str, reason: String) -> LinkError {
        let complaint = self.complaint.lock().unwrap_or_else(PoisonError::into_inner).take();
        let complaint = complaint.map(|complaint| format!(" ({complaint})")).unwrap_or_default();
        LinkError::Refused { url: without_secrets(&self.options.url), doing, reason: reason + &complaint }
    }
}

/// Name of a teacher's workers as readers of batches.
fn work_reader(teacher: u16) -> String {
    format!("teacher-{teacher}")
}

/// An address without the password that may be in it.
#[must_use]
pub fn without_secrets(url: &str) -> String {
    // A password may have commas in it.
    if url.contains('@') { "an address with a password".to_owned() } else { url.to_owned() }
}

/// What a failed connection says, and what may help.
fn explained(error: &async_nats::ConnectError) -> String {
    let help = match error.kind() {
        ConnectErrorKind::AuthorizationViolation | ConnectErrorKind::Authentication => {
            "; give the user of this run with user and password_file, or a credentials file"
        }
        ConnectErrorKind::Tls => CERTIFICATE,
        _ if error.to_string().contains("certificate") => CERTIFICATE,
        ConnectErrorKind::Io | ConnectErrorKind::Dns | ConnectErrorKind::TimedOut => {
            "; is a nats-server running there?"
        }
        _ => "",
    };
    format!("{error}{help}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_not_shown() {
        let shown = without_secrets("tls://worker:p@s,s@a.example:4222,nats://b:4222");
        assert!(!shown.contains("p@s") && !shown.contains("worker"), "{shown}");
        assert_eq!(without_secrets("tls://a:4222,nats://b:4222"), "tls://a:4222,nats://b:4222");
    }
}
