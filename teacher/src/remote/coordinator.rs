//! The daemon's side: gives batches to whichever worker comes, and takes their labels.

use super::coordinator_metrics::CoordinatorMetrics;
use super::desk::{Ask, Desk};
use super::link::LinkOptions;
use super::roster::Roster;
use super::spec::{RunSpec, TeacherSpec};
use super::wire::{Key, Work};
use crate::{Labeller, PendingLabels, TeacherError};
use crossbeam::channel::bounded;
use model::Configuration;
use prometheus::Registry;
use std::sync::Arc;
use std::time::Duration;
use store::{LogReader, MaskedCopy, SequenceNumber};
use tokio::sync::{mpsc, oneshot, watch};

/// What is to be said at the end is given so long to leave.
const END_TIMEOUT: Duration = Duration::from_secs(5);

/// The run's place on the server. While it lives, batches go out and labels come in.
#[derive(Debug)]
pub struct Coordinator {
    asks: mpsc::UnboundedSender<Ask>,
    roster: Roster,
    life: u64,
    /// Takes the log that the labels go to.
    log: Option<oneshot::Sender<LogReader>>,
    /// Dropped at the end.
    open: watch::Sender<()>,
    thread: std::thread::JoinHandle<()>,
}

/// A teacher whose batches others label.
pub struct RemoteTeacher {
    spec: TeacherSpec,
    digest: [u8; 16],
    life: u64,
    configuration: Configuration,
    in_flight: usize,
    /// The same teacher, if it is labelled in this process too.
    here: Option<Arc<dyn Labeller>>,
    asks: mpsc::UnboundedSender<Ask>,
}

impl Coordinator {
    /// Makes the run's streams, and says which teachers it means; [`Coordinator::begin`] says what for. A batch is tried `attempts` times before it is given up.
    ///
    /// # Errors
    /// When there is no server, it does not do what is asked, or another coordinator is at work on this run.
    pub fn open(options: LinkOptions, spec: RunSpec, attempts: u32, registry: &Registry) -> Result<Self, TeacherError> {
        let (asks, asked) = mpsc::unbounded_channel();
        let (ready_in, ready) = bounded(1);
        let (open, mut closed) = watch::channel(());
        let (log_in, log) = oneshot::channel();
        let roster = Roster::new(spec.teachers.iter().map(|teacher| teacher.name.clone()).collect())?;
        registry.register(Box::new(roster.clone()))?;
        let metrics = CoordinatorMetrics::register(registry)?;
        let life = spec.coordinator.life;
        let seen = roster.clone();
        let body = move || {
            let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime,
                Err(source) => {
                    let thread = "coordinator".to_owned();
                    let _ = ready_in.send(Err(TeacherError::Thread { thread, source }));
                    return;
                }
            };
            runtime.block_on(async {
                match Desk::open(options, spec, attempts, seen, metrics).await {
                    Ok(desk) => {
                        let _ = ready_in.send(Ok(()));
                        let Ok(log) = log.await else { return }; // It is refused for another reason.
                        let too_long = async {
                            while closed.changed().await.is_ok() {}
                            tokio::time::sleep(END_TIMEOUT).await;
                        };
                        tokio::select! {
                            () = desk.run(log, asked) => {}
                            () = too_long => tracing::warn!("the NATS server does not answer; it is not waited for"),
                        }
                    }
                    Err(error) => drop(ready_in.send(Err(error.into()))),
                }
            });
        };
        let failed = |source| TeacherError::Thread { thread: "coordinator".to_owned(), source };
        let thread = std::thread::Builder::new().name("coordinator".to_owned()).spawn(body).map_err(failed)?;
        ready.recv().map_err(|_| TeacherError::Panicked("coordinator".to_owned()))??;
        Ok(Self { asks, roster, life, log: Some(log_in), open, thread })
    }

    /// Labels what its teachers are asked for from now on; what `log` has for good is acknowledged.
    pub fn begin(&mut self, log: LogReader) {
        if let Some(begin) = self.log.take() {
            let _ = begin.send(log); // A thread that has ended is told of by the first batch.
        }
    }

    /// A teacher of the run, of whose batches at most `in_flight` are out. `here`: the same teacher, if a worker of this process has it.
    #[must_use]
    pub fn teacher(
        &self,
        spec: TeacherSpec,
        configuration: Configuration,
        in_flight: usize,
        here: Option<Arc<dyn Labeller>>,
    ) -> RemoteTeacher {
        let (digest, life, asks) = (spec.digest(), self.life, self.asks.clone());
        RemoteTeacher { spec, digest, life, configuration, in_flight, here, asks }
    }

    /// Waits until all is acknowledged that the log has for good. Its teachers are gone before.
    pub fn close(self) {
        let Self { asks, log, open, thread, .. } = self;
        drop((asks, log, open));
        if thread.join().is_err() {
            tracing::error!("the coordinator's thread has panicked");
        }
    }

    /// Who works for the run.
    #[must_use]
    pub fn roster(&self) -> Roster {
        self.roster.clone()
    }
}

impl std::fmt::Debug for RemoteTeacher {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        to.debug_struct("RemoteTeacher").field("spec", &self.spec).finish_non_exhaustive()
    }
}

impl Labeller for RemoteTeacher {
    fn name(&self) -> &str {
        &self.spec.name
    }

    fn index(&self) -> u16 {
        self.spec.index
    }

    fn begin(&self, copies: &[&MaskedCopy], group_end: SequenceNumber) -> Result<PendingLabels, TeacherError> {
        let (spec, life) = (self.digest, self.life);
        let key = Key::of(group_end, &spec, copies);
        let copies = copies.iter().map(|copy| MaskedCopy { label: None, ..(*copy).clone() }).collect();
        let work = Work { key, spec, life, attempt: 1, most_deliveries: 0, copies };
        let (reply, arrival) = bounded(1);
        let TeacherSpec { index, name, top_k, .. } = &self.spec;
        let ask = Ask { teacher: *index, name: name.clone(), top_k: *top_k, work, reply };
        self.asks.send(ask).map_err(|_| TeacherError::Panicked("coordinator".to_owned()))?;
        Ok(PendingLabels::arriving(arrival))
    }

    fn flops(&self, copies: &[&MaskedCopy]) -> u64 {
        self.configuration.flops(copies.iter().map(|copy| (copy.token_ids.len(), copy.masked_positions.len())))
    }

    fn tail_samples(&self) -> usize {
        self.spec.tail_samples
    }

    fn needs_pool(&self) -> bool {
        false
    }

    fn device_bytes(&self) -> usize {
        self.here.as_ref().map_or(0, |here| here.device_bytes())
    }

    fn ahead(&self) -> usize {
        self.in_flight - 1
    }

    fn is_elsewhere(&self) -> bool {
        true
    }
}
