//! Adding a bias to every row.

use crate::simd::vectorised;
use crate::slices::{add_up, rows_per_task, values, with_values};
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

/// `x` `[rows, columns]` plus `bias` `[columns]`.
pub(crate) fn add_bias(x: &Tensor, bias: &Tensor) -> Result<Tensor> {
    if x.device().is_cpu() { x.contiguous()?.apply_op2(&bias.contiguous()?, AddBias) } else { composed(x, bias) }
}

/// The same by candle.
pub(crate) fn composed(x: &Tensor, bias: &Tensor) -> Result<Tensor> {
    x.broadcast_add(bias)
}

struct AddBias;

impl CustomOp2 for AddBias {
    fn name(&self) -> &'static str {
        "add-bias"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, bias) = (values(x, x_layout)?, values(bias, bias_layout)?);
        let shape = x_layout.shape().clone();
        if shape.dims().last() != Some(&bias.len()) {
            bail!("a bias of {} values for rows of {:?}", bias.len(), shape.dims().last());
        }
        let mut out = vec![0.0; x.len()];
        let task = rows_per_task(bias.len()) * bias.len();
        out.par_chunks_mut(task).zip(x.par_chunks(task)).for_each(|(out, x)| {
            vectorised(|| {
                for (out, x) in out.chunks_exact_mut(bias.len()).zip(x.chunks_exact(bias.len())) {
                    out.iter_mut().zip(x).zip(bias).for_each(|((out, x), bias)| *out = x + bias);
                }
            });
        });
        Ok((CpuStorage::F32(out), shape))
    }

    fn bwd(
        &self,
        _: &Tensor,
        bias: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let sums = with_values(gradient, |gradient| Ok(column_sums(gradient, bias.elem_count())))?;
        let sums = Tensor::from_vec(sums, bias.shape(), bias.device())?;
        Ok((Some(gradient.clone()), Some(sums)))
    }
}

fn column_sums(values: &[f32], columns: usize) -> Vec<f32> {
    let partial: Vec<Vec<f32>> = values
        .par_chunks(rows_per_task(columns) * columns)
        .map(|rows| {
            vectorised(|| {
                let mut sums = vec![0.0; columns];
                for row in rows.chunks_exact(columns) {
                    sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
                }
                sums
            })
        })
        .collect();
    add_up(&partial, columns)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::gradient_check::{check, matrix};

    #[test]
    fn agrees_with_candle() {
        for (rows, columns) in [(1, 1), (3, 7), (700, 33)] {
            let inputs = [matrix(rows, columns, 1), matrix(1, columns, 2).flatten_all().unwrap()];
            check(&inputs, |t| add_bias(&t[0], &t[1]), |t| composed(&t[0], &t[1]));
        }
    }
}
