//! Who works for a run: what workers say of themselves.

use super::link::Heartbeat;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{GaugeVec, IntGaugeVec, Opts};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A worker that has not been heard of for so long does not count as one.
const SILENT_AFTER: Duration = Duration::from_secs(15);
/// After this long it is forgotten.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(600);
/// Its rate is that of so much time.
const RATE_WINDOW: Duration = Duration::from_secs(20);
/// No more are remembered: anybody may call himself anything.
const MOST: usize = 4096;
const MOST_NAME_BYTES: usize = 256;

/// The workers of a run. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Roster(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// Teachers of the run.
    teachers: BTreeSet<String>,
    seen: Mutex<BTreeMap<String, Seen>>,
    workers: IntGaugeVec,
    tokens: GaugeVec,
    in_flight: IntGaugeVec,
    silent: GaugeVec,
}

#[derive(Debug)]
struct Seen {
    heartbeat: Heartbeat,
    at: Instant,
    at_time: SystemTime,
    /// Tokens that it had labelled at these times.
    course: VecDeque<(Instant, u64)>,
}

/// A worker, for people.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct WorkerReport {
    /// What it says of itself.
    #[serde(flatten)]
    pub heartbeat: Heartbeat,
    /// Tokens a second, lately.
    pub tokens_per_second: f64,
    /// When it was heard of last.
    pub seen_unix_seconds: f64,
    /// Whether that is too long ago.
    pub silent: bool,
}

impl Roster {
    /// Of a run with these teachers, without anybody yet.
    ///
    /// # Errors
    /// When its metrics cannot be made.
    pub(super) fn new(teachers: BTreeSet<String>) -> Result<Self, prometheus::Error> {
        let opts = |name: &str, help: &str| Opts::new(name, help);
        let of_worker = ["teacher", "worker"];
        Ok(Self(Arc::new(Shared {
            teachers,
            seen: Mutex::default(),
            workers: IntGaugeVec::new(
                opts("mergedistill_cluster_workers", "Workers that have been heard of within 15 seconds."),
                &["teacher"],
            )?,
            tokens: GaugeVec::new(
                opts("mergedistill_cluster_worker_tokens_per_second", "Tokens that a worker labels a second, lately."),
                &of_worker,
            )?,
            in_flight: IntGaugeVec::new(
                opts("mergedistill_cluster_worker_in_flight", "Batches that a worker has in hand."),
                &of_worker,
            )?,
            silent: GaugeVec::new(
                opts("mergedistill_cluster_worker_silent_seconds", "Time since a worker was heard of last."),
                &of_worker,
            )?,
        })))
    }

    /// Whether somebody who labels for this teacher has been heard of lately.
    #[must_use]
    pub fn has(&self, teacher: &str) -> bool {
        self.workers().iter().any(|report| report.heartbeat.teacher == teacher && !report.silent)
    }

    /// Notes what a worker says of itself, if that can be so: it is shown on terminals and names time series.
    pub(super) fn note(&self, heartbeat: Heartbeat) {
        let is_plain = |text: &str| text.len() <= MOST_NAME_BYTES && !text.chars().any(char::is_control);
        let Heartbeat { worker, teacher, version, device, .. } = &heartbeat;
        if !self.0.teachers.contains(teacher) || ![worker, version, device].into_iter().all(|text| is_plain(text)) {
            return;
        }
        let (mut seen, now) = (self.seen(), Instant::now());
        if heartbeat.leaving {
            seen.remove(&heartbeat.worker);
            return;
        }
        if seen.len() >= MOST && !seen.contains_key(&heartbeat.worker) {
            return;
        }
        let mut course = seen.remove(&heartbeat.worker).map(|before| before.course).unwrap_or_default();
        if course.back().is_some_and(|(_, tokens)| *tokens > heartbeat.tokens) {
            course.clear(); // Another process under the same name.
        }
        course.push_back((now, heartbeat.tokens));
        while course.len() > 2 && course.get(1).is_some_and(|(at, _)| now - *at >= RATE_WINDOW) {
            course.pop_front();
        }
        seen.insert(heartbeat.worker.clone(), Seen { heartbeat, at: now, at_time: SystemTime::now(), course });
    }

    /// Workers that have been heard of in the last ten minutes and have not taken their leave.
    #[must_use]
    pub fn workers(&self) -> Vec<WorkerReport> {
        let mut seen = self.seen();
        seen.retain(|_, seen| seen.at.elapsed() < FORGOTTEN_AFTER);
        seen.values().map(Seen::report).collect()
    }

    fn seen(&self) -> MutexGuard<'_, BTreeMap<String, Seen>> {
        self.0.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seen {
    fn report(&self) -> WorkerReport {
        let silent = self.at.elapsed() >= SILENT_AFTER;
        let rate = match (self.course.front(), self.course.back()) {
            (Some((first, before)), Some((last, after))) if last > first && !silent => {
                (after - before) as f64 / (*last - *first).as_secs_f64()
            }
            _ => 0.0,
        };
        WorkerReport {
            heartbeat: self.heartbeat.clone(),
            tokens_per_second: rate,
            seen_unix_seconds: self.at_time.duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64()),
            silent,
        }
    }
}

impl Collector for Roster {
    fn desc(&self) -> Vec<&Desc> {
        let Shared { workers, tokens, in_flight, silent, .. } = &*self.0;
        [workers.desc(), tokens.desc(), in_flight.desc(), silent.desc()].concat()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let Shared { workers, tokens, in_flight, silent, .. } = &*self.0;
        workers.reset();
        in_flight.reset();
        tokens.reset();
        silent.reset();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
        self.0.teachers.iter().for_each(|teacher| workers.with_label_values(&[teacher]).set(0));
        for report in self.workers() {
            let Heartbeat { teacher, worker, in_flight: has, .. } = &report.heartbeat;
            workers.with_label_values(&[teacher]).add(i64::from(!report.silent));
            tokens.with_label_values(&[teacher, worker]).set(report.tokens_per_second);
            in_flight.with_label_values(&[teacher, worker]).set(has.cast_signed());
            silent.with_label_values(&[teacher, worker]).set((now - report.seen_unix_seconds).max(0.0));
        }
        [workers.collect(), tokens.collect(), in_flight.collect(), silent.collect()].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heartbeat(tokens: u64) -> Heartbeat {
        Heartbeat { worker: "gpu-1/7".to_owned(), teacher: "en".to_owned(), tokens, ..Heartbeat::default() }
    }

    #[test]
    fn a_worker_is_known_until_it_leaves() -> Result<(), prometheus::Error> {
        let roster = Roster::new(BTreeSet::from(["en".to_owned()]))?;
        roster.note(Heartbeat { teacher: "fr".to_owned(), ..heartbeat(0) });
        roster.note(Heartbeat { worker: "\u{1b}[2J".to_owned(), ..heartbeat(0) });
        assert!(roster.workers().is_empty());
        roster.note(heartbeat(0));
        assert_eq!(roster.workers()[0].tokens_per_second.to_bits(), 0.0_f64.to_bits(), "one word makes no rate");
        roster.note(heartbeat(1_000_000));
        let report = &roster.workers()[0];
        assert!(report.tokens_per_second > 0.0 && !report.silent);
        let families = roster.collect();
        let workers = families.iter().find(|family| family.name() == "mergedistill_cluster_workers");
        assert!(workers.is_some_and(|family| family.get_metric()[0].get_gauge().get_value() > 0.5));
        roster.note(heartbeat(5)); // Its process is another one.
        assert!(roster.workers()[0].tokens_per_second < 1.0);
        roster.note(Heartbeat { leaving: true, ..heartbeat(5) });
        assert!(roster.workers().is_empty());
        let families = roster.collect();
        let counted: Vec<usize> = families.iter().map(|family| family.get_metric().len()).collect();
        assert_eq!(counted.iter().sum::<usize>(), 1, "none of its teacher, and nothing of itself");
        Ok(())
    }
}
