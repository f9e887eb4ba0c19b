//! The revision that the program is built from, for `mergedistill_build_info`.

use std::path::Path;
use std::process::Command;

/// Whoever builds without a repository says the revision here.
const VARIABLE: &str = "MERGEDISTILL_REVISION";

fn main() {
    println!("cargo:rerun-if-env-changed={VARIABLE}");
    println!("cargo:rerun-if-changed=build.rs");
    // Changes with each commit; a path that is not there would have this run each time.
    let commits = Path::new("../.git/logs/HEAD");
    if commits.exists() {
        println!("cargo:rerun-if-changed={}", commits.display());
    }
    let said = std::env::var(VARIABLE).ok().filter(|revision| !revision.is_empty());
    let revision = said.or_else(of_repository).unwrap_or_else(|| "unknown".to_owned());
    println!("cargo:rustc-env={VARIABLE}={revision}");
}

fn of_repository() -> Option<String> {
    let output = Command::new("git").args(["rev-parse", "--short=12", "HEAD"]).output().ok()?;
    let revision = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (output.status.success() && !revision.is_empty()).then_some(revision)
}
