//! What comes behind the layers, but for the decoder, for one shard.
//!
//! hidden = LayerNorm(act(x·Wt + bt)), from the masked rows x of the last layer; times the decoder these are logits.

use super::layer::{Factors, NormSaved, disjoint, sized, zeroed};
use super::weights::Head;
use crate::Configuration;
use crate::fused::dropout::Rows;
use crate::fused::{activation, norm};
use crate::product::{Matrix, Start, multiply};

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
