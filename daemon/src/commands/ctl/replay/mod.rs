//! `mergedistill ctl replay`: one training step made again, to see what each example contributed to it.
//!
//! It works on the state folder and the log alone, which it only reads: the daemon, if it runs, is not asked.

mod findings;
mod report;

use super::quarantine::state_folder;
use crate::cli::ReplayArgs;
use crate::commands::{print_json, print_line};
use crate::configuration::Configuration;
use crate::failure::{ExitCode, Failure};
use crate::inputs::Inputs;
use crate::kept_configuration;
use crate::threads::Pools;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use std::path::Path;
use store::LogReader;
use trainer::replay::{Plan, StepAccount};
use trainer::{Replay, ReplayOptions, TrainerOptions};

/// The document that `--json` prints.
#[derive(Serialize)]
struct Document<'a> {
    #[serde(flatten)]
    account: &'a StepAccount,
    /// What stands out, in sentences.
    findings: Vec<String>,
}

/// Replays the step, and prints what came of it.
pub fn replay(args: &ReplayArgs, socket: &Path, as_json: bool) -> Result<(), Failure> {
    let configuration = configuration(args, socket)?;
    let options = options(&configuration)?;
    let wanted = ReplayOptions {
        step: args.step,
        release: args.release.clone(),
        attempt: args.attempt,
        labels: configuration.teacher.iter().map(|teacher| (teacher.name.clone(), teacher.labels)).collect(),
    };
    let log = LogReader::open(&configuration.store.path)?;
    let replay = Replay::open(&options, &log, &wanted)?;
    if args.from_checkpoint {
        return if as_json { print_json(replay.plan()) } else { print_line(&what_is_done(replay.plan())) };
    }
    eprintln!("replaying {}", what_is_done(replay.plan()));
    let bar = progress_bar(replay.plan().steps);
    let account = replay.run(&mut |done| bar.set_position(done));
    bar.finish_and_clear();
    let mut account = account?;
    let findings = findings::findings(&account);
    shorten(&mut account, args);
    if as_json {
        return print_json(&Document { account: &account, findings });
    }
    report::lines(&account, &findings).iter().try_for_each(|line| print_line(line))
}

/// The configuration that was named, or that of the state folder.
fn configuration(args: &ReplayArgs, socket: &Path) -> Result<Configuration, Failure> {
    match &args.config {
        Some(file) => Configuration::load(file),
        None => kept_configuration::load(&state_folder(args.state_dir.as_deref(), socket)?),
    }
}

/// Those of the run's trainer; teachers and inputs it is not asked for.
fn options(configuration: &Configuration) -> Result<TrainerOptions, Failure> {
    let pools = Pools::open(configuration.threads)?;
    let inputs = Inputs { teachers: Vec::new(), corpora: Vec::new(), max_sequence_length: 0 };
    crate::training::options(configuration, &inputs, None, pools.train)
        .ok_or_else(|| Failure::new(ExitCode::Configuration, "there is no [student]: the run does not train"))
}

/// Which step is replayed from where, in words.
fn what_is_done(plan: &Plan) -> String {
    let of = plan.release.as_ref().map_or_else(String::new, |name| format!(" of release {name}"));
    let from = plan.checkpoint.map_or_else(|| "the first weights".to_owned(), |step| format!("checkpoint step-{step}"));
    let steps = if plan.steps == 1 { "1 step".to_owned() } else { format!("{} steps", plan.steps) };
    let took = plan.seconds.map_or_else(String::new, |seconds| format!(", which took {seconds:.2} s when made"));
    let attempt = match plan.attempts {
        1 => String::new(),
        attempts => format!("; attempt {} of {attempts}", plan.attempt),
    };
    let can = match plan.replayable {
        Some((first, u64::MAX)) => format!("; steps from {first} on can be replayed"),
        Some((first, last)) => format!("; steps {first} to {last} can be replayed"),
        None => String::new(),
    };
    format!("step {}{of} from {from}: {steps}{took}{attempt}{can}", plan.step)
}

/// On standard error, if that is a terminal.
fn progress_bar(steps: u64) -> ProgressBar {
    let bar = ProgressBar::new(steps);
    if let Ok(style) = ProgressStyle::with_template("{wide_bar} {pos}/{len} steps, {eta} left") {
        bar.set_style(style);
    }
    bar
}

/// Leaves what was asked for.
fn shorten(account: &mut StepAccount, args: &ReplayArgs) {
    if !args.all {
        account.examples.truncate(args.top);
        account.positions.truncate(args.top);
    }
    if !args.text {
        account.examples.iter_mut().for_each(|example| example.text = None);
    }
}
