//! A teacher that comes after the examples: its copies, made from the texts that a log keeps as ingestion would have made
//! them.

use crate::mask::{ExampleKey, MaskUnit, Masking};
use crate::teacher::TeacherTokenizer;
use crate::{IngestError, IngestTeacher};
use std::collections::BTreeMap;
use store::{MaskedCopy, Record};

/// Makes the copies of one teacher from the texts of records.
pub struct LaterTeacher {
    teacher: TeacherTokenizer,
    /// Teachers that records have copies of, by index; needed for [`MaskUnit::SharedWord`] alone.
    others: BTreeMap<u16, TeacherTokenizer>,
    masking: Masking,
    /// Tokens in a copy, without [CLS] and [SEP].
    limit_tokens: usize,
}

/// Why a teacher gets no copy of an example.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum NoCopy {
    /// It would be longer than a sequence may be, and no copy is truncated.
    TooManyTokens,
    /// Nothing of it may be masked; with [`MaskUnit::SharedWord`]: no word that the other copies mask.
    NothingToMask,
}

impl LaterTeacher {
    /// `index` is the teacher's place in the teacher table, `others` are those of the table that records have copies of already,
    /// which are needed for [`MaskUnit::SharedWord`] alone. A copy is at most `max_sequence_length` tokens long, \[CLS\] and
    /// \[SEP\] included.
    #[must_use]
    pub fn new<'a>(
        index: u16,
        teacher: &IngestTeacher,
        others: impl IntoIterator<Item = (u16, &'a IngestTeacher)>,
        masking: Masking,
        max_sequence_length: usize,
    ) -> Self {
        let others = others.into_iter().map(|(index, other)| (index, TeacherTokenizer::new(index, other)));
        Self {
            teacher: TeacherTokenizer::new(index, teacher),
            others: others.collect(),
            masking,
            limit_tokens: max_sequence_length.saturating_sub(2),
        }
    }

    /// The copy of `record`, whose text is `text`: the one that ingestion would have made if the teacher had been there, and the example
    /// been the same. With [`MaskUnit::SharedWord`] it masks the words that the record's first copy masks; a word that only one of
    /// the two has is not masked.
    ///
    /// # Errors
    /// When the text cannot be tokenised. With [`MaskUnit::SharedWord`] also when the first copy's teacher is not known, or its
    /// copy was made from another text.
    pub fn copy(&self, record: &Record, text: &str) -> Result<Result<MaskedCopy, NoCopy>, IngestError> {
        let tokens = self.teacher.encode_alone(text, &record.language)?;
        if tokens.ids.len() > self.limit_tokens {
            return Ok(Err(NoCopy::TooManyTokens));
        }
        let Record { source, document, span, round, .. } = record;
        let key = ExampleKey { source, document, span: *span, round: *round };
        let copy = match record.copies.first().filter(|_| self.masking.unit == MaskUnit::SharedWord) {
            None => {
                let (teacher, tokens) = (std::slice::from_ref(&self.teacher), std::slice::from_ref(&tokens));
                self.masking.copies(teacher, tokens, key).and_then(|mut copies| copies.pop())
            }
            Some(first) => {
                let (other, other_tokens) = self.tokens_of(first, record, text)?;
                let other = (other, &other_tokens, &*first.masked_positions);
                self.masking.aligned_copy((&self.teacher, &tokens), other, key)
            }
        };
        Ok(copy.ok_or(NoCopy::NothingToMask))
    }

    /// The tokens of a copy that `record` has, with their places in its text.
    fn tokens_of(
        &self,
        copy: &MaskedCopy,
        record: &Record,
        text: &str,
    ) -> Result<(&TeacherTokenizer, model::Tokens), IngestError> {
        let Some(teacher) = self.others.get(&copy.teacher) else {
            return Err(IngestError::Options(format!(
                "copies mask the same words, so the tokenizer of teacher number {} is needed",
                copy.teacher
            )));
        };
        let tokens = teacher.encode_alone(text, &record.language)?;
        let mut masked = copy.masked_positions.iter().zip(&copy.gold_ids);
        let fits = |(position, gold): (&u32, &u32)| {
            let at = (*position as usize).checked_sub(1);
            at.and_then(|at| tokens.ids.get(at)) == Some(gold)
        };
        if tokens.ids.len() + 2 != copy.token_ids.len() || !masked.all(fits) {
            let Record { source, document, span, .. } = record;
            return Err(IngestError::Options(format!(
                "corpus `{source}`, document {document}, bytes {} to {}: the copy of teacher `{}` was made from another text",
                span.first, span.end, teacher.name
            )));
        }
        Ok((teacher, tokens))
    }
}
