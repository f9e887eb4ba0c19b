//! Each operation of the network by itself, on one thread, at the shapes of a shard: `cargo bench -p model`.
//!
//! Products are counted in FLOPs (shown as items), the others in values, so that each can be held against its own floor: the
//! machine's peak, or what its caches deliver.
#![allow(clippy::unwrap_used)]

use divan::counter::ItemsCount;
use divan::{Bencher, black_box};
use model::fused::activation;
use model::fused::attention::{self, Gradients, Heads, Sequence};
use model::fused::dropout::{Mask, Rows, Site};
use model::fused::embedding::{self, Tables};
use model::fused::norm::{self, Norm, Saved, Sums};
use model::product::{Matrix, Packed, Start, multiply};
use model::random::Philox;
use model::{Activation, Dropout};

fn main() {
    divan::main();
}

fn values(count: usize, seed: u64) -> Vec<f32> {
    let stream = Philox::new(seed, "bench", &[]);
    (0..count as u64).map(|index| stream.normal(index, 0) as f32).collect()
}

fn mask(site: Site) -> Option<Mask> {
    Mask::new(Some(Dropout { stream: Philox::new(1, "dropout", &[]), step: 1, first_row: 0 }), site, 0.1)
}

const ROWS: usize = 256;

/// x `[rows, inputs]` · Wᵀ + b, with W packed; (rows, outputs, inputs).
#[divan::bench(args = [(256, 256, 256), (256, 1024, 256), (256, 256, 1024), (38, 8000, 256), (512, 768, 768), (512, 3072, 768), (512, 768, 3072)])]
fn dense_forward(bencher: Bencher<'_, '_>, (rows, outputs, inputs): (usize, usize, usize)) {
    let (x, weight, bias) = (values(rows * inputs, 1), values(outputs * inputs, 2), values(outputs, 3));
    let packed = Packed::new(Matrix::new(&weight, outputs, inputs).transposed());
    let mut out = vec![0.0; rows * outputs];
    bencher.counter(ItemsCount::new(2 * rows * outputs * inputs)).bench_local(|| {
        multiply(Matrix::new(&x, rows, inputs), packed.right(), Start::Bias(&bias), &mut out, outputs);
        black_box(&out);
    });
}

/// dW += dYᵀ · X, with X packed; (rows, outputs, inputs).
#[divan::bench(args = [(256, 96, 256), (256, 96, 1024), (512, 96, 768), (512, 96, 3072)])]
fn dense_gradient(bencher: Bencher<'_, '_>, (rows, outputs, inputs): (usize, usize, usize)) {
    let (x, gradient) = (values(rows * inputs, 1), values(rows * outputs, 2));
    let packed = Packed::new(Matrix::new(&x, rows, inputs));
    let mut out = vec![0.0; outputs * inputs];
    bencher.counter(ItemsCount::new(2 * rows * outputs * inputs)).bench_local(|| {
        let left = Matrix::new(&gradient, rows, outputs).transposed();
        multiply(left, packed.right(), Start::Out, &mut out, inputs);
        black_box(&out);
    });
}

/// Packing W `[outputs, inputs]` for the forward pass (a transposition) and for the backward pass (a copy).
#[divan::bench(args = [true, false])]
fn pack(bencher: Bencher<'_, '_>, transposed: bool) {
    let weight = values(1024 * 256, 1);
    let matrix = Matrix::new(&weight, 1024, 256);
    let mut packed = Packed::default();
    bencher.counter(ItemsCount::new(1024 * 256_usize)).bench_local(|| {
        packed.pack(if transposed { matrix.transposed() } else { matrix });
        black_box(&packed);
    });
}

#[divan::bench(args = [256, 768], consts = [false, true])]
fn norm_forward<const DROPS: bool>(bencher: Bencher<'_, '_>, columns: usize) {
    let (x, residual) = (values(ROWS * columns, 1), values(ROWS * columns, 2));
    let (weight, bias) = (values(columns, 3), values(columns, 4));
    let norm = Norm { weight: &weight, bias: &bias, eps: 1e-12 };
    let mask = mask(Site::Output(0)).filter(|_| DROPS);
    let (mut out, mut normalised, mut scale) = (vec![0.0; x.len()], vec![0.0; x.len()], vec![0.0; ROWS]);
    bencher.counter(ItemsCount::new(x.len())).bench_local(|| {
        let saved = Saved { normalised: &mut normalised, scale: &mut scale };
        norm::forward(norm, &x, Some(&residual), mask, Rows::From(0), &mut out, Some(saved));
    });
}

#[divan::bench(args = [256, 768], consts = [false, true])]
fn norm_backward<const DROPS: bool>(bencher: Bencher<'_, '_>, columns: usize) {
    let (normalised, scale) = (values(ROWS * columns, 1), vec![1.0; ROWS]);
    let (weight, bias) = (values(columns, 3), values(columns, 4));
    let norm = Norm { weight: &weight, bias: &bias, eps: 1e-12 };
    let mask = mask(Site::Output(0)).filter(|_| DROPS);
    let (gradient, mut of_x) = (values(ROWS * columns, 2), vec![0.0; ROWS * columns]);
    let mut sums = [vec![0.0; columns], vec![0.0; columns], vec![0.0; columns]];
    bencher.counter(ItemsCount::new(of_x.len())).with_inputs(|| gradient.clone()).bench_local_refs(|gradient| {
        let [weight, bias, dense_bias] = &mut sums;
        let sums = Sums { weight, bias, dense_bias: Some(dense_bias) };
        norm::backward(norm, gradient, (&normalised, &scale), mask, Rows::From(0), Some(&mut of_x), sums);
    });
}

#[divan::bench(args = [Activation::Gelu, Activation::GeluTanh, Activation::Relu, Activation::Silu])]
fn activation_forward(bencher: Bencher<'_, '_>, kind: Activation) {
    let x = values(ROWS * 1024, 1);
    bencher.counter(ItemsCount::new(x.len())).with_inputs(|| x.clone()).bench_local_refs(|values| {
        activation::forward(kind, values);
    });
}

#[divan::bench]
fn gelu_forward_with_derivative(bencher: Bencher<'_, '_>) {
    let x = values(ROWS * 1024, 1);
    let mut out = x.clone();
    bencher.counter(ItemsCount::new(x.len())).with_inputs(|| x.clone()).bench_local_refs(|values| {
        activation::forward_saving(Activation::Gelu, values, &mut out);
    });
}

#[divan::bench]
fn activation_backward(bencher: Bencher<'_, '_>) {
    let (derivative, mut gradient, mut sums) = (vec![1.0; ROWS * 1024], values(ROWS * 1024, 1), vec![0.0; 1024]);
    bencher.counter(ItemsCount::new(derivative.len())).bench_local(|| {
        activation::backward(&derivative, &mut gradient, &mut sums);
    });
}

#[divan::bench]
fn embedding_forward(bencher: Bencher<'_, '_>) {
    let columns = 256;
    let (word, position, token_type) = (values(8000 * columns, 1), values(128 * columns, 2), values(columns, 3));
    let (weight, bias) = (values(columns, 4), values(columns, 5));
    let ids: Vec<u32> = (0..ROWS as u32).map(|i| i * 7919 % 8000).collect();
    let positions: Vec<u32> = (0..ROWS as u32).map(|i| i % 128).collect();
    let mut out = vec![0.0; ROWS * columns];
    bencher.counter(ItemsCount::new(out.len())).bench_local(|| {
        let tables = Tables { word: &word, position: &position, token_type: &token_type };
        let norm = Norm { weight: &weight, bias: &bias, eps: 1e-12 };
        embedding::forward(tables, norm, (&ids, &positions, &[]), None, Rows::From(0), &mut out, None);
    });
}

/// A sequence of 128 tokens and 4 heads of 64; counted in FLOPs of its products.
struct Attention {
    query: Vec<f32>,
    key_value: Vec<f32>,
    context: Vec<f32>,
    log_sum_exp: Vec<f32>,
}

const LENGTH: usize = 128;
const HEADS: Heads = Heads { count: 4, size: 64 };
const HIDDEN: usize = 256;

impl Attention {
    fn new() -> Self {
        Self {
            query: values(LENGTH * HIDDEN, 1),
            key_value: values(LENGTH * 2 * HIDDEN, 2),
            context: vec![0.0; LENGTH * HIDDEN],
            log_sum_exp: vec![0.0; LENGTH * HEADS.count],
        }
    }

    fn forward(&mut self, mask: Option<&Mask>, scratch: &mut attention::Scratch) {
        let sequence = sequence(&self.query, &self.key_value);
        attention::forward(HEADS, sequence, mask, &mut self.context, Some(&mut self.log_sum_exp), scratch);
    }
}

fn sequence<'a>(query: &'a [f32], key_value: &'a [f32]) -> Sequence<'a> {
    let key_value = Matrix::new(key_value, LENGTH, 2 * HIDDEN);
    Sequence {
        queries: Matrix::new(query, LENGTH, HIDDEN),
        keys: key_value.sub_columns(0, HIDDEN),
        values: key_value.sub_columns(HIDDEN, HIDDEN),
        query_rows: Rows::From(0),
    }
}

#[divan::bench(consts = [false, true])]
fn attention_forward<const DROPS: bool>(bencher: Bencher<'_, '_>) {
    let (mut attention, mut scratch) = (Attention::new(), attention::Scratch::default());
    let mask = mask(Site::Probabilities(0)).filter(|_| DROPS);
    bencher.counter(ItemsCount::new(4 * LENGTH * LENGTH * HIDDEN)).bench_local(|| {
        attention.forward(mask.as_ref(), &mut scratch);
    });
}

#[divan::bench(consts = [false, true])]
fn attention_backward<const DROPS: bool>(bencher: Bencher<'_, '_>) {
    let (mut attention, mut scratch) = (Attention::new(), attention::Scratch::default());
    let mask = mask(Site::Probabilities(0)).filter(|_| DROPS);
    attention.forward(mask.as_ref(), &mut scratch);
    let gradient = values(LENGTH * HIDDEN, 3);
    let (mut of_query, mut of_key_value) = (vec![0.0; LENGTH * HIDDEN], vec![0.0; LENGTH * 2 * HIDDEN]);
    bencher.counter(ItemsCount::new(10 * LENGTH * LENGTH * HIDDEN)).bench_local(|| {
        let of = Gradients { queries: &mut of_query, keys_values: &mut of_key_value };
        let made = (&attention.context[..], &attention.log_sum_exp[..]);
        let sequence = sequence(&attention.query, &attention.key_value);
        attention::backward(HEADS, sequence, mask.as_ref(), made, &gradient, of, &mut scratch);
    });
}
