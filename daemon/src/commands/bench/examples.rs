//! Text → sequences → masked copies → batches, the way the programs we compare with do it: the lines of a document,
//! packed greedily. A run cuts its examples elsewhere (several tokenizers have to agree), but labels them alike.

use crate::failure::{ExitCode, Failure};
use model::Tokenizer;
use model::random::Philox;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;
use store::MaskedCopy;

const MASKING_PROBABILITY: f64 = 0.15;

/// Second index of the draws for one example: three per position.
mod draw {
    pub(super) const PER_POSITION: u64 = 3;
    pub(super) const WHETHER: u64 = 0;
    pub(super) const HOW: u64 = 1;
    pub(super) const WHICH: u64 = 2;
}

/// Reads whole documents, until they have `limit_tokens` tokens, as sequences of at most `max_length` (at least 3),
/// `[CLS]` and `[SEP]` included. An empty line ends a document.
///
/// # Errors
/// When the text cannot be read, is not UTF-8, or is empty.
pub(super) fn read(
    path: &Path,
    tokenizer: &Tokenizer,
    max_length: usize,
    limit_tokens: usize,
) -> Result<Vec<Vec<u32>>, Failure> {
    let failed = |error: std::io::Error| Failure::io("read", path, &error);
    let unusable = |what: &str| Failure::new(ExitCode::DataError, format!("{}: {what}", path.display()));
    let mut file = BufReader::new(File::open(path).map_err(failed)?);
    let mut packer = Packer { tokenizer, room: max_length - 2, sequences: Vec::new(), tokens: 0, current: Vec::new() };
    let mut line = Vec::new();
    loop {
        line.clear();
        let at_end = file.read_until(b'\n', &mut line).map_err(failed)? == 0;
        let text = std::str::from_utf8(&line).map_err(|_| unusable("it is not UTF-8"))?.trim_end_matches(['\r', '\n']);
        packer.add(text)?;
        if text.is_empty() {
            packer.finish();
            if at_end || packer.tokens >= limit_tokens {
                break;
            }
        }
    }
    if packer.sequences.is_empty() { Err(unusable("there is no text in it")) } else { Ok(packer.sequences) }
}

/// Masks 15 % of each sequence's tokens, at least one: 80 % of them become `[MASK]`, 10 % a random token, 10 % stay.
pub(super) fn mask(sequences: Vec<Vec<u32>>, tokenizer: &Tokenizer, seed: u64) -> Vec<MaskedCopy> {
    let stream = Philox::new(seed, "bench", &[b"mask"]);
    let ordinary: Vec<u32> = (0..tokenizer.len() as u32).filter(|id| !tokenizer.is_special(*id)).collect();
    let mask_one = |(token_ids, number)| mask_sequence(token_ids, number, &stream, tokenizer.special().mask, &ordinary);
    sequences.into_iter().zip(0..).map(mask_one).collect()
}

/// Batches as ingestion forms them: copies by ascending length, at most `batch_tokens` tokens together; a copy that is
/// longer alone is a batch of its own.
pub(super) fn batches(mut copies: Vec<MaskedCopy>, batch_tokens: usize) -> Vec<Vec<MaskedCopy>> {
    copies.sort_by_key(|copy| copy.token_ids.len());
    let mut batches: Vec<Vec<MaskedCopy>> = Vec::new();
    let mut tokens = 0;
    for copy in copies {
        let length = copy.token_ids.len();
        match batches.last_mut() {
            Some(batch) if tokens + length <= batch_tokens => batch.push(copy),
            _ => {
                batches.push(vec![copy]);
                tokens = 0;
            }
        }
        tokens += length;
    }
    batches
}

/// Packs the lines of documents into sequences.
struct Packer<'a> {
    tokenizer: &'a Tokenizer,
    /// Tokens of a sequence at most, without `[CLS]` and `[SEP]`.
    room: usize,
    /// `[CLS]` and `[SEP]` included.
    sequences: Vec<Vec<u32>>,
    /// Tokens of `sequences`.
    tokens: usize,
    /// The sequence that is being filled, without `[CLS]` and `[SEP]`.
    current: Vec<u32>,
}

impl Packer<'_> {
    /// Adds a line of the document.
    fn add(&mut self, line: &str) -> Result<(), Failure> {
        let tokens = self.tokenizer.encode(line).map_err(|error| Failure::new(ExitCode::Software, error))?;
        for piece in tokens.ids.chunks(self.room) {
            if self.current.len() + piece.len() > self.room {
                self.finish();
            }
            self.current.extend_from_slice(piece);
        }
        Ok(())
    }

    /// Ends the sequence, if it has begun.
    fn finish(&mut self) {
        if self.current.is_empty() {
            return;
        }
        let special = self.tokenizer.special();
        let mut sequence = vec![special.cls];
        sequence.append(&mut self.current);
        sequence.push(special.sep);
        self.tokens += sequence.len();
        self.sequences.push(sequence);
    }
}

fn mask_sequence(mut token_ids: Vec<u32>, number: u64, stream: &Philox, mask: u32, ordinary_ids: &[u32]) -> MaskedCopy {
    let index = |at: u32, draw: u64| u64::from(at) * draw::PER_POSITION + draw;
    let inner = 1..token_ids.len() as u32 - 1;
    let chosen = |at: &u32| stream.uniform(number, index(*at, draw::WHETHER)) < MASKING_PROBABILITY;
    let mut masked_positions: Vec<u32> = inner.filter(chosen).collect();
    if masked_positions.is_empty() {
        masked_positions.push(1);
    }
    let gold_ids = masked_positions.iter().map(|at| token_ids[*at as usize]).collect();
    for at in &masked_positions {
        let how = stream.uniform(number, index(*at, draw::HOW));
        if how < 0.8 {
            token_ids[*at as usize] = mask;
        } else if how >= 0.9 && !ordinary_ids.is_empty() {
            let which = stream.below(ordinary_ids.len() as u64, number, index(*at, draw::WHICH));
            token_ids[*at as usize] = ordinary_ids[which as usize];
        }
    }
    MaskedCopy { teacher: 0, token_ids, masked_positions, gold_ids, label: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_are_15_percent_of_which_80_10_10() {
        const MASK: u32 = 4;
        let stream = Philox::new(1, "bench", &[b"mask"]);
        let ordinary: Vec<u32> = (1000..2000).collect();
        let (mut inner, mut masked, mut kinds) = (0, 0, [0_usize; 3]);
        for number in 0..400 {
            let original: Vec<u32> = (10..110).collect();
            let copy = mask_sequence(original.clone(), number, &stream, MASK, &ordinary);
            inner += original.len() - 2;
            masked += copy.masked_positions.len();
            for (at, gold) in copy.masked_positions.iter().zip(&copy.gold_ids) {
                assert_eq!(original[*at as usize], *gold);
                let kind = match copy.token_ids[*at as usize] {
                    MASK => 0,
                    id if id >= 1000 => 1,
                    id => {
                        assert_eq!(id, *gold);
                        2
                    }
                };
                kinds[kind] += 1;
            }
            let changed = (0..100).filter(|at| copy.token_ids[*at as usize] != original[*at as usize]);
            assert!(changed.into_iter().all(|at| copy.masked_positions.contains(&at)), "{number}");
        }
        let share = |part: usize, of: usize| part as f64 / of as f64;
        assert!((share(masked, inner) - 0.15).abs() < 0.01);
        for (kind, expected) in kinds.into_iter().zip([0.8, 0.1, 0.1]) {
            assert!((share(kind, masked) - expected).abs() < 0.02, "{kinds:?}");
        }
    }

    #[test]
    fn the_shortest_sequence_has_its_only_token_masked() {
        let copy = mask_sequence(vec![1, 7, 2], 0, &Philox::new(0, "bench", &[]), 4, &[]);
        assert_eq!((copy.masked_positions, copy.gold_ids), (vec![1], vec![7]));
    }

    #[test]
    fn batches_are_sorted_and_cut_by_tokens() {
        let copy = |length: usize| MaskedCopy {
            teacher: 0,
            token_ids: vec![0; length],
            masked_positions: vec![1],
            gold_ids: vec![0],
            label: None,
        };
        let copies = [5, 3, 9, 3, 4, 12].map(copy);
        let lengths = |batch: &Vec<MaskedCopy>| batch.iter().map(|copy| copy.token_ids.len()).collect::<Vec<_>>();
        let cut: Vec<_> = batches(copies.into(), 10).iter().map(lengths).collect();
        assert_eq!(cut, [vec![3, 3, 4], vec![5], vec![9], vec![12]]);
    }
}
