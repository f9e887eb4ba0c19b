//! What comes before the layers, for one shard.
//!
//! embedded = dropout(LayerNorm(word\[id\] + type\[t\] + position\[p\])), times a projection where the embedding is factorised.

use super::layer::{Factors, NormSaved, disjoint, sized, zeroed};
use super::shard::Shard;
use super::weights::Embedding;
use crate::Dropout;
use crate::fused::dropout::{Mask, Rows, Site};
use crate::fused::embedding::{self, Tables};
use crate::fused::{activation, norm};
use crate::product::{Matrix, Start, multiply};
use crate::{Configuration, PackedBatch};

/// A shard's tokens.
#[derive(Clone, Copy)]
pub(crate) struct Tokens<'a> {
    /// `[tokens]`.
    pub(crate) ids: &'a [u32],
    /// `[tokens]`: places in their sequences.
    pub(crate) positions: &'a [u32],
    /// `[tokens]`; empty: all 0.
    pub(crate) types: &'a [u8],
}

impl<'a> Tokens<'a> {
    pub(crate) fn of(batch: &'a PackedBatch, positions: &'a [u32], shard: &Shard) -> Self {
        let tokens = shard.tokens.clone();
        let (ids, positions) = (&batch.token_ids[tokens.clone()], &positions[tokens.clone()]);
        Self { ids, positions, types: batch.types_of(tokens) }
    }
}

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
    /// `[embedding]`: of the embedding of type 0, unless tokens have types.
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

    /// `[tokens]`: the LayerNorm's scales, if they were saved.
    pub(crate) fn scales(&self) -> &[f32] {
        &self.saved.scale
    }

    /// Computes the output for `tokens`.
    pub(crate) fn forward(
        &mut self,
        weights: &Embedding<'_>,
        configuration: &Configuration,
        tokens: Tokens<'_>,
        shard: &Shard,
        dropout: Option<Dropout>,
        saving: bool,
    ) {
        let Tokens { ids, positions, types } = tokens;
        let (tokens, columns, hidden) = (ids.len(), configuration.embedding_size, configuration.hidden_size);
        let tables = Tables { word: weights.word, position: weights.position, token_type: weights.token_types };
        let mask = Mask::new(dropout, Site::Embeddings, configuration.hidden_dropout);
        let saved = saving.then(|| self.saved.make(tokens, columns));
        let embedded = sized(&mut self.embedded, tokens * columns);
        let rows = Rows::From(shard.tokens.start as u32);
        embedding::forward(tables, weights.norm(), (ids, positions, types), mask, rows, embedded, saved);
        if let Some(projection) = weights.projection {
            let projected = sized(&mut self.projected, tokens * hidden);
            let bias = Start::Bias(weights.projection_bias());
            multiply(Matrix::new(embedded, tokens, columns), projection.forward(), bias, projected, hidden);
        }
    }

    /// From the gradient of the output, `flow` `[tokens, hidden]`. `typed`: the types' gradients are found elsewhere, from that of the sum.
    pub(crate) fn backward(
        &self,
        weights: &Embedding<'_>,
        configuration: &Configuration,
        (shard, typed): (&Shard, bool),
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
        let sums = norm::Sums { weight, bias, dense_bias: (!typed).then_some(token_type) };
        embedding::backward(weights.norm(), &mut of.sum, saved, mask, rows, sums);
    }
}
