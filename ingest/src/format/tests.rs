//! Formats, through [`DocumentReader`](super::DocumentReader): what is read does not depend on how it is packed.
#![allow(clippy::unwrap_used)]

mod compression;
mod damage;
mod fields;
mod growing;
mod malformed;
mod options;
mod parquet;
mod samples;
