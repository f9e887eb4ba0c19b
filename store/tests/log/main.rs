//! The log through its public interface, on the operating system's disk and on one in memory that fails on demand.
#![allow(clippy::unwrap_used)]

mod changes;
mod crash;
mod damage;
mod extending;
mod following;
mod fuzzing;
mod identity;
#[path = "../../fuzz/src/inputs.rs"]
#[allow(unreachable_pub)]
mod inputs;
mod measured;
mod memory_disk;
mod mirror_retention;
mod mirroring;
mod model;
mod promises;
mod reading_fails;
mod recovery;
mod report;
mod retention;
mod room;
mod round_trip;
mod salvage;
mod sample;
mod sigkill;
mod std_disk;
mod tools;
