//! Compiles the kernels for GPUs, without one, and says what came of it: `tests/gpu/check`.

use model::device::{ARCHITECTURES, Precision, compile};
use std::process::ExitCode;
use std::time::Instant;

fn main() -> ExitCode {
    let mut sound = true;
    for architecture in ARCHITECTURES {
        for precision in Precision::ALL {
            let start = Instant::now();
            let what = match compile(precision, architecture) {
                Ok(code) => format!("{} bytes in {:.1} s", code.len(), start.elapsed().as_secs_f64()),
                Err(reason) => {
                    sound = false;
                    reason
                }
            };
            println!("{architecture} {}: {what}", precision.name());
        }
    }
    if sound { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
