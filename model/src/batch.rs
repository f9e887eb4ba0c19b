//! A batch of sequences, packed without padding.

use crate::{Configuration, ModelError};
use std::ops::Range;

/// Sequences one after another, without padding, and the rows that are asked for: whose tokens are to be predicted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PackedBatch {
    /// `[tokens]`: all sequences, special tokens included.
    pub token_ids: Vec<u32>,
    /// `[sequences]`: their lengths; the sum is `tokens`.
    pub lengths: Vec<usize>,
    /// `[masked]`: rows of the packed `[tokens, …]` matrices, strictly ascending.
    pub masked_rows: Vec<u32>,
    /// `[tokens]`: the row of the type embedding that each token has, 1 for the second text of a pair; empty: all 0.
    pub token_types: Vec<u8>,
}

impl PackedBatch {
    /// Tokens of all sequences.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.token_ids.len()
    }

    /// Checks the batch against itself and against the model that is to compute it.
    ///
    /// # Errors
    /// [`ModelError::Batch`], saying what is wrong.
    pub fn validate(&self, configuration: &Configuration) -> Result<(), ModelError> {
        let fail = |reason: String| Err(ModelError::Batch(reason));
        if self.token_ids.is_empty() {
            return fail("it has no tokens".to_owned());
        }
        let longest = configuration.max_position_embeddings;
        if let Some(length) = self.lengths.iter().find(|length| **length == 0 || **length > longest) {
            return fail(format!("a sequence of {length} tokens; this model takes 1 to {longest}"));
        }
        let sum: usize = self.lengths.iter().sum();
        if sum != self.tokens() {
            return fail(format!("the lengths sum to {sum}, but there are {} tokens", self.tokens()));
        }
        if u32::try_from(self.tokens()).is_err() {
            return fail(format!("{} tokens are more than rows can be numbered", self.tokens()));
        }
        let words = configuration.vocabulary_size;
        if let Some(id) = self.token_ids.iter().find(|id| **id as usize >= words) {
            return fail(format!("token id {id}, but the embedding has {words} rows"));
        }
        if self.masked_rows.last().is_some_and(|row| *row as usize >= self.tokens()) {
            return fail(format!("a masked row beyond the {} tokens", self.tokens()));
        }
        if !self.masked_rows.is_sorted_by(|a, b| a < b) {
            return fail("masked rows are not strictly ascending".to_owned());
        }
        if !self.token_types.is_empty() && self.token_types.len() != self.tokens() {
            return fail(format!("{} token types for {} tokens", self.token_types.len(), self.tokens()));
        }
        let types = configuration.type_vocabulary_size;
        if let Some(token_type) = self.token_types.iter().find(|token_type| usize::from(**token_type) >= types) {
            return fail(format!("token type {token_type}, but the model knows {types}"));
        }
        Ok(())
    }

    /// Its first sequences, with about one in `parts` (at least 2) of the tokens, and the others. A batch of one sequence leaves the second empty.
    #[must_use]
    pub fn cut(&self, parts: usize) -> (Self, Self) {
        let part = self.tokens().div_ceil(parts);
        let (mut sequences, mut tokens) = (0, 0);
        for length in &self.lengths {
            if sequences > 0 && (tokens + length > part || sequences + 1 == self.lengths.len()) {
                break;
            }
            (sequences, tokens) = (sequences + 1, tokens + length);
        }
        let masked = self.masked_rows.partition_point(|row| (*row as usize) < tokens);
        let low = Self {
            token_ids: self.token_ids[..tokens].to_vec(),
            lengths: self.lengths[..sequences].to_vec(),
            masked_rows: self.masked_rows[..masked].to_vec(),
            token_types: self.types_of(0..tokens).to_vec(),
        };
        let high = Self {
            token_ids: self.token_ids[tokens..].to_vec(),
            lengths: self.lengths[sequences..].to_vec(),
            masked_rows: self.masked_rows[masked..].iter().map(|row| row - tokens as u32).collect(),
            token_types: self.types_of(tokens..self.tokens()).to_vec(),
        };
        (low, high)
    }

    /// Whether a token has another type than 0.
    pub(crate) fn is_typed(&self) -> bool {
        self.token_types.iter().any(|token_type| *token_type != 0)
    }

    /// The types of the tokens in `tokens`; empty: all 0.
    pub(crate) fn types_of(&self, tokens: Range<usize>) -> &[u8] {
        self.token_types.get(tokens).unwrap_or_default()
    }

    /// `[tokens]`: each token's place in its sequence.
    pub(crate) fn positions(&self) -> Vec<u32> {
        self.lengths.iter().flat_map(|length| 0..*length as u32).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_count_from_each_sequence_s_first_token() {
        let batch = PackedBatch { token_ids: vec![0; 6], lengths: vec![2, 3, 1], ..PackedBatch::default() };
        assert_eq!(batch.positions(), [0, 1, 0, 1, 2, 0]);
    }
    #[test]
    fn parts_are_whole_sequences() {
        let batch = |lengths: &[usize], masked_rows: &[u32]| {
            let tokens = lengths.iter().sum::<usize>() as u32;
            let (token_ids, lengths, masked_rows) = ((0..tokens).collect(), lengths.to_vec(), masked_rows.to_vec());
            PackedBatch { token_ids, lengths, masked_rows, token_types: vec![1; tokens as usize] }
        };
        for (lengths, masked, low, high) in [
            (&[4, 3, 5, 2][..], &[0, 6, 7, 13][..], 2, &[0, 6][..]),
            (&[9, 1], &[8, 9], 1, &[0]),
            (&[1, 9], &[0, 9], 1, &[8]),
            (&[3, 3, 100], &[5], 2, &[]),
        ] {
            let whole = batch(lengths, masked);
            let (first, second) = whole.cut(2);
            assert_eq!((&first.lengths[..], &second.lengths[..]), lengths.split_at(low));
            assert_eq!([first.token_ids, second.token_ids].concat(), whole.token_ids);
            assert_eq!(
                (first.masked_rows.len() + second.masked_rows.len(), &second.masked_rows[..]),
                (masked.len(), high)
            );
            assert_eq!(first.token_types.len() + second.token_types.len(), whole.tokens());
        }
        let alone = batch(&[5], &[2]);
        assert_eq!(alone.cut(2), (alone.clone(), PackedBatch::default()));
        assert_eq!(batch(&[2, 2, 3, 3], &[]).cut(3).0.lengths, [2, 2]);
    }
}
