//! Follows a log that somebody publishes: makes the same log here, byte for byte.

use super::link::{Link, LinkOptions};
use super::pieces::{Joined, Part};
use super::publisher::LogStreamError;
use prometheus::Registry;
use std::path::Path;
use std::time::Duration;
use store::log::{LogMirror, Piece, Taken};
use store::pulse::{self, Wait};
use store::stage::StageControl;
use store::{LogReader, SequenceNumber, StoreError};

/// The stream's end is looked at this often.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// Without room on the disk: it is tried again after this long.
const ROOM_INTERVAL: Duration = Duration::from_secs(1);

/// A log that grows as the published one does.
#[derive(Debug)]
pub struct Follower {
    runtime: tokio::runtime::Runtime,
    link: Link,
    mirror: LogMirror,
    joined: Joined,
    /// Number of the stream's next message.
    next: u64,
    /// What came, and has found no room on the disk yet.
    waiting: Option<Piece>,
}

/// What came of taking all that is published.
#[derive(Debug)]
pub enum CaughtUp {
    /// It is here.
    Whole,
    /// It was stopped before.
    Stopped,
    /// The disk was full before; the error says of what. [`Follower::run`] goes on when there is room.
    NoRoom(StoreError),
}

/// What came of looking for a message.
enum Look {
    Taken,
    /// It is not there yet.
    Nothing,
    /// There is no room for it.
    NoRoom(StoreError),
}

impl Follower {
    /// Opens the log in `dir`, or begins one, and waits until somebody publishes the run's. `None`: it was stopped before.
    ///
    /// # Errors
    /// [`LogStreamError`].
    pub fn open(options: LinkOptions, dir: &Path, control: &StageControl) -> Result<Option<Self>, LogStreamError> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.map_err(LogStreamError::Start)?;
        let mut mirror = LogMirror::open(dir)?;
        let link = runtime.block_on(Link::open(options, "follower", "mergedistill follower"))?;
        let mut said = false;
        loop {
            if let Some(next) = runtime.block_on(first_message(&link, &mut mirror))? {
                return Ok(Some(Self { runtime, link, mirror, joined: Joined::default(), next, waiting: None }));
            }
            if !std::mem::replace(&mut said, true) {
                tracing::info!(run = link.options.run, "waits for somebody to publish the log");
            }
            pulse::waits_for(Wait::Input);
            if !control.wait(LOOK_INTERVAL) {
                return Ok(None);
            }
        }
    }

    /// Takes all that is published at this moment.
    ///
    /// # Errors
    /// [`LogStreamError`].
    pub fn catch_up(&mut self, control: &StageControl) -> Result<CaughtUp, LogStreamError> {
        let last = self.runtime.block_on(self.link.log_range())?.map_or(0, |(_, last)| last);
        while self.next <= last {
            if control.stopping() {
                return Ok(CaughtUp::Stopped);
            }
            match self.look()? {
                Look::Taken => {}
                Look::NoRoom(error) => return Ok(CaughtUp::NoRoom(error)),
                Look::Nothing if !control.wait(LOOK_INTERVAL) => return Ok(CaughtUp::Stopped),
                Look::Nothing => {}
            }
        }
        Ok(CaughtUp::Whole)
    }

    /// Goes on until it is stopped; has `tend` look after the log each time it has looked for more, and says whether the disk is full.
    ///
    /// # Errors
    /// [`LogStreamError`].
    pub fn run(
        mut self,
        control: &StageControl,
        mut tend: impl FnMut(&mut LogMirror, bool) -> Result<(), StoreError>,
    ) -> Result<(), LogStreamError> {
        let mut full = false;
        while !control.stopping() {
            let look = self.look()?;
            tend(&mut self.mirror, matches!(look, Look::NoRoom(_)))?;
            let (wait, interval) = match look {
                Look::Taken => {
                    if std::mem::take(&mut full) {
                        tracing::info!("there is disk space again");
                    }
                    pulse::beat();
                    continue;
                }
                Look::Nothing => (Wait::Input, LOOK_INTERVAL),
                Look::NoRoom(error) => {
                    if !std::mem::replace(&mut full, true) {
                        tracing::warn!("waiting for disk space: {error}");
                    }
                    (Wait::Room, ROOM_INTERVAL)
                }
            };
            pulse::waits_for(wait);
            let _ = control.wait(interval); // It is asked above.
        }
        Ok(())
    }

    /// Has `registry` show the log's metrics.
    ///
    /// # Errors
    /// [`StoreError::Metrics`].
    pub fn register(&self, registry: &Registry) -> Result<(), StoreError> {
        self.mirror.register(registry)
    }

    /// A reader that sees what is taken as soon as it is there.
    ///
    /// # Errors
    /// [`StoreError::NoLog`] before anything was taken.
    pub fn reader(&self) -> Result<LogReader, StoreError> {
        self.mirror.reader()
    }

    /// First entry that is not there.
    #[must_use]
    pub fn end(&self) -> SequenceNumber {
        self.mirror.durable().end()
    }

    /// Takes the next message, or what found no room before.
    fn look(&mut self) -> Result<Look, LogStreamError> {
        if let Some(piece) = self.waiting.take() {
            return self.take(piece);
        }
        let message = match self.runtime.block_on(self.link.log_message(self.next)) {
            Ok(Some(message)) => message,
            Ok(None) => return self.look_for_next(),
            Err(error) => {
                tracing::debug!(%error, "the log cannot be followed; it is tried again");
                return Ok(Look::Nothing);
            }
        };
        let part = Part::decode(&message).map_err(|error| LogStreamError::Message(error.to_string()))?;
        self.next += 1;
        let Some(piece) = self.joined.add(part) else { return Ok(Look::Taken) };
        // A stream that has dropped its oldest begins somewhere within a segment.
        if self.mirror.next().is_none() && piece.at.offset > 0 {
            return Ok(Look::Taken);
        }
        self.take(piece)
    }

    fn take(&mut self, piece: Piece) -> Result<Look, LogStreamError> {
        match self.mirror.take(&piece) {
            Ok(Taken::Gap) => Err(self.gap()),
            Ok(Taken::New | Taken::Known) => Ok(Look::Taken),
            Err(error) if error.is_no_space() => {
                self.waiting = Some(piece);
                Ok(Look::NoRoom(error))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// There is no message of this number: not yet; or no longer; or the stream is another one.
    fn look_for_next(&mut self) -> Result<Look, LogStreamError> {
        match self.runtime.block_on(self.link.log_range()) {
            Ok(Some((first, _))) if first > self.next => Err(self.gap()),
            Ok(Some((_, last))) if self.next > last + 1 => {
                match self.runtime.block_on(first_message(&self.link, &mut self.mirror)) {
                    Ok(Some(next)) => {
                        tracing::warn!(
                            "the stream of the log was made anew; it is looked through from the present segment on"
                        );
                        (self.next, self.joined) = (next, Joined::default());
                    }
                    Ok(None) => {}
                    Err(LogStreamError::Link(error)) => {
                        tracing::debug!(%error, "the log cannot be followed; it is tried again");
                    }
                    Err(error) => return Err(error),
                }
                Ok(Look::Nothing)
            }
            Ok(Some((_, last))) if self.next <= last => match self.runtime.block_on(self.link.log_message(self.next)) {
                Ok(None) => Err(self.gap()),
                _ => Ok(Look::Nothing), // It has come meanwhile.
            },
            _ => Ok(Look::Nothing),
        }
    }

    fn gap(&self) -> LogStreamError {
        let (url, run) = self.link.shown();
        LogStreamError::Gap { url, run, end: self.end() }
    }
}

/// Where the stream goes on from what the mirror has: the first message about its last segment, or the one that comes next if there is none yet; for an empty
/// mirror the stream's first. `None`: nothing is published yet.
///
/// # Errors
/// [`StoreError::AnotherLog`] if what is published is of another log, as far as it can be seen before more comes; [`LogStreamError`].
async fn first_message(link: &Link, mirror: &mut LogMirror) -> Result<Option<u64>, LogStreamError> {
    let Some((first, last)) = link.log_range().await?.filter(|(first, last)| first <= last) else { return Ok(None) };
    let Some(next) = mirror.next() else { return Ok(Some(first)) };
    let found = first_about(link, next.segment, first, last).await?;
    if found > last {
        // All that is published comes before: it should be here.
        let latest = segment_of(link, last).await?;
        let begins = match latest {
            Some(segment) => first_about(link, segment, first, last).await?,
            None => last, // It has gone meanwhile.
        };
        let mut joined = Joined::default();
        for number in begins..=last {
            let Some(part) = part(link, number).await? else { continue };
            if let Some(piece) = joined.add(part) {
                mirror.take(&piece)?;
                break;
            }
        }
    }
    Ok(Some(found))
}

/// The first message about this segment or a later one; `last + 1`: there is none.
async fn first_about(link: &Link, segment: SequenceNumber, first: u64, last: u64) -> Result<u64, LogStreamError> {
    // Segments ascend: the last message before which nothing of the segment is.
    let (mut low, mut high) = (first, last + 1);
    while low < high {
        let middle = low + (high - low) / 2;
        match segment_of(link, middle).await? {
            Some(found) if found >= segment => high = middle,
            _ => low = middle + 1, // What has gone meanwhile came before.
        }
    }
    Ok(low)
}

async fn segment_of(link: &Link, number: u64) -> Result<Option<SequenceNumber>, LogStreamError> {
    Ok(part(link, number).await?.map(|part| part.piece.at.segment))
}

async fn part(link: &Link, number: u64) -> Result<Option<Part>, LogStreamError> {
    let message = link.log_message(number).await?;
    let decoded = message.map(|message| Part::decode(&message)).transpose();
    decoded.map_err(|error| LogStreamError::Message(error.to_string()))
}
