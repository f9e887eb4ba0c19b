//! `mergedistill export`.

use super::{print_json, print_line};
use crate::cli::ExportArgs;
use crate::failure::Failure;
use serde_json::json;

/// Writes the newest checkpoint of a run as a Hugging Face folder.
pub fn export(args: &ExportArgs) -> Result<(), Failure> {
    let step = trainer::export_newest(&args.state_dir, &args.out)?;
    if args.json {
        return print_json(&json!({ "step": step, "path": args.out }));
    }
    print_line(&format!("student of step {step} written to {}", args.out.display()))
}
