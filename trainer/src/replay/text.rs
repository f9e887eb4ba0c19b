//! Copies as text.

use store::MaskedCopy;

/// A copy in student ids as text: pieces of words joined, what was masked in double brackets. Special tokens that were not masked
/// are left out.
pub(super) fn of_copy(copy: &MaskedCopy, tokens: &[String], special: usize) -> String {
    let mut text = String::new();
    let mut masked = copy.masked_positions.iter().zip(&copy.gold_ids).peekable();
    for (position, id) in (0..).zip(&copy.token_ids) {
        let gold = masked.next_if(|(at, _)| **at == position).map(|(_, gold)| gold);
        if gold.is_none() && (*id as usize) < special {
            continue;
        }
        let token = token(tokens, *gold.unwrap_or(id));
        let rest = token.strip_prefix("##").filter(|rest| !rest.is_empty());
        if rest.is_none() && !text.is_empty() {
            text.push(' ');
        }
        let piece = rest.unwrap_or(token);
        if gold.is_some() {
            text.extend(["[[", piece, "]]"]);
        } else {
            text.push_str(piece);
        }
    }
    text
}

/// The token with this id.
pub(super) fn token(tokens: &[String], id: u32) -> &str {
    tokens.get(id as usize).map_or("?", String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vocabulary::SPECIAL_COUNT;

    #[test]
    fn pieces_are_joined_and_masked_tokens_marked() {
        let tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "house", "##s", "##", "red"];
        let tokens = tokens.map(str::to_owned);
        let copy = MaskedCopy {
            teacher: 0,
            token_ids: vec![2, 5, 4, 7, 8, 4, 9, 3],
            masked_positions: vec![2, 5],
            gold_ids: vec![6, 7],
            label: None,
        };
        assert_eq!(of_copy(&copy, &tokens, SPECIAL_COUNT), "the [[house]]s ##[[s]] red");
        assert_eq!(token(&tokens, 99), "?");
    }
}
