//! Follows a log that somebody publishes: makes the same log here, byte for byte.

use super::link::{Link, LinkOptions};
use super::pieces::{Joined, Part};
use super::publisher::LogStreamError;
use std::path::Path;
use std::time::Duration;
use store::SequenceNumber;
use store::log::{LogMirror, Taken};
use store::pulse::{self, Wait};
use store::stage::StageControl;

/// The stream's end is looked at this often.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// A log that grows as the published one does.
#[derive(Debug)]
pub struct Follower {
    runtime: tokio::runtime::Runtime,
    link: Link,
    mirror: LogMirror,
    joined: Joined,
    /// Number of the stream's next message.
    next: u64,
}

/// What came of looking for a message.
enum Look {
    Taken,
    /// It is not there yet.
    Nothing,
}

impl Follower {
    /// Opens the log in `dir`, or begins one, and waits until somebody publishes the run's. `None`: it was stopped before.
    ///
    /// # Errors
    /// [`LogStreamError`].
    pub fn open(options: LinkOptions, dir: &Path, control: &StageControl) -> Result<Option<Self>, LogStreamError> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.map_err(LogStreamError::Start)?;
        let mirror = LogMirror::open(dir)?;
        let link = runtime.block_on(Link::open(options, "follower", "mergedistill follower"))?;
        let mut said = false;
        loop {
            let segment = mirror.next().map(|next| next.segment);
            if let Some(next) = runtime.block_on(first_message(&link, segment))? {
                return Ok(Some(Self { runtime, link, mirror, joined: Joined::default(), next }));
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

    /// Takes all that is published at this moment. Returns `false` if it was stopped before.
    ///
    /// # Errors
    /// [`LogStreamError`].
    pub fn catch_up(&mut self, control: &StageControl) -> Result<bool, LogStreamError> {
        let last = self.runtime.block_on(self.link.log_range())?.map_or(0, |(_, last)| last);
        while self.next <= last {
            if control.stopping() {
                return Ok(false);
            }
            match self.look()? {
                Look::Taken => {}
                Look::Nothing if !control.wait(LOOK_INTERVAL) => return Ok(false),
                Look::Nothing => {}
            }
        }
        Ok(true)
    }

    /// Goes on until it is stopped.
    ///
    /// # Errors
    /// [`LogStreamError`].
    pub fn run(mut self, control: &StageControl) -> Result<(), LogStreamError> {
        while !control.stopping() {
            match self.look()? {
                Look::Taken => pulse::beat(),
                Look::Nothing => {
                    pulse::waits_for(Wait::Input);
                    let _ = control.wait(LOOK_INTERVAL); // It is asked above.
                }
            }
        }
        Ok(())
    }

    /// First entry that is not there.
    #[must_use]
    pub fn end(&self) -> SequenceNumber {
        self.mirror.durable().end()
    }

    /// Takes the next message.
    fn look(&mut self) -> Result<Look, LogStreamError> {
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
        match self.mirror.take(&piece)? {
            Taken::Gap => Err(self.gap()),
            Taken::New | Taken::Known => Ok(Look::Taken),
        }
    }

    /// There is no message of this number: not yet; or no longer; or the stream is another one.
    fn look_for_next(&mut self) -> Result<Look, LogStreamError> {
        match self.runtime.block_on(self.link.log_range()) {
            Ok(Some((first, _))) if first > self.next => Err(self.gap()),
            Ok(Some((_, last))) if self.next > last + 1 => {
                let segment = self.mirror.next().map(|next| next.segment);
                if let Some(next) = self.runtime.block_on(first_message(&self.link, segment))? {
                    tracing::warn!(
                        "the stream of the log was made anew; it is looked through from the present segment on"
                    );
                    (self.next, self.joined) = (next, Joined::default());
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

/// The first message about the segment, or the stream's first; `None`: nothing is published yet.
async fn first_message(link: &Link, segment: Option<SequenceNumber>) -> Result<Option<u64>, LogStreamError> {
    let Some((first, last)) = link.log_range().await? else { return Ok(None) };
    let Some(segment) = segment else { return Ok((first <= last).then_some(first)) };
    // Segments ascend: the last message before which nothing of the segment is.
    let (mut low, mut high) = (first, last + 1);
    while low < high {
        let middle = low + (high - low) / 2;
        let message = link.log_message(middle).await?;
        let found = message.map(|message| Part::decode(&message)).transpose();
        let found = found.map_err(|error| LogStreamError::Message(error.to_string()))?;
        match found {
            Some(part) if part.piece.at.segment >= segment => high = middle,
            Some(_) => low = middle + 1,
            None => low = middle + 1, // It has gone meanwhile.
        }
    }
    Ok((first <= last).then_some(low))
}
