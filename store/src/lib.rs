//! The log: what passes between the stages, and the durable place where it is kept.
//!
//! This crate owns the types that cross stages ([`Record`], [`MaskedCopy`], [`Label`], [`SourceCursor`],
//! [`Group`]) and the append-only log that holds them: [`LogWriter`], [`LogReader`], [`stat`], [`verify`]. The module
//! [`log`] specifies its bytes, its invariants and its recovery.
//!
//! - Sequence numbers have no holes; a group of entries is in the log whole or not at all.
//! - Readers never see what is not durable; what was durable is never lost silently.
//! - The cursors in the log are the only record of how far ingestion has got.
//!
//! It knows nothing of models, tokenizers or training, gives no sequence numbers, and keeps one writer away from another
//! only; the lock on a state folder is the daemon's.

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
