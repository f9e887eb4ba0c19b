//! The log's thread: complete groups in, durable blocks out (group commit); and the oldest segments away, if they are limited.
//!
//! A disk that is full stops nothing: the stage keeps the group that does not fit and tries again, and what comes before it
//! backs up in the bounded queues.

use crate::configuration::Configuration;
use crate::live::Effective;
use crate::push::Inboxes;
use crossbeam::channel::{Receiver, RecvTimeoutError};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use store::log::{HeldBack, Need, Retention};
use store::pulse::{self, LOOK_INTERVAL, Wait};
use store::stage::{StageControl, StageMetrics};
use store::{Entry, LogWriter, SourceCursor, StoreError};

/// No retention is due: look again after this long.
const IDLE: Duration = Duration::from_secs(3600);

/// Without room on the disk: look again after this long.
const ROOM_INTERVAL: Duration = Duration::from_secs(1);

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

/// The stage.
#[derive(Debug)]
pub struct LogStage {
    log: LogWriter,
    keeping: Keeping,
    retention: Retention,
    /// Told what is durable, so that they can let go of it.
    inboxes: Arc<Inboxes>,
    /// Newest cursor of each source that reads an inbox, since the last sync.
    appended: BTreeMap<Arc<str>, SourceCursor>,
    /// Looked at only while there is no room: everything that fits is written before a stop.
    control: StageControl,
    metrics: StageMetrics,
    /// When retention was looked at last, and how many segments there were.
    looked: Option<(Instant, usize)>,
    /// What was told last about segments that are needed.
    told: Option<HeldBack>,
}

impl LogStage {
    /// A stage that writes `log`.
    pub fn new(
        log: LogWriter,
        keeping: Keeping,
        inboxes: Arc<Inboxes>,
        control: StageControl,
        metrics: StageMetrics,
    ) -> Self {
        let retention = retention(&keeping.configuration.get(), keeping.held_out.clone());
        let appended = BTreeMap::new();
        Self { log, keeping, retention, inboxes, appended, control, metrics, looked: None, told: None }
    }

    /// Appends every group as one block and makes blocks durable in time; seals the log when its input ends.
    pub fn run(mut self, groups: &Receiver<Vec<Entry>>) -> Result<(), StoreError> {
        loop {
            self.look_up();
            let due = self.log.sync_due().unwrap_or(IDLE).min(self.retention_due()).min(LOOK_INTERVAL);
            pulse::waits_for(Wait::Input);
            match groups.recv_timeout(due) {
                Ok(entries) => {
                    if !self.append(&entries)? {
                        tracing::warn!("stopped without disk space: what did not fit is labelled again");
                        groups.iter().for_each(drop); // The stages before end as always.
                        break;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if self.log.sync_due().is_some_and(|due| due.is_zero()) {
                self.sync()?;
            }
            if self.retention_due().is_zero() {
                self.retain()?;
            }
        }
        self.sync()?;
        self.log.seal()
    }

    /// Appends a group, as soon as there is room. Returns `false` if a stop was asked for before there was.
    fn append(&mut self, entries: &[Entry]) -> Result<bool, StoreError> {
        tracing::debug!(first = entries.first().map(|entry| entry.sequence.0), "append");
        let mut waited = false;
        loop {
            match self.log.append(entries) {
                Ok(()) => break,
                Err(error) if error.is_no_room() => {
                    if !waited {
                        tracing::warn!("waiting for disk space: {error}");
                        waited = true;
                    }
                }
                Err(error) => return Err(error),
            }
            // What did fit need not wait.
            self.sync()?;
            pulse::waits_for(Wait::Room);
            if !self.retain()? && !self.control.wait(ROOM_INTERVAL) {
                return Ok(false);
            }
        }
        if waited {
            tracing::info!("there is disk space again");
        }
        for entry in entries.iter().filter(|entry| self.inboxes.holds(&entry.cursor.source)) {
            self.appended.insert(Arc::clone(&entry.cursor.source), entry.cursor.clone());
        }
        pulse::beat();
        self.metrics.items_in.inc_by(entries.len() as u64);
        self.metrics.in_flight.add(entries.len() as i64);
        Ok(true)
    }

    fn sync(&mut self) -> Result<(), StoreError> {
        let durable = self.log.sync()?;
        tracing::debug!(%durable, "made durable");
        std::mem::take(&mut self.appended).values().for_each(|cursor| self.inboxes.durable(cursor));
        let written = self.metrics.in_flight.get();
        self.metrics.items_out.inc_by(written.max(0) as u64);
        self.metrics.in_flight.set(0);
        self.metrics.progressed();
        pulse::beat();
        Ok(())
    }

    /// Takes up what was changed: how much is to be kept, and how soon what is appended is durable.
    fn look_up(&mut self) {
        let configuration = self.keeping.configuration.get();
        self.log.set_sync_interval(Duration::from_millis(configuration.store.sync_interval_ms));
        let wanted = retention(&configuration, self.keeping.held_out.clone());
        if (wanted.bytes, wanted.age) != (self.retention.bytes, self.retention.age) {
            (self.retention, self.looked) = (wanted, None);
            if !self.retention.is_limited() {
                self.log.keeps_all();
                self.told = None;
            }
        }
    }

    /// How long until retention is to be looked at: at once when a segment was sealed.
    fn retention_due(&self) -> Duration {
        if !self.retention.is_limited() {
            return IDLE;
        }
        match self.looked {
            Some((when, segments)) if segments == self.log.segments() => {
                RETENTION_INTERVAL.saturating_sub(when.elapsed())
            }
            _ => Duration::ZERO,
        }
    }

    /// Removes what is to be removed, and tells what is needed. Returns whether something was removed.
    fn retain(&mut self) -> Result<bool, StoreError> {
        if !self.retention.is_limited() {
            return Ok(false);
        }
        let pass = match self.log.retain(&self.retention, self.keeping.need.as_ref()) {
            Err(error) if error.is_no_space() => {
                tracing::warn!("nothing can be removed from the log: {error}");
                self.looked = Some((Instant::now(), self.log.segments()));
                return Ok(false);
            }
            pass => pass?,
        };
        self.looked = Some((Instant::now(), self.log.segments()));
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
