//! A worker: takes batches of one teacher from the server, labels them, and acknowledges each once the server has stored its labels.

use super::link::{ACK_WAIT, Heartbeat, Link, LinkError, LinkOptions};
use super::spec::{RunSpec, TeacherSpec};
use super::wire::{Key, Outcome, Work};
use super::worker_metrics::WorkerMetrics;
use crate::{Labeller, PendingLabels, TeacherError};
use async_nats::jetstream::AckKind;
use async_nats::jetstream::consumer::PullConsumer;
use async_nats::jetstream::message::Acker;
use crossbeam::channel::{Receiver, Sender, bounded};
use futures_util::StreamExt;
use model::RolePool;
use std::collections::{HashMap, VecDeque};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;
use store::pulse::{self, Wait};
use store::stage::StageControl;
use store::{Label, MaskedCopy};
use tokio::sync::mpsc;

/// Batches that a worker has in hand: one at work, one begun behind it, and one on the way.
const IN_HAND: usize = 3;
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(2);
/// How long a request for batches waits for some.
const PULL_EXPIRES: Duration = Duration::from_secs(5);
/// How often a worker looks whether the run's coordinator has been there, and whether it is to stop.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);
/// What is to be said at the end is given so long to leave.
const END_TIMEOUT: Duration = Duration::from_secs(5);
/// A batch that failed is given to somebody after this long.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// Who a worker is.
#[derive(Clone, Debug)]
pub struct WorkerOptions {
    /// The run.
    pub link: LinkOptions,
    /// The teacher's name in the run's configuration.
    pub teacher: String,
    /// What it is called: no other worker of the run is.
    pub name: String,
    /// Where it labels, for people.
    pub device: String,
}

/// A worker that knows what is asked of it.
#[derive(Debug)]
pub struct Worker {
    options: WorkerOptions,
    runtime: tokio::runtime::Runtime,
    link: Link,
    spec: TeacherSpec,
    metrics: WorkerMetrics,
}

/// Why a worker has ended without an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It was stopped.
    Stopped,
    /// The run means another teacher now, or wants other labels of it: it has to be asked again.
    Changed,
}

/// Why a worker does not work.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The server is not there, or does not do what is asked.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The run does not mean this teacher.
    #[error("{0}")]
    Refused(String),
    /// The teacher failed in a way that another worker may not.
    #[error(transparent)]
    Teacher(#[from] TeacherError),
    /// A thread could not be started.
    #[error("cannot start the worker: {0}")]
    Start(std::io::Error),
}

impl Worker {
    /// Connects, and asks the run what its teacher is; waits until its coordinator has been there. `None`: it was stopped before.
    ///
    /// # Errors
    /// When there is no server, or the run has no such teacher.
    pub fn join(
        options: WorkerOptions,
        control: &StageControl,
        metrics: &WorkerMetrics,
    ) -> Result<Option<Self>, WorkerError> {
        let metrics = metrics.clone();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.map_err(WorkerError::Start)?;
        let link = runtime.block_on(Link::open(options.link.clone(), "worker", &options.name))?;
        let waiting = async {
            tokio::select! {
                run = wait_for_spec(&link, control) => run,
                () = stopped(control) => Ok(None),
            }
        };
        let Some(run) = runtime.block_on(waiting)? else { return Ok(None) };
        let spec = run.teacher(&options.teacher).map_err(WorkerError::Refused)?.clone();
        Ok(Some(Self { options, runtime, link, spec, metrics }))
    }

    /// What the run says of its teacher.
    #[must_use]
    pub fn spec(&self) -> &TeacherSpec {
        &self.spec
    }

    /// Labels until it is stopped, or the run means another teacher; what it has in hand then others get.
    ///
    /// # Errors
    /// When the teacher's device is lost, or the server does not do what is asked.
    pub fn run(
        self,
        labeller: Arc<dyn Labeller>,
        pool: Arc<RolePool>,
        control: &StageControl,
    ) -> Result<Ended, WorkerError> {
        let (jobs_in, jobs) = bounded::<Work>(IN_HAND);
        let (results_in, results) = mpsc::unbounded_channel();
        let Self { options, runtime, link, spec, metrics } = self;
        let labelling = std::thread::Builder::new().name(format!("teacher-{}", options.teacher));
        let of_thread = metrics.clone();
        let pulse = pulse::current();
        let labelling = labelling.spawn(move || {
            let _entered = pulse.map(pulse::Pulse::enter);
            label(labeller.as_ref(), &pool, &jobs, &results_in, &of_thread);
        });
        let labelling = labelling.map_err(WorkerError::Start)?;
        let (index, digest) = (spec.index, spec.digest());
        let desk = Desk { options, link, metrics, control: control.clone(), digest, in_hand: HashMap::new() };
        let outcome = runtime.block_on(async {
            tokio::select! {
                outcome = desk.run(index, jobs_in, results) => outcome,
                // A server that is gone is not waited for.
                () = async { stopped(control).await; tokio::time::sleep(END_TIMEOUT).await } => Ok(Ended::Stopped),
            }
        });
        runtime.shutdown_background();
        if labelling.join().is_err() {
            tracing::error!("the worker's labelling thread has panicked");
        }
        outcome
    }
}

/// Waits until it is stopped.
async fn stopped(control: &StageControl) {
    while !control.stopping() {
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

async fn wait_for_spec(link: &Link, control: &StageControl) -> Result<Option<RunSpec>, LinkError> {
    let (mut said, mut warned) = (false, false);
    while !control.stopping() {
        pulse::waits_for(Wait::Input);
        match link.spec().await {
            Ok(Some(spec)) => return Ok(Some(spec)),
            Ok(None) => {}
            Err(error) if error.is_forbidden() => return Err(error),
            // Servers may be about to agree on who leads, or to come back.
            Err(error) if !std::mem::replace(&mut warned, true) => tracing::warn!(%error, "it is tried again"),
            Err(_) => {}
        }
        if !std::mem::replace(&mut said, true) {
            tracing::info!(run = link.options.run, "waits for the run's coordinator");
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
    Ok(None)
}

/// What came of a batch on the labelling thread.
struct Labelled {
    key: Key,
    tokens: usize,
    labels: Result<Vec<Label>, TeacherError>,
}

/// A batch that was begun.
struct Begun {
    key: Key,
    tokens: usize,
    labels: Result<PendingLabels, TeacherError>,
}

/// Labels batch after batch; where the teacher can begin the next one before one is done, it does.
fn label(
    labeller: &dyn Labeller,
    pool: &Arc<RolePool>,
    jobs: &Receiver<Work>,
    results: &mpsc::UnboundedSender<Labelled>,
    metrics: &WorkerMetrics,
) {
    let working = pool.work();
    let mut at_work: VecDeque<Begun> = VecDeque::new();
    let caught = |work: &mut dyn FnMut() -> Result<PendingLabels, TeacherError>| {
        let done = std::panic::catch_unwind(AssertUnwindSafe(work));
        done.unwrap_or_else(|_| Err(TeacherError::Panicked(format!("teacher-{}", labeller.name()))))
    };
    loop {
        let job = if at_work.is_empty() { wait_for_job(jobs, metrics) } else { jobs.try_recv().ok() };
        if job.is_none() && at_work.is_empty() {
            break;
        }
        let begun = job.is_some();
        let busy = metrics.labelling();
        if let Some(Work { key, copies, .. }) = job {
            let copies: Vec<&MaskedCopy> = copies.iter().collect();
            let tokens = copies.iter().map(|copy| copy.token_ids.len()).sum();
            let labels = caught(&mut || match labeller.needs_pool() {
                true => pool.install(|| labeller.begin(&copies, key.group_end)),
                false => labeller.begin(&copies, key.group_end),
            });
            at_work.push_back(Begun { key, tokens, labels });
        }
        if (!begun || at_work.len() > labeller.ahead())
            && let Some(Begun { key, tokens, labels }) = at_work.pop_front()
        {
            let mut labels = Some(labels);
            let mut done = Vec::new();
            let waited = caught(&mut || {
                let labels = labels.take().unwrap_or_else(|| Ok(PendingLabels::ready(Vec::new())));
                done = labels.and_then(PendingLabels::wait)?;
                Ok(PendingLabels::ready(Vec::new()))
            });
            metrics.halved(labeller.take_halvings());
            pulse::beat();
            if results.send(Labelled { key, tokens, labels: waited.map(|_| done) }).is_err() {
                break;
            }
        }
        drop(busy);
    }
    drop(working);
}

fn wait_for_job(jobs: &Receiver<Work>, metrics: &WorkerMetrics) -> Option<Work> {
    let _waiting = metrics.waiting();
    loop {
        pulse::waits_for(Wait::Input);
        match jobs.recv_timeout(LOOK_INTERVAL) {
            Ok(job) => return Some(job),
            Err(crossbeam::channel::RecvTimeoutError::Timeout) => {}
            Err(crossbeam::channel::RecvTimeoutError::Disconnected) => return None,
        }
    }
}

/// What the worker's asynchronous side has in hand.
struct Desk {
    options: WorkerOptions,
    link: Link,
    metrics: WorkerMetrics,
    control: StageControl,
    /// Of the teacher as it is here.
    digest: [u8; 16],
    in_hand: HashMap<Key, InHand>,
}

struct InHand {
    acker: Acker,
    asked: Asked,
}

/// Who asked for a batch.
#[derive(Clone, Copy)]
struct Asked {
    /// The coordinator's life.
    life: u64,
    /// Its attempt.
    attempt: u32,
}

impl Desk {
    async fn run(
        mut self,
        teacher: u16,
        jobs: Sender<Work>,
        mut results: mpsc::UnboundedReceiver<Labelled>,
    ) -> Result<Ended, WorkerError> {
        let consumer = self.link.work(teacher).await?;
        let (arrivals_in, mut arrivals) = mpsc::channel(1);
        let (room_in, room) = mpsc::channel(IN_HAND);
        for _ in 0..IN_HAND {
            let _ = room_in.try_send(());
        }
        let pulling = tokio::spawn(pull(consumer, room, arrivals_in));
        let (mut beats, mut looks) = (tokio::time::interval(HEARTBEAT_INTERVAL), tokio::time::interval(LOOK_INTERVAL));
        let mut keeps = tokio::time::interval(ACK_WAIT / 3);
        let outcome = loop {
            tokio::select! {
                message = arrivals.recv() => {
                    let Some(message) = message else { break Err(self.lost("pull")) };
                    match self.take(message, &jobs, &room_in).await {
                        Ok(None) => {}
                        Ok(Some(ended)) => break Ok(ended),
                        Err(error) => break Err(error.into()),
                    }
                }
                labelled = results.recv() => {
                    let Some(labelled) = labelled else { break Err(self.lost("teacher")) };
                    if let Err(error) = self.hand_on(labelled, &room_in).await {
                        break Err(error);
                    }
                }
                _ = beats.tick() => self.beat(false).await,
                _ = keeps.tick() => self.keep().await,
                _ = looks.tick() => {
                    self.metrics.connected.set(self.link.is_connected().into());
                    if self.control.stopping() {
                        break Ok(Ended::Stopped);
                    }
                }
            }
        };
        pulling.abort();
        self.beat(true).await;
        for InHand { acker, .. } in self.in_hand.into_values() {
            let _ = acker.ack_with(AckKind::Nak(None)).await; // Who does not hear of it waits until its time is over.
        }
        self.link.flush().await;
        outcome
    }

    /// A part of the worker has ended, and should not have.
    fn lost(&self, part: &str) -> WorkerError {
        TeacherError::Panicked(format!("{part}-{}", self.options.teacher)).into()
    }

    async fn take(
        &mut self,
        message: async_nats::jetstream::Message,
        jobs: &Sender<Work>,
        room: &mpsc::Sender<()>,
    ) -> Result<Option<Ended>, LinkError> {
        let delivered = message.info().map_or(1, |info| info.delivered.max(1).cast_unsigned());
        let (message, acker) = message.split();
        let work = match Work::decode(&message.payload) {
            Ok(work) => work,
            Err(error) => {
                // Another version's coordinator may be at work now: it is asked.
                tracing::warn!(%error, "a batch that cannot be read is handed back");
                let _ = acker.ack_with(AckKind::Nak(Some(RETRY_DELAY))).await;
                return Ok(Some(Ended::Changed));
            }
        };
        let (key, asked) = (work.key, Asked { life: work.life, attempt: work.attempt });
        if work.spec != self.digest {
            tracing::info!("the run means another teacher now, or wants other labels of it");
            let _ = acker.ack_with(AckKind::Nak(Some(RETRY_DELAY))).await;
            return Ok(Some(Ended::Changed));
        }
        let is_new = self.in_hand.insert(key, InHand { acker, asked }).is_none();
        if delivered > u64::from(work.most_deliveries) {
            // Whoever had it before did not live to say why.
            let reason = format!("{} workers ended, or lost the server, while they had it", delivered - 1);
            if is_new {
                self.metrics.failed_batches.inc();
                self.report(key, asked, Err(reason)).await?;
            }
            let _ = room.try_send(());
        } else if is_new {
            let _ = jobs.try_send(work); // There is room: no more are asked for.
        } else {
            let _ = room.try_send(()); // It came twice.
        }
        self.metrics.in_flight.set(self.in_hand.len() as i64);
        Ok(None)
    }

    async fn hand_on(&mut self, labelled: Labelled, room: &mpsc::Sender<()>) -> Result<(), WorkerError> {
        let Labelled { key, tokens, labels } = labelled;
        let Some(asked) = self.in_hand.get(&key).map(|in_hand| in_hand.asked) else { return Ok(()) };
        match labels {
            Ok(labels) => {
                if self.report(key, asked, Ok(labels)).await? {
                    self.metrics.batches.inc();
                    self.metrics.tokens.inc_by(tokens as u64);
                }
            }
            // What is lost here others may have.
            Err(error) if error.is_lost_device() => return Err(error.into()),
            Err(error) => {
                // The coordinator counts, and asks somebody again.
                tracing::warn!(%error, attempt = asked.attempt, "a batch failed");
                self.metrics.failed_batches.inc();
                self.report(key, asked, Err(error.to_string())).await?;
            }
        }
        self.metrics.in_flight.set(self.in_hand.len() as i64);
        let _ = room.try_send(());
        Ok(())
    }

    /// Publishes what came of a batch, and acknowledges it. Returns `false` if a stop came before it was stored.
    async fn report(&mut self, key: Key, asked: Asked, labels: Result<Vec<Label>, String>) -> Result<bool, LinkError> {
        let stored = self.store(key, asked, labels).await?;
        if stored && let Some(InHand { acker, .. }) = self.in_hand.remove(&key) {
            let _ = acker.ack().await; // Lost, it comes again, and its labels are known.
        }
        Ok(stored)
    }

    /// Publishes what came of a batch, in as many parts as the server's limit asks for.
    async fn store(&self, key: Key, asked: Asked, labels: Result<Vec<Label>, String>) -> Result<bool, LinkError> {
        let (subject, name) = (self.link.labels_subject(), &self.options.name);
        let messages = messages(key, name, labels, self.link.most_bytes());
        let count = messages.len();
        for (part, message) in messages.into_iter().enumerate() {
            let id = format!("{}-{part}/{count}-{:x}-{}-{name}", key.name(), asked.life, asked.attempt);
            let bytes = message.len() as u64;
            let storing = self.link.store(&subject, &id, message, None, || !self.control.stopping());
            tokio::pin!(storing);
            // A full stream may take long.
            let stored = loop {
                match tokio::time::timeout(ACK_WAIT / 3, &mut storing).await {
                    Ok(stored) => break stored,
                    Err(_) => self.keep().await,
                }
            };
            if stored?.is_none() {
                return Ok(false);
            }
            self.metrics.sent_bytes.inc_by(bytes);
        }
        Ok(true)
    }

    /// Says that what is in hand is being worked on.
    async fn keep(&self) {
        for InHand { acker, .. } in self.in_hand.values() {
            let _ = acker.ack_with(AckKind::Progress).await;
        }
    }

    async fn beat(&self, leaving: bool) {
        let heartbeat = Heartbeat {
            worker: self.options.name.clone(),
            teacher: self.options.teacher.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            device: self.options.device.clone(),
            batches: self.metrics.batches.get(),
            tokens: self.metrics.tokens.get(),
            in_flight: if leaving { 0 } else { self.in_hand.len() as u64 },
            leaving,
        };
        if let Ok(message) = serde_json::to_vec(&heartbeat) {
            self.link.say(self.link.heartbeat_subject(), message).await;
        }
    }
}

/// Asks for a batch whenever there is room for one.
async fn pull(consumer: PullConsumer, mut room: mpsc::Receiver<()>, to: mpsc::Sender<async_nats::jetstream::Message>) {
    while room.recv().await.is_some() {
        let message = loop {
            match consumer.fetch().max_messages(1).expires(PULL_EXPIRES).messages().await {
                Ok(mut batch) => match batch.next().await {
                    Some(Ok(message)) => break message,
                    Some(Err(error)) => tracing::debug!(%error, "the server gives no batch"),
                    None => continue, // There was none within the time.
                },
                Err(error) => tracing::debug!(%error, "the server gives no batches"),
            }
            tokio::time::sleep(super::link::RETRY).await;
        };
        if to.send(message).await.is_err() {
            return;
        }
    }
}

/// Messages of at most `limit` bytes, if a copy's labels have room in one.
fn messages(key: Key, worker: &str, labels: Result<Vec<Label>, String>, limit: usize) -> Vec<Vec<u8>> {
    let message = |part: u32, parts: u32, labels| {
        Outcome { key, worker: worker.to_owned(), part: (part, parts), labels }.encode()
    };
    let labels = match labels {
        Ok(labels) => labels,
        Err(reason) => return vec![message(0, 1, Err(reason))],
    };
    let mut parts = 1;
    loop {
        let size = labels.len().div_ceil(parts).max(1);
        let chunks: Vec<&[Label]> = if labels.is_empty() { vec![&[]] } else { labels.chunks(size).collect() };
        let count = chunks.len() as u32;
        let messages: Vec<Vec<u8>> =
            chunks.iter().zip(0..).map(|(chunk, part)| message(part, count, Ok(chunk.to_vec()))).collect();
        if size == 1 || messages.iter().all(|message| message.len() <= limit) {
            return messages;
        }
        parts *= 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use store::SequenceNumber;

    #[test]
    fn labels_go_in_as_many_messages_as_the_server_s_limit_asks_for() {
        let key = Key { group_end: SequenceNumber(5), digest: [7; 16] };
        let label = |first: u32| {
            let ids = (0..80).map(|at| first.wrapping_mul(0x9e37_79b9).rotate_left(at) % 90_000);
            let top_ids: Vec<u32> = ids.collect();
            let top_logits = top_ids.iter().map(|id| *id as f32 * 1.37).collect();
            let (log_sum_exp, gold_logits) = (vec![1.5; 10], vec![2.5; 10]);
            Label { top_k: 8, top_ids, top_logits, log_sum_exp, gold_logits, ..Label::default() }
        };
        let labels: Vec<Label> = (0..21).map(label).collect();
        let whole = messages(key, "w", Ok(labels.clone()), 1 << 20);
        assert_eq!(whole.len(), 1);
        let limit = whole[0].len() / 4;
        let parts = messages(key, "w", Ok(labels.clone()), limit);
        assert!(parts.len() > 4 && parts.iter().all(|message| message.len() <= limit), "{}", parts.len());
        let mut found = Vec::new();
        for (message, part) in parts.iter().zip(0..) {
            let outcome = Outcome::decode(message).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!((outcome.key, outcome.part), (key, (part, parts.len() as u32)));
            found.extend(outcome.labels.unwrap_or_default());
        }
        assert_eq!(found, labels);
    }
}
