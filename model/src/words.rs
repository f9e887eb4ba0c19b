//! A teacher's word embeddings by themselves, and putting others into a student.

use crate::checkpoint::Checkpoint;
use crate::parameters::Names;
use crate::{Configuration, ModelError, Parameters};
use candle_core::{Device, Tensor};
use std::path::Path;

/// What a model knows of words before it reads a text.
#[derive(Clone, Debug, PartialEq)]
pub struct WordEmbeddings {
    /// Numbers in a row.
    pub width: usize,
    /// `[vocabulary, width]`, row after row.
    pub rows: Vec<f32>,
    /// `[vocabulary]`: the decoder's bias.
    pub bias: Vec<f32>,
}

impl WordEmbeddings {
    /// Reads them from the folder of a model, and nothing else of it.
    ///
    /// # Errors
    /// When the folder does not hold a model that this crate computes.
    pub fn load(dir: &Path) -> Result<Self, ModelError> {
        let configuration = Configuration::load(dir)?;
        let checkpoint = Checkpoint::open(dir, configuration.architecture)?;
        let names = Names::of(configuration.architecture);
        let (vocabulary, width) = (configuration.vocabulary_size, configuration.embedding_size);
        let rows = checkpoint.read(names.word_embeddings, &[vocabulary, width])?;
        let bias = if checkpoint.contains(names.linear_bias) { names.linear_bias } else { names.decoder_bias };
        let bias = checkpoint.read(bias, &[vocabulary])?;
        Ok(Self { width, rows: rows.flatten_all()?.to_vec1()?, bias: bias.to_vec1()? })
    }
}

impl Parameters {
    /// Those of a student whose decoder is its word embedding, with other words.
    ///
    /// # Errors
    /// When `words` are not as many and as wide as the student's.
    pub fn with_words(&self, words: WordEmbeddings, configuration: &Configuration) -> Result<Self, ModelError> {
        let names = Names::of(configuration.architecture);
        let mut tensors: std::collections::BTreeMap<String, Tensor> =
            self.iter().map(|(name, tensor)| (name.to_owned(), tensor.clone())).collect();
        let count = words.bias.len();
        if words.rows.len() != count * words.width {
            let message = format!("{} numbers are not {count} words of width {}", words.rows.len(), words.width);
            return Err(ModelError::Parameters(message));
        }
        let rows = Tensor::from_vec(words.rows, (count, words.width), &Device::Cpu)?;
        tensors.insert(names.word_embeddings.to_owned(), rows);
        tensors.insert(names.decoder_bias.to_owned(), Tensor::from_vec(words.bias, count, &Device::Cpu)?);
        Self::from_map(tensors, configuration)
    }
}
