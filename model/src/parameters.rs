//! A model's parameters under their Hugging Face names.

use crate::checkpoint::Checkpoint;
use crate::random::Philox;
use crate::{Architecture, Configuration, ModelError};
use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::path::Path;

/// Parameters by canonical name (`bert.…` / `electra.…` prefix, `weight` and `bias`), float32, in the order of
/// their names. Which ones there are, and their shapes, is given by [`Parameters::expected`]; a set that lacks one
/// cannot be made.
#[derive(Clone, Debug)]
pub struct Parameters {
    tensors: BTreeMap<String, Tensor>,
    decoder_weight: &'static str,
    decoder_bias: &'static str,
}

impl Parameters {
    /// Reads the weights in `dir`. They are untied if the configuration says so, or if the checkpoint has a decoder
    /// that differs from the word embedding: see [`Parameters::tied`].
    ///
    /// # Errors
    /// When the weights cannot be read, or a tensor is missing or misshapen.
    pub fn load(dir: &Path, configuration: &Configuration, device: &Device) -> Result<Self, ModelError> {
        let checkpoint = Checkpoint::open(dir, configuration.architecture)?;
        let untied = Configuration { tie_word_embeddings: false, ..configuration.clone() };
        let names = Names::of(configuration.architecture);
        let mut tensors = BTreeMap::new();
        for (name, shape) in Self::expected(&untied) {
            if name == names.decoder_weight && configuration.tie_word_embeddings && !checkpoint.contains(&name) {
                continue;
            }
            let stored = if name == names.decoder_bias && checkpoint.contains(names.linear_bias) {
                names.linear_bias
            } else {
                &name
            };
            tensors.insert(name.clone(), checkpoint.read(stored, &shape)?);
        }
        if configuration.tie_word_embeddings
            && let Some(decoder) = tensors.get(names.decoder_weight)
            && same(decoder, &tensors[names.word_embeddings])?
        {
            tensors.remove(names.decoder_weight);
        }
        for tensor in tensors.values_mut() {
            *tensor = tensor.to_device(device)?;
        }
        let tied = !tensors.contains_key(names.decoder_weight);
        Self::from_map(tensors, &Configuration { tie_word_embeddings: tied, ..configuration.clone() })
    }

    /// Reads the encoder in `dir` alone. What belongs to a head that predicts tokens is 0, whatever the checkpoint holds of it, and the
    /// decoder is the word embedding.
    ///
    /// # Errors
    /// When the weights cannot be read, or a tensor is missing or misshapen.
    pub(crate) fn of_encoder(checkpoint: &Checkpoint, configuration: &Configuration) -> Result<Self, ModelError> {
        let tied = Configuration { tie_word_embeddings: true, ..configuration.clone() };
        let prefix = format!("{}.", Names::of(configuration.architecture).base);
        let mut tensors = BTreeMap::new();
        for (name, shape) in Self::expected(&tied) {
            let tensor = match name.starts_with(&prefix) {
                true => checkpoint.read(&name, &shape)?,
                false => Tensor::zeros(shape, DType::F32, &Device::Cpu)?,
            };
            tensors.insert(name, tensor);
        }
        Self::from_map(tensors, &tied)
    }

    /// Fresh parameters: weights normal with `initializer_range` as standard deviation, the padding token's embedding
    /// and all biases 0, LayerNorms 1. A function of `seed` and the name alone.
    ///
    /// # Errors
    /// When the device cannot hold them.
    pub fn initialise(configuration: &Configuration, seed: u64, device: &Device) -> Result<Self, ModelError> {
        let names = Names::of(configuration.architecture);
        let mut tensors = BTreeMap::new();
        for (name, shape) in Self::expected(configuration) {
            let mut values = initial_values(&name, &shape, configuration, seed);
            if name == names.word_embeddings {
                let width = configuration.embedding_size;
                let row = configuration.pad_token_id as usize;
                if let Some(padding) = values.get_mut(row * width..(row + 1) * width) {
                    padding.fill(0.0);
                }
            }
            tensors.insert(name, Tensor::from_vec(values, shape, device)?);
        }
        Self::from_map(tensors, configuration)
    }

    /// Takes over tensors (variables too: gradients are then found under them). Nothing is copied.
    ///
    /// # Errors
    /// When one is missing, superfluous, misshapen or not float32.
    pub fn from_map(tensors: BTreeMap<String, Tensor>, configuration: &Configuration) -> Result<Self, ModelError> {
        configuration.validate().map_err(ModelError::Parameters)?;
        let expected = Self::expected(configuration);
        for (name, shape) in &expected {
            let Some(tensor) = tensors.get(name) else {
                return Err(ModelError::Parameters(format!("`{name}` of shape {shape:?} is missing")));
            };
            if tensor.dims() != shape || tensor.dtype() != DType::F32 {
                return Err(ModelError::Parameters(format!(
                    "`{name}` is {:?} of shape {:?}; expected float32 of shape {shape:?}",
                    tensor.dtype(),
                    tensor.dims()
                )));
            }
        }
        if let Some(name) = tensors.keys().find(|name| !expected.iter().any(|(known, _)| known == *name)) {
            return Err(ModelError::Parameters(format!("`{name}` is not a parameter of this model")));
        }
        let names = Names::of(configuration.architecture);
        let decoder_weight =
            if configuration.tie_word_embeddings { names.word_embeddings } else { names.decoder_weight };
        Ok(Self { tensors, decoder_weight, decoder_bias: names.decoder_bias })
    }

    /// Names and shapes of all parameters, sorted by name.
    #[must_use]
    pub fn expected(configuration: &Configuration) -> Vec<(String, Vec<usize>)> {
        let c = configuration;
        let (vocabulary, embedding, hidden) = (c.vocabulary_size, c.embedding_size, c.hidden_size);
        let names = Names::of(c.architecture);
        let base = names.base;
        let mut list = ShapeList::default();
        list.matrix(&format!("{base}.embeddings.word_embeddings"), vocabulary, embedding);
        list.matrix(&format!("{base}.embeddings.position_embeddings"), c.max_position_embeddings, embedding);
        list.matrix(&format!("{base}.embeddings.token_type_embeddings"), c.type_vocabulary_size, embedding);
        list.layer_norm(&format!("{base}.embeddings.LayerNorm"), embedding);
        if embedding != hidden {
            list.linear(&format!("{base}.embeddings_project"), hidden, embedding);
        }
        for layer in 0..c.layers {
            let layer = format!("{base}.encoder.layer.{layer}");
            for projection in ["query", "key", "value"] {
                list.linear(&format!("{layer}.attention.self.{projection}"), hidden, hidden);
            }
            list.linear(&format!("{layer}.attention.output.dense"), hidden, hidden);
            list.layer_norm(&format!("{layer}.attention.output.LayerNorm"), hidden);
            list.linear(&format!("{layer}.intermediate.dense"), c.intermediate_size, hidden);
            list.linear(&format!("{layer}.output.dense"), hidden, c.intermediate_size);
            list.layer_norm(&format!("{layer}.output.LayerNorm"), hidden);
        }
        list.linear(names.transform, embedding, hidden);
        list.layer_norm(names.transform_norm, embedding);
        list.0.push((names.decoder_bias.to_owned(), vec![vocabulary]));
        if !c.tie_word_embeddings {
            list.0.push((names.decoder_weight.to_owned(), vec![vocabulary, embedding]));
        }
        list.0.sort();
        list.0
    }

    /// The parameter of this name.
    ///
    /// # Panics
    /// When there is none: names come from [`Parameters::expected`] or [`Parameters::names`], so another one is a
    /// mistake in the program. [`Parameters::find`] asks.
    #[must_use]
    pub fn get(&self, name: &str) -> &Tensor {
        self.find(name).unwrap_or_else(|| panic!("no parameter is called `{name}`"))
    }

    /// The parameter of this name, if there is one.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<&Tensor> {
        self.tensors.get(name)
    }

    /// All names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// All parameters, sorted by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }

    /// Whether the decoder is the word embedding.
    #[must_use]
    pub fn tied(&self) -> bool {
        self.decoder_weight.ends_with("word_embeddings.weight")
    }

    /// The decoder's weight `[vocabulary, embedding]` (the word embedding itself when tied) and bias `[vocabulary]`.
    #[must_use]
    pub fn decoder(&self) -> (&Tensor, &Tensor) {
        (&self.tensors[self.decoder_weight], &self.tensors[self.decoder_bias])
    }

    /// Number of scalars.
    #[must_use]
    pub fn count(&self) -> usize {
        self.tensors.values().map(Tensor::elem_count).sum()
    }
}

/// The names that differ between the architectures.
pub(crate) struct Names {
    /// What comes before the encoder's names.
    pub(crate) base: &'static str,
    pub(crate) word_embeddings: &'static str,
    /// The head's dense map, without `.weight`.
    pub(crate) transform: &'static str,
    pub(crate) transform_norm: &'static str,
    pub(crate) decoder_weight: &'static str,
    pub(crate) decoder_bias: &'static str,
    /// A second name of the bias, which wins where both are stored.
    pub(crate) linear_bias: &'static str,
}

impl Names {
    pub(crate) fn of(architecture: Architecture) -> Self {
        match architecture {
            Architecture::Bert => Self {
                base: "bert",
                word_embeddings: "bert.embeddings.word_embeddings.weight",
                transform: "cls.predictions.transform.dense",
                transform_norm: "cls.predictions.transform.LayerNorm",
                decoder_weight: "cls.predictions.decoder.weight",
                decoder_bias: "cls.predictions.bias",
                linear_bias: "cls.predictions.decoder.bias",
            },
            Architecture::ElectraGenerator => Self {
                base: "electra",
                word_embeddings: "electra.embeddings.word_embeddings.weight",
                transform: "generator_predictions.dense",
                transform_norm: "generator_predictions.LayerNorm",
                decoder_weight: "generator_lm_head.weight",
                decoder_bias: "generator_lm_head.bias",
                linear_bias: "generator_lm_head.bias",
            },
        }
    }
}

#[derive(Default)]
struct ShapeList(Vec<(String, Vec<usize>)>);

impl ShapeList {
    fn matrix(&mut self, name: &str, rows: usize, columns: usize) {
        self.0.push((format!("{name}.weight"), vec![rows, columns]));
    }

    fn linear(&mut self, name: &str, outputs: usize, inputs: usize) {
        self.matrix(name, outputs, inputs);
        self.0.push((format!("{name}.bias"), vec![outputs]));
    }

    fn layer_norm(&mut self, name: &str, size: usize) {
        self.0.push((format!("{name}.weight"), vec![size]));
        self.0.push((format!("{name}.bias"), vec![size]));
    }
}

fn initial_values(name: &str, shape: &[usize], configuration: &Configuration, seed: u64) -> Vec<f32> {
    let count = shape.iter().product();
    if name.ends_with("LayerNorm.weight") {
        return vec![1.0; count];
    }
    if name.ends_with(".bias") {
        return vec![0.0; count];
    }
    let stream = Philox::new(seed, "initialise", &[name.as_bytes()]);
    let scale = configuration.initializer_range;
    (0..count).into_par_iter().map(|index| (stream.normal(index as u64, 0) * scale) as f32).collect()
}

fn same(a: &Tensor, b: &Tensor) -> Result<bool, ModelError> {
    let bits = |tensor: &Tensor| -> Result<Vec<f32>, ModelError> { Ok(tensor.flatten_all()?.to_vec1::<f32>()?) };
    Ok(a.dims() == b.dims() && bits(a)? == bits(b)?)
}
