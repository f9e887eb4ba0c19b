//! Every head against transformers: the loss, every gradient, and the losses of ten optimiser steps.

use crate::golden;
use candle_core::{Device, Tensor};
use model::random::Philox;
use model::{Dropout, Encoder, Layout, Slot};
use serde_json::Value;
use std::collections::HashMap;
use trainer::downstream::head::{HeadKind, HeadPass};
use trainer::downstream::task_model::{TaskModel, Weights};
use trainer::downstream::{Destination, Sequence};
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

/// With dropout everywhere: the same masks forward and backward, in the head, and on the gradient that flows from it into the encoder.
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
        let layout = Layout::of(&encoder.configuration);
        let of_encoder = in_arena(&dropping, layout.slots(), weights.encoder.len());
        let of_head = in_arena(&dropping, model.head().slots(), weights.head.len());
        let mut check = |part: &str, gradient: &[f32], step: f32| {
            let noise = Philox::new(5, "noise", &[]);
            let direction: Vec<f32> = (0..gradient.len() as u64).map(|at| noise.normal(at, 0) as f32).collect();
            let moved = |values: &[f32], step: f32| -> Vec<f32> {
                values.iter().zip(&direction).map(|(value, toward)| value + step * toward).collect()
            };
            let mut at = |step: f32| {
                dropping.set_weights(&match part {
                    "head" => Weights { head: moved(&weights.head, step), ..weights.clone() },
                    _ => Weights { encoder: moved(&weights.encoder, step), ..weights.clone() },
                });
                dropping.accumulate(batch.iter(), dropout).unwrap()
            };
            let found = (at(step) - at(-step)) / f64::from(2.0 * step);
            let expected: f64 = gradient.iter().zip(&direction).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            let close = (found - expected).abs() < 0.01 * expected.abs() + 2e-3;
            assert!(close, "{name}: {part}: {found} for {expected}");
        };
        check("head", &of_head, 2e-3);
        check("encoder", &of_encoder, 2e-3);
    }
}

/// The gradients at their places in an arena of so many numbers.
fn in_arena(model: &TaskModel, slots: &[Slot], length: usize) -> Vec<f32> {
    let mut gradients = vec![0.0; length];
    for parameter in model.parameters() {
        if let Some(slot) = slots.iter().find(|slot| slot.name == parameter.name) {
            gradients[slot.range.clone()].copy_from_slice(parameter.gradient);
        }
    }
    gradients
}

/// The rate is the folder's `classifier_dropout`, where it has none `hidden_dropout_prob`, or what is asked for; and is written so.
#[test]
fn heads_drop_at_the_rate_that_transformers_takes() {
    for name in CASES {
        for (hidden, classifier, asked, expected) in [
            (0.0, None, None, 0.0),
            (0.4, None, None, 0.4),
            (0.4, Some(0.0), None, 0.0),
            (0.0, Some(0.4), None, 0.4),
            (0.2, Some(0.1), Some(0.4), 0.4),
            (0.2, Some(0.1), Some(0.0), 0.0),
        ] {
            let folder = tempfile::tempdir().unwrap();
            std::fs::copy(golden(name).join("model.safetensors"), folder.path().join("model.safetensors")).unwrap();
            let mut file: Value =
                serde_json::from_slice(&std::fs::read(golden(name).join("config.json")).unwrap()).unwrap();
            file["hidden_dropout_prob"] = hidden.into();
            file["classifier_dropout"] = serde_json::json!(classifier);
            std::fs::write(folder.path().join("config.json"), file.to_string()).unwrap();
            let encoder = Encoder::load(folder.path()).unwrap();
            let kind = Case::load(name).model.head().kind();
            let model = TaskModel::new(&encoder, kind, 1, asked).unwrap();

            let hidden_size = encoder.configuration.hidden_size;
            let inputs: Vec<f32> = (0..8 * hidden_size).map(|at| (at as f32).sin()).collect();
            let (rows, arena) = ([0, 1, 2, 3, 4, 5, 6, 7], model.weights().head);
            let logits = |dropout| {
                let mut pass = HeadPass::default();
                model.head().forward(&arena, &inputs, &rows, dropout, &mut pass);
                pass.logits
            };
            let dropout = Some(Dropout { stream: Philox::new(4, "dropout", &[]), step: 3, first_row: 0 });
            let drops = kind != HeadKind::Spans && expected > 0.0;
            let what = format!("{name}: hidden {hidden}, classifier {classifier:?}, asked {asked:?}");
            assert_eq!(logits(dropout) != logits(None), drops, "{what}");

            let out = folder.path().join("out");
            let destination = Destination::claim(&out, folder.path(), folder.path()).unwrap();
            model.save(&destination, &[]).unwrap();
            let saved: Value = serde_json::from_slice(&std::fs::read(out.join("config.json")).unwrap()).unwrap();
            let found = saved["classifier_dropout"].as_f64().or(saved["hidden_dropout_prob"].as_f64());
            assert_eq!(found, Some(expected), "{what}: {saved}");
        }
    }
}
