//! Operations: how a person or a machine looks at a running daemon and tells it what to do.
//!
//! An HTTP/1.1 server on one thread of its own, with two doors:
//!
//! | door | what it is for | who gets in |
//! | --- | --- | --- |
//! | loopback TCP | the live page, `/metrics`, health, and every other question; read-only | requests whose Host (and Origin, if any) is this machine |
//! | unix socket, mode 0660 | all of that, and commands and documents | whoever the file's permissions let in; with [`Controllers`] all of them may read, and those may change something |
//!
//! With a token ([`Token`]) control is open on TCP too, for requests that carry it: `Authorization: Bearer <token>`. Each command
//! is logged with who gave it: user and process on the socket, as the kernel says, or `tcp token`. Questions need no token: on TCP
//! every user of the machine may ask them, and reads paths and document ids in warnings, and users and processes in operations.
//!
//! | path | method | answer |
//! | --- | --- | --- |
//! | `/` | GET | the live page, self-contained |
//! | `/metrics` | GET | Prometheus text format 0.0.4 |
//! | `/healthz`, `/readyz` | GET | 200, or 503 with the reason |
//! | `/v1/openapi.json` | GET | the OpenAPI 3.1 document: every path, what it takes and answers, every code |
//! | `/v1/status` | GET | [`Control::status`] with the stages' counters added |
//! | `/v1/events` | GET | server-sent events, see [`EventHub`] |
//! | `/v1/history` | GET | how training went, see [`HistoryQuery`] |
//! | `/v1/operations`, `/v1/operations/{id}` | GET | commands that are being carried out, and the latest 100 that were; results only one by one, up to 64 KiB |
//! | `/v1/configuration` | GET | the configuration as it takes effect |
//! | `/v1/log/segments` | GET | the log's segments, oldest first |
//! | `/v1/log-level`, `/v1/retention` | GET, PUT | settings that change while the daemon runs |
//! | `/v1/reload` | POST | the configuration file is read again |
//! | `/v1/pause`, `/v1/resume` | POST | optional body `{"stage": "ingest" \| "teacher" \| "trainer"}`; without one, all stages |
//! | `/v1/drain` | POST | ingest is paused, and all that it has read is durable; 409 while another drain is under way |
//! | `/v1/checkpoint`, `/v1/shutdown` | POST | no body |
//! | `/v1/export` | POST | body `{"out": "/absolute/folder", "languages": […]}`, cut to these languages if there are any |
//! | `/v1/release` | POST | body `{"steps": 1000, "out": "/absolute/folder"}`, `out` is optional; 409 while a release runs |
//! | `/v1/release/cancel` | POST | no body |
//! | `/v1/quarantine/retry` | POST | body `{"ids": […]}`, or `{"all": true}` and perhaps a `corpus` |
//! | `/v1/corpora` | GET | what is read: `corpora` of [`Control::status`] |
//! | `/v1/corpora` | POST | body `{"corpus": {"name": …}, "folder": "/absolute"}`: a `[[corpus]]` table, and what its paths are relative to |
//! | `/v1/corpora/{name}` | DELETE | the corpus is read no more |
//! | `/v1/corpora/{name}/pause`, `/v1/corpora/{name}/resume` | POST | no body |
//! | `/v1/corpora/{name}/documents` | POST | documents, see [`Push`]; answered when they are durable |
//! | `/v1/languages/{language}/share` | PUT, DELETE | body `{"share": 0.5}`; DELETE: the share that follows from its characters again |
//! | `/v1/teachers` | GET | who labels: `teachers` of [`Control::status`] |
//! | `/v1/teachers` | POST | body `{"teacher": {"name": …}, "folder": "/absolute"}`: a `[[teacher]]` table |
//! | `/v1/teachers/{name}/pause`, `/v1/teachers/{name}/resume` | POST | no body |
//!
//! Every error is `{"error": {"code", "message"}}`. Codes are stable, [`CODES`] has all of them; messages are for people. (The one
//! exception: bytes that are not an HTTP request at all are answered with a bare 400, 414 or 431.)
//!
//! A command is answered when it is done, and goes on if its client leaves. With `Prefer: respond-async` it is answered at once, with
//! 202 and where it can be followed. What commands change has an ETag, the revision, which moves when a change begins and when it is
//! over; a command with `If-Match` is carried out only if it is still the one named.
//!
//! Invariants: nothing here can hold the pipeline back. Publishing an event never waits; every queue,
//! connection, request and answer is bounded in number, size and time ([`Limits`]); questions and commands go to
//! the daemon from threads of a small pool, never from the thread that serves.
//!
//! Not here: what the commands do and what a status says (the daemon's [`Control`]), and the metrics of
//! the stages (each registers its own; this crate serves the registry and adds its own and the process's).

mod access;
mod activation;
pub mod client;
mod codes;
mod commands;
mod connection;
mod control;
mod corpora;
mod documents;
mod error;
mod events;
mod follow;
mod guard;
mod history;
mod limits;
mod listen;
mod metrics;
pub mod notify;
mod openapi;
mod operations;
mod page;
mod questions;
mod reply;
mod request;
mod revision;
mod routes;
mod server;
mod stages;
mod stream;
mod teachers;
mod token;
mod write_deadline;

pub use access::Controllers;
pub use activation::Activated;
pub use client::ClientError;
pub use codes::{CODES, Code};
pub use control::{
    Command, CommandError, Control, CorporaChange, Push, PushAnswer, PushForm, PushTarget, Question, Stage,
    TeachersChange, UnknownStage,
};
pub use error::OpsError;
pub use events::EventHub;
pub use follow::{DaemonEvent, follow};
pub use history::HistoryQuery;
pub use limits::Limits;
pub use listen::check_socket_path;
pub use revision::Revision;
pub use server::{OpsOptions, Server, Surface};
pub use token::Token;
