//! The coordinator's desk: what is out, what has come, and what the log has of it.
//!
//! What has come is acknowledged once the log has it for good. So a label that was made is used, also by the next life of the coordinator, which reads the same text again and asks for
//! the same batches ([`Key`]); and what comes twice, or too late, is known by its key.

use super::claim::{self, Answering, Standing};
use super::coordinator_metrics::CoordinatorMetrics;
use super::link::{Heartbeat, Link, LinkError, LinkOptions, RETRY};
use super::roster::Roster;
use super::spec::RunSpec;
use super::wire::{Key, Outcome, Work};
use crate::TeacherError;
use async_nats::jetstream::Message;
use async_nats::jetstream::message::Acker;
use crossbeam::channel::Sender;
use futures_util::StreamExt;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use store::{Label, LogReader};
use tokio::sync::mpsc;

/// How often it is looked what the log has for good.
const SETTLE_INTERVAL: Duration = Duration::from_millis(100);
/// Batches that are out for longer are looked after this often.
const LOOK_AFTER: Duration = Duration::from_secs(20);
/// So many times as often as it may fail a batch may be given out: who is stopped, or loses the server, hands it back too.
const DELIVERIES_PER_ATTEMPT: u32 = 4;
/// So often it is asked whose the run is, until the server says.
const CLAIM_LOOKS: usize = 20;
/// Labels that nobody has asked for yet, kept at most.
const EARLY_MOST: usize = 4096;

type Reply = Sender<Result<Vec<Label>, TeacherError>>;

/// A batch that is to be labelled.
#[derive(Debug)]
pub(super) struct Ask {
    pub(super) teacher: u16,
    pub(super) name: String,
    pub(super) top_k: usize,
    pub(super) work: Work,
    pub(super) reply: Reply,
}

/// What the coordinator's thread has in hand.
pub(super) struct Desk {
    link: Link,
    spec: RunSpec,
    attempts: u32,
    roster: Roster,
    metrics: CoordinatorMetrics,
    /// `None`: the run belongs to another coordinator.
    answering: Option<Answering>,
    /// Number of the claim to the run.
    claim: u64,
    /// Why nothing is labelled any more.
    taken: Option<LinkError>,
    /// Whether that is so, for batches on their way out.
    is_taken: Arc<AtomicBool>,
    /// What became of batches on their way out.
    outs: (mpsc::UnboundedSender<Out>, mpsc::UnboundedReceiver<Out>),
    /// Who waits for a batch.
    waiting: HashMap<Key, Waiting>,
    /// Labels that came before somebody asked for them.
    early: HashMap<Key, Arrived>,
    /// Labels of which not all parts have come.
    parts: HashMap<Key, Arrived>,
    /// What was handed on and the log does not have for good yet.
    unsettled: BTreeMap<Key, Held>,
    /// Whether batches are just being looked after.
    looking: bool,
    /// Teachers whose batches wait, and who have no worker.
    unattended: BTreeSet<String>,
}

/// What became of a batch on its way out.
enum Out {
    /// The server has it, under this number in the stream.
    Stored(Key, u64),
    /// The server does not take it.
    Refused(Key, LinkError),
    /// These, out for long, are no longer in their stream.
    Gone(Vec<(Key, u64)>),
    /// The streams were made anew: nothing is in them.
    Anew,
    /// They were looked after.
    Looked,
    /// The run was claimed again, under this number.
    Claimed(u64),
    /// The run belongs to another coordinator.
    Taken(LinkError),
}

struct Waiting {
    teacher: u16,
    name: String,
    work: Work,
    /// When it went out last, and its number in the stream; `None`: it is on its way.
    out: Option<(Instant, u64)>,
    /// Whether it was not in its stream when it was looked after: then its labels should have come by the next time.
    gone: bool,
    /// Labels wanted per position.
    top_k: usize,
    replies: Vec<Reply>,
}

/// Labels, or parts of them.
#[derive(Default)]
struct Arrived {
    parts: Vec<Option<Vec<Label>>>,
    held: Held,
}

/// Messages of one batch that are not acknowledged: by their number in the stream, what does it, and their size.
#[derive(Default)]
struct Held(BTreeMap<u64, (Acker, u64)>);

impl Held {
    /// Acknowledges them. What is not acknowledged for want of a connection comes again, and is known.
    async fn acknowledge(&mut self) {
        for (acker, _) in std::mem::take(&mut self.0).into_values() {
            let _ = acker.ack().await;
        }
    }

    fn bytes(&self) -> u64 {
        self.0.values().map(|(_, bytes)| bytes).sum()
    }
}

impl Arrived {
    fn is_whole(&self) -> bool {
        self.parts.iter().all(Option::is_some)
    }
}

impl Desk {
    pub(super) async fn open(
        options: LinkOptions,
        spec: RunSpec,
        attempts: u32,
        roster: Roster,
        metrics: CoordinatorMetrics,
    ) -> Result<Self, LinkError> {
        let link = Link::open(options, "coordinator", "mergedistill coordinator").await?;
        let (answering, claim) = claim::take(&link, &spec).await?;
        link.empty_work().await?;
        let (waiting, early, parts, unsettled, looking, unattended) = Default::default();
        let outs = mpsc::unbounded_channel();
        Ok(Self {
            link,
            spec,
            attempts,
            roster,
            metrics,
            answering: Some(answering),
            claim,
            taken: None,
            is_taken: Arc::default(),
            outs,
            waiting,
            early,
            parts,
            unsettled,
            looking,
            unattended,
        })
    }

    /// Works until nobody asks any more. What `log` has for good is acknowledged.
    pub(super) async fn run(mut self, log: LogReader, mut asked: mpsc::UnboundedReceiver<Ask>) {
        let (arrivals_in, mut arrivals) = mpsc::channel(64);
        let reading = tokio::spawn(read_labels(self.link.clone(), arrivals_in));
        let listening = tokio::spawn(listen(self.link.clone(), self.roster.clone()));
        let mut looks = tokio::time::interval(SETTLE_INTERVAL);
        let mut look_after = tokio::time::interval(LOOK_AFTER);
        let mut connections = self.link.connections();
        connections.mark_unchanged();
        loop {
            tokio::select! {
                ask = asked.recv() => match ask {
                    Some(ask) => self.ask(ask),
                    None => break,
                },
                Some(message) = arrivals.recv(), if self.taken.is_none() => self.take(&log, message).await,
                Some(out) = self.outs.1.recv() => self.note(out),
                _ = look_after.tick() => {
                    self.look_for_workers();
                    self.look_after(LOOK_AFTER);
                }
                Ok(()) = connections.changed() => self.look_after(Duration::ZERO),
                _ = looks.tick() => self.settle(&log).await,
            }
            if self.taken.is_some() {
                reading.abort(); // Labels are the other one's.
            }
        }
        self.settle(&log).await;
        reading.abort();
        listening.abort();
        self.link.flush().await; // Acknowledgements: what is lost of them comes again.
    }

    /// Somebody waits for a batch: perhaps it is there already.
    fn ask(&mut self, ask: Ask) {
        let Ask { teacher, name, top_k, mut work, reply } = ask;
        if let Some(error) = &self.taken {
            let _ = reply.send(Err(TeacherError::Link(error.clone()))); // Who asked may have ended.
            return;
        }
        let key = work.key;
        if let Some(waiting) = self.waiting.get_mut(&key) {
            waiting.replies.push(reply);
            return;
        }
        work.most_deliveries = self.attempts.saturating_mul(DELIVERIES_PER_ATTEMPT);
        let waiting = Waiting { teacher, name, work, out: None, gone: false, top_k, replies: vec![reply] };
        self.waiting.insert(key, waiting);
        match self.early.remove(&key) {
            Some(arrived) => {
                self.metrics.early.inc();
                self.deliver(key, arrived);
            }
            None => self.send(key),
        }
        self.metrics.waiting.set(self.waiting.len() as i64);
    }

    /// Sends a batch out, for the first time or again.
    fn send(&mut self, key: Key) {
        let Some(waiting) = self.waiting.get_mut(&key) else { return };
        (waiting.out, waiting.gone) = (None, false);
        let (message, subject) = (waiting.work.encode(), self.link.work_subject(waiting.teacher));
        let id = format!("{}-{:x}-{}", key.name(), waiting.work.life, waiting.work.attempt);
        let (link, outs, metrics) = (self.link.clone(), self.outs.0.clone(), self.metrics.clone());
        let is_taken = Arc::clone(&self.is_taken);
        tokio::spawn(async move {
            let bytes = message.len() as u64;
            let out = match link.store(&subject, &id, message, None, || !is_taken.load(Ordering::Relaxed)).await {
                Ok(Some(number)) => {
                    metrics.sent_bytes.inc_by(bytes);
                    Out::Stored(key, number)
                }
                Ok(None) => return,
                Err(error) => Out::Refused(key, error),
            };
            let _ = outs.send(out); // Unless all is over.
        });
    }

    /// Sends a batch out once more: as another attempt, so that the server takes it for another message.
    fn send_again(&mut self, key: Key) {
        if let Some(waiting) = self.waiting.get_mut(&key) {
            waiting.work.attempt += 1;
            self.send(key);
        }
    }

    fn note(&mut self, out: Out) {
        match out {
            Out::Stored(key, number) => {
                if let Some(waiting) = self.waiting.get_mut(&key) {
                    waiting.out = Some((Instant::now(), number));
                }
            }
            Out::Refused(key, error) => {
                for reply in self.waiting.remove(&key).into_iter().flat_map(|waiting| waiting.replies) {
                    let _ = reply.send(Err(TeacherError::Link(error.clone()))); // Who asked may have ended.
                }
            }
            Out::Gone(keys) => {
                for (key, number) in keys {
                    let Some(waiting) = self.waiting.get_mut(&key) else { continue };
                    let is_same = waiting.out.is_some_and(|(_, known)| known == number);
                    if is_same && std::mem::replace(&mut waiting.gone, true) {
                        tracing::warn!(
                            teacher = waiting.name,
                            "a batch has left the server, and no labels came; it goes out again"
                        );
                        self.metrics.resent.inc();
                        self.send_again(key);
                    }
                }
            }
            Out::Anew => {
                tracing::warn!("the run's streams were gone; they are made anew, and batches go out again");
                let keys: Vec<Key> =
                    self.waiting.iter().filter(|(_, waiting)| waiting.out.is_some()).map(|(key, _)| *key).collect();
                for key in keys {
                    self.metrics.resent.inc();
                    self.send_again(key);
                }
            }
            Out::Looked => self.looking = false,
            Out::Taken(error) if self.taken.is_none() => {
                tracing::error!(%error, "nothing more is labelled");
                for reply in self.waiting.drain().flat_map(|(_, waiting)| waiting.replies) {
                    let _ = reply.send(Err(TeacherError::Link(error.clone()))); // Who asked may have ended.
                }
                // What has come is left to the other one.
                (self.early, self.parts, self.unsettled) = Default::default();
                self.is_taken.store(true, Ordering::Relaxed);
                (self.answering, self.taken) = (None, Some(error));
            }
            Out::Claimed(number) => self.claim = number,
            Out::Taken(_) => {}
        }
    }

    /// Says so when batches are out for long and nobody labels for their teacher.
    fn look_for_workers(&mut self) {
        let is_long = |waiting: &&Waiting| waiting.out.is_some_and(|(since, _)| since.elapsed() >= LOOK_AFTER);
        let long: BTreeSet<String> =
            self.waiting.values().filter(is_long).map(|waiting| waiting.name.clone()).collect();
        let unattended: BTreeSet<String> = long.into_iter().filter(|teacher| !self.roster.has(teacher)).collect();
        for teacher in unattended.difference(&self.unattended) {
            tracing::warn!(teacher, "nobody labels for it: start `mergedistill worker`");
        }
        self.unattended = unattended;
    }

    /// Looks whether the run is still this coordinator's (while it could not be heard another one may have started), whether batches that are out for so long
    /// are still in their stream, and whether there are streams: a server may have lost what it had.
    fn look_after(&mut self, age: Duration) {
        let long =
            |waiting: &Waiting| waiting.out.filter(|(since, _)| since.elapsed() >= age).map(|(_, number)| number);
        let out: Vec<(Key, u64)> =
            self.waiting.iter().filter_map(|(key, waiting)| Some((*key, long(waiting)?))).collect();
        if self.looking || self.taken.is_some() || !self.link.is_connected() {
            return;
        }
        self.looking = true;
        let (link, outs, spec, claim) = (self.link.clone(), self.outs.0.clone(), self.spec.clone(), self.claim);
        tokio::spawn(async move {
            for found in look(&link, &spec, claim, out).await {
                let _ = outs.send(found); // Unless all is over.
            }
            let _ = outs.send(Out::Looked);
        });
    }

    async fn take(&mut self, log: &LogReader, message: Message) {
        let number = message.info().map_or(0, |info| info.stream_sequence);
        let (message, acker) = message.split();
        let bytes = message.payload.len() as u64;
        self.metrics.received_bytes.inc_by(bytes);
        let outcome = match Outcome::decode(&message.payload) {
            Ok(outcome) => outcome,
            Err(error) => {
                tracing::warn!(%error, "labels that cannot be read are thrown away");
                let _ = acker.ack().await;
                return;
            }
        };
        let Outcome { key, part: (part, parts), labels, worker } = outcome;
        let is_late = key.group_end <= log.durable().end() && !self.waiting.contains_key(&key);
        let is_known = self.unsettled.get(&key).is_some_and(|held| !held.0.contains_key(&number));
        if is_known || is_late {
            // It came twice, or too late: others have labelled it.
            let _ = acker.ack().await;
            self.metrics.repeated.inc();
            return;
        }
        if let Some(held) = self.unsettled.get_mut(&key) {
            held.0.insert(number, (acker, bytes)); // The server has waited for long.
            return;
        }
        let labels = match labels {
            Ok(labels) => labels,
            Err(reason) => {
                let _ = acker.ack().await; // Nobody is to hear of it again: what failed for an earlier start is tried anew.
                self.fail(key, format!("worker {worker}: {reason}"));
                return;
            }
        };
        let so_far = self.parts.remove(&key).or_else(|| self.early.remove(&key));
        let mut arrived = so_far.unwrap_or_default();
        arrived.held.0.insert(number, (acker, bytes));
        // Another worker may have cut its labels otherwise: the latest counts.
        if arrived.parts.len() != parts as usize {
            arrived.parts = vec![None; parts as usize];
        }
        arrived.parts[part as usize] = Some(labels);
        if !arrived.is_whole() {
            self.parts.insert(key, arrived);
        } else if self.waiting.contains_key(&key) {
            self.deliver(key, arrived);
        } else if self.early.len() < EARLY_MOST {
            self.early.insert(key, arrived);
        } // Otherwise it comes again, later.
        self.make_room().await;
    }

    /// A worker could not label a batch: somebody tries it again, or it is given up.
    fn fail(&mut self, key: Key, reason: String) {
        let Some(waiting) = self.waiting.get_mut(&key) else { return };
        if waiting.work.attempt < self.attempts {
            let attempt = waiting.work.attempt;
            tracing::warn!(teacher = waiting.name, attempt, reason, "a batch failed; somebody tries it again");
            self.send_again(key);
        } else if let Some(Waiting { name: teacher, replies, .. }) = self.waiting.remove(&key) {
            for reply in replies {
                let _ = reply.send(Err(TeacherError::Worker { teacher: teacher.clone(), reason: reason.clone() }));
            }
        }
        self.metrics.waiting.set(self.waiting.len() as i64);
    }

    /// Acknowledges what is in hand before the log has it for good, the oldest first, where it would fill the stream: then workers could not hand on what
    /// a group still lacks. After a crash it is labelled again.
    async fn make_room(&mut self) {
        let unsettled = self.unsettled.values_mut();
        let arrived = self.early.values_mut().chain(self.parts.values_mut()).map(|arrived| &mut arrived.held);
        let mut held: Vec<&mut Held> = unsettled.chain(arrived).filter(|held| !held.0.is_empty()).collect();
        let mut bytes: u64 = held.iter().map(|held| held.bytes()).sum();
        for held in &mut held {
            if bytes <= self.link.options.stream_bytes / 2 {
                return;
            }
            bytes -= held.bytes();
            held.acknowledge().await;
        }
    }

    /// Hands labels on to all who wait for them.
    fn deliver(&mut self, key: Key, arrived: Arrived) {
        let Some(Waiting { name: teacher, work, top_k, replies, .. }) = self.waiting.remove(&key) else { return };
        let Arrived { parts, held } = arrived;
        let labels: Vec<Label> = parts.into_iter().flatten().flatten().collect();
        let found = labels.iter().map(|label| (label.positions(), label.top_k));
        let fits = found.eq(work.copies.iter().map(|copy| (copy.masked_positions.len(), top_k)));
        for reply in replies {
            let labels = match fits {
                true => Ok(labels.clone()),
                false => Err(TeacherError::Worker {
                    teacher: teacher.clone(),
                    reason: "its labels are those of another batch".to_owned(),
                }),
            };
            let _ = reply.send(labels); // Who asked may have ended.
        }
        self.unsettled.insert(key, held);
        self.metrics.batches.inc();
        self.metrics.waiting.set(self.waiting.len() as i64);
    }

    /// Acknowledges what the log has for good.
    async fn settle(&mut self, log: &LogReader) {
        self.metrics.connected.set(self.link.is_connected().into());
        let end = log.durable().end();
        while let Some(entry) = self.unsettled.first_entry().filter(|entry| entry.key().group_end <= end) {
            entry.remove().acknowledge().await;
        }
        for late in [&mut self.early, &mut self.parts] {
            let keys: Vec<Key> = late.keys().copied().filter(|key| key.group_end <= end).collect();
            for mut arrived in keys.iter().filter_map(|key| late.remove(key)) {
                arrived.held.acknowledge().await;
            }
        }
    }
}

/// What is found when the server is looked at; nothing, if it does not answer.
async fn look(link: &Link, spec: &RunSpec, claim: u64, out: Vec<(Key, u64)>) -> Vec<Out> {
    // One that has just come back may need a moment.
    for _ in 0..CLAIM_LOOKS {
        match look_once(link, spec, claim, &out).await {
            Ok(found) => return found,
            Err(error @ LinkError::Taken { .. }) => return vec![Out::Taken(error)],
            Err(error) => tracing::debug!(%error, "batches cannot be looked after"),
        }
        tokio::time::sleep(RETRY).await;
    }
    Vec::new()
}

/// Makes the run's streams anew if they are gone, and claims the run again if that is forgotten; otherwise looks which of these batches are no longer in their
/// stream.
async fn look_once(link: &Link, spec: &RunSpec, claim: u64, out: &[(Key, u64)]) -> Result<Vec<Out>, LinkError> {
    if !link.has_streams().await? {
        let claimed = claim::renew(link, spec).await?;
        return Ok(vec![Out::Claimed(claimed), Out::Anew]);
    }
    match claim::standing(link, spec, claim).await? {
        Standing::Own => {}
        Standing::Forgotten => return Ok(vec![Out::Claimed(claim::renew(link, spec).await?)]),
        Standing::Taken(error) => return Err(error),
    }
    let mut gone = Vec::new();
    for (key, number) in out {
        if let Ok(false) = link.has_work(*number).await {
            gone.push((*key, *number));
        }
    }
    Ok(vec![Out::Gone(gone)])
}

/// Reads labels for as long as somebody takes them, whatever becomes of the connection. What was on its way when a connection broke the server takes for
/// given out: so each connection begins with a new reader, who gets all that is not acknowledged.
async fn read_labels(link: Link, to: mpsc::Sender<Message>) {
    let (mut warned, mut connections) = (false, link.connections());
    loop {
        connections.borrow_and_update();
        link.forget_reader().await;
        let messages = match link.labels().await {
            Ok(consumer) => consumer.messages().await.map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        match messages {
            Ok(mut messages) => {
                warned = false;
                loop {
                    let message = tokio::select! {
                        message = messages.next() => message,
                        _ = connections.changed() => break,
                    };
                    match message {
                        Some(Ok(message)) => {
                            if to.send(message).await.is_err() {
                                return;
                            }
                        }
                        Some(Err(error)) => {
                            tracing::debug!(%error, "reading labels is begun again");
                            break;
                        }
                        None => break,
                    }
                }
            }
            Err(error) if !std::mem::replace(&mut warned, true) => {
                tracing::warn!(error, "labels cannot be read; it is tried again");
            }
            Err(_) => {}
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Hears what workers say of themselves.
async fn listen(link: Link, roster: Roster) {
    loop {
        if let Some(mut heartbeats) = link.hear(link.heartbeat_subject()).await {
            while let Some(message) = heartbeats.next().await {
                if let Ok(heartbeat) = serde_json::from_slice::<Heartbeat>(&message.payload) {
                    roster.note(heartbeat);
                }
            }
        }
        tokio::time::sleep(RETRY).await;
    }
}
