//! An encoder with a task's head, in training.

use super::DownstreamError;
use super::head::{Head, HeadKind, HeadPass};
use super::sequence::{MicroBatch, Sequence, micro_batches};
use crate::optimiser::{self, AdamW, Update};
use model::{Configuration, Dropout, Encoder, Training};
use std::fmt;

/// Tokens of a micro-batch, unless one sequence has more: bounds the memory of activations.
const MICRO_BATCH_TOKENS: usize = 4096;
/// Micro-batches of a step have numbers below this, so that each has dropout masks of its own.
const MICRO_BATCHES_MAX: u64 = 1 << 20;

/// An encoder and a head: parameters, gradients and the optimiser's state of both.
pub struct TaskModel {
    network: Training,
    arena: Vec<f32>,
    gradients: Vec<f32>,
    optimiser: AdamW,
    head: Head,
    head_arena: Vec<f32>,
    head_gradients: Vec<f32>,
    head_optimiser: AdamW,
    /// Whether the network has yet to take over the parameters.
    changed: bool,
    pass: HeadPass,
}

/// The parameters of encoder and head at one time.
#[derive(Clone, Debug, PartialEq)]
pub struct Weights {
    /// The encoder's arena.
    pub encoder: Vec<f32>,
    /// The head's.
    pub head: Vec<f32>,
}

/// A parameter, and its gradient.
#[derive(Clone, Copy, Debug)]
pub struct NamedParameter<'a> {
    /// Hugging Face name.
    pub name: &'a str,
    /// Its dimensions.
    pub shape: &'a [usize],
    /// Its numbers, row after row.
    pub values: &'a [f32],
    /// The gradient accumulated so far.
    pub gradient: &'a [f32],
}

impl TaskModel {
    /// An encoder with a fresh head. `dropout` replaces the rates that the model's folder names, in the head too.
    ///
    /// # Errors
    /// What candle says of a tensor that cannot be read.
    pub fn new(encoder: &Encoder, kind: HeadKind, seed: u64, dropout: Option<f64>) -> Result<Self, DownstreamError> {
        let mut configuration = encoder.configuration.clone();
        if let Some(rate) = dropout {
            (configuration.hidden_dropout, configuration.attention_dropout) = (rate, rate);
            configuration.classifier_dropout = None;
        }
        let network = Training::new(&configuration);
        let arena = network.layout().gather(&encoder.parameters)?;
        let head = Head::new(kind, &configuration);
        let head_arena = head.initialise(encoder, seed)?;
        Ok(Self {
            gradients: vec![0.0; arena.len()],
            optimiser: AdamW::new(arena.len()),
            head_gradients: vec![0.0; head_arena.len()],
            head_optimiser: AdamW::new(head_arena.len()),
            network,
            arena,
            head,
            head_arena,
            changed: true,
            pass: HeadPass::default(),
        })
    }

    /// The encoder's shape.
    #[must_use]
    pub fn configuration(&self) -> &Configuration {
        self.network.configuration()
    }

    /// The head.
    #[must_use]
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// A copy of all parameters.
    #[must_use]
    pub fn weights(&self) -> Weights {
        Weights { encoder: self.arena.clone(), head: self.head_arena.clone() }
    }

    /// Takes parameters over; the optimiser's state stays what it is.
    ///
    /// # Panics
    /// When they are those of another model.
    pub fn set_weights(&mut self, weights: &Weights) {
        self.arena.copy_from_slice(&weights.encoder);
        self.head_arena.copy_from_slice(&weights.head);
        self.changed = true;
    }

    /// The parameters of encoder and head; without those of the encoder's folder that the task does not use.
    pub fn parameters(&self) -> impl Iterator<Item = NamedParameter<'_>> {
        let of_encoder = self.network.layout().slots().iter();
        let of_encoder = of_encoder.filter(|slot| slot.name.starts_with("bert.") || slot.name.starts_with("electra."));
        let of_encoder = of_encoder.map(|slot| (slot, &self.arena, &self.gradients));
        let of_head = self.head.slots().iter().map(|slot| (slot, &self.head_arena, &self.head_gradients));
        of_encoder.chain(of_head).map(|(slot, arena, gradients)| NamedParameter {
            name: &slot.name,
            shape: &slot.shape,
            values: &arena[slot.range.clone()],
            gradient: &gradients[slot.range.clone()],
        })
    }

    /// Adds the gradients of the batch's mean loss (over its targets: words, texts, or both ends of each span), and returns the loss. Masks
    /// of dropout follow from the stream and the step.
    ///
    /// # Errors
    /// When a sequence does not fit the model.
    pub fn accumulate<'a>(
        &mut self,
        batch: impl Iterator<Item = &'a Sequence> + Clone,
        dropout: Option<Dropout>,
    ) -> Result<f64, DownstreamError> {
        let targets: usize = batch.clone().map(|sequence| sequence.targets.len()).sum();
        let weight = 1.0 / targets.max(1) as f64;
        let mut loss = 0.0;
        for (part, number) in micro_batches(batch, MICRO_BATCH_TOKENS).iter().zip(0..) {
            let dropout = dropout.map(|dropout| Dropout { step: dropout.step * MICRO_BATCHES_MAX + number, ..dropout });
            loss += self.accumulate_part(part, weight, dropout)?;
        }
        Ok(loss)
    }

    fn accumulate_part(
        &mut self,
        part: &MicroBatch,
        weight: f64,
        dropout: Option<Dropout>,
    ) -> Result<f64, DownstreamError> {
        self.prepare();
        let rows = &part.packed.masked_rows;
        let hidden = self.network.encode(&self.arena, &part.packed, dropout)?;
        self.head.forward(&self.head_arena, hidden, rows, dropout, &mut self.pass);
        let mut of_logits = std::mem::take(&mut self.pass.logits);
        let loss = match self.head.kind() {
            HeadKind::Spans => span_loss(&mut of_logits, part, weight),
            HeadKind::Tokens(_) | HeadKind::Texts(_) => {
                let rows = of_logits.chunks_exact_mut(self.head.outputs()).zip(&part.targets);
                rows.map(|(row, target)| cross_entropy(row, (0, 1), *target as usize, weight)).sum()
            }
        };
        let (head_arena, head_gradients) = (&self.head_arena, &mut self.head_gradients);
        let of_hidden = self.head.backward(head_arena, &of_logits, rows, dropout, &self.pass, head_gradients);
        self.network.encode_backward(&self.arena, &of_hidden, &mut self.gradients);
        self.pass.logits = of_logits;
        Ok(loss)
    }

    /// Logits `[rows, outputs]` of each sequence, without dropout.
    ///
    /// # Errors
    /// When a sequence does not fit the model.
    pub fn predict(&mut self, sequences: &[Sequence]) -> Result<Vec<Vec<f32>>, DownstreamError> {
        self.prepare();
        let outputs = self.head.outputs();
        let mut predictions = Vec::with_capacity(sequences.len());
        for part in micro_batches(sequences.iter(), MICRO_BATCH_TOKENS) {
            let hidden = self.network.encode(&self.arena, &part.packed, None)?;
            self.head.forward(&self.head_arena, hidden, &part.packed.masked_rows, None, &mut self.pass);
            let mut rest = &self.pass.logits[..];
            for rows in part.rows {
                let (logits, others) = rest.split_at(rows * outputs);
                predictions.push(logits.to_vec());
                rest = others;
            }
        }
        Ok(predictions)
    }

    /// The Euclidean norm of all gradients together.
    #[must_use]
    pub fn gradient_norm(&self) -> f64 {
        let of = optimiser::sum_of_squares;
        (of(&self.gradients) + of(&self.head_gradients)).sqrt()
    }

    /// Moves all parameters along their gradients, which are 0 afterwards.
    pub fn update(&mut self, update: &Update) {
        let slots = self.network.layout().slots();
        self.optimiser.update(&mut self.arena, &mut self.gradients, slots, update);
        self.head_optimiser.update(&mut self.head_arena, &mut self.head_gradients, self.head.slots(), update);
        self.changed = true;
    }

    fn prepare(&mut self) {
        if self.changed {
            self.network.pack(&self.arena);
            self.changed = false;
        }
    }
}

impl fmt::Debug for TaskModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskModel").field("configuration", self.configuration()).field("head", &self.head).finish()
    }
}

/// The loss of the spans of all sequences: cross entropy over a sequence's rows, for both ends. `logits` become their gradient.
fn span_loss(logits: &mut [f32], part: &MicroBatch, weight: f64) -> f64 {
    let mut rest = logits;
    let mut loss = 0.0;
    for (rows, ends) in part.rows.iter().zip(part.targets.chunks_exact(2)) {
        let (of_sequence, others) = rest.split_at_mut(2 * rows);
        for (end, target) in ends.iter().enumerate() {
            loss += cross_entropy(of_sequence, (end, 2), *target as usize, weight);
        }
        rest = others;
    }
    loss
}

/// −weight · ln softmax(values)\[target\] over every `stride`-th value from `first` on, in double precision. These values become the
/// gradient.
fn cross_entropy(values: &mut [f32], (first, stride): (usize, usize), target: usize, weight: f64) -> f64 {
    let of = |values: &[f32]| values[first..].iter().step_by(stride).map(|value| f64::from(*value)).collect::<Vec<_>>();
    let logits = of(values);
    let largest = logits.iter().fold(f64::NEG_INFINITY, |largest, logit| largest.max(*logit));
    let sum: f64 = logits.iter().map(|logit| (logit - largest).exp()).sum();
    for (index, (value, logit)) in values[first..].iter_mut().step_by(stride).zip(&logits).enumerate() {
        let probability = (logit - largest).exp() / sum;
        *value = (weight * (probability - f64::from(u8::from(index == target)))) as f32;
    }
    logits.get(target).map_or(f64::NAN, |logit| weight * (sum.ln() + largest - logit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cross_entropy_of_two() {
        let mut values = [9.0, 0.5, 9.0, 1.5];
        let loss = cross_entropy(&mut values, (1, 2), 1, 2.0);
        assert!((loss - 2.0 * (1.0 + (-1.0_f64).exp()).ln()).abs() < 1e-12);
        let other = 1.0 / (1.0 + 1.0_f32.exp());
        assert!((values[1] - 2.0 * other).abs() < 1e-6 && (values[3] + 2.0 * other).abs() < 1e-6);
        assert_eq!((values[0], values[2]), (9.0, 9.0));
    }
}
