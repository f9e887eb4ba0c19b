//! Entries to append, and shorthands.

use crate::memory_disk::MemoryDisk;
use prometheus::Registry;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use store::{
    ComputedIn, DurablePosition, Entry, Identity, Label, LogOptions, LogReader, LogWriter, MaskedCopy, Payload,
    Precision, Record, Recovery, SequenceNumber, Skip, SourceCursor, Span, StoreError, TeacherEntry,
};

pub(crate) const DIR: &str = "/state/log";

/// Teachers `en`, `de` and a third that lends only its tokenizer.
pub(crate) fn identity() -> Identity {
    let teacher = |name: &str, labels| TeacherEntry {
        name: name.to_owned(),
        languages: vec![name.to_owned()],
        labels,
        vocabulary_size: 8000,
        tokenizer_fingerprint: format!("tokenizer of {name}"),
        weights_fingerprint: if labels { format!("weights of {name}") } else { String::new() },
    };
    let settings = [("run.seed", "0"), ("masking.probability", "0.15"), ("store.top_k", "3")];
    Identity {
        settings: settings.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect(),
        teachers: vec![teacher("en", true), teacher("de", true), teacher("fi", false)],
    }
}

pub(crate) fn options(segment_bytes: u64) -> LogOptions {
    let sync_interval = Duration::from_secs(3600);
    LogOptions { segment_bytes, sync_interval, top_k: 3, keep_text: true, computed_in: true, ..LogOptions::default() }
}

pub(crate) fn open(disk: &MemoryDisk, options: &LogOptions) -> Result<(LogWriter, Recovery), StoreError> {
    open_as(disk, &identity(), options)
}

pub(crate) fn open_as(
    disk: &MemoryDisk,
    identity: &Identity,
    options: &LogOptions,
) -> Result<(LogWriter, Recovery), StoreError> {
    LogWriter::open_on(Arc::new(disk.clone()), Path::new(DIR), identity, options, &Registry::new())
}

pub(crate) fn read(disk: &MemoryDisk) -> Result<LogReader, StoreError> {
    LogReader::open_on(Arc::new(disk.clone()), Path::new(DIR))
}

pub(crate) fn verify(disk: &MemoryDisk) -> Result<store::Verification, StoreError> {
    let pass = store::log::Pass { threads: Some(1), ..Default::default() }; // Threads cost more than these logs.
    store::log::verify_with(Arc::new(disk.clone()), Path::new(DIR), &pass)
}

/// A number that depends on its arguments alone.
fn mix(a: u64, b: u64) -> u64 {
    let mut x = a.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ b.wrapping_mul(0xD1B5_4A32_D192_ED03);
    x ^= x >> 31;
    x = x.wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ x >> 29
}

/// Entry number `sequence` of the log that all tests write: records of two languages, some held out, most with their text, a skip
/// now and then.
pub(crate) fn entry(sequence: u64) -> Entry {
    let (source, teacher) = if sequence % 3 == 1 { ("de", 1) } else { ("en", 0) };
    let (document, first) = (sequence / 5 * 1000, sequence % 5 * 100);
    let cursor = SourceCursor {
        file: format!("text/{source}.txt").into(),
        document_offset_bytes: document,
        next_byte: if sequence % 5 == 4 { SourceCursor::DOCUMENT_DONE } else { first + 100 },
        ..SourceCursor::start(source.into(), source.into(), 123_456)
    };
    let document: Arc<str> = format!("text/{source}.txt@{document}").into();
    let payload = if sequence % 7 == 6 {
        Payload::Skip(Skip { document, reason: "too short".into() })
    } else {
        let mut copies = vec![copy(sequence, teacher)];
        if sequence.is_multiple_of(2) {
            copies.push(copy(sequence, 2));
        }
        Payload::Record(Record {
            source: source.into(),
            document,
            span: Span { first, end: first + 100 },
            language: source.into(),
            round: 0,
            held_out: sequence % 11 == 3,
            copies,
            text: (sequence % 4 != 3).then(|| text(sequence)),
        })
    };
    Entry { sequence: SequenceNumber(sequence), cursor, payload }
}

/// 100 bytes.
fn text(sequence: u64) -> Arc<str> {
    let words = ["Grüße", "from", "entry", "…", "table", "of", "rows"];
    let mut text: String = (0..8).map(|at| words[(mix(sequence, at) % 7) as usize].to_owned() + " ").collect();
    text += &"n".repeat(100 - text.len());
    text.into()
}

/// The entry with labels in float32 alone.
pub(crate) fn float32(mut entry: Entry) -> Entry {
    if let Payload::Record(record) = &mut entry.payload {
        let labels = record.copies.iter_mut().filter_map(|copy| copy.label.as_mut());
        labels.for_each(|label| label.computed_in = ComputedIn::Float32);
    }
    entry
}

/// The entry without its text.
pub(crate) fn textless(mut entry: Entry) -> Entry {
    if let Payload::Record(record) = &mut entry.payload {
        record.text = None;
    }
    entry
}

fn copy(sequence: u64, teacher: u16) -> MaskedCopy {
    let number = |index: u64| mix(sequence * 4 + u64::from(teacher), index);
    let length = 9 + number(0) % 8;
    let token_ids: Vec<u32> = (0..length).map(|at| (number(at + 1) % 8000) as u32).collect();
    let masked_positions = vec![2, 5 + (number(99) % 3) as u32];
    let gold_ids = vec![17, (number(100) % 8000) as u32];
    let label = (teacher != 2).then(|| Label {
        top_k: 3,
        top_ids: vec![17, 4, 7999, 3, 2, 1],
        top_logits: (0..6).map(|at| 9.5 - at as f32 * 1.37 - (number(at + 200) % 1000) as f32 / 3000.0).collect(),
        log_sum_exp: vec![11.25, 12.0 + (number(300) % 100) as f32 / 7.0],
        gold_logits: vec![9.5 - (number(200) % 1000) as f32 / 3000.0, -3.0],
        computed_in: ComputedIn::ALL[[0, 0, 1, 2][(sequence % 4) as usize]],
    });
    MaskedCopy { teacher, token_ids, masked_positions, gold_ids, label }
}

/// Entries `range` as one block.
pub(crate) fn block(range: std::ops::Range<u64>) -> Vec<Entry> {
    range.map(entry).collect()
}

/// Everything that a reader shows, which must be the beginning of the log that all tests write.
pub(crate) fn check_content(reader: &LogReader) -> u64 {
    let end = reader.durable().end();
    for sequence in 0..end.0 {
        assert_eq!(*reader.entry(SequenceNumber(sequence)).unwrap(), entry(sequence));
    }
    assert!(matches!(reader.entry(end), Err(StoreError::NotDurable { .. })));
    end.0
}

pub(crate) fn durable(end: u64) -> DurablePosition {
    DurablePosition::from_log(end)
}

/// The segment files, in order.
pub(crate) fn segments(disk: &MemoryDisk) -> Vec<PathBuf> {
    disk.files(Path::new(DIR)).into_keys().filter(|path| path.extension().is_some_and(|end| end == "seg")).collect()
}

/// Appends the blocks that end at `ends`, each durable before the next, after what `log` holds.
pub(crate) fn append_blocks(log: &mut LogWriter, ends: &[u64]) {
    for end in ends {
        log.append(&block(log.next().0..*end)).unwrap();
        log.sync().unwrap();
    }
}

/// A log of the blocks that end at `ends`, in one segment, as a crash leaves it.
pub(crate) fn unsealed(ends: &[u64]) -> MemoryDisk {
    let disk = MemoryDisk::default();
    append_blocks(&mut open(&disk, &options(1 << 30)).unwrap().0, ends);
    disk.copy()
}

/// A log with a segment for each block, sealed.
pub(crate) fn sealed(ends: &[u64]) -> MemoryDisk {
    let disk = MemoryDisk::default();
    let mut log = open(&disk, &options(1)).unwrap().0;
    append_blocks(&mut log, ends);
    log.seal().unwrap();
    disk.copy()
}

/// Fails unless `read` is `entry` as a log of this precision keeps it.
pub(crate) fn check_same(read: &Entry, entry: &Entry, precision: Precision) {
    if precision == Precision::Exact {
        return assert_eq!(read, entry);
    }
    let (mut read, mut entry) = (read.clone(), entry.clone());
    for (read, entry) in labels(&mut read).into_iter().zip(labels(&mut entry)) {
        let log_probabilities = |label: &Label| {
            let rows = label.top_logits.chunks(label.top_k.max(1)).zip(&label.log_sum_exp);
            let top = rows.flat_map(|(row, sum)| row.iter().map(move |logit| logit - sum));
            let gold = label.gold_logits.iter().zip(&label.log_sum_exp).map(|(logit, sum)| logit - sum);
            top.chain(gold).chain(label.log_sum_exp.iter().copied()).collect::<Vec<_>>()
        };
        for (kept, exact) in log_probabilities(read).into_iter().zip(log_probabilities(entry)) {
            assert!((kept - exact).abs() <= 1.0 / 32.0 + 1e-4, "{exact} was kept as {kept}");
        }
        for label in [read, entry] {
            for values in [&mut label.top_logits, &mut label.log_sum_exp, &mut label.gold_logits] {
                values.fill(0.0);
            }
        }
    }
    assert_eq!(read, entry);
}

/// The labels of an entry.
fn labels(entry: &mut Entry) -> Vec<&mut Label> {
    match &mut entry.payload {
        Payload::Record(record) => record.copies.iter_mut().filter_map(|copy| copy.label.as_mut()).collect(),
        Payload::Skip(_) | Payload::End => Vec::new(),
    }
}
