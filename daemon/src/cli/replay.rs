//! The command line of `ctl replay`.

use clap::Args;
use std::path::PathBuf;

/// Arguments of `ctl replay`.
#[derive(Debug, Args)]
pub struct ReplayArgs {
    /// The step, counted from 1, as in metrics.jsonl.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub step: u64,
    /// The step of this release, not of the run; its number counts the run's steps before it.
    #[arg(long, value_name = "NAME")]
    pub release: Option<String>,
    /// The attempt in which it was made: going back to a checkpoint begins another one [default: the last].
    #[arg(long, value_name = "K", value_parser = clap::value_parser!(u64).range(1..))]
    pub attempt: Option<u64>,
    /// State folder [default: the folder of the socket; of the service /var/lib/mergedistill].
    #[arg(long, value_name = "DIR", conflicts_with = "config")]
    pub state_dir: Option<PathBuf>,
    /// Configuration file [default: configuration.toml in the state folder].
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// How many examples and masked positions to show, those that contribute most.
    #[arg(long, value_name = "M", default_value_t = 10)]
    pub top: usize,
    /// All examples and masked positions.
    #[arg(long, conflicts_with = "top")]
    pub all: bool,
    /// The text of the examples, what was masked in double brackets.
    #[arg(long)]
    pub text: bool,
    /// Only say from which checkpoint it would be replayed, how many steps that takes, and which steps can be replayed.
    #[arg(long)]
    pub from_checkpoint: bool,
}
