//! `mergedistill demo`: the same daemon as `run`, on teachers and texts that are embedded in the binary.

use crate::cli::DemoArgs;
use crate::commands::print_json;
use crate::configuration::Configuration;
use crate::console::Console;
use crate::failure::{ExitCode, Failure};
use crate::supervisor::Summary;
use serde_json::json;
use std::fs;
use std::path::Path;
use trainer::{EvaluationReport, Outcome};

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
        .replace("steps = 500", &format!("steps = {}", args.steps))
        .replace("seed = 0", &format!("seed = {}", args.seed));
    prepare(folder, &configuration)?;
    let config_path = folder.join("demo.toml");
    let about = "Distilling three tiny teachers (English; Spanish; English + German) into one student";
    console.say(&format!("{about}: {} steps, about a minute.", args.steps));
    let summary = crate::supervisor::run(&Configuration::load(&config_path)?, None, console)?;
    if summary.outcome != Some(Outcome::Finished) {
        console.say("Stopped before the last step; the same command goes on from here.");
        return Ok(());
    }
    let student = folder.join("student");
    if student.exists() {
        fs::remove_dir_all(&student).map_err(|error| Failure::io("replace", &student, &error))?;
    }
    trainer::export_newest(&folder.join("state"), &student)?;
    if args.json {
        let (first, last) = (&summary.first_evaluation, &summary.last_evaluation);
        let seconds = summary.elapsed.as_secs_f64();
        return print_json(
            &json!({"first_evaluation": first, "evaluation": last, "seconds": seconds, "student": student}),
        );
    }
    report(&summary, folder, &student);
    Ok(())
}

/// Writes the embedded files. An interrupted demo of the same configuration goes on; another one begins anew.
fn prepare(folder: &Path, configuration: &str) -> Result<(), Failure> {
    let refuse = |message: &str| {
        Err(Failure::new(ExitCode::CannotCreate, format!("{} {message}; choose another --state-dir", folder.display())))
    };
    match fs::read_to_string(folder.join("demo.toml")) {
        Ok(earlier) if earlier == configuration && !folder.join("student").exists() => {}
        Ok(earlier) if template(&earlier) != template(configuration) => {
            return refuse("holds a demo.toml that was edited or is of another version");
        }
        Ok(_) => {
            let state = folder.join("state");
            if state.exists() {
                // Holding the lock for a moment tells whether another demo is running here.
                drop(crate::state_folder::StateFolder::open(&state)?);
                fs::remove_dir_all(&state).map_err(|error| Failure::io("clear", &state, &error))?;
            }
        }
        Err(_) if fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some()) => {
            return refuse("is not empty and no demo's folder");
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

/// A configuration without what the command line sets.
fn template(configuration: &str) -> Vec<&str> {
    let set_by_command_line = |line: &&str| line.starts_with("steps = ") || line.starts_with("seed = ");
    configuration.lines().filter(|line| !set_by_command_line(line)).collect()
}

fn report(summary: &Summary, folder: &Path, student: &Path) {
    println!("\nHeld-out text: how well each teacher, and the student, fill in masked words.\n");
    for report in summary.first_evaluation.iter().chain(&summary.last_evaluation) {
        print_report(report);
    }
    println!(
        "(loss in nats, each over its model's own vocabulary; RDT: relative deviation from the teacher's top-1)\n"
    );
    println!("{:.0} s. The student, a Hugging Face folder: {}", summary.elapsed.as_secs_f64(), student.display());
    let dir = folder.display();
    // The program as it was called: it need not be on the path.
    let program = std::env::args().next().unwrap_or_else(|| "mergedistill".to_owned());
    println!("\nWhat to try next:");
    println!("  {program} log stat {dir}/state/log");
    println!("      what the teachers wrote down; `log dump {dir}/state/log --json --count 1` shows a record");
    println!("  {program} demo --steps 1000");
    println!("      a better student");
    println!("  cp {dir}/demo.toml {dir}/mine.toml");
    println!("      edit it, give it another state_dir, then: {program} run --config {dir}/mine.toml");
    println!("  in Python, with transformers: AutoModelForMaskedLM.from_pretrained(\"{}\")", student.display());
}

fn print_report(report: &EvaluationReport) {
    for line in crate::tables::evaluation_lines(report) {
        println!("{line}");
    }
    println!();
}
