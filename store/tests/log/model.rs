//! Random use of a log on a disk that fails at random, against a model: a list of entries, and how many were called durable.
//!
//! `PROPTEST_CASES` sets how many sequences of steps are tried. A sequence that fails is made smaller and printed.

use crate::changes::survivors;
use crate::memory_disk::{Fault, MemoryDisk};
use crate::sample::{check_same, durable, entry, open, options, read, textless, verify};
use proptest::collection::vec;
use proptest::prelude::*;
use std::io::ErrorKind;
use store::{Entry, LogOptions, LogReader, LogWriter, Precision, SequenceNumber, StoreError};

#[derive(Clone, Debug)]
enum Step {
    /// Appends a block of so many entries.
    Append(u64),
    Sync,
    /// A clean stop.
    Seal,
    /// The process ends; what it wrote stays in the page cache. The next writer has these options.
    Leave {
        top_k: usize,
        precision: Precision,
        keep_text: bool,
    },
    /// A reader outside the writer's process looks.
    Follow,
    /// That reader ends; the next one reads everything again.
    Reopen,
    /// The machine stops.
    Crash {
        survivors: u64,
    },
    /// There is room for so many bytes more, or for any number.
    Room(Option<u64>),
    /// Something goes wrong so many operations from now.
    Fault {
        after: u64,
        fault: Fault,
        survivors: u64,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let fault = prop_oneof![
        Just(Fault::ShortWrite),
        Just(Fault::Error(ErrorKind::StorageFull)),
        Just(Fault::Error(ErrorKind::Other)),
        Just(Fault::HalfSync),
        Just(Fault::Crash),
    ];
    prop_oneof![
        8 => (1_u64..6).prop_map(Step::Append),
        4 => Just(Step::Sync),
        1 => Just(Step::Seal),
        1 => (3_usize..5, precision(), any::<bool>())
            .prop_map(|(top_k, precision, keep_text)| Step::Leave { top_k, precision, keep_text }),
        3 => Just(Step::Follow),
        1 => Just(Step::Reopen),
        1 => any::<u64>().prop_map(|seed| Step::Crash { survivors: seed % 32 }),
        1 => proptest::option::of(0_u64..4000).prop_map(Step::Room),
        4 => (0_u64..14, fault, any::<u64>())
            .prop_map(|(after, fault, seed)| Step::Fault { after, fault, survivors: seed % 32 }),
    ]
}

fn precision() -> impl Strategy<Value = Precision> {
    prop_oneof![Just(Precision::Exact), Just(Precision::Compact)]
}

/// The log and what must be in it.
struct World {
    disk: MemoryDisk,
    options: LogOptions,
    writer: Option<LogWriter>,
    reader: Option<LogReader>,
    /// Everything that was appended, or might have been, and not lost, and how it was stored.
    entries: Vec<(Entry, Precision)>,
    /// Where blocks end.
    ends: Vec<u64>,
    /// Everything below was called durable.
    told: u64,
    /// What that reader saw last.
    seen: u64,
    /// What survives if a fault stops the machine.
    survivors: u64,
    /// Whether other processes may not have been told of everything, because that failed.
    untold: bool,
    /// Makes entries that are appended again after they were lost different from the lost ones.
    generation: u64,
}

impl World {
    fn new(segment_bytes: u64) -> Self {
        Self {
            disk: MemoryDisk::default(),
            options: options(segment_bytes),
            writer: None,
            reader: None,
            entries: Vec::new(),
            ends: vec![0],
            told: 0,
            seen: 0,
            survivors: 0,
            untold: false,
            generation: 0,
        }
    }

    fn take(&mut self, step: &Step) {
        match *step {
            Step::Append(count) => self.append(count),
            Step::Sync => self.sync(),
            Step::Seal => self.seal(),
            Step::Leave { top_k, precision, keep_text } => {
                self.writer = None;
                (self.options.top_k, self.options.precision, self.options.keep_text) = (top_k, precision, keep_text);
            }
            Step::Follow => self.follow(),
            Step::Reopen => self.reader = None,
            Step::Crash { survivors } => self.restart(survivors),
            Step::Room(bytes) => self.disk.leave_room(bytes),
            Step::Fault { after, fault, survivors } => {
                (self.survivors, self.untold) = (survivors, true);
                self.disk.fail_at(self.disk.operations() + after, fault);
            }
        }
    }

    fn append(&mut self, count: u64) {
        let Some(mut writer) = self.writer() else { return };
        self.generation += 1;
        let first = writer.next().0;
        let block: Vec<_> = (first..first + count).map(|sequence| self.entry(sequence)).collect();
        self.entries.extend(block.iter().map(|entry| (entry.clone(), self.options.precision)));
        self.ends.push(first + count);
        let appended = writer.append(&block);
        if appended.as_ref().is_err_and(StoreError::is_no_room) {
            // Nothing was written, and the writer goes on.
            self.entries.truncate(first as usize);
            self.ends.pop();
            return self.after(writer, Ok(()));
        }
        self.after(writer, appended);
    }

    /// Entry `sequence` of this generation.
    fn entry(&self, sequence: u64) -> Entry {
        let entry = entry(sequence);
        let mut entry = if self.options.keep_text { entry } else { textless(entry) };
        entry.cursor.characters_available = self.generation;
        entry
    }

    fn sync(&mut self) {
        let Some(mut writer) = self.writer() else { return };
        let synced = writer.sync();
        if let Ok(position) = synced {
            assert_eq!(position, durable(self.entries.len() as u64));
            self.told = position.end().0;
        }
        self.after(writer, synced.map(|_| ()));
    }

    fn seal(&mut self) {
        let Some(writer) = self.writer() else { return };
        match writer.seal() {
            Ok(()) => self.told = self.entries.len() as u64,
            Err(_) => self.restart_if_crashed(),
        }
    }

    /// A writer that failed stays failed, its readers see what was durable, and its process ends.
    fn after(&mut self, mut writer: LogWriter, outcome: Result<(), StoreError>) {
        let told = writer.reader().durable().end().0; // A segment that was begun made everything before it durable.
        assert!(told >= self.told && self.ends.contains(&told), "{} were durable, now {told} are", self.told);
        self.told = told;
        let Err(first) = outcome else {
            self.writer = Some(writer);
            return;
        };
        let operations = self.disk.operations();
        for later in [writer.sync().map(|_| ()), writer.append(&[])] {
            assert_eq!(later.unwrap_err().to_string(), first.to_string());
        }
        assert_eq!(self.disk.operations(), operations, "a writer that failed goes on");
        if !self.disk.crashed() {
            self.check(&writer.reader(), self.told);
        }
        drop(writer);
        self.restart_if_crashed();
    }

    /// The writer, after recovery if there is none; `None` if that failed.
    fn writer(&mut self) -> Option<LogWriter> {
        if let Some(writer) = self.writer.take() {
            return Some(writer);
        }
        match open(&self.disk, &self.options) {
            Ok((writer, recovery)) => {
                let end = recovery.durable.end().0;
                assert!(end >= self.told, "{} were durable, {end} are left", self.told);
                assert_eq!(recovery.footers_lost, 0, "a segment was begun before the one before it was whole");
                self.keep(end);
                self.told = end;
                if self.disk.crashed() {
                    self.restart(self.survivors); // While other processes were told.
                    return None;
                }
                self.check(&writer.reader(), end);
                Some(writer)
            }
            Err(error) => {
                assert!(matches!(error, StoreError::Io { .. } | StoreError::NoSpace { .. }), "{error}");
                self.restart_if_crashed();
                None
            }
        }
    }

    /// Forgets what was lost.
    fn keep(&mut self, end: u64) {
        assert!(self.ends.contains(&end), "{end} is not the end of a block");
        self.entries.truncate(end as usize);
        self.ends.retain(|known| *known <= end);
    }

    fn follow(&mut self) {
        self.restart_if_crashed(); // While other processes were told something, which the writer does not mind.
        let reader = match self.reader.take().map_or_else(|| read(&self.disk), Ok) {
            Ok(reader) => reader,
            Err(StoreError::NoLog { .. }) if self.told == 0 => return,
            Err(error) => panic!("{error}"),
        };
        let end = reader.refresh().unwrap_or_else(|error| panic!("{error}")).end().0;
        match self.writer {
            Some(_) if self.untold => assert!(end <= self.told, "a reader sees {end}, {} are durable", self.told),
            Some(_) => assert_eq!(end, self.told, "a reader must see what is durable, and no more"),
            None => assert!((self.told..=self.entries.len() as u64).contains(&end), "a reader sees {end}"),
        }
        // Where the writer could not say how far it is, another reader may see less than one before it.
        assert!(self.untold || end >= self.seen, "a reader saw {} and now {end}", self.seen);
        self.check(&reader, end);
        self.seen = end;
        self.reader = Some(reader);
    }

    fn restart_if_crashed(&mut self) {
        if self.disk.crashed() {
            self.restart(self.survivors);
        }
    }

    /// The machine stops and starts again.
    fn restart(&mut self, seed: u64) {
        (self.writer, self.reader, self.seen) = (None, None, 0);
        self.disk = self.disk.after_crash(survivors(seed));
        match read(&self.disk) {
            Ok(reader) => {
                let end = reader.durable().end().0;
                assert!(end >= self.told, "{} were durable, a reader sees {end}", self.told);
                self.check(&reader, end);
                assert_eq!(verify(&self.disk).unwrap().durable, durable(end));
            }
            Err(StoreError::NoLog { .. }) => assert_eq!(self.told, 0),
            Err(error) => panic!("after a crash: {error}"),
        }
    }

    fn check(&self, reader: &LogReader, end: u64) {
        for (sequence, (expected, precision)) in (0..end).zip(&self.entries) {
            check_same(&reader.entry(SequenceNumber(sequence)).unwrap(), expected, *precision);
        }
        let beyond = reader.entry(SequenceNumber(end));
        assert!(matches!(beyond, Err(StoreError::NotDurable { .. })), "{beyond:?}");
    }

    /// Whatever happened, the log goes on and ends well.
    fn finish(mut self) {
        self.disk.leave_room(None);
        while self.disk.fault_pending() {
            self.append(1);
        }
        self.append(3);
        self.seal();
        let found = verify(&self.disk).unwrap();
        assert_eq!((found.entries, found.torn), (self.entries.len() as u64, None));
        self.check(&read(&self.disk).unwrap(), found.entries);
    }
}

/// A default that the environment overrides.
fn config() -> ProptestConfig {
    let config = ProptestConfig::default();
    let cases = if std::env::var_os("PROPTEST_CASES").is_some() { config.cases } else { 150 };
    ProptestConfig { cases, ..config }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn whatever_happens_nothing_durable_is_lost(steps in vec(step(), 1..70), segment_bytes in 1_u64..7000) {
        let mut world = World::new(segment_bytes);
        for step in &steps {
            world.take(step);
        }
        world.finish();
    }
}

/// A block that does not fit into a segment is coded with the tables of the next one.
#[test]
fn a_block_that_begins_a_segment_can_be_read() {
    let mut world = World::new(1);
    let leave = Step::Leave { top_k: 3, precision: Precision::Compact, keep_text: true };
    for step in [leave, Step::Append(2), Step::Append(3), Step::Sync] {
        world.take(&step);
        world.follow();
    }
    world.finish();
}
