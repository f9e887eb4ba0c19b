//! Labelling on other machines, over NATS JetStream.
//!
//! ```text
//! runner threads ─► coordinator ─► [stream of batches] ─► workers ─► [stream of labels] ─► coordinator ─► runner threads
//! ```
//!
//! Batches are a queue for each teacher: each is one worker's until it is acknowledged, which happens when the server has stored its labels; who dies with a batch in hand loses it to
//! another after 15 seconds. Labels are acknowledged when the log has them for good. Both streams are bounded, and whoever publishes to a full one waits.
//!
//! The log itself can go to a third stream ([`Publisher`]), of which others make the same log, byte for byte ([`Follower`]): several students learn from one
//! set of labels.

mod claim;
mod coordinator;
mod coordinator_metrics;
mod desk;
mod follower;
mod in_process;
mod link;
mod pieces;
mod publisher;
mod roster;
mod spec;
mod wire;
mod worker;
mod worker_metrics;

pub use coordinator::{Coordinator, RemoteTeacher};
pub use follower::{CaughtUp, Follower};
pub use in_process::InProcess;
pub use link::{Heartbeat, LinkError, LinkOptions, is_run_name, without_secrets};
pub use publisher::{LogStreamError, Publisher, PublisherOptions};
pub use roster::{Roster, WorkerReport};
pub use spec::{CoordinatorStart, RunSpec, TeacherSpec};
pub use worker::{Ended, Worker, WorkerError, WorkerOptions};
pub use worker_metrics::WorkerMetrics;
