//! What changes from step to step: the learning rate and λ. Steps count from 0.
//!
//! | schedule | learning rate | λ |
//! | --- | --- | --- |
//! | [`Schedule::Linear`] | warm-up, then linearly to 0 at `steps` | `lambda_start` → `lambda_end` over `steps` |
//! | [`Schedule::Trunk`] | warm-up, then constant, for ever | `lambda_start` → `lambda_floor` over `lambda_steps`, then constant |
//! | [`Schedule::CoolDown`] | from the trunk's linearly to 0 | from the trunk's to `lambda_end` |
//!
//! How λ gets from one end to the other is a [`LambdaSchedule`]: linearly unless something else is asked for.
//!
//! A trunk has no end that it must be told beforehand; what it has learned is brought to its best by a cool-down, which is
//! made beside it as often as one likes. The floor of λ is above 0, so that a teacher that comes late still teaches.

use crate::options::TrainOptions;
use serde::{Deserialize, Serialize};

/// What learning rate and λ follow.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Schedule {
    /// Both end with the last step.
    Linear,
    /// Both stay what they are, for ever.
    Trunk {
        /// Steps over which λ goes from `lambda_start` to the floor; 0: it is there from the first step.
        lambda_steps: u64,
        /// λ from then on.
        lambda_floor: f64,
    },
    /// The end of a release: a branch beside the trunk.
    CoolDown(CoolDown),
}

/// The form of λ's way from its first value to its last: teacher annealing (the paper names no form). A place on the way is a share x of
/// it, 0 at the first step and 1 at the last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LambdaSchedule {
    /// first + (last − first) · x.
    #[default]
    Linear,
    /// last + (first − last) · (1 + cos πx) / 2: slow at both ends (Loshchilov & Hutter 2017).
    Cosine,
    /// The first value up to a place, the last one from there on.
    Step {
        /// x of that place.
        at: f64,
    },
}

impl LambdaSchedule {
    /// Whether λ goes linearly, as it does by default.
    pub(crate) fn is_linear(&self) -> bool {
        *self == Self::Linear
    }

    /// How much of the way from the first value to the last is gone at `x`.
    fn gone(self, x: f64) -> f64 {
        match self {
            Self::Linear => x,
            Self::Cosine => 0.5 - 0.5 * libm::cos(std::f64::consts::PI * x),
            Self::Step { at } => f64::from(u8::from(x >= at)),
        }
    }
}

/// A branch from a checkpoint, in which the learning rate goes to 0.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct CoolDown {
    /// Steps that were done at the checkpoint.
    pub from_step: u64,
    /// Steps of the branch.
    pub steps: u64,
    /// Learning rate of its first step.
    pub learning_rate: f64,
    /// λ of its first step.
    pub lambda_start: f64,
    /// λ of its last step.
    pub lambda_end: f64,
    /// λ's way between them.
    #[serde(default, skip_serializing_if = "LambdaSchedule::is_linear")]
    pub lambda_schedule: LambdaSchedule,
}

/// Learning rate and λ of one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    /// Learning rate.
    pub learning_rate: f64,
    /// Weight of distillation against gold labels.
    pub lambda: f64,
}

/// The rates of step `step` of the run, counted from 0.
#[must_use]
pub fn rates(step: u64, options: &TrainOptions) -> Rates {
    let TrainOptions { learning_rate: peak, warmup_steps, lambda_start, lambda_end, lambda_schedule, .. } = *options;
    match options.schedule {
        Schedule::Linear => {
            // Options without an end are refused before.
            let steps = options.steps.unwrap_or(u64::MAX);
            Rates {
                learning_rate: learning_rate(step, peak, warmup_steps, steps),
                lambda: lambda(step, (lambda_start, lambda_end), lambda_schedule, steps),
            }
        }
        Schedule::Trunk { lambda_steps, lambda_floor } => Rates {
            learning_rate: warm_up(step, peak, warmup_steps).unwrap_or(peak),
            lambda: if step < lambda_steps {
                lambda(step, (lambda_start, lambda_floor), lambda_schedule, lambda_steps.saturating_add(1))
            } else {
                lambda_floor
            },
        },
        Schedule::CoolDown(branch) => {
            let step = step.saturating_sub(branch.from_step);
            Rates {
                learning_rate: learning_rate(step, branch.learning_rate, 0, branch.steps),
                lambda: lambda(step, (branch.lambda_start, branch.lambda_end), branch.lambda_schedule, branch.steps),
            }
        }
    }
}

/// The learning rate during the warm-up; `None` after it.
fn warm_up(step: u64, peak: f64, warmup_steps: u64) -> Option<f64> {
    (step < warmup_steps).then(|| peak * (step + 1) as f64 / warmup_steps as f64)
}

/// The learning rate of a step: linear warm-up to `peak` over `warmup_steps`, then linear decay that would reach
/// 0 at `steps`. No step has a rate of 0, so that none is wasted.
#[must_use]
pub fn learning_rate(step: u64, peak: f64, warmup_steps: u64, steps: u64) -> f64 {
    if let Some(rate) = warm_up(step, peak, warmup_steps) {
        return rate;
    }
    let decay_steps = steps.saturating_sub(warmup_steps).max(1);
    peak * steps.saturating_sub(step) as f64 / decay_steps as f64
}

/// λ of a step, the weight of distillation against gold labels: from `start` at the first step to `end` at the
/// last one.
#[must_use]
pub fn lambda(step: u64, (start, end): (f64, f64), schedule: LambdaSchedule, steps: u64) -> f64 {
    let last = steps.saturating_sub(1);
    if last == 0 {
        return start;
    }
    let share = step.min(last) as f64 / last as f64;
    start + (end - start) * schedule.gone(share)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn learning_rate_rises_then_falls() {
        for (step, warmup, steps, expected) in [
            (0, 100, 1000, 0.01),
            (49, 100, 1000, 0.5),
            (99, 100, 1000, 1.0),
            (100, 100, 1000, 1.0),
            (550, 100, 1000, 0.5),
            (999, 100, 1000, 1.0 / 900.0),
            (1000, 100, 1000, 0.0),
            (2000, 100, 1000, 0.0),
            (0, 0, 10, 1.0),
            (5, 0, 10, 0.5),
            // Warm-up as long as the run, or longer: it never decays.
            (9, 10, 10, 1.0),
            (9, 20, 10, 0.5),
        ] {
            let rate = learning_rate(step, 1.0, warmup, steps);
            assert!((rate - expected).abs() < 1e-12, "step {step}: {rate}, not {expected}");
            assert_eq!(learning_rate(step, 4.0, warmup, steps), 4.0 * rate, "the peak scales");
        }
    }

    #[test]
    fn lambda_goes_from_start_to_end() {
        use LambdaSchedule::{Cosine, Linear, Step};
        for (step, start, end, steps, expected) in [
            (0, 1.0, 0.0, 1001, 1.0),
            (250, 1.0, 0.0, 1001, 0.75),
            (1000, 1.0, 0.0, 1001, 0.0),
            (5000, 1.0, 0.0, 1001, 0.0),
            (5, 0.2, 0.4, 11, 0.3),
            (3, 0.5, 0.5, 10, 0.5),
            (0, 1.0, 0.0, 1, 1.0),
            (0, 1.0, 0.0, 0, 1.0),
        ] {
            let value = lambda(step, (start, end), Linear, steps);
            assert!((value - expected).abs() < 1e-12, "step {step}: {value}, not {expected}");
        }
        let quarter = (1.0 + 0.5_f64.sqrt()) / 2.0;
        for (schedule, expected) in [
            (Linear, [1.0, 0.75, 0.5, 0.25, 0.0]),
            (Cosine, [1.0, quarter, 0.5, 1.0 - quarter, 0.0]),
            (Step { at: 0.0 }, [0.0; 5]),
            (Step { at: 0.25 }, [1.0, 0.0, 0.0, 0.0, 0.0]),
            (Step { at: 0.6 }, [1.0, 1.0, 1.0, 0.0, 0.0]),
            (Step { at: 1.0 }, [1.0, 1.0, 1.0, 1.0, 0.0]),
        ] {
            for (step, expected) in [0, 25, 50, 75, 100].into_iter().zip(expected) {
                for (start, end) in [(1.0, 0.0), (0.25, 0.75)] {
                    let value = lambda(step, (start, end), schedule, 101);
                    let expected = end + (start - end) * expected;
                    assert!((value - expected).abs() < 1e-12, "{schedule:?}, step {step}: {value}, not {expected}");
                }
                assert_eq!(lambda(step, (0.5, 0.0), schedule, 1), 0.5);
            }
        }
    }

    #[track_caller]
    fn check(options: &TrainOptions, expected: &[(u64, f64, f64)]) {
        for (step, learning_rate, lambda) in expected {
            let rates = rates(*step, options);
            let close = |found: f64, wanted: f64| (found - wanted).abs() < 1e-12;
            assert!(close(rates.learning_rate, *learning_rate), "step {step}: {rates:?}, not {learning_rate}");
            assert!(close(rates.lambda, *lambda), "step {step}: {rates:?}, not {lambda}");
        }
    }

    #[test]
    fn a_trunk_goes_on_for_ever_and_cools_down_beside_itself() {
        let linear = TrainOptions {
            steps: Some(11),
            learning_rate: 1.0,
            warmup_steps: 2,
            lambda_start: 1.0,
            lambda_end: 0.0,
            ..TrainOptions::default()
        };
        check(&linear, &[(0, 0.5, 1.0), (2, 1.0, 0.8), (10, 1.0 / 9.0, 0.0)]);
        let trunk = |lambda_steps| TrainOptions {
            steps: None,
            schedule: Schedule::Trunk { lambda_steps, lambda_floor: 0.5 },
            ..linear.clone()
        };
        check(&trunk(0), &[(0, 0.5, 0.5), (1, 1.0, 0.5), (u64::MAX, 1.0, 0.5)]);
        check(&trunk(1), &[(0, 0.5, 1.0), (1, 1.0, 0.5), (2, 1.0, 0.5)]);
        check(&trunk(10), &[(0, 0.5, 1.0), (5, 1.0, 0.75), (10, 1.0, 0.5), (11, 1.0, 0.5), (1 << 60, 1.0, 0.5)]);
        check(&trunk(u64::MAX), &[(0, 0.5, 1.0)]);
        let from_trunk = rates(5, &trunk(10));
        let cool_down = CoolDown {
            from_step: 5,
            steps: 4,
            learning_rate: from_trunk.learning_rate,
            lambda_start: from_trunk.lambda,
            lambda_end: 0.0,
            lambda_schedule: LambdaSchedule::Linear,
        };
        let branch = TrainOptions { schedule: Schedule::CoolDown(cool_down), ..linear };
        check(&branch, &[(5, 1.0, 0.75), (6, 0.75, 0.5), (7, 0.5, 0.25), (8, 0.25, 0.0), (9, 0.0, 0.0)]);
        let at_half = LambdaSchedule::Step { at: 0.5 };
        check(
            &TrainOptions { lambda_schedule: at_half, ..trunk(10) },
            &[(4, 1.0, 1.0), (5, 1.0, 0.5), (10, 1.0, 0.5), (11, 1.0, 0.5), (u64::MAX, 1.0, 0.5)],
        );
        // A release keeps the form with which it began.
        let cool_down = CoolDown { lambda_schedule: at_half, ..cool_down };
        let branch = TrainOptions { schedule: Schedule::CoolDown(cool_down), ..branch };
        check(&branch, &[(5, 1.0, 0.75), (6, 0.75, 0.75), (7, 0.5, 0.0), (8, 0.25, 0.0)]);
    }
}
