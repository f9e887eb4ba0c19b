//! Fine-tuning: against transformers, seqeval and the SQuAD script on the golden cases of `tests/golden/generate_downstream.py`, and from a
//! file to scores.
#![allow(clippy::unwrap_used)]

mod heads;
mod runs;
mod scores;

use std::path::PathBuf;

/// A folder or file of the golden cases.
fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/downstream").join(name)
}
