//! Rates, queues and backlog of the last hours: a sample every few seconds, and means of a minute for a day.
//!
//! They are in memory, and in `samples.json` beside `metrics.jsonl`: written every few minutes and at the end, so that a restart
//! finds them. A crash loses the last minutes; the file is for drawing alone, and one that cannot be read or written costs only that.

use super::steps::short;
use crate::figures::Figures;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::collections::VecDeque;
use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

/// Time between two samples.
pub const INTERVAL: Duration = Duration::from_secs(5);

/// Samples that a mean of the coarse series takes in.
const PER_MEAN: usize = 12;
/// An hour of samples, and a day of means.
const MOST: [usize; 2] = [720, 1440];

/// What is sampled, under which name.
const COLUMNS: [(&str, Source); 11] = [
    ("ingest_examples_per_second", Source::Rate("mergedistill_stage_items_out_total{ingest}")),
    ("label_tokens_per_second", Source::Rate("mergedistill_teacher_tokens_total")),
    ("log_bytes_per_second", Source::Rate("mergedistill_log_bytes_total")),
    ("train_tokens_per_second", Source::Rate("mergedistill_train_tokens_total")),
    ("ingest_in_flight", Source::Gauge("mergedistill_stage_items_in_flight{ingest}")),
    ("teacher_in_flight", Source::Gauge("mergedistill_stage_items_in_flight{teacher}")),
    ("log_in_flight", Source::Gauge("mergedistill_stage_items_in_flight{log}")),
    ("trainer_in_flight", Source::Gauge("mergedistill_stage_items_in_flight{trainer}")),
    ("backlog_bytes", Source::Gauge("mergedistill_log_backlog_bytes")),
    ("log_bytes", Source::Gauge("mergedistill_log_size_bytes")),
    ("memory_bytes", Source::Gauge("process_resident_memory_bytes")),
];

/// How a sample is read off the metrics.
enum Source {
    /// Increase of a counter a second.
    Rate(&'static str),
    Gauge(&'static str),
}

/// One row: a moment, and a value for each column.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    unix_seconds: f64,
    values: Vec<Option<f64>>,
}

/// The samples of the last hour, and means of the last day.
#[derive(Clone, Debug, Default)]
pub struct Samples {
    recent: VecDeque<Sample>,
    day: VecDeque<Sample>,
    /// Samples since the last mean.
    pending: Vec<Sample>,
}

/// What is in the file. Columns are found by their names, so that a later version may have others.
#[derive(Serialize, Deserialize)]
struct Kept {
    columns: Vec<String>,
    recent: VecDeque<Sample>,
    day: VecDeque<Sample>,
}

impl Sample {
    /// What `figures` say now.
    pub fn of(figures: &Figures, unix_seconds: f64) -> Self {
        let value = |source: &Source| match source {
            // Negative when counters began anew with the stages.
            Source::Rate(name) => Some(figures.rate(name)).filter(|rate| *rate >= 0.0),
            Source::Gauge(name) => figures.find(name),
        };
        Self { unix_seconds, values: COLUMNS.iter().map(|(_, source)| value(source)).collect() }
    }

    /// The mean of what each column has.
    fn mean(samples: &[Self]) -> Self {
        let mean = |column: usize| {
            let values: Vec<f64> =
                samples.iter().filter_map(|sample| sample.values.get(column).copied().flatten()).collect();
            (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
        };
        let unix_seconds = samples.iter().map(|sample| sample.unix_seconds).sum::<f64>() / samples.len().max(1) as f64;
        Self { unix_seconds, values: (0..COLUMNS.len()).map(mean).collect() }
    }
}

impl Samples {
    /// Takes a sample in, and forgets what is too old.
    pub fn push(&mut self, sample: Sample) {
        self.pending.push(sample.clone());
        if self.pending.len() >= PER_MEAN {
            let mean = Sample::mean(&self.pending);
            self.pending.clear();
            add(&mut self.day, mean, MOST[1]);
        }
        add(&mut self.recent, sample, MOST[0]);
    }

    /// Both series, as columns: `[{"seconds": between two samples, "unix_seconds": [], …}]`.
    pub fn columns(&self) -> Value {
        let mean_seconds = INTERVAL.as_secs() * PER_MEAN as u64;
        json!([series(&self.recent, INTERVAL.as_secs()), series(&self.day, mean_seconds)])
    }

    /// What was kept of earlier processes; nothing, if there is no such file.
    ///
    /// # Errors
    /// When it cannot be read, or is not what was written.
    pub fn read(path: &Path) -> io::Result<Self> {
        let bytes = match fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(error),
        };
        let kept: Kept = serde_json::from_slice(&bytes)?;
        let places: Vec<_> =
            COLUMNS.iter().map(|(name, _)| kept.columns.iter().position(|column| column == name)).collect();
        let arranged = |samples: VecDeque<Sample>, most: usize| {
            let surplus = samples.len().saturating_sub(most);
            let arrange = |sample: Sample| Sample {
                unix_seconds: sample.unix_seconds,
                values: places.iter().map(|place| sample.values.get((*place)?).copied().flatten()).collect(),
            };
            samples.into_iter().skip(surplus).map(arrange).collect()
        };
        Ok(Self { recent: arranged(kept.recent, MOST[0]), day: arranged(kept.day, MOST[1]), pending: Vec::new() })
    }

    /// Writes the file, as a whole or not at all. It is not made durable.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let shortened = |samples: &VecDeque<Sample>| samples.iter().map(Sample::shortened).collect();
        let columns = COLUMNS.iter().map(|(name, _)| (*name).to_owned()).collect();
        let kept = Kept { columns, recent: shortened(&self.recent), day: shortened(&self.day) };
        let partial = path.with_extension("partial");
        fs::write(&partial, serde_json::to_vec(&kept)?).and_then(|()| fs::rename(&partial, path)).inspect_err(|_| {
            let _ = fs::remove_file(&partial); // It takes room, too.
        })
    }
}

impl Sample {
    fn shortened(&self) -> Self {
        let values = self.values.iter().map(|value| short(*value).as_f64()).collect();
        Self { unix_seconds: (self.unix_seconds * 10.0).round() / 10.0, values }
    }
}

fn add(samples: &mut VecDeque<Sample>, sample: Sample, most: usize) {
    // A clock that was set back: what seems to come later cannot be drawn.
    while samples.back().is_some_and(|last| last.unix_seconds >= sample.unix_seconds) {
        samples.pop_back();
    }
    samples.push_back(sample);
    while samples.len() > most {
        samples.pop_front();
    }
}

fn series(samples: &VecDeque<Sample>, seconds: u64) -> Value {
    let mut columns = Map::new();
    columns.insert("seconds".to_owned(), json!(seconds));
    let times = samples.iter().map(|sample| json!((sample.unix_seconds * 10.0).round() / 10.0));
    columns.insert("unix_seconds".to_owned(), times.collect());
    for (index, (name, _)) in COLUMNS.iter().enumerate() {
        let values = samples.iter().map(|sample| short(sample.values.get(index).copied().flatten()));
        columns.insert((*name).to_owned(), values.collect());
    }
    Value::Object(columns)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn sample(unix_seconds: f64, value: f64) -> Sample {
        Sample { unix_seconds, values: vec![Some(value); COLUMNS.len()] }
    }

    fn count(columns: &Value, series: usize) -> usize {
        columns[series]["backlog_bytes"].as_array().unwrap().len()
    }

    #[test]
    fn an_hour_of_samples_and_a_day_of_means_are_kept() {
        let mut samples = Samples::default();
        for number in 0..40_000 {
            samples.push(sample(1e9 + 5.0 * f64::from(number), f64::from(number % 12)));
        }
        let columns = samples.columns();
        assert_eq!((count(&columns, 0), count(&columns, 1)), (720, 1440));
        assert_eq!((&columns[0]["seconds"], &columns[1]["seconds"]), (&json!(5), &json!(60)));
        assert_eq!(columns[1]["log_bytes"][0], json!(5.5));
        assert_eq!(columns[0]["unix_seconds"][719], json!(1e9 + 5.0 * 39_999.0));
    }

    #[test]
    fn a_restart_finds_them_also_when_columns_have_changed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("samples.json");
        assert_eq!(count(&Samples::read(&path).unwrap().columns(), 0), 0);
        let mut samples = Samples::default();
        for number in 0..30 {
            samples.push(sample(1e9 + 5.0 * f64::from(number), 7.0));
        }
        samples.write(&path).unwrap();
        assert_eq!(Samples::read(&path).unwrap().columns(), samples.columns());
        let text = fs::read_to_string(&path).unwrap().replace("\"log_bytes\"", "\"earlier\"");
        fs::write(&path, text).unwrap();
        let columns = Samples::read(&path).unwrap().columns();
        assert_eq!((&columns[0]["log_bytes"][3], &columns[0]["memory_bytes"][3]), (&json!(null), &json!(7)));
        fs::write(&path, "[1, 2").unwrap();
        assert!(Samples::read(&path).is_err());
    }

    #[test]
    fn a_clock_that_is_set_back_leaves_times_in_order() {
        let mut samples = Samples::default();
        [100.0, 105.0, 110.0, 50.0, 55.0].into_iter().for_each(|time| samples.push(sample(time, 1.0)));
        assert_eq!(samples.columns()[0]["unix_seconds"], json!([50.0, 55.0]));
    }
}
