//! A model as it is loaded, and its plain composition of candle's operations: the reference of the network written by hand.
//!
//! Whoever wants to know what a model computes reads this file. Every operation has a backward pass in candle. (Its fused
//! LayerNorm and softmax have none, and raise no error.)

use crate::fused::dropout::{Mask, Rows, Site};
use crate::parameters::Names;
use crate::random::Philox;
use crate::{Activation, Configuration, ModelError, PackedBatch, Parameters};
use candle_core::{D, Device, Module, Tensor};
use candle_nn::{Embedding, Linear};
use std::path::Path;

/// A BERT, or an ELECTRA generator, with its masked-language-model head.
#[derive(Clone, Debug)]
pub struct Bert {
    /// Shape.
    pub configuration: Configuration,
    /// Weights: plain tensors, or variables where gradients are wanted.
    pub parameters: Parameters,
}

/// Where dropout's masks come from. The same stream and step give the same masks for the same batch.
#[derive(Clone, Copy, Debug)]
pub struct Dropout {
    /// Random numbers for this purpose.
    pub stream: Philox,
    /// Whatever makes the masks differ from batch to batch.
    pub step: u64,
    /// Number of the batch's first row: where it lies in a larger batch whose masks it is to have; otherwise 0.
    pub first_row: u32,
}

impl Bert {
    /// Reads a teacher's folder.
    ///
    /// # Errors
    /// When the folder does not hold a model that this crate computes; see [`Configuration::load`] and
    /// [`Parameters::load`].
    pub fn load(dir: &Path, device: &Device) -> Result<Self, ModelError> {
        let mut configuration = Configuration::load(dir)?;
        let parameters = Parameters::load(dir, &configuration, device)?;
        configuration.tie_word_embeddings = parameters.tied();
        Ok(Self { configuration, parameters })
    }

    /// `[tokens, hidden]`: the last layer's output for every token. `dropout: None` is inference.
    ///
    /// # Errors
    /// When the batch does not fit the model; see [`PackedBatch::validate`].
    pub fn encode(&self, batch: &PackedBatch, dropout: Option<Dropout>) -> Result<Tensor, ModelError> {
        batch.validate(&self.configuration)?;
        let mut x = self.embed(batch, dropout)?;
        for layer in 0..self.configuration.layers {
            x = self.layer(layer, &x, batch, dropout)?;
        }
        Ok(x)
    }

    /// `[masked, embedding]`: the head's dense map, activation and LayerNorm, at masked rows only. Times the decoder's
    /// weight, plus its bias, these are the logits. `dropout: None` is inference.
    ///
    /// # Errors
    /// When the batch does not fit the model, or has no masked rows.
    pub fn transform_masked(&self, batch: &PackedBatch, dropout: Option<Dropout>) -> Result<Tensor, ModelError> {
        batch.validate(&self.configuration)?;
        if batch.masked_rows.is_empty() {
            return Err(ModelError::Batch("it has no masked rows".to_owned()));
        }
        let x = self.encode(batch, dropout)?; // [tokens, hidden]
        let rows = Tensor::new(batch.masked_rows.as_slice(), x.device())?;
        let x = x.index_select(&rows, 0)?; // [masked, hidden]
        let names = self.names();
        let x = self.linear(&x, names.transform)?; // [masked, embedding]
        let x = activate(self.configuration.head_activation(), &x)?;
        self.layer_norm(&x, names.transform_norm)
    }

    /// The decoder: weight `[vocabulary, embedding]`, which is the word embedding itself when tied, and bias `[vocabulary]`.
    #[must_use]
    pub fn decoder(&self) -> (&Tensor, &Tensor) {
        self.parameters.decoder()
    }

    fn embed(&self, batch: &PackedBatch, dropout: Option<Dropout>) -> Result<Tensor, ModelError> {
        let base = self.names().base;
        let table = |name: &str| self.parameters.get(&format!("{base}.embeddings.{name}.weight"));
        let embedding = |name: &str| Embedding::new(table(name).clone(), self.configuration.embedding_size);
        let device = table("word_embeddings").device();
        let ids = Tensor::new(batch.token_ids.as_slice(), device)?;
        let positions = Tensor::new(batch.positions(), device)?;
        // The order of the sums is that of transformers.
        let words = embedding("word_embeddings").forward(&ids)?;
        let x = if batch.token_types.is_empty() {
            words.broadcast_add(&table("token_type_embeddings").narrow(0, 0, 1)?)?
        } else {
            let types: Vec<u32> = batch.token_types.iter().map(|token_type| u32::from(*token_type)).collect();
            (words + embedding("token_type_embeddings").forward(&Tensor::new(types, device)?)?)?
        };
        let x = (x + embedding("position_embeddings").forward(&positions)?)?; // [tokens, embedding]
        let x = self.layer_norm(&x, &format!("{base}.embeddings.LayerNorm"))?;
        let x = self.drop_hidden(&x, dropout, Site::Embeddings)?;
        if self.configuration.embedding_size == self.configuration.hidden_size {
            return Ok(x);
        }
        self.linear(&x, &format!("{base}.embeddings_project")) // [tokens, hidden]
    }

    fn layer(
        &self,
        layer: usize,
        x: &Tensor,
        batch: &PackedBatch,
        dropout: Option<Dropout>,
    ) -> Result<Tensor, ModelError> {
        let configuration = &self.configuration;
        let name = |part: &str| format!("{}.encoder.layer.{layer}.{part}", self.names().base);
        let [q, k, v] = ["query", "key", "value"].map(|part| self.linear(x, &name(&format!("attention.self.{part}"))));
        let mask = Mask::new(dropout, Site::Probabilities(layer), configuration.attention_dropout);
        let context = attention(&q?, &k?, &v?, &batch.lengths, configuration.heads, mask)?; // [tokens, hidden]
        let context = self.linear(&context, &name("attention.output.dense"))?;
        let context = self.drop_hidden(&context, dropout, Site::Attention(layer))?;
        let x = self.layer_norm(&(context + x)?, &name("attention.output.LayerNorm"))?;
        let inner = activate(configuration.activation, &self.linear(&x, &name("intermediate.dense"))?)?;
        let output = self.linear(&inner, &name("output.dense"))?; // [tokens, hidden]
        let output = self.drop_hidden(&output, dropout, Site::Output(layer))?;
        self.layer_norm(&(output + x)?, &name("output.LayerNorm"))
    }

    fn names(&self) -> Names {
        Names::of(self.configuration.architecture)
    }

    fn linear(&self, x: &Tensor, name: &str) -> Result<Tensor, ModelError> {
        let weight = self.parameters.get(&format!("{name}.weight")).clone();
        let bias = self.parameters.get(&format!("{name}.bias")).clone();
        Ok(Linear::new(weight, Some(bias)).forward(x)?)
    }

    fn layer_norm(&self, x: &Tensor, name: &str) -> Result<Tensor, ModelError> {
        let weight = self.parameters.get(&format!("{name}.weight"));
        let bias = self.parameters.get(&format!("{name}.bias"));
        Ok(layer_norm(x, weight, bias, self.configuration.layer_norm_eps)?)
    }

    fn drop_hidden(&self, x: &Tensor, dropout: Option<Dropout>, site: Site) -> Result<Tensor, ModelError> {
        Ok(match Mask::new(dropout, site, self.configuration.hidden_dropout) {
            Some(mask) => (x * mask.to_tensor(Rows::From(0), x.dim(0)?, x.dim(1)?, x.device())?)?,
            None => x.clone(),
        })
    }
}

fn activate(activation: Activation, x: &Tensor) -> candle_core::Result<Tensor> {
    match activation {
        Activation::Gelu => candle_nn::Activation::Gelu.forward(x), // the exact one, by erf
        Activation::GeluTanh => candle_nn::Activation::NewGelu.forward(x),
        Activation::Relu => candle_nn::Activation::Relu.forward(x),
        Activation::Silu => candle_nn::Activation::Silu.forward(x),
    }
}

/// (x − mean) / √(variance + eps) · weight + bias, row by row.
fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> candle_core::Result<Tensor> {
    let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
    let normalised = centred.broadcast_div(&(variance + eps)?.sqrt()?)?;
    normalised.broadcast_mul(weight)?.broadcast_add(bias)
}

/// softmax(q · kᵀ / √head) · v inside each sequence, for every head; `q`, `k`, `v` and the result are `[tokens, hidden]`.
fn attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    lengths: &[usize],
    heads: usize,
    mask: Option<Mask>,
) -> candle_core::Result<Tensor> {
    let hidden = q.dim(1)?;
    let scale = 1.0 / ((hidden / heads) as f64).sqrt();
    let mut contexts = Vec::with_capacity(lengths.len());
    let mut first = 0;
    for &length in lengths {
        // [heads, length, head]
        let split = |x: &Tensor| -> candle_core::Result<Tensor> {
            x.narrow(0, first, length)?.reshape((length, heads, hidden / heads))?.transpose(0, 1)?.contiguous()
        };
        let scores = (split(q)?.matmul(&split(k)?.t()?)? * scale)?; // [heads, length, length]
        let mut probabilities = softmax(&scores)?;
        if let Some(mask) = mask {
            let rows = Rows::From(first as u32);
            probabilities = (probabilities * mask.to_tensor_of_heads(heads, rows, (length, length), q.device())?)?;
        }
        let context = probabilities.matmul(&split(v)?)?;
        contexts.push(context.transpose(0, 1)?.reshape((length, hidden))?);
        first += length;
    }
    Tensor::cat(&contexts, 0)
}

fn softmax(scores: &Tensor) -> candle_core::Result<Tensor> {
    // The shift cancels out, so no gradient need flow through it.
    let shifted = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?.detach())?;
    let exponentials = shifted.exp()?;
    exponentials.broadcast_div(&exponentials.sum_keepdim(D::Minus1)?)
}
