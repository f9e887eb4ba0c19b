//! `mergedistill export`.

use super::print_line;
use crate::cli::ExportArgs;
use crate::failure::Failure;

/// Writes the newest checkpoint of a run as a Hugging Face folder.
pub fn export(args: &ExportArgs) -> Result<(), Failure> {
    let step = trainer::export_newest(&args.state_dir, &args.out)?;
    print_line(&format!("student of step {step} written to {}", args.out.display()))
}
