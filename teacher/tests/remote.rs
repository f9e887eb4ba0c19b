//! Labelling over a real server: what goes wrong there, and what comes of it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "../../tests/harness/nats.rs"]
mod nats;

use model::{Configuration, RolePool};
use nats::Server;
use prometheus::Registry;
use std::path::Path;
use std::sync::{Arc, Barrier};
use std::thread::JoinHandle;
use store::log::Need;
use store::stage::StageControl;
use store::{
    ComputedIn, Entry, Identity, Label, LogOptions, LogReader, LogWriter, MaskedCopy, Payload, SequenceNumber, Skip,
    SourceCursor, StoreError,
};
use teacher::remote::{
    CaughtUp, Coordinator, Ended, Follower, LinkError, LinkOptions, LogStreamError, Publisher, PublisherOptions,
    RemoteTeacher, RunSpec, TeacherSpec, Worker, WorkerError, WorkerMetrics, WorkerOptions,
};
use teacher::{Labeller, PendingLabels, TeacherError};
use tempfile::TempDir;

fn link(server: &Server) -> LinkOptions {
    LinkOptions {
        url: server.url(),
        run: "test".to_owned(),
        login: None,
        credentials: None,
        tls_ca: None,
        tls_identity: None,
        stream_bytes: 1 << 20,
        replicas: 1,
    }
}

fn spec(top_k: usize) -> TeacherSpec {
    TeacherSpec {
        name: "en".to_owned(),
        index: 0,
        weights: "weights".to_owned(),
        tokenizer: "tokenizer".to_owned(),
        top_k,
        tail_samples: 0,
        seed: 1,
    }
}

/// A log in which nothing becomes durable.
struct Log {
    dir: TempDir,
    writer: LogWriter,
}

impl Log {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (identity, options) = (Identity::default(), LogOptions::default());
        let (writer, _) = LogWriter::open(dir.path(), &identity, &options, &Registry::new()).unwrap();
        Self { dir, writer }
    }

    fn reader(&self) -> LogReader {
        self.writer.reader()
    }
}

/// Says of each copy how long it is; fails where the copy is of length 13.
#[derive(Debug)]
struct Measuring {
    top_k: usize,
}

impl Labeller for Measuring {
    fn name(&self) -> &str {
        "en"
    }

    fn index(&self) -> u16 {
        0
    }

    fn begin(&self, copies: &[&MaskedCopy], _: SequenceNumber) -> Result<PendingLabels, TeacherError> {
        if copies.iter().any(|copy| copy.token_ids.len() == 13) {
            return Err(TeacherError::NonFinite { teacher: "en".to_owned(), token: 13 });
        }
        Ok(PendingLabels::ready(copies.iter().map(|copy| label_of(copy, self.top_k)).collect()))
    }

    fn flops(&self, _: &[&MaskedCopy]) -> u64 {
        0
    }

    fn needs_pool(&self) -> bool {
        false
    }
}

fn label_of(copy: &MaskedCopy, top_k: usize) -> Label {
    let masked = copy.masked_positions.len();
    Label {
        top_k,
        top_ids: vec![copy.token_ids.len() as u32; masked * top_k],
        top_logits: vec![1.0; masked * top_k],
        log_sum_exp: vec![2.0; masked],
        gold_logits: vec![0.5; masked],
        computed_in: ComputedIn::Bfloat16,
    }
}

fn copies(lengths: &[u32]) -> Vec<MaskedCopy> {
    let copy = |length: &u32| MaskedCopy {
        teacher: 0,
        // Not to be compressed much.
        token_ids: (0..*length).map(|at| (at + length).wrapping_mul(0x9e37_79b9)).collect(),
        masked_positions: vec![1, 2],
        gold_ids: vec![7, 8],
        label: None,
    };
    lengths.iter().map(copy).collect()
}

fn coordinator(server: &Server, options: LinkOptions, top_k: usize, log: &Log) -> Result<Coordinator, TeacherError> {
    assert_eq!(options.url, server.url());
    let mut coordinator = Coordinator::open(options, RunSpec::new(vec![spec(top_k)]), 2, &Registry::new())?;
    coordinator.begin(log.reader());
    Ok(coordinator)
}

fn teacher(coordinator: &Coordinator, top_k: usize) -> RemoteTeacher {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../daemon/demo/teachers/demo-en");
    coordinator.teacher(spec(top_k), Configuration::load(&folder).unwrap(), 8, None)
}

fn begin(teacher: &RemoteTeacher, lengths: &[u32], group_end: u64) -> PendingLabels {
    let copies = copies(lengths);
    teacher.begin(&copies.iter().collect::<Vec<_>>(), SequenceNumber(group_end)).unwrap()
}

/// A worker on a thread of its own.
struct Working {
    control: StageControl,
    thread: JoinHandle<Result<Ended, WorkerError>>,
}

impl Working {
    fn start(server: &Server, name: &str) -> Self {
        let options = WorkerOptions {
            link: link(server),
            teacher: "en".to_owned(),
            name: name.to_owned(),
            device: "cpu".to_owned(),
        };
        let control = StageControl::default();
        let switch = control.clone();
        let thread = std::thread::spawn(move || {
            let metrics = WorkerMetrics::register(&Registry::new(), "en").unwrap();
            let worker = Worker::join(options, &switch, &metrics)?.unwrap();
            let top_k = worker.spec().top_k;
            worker.run(Arc::new(Measuring { top_k }), RolePool::alone("label", 1).unwrap(), &switch)
        });
        Self { control, thread }
    }

    fn end(self) -> Result<Ended, WorkerError> {
        self.control.stop();
        self.thread.join().unwrap()
    }
}

#[test]
fn a_batch_that_fails_with_every_worker_comes_back_with_the_reason() {
    let (server, log) = (Server::start(), Log::new());
    let coordinator = coordinator(&server, link(&server), 1, &log).unwrap();
    let teacher = teacher(&coordinator, 1);
    let workers = [Working::start(&server, "one"), Working::start(&server, "two")];
    let (poison, sound) = (begin(&teacher, &[5, 13], 9), begin(&teacher, &[6, 7], 9));
    let expected: Vec<Label> = copies(&[6, 7]).iter().map(|copy| label_of(copy, 1)).collect();
    assert_eq!(sound.wait().unwrap(), expected);
    let error = poison.wait().unwrap_err().to_string();
    assert!(error.contains("worker one: ") || error.contains("worker two: "), "{error}");
    assert!(error.contains("a logit of token 13 is not finite"), "{error}");
    let heard = || coordinator.roster().workers().iter().map(|report| report.heartbeat.batches).sum::<u64>();
    while heard() < 1 {
        std::thread::yield_now();
    }
    assert!(workers.into_iter().all(|worker| worker.end().unwrap() == Ended::Stopped));
    while !coordinator.roster().workers().is_empty() {
        std::thread::yield_now(); // They have taken their leave.
    }
    drop(teacher);
    coordinator.close();
}

#[test]
fn labels_of_another_kind_are_asked_for_anew() {
    let (server, log) = (Server::start(), Log::new());
    let first = coordinator(&server, link(&server), 1, &log).unwrap();
    let of_first = teacher(&first, 1);
    let worker = Working::start(&server, "one");
    assert_eq!(begin(&of_first, &[5], 9).wait().unwrap().len(), 1);
    drop(of_first);
    first.close();
    let second = coordinator(&server, link(&server), 2, &log).unwrap();
    let of_second = teacher(&second, 2);
    let pending = begin(&of_second, &[5], 9);
    // It does not label what it does not know.
    assert_eq!(worker.thread.join().unwrap().unwrap(), Ended::Changed);
    let again = Working::start(&server, "one");
    assert_eq!(pending.wait().unwrap().len(), 1);
    assert_eq!(again.end().unwrap(), Ended::Stopped);
    drop(of_second);
    second.close();
}

#[test]
fn what_was_labelled_for_an_earlier_start_is_used() {
    let (server, log) = (Server::start(), Log::new());
    let first = coordinator(&server, link(&server), 1, &log).unwrap();
    let of_first = teacher(&first, 1);
    let worker = Working::start(&server, "one");
    let expected = begin(&of_first, &[5, 6], 9).wait().unwrap();
    assert_eq!(worker.end().unwrap(), Ended::Stopped);
    drop(of_first);
    first.close(); // The log does not have it.
    let second = coordinator(&server, link(&server), 1, &log).unwrap();
    let of_second = teacher(&second, 1);
    // There is no worker any more.
    assert_eq!(begin(&of_second, &[5, 6], 9).wait().unwrap(), expected);
    drop(of_second);
    second.close();
}

#[test]
fn a_server_that_has_lost_everything_is_filled_anew() {
    let (mut server, log) = (Server::start(), Log::new());
    let coordinator = coordinator(&server, link(&server), 1, &log).unwrap();
    let teacher = teacher(&coordinator, 1);
    let worker = Working::start(&server, "one");
    assert_eq!(begin(&teacher, &[5], 9).wait().unwrap().len(), 1);
    assert_eq!(worker.end().unwrap(), Ended::Stopped);
    // These are in the stream, and then in none.
    let pending: Vec<_> = (0..3).map(|number| begin(&teacher, &[6 + number], 9)).collect();
    server.lose();
    server.up();
    let worker = Working::start(&server, "two");
    for (labels, number) in pending.into_iter().zip(0..) {
        let expected: Vec<Label> = copies(&[6 + number]).iter().map(|copy| label_of(copy, 1)).collect();
        assert_eq!(labels.wait().unwrap(), expected);
    }
    assert_eq!(worker.end().unwrap(), Ended::Stopped);
    drop(teacher);
    coordinator.close();
}

#[test]
fn who_still_waits_gets_labels_however_late() {
    let (server, log) = (Server::start(), Log::new());
    let coordinator = coordinator(&server, link(&server), 1, &log).unwrap();
    let teacher = teacher(&coordinator, 1);
    let worker = Working::start(&server, "one");
    // The log has this group for good, as after a stall whose copies were dropped.
    assert_eq!(begin(&teacher, &[5], 0).wait().unwrap().len(), 1);
    assert_eq!(worker.end().unwrap(), Ended::Stopped);
    drop(teacher);
    coordinator.close();
}

fn is_taken<T>(outcome: Result<T, TeacherError>) -> bool {
    matches!(outcome, Err(TeacherError::Link(LinkError::Taken { .. })))
}

#[test]
fn of_coordinators_that_start_at_once_one_has_the_run() {
    let (server, log) = (Server::start(), Log::new());
    // Where nobody has been before, and where somebody has.
    let (mut rounds, mut attempts) = (0, 0);
    while rounds < 8 {
        let together = Barrier::new(3);
        let opened: Vec<_> = std::thread::scope(|scope| {
            let open = || {
                together.wait();
                coordinator(&server, link(&server), 1, &log)
            };
            let threads: Vec<_> = (0..3).map(|_| scope.spawn(open)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let (open, refused): (Vec<_>, Vec<_>) = opened.into_iter().partition(Result::is_ok);
        let is_slow = |refused: &Result<_, TeacherError>| matches!(refused, Err(TeacherError::Link(LinkError::Refused { reason, .. })) if reason.contains("timed out"));
        attempts += 1;
        assert!(attempts < 40, "the server answers nobody: {refused:?}");
        assert!(open.len() <= 1, "{} have it", open.len());
        if refused.iter().any(is_slow) {
            open.into_iter().for_each(|open| open.unwrap().close());
            continue; // A machine that is busy with other things.
        }
        rounds += 1;
        assert_eq!(open.len(), 1, "{refused:?}");
        assert!(refused.into_iter().all(is_taken));
        open.into_iter().for_each(|open| open.unwrap().close());
    }
}

/// Does something by hand on the server.
fn with_server(server: &Server, what: impl AsyncFnOnce(async_nats::jetstream::Context)) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let client = async_nats::connect(server.url()).await.unwrap();
        what(async_nats::jetstream::new(client)).await;
    });
}

/// A server that has lost its latest messages, and whose streams are there.
#[test]
fn a_claim_that_the_server_has_forgotten_is_made_again() {
    let (mut server, log) = (Server::start(), Log::new());
    let coordinator = coordinator(&server, link(&server), 1, &log).unwrap();
    let teacher = teacher(&coordinator, 1);
    with_server(&server, async |context| {
        context.get_stream("mergedistill-test-spec").await.unwrap().purge().await.unwrap();
    });
    server.kill();
    server.up();
    // A worker learns from it what the run means.
    let worker = Working::start(&server, "one");
    assert_eq!(begin(&teacher, &[5], 9).wait().unwrap().len(), 1);
    assert_eq!(worker.end().unwrap(), Ended::Stopped);
    drop(teacher);
    coordinator.close();
}

/// As it is with one that was stopped for a while, or whose network was cut.
#[test]
fn a_coordinator_whose_run_another_one_has_taken_labels_no_more() {
    let (mut server, log) = (Server::start(), Log::new());
    let coordinator = coordinator(&server, link(&server), 1, &log).unwrap();
    let teacher = teacher(&coordinator, 1);
    let pending = begin(&teacher, &[5], 9);
    let other = RunSpec::new(vec![spec(1)]);
    with_server(&server, async |context| {
        let spec = serde_json::to_vec(&other).unwrap();
        context.publish("mergedistill.test.spec", spec.into()).await.unwrap().await.unwrap();
    });
    server.kill();
    server.up();
    // Nobody labels it: the answer is that somebody else is there.
    let error = pending.wait().unwrap_err();
    assert!(error.to_string().contains(&other.coordinator.who), "{error}");
    assert!(is_taken(Err::<(), _>(error)));
    assert!(is_taken(begin(&teacher, &[6], 9).wait()));
    drop(teacher);
    coordinator.close();
}

/// A log of skips, a segment each.
fn skips(count: u64) -> Log {
    skips_because("a test", count, 1)
}

fn skips_because(reason: &str, count: u64, segment_bytes: u64) -> Log {
    let dir = tempfile::tempdir().unwrap();
    let options = LogOptions { segment_bytes, ..LogOptions::default() };
    let (mut writer, _) = LogWriter::open(dir.path(), &Identity::default(), &options, &Registry::new()).unwrap();
    for number in 0..count {
        let skip = Skip { document: format!("text@{number}").into(), reason: reason.into() };
        let cursor = SourceCursor::start("text".into(), "en".into(), 1);
        writer.append(&[Entry { sequence: SequenceNumber(number), cursor, payload: Payload::Skip(skip) }]).unwrap();
        writer.sync().unwrap();
    }
    Log { dir, writer }
}

/// Publishes all of a log; the stream keeps so many bytes.
fn publish(server: &Server, log: &Log, stream_bytes: u64) {
    let options = PublisherOptions { link: LinkOptions { stream_bytes: 0, ..link(server) }, stream_bytes, once: true };
    let mut publisher = Publisher::open(&options, log.reader()).unwrap();
    publisher.run(&Need::default(), &StageControl::default(), |_| {}).unwrap();
}

/// All of the published log in `dir`.
fn follow(server: &Server, dir: &Path) -> Result<LogReader, LogStreamError> {
    let control = StageControl::default();
    let mut follower = Follower::open(link(server), dir, &control)?.unwrap();
    assert!(matches!(follower.catch_up(&control)?, CaughtUp::Whole));
    drop(follower);
    Ok(LogReader::open(dir)?)
}

#[test]
fn who_follows_a_stream_that_has_dropped_its_oldest_begins_with_a_segment() {
    let (server, log) = (Server::start(), skips(40));
    let early = tempfile::tempdir().unwrap();
    publish(&server, &skips(3), 8192);
    assert_eq!(follow(&server, early.path()).unwrap().durable().end(), SequenceNumber(3));
    publish(&server, &log, 8192);
    let late = tempfile::tempdir().unwrap();
    let copy = follow(&server, late.path()).unwrap();
    assert_eq!(copy.durable(), log.reader().durable());
    assert!(copy.begin() > SequenceNumber(3) && copy.begin() < SequenceNumber(40), "{:?}", copy.begin());
    assert_eq!(copy.entry(SequenceNumber(39)).unwrap(), log.reader().entry(SequenceNumber(39)).unwrap());
    // What the early one lacks is not there any more.
    let error = follow(&server, early.path()).unwrap_err();
    assert!(matches!(error, LogStreamError::Gap { end: SequenceNumber(3), .. }), "{error}");
}

/// Whether it is shorter or longer than what is published, in other segments or in the same.
#[test]
fn who_has_another_log_is_told_so() {
    let server = Server::start();
    publish(&server, &skips(12), 0);
    for (count, segment_bytes) in [(5, 1), (12, 1), (20, 1), (3, 1 << 20), (40, 1 << 20)] {
        let Log { dir, writer } = skips_because("another reason", count, segment_bytes);
        writer.seal().unwrap();
        let error = follow(&server, dir.path()).unwrap_err();
        assert!(matches!(error, LogStreamError::Store(StoreError::AnotherLog { .. })), "{count}: {error}");
    }
    // The same log, further than what is published.
    let Log { dir, writer } = skips(20);
    drop(writer);
    assert_eq!(follow(&server, dir.path()).unwrap().durable().end(), SequenceNumber(20));
}

#[test]
fn two_who_publish_the_same_log_leave_no_hole() {
    let (server, log) = (Server::start(), skips(12));
    let options =
        PublisherOptions { link: LinkOptions { stream_bytes: 0, ..link(&server) }, stream_bytes: 0, once: true };
    let mut first = Publisher::open(&options, log.reader()).unwrap();
    publish(&server, &log, 0);
    // It believes that it is the only one, and is told.
    let error = first.run(&Need::default(), &StageControl::default(), |_| {}).unwrap_err();
    assert!(matches!(error, LogStreamError::Link(LinkError::Refused { .. })), "{error}");
    publish(&server, &log, 0);
    let copy = tempfile::tempdir().unwrap();
    assert_eq!(follow(&server, copy.path()).unwrap().durable(), log.reader().durable());
}

#[test]
fn a_full_stream_holds_everybody_up_and_loses_nothing() {
    let (server, log) = (Server::start(), Log::new());
    let options = LinkOptions { stream_bytes: 4096, ..link(&server) };
    let coordinator = coordinator(&server, options, 1, &log).unwrap();
    let teacher = teacher(&coordinator, 1);
    // Some of these fill the stream.
    let pending: Vec<_> = (0..12).map(|number| begin(&teacher, &[200 + number, 300], 9)).collect();
    let worker = Working::start(&server, "one");
    for (labels, number) in pending.into_iter().zip(0..) {
        let expected: Vec<Label> = copies(&[200 + number, 300]).iter().map(|copy| label_of(copy, 1)).collect();
        assert_eq!(labels.wait().unwrap(), expected);
    }
    assert_eq!(worker.end().unwrap(), Ended::Stopped);
    drop(teacher);
    coordinator.close();
}

#[test]
fn what_the_server_does_not_take_is_said() {
    let (server, log) = (Server::start_with(&["-js"], "max_payload: 4096"), Log::new());
    let first = coordinator(&server, link(&server), 1, &log).unwrap();
    let teacher = teacher(&first, 1);
    let error = begin(&teacher, &[4000], 9).wait().unwrap_err().to_string();
    assert!(error.contains("takes messages of at most") && error.contains("lower queue.batch_tokens"), "{error}");
    let second = coordinator(&server, link(&server), 1, &log).unwrap_err();
    assert!(matches!(second, TeacherError::Link(LinkError::Taken { .. })), "{second}");
    assert!(second.to_string().contains(&format!("process {} on", std::process::id())), "{second}");
    drop(teacher);
    first.close();
    let replicas = LinkOptions { run: "other".to_owned(), replicas: 3, ..link(&server) };
    let alone = coordinator(&server, replicas, 1, &log).unwrap_err().to_string();
    assert!(alone.contains("replicas") && alone.contains("does not make a stream"), "{alone}");
}

#[test]
fn who_may_not_come_in_is_told_so() {
    let users = "authorization { users = [ { user: run, password: secret } ] }";
    let (server, log) = (Server::start_with(&["-js"], users), Log::new());
    let file = server_file("secret\n");
    let login = |user: &str| Some((user.to_owned(), file.path().to_owned()));
    assert!(coordinator(&server, LinkOptions { login: login("run"), ..link(&server) }, 1, &log).is_ok());
    for login in [None, login("somebody")] {
        let error = coordinator(&server, LinkOptions { login, ..link(&server) }, 1, &log).unwrap_err().to_string();
        assert!(
            error.contains("cannot connect to nats://127.0.0.1:") && error.contains("user and password_file"),
            "{error}"
        );
    }
    let credentials = Some(file.path().to_owned());
    let error = coordinator(&server, LinkOptions { credentials, ..link(&server) }, 1, &log).unwrap_err().to_string();
    assert!(error.contains("is no credentials file"), "{error}");
}

fn server_file(text: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    file
}
