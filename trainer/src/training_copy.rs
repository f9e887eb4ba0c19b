//! A labelled copy as the student sees it: in student ids, with a weight.
//!
//! Copies are mapped when they are read; the log keeps the teachers' own ids. Maps are injective
//! ([`crate::vocabulary`]), yet whoever uses `top_ids` must not rely on it: equal ids at one position are kept as
//! separate entries whose probabilities add up.
//!
//! A copy has no label for one of two reasons. Its teacher lends only its tokenizer: then it is trained on gold labels, as the
//! configuration wants. Or its teacher labels, but had stalled, and its labels were not waited for: then the copy is left out, for
//! the record's other copies say what is to be learnt. If it has none, its gold labels are learnt from all the same, so that
//! a language whose only teacher stalls keeps its share of the training.

use crate::error::TrainerError;
use crate::options::{BestBy, Copies, CopyWeight};
use crate::vocabulary::{Vocabulary, VocabularyMap};
use model::random::Philox;
use std::sync::Arc;
use store::{Label, MaskedCopy, Record, SequenceNumber};

/// One copy to train on.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainingCopy {
    /// The record that it is a copy of.
    pub sequence: SequenceNumber,
    /// How often the record was read before.
    pub pass: u64,
    /// Language of the example.
    pub language: Arc<str>,
    /// What the copy counts against others: 1, or a share of 1.
    pub weight: f64,
    /// Tokens, gold labels and top-k, all in student ids.
    pub copy: MaskedCopy,
    /// What teachers had to label so that this copy could be read; nothing when its record is read again.
    pub labelled: Vec<LabelledCopy>,
}

/// The size of a copy that a teacher labelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LabelledCopy {
    /// Index into the log's teacher table.
    pub teacher: u16,
    /// Its tokens, `[CLS]` and `[SEP]` included.
    pub tokens: usize,
    /// Its masked positions.
    pub masked: usize,
}

/// Chooses among the copies of a record, and maps them.
#[derive(Clone, Debug)]
pub struct CopyMaker {
    vocabulary: Arc<Vocabulary>,
    /// By student id.
    characters: Vec<u32>,
    /// By index into the teacher table.
    labels: Vec<bool>,
    options: CopyOptions,
    /// Draws among the copies (`copies = "random"`).
    draws: Philox,
}

/// Which copies are trained on, and with which weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyOptions {
    /// All, the best, or one at random.
    pub copies: Copies,
    /// How the best is told.
    pub best_by: BestBy,
    /// Weight of a copy when all are taken.
    pub copy_weight: CopyWeight,
    /// Longest sequence that the student takes; a longer copy is an error.
    pub max_sequence_length: usize,
}

impl CopyMaker {
    /// `vocabulary`'s maps are in the order of the log's teacher table, and so is `labels`: whether each teacher labels. What is drawn at
    /// random follows from `seed`.
    #[must_use]
    pub fn new(seed: u64, vocabulary: Arc<Vocabulary>, labels: Vec<bool>, options: CopyOptions) -> Self {
        let draws = Philox::new(seed, "copies", &[]);
        Self { characters: vocabulary.characters(), vocabulary, labels, options, draws }
    }

    /// Chooses and weighs by these options from now on.
    pub(crate) fn set_options(&mut self, options: CopyOptions) {
        self.options = options;
    }

    /// Indices of the copies that `record`, number `sequence`, is trained on when it is read for the `pass`-th time, counted from 0. With
    /// "best", the one whose teacher has the lowest loss (ties: configuration order); copies without labels have no loss and count only if
    /// there is no other. With "random", each as likely as the others, drawn anew in each pass. Copies whose labels were dropped are left
    /// out, unless there are no others.
    #[must_use]
    pub fn choose(&self, sequence: SequenceNumber, pass: u64, record: &Record) -> Vec<usize> {
        let copies = self.usable(record);
        let chosen = match self.options.copies {
            Copies::All => return copies,
            Copies::Best => {
                let loss = |index: usize| self.teacher_loss(&record.copies[index]);
                let lower = |best, index| if loss(index).total_cmp(&loss(best)).is_lt() { index } else { best };
                copies.into_iter().reduce(lower)
            }
            Copies::Random => {
                let draw = || self.draws.below(copies.len() as u64, sequence.0, pass) as usize;
                (!copies.is_empty()).then(|| copies[draw()])
            }
        };
        chosen.into_iter().collect()
    }

    /// The training copy of copy `index` of a record.
    ///
    /// # Errors
    /// When the copy contradicts itself or the vocabulary, or is longer than the student's longest sequence.
    pub fn make(
        &self,
        sequence: SequenceNumber,
        pass: u64,
        record: &Record,
        index: usize,
    ) -> Result<TrainingCopy, TrainerError> {
        let source = &record.copies[index];
        let copy = map_copy(&self.vocabulary, source).map_err(|reason| unusable(sequence, source, &reason))?;
        let (length, longest) = (copy.token_ids.len(), self.options.max_sequence_length);
        if length > longest {
            let reason = format!("{length} tokens, but the student takes at most {longest}: raise max_sequence_length");
            return Err(unusable(sequence, source, &reason));
        }
        let shared = self.options.copies == Copies::All && self.options.copy_weight == CopyWeight::Shared;
        let weight = if shared { 1.0 / self.usable(record).len() as f64 } else { 1.0 };
        let labelled = if pass == 0 { self.labelled(record, index) } else { Vec::new() };
        Ok(TrainingCopy { sequence, pass, language: record.language.clone(), weight, copy, labelled })
    }

    /// Which copy is the best is known once all are labelled, and a draw is among labelled ones, which later passes may draw too; where
    /// all copies are trained on, each stands for itself.
    fn labelled(&self, record: &Record, index: usize) -> Vec<LabelledCopy> {
        let one_of_all = self.options.copies != Copies::All;
        let copies =
            record.copies.iter().enumerate().filter(|(at, copy)| copy.label.is_some() && (one_of_all || *at == index));
        let size = |(_, copy): (usize, &MaskedCopy)| LabelledCopy {
            teacher: copy.teacher,
            tokens: copy.token_ids.len(),
            masked: copy.masked_positions.len(),
        };
        copies.map(size).collect()
    }

    /// Indices of the copies whose labels were not dropped; of all, if there is no such copy.
    fn usable(&self, record: &Record) -> Vec<usize> {
        let is_dropped = |index: &usize| {
            let copy = &record.copies[*index];
            copy.label.is_none() && self.labels.get(usize::from(copy.teacher)).is_some_and(|labels| *labels)
        };
        let usable: Vec<usize> = (0..record.copies.len()).filter(|index| !is_dropped(index)).collect();
        if usable.is_empty() { (0..record.copies.len()).collect() } else { usable }
    }

    /// The teacher's loss on a copy; infinite where there is none.
    fn teacher_loss(&self, copy: &MaskedCopy) -> f64 {
        let Some(label) = &copy.label else { return f64::INFINITY };
        let positions = label.log_sum_exp.iter().zip(&label.gold_logits);
        let total: f64 = positions.map(|(z, gold)| f64::from(*z) - f64::from(*gold)).sum();
        let units = match self.options.best_by {
            BestBy::Position => label.positions() as f64,
            BestBy::Character => self.gold_characters(copy) as f64,
        };
        let loss = total / units;
        if loss.is_nan() { f64::INFINITY } else { loss }
    }

    fn gold_characters(&self, copy: &MaskedCopy) -> u64 {
        let Some(map) = self.vocabulary.maps().get(usize::from(copy.teacher)) else { return 0 };
        let characters = |id: &u32| self.characters.get(map.student_id(*id)? as usize).copied();
        copy.gold_ids.iter().filter_map(characters).map(u64::from).sum()
    }
}

/// A copy in student ids. The error says what does not fit.
///
/// # Errors
/// When the copy contradicts itself, or has an id that its teacher's map does not have.
pub fn map_copy(vocabulary: &Vocabulary, copy: &MaskedCopy) -> Result<MaskedCopy, String> {
    let Some(map) = vocabulary.maps().get(usize::from(copy.teacher)) else {
        return Err(format!("the vocabulary has {} teachers", vocabulary.maps().len()));
    };
    check_shapes(copy)?;
    let label = copy.label.as_ref().map(|label| {
        Ok::<Label, String>(Label {
            top_k: label.top_k,
            top_ids: map_ids(map, &label.top_ids)?,
            top_logits: label.top_logits.clone(),
            log_sum_exp: label.log_sum_exp.clone(),
            gold_logits: label.gold_logits.clone(),
            computed_in: label.computed_in,
        })
    });
    Ok(MaskedCopy {
        teacher: copy.teacher,
        token_ids: map_ids(map, &copy.token_ids)?,
        masked_positions: copy.masked_positions.clone(),
        gold_ids: map_ids(map, &copy.gold_ids)?,
        label: label.transpose()?,
    })
}

fn map_ids(map: &VocabularyMap, ids: &[u32]) -> Result<Vec<u32>, String> {
    ids.iter()
        .map(|id| {
            let missing = || format!("token id {id}, but the tokenizer of `{}` has {} tokens", map.teacher, map.size());
            map.student_id(*id).ok_or_else(missing)
        })
        .collect()
}

fn check_shapes(copy: &MaskedCopy) -> Result<(), String> {
    let masked = copy.masked_positions.len();
    let ascending = copy.masked_positions.is_sorted_by(|a, b| a < b);
    let inside = copy.masked_positions.last().is_none_or(|last| (*last as usize) < copy.token_ids.len());
    if !ascending || !inside || copy.gold_ids.len() != masked {
        return Err("its masked positions do not fit its tokens".to_owned());
    }
    let Some(label) = &copy.label else { return Ok(()) };
    let per_position = [label.log_sum_exp.len(), label.gold_logits.len()];
    let per_entry = [label.top_ids.len(), label.top_logits.len()];
    if per_position != [masked; 2] || per_entry != [masked * label.top_k; 2] {
        return Err("its labels do not fit its masked positions".to_owned());
    }
    Ok(())
}

fn unusable(sequence: SequenceNumber, copy: &MaskedCopy, reason: &str) -> TrainerError {
    let teacher = copy.teacher;
    TrainerError::Configuration(format!("entry {sequence} of the log, copy of teacher {teacher}: {reason}"))
}

#[cfg(test)]
#[path = "training_copy_tests.rs"]
mod tests;
