//! The server over real sockets, with a small real daemon behind it.
#![allow(clippy::unwrap_used)]

mod access;
mod corpora;
mod document;
mod documents;
mod events;
mod guards;
mod harness;
mod hostile;
mod inbox;
mod limits;
mod metrics;
mod operations;
mod routes;
mod socket;
mod teachers;
