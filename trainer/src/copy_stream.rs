//! The stream of training copies, cut into batches.
//!
//! A window's copies are shuffled together, across languages and documents; the stream goes from window to window without
//! a break, and a batch is the next `batch_examples` copies of it. A window is journaled before its first copy is used,
//! and one that the journal knows is formed again as it was.
//!
//! A place in the stream is a [`StreamState`]: the sampler before the window, and how many of the window's copies are
//! taken. Examples that are left out keep their place, so leaving one out moves no other.
//!
//! The records of the current window are held in memory (`shuffle_examples` of them).

use crate::batch::Batch;
use crate::error::TrainerError;
use crate::journal::{Journal, JournalEntry, WindowEntry};
use crate::options::{LossNorm, TrainOptions};
use crate::records::Records;
use crate::sampler::{Draw, Example, Sampler, SamplerOptions, SamplerState, Short, View, Window};
use crate::settings::Settings;
use crate::target::TargetSchedule;
use crate::training_copy::{CopyMaker, CopyOptions, TrainingCopy};
use crate::vocabulary::Vocabulary;
use model::random::Philox;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::sync::Arc;
use store::{Payload, Record, SequenceNumber, StoreError};

/// Windows in a row that may turn out to hold nothing to train on.
const EMPTY_WINDOWS_MAX: usize = 1000;

/// How the stream is formed and cut.
#[derive(Clone, Debug)]
pub struct StreamOptions {
    /// How windows are drawn.
    pub sampler: SamplerOptions,
    /// Which copies of an example are taken.
    pub copies: CopyOptions,
    /// By index into the log's teacher table: whether the teacher labels.
    pub labels: Vec<bool>,
    /// Copies of a batch.
    pub batch_examples: usize,
    /// Tokens of a micro-batch.
    pub micro_batch_tokens: usize,
    /// What the student is distilled from, by step.
    pub targets: TargetSchedule,
    /// What the sum of the losses is divided by.
    pub loss_norm: LossNorm,
}

/// A place in the stream, between two batches. Part of a checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamState {
    /// The sampler before the window that is being read.
    pub sampler: SamplerState,
    /// Copies of that window that are taken.
    pub copies_taken: u64,
    /// Examples that are no longer trained on.
    #[serde(default)]
    pub left_out: BTreeSet<SequenceNumber>,
}

impl StreamState {
    /// Windows of which something has been used: the journal must know them.
    #[must_use]
    pub fn windows_used(&self) -> u64 {
        self.sampler.window + u64::from(self.copies_taken > 0)
    }
}

/// What came of asking for a batch.
#[derive(Clone, Debug)]
pub enum Next<T = Batch> {
    /// A batch; the last one of all may be smaller.
    Batch(T),
    /// The log does not reach far enough yet. Ask again when it has grown; what was gathered is kept.
    Short(Short),
    /// There is nothing more to train on.
    End,
}

impl<T> Next<T> {
    fn map<U>(self, make: impl FnOnce(T) -> U) -> Next<U> {
        match self {
            Self::Batch(batch) => Next::Batch(make(batch)),
            Self::Short(short) => Next::Short(short),
            Self::End => Next::End,
        }
    }
}

/// Reads training copies from the log.
#[derive(Debug)]
pub struct CopyStream {
    options: StreamOptions,
    maker: CopyMaker,
    shuffle: Philox,
    sampler: Sampler,
    /// The place after the last batch that was handed out.
    state: StreamState,
    window: Option<OpenWindow>,
    /// Copies of the batch that is being gathered.
    pending: Vec<TrainingCopy>,
}

/// The window that is being read.
#[derive(Debug)]
struct OpenWindow {
    /// The sampler before it.
    before: SamplerState,
    examples: Vec<Example>,
    /// (index into the examples, index into the record's copies), shuffled.
    order: Vec<(usize, usize)>,
    taken: usize,
}

impl CopyStream {
    /// A stream that continues from `state`. `vocabulary`'s maps are in the order of the log's teacher table.
    #[must_use]
    pub fn new(seed: u64, options: StreamOptions, vocabulary: Arc<Vocabulary>, state: StreamState) -> Self {
        Self {
            maker: CopyMaker::new(seed, vocabulary, options.labels.clone(), options.copies),
            shuffle: Philox::new(seed, "shuffle", &[]),
            sampler: Sampler::new(seed, options.sampler.clone(), state.sampler.clone()),
            options,
            state,
            window: None,
            pending: Vec::new(),
        }
    }

    /// Cuts and weighs the next batches by these options. Not while one is being gathered: that would be of another size than its step's
    /// settings say.
    pub(crate) fn set_batches(&mut self, train: &TrainOptions) {
        self.options.batch_examples = train.batch_examples;
        self.options.micro_batch_tokens = train.micro_batch_tokens;
        self.options.targets = TargetSchedule::of(train);
        self.options.loss_norm = train.loss_norm;
        self.options.copies.copy_weight = train.copy_weight;
        self.maker.set_options(self.options.copies);
    }

    /// The next batch, which is that of step `step`, counted from 0.
    ///
    /// # Errors
    /// When log or journal cannot be read or written, contradict each other, or hold something unusable.
    pub fn next_batch(
        &mut self,
        step: u64,
        records: &dyn Records,
        journal: &mut Journal,
    ) -> Result<Next, TrainerError> {
        let next = self.next_copies(records, journal)?;
        Ok(next.map(|copies| self.batch(step, copies)))
    }

    /// The batch of step `step` from its `copies`.
    pub(crate) fn batch(&self, step: u64, copies: Vec<TrainingCopy>) -> Batch {
        let StreamOptions { targets, loss_norm, micro_batch_tokens, .. } = self.options;
        Batch::new(copies, targets.at(step), loss_norm, micro_batch_tokens)
    }

    /// The copies of the next batch.
    ///
    /// # Errors
    /// As [`Self::next_batch`].
    pub(crate) fn next_copies(
        &mut self,
        records: &dyn Records,
        journal: &mut Journal,
    ) -> Result<Next<Vec<TrainingCopy>>, TrainerError> {
        let mut empty_windows = 0;
        while self.pending.len() < self.options.batch_examples {
            if let Some(copy) = self.next_copy()? {
                self.pending.push(copy);
                store::pulse::beat();
                empty_windows = 0;
                continue;
            }
            match self.draw(records, journal)? {
                Draw::Window(window) => self.open(window)?,
                Draw::Short(short) => return Ok(Next::Short(short)),
                Draw::Exhausted => break,
            }
            empty_windows += 1;
            if empty_windows > EMPTY_WINDOWS_MAX {
                let left_out = self.state.left_out.len();
                return Err(TrainerError::Configuration(format!(
                    "{EMPTY_WINDOWS_MAX} windows in a row have no copy to train on ({left_out} examples are left out)"
                )));
            }
        }
        if self.pending.is_empty() {
            return Ok(Next::End);
        }
        self.commit();
        Ok(Next::Batch(std::mem::take(&mut self.pending)))
    }

    /// The place after the last batch that was handed out.
    #[must_use]
    pub fn state(&self) -> &StreamState {
        &self.state
    }

    /// From the next batch on these examples are left out too.
    pub(crate) fn leave_out(&mut self, sequences: &[SequenceNumber]) {
        self.state.left_out.extend(sequences);
    }

    /// The sampler, which may be ahead of [`Self::state`]: what it has drawn is in memory.
    #[must_use]
    pub fn sampler(&self) -> &SamplerState {
        self.sampler.state()
    }

    /// Draws the next window, as the journal knows it or from what the log holds now.
    fn draw(&mut self, records: &dyn Records, journal: &mut Journal) -> Result<Draw, TrainerError> {
        let number = self.sampler.state().window;
        let (durable, journaled) = (records.durable(), journal.window(number));
        if let Some(settings) = journal.settings_of_window(number) {
            self.form_under(settings);
        }
        if let Some(needed) = journaled.filter(|needed| *needed > durable) {
            let (durable, needed) = (durable.end().0, needed.end().0);
            return Err(TrainerError::LogBehind { durable, needed, witness: format!("the journal, window {number},") });
        }
        let draw = match journaled {
            Some(durable) => {
                let oldest = journal.oldest(number).unwrap_or_default();
                if oldest < records.begin() {
                    return Err(StoreError::Removed { sequence: oldest, begin: records.begin() }.into());
                }
                let begin = journal.begin(number).unwrap_or_default();
                self.sampler.window_again(records, begin, durable, journal.open_inputs(number))?
            }
            None => self.sampler.window(records, durable)?,
        };
        match (&draw, journaled) {
            (Draw::Window(window), None) => {
                let (View { begin, durable, open }, oldest) = (window.view.clone(), window.oldest());
                let (open, state) = (Some(open), window.before.clone());
                let entry = WindowEntry { window: number, begin, durable, oldest, open, state };
                journal.append(JournalEntry::Window(entry))?;
            }
            (Draw::Short(_) | Draw::Exhausted, Some(durable)) => {
                return Err(TrainerError::Configuration(format!(
                    "the journal has window {number} formed from the log up to entry {durable}, but it cannot be formed \
                     again: the journal does not belong to this log, or lacks settings that held then"
                )));
            }
            (Draw::Window(_), Some(_)) | (_, None) => {}
        }
        Ok(draw)
    }

    /// Forms the next window under these settings. What is read of the window before was chosen.
    fn form_under(&mut self, Settings { alpha, train }: &Settings) {
        self.options.sampler.alpha = *alpha;
        self.options.sampler.shuffle_examples = train.shuffle_examples;
        self.options.sampler.max_passes = train.max_passes;
        self.options.sampler.when_short = train.when_short;
        self.sampler.set_options(self.options.sampler.clone());
        self.options.copies.copies = train.copies;
        self.options.copies.best_by = train.best_by;
        self.maker.set_options(self.options.copies);
    }

    /// Chooses and shuffles the copies of a window, and goes to where the stream was left.
    fn open(&mut self, window: Window) -> Result<(), TrainerError> {
        let mut order = Vec::with_capacity(window.examples.len());
        for (at, example) in window.examples.iter().enumerate() {
            let chosen = self.maker.choose(example.entry.sequence, example.pass, record(example)?);
            order.extend(chosen.into_iter().map(|copy| (at, copy)));
            store::pulse::beat();
        }
        let Window { before, examples, .. } = window;
        self.shuffle.shuffle(&mut order, before.window);
        let is_resumed = self.state.sampler.window == before.window;
        let taken = if is_resumed { self.state.copies_taken as usize } else { 0 };
        if taken > order.len() {
            return Err(TrainerError::Configuration(format!(
                "the checkpoint has taken {taken} copies of window {}, which has {}: it belongs to other settings",
                before.window,
                order.len()
            )));
        }
        self.window = Some(OpenWindow { before, examples, order, taken });
        Ok(())
    }

    /// The next copy of the window; `None` at its end.
    fn next_copy(&mut self) -> Result<Option<TrainingCopy>, TrainerError> {
        let Some(window) = &mut self.window else { return Ok(None) };
        while let Some((example, copy)) = window.order.get(window.taken) {
            window.taken += 1;
            let example = &window.examples[*example];
            let sequence = example.entry.sequence;
            if !self.state.left_out.contains(&sequence) {
                return self.maker.make(sequence, example.pass, record(example)?, *copy).map(Some);
            }
        }
        Ok(None)
    }

    /// Moves the state to where the stream is read now.
    fn commit(&mut self) {
        let Some(window) = &self.window else { return };
        if window.taken < window.order.len() {
            self.state.sampler = window.before.clone();
            self.state.copies_taken = window.taken as u64;
        } else {
            self.state.sampler = self.sampler.state().clone();
            self.state.copies_taken = 0;
            self.window = None;
        }
    }
}

fn record(example: &Example) -> Result<&Record, TrainerError> {
    match &example.entry.payload {
        Payload::Record(record) => Ok(record),
        Payload::Skip(_) | Payload::End => {
            let sequence = example.entry.sequence;
            Err(TrainerError::Configuration(format!("entry {sequence} of the log is no record")))
        }
    }
}

#[cfg(test)]
#[path = "copy_stream_tests.rs"]
mod tests;
