//! One label as whole numbers, within the bounds that compact precision promises.

use super::labels::Numbers;
use super::quantise::{Fineness, STEP, middle, number_of};
use crate::log::error::Damage;
use crate::{ComputedIn, Label, MaskedCopy};

/// No stored log-probability or log-sum-exp is further from the teacher's.
pub(crate) const ERROR_MAX: f64 = 1.0 / 32.0;
/// Kullback–Leibler divergence of the stored distribution from the teacher's, over the top-k and the tail as one, in nats: on average
/// over the positions of a block no more than this.
pub(crate) const DIVERGENCE_MAX: f64 = 2e-4;
/// Rounding may make probabilities add up to this much more than 1: those of labels that were compact before are up to 1/32 too large.
const EXCESS_MAX: f64 = 0.04;
/// A tail that rounding made nothing of counts as this.
const TAIL_MIN: f64 = 1e-9;

/// A label's distribution.
#[derive(Debug, Default)]
pub(crate) struct Distribution {
    /// `[masked, k]`
    log_probabilities: Vec<f64>,
    /// `[masked, k]`
    probabilities: Vec<f64>,
    /// `[masked]`: what is left of 1.
    tails: Vec<f64>,
}

impl Distribution {
    fn of(label: &Label) -> Result<Self, Damage> {
        let mut distribution = Self::default();
        for position in 0..label.positions() {
            let logits = &label.top_logits[position * label.top_k..(position + 1) * label.top_k];
            let log_sum_exp = f64::from(label.log_sum_exp[position]);
            let (mut sum, mut falls, mut before) = (0.0, true, f64::MAX);
            for logit in logits {
                let value = f64::from(*logit) - log_sum_exp;
                let probability = value.exp();
                distribution.log_probabilities.push(value);
                distribution.probabilities.push(probability);
                sum += probability;
                falls &= value <= before && value.is_finite();
                before = value;
            }
            if !(log_sum_exp.is_finite() && falls && sum <= 1.0 + EXCESS_MAX) {
                return Err(Damage::new(format!(
                    "the top-{} at its {position}th masked position are no distribution's largest logits: {logits:?} with \
                     log-sum-exp {log_sum_exp}; compact precision needs that",
                    label.top_k
                )));
            }
            distribution.tails.push((1.0 - sum).max(TAIL_MIN));
        }
        Ok(distribution)
    }
}

/// A copy's numbers, but for the parts of its cells, and the distribution that they stand for.
pub(crate) fn numbers_of(copy: &MaskedCopy) -> Result<(Numbers, Distribution), Damage> {
    let mut numbers = Numbers {
        masked_positions: copy.masked_positions.clone(),
        gold_ids: copy.gold_ids.clone(),
        ..Numbers::default()
    };
    let Some(label) = &copy.label else { return Ok((numbers, Distribution::default())) };
    let distribution = Distribution::of(label)?;
    numbers.top_ids.clone_from(&label.top_ids);
    numbers.cells = distribution.log_probabilities.iter().map(|value| number_of(*value)).collect();
    numbers.parts = vec![0; numbers.cells.len()];
    numbers.cuts = numbers.parts.clone();
    for position in 0..label.positions() {
        let log_sum_exp = label.log_sum_exp[position];
        let steps = (f64::from(log_sum_exp) / f64::from(STEP)).round();
        if steps.abs() > 1e9 {
            return Err(Damage::new(format!("log-sum-exp {log_sum_exp}, which compact precision cannot hold")));
        }
        numbers.log_sum_exp.push(steps as i32);
        let gold = f64::from(label.gold_logits[position]) - f64::from(log_sum_exp);
        if !gold.is_finite() {
            return Err(Damage::new(format!("gold logit {}", label.gold_logits[position])));
        }
        let least = numbers.cells[position * label.top_k..(position + 1) * label.top_k].last().copied().unwrap_or(0);
        numbers.gold_below.push(number_of(gold).saturating_sub(least));
    }
    Ok((numbers, distribution))
}

/// Chooses the parts of all cells at a level; returns the sum of the positions' divergences.
pub(crate) fn refine(distribution: &Distribution, level: u8, numbers: &mut Numbers) -> f64 {
    let positions = distribution.tails.len();
    let top_k = numbers.cells.len().checked_div(positions).unwrap_or(0);
    let mut sum = 0.0;
    for (position, tail) in distribution.tails.iter().enumerate() {
        let top = position * top_k..(position + 1) * top_k;
        let fineness = Fineness::of(&numbers.cells[top.clone()], level);
        let (mut excess, mut divergence) = (0.0, 0.0);
        // From the last rank to the first, each taking over the mass that those before it were given too much or too little.
        for at in top.rev() {
            let (value, probability) = (distribution.log_probabilities[at], distribution.probabilities[at]);
            let cuts = fineness.parts(numbers.cells[at]);
            let (part, stored) = nearest(value, excess / probability, numbers.cells[at], cuts);
            (numbers.cuts[at], numbers.parts[at]) = (cuts, part);
            divergence += probability * (value - stored);
            excess += probability * (stored - value).exp_m1();
        }
        sum += divergence + tail * (tail / (tail - excess).max(TAIL_MIN)).ln();
    }
    sum
}

/// The part of a cell, and its middle, that a value is stored as, if its probability is to be less by this share of it.
fn nearest(value: f64, share: f64, cell: u32, parts: u32) -> (u32, f64) {
    if parts == 1 {
        return (0, middle(cell, 0, 1));
    }
    let width = f64::from(STEP) / f64::from(parts);
    // No further away than the middle of a cell that is not cut would be.
    let reach = f64::from(STEP) / 2.0 - width / 2.0;
    let wanted = value + (-share).max(-0.5).ln_1p().clamp(-reach, reach);
    let part = ((wanted - middle(cell, 0, parts)) / width).round().clamp(0.0, f64::from(parts - 1)) as u32;
    (part, middle(cell, part, parts))
}

/// Whether a log-sum-exp is what [`label_of`] makes.
pub(crate) fn is_on_grid(log_sum_exp: f32) -> bool {
    let steps = (f64::from(log_sum_exp) / f64::from(STEP)).round();
    (steps * f64::from(STEP)) as f32 == log_sum_exp
}

/// The label that the numbers of `masked` positions stand for, without the ids of its top-k, which stay what they are.
pub(crate) fn label_of(numbers: &Numbers, top_k: usize) -> Label {
    let positions = numbers.log_sum_exp.len();
    let mut label = Label {
        top_k,
        top_ids: Vec::new(),
        top_logits: Vec::with_capacity(positions * top_k),
        log_sum_exp: Vec::with_capacity(positions),
        gold_logits: Vec::with_capacity(positions),
        computed_in: ComputedIn::Float32,
    };
    for (position, steps) in numbers.log_sum_exp.iter().enumerate() {
        let top = position * top_k..(position + 1) * top_k;
        let cells = &numbers.cells[top.clone()];
        let log_sum_exp = (f64::from(*steps) * f64::from(STEP)) as f32;
        let logit = |cell: u32, part: u32, cuts: u32| (f64::from(log_sum_exp) + middle(cell, part, cuts)) as f32;
        for at in top.clone() {
            label.top_logits.push(logit(numbers.cells[at], numbers.parts[at], numbers.cuts[at]));
        }
        label.log_sum_exp.push(log_sum_exp);
        let rank = numbers.top_ids[top.clone()].iter().position(|id| *id == numbers.gold_ids[position]);
        let gold = match rank {
            Some(rank) => label.top_logits[top.start + rank],
            None => logit(cells.last().copied().unwrap_or(0).saturating_add(numbers.gold_below[position]), 0, 1),
        };
        label.gold_logits.push(gold);
    }
    label
}

/// Holds a stored label against the teacher's: what is promised is looked at, not assumed.
pub(crate) fn check(label: &Label, stored: &Label) -> Result<(), Damage> {
    let logits = label.top_logits.iter().zip(&stored.top_logits).enumerate();
    let of_top = logits.map(|(at, logits)| (at / label.top_k.max(1), logits));
    let of_gold = label.gold_logits.iter().zip(&stored.gold_logits).enumerate();
    for (position, (logit, stored_logit)) in of_top.chain(of_gold) {
        let (before, after) = (label.log_sum_exp[position], stored.log_sum_exp[position]);
        let apart = (f64::from(*logit) - f64::from(before)) - (f64::from(*stored_logit) - f64::from(after));
        let apart = apart.abs().max((f64::from(before) - f64::from(after)).abs());
        if apart.is_nan() || apart > ERROR_MAX {
            return Err(Damage::new(format!(
                "logit {logit} with log-sum-exp {before} would be stored as {stored_logit} with {after}, which is more than \
                 compact precision allows"
            )));
        }
    }
    Ok(())
}
