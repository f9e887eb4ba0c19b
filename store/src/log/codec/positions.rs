//! A model of where the masked tokens of a copy are.

use super::coder::Coder;
use super::models::{Bit, Large};
use crate::log::error::Damage;

/// Mostly the placeholder, \[MASK\], stands at masked positions and nowhere else. Then only those of the tokens that one can see
/// have to be said.
#[derive(Debug, Default)]
pub(crate) struct Positions {
    /// Whether every placeholder of a copy is masked.
    all: Bit,
    /// Visible tokens between those that are masked.
    gaps: Large,
    /// If not all are: whether a token is masked; the placeholder, or another.
    masked: [Bit; 2],
}

impl Positions {
    /// Codes the masked positions of a copy, ascending.
    pub(crate) fn code<C: Coder>(
        &mut self,
        coder: &mut C,
        placeholder: u32,
        tokens: &[u32],
        positions: &mut [u32],
    ) -> Result<(), Damage> {
        let hides = |token: &usize| tokens[*token] == placeholder;
        let is_masked = |token: &usize| positions.binary_search(&(*token as u32)).is_ok();
        let all = C::ENCODES && (0..tokens.len()).filter(hides).all(|token| is_masked(&token));
        if self.all.code(coder, all) {
            return self.visible(coder, placeholder, tokens, positions);
        }
        let mut token = 0;
        for wanted in positions {
            loop {
                let Some(id) = tokens.get(token) else { return Err(too_few()) };
                let model = &mut self.masked[usize::from(*id == placeholder)];
                let found = model.code(coder, token == *wanted as usize);
                token += 1;
                if found {
                    *wanted = token as u32 - 1;
                    break;
                }
            }
        }
        Ok(())
    }

    fn visible<C: Coder>(
        &mut self,
        coder: &mut C,
        placeholder: u32,
        tokens: &[u32],
        positions: &mut [u32],
    ) -> Result<(), Damage> {
        let hidden = count_of(tokens, placeholder);
        let mut visible = positions.len().checked_sub(hidden).ok_or_else(too_few)?;
        let mut positions = positions.iter_mut();
        let mut gap = None;
        for (token, id) in (0..).zip(tokens) {
            if *id != placeholder {
                if visible == 0 {
                    continue;
                }
                let left = match gap {
                    Some(left) => left,
                    None => {
                        let until = if C::ENCODES { next_visible(&positions, placeholder, tokens) } else { 0 };
                        let between = tokens.get(token as usize..until).unwrap_or_default();
                        self.gaps.code(coder, (between.len() - count_of(between, placeholder)) as u32)
                    }
                };
                gap = left.checked_sub(1);
                if gap.is_some() {
                    continue;
                }
                visible -= 1;
            }
            *positions.next().ok_or_else(too_few)? = token;
        }
        if visible == 0 { Ok(()) } else { Err(too_few()) }
    }
}

/// The first of the positions left at which one can see the token.
fn next_visible(positions: &std::slice::IterMut<'_, u32>, placeholder: u32, tokens: &[u32]) -> usize {
    let mut left = positions.as_slice().iter().map(|position| *position as usize);
    left.find(|position| tokens[*position] != placeholder).unwrap_or(tokens.len())
}

fn count_of(tokens: &[u32], placeholder: u32) -> usize {
    tokens.iter().map(|id| u32::from(*id == placeholder)).sum::<u32>() as usize
}

fn too_few() -> Damage {
    Damage::new("fewer masked positions than there should be")
}
