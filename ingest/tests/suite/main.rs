//! Ingestion through its public interface, on corpora and tokenizers that the tests write themselves.
#![allow(clippy::unwrap_used)]

mod bad_input;
mod corpora;
mod groups;
mod masking;
mod resume;
mod running;
mod sampling;
mod segmentation;
mod workshop;
