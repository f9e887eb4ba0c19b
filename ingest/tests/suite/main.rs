//! Ingestion through its public interface, on corpora and tokenizers that the tests write themselves.
#![allow(clippy::unwrap_used)]

mod bad_input;
mod changes;
mod corpora;
mod duplicates;
mod feeds;
mod followed;
mod formats;
mod groups;
mod masking;
mod pushed;
mod quarantine;
mod resume;
mod running;
mod sampling;
mod segmentation;
mod taken_back;
mod workshop;
