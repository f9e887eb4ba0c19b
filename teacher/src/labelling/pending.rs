//! Labels that are on their way.

use crate::TeacherError;
use std::fmt;
use store::Label;

/// The labels of a batch that was begun; one per copy, in order.
pub struct PendingLabels(Box<dyn FnOnce() -> Result<Vec<Label>, TeacherError> + Send>);

impl PendingLabels {
    /// Labels that are there already.
    #[must_use]
    pub fn ready(labels: Vec<Label>) -> Self {
        Self::later(move || Ok(labels))
    }

    /// Labels that `wait` waits for.
    pub fn later(wait: impl FnOnce() -> Result<Vec<Label>, TeacherError> + Send + 'static) -> Self {
        Self(Box::new(wait))
    }

    /// Waits for them.
    ///
    /// # Errors
    /// When the teacher failed.
    pub fn wait(self) -> Result<Vec<Label>, TeacherError> {
        (self.0)()
    }
}

impl fmt::Debug for PendingLabels {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str("PendingLabels")
    }
}
