//! Masking: 80 % [MASK], 10 % a random token, 10 % kept, as a function of (seed, example, teacher, round).
//!
//! What is drawn is a unit: a token, a word of the copy, or a word that all copies of the example have (see
//! [`MaskUnit`]). Every unit is drawn with the same probability, so that is the expected share of the tokens that may be
//! masked, whatever the unit. How a masked token is shown is drawn for each token alone.

use crate::teacher::TeacherTokenizer;
use crate::words::{Word, shared_words, words_of};
use model::Tokens;
use model::random::Philox;
use store::{MaskedCopy, Span};

/// What is masked together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MaskUnit {
    /// Each token by itself.
    #[default]
    Token,
    /// All tokens of a word. Each copy draws its own words.
    Word,
    /// All tokens of a word, and all copies of an example mask the same words of its text. A word that some copy does not
    /// have, or that some teacher only knows as [UNK], is masked in none.
    SharedWord,
}

/// How much is masked, what together, and the seed.
#[derive(Clone, Copy, Debug)]
pub struct Masking {
    /// Seed of the draws.
    pub seed: u64,
    /// Probability with which each unit is masked.
    pub probability: f64,
    /// What is masked together.
    pub unit: MaskUnit,
}

/// What identifies an example.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ExampleKey<'a> {
    pub(crate) source: &'a str,
    pub(crate) document: &'a str,
    pub(crate) span: Span,
    pub(crate) round: u32,
}

/// Second index of the draws for one token.
mod draw {
    pub(super) const WHETHER: u64 = 0;
    pub(super) const HOW: u64 = 1;
    pub(super) const WHICH: u64 = 2;
    pub(super) const AT_LEAST_ONE: u64 = 3;
}

impl Masking {
    /// The copies of an example, one for each of its language's teachers; `tokens` (without special tokens) are theirs in the
    /// same order. `None`: some copy would have nothing that may be masked.
    pub(crate) fn copies(
        &self,
        teachers: &[TeacherTokenizer],
        tokens: &[Tokens],
        key: ExampleKey,
    ) -> Option<Vec<MaskedCopy>> {
        let streams = teachers.iter().map(|teacher| self.stream(teacher, key));
        let copies = teachers.iter().zip(tokens).zip(streams);
        match self.unit {
            MaskUnit::Token | MaskUnit::Word => copies
                .map(|((teacher, tokens), stream)| {
                    let units = self.units(teacher, tokens);
                    let chosen = self.choose(&units, |unit| unit.first as u64, &stream)?;
                    Some(copy(teacher, &tokens.ids, chosen.iter().flat_map(|unit| unit.first..unit.end), &stream))
                })
                .collect(),
            MaskUnit::SharedWord => {
                let teachers: Vec<_> = teachers.iter().collect();
                let shared = shared_words(&teachers, &tokens.iter().collect::<Vec<_>>());
                let chosen = self.choose(&shared, |word| word.first_byte as u64, &self.shared_stream(key))?;
                let copies = copies.enumerate().map(|(index, ((teacher, tokens), stream))| {
                    let mut own: Vec<usize> = chosen.iter().flat_map(|word| word.tokens[index].clone()).collect();
                    own.sort_unstable();
                    copy(teacher, &tokens.ids, own.into_iter(), &stream)
                });
                Some(copies.collect())
            }
        }
    }

    /// A copy that masks the words that another teacher's copy masks, where both have them. `other`: that teacher, its tokens, and
    /// the positions that its copy masks, counting \[CLS\]. `None`: there is no such word.
    pub(crate) fn aligned_copy(
        &self,
        (teacher, tokens): (&TeacherTokenizer, &Tokens),
        other: (&TeacherTokenizer, &Tokens, &[u32]),
        key: ExampleKey,
    ) -> Option<MaskedCopy> {
        let (other, other_tokens, masked) = other;
        let is_masked = |at: usize| masked.binary_search(&(at as u32 + 1)).is_ok();
        let shared = shared_words(&[other, teacher], &[other_tokens, tokens]);
        let chosen = shared.into_iter().filter(|word| word.tokens[0].clone().all(is_masked));
        let mut own: Vec<usize> = chosen.flat_map(|word| word.tokens[1].clone()).collect();
        own.sort_unstable();
        let stream = self.stream(teacher, key);
        (!own.is_empty()).then(|| copy(teacher, &tokens.ids, own.into_iter(), &stream))
    }

    /// What of a copy may be masked.
    fn units(&self, teacher: &TeacherTokenizer, tokens: &Tokens) -> Vec<Word> {
        let may = |word: &Word| !tokens.ids[word.first..word.end].iter().any(|id| teacher.tokenizer.is_special(*id));
        match self.unit {
            MaskUnit::Token => (0..tokens.ids.len()).map(|at| Word { first: at, end: at + 1 }).filter(may).collect(),
            MaskUnit::Word | MaskUnit::SharedWord => words_of(teacher, &tokens.ids).filter(may).collect(),
        }
    }

    /// Those units, at least one, that are masked; `index` tells the draws of one unit from another's. `None`: there are no
    /// units.
    fn choose<'a, U>(&self, units: &'a [U], index: impl Fn(&U) -> u64, stream: &Philox) -> Option<Vec<&'a U>> {
        let mut chosen: Vec<&U> =
            units.iter().filter(|unit| stream.uniform(index(unit), draw::WHETHER) < self.probability).collect();
        if chosen.is_empty() && !units.is_empty() {
            chosen.push(&units[stream.below(units.len() as u64, 0, draw::AT_LEAST_ONE) as usize]);
        }
        (!chosen.is_empty()).then_some(chosen)
    }

    /// The draws for one teacher's copy.
    fn stream(&self, teacher: &TeacherTokenizer, key: ExampleKey) -> Philox {
        let parts: [&[u8]; 6] = [
            key.source.as_bytes(),
            key.document.as_bytes(),
            &key.span.first.to_le_bytes(),
            &key.span.end.to_le_bytes(),
            teacher.name.as_bytes(),
            &key.round.to_le_bytes(),
        ];
        Philox::new(self.seed, "mask", &parts)
    }

    /// The draws for all copies of an example.
    fn shared_stream(&self, key: ExampleKey) -> Philox {
        let parts: [&[u8]; 5] = [
            key.source.as_bytes(),
            key.document.as_bytes(),
            &key.span.first.to_le_bytes(),
            &key.span.end.to_le_bytes(),
            &key.round.to_le_bytes(),
        ];
        Philox::new(self.seed, "mask shared words", &parts)
    }
}

/// A copy whose tokens at `chosen`, ascending, are masked.
fn copy(
    teacher: &TeacherTokenizer,
    token_ids: &[u32],
    chosen: impl Iterator<Item = usize>,
    stream: &Philox,
) -> MaskedCopy {
    let special = teacher.tokenizer.special();
    let mut copy = MaskedCopy {
        teacher: teacher.index,
        token_ids: Vec::with_capacity(token_ids.len() + 2),
        masked_positions: Vec::new(),
        gold_ids: Vec::new(),
        label: None,
    };
    copy.token_ids.push(special.cls);
    copy.token_ids.extend_from_slice(token_ids);
    copy.token_ids.push(special.sep);
    for at in chosen {
        copy.masked_positions.push(at as u32 + 1);
        copy.gold_ids.push(token_ids[at]);
        let how = stream.uniform(at as u64, draw::HOW);
        if how < 0.8 {
            copy.token_ids[at + 1] = special.mask;
        } else if how < 0.9 {
            let which = stream.below(teacher.ordinary_ids.len() as u64, at as u64, draw::WHICH);
            copy.token_ids[at + 1] = teacher.ordinary_ids[which as usize];
        }
    }
    copy
}
