//! Which records are looked at: drawn without repeats, each that has labels of the teacher with the same chance.
//!
//! Entries are drawn by number, and those kept that are such records. Where these are rare, or the log is small, all
//! entries are read instead, and the records with the smallest random keys are taken.

use crate::failure::Failure;
use model::random::Philox;
use std::collections::{BTreeSet, BinaryHeap};
use store::{ComputedIn, Entry, Label, LogReader, MaskedCopy, Payload, SequenceNumber, StoreError};

/// So many entries are drawn per record that is wanted, before all are read.
const DRAWS_PER_RECORD: u64 = 16;

/// Second index of the random numbers.
mod purpose {
    pub(super) const DRAW: u64 = 0;
    pub(super) const KEY: u64 = 1;
}

/// A copy that the teacher has labelled.
#[derive(Debug)]
pub(super) struct Drawn {
    /// Its record.
    pub(super) sequence: SequenceNumber,
    /// Without its label.
    pub(super) copy: MaskedCopy,
    /// As it is stored.
    pub(super) label: Label,
}

/// Which labels are drawn from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    /// Whose they are.
    pub(super) teacher: u16,
    /// What they were computed in; `None`: whatever it was.
    pub(super) computed_in: Option<ComputedIn>,
}

impl Wanted {
    fn is(self, copy: &MaskedCopy, label: &Label) -> bool {
        copy.teacher == self.teacher && self.computed_in.is_none_or(|computed_in| label.computed_in == computed_in)
    }
}

impl Drawn {
    fn of(entry: &Entry, wanted: Wanted) -> Option<Self> {
        let Payload::Record(record) = &entry.payload else { return None };
        let mut labelled = record.copies.iter().filter_map(|copy| Some((copy, copy.label.as_ref()?)));
        let (copy, label) = labelled.find(|(copy, label)| wanted.is(copy, label))?;
        let (mut copy, label) = (copy.clone(), label.clone());
        copy.label = None;
        Some(Self { sequence: entry.sequence, copy, label })
    }

    /// A gold id that a vocabulary of `rows` rows does not have.
    pub(super) fn gold_beyond(&self, rows: usize) -> Option<u32> {
        self.copy.gold_ids.iter().copied().find(|id| *id as usize >= rows)
    }

    /// The copy with other gold tokens, each `(position, id)`, so that their logits are told.
    pub(super) fn asking_for(&self, wanted: &[(usize, u32)]) -> MaskedCopy {
        let mut copy = self.copy.clone();
        for (position, id) in wanted {
            copy.gold_ids[*position] = *id;
        }
        copy
    }
}

/// Draws `count` records that hold such a label; all, if there are no more.
///
/// # Errors
/// When the log cannot be read.
pub(super) fn draw(log: &LogReader, wanted: Wanted, count: usize, seed: u64) -> Result<Vec<Drawn>, Failure> {
    let random = Philox::new(seed, "audit", &[]);
    let most = DRAWS_PER_RECORD.saturating_mul(count as u64);
    if log.durable().end().0 - log.begin().0 > most
        && let Some(drawn) = by_number(log, wanted, count, most, &random)?
    {
        return Ok(drawn);
    }
    by_key(log, wanted, count, &random)
}

/// Draws entries until `count` of them are such records; `None` if `most` were not enough.
fn by_number(
    log: &LogReader,
    wanted: Wanted,
    count: usize,
    most: u64,
    random: &Philox,
) -> Result<Option<Vec<Drawn>>, Failure> {
    let (begin, end) = (log.begin().0, log.durable().end().0);
    let mut seen = BTreeSet::new();
    let mut drawn = Vec::new();
    let mut draws = 0..most;
    while drawn.len() < count {
        // In order, so that those of one block are read together.
        let round: BTreeSet<u64> = draws
            .by_ref()
            .map(|number| begin + random.below(end - begin, number, purpose::DRAW))
            .filter(|sequence| seen.insert(*sequence))
            .take(count - drawn.len())
            .collect();
        if round.is_empty() {
            return Ok(None);
        }
        for sequence in round {
            drawn.extend(read(log, sequence, wanted)?);
        }
    }
    Ok(Some(drawn))
}

/// Reads all entries and takes the records with the smallest keys.
fn by_key(log: &LogReader, wanted: Wanted, count: usize, random: &Philox) -> Result<Vec<Drawn>, Failure> {
    let mut smallest = BinaryHeap::new();
    for sequence in log.begin().0..log.durable().end().0 {
        if read(log, sequence, wanted)?.is_some() {
            smallest.push((random.bits(sequence, purpose::KEY), sequence));
            if smallest.len() > count {
                smallest.pop();
            }
        }
    }
    let sequences: BTreeSet<u64> = smallest.into_iter().map(|(_, sequence)| sequence).collect();
    let mut drawn = Vec::new();
    for sequence in sequences {
        drawn.extend(read(log, sequence, wanted)?);
    }
    Ok(drawn)
}

/// The copy, if the entry is such a record, and retention has not removed it in the meantime.
fn read(log: &LogReader, sequence: u64, wanted: Wanted) -> Result<Option<Drawn>, Failure> {
    match log.entry(SequenceNumber(sequence)) {
        Err(StoreError::Removed { .. }) => Ok(None),
        entry => Ok(Drawn::of(entry?.as_ref(), wanted)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use std::sync::Arc;
    use store::{Identity, LogOptions, LogWriter, Record, SourceCursor, Span, TeacherEntry};

    const ENTRIES: u64 = 60;

    /// Every third entry has a labelled copy of the second teacher, every other one copies without, or of the first.
    fn entry(number: u64) -> Entry {
        let copy = |teacher: u16, label: bool| MaskedCopy {
            teacher,
            token_ids: vec![2, 4, 3],
            masked_positions: vec![1],
            gold_ids: vec![number as u32],
            label: label.then(|| Label {
                top_k: 1,
                top_ids: vec![7],
                top_logits: vec![1.0],
                log_sum_exp: vec![2.0],
                gold_logits: vec![0.5],
                ..Label::default()
            }),
        };
        let name: Arc<str> = "en".into();
        let record = Record {
            source: Arc::clone(&name),
            document: "en.txt@0".into(),
            span: Span { first: number, end: number + 1 },
            language: Arc::clone(&name),
            round: 0,
            held_out: false,
            copies: vec![copy(0, true), copy(1, number.is_multiple_of(3))],
            text: None,
        };
        let cursor = SourceCursor::start(Arc::clone(&name), name, 1);
        Entry { sequence: SequenceNumber(number), cursor, payload: Payload::Record(record) }
    }

    fn log() -> (tempfile::TempDir, LogReader) {
        let dir = tempfile::tempdir().unwrap();
        let teacher = |name: &str| TeacherEntry {
            name: name.to_owned(),
            languages: vec!["en".to_owned()],
            labels: true,
            vocabulary_size: 100,
            tokenizer_fingerprint: String::new(),
            weights_fingerprint: name.to_owned(),
        };
        let identity = Identity { teachers: vec![teacher("a"), teacher("b")], ..Identity::default() };
        let options = LogOptions { top_k: 1, ..LogOptions::default() };
        let (mut log, _) = LogWriter::open(dir.path(), &identity, &options, &prometheus::Registry::new()).unwrap();
        for first in (0..ENTRIES).step_by(10) {
            log.append(&(first..first + 10).map(entry).collect::<Vec<_>>()).unwrap();
        }
        log.seal().unwrap();
        let reader = LogReader::open(dir.path()).unwrap();
        (dir, reader)
    }

    fn of(teacher: u16) -> Wanted {
        Wanted { teacher, computed_in: None }
    }

    fn sequences(drawn: &[Drawn]) -> Vec<u64> {
        drawn.iter().map(|drawn| drawn.sequence.0).collect()
    }

    #[test]
    fn no_record_is_drawn_twice_and_none_without_a_label() {
        let (_dir, log) = log();
        for count in [1, 2, 3, 10, 20, 500] {
            let drawn = draw(&log, of(1), count, 4).unwrap();
            let mut numbers = sequences(&drawn);
            assert_eq!(numbers, sequences(&draw(&log, of(1), count, 4).unwrap()), "the same seed draws the same");
            numbers.sort_unstable();
            numbers.dedup();
            assert_eq!(numbers.len(), count.min(20), "{count}");
            assert!(drawn.iter().all(|drawn| drawn.sequence.0.is_multiple_of(3) && drawn.copy.teacher == 1));
            assert!(drawn.iter().all(|drawn| drawn.copy.label.is_none() && drawn.label.top_ids == [7]));
        }
        assert!(draw(&log, of(2), 5, 0).unwrap().is_empty());
    }

    #[test]
    fn every_record_has_the_same_chance() {
        let (_dir, log) = log();
        // One by number, ten by key.
        for (count, seeds) in [(1, 2000), (10, 200)] {
            let mut times = [0_i32; ENTRIES as usize];
            for seed in 0..seeds {
                sequences(&draw(&log, of(1), count, seed).unwrap())
                    .iter()
                    .for_each(|number| times[*number as usize] += 1);
            }
            let expected = seeds as i32 * count as i32 / 20;
            for times in times.iter().step_by(3) {
                assert!((times - expected).abs() < 5 * (expected as f64).sqrt() as i32, "{times} of {expected}");
            }
        }
    }
}
