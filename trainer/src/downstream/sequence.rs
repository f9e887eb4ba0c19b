//! Examples as the network takes them.

use super::DownstreamError;
use super::texts::ClassifiedText;
use super::words::TaggedSentence;
use model::{PackedBatch, Tokenizer};
use rayon::prelude::*;

/// What is trained on or predicted at once: tokens, the rows whose hidden states the head takes, and what it is to say there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sequence {
    /// `[tokens]`, special tokens included.
    pub token_ids: Vec<u32>,
    /// `[tokens]`: 1 for the second text of a pair; empty: all 0.
    pub token_types: Vec<u8>,
    /// Places whose hidden states the head takes, ascending.
    pub rows: Vec<u32>,
    /// A class for each row; of a span: the rows where it starts and where it ends. Empty where nothing is known.
    pub targets: Vec<u32>,
}

/// Sequences of one forward and backward pass.
#[derive(Clone, Debug, Default)]
pub(super) struct MicroBatch {
    pub(crate) packed: PackedBatch,
    /// `[sequences]`: how many rows each has.
    pub(crate) rows: Vec<usize>,
    pub(crate) targets: Vec<u32>,
}

impl MicroBatch {
    fn push(&mut self, sequence: &Sequence) {
        let first = self.packed.tokens();
        if !sequence.token_types.is_empty() {
            self.packed.token_types.resize(first, 0);
            self.packed.token_types.extend_from_slice(&sequence.token_types);
        } else if !self.packed.token_types.is_empty() {
            self.packed.token_types.resize(first + sequence.token_ids.len(), 0);
        }
        self.packed.token_ids.extend_from_slice(&sequence.token_ids);
        self.packed.lengths.push(sequence.token_ids.len());
        self.packed.masked_rows.extend(sequence.rows.iter().map(|row| first as u32 + row));
        self.rows.push(sequence.rows.len());
        self.targets.extend_from_slice(&sequence.targets);
    }
}

/// Cuts sequences into micro-batches of at most `tokens` tokens; a longer sequence is alone.
pub(super) fn micro_batches<'a>(sequences: impl Iterator<Item = &'a Sequence>, tokens: usize) -> Vec<MicroBatch> {
    let mut batches: Vec<MicroBatch> = Vec::new();
    for sequence in sequences {
        match batches.last_mut() {
            Some(batch) if batch.packed.tokens() + sequence.token_ids.len() <= tokens => batch.push(sequence),
            _ => {
                let mut batch = MicroBatch::default();
                batch.push(sequence);
                batches.push(batch);
            }
        }
    }
    batches
}

/// Sequences of texts, `[CLS] text [SEP]` or `[CLS] text [SEP] second text [SEP]`. What is longer than `max_length` loses its end; of two
/// texts the longer one does first, as in transformers. The head takes \[CLS\].
///
/// # Errors
/// When the tokenizer fails.
pub(super) fn of_texts(
    texts: &[ClassifiedText],
    tokenizer: &Tokenizer,
    max_length: usize,
    class: impl Fn(&str) -> Option<u32> + Sync,
) -> Result<Vec<Sequence>, DownstreamError> {
    let special = tokenizer.special();
    let of_text = |text: &ClassifiedText| {
        let mut first = tokenizer.encode(&text.first)?.ids;
        let mut second = text.second.as_ref().map(|second| tokenizer.encode(second)).transpose()?;
        let (kept, kept_second) = match &second {
            None => (max_length - 2, 0),
            Some(second) => shares(first.len(), second.ids.len(), max_length - 3),
        };
        first.truncate(kept);
        let mut sequence = Sequence { token_ids: vec![special.cls], rows: vec![0], ..Sequence::default() };
        sequence.token_ids.append(&mut first);
        sequence.token_ids.push(special.sep);
        if let Some(second) = &mut second {
            second.ids.truncate(kept_second);
            sequence.token_types.resize(sequence.token_ids.len(), 0);
            sequence.token_ids.append(&mut second.ids);
            sequence.token_ids.push(special.sep);
            sequence.token_types.resize(sequence.token_ids.len(), 1);
        }
        sequence.targets.extend(class(&text.class));
        Ok(sequence)
    };
    texts.par_iter().map(of_text).collect()
}

/// How much of two texts of these lengths is kept in `room` tokens ("longest first" of the `tokenizers` crate).
fn shares(first: usize, second: usize, room: usize) -> (usize, usize) {
    if first + second <= room {
        return (first, second);
    }
    let shorter = first.min(second);
    let (shorter, longer) = if 2 * shorter > room { (room / 2, room.div_ceil(2)) } else { (shorter, room - shorter) };
    if first <= second { (shorter, longer) } else { (longer, shorter) }
}

/// Sequences of sentences. The head takes the first token of each word. A sentence with more than `max_length` tokens is cut
/// between words, so that every word is scored; a word alone that is longer is cut short. A word of which the tokenizer leaves
/// nothing (a control character) is \[UNK\]. `class` gives a tag's number; where it knows none, a sentence has no targets.
///
/// # Errors
/// When the tokenizer fails.
pub(super) fn of_sentences(
    sentences: &[TaggedSentence],
    tokenizer: &Tokenizer,
    max_length: usize,
    class: impl Fn(&str) -> Option<u32> + Sync,
) -> Result<Vec<Sequence>, DownstreamError> {
    let special = tokenizer.special();
    let of_sentence = |sentence: &TaggedSentence| {
        let mut sequences: Vec<Sequence> = Vec::new();
        let mut current = Sequence { token_ids: vec![special.cls], ..Sequence::default() };
        for (word, tag) in sentence.words.iter().zip(&sentence.tags) {
            let mut ids = tokenizer.encode(word)?.ids;
            ids.truncate(max_length.saturating_sub(2).max(1));
            if ids.is_empty() {
                ids.push(special.unk);
            }
            if current.token_ids.len() + ids.len() + 1 > max_length && !current.rows.is_empty() {
                current.token_ids.push(special.sep);
                let next = Sequence { token_ids: vec![special.cls], ..Sequence::default() };
                sequences.push(std::mem::replace(&mut current, next));
            }
            current.rows.push(current.token_ids.len() as u32);
            current.token_ids.extend(ids);
            current.targets.extend(class(tag));
        }
        current.token_ids.push(special.sep);
        sequences.push(current);
        for sequence in &mut sequences {
            if sequence.targets.len() < sequence.rows.len() {
                sequence.targets.clear();
            }
        }
        Ok(sequences)
    };
    let lists: Result<Vec<Vec<Sequence>>, DownstreamError> = sentences.par_iter().map(of_sentence).collect();
    Ok(lists?.into_iter().flatten().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longer_text_is_cut_first() {
        for ((first, second, room), expected) in [
            ((3, 4, 7), (3, 4)),
            ((3, 9, 8), (3, 5)),
            ((9, 3, 8), (5, 3)),
            ((9, 9, 7), (3, 4)),
            ((9, 8, 7), (4, 3)),
            ((0, 9, 7), (0, 7)),
            ((4, 9, 8), (4, 4)),
        ] {
            assert_eq!(shares(first, second, room), expected, "{first} {second} {room}");
        }
    }

    #[test]
    fn types_are_filled_up_in_a_batch() {
        let plain = Sequence { token_ids: vec![2, 9, 3], rows: vec![1], targets: vec![4], ..Sequence::default() };
        let typed = Sequence { token_ids: vec![2, 8], token_types: vec![0, 1], rows: vec![0], targets: vec![5] };
        let batches = micro_batches([&plain, &typed, &plain, &plain].into_iter(), 8);
        assert_eq!(batches.len(), 2);
        let PackedBatch { token_ids, lengths, masked_rows, token_types } = &batches[0].packed;
        assert_eq!(token_ids, &[2, 9, 3, 2, 8, 2, 9, 3]);
        assert_eq!((lengths, masked_rows), (&vec![3, 2, 3], &vec![1, 3, 6]));
        assert_eq!(token_types, &[0, 0, 0, 0, 1, 0, 0, 0]);
        assert_eq!((&batches[0].rows, &batches[0].targets), (&vec![1, 1, 1], &vec![4, 5, 4]));
        assert_eq!(batches[1].packed.token_types, [] as [u8; 0]);
        // One that is longer than all tokens is alone.
        assert_eq!(micro_batches([&plain, &typed].into_iter(), 1).len(), 2);
    }
}
