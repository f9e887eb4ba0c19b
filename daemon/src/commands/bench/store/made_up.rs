//! Records of a teacher that does not exist: Zipf-distributed tokens, and labels that look like a teacher's.
//!
//! The logits fall by exponential steps that get shorter from rank to rank; the top k hold between 15 and 95 % of the
//! probability; half of the gold tokens are the first of the top k, a quarter anywhere among them.

use super::records::Records;
use crate::cli::BenchStoreArgs;
use model::random::Philox;
use std::sync::Arc;
use store::{Entry, Identity, Label, MaskedCopy, Payload, Record, SequenceNumber, SourceCursor, Span, TeacherEntry};

const LANGUAGE: &str = "en";
const MASKING_PROBABILITY: f64 = 0.15;
/// Tokens of a sequence.
const LENGTHS: std::ops::Range<u64> = 16..129;
/// Records of a document, and bytes of a record.
const DOCUMENT_RECORDS: u64 = 10;
const RECORD_BYTES: u64 = 400;

/// As many records as have the positions that are asked for.
pub(super) fn records(args: &BenchStoreArgs) -> Records {
    let mut records = Records::new(identity(args));
    let teacher = MadeUpTeacher {
        zipf: Zipf::new(args.teacher_vocab),
        top_k: args.common.top_k,
        random: Philox::new(args.common.seed, "bench", &[b"store"]),
    };
    for number in 0.. {
        if records.positions >= args.positions as u64 {
            break;
        }
        records.push(entry(number, teacher.copy(number)), args.block_tokens);
    }
    records
}

fn identity(args: &BenchStoreArgs) -> Identity {
    let teacher = TeacherEntry {
        name: "made-up".to_owned(),
        languages: vec![LANGUAGE.to_owned()],
        labels: true,
        vocabulary_size: args.teacher_vocab as u32,
        tokenizer_fingerprint: String::new(),
        weights_fingerprint: String::new(),
    };
    Identity { teachers: vec![teacher], ..Identity::default() }
}

fn entry(number: u64, copy: MaskedCopy) -> Entry {
    let (document, first) = (number / DOCUMENT_RECORDS, number % DOCUMENT_RECORDS * RECORD_BYTES);
    let (name, offset): (Arc<str>, _) = (LANGUAGE.into(), document * DOCUMENT_RECORDS * RECORD_BYTES);
    let cursor = SourceCursor {
        file: "en.txt".into(),
        document_offset_bytes: offset,
        next_byte: first + RECORD_BYTES,
        ..SourceCursor::start(Arc::clone(&name), Arc::clone(&name), 1 << 30)
    };
    let record = Record {
        source: Arc::clone(&name),
        document: format!("en.txt@{offset}").into(),
        span: Span { first, end: first + RECORD_BYTES },
        language: name,
        round: 0,
        held_out: false,
        copies: vec![copy],
        text: None,
    };
    Entry { sequence: SequenceNumber(number), cursor, payload: Payload::Record(record) }
}

struct MadeUpTeacher {
    zipf: Zipf,
    top_k: usize,
    random: Philox,
}

/// The random numbers of one record, one after another.
struct Draws<'a> {
    random: &'a Philox,
    record: u64,
    next: u64,
}

impl Draws<'_> {
    /// Uniform in [0, 1).
    fn uniform(&mut self) -> f64 {
        self.next += 1;
        self.random.uniform(self.record, self.next)
    }

    /// Exponential with this mean, above 0.
    fn exponential(&mut self, mean: f64) -> f64 {
        -(1.0 - self.uniform()).ln() * mean + 1e-4
    }

    /// Uniform in 0..bound.
    fn below(&mut self, bound: u64) -> u64 {
        (self.uniform() * bound as f64) as u64
    }
}

impl MadeUpTeacher {
    fn copy(&self, number: u64) -> MaskedCopy {
        let mut draws = Draws { random: &self.random, record: number, next: 0 };
        let length = LENGTHS.start + draws.below(LENGTHS.end - LENGTHS.start);
        let token_ids = (0..length).map(|_| self.zipf.id(draws.uniform())).collect();
        let inner = 1..length as u32 - 1;
        let mut masked_positions: Vec<u32> = inner.filter(|_| draws.uniform() < MASKING_PROBABILITY).collect();
        if masked_positions.is_empty() {
            masked_positions.push(1);
        }
        let mut label = Label { top_k: self.top_k, ..Label::default() };
        let gold_ids = masked_positions.iter().map(|_| self.position(&mut draws, &mut label)).collect();
        MaskedCopy { teacher: 0, token_ids, masked_positions, gold_ids, label: Some(label) }
    }

    /// Adds a position to the label. Returns its gold id.
    fn position(&self, draws: &mut Draws<'_>, label: &mut Label) -> u32 {
        let first = label.top_ids.len();
        let mut logit = 4.0 + 8.0 * draws.uniform();
        for rank in 0..self.top_k {
            let id = self.id_beside(&label.top_ids[first..], draws);
            label.top_ids.push(id);
            label.top_logits.push(logit as f32);
            logit -= draws.exponential(1.0 / (rank as f64 + 1.0).sqrt());
        }
        let (ids, logits) = (&label.top_ids[first..], &label.top_logits[first..]);
        let largest = f64::from(logits[0]);
        let sum: f64 = logits.iter().map(|logit| (f64::from(*logit) - largest).exp()).sum();
        let mass = 0.15 + 0.8 * draws.uniform();
        label.log_sum_exp.push((largest + (sum / mass).ln()) as f32);
        let rank = match draws.uniform() {
            kind if kind < 0.5 => Some(0),
            kind if kind < 0.75 => Some(draws.below(self.top_k as u64) as usize),
            _ => None,
        };
        let (gold, gold_logit) = match rank {
            Some(rank) => (ids[rank], logits[rank]),
            None => (self.id_beside(ids, draws), (logit - draws.exponential(2.0)) as f32),
        };
        label.gold_logits.push(gold_logit);
        gold
    }

    /// A token that is not among `taken`.
    fn id_beside(&self, taken: &[u32], draws: &mut Draws<'_>) -> u32 {
        loop {
            let id = self.zipf.id(draws.uniform());
            if !taken.contains(&id) {
                return id;
            }
        }
    }
}

/// Word r, from 0, has a frequency in proportion to 1 / (r + 2.7).
struct Zipf {
    /// Sum of the weights up to each word.
    cumulative: Vec<f64>,
}

impl Zipf {
    fn new(words: usize) -> Self {
        let weights = (0..words).map(|word| 1.0 / (word as f64 + 2.7));
        let cumulative = weights.scan(0.0, |sum, weight| {
            *sum += weight;
            Some(*sum)
        });
        Self { cumulative: cumulative.collect() }
    }

    /// The word at `uniform` of the whole.
    fn id(&self, uniform: f64) -> u32 {
        let wanted = uniform * self.cumulative.last().copied().unwrap_or(0.0);
        let word = self.cumulative.partition_point(|sum| *sum <= wanted);
        word.min(self.cumulative.len().saturating_sub(1)) as u32
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn copies() -> Vec<MaskedCopy> {
        let random = Philox::new(1, "test", &[]);
        let teacher = MadeUpTeacher { zipf: Zipf::new(2000), top_k: 8, random };
        (0..300).map(|number| teacher.copy(number)).collect()
    }

    #[test]
    fn labels_are_well_formed() {
        for copy in copies() {
            let label = copy.label.unwrap();
            assert_eq!((label.positions(), label.gold_logits.len()), (copy.gold_ids.len(), copy.gold_ids.len()));
            for (position, (sum, gold)) in label.log_sum_exp.iter().zip(&copy.gold_ids).enumerate() {
                let (ids, logits) = (&label.top_ids[8 * position..][..8], &label.top_logits[8 * position..][..8]);
                assert!(logits.is_sorted_by(|a, b| a > b) && logits[0] < *sum, "{logits:?} {sum}");
                let mass: f32 = logits.iter().map(|logit| (logit - sum).exp()).sum();
                assert!((0.1..1.0).contains(&mass), "{mass}");
                assert!(ids.iter().enumerate().all(|(at, id)| !ids[..at].contains(id)), "{ids:?}");
                if let Some(rank) = ids.iter().position(|id| id == gold) {
                    assert_eq!(label.gold_logits[position], logits[rank]);
                }
            }
        }
    }

    #[test]
    fn small_ids_are_frequent() {
        let ids: Vec<u32> = copies().into_iter().flat_map(|copy| copy.token_ids).collect();
        let share = |end: u32| ids.iter().filter(|id| **id < end).count() as f64 / ids.len() as f64;
        let expected = |end: f64| ((end + 2.2) / 2.2).ln() / (2002.2_f64 / 2.2).ln();
        for end in [10, 100, 1000] {
            assert!((share(end) - expected(f64::from(end))).abs() < 0.02, "{end}: {}", share(end));
        }
    }
}
