//! What the student is distilled from, step by step.
//!
//! A [`TargetForm`] makes a distribution of a teacher's label: which mass goes where ([`KdTarget`]), and at which temperature. A training may
//! have a second form that takes the place of the first from a given step on, at once or little by little
//! ([`LaterTarget`]): a sharp target leaves the plateau of the first steps sooner, an unbiased one has the better end. In between the target is
//! the mixture (1 − s)·first + s·later of both distributions. What a step is distilled from follows from its number and the settings alone.
//! Steps of a release count on from those of its trunk, here too.
//!
//! The temperature T (Hinton et al. 2015, "Distilling the Knowledge in a Neural Network") tempers the teacher alone: p_i ∝ exp(logit_i / T). The
//! student is compared at temperature 1, as it is used, so there is no factor T² to make up for a tempered student. The log
//! holds the log-sum-exp over the whole vocabulary at T = 1 alone; so with `ghost` and `gold-residual` the
//! top-k together keep the mass that they have at T = 1, and T shapes how they share it.

use crate::options::{KdTarget, TrainOptions};
use serde::{Deserialize, Serialize};
use store::Label;

/// How a label becomes a distribution.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TargetForm {
    /// Which mass goes where.
    pub kd_target: KdTarget,
    /// The teacher's temperature; 1: its own probabilities.
    pub temperature: f64,
}

/// What takes the place of the first form.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LaterTarget {
    /// Which mass goes where.
    pub kd_target: KdTarget,
    /// The teacher's temperature.
    pub kd_temperature: f64,
    /// Steps before the first that has something of it.
    pub from_step: u64,
    /// Steps with a mixture of both forms; 0: it takes the first one's place at once.
    pub blend_steps: u64,
}

/// The targets of all steps.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TargetSchedule {
    first: TargetForm,
    later: Option<LaterTarget>,
}

/// The target of one step: one form, or a mixture of two.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Target {
    form: TargetForm,
    /// Another form, and its share of the mixture.
    other: Option<(TargetForm, f64)>,
}

/// A teacher's distribution at the masked positions of a copy.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Distribution {
    /// `[masked, k]`: probabilities of the top-k tokens.
    pub probabilities: Vec<f32>,
    /// `[masked]`: the mass of all other tokens, on whichever of them.
    pub tail_masses: Vec<f32>,
    /// `[masked]`: mass that the gold token has besides.
    pub gold_masses: Vec<f32>,
}

impl TargetSchedule {
    /// That of these options.
    #[must_use]
    pub fn of(train: &TrainOptions) -> Self {
        let first = TargetForm { kd_target: train.kd_target, temperature: train.kd_temperature };
        Self { first, later: train.kd_target_later }
    }

    /// The target of step `step` of the run, counted from 0.
    #[must_use]
    pub fn at(&self, step: u64) -> Target {
        let only = |form| Target { form, other: None };
        let Some(later) = self.later.filter(|later| step >= later.from_step) else { return only(self.first) };
        let form = TargetForm { kd_target: later.kd_target, temperature: later.kd_temperature };
        let done = step - later.from_step;
        if done >= later.blend_steps {
            return only(form);
        }
        let share = (done + 1) as f64 / (later.blend_steps as f64 + 1.0);
        Target { form: self.first, other: Some((form, share)) }
    }
}

impl From<KdTarget> for Target {
    /// At temperature 1.
    fn from(kd_target: KdTarget) -> Self {
        Self { form: TargetForm { kd_target, temperature: 1.0 }, other: None }
    }
}

impl Target {
    /// Whether some mass goes to the gold token.
    #[must_use]
    pub fn uses_gold(&self) -> bool {
        self.has(KdTarget::GoldResidual)
    }

    /// Whether some mass goes to the bucket of all tokens that are not among the top-k. The gold token may be one of them.
    #[must_use]
    pub fn uses_tail(&self) -> bool {
        self.has(KdTarget::Ghost)
    }

    fn has(&self, kd_target: KdTarget) -> bool {
        self.form.kd_target == kd_target || self.other.is_some_and(|(other, _)| other.kd_target == kd_target)
    }

    /// The distribution that it makes of `label`.
    #[must_use]
    pub fn distribution(&self, label: &Label) -> Distribution {
        let one = self.form.distribution(label);
        let Some((form, share)) = self.other else { return one };
        let other = form.distribution(label);
        Distribution {
            probabilities: mix(&one.probabilities, &other.probabilities, share),
            tail_masses: mix(&one.tail_masses, &other.tail_masses, share),
            gold_masses: mix(&one.gold_masses, &other.gold_masses, share),
        }
    }
}

/// (1 − share)·one + share·other.
fn mix(one: &[f32], other: &[f32], share: f64) -> Vec<f32> {
    let mixed = |(one, other): (&f32, &f32)| ((1.0 - share) * f64::from(*one) + share * f64::from(*other)) as f32;
    one.iter().zip(other).map(mixed).collect()
}

impl TargetForm {
    /// Renormalised, it is the softmax of the top logits / T, and nothing is left for other tokens. For the other targets the top-k have their
    /// true mass, and at T = 1 these are the true probabilities.
    fn distribution(&self, label: &Label) -> Distribution {
        let mut distribution =
            Distribution { probabilities: Vec::with_capacity(label.top_logits.len()), ..Distribution::default() };
        let positions = label.top_logits.chunks(label.top_k.max(1)).zip(&label.log_sum_exp);
        for (logits, log_sum_exp) in positions {
            let rest = self.position(logits, *log_sum_exp, &mut distribution.probabilities);
            let to_gold = self.kd_target == KdTarget::GoldResidual;
            distribution.gold_masses.push(if to_gold { rest } else { 0.0 });
            distribution.tail_masses.push(if to_gold { 0.0 } else { rest });
        }
        distribution
    }

    /// Appends the probabilities of one position's top-k; returns the mass of all other tokens.
    fn position(&self, logits: &[f32], log_sum_exp: f32, probabilities: &mut Vec<f32>) -> f32 {
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let below = |logit: &f32| f64::from(*logit) - f64::from(largest);
        let powers: Vec<f64> = logits.iter().map(|logit| libm::exp(below(logit))).collect();
        let top: f64 = powers.iter().sum();
        let all = match self.kd_target {
            KdTarget::Renormalised => top,
            KdTarget::Ghost | KdTarget::GoldResidual => libm::exp(f64::from(log_sum_exp) - f64::from(largest)),
        };
        // Both were rounded when they were stored. Written so that NaN passes.
        let all = if all < top { top } else { all };
        if self.temperature == 1.0 {
            probabilities.extend(powers.iter().map(|power| (power / all) as f32));
        } else {
            let tempered: Vec<f64> = logits.iter().map(|logit| libm::exp(below(logit) / self.temperature)).collect();
            let scale = (top / all) / tempered.iter().sum::<f64>();
            probabilities.extend(tempered.iter().map(|power| (power * scale) as f32));
        }
        ((all - top) / all) as f32
    }
}

#[cfg(test)]
#[path = "target_tests.rs"]
mod tests;
