//! What a log's identity says of how its copies were made.

use crate::failure::{ExitCode, Failure};
use crate::inputs::SEQUENCE_LENGTH_KEY;
use ingest::{MaskUnit, Masking};
use std::str::FromStr;
use store::Identity;

/// How copies are made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Settings {
    pub(super) masking: Masking,
    /// Longest copy, \[CLS\] and \[SEP\] included.
    pub(super) max_sequence_length: usize,
}

impl Settings {
    /// Those of a log that a run has made.
    pub(super) fn of(identity: &Identity) -> Result<Self, Failure> {
        let is_set = |key: &str| identity.settings.get(key).is_some_and(|value| value == "true");
        let unit = match (is_set("masking.align_masks"), is_set("masking.whole_word")) {
            (true, _) => MaskUnit::SharedWord,
            (false, true) => MaskUnit::Word,
            (false, false) => MaskUnit::Token,
        };
        let (seed, probability) = (value(identity, "run.seed")?, value(identity, "masking.probability")?);
        let masking = Masking { seed, probability, unit };
        Ok(Self { masking, max_sequence_length: value(identity, SEQUENCE_LENGTH_KEY)? })
    }

    /// Allows longer copies than the log has.
    pub(super) fn lengthen(&mut self, length: Option<usize>) -> Result<(), Failure> {
        let Some(length) = length else { return Ok(()) };
        let longest = self.max_sequence_length;
        if length < longest {
            let message =
                format!("the log has copies of up to {longest} tokens; give no less with --max-sequence-length");
            return Err(Failure::new(ExitCode::Usage, message));
        }
        self.max_sequence_length = length;
        Ok(())
    }

    /// Longest copy of a teacher with so many positions.
    pub(super) fn limit(&self, teacher: &str, positions: usize) -> usize {
        let longest = self.max_sequence_length;
        if positions < longest {
            tracing::warn!(
                teacher,
                positions,
                longest,
                "the teacher cannot label the longest examples; they get no copy"
            );
        }
        longest.min(positions)
    }
}

fn value<T: FromStr>(identity: &Identity, key: &str) -> Result<T, Failure> {
    let value = identity.settings.get(key).and_then(|value| value.parse().ok());
    value.ok_or_else(|| {
        let message =
            format!("the log does not say what `{key}` was when it was made, so its copies cannot be made alike");
        Failure::new(ExitCode::DataError, message)
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn what_the_log_does_not_say_is_named() {
        let mut identity = Identity::default();
        let mut set = |key: &str, value: &str| {
            identity.settings.insert(key.to_owned(), value.to_owned());
            Settings::of(&identity).map_err(|failure| failure.message)
        };
        assert!(set("run.seed", "7").unwrap_err().contains("masking.probability"));
        assert!(set("masking.probability", "0.25").unwrap_err().contains(SEQUENCE_LENGTH_KEY));
        let mut settings = set(SEQUENCE_LENGTH_KEY, "64").unwrap();
        assert_eq!((settings.masking.seed, settings.masking.probability), (7, 0.25));
        assert_eq!(
            (settings.masking.unit, settings.limit("en", 128), settings.limit("en", 32)),
            (MaskUnit::Token, 64, 32)
        );
        assert!(settings.lengthen(Some(63)).is_err() && settings.lengthen(None).is_ok());
        settings.lengthen(Some(100)).unwrap();
        assert_eq!((settings.limit("en", 128), settings.limit("en", 32)), (100, 32));
        assert_eq!(set("masking.whole_word", "true").unwrap().masking.unit, MaskUnit::Word);
        assert_eq!(set("masking.align_masks", "true").unwrap().masking.unit, MaskUnit::SharedWord);
    }
}
