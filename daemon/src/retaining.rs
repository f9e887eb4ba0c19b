//! Removing the oldest segments of the log, as far as the configuration says and nobody needs them: of the log that is written here, and of the
//! one that is followed.

use crate::configuration::Configuration;
use crate::live::Effective;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use store::log::{HeldBack, LogMirror, Need, Retention, RetentionPass};
use store::{LogWriter, StoreError};

/// No retention is due: look again after this long.
pub const IDLE: Duration = Duration::from_secs(3600);

/// Segments grow old, and what is needed changes, although none is sealed: look again after this long.
const RETENTION_INTERVAL: Duration = Duration::from_secs(60);

/// What is to be kept of the log.
#[derive(Debug)]
pub struct Keeping {
    /// Says how much, and how soon it is durable.
    pub configuration: Effective,
    /// Folder of the log of held-out records.
    pub held_out: PathBuf,
    /// Who needs more than that; `None`: nobody.
    pub need: Option<Need>,
}

/// A log of which the oldest segments may be removed.
pub trait Retained {
    /// Number of its segments.
    fn segments(&self) -> usize;

    /// Removes the oldest, as far as `retention` says and nobody needs them.
    fn retain(&mut self, retention: &Retention, need: Option<&Need>) -> Result<RetentionPass, StoreError>;

    /// Nothing is to be removed any more.
    fn keeps_all(&self);
}

impl Retained for LogWriter {
    fn segments(&self) -> usize {
        self.segments()
    }

    fn retain(&mut self, retention: &Retention, need: Option<&Need>) -> Result<RetentionPass, StoreError> {
        self.retain(retention, need)
    }

    fn keeps_all(&self) {
        self.keeps_all();
    }
}

impl Retained for LogMirror {
    fn segments(&self) -> usize {
        self.segments()
    }

    fn retain(&mut self, retention: &Retention, need: Option<&Need>) -> Result<RetentionPass, StoreError> {
        self.retain(retention, need)
    }

    fn keeps_all(&self) {
        self.keeps_all();
    }
}

/// Removes the oldest segments, and tells which are needed.
#[derive(Debug)]
pub struct Retaining {
    keeping: Keeping,
    retention: Retention,
    /// When the log was looked at last, and how many segments there were.
    looked: Option<(Instant, usize)>,
    /// What was told last about segments that are needed.
    told: Option<HeldBack>,
}

impl Retaining {
    /// Keeps what `keeping` says.
    pub fn new(keeping: Keeping) -> Self {
        let retention = retention(&keeping.configuration.get(), keeping.held_out.clone());
        Self { keeping, retention, looked: None, told: None }
    }

    /// Takes up how much is to be kept, if it was changed.
    pub fn look_up(&mut self, log: &impl Retained) {
        let wanted = retention(&self.keeping.configuration.get(), self.keeping.held_out.clone());
        if (wanted.bytes, wanted.age) != (self.retention.bytes, self.retention.age) {
            (self.retention, self.looked) = (wanted, None);
            if !self.retention.is_limited() {
                log.keeps_all();
                self.told = None;
            }
        }
    }

    /// How long until something may have to go: nothing when a segment was sealed.
    pub fn due(&self, log: &impl Retained) -> Duration {
        if !self.retention.is_limited() {
            return IDLE;
        }
        match self.looked {
            Some((when, segments)) if segments == log.segments() => RETENTION_INTERVAL.saturating_sub(when.elapsed()),
            _ => Duration::ZERO,
        }
    }

    /// Removes what is to be removed, and tells what is needed. Returns whether something was removed.
    pub fn retain(&mut self, log: &mut impl Retained) -> Result<bool, StoreError> {
        if !self.retention.is_limited() {
            return Ok(false);
        }
        let pass = match log.retain(&self.retention, self.keeping.need.as_ref()) {
            Err(error) if error.is_no_space() => {
                tracing::warn!("nothing can be removed from the log: {error}");
                self.looked = Some((Instant::now(), log.segments()));
                return Ok(false);
            }
            pass => pass?,
        };
        self.looked = Some((Instant::now(), log.segments()));
        if pass.removed_segments > 0 {
            let (segments, bytes, begin) = (pass.removed_segments, pass.removed_bytes, pass.begin);
            tracing::info!(segments, bytes, %begin, "removed the oldest segments of the log, held-out records are kept");
        }
        if let Some(held) = pass.held_back.as_ref().filter(|held| self.told.as_ref() != Some(held)) {
            let (segments, oldest, from) = (held.segments, held.segment.display(), held.needed.from);
            let why = &held.needed.why;
            tracing::info!(segments, %oldest, %from, %why, "segments would be removed from the log, but they are needed");
        }
        self.told = pass.held_back;
        Ok(pass.removed_segments > 0)
    }
}

fn retention(configuration: &Configuration, held_out: PathBuf) -> Retention {
    let section = &configuration.store;
    let hours = Some(section.retain_hours).filter(|hours| *hours > 0.0);
    let age = hours.map(|hours| Duration::from_secs_f64(3600.0 * hours));
    Retention { bytes: section.retain_bytes, age, held_out }
}
