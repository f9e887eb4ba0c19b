//! Threads that compute.

use crate::failure::{ExitCode, Failure};
use rayon::{ThreadPool, ThreadPoolBuilder};
use std::sync::Arc;

/// Cores that this process may use.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// The pool of `threads` (at least 1) that all teachers label on.
pub fn labelling_pool(threads: usize) -> Result<Arc<ThreadPool>, Failure> {
    let pool = ThreadPoolBuilder::new().num_threads(threads.max(1)).thread_name(|number| format!("label-{number}"));
    let failed = |error| Failure::new(ExitCode::Software, format!("cannot start {threads} threads to label: {error}"));
    pool.build().map(Arc::new).map_err(failed)
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
