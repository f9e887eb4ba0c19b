//! Inboxes through their public interface, on a disk in memory that crashes and fails, and on a real one.
#![allow(clippy::unwrap_used)]

#[allow(dead_code, reason = "shared with the log's tests, which use all of it")]
#[path = "../../../store/tests/log/changes.rs"]
mod changes;
#[allow(dead_code, reason = "shared with the log's tests, which use all of it")]
#[path = "../../../store/tests/log/memory_disk.rs"]
mod memory_disk;

mod crash;
#[allow(dead_code, reason = "shared with the other tests of ingest, which use all of it")]
mod gate;
mod harness;
mod keys;
mod limits;
mod pump;
mod pushing;
mod removal;
