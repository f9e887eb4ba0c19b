//! `mergedistill vocab learn`: a tokenizer from text.

use super::{print_json, print_line};
use crate::cli::LearnArgs;
use crate::configuration::{Configuration, CorpusOrigin};
use crate::failure::{ExitCode, Failure};
use crate::inputs::open_corpus;
use ingest::{Format, FormatOptions, Language, Texts};
use model::{Coverage, LearnedVocabulary, LearningError, LearningOptions, Tokenizer, WordCounts};
use serde_json::json;
use std::path::{Path, PathBuf};

/// Unusable documents that are named one by one; the others are counted.
const SHOWN_REJECTIONS: u64 = 5;

/// Files that are read alike.
struct Files {
    paths: Vec<PathBuf>,
    format: FormatOptions,
    /// Documents of other languages are passed over; empty: none is.
    languages: Vec<String>,
}

#[derive(Default)]
struct Read {
    documents: u64,
    rejected: u64,
}

/// Counts the words of the text, learns a vocabulary, and writes it as a tokenizer's folder.
pub(super) fn learn(args: &LearnArgs) -> Result<(), Failure> {
    trainer::check_tokenizer_folder(&args.out)?;
    let sources = match &args.config {
        Some(config) => of_configuration(config, &args.language)?,
        None => vec![given(args)?],
    };
    let mut counts = WordCounts::new(args.uncased);
    let mut read = Read::default();
    for source in &sources {
        source.count(&mut counts, &mut read)?;
    }
    if counts.forgotten() > 0 {
        eprintln!(
            "warning: there are too many different words to count all; words that came {} times or less may have been left out",
            counts.forgotten()
        );
    }
    let options =
        LearningOptions { size: args.size, min_frequency: args.min_frequency, limit_alphabet: args.limit_alphabet };
    let learned = counts.learn(&options).map_err(failed)?;
    trainer::export_learned(&args.out, &learned)?;
    let from_model = |error: model::ModelError| Failure::new(ExitCode::of_model(&error), error);
    let tokenizer = Tokenizer::load(&args.out).map_err(from_model)?;
    let coverage = counts.coverage(&tokenizer).map_err(from_model)?;
    report(args, &learned, &coverage, &read, counts.len())
}

/// The files of the command line.
fn given(args: &LearnArgs) -> Result<Files, Failure> {
    let mut paths = Vec::new();
    for pattern in &args.files {
        paths.extend(ingest::expand(pattern)?);
    }
    let format = FormatOptions { text_field: args.text_field.clone(), ..Format::from(args.format).into() };
    format.validate("vocab learn")?;
    Ok(Files { paths, format, languages: Vec::new() })
}

/// What is there now of the corpora of `languages`; of all corpora if that is empty.
fn of_configuration(config: &Path, languages: &[String]) -> Result<Vec<Files>, Failure> {
    let configuration = Configuration::load(config)?;
    let mut sources = Vec::new();
    for corpus in &configuration.corpus {
        let wanted = corpus.language.as_ref().is_none_or(|language| languages.contains(language));
        if !wanted && !languages.is_empty() {
            continue;
        }
        if matches!(corpus.origin(), CorpusOrigin::Http | CorpusOrigin::Stdin | CorpusOrigin::Pipe(_)) {
            eprintln!("warning: corpus `{}` is pushed; there is no file of it to learn from", corpus.name);
            continue;
        }
        let mut problems = Vec::new();
        let opened = open_corpus(corpus, &mut problems);
        if let Some(problem) = problems.into_iter().next() {
            return Err(problem);
        }
        let paths = opened.feed.files_present()?;
        if paths.is_empty() {
            eprintln!("warning: corpus `{}` has no file yet to learn from", corpus.name);
        }
        let languages = if opened.language == Language::Field { languages.to_vec() } else { Vec::new() };
        sources.push(Files { paths, format: opened.format, languages });
    }
    if sources.is_empty() {
        let message = match languages {
            [] => format!("{} has no [[corpus]] to learn from", config.display()),
            _ => format!("{} has no [[corpus]] of language {}", config.display(), languages.join(", ")),
        };
        return Err(Failure::new(ExitCode::Configuration, message));
    }
    Ok(sources)
}

impl Files {
    fn count(&self, counts: &mut WordCounts, read: &mut Read) -> Result<(), Failure> {
        for path in &self.paths {
            let mut texts = Texts::open(path, &self.format)?;
            while let Some(document) = texts.next_text()? {
                let elsewhere = |language: &String| !self.languages.contains(language);
                if !self.languages.is_empty() && document.language.as_ref().is_some_and(elsewhere) {
                    continue;
                }
                match document.text {
                    Ok(text) => {
                        read.documents += 1;
                        counts.add(&text).map_err(failed)?;
                    }
                    Err(reason) => {
                        read.rejected += 1;
                        if read.rejected <= SHOWN_REJECTIONS {
                            eprintln!("warning: {}: a document is left out: {reason}", path.display());
                        }
                    }
                }
            }
        }
        Ok(())
    }
}

fn failed(error: LearningError) -> Failure {
    let code = match error {
        LearningError::NoWords => ExitCode::NoInput,
        LearningError::TooSmall { .. } => ExitCode::Usage,
        LearningError::Trainer(_) => ExitCode::Software,
    };
    Failure::new(code, error)
}

fn report(
    args: &LearnArgs,
    learned: &LearnedVocabulary,
    coverage: &Coverage,
    read: &Read,
    different_words: usize,
) -> Result<(), Failure> {
    let size = learned.tokens.len();
    if size < args.size {
        eprintln!(
            "warning: the text gives only {size} tokens that occur {} times or more; {} were asked for",
            args.min_frequency, args.size
        );
    }
    if args.json {
        return print_json(&json!({
            "path": args.out,
            "size": size,
            "characters": learned.characters,
            "documents": read.documents,
            "rejected": read.rejected,
            "words": coverage.words,
            "different_words": different_words,
            "tokens_per_word": coverage.tokens_per_word,
            "unknown_share": coverage.unknown,
        }));
    }
    let left_out = match read.rejected {
        0 => String::new(),
        rejected => format!(", {rejected} left out"),
    };
    print_line(&format!(
        "{size} tokens ({} characters) from {} words ({different_words} different) of {} documents{left_out}",
        learned.characters, coverage.words, read.documents
    ))?;
    print_line(&format!(
        "{:.3} tokens per word, {:.3} % of the words unknown; written to {}",
        coverage.tokens_per_word,
        100.0 * coverage.unknown,
        args.out.display()
    ))
}
