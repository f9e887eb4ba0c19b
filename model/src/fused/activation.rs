//! The non-linearity between two dense maps, and its derivative.
//!
//! The derivative is made in the forward pass, where it shares nearly everything with the value; it takes the place of the values
//! before the activation, which nobody else needs, and the backward pass is a product.

use crate::Activation;
use crate::elementary::{normal, sigmoid};
use crate::simd::{ARCH, vectorised};
use pulp::{Simd, WithSimd};

/// In place, act(x) of every value.
pub fn forward(kind: Activation, values: &mut [f32]) {
    ARCH.dispatch(Forward { kind, values });
}

/// Replaces every value x by act'(x), and writes act(x), the same as [`forward`] does.
///
/// # Panics
/// When the lengths differ.
pub fn forward_saving(kind: Activation, values: &mut [f32], out: &mut [f32]) {
    ARCH.dispatch(ForwardSaving { kind, values, out });
}

/// From the derivatives that [`forward_saving`] left and the gradient of its `out`: makes `gradient` `[rows, columns]` that of the
/// values before the activation, in place, and adds its column sums to `of_bias` `[columns]`.
///
/// # Panics
/// When the lengths do not fit.
pub fn backward(derivative: &[f32], gradient: &mut [f32], of_bias: &mut [f32]) {
    ARCH.dispatch(Backward { derivative, gradient, of_bias });
}

/// Adds the column sums of `values` `[rows, columns]` to `sums` `[columns]`, row after row.
///
/// # Panics
/// When the lengths do not fit.
pub fn add_column_sums(values: &[f32], sums: &mut [f32]) {
    vectorised(
        #[inline(always)]
        || {
            let rows = values.chunks_exact(sums.len());
            assert!(rows.remainder().is_empty(), "{} values in rows of {}", values.len(), sums.len());
            for row in rows {
                add_to(sums, row);
            }
        },
    );
}

/// sums += row.
#[inline(always)]
pub(super) fn add_to(sums: &mut [f32], row: &[f32]) {
    for (sum, value) in sums.iter_mut().zip(row) {
        *sum += value;
    }
}

struct Forward<'a> {
    kind: Activation,
    values: &'a mut [f32],
}

struct ForwardSaving<'a> {
    kind: Activation,
    values: &'a mut [f32],
    out: &'a mut [f32],
}

struct Backward<'a> {
    derivative: &'a [f32],
    gradient: &'a mut [f32],
    of_bias: &'a mut [f32],
}

impl WithSimd for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        #[inline(always)]
        fn each(values: &mut [f32], activation: impl Fn(f32) -> (f32, f32)) {
            for value in values {
                *value = activation(*value).0;
            }
        }
        match self.kind {
            Activation::Gelu => each(self.values, gelu),
            Activation::GeluTanh => each(self.values, gelu_tanh),
            Activation::Relu => each(self.values, relu),
            Activation::Silu => each(self.values, silu),
        }
    }
}

impl WithSimd for ForwardSaving<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        #[inline(always)]
        fn each(values: &mut [f32], out: &mut [f32], activation: impl Fn(f32) -> (f32, f32)) {
            for (value, out) in values.iter_mut().zip(out) {
                (*out, *value) = activation(*value);
            }
        }
        let Self { kind, values, out } = self;
        assert_eq!(values.len(), out.len());
        match kind {
            Activation::Gelu => each(values, out, gelu),
            Activation::GeluTanh => each(values, out, gelu_tanh),
            Activation::Relu => each(values, out, relu),
            Activation::Silu => each(values, out, silu),
        }
    }
}

impl WithSimd for Backward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { derivative, gradient, of_bias } = self;
        let columns = of_bias.len();
        assert_eq!(derivative.len(), gradient.len());
        assert!(gradient.len().is_multiple_of(columns), "{} values in rows of {columns}", gradient.len());
        for (derivative, gradient) in derivative.chunks_exact(columns).zip(gradient.chunks_exact_mut(columns)) {
            for ((gradient, derivative), sum) in gradient.iter_mut().zip(derivative).zip(of_bias.iter_mut()) {
                *gradient *= derivative;
                *sum += *gradient;
            }
        }
    }
}

/// x · Φ(x), and Φ(x) + x · φ(x).
#[inline(always)]
fn gelu(x: f32) -> (f32, f32) {
    let (distribution, density) = normal(x);
    (x * distribution, x.mul_add(density, distribution))
}

/// x · (1 + tanh u) / 2 = x · σ(2u) with u = √(2/π) · (x + 0.044715 x³) (Hendrycks and Gimpel, "Gaussian error linear units",
/// section 2).
#[inline(always)]
fn gelu_tanh(x: f32) -> (f32, f32) {
    const LINEAR: f32 = 1.595_769;
    const CUBIC: f32 = 0.044_715 * LINEAR;
    /// From here on σ is 0 or 1, and cubes must stay finite.
    const LARGEST: f32 = 30.0;
    let inner = if x < -LARGEST { -LARGEST } else { x };
    let inner = if inner > LARGEST { LARGEST } else { inner };
    let square = inner * inner;
    let (logistic, derivative) = sigmoid(inner * square.mul_add(CUBIC, LINEAR));
    (x * logistic, (x * square.mul_add(3.0 * CUBIC, LINEAR)).mul_add(derivative, logistic))
}

/// max(x, 0). The derivative at 0 is 0, as PyTorch has it.
#[inline(always)]
fn relu(x: f32) -> (f32, f32) {
    (if x <= 0.0 { 0.0 } else { x }, if x > 0.0 { 1.0 } else { 0.0 })
}

/// x · σ(x).
#[inline(always)]
fn silu(x: f32) -> (f32, f32) {
    let (logistic, derivative) = sigmoid(x);
    (x * logistic, x.mul_add(derivative, logistic))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::comparison::matrix;
    use crate::fused::norm::check::{SHAPES, check, values, vector};
    use crate::simd::archs;
    use candle_core::{Device, Module, Result, Tensor};

    const KINDS: [Activation; 4] = [Activation::Gelu, Activation::GeluTanh, Activation::Relu, Activation::Silu];

    fn composed(kind: Activation, x: &Tensor) -> Result<Tensor> {
        match kind {
            Activation::Gelu => x.gelu_erf(),
            Activation::GeluTanh => candle_nn::Activation::NewGelu.forward(x),
            Activation::Relu => x.relu(),
            Activation::Silu => x.silu(),
        }
    }

    #[test]
    fn agrees_with_the_composition() {
        for (kind, (rows, columns)) in KINDS.into_iter().flat_map(|kind| SHAPES.map(|shape| (kind, shape))) {
            let fused = |inputs: &[Vec<f32>], gradient: &[f32]| {
                let mut before: Vec<f32> =
                    inputs[0].iter().zip(inputs[1].iter().cycle()).map(|(x, bias)| x + bias).collect();
                let (mut inferred, mut out) = (before.clone(), vec![0.0; before.len()]);
                forward(kind, &mut inferred);
                forward_saving(kind, &mut before, &mut out);
                assert_eq!(inferred, out);
                let (mut gradient, mut of_bias) = (gradient.to_vec(), vec![0.0; columns]);
                backward(&before, &mut gradient, &mut of_bias);
                let mut sums = vec![0.0; columns];
                add_column_sums(&gradient, &mut sums);
                assert_eq!(sums, of_bias);
                (out, vec![gradient, of_bias])
            };
            // Away from 0, where max(x, 0) has no derivative.
            let away = |x: Vec<f32>| x.into_iter().map(|x| x + 0.5_f32.copysign(x)).collect::<Vec<f32>>();
            let bias = (vector(columns, 2) * 0.05).unwrap();
            let x = away(values(&matrix(rows, columns, 1)));
            let inputs = [Tensor::from_vec(x, (rows, columns), &Device::Cpu).unwrap(), bias];
            check(&inputs, fused, |t| composed(kind, &t[0].broadcast_add(&t[1])?));
        }
    }

    #[test]
    fn cuts_and_instructions_do_not_matter() {
        let x = values(&(matrix(9, 33, 1) * 4.0).unwrap());
        let gradient = values(&matrix(9, 33, 2));
        let run = |arch: pulp::Arch, kind, cut: usize| {
            let (mut x, mut out, mut gradient, mut of_bias) =
                (x.clone(), vec![0.0; x.len()], gradient.clone(), vec![0.0; 33]);
            for rows in [0..cut * 33, cut * 33..9 * 33] {
                let (values, out) = (&mut x[rows.clone()], &mut out[rows.clone()]);
                arch.dispatch(ForwardSaving { kind, values, out });
                let (derivative, gradient) = (&x[rows.clone()], &mut gradient[rows]);
                arch.dispatch(Backward { derivative, gradient, of_bias: &mut of_bias });
            }
            (x, out, gradient, of_bias)
        };
        for kind in KINDS {
            let whole = run(*ARCH, kind, 0);
            for (arch, cut) in archs().into_iter().flat_map(|arch| [(arch, 9), (arch, 4)]) {
                assert_eq!(run(arch, kind, cut), whole);
            }
        }
    }

    #[test]
    fn far_from_zero() {
        for kind in KINDS {
            let mut x = [-1e30, -200.0, -20.0, 20.0, 200.0, 1e30];
            let mut out = [f32::NAN; 6];
            forward_saving(kind, &mut x, &mut out);
            let expected = [0.0, 0.0, 0.0, 20.0, 200.0, 1e30];
            assert!(out.iter().zip(expected).all(|(out, expected)| (out - expected).abs() < 1e-6), "{kind:?} {out:?}");
            let expected = [0.0, 0.0, 0.0, 1.0, 1.0, 1.0];
            assert!(x.iter().zip(expected).all(|(x, expected)| (x - expected).abs() < 1e-6), "{kind:?} {x:?}");
            let mut nan = [f32::NAN];
            forward(kind, &mut nan);
            assert!(nan[0].is_nan(), "{kind:?}");
        }
    }

    #[test]
    fn no_rows() {
        let mut sums = [1.0; 3];
        forward(Activation::Gelu, &mut []);
        forward_saving(Activation::Gelu, &mut [], &mut []);
        backward(&[], &mut [], &mut sums);
        add_column_sums(&[], &mut sums);
        assert_eq!(sums, [1.0; 3]);
    }
}
