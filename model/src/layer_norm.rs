//! LayerNorm over the last dimension: (x − mean) / √(variance + eps) · weight + bias.

use crate::elementary::sum_of;
use crate::simd::vectorised;
use crate::slices::{add_up, rows_per_task, values, with_values};
use candle_core::{CpuStorage, CustomOp3, D, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

/// Normalises every row of `x` `[rows, columns]`; `weight` and `bias` are `[columns]`.
pub(crate) fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    if x.device().is_cpu() {
        x.contiguous()?.apply_op3(&weight.contiguous()?, &bias.contiguous()?, LayerNorm { eps: eps as f32 })
    } else {
        composed(x, weight, bias, eps)
    }
}

/// The same as a composition of candle's operations. (Its own fused LayerNorm has no backward pass.)
pub(crate) fn composed(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
    let normalised = centred.broadcast_div(&(variance + eps)?.sqrt()?)?;
    normalised.broadcast_mul(weight)?.broadcast_add(bias)
}

struct LayerNorm {
    eps: f32,
}

/// Mean and inverse standard deviation of a row.
#[derive(Clone, Copy)]
struct Moments {
    mean: f32,
    scale: f32,
}

impl LayerNorm {
    #[inline(always)]
    fn moments(&self, row: &[f32]) -> Moments {
        let count = row.len() as f32;
        let mean = sum_of(row, row, |value, _| value) / count;
        let variance = sum_of(row, row, |value, _| (value - mean) * (value - mean)) / count;
        Moments { mean, scale: 1.0 / (variance + self.eps).sqrt() }
    }
}

impl CustomOp3 for LayerNorm {
    fn name(&self) -> &'static str {
        "layer-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let x = values(x, x_layout)?;
        let (weight, bias) = (values(weight, weight_layout)?, values(bias, bias_layout)?);
        let (columns, shape) = (weight.len(), x_layout.shape().clone());
        if shape.dims().last() != Some(&columns) || bias.len() != columns {
            bail!("a LayerNorm of {columns} and {} values for rows of {:?}", bias.len(), shape.dims().last());
        }
        let mut out = vec![0.0; x.len()];
        let task = rows_per_task(columns) * columns;
        out.par_chunks_mut(task).zip(x.par_chunks(task)).for_each(|(out, x)| {
            vectorised(|| {
                for (out, x) in out.chunks_exact_mut(columns).zip(x.chunks_exact(columns)) {
                    let Moments { mean, scale } = self.moments(x);
                    for (((out, x), weight), bias) in out.iter_mut().zip(x).zip(weight).zip(bias) {
                        *out = (x - mean) * scale * weight + bias;
                    }
                }
            });
        });
        Ok((CpuStorage::F32(out), shape))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (of_x, of_weight, of_bias) = with_values(x, |x| {
            with_values(weight, |weight| with_values(gradient, |gradient| Ok(self.gradients(x, weight, gradient))))
        })?;
        Ok((
            Some(Tensor::from_vec(of_x, x.shape(), x.device())?),
            Some(Tensor::from_vec(of_weight, weight.shape(), x.device())?),
            Some(Tensor::from_vec(of_bias, bias.shape(), x.device())?),
        ))
    }
}

impl LayerNorm {
    /// Gradients of x, weight and bias from the gradient g of the output. With n = (x − mean) · scale and h = g · weight:
    /// scale · (h − mean(h) − n · mean(h · n)), Σ g · n and Σ g.
    fn gradients(&self, x: &[f32], weight: &[f32], gradient: &[f32]) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
        let columns = weight.len();
        let task = rows_per_task(columns) * columns;
        let mut of_x = vec![0.0; x.len()];
        let partial: Vec<Vec<f32>> = of_x
            .par_chunks_mut(task)
            .zip(x.par_chunks(task))
            .zip(gradient.par_chunks(task))
            .map(|((of_x, x), gradient)| vectorised(|| self.gradients_of_rows(x, weight, gradient, of_x)))
            .collect();
        let mut of_weight = add_up(&partial, 2 * columns);
        let of_bias = of_weight.split_off(columns);
        (of_x, of_weight, of_bias)
    }

    /// Writes the gradient of x; returns those of weight and bias, one behind the other.
    #[inline(always)]
    fn gradients_of_rows(&self, x: &[f32], weight: &[f32], gradient: &[f32], of_x: &mut [f32]) -> Vec<f32> {
        let columns = weight.len();
        let mut sums = vec![0.0; 2 * columns];
        let (of_weight, of_bias) = sums.split_at_mut(columns);
        let mut normalised = vec![0.0; columns];
        let mut weighted = vec![0.0; columns];
        let rows = x.chunks_exact(columns).zip(gradient.chunks_exact(columns)).zip(of_x.chunks_exact_mut(columns));
        for ((x, gradient), of_x) in rows {
            let Moments { mean, scale } = self.moments(x);
            normalised.iter_mut().zip(x).for_each(|(n, x)| *n = (x - mean) * scale);
            weighted.iter_mut().zip(gradient).zip(weight).for_each(|((h, g), weight)| *h = g * weight);
            of_bias.iter_mut().zip(gradient).for_each(|(sum, g)| *sum += g);
            of_weight.iter_mut().zip(gradient).zip(&normalised).for_each(|((sum, g), n)| *sum += g * n);
            let mean = sum_of(&weighted, &weighted, |h, _| h) / columns as f32;
            let along = sum_of(&weighted, &normalised, |h, n| h * n) / columns as f32;
            for ((of_x, h), n) in of_x.iter_mut().zip(&weighted).zip(&normalised) {
                *of_x = scale * (h - mean - n * along);
            }
        }
        sums
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::gradient_check::{check, matrix};

    #[test]
    fn agrees_with_the_composition() {
        for (rows, columns, eps) in [(1, 3, 1e-3), (3, 7, 1e-12), (700, 33, 1e-5), (5, 256, 1e-12)] {
            let vector = |seed| matrix(1, columns, seed).flatten_all().unwrap();
            let inputs = [matrix(rows, columns, 1), vector(2), vector(3)];
            check(&inputs, |t| layer_norm(&t[0], &t[1], &t[2], eps), |t| composed(&t[0], &t[1], &t[2], eps));
        }
    }
}
