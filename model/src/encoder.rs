//! An encoder for other tasks than predicting tokens.

use crate::checkpoint::Checkpoint;
use crate::{Architecture, Configuration, ModelError, Parameters};
use candle_core::Tensor;
use std::path::Path;

/// What fine-tuning takes from a Hugging Face folder: everything up to the last layer, and BERT's pooler if it has one.
#[derive(Clone, Debug)]
pub struct Encoder {
    /// Shape.
    pub configuration: Configuration,
    /// Weights. Those of the head that predicts tokens are 0.
    pub parameters: Parameters,
    /// Weight `[hidden, hidden]` and bias `[hidden]` of the dense map that a BERT with next-sentence prediction was trained with.
    pub pooler: Option<(Tensor, Tensor)>,
}

impl Encoder {
    /// Reads the encoder of any BERT or ELECTRA: with a head for tokens, a discriminator, fine-tuned, or an encoder alone.
    ///
    /// # Errors
    /// When the folder holds neither, or a tensor is missing or misshapen.
    pub fn load(dir: &Path) -> Result<Self, ModelError> {
        const POOLER: [&str; 2] = ["bert.pooler.dense.weight", "bert.pooler.dense.bias"];
        let configuration = Configuration { tie_word_embeddings: true, ..Configuration::load_encoder(dir)? };
        let checkpoint = Checkpoint::open(dir, configuration.architecture)?;
        let parameters = Parameters::of_encoder(&checkpoint, &configuration)?;
        let hidden = configuration.hidden_size;
        let pooled = configuration.architecture == Architecture::Bert && checkpoint.contains(POOLER[0]);
        let pooler = match pooled {
            true => Some((checkpoint.read(POOLER[0], &[hidden, hidden])?, checkpoint.read(POOLER[1], &[hidden])?)),
            false => None,
        };
        Ok(Self { configuration, parameters, pooler })
    }
}
