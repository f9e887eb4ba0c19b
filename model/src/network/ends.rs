//! What comes before the layers and what comes behind them, for one shard.
//!
//! ```text
//! embedded = dropout(LayerNorm(word[id] + type[0] + position[p])), times a projection where the embedding is factorised
//! hidden   = LayerNorm(act(x·Wt + bt)), from the masked rows x of the last layer; times the decoder these are the logits
//! ```

use super::layer::{Factors, NormSaved, disjoint, sized, zeroed};
use super::shard::Shard;
use super::weights::{Embedding, Head};
use crate::Configuration;
use crate::Dropout;
use crate::fused::dropout::{Mask, Rows, Site};
use crate::fused::embedding::{self, Tables};
use crate::fused::{activation, norm};
use crate::product::{Matrix, Start, multiply};

/// What the embedding computes for a shard.
#[derive(Debug, Default)]
pub(crate) struct Embedded {
    /// `[tokens, embedding]`; the first layer's input unless there is a projection.
    embedded: Vec<f32>,
    saved: NormSaved,
    /// `[tokens, hidden]`; unused unless there is a projection.
    projected: Vec<f32>,
}

/// The embedding's gradients for a shard.
#[derive(Debug, Default)]
pub(crate) struct EmbeddedGradients {
    /// `[tokens, embedding]`: of the sum of the three embeddings.
    pub(crate) sum: Vec<f32>,
    /// `[embedding]`: of the embedding of type 0.
    pub(crate) token_type: Vec<f32>,
    pub(crate) projection: Factors,
    /// Of the embedding's vectors.
    pub(crate) vectors: Vec<f32>,
}

impl Embedded {
    /// `[tokens, hidden]`: what the first layer takes.
    pub(crate) fn output(&self) -> &[f32] {
        if self.projected.is_empty() { &self.embedded } else { &self.projected }
    }

    /// Computes the output for `ids` `[tokens]` at `positions` `[tokens]`.
    pub(crate) fn forward(
        &mut self,
        weights: &Embedding<'_>,
        configuration: &Configuration,
        (ids, positions): (&[u32], &[u32]),
        shard: &Shard,
        dropout: Option<Dropout>,
        saving: bool,
    ) {
        let (tokens, columns, hidden) = (ids.len(), configuration.embedding_size, configuration.hidden_size);
        let tables = Tables { word: weights.word, position: weights.position, token_type: weights.token_type };
        let mask = Mask::new(dropout, Site::Embeddings, configuration.hidden_dropout);
        let saved = saving.then(|| self.saved.make(tokens, columns));
        let embedded = sized(&mut self.embedded, tokens * columns);
        let rows = Rows::From(shard.tokens.start as u32);
        embedding::forward(tables, weights.norm(), (ids, positions), mask, rows, embedded, saved);
        if let Some(projection) = weights.projection {
            let projected = sized(&mut self.projected, tokens * hidden);
            let bias = Start::Bias(weights.projection_bias());
            multiply(Matrix::new(embedded, tokens, columns), projection.forward(), bias, projected, hidden);
        }
    }

    /// From the gradient of the output, `flow` `[tokens, hidden]`.
    pub(crate) fn backward(
        &self,
        weights: &Embedding<'_>,
        configuration: &Configuration,
        shard: &Shard,
        dropout: Option<Dropout>,
        flow: &mut Vec<f32>,
        of: &mut EmbeddedGradients,
    ) {
        let (tokens, columns, hidden) = (shard.tokens.len(), configuration.embedding_size, configuration.hidden_size);
        zeroed(&mut of.vectors, weights.vectors.len());
        if let Some(projection) = weights.projection {
            activation::add_column_sums(flow, &mut of.vectors[weights.within.projection_bias.clone()]);
            let sum = sized(&mut of.sum, tokens * columns);
            multiply(Matrix::new(flow, tokens, hidden), projection.backward(), Start::Zero, sum, columns);
            of.projection.input.pack(Matrix::new(&self.embedded, tokens, columns));
            std::mem::swap(flow, &mut of.projection.gradient);
        } else {
            std::mem::swap(flow, &mut of.sum);
        }
        let mask = Mask::new(dropout, Site::Embeddings, configuration.hidden_dropout);
        let rows = Rows::From(shard.tokens.start as u32);
        let [weight, bias] = disjoint(&mut of.vectors, [&weights.within.norm.weight, &weights.within.norm.bias]);
        let saved = (&*self.saved.normalised, &*self.saved.scale);
        let token_type = zeroed(&mut of.token_type, configuration.embedding_size);
        let sums = norm::Sums { weight, bias, dense_bias: Some(token_type) };
        embedding::backward(weights.norm(), &mut of.sum, saved, mask, rows, sums);
    }
}

/// What the head computes for a shard.
#[derive(Debug, Default)]
pub(crate) struct Transformed {
    /// `[masked, embedding]`: act(x·Wt + bt).
    activated: Vec<f32>,
    /// `[masked, embedding]`: act'(x·Wt + bt).
    derivative: Vec<f32>,
    saved: NormSaved,
    /// `[masked, embedding]`.
    pub(crate) hidden: Vec<f32>,
}

/// The head's gradients for a shard.
#[derive(Debug, Default)]
pub(crate) struct TransformedGradients {
    pub(crate) transform: Factors,
    /// Of the head's vectors.
    pub(crate) vectors: Vec<f32>,
}

impl Transformed {
    /// Computes `hidden` from the last layer's `x` `[masked, hidden]`.
    pub(crate) fn forward(&mut self, weights: &Head<'_>, configuration: &Configuration, x: &[f32], saving: bool) {
        let (columns, inputs) = (configuration.embedding_size, configuration.hidden_size);
        let rows = x.len() / inputs;
        let kind = configuration.head_activation();
        let activated = sized(&mut self.activated, rows * columns);
        let (x, transform) = (Matrix::new(x, rows, inputs), weights.transform.forward());
        if saving {
            let before = sized(&mut self.derivative, rows * columns);
            multiply(x, transform, Start::Bias(weights.bias()), before, columns);
            activation::forward_saving(kind, before, activated);
        } else {
            multiply(x, transform, Start::Bias(weights.bias()), activated, columns);
            activation::forward(kind, activated);
        }
        let saved = saving.then(|| self.saved.make(rows, columns));
        let hidden = sized(&mut self.hidden, rows * columns);
        norm::forward(weights.norm(), activated, None, None, Rows::From(0), hidden, saved);
    }

    /// From the gradient `of_hidden` `[masked, embedding]` to that of `x`, in `flow` `[masked, hidden]`.
    pub(crate) fn backward(
        &self,
        weights: &Head<'_>,
        configuration: &Configuration,
        x: &[f32],
        of_hidden: &[f32],
        flow: &mut Vec<f32>,
        of: &mut TransformedGradients,
    ) {
        let (columns, inputs) = (configuration.embedding_size, configuration.hidden_size);
        let rows = x.len() / inputs;
        zeroed(&mut of.vectors, weights.vectors.len());
        let gradient = &mut of.transform.gradient;
        gradient.clear();
        gradient.extend_from_slice(of_hidden);
        let [weight, bias] = disjoint(&mut of.vectors, [&weights.within.norm.weight, &weights.within.norm.bias]);
        let saved = (&*self.saved.normalised, &*self.saved.scale);
        let sums = norm::Sums { weight, bias, dense_bias: None };
        norm::backward(weights.norm(), gradient, saved, None, Rows::From(0), None, sums);
        activation::backward(&self.derivative, gradient, &mut of.vectors[weights.within.bias.clone()]);
        of.transform.input.pack(Matrix::new(x, rows, inputs));
        let flow = sized(flow, rows * inputs);
        multiply(Matrix::new(gradient, rows, columns), weights.transform.backward(), Start::Zero, flow, inputs);
    }
}
