//! Fine-tuning on a task, and scoring: what a teacher or a student is worth (paper, sections 4.2 and 4.3).
//!
//! Any Hugging Face folder with a BERT or an ELECTRA will do, an exported student with a factorised embedding too. A file becomes
//! examples ([`words`], [`texts`], [`questions`]), examples become [`Sequence`]s for the network, the encoder gets the head that
//! transformers gives it ([`head`]), both are trained ([`fine_tune`]), and predictions are scored ([`scores`]) as seqeval
//! and the SQuAD script score them.
//!
//! Invariants:
//! - A result is a function of model, tokenizer, files, options and seed; not of the number of threads.
//! - Every word, text and question of a file is scored. Sentences and contexts that are too long for the model become several sequences;
//!   texts with a class are cut short.
//! - Nothing in a file makes this module panic; errors name file and line.
//!
//! What it does not do: it never changes the folder it reads, and it searches no hyperparameters.

pub mod fine_tune;
pub mod head;
pub mod questions;
pub mod scores;
pub mod table;
pub mod task_model;
pub mod texts;
pub mod words;

mod data_set;
mod error;
mod options;
mod prediction;
mod run;
mod save;
mod sequence;
mod spans;

pub use data_set::{DataSet, Split, Task};
pub use error::DownstreamError;
pub use options::{FineTuneOptions, Given, Metric, Preset};
pub use prediction::{AnswerPredicted, ClassPredicted, Predictions, TagsPredicted};
pub use run::{EpochReport, FineTuning, Outcome, Report, Test, run};
pub use save::Destination;
pub use sequence::Sequence;
