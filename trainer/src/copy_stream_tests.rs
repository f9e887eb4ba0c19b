#![allow(clippy::unwrap_used)]

use super::*;
use crate::inputs::{Input, Inputs};
use crate::options::{BestBy, Copies, CopyWeight, WhenShort};
use crate::records::memory::{MemoryLog, copy};
use crate::vocabulary::TeacherTokens;
use model::{Normalisation, SpecialTokens};
use std::path::PathBuf;
use store::{DurablePosition, Identity, LogOptions, LogWriter, TeacherEntry};

const RECORDS: u64 = 60;

fn vocabulary() -> Arc<Vocabulary> {
    let mut tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"].map(str::to_owned).to_vec();
    tokens.extend((5..400).map(|id| format!("word{id}")));
    let teacher = |name| TeacherTokens {
        name,
        tokens: &tokens,
        special: SpecialTokens { pad: 0, unk: 1, cls: 2, sep: 3, mask: 4 },
        normalisation: Normalisation { lowercase: false, strip_accents: None, handle_chinese_chars: true },
        fingerprint: "",
    };
    Arc::new(Vocabulary::union(&[teacher("a"), teacher("b")]).unwrap())
}

/// `en` has two copies per record (the first has the lower loss in every third), `de` one; ids tell records apart.
fn log() -> MemoryLog {
    let mut log = MemoryLog::default();
    for index in 0..RECORDS {
        let first_id = 5 + 6 * index as u32;
        let length = 3 + index as u32 % 4;
        if index % 3 == 2 {
            log.record("de", 500, vec![copy(0, length, first_id, Some(1.0))]);
        } else {
            let loss = if index % 3 == 0 { 0.5 } else { 2.0 };
            let copies = vec![copy(0, length, first_id, Some(loss)), copy(1, length, first_id, Some(1.0))];
            log.record("en", 1000, copies);
        }
    }
    log.end("en", 1000);
    log.end("de", 500);
    log
}

fn identity() -> Identity {
    let teacher = |name: &str| TeacherEntry {
        name: name.to_owned(),
        languages: vec!["en".to_owned(), "de".to_owned()],
        labels: true,
        vocabulary_size: 400,
        tokenizer_fingerprint: String::new(),
        weights_fingerprint: String::new(),
    };
    Identity { teachers: vec![teacher("a"), teacher("b")], ..Identity::default() }
}

fn options(copies: Copies) -> StreamOptions {
    let input = |language: &str| Input { source: language.to_owned(), language: language.to_owned(), finite: true };
    StreamOptions {
        sampler: SamplerOptions {
            shuffle_examples: 16,
            alpha: 0.7,
            max_passes: 0,
            when_short: WhenShort::Wait,
            inputs: vec![input("en"), input("de")].into(),
        },
        copies: CopyOptions {
            copies,
            best_by: BestBy::Position,
            copy_weight: CopyWeight::Equal,
            max_sequence_length: 8,
        },
        labels: Vec::new(),
        batch_examples: 10,
        micro_batch_tokens: 20,
        targets: TargetSchedule::of(&TrainOptions::default()),
        loss_norm: LossNorm::Batch,
    }
}

struct Run {
    _folder: tempfile::TempDir,
    path: PathBuf,
    journal: Journal,
}

impl Run {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        Self { journal: Journal::open(&path).unwrap(), path, _folder: folder }
    }

    fn stream(options: &StreamOptions, state: StreamState) -> CopyStream {
        CopyStream::new(5, options.clone(), vocabulary(), state)
    }
}

fn batch(next: Next) -> Batch {
    match next {
        Next::Batch(batch) => batch,
        other => panic!("no batch: {other:?}"),
    }
}

/// The first token of every copy, which names its record.
fn records_of(batch: &Batch) -> Vec<u64> {
    let first_ids = batch.micro_batches.iter().flat_map(|part| {
        part.packed.lengths.iter().scan(0, |row, length| {
            let id = part.packed.token_ids[*row];
            *row += length;
            Some(id)
        })
    });
    first_ids.map(|id| u64::from(id - 5) / 6).collect()
}

fn read_all(log: &dyn Records, options: &StreamOptions, run: &mut Run, count: usize) -> Vec<Batch> {
    let mut stream = Run::stream(options, StreamState::default());
    (0..count).map(|_| batch(stream.next_batch(0, log, &mut run.journal).unwrap())).collect()
}

#[test]
fn all_copies_of_all_examples_come_once_a_pass() {
    let log = log();
    for (copies, expected) in [(Copies::All, 100), (Copies::Best, 60)] {
        let mut options = options(copies);
        options.sampler.max_passes = 1;
        let (mut run, mut stream) = (Run::new(), Run::stream(&options, StreamState::default()));
        let mut batches = Vec::new();
        while let Next::Batch(batch) = stream.next_batch(0, &log, &mut run.journal).unwrap() {
            batches.push(batch);
        }
        assert!(matches!(stream.next_batch(0, &log, &mut run.journal).unwrap(), Next::End));
        assert_eq!(batches.len(), expected / 10);
        assert!(batches.iter().all(|batch| batch.copies == 10), "batches cross windows");
        let read: Vec<u64> = batches.iter().flat_map(records_of).collect();
        for record in 0..RECORDS {
            let times = if copies == Copies::All && record % 3 != 2 { 2 } else { 1 };
            assert_eq!(read.iter().filter(|read| **read == record).count(), times, "record {record}");
        }
        let mixed = batches.iter().filter(|batch| batch.languages.len() == 2).count();
        assert!(mixed * 10 >= batches.len() * 8, "languages are mixed inside batches: {mixed} of {}", batches.len());
        let in_order = read.windows(2).filter(|pair| pair[1] == pair[0] + 1).count();
        assert!(in_order < read.len() / 4, "neighbours in the log are torn apart");
    }
}

#[test]
fn a_smaller_last_batch() {
    let log = log();
    let mut options = options(Copies::Best);
    (options.sampler.max_passes, options.batch_examples) = (1, 50);
    let (mut run, mut stream) = (Run::new(), Run::stream(&options, StreamState::default()));
    assert_eq!(batch(stream.next_batch(0, &log, &mut run.journal).unwrap()).copies, 50);
    assert_eq!(batch(stream.next_batch(0, &log, &mut run.journal).unwrap()).copies, 10);
    assert!(matches!(stream.next_batch(0, &log, &mut run.journal).unwrap(), Next::End));
    let mut resumed = Run::stream(&options, stream.state().clone());
    assert!(matches!(resumed.next_batch(0, &log, &mut run.journal).unwrap(), Next::End));
}

#[test]
fn resuming_after_any_batch_gives_the_same_batches() {
    let log = log();
    for copies in [Copies::All, Copies::Best] {
        let options = options(copies);
        let mut run = Run::new();
        let reference = read_all(&log, &options, &mut run, 30);
        let journal_bytes = std::fs::read(&run.path).unwrap();
        let mut stream = Run::stream(&options, StreamState::default());
        for (index, expected) in reference.iter().enumerate() {
            assert_eq!(batch(stream.next_batch(0, &log, &mut run.journal).unwrap()), *expected, "batch {index}");
            let state = serde_json::from_str(&serde_json::to_string(stream.state()).unwrap()).unwrap();
            stream = Run::stream(&options, state);
            assert!(run.journal.last_window().unwrap() + 1 >= stream.state().windows_used());
        }
        assert_eq!(std::fs::read(&run.path).unwrap(), journal_bytes, "known windows are not journaled again");
    }
}

#[test]
fn waiting_loses_nothing() {
    let log = log();
    let options = options(Copies::All);
    let reference = read_all(&log, &options, &mut Run::new(), 9);
    let (mut run, mut stream) = (Run::new(), Run::stream(&options, StreamState::default()));
    let mut batches = Vec::new();
    for shown in 0..=log.len() {
        log.show(shown);
        while batches.len() < reference.len() {
            let before = stream.state().clone();
            match stream.next_batch(0, &log, &mut run.journal).unwrap() {
                Next::Batch(batch) => batches.push(batch),
                Next::Short(_) => {
                    assert_eq!(*stream.state(), before, "a batch half gathered is no place to resume from");
                    break;
                }
                Next::End => panic!("the input is open"),
            }
        }
        if shown % 7 == 0 {
            stream = Run::stream(&options, stream.state().clone());
        }
    }
    assert_eq!(batches, reference);
    assert!(run.journal.window(0).unwrap() < DurablePosition::from_log(log.len()), "it did not wait for everything");
}

#[test]
fn a_resumed_window_sees_the_log_as_it_was() {
    // With replays the window depends on how far the log reached.
    let mut options = options(Copies::Best);
    (options.sampler.when_short, options.batch_examples) = (WhenShort::Replay, 16);
    let log = log();
    log.show(12);
    let mut run = Run::new();
    let early = read_all(&log, &options, &mut run, 1);
    log.show(log.len());
    assert_eq!(read_all(&log, &options, &mut run, 1), early, "the journal says where the log ended");
    assert_ne!(read_all(&log, &options, &mut Run::new(), 1), early);
    log.show(5);
    let error = Run::stream(&options, StreamState::default()).next_batch(0, &log, &mut run.journal).unwrap_err();
    assert!(matches!(error, TrainerError::LogBehind { durable: 5, needed: 12, .. }), "{error}");
}

#[test]
fn a_log_on_disk_gives_the_same_batches() {
    let (log, options) = (log(), options(Copies::All));
    let reference = read_all(&log, &options, &mut Run::new(), 25);
    let folder = tempfile::tempdir().unwrap();
    let log_options = LogOptions { top_k: 2, segment_bytes: 4096, ..LogOptions::default() };
    let registry = prometheus::Registry::new();
    let (mut writer, _) = LogWriter::open(folder.path(), &identity(), &log_options, &registry).unwrap();
    let reader = writer.reader();
    let (mut run, mut stream) = (Run::new(), Run::stream(&options, StreamState::default()));
    let mut batches = Vec::new();
    let mut waits = 0;
    for block in log.entries().chunks(7) {
        writer.append(block).unwrap();
        writer.sync().unwrap();
        while batches.len() < reference.len()
            && let Next::Batch(batch) = stream.next_batch(0, &reader, &mut run.journal).unwrap()
        {
            batches.push(batch);
        }
        waits += u32::from(batches.len() < reference.len());
    }
    assert_eq!(batches, reference);
    assert!(waits > 3, "it followed the log as it grew: {waits} waits");
}

#[test]
fn examples_left_out_move_no_other() {
    let log = log();
    let mut options = options(Copies::All);
    options.sampler.max_passes = 1;
    let reference: Vec<u64> = read_all(&log, &options, &mut Run::new(), 10).iter().flat_map(records_of).collect();
    let left_out = [3, 4, 5, 20].map(SequenceNumber);
    let mut run = Run::new();
    let mut stream = Run::stream(&options, StreamState { left_out: left_out.into(), ..StreamState::default() });
    let mut sequences = Vec::new();
    while let Next::Batch(batch) = stream.next_batch(0, &log, &mut run.journal).unwrap() {
        sequences.extend(batch.sequences.clone());
        stream = Run::stream(&options, stream.state().clone());
    }
    assert!(left_out.iter().all(|sequence| !sequences.contains(sequence)));
    sequences.sort_unstable();
    sequences.dedup();
    assert_eq!((sequences.len(), reference.len()), (56, 100));
    let everything = (0..RECORDS).map(SequenceNumber).collect();
    options.sampler.max_passes = 0;
    let mut stream = Run::stream(&options, StreamState { left_out: everything, ..StreamState::default() });
    let error = stream.next_batch(0, &log, &mut Run::new().journal).unwrap_err().to_string();
    assert!(error.contains("60 examples are left out"), "{error}");
}

#[test]
fn a_state_of_other_settings_is_refused() {
    let state = StreamState { copies_taken: 99, ..StreamState::default() };
    let error = Run::stream(&options(Copies::All), state).next_batch(0, &log(), &mut Run::new().journal).unwrap_err();
    assert!(error.to_string().contains("99 copies of window 0"), "{error}");
}

/// `options` with more inputs: of a new language, and of one that has ended.
fn with_new_inputs(options: &StreamOptions) -> StreamOptions {
    let mut more = options.clone();
    let new = [("fi", "fi", true), ("en/more", "en", true), ("de/stream", "de", false)];
    let input = |(source, language, finite): (&str, &str, bool)| Input {
        source: source.to_owned(),
        language: language.to_owned(),
        finite,
    };
    more.sampler.inputs = options.sampler.inputs.get().iter().cloned().chain(new.map(input)).collect();
    more
}

#[test]
fn known_windows_are_formed_again_after_inputs_were_added() {
    // All input has ended and is gone through for the third time.
    let log = log();
    let options = options(Copies::All);
    let mut run = Run::new();
    let reference = read_all(&log, &options, &mut run, 30);
    let more = with_new_inputs(&options);
    assert_eq!(read_all(&log, &more, &mut run, 30), reference);
    // The next window waits for the new sources.
    let mut stream = Run::stream(&more, StreamState::default());
    let short = loop {
        match stream.next_batch(0, &log, &mut run.journal).unwrap() {
            Next::Batch(_) => {}
            Next::Short(short) => break short,
            Next::End => panic!("the new input is open"),
        }
    };
    assert_eq!(short.language, "fi");
    // And without any of the inputs, from the log alone.
    let mut none = options.clone();
    none.sampler.inputs = Inputs::default();
    assert_eq!(read_all(&log, &none, &mut run, 30), reference);
}

#[test]
fn windows_of_a_journal_without_inputs_are_formed_from_those_in_the_log() {
    let mut log = log();
    let options = options(Copies::All);
    let mut run = Run::new();
    let reference = read_all(&log, &options, &mut run, 30);
    let mut old = Run::new();
    for line in std::fs::read_to_string(&run.path).unwrap().lines() {
        let JournalEntry::Window(window) = serde_json::from_str(line).unwrap() else { panic!("{line}") };
        assert!(window.open.is_some());
        old.journal.append(JournalEntry::Window(WindowEntry { open: None, ..window })).unwrap();
    }
    log.record("fi", 10, Vec::new());
    assert_eq!(read_all(&log, &with_new_inputs(&options), &mut old, 30), reference);
}

#[test]
fn a_window_whose_records_were_removed_is_not_formed_again() {
    let log = log();
    let options = options(Copies::All);
    let mut run = Run::new();
    let mut stream = Run::stream(&options, StreamState::default());
    let reference: Vec<Batch> = (0..6).map(|_| batch(stream.next_batch(0, &log, &mut run.journal).unwrap())).collect();
    let window = stream.state().sampler.window;
    let oldest = run.journal.oldest(window).unwrap();
    assert!(oldest > run.journal.oldest(0).unwrap());
    let mut from_here = Run::stream(&options, stream.state().clone());
    let next = batch(stream.next_batch(0, &log, &mut run.journal).unwrap());
    log.remove_below(oldest.0);
    assert_eq!(batch(from_here.next_batch(0, &log, &mut run.journal).unwrap()), next, "it needs nothing older");
    let mut from_start = Run::stream(&options, StreamState::default());
    let error = from_start.next_batch(0, &log, &mut run.journal).unwrap_err();
    assert!(matches!(error, TrainerError::Store(StoreError::Removed { .. })), "{error}");
    assert_eq!(reference.len(), 6);
}
