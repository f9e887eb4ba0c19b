//! One transformer layer, for one shard.
//!
//! ```text
//! q, k, v = x·Wq + bq, x·Wk + bk, x·Wv + bv
//! middle  = LayerNorm(x + dropout(attention(q, k, v)·Wo + bo))
//! output  = LayerNorm(middle + dropout(act(middle·W1 + b1)·W2 + b2))
//! ```
//!
//! A layer may be asked for some rows only: then q and all that comes after it exist for these, while k and v exist for all
//! tokens. `rows` below is their number; `tokens`, `hidden` and `intermediate` are what they are everywhere.

use super::absorbed::{self, Absorbed};
use super::shard::Shard;
use super::weights::Layer;
use crate::Dropout;
use crate::fused::activation;
use crate::fused::attention::{self, Heads, Sequence};
use crate::fused::dropout::{Mask, Rows, Site};
use crate::fused::norm::{self, Saved};
use crate::product::{Matrix, Packed, Start, multiply};
use crate::{Activation, Configuration};
use std::ops::Range;

/// What is the same for every shard that goes through a layer.
#[derive(Clone, Copy)]
pub(crate) struct Setting<'a> {
    pub(crate) number: usize,
    pub(crate) weights: Layer<'a>,
    pub(crate) configuration: &'a Configuration,
    pub(crate) dropout: Option<Dropout>,
}

impl Setting<'_> {
    fn hidden(&self) -> usize {
        self.configuration.hidden_size
    }

    fn intermediate(&self) -> usize {
        self.configuration.intermediate_size
    }

    fn activation(&self) -> Activation {
        self.configuration.activation
    }

    pub(crate) fn heads(&self) -> Heads {
        Heads { count: self.configuration.heads, size: self.configuration.head_size() }
    }

    fn mask(&self, site: impl Fn(usize) -> Site) -> Option<Mask> {
        Mask::new(self.dropout, site(self.number), self.configuration.hidden_dropout)
    }

    fn probabilities_mask(&self) -> Option<Mask> {
        Mask::new(self.dropout, Site::Probabilities(self.number), self.configuration.attention_dropout)
    }
}

/// A shard, and the rows that a layer is asked for.
#[derive(Clone, Copy)]
pub(crate) struct Part<'a> {
    pub(crate) shard: &'a Shard,
    /// Numbers of the rows in the batch; `None`: all.
    pub(crate) masked: Option<&'a [u32]>,
}

impl Part<'_> {
    fn tokens(&self) -> usize {
        self.shard.tokens.len()
    }

    fn count(&self) -> usize {
        self.masked.map_or(self.tokens(), <[u32]>::len)
    }

    fn rows(&self) -> Rows<'_> {
        match self.masked {
            Some(rows) => Rows::Listed(rows),
            None => Rows::From(self.shard.tokens.start as u32),
        }
    }

    /// Of each sequence: its tokens and asked-for rows, counted from the shard's first ones, and the rows' numbers in the batch.
    pub(crate) fn sequences(&self) -> impl Iterator<Item = (Range<usize>, Range<usize>, Rows<'_>)> {
        self.shard.sequences.iter().map(|sequence| match self.masked {
            Some(rows) => {
                (sequence.tokens.clone(), sequence.masked.clone(), Rows::Listed(&rows[sequence.masked.clone()]))
            }
            None => {
                let first = self.shard.tokens.start + sequence.tokens.start;
                (sequence.tokens.clone(), sequence.tokens.clone(), Rows::From(first as u32))
            }
        })
    }

    /// The asked-for rows of a matrix that has all `tokens`, by place in it.
    fn places(&self) -> impl Iterator<Item = usize> {
        self.masked.unwrap_or_default().iter().map(|row| *row as usize - self.shard.tokens.start)
    }
}

/// What a layer computes for a shard. The backward pass needs all of it; without one, the buffers serve the next layer.
#[derive(Debug, Default)]
pub(crate) struct Activations {
    /// `[rows, hidden]`: the input at the asked-for rows; unused where they are all.
    input_rows: Vec<f32>,
    /// `[rows, hidden]`.
    query: Vec<f32>,
    /// `[tokens, 2 · hidden]`.
    key_value: Vec<f32>,
    /// `[rows, heads]`, of the attention's scores.
    log_sum_exp: Vec<f32>,
    /// `[rows, hidden]`.
    context: Vec<f32>,
    /// `[rows, hidden]`.
    middle: Vec<f32>,
    middle_saved: NormSaved,
    /// `[rows, intermediate]`: act'(middle·W1 + b1).
    derivative: Vec<f32>,
    /// `[rows, intermediate]`: act(middle·W1 + b1).
    inner: Vec<f32>,
    /// `[rows, hidden]`.
    pub(crate) output: Vec<f32>,
    output_saved: NormSaved,
}

/// What the backward pass of a LayerNorm needs.
#[derive(Debug, Default)]
pub(crate) struct NormSaved {
    /// `[rows, columns]`.
    pub(crate) normalised: Vec<f32>,
    /// `[rows]`.
    pub(crate) scale: Vec<f32>,
}

impl NormSaved {
    pub(crate) fn make(&mut self, rows: usize, columns: usize) -> Saved<'_> {
        Saved { normalised: sized(&mut self.normalised, rows * columns), scale: sized(&mut self.scale, rows) }
    }
}

impl Activations {
    /// Buffers for queries `[tokens, hidden]` and for keys and values `[tokens, 2 · hidden]`, for whoever computes them
    /// otherwise.
    pub(crate) fn projected(&mut self, tokens: usize, hidden: usize) -> (&mut [f32], &mut [f32]) {
        (sized(&mut self.query, tokens * hidden), sized(&mut self.key_value, tokens * 2 * hidden))
    }
}

/// The gradient of a dense map's output for a shard, and its input packed: the two factors of the gradient of its matrix.
#[derive(Debug, Default)]
pub(crate) struct Factors {
    /// `[rows, outputs]`.
    pub(crate) gradient: Vec<f32>,
    /// `[rows, inputs]`.
    pub(crate) input: Packed,
}

impl Factors {
    /// The gradient, and the input packed.
    pub(crate) fn both(&self) -> (&[f32], &Packed) {
        (&self.gradient, &self.input)
    }
}

/// A layer's gradients for a shard.
#[derive(Debug, Default)]
pub(crate) struct Gradients {
    pub(crate) query: Factors,
    pub(crate) key_value: Factors,
    pub(crate) output: Factors,
    pub(crate) inner: Factors,
    pub(crate) outer: Factors,
    /// Of the layer's vectors.
    pub(crate) vectors: Vec<f32>,
}

/// Buffers whose contents nobody needs afterwards.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    attention: attention::Scratch,
    /// `[rows, hidden]`.
    dense: Vec<f32>,
}

/// Computes `made.output` from `x` `[tokens, hidden]`; what only the backward pass needs is made if `saving`.
pub(crate) fn forward(
    setting: &Setting<'_>,
    part: Part<'_>,
    x: &[f32],
    saving: bool,
    made: &mut Activations,
    scratch: &mut Scratch,
) {
    project_query(setting, part, x, made);
    project_key_value(setting, part, x, made);
    forward_projected(setting, part, x, saving, made, scratch);
}

/// [`forward`] of a layer whose attention needs no keys and values; nothing is saved.
pub(crate) fn forward_absorbed(
    setting: &Setting<'_>,
    absorbed: (&Absorbed, &mut absorbed::Scratch),
    part: Part<'_>,
    x: &[f32],
    made: &mut Activations,
    scratch: &mut Scratch,
) {
    project_query(setting, part, x, made);
    let context = sized(&mut made.context, part.count() * setting.hidden());
    absorbed.0.attend(setting, part, (&made.query, x), context, absorbed.1);
    forward_attended(setting, part, x, false, made, scratch);
}

/// q = x·Wq + bq, after x was gathered at the asked-for rows.
fn project_query(setting: &Setting<'_>, part: Part<'_>, x: &[f32], made: &mut Activations) {
    let (hidden, rows, layer) = (setting.hidden(), part.count(), setting.weights);
    let input_rows: &[f32] = match part.masked {
        Some(_) => gather(x, hidden, part.places(), &mut made.input_rows),
        None => x,
    };
    let query = sized(&mut made.query, rows * hidden);
    let bias = Start::Bias(layer.vector(&layer.within.query_bias));
    multiply(Matrix::new(input_rows, rows, hidden), layer.matrices.query.forward(), bias, query, hidden);
}

/// k, v = x·W + b
fn project_key_value(setting: &Setting<'_>, part: Part<'_>, x: &[f32], made: &mut Activations) {
    let (hidden, tokens, layer) = (setting.hidden(), part.tokens(), setting.weights);
    let key_value = sized(&mut made.key_value, tokens * 2 * hidden);
    let bias = Start::Bias(layer.vector(&layer.within.key_value_bias));
    multiply(Matrix::new(x, tokens, hidden), layer.matrices.key_value.forward(), bias, key_value, 2 * hidden);
}

/// The rest of [`forward`], after `made.query` and `made.key_value` were computed.
pub(crate) fn forward_projected(
    setting: &Setting<'_>,
    part: Part<'_>,
    x: &[f32],
    saving: bool,
    made: &mut Activations,
    scratch: &mut Scratch,
) {
    let rows = part.count();
    let context = sized(&mut made.context, rows * setting.hidden());
    let log_sum_exp = sized(&mut made.log_sum_exp, if saving { rows * setting.configuration.heads } else { 0 });
    attend(setting, part, &made.query, &made.key_value, context, log_sum_exp, &mut scratch.attention);
    forward_attended(setting, part, x, saving, made, scratch);
}

/// The rest of [`forward`], after `made.context` was computed.
fn forward_attended(
    setting: &Setting<'_>,
    part: Part<'_>,
    x: &[f32],
    saving: bool,
    made: &mut Activations,
    scratch: &mut Scratch,
) {
    let (hidden, intermediate, rows) = (setting.hidden(), setting.intermediate(), part.count());
    let layer = setting.weights;
    let (matrices, within) = (layer.matrices, layer.within);
    let input_rows: &[f32] = if part.masked.is_some() { &made.input_rows } else { x };

    let dense = sized(&mut scratch.dense, rows * hidden);
    let bias = Start::Bias(layer.vector(&within.output_bias));
    multiply(Matrix::new(&made.context, rows, hidden), matrices.output.forward(), bias, dense, hidden);
    let middle = sized(&mut made.middle, rows * hidden);
    let saved = saving.then(|| made.middle_saved.make(rows, hidden));
    norm::forward(
        layer.middle_norm(),
        dense,
        Some(input_rows),
        setting.mask(Site::Attention),
        part.rows(),
        middle,
        saved,
    );

    let inner = sized(&mut made.inner, rows * intermediate);
    let bias = Start::Bias(layer.vector(&within.inner_bias));
    let middle_matrix = Matrix::new(middle, rows, hidden);
    if saving {
        let before = sized(&mut made.derivative, rows * intermediate);
        multiply(middle_matrix, matrices.inner.forward(), bias, before, intermediate);
        activation::forward_saving(setting.activation(), before, inner);
    } else {
        multiply(middle_matrix, matrices.inner.forward(), bias, inner, intermediate);
        activation::forward(setting.activation(), inner);
    }
    let bias = Start::Bias(layer.vector(&within.outer_bias));
    multiply(Matrix::new(inner, rows, intermediate), matrices.outer.forward(), bias, dense, hidden);
    let output = sized(&mut made.output, rows * hidden);
    let saved = saving.then(|| made.output_saved.make(rows, hidden));
    norm::forward(layer.norm(), dense, Some(middle), setting.mask(Site::Output), part.rows(), output, saved);
}

/// The reverse: from the gradient of the output in `flow` `[rows, hidden]` to that of `x` `[tokens, hidden]`, in `flow` again. `of`
/// takes what the gradients of the parameters are made of.
pub(crate) fn backward(
    setting: &Setting<'_>,
    part: Part<'_>,
    x: &[f32],
    made: &Activations,
    flow: &mut Vec<f32>,
    of: &mut Gradients,
    scratch: &mut Scratch,
) {
    let (hidden, intermediate, rows) = (setting.hidden(), setting.intermediate(), part.count());
    let layer = setting.weights;
    let (matrices, within) = (layer.matrices, layer.within);
    zeroed(&mut of.vectors, layer.vectors.len());
    let input_rows = if part.masked.is_some() { &made.input_rows } else { x };

    // output = LayerNorm(middle + dropout(outer)); flow: the gradient of the sum, thus of middle as far as it goes here.
    let outer = sized(&mut of.outer.gradient, rows * hidden);
    let [weight, bias, dense_bias] =
        disjoint(&mut of.vectors, [&within.norm.weight, &within.norm.bias, &within.outer_bias]);
    let saved = (&*made.output_saved.normalised, &*made.output_saved.scale);
    let sums = norm::Sums { weight, bias, dense_bias: Some(dense_bias) };
    norm::backward(layer.norm(), flow, saved, setting.mask(Site::Output), part.rows(), Some(outer), sums);
    of.outer.input.pack(Matrix::new(&made.inner, rows, intermediate));

    // inner = act(middle·W1 + b1)
    let inner = sized(&mut of.inner.gradient, rows * intermediate);
    multiply(Matrix::new(outer, rows, hidden), matrices.outer.backward(), Start::Zero, inner, intermediate);
    activation::backward(&made.derivative, inner, &mut of.vectors[within.inner_bias.clone()]);
    multiply(Matrix::new(inner, rows, intermediate), matrices.inner.backward(), Start::Out, flow, hidden);
    of.inner.input.pack(Matrix::new(&made.middle, rows, hidden));

    // middle = LayerNorm(x + dropout(dense)); flow: the gradient of the sum.
    let output = sized(&mut of.output.gradient, rows * hidden);
    let [weight, bias, dense_bias] =
        disjoint(&mut of.vectors, [&within.middle_norm.weight, &within.middle_norm.bias, &within.output_bias]);
    let saved = (&*made.middle_saved.normalised, &*made.middle_saved.scale);
    let sums = norm::Sums { weight, bias, dense_bias: Some(dense_bias) };
    norm::backward(layer.middle_norm(), flow, saved, setting.mask(Site::Attention), part.rows(), Some(output), sums);
    of.output.input.pack(Matrix::new(&made.context, rows, hidden));

    // dense = attention(q, k, v)·Wo + bo
    let of_context = sized(&mut scratch.dense, rows * hidden);
    multiply(Matrix::new(output, rows, hidden), matrices.output.backward(), Start::Zero, of_context, hidden);
    let query = sized(&mut of.query.gradient, rows * hidden);
    let key_value = sized(&mut of.key_value.gradient, part.tokens() * 2 * hidden);
    attend_backward(setting, part, made, of_context, query, key_value, &mut scratch.attention);
    activation::add_column_sums(query, &mut of.vectors[within.query_bias.clone()]);
    activation::add_column_sums(key_value, &mut of.vectors[within.key_value_bias.clone()]);
    of.query.input.pack(Matrix::new(input_rows, rows, hidden));

    // q, k, v = x·W + b
    multiply(Matrix::new(query, rows, hidden), matrices.query.backward(), Start::Out, flow, hidden);
    if part.masked.is_some() {
        of.key_value.input.pack(Matrix::new(x, part.tokens(), hidden));
        spread(flow, hidden, part.places(), part.tokens(), &mut scratch.dense);
        std::mem::swap(flow, &mut scratch.dense);
    }
    let key_value = Matrix::new(key_value, part.tokens(), 2 * hidden);
    multiply(key_value, matrices.key_value.backward(), Start::Out, flow, hidden);
}

/// The context `[rows, hidden]` of all sequences of the shard.
fn attend(
    setting: &Setting<'_>,
    part: Part<'_>,
    query: &[f32],
    key_value: &[f32],
    context: &mut [f32],
    log_sum_exp: &mut [f32],
    scratch: &mut attention::Scratch,
) {
    let (hidden, heads) = (setting.hidden(), setting.heads());
    let mask = setting.probabilities_mask();
    for (tokens, rows, numbers) in part.sequences() {
        let context = &mut context[rows.start * hidden..rows.end * hidden];
        let log_sum_exp =
            (!log_sum_exp.is_empty()).then(|| &mut log_sum_exp[rows.start * heads.count..rows.end * heads.count]);
        let sequence = sequence(query, key_value, hidden, tokens, rows, numbers);
        attention::forward(heads, sequence, mask.as_ref(), context, log_sum_exp, scratch);
    }
}

/// From the gradient of the context to those of queries, keys and values.
fn attend_backward(
    setting: &Setting<'_>,
    part: Part<'_>,
    made: &Activations,
    of_context: &[f32],
    of_query: &mut [f32],
    of_key_value: &mut [f32],
    scratch: &mut attention::Scratch,
) {
    let (hidden, heads) = (setting.hidden(), setting.heads());
    let mask = setting.probabilities_mask();
    for (tokens, rows, numbers) in part.sequences() {
        let values = rows.start * hidden..rows.end * hidden;
        let of = attention::Gradients {
            queries: &mut of_query[values.clone()],
            keys_values: &mut of_key_value[tokens.start * 2 * hidden..tokens.end * 2 * hidden],
        };
        let log_sum_exp = &made.log_sum_exp[rows.start * heads.count..rows.end * heads.count];
        let made_of = (&made.context[values.clone()], log_sum_exp);
        let sequence = sequence(&made.query, &made.key_value, hidden, tokens, rows, numbers);
        attention::backward(heads, sequence, mask.as_ref(), made_of, &of_context[values], of, scratch);
    }
}

fn sequence<'a>(
    query: &'a [f32],
    key_value: &'a [f32],
    hidden: usize,
    tokens: Range<usize>,
    rows: Range<usize>,
    query_rows: Rows<'a>,
) -> Sequence<'a> {
    let key_value = Matrix::new(&key_value[tokens.start * 2 * hidden..], tokens.len(), 2 * hidden);
    Sequence {
        queries: Matrix::new(&query[rows.start * hidden..], rows.len(), hidden),
        keys: key_value.sub_columns(0, hidden),
        values: key_value.sub_columns(hidden, hidden),
        query_rows,
    }
}

fn gather<'a>(x: &[f32], columns: usize, places: impl Iterator<Item = usize>, rows: &'a mut Vec<f32>) -> &'a [f32] {
    rows.clear();
    places.for_each(|place| rows.extend_from_slice(&x[place * columns..][..columns]));
    rows
}

/// The reverse of [`gather`]: rows at their places, and zeros elsewhere.
fn spread(rows: &[f32], columns: usize, places: impl Iterator<Item = usize>, count: usize, out: &mut Vec<f32>) {
    zeroed(out, count * columns);
    for (row, place) in rows.chunks_exact(columns).zip(places) {
        out[place * columns..][..columns].copy_from_slice(row);
    }
}

/// The buffer with this many values, whatever they are.
pub(crate) fn sized(buffer: &mut Vec<f32>, count: usize) -> &mut [f32] {
    buffer.resize(count, 0.0);
    buffer
}

/// The buffer with this many zeros.
pub(crate) fn zeroed(buffer: &mut Vec<f32>, count: usize) -> &mut [f32] {
    buffer.clear();
    buffer.resize(count, 0.0);
    buffer
}

/// Several parts of a slice.
///
/// # Panics
/// When they overlap: places come from a layout, which does not let them.
pub(crate) fn disjoint<'a, const N: usize>(values: &'a mut [f32], ranges: [&Range<usize>; N]) -> [&'a mut [f32]; N] {
    match values.get_disjoint_mut(ranges.map(Clone::clone)) {
        Ok(parts) => parts,
        Err(error) => panic!("parameters overlap: {error}"),
    }
}
