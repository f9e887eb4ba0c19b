//! One block at a time: copies made in parallel, cut into batches by length, and labelled.

use crate::failure::{ExitCode, Failure};
use ingest::{LaterTeacher, NoCopy};
use rayon::prelude::*;
use serde::Serialize;
use std::collections::{BTreeSet, VecDeque};
use store::{Entry, MaskedCopy, Payload, Record};
use teacher::{Labeller, Runner};

/// What became of the records of the teacher's languages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Tally {
    /// Copies that were added.
    pub(super) copies: u64,
    /// Tokens of these.
    pub(super) tokens: u64,
    /// Masked positions of these.
    pub(super) masked_positions: u64,
    /// Records left as they were because they have no text.
    pub(super) without_text: u64,
    /// Because their copy would be longer than a sequence may be.
    pub(super) too_many_tokens: u64,
    /// Because nothing of their copy may be masked.
    pub(super) nothing_to_mask: u64,
}

/// Adds the copies of one teacher to records.
pub(super) struct Relabeller {
    later: LaterTeacher,
    runner: Runner,
    languages: BTreeSet<String>,
    batch_tokens: usize,
    skip_without_text: bool,
    pub(super) tally: Tally,
}

/// What becomes of a record.
enum Made {
    Copy(MaskedCopy),
    WithoutText,
    None(NoCopy),
}

impl Relabeller {
    pub(super) fn new(
        later: LaterTeacher,
        runner: Runner,
        languages: BTreeSet<String>,
        batch_tokens: usize,
        skip_without_text: bool,
    ) -> Self {
        Self { later, runner, languages, batch_tokens, skip_without_text, tally: Tally::default() }
    }

    /// Adds a labelled copy to each record of a block that can have one. Copies are made, and labelled, in the rayon pool that
    /// this is called in.
    pub(super) fn extend(&mut self, entries: &mut [Entry]) -> Result<(), Failure> {
        let made: Vec<Option<Made>> = entries.par_iter().map(|entry| self.make(entry)).collect::<Result<_, _>>()?;
        let mut copies = Vec::new();
        for (at, made) in made.into_iter().enumerate() {
            match made {
                None => {}
                Some(Made::Copy(copy)) => copies.push((at, copy)),
                Some(Made::WithoutText) => self.tally.without_text += 1,
                Some(Made::None(NoCopy::TooManyTokens)) => self.tally.too_many_tokens += 1,
                Some(Made::None(NoCopy::NothingToMask)) => self.tally.nothing_to_mask += 1,
            }
        }
        copies.sort_by_key(|(at, copy)| (copy.token_ids.len(), *at));
        self.label(&mut copies)?;
        for (at, copy) in copies {
            self.tally.copies += 1;
            self.tally.tokens += copy.token_ids.len() as u64;
            self.tally.masked_positions += copy.masked_positions.len() as u64;
            if let Payload::Record(record) = &mut entries[at].payload {
                record.copies.push(copy);
            }
        }
        Ok(())
    }

    /// `None`: it is no record of the teacher's languages.
    fn make(&self, entry: &Entry) -> Result<Option<Made>, Failure> {
        let Payload::Record(record) = &entry.payload else { return Ok(None) };
        if !self.languages.contains(&*record.language) {
            return Ok(None);
        }
        let Record { text: Some(text), .. } = record else {
            let message =
                format!("entry {} has no text; give --skip-without-text to leave it as it is", entry.sequence);
            let failure = Failure::new(ExitCode::DataError, message);
            return if self.skip_without_text { Ok(Some(Made::WithoutText)) } else { Err(failure) };
        };
        Ok(Some(match self.later.copy(record, text)? {
            Ok(copy) => Made::Copy(copy),
            Err(why) => Made::None(why),
        }))
    }

    /// Labels copies, which are in the order of their lengths. On an accelerator the next batch is begun before this one's labels are waited for.
    fn label(&self, copies: &mut [(usize, MaskedCopy)]) -> Result<(), Failure> {
        let (mut rest, mut at_work) = (copies, VecDeque::new());
        loop {
            if !rest.is_empty() && at_work.len() <= self.runner.ahead() {
                let (batch, after) = rest.split_at_mut(batch_length(rest, self.batch_tokens));
                rest = after;
                let labels = self.runner.begin(&batch.iter().map(|(_, copy)| copy).collect::<Vec<_>>())?;
                at_work.push_back((batch, labels));
                continue;
            }
            let Some((batch, labels)) = at_work.pop_front() else { return Ok(()) };
            batch.iter_mut().zip(labels.wait()?).for_each(|((_, copy), label)| copy.label = Some(label));
        }
    }
}

/// How many of the copies, at least one, make a batch.
fn batch_length(copies: &[(usize, MaskedCopy)], batch_tokens: usize) -> usize {
    let mut tokens = 0;
    let fitting = copies.iter().take_while(|(_, copy)| {
        tokens += copy.token_ids.len();
        tokens <= batch_tokens
    });
    fitting.count().max(1)
}
