//! BERT as teacher and student use it: configuration, weights, tokenizer, encoder and the masked-language-model head.
//!
//! One encoder serves both. A teacher's parameters are plain tensors; a student's may be candle variables, and every
//! operation here has a backward pass, so that gradients reach all of them. Sequences of a batch are packed one after
//! another without padding, and the head is computed at masked positions only.
//!
//! Invariants:
//! - Results do not depend on the number of threads: every reduction goes over pieces of fixed size, in fixed order.
//! - Token ids and logits are those of Hugging Face transformers for the same folder.
//! - Nothing in a model's folder makes this crate panic; it returns a [`ModelError`] that names file and tensor.
//!
//! What it deliberately does not do: it never multiplies by the decoder (losses and top-k never hold logits for a whole
//! batch, so that product belongs to them), it has no loss or optimiser, and it never chooses what to mask.

pub mod product;
pub mod random;
pub mod simd;

mod batch;
mod bert;
mod checkpoint;
mod configuration;
pub mod elementary;
mod error;
pub mod fused;
#[cfg(test)]
mod gradient_check;
mod layout;
mod network;
mod parameters;
mod tokenizer;
mod weights_file;

pub use batch::PackedBatch;
pub use bert::{Bert, Dropout};
pub use checkpoint::fingerprint_weights;
pub use configuration::{Activation, Architecture, Configuration};
pub use error::ModelError;
pub use layout::{Layout, Slot};
pub use network::{Inference, Training};
pub use parameters::Parameters;
pub use tokenizer::{Normalisation, SpecialTokens, Tokenizer, Tokens, check_words};
pub use weights_file::Numbers;
