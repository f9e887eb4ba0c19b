//! A model's shape, as `config.json` tells it.

use crate::ModelError;
use serde::Deserialize;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// The two architectures, which differ in the embedding and the head; the layers are the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// `BertForMaskedLM`: the embedding has the hidden size.
    Bert,
    /// `ElectraForMaskedLM`, the generator: the embedding may be factorised, i.e. smaller than the hidden size.
    ElectraGenerator,
}

/// The non-linearity between a layer's two dense maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// x · Φ(x), exact (erf). BERT's own.
    Gelu,
    /// The approximation of the same by a hyperbolic tangent.
    GeluTanh,
    /// max(x, 0).
    Relu,
    /// x · σ(x).
    Silu,
}

/// Everything that determines a model's parameters and how they are used.
#[derive(Clone, Debug, PartialEq)]
pub struct Configuration {
    /// Which of the two architectures.
    pub architecture: Architecture,
    /// Rows of the word embedding; may exceed the tokenizer's words (padding).
    pub vocabulary_size: usize,
    /// Columns of the embeddings. Equal to `hidden_size` for [`Architecture::Bert`].
    pub embedding_size: usize,
    /// Width of the encoder.
    pub hidden_size: usize,
    /// Encoder layers.
    pub layers: usize,
    /// Attention heads per layer; divides `hidden_size`.
    pub heads: usize,
    /// Width between a layer's two dense maps.
    pub intermediate_size: usize,
    /// Longest sequence, special tokens included.
    pub max_position_embeddings: usize,
    /// Rows of the type embedding; only type 0 is used.
    pub type_vocabulary_size: usize,
    /// Activation of the layers, and of BERT's head.
    pub activation: Activation,
    /// Added to the variance in every LayerNorm.
    pub layer_norm_eps: f64,
    /// Dropout of embeddings and layer outputs while training.
    pub hidden_dropout: f64,
    /// Dropout of attention probabilities while training.
    pub attention_dropout: f64,
    /// Dropout of the heads that classify words or texts; `None`: `hidden_dropout`.
    pub classifier_dropout: Option<f64>,
    /// Standard deviation of freshly initialised weights.
    pub initializer_range: f64,
    /// Whether the decoder is the word embedding itself.
    pub tie_word_embeddings: bool,
    /// Row of the word embedding that is initialised with zeros.
    pub pad_token_id: u32,
}

impl Configuration {
    /// Reads `dir/config.json`.
    ///
    /// # Errors
    /// When the file cannot be read, or describes a model that this crate does not compute.
    pub fn load(dir: &Path) -> Result<Self, ModelError> {
        let (file, path) = File::read(dir)?;
        file.into_configuration(&path, File::architecture)
    }

    /// Reads `dir/config.json` of any model whose encoder is a BERT's or an ELECTRA's, whatever head it has: a discriminator too, or a model
    /// that was fine-tuned.
    ///
    /// # Errors
    /// When the file cannot be read, or describes a model that this crate does not compute.
    pub fn load_encoder(dir: &Path) -> Result<Self, ModelError> {
        let (file, path) = File::read(dir)?;
        file.into_configuration(&path, File::encoder)
    }

    /// The contents of a `config.json` from which transformers builds this model.
    #[must_use]
    pub fn to_hugging_face(&self) -> Value {
        let (class, model_type) = match self.architecture {
            Architecture::Bert => ("BertForMaskedLM", "bert"),
            Architecture::ElectraGenerator => ("ElectraForMaskedLM", "electra"),
        };
        let mut value = json!({
            "architectures": [class],
            "attention_probs_dropout_prob": self.attention_dropout,
            "dtype": "float32",
            "hidden_act": self.activation.to_hugging_face(),
            "hidden_dropout_prob": self.hidden_dropout,
            "hidden_size": self.hidden_size,
            "initializer_range": self.initializer_range,
            "intermediate_size": self.intermediate_size,
            "layer_norm_eps": self.layer_norm_eps,
            "max_position_embeddings": self.max_position_embeddings,
            "model_type": model_type,
            "num_attention_heads": self.heads,
            "num_hidden_layers": self.layers,
            "pad_token_id": self.pad_token_id,
            "tie_word_embeddings": self.tie_word_embeddings,
            "type_vocab_size": self.type_vocabulary_size,
            "vocab_size": self.vocabulary_size,
        });
        if self.architecture == Architecture::ElectraGenerator
            && let Some(object) = value.as_object_mut()
        {
            object.insert("embedding_size".to_owned(), self.embedding_size.into());
        }
        if let Some(rate) = self.classifier_dropout {
            value["classifier_dropout"] = rate.into();
        }
        value
    }

    /// Width of one attention head.
    #[must_use]
    pub fn head_size(&self) -> usize {
        self.hidden_size / self.heads
    }

    /// Checks the sizes against each other.
    ///
    /// # Errors
    /// A sentence that says which ones contradict each other.
    pub fn validate(&self) -> Result<(), String> {
        // Far beyond any BERT; they keep products of two sizes within 64 bits, and lists of layers short.
        const SIZE_MAX: usize = 1 << 28;
        const LAYERS_MAX: usize = 1 << 12;
        let sizes = [
            ("vocab_size", self.vocabulary_size, SIZE_MAX),
            ("embedding_size", self.embedding_size, SIZE_MAX),
            ("hidden_size", self.hidden_size, SIZE_MAX),
            ("num_hidden_layers", self.layers, LAYERS_MAX),
            ("num_attention_heads", self.heads, SIZE_MAX),
            ("intermediate_size", self.intermediate_size, SIZE_MAX),
            ("max_position_embeddings", self.max_position_embeddings, SIZE_MAX),
            ("type_vocab_size", self.type_vocabulary_size, SIZE_MAX),
        ];
        if let Some((key, size, most)) = sizes.iter().find(|(_, size, most)| *size == 0 || size > most) {
            return Err(format!("`{key}` is {size}; expected 1 to {most}"));
        }
        if !self.hidden_size.is_multiple_of(self.heads) {
            return Err(format!(
                "`hidden_size` {} is not a multiple of `num_attention_heads` {}",
                self.hidden_size, self.heads
            ));
        }
        if self.architecture == Architecture::Bert && self.embedding_size != self.hidden_size {
            return Err(format!(
                "a BERT's embedding size is its hidden size {}, found {}; a factorised embedding makes it an ELECTRA generator",
                self.hidden_size, self.embedding_size
            ));
        }
        for (key, rate) in [
            ("hidden_dropout_prob", self.hidden_dropout),
            ("attention_probs_dropout_prob", self.attention_dropout),
            ("classifier_dropout", self.classifier_dropout.unwrap_or(0.0)),
        ] {
            if !(0.0..1.0).contains(&rate) {
                return Err(format!("`{key}` is {rate}; expected 0 ≤ rate < 1"));
            }
        }
        // In float32, as it is used.
        if !(self.layer_norm_eps as f32 > 0.0 && self.layer_norm_eps < 1.0) {
            return Err(format!("`layer_norm_eps` is {}; expected a small positive number", self.layer_norm_eps));
        }
        if !(self.initializer_range >= 0.0 && self.initializer_range.is_finite()) {
            return Err(format!("`initializer_range` is {}; expected a small positive number", self.initializer_range));
        }
        Ok(())
    }
}

impl Activation {
    fn from_hugging_face(name: &str) -> Option<Self> {
        Some(match name {
            "gelu" | "gelu_python" => Self::Gelu,
            "gelu_new" | "gelu_fast" | "gelu_accurate" | "gelu_pytorch_tanh" | "gelu_python_tanh" => Self::GeluTanh,
            "relu" => Self::Relu,
            "silu" | "swish" => Self::Silu,
            _ => return None,
        })
    }

    fn to_hugging_face(self) -> &'static str {
        match self {
            Self::Gelu => "gelu",
            Self::GeluTanh => "gelu_new",
            Self::Relu => "relu",
            Self::Silu => "silu",
        }
    }
}

/// `config.json`. Absent keys take the value that transformers gives them.
#[derive(Deserialize)]
struct File {
    model_type: Option<String>,
    architectures: Option<Vec<String>>,
    vocab_size: Option<usize>,
    embedding_size: Option<usize>,
    hidden_size: Option<usize>,
    num_hidden_layers: Option<usize>,
    num_attention_heads: Option<usize>,
    intermediate_size: Option<usize>,
    max_position_embeddings: Option<usize>,
    type_vocab_size: Option<usize>,
    hidden_act: Option<String>,
    layer_norm_eps: Option<f64>,
    hidden_dropout_prob: Option<f64>,
    attention_probs_dropout_prob: Option<f64>,
    classifier_dropout: Option<f64>,
    initializer_range: Option<f64>,
    tie_word_embeddings: Option<bool>,
    pad_token_id: Option<i64>,
    is_decoder: Option<bool>,
    add_cross_attention: Option<bool>,
    position_embedding_type: Option<String>,
}

impl File {
    fn read(dir: &Path) -> Result<(Self, PathBuf), ModelError> {
        let path = dir.join("config.json");
        let text = std::fs::read_to_string(&path).map_err(|source| ModelError::Read { path: path.clone(), source })?;
        let file = serde_json::from_str(&text)
            .map_err(|error| ModelError::Malformed { path: path.clone(), reason: error.to_string() })?;
        Ok((file, path))
    }

    fn into_configuration(
        self,
        path: &Path,
        architecture: impl Fn(&Self) -> Result<Architecture, String>,
    ) -> Result<Configuration, ModelError> {
        let unsupported = |reason: String| ModelError::Unsupported { path: PathBuf::from(path), reason };
        let architecture = architecture(&self).map_err(unsupported)?;
        self.check_variants().map_err(unsupported)?;
        let electra = architecture == Architecture::ElectraGenerator;
        let hidden_size = self.hidden_size.unwrap_or(if electra { 256 } else { 768 });
        let activation = self.hidden_act.as_deref().unwrap_or("gelu");
        let configuration = Configuration {
            architecture,
            vocabulary_size: self.vocab_size.unwrap_or(30_522),
            embedding_size: if electra { self.embedding_size.unwrap_or(128) } else { hidden_size },
            hidden_size,
            layers: self.num_hidden_layers.unwrap_or(12),
            heads: self.num_attention_heads.unwrap_or(if electra { 4 } else { 12 }),
            intermediate_size: self.intermediate_size.unwrap_or(if electra { 1024 } else { 3072 }),
            max_position_embeddings: self.max_position_embeddings.unwrap_or(512),
            type_vocabulary_size: self.type_vocab_size.unwrap_or(2),
            activation: Activation::from_hugging_face(activation).ok_or_else(|| {
                unsupported(format!("unknown `hidden_act` \"{activation}\"; known: gelu, gelu_new, relu, silu"))
            })?,
            layer_norm_eps: self.layer_norm_eps.unwrap_or(1e-12),
            hidden_dropout: self.hidden_dropout_prob.unwrap_or(0.1),
            attention_dropout: self.attention_probs_dropout_prob.unwrap_or(0.1),
            classifier_dropout: self.classifier_dropout,
            initializer_range: self.initializer_range.unwrap_or(0.02),
            tie_word_embeddings: self.tie_word_embeddings.unwrap_or(true),
            pad_token_id: u32::try_from(self.pad_token_id.unwrap_or(0)).unwrap_or(0),
        };
        configuration.validate().map_err(|reason| ModelError::Malformed { path: PathBuf::from(path), reason })?;
        Ok(configuration)
    }

    fn architecture(&self) -> Result<Architecture, String> {
        const SUPPORTED: &str = "supported: BertForMaskedLM (`model_type` \"bert\") and ElectraForMaskedLM, the generator (`model_type` \"electra\")";
        let classes = self.architectures.as_deref().unwrap_or_default();
        let model_type = match (self.model_type.as_deref(), classes.first().map(String::as_str)) {
            (Some(model_type), _) => model_type,
            // Checkpoints of 2018 and 2019 have neither key.
            (None, None) => "bert",
            (None, Some(class)) if class.starts_with("Bert") => "bert",
            (None, Some(class)) if class.starts_with("Electra") => "electra",
            (None, Some(class)) => return Err(format!("unsupported architecture {class}; {SUPPORTED}")),
        };
        match model_type {
            "bert" if classes.iter().any(|class| class == "BertLMHeadModel") => {
                Err(format!("a BertLMHeadModel is a decoder, not a masked language model; {SUPPORTED}"))
            }
            "bert" => Ok(Architecture::Bert),
            "electra" if classes.is_empty() || classes.iter().any(|class| class == "ElectraForMaskedLM") => {
                Ok(Architecture::ElectraGenerator)
            }
            "electra" => Err(format!(
                "an ELECTRA discriminator ({}) predicts no tokens; use the generator; {SUPPORTED}",
                classes.join(", ")
            )),
            other => Err(format!("unsupported `model_type` \"{other}\"; {SUPPORTED}")),
        }
    }

    /// Of the encoder alone: the head does not matter.
    fn encoder(&self) -> Result<Architecture, String> {
        let class = self.architectures.iter().flatten().next().map_or("", String::as_str);
        match self.model_type.as_deref() {
            Some("bert") => Ok(Architecture::Bert),
            Some("electra") => Ok(Architecture::ElectraGenerator),
            None if class.is_empty() || class.starts_with("Bert") => Ok(Architecture::Bert),
            None if class.starts_with("Electra") => Ok(Architecture::ElectraGenerator),
            other => Err(format!(
                "unsupported `model_type` \"{}\"; supported: \"bert\" and \"electra\"",
                other.unwrap_or(class)
            )),
        }
    }

    fn check_variants(&self) -> Result<(), String> {
        if self.is_decoder == Some(true) || self.add_cross_attention == Some(true) {
            return Err("`is_decoder` / `add_cross_attention`: a decoder is not a masked language model".to_owned());
        }
        match self.position_embedding_type.as_deref() {
            None | Some("absolute") => Ok(()),
            Some(other) => {
                Err(format!("unsupported `position_embedding_type` \"{other}\"; only \"absolute\" is supported"))
            }
        }
    }
}
