//! Words: which tokens of a copy stand for one word, and which words all copies of an example have.

use crate::teacher::TeacherTokenizer;
use model::Tokens;
use std::ops::Range;

/// Tokens `first..end` of a copy, which stand for one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Word {
    pub(crate) first: usize,
    pub(crate) end: usize,
}

/// A stretch of the text that is one or more whole words in every copy, and in which no copy has a special token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SharedWord {
    /// Where it begins in the example's text.
    pub(crate) first_byte: usize,
    /// `[teachers]`: its tokens in each copy.
    pub(crate) tokens: Vec<Range<usize>>,
}

/// The words of a copy, in order: a token that continues a word belongs to the one before it.
pub(crate) fn words_of(teacher: &TeacherTokenizer, token_ids: &[u32]) -> impl Iterator<Item = Word> {
    let mut first = 0;
    std::iter::from_fn(move || {
        if first == token_ids.len() {
            return None;
        }
        let rest = &token_ids[first + 1..];
        let end = first + 1 + rest.iter().take_while(|id| teacher.continues_word(**id)).count();
        Some(Word { first: std::mem::replace(&mut first, end), end })
    })
}

/// The words that all copies of an example may mask, in the order of the text. `tokens` are those of each teacher's copy.
///
/// Tokenizers do not quite agree on what a word is (for some a run of Chinese characters is one). Words of different copies
/// that overlap in the text are one: the smallest stretch that cuts no word of any copy.
pub(crate) fn shared_words(teachers: &[&TeacherTokenizer], tokens: &[&Tokens]) -> Vec<SharedWord> {
    let mut placed = Vec::new();
    for (index, (teacher, tokens)) in teachers.iter().zip(tokens).enumerate() {
        for word in words_of(teacher, &tokens.ids) {
            let offsets = &tokens.offsets[word.first..word.end];
            let first = offsets.iter().map(|(first, _)| *first).min().unwrap_or(0);
            let end = offsets.iter().map(|(_, end)| *end).max().unwrap_or(first);
            placed.push((first, end, index, word));
        }
    }
    placed.sort_by_key(|(first, end, index, word)| (*first, *end, *index, word.first));
    let mut shared = Vec::new();
    let mut rest = placed.as_slice();
    while let Some((first_byte, mut end, ..)) = rest.first().copied() {
        let together = rest.iter().take_while(|(first, its_end, ..)| {
            let overlaps = *first == first_byte || *first < end;
            end = if overlaps { end.max(*its_end) } else { end };
            overlaps
        });
        let (words, later) = rest.split_at(together.count());
        rest = later;
        shared.extend(shared_word(first_byte, words, teachers, tokens));
    }
    shared
}

/// `words` as one, unless some copy has none of them, or a special token in it.
fn shared_word(
    first_byte: usize,
    words: &[(usize, usize, usize, Word)],
    teachers: &[&TeacherTokenizer],
    tokens: &[&Tokens],
) -> Option<SharedWord> {
    let ranges = teachers.iter().zip(tokens).enumerate().map(|(index, (teacher, tokens))| {
        let mut own = words.iter().filter(|(.., of, _)| *of == index).map(|(.., word)| *word);
        let first = own.next()?;
        // Offsets ascend with tokens; where they do not, the words are not next to each other.
        let last = own.try_fold(first, |last, word| (word.first == last.end).then_some(word))?;
        let range = first.first..last.end;
        let special = tokens.ids[range.clone()].iter().any(|id| teacher.tokenizer.is_special(*id));
        (!special).then_some(range)
    });
    Some(SharedWord { first_byte, tokens: ranges.collect::<Option<_>>()? })
}
