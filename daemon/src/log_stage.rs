//! The log's thread: complete groups in, durable blocks out (group commit).

use crossbeam::channel::{Receiver, RecvTimeoutError};
use std::time::Duration;
use store::stage::StageMetrics;
use store::{Entry, LogWriter, StoreError};

/// Nothing is due: look again after this long.
const IDLE: Duration = Duration::from_secs(3600);

/// Appends every group as one block and makes blocks durable in time; seals the log when its input ends.
pub fn run(mut log: LogWriter, groups: &Receiver<Vec<Entry>>, metrics: &StageMetrics) -> Result<(), StoreError> {
    loop {
        match groups.recv_timeout(log.sync_due().unwrap_or(IDLE)) {
            Ok(entries) => {
                metrics.items_in.inc_by(entries.len() as u64);
                metrics.in_flight.add(entries.len() as i64);
                tracing::debug!(first = entries.first().map(|entry| entry.sequence.0), "append");
                log.append(&entries)?;
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        if log.sync_due().is_some_and(|due| due.is_zero()) {
            sync(&mut log, metrics)?;
        }
    }
    sync(&mut log, metrics)?;
    log.seal()
}

fn sync(log: &mut LogWriter, metrics: &StageMetrics) -> Result<(), StoreError> {
    let durable = log.sync()?;
    tracing::debug!(%durable, "made durable");
    let written = metrics.in_flight.get();
    metrics.items_out.inc_by(written.max(0) as u64);
    metrics.in_flight.set(0);
    metrics.progressed();
    Ok(())
}
