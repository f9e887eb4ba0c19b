//! How much is logged, which may change while the daemon runs.

use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::{EnvFilter, Registry, reload};

/// Where nobody says anything.
pub const DEFAULT_LEVEL: &str = "info";

/// A library that says of every message what becomes of it. What matters of that the program says itself.
const QUIET: &str = "async_nats=error,";

/// How much is logged. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Level(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// As it was given.
    text: Mutex<String>,
    handle: reload::Handle<EnvFilter, Registry>,
    /// What the command line or the environment says.
    given: Option<String>,
}

impl Level {
    /// At first what the command line or the environment says, if they say anything: a level, or tracing's filter syntax. With the layer that
    /// filters.
    pub fn start(given: Option<&str>) -> Result<(Self, reload::Layer<EnvFilter, Registry>), String> {
        let text = given.unwrap_or(DEFAULT_LEVEL);
        let (layer, handle) = reload::Layer::new(filter(text)?);
        let shared = Shared { text: Mutex::new(text.to_owned()), handle, given: given.map(str::to_owned) };
        Ok((Self(Arc::new(shared)), layer))
    }

    /// As it is now.
    pub fn get(&self) -> String {
        self.0.text.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What the command line or the environment says: then it is not for the configuration to say.
    pub fn given(&self) -> Option<&str> {
        self.0.given.as_deref()
    }

    /// The configuration says how much is logged, unless the command line or the environment did.
    pub fn configure(&self, text: &str) -> Result<(), String> {
        if self.0.given.is_some() { Ok(()) } else { self.set(text) }
    }

    /// From now on so much is logged. The error says what is wrong with `text`.
    pub fn set(&self, text: &str) -> Result<(), String> {
        let filter = filter(text)?;
        let mut known = self.0.text.lock().unwrap_or_else(PoisonError::into_inner);
        self.0.handle.reload(filter).map_err(|error| format!("the log level cannot be changed: {error}"))?;
        text.clone_into(&mut known);
        Ok(())
    }
}

/// What a level, or tracing's filter syntax, lets pass. A word alone has to be a level: as a target it would silence all else.
pub fn filter(text: &str) -> Result<EnvFilter, String> {
    let is_level = |part: &str| !part.is_empty() && LevelFilter::from_str(part).is_ok();
    let unknown = text.split(',').map(str::trim).find(|part| !part.contains(['=', '[', ']']) && !is_level(part));
    if let Some(part) = unknown {
        let message = "is no level; use error, warn, info, debug, trace or off, and for single parts of the program \
                       e.g. \"info,store=debug\"";
        return Err(format!("\"{part}\" {message}"));
    }
    // What is asked for comes later, and counts.
    let quiet = if text.trim() == "off" { "" } else { QUIET };
    // Patterns could take all memory, and values are as well named in full.
    EnvFilter::builder()
        .with_regex(false)
        .parse(format!("{quiet}{text}"))
        .map_err(|error| format!("\"{text}\": {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_is_a_level_and_exceptions() {
        for good in ["info", "DEBUG", "off", "info,store=debug", "warn,trainer=trace", "info,[window{number=3}]=debug"]
        {
            assert!(filter(good).is_ok(), "{good}");
        }
        assert!(filter("info,[window{name=(}]=debug").is_ok(), "no pattern, but a value like others");
        for (bad, expected) in [
            ("infoo", "\"infoo\" is no level"),
            ("", "\"\" is no level"),
            ("info,store", "\"store\" is no level"),
            ("info,store=loud", "store=loud"),
        ] {
            let message = filter(bad).err().unwrap_or_default();
            assert!(message.contains(expected), "{bad}: {message}");
        }
    }
}
