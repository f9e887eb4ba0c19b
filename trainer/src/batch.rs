//! The copies of one optimiser step, and the micro-batches in which they are computed.
//!
//! A batch's copies are sorted by length and cut at `micro_batch_tokens`. Every masked position has a weight such that
//! the batch's loss is the weighted sum over all positions of all micro-batches: how the batch was cut does not matter.

use crate::loss::Targets;
use crate::options::LossNorm;
use crate::target::Target;
use crate::training_copy::{LabelledCopy, TrainingCopy};
use model::PackedBatch;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use store::{Label, MaskedCopy, SequenceNumber};

/// What one step trains on.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// Parts, of ascending sequence length.
    pub micro_batches: Vec<MicroBatch>,
    /// The examples whose copies these are, each once, ascending.
    pub sequences: Vec<SequenceNumber>,
    /// Copies of each language.
    pub languages: BTreeMap<Arc<str>, usize>,
    /// Copies.
    pub copies: usize,
    /// Tokens of all copies, \[CLS\] and \[SEP\] included.
    pub tokens: usize,
    /// Masked positions of all copies.
    pub masked_positions: usize,
    /// Of each copy, its tokens and its masked positions.
    pub sizes: Vec<(usize, usize)>,
    /// What teachers had to label for these copies that were not read before.
    pub labelled: Vec<LabelledCopy>,
}

/// Copies that are computed together, and what their masked positions are to predict.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MicroBatch {
    /// The sequences.
    pub packed: PackedBatch,
    /// `[masked]`: the tokens that stood there.
    pub gold_ids: Vec<u32>,
    /// Entries per position, k: the teacher's top-k, and one more if the gold token is given the rest and no other token is.
    pub top_k: usize,
    /// `[masked, k]`: the teacher's tokens; an id may come up twice.
    pub top_ids: Vec<u32>,
    /// `[masked, k]`: the teacher's probabilities; all 0 at positions without a teacher.
    pub probabilities: Vec<f32>,
    /// `[masked]`: the teacher's mass outside `top_ids`.
    pub tail_masses: Vec<f32>,
    /// `[masked]`: mass that the gold token has besides, inside `top_ids` or outside. Empty: none.
    pub gold_masses: Vec<f32>,
    /// `[masked]`: what a position counts in the batch's loss.
    pub weights: Vec<f32>,
    /// `[masked]`: whether a teacher labelled the position.
    pub has_teacher: Vec<bool>,
}

impl Batch {
    /// A batch of `copies`, to be distilled from `target`. A copy longer than `micro_batch_tokens` makes a
    /// micro-batch of its own.
    #[must_use]
    pub fn new(mut copies: Vec<TrainingCopy>, target: Target, loss_norm: LossNorm, micro_batch_tokens: usize) -> Self {
        let mut sequences: Vec<SequenceNumber> = copies.iter().map(|copy| copy.sequence).collect();
        sequences.sort_unstable();
        sequences.dedup();
        let mut languages = BTreeMap::new();
        for copy in &copies {
            *languages.entry(copy.language.clone()).or_default() += 1;
        }
        let parts = arrange(&mut copies, micro_batch_tokens);
        let size = |copy: &TrainingCopy| (copy.copy.token_ids.len(), copy.copy.masked_positions.len());
        let sizes = copies.iter().map(size).collect();
        let labelled = copies.iter().flat_map(|copy| copy.labelled.iter().copied()).collect();
        let weights = position_weights(&copies, loss_norm);
        let members: Vec<(&TrainingCopy, f32)> = copies.iter().zip(weights).collect();
        let micro_batches: Vec<MicroBatch> =
            parts.into_iter().map(|part| MicroBatch::new(&members[part], target)).collect();
        Self {
            sequences,
            languages,
            copies: copies.len(),
            tokens: micro_batches.iter().map(|part| part.packed.token_ids.len()).sum(),
            masked_positions: micro_batches.iter().map(|part| part.gold_ids.len()).sum(),
            micro_batches,
            sizes,
            labelled,
        }
    }
}

impl MicroBatch {
    /// What the loss asks for.
    #[must_use]
    pub fn targets(&self) -> Targets<'_> {
        Targets {
            gold_ids: &self.gold_ids,
            top_k: self.top_k,
            top_ids: &self.top_ids,
            probabilities: &self.probabilities,
            tail_masses: &self.tail_masses,
            gold_masses: &self.gold_masses,
            weights: &self.weights,
            has_teacher: &self.has_teacher,
        }
    }

    /// Its first copies and the others; see [`PackedBatch::cut`].
    pub(crate) fn cut(&self, parts: usize) -> (Self, Self) {
        let (low, high) = self.packed.cut(parts);
        let rows = low.masked_rows.len();
        let part = |packed: PackedBatch, from: usize, to: usize| {
            let (first, end) = (from * self.top_k, to * self.top_k);
            let masses = |masses: &[f32]| masses.get(from..to).unwrap_or_default().to_vec();
            Self {
                packed,
                gold_ids: self.gold_ids[from..to].to_vec(),
                top_k: self.top_k,
                top_ids: self.top_ids[first..end].to_vec(),
                probabilities: self.probabilities[first..end].to_vec(),
                tail_masses: masses(&self.tail_masses),
                gold_masses: masses(&self.gold_masses),
                weights: self.weights[from..to].to_vec(),
                has_teacher: self.has_teacher[from..to].to_vec(),
            }
        };
        (part(low, 0, rows), part(high, rows, self.gold_ids.len()))
    }

    /// So many parts, one after another, with about as many tokens in each; the last ones may be empty.
    pub(crate) fn pieces(&self, count: usize) -> Vec<Self> {
        let (mut pieces, mut rest) = (Vec::new(), self.clone());
        for parts in (2..=count).rev() {
            let (low, high) = rest.cut(parts);
            pieces.push(low);
            rest = high;
        }
        pieces.push(rest);
        pieces
    }

    /// Packs copies with the weight of each one's positions.
    pub(crate) fn new(members: &[(&TrainingCopy, f32)], target: Target) -> Self {
        let labels = members.iter().filter_map(|(copy, _)| copy.copy.label.as_ref());
        let gold = usize::from(gold_is_entry(target));
        let top_k = labels.map(|label| label.top_k + gold).max().unwrap_or(0);
        let mut part = Self { top_k, ..Self::default() };
        for (copy, weight) in members {
            part.push(&copy.copy, *weight, target);
        }
        part
    }

    fn push(&mut self, copy: &MaskedCopy, weight: f32, target: Target) {
        let first_row = self.packed.token_ids.len() as u32;
        self.packed.token_ids.extend_from_slice(&copy.token_ids);
        self.packed.lengths.push(copy.token_ids.len());
        self.packed.masked_rows.extend(copy.masked_positions.iter().map(|position| first_row + position));
        self.gold_ids.extend_from_slice(&copy.gold_ids);
        let masked = copy.masked_positions.len();
        self.weights.extend(std::iter::repeat_n(weight, masked));
        self.has_teacher.extend(std::iter::repeat_n(copy.label.is_some(), masked));
        match &copy.label {
            Some(label) => self.push_label(label, &copy.gold_ids, target),
            None => self.fill_entries(self.gold_ids.len()),
        }
        if target.uses_gold() && !gold_is_entry(target) {
            self.gold_masses.resize(self.gold_ids.len(), 0.0);
        }
    }

    fn push_label(&mut self, label: &Label, gold_ids: &[u32], target: Target) {
        let distribution = target.distribution(label);
        let rests = distribution.tail_masses.iter().zip(&distribution.gold_masses);
        for (position, (gold, (tail_mass, gold_mass))) in gold_ids.iter().zip(rests).enumerate() {
            let entries = position * label.top_k..(position + 1) * label.top_k;
            self.top_ids.extend_from_slice(&label.top_ids[entries.clone()]);
            self.probabilities.extend_from_slice(&distribution.probabilities[entries]);
            if gold_is_entry(target) {
                self.top_ids.push(*gold);
                self.probabilities.push(*gold_mass);
            } else if target.uses_gold() {
                self.gold_masses.push(*gold_mass);
            }
            self.tail_masses.push(*tail_mass);
            // A teacher with fewer tokens than k gives fewer entries; the rest counts nothing.
            self.fill_entries(self.tail_masses.len());
        }
    }

    /// Fills up with entries that count nothing, to `masked` positions.
    fn fill_entries(&mut self, masked: usize) {
        self.top_ids.resize(masked * self.top_k, 0);
        self.probabilities.resize(masked * self.top_k, 0.0);
        self.tail_masses.resize(masked, 0.0);
    }
}

/// Whether the gold token's mass is one more entry of a position. An entry is taken out of the tail, which must not happen where the tail has
/// mass of its own: there it is kept apart.
fn gold_is_entry(target: Target) -> bool {
    target.uses_gold() && !target.uses_tail()
}

/// Puts copies into the order in which they are computed, and says which ones make a micro-batch.
pub(crate) fn arrange(copies: &mut [TrainingCopy], micro_batch_tokens: usize) -> Vec<Range<usize>> {
    // The sort is stable, so the order among equals is that of the stream.
    copies.sort_by_key(|copy| copy.copy.token_ids.len());
    let mut parts: Vec<Range<usize>> = Vec::new();
    let mut tokens = 0;
    for (at, copy) in copies.iter().enumerate() {
        let length = copy.copy.token_ids.len();
        match parts.last_mut() {
            Some(part) if tokens + length <= micro_batch_tokens => part.end = at + 1,
            _ => {
                parts.push(at..at + 1);
                tokens = 0;
            }
        }
        tokens += length;
    }
    parts
}

/// `[copies]`: what each masked position of a copy counts in the batch's loss, so that the loss is the weighted sum over
/// all positions. With w the weight of a position's copy:
///
/// - [`LossNorm::Batch`]: w / Σ w over the batch's positions, the weighted mean;
/// - [`LossNorm::Language`]: w / Σ w over the positions of its language, the paper's sum of per-language means.
#[must_use]
pub fn position_weights(copies: &[TrainingCopy], loss_norm: LossNorm) -> Vec<f32> {
    let group = |copy: &TrainingCopy| match loss_norm {
        LossNorm::Batch => Arc::from(""),
        LossNorm::Language => copy.language.clone(),
    };
    let mut sums: BTreeMap<Arc<str>, f64> = BTreeMap::new();
    for copy in copies {
        *sums.entry(group(copy)).or_default() += copy.weight * copy.copy.masked_positions.len() as f64;
    }
    let share = |copy: &TrainingCopy| match sums.get(&group(copy)) {
        Some(sum) if *sum > 0.0 => (copy.weight / sum) as f32,
        _ => 0.0,
    };
    copies.iter().map(share).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::loss::{Decoder, DecoderGradients, Scratch, explain, linear_cross_entropy};
    use crate::options::{KdTarget, TrainOptions};
    use crate::records::memory::copy;
    use crate::target::{LaterTarget, TargetSchedule};
    use model::random::Philox;

    fn training_copy(sequence: u64, language: &str, weight: f64, copy: MaskedCopy) -> TrainingCopy {
        let (sequence, labelled) = (SequenceNumber(sequence), Vec::new());
        TrainingCopy { sequence, pass: 0, language: language.into(), weight, copy, labelled }
    }

    /// As [`copy`], with `masked` positions.
    fn masked(length: u32, first_id: u32, masked: usize, labelled: bool) -> MaskedCopy {
        let mut copy = copy(0, length, first_id, labelled.then_some(1.0));
        copy.masked_positions = (1..=masked as u32).collect();
        copy.gold_ids = vec![first_id; masked];
        if let Some(label) = &mut copy.label {
            label.top_ids = label.top_ids.repeat(masked);
            label.top_logits = label.top_logits.repeat(masked);
            label.log_sum_exp = label.log_sum_exp.repeat(masked);
            label.gold_logits = label.gold_logits.repeat(masked);
        }
        copy
    }

    #[test]
    fn copies_are_packed_by_length_and_cut_by_tokens() {
        let lengths = [5, 3, 9, 3, 4, 12];
        let copies: Vec<_> = lengths
            .iter()
            .enumerate()
            .map(|(at, length)| training_copy(at as u64 / 2, "en", 1.0, copy(0, *length, 10 * at as u32, Some(1.0))))
            .collect();
        let batch = Batch::new(copies, KdTarget::Renormalised.into(), LossNorm::Batch, 10);
        let parts: Vec<_> = batch.micro_batches.iter().map(|part| part.packed.lengths.clone()).collect();
        assert_eq!(parts, [vec![3, 3, 4], vec![5], vec![9], vec![12]]);
        assert_eq!((batch.copies, batch.tokens, batch.masked_positions), (6, 36, 6));
        assert_eq!(batch.sequences, [0, 1, 2].map(SequenceNumber));
        assert_eq!(batch.languages, BTreeMap::from([("en".into(), 6)]));
        let first = &batch.micro_batches[0];
        assert_eq!(first.packed.token_ids, [10, 11, 12, 30, 31, 32, 40, 41, 42, 43]);
        assert_eq!(first.packed.masked_rows, [1, 4, 7]);
        assert_eq!((first.gold_ids.clone(), first.top_k), (vec![10, 30, 40], 2));
        assert_eq!(first.top_ids, [10, 11, 30, 31, 40, 41]);
        assert_eq!(first.probabilities, [0.5; 6]);
    }

    #[test]
    fn copies_without_labels_have_gold_alone() {
        let mut narrow = copy(0, 4, 7, Some(1.0));
        let label = narrow.label.as_mut().unwrap();
        (label.top_k, label.top_ids, label.top_logits) = (1, vec![7], vec![0.0]);
        let copies = [copy(0, 4, 1, None), copy(1, 4, 3, Some(1.0)), narrow].map(|c| training_copy(0, "en", 1.0, c));
        let batch = Batch::new(copies.to_vec(), KdTarget::Renormalised.into(), LossNorm::Batch, 100);
        let part = &batch.micro_batches[0];
        assert_eq!(part.has_teacher, [false, true, true]);
        assert_eq!(part.probabilities, [0.0, 0.0, 0.5, 0.5, 1.0, 0.0]);
        assert_eq!(part.top_ids[2..5], [3, 4, 7]);
        let gold_alone = Batch::new(vec![copies[0].clone()], KdTarget::GoldResidual.into(), LossNorm::Batch, 100);
        assert_eq!((gold_alone.micro_batches[0].top_k, gold_alone.micro_batches[0].top_ids.len()), (0, 0));
    }

    #[test]
    fn the_rest_of_the_mass_goes_where_the_target_says() {
        // The copies' top two have 2 · e^1 of e^(2 + loss).
        let labelled = copy(0, 4, 7, Some(0.5));
        let mut narrow = copy(0, 4, 3, Some(1.0));
        let label = narrow.label.as_mut().unwrap();
        (label.top_k, label.top_ids, label.top_logits) = (1, vec![5], vec![3.0]);
        let copies = [labelled, copy(0, 4, 1, None), narrow].map(|c| training_copy(0, "en", 1.0, c));
        let p = (-1.5_f32).exp();
        for (kd_target, ids, probabilities, tails) in [
            (KdTarget::Renormalised, vec![7, 8, 0, 0, 5, 0], vec![0.5, 0.5, 0.0, 0.0, 1.0, 0.0], [0.0; 3]),
            (KdTarget::Ghost, vec![7, 8, 0, 0, 5, 0], vec![p, p, 0.0, 0.0, 1.0, 0.0], [1.0 - 2.0 * p, 0.0, 0.0]),
            (
                KdTarget::GoldResidual,
                vec![7, 8, 7, 0, 0, 0, 5, 3, 0],
                vec![p, p, 1.0 - 2.0 * p, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0],
                [0.0; 3],
            ),
        ] {
            let batch = Batch::new(copies.to_vec(), kd_target.into(), LossNorm::Batch, 100);
            let part = &batch.micro_batches[0];
            assert_eq!((part.top_k, &part.top_ids), (ids.len() / 3, &ids), "{kd_target:?}");
            let pairs = part.probabilities.iter().zip(&probabilities).chain(part.tail_masses.iter().zip(&tails));
            for (found, expected) in pairs {
                assert!((found - expected).abs() < 1e-6, "{kd_target:?}: {part:?}");
            }
            assert_eq!((part.probabilities.len(), part.tail_masses.len()), (probabilities.len(), 3));
        }
    }

    /// Loss, and gradients of the bias, the weights and the hidden rows, of `copies` distilled from `target`.
    fn loss_and_gradients(copies: &[TrainingCopy], target: Target, lambda: f64) -> Vec<f64> {
        let batch = Batch::new(copies.to_vec(), target, LossNorm::Batch, 100);
        let part = &batch.micro_batches[0];
        let random = Philox::new(9, "blend", &[]);
        let numbers = |count: u64, row: u64| (0..count).map(|at| random.normal(at, row) as f32).collect::<Vec<f32>>();
        let (hidden, weight, bias) = (numbers(part.gold_ids.len() as u64 * 2, 0), numbers(32, 1), numbers(16, 2));
        let decoder = Decoder { weight: &weight, bias: &bias, embedding_size: 2 };
        let (mut of_weight, mut of_bias, mut of_hidden) = ([0.0; 32], [0.0; 16], vec![0.0; hidden.len()]);
        let gradients = DecoderGradients { weight: &mut of_weight, bias: &mut of_bias };
        let scratch = &mut Scratch::default();
        let sums = linear_cross_entropy(decoder, &hidden, &part.targets(), lambda, gradients, &mut of_hidden, scratch);
        let sums = sums.unwrap();
        let explained = explain(decoder, &hidden, &part.targets(), scratch).unwrap();
        assert!((explained.iter().map(|position| position.kd).sum::<f64>() - sums.kd).abs() < 1e-9);
        let gradients = of_bias.iter().chain(&of_weight).chain(&of_hidden).map(|x| f64::from(*x));
        [sums.loss, sums.kd, sums.mlm].into_iter().chain(gradients).collect()
    }

    #[test]
    fn a_blend_has_the_blended_loss_and_gradients() {
        // Gold labels inside the top two, outside, and without a teacher; e^1.5 of e^2 is not in the top two.
        let mut outside = copy(0, 4, 3, Some(0.5));
        outside.gold_ids = vec![12];
        let mut narrow = copy(0, 4, 9, Some(0.5));
        let label = narrow.label.as_mut().unwrap();
        (label.top_k, label.top_ids, label.top_logits) = (1, vec![5], vec![0.0]);
        let copies = [copy(0, 4, 7, Some(0.5)), outside, copy(0, 4, 1, None), narrow];
        let copies = copies.map(|c| training_copy(0, "en", 1.0, c));
        let all = [KdTarget::Renormalised, KdTarget::Ghost, KdTarget::GoldResidual];
        let pairs = all.into_iter().flat_map(|first| all.map(|later| (first, later)));
        for ((first, kd_target), lambda) in pairs.flat_map(|pair| [(pair, 1.0), (pair, 0.3)]) {
            let later = LaterTarget { kd_target, kd_temperature: 1.0, from_step: 0, blend_steps: 3 };
            let train = TrainOptions { kd_target: first, kd_target_later: Some(later), ..TrainOptions::default() };
            let [one, other] = [first, kd_target].map(|form| loss_and_gradients(&copies, form.into(), lambda));
            for (step, share) in [(0, 0.25), (1, 0.5), (2, 0.75)] {
                let found = loss_and_gradients(&copies, TargetSchedule::of(&train).at(step), lambda);
                for (at, (found, (one, other))) in found.iter().zip(one.iter().zip(&other)).enumerate() {
                    let expected = (1.0 - share) * one + share * other;
                    let what = format!("{first:?} to {kd_target:?}, λ {lambda}, step {step}, number {at}");
                    assert!((found - expected).abs() < 2e-6, "{what}: {found}, not {expected}");
                }
            }
        }
    }

    #[test]
    fn positions_weigh_by_copy_and_norm() {
        let copies = [
            training_copy(0, "en", 1.0, masked(6, 0, 4, true)),
            training_copy(1, "en", 0.5, masked(6, 0, 2, true)),
            training_copy(1, "de", 0.5, masked(6, 0, 2, false)),
        ];
        for (loss_norm, expected, total) in [
            (LossNorm::Batch, [1.0 / 6.0, 0.5 / 6.0, 0.5 / 6.0], 1.0),
            (LossNorm::Language, [1.0 / 5.0, 0.5 / 5.0, 0.5], 2.0),
        ] {
            let weights = position_weights(&copies, loss_norm);
            for (weight, expected) in weights.iter().zip(expected) {
                assert!((weight - expected).abs() < 1e-7, "{loss_norm:?}: {weights:?}");
            }
            // However the batch is cut.
            for micro_batch_tokens in [1, 12, 100] {
                let batch = Batch::new(copies.to_vec(), KdTarget::Ghost.into(), loss_norm, micro_batch_tokens);
                let parts = batch.micro_batches.iter().flat_map(|part| &part.weights);
                assert!((parts.sum::<f32>() - total).abs() < 1e-6);
            }
        }
    }
}
