//! Where each parameter lies in an arena: one slice of float32 that holds all of a model's parameters.
//!
//! Gradients and the optimiser's moments have arenas of the same layout, so one pass serves all parameters. What is computed
//! together lies together: a layer's key and value maps, and all vectors of a layer.

use crate::parameters::Names;
use crate::{Architecture, Configuration, ModelError, Parameters};
use candle_core::{Device, Tensor};
use std::collections::BTreeMap;
use std::ops::Range;

/// A parameter's place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Hugging Face name.
    pub name: String,
    /// Its dimensions.
    pub shape: Vec<usize>,
    /// Where its numbers lie in an arena, row after row.
    pub range: Range<usize>,
}

impl Slot {
    /// Whether weight decay applies to it: to matrices, but not to biases and LayerNorms.
    #[must_use]
    pub fn decays(&self) -> bool {
        self.shape.len() > 1
    }
}

/// The places of all parameters of a model.
#[derive(Clone, Debug)]
pub struct Layout {
    slots: Vec<Slot>,
    length: usize,
    /// Where the matrices of dense maps begin: before it, what is read as it is; behind it, what is packed first.
    pub(crate) matrices: usize,
    pub(crate) word: Range<usize>,
    pub(crate) position: Range<usize>,
    pub(crate) token_types: Range<usize>,
    /// The row of type 0.
    pub(crate) token_type: Range<usize>,
    pub(crate) embedding: EmbeddingVectors,
    pub(crate) projection: Option<Range<usize>>,
    pub(crate) layers: Vec<LayerSlots>,
    pub(crate) transform: Range<usize>,
    pub(crate) head: HeadVectors,
    decoder_weight: Range<usize>,
    decoder_bias: Range<usize>,
}

/// A layer's parameters: the matrices by themselves, the vectors one behind the other.
#[derive(Clone, Debug)]
pub(crate) struct LayerSlots {
    /// `[hidden, hidden]`.
    pub(crate) query: Range<usize>,
    /// `[2 · hidden, hidden]`.
    pub(crate) key_value: Range<usize>,
    /// `[hidden, hidden]`.
    pub(crate) output: Range<usize>,
    /// `[intermediate, hidden]`.
    pub(crate) inner: Range<usize>,
    /// `[hidden, intermediate]`.
    pub(crate) outer: Range<usize>,
    pub(crate) vectors: Range<usize>,
    pub(crate) within: LayerVectors,
}

/// Places of a layer's vectors, counted from the first one.
#[derive(Clone, Debug)]
pub(crate) struct LayerVectors {
    pub(crate) query_bias: Range<usize>,
    pub(crate) key_value_bias: Range<usize>,
    pub(crate) output_bias: Range<usize>,
    pub(crate) middle_norm: NormVectors,
    pub(crate) inner_bias: Range<usize>,
    pub(crate) outer_bias: Range<usize>,
    pub(crate) norm: NormVectors,
}

/// A LayerNorm's two vectors.
#[derive(Clone, Debug)]
pub(crate) struct NormVectors {
    pub(crate) weight: Range<usize>,
    pub(crate) bias: Range<usize>,
}

/// The vectors of the embedding; places are counted from the first one.
#[derive(Clone, Debug)]
pub(crate) struct EmbeddingVectors {
    pub(crate) vectors: Range<usize>,
    pub(crate) norm: NormVectors,
    /// Empty unless there is a projection.
    pub(crate) projection_bias: Range<usize>,
}

/// The vectors of the head before the decoder; places are counted from the first one.
#[derive(Clone, Debug)]
pub(crate) struct HeadVectors {
    pub(crate) vectors: Range<usize>,
    pub(crate) bias: Range<usize>,
    pub(crate) norm: NormVectors,
}

impl Layout {
    /// The layout of a model of this shape.
    #[must_use]
    pub fn of(configuration: &Configuration) -> Self {
        let c = configuration;
        let names = Names::of(c.architecture);
        let (base, hidden, embedding) = (names.base, c.hidden_size, c.embedding_size);
        let mut list = List::default();
        let word = list.add(names.word_embeddings, &[c.vocabulary_size, embedding]);
        let position =
            list.add(&format!("{base}.embeddings.position_embeddings.weight"), &[c.max_position_embeddings, embedding]);
        let types =
            list.add(&format!("{base}.embeddings.token_type_embeddings.weight"), &[c.type_vocabulary_size, embedding]);
        let project = format!("{base}.embeddings_project");
        let first = list.align();
        let norm = list.norm(&format!("{base}.embeddings.LayerNorm"), embedding, first);
        let factorised = embedding != hidden;
        let projection_bias = if factorised { list.vector(&format!("{project}.bias"), hidden, first) } else { 0..0 };
        let embedding_vectors = EmbeddingVectors { vectors: first..list.length, norm, projection_bias };
        let layer_name = |layer: usize| format!("{base}.encoder.layer.{layer}");
        let vectors: Vec<_> = (0..c.layers).map(|layer| list.layer_vectors(&layer_name(layer), c)).collect();
        let first = list.align();
        let bias = list.vector(&format!("{}.bias", names.transform), embedding, first);
        let norm = list.norm(names.transform_norm, embedding, first);
        let head = HeadVectors { vectors: first..list.length, bias, norm };
        let decoder_bias = list.add(names.decoder_bias, &[c.vocabulary_size]);

        let matrices = list.align();
        let projection = factorised.then(|| list.add(&format!("{project}.weight"), &[hidden, embedding]));
        let layers = vectors
            .into_iter()
            .enumerate()
            .map(|(layer, (vectors, within))| list.layer_matrices(&layer_name(layer), c, vectors, within));
        let layers = layers.collect();
        let transform = list.add(&format!("{}.weight", names.transform), &[embedding, hidden]);
        let decoder_weight = if c.tie_word_embeddings {
            word.clone()
        } else {
            list.add(names.decoder_weight, &[c.vocabulary_size, embedding])
        };
        Self {
            length: list.align(),
            slots: list.slots,
            matrices,
            word,
            position,
            token_type: types.start..types.start + embedding,
            token_types: types,
            embedding: embedding_vectors,
            projection,
            layers,
            transform,
            head,
            decoder_weight,
            decoder_bias,
        }
    }

    /// Numbers in an arena. A few between the parameters belong to none, and stay 0.
    #[must_use]
    pub fn length(&self) -> usize {
        self.length
    }

    /// All parameters, in the order of their places.
    #[must_use]
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// Places of the decoder's weight `[vocabulary, embedding]` (the word embedding, when tied) and bias `[vocabulary]`.
    #[must_use]
    pub fn decoder(&self) -> (Range<usize>, Range<usize>) {
        (self.decoder_weight.clone(), self.decoder_bias.clone())
    }

    /// Rows of the decoder's weight that may be read: those of the vocabulary, and where others are behind them so many more that they are a multiple of `unit`, with
    /// which products are fast.
    pub(crate) fn padded_words(&self, unit: usize) -> usize {
        let vocabulary = self.decoder_bias.len();
        let (padded, columns) = (vocabulary.next_multiple_of(unit), self.decoder_weight.len() / vocabulary.max(1));
        let is_there = self.decoder_weight.start + padded * columns <= self.length;
        if is_there { padded } else { vocabulary }
    }

    /// An arena that holds `parameters`, which must be those of this layout's model.
    ///
    /// # Errors
    /// What candle says of a tensor that cannot be read.
    pub fn gather(&self, parameters: &Parameters) -> Result<Vec<f32>, ModelError> {
        let mut arena = vec![0.0; self.length];
        for slot in &self.slots {
            let values = parameters.get(&slot.name).to_device(&Device::Cpu)?.flatten_all()?.to_vec1::<f32>()?;
            arena[slot.range.clone()].copy_from_slice(&values);
        }
        Ok(arena)
    }

    /// The reverse: an arena's parameters as tensors.
    ///
    /// # Errors
    /// When the arena is not of this layout.
    pub fn scatter(&self, arena: &[f32], configuration: &Configuration) -> Result<Parameters, ModelError> {
        let mut tensors = BTreeMap::new();
        for slot in &self.slots {
            let values = arena.get(slot.range.clone()).unwrap_or_default();
            let tensor = Tensor::from_slice(values, slot.shape.as_slice(), &Device::Cpu)?;
            tensors.insert(slot.name.clone(), tensor);
        }
        Parameters::from_map(tensors, configuration)
    }
}

impl Configuration {
    /// The head's activation: an ELECTRA generator has a GELU there whatever its layers have.
    pub(crate) fn head_activation(&self) -> crate::Activation {
        match self.architecture {
            Architecture::Bert => self.activation,
            Architecture::ElectraGenerator => crate::Activation::Gelu,
        }
    }
}

#[derive(Default)]
struct List {
    slots: Vec<Slot>,
    length: usize,
}

impl List {
    /// The next place that begins a cache line.
    fn align(&mut self) -> usize {
        self.length = self.length.next_multiple_of(16);
        self.length
    }

    fn add(&mut self, name: &str, shape: &[usize]) -> Range<usize> {
        self.align();
        self.add_here(name, shape)
    }

    /// Directly behind the one before.
    fn add_here(&mut self, name: &str, shape: &[usize]) -> Range<usize> {
        let range = self.length..self.length + shape.iter().product::<usize>();
        self.length = range.end;
        self.slots.push(Slot { name: name.to_owned(), shape: shape.to_vec(), range: range.clone() });
        range
    }

    /// The place of a vector, counted from `first`.
    fn vector(&mut self, name: &str, size: usize, first: usize) -> Range<usize> {
        let range = self.add_here(name, &[size]);
        range.start - first..range.end - first
    }

    fn norm(&mut self, name: &str, size: usize, first: usize) -> NormVectors {
        let weight = self.vector(&format!("{name}.weight"), size, first);
        NormVectors { weight, bias: self.vector(&format!("{name}.bias"), size, first) }
    }

    fn layer_vectors(&mut self, name: &str, configuration: &Configuration) -> (Range<usize>, LayerVectors) {
        let (hidden, intermediate) = (configuration.hidden_size, configuration.intermediate_size);
        let first = self.align();
        let query_bias = self.vector(&format!("{name}.attention.self.query.bias"), hidden, first);
        let key_bias = self.vector(&format!("{name}.attention.self.key.bias"), hidden, first);
        let value_bias = self.vector(&format!("{name}.attention.self.value.bias"), hidden, first);
        let within = LayerVectors {
            query_bias,
            key_value_bias: key_bias.start..value_bias.end,
            output_bias: self.vector(&format!("{name}.attention.output.dense.bias"), hidden, first),
            middle_norm: self.norm(&format!("{name}.attention.output.LayerNorm"), hidden, first),
            inner_bias: self.vector(&format!("{name}.intermediate.dense.bias"), intermediate, first),
            outer_bias: self.vector(&format!("{name}.output.dense.bias"), hidden, first),
            norm: self.norm(&format!("{name}.output.LayerNorm"), hidden, first),
        };
        (first..self.length, within)
    }

    fn layer_matrices(
        &mut self,
        name: &str,
        configuration: &Configuration,
        vectors: Range<usize>,
        within: LayerVectors,
    ) -> LayerSlots {
        let (hidden, intermediate) = (configuration.hidden_size, configuration.intermediate_size);
        let query = self.add(&format!("{name}.attention.self.query.weight"), &[hidden, hidden]);
        let key = self.add(&format!("{name}.attention.self.key.weight"), &[hidden, hidden]);
        let value = self.add_here(&format!("{name}.attention.self.value.weight"), &[hidden, hidden]);
        let output = self.add(&format!("{name}.attention.output.dense.weight"), &[hidden, hidden]);
        let inner = self.add(&format!("{name}.intermediate.dense.weight"), &[intermediate, hidden]);
        let outer = self.add(&format!("{name}.output.dense.weight"), &[hidden, intermediate]);
        LayerSlots { query, key_value: key.start..value.end, output, inner, outer, vectors, within }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_parameter_has_a_place_of_its_own() {
        for (architecture, embedding_size, tied) in [
            (Architecture::Bert, 24, true),
            (Architecture::Bert, 24, false),
            (Architecture::ElectraGenerator, 10, true),
        ] {
            let configuration = Configuration {
                architecture,
                vocabulary_size: 67,
                embedding_size,
                hidden_size: 24,
                layers: 2,
                heads: 3,
                intermediate_size: 41,
                max_position_embeddings: 19,
                type_vocabulary_size: 2,
                activation: crate::Activation::Gelu,
                layer_norm_eps: 1e-12,
                hidden_dropout: 0.1,
                attention_dropout: 0.2,
                classifier_dropout: None,
                initializer_range: 0.3,
                tie_word_embeddings: tied,
                pad_token_id: 0,
            };
            let layout = Layout::of(&configuration);
            let mut named: Vec<_> = layout.slots().iter().map(|slot| (slot.name.clone(), slot.shape.clone())).collect();
            named.sort();
            assert_eq!(named, Parameters::expected(&configuration));
            assert!(layout.slots().windows(2).all(|pair| pair[0].range.end <= pair[1].range.start));
            assert!(layout.slots().last().unwrap().range.end <= layout.length());

            let parameters = Parameters::initialise(&configuration, 3, &Device::Cpu).unwrap();
            let arena = layout.gather(&parameters).unwrap();
            let back = layout.scatter(&arena, &configuration).unwrap();
            for (name, tensor) in parameters.iter() {
                let list = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                assert_eq!(list(back.get(name)), list(tensor), "{name}");
            }
        }
    }
}
