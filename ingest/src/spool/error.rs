//! Why a batch was not taken.

/// Why a batch was not taken. Nothing of it is in the inbox.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PushError {
    /// Too much is being received or waits to be written; soon there is room.
    #[error("{waiting} batches wait to be written, and there is no memory for more; send it again in a moment")]
    Busy {
        /// Batches that wait.
        waiting: usize,
    },
    /// The log has not taken what is there.
    #[error(
        "the inbox holds {spooled_bytes} bytes that are not labelled yet, and may hold {limit_bytes}; \
         send it again later, or raise queue.inbox_bytes"
    )]
    Full {
        /// Bytes in the inbox.
        spooled_bytes: u64,
        /// Bytes there may be.
        limit_bytes: u64,
    },
    /// The disk is full.
    #[error("cannot {doing}: {error}; nothing of it was kept; free some space and send it again")]
    NoSpace {
        /// What was being done.
        doing: String,
        /// What the system said.
        error: String,
    },
    /// A batch is larger than one may be.
    #[error(
        "it has more than the {limit_bytes} bytes that are taken as one; send it in parts, each with a key of its own"
    )]
    TooLarge {
        /// Bytes a batch may have.
        limit_bytes: u64,
    },
    /// A write or sync failed: what the disk holds is not known any more.
    #[error("{0}; nothing more is taken until the daemon is started again")]
    Failed(String),
    /// The daemon is stopping, or the corpus has ended.
    #[error("nothing more is taken: the daemon is stopping, or the corpus has ended")]
    Closed,
}
