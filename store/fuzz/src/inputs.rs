//! From bytes to a log, and what must hold of it whatever the bytes are.

use crate::memory_disk::MemoryDisk;
use crate::sample::{DIR, float32, identity, open, options, read, segments, textless, verify};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use store::{Entry, LogOptions, LogReader, LogWriter, Payload, Precision, SequenceNumber, SourceCursor, TeacherEntry};

/// Entries that are looked at; a damaged header may promise billions.
const ENTRIES_MAX: u64 = 64;

/// Bytes of a block's header before its tables.
const FIXED_BYTES: usize = 80;

/// Codes of the columns of labels.
const LABEL_COLUMNS: std::ops::RangeInclusive<u16> = 8..=14;

/// A file that claims to be the first segment of a log: as it is, and with checksums that fit.
pub fn segment(bytes: &[u8]) {
    let path = Path::new(DIR).join(format!("{:020}.seg", 0));
    for bytes in [bytes.to_vec(), repaired(bytes)] {
        let disk = MemoryDisk::default();
        disk.put(&path, bytes);
        if let Some(reader) = explore(&disk, 0) {
            goes_on(&disk, &reader);
        }
    }
}

/// A block. Of each input the first byte chooses the kind of log, the second is the number of entries, and then columns follow:
/// code, coding, length before compression (3 bytes), stored length (3 bytes), stored bytes.
pub fn block(bytes: &[u8]) {
    let Some(([kind, entries], mut rest)) = bytes.split_first_chunk() else { return };
    let mut columns = Vec::new();
    while let Some(([code, coding, lengths @ ..], after)) = rest.split_first_chunk::<8>() {
        let [raw_bytes, stored_bytes] = [&lengths[..3], &lengths[3..]].map(number);
        let (stored, after) = after.split_at(stored_bytes.min(after.len()));
        columns.push(StoredColumn {
            code: u16::from(*code),
            coding: u16::from(*coding),
            raw_bytes: if *coding == 0 { stored.len() } else { raw_bytes },
            stored: stored.to_vec(),
        });
        rest = after;
    }
    let template = Template::of(*kind);
    explore(&template.with_block(&template.fixed(u32::from(*entries)), &[], &columns), template.first);
}

/// The columns of labels. Of each input the first byte chooses the kind of log; then each column follows: its length (2 bytes),
/// its bytes.
pub fn labels(bytes: &[u8]) {
    let Some((kind, mut rest)) = bytes.split_first() else { return };
    let template = Template::of(*kind);
    let mut columns = template.columns.clone();
    for column in columns.iter_mut().filter(|column| LABEL_COLUMNS.contains(&column.code)) {
        let Some((length, after)) = rest.split_at_checked(2) else { break };
        let (stored, after) = after.split_at(number(length).min(after.len()));
        column.stored = stored.to_vec();
        if column.coding == 0 {
            column.raw_bytes = stored.len();
        }
        rest = after;
    }
    explore(&template.with_block(&template.block[..FIXED_BYTES], &template.summary, &columns), template.first);
}

/// Inputs to begin with: target, name, bytes.
#[allow(dead_code)]
pub fn seeds() -> Vec<(&'static str, String, Vec<u8>)> {
    let mut seeds = Vec::new();
    for (precision, keep_text) in [(Precision::Exact, false), (Precision::Compact, false), (Precision::Exact, true)] {
        for sealed in [false, true] {
            let disk = log(precision, keep_text, &[&[2, 5]], sealed);
            let path = segments(&disk).remove(0);
            let bytes = disk.files(Path::new(DIR)).remove(&path).unwrap();
            let texts = if keep_text { "-texts" } else { "" };
            let state = if sealed { "sealed" } else { "unsealed" };
            seeds.push(("segment", format!("{precision}{texts}-{state}"), bytes));
        }
    }
    for (kind, name) in (0_u8..).zip(["exact", "compact", "compact-tables", "exact-texts"]) {
        let template = Template::of(kind);
        let entries = template.block[28];
        let mut block = vec![kind, entries];
        let mut labels = vec![kind];
        for column in &template.columns {
            block.extend([column.code as u8, column.coding as u8]);
            block.extend(&column.raw_bytes.to_le_bytes()[..3]);
            block.extend(&column.stored.len().to_le_bytes()[..3]);
            block.extend(&column.stored);
            if LABEL_COLUMNS.contains(&column.code) {
                labels.extend((column.stored.len() as u16).to_le_bytes());
                labels.extend(&column.stored);
            }
        }
        seeds.push(("block", name.to_owned(), block));
        seeds.push(("labels", name.to_owned(), labels));
    }
    seeds
}

/// Little-endian.
fn number(bytes: &[u8]) -> usize {
    bytes.iter().rev().fold(0, |number, byte| number << 8 | usize::from(*byte))
}

fn word(bytes: &[u8], at: usize) -> usize {
    number(&bytes[at..at + 4])
}

/// Whatever the log holds from entry `begin` on: it is read or refused, and what is read could have been written. The reader, if
/// there is a log.
fn explore(disk: &MemoryDisk, begin: u64) -> Option<LogReader> {
    let reader = read(disk).ok()?;
    let end = reader.durable().end().0;
    let mut entries = Vec::new();
    for sequence in begin..end.min(begin.saturating_add(ENTRIES_MAX)) {
        match reader.entry(SequenceNumber(sequence)) {
            Ok(entry) => {
                assert_eq!(entry.sequence.0, sequence);
                entries.push(Entry::clone(&entry));
            }
            Err(error) => {
                assert!(error.is_corruption(), "{error}");
                break; // Another entry of the same block fails alike.
            }
        }
    }
    can_be_written(entries);
    let durable = reader.durable();
    if let Err(error) = reader.cursors(durable) {
        assert!(error.is_corruption(), "{error}");
    }
    for language in reader.languages(durable) {
        let _ = reader.count_records(&language, false, durable);
        let _ = reader.next_record(&language, true, SequenceNumber(begin), durable);
    }
    Some(reader)
}

/// Every way to look at the log reads or refuses it, and so does a writer, which loses nothing that a reader saw.
fn goes_on(disk: &MemoryDisk, reader: &LogReader) {
    if let Err(error) = verify(disk) {
        assert!(error.is_corruption(), "{error}");
    }
    let _ = store::log::stat_on(Arc::new(disk.clone()), Path::new(DIR));
    let registry = prometheus::Registry::new();
    let opened =
        LogWriter::open_on(Arc::new(disk.copy()), Path::new(DIR), reader.identity(), &options(1 << 20), &registry);
    match opened {
        Ok((_, recovery)) => assert_eq!(recovery.durable, reader.durable()),
        Err(error) => assert!(error.is_corruption(), "{error}"),
    }
}

/// Entries that were read pass the validation of a writer, and come back from it.
fn can_be_written(mut entries: Vec<Entry>) {
    let mut identity = identity();
    let teacher = |_| TeacherEntry { name: "more".to_owned(), ..identity.teachers[0].clone() };
    let more: Vec<_> = (0..16).map(teacher).collect();
    identity.teachers.extend(more);
    // `verify` compares teachers with the table; names longer than any writer takes are only long.
    entries.retain(|entry| teachers(entry).all(|teacher| teacher < identity.teachers.len()) && !has_long_names(entry));
    for (sequence, entry) in (0..).zip(&mut entries) {
        entry.sequence = SequenceNumber(sequence);
    }
    if entries.is_empty() {
        return;
    }
    let disk = MemoryDisk::default();
    let (mut log, _) = crate::sample::open_as(&disk, &identity, &options(1 << 30)).unwrap();
    log.append(&entries).unwrap_or_else(|error| panic!("what was read cannot be written: {error}"));
    log.sync().unwrap();
    let reader = log.reader();
    for entry in &entries {
        let again = reader.entry(entry.sequence).unwrap();
        assert_eq!(format!("{again:?}"), format!("{entry:?}")); // NaN is not equal to itself.
    }
}

fn teachers(entry: &Entry) -> impl Iterator<Item = usize> {
    let copies = match &entry.payload {
        Payload::Record(record) => &record.copies[..],
        Payload::Skip(_) | Payload::End => &[],
    };
    copies.iter().map(|copy| usize::from(copy.teacher))
}

fn has_long_names(entry: &Entry) -> bool {
    let SourceCursor { source, language, file, .. } = &entry.cursor;
    let names = match &entry.payload {
        Payload::Record(record) => vec![&record.source, &record.document, &record.language],
        Payload::Skip(skip) => vec![&skip.document, &skip.reason],
        Payload::End => Vec::new(),
    };
    names.into_iter().chain([source, language, file]).any(|name| name.len() > usize::from(u16::MAX))
}

/// A log of these blocks in these segments.
fn log(precision: Precision, keep_text: bool, segments: &[&[u64]], sealed: bool) -> MemoryDisk {
    let disk = MemoryDisk::default();
    let options = LogOptions { precision, keep_text, computed_in: keep_text, ..options(1 << 30) };
    for (number, ends) in segments.iter().enumerate() {
        let (mut log, _) = open(&disk, &options).unwrap();
        for end in *ends {
            let block = crate::sample::block(log.next().0..*end).into_iter();
            log.append(
                &block.map(|entry| if keep_text { entry } else { float32(textless(entry)) }).collect::<Vec<_>>(),
            )
            .unwrap();
            log.sync().unwrap();
        }
        if sealed || number + 1 < segments.len() {
            log.seal().unwrap();
        }
    }
    disk.copy()
}

/// A column as it is stored.
#[derive(Clone, Debug)]
struct StoredColumn {
    code: u16,
    coding: u16,
    raw_bytes: usize,
    stored: Vec<u8>,
}

/// A log whose last segment has one block, taken apart.
struct Template {
    disk: MemoryDisk,
    path: PathBuf,
    /// The segment's header.
    header: Vec<u8>,
    block: Vec<u8>,
    /// Number of its first entry.
    first: u64,
    /// Summary rows.
    summary: Vec<u8>,
    /// Not compressed by zstd, so that a change is a change of the column itself.
    columns: Vec<StoredColumn>,
}

impl Template {
    /// Of an exact log, a compact one, a compact one with tables in the segment's header, or an exact one with texts.
    fn of(kind: u8) -> &'static Self {
        static TEMPLATES: OnceLock<[Template; 4]> = OnceLock::new();
        let templates = TEMPLATES.get_or_init(|| {
            [
                Self::take_apart(log(Precision::Exact, false, &[&[9]], false)),
                Self::take_apart(log(Precision::Compact, false, &[&[9]], false)),
                Self::take_apart(log(Precision::Compact, false, &[&[40], &[49]], false)),
                Self::take_apart(log(Precision::Exact, true, &[&[9]], false)),
            ]
        });
        &templates[usize::from(kind) % templates.len()]
    }

    fn take_apart(disk: MemoryDisk) -> Self {
        let path = segments(&disk).pop().unwrap();
        let bytes = disk.files(Path::new(DIR)).remove(&path).unwrap();
        let (header, block) = bytes.split_at(word(&bytes, 12) + 20);
        let (languages, rows) = (word(block, 72), word(block, 76));
        let mut at = FIXED_BYTES;
        for _ in 0..languages {
            at += 8 + number(&block[at..at + 2]);
        }
        let summary = block[FIXED_BYTES..at].to_vec();
        let mut payload = &block[word(block, 4)..];
        let mut columns = Vec::new();
        for row in block[at..at + 16 * rows].chunks(16) {
            let (stored, rest) = payload.split_at(word(row, 8));
            payload = rest;
            let (coding, raw_bytes) = (number(&row[2..4]) as u16, word(row, 4));
            columns.push(StoredColumn {
                code: number(&row[..2]) as u16,
                coding: if coding == 1 { 0 } else { coding },
                raw_bytes,
                stored: if coding == 1 { zstd::bulk::decompress(stored, raw_bytes).unwrap() } else { stored.to_vec() },
            });
        }
        let (header, block) = (header.to_vec(), block.to_vec());
        let first = number(&block[16..24]) as u64;
        Self { disk, path, header, block, first, summary, columns }
    }

    /// The fixed part of a header of so many entries, and no summary.
    fn fixed(&self, entries: u32) -> Vec<u8> {
        let mut fixed = self.block[..FIXED_BYTES].to_vec();
        fixed[28..32].copy_from_slice(&entries.to_le_bytes());
        fixed[72..76].fill(0);
        fixed
    }

    /// The log with another block: a header's fixed part and summary, and columns.
    fn with_block(&self, fixed: &[u8], summary: &[u8], columns: &[StoredColumn]) -> MemoryDisk {
        let mut block = [fixed, summary].concat();
        let payload: Vec<u8> = columns.iter().flat_map(|column| column.stored.iter().copied()).collect();
        block[8..16].copy_from_slice(&(payload.len() as u64).to_le_bytes());
        block[76..80].copy_from_slice(&(columns.len() as u32).to_le_bytes());
        for column in columns {
            block.extend(column.code.to_le_bytes());
            block.extend(column.coding.to_le_bytes());
            block.extend((column.raw_bytes as u32).to_le_bytes());
            block.extend((column.stored.len() as u32).to_le_bytes());
            block.extend(crc32fast::hash(&column.stored).to_le_bytes());
        }
        let length = block.len() as u32 + 4;
        block[4..8].copy_from_slice(&length.to_le_bytes());
        block.extend(crc32fast::hash(&block).to_le_bytes());
        let disk = self.disk.copy();
        disk.put(&self.path, [&self.header[..], &block, &payload].concat());
        disk
    }
}

/// A segment with checksums, links and lengths that fit, as far as it has the shape of one.
fn repaired(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    repair(&mut bytes);
    bytes
}

fn repair(bytes: &mut [u8]) -> Option<()> {
    let header = 16 + number(bytes.get(12..16)?);
    seal(bytes, 0, header)?;
    let (mut at, mut next, mut previous) = (header + 4, 0_u64, 0_u32);
    while bytes.get(at..at + 4)? == b"MDbk" {
        let fixed: [u8; FIXED_BYTES] = bytes.get(at..at + FIXED_BYTES)?.try_into().ok()?;
        let end = at.checked_add(word(&fixed, 4))?;
        let mut row = at + FIXED_BYTES;
        for _ in 0..word(&fixed, 72) {
            row += 8 + number(bytes.get(row..row + 2)?);
        }
        let mut payload = end;
        for _ in 0..word(&fixed, 76) {
            let stored = word(bytes.get(row..row + 16)?, 8);
            let checksum = crc32fast::hash(bytes.get(payload..payload.checked_add(stored)?)?);
            bytes[row + 12..row + 16].copy_from_slice(&checksum.to_le_bytes());
            (row, payload) = (row + 16, payload + stored);
        }
        let payload_bytes = (payload - end) as u64;
        bytes[at + 8..at + 16].copy_from_slice(&payload_bytes.to_le_bytes());
        bytes[at + 16..at + 24].copy_from_slice(&next.to_le_bytes());
        bytes[at + 24..at + 28].copy_from_slice(&previous.to_le_bytes());
        let durable = (number(&fixed[32..40]) as u64).min(next);
        bytes[at + 32..at + 40].copy_from_slice(&durable.to_le_bytes());
        previous = seal(bytes, at, end.checked_sub(4)?)?;
        next += word(&fixed, 28) as u64;
        at = payload;
    }
    let footer: [u8; 32] = bytes.get(at..at + 32)?.try_into().ok()?;
    seal(bytes, at, (at + 32).checked_add(word(&footer, 4))?).map(|_| ())
}

/// Writes at `end` the checksum of what begins at `start`.
fn seal(bytes: &mut [u8], start: usize, end: usize) -> Option<u32> {
    let checksum = crc32fast::hash(bytes.get(start..end)?);
    bytes.get_mut(end..end.checked_add(4)?)?.copy_from_slice(&checksum.to_le_bytes());
    Some(checksum)
}
