//! The server over real sockets, with a small real daemon behind it.
#![allow(clippy::unwrap_used)]

mod corpora;
mod documents;
mod events;
mod guards;
mod harness;
mod inbox;
mod limits;
mod metrics;
mod routes;
mod socket;
mod teachers;
