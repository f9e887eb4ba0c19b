//! Groups: where they end, and the batches in which their copies are labelled.

use store::{BatchPlan, Entry, Group, Payload};

/// A group never has more entries, whatever their tokens: skipped documents have none.
const GROUP_LIMIT_ENTRIES: usize = 1 << 16;
/// Nor does its text take more memory: an example may have many bytes and few tokens.
const GROUP_LIMIT_TEXT_BYTES: u64 = 64 << 20;

/// A group that is being filled.
pub(crate) struct GroupBuilder {
    entries: Vec<Entry>,
    tokens: usize,
    /// Of the spans, whether the text is kept or not: groups end at the same places.
    text_bytes: u64,
    limit_tokens: usize,
}

impl GroupBuilder {
    pub(crate) fn new(limit_tokens: usize) -> Self {
        Self { entries: Vec::new(), tokens: 0, text_bytes: 0, limit_tokens }
    }

    pub(crate) fn push(&mut self, entry: Entry) {
        if let Payload::Record(record) = &entry.payload {
            self.tokens += record.copies.iter().map(|copy| copy.token_ids.len()).sum::<usize>();
            self.text_bytes += record.span.end - record.span.first;
        }
        self.entries.push(entry);
    }

    pub(crate) fn is_full(&self) -> bool {
        self.tokens >= self.limit_tokens
            || self.entries.len() >= GROUP_LIMIT_ENTRIES
            || self.text_bytes >= GROUP_LIMIT_TEXT_BYTES
    }

    /// The group with its batch plans; `None` if it is empty. `labels`: by index into the teacher table.
    pub(crate) fn finish(self, labels: &[bool], batch_tokens: usize) -> Option<Group> {
        if self.entries.is_empty() {
            return None;
        }
        let batches = plan(&self.entries, labels, batch_tokens);
        Some(Group { entries: self.entries, batches })
    }
}

/// Batches per labelling teacher, in the order of the table: copies by ascending length, at most
/// `batch_tokens` tokens together; a copy that is longer alone is a batch of its own.
fn plan(entries: &[Entry], labels: &[bool], batch_tokens: usize) -> Vec<BatchPlan> {
    let mut members: Vec<Vec<(usize, u32, u32)>> = labels.iter().map(|_| Vec::new()).collect();
    for (entry_index, entry) in entries.iter().enumerate() {
        let Payload::Record(record) = &entry.payload else { continue };
        for (copy_index, copy) in record.copies.iter().enumerate() {
            let teacher = usize::from(copy.teacher);
            if labels[teacher] {
                members[teacher].push((copy.token_ids.len(), entry_index as u32, copy_index as u32));
            }
        }
    }
    let mut batches = Vec::new();
    for (teacher, mut members) in members.into_iter().enumerate() {
        members.sort_unstable();
        let mut tokens = usize::MAX;
        for (length, entry_index, copy_index) in members {
            if tokens.saturating_add(length) > batch_tokens {
                batches.push(BatchPlan { teacher: teacher as u16, members: Vec::new() });
                tokens = 0;
            }
            tokens += length;
            if let Some(batch) = batches.last_mut() {
                batch.members.push((entry_index, copy_index));
            }
        }
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use store::{MaskedCopy, Record, SequenceNumber, SourceCursor, Span};

    fn record(text_bytes: u64) -> Entry {
        let name: Arc<str> = "en".into();
        let copy = MaskedCopy {
            teacher: 0,
            token_ids: vec![2, 9, 3],
            masked_positions: vec![1],
            gold_ids: vec![9],
            label: None,
        };
        let payload = Payload::Record(Record {
            source: Arc::clone(&name),
            document: "en.txt@0".into(),
            span: Span { first: 7, end: 7 + text_bytes },
            language: Arc::clone(&name),
            round: 0,
            held_out: false,
            copies: vec![copy],
            text: None,
        });
        Entry { sequence: SequenceNumber(0), cursor: SourceCursor::start(Arc::clone(&name), name, 0), payload }
    }

    /// Otherwise a block with much text and few tokens could not be written.
    #[test]
    fn a_group_ends_where_its_text_is_large() {
        let mut group = GroupBuilder::new(1000);
        group.push(record(100));
        group.push(record(GROUP_LIMIT_TEXT_BYTES - 101));
        assert!(!group.is_full());
        group.push(record(1));
        assert!(group.is_full());
    }
}
