//! The log's thread: complete groups in, durable blocks out (group commit); and the oldest segments away, if they are limited.
//!
//! A disk that is full stops nothing: the stage keeps the group that does not fit and tries again, and what comes before it
//! backs up in the bounded queues.

use crate::live::Effective;
use crate::push::Inboxes;
use crate::retaining::{IDLE, Keeping, Retaining};
use crossbeam::channel::{Receiver, RecvTimeoutError};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use store::pulse::{self, LOOK_INTERVAL, Wait};
use store::stage::{StageControl, StageMetrics};
use store::{Entry, LogWriter, SourceCursor, StoreError};

/// Without room on the disk: look again after this long.
const ROOM_INTERVAL: Duration = Duration::from_secs(1);

/// The stage.
#[derive(Debug)]
pub struct LogStage {
    log: LogWriter,
    configuration: Effective,
    retaining: Retaining,
    /// Told what is durable, so that they can let go of it.
    inboxes: Arc<Inboxes>,
    /// Newest cursor of each source that reads an inbox, since the last sync.
    appended: BTreeMap<Arc<str>, SourceCursor>,
    /// Looked at only while there is no room: everything that fits is written before a stop.
    control: StageControl,
    metrics: StageMetrics,
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
        let configuration = keeping.configuration.clone();
        let retaining = Retaining::new(keeping);
        Self { log, configuration, retaining, inboxes, appended: BTreeMap::new(), control, metrics }
    }

    /// Appends every group as one block and makes blocks durable in time; seals the log when its input ends.
    pub fn run(mut self, groups: &Receiver<Vec<Entry>>) -> Result<(), StoreError> {
        loop {
            self.look_up();
            let due = self.log.sync_due().unwrap_or(IDLE).min(self.retaining.due(&self.log)).min(LOOK_INTERVAL);
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
            if self.retaining.due(&self.log).is_zero() {
                self.retaining.retain(&mut self.log)?;
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
            if !self.retaining.retain(&mut self.log)? && !self.control.wait(ROOM_INTERVAL) {
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
        self.log.set_sync_interval(Duration::from_millis(self.configuration.get().store.sync_interval_ms));
        self.retaining.look_up(&self.log);
    }
}
