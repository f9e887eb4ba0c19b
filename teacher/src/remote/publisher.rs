//! Publishes a log: its durable bytes go to a stream, from which any number of others make the same log.

use super::link::{Link, LinkError, LinkOptions};
use super::pieces::Part;
use async_nats::jetstream::stream;
use std::cell::OnceCell;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use store::log::{Need, Place};
use store::pulse::{self, Wait};
use store::stage::StageControl;
use store::{LogReader, SequenceNumber, StoreError};

/// Blocks go together as long as they are not larger.
const PIECE_BYTES: u64 = 512 << 10;
/// What is durable at the end is given so long to go out.
const END_TIMEOUT: Duration = Duration::from_secs(10);
/// Who waits for the log looks this often whether it is to stop.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// What of a log is published, and how.
#[derive(Clone, Debug)]
pub struct PublisherOptions {
    /// The run.
    pub link: LinkOptions,
    /// The most bytes that the stream holds; beyond, its oldest go. 0: all stay.
    pub stream_bytes: u64,
    /// Whether it ends when all that is durable is published.
    pub once: bool,
}

/// Why a log is not published, or not followed.
#[derive(Debug, thiserror::Error)]
pub enum LogStreamError {
    /// The server is not there, or does not do what is asked.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The log cannot be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The stream has the pieces of another log.
    #[error(
        "{url} has another log under run `{run}`: remove stream {stream} there (`nats stream rm {stream}`), or give this run another name"
    )]
    AnotherLog {
        /// The server's address.
        url: String,
        /// The run.
        run: String,
        /// The stream.
        stream: String,
    },
    /// What comes next was dropped from the stream.
    #[error(
        "{url} no longer has what follows entry {end} of run `{run}`'s log; copy the log from its machine first (all of its *.seg files), or remove the folder to begin with what is there, and let the stream hold more (log publish --stream-bytes)"
    )]
    Gap {
        /// The server's address.
        url: String,
        /// The run.
        run: String,
        /// First entry that is missing.
        end: SequenceNumber,
    },
    /// What came is not a part of a log.
    #[error("the log's stream has something else in it: {0}")]
    Message(String),
    /// A thread could not be started.
    #[error("cannot start a thread: {0}")]
    Start(std::io::Error),
}

/// Publishes one log.
#[derive(Debug)]
pub struct Publisher {
    runtime: tokio::runtime::Runtime,
    link: Link,
    log: LogReader,
    once: bool,
    /// What is published next.
    at: Place,
    /// Number of the stream's last message.
    last: u64,
    /// Tells this publisher's messages from those of others.
    life: u64,
}

impl Publisher {
    /// Connects, and finds out where the stream ends.
    ///
    /// # Errors
    /// [`LogStreamError`].
    pub fn open(options: &PublisherOptions, log: LogReader) -> Result<Self, LogStreamError> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.map_err(LogStreamError::Start)?;
        let link = runtime.block_on(Link::open(options.link.clone(), "publisher", "mergedistill publisher"))?;
        let (at, last) = runtime.block_on(begin(&link, options, &log))?;
        let life = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64);
        Ok(Self { runtime, link, log, once: options.once, at, last, life })
    }

    /// Publishes until `control` is stopped; what is durable then still goes out, if the server answers. `need` keeps retention from what is still to be
    /// published; `tell` hears how far it is.
    ///
    /// # Errors
    /// [`StoreError::Removed`] if retention was faster; [`LinkError::Refused`] if somebody else writes to the stream, or it is gone: opened anew, it finds its place
    /// again.
    pub fn run(
        &mut self,
        need: &Need,
        control: &StageControl,
        mut tell: impl FnMut(SequenceNumber),
    ) -> Result<(), LogStreamError> {
        let stopped = OnceCell::new();
        let proceed = || !control.stopping() || stopped.get_or_init(Instant::now).elapsed() < END_TIMEOUT;
        loop {
            need.set(self.at.segment, "it is still to be published ([cluster] publish)");
            let Some(piece) = self.log.piece(self.at, PIECE_BYTES)? else {
                if self.once || control.stopping() {
                    return Ok(());
                }
                pulse::waits_for(Wait::Input);
                let _ = self.log.wait_beyond(self.log.durable(), LOOK_INTERVAL);
                continue;
            };
            for part in Part::all(&piece, self.link.most_bytes()) {
                let (subject, id) = (self.link.log_subject(), part.name(self.life));
                let stored = self.link.store(&subject, &id, part.encode(), Some(self.last), proceed);
                match self.runtime.block_on(stored)? {
                    Some(number) => self.last = number,
                    None => return Ok(()),
                }
            }
            pulse::beat();
            self.at = piece.after();
            tell(piece.end);
        }
    }
}

/// Makes the stream, and finds out how far it goes: what comes next, and the number of its last message.
async fn begin(link: &Link, options: &PublisherOptions, log: &LogReader) -> Result<(Place, u64), LogStreamError> {
    let config = stream::Config {
        name: link.log_stream(),
        subjects: vec![link.log_subject()],
        max_bytes: if options.stream_bytes == 0 { -1 } else { i64::try_from(options.stream_bytes).unwrap_or(i64::MAX) },
        num_replicas: options.link.replicas,
        ..stream::Config::default()
    };
    link.make_stream(config).await?;
    let number = link.log_range().await?.map_or(0, |(_, last)| last);
    let Some(message) = link.last_of_log().await? else { return Ok((log.first_place(), number)) };
    let last = Part::decode(&message).map_err(|error| LogStreamError::Message(error.to_string()))?;
    // All of it, if only a part is there.
    let published = last.piece.at;
    let own = match log.piece(published, last.total_bytes) {
        Err(StoreError::Corrupt { .. }) => None, // Nothing of this log begins there.
        Err(StoreError::Removed { begin, .. }) => {
            tracing::warn!(
                begin = begin.0,
                "retention has removed what was to be published next; the stream goes on where the log begins now, and who follows it has a gap"
            );
            return Ok((log.first_place(), number));
        }
        own => own?.filter(|own| own.at == published),
    };
    let from = usize::try_from(last.from).unwrap_or(usize::MAX);
    let is_same = own.as_ref().is_some_and(|own| {
        own.previous == last.piece.previous
            && own.bytes.get(from..).is_some_and(|rest| rest.starts_with(&last.piece.bytes))
    });
    if !is_same {
        let (url, run) = link.shown();
        return Err(LogStreamError::AnotherLog { url, run, stream: link.log_stream() });
    }
    let next = Place { offset: published.offset.saturating_add(last.total_bytes), ..published };
    Ok((if last.is_last() { next } else { published }, number))
}
