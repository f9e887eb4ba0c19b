//! The loss and the optimiser by themselves, on one thread, at the sizes of students: `cargo bench -p trainer`.
//!
//! The loss is counted in FLOPs of its three products (shown as items): logits, the gradient of the decoder, that of the hidden
//! rows. The optimiser is counted in bytes that it reads and writes.
#![allow(clippy::unwrap_used)]

use divan::counter::{BytesCount, ItemsCount};
use divan::{Bencher, black_box};
use model::Layout;
use model::random::Philox;
use rayon::{ThreadPool, ThreadPoolBuilder};
use trainer::StudentOptions;
use trainer::loss::{self, Decoder, DecoderGradients, Scratch, Targets};
use trainer::optimiser::{AdamW, Update, sum_of_squares};

fn main() {
    divan::main();
}

/// Labels per position, of which none is the gold token's.
const TOP_K: usize = 8;

/// (positions, vocabulary, embedding): the masked positions of 4096 and of 1024 tokens. Whether the teacher's mass outside its
/// top k is a target too (a ghost bucket) or not (renormalised; what is left on the gold token).
#[divan::bench(
    args = [(614, 40_000, 256), (154, 99_112, 768), (154, 180_996, 256)],
    consts = [false, true],
    sample_count = 5,
    sample_size = 1
)]
fn linear_cross_entropy<const TAIL: bool>(
    bencher: Bencher<'_, '_>,
    (positions, vocabulary, embedding): (usize, usize, usize),
) {
    let (weight, bias) = (values(vocabulary * embedding, 0.05, 1), values(vocabulary, 0.05, 2));
    let hidden = values(positions * embedding, 1.0, 3);
    let labels = Labels::new::<TAIL>(positions, vocabulary);
    let (mut of_weight, mut of_bias) = (vec![0.0; weight.len()], vec![0.0; bias.len()]);
    let mut of_hidden = vec![0.0; hidden.len()];
    let (pool, mut scratch) = (one_thread(), Scratch::default());
    let mut run = || {
        let decoder = Decoder { weight: &weight, bias: &bias, embedding_size: embedding };
        let gradients = DecoderGradients { weight: &mut of_weight, bias: &mut of_bias };
        let targets = labels.targets();
        pool.install(|| {
            loss::linear_cross_entropy(decoder, &hidden, &targets, 0.5, gradients, &mut of_hidden, &mut scratch)
        })
    };
    assert!(run().unwrap().loss.is_finite()); // Also touches all memory.
    bencher.counter(ItemsCount::new(3 * 2 * positions * vocabulary * embedding)).bench_local(run);
}

#[divan::bench(sample_count = 20, sample_size = 1)]
fn gradient_norm(bencher: Bencher<'_, '_>) {
    let gradients = values(student().length(), 1.0, 1);
    let pool = one_thread();
    bencher
        .counter(BytesCount::of_slice(&gradients[..]))
        .bench_local(|| pool.install(|| sum_of_squares(black_box(&gradients))));
}

/// Reads and writes parameters, gradients and both moments.
#[divan::bench(sample_count = 20, sample_size = 1)]
fn adamw_update(bencher: Bencher<'_, '_>) {
    let layout = student();
    let (mut parameters, mut gradients) = (values(layout.length(), 1.0, 1), values(layout.length(), 1.0, 2));
    let (pool, mut optimiser) = (one_thread(), AdamW::new(layout.length()));
    let update = Update { learning_rate: 1e-4, weight_decay: 0.01, gradient_scale: 0.5 };
    let mut run = || pool.install(|| optimiser.update(&mut parameters, &mut gradients, layout.slots(), &update));
    run(); // Touches the moments; the gradients are 0 from here on, which costs the same.
    bencher.counter(BytesCount::of_many::<f32>(2 * 4 * layout.length())).bench_local(run);
    black_box(&parameters);
}

/// Random labels of masked positions.
struct Labels {
    gold_ids: Vec<u32>,
    top_ids: Vec<u32>,
    probabilities: Vec<f32>,
    tail_masses: Vec<f32>,
    weights: Vec<f32>,
    has_teacher: Vec<bool>,
}

impl Labels {
    fn new<const TAIL: bool>(positions: usize, vocabulary: usize) -> Self {
        let stream = Philox::new(4, "bench", &[]);
        let ids = |count: usize, row: u64| {
            (0..count as u64).map(|at| stream.below(vocabulary as u64, at, row) as u32).collect()
        };
        let tail = if TAIL { 0.25 } else { 0.0 };
        Self {
            gold_ids: ids(positions, 0),
            top_ids: ids(positions * TOP_K, 1),
            probabilities: vec![(1.0 - tail) / TOP_K as f32; positions * TOP_K],
            tail_masses: if TAIL { vec![tail; positions] } else { vec![] },
            weights: vec![1.0 / positions as f32; positions],
            has_teacher: vec![true; positions],
        }
    }

    fn targets(&self) -> Targets<'_> {
        Targets {
            gold_ids: &self.gold_ids,
            top_k: TOP_K,
            top_ids: &self.top_ids,
            probabilities: &self.probabilities,
            tail_masses: &self.tail_masses,
            gold_masses: &[],
            weights: &self.weights,
            has_teacher: &self.has_teacher,
        }
    }
}

/// A student of 16 million numbers.
fn student() -> Layout {
    let shape = StudentOptions {
        layers: 2,
        hidden_size: 256,
        heads: 4,
        intermediate_size: 1024,
        embedding_size: 256,
        max_sequence_length: 512,
        dropout: 0.1,
        ..StudentOptions::default()
    };
    Layout::of(&shape.configuration(55_500, 0))
}

fn one_thread() -> ThreadPool {
    ThreadPoolBuilder::new().num_threads(1).build().unwrap()
}

/// Normal numbers of this standard deviation, which repeat: drawing each would take longer than what is measured.
fn values(count: usize, deviation: f64, seed: u64) -> Vec<f32> {
    let stream = Philox::new(seed, "bench", &[]);
    let some: Vec<f32> = (0..65_521).map(|index| (stream.normal(index, 0) * deviation) as f32).collect();
    some.into_iter().cycle().take(count).collect()
}
