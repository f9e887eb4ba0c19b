//! Threads that compute.

use crate::configuration::Threads;
use crate::failure::{ExitCode, Failure};
use model::RolePool;
use std::sync::Arc;

/// Cores that this process may use.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// The pools of the roles: to label, and to train.
pub struct Pools {
    /// All teachers'; `None` if nothing is labelled.
    label: Option<Arc<RolePool>>,
    /// The trainer's; `None` if nothing is trained.
    pub train: Option<Arc<RolePool>>,
}

impl Pools {
    /// As `threads`, which are those that take effect, say.
    pub fn open(threads: Threads) -> Result<Self, Failure> {
        let (label, train) = (("label", threads.teachers), ("train", threads.trainer));
        let pools = match (threads.teachers > 0, threads.trainer > 0) {
            (true, true) => RolePool::pair(label, train).map(|[label, train]| (Some(label), Some(train))),
            (true, false) => RolePool::alone(label.0, label.1).map(|label| (Some(label), None)),
            (false, true) => RolePool::alone(train.0, train.1).map(|train| (None, Some(train))),
            (false, false) => Ok((None, None)),
        };
        let (label, train) = pools.map_err(failed)?;
        Ok(Self { label, train })
    }

    /// Of the stage that labels, which is there even if no teacher has anything to do.
    pub fn label(&self) -> Result<Arc<RolePool>, Failure> {
        self.label.clone().map_or_else(|| RolePool::alone("label", 1).map_err(failed), Ok)
    }
}

fn failed(error: model::ModelError) -> Failure {
    Failure::new(ExitCode::of_model(&error), error)
}

/// Tells candle and rayon how many threads to use outside the pools of the roles, unless the environment does.
///
/// candle asks for the number at every matrix product, and without these variables it parses /proc/cpuinfo each time; its
/// own second pool (`CANDLE_NUM_THREADS`) would only compete with rayon's.
pub fn set_defaults() {
    for (name, value) in [("RAYON_NUM_THREADS", cores()), ("CANDLE_NUM_THREADS", 1)] {
        if std::env::var_os(name).is_none() {
            #[allow(unsafe_code, reason = "there is no other way to configure candle")]
            // SAFETY: called first thing in `main`, before any other thread exists that could read the environment.
            unsafe {
                std::env::set_var(name, value.to_string());
            }
        }
    }
}
