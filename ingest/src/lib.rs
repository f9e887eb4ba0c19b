//! Corpus streams → documents → examples → tokenised, masked copies → groups → the bounded queue.
//!
//! One [`Ingest`] turns the corpora into the sequence of log entries. Everything that arrives becomes files in reading
//! order: a corpus is a [`feed`] (a list of files, a watched folder, a followed file, or the [`spool`] of what is pushed)
//! and a format. Which entry comes next is a function of the source cursors, the sequence number, what has arrived and the
//! options, so a run that reopens at the cursors in the log continues with the documents that an uninterrupted run would
//! have read; where nothing arrives meanwhile, with exactly its entries, groups and batches.
//!
//! Invariants
//!
//! - Each document is used once per round: a cursor names the file and the place in it, and the order of a feed's files,
//!   and which they are, is durable before they are used.
//! - Sequence numbers are contiguous, and every entry carries the cursor of its source after that entry.
//! - Every draw of the sampler makes one entry: an example, a skipped document, or the end of the source.
//! - Shares follow the characters that are available, never those consumed; a source that has nothing now is not drawn.
//! - The spans of a document's entries tile it: no byte is left out, none is covered twice; but for a file of which somebody gave up the rest
//!   ([`feed::mending`]).
//! - A copy's ids are those of tokenising the example's text alone; no copy exceeds the longest sequence.
//! - Bad input never stops the stream: it becomes a skip entry, a counter and a file in the quarantine folder. A file that
//!   was replaced, cut or removed before it was read does: nobody else would notice what was lost.
//! - A group that is not complete when the stage is stopped is dropped, never sent short. It is sent short when nothing
//!   arrives for so long that its first entry would wait.
//!
//! What it does not do: it keeps no progress of its own (the cursors in the log are the only record), maps no
//! teacher's ids to the student's, runs no model, and never holds more than two documents per source in memory.

mod changes;
mod corpus;
mod documents;
mod duplicates;
mod error;
mod example;
pub mod feed;
mod format;
mod group;
mod later_teacher;
mod mask;
mod metrics;
mod overrides;
pub mod quarantine;
mod sampling;
mod sources;
pub mod spool;
mod stage;
mod status;
mod stream;
mod stretches;
mod teacher;
mod texts;
mod words;

pub use changes::{Answer, Change, ChangeError, Changes, Keep, OpenedCorpus, RemovedCorpus};
pub use corpus::{CorpusOptions, Language, expand};
pub use error::IngestError;
pub use feed::FeedOptions;
pub use format::{Compression, Format, FormatOptions, TextDocuments};
pub use later_teacher::{LaterTeacher, NoCopy};
pub use mask::{MaskUnit, Masking};
pub use overrides::Overrides;
pub use stage::{Ingest, IngestOptions};
pub use status::{CorpusStatus, IngestStatus};
pub use teacher::IngestTeacher;
pub use texts::{Text, Texts};
