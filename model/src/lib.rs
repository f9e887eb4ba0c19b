//! BERT as teacher and student use it: configuration, weights, tokenizer, encoder and the masked-language-model head.
//!
//! The network is written by hand, forward and backward, over slices ([`Inference`] for teachers, [`Training`] for the student): matrix
//! products of our own ([`product`]) and [`fused`] operations between them. [`Bert`] says the same as a plain composition of candle's
//! operations, and is what tests, and every teacher when it is loaded, compare the network with. Sequences of a
//! batch are packed one after another without padding, and the head is computed at masked positions only.
//!
//! On a GPU, [`device`] computes the same with kernels of its own.
//!
//! Invariants:
//! - Results do not depend on the number of threads: work is cut by shapes alone, and sums run in fixed order.
//! - Token ids and logits are those of Hugging Face transformers for the same folder.
//! - Nothing in a model's folder makes this crate panic; it returns a [`ModelError`] that names file and tensor.
//!
//! What it deliberately does not do: it never multiplies by the decoder (losses and top-k never hold logits for a whole
//! batch, so that product belongs to them), it has no loss or optimiser, and it never chooses what to mask.

pub mod device;
pub mod elementary;
pub mod fused;
pub mod product;
pub mod random;
pub mod simd;

mod batch;
mod bert;
mod checkpoint;
#[cfg(test)]
mod comparison;
mod configuration;
mod encoder;
mod error;
mod layout;
mod network;
mod parameters;
mod role;
mod tokenizer;
mod trial;
mod weights_file;
mod words;

pub use batch::PackedBatch;
pub use bert::{Bert, Dropout};
pub use checkpoint::{check_weights, fingerprint_weights};
pub use configuration::{Activation, Architecture, Configuration};
pub use encoder::Encoder;
pub use error::ModelError;
pub use layout::{Layout, Slot};
pub use network::{Inference, Training};
pub use parameters::Parameters;
pub use role::{RolePool, Working};
pub use tokenizer::{
    Coverage, LearnedVocabulary, LearningError, LearningOptions, Normalisation, SpecialTokens, Tokenizer, Tokens,
    WordCounts, check_words,
};
pub use weights_file::Numbers;
pub use words::WordEmbeddings;
