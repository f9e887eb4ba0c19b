//! `mergedistill export`.

use super::{print_json, print_line};
use crate::cli::ExportArgs;
use crate::failure::Failure;
use trainer::Exported;

/// Writes the newest checkpoint of a run as a Hugging Face folder.
pub fn export(args: &ExportArgs) -> Result<(), Failure> {
    let exported = trainer::export_languages(&args.state_dir, &args.out, &args.languages)?;
    if args.json {
        return print_json(&exported);
    }
    let Exported { step, tokens, bytes, full_tokens, full_bytes, .. } = exported;
    print_line(&format!("student of step {step} written to {}", args.out.display()))?;
    if args.languages.is_empty() {
        return Ok(());
    }
    let megabytes = |bytes: u64| bytes as f64 / 1e6;
    print_line(&format!(
        "cut to {}: {tokens} of {full_tokens} tokens, {:.1} of {:.1} MB ({:.0} % less)",
        args.languages.join(", "),
        megabytes(bytes),
        megabytes(full_bytes),
        100.0 * (1.0 - bytes as f64 / full_bytes as f64)
    ))
}
