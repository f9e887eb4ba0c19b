//! What the fuzz targets do with their input. The disk and the entries are those of the log's tests.
#![allow(clippy::unwrap_used)]

#[path = "../../tests/log/changes.rs"]
#[allow(dead_code)]
mod changes;
mod inputs;
#[path = "../../tests/log/memory_disk.rs"]
#[allow(dead_code)]
mod memory_disk;
#[path = "../../tests/log/sample.rs"]
#[allow(dead_code)]
mod sample;

pub use inputs::{block, labels, segment};
