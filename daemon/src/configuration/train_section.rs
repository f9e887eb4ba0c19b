//! `[train]`

use super::table::{Problems, Table};
use serde::Serialize;
use std::ops::RangeInclusive;

/// Half distillation, half gold labels: a late teacher still teaches, and an early one is not all there is.
const LAMBDA_FLOOR: f64 = 0.5;
const LINEAR: &str = "linear";
/// A number of steps that nobody gives.
const UNSET: u64 = u64::MAX;
const LAMBDA_SCHEDULES: &[(&str, &str)] = &[("linear", "linear"), ("cosine", "cosine"), ("step", "step")];
/// Half of the way: as much of the training is distillation as with the linear form.
const LAMBDA_STEP_AT: f64 = 0.5;
/// Below, the softmax is all but an arg max; above, all but uniform.
const TEMPERATURES: RangeInclusive<f64> = 0.05..=100.0;
/// The first is the default: tests/experiments/REPORT.md, section 5.
const KD_TARGETS: &[(&str, &str)] =
    &[("renormalised", "renormalised"), ("ghost", "ghost"), ("gold-residual", "gold-residual")];

/// `[train]`
#[derive(Clone, Debug, Serialize)]
pub struct Train {
    /// Optimiser steps; unset: training has no end (`schedule = "trunk"`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<u64>,
    /// `linear`: learning rate and λ end with the last step; `trunk`: both stay what they are after warm-up, for ever.
    pub schedule: &'static str,
    /// Copies in a batch.
    pub batch_examples: usize,
    /// Tokens in a micro-batch, at most.
    pub micro_batch_tokens: usize,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Steps of linear warm-up.
    pub warmup_steps: u64,
    /// Decoupled weight decay; not for biases and LayerNorm.
    pub weight_decay: f64,
    /// Largest global gradient norm.
    pub clip_norm: f64,
    /// λ at the first step.
    pub lambda_start: f64,
    /// λ at the last step, of the run (`linear`) or of a release.
    pub lambda_end: f64,
    /// How λ goes from its first value to its last: `linear`, `cosine`, or in one `step`.
    pub lambda_schedule: &'static str,
    /// With `step`: the share of the way at which λ takes its last value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lambda_step_at: Option<f64>,
    /// Of a trunk: steps over which λ goes from `lambda_start` to the floor; 0: it is there from the first step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lambda_steps: Option<u64>,
    /// Of a trunk: λ from then on. Above 0 a teacher that is added late still teaches.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lambda_floor: Option<f64>,
    /// `all` copies of an example, the `best` one, or a `random` one.
    pub copies: &'static str,
    /// What "best" is measured by: loss per masked `position` or per `character`.
    pub best_by: &'static str,
    /// With `all`: each copy weighs 1 (`equal`) or 1/|T_k| (`shared`).
    pub copy_weight: &'static str,
    /// The loss is a mean over the masked positions of the `batch`, or the paper's sum of per-language means (`language`).
    pub loss_norm: &'static str,
    /// The teacher's distribution: its top-k `renormalised` (the paper's), or its true probabilities with the mass of all
    /// other tokens in one bucket (`ghost`) or on the gold token (`gold-residual`).
    pub kd_target: &'static str,
    /// The teacher's temperature in it; the student's is 1.
    pub kd_temperature: f64,
    /// The target that takes its place; unset: none does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kd_target_later: Option<&'static str>,
    /// The teacher's temperature in that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kd_temperature_later: Option<f64>,
    /// Steps before the first that has something of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kd_target_later_from_step: Option<u64>,
    /// Steps in which both targets are mixed; 0: the later one takes the first one's place at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kd_target_blend_steps: Option<u64>,
    /// Examples in a training window.
    pub shuffle_examples: usize,
    /// Passes over retained records after a language's input has ended; 0: as often as needed.
    pub max_passes: u32,
    /// What to do when a language runs short while its input is open: `wait` or `replay`.
    pub when_short: &'static str,
    /// Steps between checkpoints.
    pub checkpoint_every_steps: u64,
    /// Checkpoints kept.
    pub keep_checkpoints: usize,
}

/// The target that takes the place of `kd_target`.
#[derive(Clone, Copy, Debug)]
pub struct LaterTarget {
    /// `kd_target_later`
    pub kd_target: &'static str,
    /// `kd_temperature_later`
    pub kd_temperature: f64,
    /// `kd_target_later_from_step`
    pub from_step: u64,
    /// `kd_target_blend_steps`
    pub blend_steps: u64,
}

impl Train {
    pub(super) fn read(mut table: Table) -> Self {
        let steps = Some(table.integer("steps", 0, 1..)).filter(|steps| *steps > 0);
        let schedule = table.choice("schedule", &[("linear", "linear"), ("trunk", "trunk")]);
        let (lambda_steps, lambda_floor) = trunk(&mut table, schedule);
        let lambda_schedule = table.choice("lambda_schedule", LAMBDA_SCHEDULES);
        let kd_temperature = table.number("kd_temperature", 1.0, TEMPERATURES);
        let later = later_target(&mut table, kd_temperature);
        let train = Self {
            steps,
            schedule,
            batch_examples: table.size("batch_examples", 64, 1..=1_048_576),
            micro_batch_tokens: table.size("micro_batch_tokens", 4096, 16..=16_777_216),
            learning_rate: table.number("learning_rate", 5e-4, 0.0..=10.0),
            warmup_steps: table.integer("warmup_steps", 100, ..),
            weight_decay: table.number("weight_decay", 0.01, 0.0..=1.0),
            clip_norm: table.number("clip_norm", 1.0, 1e-6..=1e9),
            lambda_start: table.number("lambda_start", 1.0, 0.0..=1.0),
            lambda_end: table.number("lambda_end", 0.0, 0.0..=1.0),
            lambda_schedule,
            lambda_step_at: step_at(&mut table, lambda_schedule),
            lambda_steps,
            lambda_floor,
            copies: table.choice("copies", &[("all", "all"), ("best", "best"), ("random", "random")]),
            best_by: table.choice("best_by", &[("position", "position"), ("character", "character")]),
            copy_weight: table.choice("copy_weight", &[("equal", "equal"), ("shared", "shared")]),
            loss_norm: table.choice("loss_norm", &[("batch", "batch"), ("language", "language")]),
            kd_target: table.choice("kd_target", KD_TARGETS),
            kd_temperature,
            kd_target_later: later.map(|later| later.kd_target),
            kd_temperature_later: later.map(|later| later.kd_temperature),
            kd_target_later_from_step: later.map(|later| later.from_step),
            kd_target_blend_steps: later.map(|later| later.blend_steps),
            shuffle_examples: table.size("shuffle_examples", 4096, 1..=16_777_216),
            max_passes: table.size("max_passes", 0, ..=1_000_000) as u32,
            when_short: table.choice("when_short", &[("wait", "wait"), ("replay", "replay")]),
            checkpoint_every_steps: table.integer("checkpoint_every_steps", 500, 1..),
            keep_checkpoints: table.size("keep_checkpoints", 3, 1..=10_000),
        };
        table.finish();
        train
    }

    /// What takes the place of `kd_target`.
    pub fn later_target(&self) -> Option<LaterTarget> {
        Some(LaterTarget {
            kd_target: self.kd_target_later?,
            kd_temperature: self.kd_temperature_later?,
            from_step: self.kd_target_later_from_step?,
            blend_steps: self.kd_target_blend_steps?,
        })
    }

    /// What does not go with labels that have sampled tails.
    pub(super) fn validate_sampled_tails(&self, problems: &Problems) {
        let later = self.kd_temperature_later.map(|temperature| ("train.kd_temperature_later", temperature));
        let temperatures = [Some(("train.kd_temperature", self.kd_temperature)), later];
        for (key, _) in temperatures.into_iter().flatten().filter(|(_, temperature)| *temperature != 1.0) {
            problems.add(key, "has to be 1 with store.tail_samples: weights of a sample cannot be tempered");
        }
    }

    /// What is wrong if a student is to be trained.
    pub(super) fn validate(&self, problems: &Problems) {
        if self.steps.is_none() && self.schedule == LINEAR {
            let message = "missing; give the number of optimiser steps, or schedule = \"trunk\" to train without end";
            problems.add("train.steps", message);
        }
        if let (Some(steps), Some(later)) = (self.steps, self.later_target())
            && later.from_step >= steps
        {
            let message = format!("{}, but training ends after {steps} steps: it would never hold", later.from_step);
            problems.add("train.kd_target_later_from_step", message);
        }
    }
}

/// `lambda_steps` and `lambda_floor`, which only a trunk has.
fn trunk(table: &mut Table, schedule: &str) -> (Option<u64>, Option<f64>) {
    let steps = Some(table.integer("lambda_steps", UNSET, ..)).filter(|steps| *steps != UNSET);
    let floor = Some(table.number("lambda_floor", -1.0, 0.0..=1.0)).filter(|floor| *floor >= 0.0);
    if schedule == LINEAR {
        for (key, given) in [("lambda_steps", steps.is_some()), ("lambda_floor", floor.is_some())] {
            if given {
                table.problem(key, "only schedule = \"trunk\" has it; otherwise λ goes to `lambda_end`");
            }
        }
        return (None, None);
    }
    (steps.or(Some(0)), floor.or(Some(LAMBDA_FLOOR)))
}

/// `lambda_step_at`, which only λ in one step has.
fn step_at(table: &mut Table, lambda_schedule: &str) -> Option<f64> {
    let at = Some(table.number("lambda_step_at", -1.0, 0.0..=1.0)).filter(|at| *at >= 0.0);
    if lambda_schedule == "step" {
        return at.or(Some(LAMBDA_STEP_AT));
    }
    if at.is_some() {
        table.problem("lambda_step_at", "only lambda_schedule = \"step\" has it");
    }
    None
}

/// The keys of a later target, which come together: without `kd_target_later` there are none.
fn later_target(table: &mut Table, kd_temperature: f64) -> Option<LaterTarget> {
    let names = [("none", "")].iter().chain(KD_TARGETS).copied().collect::<Vec<_>>();
    let kd_target = Some(table.choice("kd_target_later", &names)).filter(|target| !target.is_empty());
    let from_step = Some(table.integer("kd_target_later_from_step", UNSET, ..)).filter(|step| *step != UNSET);
    let blend_steps = Some(table.integer("kd_target_blend_steps", UNSET, ..)).filter(|steps| *steps != UNSET);
    let temperature = table.number("kd_temperature_later", 0.0, TEMPERATURES);
    let temperature = Some(temperature).filter(|temperature| *temperature > 0.0);
    let Some(kd_target) = kd_target else {
        for (key, given) in [
            ("kd_target_later_from_step", from_step.is_some()),
            ("kd_target_blend_steps", blend_steps.is_some()),
            ("kd_temperature_later", temperature.is_some()),
        ] {
            if given {
                table.problem(key, "goes with `kd_target_later`, the target that takes the place of `kd_target`");
            }
        }
        return None;
    };
    if from_step.is_none() {
        table.problem("kd_target_later_from_step", "missing; give the number of steps before `kd_target_later` holds");
    }
    Some(LaterTarget {
        kd_target,
        kd_temperature: temperature.unwrap_or(kd_temperature),
        from_step: from_step.unwrap_or(0),
        blend_steps: blend_steps.unwrap_or(0),
    })
}
