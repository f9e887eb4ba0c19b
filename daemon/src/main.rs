//! The `mergedistill` binary: configuration, wiring of the stages, supervision, shutdown, the command line, the demo.
//!
//! Start at [`pipeline`]: it names the stages in the order in which a batch meets them.

#![allow(unreachable_pub, reason = "in a binary nothing is reachable from outside; `pub` marks a module's interface")]

mod cli;
mod color;
mod commands;
mod configuration;
mod console;
mod demo;
mod elsewhere;
mod failure;
mod figures;
mod history;
mod inputs;
mod journal;
mod kept_configuration;
mod level;
mod live;
mod log_stage;
mod pipeline;
mod publishing;
mod pumps;
mod push;
mod refusals;
mod retaining;
mod run;
mod state_folder;
mod status;
mod supervisor;
mod tables;
mod terminal;
mod threads;
mod training;
mod visible;
mod waits;
mod warnings;
mod watchdog;

use clap::error::ErrorKind;
use cli::{Cli, Command};
use configuration::Configuration;
use console::Console;
use failure::{ExitCode, Failure};
use std::io::Write as _;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> std::process::ExitCode {
    threads::set_defaults();
    let cli = match Cli::read(std::env::args_os()) {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            let asked_for = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
            return if asked_for { std::process::ExitCode::SUCCESS } else { (ExitCode::Usage as u8).into() };
        }
    };
    match dispatch(&cli) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(failure) => {
            let message = format!("mergedistill: {failure}");
            // Nobody may be reading any more.
            let _ = writeln!(std::io::stderr(), "{}", journal::error_text(&visible::visible_lines(&message)));
            if cli.json {
                commands::print_failure(&failure);
            }
            (failure.code as u8).into()
        }
    }
}

fn dispatch(cli: &Cli) -> Result<(), Failure> {
    cli.color.decide();
    let console =
        Console::start(cli.log.as_deref(), cli.log_json).map_err(|error| Failure::new(ExitCode::Usage, error))?;
    match &cli.command {
        Command::Demo(args) => demo::run(args, &console),
        Command::Run(args) => {
            let configuration = Configuration::load(&args.config)?;
            let advised = |failure| live::with_advice(failure, &configuration.run.state_dir);
            supervisor::run(&configuration, args.until_step, &console).map(|_| ()).map_err(advised)
        }
        Command::Check(args) => commands::check(args),
        Command::Corpus(command) => commands::corpus(command),
        Command::Worker(args) => commands::worker(args),
        Command::Ctl(args) => commands::ctl(args),
        Command::Log(command) => commands::log(command),
        Command::Vocab(command) => commands::vocab(command),
        Command::Export(args) => commands::export(args),
        Command::Evaluate(args) => commands::evaluate(args),
        Command::Finetune(args) => commands::finetune(args),
        Command::Bench(command) => commands::bench(command),
        Command::Generate(args) => commands::generate(args),
    }
}
