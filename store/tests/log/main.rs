//! The log through its public interface, on the operating system's disk and on one in memory that fails on demand.
#![allow(clippy::unwrap_used)]

mod crash;
mod damage;
mod following;
mod identity;
mod memory_disk;
mod recovery;
mod report;
mod round_trip;
mod sample;
