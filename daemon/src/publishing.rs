//! Publishes the log beside the stages, for others to train from (`[cluster] publish`).

use crate::failure::{ExitCode, Failure};
use prometheus::{IntGauge, Registry};
use std::thread::JoinHandle;
use std::time::Duration;
use store::log::Need;
use store::stage::StageControl;
use store::{LogReader, SequenceNumber};
use teacher::remote::{Publisher, PublisherOptions};

/// After a failure it begins anew this much later.
const AGAIN_AFTER: Duration = Duration::from_secs(30);

/// What publishes the log, not started yet.
pub struct Publishing {
    options: PublisherOptions,
    publisher: Publisher,
    log: LogReader,
    /// What retention has to leave to it.
    need: Need,
    published: IntGauge,
}

/// The thread that publishes. When dropped it publishes what is durable, if the server answers, and ends.
pub struct Started {
    control: StageControl,
    thread: Option<JoinHandle<()>>,
}

impl Publishing {
    /// Connects. Whatever can be refused is refused here.
    pub fn open(options: PublisherOptions, log: LogReader, registry: &Registry) -> Result<Self, Failure> {
        let help = "The first entry that is not published yet.";
        let failed = |error| Failure::new(ExitCode::Software, format!("cannot register a metric: {error}"));
        let published = IntGauge::new("mergedistill_log_published_sequence", help).map_err(failed)?;
        registry.register(Box::new(published.clone())).map_err(failed)?;
        let publisher = Publisher::open(&options, log.clone())?;
        Ok(Self { options, publisher, log, need: Need::default(), published })
    }

    /// What `need` says, and that what is not published yet has to stay.
    pub fn joined_to(&self, need: Option<Need>) -> Need {
        let need = need.unwrap_or_else(|| {
            let nobody = Need::default();
            nobody.set(SequenceNumber(u64::MAX), "nobody needs it");
            nobody
        });
        need.join(&self.need);
        need
    }

    /// Starts its thread. A failure is no reason to end: the log is what matters, and the stream catches up.
    pub fn start(self) -> Result<Started, Failure> {
        let control = StageControl::default();
        let switch = control.clone();
        let body = move || {
            let Self { options, mut publisher, log, need, published } = self;
            loop {
                let ended = publisher.run(&need, &switch, |end| published.set(end.0.cast_signed()));
                let Err(error) = ended else { return };
                let again_after_seconds = AGAIN_AFTER.as_secs();
                tracing::error!(%error, again_after_seconds, "the log cannot be published");
                loop {
                    if !switch.wait(AGAIN_AFTER) {
                        return;
                    }
                    match Publisher::open(&options, log.clone()) {
                        Ok(opened) => break publisher = opened,
                        Err(error) => tracing::warn!(%error, "the log still cannot be published"),
                    }
                }
            }
        };
        let failed = |error| Failure::new(ExitCode::Software, format!("cannot start a thread: {error}"));
        let thread = std::thread::Builder::new().name("publisher".to_owned()).spawn(body).map_err(failed)?;
        Ok(Started { control, thread: Some(thread) })
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        self.control.stop();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that publishes the log has panicked");
        }
    }
}
