//! Cutting a long text into pieces that give the same tokens apart as together.
//!
//! The tokenizer keeps dozens of bytes per byte of text, so a document of many megabytes must not reach it in one
//! piece. BERT's words end at white space and around Chinese characters; what follows such a place cannot change
//! what stands before it.

use std::ops::Range;
use tokenizers::{NormalizerWrapper, PreTokenizerWrapper, Tokenizer};

/// Pieces grow until this length, then end at the next place where a word ends.
const PIECE_BYTES: usize = 32 << 10;

/// A piece ends here even if no word does. A word of this length is [UNK]; cut in two, it is [UNK] twice.
const PIECE_BYTES_MAX: usize = 1 << 20;

/// Where texts for one tokenizer may be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cut {
    at_spaces: bool,
    at_chinese: bool,
}

impl Cut {
    pub(crate) fn suitable_for(tokenizer: &Tokenizer) -> Self {
        let bert = match (tokenizer.get_normalizer(), tokenizer.get_pre_tokenizer()) {
            (Some(NormalizerWrapper::BertNormalizer(bert)), Some(PreTokenizerWrapper::BertPreTokenizer(_))) => bert,
            _ => return Self { at_spaces: false, at_chinese: false },
        };
        let added = tokenizer.get_added_tokens_decoder();
        let ordinary = |token: &tokenizers::AddedToken| token.content.chars().all(|c| !is_space(c) && !is_chinese(c));
        let at_spaces = added.values().all(ordinary);
        Self { at_spaces, at_chinese: at_spaces && bert.handle_chinese_chars }
    }

    /// Ranges of bytes that cover the text, in order.
    pub(crate) fn pieces(self, text: &str) -> impl Iterator<Item = Range<usize>> {
        let mut first = 0;
        std::iter::from_fn(move || {
            if first == text.len() {
                return None;
            }
            let piece = first..self.end(text, first);
            first = piece.end;
            Some(piece)
        })
    }

    fn end(self, text: &str, first: usize) -> usize {
        let rest = text.len() - first;
        if rest <= PIECE_BYTES {
            return text.len();
        }
        let from = text.ceil_char_boundary(first + PIECE_BYTES);
        let until = text.floor_char_boundary(first + PIECE_BYTES_MAX.min(rest));
        let ends_here = |c: char| (self.at_spaces && is_space(c)) || (self.at_chinese && is_chinese(c));
        match text[from..until].find(ends_here) {
            Some(at) => from + at,
            None => until,
        }
    }
}

/// White space that the normaliser keeps as such. (Some that Unicode calls white space is a control
/// character too, and vanishes without ending a word.)
fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\r' | '\u{3000}')
}

/// The most frequent of the characters that the normaliser isolates.
fn is_chinese(c: char) -> bool {
    ('\u{4e00}'..='\u{9fff}').contains(&c)
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVERYWHERE: Cut = Cut { at_spaces: true, at_chinese: true };

    fn check(cut: Cut, text: &str, expected_lengths: &[usize]) {
        let pieces: Vec<_> = cut.pieces(text).collect();
        assert_eq!(pieces.iter().map(Range::len).collect::<Vec<_>>(), expected_lengths);
        assert_eq!(pieces.iter().map(|piece| &text[piece.clone()]).collect::<String>(), text);
    }

    #[test]
    fn pieces_cover_the_text_and_end_with_words() {
        check(EVERYWHERE, "", &[]);
        check(EVERYWHERE, "a b", &[3]);
        let word = "x".repeat(PIECE_BYTES + 5);
        check(EVERYWHERE, &format!("{word} {word}"), &[word.len(), word.len() + 1]);
        check(EVERYWHERE, &format!("{word}中{word}"), &[word.len(), word.len() + 3]);
        check(Cut { at_chinese: false, ..EVERYWHERE }, &format!("{word}中 y"), &[word.len() + 3, 2]);
    }

    #[test]
    fn a_word_without_end_is_cut_between_characters() {
        let text = "é".repeat(PIECE_BYTES_MAX / 2 + 1) + "é";
        check(EVERYWHERE, &format!("x{text}"), &[PIECE_BYTES_MAX - 1, 6]);
    }
}
