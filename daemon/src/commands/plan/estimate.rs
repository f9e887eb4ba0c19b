//! What follows from what was measured.
//!
//! Times: labelling and training work beside each other until one of them is through; the other then has all threads. Until the first
//! training window is full there is only labelling. If training needs more copies than labelling makes beside it, it waits, and
//! lends its threads: both together then go as fast as if they took turns with all threads.

use super::figures::{CorpusFigures, Figures, LogFigures};
use super::sample::has_end;
use crate::configuration::Configuration;
use serde::Serialize;
use std::collections::BTreeMap;

const SECONDS_A_DAY: f64 = 86_400.0;
/// Bytes of a record and its copies in memory besides the numbers.
const RECORD_BYTES: f64 = 600.0;

/// What a run comes to.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Estimate {
    /// Of corpora that are there as a whole, all rounds; streams as far as they have arrived.
    pub(super) characters: f64,
    /// Tokens of all copies that will be labelled or written.
    pub(super) corpus_tokens: f64,
    /// Of those, by teacher.
    pub(super) teacher_tokens: BTreeMap<String, f64>,
    /// Whether text may arrive that is not counted.
    pub(super) has_streams: bool,
    /// Tokens that are labelled before training ends the run; all, if it does not.
    pub(super) labelled_tokens: f64,
    /// What labels, trains or both is busy for so long.
    pub(super) label_days: Option<f64>,
    /// `None`: nothing is trained, or without end.
    pub(super) train_days: Option<f64>,
    /// From the start to the end of the run; `None`: without end, or there is only text to be read.
    pub(super) days: Option<f64>,
    /// Steps a second while both are at work.
    pub(super) steps_per_second: Option<f64>,
    /// Tokens a second while both are at work.
    pub(super) label_tokens_per_second: Option<f64>,
    pub(super) train_tokens_per_second: Option<f64>,
    /// Copies that training takes, against those that are made: how often each is read. `None`: training has no end.
    pub(super) passes: Option<f64>,
    /// Of the log at the end; as it is, if there is only training.
    pub(super) log_bytes: f64,
    pub(super) checkpoints_bytes: Option<f64>,
    pub(super) memory: Memory,
    /// `teacher`, `ingest` or `trainer`: what the others wait for while all are at work.
    pub(super) limited_by: &'static str,
}

/// Peak memory.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(super) struct Memory {
    pub(super) peak_bytes: Option<f64>,
    pub(super) student_parameters: Option<u64>,
    pub(super) student_bytes: f64,
    pub(super) gradient_bytes: f64,
    pub(super) optimiser_bytes: f64,
    pub(super) teacher_bytes: f64,
    /// Records of the training window.
    pub(super) window_bytes: f64,
    /// The rest of the peak: activations, batches in flight, tokenizers, the program.
    pub(super) other_bytes: Option<f64>,
}

impl Estimate {
    /// `parameters`: the student's.
    pub(super) fn of(configuration: &Configuration, figures: &Figures, parameters: Option<u64>) -> Self {
        let mut estimate = Self::text(configuration, &figures.corpora);
        let (steps, train) = (configuration.train.steps, figures.train);
        let copies_made = estimate.corpus_tokens / figures.log.tokens_per_copy.max(1.0);
        let work = Work {
            labelled: figures.label.as_ref().map_or(0.0, |_| estimate.labelled(configuration)),
            label_alone: figures.label.as_ref().map_or(0.0, |label| label.tokens_per_second_alone),
            label_beside: figures.label.as_ref().map_or(0.0, |label| label.tokens_per_second_beside_training),
            first_window: configuration.train.shuffle_examples as f64
                * figures.log.copies_per_record
                * figures.log.tokens_per_copy,
            steps: train.and(steps).map(|steps| steps as f64),
            tokens_per_step: train.map_or(0.0, |train| train.copies_per_step * figures.log.tokens_per_copy),
            step_alone: train.map_or(0.0, |train| train.seconds_per_step_alone),
            step_beside: train.map_or(0.0, |train| train.seconds_per_step_beside_labelling),
            trains: train.is_some(),
        };
        let times = work.times();
        let day = |seconds: f64| seconds / SECONDS_A_DAY;
        estimate.labelled_tokens = times.labelled;
        estimate.label_days = figures.label.as_ref().map(|_| day(times.label_seconds));
        estimate.train_days = times.train_seconds.map(day);
        let works = figures.label.is_some() || train.is_some();
        estimate.days = times.seconds.filter(|_| works).map(day);
        estimate.steps_per_second = train.map(|_| times.steps_per_second);
        estimate.label_tokens_per_second = figures.label.as_ref().map(|_| times.label_tokens_per_second);
        estimate.train_tokens_per_second = train.map(|train| train.tokens_per_step * times.steps_per_second);
        estimate.passes = match (train, steps) {
            (Some(train), Some(steps)) if copies_made > 0.0 => Some(steps as f64 * train.copies_per_step / copies_made),
            _ => None,
        };
        let written = if work.labelled > 0.0 { times.labelled / work.labelled } else { 1.0 };
        estimate.log_bytes = match configuration.corpus.is_empty() {
            true => figures.log.bytes as f64, // It is there, and does not grow.
            false => estimate.corpus_tokens * written * figures.log.bytes_per_token,
        };
        let kept = configuration.train.keep_checkpoints as f64 + 1.0; // One more while it is written.
        estimate.checkpoints_bytes =
            figures.checkpoint_bytes.filter(|_| train.is_some()).map(|bytes| kept * bytes as f64);
        estimate.memory = Memory::of(configuration, figures, parameters);
        estimate.limited_by = match figures.label.as_ref() {
            Some(_) if times.is_label_limited || train.is_none() => labelling_limit(figures),
            None if train.is_none() => "ingest",
            _ => "trainer",
        };
        estimate
    }

    /// Characters and tokens.
    fn text(configuration: &Configuration, corpora: &[CorpusFigures]) -> Self {
        let has_streams = configuration.corpus.iter().any(|corpus| !has_end(corpus));
        let mut estimate = Self { has_streams, ..Self::default() };
        let mean = mean_tokens_per_character(corpora);
        for corpus in corpora {
            let characters = corpus.characters as f64 * f64::from(corpus.rounds.unwrap_or(1));
            estimate.characters += characters;
            for (teacher, per_character) in corpus.tokens_per_character.as_ref().unwrap_or(&mean) {
                let teaches = configuration
                    .teacher
                    .iter()
                    .any(|section| section.name == *teacher && section.languages.contains(&corpus.language));
                if teaches {
                    *estimate.teacher_tokens.entry(teacher.clone()).or_default() += characters * per_character;
                }
            }
        }
        let corpus_tokens: f64 = estimate.teacher_tokens.values().sum();
        estimate.corpus_tokens = corpus_tokens + 0.0; // The sum of nothing is −0.
        estimate
    }

    /// Tokens of teachers that label.
    fn labelled(&self, configuration: &Configuration) -> f64 {
        let labelling = configuration.teacher.iter().filter(|teacher| teacher.labels);
        labelling.filter_map(|teacher| self.teacher_tokens.get(&teacher.name)).sum()
    }
}

fn mean_tokens_per_character(corpora: &[CorpusFigures]) -> BTreeMap<String, f64> {
    let mut sums: BTreeMap<String, (f64, u32)> = BTreeMap::new();
    for (teacher, tokens) in corpora.iter().filter_map(|corpus| corpus.tokens_per_character.as_ref()).flatten() {
        let (sum, count) = sums.entry(teacher.clone()).or_default();
        (*sum, *count) = (*sum + tokens, *count + 1);
    }
    sums.into_iter().map(|(teacher, (sum, count))| (teacher, sum / f64::from(count))).collect()
}

/// Teachers limit labelling if one of them nearly always has a batch; otherwise it is what feeds them.
fn labelling_limit(figures: &Figures) -> &'static str {
    let teachers = figures.label.iter().flat_map(|label| label.teachers.values());
    if teachers.map(|teacher| teacher.busy_share).sum::<f64>() >= 0.5 { "teacher" } else { "ingest" }
}

/// Work and rates: tokens that are labelled, and seconds that a step takes.
#[derive(Clone, Copy, Debug)]
struct Work {
    labelled: f64,
    label_alone: f64,
    label_beside: f64,
    /// Tokens until training begins.
    first_window: f64,
    /// `None`: without end.
    steps: Option<f64>,
    /// That the labelling of its copies takes.
    tokens_per_step: f64,
    step_alone: f64,
    step_beside: f64,
    trains: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Times {
    /// `None`: without end.
    seconds: Option<f64>,
    label_seconds: f64,
    train_seconds: Option<f64>,
    /// Tokens that are labelled before the run ends.
    labelled: f64,
    /// While both are at work.
    steps_per_second: f64,
    label_tokens_per_second: f64,
    is_label_limited: bool,
}

impl Work {
    fn times(&self) -> Times {
        let label_alone = |tokens: f64| if self.label_alone > 0.0 { tokens / self.label_alone } else { 0.0 };
        if !self.trains {
            let seconds = label_alone(self.labelled);
            let rates = Times { label_tokens_per_second: self.label_alone, is_label_limited: true, ..Times::default() };
            return Times { seconds: Some(seconds), label_seconds: seconds, labelled: self.labelled, ..rates };
        }
        let first = label_alone(self.first_window.min(self.labelled));
        let rest = (self.labelled - self.first_window).max(0.0);
        let (steps_per_second, label_rate, is_label_limited) = self.rates();
        let both = if label_rate > 0.0 { rest / label_rate } else { 0.0 };
        let steps_beside = both * steps_per_second;
        let rates =
            Times { steps_per_second, label_tokens_per_second: label_rate, is_label_limited, ..Times::default() };
        match self.steps {
            Some(steps) if steps <= steps_beside => {
                let train = steps / steps_per_second;
                let labelled = self.first_window.min(self.labelled) + train * label_rate;
                let seconds = first + train;
                Times { seconds: Some(seconds), label_seconds: seconds, train_seconds: Some(train), labelled, ..rates }
            }
            steps => {
                let train = steps.map(|steps| both + (steps - steps_beside) * self.step_alone);
                let (seconds, label_seconds) = (train.map(|train| first + train), first + both);
                Times { seconds, label_seconds, train_seconds: train, labelled: self.labelled, ..rates }
            }
        }
    }

    /// Steps and labelled tokens a second while both are at work, and whether training waits for labels then.
    fn rates(&self) -> (f64, f64, bool) {
        let steps = if self.step_beside > 0.0 { 1.0 / self.step_beside } else { 0.0 };
        let needed = steps * self.tokens_per_step;
        if self.labelled == 0.0 || self.label_alone == 0.0 {
            return (if self.step_alone > 0.0 { 1.0 / self.step_alone } else { 0.0 }, 0.0, false);
        }
        if needed <= self.label_beside {
            return (steps, self.label_beside, false);
        }
        let steps = 1.0 / (self.tokens_per_step / self.label_alone + self.step_alone);
        let steps = steps.max(self.label_beside / self.tokens_per_step);
        (steps, steps * self.tokens_per_step, true)
    }
}

impl Memory {
    fn of(configuration: &Configuration, figures: &Figures, parameters: Option<u64>) -> Self {
        let floats = parameters.unwrap_or(0) as f64 * 4.0;
        let record = record_bytes(&figures.log, configuration.store.top_k);
        let trains = f64::from(u8::from(figures.train.is_some()));
        let window = trains * record * configuration.train.shuffle_examples as f64;
        let sampled_window = trains * record * figures.memory.sampled_window_examples as f64;
        let teacher_bytes = figures.memory.teacher_bytes as f64;
        let models = 4.0 * floats + teacher_bytes;
        let peak = figures.memory.peak_rss_bytes.map(|peak| peak as f64 - sampled_window + window);
        Self {
            peak_bytes: peak,
            student_parameters: parameters,
            student_bytes: floats,
            gradient_bytes: floats,
            optimiser_bytes: 2.0 * floats,
            teacher_bytes,
            window_bytes: window,
            other_bytes: peak.map(|peak| (peak - models - window).max(0.0)),
        }
    }
}

/// A record with its copies in memory.
fn record_bytes(log: &LogFigures, top_k: usize) -> f64 {
    let per_position = 4.0 * (2 * top_k + 4) as f64; // Position, gold id, log-sum-exp, gold logit; ids and logits of the top k.
    let per_copy = log.tokens_per_copy * (4.0 + log.masked_positions_per_token * per_position);
    RECORD_BYTES + log.copies_per_record * per_copy
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// 1000 tokens a second alone and 600 beside training; 10 steps a second alone and 5 beside labelling.
    fn work(labelled: f64, steps: Option<f64>, tokens_per_step: f64) -> Work {
        let (step_alone, step_beside) = (0.1, 0.2);
        Work {
            labelled,
            label_alone: 1000.0,
            label_beside: 600.0,
            first_window: 1000.0,
            steps,
            tokens_per_step,
            step_alone,
            step_beside,
            trains: true,
        }
    }

    #[test]
    fn training_that_needs_fewer_copies_than_are_made_does_not_wait() {
        let times = work(61_000.0, Some(1000.0), 100.0).times();
        // 1 s for the first window, 100 s of both with 500 steps, 500 steps with all threads.
        assert!(!times.is_label_limited);
        assert_eq!((times.label_seconds.round(), times.train_seconds.unwrap().round()), (101.0, 150.0));
        assert_eq!((times.seconds.unwrap().round(), times.labelled), (151.0, 61_000.0));
    }

    #[test]
    fn a_run_that_ends_early_labels_less() {
        let times = work(61_000.0, Some(50.0), 100.0).times();
        assert_eq!((times.seconds.unwrap().round(), times.labelled.round()), (11.0, 7000.0));
    }

    #[test]
    fn training_that_needs_more_copies_than_are_made_waits() {
        let times = work(61_000.0, Some(1000.0), 400.0).times();
        // 0.4 s to label a step's copies and 0.1 s to train on them, with all threads: 2 steps a second.
        assert!(times.is_label_limited);
        assert_eq!((times.steps_per_second.round(), times.label_tokens_per_second.round()), (2.0, 800.0));
        // 75 s for 60,000 tokens and 150 steps; 850 steps with all threads.
        assert_eq!((times.label_seconds.round(), times.seconds.unwrap().round()), (76.0, 161.0));
    }

    #[test]
    fn what_has_no_end_has_no_time_and_what_is_not_trained_is_labelled_with_all_threads() {
        let times = work(61_000.0, None, 100.0).times();
        assert_eq!((times.seconds, times.train_seconds, times.label_seconds.round()), (None, None, 101.0));
        let times = Work { trains: false, ..work(61_000.0, None, 0.0) }.times();
        assert_eq!((times.seconds.unwrap(), times.label_seconds), (61.0, 61.0));
        let times = Work { label_alone: 0.0, ..work(0.0, Some(100.0), 100.0) }.times();
        assert_eq!((times.seconds.unwrap().round(), times.label_seconds), (10.0, 0.0));
    }
}
