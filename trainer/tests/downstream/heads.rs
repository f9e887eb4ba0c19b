//! Every head against transformers: the loss, every gradient, and the losses of ten optimiser steps.

use crate::golden;
use candle_core::{Device, Tensor};
use model::random::Philox;
use model::{Dropout, Encoder};
use serde_json::Value;
use std::collections::HashMap;
use trainer::downstream::Sequence;
use trainer::downstream::head::HeadKind;
use trainer::downstream::task_model::{TaskModel, Weights};
use trainer::optimiser::{Update, clip};
use trainer::schedule;

const RELATIVE: f64 = 1e-4;
const CASES: [&str; 8] = [
    "token-bert",
    "token-electra",
    "sequence-bert",
    "sequence-electra",
    "pair-bert",
    "pair-electra",
    "spans-bert",
    "spans-electra",
];

struct Case {
    model: TaskModel,
    batch: Vec<Sequence>,
    settings: Value,
    losses: Vec<f64>,
    gradients: HashMap<String, Vec<f32>>,
}

fn list(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

impl Case {
    fn load(name: &str) -> Self {
        let folder = golden(name);
        let settings: Value = serde_json::from_slice(&std::fs::read(folder.join("case.json")).unwrap()).unwrap();
        let classes = settings["classes"].as_u64().unwrap() as usize;
        let kind = match name.split('-').next() {
            Some("token") => HeadKind::Tokens(classes),
            Some("spans") => HeadKind::Spans,
            _ => HeadKind::Texts(classes),
        };
        let encoder = Encoder::load(&folder).unwrap();
        let mut model = TaskModel::new(&encoder, kind, 0, None).unwrap();
        let stored = candle_core::safetensors::load(folder.join("model.safetensors"), &Device::Cpu).unwrap();
        let mut head = vec![0.0; model.head().length()];
        for slot in model.head().slots() {
            assert_eq!(stored[&slot.name].dims(), slot.shape, "{name}: {}", slot.name);
            head[slot.range.clone()].copy_from_slice(&list(&stored[&slot.name]));
        }
        model.set_weights(&Weights { head, ..model.weights() });
        assert_eq!(model.parameters().count(), stored.len(), "{name}");

        let tensors = candle_core::safetensors::load(folder.join("case.safetensors"), &Device::Cpu).unwrap();
        let gradients = tensors
            .iter()
            .filter_map(|(name, tensor)| name.strip_prefix("gradient.").map(|name| (name.to_owned(), list(tensor))));
        let numbers = |value: &Value| -> Vec<u32> { serde_json::from_value(value.clone()).unwrap_or_default() };
        let sequence = |value: &Value| Sequence {
            token_ids: numbers(&value["token_ids"]),
            token_types: numbers(&value["token_types"]).into_iter().map(|token_type| token_type as u8).collect(),
            rows: numbers(&value["rows"]),
            targets: numbers(&value["targets"]),
        };
        Self {
            model,
            batch: settings["sequences"].as_array().unwrap().iter().map(sequence).collect(),
            losses: tensors["losses"].to_vec1().unwrap(),
            gradients: gradients.collect(),
            settings,
        }
    }

    fn setting(&self, key: &str) -> f64 {
        self.settings[key].as_f64().unwrap()
    }

    fn accumulate(&mut self) -> f64 {
        self.model.accumulate(self.batch.iter(), None).unwrap()
    }
}

#[test]
fn loss_and_every_gradient_agree_with_transformers() {
    for name in CASES {
        let mut case = Case::load(name);
        let loss = case.accumulate();
        assert_close(loss, case.losses[0], &format!("{name}: loss"));
        let largest = case.gradients.values().flatten().fold(0.0_f32, |a, b| a.max(b.abs()));
        for parameter in case.model.parameters() {
            let expected = &case.gradients[parameter.name];
            assert_eq!(parameter.gradient.len(), expected.len(), "{name}: {}", parameter.name);
            // A key's bias moves all logits of a softmax alike: its gradient is 0 but for rounding.
            let scale = expected.iter().fold(1e-3 * largest, |a, b| a.max(b.abs()));
            for (got, expected) in parameter.gradient.iter().zip(expected) {
                let difference = f64::from((got - expected).abs()) / f64::from(scale);
                assert!(difference < RELATIVE, "{name}: {}: {got} for {expected}", parameter.name);
            }
        }
    }
}

#[test]
fn ten_steps_track_transformers() {
    for name in CASES {
        let mut case = Case::load(name);
        let (steps, warmup_steps) = (case.setting("steps") as u64, case.setting("warmup_steps") as u64);
        for step in 0..steps {
            let loss = case.accumulate();
            assert_close(loss, case.losses[step as usize], &format!("{name}: step {step}"));
            let update = Update {
                learning_rate: schedule::learning_rate(step, case.setting("learning_rate"), warmup_steps, steps),
                weight_decay: case.setting("weight_decay"),
                gradient_scale: clip(case.model.gradient_norm(), case.setting("clip_norm")),
            };
            case.model.update(&update);
        }
        assert_close(case.accumulate(), case.losses[steps as usize], &format!("{name}: the end"));
        assert!(case.losses[steps as usize] < 0.9 * case.losses[0], "{name}: ten steps change the loss");
    }
}

fn assert_close(got: f64, expected: f64, what: &str) {
    assert!((got - expected).abs() < RELATIVE * expected.abs(), "{what}: {got} for {expected}");
}

/// With dropout everywhere: the same masks forward and backward, in the head too.
#[test]
fn gradients_are_the_slopes_of_the_loss_with_dropout() {
    for name in CASES {
        let Case { model, batch, .. } = Case::load(name);
        let encoder = Encoder::load(&golden(name)).unwrap();
        let mut dropping = TaskModel::new(&encoder, model.head().kind(), 0, Some(0.3)).unwrap();
        let weights = model.weights();
        dropping.set_weights(&weights);
        let dropout = Some(Dropout { stream: Philox::new(4, "dropout", &[]), step: 3, first_row: 0 });
        let loss = dropping.accumulate(batch.iter(), dropout).unwrap();
        let without = Case::load(name).accumulate();
        assert!((loss - without).abs() > 1e-3, "{name}: dropout changes nothing");
        let of_head: Vec<f32> = {
            let names: Vec<&str> = model.head().slots().iter().map(|slot| slot.name.as_str()).collect();
            let found = dropping.parameters().filter(|parameter| names.contains(&parameter.name));
            found.flat_map(|parameter| parameter.gradient.to_vec()).collect()
        };
        let noise = Philox::new(5, "noise", &[]);
        let direction: Vec<f32> = (0..of_head.len() as u64).map(|at| noise.normal(at, 0) as f32).collect();
        let mut at = |step: f32| {
            let head = weights.head.iter().zip(&direction).map(|(weight, toward)| weight + step * toward).collect();
            dropping.set_weights(&Weights { head, ..weights.clone() });
            dropping.accumulate(batch.iter(), dropout).unwrap()
        };
        let step = 2e-3;
        let found = (at(step) - at(-step)) / f64::from(2.0 * step);
        let expected: f64 = of_head.iter().zip(&direction).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
        assert!((found - expected).abs() < 0.01 * expected.abs() + 2e-3, "{name}: {found} for {expected}");
    }
}
