//! Teacher runners: a masked batch in, labels out; and the assembler that completes records in order.
//!
//! A [`Runner`] owns one teacher and labels batch after batch; on a GPU the next one is begun before one is done. [`Labelling`] feeds one thread
//! per runner and puts the groups together again. Invariant: groups leave in the order in which they came,
//! complete, whatever the order in which runners finish; and at most `depth` groups are inside. Complete: with a label for every copy of
//! a teacher that labels, unless that teacher stalled and is not waited for ([`OnStall`]).
//!
//! Batches are formed by ingest and never re-cut here, so that a teacher's rounding does not depend on timing.
//! This crate does not tokenise, does not mask and does not write.

mod error;
mod head;
mod labelling;
mod on_device;
pub mod remote;
mod runner;
mod watch;

pub use error::TeacherError;
pub use head::{Decoder, HeadScratch, NonFinite, Tail, label_rows};
pub use labelling::{Labeller, Labelling, LabellingOptions, PendingLabels};
pub use runner::{Runner, RunnerOptions, TailOptions, computed_in};
pub use watch::{Activity, OnStall, StallOptions, TeacherWatch};
