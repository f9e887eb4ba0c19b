//! The subcommands of `log` and `bench store`, through the binary, on small logs of real teachers.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod audit;
mod bench;
mod export;
#[path = "../harness/mod.rs"]
mod harness;
mod relabel;
mod scene;
mod tools;
