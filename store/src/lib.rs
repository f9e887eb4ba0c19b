//! The log: what passes between the stages, and the durable place where it is kept.
//!
//! This crate owns the types that cross stages ([`Record`], [`MaskedCopy`], [`Label`], [`SourceCursor`],
//! [`Group`]) and the append-only log that holds them. It knows nothing of models, tokenizers or training.

pub mod cursor;
pub mod group;
pub mod identity;
pub mod log;
pub mod position;
pub mod record;
pub mod stage;

pub use cursor::SourceCursor;
pub use group::{BatchPlan, Group};
pub use identity::{Identity, TeacherEntry};
pub use log::{
    LanguageStat, LogOptions, LogReader, LogStat, LogWriter, Precision, Recovery, StoreError, Torn, Verification, dump,
    stat, verify,
};
pub use position::{DurablePosition, SequenceNumber};
pub use record::{Entry, Label, MaskedCopy, Payload, Record, Skip, Span};
