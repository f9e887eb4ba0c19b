//! `mergedistill log verify`.

use super::{Bar, Pass};
use crate::cli::LogArgs;
use crate::commands::{print_json, print_line};
use crate::failure::{ExitCode, Failure};
use std::sync::Arc;
use store::log::disk::StdDisk;

/// Reads and checks everything.
pub fn verify(args: &LogArgs, threads: Option<usize>) -> Result<(), Failure> {
    let bar = Bar::new("verify");
    let watch = |progress| bar.show(progress);
    let pass = Pass { threads, watch: &watch, ..Pass::default() };
    let verified = store::log::verify_with(Arc::new(StdDisk), &args.dir, &pass);
    drop(bar);
    let verification = verified?;
    if args.json {
        print_json(&verification)?
    } else {
        print_line(&verification.to_string())?
    }
    match verification.said_durable {
        None => Ok(()),
        Some(said) => {
            let (log, end) = (args.dir.display(), verification.durable);
            let message = format!("the log in {log} ends at {end}, but was durable up to {said}");
            Err(Failure::new(ExitCode::DataError, message))
        }
    }
}
