//! How a batch is cut.

use crate::PackedBatch;
use std::ops::Range;

/// Tokens of a shard, unless one sequence alone has more: what a layer computes for them is near a core, and a weight is read for
/// many rows.
const SHARD_TOKENS: usize = 384;
/// Shards come in multiples of this, so that most numbers of cores have equal work.
const SHARES: usize = 4;

/// Neighbouring sequences of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Shard {
    /// Its rows of the packed `[tokens, …]` matrices.
    pub(crate) tokens: Range<usize>,
    /// Its part of the batch's masked rows.
    pub(crate) masked: Range<usize>,
    /// Its sequences.
    pub(crate) sequences: Vec<Sequence>,
}

/// One sequence; places are counted from the beginning of its shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sequence {
    pub(crate) tokens: Range<usize>,
    pub(crate) masked: Range<usize>,
}

/// Cuts a valid batch; a function of the sequences' lengths alone.
pub(crate) fn cut(batch: &PackedBatch) -> Vec<Shard> {
    let count = batch.tokens().div_ceil(SHARD_TOKENS).next_multiple_of(SHARES);
    let tokens = batch.tokens().div_ceil(count);
    let mut shards: Vec<Shard> = Vec::new();
    let (mut token, mut masked) = (0, 0);
    for &length in &batch.lengths {
        let end = token + length;
        let count = batch.masked_rows[masked..].iter().take_while(|row| (**row as usize) < end).count();
        // The k-th shard ends with the sequence that reaches k parts of the batch.
        if token >= shards.len() * tokens {
            shards.push(Shard { tokens: token..token, masked: masked..masked, sequences: Vec::new() });
        }
        if let Some(shard) = shards.last_mut() {
            let from = (shard.tokens.start, shard.masked.start);
            shard.sequences.push(Sequence {
                tokens: token - from.0..end - from.0,
                masked: masked - from.1..masked + count - from.1,
            });
            shard.tokens.end = end;
            shard.masked.end += count;
        }
        (token, masked) = (end, masked + count);
    }
    shards
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_hold_whole_sequences_in_order() {
        let lengths = vec![100, 250, 40, 580, 30];
        let masked_rows = vec![3, 99, 349, 370, 999];
        let batch = PackedBatch { token_ids: vec![0; 1000], lengths, masked_rows, ..PackedBatch::default() };
        let shards = cut(&batch);
        let tokens: Vec<_> = shards.iter().map(|shard| shard.tokens.clone()).collect();
        assert_eq!(tokens, [0..350, 350..970, 970..1000]);
        let masked: Vec<_> = shards.iter().map(|shard| shard.masked.clone()).collect();
        assert_eq!(masked, [0..3, 3..4, 4..5]);
        assert_eq!(
            shards[0].sequences,
            [Sequence { tokens: 0..100, masked: 0..2 }, Sequence { tokens: 100..350, masked: 2..3 }]
        );
        assert_eq!(shards[2].sequences, [Sequence { tokens: 0..30, masked: 0..1 }]);
    }

    #[test]
    fn equal_sequences_make_equal_shards() {
        for (sequences, shards, tokens) in [(8, 4, 256), (32, 12, 384), (1, 1, 128), (4, 4, 128), (64, 24, 384)] {
            let batch = PackedBatch {
                token_ids: vec![0; sequences * 128],
                lengths: vec![128; sequences],
                ..PackedBatch::default()
            };
            let cut = cut(&batch);
            assert_eq!((cut.len(), cut.iter().map(|shard| shard.tokens.len()).max()), (shards, Some(tokens)));
        }
    }
}
