//! Compiles the kernels for GPUs, without one, and says what came of it: `tests/gpu/check`.

use model::device::{ARCHITECTURES, Precision, compile};
use rayon::prelude::*;
use std::process::ExitCode;
use std::time::Instant;

fn main() -> ExitCode {
    let all: Vec<_> = ARCHITECTURES
        .iter()
        .flat_map(|architecture| Precision::ALL.map(|precision| (*architecture, precision)))
        .collect();
    let compiled: Vec<_> = all
        .into_par_iter()
        .map(|(architecture, precision)| {
            let start = Instant::now();
            let what = compile(precision, architecture)
                .map(|code| format!("{} bytes in {:.1} s", code.len(), start.elapsed().as_secs_f64()));
            (format!("{architecture} {}", precision.name()), what)
        })
        .collect();
    for (what, outcome) in &compiled {
        println!("{what}: {}", outcome.as_deref().unwrap_or_else(|reason| reason));
    }
    if compiled.iter().all(|(_, outcome)| outcome.is_ok()) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
