//! `mergedistill vocab`.

mod learn;

use super::{print_json, print_line};
use crate::cli::VocabCommand;
use crate::failure::{ExitCode, Failure};
use model::Tokenizer;
use serde_json::json;
use std::path::{Path, PathBuf};
use trainer::{TeacherTokens, Vocabulary};

/// Makes a vocabulary: of teachers' vocabularies, or of text.
pub fn vocab(command: &VocabCommand) -> Result<(), Failure> {
    match command {
        VocabCommand::Union { out, teachers, json } => union(out, teachers, *json),
        VocabCommand::Learn(args) => learn::learn(args),
    }
}

/// Nothing that is there is overwritten: it may be a teacher's folder, and maps of an earlier union would stay.
fn refuse_full(out: &Path) -> Result<(), Failure> {
    match std::fs::read_dir(out).map(|mut entries| entries.next().is_some()) {
        Ok(true) => {
            let message = format!("something is in {}: give another --out, or remove it", out.display());
            Err(Failure::new(ExitCode::CannotCreate, message))
        }
        _ => Ok(()),
    }
}

/// Writes the union of the teachers' vocabularies, and the maps into it.
fn union(out: &Path, teachers: &[PathBuf], as_json: bool) -> Result<(), Failure> {
    refuse_full(out)?;
    let failed = |error: model::ModelError| Failure::new(ExitCode::of_model(&error), error);
    let tokenizers: Vec<Tokenizer> =
        teachers.iter().map(|path| Tokenizer::load(path)).collect::<Result<_, _>>().map_err(failed)?;
    let names: Vec<String> = teachers.iter().map(|path| path.display().to_string()).collect();
    let sources: Vec<TeacherTokens<'_>> =
        names.iter().zip(&tokenizers).map(|(name, tokenizer)| TeacherTokens::new(name, tokenizer)).collect();
    let vocabulary = Vocabulary::union(&sources)?;
    vocabulary.save(out)?;
    for warning in vocabulary.warnings() {
        eprintln!("warning: {warning}");
    }
    let rows = vocabulary.maps();
    if as_json {
        let teachers: Vec<_> =
            rows.iter().map(|row| json!({"path": row.teacher, "size": row.size(), "new": row.new})).collect();
        return print_json(&json!({"size": vocabulary.size(), "teachers": teachers}));
    }
    for row in rows {
        print_line(&format!("{:>9} tokens, {:>9} new   {}", row.size(), row.new, row.teacher))?;
    }
    print_line(&format!("{:>9} tokens in the union, written to {}", vocabulary.size(), out.display()))
}
