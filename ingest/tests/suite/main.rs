//! Ingestion through its public interface, on corpora and tokenizers that the tests write themselves.
#![allow(clippy::unwrap_used)]

#[allow(dead_code, reason = "shared with the tests of inboxes, which use all of it")]
#[path = "../spool/gate.rs"]
mod gate;

mod arrivals;
mod bad_input;
mod changes;
mod corpora;
mod duplicates;
mod feeds;
mod followed;
mod formats;
mod groups;
mod later_teacher;
mod masking;
mod pushed;
mod quarantine;
mod resume;
mod running;
mod sampling;
mod segmentation;
mod taken_back;
mod workshop;
