//! Gradients reach every parameter, are those of the loss, and depend neither on threads nor on chance.
#![allow(clippy::unwrap_used)]

use candle_core::{Device, Tensor, Var};
use model::random::Philox;
use model::{Activation, Architecture, Bert, Configuration, Dropout, ModelError, PackedBatch, Parameters};
use std::collections::BTreeMap;
use std::process::Command;

fn configuration(architecture: Architecture, embedding_size: usize, tied: bool) -> Configuration {
    Configuration {
        architecture,
        vocabulary_size: 67,
        embedding_size,
        hidden_size: 24,
        layers: 2,
        heads: 3,
        intermediate_size: 40,
        max_position_embeddings: 19,
        type_vocabulary_size: 2,
        activation: Activation::Gelu,
        layer_norm_eps: 1e-12,
        hidden_dropout: 0.1,
        attention_dropout: 0.2,
        initializer_range: 0.3,
        tie_word_embeddings: tied,
        pad_token_id: 0,
    }
}

fn variants() -> [(&'static str, Configuration); 4] {
    [
        ("plain", configuration(Architecture::Bert, 24, true)),
        ("untied", configuration(Architecture::Bert, 24, false)),
        ("factorised", configuration(Architecture::ElectraGenerator, 16, true)),
        ("factorised and untied", configuration(Architecture::ElectraGenerator, 16, false)),
    ]
}

/// Sequences of odd lengths, a token twice, and gold ids.
fn batch() -> (PackedBatch, Vec<u32>) {
    let lengths = vec![3, 3, 7, 18, 18, 5];
    let tokens: usize = lengths.iter().sum();
    let token_ids = (0..tokens as u32).map(|i| i * 7 % 61 + 1).collect();
    let batch = PackedBatch { token_ids, lengths, masked_rows: vec![1, 4, 8, 9, 14, 20, 33, 47, 51] };
    (batch, vec![3, 9, 9, 14, 60, 5, 1, 66, 30])
}

fn dropout() -> Option<Dropout> {
    Some(Dropout { stream: Philox::new(3, "dropout", &[]), step: 12 })
}

/// Mean cross entropy of the gold tokens.
fn loss(bert: &Bert, dropout: Option<Dropout>) -> Tensor {
    let (batch, gold) = batch();
    let (weight, bias) = bert.decoder();
    let logits = bert.transform_masked(&batch, dropout).unwrap().matmul(&weight.t().unwrap()).unwrap();
    let logits = logits.broadcast_add(bias).unwrap();
    let gold = Tensor::new(gold.as_slice(), &Device::Cpu).unwrap().unsqueeze(1).unwrap();
    let log_sum_exp = logits.log_sum_exp(1).unwrap();
    (log_sum_exp - logits.gather(&gold, 1).unwrap().squeeze(1).unwrap()).unwrap().mean_all().unwrap()
}

/// A model whose parameters are variables, all away from 0 and 1.
fn trainable(configuration: &Configuration) -> (Bert, BTreeMap<String, Var>) {
    let fresh = Parameters::initialise(configuration, 1, &Device::Cpu).unwrap();
    let noisy = |(name, tensor): (&str, &Tensor)| {
        let noise = noise(name, 5, tensor);
        (name.to_owned(), Var::from_tensor(&(tensor + (noise * 0.2).unwrap()).unwrap()).unwrap())
    };
    let variables: BTreeMap<String, Var> = fresh.iter().map(noisy).collect();
    let map = variables.iter().map(|(name, variable)| (name.clone(), variable.as_tensor().clone())).collect();
    let parameters = Parameters::from_map(map, configuration).unwrap();
    (Bert { configuration: configuration.clone(), parameters }, variables)
}

fn noise(name: &str, seed: u64, like: &Tensor) -> Tensor {
    let stream = Philox::new(seed, "noise", &[name.as_bytes()]);
    let values: Vec<f32> = (0..like.elem_count() as u64).map(|i| stream.normal(i, 0) as f32).collect();
    Tensor::from_vec(values, like.shape(), &Device::Cpu).unwrap()
}

fn gradients(configuration: &Configuration) -> BTreeMap<String, Vec<f32>> {
    let (bert, variables) = trainable(configuration);
    let store = loss(&bert, dropout()).backward().unwrap();
    let list = |(name, variable): (String, Var)| {
        let gradient = store.get(&variable).unwrap_or_else(|| panic!("`{name}` has no gradient"));
        (name, gradient.flatten_all().unwrap().to_vec1().unwrap())
    };
    variables.into_iter().map(list).collect()
}

#[test]
fn every_parameter_has_a_finite_gradient_that_is_not_zero() {
    for (variant, configuration) in variants() {
        let gradients = gradients(&configuration);
        assert_eq!(gradients.len(), Parameters::expected(&configuration).len());
        for (name, gradient) in gradients {
            assert!(gradient.iter().all(|value| value.is_finite()), "{variant}: {name}");
            // Keys only shift all scores of a row, so their biases matter to nothing, up to rounding.
            let least = if name.ends_with("key.bias") { 0.0 } else { 1e-5 };
            assert!(gradient.iter().any(|value| value.abs() > least), "{variant}: {name}");
        }
    }
}

#[test]
fn gradients_are_the_slopes_of_the_loss() {
    for (variant, configuration) in variants() {
        let (bert, variables) = trainable(&configuration);
        let store = loss(&bert, dropout()).backward().unwrap();
        for (name, variable) in &variables {
            let direction = noise(name, 6, variable);
            let at = |step: f64| {
                let mut map: BTreeMap<String, Tensor> =
                    bert.parameters.iter().map(|(name, tensor)| (name.to_owned(), tensor.detach())).collect();
                map.insert(name.clone(), (variable.as_tensor() + (&direction * step).unwrap()).unwrap());
                let parameters = Parameters::from_map(map, &configuration).unwrap();
                let bert = Bert { configuration: configuration.clone(), parameters };
                f64::from(loss(&bert, dropout()).to_scalar::<f32>().unwrap())
            };
            let step = 2e-3;
            let found = (at(step) - at(-step)) / (2.0 * step);
            let products = (store.get(variable).unwrap() * direction).unwrap();
            let expected = f64::from(products.sum_all().unwrap().to_scalar::<f32>().unwrap());
            let size = f64::from(products.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap()).sqrt();
            assert!(
                (found - expected).abs() < 0.02 * size.max(expected.abs()) + 1e-3,
                "{variant}: {name}: {found} against {expected}"
            );
        }
    }
}

#[test]
fn dropout_is_a_function_of_stream_and_step() {
    let (bert, _) = trainable(&configuration(Architecture::Bert, 24, true));
    let of = |dropout| loss(&bert, dropout).to_scalar::<f32>().unwrap().to_bits();
    let next = dropout().map(|dropout| Dropout { step: dropout.step + 1, ..dropout });
    assert_eq!(of(dropout()), of(dropout()));
    assert_ne!(of(dropout()), of(next));
    assert_ne!(of(dropout()), of(None));
}

#[test]
fn a_sequence_is_encoded_alike_alone_and_in_company() {
    let (bert, _) = trainable(&configuration(Architecture::ElectraGenerator, 16, true));
    let (batch, _) = batch();
    let together = bert.encode(&batch, None).unwrap().to_vec2::<f32>().unwrap();
    let mut first_row = 0;
    for &length in &batch.lengths {
        let token_ids = batch.token_ids[first_row..first_row + length].to_vec();
        let alone = PackedBatch { token_ids, lengths: vec![length], masked_rows: vec![] };
        let alone = bert.encode(&alone, None).unwrap().to_vec2::<f32>().unwrap();
        for (alone, together) in alone.iter().flatten().zip(together[first_row..].iter().flatten()) {
            assert!((alone - together).abs() < 1e-4);
        }
        first_row += length;
    }
}

#[test]
fn unusable_batches_are_refused() {
    let (bert, _) = trainable(&configuration(Architecture::Bert, 24, true));
    let batch = |token_ids: &[u32], lengths: &[usize], masked_rows: &[u32]| PackedBatch {
        token_ids: token_ids.to_vec(),
        lengths: lengths.to_vec(),
        masked_rows: masked_rows.to_vec(),
    };
    for (batch, expected) in [
        (batch(&[], &[], &[]), "no tokens"),
        (batch(&[1, 2], &[2], &[]), "no masked rows"),
        (batch(&[1, 67], &[2], &[0]), "token id 67"),
        (batch(&[1, 2], &[3], &[0]), "sum to 3"),
        (batch(&[1, 2], &[2, 0], &[0]), "a sequence of 0 tokens"),
        (batch(&[1; 20], &[20], &[0]), "a sequence of 20 tokens; this model takes 1 to 19"),
        (batch(&[1, 2], &[2], &[2]), "beyond the 2 tokens"),
        (batch(&[1, 2], &[2], &[1, 1]), "strictly ascending"),
    ] {
        let error = bert.transform_masked(&batch, None).unwrap_err();
        assert!(matches!(error, ModelError::Batch(_)) && error.to_string().contains(expected), "{error}");
    }
}

const CHILD: &str = "MODEL_TEST_CHILD";

/// Large enough for every operation to be cut into tasks, and for products to use several threads.
fn larger() -> (Bert, BTreeMap<String, Var>, PackedBatch) {
    let configuration = Configuration {
        vocabulary_size: 300,
        embedding_size: 64,
        hidden_size: 96,
        intermediate_size: 384,
        max_position_embeddings: 65,
        ..configuration(Architecture::ElectraGenerator, 16, true)
    };
    let (bert, variables) = trainable(&configuration);
    let lengths: Vec<usize> = (0..30).map(|i| 5 + i * 2).chain([65; 9]).collect();
    let tokens = lengths.iter().sum::<usize>() as u32;
    let batch = PackedBatch {
        token_ids: (0..tokens).map(|i| i * 7 % 299 + 1).collect(),
        lengths,
        masked_rows: (0..tokens).filter(|row| row % 7 == 2).collect(),
    };
    (bert, variables, batch)
}

/// In a child process: prints a checksum of all gradients. The number of threads is a matter of the whole process.
#[test]
fn child_prints_gradients() {
    if std::env::var_os(CHILD).is_none() {
        return;
    }
    let (bert, variables, batch) = larger();
    let output = bert.transform_masked(&batch, dropout()).unwrap();
    let store = (&output * noise("output", 7, &output)).unwrap().sum_all().unwrap().backward().unwrap();
    let decoder = ["generator_lm_head.bias"];
    let mut checksum = 0_u64;
    for (name, variable) in variables.iter().filter(|(name, _)| !decoder.contains(&name.as_str())) {
        let gradient = store.get(variable).unwrap_or_else(|| panic!("`{name}` has no gradient"));
        for value in gradient.flatten_all().unwrap().to_vec1::<f32>().unwrap() {
            checksum = checksum.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(value.to_bits().into());
        }
    }
    println!("checksum {checksum:016x}");
}

#[test]
fn gradients_do_not_depend_on_the_number_of_threads() {
    let checksum = |threads: &str| {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_prints_gradients", "--nocapture"])
            .envs([(CHILD, "1"), ("RAYON_NUM_THREADS", threads), ("CANDLE_NUM_THREADS", threads)])
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let at = text.find("checksum ").unwrap_or_else(|| panic!("no checksum in {text}"));
        text[at..at + 25].to_owned()
    };
    let single = checksum("1");
    for threads in ["2", "3", "7"] {
        assert_eq!(single, checksum(threads), "{threads} threads");
    }
}
