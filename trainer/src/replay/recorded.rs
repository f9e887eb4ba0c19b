//! What `metrics.jsonl` says of steps.

use super::report::{Comparison, Difference, Figures, Neighbours};
use crate::TrainerError;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Seek, SeekFrom};
use std::ops::RangeInclusive;
use std::path::Path;

/// Steps before a step, and after it, that it is compared with.
const AROUND: u64 = 50;

/// How much of the end of the file is looked at first for the last step.
const TAIL_BYTES: u64 = 1 << 20;

/// The lines of some steps.
pub(super) struct Recorded(BTreeMap<u64, Line>);

/// A line of a step; `null` stands for what was not finite.
#[derive(Clone, Debug, Deserialize)]
struct Line {
    step: u64,
    /// Evaluations have none.
    copies: Option<u64>,
    loss: Option<f64>,
    kd: Option<f64>,
    mlm: Option<f64>,
    top1: Option<f64>,
    learning_rate: Option<f64>,
    lambda: Option<f64>,
    grad_norm: Option<f64>,
    masked_positions: Option<u64>,
    #[serde(default)]
    skipped: bool,
    #[serde(default)]
    seconds: f64,
}

/// The last step at `path`; `None`: there is no file, or no step in it.
pub(super) fn last_step(path: &Path) -> Result<Option<u64>, TrainerError> {
    for tail_bytes in [TAIL_BYTES, u64::MAX] {
        let mut last = None;
        each_step(path, tail_bytes, |line| last = Some(line.step)).map_err(TrainerError::io("read", path))?;
        if last.is_some() {
            return Ok(last);
        }
    }
    Ok(None)
}

/// Passes the lines of steps among the last `tail_bytes` at `path`; none if there is no such file. The last line may be about to be written.
fn each_step(path: &Path, tail_bytes: u64, mut take: impl FnMut(Line)) -> io::Result<()> {
    let mut file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        file => file?,
    };
    let skipped = file.metadata()?.len().saturating_sub(tail_bytes);
    file.seek(SeekFrom::Start(skipped))?;
    for line in BufReader::new(file).split(b'\n') {
        // What is cut or torn is no JSON.
        let line = serde_json::from_slice::<Line>(&line?).ok().filter(|line| line.copies.is_some());
        line.into_iter().for_each(&mut take);
    }
    Ok(())
}

impl Recorded {
    /// Reads the lines at `path` of the steps from `first` to `step` and of those around that one, up to `last`.
    pub(super) fn read(path: &Path, first: u64, step: u64, last: u64) -> Result<Self, TrainerError> {
        let wanted = first.min(step.saturating_sub(AROUND))..=step.saturating_add(AROUND).min(last);
        let mut lines = BTreeMap::new();
        let take = |line: Line| {
            if wanted.contains(&line.step) {
                lines.insert(line.step, line);
            }
        };
        each_step(path, u64::MAX, take).map_err(TrainerError::io("read", path))?;
        Ok(Self(lines))
    }

    /// What steps took; `None`: not all are there.
    pub(super) fn seconds(&self, steps: RangeInclusive<u64>) -> Option<f64> {
        let count = steps.end() - steps.start() + 1;
        let lines = || self.0.range(steps.clone()).map(|(_, line)| line.seconds);
        (lines().count() as u64 == count).then(|| lines().sum())
    }

    /// Whether a step was not as it is now.
    pub(super) fn differs(&self, step: u64, figures: &Figures) -> bool {
        self.0.get(&step).is_some_and(|line| !line.differences(figures).is_empty())
    }

    /// A step as it was, beside what it is now.
    pub(super) fn compare(
        &self,
        step: u64,
        figures: &Figures,
        differs_before: Option<u64>,
        checkpoint_agrees: Option<bool>,
    ) -> Option<Comparison> {
        let line = self.0.get(&step)?;
        let differences = line.differences(figures);
        Some(Comparison {
            loss: number(line.loss),
            grad_norm: number(line.grad_norm),
            equal: differences.is_empty(),
            differs_from: differs_before.or((!differences.is_empty()).then_some(step)),
            differences,
            checkpoint_agrees,
        })
    }

    /// The steps around `step`, which has these figures.
    pub(super) fn neighbours(&self, step: u64, figures: &Figures) -> Option<Neighbours> {
        let around = self.0.range(step.saturating_sub(AROUND)..=step.saturating_add(AROUND));
        let around: Vec<&Line> =
            around.filter(|(at, line)| **at != step && !line.skipped).map(|(_, line)| line).collect();
        let median_loss = median(around.iter().filter_map(|line| line.loss))?;
        let median_grad_norm = median(around.iter().filter_map(|line| line.grad_norm))?;
        Some(Neighbours {
            steps: around.len() as u64,
            median_loss,
            loss_ratio: figures.loss / median_loss,
            median_grad_norm,
            grad_norm_ratio: figures.grad_norm / median_grad_norm,
        })
    }
}

impl Line {
    fn differences(&self, figures: &Figures) -> Vec<Difference> {
        let count = |count: Option<u64>| count.map(|count| count as f64);
        let pairs = [
            ("loss", self.loss, figures.loss),
            ("kd", self.kd, figures.kd),
            ("mlm", self.mlm, figures.mlm),
            ("top1", self.top1, figures.top1),
            ("learning_rate", self.learning_rate, figures.learning_rate),
            ("lambda", self.lambda, figures.lambda),
            ("grad_norm", self.grad_norm, figures.grad_norm),
            ("copies", count(self.copies), figures.copies as f64),
            ("masked_positions", count(self.masked_positions), figures.masked_positions as f64),
        ];
        let pairs = pairs.into_iter().map(|(figure, recorded, replayed)| (figure, number(recorded), replayed));
        // What is not finite is recorded as `null`, whatever it is.
        let is_same = |recorded: f64, replayed: f64| {
            recorded.to_bits() == replayed.to_bits() || (recorded.is_nan() && !replayed.is_finite())
        };
        let differ = pairs.filter(|(_, recorded, replayed)| !is_same(*recorded, *replayed));
        differ.map(|(figure, recorded, replayed)| Difference { figure, recorded, replayed }).collect()
    }
}

fn number(recorded: Option<f64>) -> f64 {
    recorded.unwrap_or(f64::NAN)
}

/// The upper one of two in the middle; `None` of nothing.
fn median(numbers: impl Iterator<Item = f64>) -> Option<f64> {
    let mut numbers: Vec<f64> = numbers.collect();
    numbers.sort_unstable_by(f64::total_cmp);
    numbers.get(numbers.len() / 2).copied()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use std::fs;

    fn line(step: u64, loss: &str) -> String {
        format!("{{\"step\":{step},\"copies\":2,\"loss\":{loss},\"grad_norm\":{step},\"seconds\":0.5}}\n")
    }

    #[test]
    fn the_last_step_is_found_however_much_follows_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        assert_eq!(last_step(&path).unwrap(), None);
        let steps = [line(1, "3.5"), line(2, "null")].concat();
        let evaluation = "{\"step\":2,\"evaluation\":{}}\n";
        for (text, expected) in [
            (String::new(), None),
            (evaluation.to_owned(), None),
            (steps.clone(), Some(2)),
            (steps.clone() + evaluation + "{\"step\":3,\"copi", Some(2)),
            (steps.clone() + &evaluation.repeat(1 + TAIL_BYTES as usize / evaluation.len()), Some(2)),
        ] {
            fs::write(&path, text).unwrap();
            assert_eq!(last_step(&path).unwrap(), expected);
        }
    }

    #[test]
    fn a_step_stands_among_those_around_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let lines: String = (1..=300).map(|step| line(step, &step.to_string())).collect();
        fs::write(&path, lines).unwrap();
        let figures = |loss, grad_norm| Figures {
            loss,
            kd: 0.0,
            mlm: 0.0,
            top1: 0.0,
            learning_rate: 0.0,
            lambda: 0.0,
            grad_norm,
            clip: 1.0,
            skipped: None,
            copies: 2,
            tokens: 0,
            masked_positions: 0,
            micro_batches: 1,
        };
        let recorded = Recorded::read(&path, 90, 100, 140).unwrap();
        let near = recorded.neighbours(100, &figures(400.0, 50.0)).unwrap();
        // From 50 to 140 without 100.
        assert_eq!(
            (near.steps, near.median_loss, near.loss_ratio, near.grad_norm_ratio),
            (90, 95.0, 400.0 / 95.0, 50.0 / 95.0)
        );
        assert_eq!(recorded.seconds(91..=100), Some(5.0));
        assert_eq!(recorded.seconds(91..=141), None);
        let differs = |loss, grad_norm| {
            let comparison = recorded.compare(100, &figures(loss, grad_norm), None, None).unwrap();
            let names: Vec<&str> = comparison.differences.iter().map(|difference| difference.figure).collect();
            names.into_iter().filter(|name| ["loss", "grad_norm", "copies"].contains(name)).collect::<Vec<_>>()
        };
        assert_eq!(differs(100.0, 100.0), [""; 0]);
        assert_eq!(differs(100.0 + 1e-13, f64::NAN), ["loss", "grad_norm"]);
        assert!(recorded.compare(141, &figures(1.0, 1.0), None, None).is_none(), "it is of another attempt");
    }
}
