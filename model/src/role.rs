//! The threads of a role: labelling, or training.
//!
//! Each role has its share of the cores, so that neither starves the other; what one leaves idle the other may use. A role asks
//! before each unit of work (a batch, a step) whether the other is at work, and takes its own share or both. So more threads than both
//! shares together are at work only until units end that began while the other role was idle. Results do not depend on the
//! number of threads, so none of this shows in them.

use crate::ModelError;
use rayon::{ThreadPool, ThreadPoolBuilder};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The threads of one role.
#[derive(Debug)]
pub struct RolePool {
    share: ThreadPool,
    /// Both shares; `None` if there is no other role.
    both: Option<ThreadPool>,
    /// Of this role, how many are at work.
    own: Arc<AtomicUsize>,
    other: Arc<AtomicUsize>,
}

impl RolePool {
    /// A role that is alone, with `threads` threads (at least 1) called `name`.
    ///
    /// # Errors
    /// When the system gives no threads.
    pub fn alone(name: &'static str, threads: usize) -> Result<Arc<Self>, ModelError> {
        let (own, other) = Default::default();
        Ok(Arc::new(Self { share: pool(name, threads)?, both: None, own, other }))
    }

    /// Two roles, each with a name and a share in threads (at least 1).
    ///
    /// # Errors
    /// When the system gives no threads.
    pub fn pair(first: (&'static str, usize), second: (&'static str, usize)) -> Result<[Arc<Self>; 2], ModelError> {
        let at_work: [Arc<AtomicUsize>; 2] = Default::default();
        let both = first.1.max(1) + second.1.max(1);
        let role = |(name, threads), own: usize| {
            let (own, other) = (Arc::clone(&at_work[own]), Arc::clone(&at_work[1 - own]));
            Ok::<_, ModelError>(Arc::new(Self {
                share: pool(name, threads)?,
                both: Some(pool(name, both)?),
                own,
                other,
            }))
        };
        Ok([role(first, 0)?, role(second, 1)?])
    }

    /// Says that the role is at work until the guard is dropped. Hold it over short pauses between units of work, and give it up
    /// while there is nothing to do.
    #[must_use]
    pub fn work(self: &Arc<Self>) -> Working {
        self.own.fetch_add(1, Ordering::Relaxed);
        Working(Arc::clone(&self.own))
    }

    /// Does one unit of work, in which rayon's operations use the role's threads; and the other role's too, if that is idle as
    /// it begins.
    pub fn install<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        match &self.both {
            Some(both) if self.other.load(Ordering::Relaxed) == 0 => both.install(work),
            _ => self.share.install(work),
        }
    }
}

/// A role at work.
#[derive(Debug)]
pub struct Working(Arc<AtomicUsize>);

impl Drop for Working {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn pool(name: &'static str, threads: usize) -> Result<ThreadPool, ModelError> {
    let threads = threads.max(1);
    let pool = ThreadPoolBuilder::new().num_threads(threads).thread_name(move |number| format!("{name}-{number}"));
    pool.build().map_err(|error| ModelError::Threads { threads, reason: error.to_string() })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn threads(role: &RolePool) -> usize {
        role.install(rayon::current_num_threads)
    }

    #[test]
    fn a_role_uses_what_the_other_leaves_idle() {
        let [label, train] = RolePool::pair(("label", 1), ("train", 2)).unwrap();
        assert_eq!((threads(&label), threads(&train)), (3, 3));
        let labelling = label.work();
        assert_eq!((threads(&label), threads(&train)), (3, 2));
        let (training, more) = (train.work(), label.work());
        assert_eq!((threads(&label), threads(&train)), (1, 2));
        drop(labelling);
        assert_eq!(threads(&train), 2, "another runner still labels");
        drop(more);
        assert_eq!((threads(&label), threads(&train)), (1, 3));
        drop(training);
        assert_eq!(threads(&label), 3);
        assert_eq!(
            label.install(|| std::thread::current().name().map(str::to_owned)).unwrap().split('-').next(),
            Some("label")
        );
    }

    #[test]
    fn a_role_alone_has_its_threads() {
        let role = RolePool::alone("label", 2).unwrap();
        let _working = role.work();
        assert_eq!(threads(&role), 2);
        assert_eq!(threads(&RolePool::alone("label", 0).unwrap()), 1);
    }
}
