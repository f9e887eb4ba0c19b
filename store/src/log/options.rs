//! How a log is written.

use crate::SequenceNumber;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::ops::BitOr;
use std::str::FromStr;
use std::time::Duration;

/// Settings of a [`crate::LogWriter`].
#[derive(Clone, Debug)]
pub struct LogOptions {
    /// A segment is sealed before it grows beyond this (one block is never split).
    pub segment_bytes: u64,
    /// Entries become durable at most about this long after they were appended.
    pub sync_interval: Duration,
    /// Entries kept per masked position, k.
    pub top_k: usize,
    /// How labels are stored.
    pub precision: Precision,
    /// Whether records may have text.
    pub keep_text: bool,
    /// Whether labels may have been computed in something else than float32.
    pub computed_in: bool,
    /// A checkpoint or the journal refers to entries below this number: a log that ends earlier is corrupt.
    pub required: SequenceNumber,
}

impl LogOptions {
    /// What records may hold.
    pub(crate) fn extras(&self) -> Extras {
        Extras { text: self.keep_text, computed_in: self.computed_in }
    }
}

/// What not all logs hold: programs before it cannot read segments that may have it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Extras {
    /// Records with text.
    pub(crate) text: bool,
    /// Labels computed in something else than float32.
    pub(crate) computed_in: bool,
}

impl BitOr for Extras {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self { text: self.text | other.text, computed_in: self.computed_in | other.computed_in }
    }
}

impl Default for LogOptions {
    fn default() -> Self {
        Self {
            segment_bytes: 128 << 20,
            sync_interval: Duration::from_millis(200),
            top_k: 8,
            precision: Precision::Exact,
            keep_text: false,
            computed_in: false,
            required: SequenceNumber(0),
        }
    }
}

/// How exactly labels are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Precision {
    /// Every float32, bit for bit.
    #[default]
    Exact,
    /// Log-probabilities and log-sum-exps within 1/32, in about two fifths of the bytes.
    Compact,
}

impl FromStr for Precision {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "exact" => Ok(Self::Exact),
            "compact" => Ok(Self::Compact),
            _ => Err(format!("`{name}` is no precision: exact or compact")),
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact => f.write_str("exact"),
            Self::Compact => f.write_str("compact"),
        }
    }
}
