//! `mergedistill bench`: what this machine does, on the path that `run` takes.

mod both;
mod examples;
mod ingest;
mod label;
mod labelling;
mod store;
mod train;
mod training;

use crate::cli::BenchCommand;
use crate::failure::{ExitCode, Failure};
use rayon::{ThreadPool, ThreadPoolBuilder};
use std::time::Instant;

/// Measures labelling, training, both, or the log, and prints the figures.
pub fn bench(command: &BenchCommand) -> Result<(), Failure> {
    match command {
        BenchCommand::Label(args) => label::label(args),
        BenchCommand::Train(args) => train::train(args),
        BenchCommand::Both(args) => both::both(args),
        BenchCommand::Ingest(args) => ingest::ingest(args),
        BenchCommand::Store(args) => store::store(args),
    }
}

/// Does `work` in a pool of `threads` threads.
fn in_pool<T: Send>(threads: usize, work: impl FnOnce() -> Result<T, Failure> + Send) -> Result<T, Failure> {
    pool(threads, "bench")?.install(work)
}

/// A pool of `threads` threads, which are called after `name`.
fn pool(threads: usize, name: &'static str) -> Result<ThreadPool, Failure> {
    let pool = ThreadPoolBuilder::new().num_threads(threads).thread_name(move |number| format!("{name}-{number}"));
    let failed = |error| Failure::new(ExitCode::Software, format!("cannot start {threads} threads: {error}"));
    pool.build().map_err(failed)
}

/// Seconds that `work` takes, and what it gives.
fn timed<T>(work: impl FnOnce() -> Result<T, Failure>) -> Result<(f64, T), Failure> {
    let start = Instant::now();
    let value = work()?;
    Ok((start.elapsed().as_secs_f64(), value))
}

/// The middle one, or the mean of the two in the middle; NaN if there is none.
fn median(seconds: &[f64]) -> f64 {
    let mut sorted = seconds.to_vec();
    sorted.sort_by(f64::total_cmp);
    match (sorted.get(sorted.len() / 2), sorted.get(sorted.len().saturating_sub(1) / 2)) {
        (Some(upper), Some(lower)) => (upper + lower) / 2.0,
        _ => f64::NAN,
    }
}

/// Most memory that this process has had resident so far, in MiB; `None` where the system does not tell.
pub(super) fn peak_rss_mib() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib.div_ceil(1024))
}

/// "1 thread", "2 threads".
fn count(number: usize, thing: &str) -> String {
    format!("{number} {thing}{}", if number == 1 { "" } else { "s" })
}

/// The peak as text.
fn memory(peak_rss_mib: Option<u64>) -> String {
    peak_rss_mib.map_or_else(|| "unknown".to_owned(), |mib| format!("{mib} MiB"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::cli::{Cli, Command};
    use crate::configuration::Configuration;
    use clap::Parser;
    use std::path::Path;

    #[test]
    fn batches_are_as_large_as_those_of_a_run() {
        const MINIMAL: &str = r#"
            [student]
            [train]
            steps = 1
            [[corpus]]
            name = "en"
            language = "en"
            path = "en.txt"
            [[teacher]]
            name = "en"
            path = "en"
            languages = ["en"]
        "#;
        let configuration = Configuration::parse(MINIMAL, Path::new("/")).unwrap();
        let parse = |arguments: &str| match Cli::try_parse_from(arguments.split(' ')).unwrap().command {
            Command::Bench(command) => command,
            other => panic!("{other:?}"),
        };
        let BenchCommand::Label(label) = parse("mergedistill bench label --teacher en --text en.txt") else { panic!() };
        let BenchCommand::Train(train) = parse("mergedistill bench train") else { panic!() };
        let BenchCommand::Both(both) = parse("mergedistill bench both --teacher en --text en.txt") else { panic!() };
        for batch_tokens in [label.work.batch_tokens, both.label.batch_tokens] {
            assert_eq!(batch_tokens, configuration.queue.batch_tokens);
        }
        for micro_batch_tokens in [train.work.micro_batch_tokens, both.train.micro_batch_tokens] {
            assert_eq!(micro_batch_tokens, configuration.train.micro_batch_tokens);
        }
    }

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 3.0, 2.0]), 2.5);
        assert_eq!(median(&[7.0]), 7.0);
        assert!(median(&[]).is_nan());
    }
}
