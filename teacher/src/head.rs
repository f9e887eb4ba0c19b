//! The labelling head: hidden states at masked positions → top-k logits, log-sum-exp and gold logit.

use candle_core::{DType, Result, Tensor};
use rayon::prelude::*;
use store::Label;

/// Logits are computed for this many masked positions at a time, so that they are never all in memory.
const CHUNK_ROWS: usize = 64;

/// Labels `hidden` against the decoder: logits = hidden · weightᵀ + bias.
///
/// `hidden` `[masked, embedding]`, `weight` `[vocabulary, embedding]`, `bias` `[vocabulary]`, `gold_ids` `[masked]`.
/// Only the first `words` rows of the decoder can be among the top k (the others are padding); all of them count
/// in the log-sum-exp. A logit that is not finite is reported as `Err(id)` inside the `Ok`.
pub fn label_rows(
    hidden: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    gold_ids: &[u32],
    words: usize,
    top_k: usize,
) -> Result<std::result::Result<Label, usize>> {
    let masked = gold_ids.len();
    let vocabulary = weight.dim(0)?;
    let transposed = weight.t()?; // [embedding, vocabulary]
    let mut label = Label { top_k, ..Label::default() };
    for start in (0..masked).step_by(CHUNK_ROWS) {
        let rows = CHUNK_ROWS.min(masked - start);
        let logits = hidden.narrow(0, start, rows)?.matmul(&transposed)?.broadcast_add(bias)?; // [rows, vocabulary]
        let logits = logits.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        let labelled: Vec<_> = logits
            .par_chunks(vocabulary)
            .zip(&gold_ids[start..start + rows])
            .map(|(row, &gold)| label_row(row, gold as usize, words, top_k))
            .collect();
        for row in labelled {
            match row {
                Ok(row) => row.append_to(&mut label),
                Err(token) => return Ok(Err(token)),
            }
        }
    }
    Ok(Ok(label))
}

struct RowLabel {
    top: Vec<(f32, u32)>,
    log_sum_exp: f32,
    gold_logit: f32,
}

impl RowLabel {
    fn append_to(self, label: &mut Label) {
        label.top_ids.extend(self.top.iter().map(|&(_, id)| id));
        label.top_logits.extend(self.top.iter().map(|&(logit, _)| logit));
        label.log_sum_exp.push(self.log_sum_exp);
        label.gold_logits.push(self.gold_logit);
    }
}

fn label_row(logits: &[f32], gold: usize, words: usize, top_k: usize) -> std::result::Result<RowLabel, usize> {
    if let Some(token) = logits.iter().position(|logit| !logit.is_finite()) {
        return Err(token);
    }
    Ok(RowLabel { top: top_of(&logits[..words], top_k), log_sum_exp: log_sum_exp(logits), gold_logit: logits[gold] })
}

/// The `top_k` largest logits, descending; of equal ones the lower id first.
fn top_of(logits: &[f32], top_k: usize) -> Vec<(f32, u32)> {
    let mut top: Vec<(f32, u32)> = Vec::with_capacity(top_k + 1);
    for (id, &logit) in logits.iter().enumerate() {
        if top.len() == top_k && top.last().is_none_or(|&(least, _)| logit <= least) {
            continue;
        }
        let place = top.partition_point(|&(other, _)| other >= logit);
        top.insert(place, (logit, id as u32));
        top.truncate(top_k);
    }
    top
}

fn log_sum_exp(logits: &[f32]) -> f32 {
    let maximum = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    // In f64: a vocabulary of 300,000 small terms loses digits in f32.
    let sum: f64 = logits.iter().map(|&logit| f64::from((logit - maximum).exp())).sum();
    (f64::from(maximum) + sum.ln()) as f32
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    /// Sorts everything: slow and obvious.
    fn reference(row: &[f32], words: usize, top_k: usize) -> Vec<(f32, u32)> {
        let mut all: Vec<(f32, u32)> = row[..words].iter().copied().zip(0..).collect();
        all.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        all.truncate(top_k);
        all
    }

    fn row(length: usize, levels: u64, seed: u64) -> Vec<f32> {
        let stream = model::random::Philox::new(seed, "test", &[]);
        (0..length as u64).map(|i| stream.below(levels, i, 0) as f32 / 4.0 - 3.0).collect()
    }

    #[test]
    fn top_k_equals_a_full_sort_with_ties_to_the_lower_id() {
        for (length, words, top_k, levels) in [(1, 1, 1, 9), (50, 50, 8, 3), (50, 40, 8, 1000), (999, 990, 512, 40)] {
            let row = row(length, levels, length as u64);
            assert_eq!(top_of(&row[..words], top_k), reference(&row, words, top_k));
        }
    }

    #[test]
    fn chunks_give_what_one_row_at_a_time_gives() -> Result<()> {
        let (masked, embedding, vocabulary) = (CHUNK_ROWS + 5, 6, 31);
        let device = Device::Cpu;
        let hidden = Tensor::from_vec(row(masked * embedding, 17, 1), (masked, embedding), &device)?;
        let weight = Tensor::from_vec(row(vocabulary * embedding, 17, 2), (vocabulary, embedding), &device)?;
        let bias = Tensor::from_vec(row(vocabulary, 17, 3), vocabulary, &device)?;
        let gold: Vec<u32> = (0..masked as u32).map(|i| i % 30).collect();
        let label = label_rows(&hidden, &weight, &bias, &gold, 30, 4)?.expect("finite");
        assert_eq!(label.positions(), masked);
        let rows = hidden.to_vec2::<f32>()?;
        let (weight, bias) = (weight.to_vec2::<f32>()?, bias.to_vec1::<f32>()?);
        for (i, hidden) in rows.iter().enumerate() {
            let logits: Vec<f32> = weight
                .iter()
                .zip(&bias)
                .map(|(w, b)| w.iter().zip(hidden).map(|(w, h)| w * h).sum::<f32>() + b)
                .collect();
            let sum: f64 = logits.iter().map(|&l| f64::from(l).exp()).sum();
            assert!((f64::from(label.log_sum_exp[i]) - sum.ln()).abs() < 1e-4);
            assert!((label.gold_logits[i] - logits[gold[i] as usize]).abs() < 1e-3);
            for (got, want) in label.top_logits[i * 4..][..4].iter().zip(reference(&logits, 30, 4)) {
                assert!((got - want.0).abs() < 1e-3);
            }
        }
        Ok(())
    }

    #[test]
    fn no_masked_position_gives_an_empty_label_and_nan_is_named() -> Result<()> {
        let device = Device::Cpu;
        let weight = Tensor::zeros((5, 2), DType::F32, &device)?;
        let bias = Tensor::new(&[0_f32, 0.0, 0.0, f32::NAN, 0.0], &device)?;
        let empty = Tensor::zeros((0, 2), DType::F32, &device)?;
        assert_eq!(label_rows(&empty, &weight, &bias, &[], 5, 2)?.map(|label| label.positions()), Ok(0));
        let one = Tensor::zeros((1, 2), DType::F32, &device)?;
        assert_eq!(label_rows(&one, &weight, &bias, &[1], 5, 2)?.err(), Some(3));
        Ok(())
    }
}
