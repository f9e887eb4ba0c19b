//! Corpus streams → documents → examples → tokenised, masked copies → groups → the bounded queue.
//!
//! One [`Ingest`] turns the corpora into the sequence of log entries. Which entry comes next is a function of
//! the source cursors, the sequence number and the options alone, so a run that reopens at the cursors in the
//! log continues with exactly the entries, groups and batches that an uninterrupted run would have made.
//!
//! Invariants
//!
//! - Sequence numbers are contiguous, and every entry carries the cursor of its source after that entry.
//! - Every draw of the sampler makes one entry: an example, a skipped document, or the end of the source.
//! - The spans of a document's entries tile it: no byte is left out, none is covered twice.
//! - A copy's ids are those of tokenising the example's text alone; no copy exceeds the longest sequence.
//! - Bad input never stops the stream: it becomes a skip entry, a counter and a file in the quarantine folder.
//! - A group that is not complete when the stage is stopped is dropped, never sent short.
//!
//! What it does not do: it keeps no progress of its own (the cursors in the log are the only record), maps no
//! teacher's ids to the student's, runs no model, and never holds more than one document per corpus in memory.

mod corpus;
mod error;
mod example;
mod group;
mod mask;
mod metrics;
mod quarantine;
mod reader;
mod sampling;
mod stage;
mod status;
mod stream;
mod teacher;

pub use corpus::{CorpusOptions, Format, expand};
pub use error::IngestError;
pub use stage::{Ingest, IngestOptions};
pub use status::{CorpusStatus, IngestStatus};
pub use teacher::IngestTeacher;
