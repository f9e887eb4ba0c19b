//! Evaluation document by document: what differences between students are tested with, because positions of one document are not independent.

use super::{EVALUATION_PREFIX, Evaluator, HeldOut, LanguageEvaluation};
use crate::TrainerError;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use store::{DurablePosition, Entry, Payload};

/// A held-out document's part of an evaluation: all of its examples, in all rounds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DocumentEvaluation {
    /// Its language.
    pub language: String,
    /// Its source in the log.
    pub source: String,
    /// Its identifier, unique in the source.
    pub document: String,
    /// Whether no teacher has seen it; else it is a held-out document of a training corpus.
    pub unseen: bool,
    /// Its scores.
    #[serde(flatten)]
    pub scores: LanguageEvaluation,
}

impl Evaluator<'_> {
    /// Evaluates on the records of `held_out` below `up_to`, each document by itself: by language, source and identifier.
    ///
    /// # Errors
    /// When a record does not fit the vocabulary or the student.
    pub fn evaluate_documents(
        &mut self,
        held_out: &HeldOut,
        up_to: DurablePosition,
    ) -> Result<Vec<DocumentEvaluation>, TrainerError> {
        let mut evaluations = Vec::new();
        for (language, found) in &held_out.languages {
            let mut documents: BTreeMap<(&str, &str), Vec<Arc<Entry>>> = BTreeMap::new();
            for entry in found.unseen.iter().chain(&found.corpora) {
                if let Payload::Record(record) = &entry.payload {
                    documents.entry((&record.source, &record.document)).or_default().push(Arc::clone(entry));
                }
            }
            for ((source, document), entries) in documents {
                let Some(scores) = self.language(&entries, up_to, &mut || true)? else { continue };
                if scores.positions > 0 {
                    evaluations.push(DocumentEvaluation {
                        language: language.clone(),
                        source: source.to_owned(),
                        document: document.to_owned(),
                        unseen: source.starts_with(EVALUATION_PREFIX),
                        scores,
                    });
                }
            }
        }
        Ok(evaluations)
    }
}
