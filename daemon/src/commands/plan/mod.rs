//! `mergedistill check --plan`: how long, how much disk and memory, and what limits.
//!
//! The pipeline of `run` works for a few seconds in a temporary folder ([`sample`]), with the teachers, the text, the student and the union
//! vocabulary of the configuration, on smaller batches where its own would take too long ([`sizes`]). The rest is arithmetic ([`estimate`]).

mod estimate;
mod figures;
mod measuring;
mod report;
mod sample;
mod sizes;

use super::{print_json, print_line};
use crate::configuration::Configuration;
use crate::failure::Failure;
use crate::inputs::Inputs;
use estimate::Estimate;
use figures::Figures;
use serde::Serialize;
use sizes::Sizes;
use trainer::{TeacherTokens, Vocabulary};

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Plan {
    /// Tokens of the student's vocabulary; `None`: nothing is trained.
    vocabulary_size: Option<usize>,
    measured: Figures,
    derived: Estimate,
    /// What the figures leave out.
    notes: Vec<String>,
}

/// Measures for about `seconds` a kind of work, and prints what a run comes to.
///
/// # Errors
/// When a stage fails, or there is too little text or too little to train to measure anything.
pub(super) fn plan(configuration: &Configuration, inputs: &Inputs, seconds: f64, as_json: bool) -> Result<(), Failure> {
    let student = student(configuration, inputs)?;
    let vocabulary_size = student.as_ref().map(|student| student.vocabulary_size);
    let parameters = student.as_ref().map(|student| model::Layout::of(student).length() as u64);
    let sizes = Sizes::of(configuration, inputs, student.as_ref(), seconds);
    let measured = sample::measure(configuration, sizes, seconds)?;
    let derived = Estimate::of(configuration, &measured, parameters);
    let notes = report::notes(configuration, &measured, &derived);
    let plan = Plan { vocabulary_size, measured, derived, notes };
    if as_json {
        return print_json(&plan);
    }
    report::lines(configuration, &plan).iter().try_for_each(|line| print_line(line))
}

/// The student's shape over the union vocabulary.
fn student(configuration: &Configuration, inputs: &Inputs) -> Result<Option<model::Configuration>, Failure> {
    let Some(options) = crate::training::options(configuration, inputs, None, None) else { return Ok(None) };
    let teachers = inputs.teachers.iter();
    let tokens: Vec<_> =
        teachers.map(|teacher| TeacherTokens::new(&teacher.section.name, &teacher.tokenizer)).collect();
    let size = Vocabulary::union(&tokens)?.size();
    Ok(Some(options.student.configuration(size, 0)))
}
