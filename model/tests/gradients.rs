//! The network written by hand against candle's autograd on the plain composition: hidden states and gradients are the same, reach
//! every parameter, are the slopes of the loss, and depend neither on threads nor on chance.
#![allow(clippy::unwrap_used)]

use candle_core::{Device, Tensor, Var};
use model::random::Philox;
use model::{
    Activation, Architecture, Bert, Configuration, Dropout, Inference, ModelError, PackedBatch, Parameters, Training,
};
use std::collections::BTreeMap;

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
        classifier_dropout: None,
        initializer_range: 0.3,
        tie_word_embeddings: tied,
        pad_token_id: 0,
    }
}

fn variants() -> Vec<(String, Configuration)> {
    let plain = configuration(Architecture::Bert, 24, true);
    let factorised = configuration(Architecture::ElectraGenerator, 16, true);
    let mut variants = vec![
        ("untied".to_owned(), configuration(Architecture::Bert, 24, false)),
        ("factorised".to_owned(), factorised.clone()),
        ("factorised and untied".to_owned(), configuration(Architecture::ElectraGenerator, 16, false)),
        ("one layer".to_owned(), Configuration { layers: 1, ..plain.clone() }),
        // Heads of a panel's width, and of more than one cache line.
        (
            "wide".to_owned(),
            Configuration { hidden_size: 128, heads: 2, intermediate_size: 136, initializer_range: 0.1, ..factorised },
        ),
    ];
    for activation in [Activation::Gelu, Activation::GeluTanh, Activation::Relu, Activation::Silu] {
        variants.push((format!("{activation:?}"), Configuration { activation, ..plain.clone() }));
    }
    variants
}

/// Sequences of odd lengths, a token twice; the fourth sequence has no masked row.
fn batch() -> PackedBatch {
    let lengths = vec![3, 3, 7, 1, 18, 18, 5];
    let tokens: usize = lengths.iter().sum();
    let token_ids = (0..tokens as u32).map(|i| i * 7 % 61 + 1).collect();
    PackedBatch { token_ids, lengths, masked_rows: vec![1, 4, 8, 9, 14, 20, 33, 47, 51], ..PackedBatch::default() }
}

fn dropout() -> Option<Dropout> {
    Some(Dropout { stream: Philox::new(3, "dropout", &[]), step: 12, first_row: 0 })
}

/// Parameters all away from 0 and 1.
fn parameters(configuration: &Configuration) -> BTreeMap<String, Tensor> {
    let fresh = Parameters::initialise(configuration, 1, &Device::Cpu).unwrap();
    // Sums over more inputs are as large as those over fewer.
    let size = 0.2 * (24.0 / configuration.hidden_size as f64).sqrt();
    let noisy = |(name, tensor): (&str, &Tensor)| {
        (name.to_owned(), (tensor + (noise(name, 5, tensor) * size).unwrap()).unwrap())
    };
    fresh.iter().map(noisy).collect()
}

fn noise(name: &str, seed: u64, like: &Tensor) -> Tensor {
    let stream = Philox::new(seed, "noise", &[name.as_bytes()]);
    let values: Vec<f32> = (0..like.elem_count() as u64).map(|i| stream.normal(i, 0) as f32).collect();
    Tensor::from_vec(values, like.shape(), &Device::Cpu).unwrap()
}

fn is_of_decoder(name: &str) -> bool {
    name.starts_with("generator_lm_head") || ["cls.predictions.bias", "cls.predictions.decoder.weight"].contains(&name)
}

fn list(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// Hidden states, and the gradients of their product with fixed noise.
struct Passes {
    hidden: Vec<f32>,
    gradients: BTreeMap<String, Vec<f32>>,
}

fn by_autograd(configuration: &Configuration, batch: &PackedBatch, dropout: Option<Dropout>) -> Passes {
    let variables: BTreeMap<String, Var> = parameters(configuration)
        .iter()
        .map(|(name, tensor)| (name.clone(), Var::from_tensor(tensor).unwrap()))
        .collect();
    let map = variables.iter().map(|(name, variable)| (name.clone(), variable.as_tensor().clone())).collect();
    let parameters = Parameters::from_map(map, configuration).unwrap();
    let bert = Bert { configuration: configuration.clone(), parameters };
    let hidden = bert.transform_masked(batch, dropout).unwrap();
    let loss = (&hidden * noise("hidden", 7, &hidden)).unwrap().sum_all().unwrap();
    let store = loss.backward().unwrap();
    let gradients = variables.iter().filter_map(|(name, variable)| Some((name.clone(), list(store.get(variable)?))));
    Passes { hidden: list(&hidden), gradients: gradients.collect() }
}

/// A network in training, and the arena of its parameters.
fn network(configuration: &Configuration, parameters: &BTreeMap<String, Tensor>) -> (Training, Vec<f32>) {
    let parameters = Parameters::from_map(parameters.clone(), configuration).unwrap();
    let mut network = Training::new(configuration);
    let arena = network.layout().gather(&parameters).unwrap();
    network.pack(&arena);
    (network, arena)
}

fn by_hand(configuration: &Configuration, batch: &PackedBatch, dropout: Option<Dropout>) -> Passes {
    let (mut network, arena) = network(configuration, &parameters(configuration));
    let mut gradients = vec![0.0; arena.len()];
    let mut hidden = Vec::new();
    // Twice: nothing of a batch may be left for the next one, in which gradients add up.
    for _ in 0..2 {
        hidden = network.forward(&arena, batch, dropout).unwrap().to_vec();
        let shape = Tensor::new(hidden.as_slice(), &Device::Cpu).unwrap();
        let of_hidden = list(&noise("hidden", 7, &shape));
        network.backward(&arena, &of_hidden, &mut gradients);
    }
    let slots = network.layout().slots().iter();
    let half = |value: &f32| value / 2.0;
    let gradients =
        slots.map(|slot| (slot.name.clone(), gradients[slot.range.clone()].iter().map(half).collect())).collect();
    Passes { hidden, gradients }
}

fn assert_close(found: &[f32], expected: &[f32], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(1e-3_f32, |largest, value| largest.max(value.abs()));
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!((found - expected).abs() <= 3e-5 * largest, "{what} [{index}]: {found} against {expected}");
    }
}

#[test]
fn passes_agree_with_autograd_on_the_plain_composition() {
    for (variant, configuration) in variants() {
        for dropout in [None, dropout()] {
            let what = format!("{variant}, dropout: {}", dropout.is_some());
            let expected = by_autograd(&configuration, &batch(), dropout);
            let found = by_hand(&configuration, &batch(), dropout);
            assert_close(&found.hidden, &expected.hidden, &what);
            for (name, found) in &found.gradients {
                match expected.gradients.get(name) {
                    // Keys only shift all scores of a row, so their biases matter to nothing, up to rounding.
                    Some(_) if name.ends_with("key.bias") => {
                        assert!(found.iter().all(|value| value.abs() < 1e-3), "{what}: {name}");
                    }
                    Some(expected) => assert_close(found, expected, &format!("{what}: {name}")),
                    // The decoder's own.
                    None => assert!(found.iter().all(|value| *value == 0.0), "{what}: {name}"),
                }
            }
        }
    }
}

/// As a pair of texts would have them, in some sequences.
fn typed(batch: PackedBatch) -> PackedBatch {
    let types = batch
        .lengths
        .iter()
        .flat_map(|length| (0..*length).map(move |at| u8::from(at > length / 2 && length % 2 == 1)));
    PackedBatch { token_types: types.collect(), ..batch }
}

/// The last layer's output at masked rows, and gradients; by autograd, then by hand.
fn encodings(configuration: &Configuration, batch: &PackedBatch, dropout: Option<Dropout>) -> [Passes; 2] {
    let variables: BTreeMap<String, Var> = parameters(configuration)
        .iter()
        .map(|(name, tensor)| (name.clone(), Var::from_tensor(tensor).unwrap()))
        .collect();
    let map = variables.iter().map(|(name, variable)| (name.clone(), variable.as_tensor().clone())).collect();
    let reference =
        Bert { configuration: configuration.clone(), parameters: Parameters::from_map(map, configuration).unwrap() };
    let rows = Tensor::new(batch.masked_rows.as_slice(), &Device::Cpu).unwrap();
    let hidden = reference.encode(batch, dropout).unwrap().index_select(&rows, 0).unwrap();
    let of_hidden = noise("hidden", 7, &hidden);
    let store = (&hidden * &of_hidden).unwrap().sum_all().unwrap().backward().unwrap();
    let gradients = variables.iter().filter_map(|(name, variable)| Some((name.clone(), list(store.get(variable)?))));
    let expected = Passes { hidden: list(&hidden), gradients: gradients.collect() };

    let (mut network, arena) = network(configuration, &parameters(configuration));
    let mut gradients = vec![0.0; arena.len()];
    // After a pass with the head, of which nothing may be left.
    network.forward(&arena, &self::batch(), dropout).unwrap();
    let hidden = network.encode(&arena, batch, dropout).unwrap().to_vec();
    network.encode_backward(&arena, &list(&of_hidden), &mut gradients);
    let slots = network.layout().slots().iter();
    let gradients = slots.map(|slot| (slot.name.clone(), gradients[slot.range.clone()].to_vec())).collect();
    [expected, Passes { hidden, gradients }]
}

#[test]
fn encodings_agree_with_autograd_with_and_without_types() {
    let all = |batch: PackedBatch| PackedBatch { masked_rows: (0..batch.tokens() as u32).collect(), ..batch };
    for (variant, configuration) in variants() {
        for (batch, dropout) in [(typed(batch()), dropout()), (typed(all(batch())), None), (batch(), None)] {
            let what = format!("{variant}, types: {}", !batch.token_types.is_empty());
            let [expected, found] = encodings(&configuration, &batch, dropout);
            assert_close(&found.hidden, &expected.hidden, &what);
            for (name, found) in found.gradients.iter().filter(|(name, _)| !name.ends_with("key.bias")) {
                match expected.gradients.get(name) {
                    Some(expected) => assert_close(found, expected, &format!("{what}: {name}")),
                    None => assert!(found.iter().all(|value| *value == 0.0), "{what}: {name}"),
                }
            }
            let types = found.gradients.iter().find(|(name, _)| name.contains("token_type")).unwrap().1;
            let (zero, one) = types.split_at(configuration.embedding_size);
            assert!(zero.iter().all(|value| *value != 0.0), "{what}");
            assert_eq!(one.iter().any(|value| *value != 0.0), !batch.token_types.is_empty(), "{what}");
        }
    }
}

/// With types, the network that has tables for type 0 must not use them.
#[test]
fn hidden_states_of_typed_tokens_agree() {
    for (variant, configuration) in variants().into_iter().chain([("larger".to_owned(), larger())]) {
        let batch = typed(if variant == "larger" { many() } else { batch() });
        let expected = by_autograd(&configuration, &batch, None).hidden;
        assert_close(&by_hand(&configuration, &batch, None).hidden, &expected, &variant);
        let parameters = Parameters::from_map(parameters(&configuration), &configuration).unwrap();
        let network = Inference::new(&configuration, &parameters).unwrap();
        assert_close(&hidden_of(&network, &batch), &expected, &variant);
        let zeros = PackedBatch { token_types: vec![0; batch.tokens()], ..batch.clone() };
        let none = PackedBatch { token_types: Vec::new(), ..batch };
        assert_eq!(hidden_of(&network, &zeros), hidden_of(&network, &none));
    }
}

/// Several shards, some of which have no masked row.
#[test]
fn passes_agree_over_several_shards() {
    let batch =
        PackedBatch { masked_rows: many().masked_rows.into_iter().filter(|row| *row < 300).collect(), ..many() };
    let (found, expected) = (by_hand(&larger(), &batch, dropout()), by_autograd(&larger(), &batch, dropout()));
    assert_close(&found.hidden, &expected.hidden, "hidden");
    for (name, expected) in expected.gradients.iter().filter(|(name, _)| !name.ends_with("key.bias")) {
        assert_close(&found.gradients[name], expected, name);
    }
}

#[test]
fn every_parameter_before_the_decoder_has_a_gradient_that_is_not_zero() {
    for (variant, configuration) in variants() {
        for (name, gradient) in by_hand(&configuration, &batch(), dropout()).gradients {
            let least = if name.ends_with("key.bias") { 0.0 } else { 1e-5 };
            assert!(is_of_decoder(&name) || gradient.iter().any(|value| value.abs() > least), "{variant}: {name}");
            assert!(gradient.iter().all(|value| value.is_finite()), "{variant}: {name}");
        }
    }
}

#[test]
fn gradients_are_the_slopes_of_the_loss() {
    // Not with RELU, whose corners lie on the way.
    let smooth = |(_, configuration): &(String, Configuration)| configuration.activation != Activation::Relu;
    for (variant, configuration) in variants().into_iter().filter(smooth) {
        let parameters = parameters(&configuration);
        let gradients = by_hand(&configuration, &batch(), dropout()).gradients;
        for (name, tensor) in parameters.iter().filter(|(name, _)| !is_of_decoder(name)) {
            let direction = noise(name, 6, tensor);
            let at = |step: f64| {
                let mut moved = parameters.clone();
                moved.insert(name.clone(), (tensor + (&direction * step).unwrap()).unwrap());
                let (mut network, arena) = network(&configuration, &moved);
                let hidden = network.forward(&arena, &batch(), dropout()).unwrap();
                let hidden = Tensor::new(hidden, &Device::Cpu).unwrap();
                let products = (&hidden * noise("hidden", 7, &hidden)).unwrap();
                list(&products).iter().map(|product| f64::from(*product)).sum::<f64>()
            };
            let step = 1e-3;
            let found = (at(step) - at(-step)) / (2.0 * step);
            let products = gradients[name].iter().zip(list(&direction)).map(|(a, b)| f64::from(*a) * f64::from(b));
            let (expected, squares) = products.fold((0.0, 0.0), |(sum, squares), x| (sum + x, squares + x * x));
            assert!(
                (found - expected).abs() < 0.03 * f64::max(squares.sqrt(), expected.abs()) + 2e-2,
                "{variant}: {name}: {found} against {expected}"
            );
        }
    }
}

#[test]
fn dropout_is_a_function_of_stream_and_step() {
    let configuration = configuration(Architecture::Bert, 24, true);
    let of = |dropout| by_hand(&configuration, &batch(), dropout).hidden;
    let next = dropout().map(|dropout| Dropout { step: dropout.step + 1, ..dropout });
    assert_eq!(of(dropout()), of(dropout()));
    assert_ne!(of(dropout()), of(next));
    assert_ne!(of(dropout()), of(None));
}

fn hidden_of(network: &Inference, batch: &PackedBatch) -> Vec<f32> {
    network.map_shards(batch, |_, hidden| hidden.to_vec()).unwrap().concat()
}

#[test]
fn a_sequence_has_the_same_bits_alone_and_in_company() {
    let configuration = larger();
    let map = parameters(&configuration);
    let network = Inference::new(&configuration, &Parameters::from_map(map, &configuration).unwrap()).unwrap();
    let batch = many();
    let together = hidden_of(&network, &batch);
    let (mut first_row, mut first_value) = (0, 0);
    for &length in &batch.lengths {
        let rows = first_row..first_row + length;
        let masked = batch.masked_rows.iter().filter(|row| rows.contains(&(**row as usize)));
        let alone = PackedBatch {
            token_ids: batch.token_ids[rows.clone()].to_vec(),
            lengths: vec![length],
            masked_rows: masked.map(|row| row - rows.start as u32).collect(),
            ..PackedBatch::default()
        };
        let alone = hidden_of(&network, &alone);
        assert_eq!(alone, together[first_value..first_value + alone.len()]);
        (first_row, first_value) = (rows.end, first_value + alone.len());
    }
}

#[test]
fn a_teacher_agrees_with_the_plain_composition() {
    for (variant, configuration) in variants() {
        let parameters = Parameters::from_map(parameters(&configuration), &configuration).unwrap();
        let network = Inference::new(&configuration, &parameters).unwrap();
        assert_close(&hidden_of(&network, &batch()), &by_autograd(&configuration, &batch(), None).hidden, &variant);
    }
    let (configuration, batch) = (larger(), many());
    let parameters = Parameters::from_map(parameters(&configuration), &configuration).unwrap();
    let network = Inference::new(&configuration, &parameters).unwrap();
    assert_close(&hidden_of(&network, &batch), &by_autograd(&configuration, &batch, None).hidden, "larger");
}

#[test]
fn unusable_batches_are_refused() {
    let configuration = configuration(Architecture::Bert, 24, true);
    let (mut network, arena) = network(&configuration, &parameters(&configuration));
    let batch = |token_ids: &[u32], lengths: &[usize], masked_rows: &[u32]| PackedBatch {
        token_ids: token_ids.to_vec(),
        lengths: lengths.to_vec(),
        masked_rows: masked_rows.to_vec(),
        ..PackedBatch::default()
    };
    for (batch, expected) in [
        (batch(&[], &[], &[]), "no tokens"),
        (batch(&[1, 67], &[2], &[0]), "token id 67"),
        (batch(&[1, 2], &[3], &[0]), "sum to 3"),
        (batch(&[1, 2], &[2, 0], &[0]), "a sequence of 0 tokens"),
        (batch(&[1; 20], &[20], &[0]), "a sequence of 20 tokens; this model takes 1 to 19"),
        (batch(&[1, 2], &[2], &[2]), "beyond the 2 tokens"),
        (batch(&[1, 2], &[2], &[1, 1]), "strictly ascending"),
    ] {
        let error = network.forward(&arena, &batch, None).unwrap_err();
        assert!(matches!(error, ModelError::Batch(_)) && error.to_string().contains(expected), "{error}");
    }
    let types = |token_types: &[u8]| PackedBatch { token_types: token_types.to_vec(), ..batch(&[1, 2], &[2], &[]) };
    for (batch, expected) in [(types(&[0]), "1 token types for 2 tokens"), (types(&[0, 2]), "token type 2")] {
        let error = network.forward(&arena, &batch, None).unwrap_err();
        assert!(matches!(error, ModelError::Batch(_)) && error.to_string().contains(expected), "{error}");
    }
    assert!(network.forward(&arena, &batch(&[1, 2], &[2], &[]), None).unwrap().is_empty());
}

fn larger() -> Configuration {
    Configuration {
        vocabulary_size: 300,
        embedding_size: 64,
        hidden_size: 96,
        intermediate_size: 384,
        max_position_embeddings: 65,
        initializer_range: 0.05,
        ..configuration(Architecture::ElectraGenerator, 16, true)
    }
}

/// Enough for several shards and tasks.
fn many() -> PackedBatch {
    let lengths: Vec<usize> = (0..30).map(|i| 5 + i * 2).chain([65; 9]).collect();
    let tokens = lengths.iter().sum::<usize>() as u32;
    let token_ids = (0..tokens).map(|i| i * 7 % 299 + 1).collect();
    PackedBatch {
        token_ids,
        lengths,
        masked_rows: (0..tokens).filter(|row| row % 7 == 2).collect(),
        ..PackedBatch::default()
    }
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let passes = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| by_hand(&larger(), &many(), dropout()))
    };
    let single = passes(1);
    for threads in [2, 3, 7] {
        let several = passes(threads);
        assert_eq!(single.hidden, several.hidden, "{threads} threads");
        assert_eq!(single.gradients, several.gradients, "{threads} threads");
    }
}
