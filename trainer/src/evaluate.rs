//! How good the student is on held-out text, beside each of its teachers.
//!
//! A teacher's entry compares both at that teacher's masked positions: the teacher by the labels in the log (loss =
//! log-sum-exp − gold logit; top-1 from its first label), the student on the same copy in student ids. Losses are in nats,
//! each over its model's own vocabulary, so they are not to be compared with each other; top-1 accuracies are, by RDT.
//! Beside them stand how well each is calibrated, how often they agree, and how much of the teacher's probability its labels hold.
//!
//! There are two sets: text that no teacher has seen (sources called `evaluate/…`), and held-out documents of the
//! training corpora, which a teacher may have been trained on. A language's figures are those of the first set where
//! there is one.

mod by_document;

pub use by_document::DocumentEvaluation;

use crate::TrainerError;
use crate::loss::Score;
use crate::options::TrainerOptions;
use crate::records::{EVALUATION_PREFIX, Records};
use crate::tally::{Sums, Tally};
use crate::vocabulary::VocabularyMap;
use model::PackedBatch;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use store::log::HeldOutLog;
use store::{DurablePosition, Entry, MaskedCopy, Payload, SequenceNumber, SourceCursor, StoreError};

/// Results of one evaluation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EvaluationReport {
    /// Steps done when it was made.
    pub step: u64,
    /// Per language: on text that no teacher has seen where there is such text, on held-out documents elsewhere.
    pub languages: BTreeMap<String, LanguageEvaluation>,
    /// Per language, on held-out documents of the training corpora; only if `languages` is about other text.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub held_out: BTreeMap<String, LanguageEvaluation>,
}

/// Results for one language.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LanguageEvaluation {
    /// The student's mean loss over the masked positions of all copies, in nats.
    pub student_loss: f64,
    /// Share of them that it predicts.
    pub student_top1: f64,
    /// The student's expected calibration error over them: 15 bins of the probability of its best guess (Guo et al. 2017).
    /// `None` in reports of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub student_ece: Option<f64>,
    /// Examples evaluated.
    pub examples: u64,
    /// Masked positions of all their copies.
    pub positions: u64,
    /// By name, those that label.
    pub teachers: BTreeMap<String, TeacherEvaluation>,
}

/// The student beside one teacher, at this teacher's masked positions.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TeacherEvaluation {
    /// The teacher's mean loss.
    pub loss: f64,
    /// Share of positions that the teacher predicts.
    pub top1: f64,
    /// The student's mean loss.
    pub student_loss: f64,
    /// Share of positions that the student predicts.
    pub student_top1: f64,
    /// 100 · (P_S − P_T) / P_T on top-1, the sign of the paper's tables: positive where the student is ahead. `None`
    /// where the teacher predicts nothing.
    pub rdt: Option<f64>,
    /// Masked positions.
    pub positions: u64,
    /// The teacher's expected calibration error, as [`LanguageEvaluation::student_ece`]. It and what follows are `None` in reports of
    /// earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ece: Option<f64>,
    /// The student's expected calibration error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub student_ece: Option<f64>,
    /// Share of positions at which teacher and student have the same best guess.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agreement: Option<f64>,
    /// Mean of the share of the teacher's probability that its labels hold: see [`store::Label::retained_mass`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retained_mass: Option<f64>,
}

/// The held-out records that evaluations look at: the first ones of each language and set, in the log's order. It grows
/// with the log until it is full; what it holds below a position is a function of the log alone.
#[derive(Clone, Debug)]
pub struct HeldOut {
    max_examples: usize,
    /// Where the records of removed segments are.
    kept: (PathBuf, Option<HeldOutLog>),
    languages: BTreeMap<String, Found>,
}

#[derive(Clone, Debug, Default)]
struct Found {
    /// The next record is looked for from here.
    next: SequenceNumber,
    /// And from here in the log of those that were kept.
    next_kept: SequenceNumber,
    /// Text that no teacher has seen.
    unseen: Vec<Arc<Entry>>,
    /// Documents of the training corpora.
    corpora: Vec<Arc<Entry>>,
}

impl HeldOut {
    /// At most `max_examples` examples per language and set. Those that retention removed from the log are in `kept`.
    #[must_use]
    pub fn new(max_examples: usize, kept: &Path) -> Self {
        Self { max_examples, kept: (kept.to_owned(), None), languages: BTreeMap::new() }
    }

    /// Takes in the held-out records below `up_to`.
    ///
    /// # Errors
    /// When the log cannot be read. After [`StoreError::Removed`] it may be called again: records were removed meanwhile.
    pub fn extend(&mut self, records: &dyn Records, up_to: DurablePosition) -> Result<(), TrainerError> {
        let begin = records.begin();
        let cursors = records.cursors(up_to)?;
        let languages: BTreeSet<&str> = cursors.values().map(|cursor| &*cursor.language).collect();
        for language in languages {
            self.extend_by_kept(language, begin)?;
            let found = self.languages.entry(language.to_owned()).or_default();
            let is_full = |set: &[Arc<Entry>]| set.len() >= self.max_examples;
            // Whether it is settled that unseen text lies ahead: looked at once, when nothing else is looked for.
            let mut more_unseen = false;
            while !is_full(&found.unseen) || !is_full(&found.corpora) {
                if is_full(&found.corpora) && !more_unseen {
                    let here = records.cursors(DurablePosition::from_log(found.next.0).min(up_to))?;
                    more_unseen = unseen_sources(&here, language) != unseen_sources(&cursors, language);
                    if !more_unseen {
                        break;
                    }
                }
                let entry = records.next_record(language, true, found.next, up_to)?;
                let begins = records.begin();
                if begins > found.next {
                    return Err(StoreError::Removed { sequence: found.next, begin: begins }.into());
                }
                let Some(entry) = entry else { break };
                found.next = entry.sequence.next();
                found.add(entry, self.max_examples);
            }
        }
        Ok(())
    }

    /// Takes in the records of a language that were removed from the log, below where it begins, and kept.
    fn extend_by_kept(&mut self, language: &str, begin: SequenceNumber) -> Result<(), TrainerError> {
        let found = self.languages.entry(language.to_owned()).or_default();
        if found.next >= begin {
            return Ok(());
        }
        let (path, kept) = &mut self.kept;
        if kept.is_none() {
            *kept = HeldOutLog::open(path)?;
        }
        if let Some(kept) = kept {
            while found.unseen.len() < self.max_examples || found.corpora.len() < self.max_examples {
                let Some(record) = kept.next_record(language, found.next_kept, begin)? else { break };
                found.next_kept = record.after;
                // Others were taken from the log when they were still there.
                if record.entry.sequence >= found.next {
                    found.add(record.entry, self.max_examples);
                }
            }
        }
        found.next = begin;
        Ok(())
    }
}

impl Found {
    fn add(&mut self, entry: Arc<Entry>, max_examples: usize) {
        let Payload::Record(record) = &entry.payload else { return };
        let unseen = record.source.starts_with(EVALUATION_PREFIX);
        let set = if unseen { &mut self.unseen } else { &mut self.corpora };
        if set.len() < max_examples {
            set.push(entry);
        }
    }
}

/// The state of a language's sources of text that no teacher has seen. Two places of the log between which it does not
/// change have no such text between them.
fn unseen_sources<'a>(cursors: &'a BTreeMap<Arc<str>, SourceCursor>, language: &str) -> Vec<&'a SourceCursor> {
    let is_unseen =
        |cursor: &&SourceCursor| &*cursor.language == language && cursor.source.starts_with(EVALUATION_PREFIX);
    cursors.values().filter(is_unseen).collect()
}

/// A student that predicts.
pub trait Predictor {
    /// How it predicts `gold_ids` `[masked]` at the batch's masked rows, without dropout.
    ///
    /// # Errors
    /// When the batch does not fit the student or the gold ids.
    fn score(&mut self, batch: &PackedBatch, gold_ids: &[u32]) -> Result<Vec<Score>, TrainerError>;
}

/// What is evaluated with what.
pub struct Evaluator<'a> {
    /// The student. Nothing that training reads changes.
    pub student: &'a mut (dyn Predictor + Send),
    /// Maps into the student's vocabulary, by index into the log's teacher table.
    pub maps: &'a [VocabularyMap],
    /// How many tokens a forward pass has, and whose threads compute each batch.
    pub options: &'a TrainerOptions,
    /// Entries of each label that were drawn from the tail ([`store::Identity::tail_samples`]).
    pub tail_samples: usize,
}

impl Evaluator<'_> {
    /// Evaluates on the records of `held_out` below `up_to`. `None`: `proceed`, asked between batches, said no.
    ///
    /// # Errors
    /// When a record does not fit the vocabulary or the student.
    pub fn evaluate(
        &mut self,
        step: u64,
        held_out: &HeldOut,
        up_to: DurablePosition,
        proceed: &mut dyn FnMut() -> bool,
    ) -> Result<Option<EvaluationReport>, TrainerError> {
        let mut evaluation = EvaluationReport { step, ..EvaluationReport::default() };
        for (language, found) in &held_out.languages {
            let Some(unseen) = self.language(&found.unseen, up_to, proceed)? else { return Ok(None) };
            let Some(corpora) = self.language(&found.corpora, up_to, proceed)? else { return Ok(None) };
            match (unseen.positions > 0, corpora.positions > 0) {
                (true, both) => {
                    evaluation.languages.insert(language.clone(), unseen);
                    if both {
                        evaluation.held_out.insert(language.clone(), corpora);
                    }
                }
                (false, true) => {
                    evaluation.languages.insert(language.clone(), corpora);
                }
                (false, false) => {}
            }
        }
        Ok(Some(evaluation))
    }

    fn language(
        &mut self,
        entries: &[Arc<Entry>],
        up_to: DurablePosition,
        proceed: &mut dyn FnMut() -> bool,
    ) -> Result<Option<LanguageEvaluation>, TrainerError> {
        let mut copies: Vec<&MaskedCopy> = Vec::new();
        let mut examples = 0;
        for entry in entries.iter().filter(|entry| up_to.covers(entry.sequence)) {
            if let Payload::Record(record) = &entry.payload {
                copies.extend(&record.copies);
                examples += 1;
            }
        }
        // Neighbours of equal length are computed together; the sort is stable.
        copies.sort_by_key(|copy| copy.token_ids.len());
        let mut sums: BTreeMap<u16, Sums> = BTreeMap::new();
        for batch in cut(&copies, self.options.train.micro_batch_tokens) {
            if !proceed() {
                return Ok(None);
            }
            self.batch(batch, &mut sums)?;
        }
        self.summary(&sums, examples).map(Some)
    }

    /// Adds up the scores of one batch.
    fn batch(&mut self, copies: &[&MaskedCopy], sums: &mut BTreeMap<u16, Sums>) -> Result<(), TrainerError> {
        let mut batch = PackedBatch::default();
        let mut gold_ids = Vec::new();
        for copy in copies {
            let first_row = batch.token_ids.len() as u32;
            batch.masked_rows.extend(copy.masked_positions.iter().map(|position| first_row + position));
            batch.lengths.push(copy.token_ids.len());
            self.translate(copy.teacher, &copy.token_ids, &mut batch.token_ids)?;
            self.translate(copy.teacher, &copy.gold_ids, &mut gold_ids)?;
        }
        if gold_ids.is_empty() {
            return Ok(());
        }
        let student = &mut *self.student;
        let mut scores = self.options.compute(|| student.score(&batch, &gold_ids))?.into_iter();
        for copy in copies {
            let sums = sums.entry(copy.teacher).or_default();
            let map = self.map(copy.teacher)?;
            for ((at, gold), score) in copy.gold_ids.iter().enumerate().zip(scores.by_ref()) {
                sums.add_student(&score);
                if let Some(label) = &copy.label {
                    sums.add_labelled(&score, label, at, *gold, self.tail_samples, |id| map.student_id(id));
                }
            }
        }
        Ok(())
    }

    fn translate(&self, teacher: u16, ids: &[u32], to: &mut Vec<u32>) -> Result<(), TrainerError> {
        let map = self.map(teacher)?;
        for id in ids {
            to.push(map.student_id(*id).ok_or_else(|| {
                let (teacher, size) = (&map.teacher, map.size());
                TrainerError::Configuration(format!(
                    "the log has token {id} of teacher `{teacher}`, whose tokenizer has {size} tokens: the log and the \
                     tokenizer do not belong together"
                ))
            })?);
        }
        Ok(())
    }

    fn map(&self, teacher: u16) -> Result<&VocabularyMap, TrainerError> {
        self.maps.get(usize::from(teacher)).ok_or_else(|| {
            TrainerError::Configuration(format!(
                "the log has copies of teacher number {}, but only {} teachers are configured",
                teacher + 1,
                self.maps.len()
            ))
        })
    }

    fn summary(&self, sums: &BTreeMap<u16, Sums>, examples: u64) -> Result<LanguageEvaluation, TrainerError> {
        let mut student = Tally::default();
        let mut teachers = BTreeMap::new();
        for (teacher, sums) in sums {
            student.merge(&sums.student);
            if let Some(evaluation) = sums.evaluation() {
                teachers.insert(self.map(*teacher)?.teacher.clone(), evaluation);
            }
        }
        Ok(LanguageEvaluation {
            student_loss: student.mean_loss(),
            student_top1: student.top1(),
            student_ece: student.ece(),
            examples,
            positions: student.positions,
            teachers,
        })
    }
}

/// Runs of neighbours with at most `batch_tokens` tokens, or one copy if that has more.
fn cut<'a, 'b>(copies: &'a [&'b MaskedCopy], batch_tokens: usize) -> Vec<&'a [&'b MaskedCopy]> {
    let mut batches = Vec::new();
    let (mut first, mut tokens) = (0, 0);
    for (at, copy) in copies.iter().enumerate() {
        if at > first && tokens + copy.token_ids.len() > batch_tokens {
            batches.push(&copies[first..at]);
            (first, tokens) = (at, 0);
        }
        tokens += copy.token_ids.len();
    }
    if first < copies.len() {
        batches.push(&copies[first..]);
    }
    batches
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::records::memory::MemoryLog;

    #[test]
    fn held_out_text_is_read_no_further_than_needed() {
        let mut log = MemoryLog::default();
        for _ in 0..2 {
            log.held_out("evaluate/en", 10);
        }
        log.end("evaluate/en", 10);
        for _ in 0..50 {
            log.held_out("en", 100);
        }
        let sizes = |held_out: &HeldOut| {
            let found = &held_out.languages["en"];
            (found.unseen.len(), found.corpora.len())
        };
        let mut held_out = HeldOut::new(3, Path::new(""));
        held_out.extend(&log, log.durable()).unwrap();
        assert_eq!((sizes(&held_out), log.reads.get()), ((2, 3), 5), "what lies beyond is of no use");
        held_out.extend(&log, log.durable()).unwrap();
        assert_eq!(log.reads.get(), 5, "nor later");
        // Text that is added later is found, by one that goes on and by one that begins.
        log.held_out("evaluate/en/more", 10);
        held_out.extend(&log, log.durable()).unwrap();
        assert_eq!(sizes(&held_out), (3, 3));
        let mut other = HeldOut::new(3, Path::new(""));
        other.extend(&log, log.durable()).unwrap();
        assert_eq!(sizes(&other), (3, 3));
    }
}
