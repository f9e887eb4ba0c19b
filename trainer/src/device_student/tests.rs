//! Training on the emulated accelerator, held against training on the processor.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::batch::Batch;
use crate::evaluate::Predictor;
use crate::learner::Learner;
use crate::options::{LossNorm, TrainOptions};
use crate::target::Target;
use crate::training_copy::TrainingCopy;
use kernel_emulator::{Emulated, accelerator};
use model::device::{Accelerator, OnDevice, Precision};
use model::random::Philox;
use model::{Activation, Architecture, Configuration, Layout, Parameters};
use std::sync::Arc;
use store::{Label, MaskedCopy, SequenceNumber};

const TOP_K: usize = 3;

fn shape(architecture: Architecture, embedding_size: usize, hidden_size: usize, heads: usize) -> Configuration {
    Configuration {
        architecture,
        vocabulary_size: 61,
        embedding_size,
        hidden_size,
        layers: 2,
        heads,
        intermediate_size: 72,
        max_position_embeddings: 100,
        type_vocabulary_size: 2,
        activation: Activation::Gelu,
        layer_norm_eps: 1e-12,
        hidden_dropout: 0.1,
        attention_dropout: 0.2,
        classifier_dropout: None,
        initializer_range: 0.2,
        tie_word_embeddings: true,
        pad_token_id: 0,
    }
}

/// Of so many tokens, of which about every fifth is masked; every third copy has no teacher, every other label the gold token.
fn copy(number: usize, length: usize, vocabulary: usize) -> TrainingCopy {
    let stream = Philox::new(number as u64, "device test", &[]);
    let id = |at: usize, what: u64| stream.below(vocabulary as u64, at as u64, what) as u32;
    let masked_positions: Vec<u32> = (0..length as u32).filter(|at| at % 5 == 1).collect();
    let masked = masked_positions.len();
    let gold_ids: Vec<u32> = (0..masked).map(|at| id(at, 1)).collect();
    let mut label = Label { top_k: TOP_K, ..Label::default() };
    for (at, gold) in gold_ids.iter().enumerate() {
        let first = if at % 2 == 0 { *gold } else { (gold + 7) % vocabulary as u32 };
        label.top_ids.extend([first, (first + 1) % vocabulary as u32, (first + 2) % vocabulary as u32]);
        label.top_logits.extend([3.0, 2.5, 1.0]);
        label.log_sum_exp.push(3.9);
        label.gold_logits.push(if at % 2 == 0 { 3.0 } else { -1.0 });
    }
    let copy = MaskedCopy {
        teacher: 0,
        token_ids: (0..length).map(|at| id(at, 0)).collect(),
        masked_positions,
        gold_ids,
        label: (number % 3 != 2).then_some(label),
    };
    let (sequence, weight) = (SequenceNumber(number as u64), 1.0 + number as f64);
    TrainingCopy { sequence, pass: 0, language: "en".into(), weight, copy, labelled: Vec::new() }
}

/// Sequences of these lengths.
fn batch(lengths: &[usize], vocabulary: usize, target: Target) -> Batch {
    batch_in_parts(lengths, vocabulary, target, 1 << 20)
}

fn batch_in_parts(lengths: &[usize], vocabulary: usize, target: Target, micro_batch_tokens: usize) -> Batch {
    let copies = lengths.iter().copied().enumerate().map(|(number, length)| copy(number, length, vocabulary)).collect();
    Batch::new(copies, target, LossNorm::Batch, micro_batch_tokens)
}

fn targets() -> [Target; 3] {
    use crate::options::KdTarget::{Ghost, GoldResidual, Renormalised};
    [Renormalised, Ghost, GoldResidual].map(|kd_target| {
        crate::target::TargetSchedule::of(&TrainOptions { kd_target, ..TrainOptions::default() }).at(0)
    })
}

fn student(configuration: &Configuration) -> (Student, AdamW) {
    let parameters = Parameters::initialise(configuration, 3, &candle_core::Device::Cpu).unwrap();
    let student = Student::new(configuration, &parameters).unwrap();
    let length = student.layout().length();
    (student, AdamW::new(length))
}

fn on(precision: Precision) -> Ranks {
    OnDevice { device: accelerator(), precision }.into()
}

/// So many, each with its own part of the optimiser's state.
fn ranks(count: usize, precision: Precision) -> Ranks {
    Ranks::through_host((0..count).map(|_| accelerator()).collect(), precision)
}

fn shapes() -> [Configuration; 4] {
    [
        shape(Architecture::Bert, 64, 64, 2),
        Configuration { activation: Activation::Silu, ..shape(Architecture::Bert, 64, 64, 1) },
        Configuration {
            tie_word_embeddings: false,
            activation: Activation::GeluTanh,
            ..shape(Architecture::Bert, 48, 48, 3)
        },
        Configuration {
            activation: Activation::Relu,
            initializer_range: 0.1,
            ..shape(Architecture::ElectraGenerator, 24, 128, 1)
        },
    ]
}

/// The largest distance of a parameter's gradient from the other, relative to the larger of its norm and a hundredth of the whole one, and whose it is.
fn furthest(layout: &Layout, found: &[f32], expected: &[f32]) -> (f64, String) {
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
    let whole = norm(&mut expected.iter().map(|x| f64::from(*x)));
    let of_slot = |slot: &model::Slot| {
        let range = slot.range.clone();
        let (found, expected) = (&found[range.clone()], &expected[range]);
        let apart = norm(&mut found.iter().zip(expected).map(|(a, b)| f64::from(*a) - f64::from(*b)));
        let size = norm(&mut expected.iter().map(|x| f64::from(*x))).max(whole / 100.0);
        (if apart.is_nan() { f64::INFINITY } else { apart / size }, slot.name.clone())
    };
    layout.slots().iter().map(of_slot).max_by(|a, b| a.0.total_cmp(&b.0)).unwrap()
}

#[test]
fn gradients_are_those_of_the_processor() {
    for (number, configuration) in shapes().into_iter().enumerate() {
        for (precision, tolerance) in [(Precision::F32, 2e-5), (Precision::Bf16, 5e-2)] {
            let target = targets()[number % 3];
            // Several tiles, less than one, and one token.
            let batch = batch(&[66, 6, 1], configuration.vocabulary_size, target);
            let part = &batch.micro_batches[0];
            let dropout = Dropout { stream: Philox::new(4, "dropout", &[]), step: 5 | 3 << 33, first_row: 11 };
            let (mut reference, optimiser) = student(&configuration);
            let mut device = DeviceStudent::new(&on(precision), &reference, &optimiser).unwrap();
            // Gradients add up.
            for dropout in [Some(dropout), None].into_iter().take(if number == 0 { 2 } else { 1 }) {
                let expected = reference.accumulate(&part.packed, &part.targets(), 0.6, dropout).unwrap();
                let found = device.accumulate(vec![(part, dropout)], 0.6).unwrap();
                assert_eq!((found.positions, found.labelled), (expected.positions, expected.labelled));
                for (found, expected) in
                    [(found.loss, expected.loss), (found.kd, expected.kd), (found.mlm, expected.mlm)]
                {
                    assert!(
                        (found - expected).abs() < 0.2 * tolerance * expected.abs(),
                        "{number} {precision:?}: {found} for {expected}"
                    );
                }
                let mut gradients = vec![0.0; reference.layout().length()];
                device.replicas[0].training.read_gradients(&mut gradients).unwrap();
                let (apart, name) = furthest(reference.layout(), &gradients, reference.gradients());
                assert!(apart < tolerance, "{number} {precision:?} {dropout:?}: {name} is {apart} apart");
            }
            let (found, expected) = (device.gradient_norm().unwrap(), reference.gradient_norm());
            assert!((found - expected).abs() < tolerance * expected, "{found} for {expected}");
        }
    }
}

/// As with [MASK]: sums of so many rows are cut into parts.
#[test]
fn a_token_may_be_there_many_times() {
    let configuration = Configuration { layers: 1, ..shape(Architecture::Bert, 32, 32, 1) };
    let mut copies: Vec<TrainingCopy> = [70, 70, 60]
        .into_iter()
        .enumerate()
        .map(|(number, length)| copy(number, length, configuration.vocabulary_size))
        .collect();
    for tokens in copies.iter_mut().map(|copy| &mut copy.copy.token_ids) {
        tokens.iter_mut().enumerate().filter(|(at, _)| at % 10 != 3).for_each(|(at, id)| *id = 4 + at as u32 % 2);
    }
    let batch = Batch::new(copies, targets()[0], LossNorm::Batch, 1 << 20);
    let part = &batch.micro_batches[0];
    let (mut reference, optimiser) = student(&configuration);
    let mut device = DeviceStudent::new(&on(Precision::F32), &reference, &optimiser).unwrap();
    reference.accumulate(&part.packed, &part.targets(), 0.6, None).unwrap();
    device.accumulate(vec![(part, None)], 0.6).unwrap();
    let mut gradients = vec![0.0; reference.layout().length()];
    device.replicas[0].training.read_gradients(&mut gradients).unwrap();
    let (apart, name) = furthest(reference.layout(), &gradients, reference.gradients());
    assert!(apart < 2e-5, "{name} is {apart} apart");
}

#[test]
fn ten_steps_end_where_the_processor_ends() {
    let configuration = Configuration { layers: 1, ..shape(Architecture::Bert, 32, 32, 1) };
    let options = TrainOptions { steps: Some(10), warmup_steps: 2, learning_rate: 5e-3, ..TrainOptions::default() };
    let batch = batch(&[12, 17], configuration.vocabulary_size, targets()[1]);
    for (precision, tolerance) in [(Precision::F32, 1e-2), (Precision::Bf16, 0.3)] {
        let learner = || {
            let (student, optimiser) = student(&configuration);
            Learner::new(student, optimiser, 1)
        };
        let (mut reference, mut placed) = (learner(), learner());
        let begin = reference.student().unwrap().arena().to_vec();
        placed.place(&on(precision)).unwrap();
        let mut losses = Vec::new();
        for step in 0..10 {
            let (expected, found) =
                (reference.step(step, &batch, &options).unwrap(), placed.step(step, &batch, &options).unwrap());
            assert_eq!(found.skipped, None);
            losses.push((found.sums.loss, expected.sums.loss));
            assert!((found.sums.loss - expected.sums.loss).abs() < 0.05, "{precision:?} {losses:?}");
            if step == 4 {
                // There and back again: nothing is lost.
                placed.place(&on(precision)).unwrap();
            }
        }
        // Keys' biases have no gradient but rounding, which Adam makes steps of.
        let arena = |learner: &mut Learner| {
            let student = learner.student().unwrap();
            let mut arena = student.arena().to_vec();
            let keys = student.layout().slots().iter().filter(|slot| slot.name.ends_with("key.bias"));
            keys.for_each(|slot| arena[slot.range.clone()].fill(0.0));
            arena
        };
        let (expected, found) = (arena(&mut reference), arena(&mut placed));
        let moved = |from: &[f32], to: &[f32]| -> f64 {
            from.iter().zip(to).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt()
        };
        let (apart, way) = (moved(&expected, &found), moved(&begin, &expected));
        assert!(apart < tolerance * way && way > 0.3, "{precision:?}: {apart} apart after {way}");
        assert_eq!(placed.optimiser.updates, 10);
        let part = &batch.micro_batches[0];
        let scores = [&mut reference, &mut placed].map(|learner| learner.score(&part.packed, &part.gold_ids).unwrap());
        for (expected, found) in scores[0].iter().zip(&scores[1]) {
            assert!((found.loss - expected.loss).abs() < 0.1 * tolerance.max(0.1), "{found:?} for {expected:?}");
            if precision == Precision::F32 {
                assert_eq!((found.correct, found.best_id), (expected.correct, expected.best_id));
            }
        }
    }
}

#[test]
fn without_room_for_a_batch_it_goes_in_parts() {
    let configuration = shape(Architecture::Bert, 64, 64, 2);
    let (reference, optimiser) = student(&configuration);
    let batch = batch(&[9, 14, 5, 20], configuration.vocabulary_size, targets()[1]);
    let part = &batch.micro_batches[0];
    let dropout = Some(Dropout { stream: Philox::new(4, "dropout", &[]), step: 5, first_row: 0 });
    let gradients = |device: Arc<Emulated>| {
        let on = OnDevice { device: device.clone(), precision: Precision::F32 }.into();
        let mut device = DeviceStudent::new(&on, &reference, &optimiser).unwrap();
        let sums = device.accumulate(vec![(part, dropout)], 0.6).unwrap();
        let scores = device.score(&part.packed, &part.gold_ids).unwrap();
        let mut gradients = vec![0.0; reference.layout().length()];
        device.replicas[0].training.read_gradients(&mut gradients).unwrap();
        (sums, scores, gradients, device.take_halvings())
    };
    let large = Arc::new(Emulated::default());
    let whole = gradients(Arc::clone(&large));
    // The four arenas, and two thirds of what the batch takes besides.
    let arenas = 16 * reference.layout().length();
    let small = gradients(Arc::new(Emulated::with_capacity(arenas + (large.peak() - arenas) * 2 / 3)));
    assert!(whole.3 == 0 && small.3 > 0, "{} and {}", whole.3, small.3);
    assert!((whole.0.loss - small.0.loss).abs() < 1e-6 && whole.0.positions == small.0.positions);
    assert_eq!(whole.1.len(), small.1.len());
    let (apart, name) = furthest(reference.layout(), &small.2, &whole.2);
    assert!(apart < 1e-5, "{name} is {apart} apart");
}

/// The last parameters and the optimiser's means of a training on these accelerators; after step 2 it goes on on `then`.
fn trained(on: Option<&Ranks>, then: Option<&Ranks>) -> (Vec<f32>, [Vec<f32>; 2]) {
    let configuration = shape(Architecture::Bert, 32, 32, 1);
    let options = TrainOptions { steps: Some(4), warmup_steps: 1, learning_rate: 1e-3, ..TrainOptions::default() };
    // Four micro-batches: one for each of three, and one that is shared out.
    let batch = batch_in_parts(&[4, 5, 6, 7, 8, 9, 11], configuration.vocabulary_size, targets()[0], 16);
    assert_eq!(batch.micro_batches.len(), 4);
    let (student, optimiser) = student(&configuration);
    let mut learner = Learner::new(student, optimiser, 1);
    on.iter().try_for_each(|on| learner.place(on)).unwrap();
    for step in 0..4 {
        if step == 2 {
            then.iter().try_for_each(|then| learner.place(then)).unwrap();
        }
        let learned = learner.step(step, &batch, &options).unwrap();
        assert_eq!(learned.skipped, None);
        let norm = learner.gradient_norm().unwrap();
        assert!(norm == 0.0, "what was used up is gone: {norm}");
        learner.clear_gradients().unwrap();
    }
    let arena = learner.student().unwrap().arena().to_vec();
    (arena, [learner.optimiser.first, learner.optimiser.second])
}

/// How far apart two arenas are, relative to the first.
fn apart(expected: &[f32], found: &[f32]) -> f64 {
    let square = |values: &mut dyn Iterator<Item = f32>| values.map(|x| f64::from(x).powi(2)).sum::<f64>();
    let difference = square(&mut expected.iter().zip(found).map(|(a, b)| a - b));
    (difference / square(&mut expected.iter().copied())).sqrt()
}

#[test]
fn several_end_where_one_ends() {
    let (alone, moments) = trained(Some(&on(Precision::F32)), None);
    let three = ranks(3, Precision::F32);
    let of_three = trained(Some(&three), None);
    let of_two_then_three = trained(Some(&ranks(2, Precision::F32)), Some(&three));
    for (found, found_moments) in [&of_three, &of_two_then_three] {
        // A parameter without a gradient but rounding goes its own way: at most by the learning rate in each step.
        assert!(apart(&alone, found) < 1e-3, "{}", apart(&alone, found));
        for (expected, found) in moments.iter().zip(found_moments) {
            assert!(apart(expected, found) < 1e-4, "{}", apart(expected, found));
        }
    }
    let in_bf16 = [on(Precision::Bf16), ranks(2, Precision::Bf16)].map(|on| trained(Some(&on), None).0);
    assert!(apart(&in_bf16[0], &in_bf16[1]) < 1e-2, "{}", apart(&in_bf16[0], &in_bf16[1]));
    // The same every time.
    assert_eq!(of_three, trained(Some(&three), None));
}

#[test]
fn each_of_several_keeps_its_part_of_the_optimiser_s_state() {
    let configuration = shape(Architecture::Bert, 64, 64, 2);
    let (reference, optimiser) = student(&configuration);
    let arena = 4 * reference.layout().length();
    let peak = |count: usize| {
        let devices: Vec<Arc<Emulated>> = (0..count).map(|_| Arc::new(Emulated::default())).collect();
        let accelerators = devices.iter().map(|device| Arc::clone(device) as Arc<dyn Accelerator>).collect();
        DeviceStudent::new(&Ranks::through_host(accelerators, Precision::F32), &reference, &optimiser).unwrap();
        devices.iter().map(|device| device.peak()).max().unwrap()
    };
    let (alone, of_four) = (peak(1), peak(4));
    assert!(alone - of_four >= arena * 3 / 2 - 1000, "{alone} and {of_four}, an arena is {arena}");
}

#[test]
fn scores_of_several_are_those_of_one() {
    let configuration = shape(Architecture::Bert, 32, 32, 1);
    let (reference, optimiser) = student(&configuration);
    for lengths in [&[12, 17, 5, 9][..], &[7]] {
        let batch = batch(lengths, configuration.vocabulary_size, targets()[0]);
        let part = &batch.micro_batches[0];
        let scores = |on: &Ranks| {
            DeviceStudent::new(on, &reference, &optimiser).unwrap().score(&part.packed, &part.gold_ids).unwrap()
        };
        let (alone, of_three) = (scores(&on(Precision::F32)), scores(&ranks(3, Precision::F32)));
        assert_eq!([alone.len(), of_three.len()], [part.gold_ids.len(); 2]);
        for (expected, found) in alone.iter().zip(&of_three) {
            assert!(
                (expected.loss - found.loss).abs() < 1e-4 && expected.best_id == found.best_id,
                "{found:?} for {expected:?}"
            );
        }
    }
}

#[test]
fn without_one_of_several_there_is_no_step() {
    let configuration = shape(Architecture::Bert, 32, 32, 1);
    let (reference, optimiser) = student(&configuration);
    let devices: Vec<Arc<dyn Accelerator>> = vec![accelerator(), Arc::new(Emulated::failing_after(30))];
    let mut device = DeviceStudent::new(&Ranks::through_host(devices, Precision::F32), &reference, &optimiser).unwrap();
    let batch = batch(&[12, 17], configuration.vocabulary_size, targets()[0]);
    let error = device.accumulate(vec![(&batch.micro_batches[0], None)], 0.6).unwrap_err();
    assert!(error.to_string().contains("fallen off the bus"), "{error}");
}
