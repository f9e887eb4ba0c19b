//! Attention inside each sequence of a packed batch: softmax(q · kᵀ / √head_size) · v, for every head.
//!
//! Sequences are taken in tasks of a few neighbours of one length. A task gathers its rows by head, multiplies, normalises
//! in place, and writes its rows of the context. Nothing is kept for the backward pass: it computes the probabilities anew,
//! which costs one product more and saves tokens × length × heads values per layer.

use crate::batch::Run;
use crate::dropout::Mask;
use crate::elementary::{exp_nonpositive, largest, sum_of};
use crate::simd::vectorised;
use crate::slices::{values, with_values};
use candle_core::{CpuStorage, CustomOp3, D, Device, InplaceOp1, InplaceOp2, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

/// The context of every token. `q`, `k`, `v` and the result are `[tokens, hidden]`, packed; `mask` drops probabilities.
pub(crate) fn attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    runs: &[Run],
    heads: usize,
    mask: Option<Mask>,
) -> Result<Tensor> {
    if q.device().is_cpu() {
        let operation = Attention::new(runs, heads, q.dim(1)?, mask);
        q.contiguous()?.apply_op3(&k.contiguous()?, &v.contiguous()?, operation)
    } else {
        composed(q, k, v, runs, heads, mask)
    }
}

/// The same as a composition of candle's operations.
pub(crate) fn composed(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    runs: &[Run],
    heads: usize,
    mask: Option<Mask>,
) -> Result<Tensor> {
    let hidden = q.dim(1)?;
    let scale = 1.0 / ((hidden / heads) as f64).sqrt();
    let mut contexts = Vec::with_capacity(runs.len());
    let mut first_chunk = 0;
    for run in runs {
        // [sequences, heads, length, head]
        let split = |x: &Tensor| -> Result<Tensor> {
            let x = x.narrow(0, run.first_row, run.rows())?;
            x.reshape((run.sequences, run.length, heads, hidden / heads))?.transpose(1, 2)?.contiguous()
        };
        // [sequences, heads, length, length]
        let scores = (split(q)?.matmul(&split(k)?.t()?)? * scale)?;
        let mut probabilities = softmax(&scores)?;
        if let Some(mask) = mask {
            let shape = (1, heads, run.length, run.length);
            let chunks = Mask::chunks(heads * run.length * run.length);
            let masks: Result<Vec<Tensor>> = (0..run.sequences as u32)
                .map(|sequence| mask.to_tensor(shape, q.device(), first_chunk + sequence * chunks))
                .collect();
            first_chunk += run.sequences as u32 * chunks;
            probabilities = (probabilities * Tensor::cat(&masks?, 0)?)?;
        }
        let context = probabilities.matmul(&split(v)?)?;
        contexts.push(context.transpose(1, 2)?.reshape((run.rows(), hidden))?);
    }
    Tensor::cat(&contexts, 0)
}

fn softmax(scores: &Tensor) -> Result<Tensor> {
    // The shift cancels out, so no gradient need flow through it.
    let shifted = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?.detach())?;
    let exponentials = shifted.exp()?;
    exponentials.broadcast_div(&exponentials.sum_keepdim(D::Minus1)?)
}

/// Scores of one task: few enough to stay in a core's cache.
const SCORES_PER_TASK: usize = 1 << 17;

struct Attention {
    tasks: Vec<Task>,
    heads: usize,
    hidden: usize,
    scale: f32,
    mask: Option<Mask>,
}

/// Neighbouring sequences of one length.
#[derive(Clone, Copy)]
struct Task {
    run: Run,
    /// Of the dropout mask of the first sequence; each begins a new one.
    first_chunk: u32,
}

impl Attention {
    fn new(runs: &[Run], heads: usize, hidden: usize, mask: Option<Mask>) -> Self {
        let mut tasks = Vec::new();
        let mut first_chunk = 0_u32;
        for run in runs {
            let scores = heads * run.length * run.length;
            let sequences_per_task = (SCORES_PER_TASK / scores).clamp(1, run.sequences);
            for first in (0..run.sequences).step_by(sequences_per_task) {
                let part = Run {
                    first_row: run.first_row + first * run.length,
                    sequences: sequences_per_task.min(run.sequences - first),
                    length: run.length,
                };
                tasks.push(Task { run: part, first_chunk });
                first_chunk = first_chunk.wrapping_add(part.sequences as u32 * Mask::chunks(scores));
            }
        }
        Self { tasks, heads, hidden, scale: 1.0 / ((hidden / heads) as f32).sqrt(), mask }
    }

    /// Rows of a packed matrix, by task. The tasks cover all rows, in order.
    fn rows_by_task<'a>(&self, mut matrix: &'a mut [f32]) -> Vec<&'a mut [f32]> {
        let mut parts = Vec::with_capacity(self.tasks.len());
        for task in &self.tasks {
            let (part, rest) = matrix.split_at_mut(task.run.rows() * self.hidden);
            parts.push(part);
            matrix = rest;
        }
        parts
    }

    /// `[sequences · heads, length, head]` from the task's rows of a packed matrix.
    fn gather(&self, matrix: &[f32], run: Run) -> Result<Tensor> {
        let head = self.hidden / self.heads;
        let rows = &matrix[run.first_row * self.hidden..][..run.rows() * self.hidden];
        let mut values = Vec::with_capacity(rows.len());
        for sequence in rows.chunks_exact(run.length * self.hidden) {
            for first in (0..self.hidden).step_by(head) {
                for row in sequence.chunks_exact(self.hidden) {
                    values.extend_from_slice(&row[first..first + head]);
                }
            }
        }
        Tensor::from_vec(values, (run.sequences * self.heads, run.length, head), &Device::Cpu)
    }

    /// The reverse: writes the task's rows.
    fn scatter(&self, tensor: &Tensor, run: Run, rows: &mut [f32]) -> Result<()> {
        let head = self.hidden / self.heads;
        with_values(tensor, |values| {
            let mut values = values.chunks_exact(head);
            for sequence in rows.chunks_exact_mut(run.length * self.hidden) {
                for first in (0..self.hidden).step_by(head) {
                    for (row, values) in sequence.chunks_exact_mut(self.hidden).zip(&mut values) {
                        row[first..first + head].copy_from_slice(values);
                    }
                }
            }
            Ok(())
        })
    }

    /// `[sequences · heads, length, length]`, nothing dropped.
    fn probabilities(&self, q: &Tensor, k: &Tensor) -> Result<Tensor> {
        let scores = q.matmul(&k.t()?)?;
        scores.inplace_op1(&Softmax { scale: self.scale })?;
        Ok(scores)
    }

    fn drop_out(&self, probabilities: &Tensor, task: &Task) -> Result<()> {
        match self.mask {
            None => Ok(()),
            Some(mask) => {
                let per_sequence = self.heads * task.run.length * task.run.length;
                probabilities.inplace_op1(&DropOut { mask, first_chunk: task.first_chunk, per_sequence })
            }
        }
    }

    fn forward(&self, [q, k, v]: [&[f32]; 3], task: &Task, context: &mut [f32]) -> Result<()> {
        let run = task.run;
        let probabilities = self.probabilities(&self.gather(q, run)?, &self.gather(k, run)?)?;
        self.drop_out(&probabilities, task)?;
        self.scatter(&probabilities.matmul(&self.gather(v, run)?)?, run, context)
    }

    /// With P the probabilities, D their dropout mask, G the context's gradient: V gets (P ∘ D)ᵀ · G; the scores get
    /// P ∘ (H − rowsum(P ∘ H)) with H = (G · Vᵀ) ∘ D; and Q and K what follows from them.
    fn backward(
        &self,
        [q, k, v, gradient]: [&[f32]; 4],
        task: &Task,
        [of_q, of_k, of_v]: [&mut [f32]; 3],
    ) -> Result<()> {
        let run = task.run;
        let (q, k, v) = (self.gather(q, run)?, self.gather(k, run)?, self.gather(v, run)?);
        let gradient = self.gather(gradient, run)?;
        let probabilities = self.probabilities(&q, &k)?;
        let dropped = if self.mask.is_some() { probabilities.copy()? } else { probabilities.clone() };
        self.drop_out(&dropped, task)?;
        self.scatter(&dropped.t()?.matmul(&gradient)?, run, of_v)?;
        let of_scores = gradient.matmul(&v.t()?)?;
        self.drop_out(&of_scores, task)?;
        of_scores.inplace_op2(&probabilities, &SoftmaxBackward { scale: self.scale })?;
        self.scatter(&of_scores.matmul(&k)?, run, of_q)?;
        self.scatter(&of_scores.t()?.matmul(&q)?, run, of_k)
    }
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        "packed-attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_layout: &Layout,
        k: &CpuStorage,
        k_layout: &Layout,
        v: &CpuStorage,
        v_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let inputs = [values(q, q_layout)?, values(k, k_layout)?, values(v, v_layout)?];
        let shape = q_layout.shape().clone();
        let rows: usize = self.tasks.iter().map(|task| task.run.rows()).sum();
        if shape.dims() != [rows, self.hidden] || inputs.iter().any(|input| input.len() != rows * self.hidden) {
            bail!("attention over {rows} × {} values was given {shape:?}", self.hidden);
        }
        let mut context = vec![0.0; shape.elem_count()];
        let parts = self.rows_by_task(&mut context);
        self.tasks.par_iter().zip(parts).try_for_each(|(task, part)| self.forward(inputs, task, part))?;
        Ok((CpuStorage::F32(context), shape))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let mut gradients = [(); 3].map(|()| vec![0.0; q.elem_count()]);
        let [of_q, of_k, of_v] = &mut gradients;
        let (of_q, of_k, of_v) = (self.rows_by_task(of_q), self.rows_by_task(of_k), self.rows_by_task(of_v));
        with_values(q, |q| {
            with_values(k, |k| {
                with_values(v, |v| {
                    with_values(gradient, |gradient| {
                        let parts = of_q.into_par_iter().zip(of_k).zip(of_v);
                        self.tasks.par_iter().zip(parts).try_for_each(|(task, ((of_q, of_k), of_v))| {
                            self.backward([q, k, v, gradient], task, [of_q, of_k, of_v])
                        })
                    })
                })
            })
        })?;
        let tensor = |values| Tensor::from_vec(values, q.shape(), q.device()).map(Some);
        let [of_q, of_k, of_v] = gradients;
        Ok((tensor(of_q)?, tensor(of_k)?, tensor(of_v)?))
    }
}

/// Rows of scores become probabilities, after scaling.
struct Softmax {
    scale: f32,
}

impl InplaceOp1 for Softmax {
    fn name(&self) -> &'static str {
        "attention-softmax"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let scale = self.scale;
        let columns = layout.dims().last().copied().unwrap_or(1);
        vectorised(|| {
            for row in values_mut(storage, layout)?.chunks_exact_mut(columns) {
                let highest = largest(row);
                row.iter_mut().for_each(|score| *score = exp_nonpositive(scale * (*score - highest)));
                let total = 1.0 / sum_of(row, row, |value, _| value);
                row.iter_mut().for_each(|value| *value *= total);
            }
            Ok(())
        })
    }
}

/// Gradients of dropped probabilities become gradients of unscaled scores. The other argument is the probabilities.
struct SoftmaxBackward {
    scale: f32,
}

impl InplaceOp2 for SoftmaxBackward {
    fn name(&self) -> &'static str {
        "attention-softmax-backward"
    }

    fn cpu_fwd(
        &self,
        gradient: &mut CpuStorage,
        layout: &Layout,
        probabilities: &CpuStorage,
        other: &Layout,
    ) -> Result<()> {
        let scale = self.scale;
        let columns = layout.dims().last().copied().unwrap_or(1);
        let probabilities = values(probabilities, other)?;
        vectorised(|| {
            let rows = values_mut(gradient, layout)?.chunks_exact_mut(columns);
            for (gradient, probabilities) in rows.zip(probabilities.chunks_exact(columns)) {
                let along = sum_of(gradient, probabilities, |g, p| g * p);
                gradient.iter_mut().zip(probabilities).for_each(|(g, p)| *g = scale * p * (*g - along));
            }
            Ok(())
        })
    }
}

struct DropOut {
    mask: Mask,
    first_chunk: u32,
    per_sequence: usize,
}

impl InplaceOp1 for DropOut {
    fn name(&self) -> &'static str {
        "attention-dropout"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let chunks = Mask::chunks(self.per_sequence);
        for (sequence, values) in values_mut(storage, layout)?.chunks_mut(self.per_sequence).enumerate() {
            self.mask.apply_here(values, self.first_chunk.wrapping_add(sequence as u32 * chunks));
        }
        Ok(())
    }
}

fn values_mut<'a>(storage: &'a mut CpuStorage, layout: &Layout) -> Result<&'a mut [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(values), Some((first, end))) => Ok(&mut values[first..end]),
        _ => bail!("scores are not contiguous float32"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encoder::Dropout;
    use crate::gradient_check::{check, matrix};
    use crate::random::Philox;
    use crate::{PackedBatch, dropout::Site};

    fn agrees(lengths: &[usize], heads: usize, hidden: usize, rate: f64) {
        let tokens = lengths.iter().sum();
        let batch = PackedBatch { token_ids: vec![0; tokens], lengths: lengths.to_vec(), masked_rows: vec![] };
        let runs = batch.runs();
        let dropout = Dropout { stream: Philox::new(1, "dropout", &[]), step: 9 };
        let mask = Mask::new(Some(dropout), Site::Probabilities(0), rate);
        let inputs = [1, 2, 3].map(|seed| matrix(tokens, hidden, seed));
        check(
            &inputs,
            |t| attention(&t[0], &t[1], &t[2], &runs, heads, mask),
            |t| composed(&t[0], &t[1], &t[2], &runs, heads, mask),
        );
    }

    #[test]
    fn agrees_with_the_composition() {
        agrees(&[1], 1, 1, 0.0);
        agrees(&[3, 3, 5, 3], 2, 6, 0.0);
        agrees(&[37, 37, 2, 64], 3, 24, 0.0);
    }

    #[test]
    fn drops_the_same_probabilities_as_the_composition() {
        agrees(&[3, 3, 5, 3], 2, 6, 0.3);
        agrees(&[37, 37, 2, 64], 3, 24, 0.1);
    }

    #[test]
    fn many_sequences_make_many_tasks() {
        let lengths = [[40; 50].as_slice(), &[41; 7]].concat();
        agrees(&lengths, 4, 8, 0.2);
    }
}
