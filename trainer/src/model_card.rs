//! The model card of an exported student: `README.md` in its folder, as the Hugging Face hub shows it.

use crate::evaluate::EvaluationReport;
use crate::tokenizer_export::{KnownTeacher, known_teachers};
use crate::{TrainerError, durable};
use model::{Architecture, Configuration};
use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::Path;

/// What a card says besides what is in the folder.
pub(crate) struct Made<'a> {
    /// The program.
    pub(crate) by: &'a str,
    /// Optimiser steps.
    pub(crate) step: u64,
    /// The last evaluation until then.
    pub(crate) evaluation: Option<&'a EvaluationReport>,
}

/// Writes the card of the student in `folder`, beside its tokenizers. An export of a run by an earlier version, which does not know whose tokenizers those
/// are, has none.
pub(crate) fn write_model_card(
    folder: &Path,
    configuration: &Configuration,
    made: &Made<'_>,
) -> Result<(), TrainerError> {
    match known_teachers(folder) {
        Ok(teachers) => durable::replace(&folder.join("README.md"), card(configuration, &teachers, made).as_bytes()),
        Err(TrainerError::Configuration(_)) => Ok(()),
        Err(error) => Err(error),
    }
}

fn card(configuration: &Configuration, teachers: &[KnownTeacher], made: &Made<'_>) -> String {
    let languages: BTreeSet<&str> =
        teachers.iter().flat_map(|teacher| &teacher.languages).map(String::as_str).collect();
    let mut text = String::from("---\nlanguage:\n");
    let mut line = |line: &str| text.extend([line, "\n"]);
    for language in &languages {
        line(&format!("- {}", quoted(language)));
    }
    line("library_name: transformers\npipeline_tag: fill-mask\ntags:\n- distillation\n- mergedistill\n---\n");
    line("# A student of several teachers\n");
    let Configuration { layers, hidden_size, embedding_size, heads, vocabulary_size, .. } = configuration;
    let architecture = match configuration.architecture {
        Architecture::Bert => "BERT",
        Architecture::ElectraGenerator => "ELECTRA generator",
    };
    line(&format!(
        "A masked language model for {}, distilled from {} (Khanuja et al., \"MergeDistill: Merging Pre-trained Language Models using Distillation\", 2021) by {}: step {}.\n",
        listed(languages.iter().copied()),
        match teachers.len() {
            1 => "one teacher".to_owned(),
            count => format!("{count} teachers"),
        },
        made.by,
        made.step
    ));
    line(&format!(
        "{architecture}: {layers} layers of {hidden_size} columns with {heads} heads, embeddings of {embedding_size}, {vocabulary_size} tokens: the union of the teachers' vocabularies.\n"
    ));
    line("| teacher | languages | its tokenizer, in the student's ids |\n| --- | --- | --- |");
    for KnownTeacher { name, languages, tokenizer } in teachers {
        let languages = listed(languages.iter().map(String::as_str));
        line(&format!("| {} | {} | `{}` |", cell(name), cell(&languages), tokenizer.display()));
    }
    line("\n## Use\n");
    let tokenizer = teachers.first().map_or(String::new(), |teacher| teacher.tokenizer.display().to_string());
    line(&format!(
        "```python\nfrom transformers import AutoModelForMaskedLM, AutoTokenizer, pipeline\n\nstudent = \"...\"  # this folder\ntokenizer = AutoTokenizer.from_pretrained(student, subfolder=\"{tokenizer}\")\nfill = pipeline(\"fill-mask\", model=AutoModelForMaskedLM.from_pretrained(student), tokenizer=tokenizer)\n```\n"
    ));
    line(
        "A text is cut best by the tokenizer of a teacher of its language: the student has learned from its tokens. The tokenizer of the folder itself knows the tokens of all, but cuts texts as none of them.",
    );
    if let Some(report) = made.evaluation {
        line(&format!(
            "\n## Beside its teachers\n\nMasked words of text that it was not trained on, after step {}: the share that is predicted, and the mean loss in nats, each over its model's own vocabulary. RDT is the relative difference in percent; above 0 the student is ahead.\n",
            report.step
        ));
        line(
            "| language | teacher | teacher's top-1 | student's top-1 | RDT | teacher's loss | student's loss |\n| --- | --- | --- | --- | --- | --- | --- |",
        );
        for (language, of_language) in &report.languages {
            for (teacher, scores) in &of_language.teachers {
                let percent = |share: f64| format!("{:.1} %", 100.0 * share);
                let rdt = scores.rdt.map_or_else(|| "–".to_owned(), |rdt| format!("{rdt:+.1}"));
                line(&format!(
                    "| {} | {} | {} | {} | {rdt} | {:.3} | {:.3} |",
                    cell(language),
                    cell(teacher),
                    percent(scores.top1),
                    percent(scores.student_top1),
                    scores.loss,
                    scores.student_loss
                ));
            }
        }
    }
    line(
        "\n## Licence\n\nIt follows from those of the teachers and of the text, which are not known here: say it in the first lines of this file (`license:`).",
    );
    text
}

/// Names, separated by commas.
fn listed<'a>(names: impl Iterator<Item = &'a str>) -> String {
    names.collect::<Vec<_>>().join(", ")
}

/// A string of YAML: `no` is Norwegian.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if c.is_control() => drop(write!(quoted, "\\u{:04x}", u32::from(c))),
            c => quoted.push(c),
        }
    }
    quoted + "\""
}

/// What somebody else wrote, in a table.
fn cell(text: &str) -> String {
    text.replace(['|', '\n', '\r', '`', '<', '>'], " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_wrote_breaks_neither_front_matter_nor_tables() {
        assert_eq!(quoted("no"), "\"no\"");
        assert_eq!(quoted("a\"\\\n"), "\"a\\\"\\\\\\u000a\"");
        assert_eq!(cell("a|b\n`c`"), "a b  c ");
    }
}
