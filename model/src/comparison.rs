//! Random matrices, and how far two are apart.
#![allow(clippy::unwrap_used)]

use crate::random::Philox;
use candle_core::{Device, Tensor};

/// Standard normal values, a function of the seed.
pub(crate) fn matrix(rows: usize, columns: usize, seed: u64) -> Tensor {
    let stream = Philox::new(seed, "test matrix", &[]);
    let values: Vec<f32> = (0..rows * columns).map(|i| stream.normal(i as u64, 0) as f32).collect();
    Tensor::from_vec(values, (rows, columns), &Device::Cpu).unwrap()
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
