//! The last layer's attention without keys and values, for a network whose weights do not change.
//!
//! The last layer is asked for masked rows only, so nearly all of what it computes before them are keys and values of all tokens.
//! But a score q · (Wk·x + bk) is (q·Wk) · x and a term that is the same for every token, which the softmax does not see; and
//! Σ p·(Wv·x + bv) = Wv·(Σ p·x) + bv. So the few queries take both maps over, head by head, and attend to x itself (as in
//! DeepSeek-V2, 2024, section 2.1.2, where matrices are absorbed for the same reason).

use super::layer::{Part, Setting, sized};
use super::weights::Weights;
use crate::fused::attention::{self, Heads, Sequence};
use crate::fused::dropout::Rows;
use crate::product::{Matrix, Packed, Start, multiply};

/// Tokens of a sequence, and one in how many is masked, for which it is decided whether this pays.
const TYPICAL: (usize, usize) = (128, 7);

/// The maps of keys and values, by head.
#[derive(Debug)]
pub(crate) struct Absorbed {
    heads: Vec<Maps>,
    /// `[hidden]`.
    value_bias: Vec<f32>,
}

#[derive(Debug)]
struct Maps {
    /// `[size, hidden]`, times √hidden / √size: attention in columns of `hidden` divides by the former.
    key: Packed,
    /// `[hidden, size]`.
    value: Packed,
}

/// Buffers for one shard at a time.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    /// `[rows, heads, hidden]`: q·Wk.
    queries: Vec<f32>,
    /// `[rows, heads, hidden]`: Σ p·x.
    sums: Vec<f32>,
    attention: attention::Scratch,
}

impl Absorbed {
    /// `None` where keys and values cost less.
    pub(crate) fn new(weights: &Weights<'_>) -> Option<Self> {
        let (hidden, heads) = (weights.configuration.hidden_size, weights.configuration.heads);
        let last = weights.configuration.layers.checked_sub(1)?;
        let (tokens, one_in) = TYPICAL;
        // Of the products, for each masked row: both maps take it, and its attention is wider by a factor of `heads`.
        if 2 * hidden * hidden + 2 * tokens * hidden * (heads - 1) >= one_in * 2 * hidden * hidden {
            return None;
        }
        let size = weights.configuration.head_size();
        let key_value = &weights.arena[weights.layout.layers[last].key_value.clone()];
        let (key, value) = key_value.split_at(hidden * hidden);
        let scale = (hidden as f32 / size as f32).sqrt();
        let key: Vec<f32> = key.iter().map(|weight| weight * scale).collect();
        let of_head = |matrix, head: usize| Matrix::new(matrix, hidden, hidden).sub_rows(head * size, size);
        let maps = (0..heads).map(|head| Maps {
            key: Packed::new(of_head(&key, head)),
            value: Packed::new(of_head(value, head).transposed()),
        });
        let layer = weights.layer(last);
        let bias = layer.vector(&layer.within.key_value_bias);
        Some(Self { heads: maps.collect(), value_bias: bias[hidden..].to_vec() })
    }

    /// The context `[rows, hidden]` of queries `[rows, hidden]` among `x` `[tokens, hidden]`.
    pub(crate) fn attend(
        &self,
        setting: &Setting<'_>,
        part: Part<'_>,
        (query, x): (&[f32], &[f32]),
        context: &mut [f32],
        scratch: &mut Scratch,
    ) {
        let Heads { count, size } = setting.heads();
        let hidden = count * size;
        let rows = query.len() / hidden;
        let queries = sized(&mut scratch.queries, rows * count * hidden);
        let by_head = |head: usize| Matrix::new(query, rows, hidden).sub_columns(head * size, size);
        for (head, maps) in self.heads.iter().enumerate() {
            let out = &mut queries[(head * hidden).min(rows * count * hidden)..];
            multiply(by_head(head), maps.key.right(), Start::Zero, out, count * hidden);
        }
        let sums = sized(&mut scratch.sums, rows * count * hidden);
        for (tokens, rows, _) in part.sequences() {
            let x = Matrix::new(&x[tokens.start * hidden..], tokens.len(), hidden);
            let values = rows.start * count * hidden..rows.end * count * hidden;
            let queries = Matrix::new(&queries[values.clone()], rows.len() * count, hidden);
            let sequence = Sequence { queries, keys: x, values: x, query_rows: Rows::From(0) };
            let whole = Heads { count: 1, size: hidden };
            attention::forward(whole, sequence, None, &mut sums[values], None, &mut scratch.attention);
        }
        for (head, maps) in self.heads.iter().enumerate() {
            let sums = Matrix::new(sums, rows, count * hidden).sub_columns(head * hidden, hidden);
            let bias = Start::Bias(&self.value_bias[head * size..][..size]);
            multiply(sums, maps.value.right(), bias, &mut context[(head * size).min(rows * hidden)..], hidden);
        }
    }
}
