//! Training against PyTorch on the golden cases of `tests/golden/generate_training.py`: the loss, every gradient, and
//! the losses of ten optimiser steps.
#![allow(clippy::unwrap_used)]

use candle_core::{Device, Tensor};
use model::{Configuration, PackedBatch, Parameters};
use serde_json::Value;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use trainer::loss::Targets;
use trainer::optimiser::{AdamW, Update, clip};
use trainer::schedule;
use trainer::student::Student;

const RELATIVE: f64 = 1e-4;
const CASES: [&str; 5] =
    ["odd-lengths", "one-masked-position", "duplicate-ids", "untied-decoder", "factorised-embedding"];

struct Case {
    folder: PathBuf,
    batch: PackedBatch,
    gold_ids: Vec<u32>,
    top_ids: Vec<u32>,
    probabilities: Vec<f32>,
    weights: Vec<f32>,
    has_teacher: Vec<bool>,
    losses: Vec<f64>,
    gradients: HashMap<String, Vec<f32>>,
    settings: Value,
}

impl Case {
    fn load(name: &str) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/training").join(name);
        let tensors = candle_core::safetensors::load(folder.join("case.safetensors"), &Device::Cpu).unwrap();
        let integers = |name: &str| -> Vec<u32> {
            let numbers = tensors[name].to_dtype(candle_core::DType::U32).unwrap();
            numbers.flatten_all().unwrap().to_vec1().unwrap()
        };
        let floats = |tensor: &Tensor| -> Vec<f32> { tensor.flatten_all().unwrap().to_vec1().unwrap() };
        let gradients = tensors
            .iter()
            .filter_map(|(name, tensor)| name.strip_prefix("gradient.").map(|name| (name.to_owned(), floats(tensor))));
        Self {
            batch: PackedBatch {
                token_ids: integers("token_ids"),
                lengths: integers("lengths").into_iter().map(|length| length as usize).collect(),
                masked_rows: integers("masked_rows"),
                ..PackedBatch::default()
            },
            gold_ids: integers("gold_ids"),
            top_ids: integers("top_ids"),
            probabilities: floats(&tensors["probabilities"]),
            weights: floats(&tensors["weights"]),
            has_teacher: integers("has_teacher").into_iter().map(|has| has == 1).collect(),
            losses: tensors["losses"].to_vec1().unwrap(),
            gradients: gradients.collect(),
            settings: serde_json::from_slice(&std::fs::read(folder.join("case.json")).unwrap()).unwrap(),
            folder,
        }
    }

    fn student(&self) -> Student {
        let configuration = Configuration::load(&self.folder).unwrap();
        let parameters = Parameters::load(&self.folder, &configuration, &Device::Cpu).unwrap();
        Student::new(&configuration, &parameters).unwrap()
    }

    /// One forward and backward pass of the whole batch; returns the loss.
    fn accumulate(&self, student: &mut Student) -> f64 {
        let targets = Targets {
            gold_ids: &self.gold_ids,
            top_k: self.top_ids.len() / self.gold_ids.len(),
            top_ids: &self.top_ids,
            probabilities: &self.probabilities,
            tail_masses: &[],
            gold_masses: &[],
            weights: &self.weights,
            has_teacher: &self.has_teacher,
        };
        student.clear_gradients();
        student.accumulate(&self.batch, &targets, self.setting("lambda"), None).unwrap().loss
    }

    fn setting(&self, key: &str) -> f64 {
        self.settings[key].as_f64().unwrap()
    }
}

#[test]
fn loss_and_every_gradient_agree_with_pytorch() {
    for name in CASES {
        let case = Case::load(name);
        let mut student = case.student();
        let loss = case.accumulate(&mut student);
        assert_close(loss, case.losses[0], &format!("{name}: loss"));
        let largest = case.gradients.values().flatten().fold(0.0_f32, |a, b| a.max(b.abs()));
        let mut seen = 0;
        for parameter in student.parameters() {
            let expected = &case.gradients[parameter.name];
            assert_eq!(parameter.gradient.len(), expected.len(), "{name}: {}", parameter.name);
            // A key's bias moves all logits of a softmax alike: its gradient is 0 but for rounding.
            let scale = expected.iter().fold(1e-3 * largest, |a, b| a.max(b.abs()));
            for (got, expected) in parameter.gradient.iter().zip(expected) {
                let difference = f64::from((got - expected).abs()) / f64::from(scale);
                assert!(difference < RELATIVE, "{name}: {}: {got} for {expected}", parameter.name);
            }
            seen += 1;
        }
        assert_eq!(seen, case.gradients.len(), "{name}: parameters");
    }
}

#[test]
fn ten_steps_track_pytorch() {
    for name in CASES {
        let case = Case::load(name);
        let mut student = case.student();
        let mut optimiser = AdamW::new(student.layout().length());
        let (steps, warmup_steps) = (case.setting("steps") as u64, case.setting("warmup_steps") as u64);
        for step in 0..steps {
            let loss = case.accumulate(&mut student);
            assert_close(loss, case.losses[step as usize], &format!("{name}: step {step}"));
            let update = Update {
                learning_rate: schedule::learning_rate(step, case.setting("learning_rate"), warmup_steps, steps),
                weight_decay: case.setting("weight_decay"),
                gradient_scale: clip(student.gradient_norm(), case.setting("clip_norm")),
            };
            student.update(&mut optimiser, &update);
        }
        assert_close(case.accumulate(&mut student), case.losses[steps as usize], &format!("{name}: the end"));
        assert!(case.losses[steps as usize] < 0.9 * case.losses[0], "{name}: ten steps change the loss");
    }
}

fn assert_close(got: f64, expected: f64, what: &str) {
    assert!((got - expected).abs() < RELATIVE * expected.abs(), "{what}: {got} for {expected}");
}
