//! The inbox of a corpus: documents that are pushed, or come through a pipe, are durable before anyone is told so.
//!
//! An inbox is a folder, `state/inbox/<corpus>/`, of JSON-lines files, one document a line:
//!
//! ```text
//! 00000000000000000000.jsonl   named after the number of its first document, counted since the inbox was made
//! 00000000000000081234.jsonl   the last one is written; the others never change
//! keys                         idempotency keys of the latest batches, see `keys.rs`
//! ```
//!
//! A line is `{"text", "id"?, "language"?, "arrived", "commit"?}`: `arrived` is when it came, in milliseconds since 1970; `id`
//! and `language` are there if the corpus has fields for them. The last line of a batch ends with the batch's `commit`:
//! `{"documents", "bytes", "durable", "characters", "key"?, "crc32"}`. The checksum covers the batch up to itself. `durable` is how
//! far the file was durable when the batch was written, so that recovery can tell damage from a torn tail (the table is in
//! `recovery.rs`).
//!
//! Invariants
//!
//! - A batch is the unit: all of its documents are there, or none.
//! - Whoever pushed a batch hears of it after the sync that made it durable. One thread writes; one sync serves all batches that
//!   wait.
//! - A batch whose key is among the latest (by default 1,000,000; about 50 bytes of memory each) adds nothing. Keys outlive the
//!   documents.
//! - What waits is bounded in bytes and in number, and so is what the log has not taken yet: beyond that a push is refused at
//!   once, and nobody waits for room.
//! - A full disk is not the end: what was written of a batch is cut off again, and a later one may fit. Any other failed write or
//!   sync is the end: nothing is taken until the daemon is started again. If the thread that writes panics, whoever waits is told, and
//!   so is whoever reads.
//! - A file is removed once the log durably holds what every source makes of it; never the last one, whose name carries the
//!   count on.
//!
//! What it does not do: it keeps no account of what was labelled (the cursors in the log do), and speaks no HTTP.

mod batch;
mod commit;
mod error;
mod keys;
mod metrics;
mod pump;
mod recovery;
mod shared;
mod splitter;
mod writer;

pub use batch::{Batch, BatchBuilder, Receipt, RejectedDocument};
pub use error::PushError;
pub use metrics::InboxMetrics;
pub use pump::{Pump, PumpSource};

pub(crate) use metrics::InboxCounters;

use crate::feed::{Changes, Extent, Feed, Found, Part};
use crate::{Compression, Format, FormatOptions, IngestError};
use serde::Serialize;
use shared::{Answer, Shared};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use store::SourceCursor;
use store::log::disk::{Disk, StdDisk};
use writer::Writer;

/// Settings of an inbox.
#[derive(Clone, Debug)]
pub struct InboxOptions {
    /// The sources that read it: a file is kept until each of them has passed it.
    pub sources: Vec<String>,
    /// How pushed documents look: fields, and what separates documents of plain text.
    pub format: FormatOptions,
    /// Languages a document may have; for a `language_field` alone.
    pub languages: BTreeSet<String>,
    /// A file with this many bytes is followed by the next one.
    pub file_bytes: u64,
    /// Bytes that the log has not taken yet, at most.
    pub spooled_bytes: u64,
    /// Bytes of a batch, at most, as it comes and as it is written.
    pub batch_bytes: u64,
    /// Bytes of batches in memory, at most: being received, waiting or being written.
    pub waiting_bytes: u64,
    /// Batches that wait, at most.
    pub waiting_batches: usize,
    /// Idempotency keys that are remembered.
    pub keys: usize,
}

impl InboxOptions {
    /// The defaults for documents of this form.
    #[must_use]
    pub fn new(sources: Vec<String>, format: FormatOptions) -> Self {
        Self {
            sources,
            format,
            languages: BTreeSet::new(),
            file_bytes: 64 << 20,
            spooled_bytes: 1 << 30,
            batch_bytes: 16 << 20,
            waiting_bytes: 128 << 20,
            waiting_batches: 1024,
            keys: 1_000_000,
        }
    }
}

/// How the files of an inbox are read, for documents that come as `pushed` says.
#[must_use]
pub fn spooled_format(pushed: &FormatOptions) -> FormatOptions {
    FormatOptions {
        id_field: pushed.id_field.as_ref().map(|_| "id".to_owned()),
        language_field: pushed.language_field.as_ref().map(|_| "language".to_owned()),
        arrived_field: Some("arrived".to_owned()),
        compression: Compression::None,
        ..Format::JsonLines.into()
    }
}

/// What has come so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Arrived {
    /// Documents since the inbox was opened.
    pub documents: u64,
    /// Characters since it was made, by language; under the empty one where the corpus has a fixed language.
    pub characters: BTreeMap<String, u64>,
}

/// How an inbox is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct InboxStatus {
    /// Documents that have come since it was opened.
    pub documents: u64,
    /// Bytes that the log does not hold yet.
    pub unread_bytes: u64,
    /// As many as there may be.
    pub limit_bytes: u64,
    /// Batches that wait to be written.
    pub waiting_batches: usize,
    /// Why nothing is taken any more, if so.
    pub failed: Option<String>,
}

/// A durable spool of documents, and the feed of the sources that read it. Dropping it writes what waits.
pub struct Inbox {
    shared: Arc<Shared>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

impl fmt::Debug for Inbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inbox").field("name", &self.shared.name).field("folder", &self.shared.folder).finish()
    }
}

impl Inbox {
    /// Opens the inbox of corpus `name` in `folder`, and makes it if it is not there.
    ///
    /// # Errors
    /// When the folder cannot be read or written, or what was durable in it is damaged or missing.
    pub fn open(name: &str, folder: &Path, options: InboxOptions, metrics: &InboxMetrics) -> Result<Self, IngestError> {
        Self::open_on(Arc::new(StdDisk), name, folder, options, metrics)
    }

    /// As [`Inbox::open`], on a file system of the caller's.
    ///
    /// # Errors
    /// As [`Inbox::open`].
    pub fn open_on(
        disk: Arc<dyn Disk>,
        name: &str,
        folder: &Path,
        options: InboxOptions,
        metrics: &InboxMetrics,
    ) -> Result<Self, IngestError> {
        let recovered = recovery::recover(disk.as_ref(), folder, options.keys)?;
        let counters = metrics.of(name);
        let shared = Arc::new(Shared::new(name.to_owned(), folder.to_owned(), options, counters, &recovered));
        let writer = Writer {
            shared: Arc::clone(&shared),
            disk,
            folder: folder.to_owned(),
            tail: recovered.tail,
            keys: recovered.keys,
            characters: recovered.characters,
            no_space: false,
        };
        let failed = Arc::clone(&shared);
        let body = move || {
            if catch_unwind(AssertUnwindSafe(|| writer.run())).is_err() {
                failed.panicked();
            }
        };
        let thread = std::thread::Builder::new().name(format!("inbox {name}")).spawn(body);
        let thread = thread.map_err(|source| IngestError::Io {
            doing: "start the thread that writes",
            path: folder.to_owned(),
            source,
        })?;
        Ok(Self { shared, writer: Mutex::new(Some(thread)) })
    }

    /// Name of the corpus.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// Where its files are.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.shared.folder
    }

    /// A batch to be filled with documents that come as the corpus is configured.
    #[must_use]
    pub fn batch(&self) -> BatchBuilder {
        self.batch_of(&self.shared.options.format)
    }

    /// A batch to be filled with documents in another form than the configured one.
    #[must_use]
    pub fn batch_of(&self, format: &FormatOptions) -> BatchBuilder {
        BatchBuilder::new(Arc::clone(&self.shared), format)
    }

    /// Hands a batch to the writer. `answer` is called once: on the writer's thread when the batch is durable or will never
    /// be, or at once if there is no room, or nothing to write. It must not wait. Never waits itself.
    pub fn push(&self, batch: Batch, answer: impl FnOnce(Result<Receipt, PushError>) + Send + 'static) {
        if batch.documents == 0 {
            return answer(Ok(batch.receipt()));
        }
        if let Err((answer, error)) = self.shared.push(batch, Answer::new(answer)) {
            answer.give(Err(error));
        }
    }

    /// The log durably holds the entry that carries `cursor`. To be called for the newest entry of each source.
    pub fn durable(&self, cursor: &SourceCursor) {
        self.shared.durable(cursor);
    }

    /// From now on so many bytes may be there that the log does not hold; what there is beyond stays.
    pub fn set_limit(&self, limit_bytes: u64) {
        self.shared.set_limit(limit_bytes);
    }

    /// How documents come, as it is configured.
    #[must_use]
    pub fn format(&self) -> &FormatOptions {
        &self.shared.options.format
    }

    /// How it is, for people and machines that look after it.
    #[must_use]
    pub fn status(&self) -> InboxStatus {
        self.shared.status()
    }

    /// What has come so far.
    #[must_use]
    pub fn arrived(&self) -> Arrived {
        self.shared.arrivals()
    }

    /// Whether a batch found no memory within the last `time`: who is slow to send one should make room.
    #[must_use]
    pub fn pressed_within(&self, time: Duration) -> bool {
        self.shared.pressed().is_some_and(|when: Instant| when.elapsed() < time)
    }

    /// Nothing more will come: once they have read what is there, the sources end. What waits is written before.
    pub fn end(&self) {
        self.close();
        self.shared.end();
    }

    /// Takes no more, and returns when everything that waited is written.
    pub fn close(&self) {
        self.shared.close();
        let thread = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        thread.map(JoinHandle::join); // A panic is known to those whom it concerns.
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        self.close();
    }
}

impl Feed for Inbox {
    fn following(&self, part: Option<&str>) -> Option<Part> {
        self.shared.following(part)
    }

    fn find(&self, cursor: &SourceCursor) -> Found {
        self.shared.find(cursor)
    }

    fn extent(&self, part: &str) -> Extent {
        self.shared.extent(part)
    }

    fn parts(&self) -> usize {
        self.shared.parts()
    }

    fn characters_available(&self, language: Option<&str>) -> u64 {
        let arrived = self.shared.arrivals();
        match language {
            Some(language) if self.shared.options.format.language_field.is_some() => {
                arrived.characters.get(language).copied().unwrap_or(0)
            }
            _ => arrived.characters.values().sum(),
        }
    }

    fn closed(&self) -> bool {
        self.shared.has_ended()
    }

    fn changes(&self) -> &Changes {
        &self.shared.changes
    }

    fn check(&self) -> Result<(), IngestError> {
        let problem = self.shared.problem();
        problem.map_or(Ok(()), |problem| Err(IngestError::Inbox { path: self.shared.folder.clone(), problem }))
    }
}
