//! `mergedistill demo`: the same daemon as `run`, on teachers and texts that are embedded in the binary.

use crate::cli::DemoArgs;
use crate::configuration::Configuration;
use crate::console::Console;
use crate::failure::{ExitCode, Failure};
use crate::supervisor::Summary;
use std::fs;
use std::path::Path;
use trainer::{EvaluationReport, Outcome};

/// Optimiser steps unless told otherwise.
pub const STEPS: u64 = 300;

const CONFIGURATION: &str = include_str!("../demo/demo.toml");

macro_rules! embedded {
    ($($path:literal),* $(,)?) => { &[$(($path, include_bytes!(concat!("../demo/", $path)))),*] };
}

const FILES: &[(&str, &[u8])] = embedded![
    "corpora/en.txt",
    "corpora/de.txt",
    "corpora/es.txt",
    "teachers/demo-en/config.json",
    "teachers/demo-en/model.safetensors",
    "teachers/demo-en/tokenizer.json",
    "teachers/demo-en/tokenizer_config.json",
    "teachers/demo-es/config.json",
    "teachers/demo-es/model.safetensors",
    "teachers/demo-es/tokenizer.json",
    "teachers/demo-es/tokenizer_config.json",
    "teachers/demo-en-de/config.json",
    "teachers/demo-en-de/model.safetensors",
    "teachers/demo-en-de/tokenizer.json",
    "teachers/demo-en-de/tokenizer_config.json",
];

/// Unpacks the demo into its folder, runs it, and shows what came of it.
pub fn run(args: &DemoArgs, console: &Console) -> Result<(), Failure> {
    let folder = &args.state_dir;
    let configuration = CONFIGURATION
        .replace("steps = 300", &format!("steps = {}", args.steps))
        .replace("seed = 0", &format!("seed = {}", args.seed));
    prepare(folder, &configuration)?;
    let config_path = folder.join("demo.toml");
    eprintln!(
        "Distilling three tiny teachers (English; Spanish; English + German) into one student: {} steps, about two minutes.",
        args.steps
    );
    let summary = crate::supervisor::run(&Configuration::load(&config_path)?, None, console)?;
    if summary.outcome != Some(Outcome::Finished) {
        eprintln!("Stopped before the last step; the same command goes on from here.");
        return Ok(());
    }
    let student = folder.join("student");
    if student.exists() {
        fs::remove_dir_all(&student).map_err(|error| Failure::io("replace", &student, &error))?;
    }
    trainer::export_newest(&folder.join("state"), &student)?;
    report(&summary, folder, &student);
    Ok(())
}

/// Writes the embedded files. An interrupted demo of the same configuration goes on; anything else begins anew.
fn prepare(folder: &Path, configuration: &str) -> Result<(), Failure> {
    let config_path = folder.join("demo.toml");
    let finished = folder.join("student").exists();
    match fs::read_to_string(&config_path) {
        Ok(earlier) if earlier == configuration && !finished => {}
        Ok(_) => {
            let state = folder.join("state");
            if state.exists() {
                // Holding the lock for a moment tells whether another demo is running here.
                drop(crate::state_folder::StateFolder::open(&state)?);
                fs::remove_dir_all(&state).map_err(|error| Failure::io("clear", &state, &error))?;
            }
        }
        Err(_) if folder.exists() && fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some()) => {
            let message = format!("{} is not empty and no demo's folder; choose another --state-dir", folder.display());
            return Err(Failure::new(ExitCode::CannotCreate, message));
        }
        Err(_) => {}
    }
    for (name, content) in FILES.iter().copied().chain([("demo.toml", configuration.as_bytes())]) {
        let path = folder.join(name);
        let parent = path.parent().unwrap_or(folder);
        fs::create_dir_all(parent).map_err(|error| Failure::io("create", parent, &error))?;
        fs::write(&path, content).map_err(|error| Failure::io("write", &path, &error))?;
    }
    Ok(())
}

fn report(summary: &Summary, folder: &Path, student: &Path) {
    println!("\nHeld-out text: how well each teacher, and the student, fill in masked words.\n");
    let first = summary.evaluations.first();
    for report in first.into_iter().chain(summary.evaluations.last()) {
        print_report(report);
    }
    println!(
        "(loss in nats, each over its model's own vocabulary; RDT: relative deviation from the teacher's top-1)\n"
    );
    println!("{:.0} s. The student, a Hugging Face folder: {}", summary.elapsed.as_secs_f64(), student.display());
    println!("\nWhat to try next:");
    let dir = folder.display();
    println!("  mergedistill log stat {dir}/state/log              what the teachers wrote down");
    println!("  mergedistill log dump {dir}/state/log --json --count 1");
    println!("  mergedistill demo --steps 1000                     a better student");
    println!("  $EDITOR {dir}/demo.toml                            then: mergedistill run --config {dir}/demo.toml");
    println!("  transformers: AutoModelForMaskedLM.from_pretrained(\"{}\")", student.display());
}

fn print_report(report: &EvaluationReport) {
    for line in crate::tables::evaluation_lines(report) {
        println!("{line}");
    }
    println!();
}
