//! The time from a document's arrival to its first gradient.
//!
//! Ingest notes when the document of a record arrived, before it hands the record on. The trainer says which records it has
//! learnt from: the first time that it names one, the time since then is observed. The notes are in memory alone, so the log's
//! content does not depend on times, and nothing is observed of a record that was on its way when its process ended. They are
//! bounded: when there are too many, the oldest is forgotten, and counted.
//!
//! A document arrives when its inbox takes it, when a watched folder takes its file, and when a followed file is seen to have
//! grown. A list of files is there from the start, so nothing of it arrives; and nothing is learnt from held-out records.

use crate::SequenceNumber;
use prometheus::{Histogram, HistogramOpts, IntCounter, Registry};
use serde::Serialize;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

/// Notes at most: 16 MiB.
const NOTES: usize = 1 << 20;
/// The percentiles are those of the last so many records.
const RECENT: usize = 4096;
/// A tenth of a second to a day.
const BUCKETS: [f64; 20] = [
    0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1200.0, 1800.0, 3600.0, 10_800.0,
    21_600.0, 43_200.0, 86_400.0,
];

/// When the documents of the records on their way to the trainer arrived. Cloning shares them.
#[derive(Clone, Debug)]
pub struct Arrivals {
    notes: Arc<Mutex<Notes>>,
    delays: Histogram,
    forgotten: IntCounter,
}

#[derive(Debug, Default)]
struct Notes {
    /// By ascending sequence number.
    waiting: VecDeque<Note>,
    /// Delays of the records that were learnt from last, in seconds.
    recent: VecDeque<f64>,
}

/// When the document of a record arrived.
#[derive(Clone, Copy, Debug)]
struct Note {
    sequence: SequenceNumber,
    /// Milliseconds since 1970; 0: the record was learnt from.
    arrived_ms: u64,
}

/// How long it took lately from the arrival of a document to the first gradient of its records.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Delays {
    /// Records, since the process started.
    pub records: u64,
    /// Half of the last 4,096 records took at most as long.
    pub p50_seconds: Option<f64>,
    /// 99 of 100 of them took at most as long.
    pub p99_seconds: Option<f64>,
}

impl Arrivals {
    /// Without any notes.
    ///
    /// # Errors
    /// When the registry has the metrics already.
    pub fn register(registry: &Registry) -> prometheus::Result<Self> {
        let arrivals = Self {
            notes: Arc::default(),
            delays: Histogram::with_opts(
                HistogramOpts::new(
                    "mergedistill_arrival_to_gradient_seconds",
                    "Time from a document's arrival to the first gradient of a record of it.",
                )
                .buckets(BUCKETS.to_vec()),
            )?,
            forgotten: IntCounter::new(
                "mergedistill_arrivals_forgotten_total",
                "Records whose arrival was forgotten, because too many were on their way to the trainer.",
            )?,
        };
        registry.register(Box::new(arrivals.delays.clone()))?;
        registry.register(Box::new(arrivals.forgotten.clone()))?;
        Ok(arrivals)
    }

    /// The document of the record `sequence`, the latest so far, arrived then (milliseconds since 1970).
    pub fn note(&self, sequence: SequenceNumber, arrived_ms: u64) {
        let mut notes = self.lock();
        if notes.waiting.len() == NOTES {
            notes.waiting.pop_front();
            self.forgotten.inc();
        }
        notes.waiting.push_back(Note { sequence, arrived_ms: arrived_ms.max(1) });
    }

    /// The trainer has learnt from these records, not necessarily for the first time.
    pub fn learnt(&self, sequences: &[SequenceNumber]) {
        let now = unix_milliseconds(SystemTime::now());
        let mut notes = self.lock();
        for sequence in sequences {
            let Ok(at) = notes.waiting.binary_search_by_key(sequence, |note| note.sequence) else { continue };
            let arrived_ms = std::mem::take(&mut notes.waiting[at].arrived_ms);
            if arrived_ms == 0 {
                continue;
            }
            // A clock that was put back meanwhile makes no negative times.
            let seconds = now.saturating_sub(arrived_ms) as f64 / 1000.0;
            self.delays.observe(seconds);
            if notes.recent.len() == RECENT {
                notes.recent.pop_front();
            }
            notes.recent.push_back(seconds);
        }
        while notes.waiting.front().is_some_and(|note| note.arrived_ms == 0) {
            notes.waiting.pop_front();
        }
    }

    /// How long it took lately.
    #[must_use]
    pub fn delays(&self) -> Delays {
        let mut recent: Vec<f64> = self.lock().recent.iter().copied().collect();
        recent.sort_by(f64::total_cmp);
        let at_most = |share: f64| {
            let rank = (share * recent.len() as f64).ceil() as usize;
            recent.get(rank.saturating_sub(1)).copied()
        };
        Delays { records: self.delays.get_sample_count(), p50_seconds: at_most(0.5), p99_seconds: at_most(0.99) }
    }

    fn lock(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Milliseconds since 1970.
#[must_use]
pub fn unix_milliseconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn sequences(numbers: &[u64]) -> Vec<SequenceNumber> {
        numbers.iter().map(|number| SequenceNumber(*number)).collect()
    }

    #[test]
    fn a_record_is_observed_the_first_time_that_it_is_learnt_from() {
        let registry = Registry::new();
        let arrivals = Arrivals::register(&registry).unwrap();
        assert_eq!(arrivals.delays(), Delays { records: 0, p50_seconds: None, p99_seconds: None });
        let now = unix_milliseconds(SystemTime::now());
        for (sequence, seconds_ago) in [(3, 100), (4, 200), (7, 300)] {
            arrivals.note(SequenceNumber(sequence), now - 1000 * seconds_ago);
        }
        arrivals.learnt(&sequences(&[4, 5]));
        arrivals.learnt(&sequences(&[2, 3, 4]));
        assert_eq!(arrivals.delays().records, 2, "2 and 5 were never noted, and 4 was observed before");
        let shared = arrivals.clone();
        shared.learnt(&sequences(&[7]));
        arrivals.learnt(&sequences(&[3, 4, 7]));
        let Delays { records, p50_seconds, p99_seconds } = arrivals.delays();
        assert_eq!(records, 3);
        assert!((200.0..210.0).contains(&p50_seconds.unwrap()) && (300.0..310.0).contains(&p99_seconds.unwrap()));
        assert!(arrivals.lock().waiting.is_empty(), "what was observed takes no memory");
        // From the future: the clock was put back.
        arrivals.note(SequenceNumber(9), now + 3_600_000);
        arrivals.learnt(&sequences(&[9]));
        assert_eq!(registry.gather()[0].get_metric()[0].get_histogram().get_sample_count(), 4);
        assert!(arrivals.lock().recent.iter().all(|seconds| *seconds >= 0.0));
        assert!(Arrivals::register(&registry).is_err());
    }

    #[test]
    fn memory_is_bounded() {
        let arrivals = Arrivals::register(&Registry::new()).unwrap();
        let now = unix_milliseconds(SystemTime::now());
        for sequence in 0..NOTES as u64 + 3 {
            arrivals.note(SequenceNumber(sequence), now);
        }
        assert_eq!((arrivals.lock().waiting.len(), arrivals.forgotten.get()), (NOTES, 3));
        arrivals.learnt(&sequences(&[0, 1, 2]));
        assert_eq!(arrivals.delays().records, 0, "they were forgotten");
        let first: Vec<SequenceNumber> = (3..3 + 2 * RECENT as u64).map(SequenceNumber).collect();
        arrivals.learnt(&first);
        let lengths = {
            let notes = arrivals.lock();
            (notes.waiting.len(), notes.recent.len())
        };
        assert_eq!((arrivals.delays().records, lengths), (2 * RECENT as u64, (NOTES - 2 * RECENT, RECENT)));
    }
}
