//! Documents of a source that have the text of an earlier one.
//!
//! A text is known by a hash of itself with each run of white space as one space. The hashes of the last N documents with text
//! are in memory, and in a file beside the manifests of the feeds, `<source>.seen`, so that a restart finds the same ones,
//! even where the documents themselves are gone. The file is records of 32 bytes, little-endian:
//!
//! ```text
//! bytes  0..8    sequence number of the entry with which the document came
//!        8..12   round
//!       12..28   first bytes of the SHA-256 of the text
//!       28..32   CRC-32 of the bytes before
//! ```
//!
//! Invariants
//!
//! - A record is durable before its entry is handed on. So a log that holds an entry finds its record, and records of
//!   entries that the log does not hold are cut at a start, in the files of all sources: those that are not read now may be
//!   later, when the log has other entries of these numbers. The log alone says what was seen.
//! - Each round begins with nothing seen, so a document is never a duplicate of itself.
//! - The file holds at least the last N documents in the log, and is rewritten before it holds many more.

use crate::IngestError;
use crate::error::is_no_space;
use sha2::{Digest, Sha256};
use std::collections::{HashMap, VecDeque};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use store::SequenceNumber;

const RECORD_BYTES: usize = 32;
/// Fewer surplus records are not worth a rewrite.
const LEAST_SURPLUS: u64 = 8192;

type TextHash = [u8; 16];

/// The texts of a source's last documents.
#[derive(Debug)]
pub(crate) struct SeenTexts {
    path: PathBuf,
    file: File,
    /// In the file.
    records: u64,
    /// When `records` reaches this, the file may be worth a rewrite.
    rewrite_at: u64,
    /// Records that are not in the file yet.
    unwritten: Vec<u8>,
    window: Window,
}

/// The last documents, by their number in the source.
#[derive(Debug)]
struct Window {
    limit: usize,
    round: u32,
    texts: VecDeque<TextHash>,
    /// Number of the next document.
    next: u64,
    /// The last document with this text.
    last: HashMap<TextHash, u64>,
}

/// One document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Record {
    sequence: u64,
    round: u32,
    text: TextHash,
}

/// Cuts what is about entries from `next` on, which the log does not hold, in the files of all sources in `folder`. Damage is left
/// for whoever opens the file.
pub(crate) fn forget_from(folder: &Path, next: SequenceNumber) -> Result<(), IngestError> {
    let files = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        files => files.map_err(failed("list", folder))?,
    };
    for file in files {
        let path = file.map_err(failed("list", folder))?.path();
        if path.extension().is_none_or(|extension| extension != "seen") {
            continue;
        }
        let failed = failed("cut", &path);
        let file = OpenOptions::new().read(true).write(true).open(&path).map_err(&failed)?;
        if ends_before(&file, next).map_err(&failed)? {
            continue;
        }
        let bytes = fs::read(&path).map_err(&failed)?;
        if let Ok(records) = whole_records(&bytes, next, &path) {
            let cut = file.set_len((records.len() * RECORD_BYTES) as u64);
            cut.and_then(|()| file.sync_all()).map_err(&failed)?;
        }
    }
    Ok(())
}

impl SeenTexts {
    /// Opens the file at `path`, or makes it; it holds the last `limit` documents. `next` is the log's next sequence number.
    pub(crate) fn open(path: PathBuf, limit: usize, next: SequenceNumber) -> Result<Self, IngestError> {
        let failed = failed("open", &path);
        if let Some(folder) = path.parent().filter(|folder| !folder.is_dir()) {
            fs::create_dir_all(folder).and_then(|()| sync_name(folder)).map_err(&failed)?;
        }
        let options = OpenOptions::new().read(true).append(true).create(true).open(&path);
        let mut file = options.map_err(&failed)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(&failed)?;
        let mut window = Window { limit, round: 0, texts: VecDeque::new(), next: 0, last: HashMap::new() };
        let records = whole_records(&bytes, next, &path)?;
        for record in &records {
            window.add(record.round, record.text);
        }
        let records = records.len() as u64;
        // What is cut must not come back when the log has gone on without it.
        let cut = file.set_len(records * RECORD_BYTES as u64).and_then(|()| file.sync_all());
        cut.and_then(|()| sync_name(&path)).map_err(&failed)?;
        Ok(Self { path, file, records, rewrite_at: 0, unwritten: Vec::new(), window })
    }

    /// Removes the file: what comes from now on is not noted in it.
    pub(crate) fn forget(path: &Path) -> Result<(), IngestError> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(error)),
            _ => Ok(()),
        }
    }

    /// Takes note of a document, which comes with entry `sequence`. Returns whether one of the last documents has its text.
    pub(crate) fn note(&mut self, text: &str, round: u32, sequence: SequenceNumber) -> bool {
        let record = Record { sequence: sequence.0, round, text: hash(text) };
        self.unwritten.extend_from_slice(&record.to_bytes());
        self.window.add(round, record.text)
    }

    /// Makes all that was noted durable; `false`: there is no space, and nothing was written. The log durably holds the entries
    /// before `durable_end`.
    pub(crate) fn sync(&mut self, durable_end: u64) -> Result<bool, IngestError> {
        if self.unwritten.is_empty() {
            return Ok(true);
        }
        let failed = failed("write", &self.path);
        match self.file.write_all(&self.unwritten).and_then(|()| self.file.sync_data()) {
            Err(error) if is_no_space(&error) => {
                self.file.set_len(self.records * RECORD_BYTES as u64).map_err(&failed)?;
                return Ok(false);
            }
            written => written.map_err(&failed)?,
        }
        self.records += (self.unwritten.len() / RECORD_BYTES) as u64;
        self.unwritten.clear();
        if self.records >= self.rewrite_at {
            match self.drop_surplus(durable_end) {
                Err(error) if is_no_space(&error) => {} // Later.
                dropped => dropped.map_err(&failed)?,
            }
            self.rewrite_at = self.records + LEAST_SURPLUS.max(self.window.limit as u64);
        }
        Ok(true)
    }

    /// Rewrites the file without what no restart can need, if that is at least half of it.
    fn drop_surplus(&mut self, durable_end: u64) -> io::Result<()> {
        let (mut durable, mut end) = (0, self.records);
        while durable < end {
            let middle = durable.midpoint(end);
            let mut sequence = [0; 8];
            self.file.read_exact_at(&mut sequence, middle * RECORD_BYTES as u64)?;
            if u64::from_le_bytes(sequence) < durable_end { durable = middle + 1 } else { end = middle }
        }
        let surplus = durable.saturating_sub(self.window.limit as u64);
        if surplus < LEAST_SURPLUS || surplus < self.records / 2 {
            return Ok(());
        }
        let mut kept = vec![0; ((self.records - surplus) as usize) * RECORD_BYTES];
        self.file.read_exact_at(&mut kept, surplus * RECORD_BYTES as u64)?;
        let partial = self.path.with_extension("partial");
        let mut file = File::create(&partial)?;
        file.write_all(&kept)?;
        file.sync_all()?;
        fs::rename(&partial, &self.path)?;
        // Whether or not its name is durable yet, what comes now belongs to this one.
        self.file = OpenOptions::new().read(true).append(true).open(&self.path)?;
        self.records -= surplus;
        sync_name(&self.path)
    }
}

impl Window {
    /// Adds a document; returns whether its text was there.
    fn add(&mut self, round: u32, text: TextHash) -> bool {
        if round != self.round {
            self.round = round;
            self.texts.clear();
            self.last.clear();
        }
        let known = self.last.insert(text, self.next).is_some();
        self.texts.push_back(text);
        if self.texts.len() > self.limit
            && let Some(oldest) = self.texts.pop_front()
        {
            let number = self.next - self.limit as u64;
            if self.last.get(&oldest) == Some(&number) {
                self.last.remove(&oldest);
            }
        }
        self.next += 1;
        known
    }
}

impl Record {
    fn to_bytes(self) -> [u8; RECORD_BYTES] {
        let mut bytes = [0; RECORD_BYTES];
        bytes[..8].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.round.to_le_bytes());
        bytes[12..28].copy_from_slice(&self.text);
        let checksum = crc32fast::hash(&bytes[..28]);
        bytes[28..].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// `None`: it is torn or damaged.
    fn parse(bytes: &[u8]) -> Option<Self> {
        let (head, checksum) = bytes.split_at_checked(28)?;
        let whole = checksum == crc32fast::hash(head).to_le_bytes();
        let record = Self {
            sequence: u64::from_le_bytes(head[..8].try_into().ok()?),
            round: u32::from_le_bytes(head[8..12].try_into().ok()?),
            text: head[12..].try_into().ok()?,
        };
        whole.then_some(record)
    }
}

/// Whether the last record of a file is whole and of an entry before `next`: then all are.
fn ends_before(file: &File, next: SequenceNumber) -> io::Result<bool> {
    let (bytes, mut last) = (file.metadata()?.len(), [0; RECORD_BYTES]);
    if bytes < RECORD_BYTES as u64 || bytes % RECORD_BYTES as u64 != 0 {
        return Ok(bytes == 0);
    }
    file.read_exact_at(&mut last, bytes - RECORD_BYTES as u64)?;
    Ok(Record::parse(&last).is_some_and(|record| record.sequence < next.0))
}

/// The records of entries before `next`. What follows them may be torn: it was not durable when its entry was handed on, so the
/// log does not hold it.
fn whole_records(bytes: &[u8], next: SequenceNumber, path: &Path) -> Result<Vec<Record>, IngestError> {
    let mut records: Vec<Record> = Vec::new();
    let mut torn = None;
    for (index, bytes) in bytes.chunks(RECORD_BYTES).enumerate() {
        let last = records.last().map(|record| record.sequence);
        match Record::parse(bytes) {
            Some(record) if record.sequence >= next.0 => break,
            Some(record) if torn.is_none() && last.is_none_or(|last| last < record.sequence) => records.push(record),
            Some(_) => {
                let at = torn.unwrap_or(index) * RECORD_BYTES;
                let problem = format!("damaged at byte {at}; remove it to go on without knowing what was seen before");
                return Err(IngestError::Inbox { path: path.to_owned(), problem });
            }
            None => torn = torn.or(Some(index)),
        }
    }
    Ok(records)
}

fn hash(text: &str) -> TextHash {
    let mut hash = Sha256::new();
    for word in text.split_whitespace() {
        hash.update(word);
        hash.update(" ");
    }
    let mut first = TextHash::default();
    first.copy_from_slice(&hash.finalize()[..16]);
    first
}

/// Makes the name of a file or folder durable.
fn sync_name(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

fn failed(doing: &'static str, path: &Path) -> impl Fn(io::Error) -> IngestError + use<> {
    let path = path.to_owned();
    move |source| IngestError::Io { doing, path: path.clone(), source }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn open(path: &Path, limit: usize, next: u64) -> SeenTexts {
        SeenTexts::open(path.to_owned(), limit, SequenceNumber(next)).unwrap()
    }

    #[test]
    fn a_text_is_known_while_it_is_among_the_last() {
        let folder = tempfile::tempdir().unwrap();
        let mut seen = open(&folder.path().join("a.seen"), 3, 0);
        let mut sequence = 0;
        let mut note = |text: &str, round: u32| {
            sequence += 1;
            seen.note(text, round, SequenceNumber(sequence - 1))
        };
        let texts = [("a", false), (" a\n", true), ("b  c", false), ("b\tc", true), ("a", true), ("bc", false)];
        for (text, known) in texts {
            assert_eq!(note(text, 0), known, "{text:?}");
        }
        assert!(!note("a", 1), "a new round");
        assert!(note("a", 1) && note("a", 1) && note("a", 1) && note("a", 1));
    }

    #[test]
    fn a_restart_finds_what_the_log_holds() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.seen");
        let mut seen = open(&path, 100, 0);
        for sequence in 0..10 {
            assert!(!seen.note(&format!("text {sequence}"), 0, SequenceNumber(2 * sequence)));
        }
        assert!(seen.sync(0).unwrap());
        drop(seen);
        let whole = fs::read(&path).unwrap();
        for next in 0..21 {
            for torn in [0, 1, 31] {
                fs::write(&path, [&whole[..], &vec![0; torn]].concat()).unwrap();
                let mut seen = open(&path, 100, next);
                for number in 0..10 {
                    let known = seen.note(&format!("text {number}"), 0, SequenceNumber(next + number));
                    assert_eq!(known, 2 * number < next, "{number} of a log up to {next}");
                }
            }
        }
    }

    #[test]
    fn a_start_cuts_the_files_of_all_sources() {
        let folder = tempfile::tempdir().unwrap();
        let (path, other) = (folder.path().join("a.seen"), folder.path().join("a.jsonl"));
        forget_from(&folder.path().join("none"), SequenceNumber(3)).unwrap();
        let mut seen = open(&path, 100, 0);
        for number in 0..10 {
            seen.note(&number.to_string(), 0, SequenceNumber(2 * number));
        }
        assert!(seen.sync(0).unwrap());
        let whole = fs::read(&path).unwrap();
        fs::write(&other, &whole).unwrap();
        for (next, torn, left) in [(19, 0, 10), (18, 0, 9), (7, 0, 4), (40, 5, 10), (3, 40, 2), (0, 0, 0)] {
            fs::write(&path, [&whole[..], &vec![1; torn]].concat()).unwrap();
            forget_from(folder.path(), SequenceNumber(next)).unwrap();
            assert_eq!(fs::read(&path).unwrap(), whole[..left * RECORD_BYTES], "a log up to {next}");
        }
        let mut damaged = whole.clone();
        damaged[0] ^= 1;
        for (next, expected) in [(3, &damaged[..]), (40, &damaged[..])] {
            fs::write(&path, &damaged).unwrap();
            forget_from(folder.path(), SequenceNumber(next)).unwrap();
            assert_eq!(fs::read(&path).unwrap(), expected, "who opens it says that it is damaged");
        }
        assert_eq!(fs::read(&other).unwrap(), whole);
    }

    #[test]
    fn damage_is_told_from_a_torn_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.seen");
        let mut seen = open(&path, 100, 0);
        for number in 0..10 {
            seen.note(&number.to_string(), 0, SequenceNumber(number));
        }
        assert!(seen.sync(0).unwrap());
        let whole = fs::read(&path).unwrap();
        for at in [0, 100, 9 * RECORD_BYTES - 1] {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            fs::write(&path, &damaged).unwrap();
            let error = SeenTexts::open(path.clone(), 100, SequenceNumber(10)).unwrap_err().to_string();
            assert!(error.contains(&format!("damaged at byte {}", at / RECORD_BYTES * RECORD_BYTES)), "{error}");
        }
        // Nothing of the log behind it: it may be torn.
        let mut torn = whole;
        torn[9 * RECORD_BYTES] ^= 1;
        fs::write(&path, &torn).unwrap();
        let seen = open(&path, 100, 10);
        assert_eq!((seen.records, seen.file.metadata().unwrap().len()), (9, 9 * RECORD_BYTES as u64));
    }

    #[test]
    fn the_file_does_not_grow_for_ever() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.seen");
        let mut seen = open(&path, 1000, 0);
        let mut largest = 0;
        for sequence in 0..100_000_u64 {
            assert!(!seen.note(&sequence.to_string(), 0, SequenceNumber(sequence)));
            if sequence % 500 == 499 {
                assert!(seen.sync(sequence.saturating_sub(2000)).unwrap());
                largest = largest.max(seen.file.metadata().unwrap().len());
            }
        }
        assert!(largest < 30_000 * RECORD_BYTES as u64, "{largest}");
        drop(seen);
        // The log may have lost what it did not durably hold.
        let mut seen = open(&path, 1000, 97_999);
        let known = (0..100_000_u64).filter(|number| seen.window.last.contains_key(&hash(&number.to_string())));
        assert_eq!(known.collect::<Vec<_>>(), (96_999..97_999).collect::<Vec<_>>());
        assert!(seen.note("97500", 0, SequenceNumber(97_999)));
    }
}
