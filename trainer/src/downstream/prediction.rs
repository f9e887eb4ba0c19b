//! What a fine-tuned model says of each example, beside what is right.

use super::scores::{self, Scores};
use serde::Serialize;

/// The predictions of a file's examples, in their order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Predictions {
    /// Of sentences.
    Words(Vec<TagsPredicted>),
    /// Of texts.
    Texts(Vec<ClassPredicted>),
    /// Of questions.
    Questions(Vec<AnswerPredicted>),
}

/// A sentence.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TagsPredicted {
    /// `[words]`: what is right.
    pub gold: Vec<String>,
    /// `[words]`: what the model says.
    pub predicted: Vec<String>,
}

/// A text, or a pair of texts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ClassPredicted {
    /// What is right.
    pub gold: String,
    /// What the model says.
    pub predicted: String,
}

/// A question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AnswerPredicted {
    /// What its file calls it.
    pub id: String,
    /// Each of them is right.
    pub gold: Vec<String>,
    /// What the model says; empty: nothing.
    pub predicted: String,
}

impl Predictions {
    /// Their scores.
    #[must_use]
    pub fn scores(&self) -> Scores {
        match self {
            Self::Words(sentences) => {
                let (gold, predicted): (Vec<_>, Vec<_>) =
                    sentences.iter().map(|sentence| (borrowed(&sentence.gold), borrowed(&sentence.predicted))).unzip();
                scores::of_tags(&gold, &predicted)
            }
            Self::Texts(texts) => {
                let (gold, predicted): (Vec<_>, Vec<_>) =
                    texts.iter().map(|text| (text.gold.as_str(), text.predicted.as_str())).unzip();
                scores::of_classes(&gold, &predicted)
            }
            Self::Questions(questions) => {
                scores::of_answers(questions.iter().map(|question| (question.predicted.as_str(), &question.gold[..])))
            }
        }
    }

    /// As JSON lines, an object for each example: `test`, the number of the `example` (from 0), and the fields above.
    ///
    /// # Errors
    /// What serde_json says.
    pub fn lines(&self, test: &str) -> Result<String, serde_json::Error> {
        match self {
            Self::Words(sentences) => lines(test, sentences),
            Self::Texts(texts) => lines(test, texts),
            Self::Questions(questions) => lines(test, questions),
        }
    }
}

fn borrowed(tags: &[String]) -> Vec<&str> {
    tags.iter().map(String::as_str).collect()
}

#[derive(Serialize)]
struct Line<'a, P> {
    test: &'a str,
    example: usize,
    #[serde(flatten)]
    prediction: &'a P,
}

fn lines<P: Serialize>(test: &str, predictions: &[P]) -> Result<String, serde_json::Error> {
    let mut text = String::new();
    for (example, prediction) in predictions.iter().enumerate() {
        text += &serde_json::to_string(&Line { test, example, prediction })?;
        text.push('\n');
    }
    Ok(text)
}
