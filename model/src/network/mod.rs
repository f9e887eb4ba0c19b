//! The network on the CPU, written by hand: forward and backward passes over slices, for teachers and the student.
//!
//! A batch is cut into [shards](shard::Shard): a few sequences each, small enough that what a layer computes for one of them stays in a
//! core's cache. A shard goes through a layer on one thread, products and the operations between them alike; different shards
//! go in parallel, in the rayon pool that the caller is in. Only gradients of matrices sum over all shards; they are
//! cut by rows of the matrix instead, and add up the shards in order. How a batch is cut depends on the batch alone, so
//! no result depends on the number of threads.
//!
//! The last layer computes queries, and all that comes after them, for masked rows only: nothing else is asked of it.

mod absorbed;
mod embedding;
mod first;
mod flops;
mod head;
mod inference;
mod layer;
mod shard;
mod training;
mod weights;

pub use inference::Inference;
pub use training::Training;
