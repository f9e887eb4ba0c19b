//! Labels that are on their way.

use crate::TeacherError;
use crossbeam::channel::{Receiver, RecvTimeoutError};
use std::fmt;
use std::time::Duration;
use store::Label;

/// The labels of a batch that was begun; one per copy, in order.
pub struct PendingLabels(Way);

enum Way {
    /// There is something that waits for them.
    Waiting(Box<dyn FnOnce() -> Result<Vec<Label>, TeacherError> + Send>),
    /// Somebody sends them.
    Arriving(Receiver<Result<Vec<Label>, TeacherError>>),
}

impl PendingLabels {
    /// Labels that are there already.
    #[must_use]
    pub fn ready(labels: Vec<Label>) -> Self {
        Self::later(move || Ok(labels))
    }

    /// Labels that `wait` waits for.
    pub fn later(wait: impl FnOnce() -> Result<Vec<Label>, TeacherError> + Send + 'static) -> Self {
        Self(Way::Waiting(Box::new(wait)))
    }

    /// Labels that somebody sends, however long that takes.
    #[must_use]
    pub fn arriving(from: Receiver<Result<Vec<Label>, TeacherError>>) -> Self {
        Self(Way::Arriving(from))
    }

    /// What they come from, where they are sent.
    pub(super) fn arrival(&self) -> Option<&Receiver<Result<Vec<Label>, TeacherError>>> {
        match &self.0 {
            Way::Waiting(_) => None,
            Way::Arriving(from) => Some(from),
        }
    }

    /// Waits for them.
    ///
    /// # Errors
    /// When the teacher failed.
    pub fn wait(self) -> Result<Vec<Label>, TeacherError> {
        self.wait_while(|| true, Duration::MAX).unwrap_or_else(|| Ok(Vec::new()))
    }

    /// Waits for them; where they are sent, it asks `proceed` every so often. `None`: that said no before.
    pub(super) fn wait_while(
        self,
        proceed: impl Fn() -> bool,
        interval: Duration,
    ) -> Option<Result<Vec<Label>, TeacherError>> {
        let from = match self.0 {
            Way::Waiting(wait) => return Some(wait()),
            Way::Arriving(from) => from,
        };
        while proceed() {
            match from.recv_timeout(interval) {
                Ok(labels) => return Some(labels),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    return Some(Err(TeacherError::Panicked("coordinator".to_owned())));
                }
            }
        }
        None
    }
}

impl fmt::Debug for PendingLabels {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str("PendingLabels")
    }
}
