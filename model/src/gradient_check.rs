//! Gradient checks: an operation against its plain composition, and against finite differences.
#![allow(clippy::unwrap_used)]

use crate::random::Philox;
use candle_core::{Device, Result, Tensor, Var};

/// Standard normal values, a function of the seed.
pub(crate) fn matrix(rows: usize, columns: usize, seed: u64) -> Tensor {
    let stream = Philox::new(seed, "test matrix", &[]);
    let values: Vec<f32> = (0..rows * columns).map(|i| stream.normal(i as u64, 0) as f32).collect();
    Tensor::from_vec(values, (rows, columns), &Device::Cpu).unwrap()
}

/// Checks values and all gradients of `fused`: to a relative 1e-5 against `composed`, and along a random direction against
/// finite differences of the composition in float32 (to 2 %).
pub(crate) fn check(
    inputs: &[Tensor],
    fused: impl Fn(&[Tensor]) -> Result<Tensor>,
    composed: impl Fn(&[Tensor]) -> Result<Tensor>,
) {
    let (value, gradients) = differentiate(inputs, &fused);
    let (expected, expected_gradients) = differentiate(inputs, &composed);
    assert_close(&value, &expected, 1e-5, "values");
    for (index, (gradient, expected)) in gradients.iter().zip(&expected_gradients).enumerate() {
        assert_close(gradient, expected, 2e-5, &format!("gradient {index}"));
    }
    for (index, gradient) in gradients.iter().enumerate() {
        check_direction(inputs, index, gradient, &fused);
    }
}

/// Value, and the gradients of a fixed random projection of it.
fn differentiate(inputs: &[Tensor], f: &impl Fn(&[Tensor]) -> Result<Tensor>) -> (Tensor, Vec<Tensor>) {
    let variables: Vec<Var> = inputs.iter().map(|input| Var::from_tensor(input).unwrap()).collect();
    let tensors: Vec<Tensor> = variables.iter().map(|variable| variable.as_tensor().clone()).collect();
    let value = f(&tensors).unwrap();
    let gradients = projection(&value).backward().unwrap();
    let of = |variable: &Var| gradients.get(variable).expect("no gradient arrived").clone();
    (value.detach(), variables.iter().map(of).collect())
}

fn projection(value: &Tensor) -> Tensor {
    let weights = matrix(1, value.elem_count(), 99).reshape(value.shape()).unwrap();
    (value * weights).unwrap().sum_all().unwrap()
}

fn check_direction(inputs: &[Tensor], index: usize, gradient: &Tensor, f: &impl Fn(&[Tensor]) -> Result<Tensor>) {
    let direction = matrix(1, inputs[index].elem_count(), 7).reshape(inputs[index].shape()).unwrap();
    let at = |step: f64| {
        let mut moved = inputs.to_vec();
        moved[index] = (&inputs[index] + (&direction * step).unwrap()).unwrap();
        let value = f(&moved).unwrap();
        // Summed in float64: differences of float32 sums would be noise.
        let weights = matrix(1, value.elem_count(), 99).flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let values = value.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        values.iter().zip(&weights).map(|(value, weight)| f64::from(*value) * f64::from(*weight)).sum::<f64>()
    };
    let step = 1e-3;
    let found = (at(step) - at(-step)) / (2.0 * step);
    let products = (gradient * direction).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let expected: f64 = products.iter().map(|product| f64::from(*product)).sum();
    let size: f64 = products.iter().map(|product| f64::from(*product).powi(2)).sum::<f64>().sqrt();
    assert!((found - expected).abs() <= 0.02 * expected.abs().max(size), "input {index}: {found} against {expected}");
}

/// The largest difference, relative to the largest value.
pub(crate) fn assert_close(found: &Tensor, expected: &Tensor, tolerance: f32, what: &str) {
    assert_eq!(found.dims(), expected.dims(), "{what}");
    let list = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let (found, expected) = (list(found), list(expected));
    let largest = expected.iter().fold(1e-3_f32, |largest, value| largest.max(value.abs()));
    for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
        let apart = (found - expected).abs();
        assert!(apart <= tolerance * largest, "{what} [{index}]: {found} against {expected}");
    }
}
