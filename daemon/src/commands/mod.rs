//! Subcommands other than `run` and `demo`.

mod bench;
mod check;
mod corpus;
mod ctl;
mod evaluate;
mod export;
mod finetune;
mod generate;
mod log;
mod plan;
mod stop_signal;
mod temporary_folder;
mod vocab;
mod worker;

pub use bench::bench;
pub use check::check;
pub use corpus::corpus;
pub use ctl::ctl;
pub use evaluate::evaluate;
pub use export::export;
pub use finetune::finetune;
pub use generate::generate;
pub use log::log;
pub use vocab::vocab;
pub use worker::worker;

use crate::failure::{ExitCode, Failure};
use crate::visible::{visible_json, visible_lines};
use serde::Serialize;
use serde_json::json;
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether a line went to standard output.
static PRINTED: AtomicBool = AtomicBool::new(false);

/// Prints one JSON document on standard output.
pub fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|error| Failure::new(ExitCode::Software, format!("cannot print JSON: {error}")))?;
    write_line(&visible_json(&text))
}

/// Prints a failure as the one JSON document on standard output, unless something was printed there before.
pub fn print_failure(failure: &Failure) {
    if !PRINTED.load(Ordering::Relaxed) {
        let document = json!({ "error": failure.message, "exit_code": failure.code as u8 });
        // Nobody may be reading any more; the exit code says it too.
        let _ = writeln!(std::io::stdout().lock(), "{}", visible_json(&format!("{document:#}")));
    }
}

/// Prints one JSON document on standard output, in a line.
fn print_json_line(value: &serde_json::Value) -> Result<(), Failure> {
    write_line(&visible_json(&value.to_string()))
}

/// Prints a line on standard output. What is in it of others' text commands no terminal.
fn print_line(line: &str) -> Result<(), Failure> {
    write_line(&visible_lines(line))
}

/// A reader that has seen enough (`| head`) is no error.
fn write_line(line: &str) -> Result<(), Failure> {
    PRINTED.store(true, Ordering::Relaxed);
    match writeln!(std::io::stdout().lock(), "{line}") {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        Err(error) => Err(Failure::new(ExitCode::IoError, format!("cannot write to standard output: {error}"))),
    }
}
