//! Questions about a text that the text answers: SQuAD's format, version 1.1.
//!
//! `{"data": [{"paragraphs": [{"context": …, "qas": [{"id": …, "question": …, "answers": [{"text": …, "answer_start": …}]}]}]}]}`,
//! where `answer_start` counts characters. An answer that does not stand where its file says (translated data sets have such) is taken by its place and
//! length, as transformers' script does.

use super::error::DownstreamError;
use serde::Deserialize;
use std::path::Path;
use std::sync::Arc;

/// A question, its text and what answers it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// Unique in its file.
    pub id: String,
    /// The question.
    pub question: String,
    /// The text that answers it.
    pub context: Arc<str>,
    /// One or more answers.
    pub answers: Vec<Answer>,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// What it says.
    pub text: String,
    /// Its bytes in the context, first and one past the last.
    pub span: (usize, usize),
}

impl AsRef<str> for Answer {
    fn as_ref(&self) -> &str {
        &self.text
    }
}

#[derive(Deserialize)]
struct File {
    data: Vec<Article>,
}

#[derive(Deserialize)]
struct Article {
    paragraphs: Vec<Paragraph>,
}

#[derive(Deserialize)]
struct Paragraph {
    context: String,
    qas: Vec<Asked>,
}

#[derive(Deserialize)]
struct Asked {
    id: String,
    question: String,
    answers: Vec<Answered>,
}

#[derive(Deserialize)]
struct Answered {
    text: String,
    answer_start: usize,
}

/// Reads a file of questions.
///
/// # Errors
/// When it cannot be read, is not in the format, or a question has no answer inside its context.
pub fn read(path: &Path) -> Result<Vec<Question>, DownstreamError> {
    let bytes = std::fs::read(path).map_err(|source| DownstreamError::Read { path: path.to_owned(), source })?;
    let file: File = serde_json::from_slice(&bytes).map_err(|error| match error.line() {
        0 => DownstreamError::file(path, &error),
        line => DownstreamError::line(path, line, format!("not SQuAD's format, version 1.1: {error}")),
    })?;
    let mut questions = Vec::new();
    for Paragraph { context, qas } in file.data.into_iter().flat_map(|article| article.paragraphs) {
        let context: Arc<str> = context.into();
        // Bytes by characters; the last one is the end.
        let starts: Vec<usize> = context.char_indices().map(|(at, _)| at).chain([context.len()]).collect();
        for Asked { id, question, answers } in qas {
            let failed = |reason: &str| DownstreamError::file(path, format!("question `{id}`: {reason}"));
            if answers.is_empty() {
                return Err(failed("it has no answer; only SQuAD's version 1.1 is supported, where each has one"));
            }
            let answers = answers.into_iter().map(|answer| {
                let end = answer.answer_start.saturating_add(answer.text.chars().count());
                match (starts.get(answer.answer_start), starts.get(end)) {
                    (Some(first), Some(end)) => Ok(Answer { text: answer.text, span: (*first, *end) }),
                    _ => Err(failed("an answer ends behind its context: `answer_start` counts characters")),
                }
            });
            let answers = answers.collect::<Result<_, _>>()?;
            questions.push(Question { id, question, context: Arc::clone(&context), answers });
        }
    }
    if questions.is_empty() {
        return Err(DownstreamError::file(path, "no questions"));
    }
    Ok(questions)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn file(context: &str, answers: &str) -> String {
        format!(
            r#"{{"version": "1.1", "data": [{{"title": "t", "paragraphs": [{{"context": "{context}", "qas":
            [{{"id": "q1", "question": "What?", "answers": [{answers}]}}]}}]}}]}}"#
        )
    }

    fn read_as(text: &str) -> Result<Vec<Question>, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.json");
        std::fs::write(&path, text).unwrap();
        read(&path).map_err(|error| error.to_string().replace(&format!("{}/", folder.path().display()), ""))
    }

    #[test]
    fn answers_are_places_in_the_context() {
        let answers = r#"{"text": "blüht", "answer_start": 10}, {"text": "ün", "answer_start": 7}"#;
        let questions = read_as(&file("Über Grün blüht.", answers)).unwrap();
        let [Question { id, question, context, answers }] = &questions[..] else { panic!("{questions:?}") };
        assert_eq!((id.as_str(), question.as_str()), ("q1", "What?"));
        let texts: Vec<&str> = answers.iter().map(|answer| &context[answer.span.0..answer.span.1]).collect();
        assert_eq!(texts, ["blüht", "ün"]);
    }

    #[test]
    fn errors_name_file_and_question() {
        let outside = r#"{"text": "x", "answer_start": 99}"#;
        for (text, expected) in [
            (file("x", ""), "a.json: question `q1`: it has no answer"),
            (file("x", outside), "a.json: question `q1`: an answer ends behind its context"),
            ("{\"data\": []}".to_owned(), "a.json: no questions"),
            ("{\n\"data\": [{}]}".to_owned(), "a.json:2: not SQuAD's format, version 1.1: missing field `paragraphs`"),
        ] {
            let error = read_as(&text).unwrap_err();
            assert!(error.starts_with(expected), "{error}");
        }
    }
}
