//! Weights as the products want them.

use crate::Configuration;
use crate::fused::norm::Norm;
use crate::layout::{EmbeddingVectors, HeadVectors, LayerVectors, Layout, NormVectors};
use crate::product::{Matrix, Packed, PanelMut, Right};
use rayon::prelude::*;
use std::ops::Range;

/// The matrices of all dense maps, packed. The decoder is not among them: it belongs to head and loss.
#[derive(Clone, Debug, Default)]
pub(crate) struct Matrices {
    /// Of a factorised embedding.
    pub(crate) projection: Option<Dense>,
    pub(crate) layers: Vec<LayerMatrices>,
    pub(crate) transform: Dense,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct LayerMatrices {
    pub(crate) query: Dense,
    pub(crate) key_value: Dense,
    pub(crate) output: Dense,
    pub(crate) inner: Dense,
    pub(crate) outer: Dense,
}

/// A dense map's matrix `[outputs, inputs]`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Dense {
    /// `[inputs, outputs]`: y = x · Wᵀ.
    forward: Packed,
    /// `[outputs, inputs]`: the gradient of x is that of y times W. Empty where nothing is trained.
    backward: Packed,
}

impl Dense {
    pub(crate) fn forward(&self) -> Right<'_> {
        self.forward.right()
    }

    pub(crate) fn backward(&self) -> Right<'_> {
        self.backward.right()
    }

    fn panels<'a>(&'a mut self, weight: Matrix<'a>, trained: bool) -> Vec<PanelMut<'a>> {
        let mut panels = self.forward.panels_mut(weight.transposed());
        if trained {
            panels.extend(self.backward.panels_mut(weight));
        }
        panels
    }
}

impl Matrices {
    /// Packs the matrices of an arena in parallel; `trained`: for the backward pass too.
    pub(crate) fn pack(&mut self, configuration: &Configuration, layout: &Layout, arena: &[f32], trained: bool) {
        let (hidden, embedding, intermediate) =
            (configuration.hidden_size, configuration.embedding_size, configuration.intermediate_size);
        let matrix = |range: &Range<usize>, outputs, inputs| Matrix::new(&arena[range.clone()], outputs, inputs);
        let mut panels = Vec::new();
        if let Some(range) = &layout.projection {
            let dense = self.projection.get_or_insert_default();
            panels.extend(dense.panels(matrix(range, hidden, embedding), trained));
        }
        self.layers.resize_with(layout.layers.len(), LayerMatrices::default);
        for (layer, slots) in self.layers.iter_mut().zip(&layout.layers) {
            panels.extend(layer.query.panels(matrix(&slots.query, hidden, hidden), trained));
            panels.extend(layer.key_value.panels(matrix(&slots.key_value, 2 * hidden, hidden), trained));
            panels.extend(layer.output.panels(matrix(&slots.output, hidden, hidden), trained));
            panels.extend(layer.inner.panels(matrix(&slots.inner, intermediate, hidden), trained));
            panels.extend(layer.outer.panels(matrix(&slots.outer, hidden, intermediate), trained));
        }
        panels.extend(self.transform.panels(matrix(&layout.transform, embedding, hidden), trained));
        panels.into_par_iter().for_each(PanelMut::pack);
    }
}

/// A layer's parameters in the forward pass.
#[derive(Clone, Copy)]
pub(crate) struct Layer<'a> {
    pub(crate) matrices: &'a LayerMatrices,
    /// The layer's vectors, one behind the other.
    pub(crate) vectors: &'a [f32],
    pub(crate) within: &'a LayerVectors,
    pub(crate) eps: f32,
}

impl<'a> Layer<'a> {
    pub(crate) fn vector(&self, range: &Range<usize>) -> &'a [f32] {
        &self.vectors[range.clone()]
    }

    pub(crate) fn middle_norm(&self) -> Norm<'a> {
        norm(self.vectors, &self.within.middle_norm, self.eps)
    }

    pub(crate) fn norm(&self) -> Norm<'a> {
        norm(self.vectors, &self.within.norm, self.eps)
    }
}

/// What comes before the layers.
#[derive(Clone, Copy)]
pub(crate) struct Embedding<'a> {
    /// `[vocabulary, embedding]`.
    pub(crate) word: &'a [f32],
    /// `[positions, embedding]`.
    pub(crate) position: &'a [f32],
    /// `[types, embedding]`.
    pub(crate) token_types: &'a [f32],
    pub(crate) vectors: &'a [f32],
    pub(crate) within: &'a EmbeddingVectors,
    pub(crate) projection: Option<&'a Dense>,
    pub(crate) eps: f32,
}

impl<'a> Embedding<'a> {
    pub(crate) fn norm(&self) -> Norm<'a> {
        norm(self.vectors, &self.within.norm, self.eps)
    }

    pub(crate) fn projection_bias(&self) -> &'a [f32] {
        &self.vectors[self.within.projection_bias.clone()]
    }
}

/// What comes behind the layers, but for the decoder.
#[derive(Clone, Copy)]
pub(crate) struct Head<'a> {
    pub(crate) transform: &'a Dense,
    pub(crate) vectors: &'a [f32],
    pub(crate) within: &'a HeadVectors,
    pub(crate) eps: f32,
}

impl<'a> Head<'a> {
    pub(crate) fn bias(&self) -> &'a [f32] {
        &self.vectors[self.within.bias.clone()]
    }

    pub(crate) fn norm(&self) -> Norm<'a> {
        norm(self.vectors, &self.within.norm, self.eps)
    }
}

fn norm<'a>(vectors: &'a [f32], within: &NormVectors, eps: f32) -> Norm<'a> {
    Norm { weight: &vectors[within.weight.clone()], bias: &vectors[within.bias.clone()], eps }
}

/// All parameters of a network but the decoder's: vectors and tables from an arena, matrices packed.
#[derive(Clone, Copy)]
pub(crate) struct Weights<'a> {
    pub(crate) configuration: &'a Configuration,
    pub(crate) layout: &'a Layout,
    pub(crate) arena: &'a [f32],
    pub(crate) matrices: &'a Matrices,
}

impl<'a> Weights<'a> {
    fn eps(&self) -> f32 {
        self.configuration.layer_norm_eps as f32
    }

    pub(crate) fn embedding(&self) -> Embedding<'a> {
        let layout = self.layout;
        Embedding {
            word: &self.arena[layout.word.clone()],
            position: &self.arena[layout.position.clone()],
            token_types: &self.arena[layout.token_types.clone()],
            vectors: &self.arena[layout.embedding.vectors.clone()],
            within: &layout.embedding,
            projection: self.matrices.projection.as_ref(),
            eps: self.eps(),
        }
    }

    pub(crate) fn layer(&self, layer: usize) -> Layer<'a> {
        let slots = &self.layout.layers[layer];
        Layer {
            matrices: &self.matrices.layers[layer],
            vectors: &self.arena[slots.vectors.clone()],
            within: &slots.within,
            eps: self.eps(),
        }
    }

    pub(crate) fn head(&self) -> Head<'a> {
        Head {
            transform: &self.matrices.transform,
            vectors: &self.arena[self.layout.head.vectors.clone()],
            within: &self.layout.head,
            eps: self.eps(),
        }
    }
}
