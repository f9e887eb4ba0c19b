//! Operations: how a person or a machine looks at a running daemon and tells it what to do.
//!
//! An HTTP/1.1 server on one thread of its own, with two doors:
//!
//! | door | what it is for | who gets in |
//! | --- | --- | --- |
//! | loopback TCP | the live page, `/metrics`, health, status, events; read-only | requests whose Host (and Origin, if any) is this machine |
//! | unix socket, mode 0660 | all of that, and control: pause, resume, checkpoint, export, shutdown, documents | whoever the file's permissions let in |
//!
//! With a token ([`Token`]) control is open on TCP too, for requests that carry it: `Authorization: Bearer <token>`.
//!
//! | path | method | answer |
//! | --- | --- | --- |
//! | `/` | GET | the live page, self-contained |
//! | `/metrics` | GET | Prometheus text format 0.0.4 |
//! | `/healthz`, `/readyz` | GET | 200, or 503 with the reason |
//! | `/v1/status` | GET | [`Control::status`] with the stages' counters added |
//! | `/v1/events` | GET | server-sent events, see [`EventHub`] |
//! | `/v1/pause`, `/v1/resume` | POST | optional body `{"stage": "ingest" \| "teacher" \| "trainer"}`; without one, all stages |
//! | `/v1/checkpoint`, `/v1/shutdown` | POST | no body |
//! | `/v1/export` | POST | body `{"out": "/absolute/folder"}` |
//! | `/v1/release` | POST | body `{"steps": 1000, "out": "/absolute/folder"}`, `out` is optional; 409 while a release runs |
//! | `/v1/release/cancel` | POST | no body |
//! | `/v1/corpora` | GET | what is read: `corpora` of [`Control::status`] |
//! | `/v1/corpora` | POST | body `{"corpus": {"name": …}, "folder": "/absolute"}`: a `[[corpus]]` table, and what its paths are relative to |
//! | `/v1/corpora/{name}` | DELETE | the corpus is read no more |
//! | `/v1/corpora/{name}/pause`, `/v1/corpora/{name}/resume` | POST | no body |
//! | `/v1/languages/{language}/share` | PUT, DELETE | body `{"share": 0.5}`; DELETE: the share that follows from its characters again |
//! | `/v1/corpora/{name}/documents` | POST | documents, see [`Push`]; answered when they are durable |
//!
//! Every error is `{"error": {"code", "message"}}`; codes are stable, messages are for people. (The one
//! exception: bytes that are not an HTTP request at all are answered with a bare 400, 414 or 431.)
//!
//! Invariants: nothing here can hold the pipeline back. Publishing an event never waits; every queue,
//! connection, request and answer is bounded in number, size and time ([`Limits`]); questions and commands go to
//! the daemon from threads of a small pool, never from the thread that serves.
//!
//! Not here: what the commands do and what a status says (the daemon's [`Control`]), and the metrics of
//! the stages (each registers its own; this crate serves the registry and adds its own and the process's).

pub mod client;
mod connection;
mod control;
mod corpora;
mod documents;
mod error;
mod events;
mod guard;
mod limits;
mod listen;
mod metrics;
pub mod notify;
mod page;
mod reply;
mod routes;
mod server;
mod stages;
mod stream;
mod teachers;
mod token;
mod write_deadline;

pub use client::ClientError;
pub use control::{
    Command, CommandError, Control, CorporaChange, Push, PushAnswer, PushForm, PushTarget, Stage, TeachersChange,
    UnknownStage,
};
pub use error::OpsError;
pub use events::EventHub;
pub use limits::Limits;
pub use server::{OpsOptions, Server};
pub use token::Token;
