//! What a start refuses because of what is there already: the state folder, the log, the newest checkpoint. Nothing is written, so that whoever is refused
//! finds everything as it was, and `check` can say the same.

use crate::configuration::Configuration;
use crate::failure::Failure;
use crate::inputs::Inputs;
use crate::state_folder::StateFolder;
use store::{Identity, LogReader, StoreError};

/// Compares a configuration with what is there. Where only training is asked for, the teachers of `inputs` are put into the order of the log's table. Gives the
/// identity of the log, or of the one that will be begun; `None`: the log that is to be followed is not there yet.
pub fn compare(configuration: &Configuration, inputs: &mut Inputs) -> Result<Option<Identity>, Failure> {
    let (log, identity) = match LogReader::open(&configuration.store.path) {
        Ok(log) if configuration.corpus.is_empty() => {
            inputs.arrange_for(log.identity())?;
            let identity = log.identity().clone();
            (Some(log), identity)
        }
        Ok(log) => (Some(log), inputs.identity(configuration)),
        Err(StoreError::NoLog { .. }) if configuration.follows() => return Ok(None),
        Err(StoreError::NoLog { .. }) if !configuration.corpus.is_empty() => (None, inputs.identity(configuration)),
        Err(error) => return Err(error.into()),
    };
    StateFolder::compare(&configuration.run.state_dir, &identity)?;
    let lines = log.map_or(Vec::new(), |log| log.identity().differences(&identity));
    if !lines.is_empty() {
        return Err(StoreError::IdentityMismatch { dir: configuration.store.path.clone(), lines }.into());
    }
    if let Some(options) = crate::training::options(configuration, inputs, None, None) {
        trainer::check_resume(&options, &identity).map_err(Failure::from)?;
    }
    Ok(Some(identity))
}
