//! `mergedistill corpus remove`.

use super::{print_json, print_line};
use crate::failure::Failure;
use serde_json::json;
use std::path::Path;

/// Takes a corpus that was added while the daemon ran out of what a stopped run reads.
pub fn remove_corpus(state_dir: &Path, name: &str, as_json: bool) -> Result<(), Failure> {
    crate::live::remove_offline(state_dir, name)?;
    match as_json {
        true => print_json(&json!({ "removed": name })),
        false => print_line(&format!("corpus {name} is read no more from the next start on")),
    }
}
