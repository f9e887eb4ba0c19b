//! What was measured.

use super::measuring::Measured;
use super::sizes::Sizes;
use serde::Serialize;
use std::collections::BTreeMap;

/// Everything that was measured, in a few seconds.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Figures {
    /// By source: a corpus, or one language of it. Empty: train only.
    pub(super) corpora: Vec<CorpusFigures>,
    /// `None`: nothing is labelled.
    pub(super) label: Option<LabelFigures>,
    /// The log of the measurement; that of the run, if it only trains.
    pub(super) log: LogFigures,
    /// `None`: nothing is trained.
    pub(super) train: Option<TrainFigures>,
    pub(super) checkpoint_bytes: Option<u64>,
    pub(super) memory: MemoryFigures,
    /// With which all of this was measured; `train` is scaled to the run's.
    pub(super) sizes: Sizes,
}

#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct CorpusFigures {
    pub(super) name: String,
    pub(super) language: String,
    /// Of its files as they are on the disk; 0 for what is no list of files.
    pub(super) files_bytes: u64,
    /// Available now.
    pub(super) characters: u64,
    /// `None`: it has no end.
    pub(super) rounds: Option<u32>,
    pub(super) sampled_records: u64,
    /// `None`, as below: the sample has nothing of it, and the mean of the others is taken.
    pub(super) examples_per_character: Option<f64>,
    pub(super) copies_per_character: Option<f64>,
    /// By teacher.
    pub(super) tokens_per_character: Option<BTreeMap<String, f64>>,
}

#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct LabelFigures {
    /// Of all teachers, with the threads of training too; reading, masking and the log included.
    pub(super) tokens_per_second_alone: f64,
    pub(super) tokens_per_second_beside_training: f64,
    pub(super) teachers: BTreeMap<String, TeacherFigures>,
}

#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(super) struct TeacherFigures {
    pub(super) sampled_tokens: u64,
    /// While it had a batch; teachers share the threads.
    pub(super) tokens_per_busy_second: f64,
    /// Share of the time in which it had a batch.
    pub(super) busy_share: f64,
}

#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(super) struct LogFigures {
    /// As it is on the disk.
    pub(super) bytes: u64,
    pub(super) sampled_tokens: u64,
    pub(super) bytes_per_token: f64,
    pub(super) tokens_per_copy: f64,
    pub(super) masked_positions_per_token: f64,
    pub(super) copies_per_record: f64,
}

#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(super) struct TrainFigures {
    pub(super) sampled_steps: usize,
    pub(super) tokens_per_step: f64,
    pub(super) copies_per_step: f64,
    /// With the threads of labelling too.
    pub(super) seconds_per_step_alone: f64,
    pub(super) seconds_per_step_beside_labelling: f64,
}

#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(super) struct MemoryFigures {
    /// Of this process, which had the teachers, the student and the optimiser at work; `None`: the system does not tell.
    pub(super) peak_rss_bytes: Option<u64>,
    /// By how much loading the teachers raised the resident memory.
    pub(super) teacher_bytes: u64,
    /// The training window of the measurement.
    pub(super) sampled_window_examples: usize,
}

impl TrainFigures {
    pub(super) fn of(beside_labelling: Measured, alone: Measured) -> Self {
        let (first, second) = (beside_labelling.steps as f64, alone.steps as f64);
        let mean = |of: fn(&Measured) -> f64| {
            (first * of(&beside_labelling) + second * of(&alone)) / (first + second).max(1.0)
        };
        // Batches differ: what is compared is the time that a token takes.
        let tokens = mean(|measured| measured.tokens);
        let per_step = |measured: Measured| measured.seconds / measured.tokens.max(1.0) * tokens;
        Self {
            sampled_steps: beside_labelling.steps + alone.steps,
            tokens_per_step: tokens,
            copies_per_step: mean(|measured| measured.copies),
            seconds_per_step_alone: per_step(alone),
            seconds_per_step_beside_labelling: per_step(beside_labelling),
        }
    }

    /// Of steps of `copies`, each with `tokens_per_copy` tokens, by what was measured with steps of `sampled` copies that happened to be shorter
    /// or longer.
    pub(super) fn scaled(self, copies: usize, sampled: usize, tokens_per_copy: f64) -> Self {
        if copies == sampled {
            return self;
        }
        let copies_per_step = self.copies_per_step * copies as f64 / sampled.max(1) as f64;
        let tokens_per_step = copies_per_step * tokens_per_copy;
        let factor = tokens_per_step / self.tokens_per_step.max(1.0);
        Self {
            sampled_steps: self.sampled_steps,
            tokens_per_step,
            copies_per_step,
            seconds_per_step_alone: self.seconds_per_step_alone * factor,
            seconds_per_step_beside_labelling: self.seconds_per_step_beside_labelling * factor,
        }
    }
}
