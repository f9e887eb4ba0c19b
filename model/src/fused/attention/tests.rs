//! Against automatic differentiation of the plain composition in double precision.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::Dropout;
use crate::fused::dropout::Site;
use crate::random::Philox;
use candle_core::{D, DType, Device, Tensor, Var};

fn values(count: usize, seed: u64) -> Vec<f32> {
    let stream = Philox::new(seed, "test", &[]);
    (0..count as u64).map(|i| stream.normal(i, 0) as f32).collect()
}

fn mask(rate: f64) -> Option<Mask> {
    let dropout = Dropout { stream: Philox::new(1, "dropout", &[]), step: 9, first_row: 0 };
    Mask::new(Some(dropout), Site::Probabilities(1), rate)
}

/// A sequence whose tokens' queries, keys and values lie side by side, and of whose queries every `every`-th counts.
struct Case {
    heads: Heads,
    length: usize,
    rows: Vec<u32>,
    mask: Option<Mask>,
    /// `[length, 3 · hidden]`
    joint: Vec<f32>,
    /// `[q, hidden]`
    queries: Vec<f32>,
    /// Of the context, `[q, hidden]`.
    gradient: Vec<f32>,
}

#[derive(Debug, PartialEq)]
struct Results {
    context: Vec<f32>,
    of_queries: Vec<f32>,
    of_keys_values: Vec<f32>,
}

impl Case {
    fn new((count, size): (usize, usize), length: usize, every: usize, rate: f64) -> Self {
        let heads = Heads { count, size };
        let hidden = count * size;
        let joint = values(length * 3 * hidden, 1);
        let places: Vec<usize> = (0..length).step_by(every).collect();
        let queries = places.iter().flat_map(|place| joint[place * 3 * hidden..][..hidden].to_vec()).collect();
        let rows = places.iter().map(|place| 1_000 + *place as u32).collect();
        let gradient = values(places.len() * hidden, 2);
        Self { heads, length, rows, mask: mask(rate), joint, queries, gradient }
    }

    fn hidden(&self) -> usize {
        self.heads.count * self.heads.size
    }

    fn sequence(&self) -> Sequence<'_> {
        let hidden = self.hidden();
        let part =
            |n| Matrix::strided(&self.joint, self.length, 3 * hidden, 3 * hidden).sub_columns(n * hidden, hidden);
        // All rows are read where they lie.
        let (queries, query_rows) = match self.rows.len() == self.length {
            true => (part(0), Rows::From(1_000)),
            false => (Matrix::new(&self.queries, self.rows.len(), hidden), Rows::Listed(&self.rows)),
        };
        Sequence { queries, keys: part(1), values: part(2), query_rows }
    }

    fn part(&self, first: usize, count: usize) -> Sequence<'_> {
        let queries = self.sequence().queries.sub_rows(first, count);
        Sequence { queries, query_rows: Rows::Listed(&self.rows[first..first + count]), ..self.sequence() }
    }

    fn run(&self, sequence: Sequence<'_>, gradient: &[f32], scratch: &mut Scratch) -> Results {
        let count = gradient.len();
        let mut context = vec![f32::NAN; count];
        let mut log_sum_exp = vec![f32::NAN; sequence.queries.rows() * self.heads.count];
        forward(self.heads, sequence, self.mask.as_ref(), &mut context, Some(&mut log_sum_exp), scratch);
        let mut alone = vec![f32::NAN; count];
        forward(self.heads, sequence, self.mask.as_ref(), &mut alone, None, scratch);
        let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<u32>>();
        assert_eq!(bits(&alone), bits(&context));
        let mut of_queries = vec![f32::NAN; count];
        let mut of_keys_values = vec![f32::NAN; 2 * self.length * self.hidden()];
        let saved = (&*context, &*log_sum_exp);
        let of = Gradients { queries: &mut of_queries, keys_values: &mut of_keys_values };
        backward(self.heads, sequence, self.mask.as_ref(), saved, gradient, of, scratch);
        Results { context, of_queries, of_keys_values }
    }

    fn results(&self, scratch: &mut Scratch) -> Results {
        self.run(self.sequence(), &self.gradient, scratch)
    }

    /// Of candle's operations.
    fn reference(&self) -> Results {
        let (Heads { count, size }, hidden, q) = (self.heads, self.hidden(), self.rows.len());
        let variable = |values: &[f32], rows: usize, columns: usize| {
            let tensor = Tensor::from_slice(values, (rows, columns), &Device::Cpu).unwrap();
            Var::from_tensor(&tensor.to_dtype(DType::F64).unwrap()).unwrap()
        };
        let queries = variable(&self.queries, q, hidden);
        let joint = variable(&self.joint, self.length, 3 * hidden);
        let keys_values = Var::from_tensor(&joint.narrow(1, hidden, 2 * hidden).unwrap()).unwrap();
        // [heads, rows, size]
        let split = |x: &Tensor| {
            let x = x.reshape((x.dim(0).unwrap(), count, size)).unwrap();
            x.transpose(0, 1).unwrap().contiguous().unwrap()
        };
        let keys = split(&keys_values.narrow(1, 0, hidden).unwrap().contiguous().unwrap());
        let values = split(&keys_values.narrow(1, hidden, hidden).unwrap().contiguous().unwrap());
        let scores = (split(&queries).matmul(&keys.t().unwrap()).unwrap() / (size as f64).sqrt()).unwrap();
        let shifted = scores.broadcast_sub(&scores.max_keepdim(D::Minus1).unwrap().detach()).unwrap();
        let exponentials = shifted.exp().unwrap();
        let probabilities = exponentials.broadcast_div(&exponentials.sum_keepdim(D::Minus1).unwrap()).unwrap();
        let dropped = match self.mask {
            None => probabilities,
            Some(mask) => {
                let mask = mask.to_tensor_of_heads(count, Rows::Listed(&self.rows), (q, self.length), &Device::Cpu);
                (probabilities * mask.unwrap().to_dtype(DType::F64).unwrap()).unwrap()
            }
        };
        let context = dropped.matmul(&values).unwrap();
        let context = context.transpose(0, 1).unwrap().reshape((q, hidden)).unwrap();
        let weights = variable(&self.gradient, q, hidden);
        let gradients = (&context * weights.as_tensor()).unwrap().sum_all().unwrap().backward().unwrap();
        let list =
            |tensor: &Tensor| tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        Results {
            context: list(&context),
            of_queries: list(gradients.get(&queries).unwrap()),
            of_keys_values: list(gradients.get(&keys_values).unwrap()),
        }
    }
}

/// To a relative 2e-5 of the largest value, and 4e-6 where all are small.
fn assert_close(found: &[f32], expected: &[f32], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(0.2_f32, |largest, value| largest.max(value.abs()));
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!((found - expected).abs() <= 2e-5 * largest, "{what} [{index}]: {found} against {expected}");
    }
}

#[test]
fn agrees_with_the_composition() {
    // Kept from case to case: what an earlier one left must not matter.
    let mut scratch = Scratch::default();
    for heads in [(1, 1), (3, 8), (2, 32), (2, 48), (2, 64)] {
        for length in [1, 130, 2, 5, 37, 64, 65, 300] {
            for (every, rate) in [(1, 0.0), (1, 0.3), (7, 0.1), (length, 0.0)] {
                let case = Case::new(heads, length, every, rate);
                let (found, expected) = (case.results(&mut scratch), case.reference());
                let what = format!("{heads:?}, {length} long, every {every}th, {rate}");
                assert_close(&found.context, &expected.context, &format!("context of {what}"));
                assert_close(&found.of_queries, &expected.of_queries, &format!("of queries of {what}"));
                assert_close(&found.of_keys_values, &expected.of_keys_values, &format!("of keys of {what}"));
            }
        }
    }
}

#[test]
fn gradients_are_slopes() {
    let mut case = Case::new((2, 16), 21, 1, 0.2);
    let mut scratch = Scratch::default();
    let results = case.results(&mut scratch);
    let direction = values(case.joint.len(), 5);
    let start = case.joint.clone();
    let mut at = |step: f32| {
        case.joint = start.iter().zip(&direction).map(|(value, along)| value + step * along).collect();
        let context = case.results(&mut scratch).context;
        let terms = context.iter().zip(&case.gradient).map(|(a, b)| f64::from(*a) * f64::from(*b));
        terms.sum::<f64>()
    };
    let slope = (at(1e-2) - at(-1e-2)) / 2e-2;
    let of_rows = results.of_queries.chunks(32).zip(results.of_keys_values.chunks(64));
    let joint = of_rows.flat_map(|(queries, rest)| [queries, rest].concat());
    let products: Vec<f64> = joint.zip(&direction).map(|(a, b)| f64::from(a) * f64::from(*b)).collect();
    let size = products.iter().map(|product| product * product).sum::<f64>().sqrt();
    let expected: f64 = products.iter().sum();
    assert!((slope - expected).abs() < 2e-3 * size, "{slope} against {expected}, {size}");
}

#[test]
fn a_query_does_not_see_the_others() {
    // More queries than one block takes.
    for (length, every, first) in [(37, 1, 11), (600, 2, 100)] {
        let case = Case::new((2, 64), length, every, 0.1);
        let mut scratch = Scratch::default();
        let whole = case.results(&mut scratch);
        let (q, cut) = (case.rows.len(), first * case.hidden());
        let one = case.run(case.part(0, first), &case.gradient[..cut], &mut scratch);
        let two = case.run(case.part(first, q - first), &case.gradient[cut..], &mut scratch);
        assert_eq!([one.context, two.context].concat(), whole.context);
        assert_eq!([one.of_queries, two.of_queries].concat(), whole.of_queries);
        let sums = one.of_keys_values.iter().zip(&two.of_keys_values).map(|(a, b)| a + b);
        assert_close(&sums.collect::<Vec<f32>>(), &whole.of_keys_values, "sum of the parts");
    }
}

#[test]
fn without_queries_the_gradients_are_zero() {
    let case = Case::new((2, 48), 5, 1, 0.1);
    let results = case.run(case.part(0, 0), &[], &mut Scratch::default());
    assert!(results.of_keys_values.iter().all(|value| *value == 0.0));
}

#[test]
fn large_scores_overflow_nothing_and_nan_is_not_hidden() {
    let mut case = Case::new((1, 8), 20, 1, 0.0);
    case.joint.iter_mut().for_each(|value| *value *= 30.0);
    let results = case.results(&mut Scratch::default());
    let all = [&results.context, &results.of_queries, &results.of_keys_values];
    assert!(all.into_iter().flatten().all(|value| value.is_finite()));
    case.joint[3] = f32::NAN;
    let context = case.results(&mut Scratch::default()).context;
    assert!(context[..8].iter().all(|value| value.is_nan()) && context[8..].iter().all(|value| value.is_finite()));
}

#[test]
#[should_panic(expected = "keys")]
fn keys_without_values_are_refused() {
    let case = Case::new((1, 8), 4, 1, 0.0);
    let sequence = Sequence { values: case.sequence().values.sub_rows(0, 3), ..case.sequence() };
    case.run(sequence, &case.gradient, &mut Scratch::default());
}
