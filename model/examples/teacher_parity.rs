//! Compares a teacher of any size with transformers: see `tests/parity/teacher_parity.py`, which writes the expectation.
//!
//!     cargo run -p model --example teacher_parity -- TEACHER_DIR EXPECTED.safetensors

#[path = "../tests/parity/mod.rs"]
#[allow(missing_docs)]
mod parity;

use parity::{Expected, compare};
use std::error::Error;
use std::path::Path;
use std::process::ExitCode;

const TOLERANCE: f32 = 1e-3;

/// Logits closer than this may change places.
const TIE: f32 = 1e-4;

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [teacher, expected] = arguments.as_slice() else {
        eprintln!("usage: teacher_parity TEACHER_DIR EXPECTED.safetensors");
        return Ok(ExitCode::from(64));
    };
    let expected = Expected::read(Path::new(expected))?;
    let differences = compare(Path::new(teacher), &expected, TIE)?;
    println!("{teacher}: {differences:?}");
    Ok(if differences.within(TOLERANCE) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
