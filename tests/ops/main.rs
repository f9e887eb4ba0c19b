//! What an administrator watches a daemon with, against the real binary.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod command_line;
mod control;
#[path = "../harness/mod.rs"]
mod harness;
mod history;
mod metrics;
#[path = "../harness/nats.rs"]
mod nats;
mod tensorboard;
