//! Documents → examples: cuts a document's text into spans whose longest tokenisation fits a sequence.
//!
//! The cuts are a function of the text, the tokenizers and the limit alone. The text is tokenised once per
//! teacher, in small pieces and only as far as the next cut needs, so memory stays at a few sequences' worth.

use crate::IngestError;
use crate::format::{Reason, Rejection};
use crate::teacher::TeacherTokenizer;
use model::Tokens;
use std::collections::BTreeSet;
use std::sync::Arc;
use store::Span;

/// A span with fewer tokens (in its longest tokenisation) joins its neighbour.
const SHORTEST_TOKENS: usize = 8;
/// Text is tokenised in pieces of about this size, which end with a line or at least with a word.
const PIECE_BYTES: usize = 1 << 10;
/// A span never has more bytes, whatever its tokens: it bounds the work for text without words.
const SPAN_LIMIT_BYTES: usize = 64 << 10;

/// Contiguous text of one document, tokenised for every teacher of its language.
#[derive(Debug)]
pub(crate) struct Example {
    pub(crate) span: Span,
    pub(crate) text: String,
    /// `[teachers]`, without special tokens; the text tokenised alone, with places in it.
    pub(crate) tokens: Vec<Tokens>,
}

impl Example {
    /// Characters of its text.
    pub(crate) fn characters(&self) -> u64 {
        bytecount::num_chars(self.text.as_bytes()) as u64
    }

    /// Whether no tokenizer covers the text: for every teacher, more than half of its tokens are [UNK].
    pub(crate) fn is_mostly_unknown(&self, teachers: &[TeacherTokenizer]) -> bool {
        teachers.iter().zip(&self.tokens).all(|(teacher, tokens)| {
            let unknown = teacher.tokenizer.special().unk;
            2 * tokens.ids.iter().filter(|id| **id == unknown).count() > tokens.ids.len()
        })
    }

    /// What the quarantine says of text that no tokenizer covers.
    pub(crate) fn rejection(&self) -> Rejection {
        let Span { first, end } = self.span;
        let detail =
            format!("bytes {first} to {end} of the document: every teacher knows fewer than half of the words");
        Rejection::new(Reason::MostlyUnknown, detail, self.text.as_bytes()).with_text(&self.text)
    }
}

/// Cuts one document.
pub(crate) struct Segmenter {
    text: String,
    language: Arc<str>,
    teachers: Arc<[TeacherTokenizer]>,
    /// Tokens per example and copy, without [CLS] and [SEP].
    limit: usize,
    shortest: usize,
    /// First byte that no example has covered yet.
    first: usize,
    /// First byte that is not tokenised yet.
    filled: usize,
    /// `[teachers]`, of those that it cuts for: tokens of `first..filled`.
    pending: Vec<Vec<Token>>,
    /// Places inside `first..filled` where a piece ended within a word: tokens around them are not final.
    seams: Vec<usize>,
}

#[derive(Clone, Copy)]
struct Token {
    id: u32,
    first: usize,
    end: usize,
}

#[derive(Clone, Copy)]
struct Cut {
    at: usize,
    /// Whether it lies between words in every tokenisation.
    between_words: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Break {
    Line,
    Sentence,
    Space,
}

impl Segmenter {
    /// Cuts `text` into examples of at most `limit` tokens.
    pub(crate) fn new(text: String, language: Arc<str>, teachers: Arc<[TeacherTokenizer]>, limit: usize) -> Self {
        let pending = teachers.iter().map(|_| Vec::new()).collect();
        let shortest = SHORTEST_TOKENS.min(limit / 2);
        Self { text, language, teachers, limit, shortest, first: 0, filled: 0, pending, seams: Vec::new() }
    }

    /// Goes on at byte `first`, for the first `teachers` of the table alone.
    pub(crate) fn restart(&mut self, first: usize, teachers: usize) {
        (self.first, self.filled) = (first, first);
        self.pending = vec![Vec::new(); teachers.min(self.teachers.len())];
        self.seams.clear();
    }

    /// Whether the text before `byte` may have been cut when the language had fewer teachers, which were added one after the
    /// other while it was read: at some of these cuts. If so the segmenter goes on at `byte`, for all of them.
    pub(crate) fn was_cut_at(&mut self, byte: u64) -> Result<bool, IngestError> {
        let Some(byte) = usize::try_from(byte).ok().filter(|byte| self.text.is_char_boundary(*byte)) else {
            return Ok(false);
        };
        let mut cuts = BTreeSet::from([0]);
        for teachers in 1..=self.teachers.len() {
            for first in cuts.clone() {
                self.restart(first, teachers);
                // From where another way has been, all go alike.
                while let Some(example) = self.next()?
                    && example.span.end <= byte as u64
                    && cuts.insert(example.span.end as usize)
                {}
            }
        }
        self.restart(byte, self.teachers.len());
        Ok(cuts.contains(&byte))
    }

    /// Whether the whole document is covered.
    pub(crate) fn is_done(&self) -> bool {
        self.first == self.text.len()
    }

    /// The next example; `None` once the document is covered.
    pub(crate) fn next(&mut self) -> Result<Option<Example>, IngestError> {
        if self.is_done() {
            return Ok(None);
        }
        self.fill()?;
        let mut ceiling = self.ceiling();
        loop {
            let cut = self.choose(ceiling);
            let tokens = self.tokens(cut)?;
            let longest = (0..tokens.len()).max_by_key(|teacher| tokens[*teacher].ids.len());
            let excess = longest.map_or(0, |teacher| tokens[teacher].ids.len().saturating_sub(self.limit));
            let smallest = self.character_end(self.first);
            match longest {
                Some(teacher) if excess > 0 && cut.at > smallest => {
                    ceiling = self.lower(cut.at, teacher, excess).max(smallest);
                }
                _ => return Ok(Some(self.advance(cut, tokens))),
            }
        }
    }

    /// Tokenises until one tokenisation reaches past the longest example by the shortest one, so that no cut
    /// leaves a rest that is too short, or to the end.
    fn fill(&mut self) -> Result<(), IngestError> {
        let wanted = self.limit + self.shortest;
        while self.filled < self.text.len()
            && self.filled < self.first + SPAN_LIMIT_BYTES
            && self.pending.iter().all(|tokens| tokens.len() < wanted)
        {
            let (end, seam) = self.piece_end();
            let piece = &self.text[self.filled..end];
            for (teacher, pending) in self.teachers.iter().zip(&mut self.pending) {
                let tokens = teacher.encode(piece, &self.language)?;
                let placed = tokens.ids.iter().zip(&tokens.offsets);
                pending.extend(placed.map(|(id, (first, end))| Token {
                    id: *id,
                    first: self.filled + first,
                    end: self.filled + end,
                }));
            }
            if seam {
                self.seams.push(end);
            }
            self.filled = end;
        }
        Ok(())
    }

    /// End of the piece to tokenise next, and whether it may lie inside a word.
    fn piece_end(&self) -> (usize, bool) {
        let rest = &self.text.as_bytes()[self.filled..];
        if rest.len() <= PIECE_BYTES {
            return (self.text.len(), false);
        }
        if let Some(at) = memchr::memrchr(b'\n', &rest[..PIECE_BYTES]) {
            return (self.filled + at + 1, false);
        }
        let near = &rest[..rest.len().min(SPAN_LIMIT_BYTES)];
        match memchr::memchr3(b'\n', b' ', b'\t', &near[PIECE_BYTES..]) {
            Some(at) => (self.filled + PIECE_BYTES + at + 1, false),
            None if near.len() == rest.len() => (self.text.len(), false),
            None => (self.character_start(self.filled + near.len()), true),
        }
    }

    /// The last byte at which the example may end: beyond it some copy is too long, or the rest too short.
    fn ceiling(&self) -> usize {
        let end_of_text = self.text.len();
        let fitting = self.pending.iter().map(|tokens| tokens.get(self.limit).map_or(end_of_text, |token| token.first));
        let by_size = self.character_start(self.first + SPAN_LIMIT_BYTES);
        let ceiling = fitting.fold(by_size, usize::min);
        if ceiling == end_of_text || self.filled < end_of_text {
            return ceiling;
        }
        let leaves_enough =
            self.pending.iter().filter_map(|tokens| Some(tokens[tokens.len().checked_sub(self.shortest)?].first));
        match leaves_enough.max() {
            Some(latest) if latest > self.first => ceiling.min(latest),
            _ => ceiling,
        }
    }

    /// The best place to cut at or before `ceiling`: a line end or, failing that, a sentence end that leaves
    /// the example at least half full, else the last space, else any place between words, else inside a word.
    fn choose(&self, ceiling: usize) -> Cut {
        let clean = |at| Cut { at, between_words: true };
        if ceiling == self.text.len() {
            return clean(ceiling);
        }
        let half = self.limit.div_ceil(2);
        let (mut sentence, mut space) = (None, None);
        let mut at = ceiling;
        while at > self.first {
            if let Some(kind) = self.break_at(at) {
                let tokens = self.longest(at);
                if tokens < self.shortest || (tokens < half && sentence.or(space).is_some()) {
                    break;
                }
                match kind {
                    Break::Line if tokens >= half => return clean(at),
                    Break::Sentence if tokens >= half => sentence = sentence.or(Some(at)),
                    _ => space = space.or(Some(at)),
                }
            }
            at = self.character_start(at - 1);
        }
        if let Some(at) = sentence.or(space).or_else(|| self.last_word_boundary(ceiling, self.shortest)) {
            return clean(at);
        }
        // A few tokens before a long word: they stay alone, unless that word has to be cut anyway.
        if let Some(at) = self.last_word_boundary(ceiling, 1).filter(|at| !self.starts_too_long_word(*at)) {
            return clean(at);
        }
        Cut { at: ceiling.max(self.character_end(self.first)), between_words: false }
    }

    /// What kind of break, if any, lies at `at`: after white space, or after a full stop of a script that uses none.
    fn break_at(&self, at: usize) -> Option<Break> {
        let before = self.text[self.first..at].chars().next_back()?;
        let after = self.text[at..].chars().next();
        if separates_words(before) {
            if after.is_some_and(separates_words) {
                return None;
            }
            let said = self.text[self.first..at].trim_end_matches(separates_words);
            let gap = &self.text[self.first + said.len()..at];
            let sentence = said.trim_end_matches(closes_quotation).ends_with(ends_sentence);
            return Some(match (gap.contains('\n'), sentence) {
                (true, _) => Break::Line,
                (false, true) => Break::Sentence,
                (false, false) => Break::Space,
            });
        }
        let ends =
            matches!(before, '。' | '！' | '？') && !after.is_some_and(|c| ends_sentence(c) || closes_quotation(c));
        (ends && self.between_words(at)).then_some(Break::Sentence)
    }

    /// The last place between words, at or before `ceiling`, that leaves the example `fewest` tokens.
    fn last_word_boundary(&self, ceiling: usize, fewest: usize) -> Option<usize> {
        let tokens = self.pending.first()?;
        let up_to = tokens.partition_point(|token| token.first <= ceiling);
        let starts = tokens[..up_to].iter().rev().map(|token| token.first);
        starts.take_while(|at| self.longest(*at) >= fewest).find(|at| *at > self.first && self.between_words(*at))
    }

    fn starts_too_long_word(&self, at: usize) -> bool {
        self.teachers.iter().zip(&self.pending).any(|(teacher, tokens)| {
            let word = tokens.partition_point(|token| token.first < at);
            let continuation = tokens.get(word + 1..=word + self.limit);
            continuation.is_some_and(|tokens| tokens.iter().all(|token| teacher.continues_word(token.id)))
        })
    }

    /// Whether no tokenisation has a word across `at`.
    fn between_words(&self, at: usize) -> bool {
        !self.seams.contains(&at)
            && self.teachers.iter().zip(&self.pending).all(|(teacher, tokens)| {
                let next = tokens.partition_point(|token| token.first < at);
                let ended = next.checked_sub(1).is_none_or(|last| tokens[last].end <= at);
                ended && tokens.get(next).is_none_or(|token| !teacher.continues_word(token.id))
            })
    }

    /// Tokens before `at` in the longest tokenisation.
    fn longest(&self, at: usize) -> usize {
        self.pending.iter().map(|tokens| tokens.partition_point(|token| token.first < at)).max().unwrap_or(0)
    }

    /// `first..cut` tokenised alone: the tokens at hand where that is certain, else tokenised again.
    fn tokens(&self, cut: Cut) -> Result<Vec<Tokens>, IngestError> {
        let settled = cut.between_words && self.seams.iter().all(|seam| *seam >= cut.at);
        let text = &self.text[self.first..cut.at];
        let each = self.teachers.iter().zip(&self.pending).map(|(teacher, tokens)| {
            if settled && teacher.composes {
                let tokens = &tokens[..tokens.partition_point(|token| token.first < cut.at)];
                let place = |token: &Token| (token.first - self.first, token.end - self.first);
                let ids = tokens.iter().map(|token| token.id).collect();
                Ok(Tokens { ids, offsets: tokens.iter().map(place).collect() })
            } else {
                teacher.encode(text, &self.language)
            }
        });
        each.collect()
    }

    /// A place before `at` that takes `excess` tokens off one tokenisation.
    fn lower(&self, at: usize, teacher: usize, excess: usize) -> usize {
        let tokens = &self.pending[teacher];
        let kept = tokens.partition_point(|token| token.first < at).saturating_sub(excess);
        let place = tokens.get(kept).map_or(self.first, |token| token.first);
        if place < at { place } else { self.first }
    }

    fn advance(&mut self, cut: Cut, tokens: Vec<Tokens>) -> Example {
        let text = self.text[self.first..cut.at].to_owned();
        let span = Span { first: self.first as u64, end: cut.at as u64 };
        self.first = cut.at;
        if cut.between_words {
            for tokens in &mut self.pending {
                tokens.drain(..tokens.partition_point(|token| token.first < cut.at));
            }
            self.seams.retain(|seam| *seam > cut.at);
        } else {
            // The rest of a cut word tokenises differently from its middle.
            self.pending.iter_mut().for_each(Vec::clear);
            self.seams.clear();
            self.filled = cut.at;
        }
        Example { span, text, tokens }
    }

    /// The start of the character that `at` lies in; the end of the text if beyond it.
    fn character_start(&self, at: usize) -> usize {
        let at = at.min(self.text.len());
        (0..=at).rev().find(|at| self.text.is_char_boundary(*at)).unwrap_or(0)
    }

    /// The end of the character that starts at `at`.
    fn character_end(&self, at: usize) -> usize {
        self.text[at..].chars().next().map_or(at, |c| at + c.len_utf8())
    }
}

/// White space that every BERT tokenizer splits words at (it deletes other control characters).
fn separates_words(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\r') || (c.is_whitespace() && !c.is_control())
}

fn ends_sentence(c: char) -> bool {
    matches!(c, '.' | '!' | '?' | '…' | ':' | '。' | '！' | '？' | '।' | '؟')
}

fn closes_quotation(c: char) -> bool {
    matches!(c, ')' | ']' | '"' | '\'' | '»' | '”' | '’' | '」' | '』')
}
