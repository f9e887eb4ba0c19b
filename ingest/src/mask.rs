//! Masking: 80 % [MASK], 10 % a random token, 10 % kept, as a function of (seed, example, teacher, round).

use crate::teacher::TeacherTokenizer;
use model::random::Philox;
use store::{MaskedCopy, Span};

/// How much is masked, and the seed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Masking {
    pub(crate) seed: u64,
    pub(crate) probability: f64,
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
    /// One teacher's copy of an example whose tokens are `token_ids` (without special tokens). `None`: no token
    /// may be masked.
    pub(crate) fn copy(&self, teacher: &TeacherTokenizer, token_ids: &[u32], key: ExampleKey) -> Option<MaskedCopy> {
        let maskable: Vec<usize> =
            (0..token_ids.len()).filter(|at| !teacher.tokenizer.is_special(token_ids[*at])).collect();
        if maskable.is_empty() {
            return None;
        }
        let stream = self.stream(teacher, key);
        let mut chosen: Vec<usize> = maskable
            .iter()
            .copied()
            .filter(|at| stream.uniform(*at as u64, draw::WHETHER) < self.probability)
            .collect();
        if chosen.is_empty() {
            chosen.push(maskable[stream.below(maskable.len() as u64, 0, draw::AT_LEAST_ONE) as usize]);
        }
        let special = teacher.tokenizer.special();
        let mut copy = MaskedCopy {
            teacher: teacher.index,
            token_ids: Vec::with_capacity(token_ids.len() + 2),
            masked_positions: chosen.iter().map(|at| *at as u32 + 1).collect(),
            gold_ids: chosen.iter().map(|at| token_ids[*at]).collect(),
            label: None,
        };
        copy.token_ids.push(special.cls);
        copy.token_ids.extend_from_slice(token_ids);
        copy.token_ids.push(special.sep);
        for at in chosen {
            let how = stream.uniform(at as u64, draw::HOW);
            if how < 0.8 {
                copy.token_ids[at + 1] = special.mask;
            } else if how < 0.9 {
                let which = stream.below(teacher.ordinary_ids.len() as u64, at as u64, draw::WHICH);
                copy.token_ids[at + 1] = teacher.ordinary_ids[which as usize];
            }
        }
        Some(copy)
    }

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
}
