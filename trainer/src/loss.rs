//! The loss at masked positions, from hidden rows to gradients, without ever holding all logits.
//!
//! L = Σ_i weight_i · (λ · KD_i + (1 − λ) · MLM_i), where for position i with logits x = W·h_i + b, z = log-sum-exp(x):
//!
//! - MLM_i = z − x\[gold\], the cross entropy of the gold label;
//! - KD_i = Σ_j p_j · (z − x\[j\]), the cross entropy from the teacher's distribution p over its top-k to the student's over
//!   the whole union vocabulary.
//!
//! A position whose teacher does not label learns from its gold label alone: λ counts as 0 there.
//!
//! The positions are worked off in pieces ([`rows_per_piece`]): logits of a piece by one matrix product, then each row's
//! loss, then the row is overwritten with dL/dx, from which the gradients of h, W and b follow at once. So the largest
//! intermediate is one piece of logits, and the backward pass needs none of it again.

use crate::slices;
use crate::softmax::{self, Row};
use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

/// Bound on the bytes of a piece's logits (exceeded only where `ROWS_MIN` rows are larger).
const LOGITS_BYTES: usize = 32 << 20;
const ROWS_MIN: usize = 16;
const ROWS_MAX: usize = 512;
/// Numbers per unit of parallel work; a constant, so that results do not depend on the number of threads.
const PIECE: usize = 1 << 14;

/// What the masked positions of a batch are to predict.
#[derive(Clone, Copy, Debug)]
pub struct Targets<'a> {
    /// `[n]`: the token that stood there.
    pub gold_ids: &'a [u32],
    /// k: entries per position.
    pub top_k: usize,
    /// `[n, k]`: the teacher's tokens; an id may come up twice, its probabilities add.
    pub top_ids: &'a [u32],
    /// `[n, k]`: the teacher's probabilities, which sum to 1 per position.
    pub probabilities: &'a [f32],
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
    /// Positions at which the gold token has the highest logit.
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
}

/// Loss and gradients: returns dL/dh `[n, E]` and adds dL/dW to `weight_gradient` `[V·E]`, dL/db to `bias_gradient` `[V]`.
///
/// `hidden` is `[n, E]`, `weight` `[V, E]`, `bias` `[V]`; `lambda` the weight of distillation.
///
/// # Errors
/// When shapes do not agree or an id is not below V.
pub fn linear_cross_entropy(
    hidden: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    targets: &Targets<'_>,
    lambda: f64,
    weight_gradient: &mut [f32],
    bias_gradient: &mut [f32],
) -> Result<(Tensor, LossSums)> {
    let (rows, vocabulary) = (hidden.dim(0)?, weight.dim(0)?);
    targets.validate(rows, vocabulary)?;
    let bias = slices::read(&bias.contiguous()?, <[f32]>::to_vec)?;
    let (weight, hidden) = (weight.detach(), hidden.detach());
    let mut hidden_gradients = Vec::new();
    let mut sums = LossSums::default();
    for (first, count) in pieces(rows, vocabulary) {
        let piece = hidden.narrow(0, first, count)?;
        let logits = piece.matmul(&weight.t()?)?; // [count, V]
        slices::write(&logits, |logits| {
            sums.add(&differentiate(logits, &bias, targets, first, lambda));
            add_column_sums(bias_gradient, logits);
        })?;
        hidden_gradients.push(logits.matmul(&weight)?); // [count, E]
        let outer = logits.t()?.matmul(&piece)?; // [V, E]
        slices::read(&outer.contiguous()?, |outer| add_assign(weight_gradient, outer))?;
    }
    Ok((Tensor::cat(&hidden_gradients, 0)?, sums))
}

/// How the student predicts `gold_ids` `[n]` at `hidden` rows `[n, E]`; arguments as in [`linear_cross_entropy`].
///
/// # Errors
/// When shapes do not agree or an id is not below V.
pub fn score(hidden: &Tensor, weight: &Tensor, bias: &Tensor, gold_ids: &[u32]) -> Result<Vec<Score>> {
    let (rows, vocabulary) = (hidden.dim(0)?, weight.dim(0)?);
    check_ids(gold_ids, rows, vocabulary)?;
    let bias = slices::read(&bias.contiguous()?, <[f32]>::to_vec)?;
    let (weight, hidden) = (weight.detach(), hidden.detach());
    let mut scores = Vec::with_capacity(rows);
    for (first, count) in pieces(rows, vocabulary) {
        let logits = hidden.narrow(0, first, count)?.matmul(&weight.t()?)?; // [count, V]
        let gold_ids = &gold_ids[first..first + count];
        let piece: Vec<Score> = slices::write(&logits, |logits| {
            let rows = logits.par_chunks_mut(vocabulary).zip(gold_ids);
            rows.map(|(logits, gold)| score_row(logits, &bias, *gold as usize)).collect()
        })?;
        scores.extend(piece);
    }
    Ok(scores)
}

/// Positions whose logits over `vocabulary` tokens are held at a time.
#[must_use]
pub fn rows_per_piece(vocabulary: usize) -> usize {
    (LOGITS_BYTES / (4 * vocabulary.max(1))).clamp(ROWS_MIN, ROWS_MAX)
}

/// (first row, rows) of each piece. They are about equal: a product with a single row is slow, and less exact.
fn pieces(rows: usize, vocabulary: usize) -> impl Iterator<Item = (usize, usize)> {
    let count = rows.div_ceil(rows_per_piece(vocabulary)).max(1);
    let size = rows.div_ceil(count).max(1);
    (0..rows).step_by(size).map(move |first| (first, size.min(rows - first)))
}

/// `to[i] += from[i]`.
pub(crate) fn add_assign(to: &mut [f32], from: &[f32]) {
    to.par_chunks_mut(PIECE).zip(from.par_chunks(PIECE)).for_each(|(to, from)| {
        for (to, from) in to.iter_mut().zip(from) {
            *to += from;
        }
    });
}

impl Targets<'_> {
    fn validate(&self, rows: usize, vocabulary: usize) -> Result<()> {
        let entries = rows * self.top_k;
        if self.weights.len() != rows || self.has_teacher.len() != rows {
            bail!("{rows} masked rows, {} weights, {} teacher flags", self.weights.len(), self.has_teacher.len())
        }
        if self.top_ids.len() != entries || self.probabilities.len() != entries {
            let (ids, probabilities) = (self.top_ids.len(), self.probabilities.len());
            bail!("{rows} masked rows with {} labels each, {ids} ids, {probabilities} probabilities", self.top_k)
        }
        check_ids(self.gold_ids, rows, vocabulary)?;
        match self.top_ids.iter().find(|id| **id as usize >= vocabulary) {
            Some(id) => bail!("label id {id}, but the vocabulary has {vocabulary} tokens"),
            None => Ok(()),
        }
    }
}

fn check_ids(gold_ids: &[u32], rows: usize, vocabulary: usize) -> Result<()> {
    if gold_ids.len() != rows {
        bail!("{rows} masked rows, {} gold labels", gold_ids.len())
    }
    match gold_ids.iter().find(|id| **id as usize >= vocabulary) {
        Some(id) => bail!("gold label {id}, but the vocabulary has {vocabulary} tokens"),
        None => Ok(()),
    }
}

/// Overwrites the logits of positions `first..` (before the bias) with their gradients.
fn differentiate(logits: &mut [f32], bias: &[f32], targets: &Targets<'_>, first: usize, lambda: f64) -> LossSums {
    let rows = logits.par_chunks_mut(bias.len()).enumerate();
    let sums: Vec<LossSums> =
        rows.map(|(row, logits)| differentiate_row(logits, bias, targets, first + row, lambda)).collect();
    let mut total = LossSums::default();
    sums.iter().for_each(|sums| total.add(sums));
    total
}

fn differentiate_row(
    logits: &mut [f32],
    bias: &[f32],
    targets: &Targets<'_>,
    position: usize,
    lambda: f64,
) -> LossSums {
    let gold = targets.gold_ids[position] as usize;
    let weight = f64::from(targets.weights[position]);
    let labelled = targets.has_teacher[position];
    let lambda = if labelled { lambda } else { 0.0 };
    let labels = position * targets.top_k..(position + 1) * targets.top_k;
    let labels = || targets.top_ids[labels.clone()].iter().zip(&targets.probabilities[labels.clone()]);

    let max = softmax::add_bias(logits, bias);
    let gold_logit = f64::from(logits[gold]);
    let correct = is_first_max(logits, gold, max);
    let expected_logit: f64 = labels().map(|(id, p)| f64::from(*p) * f64::from(logits[*id as usize])).sum();
    let mass: f64 = labels().map(|(_, p)| f64::from(*p)).sum();
    let Row { log_sum_exp, sum } = softmax::exponentiate(logits, max);

    let mlm = log_sum_exp - gold_logit;
    let kd = if labelled { mass * log_sum_exp - expected_logit } else { 0.0 };
    let mass = if labelled { mass } else { 0.0 };
    // dL/dx = weight · (softmax(x) · (λ · Σp + 1 − λ) − λ · p − (1 − λ) · [gold])
    softmax::scale(logits, (weight * (lambda * mass + 1.0 - lambda) / sum) as f32);
    if labelled {
        labels().for_each(|(id, p)| logits[*id as usize] -= (weight * lambda * f64::from(*p)) as f32);
    }
    logits[gold] -= (weight * (1.0 - lambda)) as f32;
    LossSums {
        loss: weight * (lambda * kd + (1.0 - lambda) * mlm),
        kd,
        mlm,
        correct: u64::from(correct),
        positions: 1,
        labelled: u64::from(labelled),
    }
}

fn score_row(logits: &mut [f32], bias: &[f32], gold: usize) -> Score {
    let max = softmax::add_bias(logits, bias);
    let gold_logit = f64::from(logits[gold]);
    let correct = is_first_max(logits, gold, max);
    Score { loss: softmax::exponentiate(logits, max).log_sum_exp - gold_logit, correct }
}

fn is_first_max(logits: &[f32], gold: usize, max: f32) -> bool {
    logits[gold] == max && !logits[..gold].contains(&max)
}

/// Adds to each of `sums` `[V]` its column of `rows` `[n, V]`, from the first row to the last.
fn add_column_sums(sums: &mut [f32], rows: &[f32]) {
    let columns = sums.len();
    sums.par_chunks_mut(PIECE / 4).enumerate().for_each(|(piece, sums)| {
        let first = piece * (PIECE / 4);
        for row in rows.chunks_exact(columns) {
            for (sum, x) in sums.iter_mut().zip(&row[first..]) {
                *sum += x;
            }
        }
    });
}

#[cfg(test)]
mod tests;
