//! What stretches of text between white space tokenise to, remembered: most of a text is stretches that came before.
//!
//! This is for tokenizers whose tokens of a text are those of its stretches, one after another. What is remembered is what the
//! tokenizer said, so the tokens are the same whatever is remembered.

use foldhash::fast::RandomState;
use model::{ModelError, Tokens};
use std::collections::HashMap;

/// Longer stretches seldom come again: addresses, and text that is written without spaces.
const STRETCH_BYTES: usize = 64;
/// A generation ends with this many stretches.
const GENERATION_STRETCHES: usize = 1 << 16;
/// A generation ends with this much text and this many tokens, whatever the number of stretches; with its table it takes about 6 MiB at
/// most.
const GENERATION_BYTES: usize = 3 << 20;

/// The stretches that came in this generation or the one before it; at most two generations are in memory.
#[derive(Default)]
pub(crate) struct Stretches {
    young: Generation,
    old: Generation,
}

#[derive(Default)]
struct Generation {
    tokens: HashMap<Box<str>, Box<[Piece]>, RandomState>,
    bytes: usize,
}

/// A token with its place in the stretch.
#[derive(Clone, Copy, Debug)]
struct Piece {
    id: u32,
    first: u8,
    end: u8,
}

impl Stretches {
    /// The tokens of `text`; `encode` tokenises a stretch.
    pub(crate) fn tokens(
        &mut self,
        text: &str,
        encode: impl Fn(&str) -> Result<Tokens, ModelError>,
    ) -> Result<Tokens, ModelError> {
        // More than most texts have; growing costs more than room.
        let expected = text.len() / 2;
        let mut tokens = Tokens { ids: Vec::with_capacity(expected), offsets: Vec::with_capacity(expected) };
        for (at, stretch) in stretches(text) {
            if stretch.len() > STRETCH_BYTES {
                let own = encode(stretch)?;
                tokens.ids.extend_from_slice(&own.ids);
                tokens.offsets.extend(own.offsets.iter().map(|(first, end)| (at + first, at + end)));
                continue;
            }
            if !self.young.append(stretch, at, &mut tokens) {
                self.recall(stretch, &encode)?;
                self.young.append(stretch, at, &mut tokens);
            }
        }
        Ok(tokens)
    }

    /// Brings a stretch into the young generation.
    fn recall(&mut self, stretch: &str, encode: impl Fn(&str) -> Result<Tokens, ModelError>) -> Result<(), ModelError> {
        let pieces = match self.old.tokens.remove(stretch) {
            Some(pieces) => pieces,
            None => {
                let own = encode(stretch)?;
                let placed = own.ids.iter().zip(&own.offsets);
                placed.map(|(id, (first, end))| Piece { id: *id, first: *first as u8, end: *end as u8 }).collect()
            }
        };
        if self.young.is_full() {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(stretch, pieces);
        Ok(())
    }
}

impl Generation {
    /// Appends the tokens of a stretch that stands at byte `at`; `false`: it is not known.
    fn append(&self, stretch: &str, at: usize, tokens: &mut Tokens) -> bool {
        let Some(pieces) = self.tokens.get(stretch) else { return false };
        tokens.ids.extend(pieces.iter().map(|piece| piece.id));
        let place = |piece: &Piece| (at + usize::from(piece.first), at + usize::from(piece.end));
        tokens.offsets.extend(pieces.iter().map(place));
        true
    }

    fn insert(&mut self, stretch: &str, pieces: Box<[Piece]>) {
        self.bytes += stretch.len() + size_of_val(&*pieces);
        self.tokens.insert(stretch.into(), pieces);
    }

    fn is_full(&self) -> bool {
        self.tokens.len() >= GENERATION_STRETCHES || self.bytes >= GENERATION_BYTES
    }
}

/// The stretches of a text, each with the byte at which it begins.
fn stretches(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let bytes = text.as_bytes();
    let is_space = |byte: &u8| matches!(byte, b' ' | b'\t' | b'\n' | b'\r');
    let mut next = 0;
    std::iter::from_fn(move || {
        let first = next + bytes[next..].iter().position(|byte| !is_space(byte))?;
        next = bytes[first..].iter().position(is_space).map_or(bytes.len(), |length| first + length);
        Some((first, &text[first..next]))
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::cell::Cell;

    /// Every character that is no white space is a token; `calls` counts.
    fn letters(text: &str, calls: &Cell<usize>) -> Result<Tokens, ModelError> {
        calls.set(calls.get() + 1);
        let letters = text.char_indices().filter(|(_, c)| !c.is_whitespace());
        let tokens = letters.map(|(at, c)| (u32::from(c), (at, at + c.len_utf8())));
        let (ids, offsets) = tokens.unzip();
        Ok(Tokens { ids, offsets })
    }

    #[test]
    fn tokens_are_those_of_the_whole_text() {
        let (calls, reference) = (Cell::new(0), Cell::new(0));
        let mut known = Stretches::default();
        let long = "é".repeat(STRETCH_BYTES);
        let texts = [
            "",
            " \t\r\n ",
            "the menu",
            "\n  the menu  \t opens\u{a0}the\u{3000}menu. ",
            "der Menüpunkt 打开表格",
            &format!("a {long} {long} b"),
        ];
        for text in texts.iter().chain(&texts) {
            let tokens = known.tokens(text, |stretch| letters(stretch, &calls)).unwrap();
            assert_eq!(tokens, letters(text, &reference).unwrap(), "{text:?}");
        }
        // the, menu, opens the menu., der, Menüpunkt, 打开表格, a, b once each; what is long each of the four times.
        assert_eq!(calls.get(), 8 + 4);
    }

    #[test]
    fn stretches_that_come_often_stay_and_memory_is_bounded() {
        let calls = Cell::new(0);
        let mut known = Stretches::default();
        let distinct = 3 * GENERATION_STRETCHES;
        for number in 0..distinct {
            let text = format!("often {number}");
            let tokens = known.tokens(&text, |stretch| letters(stretch, &calls)).unwrap();
            assert_eq!(tokens.ids.len(), text.len() - 1);
            for generation in [&known.young, &known.old] {
                assert!(generation.tokens.len() <= GENERATION_STRETCHES && generation.bytes <= GENERATION_BYTES + 1024);
            }
        }
        assert_eq!(calls.get(), distinct + 1, "each once");
        known.tokens("0", |stretch| letters(stretch, &calls)).unwrap();
        assert_eq!(calls.get(), distinct + 2, "it was forgotten long ago");
    }
}
