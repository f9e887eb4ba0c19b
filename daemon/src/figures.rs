//! Figures read off the metrics registry: what the progress lines, the log lines and `/v1/status` show.

use prometheus::Registry;
use prometheus::proto::MetricFamily;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Rates are taken over this much of the past.
const RATE_WINDOW: Duration = Duration::from_secs(10);

/// A reading of all counters and gauges, summed over the labels except `stage`.
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

    /// Newest value of a metric; `name{stage}` for one of a stage.
    pub fn value(&self, name: &str) -> f64 {
        self.readings.last().and_then(|reading| reading.values.get(name)).copied().unwrap_or(0.0)
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
        let stage = metric.get_label().iter().find(|label| label.name() == "stage").map(|label| label.value());
        let name = match stage {
            Some(stage) => format!("{}{{{stage}}}", family.name()),
            None => family.name().to_owned(),
        };
        let value = metric.get_counter().get_value() + metric.get_gauge().get_value();
        *values.entry(name).or_default() += value;
    }
}
