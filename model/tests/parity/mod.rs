//! Compares this crate with what transformers made of a teacher (see `tests/parity/teacher_parity.py`).

use candle_core::{Device, Tensor};
use model::{Bert, Inference, PackedBatch, Tokenizer, check_words};
use safetensors::{Dtype, SafeTensors};
use std::error::Error;
use std::path::Path;

/// Tokens in one batch.
const BATCH_TOKENS: usize = 2048;

/// The contents of an expectation file.
pub(crate) struct Expected {
    pub(crate) texts: Vec<String>,
    pub(crate) text_ids: Vec<Vec<u32>>,
    pub(crate) text_offsets: Vec<Vec<(usize, usize)>>,
    pub(crate) batch: PackedBatch,
    pub(crate) gold_ids: Vec<u32>,
    /// `[masked, top_k]`, as are the logits.
    pub(crate) top_ids: Vec<u32>,
    pub(crate) top_logits: Vec<f32>,
    pub(crate) top_k: usize,
    pub(crate) log_sum_exp: Vec<f32>,
    pub(crate) gold_logits: Vec<f32>,
}

/// How far apart the two are.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Differences {
    pub(crate) texts: usize,
    pub(crate) tokens: usize,
    pub(crate) masked_positions: usize,
    /// Texts whose ids or offsets differ.
    pub(crate) texts_apart: usize,
    /// Positions whose top-k ids differ, ties within the tolerance aside.
    pub(crate) top_ids_apart: usize,
    pub(crate) top_logits: f32,
    pub(crate) log_sum_exp: f32,
    pub(crate) gold_logits: f32,
    /// Between logits of the network written by hand, of which the others are, and those of the plain composition.
    pub(crate) composition: f32,
}

impl Differences {
    pub(crate) fn within(&self, tolerance: f32) -> bool {
        let worst = self.top_logits.max(self.log_sum_exp).max(self.gold_logits).max(self.composition);
        self.texts_apart == 0 && self.top_ids_apart == 0 && worst <= tolerance && self.masked_positions > 0
    }
}

impl Expected {
    pub(crate) fn read(path: &Path) -> Result<Self, Box<dyn Error>> {
        let bytes = std::fs::read(path)?;
        let file = SafeTensors::deserialize(&bytes)?;
        let integers = |name: &str| -> Result<Vec<usize>, Box<dyn Error>> {
            let view = file.tensor(name)?;
            assert_eq!(view.dtype(), Dtype::I32);
            Ok(view.data().as_chunks::<4>().0.iter().map(|bytes| i32::from_le_bytes(*bytes) as usize).collect())
        };
        let ids = |name: &str| -> Result<Vec<u32>, Box<dyn Error>> {
            Ok(integers(name)?.into_iter().map(|value| value as u32).collect())
        };
        let floats = |name: &str| -> Result<Vec<f32>, Box<dyn Error>> {
            let view = file.tensor(name)?;
            assert_eq!(view.dtype(), Dtype::F32);
            Ok(view.data().as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
        };
        let texts = split(file.tensor("texts")?.data(), &integers("text_lengths")?)
            .into_iter()
            .map(String::from_utf8)
            .collect::<Result<Vec<String>, _>>()?;
        let counts = integers("text_token_counts")?;
        let offsets: Vec<(usize, usize)> = integers("text_offsets")?.chunks(2).map(|pair| (pair[0], pair[1])).collect();
        Ok(Self {
            texts,
            text_ids: split(&ids("text_ids")?, &counts),
            text_offsets: split(&offsets, &counts),
            batch: PackedBatch {
                token_ids: ids("token_ids")?,
                lengths: integers("lengths")?,
                masked_rows: ids("masked_rows")?,
                ..PackedBatch::default()
            },
            gold_ids: ids("gold_ids")?,
            top_ids: ids("top_ids")?,
            top_logits: floats("top_logits")?,
            top_k: file.tensor("top_ids")?.shape()[1],
            log_sum_exp: floats("log_sum_exp")?,
            gold_logits: floats("gold_logits")?,
        })
    }

    /// The packed sequences in batches of some thousand tokens, in order.
    fn batches(&self) -> Vec<PackedBatch> {
        let mut batches: Vec<PackedBatch> = Vec::new();
        let mut first_row = 0;
        for &length in &self.batch.lengths {
            if batches.last().is_none_or(|batch| batch.tokens() + length > BATCH_TOKENS) {
                batches.push(PackedBatch::default());
            }
            let batch = batches.last_mut().expect("one was pushed");
            let rows = first_row as u32..(first_row + length) as u32;
            let shift = rows.start - batch.tokens() as u32;
            let masked = self.batch.masked_rows.iter().filter(|row| rows.contains(row)).map(|row| row - shift);
            batch.masked_rows.extend(masked);
            batch.token_ids.extend_from_slice(&self.batch.token_ids[first_row..first_row + length]);
            batch.lengths.push(length);
            first_row += length;
        }
        batches
    }
}

/// Loads the teacher and compares it with the expectation. `tie` is the difference below which two logits count as equal.
pub(crate) fn compare(dir: &Path, expected: &Expected, tie: f32) -> Result<Differences, Box<dyn Error>> {
    let tokenizer = Tokenizer::load(dir)?;
    let bert = Bert::load(dir, &Device::Cpu)?;
    check_words(&bert.configuration, &tokenizer)?;
    let mut differences = Differences { texts: expected.texts.len(), ..Differences::default() };
    for ((text, ids), offsets) in expected.texts.iter().zip(&expected.text_ids).zip(&expected.text_offsets) {
        let tokens = tokenizer.encode(text)?;
        differences.tokens += tokens.ids.len();
        if tokens.ids != *ids || tokens.offsets != *offsets {
            differences.texts_apart += 1;
        }
    }
    let network = Inference::new(&bert.configuration, &bert.parameters)?;
    for batch in expected.batches() {
        let found = logits(&bert, network.map_shards(&batch, |_, hidden| hidden.to_vec())?.concat())?;
        let composed = bert.transform_masked(&batch, None)?.flatten_all()?.to_vec1()?;
        let apart = (&found - logits(&bert, composed)?)?.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()?;
        differences.composition = differences.composition.max(apart);
        for row in found.to_vec2::<f32>()? {
            compare_position(&row, tokenizer.len(), expected, &mut differences, tie);
        }
    }
    assert_eq!(differences.masked_positions, expected.gold_ids.len(), "{} texts", differences.texts);
    Ok(differences)
}

/// `[masked, vocabulary]` from hidden states.
fn logits(bert: &Bert, hidden: Vec<f32>) -> Result<Tensor, Box<dyn Error>> {
    let (weight, bias) = bert.decoder();
    let columns = bert.configuration.embedding_size;
    let rows = hidden.len() / columns;
    let hidden = Tensor::from_vec(hidden, (rows, columns), &Device::Cpu)?;
    Ok(hidden.matmul(&weight.t()?)?.broadcast_add(bias)?)
}

fn compare_position(logits: &[f32], words: usize, expected: &Expected, differences: &mut Differences, tie: f32) {
    let position = differences.masked_positions;
    let range = position * expected.top_k..(position + 1) * expected.top_k;
    let (ids, top_logits) = (&expected.top_ids[range.clone()], &expected.top_logits[range]);
    let mut order: Vec<usize> = (0..words).collect();
    order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]));
    let equal = ids.iter().zip(&order).all(|(expected, found)| {
        *expected as usize == *found || (logits[*expected as usize] - logits[*found]).abs() < tie
    });
    differences.top_ids_apart += usize::from(!equal);
    for (id, expected) in ids.iter().zip(top_logits) {
        differences.top_logits = differences.top_logits.max((logits[*id as usize] - expected).abs());
    }
    let largest = f64::from(logits[order[0]]);
    let sum: f64 = logits.iter().map(|logit| (f64::from(*logit) - largest).exp()).sum();
    let log_sum_exp = (sum.ln() + largest) as f32;
    differences.log_sum_exp = differences.log_sum_exp.max((log_sum_exp - expected.log_sum_exp[position]).abs());
    let gold = logits[expected.gold_ids[position] as usize];
    differences.gold_logits = differences.gold_logits.max((gold - expected.gold_logits[position]).abs());
    differences.masked_positions += 1;
}

fn split<T: Clone>(items: &[T], lengths: &[usize]) -> Vec<Vec<T>> {
    let mut first = 0;
    let take = |length: &usize| {
        first += length;
        items[first - length..first].to_vec()
    };
    lengths.iter().map(take).collect()
}
