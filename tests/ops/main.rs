//! What an administrator watches a daemon with, against the real binary.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "../harness/mod.rs"]
mod harness;
mod metrics;
mod tensorboard;
