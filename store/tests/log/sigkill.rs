//! A writer that is killed again and again, on a real file system, and two readers that follow it all the while.
//!
//! The processes are this test's own binary. `MERGEDISTILL_SIGKILL_ROUNDS=200 cargo test -p store --test log sigkill::` kills 200 times.

use crate::sample::{block, durable, entry, identity, options};
use prometheus::Registry;
use std::env;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;
use store::{DurablePosition, LogReader, LogWriter, SequenceNumber, StoreError};

/// Set in a process that plays a part: the folder of the log.
const FOLDER: &str = "MERGEDISTILL_SIGKILL_FOLDER";

/// How often the writer is killed.
const ROUNDS: &str = "MERGEDISTILL_SIGKILL_ROUNDS";

/// What a process calls durable, or has seen.
const SEEN: &str = "SEEN ";

/// So small that a round begins several segments.
const SEGMENT_BYTES: u64 = 12_000;

/// A writer that nobody kills ends here.
const ENTRIES_MAX: u64 = 1_000_000;

/// A number that depends on its arguments alone.
fn draw(seed: u64, index: u64) -> u64 {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ index.wrapping_mul(0xD1B5_4A32_D192_ED03);
    state ^= state >> 32;
    state = state.wrapping_mul(0x94D0_49BB_1331_11EB);
    state ^ state >> 29
}

#[test]
fn a_writer_killed_at_any_moment_loses_nothing_durable() {
    let rounds = env::var(ROUNDS).map_or(20, |rounds| rounds.parse().expect("a number of rounds"));
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("log");
    drop(open(&dir));
    let readers = [Follower::start(&dir), Follower::start(&dir)];
    let (mut told, mut checked) = (0, 0);
    for round in 0..rounds {
        told = told.max(killed_after(&dir, draw(7, round) % 24));
        let seen = readers.iter().map(Follower::seen).max().unwrap_or(0);
        let reader = LogReader::open(&dir).unwrap_or_else(|error| panic!("round {round}: {error}"));
        let end = reader.durable().end().0;
        assert!(end >= told, "round {round}: {told} were durable, {end} are left");
        assert!(end >= seen, "round {round}: a reader saw {seen}, {end} are left");
        check(&reader, checked, end);
        checked = end.saturating_sub(100); // What recovery may touch is looked at again.
    }
    let (log, recovery) = open(&dir);
    assert!(recovery >= told);
    assert!(log.next().0 > rounds, "the writer should have got somewhere");
    log.seal().unwrap();
    readers.into_iter().for_each(|reader| reader.stop(recovery));
    let reader = LogReader::open(&dir).unwrap();
    check(&reader, 0, recovery);
    assert_eq!(store::verify(&dir).unwrap().entries, recovery);
}

/// Opens the log for writing; how much of it is durable.
fn open(dir: &Path) -> (LogWriter, u64) {
    let (log, recovery) = LogWriter::open(dir, &identity(), &options(SEGMENT_BYTES), &Registry::new()).unwrap();
    assert_eq!((recovery.durable, recovery.footers_lost), (durable(log.next().0), 0));
    (log, recovery.durable.end().0)
}

fn check(reader: &LogReader, from: u64, end: u64) {
    for sequence in from..end {
        assert_eq!(*reader.entry(SequenceNumber(sequence)).unwrap(), entry(sequence));
    }
}

/// Starts a process that plays `part`, one of the ignored tests below.
fn start(part: &str, dir: &Path) -> Child {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args([&format!("sigkill::{part}"), "--exact", "--ignored", "--nocapture"]).env(FOLDER, dir);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
}

/// The folder, in a process that plays a part.
fn part() -> Option<PathBuf> {
    env::var_os(FOLDER).map(PathBuf::from)
}

/// Tells the parent; ends the process if there is none any more.
fn tell(seen: u64) {
    let mut out = io::stdout().lock();
    writeln!(out, "{SEEN}{seen}").and_then(|()| out.flush()).expect("a parent that listens");
}

/// What a line tells, if it is whole.
fn told(line: &str) -> Option<u64> {
    // The test harness may have begun the line.
    line.strip_suffix('\n')?.split_once(SEEN)?.1.parse().ok()
}

/// Lets a writer at the log and kills it when it has told `lines` times what is durable; what it told last.
fn killed_after(dir: &Path, lines: u64) -> u64 {
    let mut writer = start("the_writer", dir);
    let mut out = BufReader::new(writer.stdout.take().unwrap());
    let (mut last, mut count) = (0, 0);
    let mut line = String::new();
    while count < lines && out.read_line(&mut line).unwrap() > 0 {
        if let Some(seen) = told(&line) {
            (last, count) = (seen, count + 1);
        }
        line.clear();
    }
    writer.kill().unwrap();
    while out.read_line(&mut line).unwrap() > 0 {
        last = told(&line).unwrap_or(last);
        line.clear();
    }
    let status = writer.wait().unwrap();
    assert_eq!(status.code(), None, "the writer ended by itself");
    last
}

#[test]
#[ignore = "a part of the test above, which kills it"]
fn the_writer() {
    let Some(dir) = part() else { return };
    let (mut log, recovered) = open(&dir);
    tell(recovered);
    for turn in log.next().0.. {
        for _ in 0..1 + draw(turn, 1) % 3 {
            let first = log.next().0;
            log.append(&block(first..first + 1 + draw(first, 2) % 4)).unwrap();
        }
        if draw(turn, 3).is_multiple_of(16) {
            let end = log.next().0;
            log.seal().unwrap();
            tell(end);
            let (next, recovered) = open(&dir);
            assert_eq!(recovered, end);
            log = next;
        } else {
            tell(log.sync().unwrap().end().0);
        }
        assert!(log.next().0 < ENTRIES_MAX, "nobody kills this writer");
    }
}

#[test]
#[ignore = "a part of the test above, which stops it"]
fn the_reader() {
    let Some(dir) = part() else { return };
    let stopped = Arc::new(AtomicBool::new(false));
    let parent = Arc::clone(&stopped);
    thread::spawn(move || {
        let _ = io::stdin().read_to_end(&mut Vec::new()); // It ends when the parent closes it, or is gone.
        parent.store(true, Ordering::SeqCst);
    });
    let reader = LogReader::open(&dir).unwrap();
    let mut seen = DurablePosition::default();
    loop {
        let last = stopped.load(Ordering::SeqCst);
        let now = reader.wait_beyond(seen, Duration::from_millis(20));
        assert!(now >= seen, "{seen} were there, now {now}");
        check(&reader, seen.end().0, now.end().0);
        if now > seen {
            tell(now.end().0);
            looks_the_same_from_the_beginning(&dir);
        }
        seen = now;
        if last {
            reader.refresh().unwrap();
            return;
        }
    }
}

/// A reader that begins now sees the same, though perhaps not as much yet: a writer that recovers has not said what is durable.
fn looks_the_same_from_the_beginning(dir: &Path) {
    let reader = LogReader::open(dir).unwrap_or_else(|error| panic!("{error}; corrupt: {}", error.is_corruption()));
    let end = reader.durable().end().0;
    check(&reader, end.saturating_sub(12), end);
    let beyond = reader.entry(SequenceNumber(u64::MAX));
    assert!(matches!(beyond, Err(StoreError::NotDurable { .. })), "{beyond:?}");
}

/// A process that reads.
struct Follower {
    process: Child,
    /// It ends when this is dropped.
    stdin: Option<ChildStdin>,
    seen: Arc<AtomicU64>,
    listener: JoinHandle<()>,
}

impl Follower {
    fn start(dir: &Path) -> Self {
        let mut process = start("the_reader", dir);
        let (stdin, out) = (process.stdin.take(), BufReader::new(process.stdout.take().unwrap()));
        let seen = Arc::new(AtomicU64::new(0));
        let heard = Arc::clone(&seen);
        let listener = thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                if let Some(seen) = told(&(line + "\n")) {
                    heard.fetch_max(seen, Ordering::SeqCst);
                }
            }
        });
        Self { process, stdin, seen, listener }
    }

    /// How much it has seen.
    fn seen(&self) -> u64 {
        self.seen.load(Ordering::SeqCst)
    }

    /// Lets it look once more and end; it must have seen everything.
    fn stop(mut self, end: u64) {
        drop(self.stdin.take());
        assert!(self.process.wait().unwrap().success(), "a reader failed");
        self.listener.join().unwrap();
        assert_eq!(self.seen.load(Ordering::SeqCst), end);
    }
}
