//! The operations of a transformer between its matrix products, forward and backward, on rows of float32.
//!
//! Each works on the rows that it is given, on the calling thread: whoever drives the network cuts a batch into pieces that stay
//! in a core's cache, and runs pieces in parallel. Gradients of parameters are added to the buffers that are passed in.

pub mod activation;
pub mod attention;
pub mod dropout;
pub mod embedding;
pub mod norm;
