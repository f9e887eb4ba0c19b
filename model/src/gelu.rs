//! GELU, exact: x · Φ(x), with Φ the normal distribution function (not its tanh approximation).

use crate::elementary::{erf, exp_nonpositive};
use crate::simd::vectorised;
use crate::slices::{VALUES_PER_TASK, values};
use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor};
use rayon::prelude::*;
use std::f32::consts::FRAC_1_SQRT_2;

/// x · Φ(x) of every value.
pub(crate) fn gelu(x: &Tensor) -> Result<Tensor> {
    if x.device().is_cpu() { x.contiguous()?.apply_op1(Gelu) } else { composed(x) }
}

/// The same by candle.
pub(crate) fn composed(x: &Tensor) -> Result<Tensor> {
    x.gelu_erf()
}

struct Gelu;

/// The gradient of its input, from the input and the gradient of its output.
struct GeluBackward;

impl CustomOp1 for Gelu {
    fn name(&self) -> &'static str {
        "gelu"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = values(x, layout)?;
        let mut out = vec![0.0; x.len()];
        out.par_chunks_mut(VALUES_PER_TASK).zip(x.par_chunks(VALUES_PER_TASK)).for_each(|(out, x)| {
            vectorised(|| out.iter_mut().zip(x).for_each(|(out, x)| *out = x * normal_distribution(*x)));
        });
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(x.detach().contiguous()?.apply_op2_no_bwd(&gradient.contiguous()?, &GeluBackward)?))
    }
}

impl CustomOp2 for GeluBackward {
    fn name(&self) -> &'static str {
        "gelu-backward"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        gradient: &CpuStorage,
        layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, gradient) = (values(x, x_layout)?, values(gradient, layout)?);
        let mut out = vec![0.0; x.len()];
        let tasks = out.par_chunks_mut(VALUES_PER_TASK).zip(x.par_chunks(VALUES_PER_TASK));
        tasks.zip(gradient.par_chunks(VALUES_PER_TASK)).for_each(|((out, x), gradient)| {
            vectorised(|| {
                for ((out, x), gradient) in out.iter_mut().zip(x).zip(gradient) {
                    *out = gradient * (normal_distribution(*x) + x * normal_density(*x));
                }
            });
        });
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }
}

#[inline(always)]
fn normal_distribution(x: f32) -> f32 {
    0.5 * (1.0 + erf(x * FRAC_1_SQRT_2))
}

#[inline(always)]
fn normal_density(x: f32) -> f32 {
    const FRAC_1_SQRT_2_PI: f32 = 0.398_942_3;
    FRAC_1_SQRT_2_PI * exp_nonpositive(-0.5 * x * x)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::gradient_check::{check, matrix};

    #[test]
    fn agrees_with_candle() {
        for (rows, columns) in [(1, 1), (3, 7), (700, 33)] {
            check(&[(matrix(rows, columns, 1) * 3.0).unwrap()], |t| gelu(&t[0]), |t| composed(&t[0]));
        }
    }

    #[test]
    fn far_from_zero() {
        let x = Tensor::new(&[-200.0_f32, -8.0, 8.0, 200.0, f32::NAN], &candle_core::Device::Cpu).unwrap();
        let y = gelu(&x).unwrap().to_vec1::<f32>().unwrap();
        assert!(y[0] == 0.0 && y[1].abs() < 1e-6 && y[2] == 8.0 && y[3] == 200.0 && y[4].is_nan(), "{y:?}");
    }
}
