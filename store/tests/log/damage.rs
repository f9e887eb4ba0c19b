//! Every truncation and every flipped bit of a small log: each is noticed or harmless, and none costs what is before it.
//!
//! What must happen follows from the place of the damage alone, by the recovery table in `store::log`.

use crate::memory_disk::MemoryDisk;
use crate::sample::{DIR, append_blocks, block, check_content, durable, open, options, read, unsealed, verify};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use store::{Entry, LogOptions, LogReader, Precision, SequenceNumber, StoreError};

/// Blocks of each segment, by the end of their entries.
const SEGMENTS: [&[u64]; 3] = [&[1, 2], &[4], &[5, 7]];
const END: u64 = 7;

/// A log, and where everything is in it.
struct Specimen {
    disk: MemoryDisk,
    precision: Precision,
    segments: Vec<Shape>,
    /// What a reader gives while nothing is damaged.
    entries: Vec<Entry>,
}

/// A segment file.
struct Shape {
    path: PathBuf,
    bytes: Vec<u8>,
    /// Where its header and each of its blocks end, and the end of the entries up to there.
    ends: Vec<(usize, u64)>,
    sealed: bool,
}

impl Shape {
    /// Where the blocks end.
    fn blocks_end(&self) -> usize {
        self.ends[self.ends.len() - 1].0
    }

    /// The last of header and blocks that ends at or before `offset`; `None` inside the header.
    fn last_whole(&self, offset: usize) -> Option<(usize, u64)> {
        self.ends.iter().rev().find(|(end, _)| *end <= offset).copied()
    }
}

/// What must happen to a damaged log.
#[derive(Debug)]
enum Outcome {
    /// It is as good as before.
    Harmless,
    /// Reader, writer and `verify` refuse it, and change nothing.
    Refused,
    /// These entries cannot be read, all others can; `verify` names the offset.
    Unreadable(Range<u64>, usize),
    /// Everything is there; a footer is reported as lost.
    FooterLost,
    /// Everything below `end` is there; a torn tail is reported. With `torn: None` the log ends as if it had always ended there.
    Prefix { end: u64, torn: Option<usize> },
}

impl Specimen {
    /// `sealed`: the last segment too.
    fn new(precision: Precision, sealed: bool) -> Self {
        let disk = MemoryDisk::default();
        let mut segments = Vec::new();
        for (number, ends) in SEGMENTS.iter().enumerate() {
            let (mut log, _) = open(&disk, &writing(precision)).unwrap();
            let length = || disk.files(Path::new(DIR)).into_iter().rfind(is_segment).unwrap().1.len();
            let mut marks = vec![(length(), log.next().0)];
            for end in *ends {
                append_blocks(&mut log, &[*end]);
                marks.push((length(), *end));
            }
            let seal = sealed || number + 1 < SEGMENTS.len();
            if seal {
                log.seal().unwrap();
            }
            let (path, bytes) = disk.files(Path::new(DIR)).into_iter().rfind(is_segment).unwrap();
            segments.push(Shape { path, bytes, ends: marks, sealed: seal });
        }
        let reader = read(&disk).unwrap();
        let entries = (0..END).map(|sequence| (*reader.entry(SequenceNumber(sequence)).unwrap()).clone()).collect();
        Self { disk: disk.copy(), precision, segments, entries }
    }

    fn is_last(&self, segment: usize) -> bool {
        segment + 1 == self.segments.len()
    }

    fn truncated(&self, segment: usize, length: usize) -> Outcome {
        let shape = &self.segments[segment];
        let whole = shape.last_whole(length);
        if length == shape.bytes.len() {
            Outcome::Harmless
        } else if self.is_last(segment) {
            let (kept, end) = whole.unwrap_or((0, shape.ends[0].1));
            Outcome::Prefix { end, torn: (kept == 0 || kept < length).then_some(length - kept) }
        } else if length >= shape.blocks_end() {
            Outcome::FooterLost
        } else {
            Outcome::Refused
        }
    }

    fn flipped(&self, segment: usize, offset: usize) -> Outcome {
        let shape = &self.segments[segment];
        let Some((start, first)) = shape.last_whole(offset) else { return Outcome::Refused };
        let next = shape.ends.iter().find(|(end, _)| *end > offset);
        match next {
            None if self.is_last(segment) => Outcome::Prefix { end: first, torn: Some(shape.bytes.len() - start) },
            None => Outcome::FooterLost,
            Some((_, end)) if shape.sealed => Outcome::Unreadable(first..*end, start),
            // The block after it says that it had been durable.
            Some((end, _)) if *end < shape.blocks_end() => Outcome::Refused,
            Some(_) => Outcome::Prefix { end: first, torn: Some(shape.bytes.len() - start) },
        }
    }

    /// The log with other bytes in a segment.
    fn with(&self, segment: usize, bytes: Vec<u8>) -> MemoryDisk {
        let disk = self.disk.copy();
        disk.put(&self.segments[segment].path, bytes);
        disk
    }
}

fn writing(precision: Precision) -> LogOptions {
    LogOptions { precision, ..options(1 << 30) }
}

fn is_segment((path, _): &(PathBuf, Vec<u8>)) -> bool {
    path.extension().is_some_and(|extension| extension == "seg")
}

fn segment_files(disk: &MemoryDisk) -> BTreeMap<PathBuf, Vec<u8>> {
    disk.files(Path::new(DIR)).into_iter().filter(is_segment).collect()
}

/// A damaged log, what must happen to it, and how to name it when something else does.
struct Case<'a> {
    specimen: &'a Specimen,
    segment: usize,
    disk: MemoryDisk,
    outcome: Outcome,
    name: String,
}

impl Case<'_> {
    /// `thoroughly`: every entry is read, and a writer goes on to write.
    fn check(&self, thoroughly: bool) {
        match self.outcome {
            Outcome::Harmless => {
                self.reports(END, None, false);
                self.reads(&read(&self.disk).unwrap(), END);
            }
            Outcome::Refused => self.is_refused(),
            Outcome::Unreadable(ref entries, offset) => self.is_unreadable(entries.clone(), offset, thoroughly),
            Outcome::FooterLost => {
                self.reports(END, None, true);
                self.goes_on(END, 0, thoroughly);
            }
            Outcome::Prefix { end, torn } => {
                self.reports(end, torn, false);
                self.is_too_short(end);
                self.goes_on(end, torn.unwrap_or(0), thoroughly);
            }
        }
    }

    fn is_refused(&self) {
        let name = &self.name;
        let before = segment_files(&self.disk);
        let failures = [
            verify(&self.disk).map(|_| ()),
            read(&self.disk).map(|_| ()),
            open(&self.disk, &writing(self.specimen.precision)).map(|_| ()),
        ];
        for failure in failures {
            assert!(failure.as_ref().is_err_and(StoreError::is_corruption), "{name}: {failure:?}");
        }
        assert!(segment_files(&self.disk) == before, "{name}: the refused log was changed");
    }

    fn is_unreadable(&self, entries: Range<u64>, offset: usize, thoroughly: bool) {
        let (name, path) = (&self.name, &self.specimen.segments[self.segment].path);
        let found = verify(&self.disk).map(|_| ()).unwrap_err();
        let StoreError::Corrupt { segment, offset: at, .. } = &found else { panic!("{name}: {found}") };
        assert_eq!((segment, *at), (path, offset as u64), "{name}: {found}");
        let reader = read(&self.disk).unwrap();
        assert_eq!(reader.durable(), durable(END), "{name}");
        for sequence in if thoroughly { 0..END } else { entries.clone() } {
            match reader.entry(SequenceNumber(sequence)) {
                Ok(entry) => {
                    assert!(!entries.contains(&sequence), "{name}: damaged entry {sequence} is given out");
                    assert_eq!(*entry, self.specimen.entries[sequence as usize], "{name}");
                }
                Err(error) => {
                    assert!(entries.contains(&sequence) && error.is_corruption(), "{name}: entry {sequence}: {error}");
                }
            }
        }
        if !thoroughly {
            return;
        }
        let before = segment_files(&self.disk);
        if let Err(error) = open(&self.disk, &writing(self.specimen.precision)) {
            assert!(error.is_corruption(), "{name}: {error}"); // It needs the cursors in that block.
        }
        let after = segment_files(&self.disk);
        assert!(before.iter().all(|(path, bytes)| after.get(path) == Some(bytes)), "{name}: a writer changed segments");
    }

    /// What `verify` says of a log that is not corrupt.
    fn reports(&self, end: u64, torn: Option<usize>, footer_lost: bool) {
        let name = &self.name;
        let found = verify(&self.disk).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!((found.durable, found.entries), (durable(end), end), "{name}");
        assert_eq!(found.torn.map(|torn| torn.bytes as usize), torn, "{name}");
        let lost: Vec<_> = footer_lost.then(|| self.specimen.segments[self.segment].path.clone()).into_iter().collect();
        assert_eq!(found.footers_lost, lost, "{name}");
    }

    /// Exactly the first `end` entries can be read.
    fn reads(&self, reader: &LogReader, end: u64) {
        let name = &self.name;
        assert_eq!(reader.durable(), durable(end), "{name}");
        for (sequence, expected) in (0..end).zip(&self.specimen.entries) {
            let entry = reader.entry(SequenceNumber(sequence)).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(*entry, *expected, "{name}");
        }
        let beyond = reader.entry(SequenceNumber(end));
        assert!(matches!(beyond, Err(StoreError::NotDurable { .. })), "{name}: {beyond:?}");
    }

    /// Whoever refers to the entries that are gone is told, and nothing is cut.
    fn is_too_short(&self, end: u64) {
        if end < END {
            let before = segment_files(&self.disk);
            let needed = LogOptions { required: SequenceNumber(END), ..writing(self.specimen.precision) };
            let failure = open(&self.disk, &needed).map(|_| ());
            assert!(matches!(failure, Err(StoreError::TooShort { .. })), "{}: {failure:?}", self.name);
            assert!(segment_files(&self.disk) == before, "{}: the log was changed", self.name);
        }
    }

    /// A writer keeps everything below `end` and what it cuts, and the log is whole again when it has written the rest.
    fn goes_on(&self, end: u64, torn: usize, thoroughly: bool) {
        let name = &self.name;
        let reader = read(&self.disk).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(reader.durable(), durable(end), "{name}");
        if thoroughly {
            self.reads(&reader, end);
        }
        let damaged = segment_files(&self.disk).remove(&self.specimen.segments[self.segment].path).unwrap();
        let (mut log, recovery) = open(&self.disk, &writing(self.specimen.precision)).unwrap();
        assert_eq!((recovery.durable, recovery.torn_bytes), (durable(end), torn as u64), "{name}");
        if let Some(kept) = recovery.torn.and_then(|torn| torn.kept) {
            assert_eq!(self.disk.files(Path::new(DIR))[&kept], damaged[damaged.len() - torn..], "{name}");
        }
        if !thoroughly {
            return;
        }
        if end < END {
            log.append(&block(end..END)).unwrap();
        }
        log.seal().unwrap();
        let found = verify(&self.disk).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!((found.entries, found.torn), (END, None), "{name}");
        self.reads(&read(&self.disk).unwrap(), END);
    }
}

fn every_truncation(precision: Precision, sealed: bool) {
    let specimen = Specimen::new(precision, sealed);
    for (segment, shape) in specimen.segments.iter().enumerate() {
        for length in 0..=shape.bytes.len() {
            let case = Case {
                disk: specimen.with(segment, shape.bytes[..length].to_vec()),
                outcome: specimen.truncated(segment, length),
                name: format!(
                    "{precision}, sealed {sealed}: segment {segment} cut to {length} of {}",
                    shape.bytes.len()
                ),
                specimen: &specimen,
                segment,
            };
            case.check(true);
        }
    }
}

fn every_flip(precision: Precision, sealed: bool) {
    let specimen = Specimen::new(precision, sealed);
    for (segment, shape) in specimen.segments.iter().enumerate() {
        for bit in 0..shape.bytes.len() * 8 {
            let offset = bit / 8;
            let mut bytes = shape.bytes.clone();
            bytes[offset] ^= 1 << (bit % 8);
            let case = Case {
                disk: specimen.with(segment, bytes),
                outcome: specimen.flipped(segment, offset),
                name: format!("{precision}, sealed {sealed}: bit {} of byte {offset} of segment {segment}", bit % 8),
                specimen: &specimen,
                segment,
            };
            case.check(bit % 8 == offset % 8);
        }
    }
}

#[test]
fn every_truncation_of_an_unsealed_exact_log() {
    every_truncation(Precision::Exact, false);
}

#[test]
fn every_truncation_of_a_sealed_exact_log() {
    every_truncation(Precision::Exact, true);
}

#[test]
fn every_truncation_of_an_unsealed_compact_log() {
    every_truncation(Precision::Compact, false);
}

#[test]
fn every_truncation_of_a_sealed_compact_log() {
    every_truncation(Precision::Compact, true);
}

#[test]
fn every_flipped_bit_of_an_unsealed_exact_log() {
    every_flip(Precision::Exact, false);
}

#[test]
fn every_flipped_bit_of_a_sealed_exact_log() {
    every_flip(Precision::Exact, true);
}

#[test]
fn every_flipped_bit_of_an_unsealed_compact_log() {
    every_flip(Precision::Compact, false);
}

#[test]
fn every_flipped_bit_of_a_sealed_compact_log() {
    every_flip(Precision::Compact, true);
}

/// The file with the positions is never believed when there is no writer, whatever is in it.
#[test]
fn a_damaged_position_file_is_harmless() {
    let disk = unsealed(&[2, 4, 5]);
    let path = Path::new(DIR).join("POSITION");
    let whole = disk.files(Path::new(DIR)).remove(&path).unwrap();
    let flipped = (0..whole.len() * 8).map(|bit| {
        let mut bytes = whole.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        bytes
    });
    let cut = (0..whole.len()).map(|length| whole[..length].to_vec());
    for bytes in flipped.chain(cut) {
        let disk = disk.copy();
        disk.put(&path, bytes);
        assert_eq!(check_content(&read(&disk).unwrap()), 5);
        let (log, recovery) = open(&disk, &options(1 << 30)).unwrap();
        assert_eq!(recovery.durable, durable(5));
        assert_eq!(check_content(&log.reader()), 5);
    }
}
