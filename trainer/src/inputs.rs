//! What ingestion reads for training; it may change while a trainer runs.

use std::sync::{Arc, PoisonError, RwLock};

/// A source that is being read for training.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Input {
    /// Name of the corpus.
    pub source: String,
    /// Its language.
    pub language: String,
    /// Whether it is certain to write to the log soon: the next window waits for its first entry. False for a stream on
    /// which nothing may arrive for days.
    pub finite: bool,
}

/// The sources that are being read for training, now or later in this run. Cloning shares the list: what is set is taken
/// up with the next window.
#[derive(Clone, Debug, Default)]
pub struct Inputs(Arc<RwLock<Arc<[Input]>>>);

impl Inputs {
    /// Replaces the list.
    pub fn set(&self, inputs: Vec<Input>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = inputs.into();
    }

    /// The list as it is now.
    #[must_use]
    pub fn get(&self) -> Arc<[Input]> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl From<Vec<Input>> for Inputs {
    fn from(inputs: Vec<Input>) -> Self {
        Self(Arc::new(RwLock::new(inputs.into())))
    }
}

impl FromIterator<Input> for Inputs {
    fn from_iter<I: IntoIterator<Item = Input>>(inputs: I) -> Self {
        inputs.into_iter().collect::<Vec<_>>().into()
    }
}
