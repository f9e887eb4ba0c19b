//! The labelling head by itself, on one thread: `cargo bench -p teacher`. Counted in FLOPs of its product (shown as items).

use divan::counter::ItemsCount;
use divan::{Bencher, black_box};
use model::random::Philox;
use teacher::{Decoder, HeadScratch, Tail, label_rows};

fn main() {
    divan::main();
}

/// Masked positions × (embedding, vocabulary) → the top k of each; (rows, embedding, vocabulary).
#[divan::bench(name = "label_rows", args = [(40, 256, 8000), (40, 768, 30_000)], consts = [8, 64])]
fn head<const TOP_K: usize>(bencher: Bencher<'_, '_>, shape: (usize, usize, usize)) {
    bench(bencher, shape, TOP_K, 0);
}

/// The same with half of the k drawn from the rest of the vocabulary.
#[divan::bench(name = "label_rows_tail", args = [(40, 256, 8000), (40, 768, 30_000)], consts = [8, 64])]
fn tail<const TOP_K: usize>(bencher: Bencher<'_, '_>, shape: (usize, usize, usize)) {
    bench(bencher, shape, TOP_K, TOP_K / 2);
}

fn bench(bencher: Bencher<'_, '_>, (rows, embedding, vocabulary): (usize, usize, usize), top_k: usize, samples: usize) {
    let hidden = values(rows * embedding, 1.0, 1);
    let weight = values(vocabulary * embedding, 0.05, 2);
    let bias = values(vocabulary, 0.05, 3);
    let gold_ids: Vec<u32> = (0..rows).map(|row| (row * 7919 % vocabulary) as u32).collect();
    let uniforms: Vec<f64> = (0..rows).map(|row| (row as f64 + 0.5) / rows as f64).collect();
    let decoder = Decoder::new(&weight, &bias, vocabulary);
    let tail = (samples > 0).then_some(Tail { samples, uniforms: &uniforms });
    let mut scratch = HeadScratch::default();
    bencher
        .counter(ItemsCount::new(2 * rows * embedding * vocabulary))
        .bench_local(|| label_rows(black_box(&decoder), &hidden, &gold_ids, top_k, tail, &mut scratch));
}

/// Normal numbers of this standard deviation.
fn values(count: usize, deviation: f64, seed: u64) -> Vec<f32> {
    let stream = Philox::new(seed, "bench", &[]);
    (0..count as u64).map(|index| (stream.normal(index, 0) * deviation) as f32).collect()
}
