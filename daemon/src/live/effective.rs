//! The configuration as it takes effect at this moment.

use crate::configuration::Configuration;
use std::sync::{Arc, PoisonError, RwLock};

/// What was read from the file, with what was changed since the start. Cloning shares it: stages look up in it what may change while
/// they run.
#[derive(Clone, Debug)]
pub struct Effective(Arc<RwLock<Arc<Configuration>>>);

impl Effective {
    /// At first `configuration`.
    pub fn new(configuration: Configuration) -> Self {
        Self(Arc::new(RwLock::new(Arc::new(configuration))))
    }

    /// As it is now.
    pub fn get(&self) -> Arc<Configuration> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// From now on it is what `change` makes of it; if that fails it stays. Nobody else changes it meanwhile, so `change` must not wait.
    pub fn change<E>(&self, change: impl FnOnce(&Configuration) -> Result<Configuration, E>) -> Result<(), E> {
        let mut now = self.0.write().unwrap_or_else(PoisonError::into_inner);
        *now = Arc::new(change(&now)?);
        Ok(())
    }

    /// From now on it has what `set` sets.
    pub fn set(&self, set: impl FnOnce(&mut Configuration)) {
        set(Arc::make_mut(&mut self.0.write().unwrap_or_else(PoisonError::into_inner)));
    }
}
