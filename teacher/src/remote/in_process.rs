//! Workers in the coordinator's own process: for a teacher that is labelled there and elsewhere.
//!
//! They take their batches from the server as any other worker does, so batches go wherever there is room, and nobody has to weigh one side
//! against the other.

use super::worker::{Ended, Worker, WorkerError, WorkerOptions};
use super::worker_metrics::WorkerMetrics;
use crate::{Labeller, TeacherError};
use model::RolePool;
use prometheus::Registry;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use store::stage::StageControl;

/// After a failure it begins anew this much later.
const AGAIN_AFTER: Duration = Duration::from_secs(30);

/// A worker of this process. It is stopped when dropped.
#[derive(Debug)]
pub struct InProcess {
    control: StageControl,
    thread: Option<JoinHandle<()>>,
}

impl InProcess {
    /// Starts a worker for `labeller`. It goes on after failures: what it does not label others may.
    ///
    /// # Errors
    /// When there is no thread for it.
    pub fn start(
        options: WorkerOptions,
        labeller: Arc<dyn Labeller>,
        pool: Arc<RolePool>,
        control: StageControl,
    ) -> Result<Self, TeacherError> {
        let name = format!("worker-{}", options.teacher);
        let failed = |source| TeacherError::Thread { thread: name.clone(), source };
        // Nobody scrapes them: its batches are counted where they come in, and the roster has what it says of itself.
        let metrics = WorkerMetrics::register(&Registry::new(), &options.teacher)?;
        let switch = control.clone();
        let body = move || {
            while !switch.stopping() {
                match once(&options, &labeller, &pool, &switch, &metrics) {
                    Ok(Ended::Stopped) => return,
                    Ok(Ended::Changed) => {}
                    Err(error) => {
                        let (teacher, again_after_seconds) = (&options.teacher, AGAIN_AFTER.as_secs());
                        tracing::error!(teacher, %error, again_after_seconds, "the daemon's own worker has failed");
                        let until = Instant::now() + AGAIN_AFTER;
                        while Instant::now() < until {
                            if !switch.wait(until.saturating_duration_since(Instant::now())) {
                                return;
                            }
                        }
                        if let Err(error) = labeller.recover() {
                            tracing::warn!(teacher, %error, "its device is still lost");
                        }
                    }
                }
            }
        };
        let thread = std::thread::Builder::new().name(name.clone()).spawn(body).map_err(failed)?;
        Ok(Self { control, thread: Some(thread) })
    }
}

impl Drop for InProcess {
    fn drop(&mut self) {
        self.control.stop();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the daemon's own worker has panicked");
        }
    }
}

fn once(
    options: &WorkerOptions,
    labeller: &Arc<dyn Labeller>,
    pool: &Arc<RolePool>,
    control: &StageControl,
    metrics: &WorkerMetrics,
) -> Result<Ended, WorkerError> {
    let Some(worker) = Worker::join(options.clone(), control, metrics)? else { return Ok(Ended::Stopped) };
    worker.run(Arc::clone(labeller), Arc::clone(pool), control)
}
