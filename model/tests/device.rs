//! The network and the labelling head on an accelerator, held against those of the processor.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use candle_core::Device;
use kernel_emulator::{Emulated, accelerator};
use model::device::{Accelerator, Best, Buffer, DecoderPlace, Draws, Network, OnDevice, Precision, TopK};
use model::random::Philox;
use model::{Activation, Architecture, Bert, Configuration, Inference, Layout, PackedBatch, Parameters};
use std::sync::Arc;

fn shape(architecture: Architecture, embedding_size: usize, hidden_size: usize, heads: usize) -> Configuration {
    Configuration {
        architecture,
        vocabulary_size: 67,
        embedding_size,
        hidden_size,
        layers: 2,
        heads,
        intermediate_size: 72,
        max_position_embeddings: 150,
        type_vocabulary_size: 2,
        activation: Activation::Gelu,
        layer_norm_eps: 1e-12,
        hidden_dropout: 0.1,
        attention_dropout: 0.1,
        classifier_dropout: None,
        initializer_range: 0.2,
        tie_word_embeddings: true,
        pad_token_id: 0,
    }
}

/// Sequences shorter than a tile, of several tiles, of one token; one of them without masked rows.
fn batch(configuration: &Configuration, typed: bool) -> PackedBatch {
    let stream = Philox::new(5, "device test", &[]);
    let lengths = vec![3, 70, 1, 133];
    let tokens: usize = lengths.iter().sum();
    PackedBatch {
        token_ids: (0..tokens as u64)
            .map(|at| stream.below(configuration.vocabulary_size as u64, at, 0) as u32)
            .collect(),
        lengths,
        masked_rows: (0..tokens as u32)
            .filter(|row| row % 5 == 1 && !(74..207).contains(row) || row % 40 == 30)
            .collect(),
        token_types: if typed { (0..tokens).map(|at| u8::from(at % 3 == 0)).collect() } else { Vec::new() },
    }
}

/// The largest difference, relative to the largest value.
fn apart(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
    found.iter().zip(expected).fold(0.0_f32, |apart, (found, expected)| apart.max((found - expected).abs())) / largest
}

#[test]
fn hidden_states_are_those_of_the_processor() {
    let device = accelerator();
    for (architecture, embedding, hidden, heads, activation) in [
        (Architecture::Bert, 64, 64, 2, Activation::Gelu),
        (Architecture::Bert, 64, 64, 1, Activation::Relu),
        (Architecture::Bert, 48, 48, 2, Activation::GeluTanh),
        (Architecture::ElectraGenerator, 24, 128, 1, Activation::Silu),
    ] {
        // With larger weights the softmax over 128 columns is all but a choice, and what bfloat16 rounds off decides it.
        let initializer_range = if hidden == 128 { 0.1 } else { 0.2 };
        let shape = shape(architecture, embedding, hidden, heads);
        let configuration = Configuration { activation, initializer_range, ..shape };
        let parameters = Parameters::initialise(&configuration, 3, &Device::Cpu).unwrap();
        let reference = Inference::new(&configuration, &parameters).unwrap();
        for typed in [false, true] {
            let batch = batch(&configuration, typed);
            let expected = reference.map_shards(&batch, |_, hidden| hidden.to_vec()).unwrap().concat();
            for (precision, tolerance) in [(Precision::F32, 1e-5), (Precision::Bf16, 3e-2), (Precision::F16, 4e-3)] {
                let mut network = Network::new(&device, precision, &configuration, &parameters).unwrap();
                // A smaller batch first: buffers grow, and what is in them does not matter.
                let first = PackedBatch {
                    token_ids: vec![1, 2],
                    lengths: vec![2],
                    masked_rows: vec![1],
                    ..PackedBatch::default()
                };
                network.hidden(&first).unwrap();
                let found = network.hidden_values(&batch).unwrap();
                let apart = apart(&found, &expected);
                assert!(apart < tolerance, "{architecture:?} {hidden} {heads} {activation:?} {precision:?}: {apart}");
            }
        }
    }
}

/// Labels of rows of logits, which become hidden states of a decoder that is the identity.
fn labelled(
    rows: &[Vec<f32>],
    bias: &[f32],
    words: usize,
    golds: &[u32],
    top_k: usize,
    draws: Option<Draws<'_>>,
) -> Best {
    let device = accelerator();
    let vocabulary = bias.len();
    let identity: Vec<f32> =
        (0..vocabulary * vocabulary).map(|at| f32::from(u8::from(at / vocabulary == at % vocabulary))).collect();
    let (weight, bias) = (Buffer::of(&device, &identity).unwrap(), Buffer::of(&device, bias).unwrap());
    let hidden = Buffer::of(&device, &rows.concat()).unwrap();
    let sizes = (vocabulary, words, vocabulary);
    let decoder = DecoderPlace { weight: weight.at(), bias: bias.at(), rows: vocabulary };
    let mut head = TopK::new(&device, Precision::F32, decoder, sizes).unwrap();
    // SAFETY: the buffers are alive, and hold what is asked for.
    #[allow(unsafe_code)]
    unsafe {
        head.begin(hidden.at(), golds, top_k, draws).unwrap().wait().unwrap()
    }
}

/// What the labels have to be, the slow way.
fn expected(rows: &[Vec<f32>], bias: &[f32], words: usize, golds: &[u32], top_k: usize) -> Best {
    let mut best = Best::default();
    for (row, gold) in rows.iter().zip(golds) {
        let logits: Vec<f32> = row.iter().zip(bias).map(|(logit, bias)| logit + bias).collect();
        let mut order: Vec<usize> = (0..words).collect();
        order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b)));
        best.top_ids.extend(order[..top_k].iter().map(|word| *word as u32));
        best.top_logits.extend(order[..top_k].iter().map(|word| logits[*word]));
        best.log_sum_exp.push(logits.iter().map(|logit| f64::from(*logit).exp()).sum::<f64>().ln() as f32);
        best.gold_logits.push(logits[*gold as usize]);
    }
    best
}

fn check(rows: &[Vec<f32>], words: usize, top_k: usize) {
    let vocabulary = rows[0].len();
    let bias: Vec<f32> = (0..vocabulary).map(|word| (word % 3) as f32 * 0.25).collect();
    let golds: Vec<u32> = (0..rows.len()).map(|row| ((row * 71 + 5) % vocabulary) as u32).collect();
    let found = labelled(rows, &bias, words, &golds, top_k, None);
    let expected = expected(rows, &bias, words, &golds, top_k);
    assert_eq!((&found.top_ids, &found.top_logits), (&expected.top_ids, &expected.top_logits), "k = {top_k}");
    assert_eq!((&found.gold_logits, found.not_finite), (&expected.gold_logits, None));
    for (found, expected) in found.log_sum_exp.iter().zip(&expected.log_sum_exp) {
        assert!((found - expected).abs() < 1e-5 * expected.abs().max(1.0), "{found} for {expected}");
    }
}

/// Numbers out of `levels` different ones within −4..4; few levels: many ties.
fn rows(count: usize, vocabulary: usize, levels: u64) -> Vec<Vec<f32>> {
    let stream = Philox::new(9, "device test", &[]);
    let value =
        |row: usize, word: usize| (stream.below(levels, row as u64, word as u64) as f32 / levels as f32 - 0.5) * 8.0;
    (0..count).map(|row| (0..vocabulary).map(|word| value(row, word)).collect()).collect()
}

#[test]
fn labels_are_the_best_words() {
    for (vocabulary, words, levels, top_k) in
        [(40, 40, 1 << 20, 8), (700, 650, 1 << 20, 8), (700, 700, 16, 128), (1100, 1100, 1 << 20, 512), (9, 8, 2, 8)]
    {
        check(&rows(3, vocabulary, levels), words, top_k);
    }
}

/// More words are as good as the best than a block has room for: the lowest are taken.
#[test]
fn many_equal_logits_are_settled_by_their_ids() {
    let device = accelerator();
    let (vocabulary, top_k) = (6000_usize, 9);
    let weight = Buffer::of(&device, &vec![0.0_f32; vocabulary * 8]).unwrap();
    let mut bias = vec![1.0_f32; vocabulary];
    bias[5000] = 2.0;
    bias[17] = -1.0;
    let bias = Buffer::of(&device, &bias).unwrap();
    let hidden = Buffer::of(&device, &[1.0_f32; 8]).unwrap();
    let decoder = DecoderPlace { weight: weight.at(), bias: bias.at(), rows: vocabulary };
    let mut head = TopK::new(&device, Precision::F32, decoder, (vocabulary, vocabulary, 8)).unwrap();
    // SAFETY: the buffers are alive, and hold what is asked for.
    #[allow(unsafe_code)]
    let found = unsafe { head.begin(hidden.at(), &[17], top_k, None).unwrap().wait().unwrap() };
    assert_eq!(found.top_ids, [5000, 0, 1, 2, 3, 4, 5, 6, 7]);
    assert_eq!((found.gold_logits, found.top_logits[0], found.top_logits[8]), (vec![-1.0], 2.0, 1.0));
}

#[test]
fn a_logit_that_is_not_finite_is_named() {
    let mut rows = rows(2, 300, 1 << 20);
    let bias = vec![0.0; 300];
    assert_eq!(labelled(&rows, &bias, 300, &[0, 0], 8, None).not_finite, None);
    rows[1][250] = f32::NAN;
    rows[1][41] = f32::INFINITY;
    rows[0][99] = f32::NEG_INFINITY;
    // Zero times what is not finite is not finite either: a product spoils all of its row.
    assert!(labelled(&rows, &bias, 300, &[0, 0], 8, None).not_finite.is_some());
}

/// A row's labels of which `samples` are drawn from the tail, the slow way: all words but the exact ones side by side on one line.
fn drawn(logits: &[f32], words: usize, top_k: usize, samples: usize, uniform: f64) -> (Vec<u32>, Vec<f32>) {
    let mut order: Vec<usize> = (0..words).collect();
    order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b)));
    let largest = f64::from(logits[order[0]]);
    let mass = |word: usize| (f64::from(logits[word]) - largest).exp();
    let rest_after = |exact: usize| order[exact..].iter().map(|word| mass(*word)).sum::<f64>();
    let mut exact = top_k - samples;
    while exact < top_k && mass(order[exact]) * (top_k - exact) as f64 >= rest_after(exact) {
        exact += 1;
    }
    if rest_after(top_k) < 1e-8 {
        exact = top_k;
    }
    let mut ids: Vec<u32> = order[..exact].iter().map(|word| *word as u32).collect();
    let mut found: Vec<f32> = order[..exact].iter().map(|word| logits[*word]).collect();
    let weight = rest_after(exact) / (top_k - exact) as f64;
    let (mut until, mut number) = (0.0, 0);
    for word in (0..words).filter(|word| !order[..exact].contains(word)) {
        until += mass(word);
        while number < top_k - exact && (uniform + number as f64) * weight < until {
            ids.push(word as u32);
            found.push((largest + weight.ln()) as f32);
            number += 1;
        }
    }
    (ids, found)
}

#[test]
fn tails_are_drawn_as_the_line_says() {
    let (vocabulary, words) = (1305, 1301);
    let stream = Philox::new(4, "tail test", &[]);
    for (top_k, samples) in [(8, 4), (8, 7), (2, 1), (300, 200)] {
        let mut rows = rows(12, vocabulary, 1 << 20);
        // Steep ones: words that would be drawn for certain are exact, and of the last row hardly anything is left for a tail.
        rows[10].iter_mut().for_each(|logit| *logit *= 4.0);
        rows[11].iter_mut().enumerate().for_each(|(word, logit)| *logit = -(word as f32) / 2.0);
        let bias: Vec<f32> = (0..vocabulary).map(|word| (word % 3) as f32 * 0.25).collect();
        let uniforms: Vec<f64> = (0..rows.len() as u64).map(|row| stream.uniform(row, top_k as u64)).collect();
        let golds = vec![1300; rows.len()];
        let draws = Draws { samples, uniforms: &uniforms };
        let found = labelled(&rows, &bias, words, &golds, top_k, Some(draws));
        let best = labelled(&rows, &bias, words, &golds, top_k, None);
        assert_eq!((&found.log_sum_exp, &found.gold_logits), (&best.log_sum_exp, &best.gold_logits));
        for (row, uniform) in uniforms.iter().enumerate() {
            let logits: Vec<f32> = rows[row].iter().zip(&bias).map(|(logit, bias)| logit + bias).collect();
            let (ids, values) = drawn(&logits, words, top_k, samples, *uniform);
            let of_row = row * top_k..(row + 1) * top_k;
            assert_eq!(found.top_ids[of_row.clone()], ids, "row {row}: {samples} of {top_k}");
            for (found, expected) in found.top_logits[of_row].iter().zip(values) {
                assert!((found - expected).abs() < 1e-5 * expected.abs().max(1.0), "{found} for {expected}");
            }
        }
        assert_ne!(found.top_ids, best.top_ids);
    }
}

/// A model with weights so large that what is between its LayerNorms overflows: float16 is refused, with what to do.
#[test]
fn a_model_that_is_too_large_for_float16_is_refused() {
    let configuration = Configuration { initializer_range: 3e4, ..shape(Architecture::Bert, 64, 64, 2) };
    let parameters = Parameters::initialise(&configuration, 3, &Device::Cpu).unwrap();
    let bert = Bert { configuration, parameters };
    let on = |precision| OnDevice { device: accelerator(), precision };
    let error = Network::checked(&on(Precision::F16), &bert).unwrap_err().to_string();
    assert!(error.contains("65,504") && error.contains("precision = \"bfloat16\""), "{error}");
}

#[test]
fn a_buffer_grows_by_a_quarter_where_there_is_room() {
    let device: Arc<dyn Accelerator> = Arc::new(Emulated::with_capacity(1000));
    let mut buffer = Buffer::<u8>::new(&device, 784).unwrap();
    buffer.grow(800).unwrap();
    assert_eq!(buffer.len(), 980);
    buffer.grow(990).unwrap();
    assert_eq!(buffer.len(), 990);
    assert!(buffer.grow(1001).is_err());
}

#[test]
fn shapes_that_kernels_cannot_do_are_refused() {
    let device = accelerator();
    for (configuration, expected) in [
        (shape(Architecture::Bert, 60, 60, 2), "hidden_size is 60; kernels need a multiple of 8"),
        (shape(Architecture::Bert, 8192, 8192, 64), "a row needs 131072 bytes"),
    ] {
        let layout = Layout::of(&configuration);
        let parameters = layout.scatter(&vec![0.0; layout.length()], &configuration).unwrap();
        let error = Network::new(&device, Precision::F32, &configuration, &parameters).unwrap_err().to_string();
        assert!(error.contains(expected) && error.contains("device = \"cpu\""), "{error}");
    }
}
