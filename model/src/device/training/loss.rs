//! The loss at masked positions, and the gradients of the decoder and of the hidden states.

use super::super::calls::{EIGHT, at, n};
use super::super::{DeviceError, Precision};
use super::DeviceTraining;
use super::room::{positions_at_a_time, stride};
use crate::{Dropout, ModelError, PackedBatch};

const LOSS_THREADS: u32 = 256;

/// What the masked positions of a batch are to predict. `n` is their number.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RowTargets {
    /// `[n]`: the token that stood there.
    pub golds: Vec<u32>,
    /// `[n + 1]`: where each position's entries begin.
    pub starts: Vec<u32>,
    /// The teacher's tokens, each once per position; at most [`RowTargets::MOST`] of a position.
    pub ids: Vec<u32>,
    /// Their probabilities, none of them 0.
    pub probabilities: Vec<f32>,
    /// `[n]`: the teacher's mass outside its tokens; 0 where there is no ghost bucket.
    pub tails: Vec<f32>,
    /// `[n]`: the teacher's mass on the gold token besides.
    pub more_of_gold: Vec<f32>,
    /// `[n]`: what the position counts in the batch's loss.
    pub weights: Vec<f32>,
    /// `[n]`: the weight of distillation, 0 where no teacher labelled.
    pub lambdas: Vec<f32>,
}

impl RowTargets {
    /// The most entries of a position.
    pub const MOST: usize = 1024;

    /// Of positions that are only scored: their gold tokens.
    #[must_use]
    pub fn of_gold(golds: &[u32]) -> Self {
        let n = golds.len();
        Self {
            golds: golds.to_vec(),
            starts: vec![0; n + 1],
            tails: vec![0.0; n],
            more_of_gold: vec![0.0; n],
            weights: vec![1.0; n],
            lambdas: vec![0.0; n],
            ..Self::default()
        }
    }

    fn validate(&self, rows: usize, vocabulary: usize) -> Result<(), ModelError> {
        let fail = |reason: String| Err(ModelError::Batch(reason));
        let lists = [&self.tails, &self.more_of_gold, &self.weights, &self.lambdas];
        if self.golds.len() != rows || self.starts.len() != rows + 1 || lists.iter().any(|list| list.len() != rows) {
            return fail(format!("{rows} masked rows, targets of {}", self.golds.len()));
        }
        let ends = self.starts.last().map(|end| *end as usize);
        if self.starts.first() != Some(&0) || ends != Some(self.ids.len()) || self.ids.len() != self.probabilities.len()
        {
            return fail(format!("{} labels, {} probabilities", self.ids.len(), self.probabilities.len()));
        }
        if let Some(many) = self
            .starts
            .windows(2)
            .map(|ends| ends[1].saturating_sub(ends[0]))
            .find(|count| *count as usize > Self::MOST)
        {
            return fail(format!("{many} labels of a position; a GPU takes at most {}", Self::MOST));
        }
        match self.golds.iter().chain(&self.ids).find(|id| **id as usize >= vocabulary) {
            Some(id) => fail(format!("label id {id}, but the vocabulary has {vocabulary} tokens")),
            None => Ok(()),
        }
    }
}

/// What came of a masked position. Losses are in nats, without the position's weight.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PositionOutcome {
    /// Distillation loss; 0 where there is nothing to distil from.
    pub kd: f64,
    /// Loss of the gold label.
    pub mlm: f64,
    /// Whether the gold token has the highest logit (ties to the lower id).
    pub correct: bool,
    /// The token that has.
    pub best_id: u32,
    /// Its probability.
    pub best_probability: f32,
}

impl DeviceTraining {
    /// How the model predicts a batch's masked positions, without dropout.
    ///
    /// # Errors
    /// When the batch does not fit the model or the targets, or the accelerator has no room or fails.
    pub fn score(&mut self, batch: &PackedBatch, targets: &RowTargets) -> Result<Vec<PositionOutcome>, ModelError> {
        self.pass(batch, targets, None, false)
    }

    /// The same with dropout; adds the decoder's gradients to those that have added up so far, and leaves the rest to [`DeviceTraining::backward`]. When there is no room nothing has
    /// been added.
    ///
    /// # Errors
    /// When the batch does not fit the model or the targets, or the accelerator has no room or fails.
    pub fn distil(
        &mut self,
        batch: &PackedBatch,
        targets: &RowTargets,
        dropout: Option<Dropout>,
    ) -> Result<Vec<PositionOutcome>, ModelError> {
        self.pass(batch, targets, dropout, true)
    }

    fn pass(
        &mut self,
        batch: &PackedBatch,
        targets: &RowTargets,
        dropout: Option<Dropout>,
        gradients: bool,
    ) -> Result<Vec<PositionOutcome>, ModelError> {
        targets.validate(batch.masked_rows.len(), self.configuration.vocabulary_size)?;
        self.take(batch, targets.ids.len())?;
        self.dropout = dropout;
        self.room.golds.write(&targets.golds)?;
        self.room.starts.write(&targets.starts)?;
        self.room.ids.write(&targets.ids)?;
        let RowTargets { probabilities, tails, more_of_gold, weights, lambdas, .. } = targets;
        self.room.targets.write(&[&probabilities[..], tails, more_of_gold, weights, lambdas].concat())?;
        self.forward()?;
        for (first, count) in self.chunks() {
            self.loss_of(first, count, targets.ids.len(), gradients)?;
        }
        self.differentiated = gradients;
        Ok(self.outcomes()?)
    }

    /// (first position, positions) whose logits are in memory at a time.
    fn chunks(&self) -> Vec<(usize, usize)> {
        let rows = self.batch.rows;
        let size = positions_at_a_time(self.configuration.vocabulary_size, rows);
        (0..rows).step_by(size).map(|first| (first, size.min(rows - first))).collect()
    }

    fn loss_of(&self, first: usize, count: usize, entries: usize, gradients: bool) -> Result<(), DeviceError> {
        let (c, room, calls, places, rows) =
            (&self.configuration, &self.room, &self.calls, self.places(), self.batch.rows);
        let (vocabulary, columns) = (c.vocabulary_size, c.embedding_size);
        let stride = stride(vocabulary);
        let (weight, bias) = self.layout.decoder();
        let bytes = (first * columns * calls.precision.bytes()) as u64;
        let (hidden, of_hidden) = (room.hidden.at() + bytes, room.of_hidden.at() + bytes);
        let decoder = places.number(weight.start);
        let logits = (room.logits.at(), stride, Precision::F32);
        // What comes behind the table counts nothing: those columns of the gradient are 0.
        let words = self.layout.padded_words(EIGHT);
        calls.multiply_strided([count, columns, words], (hidden, None, false), (decoder, None, true), logits, false)?;
        let of_logits = match calls.precision {
            Precision::F32 => room.logits.at(),
            Precision::Bf16 | Precision::F16 => room.of_logits.at(),
        };
        let target = |list: usize| at(room.targets.at() + 4 * (entries + list * rows + first) as u64);
        let arguments = [
            at(room.logits.at()),
            n(stride),
            at(places.vector(bias.start)),
            n(vocabulary),
            at(room.golds.at() + 4 * first as u64),
            at(room.starts.at() + 4 * first as u64),
            at(room.ids.at()),
            at(room.targets.at()),
            target(0),
            target(1),
            target(2),
            target(3),
            at(room.losses.at() + 16 * first as u64),
            at(room.found.at() + 12 * first as u64),
            at(if gradients { of_logits } else { 0 }),
        ];
        calls.launch("distil", [count as u32, 1, 1], LOSS_THREADS, 0, &arguments)?;
        if !gradients {
            return Ok(());
        }
        let (left, right) = ((of_logits, Some(stride), false), (decoder, None, false));
        calls.multiply_strided([count, words, columns], left, right, (of_hidden, columns, calls.precision), false)?;
        let (left, right) = ((of_logits, Some(stride), true), (hidden, None, false));
        let out = (self.gradient(weight.start), columns, Precision::F32);
        calls.multiply_strided([words, count, columns], left, right, out, true)?;
        let sizes = [count, stride, vocabulary];
        calls.sum_rows((of_logits, 0), None, sizes, room.partial.at(), self.gradient(bias.start))
    }

    fn outcomes(&self) -> Result<Vec<PositionOutcome>, DeviceError> {
        let rows = self.batch.rows;
        let (mut losses, mut found) = (vec![0.0; 2 * rows], vec![0; 3 * rows]);
        self.room.losses.read(&mut losses)?;
        self.room.found.read(&mut found)?;
        let outcomes = losses.chunks_exact(2).zip(found.chunks_exact(3)).map(|(losses, found)| PositionOutcome {
            kd: losses[0],
            mlm: losses[1],
            correct: found[0] != 0,
            best_id: found[1],
            best_probability: f32::from_bits(found[2]),
        });
        Ok(outcomes.collect())
    }
}
