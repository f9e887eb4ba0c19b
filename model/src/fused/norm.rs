//! out = LayerNorm(residual + dropout(x)), row by row: with s = residual + dropout(x) and n = (s − mean) / √(variance + eps),
//! out = n · weight + bias (Ba, Kiros and Hinton, "Layer normalization", 2016).
//!
//! A row is swept several times, but in the first-level cache: mean and variance take two passes, so that a large mean costs no
//! precision.

use super::activation::add_to;
use super::dropout::{Mask, Rows};
use crate::elementary::sum_of;
use crate::simd::ARCH;
use pulp::{Simd, WithSimd};

/// The parameters.
#[derive(Clone, Copy, Debug)]
pub struct Norm<'a> {
    /// `[columns]`.
    pub weight: &'a [f32],
    /// `[columns]`.
    pub bias: &'a [f32],
    /// Added to the variance.
    pub eps: f32,
}

/// What the forward pass leaves for the backward pass.
#[derive(Debug)]
pub struct Saved<'a> {
    /// `[rows, columns]`: n.
    pub normalised: &'a mut [f32],
    /// `[rows]`: 1 / √(variance + eps).
    pub scale: &'a mut [f32],
}

/// Where the backward pass adds the gradients of parameters.
#[derive(Debug)]
pub struct Sums<'a> {
    /// `[columns]`.
    pub weight: &'a mut [f32],
    /// `[columns]`.
    pub bias: &'a mut [f32],
    /// `[columns]`: column sums of the gradient of x, which is the gradient of the bias of the dense map that made x.
    pub dense_bias: Option<&'a mut [f32]>,
}

/// `x`, `residual` and `out` are `[rows, columns]`; `rows` are the rows' numbers for `mask`.
///
/// # Panics
/// When the lengths do not fit.
pub fn forward(
    norm: Norm<'_>,
    x: &[f32],
    residual: Option<&[f32]>,
    mask: Option<Mask>,
    rows: Rows<'_>,
    out: &mut [f32],
    saved: Option<Saved<'_>>,
) {
    ARCH.dispatch(Forward { norm, x, residual, mask, rows, out, saved });
}

/// Makes `gradient` `[rows, columns]`, that of `out`, the gradient of s in place; it is the residual's too. `saved` is
/// (normalised, scale) of the forward pass. `of_x` `[rows, columns]` gets the gradient of x; without a mask that is the gradient of
/// s, and `of_x` may be left out.
///
/// # Panics
/// When the lengths do not fit, or there is a mask but no `of_x`.
pub fn backward(
    norm: Norm<'_>,
    gradient: &mut [f32],
    saved: (&[f32], &[f32]),
    mask: Option<Mask>,
    rows: Rows<'_>,
    of_x: Option<&mut [f32]>,
    sums: Sums<'_>,
) {
    ARCH.dispatch(Backward { norm, gradient, saved, mask, rows, of_x, sums });
}

impl Norm<'_> {
    /// From s in `out`.
    #[inline(always)]
    pub(super) fn normalise_row(&self, out: &mut [f32], saved: Option<(&mut [f32], &mut f32)>) {
        let count = out.len() as f32;
        let mean = sum_of(out, out, |value, _| value) / count;
        let variance = sum_of(out, out, |value, _| (value - mean) * (value - mean)) / count;
        let scale = 1.0 / (variance + self.eps).sqrt();
        let parameters = self.weight.iter().zip(self.bias);
        match saved {
            None => {
                for (out, (weight, bias)) in out.iter_mut().zip(parameters) {
                    *out = ((*out - mean) * scale).mul_add(*weight, *bias);
                }
            }
            Some((normalised, saved_scale)) => {
                *saved_scale = scale;
                for ((out, normalised), (weight, bias)) in out.iter_mut().zip(normalised).zip(parameters) {
                    *normalised = (*out - mean) * scale;
                    *out = normalised.mul_add(*weight, *bias);
                }
            }
        }
    }

    /// With h = gradient · weight: the gradient of s is scale · (h − mean(h) − n · mean(h · n)), and those of weight and bias are
    /// Σ gradient · n and Σ gradient.
    #[inline(always)]
    fn differentiate_row(&self, gradient: &mut [f32], normalised: &[f32], scale: f32, sums: &mut Sums<'_>) {
        let count = gradient.len() as f32;
        let parameters = sums.weight.iter_mut().zip(sums.bias.iter_mut()).zip(self.weight);
        for ((gradient, normalised), ((of_weight, of_bias), weight)) in
            gradient.iter_mut().zip(normalised).zip(parameters)
        {
            *of_weight = gradient.mul_add(*normalised, *of_weight);
            *of_bias += *gradient;
            *gradient *= weight;
        }
        let mean = sum_of(gradient, normalised, |h, _| h) / count;
        let along = sum_of(gradient, normalised, |h, n| h * n) / count;
        for (gradient, normalised) in gradient.iter_mut().zip(normalised) {
            *gradient = scale * normalised.mul_add(-along, *gradient - mean);
        }
    }

    /// The number of rows, which all `[rows, columns]` must have.
    ///
    /// # Panics
    /// When they do not, or weight and bias differ in length.
    pub(super) fn rows_of(&self, matrices: &[Option<&[f32]>], scale: Option<&[f32]>) -> usize {
        let columns = self.weight.len();
        assert_eq!(self.bias.len(), columns);
        let values = matrices.iter().flatten().map(|matrix| matrix.len()).max().unwrap_or(0);
        assert!(values.is_multiple_of(columns), "{values} values in rows of {columns}");
        assert!(matrices.iter().flatten().all(|matrix| matrix.len() == values), "matrices of different sizes");
        let rows = values / columns;
        assert!(scale.is_none_or(|scale| scale.len() == rows), "{rows} rows, and a scale for each was asked for");
        rows
    }
}

impl Saved<'_> {
    /// The parts that belong to a row.
    #[inline(always)]
    pub(super) fn row(&mut self, row: usize, columns: usize) -> (&mut [f32], &mut f32) {
        (&mut self.normalised[row * columns..][..columns], &mut self.scale[row])
    }
}

struct Forward<'a> {
    norm: Norm<'a>,
    x: &'a [f32],
    residual: Option<&'a [f32]>,
    mask: Option<Mask>,
    rows: Rows<'a>,
    out: &'a mut [f32],
    saved: Option<Saved<'a>>,
}

struct Backward<'a> {
    norm: Norm<'a>,
    gradient: &'a mut [f32],
    saved: (&'a [f32], &'a [f32]),
    mask: Option<Mask>,
    rows: Rows<'a>,
    of_x: Option<&'a mut [f32]>,
    sums: Sums<'a>,
}

impl WithSimd for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { norm, x, residual, mask, rows, out, mut saved } = self;
        let columns = norm.weight.len();
        let normalised = saved.as_ref().map(|saved| &*saved.normalised);
        norm.rows_of(&[Some(x), residual, Some(out), normalised], saved.as_ref().map(|saved| &*saved.scale));
        for (row, (out, x)) in out.chunks_exact_mut(columns).zip(x.chunks_exact(columns)).enumerate() {
            out.copy_from_slice(x);
            if let Some(mask) = mask {
                mask.apply_here(out, rows.number(row), 0);
            }
            if let Some(residual) = residual {
                add_to(out, &residual[row * columns..][..columns]);
            }
            norm.normalise_row(out, saved.as_mut().map(|saved| saved.row(row, columns)));
        }
    }
}

impl WithSimd for Backward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { norm, gradient, saved: (normalised, scale), mask, rows, mut of_x, mut sums } = self;
        let columns = norm.weight.len();
        assert!(mask.is_none() || of_x.is_some(), "a mask makes the gradient of x another one");
        norm.rows_of(&[Some(gradient), Some(normalised), of_x.as_deref()], Some(scale));
        for (row, gradient) in gradient.chunks_exact_mut(columns).enumerate() {
            let normalised = &normalised[row * columns..][..columns];
            norm.differentiate_row(gradient, normalised, scale[row], &mut sums);
            let mut of_row: &[f32] = gradient;
            if let Some(of_x) = &mut of_x {
                let of_x = &mut of_x[row * columns..][..columns];
                of_x.copy_from_slice(gradient);
                if let Some(mask) = mask {
                    mask.apply_here(of_x, rows.number(row), 0);
                }
                of_row = of_x;
            }
            if let Some(dense_bias) = &mut sums.dense_bias {
                add_to(dense_bias, of_row);
            }
        }
    }
}

/// Operations on slices against compositions of candle's.
#[cfg(test)]
pub mod check {
    #![allow(clippy::unwrap_used)]
    use crate::comparison::{assert_close, matrix};
    use candle_core::{D, Device, Result, Tensor, Var};

    /// Shapes `[rows, columns]`.
    pub const SHAPES: [(usize, usize); 9] =
        [(1, 1), (5, 1), (3, 3), (1, 7), (4, 7), (70, 33), (1, 256), (5, 256), (3, 768)];

    /// Checks values, and gradients for every input, of `fused` against `composed` by autograd, and against finite differences of
    /// its own values. `fused` takes the inputs and the gradient of the value.
    pub fn check(
        inputs: &[Tensor],
        fused: impl Fn(&[Vec<f32>], &[f32]) -> (Vec<f32>, Vec<Vec<f32>>),
        composed: impl Fn(&[Tensor]) -> Result<Tensor>,
    ) {
        let variables: Vec<Var> = inputs.iter().map(|input| Var::from_tensor(input).unwrap()).collect();
        let tensors: Vec<Tensor> = variables.iter().map(|variable| variable.as_tensor().clone()).collect();
        let expected = composed(&tensors).unwrap();
        let along = matrix(1, expected.elem_count(), 99).reshape(expected.shape()).unwrap();
        let expected_gradients = (&expected * &along).unwrap().sum_all().unwrap().backward().unwrap();
        let along = values(&along);
        let inputs: Vec<Vec<f32>> = inputs.iter().map(values).collect();
        let (value, gradients) = fused(&inputs, &along);
        let tensor = |values: &[f32], like: &Tensor| Tensor::from_slice(values, like.shape(), &Device::Cpu).unwrap();
        assert_close(&tensor(&value, &expected), &expected, 1e-5, "values");
        assert_eq!(gradients.len(), variables.len());
        for (index, (gradient, variable)) in gradients.iter().zip(&variables).enumerate() {
            let expected = expected_gradients.get(variable).unwrap();
            assert_close(&tensor(gradient, expected), expected, 2e-5, &format!("gradient {index}"));
        }
        for (index, gradient) in gradients.iter().enumerate() {
            let direction = values(&matrix(1, gradient.len(), 7));
            let at = |step: f32| {
                let mut moved = inputs.clone();
                moved[index].iter_mut().zip(&direction).for_each(|(input, direction)| *input += step * direction);
                let (value, _) = fused(&moved, &along);
                // Summed in float64: differences of float32 sums would be noise.
                value.iter().zip(&along).map(|(value, along)| f64::from(*value) * f64::from(*along)).sum::<f64>()
            };
            let found = (at(1e-3) - at(-1e-3)) / 2e-3;
            let products = gradient.iter().zip(&direction).map(|(a, b)| f64::from(*a) * f64::from(*b));
            let size = products.clone().map(|product| product.powi(2)).sum::<f64>().sqrt();
            let expected: f64 = products.sum();
            let apart = (found - expected).abs();
            assert!(apart <= 0.02 * expected.abs().max(size).max(0.01), "input {index}: {found} against {expected}");
        }
    }

    /// LayerNorm.
    pub fn normalise(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
        let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
        let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
        centred.broadcast_div(&(variance + eps)?.sqrt()?)?.broadcast_mul(weight)?.broadcast_add(bias)
    }

    /// `[count]`, standard normal.
    pub fn vector(count: usize, seed: u64) -> Tensor {
        matrix(1, count, seed).flatten_all().unwrap()
    }

    /// The values, row by row.
    pub fn values(tensor: &Tensor) -> Vec<f32> {
        tensor.flatten_all().unwrap().to_vec1().unwrap()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::check::{SHAPES, check, normalise, values, vector};
    use super::*;
    use crate::Dropout;
    use crate::comparison::matrix;
    use crate::fused::dropout::Site;
    use crate::random::Philox;
    use crate::simd::archs;
    use candle_core::{Device, Tensor};

    const EPS: f32 = 1e-3;

    fn mask(rate: f64) -> Option<Mask> {
        Mask::new(
            Some(Dropout { stream: Philox::new(1, "dropout", &[]), step: 9, first_row: 0 }),
            Site::Output(3),
            rate,
        )
    }

    /// All that the two passes make.
    #[derive(Debug, PartialEq)]
    struct Made {
        out: Vec<f32>,
        of_sum: Vec<f32>,
        of_x: Vec<f32>,
        of_weight: Vec<f32>,
        of_bias: Vec<f32>,
        of_dense_bias: Vec<f32>,
    }

    /// `inputs`: x, residual, weight and bias. Rows go in calls of these numbers of rows.
    fn run(arch: pulp::Arch, inputs: &[Vec<f32>], gradient: &[f32], mask: Option<Mask>, calls: &[usize]) -> Made {
        let [x, residual, weight, bias] = inputs else { panic!("four inputs") };
        let (columns, norm) = (weight.len(), Norm { weight, bias, eps: EPS });
        let zeros = || vec![0.0; columns];
        let empty = vec![f32::NAN; x.len()];
        let mut made = Made {
            out: empty.clone(),
            of_sum: gradient.to_vec(),
            of_x: empty.clone(),
            of_weight: zeros(),
            of_bias: zeros(),
            of_dense_bias: zeros(),
        };
        let mut first = 0;
        for (call, count) in calls.iter().enumerate() {
            let within = first * columns..(first + count) * columns;
            let numbers: Vec<u32> = (10 + first as u32..).take(*count).collect();
            let rows = if call % 2 == 0 { Rows::From(10 + first as u32) } else { Rows::Listed(&numbers) };
            let (mut normalised, mut scale) = (vec![0.0; count * columns], vec![0.0; *count]);
            let saved = Saved { normalised: &mut normalised, scale: &mut scale };
            let (x, residual, out) = (&x[within.clone()], &residual[within.clone()], &mut made.out[within.clone()]);
            arch.dispatch(Forward { norm, x, residual: Some(residual), mask, rows, out, saved: Some(saved) });
            let Made { of_sum, of_x, of_weight, of_bias, of_dense_bias, .. } = &mut made;
            let sums = Sums { weight: of_weight, bias: of_bias, dense_bias: Some(of_dense_bias) };
            let (gradient, of_x) = (&mut of_sum[within.clone()], &mut of_x[within]);
            let saved = (&*normalised, &*scale);
            arch.dispatch(Backward { norm, gradient, saved, mask, rows, of_x: Some(of_x), sums });
            first += count;
        }
        made
    }

    fn inputs(rows: usize, columns: usize) -> [Tensor; 4] {
        [matrix(rows, columns, 1), matrix(rows, columns, 2), vector(columns, 3), vector(columns, 4)]
    }

    #[test]
    fn agrees_with_the_composition() {
        for ((rows, columns), rate) in SHAPES.into_iter().flat_map(|shape| [(shape, 0.0), (shape, 0.3)]) {
            let mask = mask(rate);
            let fused = |inputs: &[Vec<f32>], gradient: &[f32]| {
                let made = run(*ARCH, inputs, gradient, mask, &[rows]);
                let mut sums = vec![0.0; columns];
                made.of_x.chunks_exact(columns).for_each(|row| add_to(&mut sums, row));
                assert_eq!(made.of_dense_bias, sums);
                (made.out, vec![made.of_x, made.of_sum, made.of_weight, made.of_bias])
            };
            check(&inputs(rows, columns), fused, |t| {
                let x = match mask {
                    Some(mask) => (&t[0] * mask.to_tensor(Rows::From(10), rows, columns, &Device::Cpu)?)?,
                    None => t[0].clone(),
                };
                normalise(&(x + &t[1])?, &t[2], &t[3], f64::from(EPS))
            });
        }
    }

    #[test]
    fn cuts_and_instructions_do_not_matter() {
        for (columns, rate) in [(1, 0.0), (7, 0.2), (33, 0.2), (256, 0.1)] {
            let inputs = inputs(9, columns).map(|input| values(&input));
            let gradient = values(&matrix(9, columns, 5));
            let whole = run(*ARCH, &inputs, &gradient, mask(rate), &[9]);
            for arch in archs() {
                for calls in [&[9][..], &[4, 5], &[0, 1, 0, 8]] {
                    assert_eq!(run(arch, &inputs, &gradient, mask(rate), calls), whole);
                }
            }
        }
    }

    #[test]
    fn what_is_left_out_changes_nothing_else() {
        let [x, _, weight, bias] = inputs(4, 33).map(|input| values(&input));
        let norm = Norm { weight: &weight, bias: &bias, eps: EPS };
        let inputs = [x.clone(), vec![0.0; x.len()], weight.clone(), bias.clone()];
        let gradient = values(&matrix(4, 33, 5));
        let expected = run(*ARCH, &inputs, &gradient, None, &[4]);
        let mut out = vec![0.0; x.len()];
        forward(norm, &x, None, None, Rows::From(0), &mut out, None);
        assert_eq!(out, expected.out);
        let (mut normalised, mut scale) = (vec![0.0; x.len()], vec![0.0; 4]);
        let saved = Saved { normalised: &mut normalised, scale: &mut scale };
        forward(norm, &x, None, None, Rows::From(0), &mut out, Some(saved));
        let (mut flow, mut of_weight, mut of_bias) = (gradient, vec![0.0; 33], vec![0.0; 33]);
        let sums = Sums { weight: &mut of_weight, bias: &mut of_bias, dense_bias: None };
        backward(norm, &mut flow, (&normalised, &scale), None, Rows::From(0), None, sums);
        assert_eq!((flow, of_weight, of_bias), (expected.of_sum, expected.of_weight, expected.of_bias));
    }

    #[test]
    fn a_large_mean_costs_no_precision() {
        let x: Vec<f32> = (0..256).map(|i| 4096.0 + (i % 2) as f32).collect();
        let norm = Norm { weight: &[1.0; 256], bias: &[0.0; 256], eps: 1e-12 };
        let mut out = vec![0.0; 256];
        forward(norm, &x, None, None, Rows::From(0), &mut out, None);
        assert!(out.iter().zip(&x).all(|(out, x)| (out - (2.0 * (x - 4096.0) - 1.0)).abs() < 1e-6), "{out:?}");
    }
}
