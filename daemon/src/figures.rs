//! Figures read off the metrics registry: what the progress lines, the log lines and `/v1/status` show.

use prometheus::Registry;
use prometheus::proto::MetricFamily;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Rates are taken over this much of the past.
const RATE_WINDOW: Duration = Duration::from_secs(10);

/// Labels by whose values figures are known one by one.
const KEPT_LABELS: [&str; 3] = ["stage", "teacher", "reason"];

/// A reading of all counters and gauges, summed over the labels; and, as `name{value}`, over all but one that is kept.
#[derive(Clone, Debug)]
struct Reading {
    at: Instant,
    values: BTreeMap<String, f64>,
}

/// Recent readings of a registry.
#[derive(Debug)]
pub struct Figures {
    registry: Registry,
    readings: Vec<Reading>,
}

impl Figures {
    /// Figures of `registry`.
    pub fn new(registry: Registry) -> Self {
        let mut figures = Self { registry, readings: Vec::new() };
        figures.read();
        figures
    }

    /// Takes a reading, and forgets those that are too old to matter.
    pub fn read(&mut self) {
        let mut values = BTreeMap::new();
        for family in self.registry.gather() {
            add_family(&family, &mut values);
        }
        let now = Instant::now();
        let expired = self.readings.iter().filter(|reading| now - reading.at > RATE_WINDOW).count();
        self.readings.drain(..expired.saturating_sub(1));
        self.readings.push(Reading { at: now, values });
    }

    /// Counters begin anew: forgets the readings before.
    pub fn forget(&mut self) {
        self.readings.clear();
        self.read();
    }

    /// Newest value of a metric; `name{stage}` for one of a stage, a teacher or a reason.
    pub fn value(&self, name: &str) -> f64 {
        self.readings.last().and_then(|reading| reading.values.get(name)).copied().unwrap_or(0.0)
    }

    /// As [`Self::value`]; `None`: there is no such metric.
    pub fn find(&self, name: &str) -> Option<f64> {
        self.readings.last()?.values.get(name).copied()
    }

    /// Newest value of a metric for each value of the label that is kept.
    pub fn by_label(&self, name: &str) -> BTreeMap<String, f64> {
        let Some(last) = self.readings.last() else { return BTreeMap::new() };
        let of_name = |key: &str| Some(key.strip_prefix(name)?.strip_prefix('{')?.strip_suffix('}')?.to_owned());
        last.values.iter().filter_map(|(key, value)| Some((of_name(key)?, *value))).collect()
    }

    /// Increase per second of a counter over the last seconds.
    pub fn rate(&self, name: &str) -> f64 {
        let [first, .., last] = self.readings.as_slice() else { return 0.0 };
        let seconds = (last.at - first.at).as_secs_f64();
        let value = |reading: &Reading| reading.values.get(name).copied().unwrap_or(0.0);
        if seconds > 0.0 { (value(last) - value(first)) / seconds } else { 0.0 }
    }
}

fn add_family(family: &MetricFamily, values: &mut BTreeMap<String, f64>) {
    for metric in family.get_metric() {
        let value = metric.get_counter().get_value() + metric.get_gauge().get_value();
        *values.entry(family.name().to_owned()).or_default() += value;
        if let Some(label) = metric.get_label().iter().find(|label| KEPT_LABELS.contains(&label.name())) {
            *values.entry(format!("{}{{{}}}", family.name(), label.value())).or_default() += value;
        }
    }
}
