//! Questions as sequences, and answers from logits.
//!
//! A sequence is `[CLS] question [SEP] part of the context [SEP]`. A context that is too long for one sequence is read through windows which begin
//! `doc_stride` tokens apart (BERT's script). What a model answers follows the rules of that script and of transformers' `run_qa`: of the 20 most
//! likely places for either end in each window, all pairs inside the context that are in order and at most 30 tokens long compete, over all
//! windows, by the sum of their logits; the answer is the text of the context from the first token's first to the last one's last character.

use super::questions::Question;
use super::{DownstreamError, FineTuneOptions, Sequence};
use model::{Tokenizer, Tokens};
use rayon::prelude::*;

/// Tokens of a question at most (BERT's `max_query_length`).
const QUESTION_TOKENS_MAX: usize = 64;
/// Likely places of an end that compete.
const PLACES: usize = 20;
/// Tokens of an answer at most.
const ANSWER_TOKENS_MAX: usize = 30;

/// The part of a context that a sequence holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Window {
    /// Index of the question.
    pub(super) question: usize,
    /// Place of the context's first token in the sequence.
    pub(super) first: usize,
    /// `[tokens of the context]`: bytes of the context.
    pub(super) offsets: Vec<(usize, usize)>,
}

/// Sequences of questions, each with its window. Targets are the ends of the first answer, or twice \[CLS\] where it is not in the window as
/// a whole.
///
/// # Errors
/// When the tokenizer fails.
pub(super) fn of_questions(
    questions: &[Question],
    tokenizer: &Tokenizer,
    options: &FineTuneOptions,
) -> Result<Vec<(Sequence, Window)>, DownstreamError> {
    let of_question = |(index, question): (usize, &Question)| {
        let mut asked = tokenizer.encode(question.question.trim())?.ids;
        asked.truncate(QUESTION_TOKENS_MAX.min((options.max_length - 3) / 2));
        let context = tokenizer.encode(&question.context)?;
        let room = options.max_length - asked.len() - 3;
        let step = options.doc_stride.clamp(1, room);
        let mut windows = Vec::new();
        let mut first = 0;
        loop {
            let end = (first + room).min(context.ids.len());
            windows.push(window((index, question), &asked, &context, first..end, tokenizer));
            if end == context.ids.len() {
                return Ok(windows);
            }
            first += step;
        }
    };
    let lists: Result<Vec<Vec<_>>, DownstreamError> = questions.par_iter().enumerate().map(of_question).collect();
    Ok(lists?.into_iter().flatten().collect())
}

fn window(
    (index, question): (usize, &Question),
    asked: &[u32],
    context: &Tokens,
    part: std::ops::Range<usize>,
    tokenizer: &Tokenizer,
) -> (Sequence, Window) {
    let special = tokenizer.special();
    let first = asked.len() + 2;
    let mut token_ids = vec![special.cls];
    token_ids.extend_from_slice(asked);
    token_ids.push(special.sep);
    token_ids.extend_from_slice(&context.ids[part.clone()]);
    token_ids.push(special.sep);
    let token_types = (0..token_ids.len()).map(|at| u8::from(at >= first)).collect();
    let rows = (0..token_ids.len() as u32).collect();
    let offsets = context.offsets[part].to_vec();
    let targets = question.answers.first().and_then(|answer| tokens_of(answer.span, &offsets));
    let targets = targets.map_or(vec![0, 0], |(start, end)| vec![(first + start) as u32, (first + end) as u32]);
    (Sequence { token_ids, token_types, rows, targets }, Window { question: index, first, offsets })
}

/// The first and the last token of the bytes from `start` to `end`, if they are all there.
fn tokens_of((start, end): (usize, usize), offsets: &[(usize, usize)]) -> Option<(usize, usize)> {
    let whole = offsets.first()?.0 <= start && offsets.last()?.1 >= end;
    let first = offsets.iter().rposition(|offset| offset.0 <= start)?;
    let last = offsets.iter().position(|offset| offset.1 >= end)?;
    (whole && first <= last).then_some((first, last))
}

/// The answers to `count` questions, as bytes of their contexts; `None` where no pair of places is an answer. `logits` are `[rows, 2]` for each
/// window.
pub(super) fn answers(windows: &[Window], logits: &[Vec<f32>], count: usize) -> Vec<Option<(usize, usize)>> {
    let mut best: Vec<Option<(f32, (usize, usize))>> = vec![None; count];
    for (window, logits) in windows.iter().zip(logits) {
        let best = &mut best[window.question];
        let of = |end: usize| logits.iter().skip(end).step_by(2).copied().collect::<Vec<f32>>();
        let (starts, ends) = (of(0), of(1));
        let likely_ends = likely(&ends);
        for start in likely(&starts) {
            for &end in &likely_ends {
                let score = starts[start] + ends[end];
                if end >= start
                    && end - start < ANSWER_TOKENS_MAX
                    && best.is_none_or(|(highest, _)| score > highest)
                    && let Some(bytes) = window.bytes(start, end)
                {
                    *best = Some((score, bytes));
                }
            }
        }
    }
    best.into_iter().map(|best| best.map(|(_, bytes)| bytes)).collect()
}

impl Window {
    /// The bytes from one row's token to another's, if both are the context's.
    fn bytes(&self, start: usize, end: usize) -> Option<(usize, usize)> {
        let offset = |row: usize| row.checked_sub(self.first).and_then(|at| self.offsets.get(at));
        Some((offset(start)?.0, offset(end)?.1))
    }
}

/// The places of the largest logits, largest first; of equal ones the first.
fn likely(logits: &[f32]) -> Vec<usize> {
    let mut places: Vec<usize> = (0..logits.len()).collect();
    places.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]));
    places.truncate(PLACES);
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_cut_out_of_tokens() {
        let offsets = [(0, 3), (4, 6), (6, 9), (10, 12)];
        for (span, expected) in [
            ((0, 3), Some((0, 0))),
            ((4, 9), Some((1, 2))),
            ((5, 7), Some((1, 2))),
            ((3, 6), Some((0, 1))),
            ((10, 13), None),
            ((10, 12), Some((3, 3))),
        ] {
            assert_eq!(tokens_of(span, &offsets), expected, "{span:?}");
        }
        assert_eq!(tokens_of((0, 3), &offsets[1..]), None);
        assert_eq!(tokens_of((0, 3), &[]), None);
    }

    #[test]
    fn the_best_pair_of_ends_wins_over_all_windows() {
        let window = |question, first| Window { question, first, offsets: vec![(0, 2), (3, 5), (5, 8)] };
        // Rows of a window: [CLS], question, [SEP], the context's three tokens, [SEP].
        let logits = |starts: [f32; 7], ends: [f32; 7]| {
            starts.into_iter().zip(ends).flat_map(|(start, end)| [start, end]).collect::<Vec<f32>>()
        };
        // The ends alone would be out of order; rows outside the context have no say.
        let odd = logits([9.0, 9.0, 9.0, 1.0, 2.0, 5.0, 9.0], [9.0, 9.0, 9.0, 5.5, 3.0, 1.0, 9.0]);
        let sure = logits([0.0, 0.0, 0.0, 0.0, 4.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0, 4.0, 0.0]);
        let windows = [window(0, 3), window(1, 3), window(1, 3)];
        assert_eq!(answers(&windows[..1], std::slice::from_ref(&odd), 2), [Some((0, 2)), None]);
        assert_eq!(answers(&windows, &[odd.clone(), odd, sure], 2), [Some((0, 2)), Some((3, 8))]);
        // Too far apart.
        let long = Window { question: 0, first: 1, offsets: (0..40).map(|at| (at, at + 1)).collect() };
        let mut far = vec![0.0; 2 * 42];
        (far[2], far[2 * 31 + 1], far[2 * 30 + 1]) = (5.0, 5.0, 4.0);
        assert_eq!(answers(&[long], &[far], 1), [Some((0, 30))]);
    }
}
