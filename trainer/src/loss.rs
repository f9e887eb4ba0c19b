//! The loss at masked positions, from hidden rows to gradients, without ever holding the logits of a batch: at most max(128 MiB, 192 × V × 4 bytes) of
//! them at a time.
//!
//! L = Σ_i weight_i · (λ · KD_i + (1 − λ) · MLM_i), where for position i with logits x = W·h_i + b, z = log-sum-exp(x):
//!
//! - MLM_i = z − x\[gold\], the cross entropy of the gold label;
//! - KD_i = Σ_j p_j · (z − x\[j\]) + r · (z − z_tail) + g · (z − x\[gold\]), the cross entropy from the teacher's distribution to the student's
//!   over the whole union vocabulary. p is the teacher's distribution over its tokens T, r the mass in its ghost bucket, if
//!   it has one, and z_tail the log-sum-exp over all tokens that are not in T: the student's mass there is exp(z_tail − z).
//!   g is mass that the gold token has besides, whether it is in T or not: it does not take the token out of the bucket.
//!
//! A position whose teacher does not label learns from its gold label alone: λ counts as 0 there.
//!
//! With q = softmax(x) and A = λ · (Σp + r + g) + 1 − λ, the gradient of a position of weight 1 is
//!
//! ```text
//! dL/dx[j] = A · q_j − λ · p_j                        − (1 − λ + λ · g) · [j = gold]    for j in T
//! dL/dx[j] = A · q_j − λ · r · exp(x_j − z_tail)      − (1 − λ + λ · g) · [j = gold]    elsewhere
//! ```
//!
//! The positions are worked off in chunks, the vocabulary in tiles of rows of W, which threads share out ([`chunk`]). The
//! logits of a chunk `[V, positions]` are overwritten with exponentials, and those with gradients, from which the gradients
//! of h, W and b follow at once. How the work is cut depends on shapes alone, and every sum has a fixed order: results do
//! not depend on the number of threads.

mod chunk;
mod picks;
mod positions;
mod sweep;

use crate::TrainerError;
use chunk::{Chunk, Cut};
use picks::Picks;
use positions::Positions;

pub use chunk::Scratch;

/// What the masked positions of a batch are to predict.
#[derive(Clone, Copy, Debug)]
pub struct Targets<'a> {
    /// `[n]`: the token that stood there.
    pub gold_ids: &'a [u32],
    /// k: entries per position.
    pub top_k: usize,
    /// `[n, k]`: the teacher's tokens; an id may come up twice, its probabilities add.
    pub top_ids: &'a [u32],
    /// `[n, k]`: the teacher's probabilities. An entry of probability 0 counts as absent.
    pub probabilities: &'a [f32],
    /// `[n]`: the teacher's mass outside its tokens, which the student is to have outside them too, on whichever tokens (a
    /// ghost bucket). Empty: there is none.
    pub tail_masses: &'a [f32],
    /// `[n]`: the teacher's mass on the gold token besides, which leaves `tail_masses` theirs. Empty: there is none.
    pub gold_masses: &'a [f32],
    /// `[n]`: what the position counts in the batch's loss.
    pub weights: &'a [f32],
    /// `[n]`: whether a teacher labelled the position.
    pub has_teacher: &'a [bool],
}

/// Sums over masked positions. `loss` is weighted, the others are plain sums in nats.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LossSums {
    /// What is minimised.
    pub loss: f64,
    /// Distillation loss of the labelled positions.
    pub kd: f64,
    /// Loss of the gold labels.
    pub mlm: f64,
    /// Positions at which the gold token has the highest logit (ties to the lower id).
    pub correct: u64,
    /// Masked positions.
    pub positions: u64,
    /// Those that a teacher labelled.
    pub labelled: u64,
}

impl LossSums {
    /// Adds the sums of another micro-batch.
    pub fn add(&mut self, other: &Self) {
        self.loss += other.loss;
        self.kd += other.kd;
        self.mlm += other.mlm;
        self.correct += other.correct;
        self.positions += other.positions;
        self.labelled += other.labelled;
    }

    /// Mean distillation loss of the labelled positions; 0 if there are none.
    #[must_use]
    pub fn mean_kd(&self) -> f64 {
        self.kd / self.labelled.max(1) as f64
    }

    /// Mean loss of the gold labels.
    #[must_use]
    pub fn mean_mlm(&self) -> f64 {
        self.mlm / self.positions.max(1) as f64
    }
}

/// The student's prediction at one position against the gold label.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Score {
    /// Cross entropy of the gold label, in nats.
    pub loss: f64,
    /// Whether the gold token has the highest logit (ties to the lower id).
    pub correct: bool,
    /// The token that the student holds the most likely.
    pub best_id: u32,
    /// Its probability.
    pub best_probability: f64,
}

/// One masked position by itself. Losses are in nats, without the position's weight.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PositionLoss {
    /// Distillation loss; 0 where no teacher labelled.
    pub kd: f64,
    /// Loss of the gold label.
    pub mlm: f64,
    /// The token that the student holds the most likely.
    pub best_id: u32,
    /// Its probability.
    pub best_probability: f64,
}

/// The last layer, from hidden rows to logits: x = W·h + b.
#[derive(Clone, Copy, Debug)]
pub struct Decoder<'a> {
    /// `[V, E]`: W.
    pub weight: &'a [f32],
    /// `[V]`: b.
    pub bias: &'a [f32],
    /// E: the length of a hidden row.
    pub embedding_size: usize,
}

/// Where the decoder's gradients are added to.
#[derive(Debug)]
pub struct DecoderGradients<'a> {
    /// `[V, E]`: dL/dW.
    pub weight: &'a mut [f32],
    /// `[V]`: dL/db.
    pub bias: &'a mut [f32],
}

/// Loss and gradients at the masked positions with hidden rows `hidden` `[n, E]`. The decoder's gradients are added to
/// `gradients`; `of_hidden` `[n, E]` is overwritten with dL/dh. `lambda` is the weight of distillation; `scratch` keeps its
/// buffers from one call to the next.
///
/// A logit that is NaN or +∞, or −∞ at a label, ends as a loss that is not finite.
///
/// # Errors
/// When shapes do not agree or an id is not below V; nothing has been written then.
pub fn linear_cross_entropy(
    decoder: Decoder<'_>,
    hidden: &[f32],
    targets: &Targets<'_>,
    lambda: f64,
    gradients: DecoderGradients<'_>,
    of_hidden: &mut [f32],
    scratch: &mut Scratch,
) -> Result<LossSums, TrainerError> {
    let n = decoder.rows(hidden)?;
    targets.validate(n, decoder.bias.len())?;
    if gradients.weight.len() != decoder.weight.len() || gradients.bias.len() != decoder.bias.len() {
        return Err(disagree(format!(
            "a decoder of {} weights and {} biases, buffers for {} and {} gradients",
            decoder.weight.len(),
            decoder.bias.len(),
            gradients.weight.len(),
            gradients.bias.len()
        )));
    }
    if of_hidden.len() != hidden.len() {
        return Err(disagree(format!("{} numbers in hidden rows, {} gradients", hidden.len(), of_hidden.len())));
    }
    let mut sums = LossSums::default();
    for (first, count) in Cut::chunks(scratch.limits, n, decoder.bias.len()) {
        let rows = first * decoder.embedding_size..(first + count) * decoder.embedding_size;
        let mut picks = Picks::of_targets(targets, first, count);
        let mut chunk = Chunk::new(decoder, &hidden[rows.clone()], count, scratch);
        chunk.exponentiate(&mut picks);
        let positions = Positions::combine(&chunk.tiles(), &picks);
        let coefficients = positions.differentiate(&mut picks, targets, first, lambda, &mut sums);
        chunk.differentiate(&coefficients, &picks, gradients.weight, gradients.bias, &mut of_hidden[rows]);
    }
    Ok(sums)
}

/// How the student predicts `gold_ids` `[n]` at hidden rows `hidden` `[n, E]`.
///
/// # Errors
/// When shapes do not agree or an id is not below V.
pub fn score(
    decoder: Decoder<'_>,
    hidden: &[f32],
    gold_ids: &[u32],
    scratch: &mut Scratch,
) -> Result<Vec<Score>, TrainerError> {
    let n = decoder.rows(hidden)?;
    check_gold(gold_ids, n, decoder.bias.len())?;
    let mut scores = Vec::with_capacity(n);
    for (first, count) in Cut::chunks(scratch.limits, n, decoder.bias.len()) {
        let rows = first * decoder.embedding_size..(first + count) * decoder.embedding_size;
        let mut picks = Picks::of_gold(&gold_ids[first..first + count]);
        let mut chunk = Chunk::new(decoder, &hidden[rows], count, scratch);
        chunk.exponentiate(&mut picks);
        scores.extend(Positions::combine(&chunk.tiles(), &picks).scores(&chunk));
    }
    Ok(scores)
}

/// Losses and the student's best guess at each of the masked positions with hidden rows `hidden` `[n, E]`.
///
/// # Errors
/// When shapes do not agree or an id is not below V.
pub fn explain(
    decoder: Decoder<'_>,
    hidden: &[f32],
    targets: &Targets<'_>,
    scratch: &mut Scratch,
) -> Result<Vec<PositionLoss>, TrainerError> {
    let n = decoder.rows(hidden)?;
    targets.validate(n, decoder.bias.len())?;
    let mut explained = Vec::with_capacity(n);
    for (first, count) in Cut::chunks(scratch.limits, n, decoder.bias.len()) {
        let rows = first * decoder.embedding_size..(first + count) * decoder.embedding_size;
        let mut picks = Picks::of_targets(targets, first, count);
        let mut chunk = Chunk::new(decoder, &hidden[rows], count, scratch);
        chunk.exponentiate(&mut picks);
        let positions = Positions::combine(&chunk.tiles(), &picks);
        explained.extend(positions.explain(&picks, targets, first, &chunk));
    }
    Ok(explained)
}

impl Decoder<'_> {
    /// n: the rows in `hidden`, after all shapes were checked.
    fn rows(&self, hidden: &[f32]) -> Result<usize, TrainerError> {
        let (size, vocabulary) = (self.embedding_size, self.bias.len());
        if size == 0 || vocabulary == 0 || self.weight.len() != vocabulary * size {
            let weights = self.weight.len();
            return Err(disagree(format!("a decoder of {weights} weights and {vocabulary} biases, rows of {size}")));
        }
        if !hidden.len().is_multiple_of(size) {
            return Err(disagree(format!("{} numbers are no rows of {size}", hidden.len())));
        }
        Ok(hidden.len() / size)
    }
}

impl Targets<'_> {
    fn validate(&self, rows: usize, vocabulary: usize) -> Result<(), TrainerError> {
        let entries = rows * self.top_k;
        if self.weights.len() != rows || self.has_teacher.len() != rows {
            let (weights, flags) = (self.weights.len(), self.has_teacher.len());
            return Err(disagree(format!("{rows} masked rows, {weights} weights, {flags} teacher flags")));
        }
        if self.top_ids.len() != entries || self.probabilities.len() != entries {
            let (ids, probabilities) = (self.top_ids.len(), self.probabilities.len());
            return Err(disagree(format!(
                "{rows} masked rows with {} labels each, {ids} ids, {probabilities} probabilities",
                self.top_k
            )));
        }
        for (masses, what) in [(self.tail_masses, "tail"), (self.gold_masses, "gold")] {
            if !masses.is_empty() && masses.len() != rows {
                return Err(disagree(format!("{rows} masked rows, {} {what} masses", masses.len())));
            }
        }
        check_gold(self.gold_ids, rows, vocabulary)?;
        match self.top_ids.iter().find(|id| **id as usize >= vocabulary) {
            Some(id) => Err(disagree(format!("label id {id}, but the vocabulary has {vocabulary} tokens"))),
            None => Ok(()),
        }
    }

    /// The teacher's mass outside its tokens at `position`.
    fn tail_mass(&self, position: usize) -> f64 {
        self.tail_masses.get(position).map_or(0.0, |mass| f64::from(*mass))
    }

    /// The teacher's mass on the gold token at `position` that no entry has.
    fn gold_mass(&self, position: usize) -> f64 {
        let mass = self.gold_masses.get(position).filter(|_| self.has_teacher[position]);
        mass.map_or(0.0, |mass| f64::from(*mass))
    }
}

fn check_gold(gold_ids: &[u32], rows: usize, vocabulary: usize) -> Result<(), TrainerError> {
    if gold_ids.len() != rows {
        return Err(disagree(format!("{rows} masked rows, {} gold labels", gold_ids.len())));
    }
    match gold_ids.iter().find(|id| **id as usize >= vocabulary) {
        Some(id) => Err(disagree(format!("gold label {id}, but the vocabulary has {vocabulary} tokens"))),
        None => Ok(()),
    }
}

fn disagree(what: String) -> TrainerError {
    TrainerError::Configuration(format!("the loss cannot be computed: {what}"))
}

#[cfg(test)]
mod tests;
