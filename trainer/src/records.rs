//! What training asks of the log.

use std::collections::BTreeMap;
use std::sync::Arc;
use store::{DurablePosition, Entry, LogReader, SequenceNumber, SourceCursor, StoreError};

/// Sources whose name starts so hold text for evaluation alone; sampling takes no notice of them.
pub const EVALUATION_PREFIX: &str = "evaluate/";

/// A log as the sampler reads it: what lies below a durable position never changes, but for what retention removes at the
/// beginning.
pub trait Records {
    /// The first entry that is there.
    fn begin(&self) -> SequenceNumber;

    /// How far the log reaches on stable storage.
    fn durable(&self) -> DurablePosition;

    /// The first record of a language at or after `from` and below `up_to`, held out or not, of those that are there.
    fn next_record(
        &self,
        language: &str,
        held_out: bool,
        from: SequenceNumber,
        up_to: DurablePosition,
    ) -> Result<Option<Arc<Entry>>, StoreError>;

    /// The state of every source that has an entry below `up_to`.
    fn cursors(&self, up_to: DurablePosition) -> Result<BTreeMap<Arc<str>, SourceCursor>, StoreError>;
}

impl Records for LogReader {
    fn begin(&self) -> SequenceNumber {
        LogReader::begin(self)
    }

    fn durable(&self) -> DurablePosition {
        LogReader::durable(self)
    }

    fn next_record(
        &self,
        language: &str,
        held_out: bool,
        from: SequenceNumber,
        up_to: DurablePosition,
    ) -> Result<Option<Arc<Entry>>, StoreError> {
        LogReader::next_record(self, language, held_out, from, up_to)
    }

    fn cursors(&self, up_to: DurablePosition) -> Result<BTreeMap<Arc<str>, SourceCursor>, StoreError> {
        LogReader::cursors(self, up_to)
    }
}

/// A log in memory, for tests.
#[cfg(test)]
pub(crate) mod memory {
    use super::{Arc, BTreeMap, DurablePosition, Entry, Records, SequenceNumber, SourceCursor, StoreError};
    use std::cell::Cell;
    use store::{Label, MaskedCopy, Payload, Record, Span};

    /// Entries, of which the first `durable` are visible.
    #[derive(Default)]
    pub(crate) struct MemoryLog {
        entries: Vec<Arc<Entry>>,
        durable: Cell<u64>,
        /// Entries below this are removed.
        begin: Cell<u64>,
        /// Calls of `next_record`.
        pub(crate) reads: Cell<usize>,
    }

    impl MemoryLog {
        /// Appends an entry of `source` (named `language` or `language/anything`), durable at once.
        pub(crate) fn push(&mut self, source: &str, characters: u64, payload: Payload) -> SequenceNumber {
            let sequence = SequenceNumber(self.entries.len() as u64);
            let language = source.trim_start_matches("evaluate/").split('/').next().unwrap_or_default();
            let mut cursor = SourceCursor::start(source.into(), language.into(), characters);
            cursor.ended = payload == Payload::End;
            self.entries.push(Arc::new(Entry { sequence, cursor, payload }));
            self.durable.set(self.entries.len() as u64);
            sequence
        }

        /// Appends a record with `copies`.
        pub(crate) fn record(&mut self, source: &str, characters: u64, copies: Vec<MaskedCopy>) -> SequenceNumber {
            self.push(source, characters, Payload::Record(record(source, false, copies)))
        }

        /// Appends a held-out record.
        pub(crate) fn held_out(&mut self, source: &str, characters: u64) -> SequenceNumber {
            self.push(source, characters, Payload::Record(record(source, true, Vec::new())))
        }

        /// Appends the end of a source.
        pub(crate) fn end(&mut self, source: &str, characters: u64) {
            self.push(source, characters, Payload::End);
        }

        /// Shows only the first `entries`.
        pub(crate) fn show(&self, entries: u64) {
            self.durable.set(entries.min(self.entries.len() as u64));
        }

        /// Removes the entries below `begin`.
        pub(crate) fn remove_below(&self, begin: u64) {
            self.begin.set(begin);
        }

        /// All entries, visible or not.
        pub(crate) fn entries(&self) -> Vec<Entry> {
            self.entries.iter().map(|entry| Entry::clone(entry)).collect()
        }

        /// Number of entries, visible or not.
        pub(crate) fn len(&self) -> u64 {
            self.entries.len() as u64
        }
    }

    fn record(source: &str, held_out: bool, copies: Vec<MaskedCopy>) -> Record {
        let language = source.trim_start_matches("evaluate/").split('/').next().unwrap_or_default();
        Record {
            source: source.into(),
            document: "file@0".into(),
            span: Span { first: 0, end: 1 },
            language: language.into(),
            round: 0,
            held_out,
            copies,
            text: None,
        }
    }

    /// A copy of `length` tokens `first_id..`, position 1 masked, with a top-2 label whose loss is `loss`.
    pub(crate) fn copy(teacher: u16, length: u32, first_id: u32, loss: Option<f32>) -> MaskedCopy {
        MaskedCopy {
            teacher,
            token_ids: (first_id..first_id + length).collect(),
            masked_positions: vec![1],
            gold_ids: vec![first_id],
            label: loss.map(|loss| Label {
                top_k: 2,
                top_ids: vec![first_id, first_id + 1],
                top_logits: vec![1.0, 1.0],
                log_sum_exp: vec![2.0 + loss],
                gold_logits: vec![2.0],
                ..Label::default()
            }),
        }
    }

    impl Records for MemoryLog {
        fn begin(&self) -> SequenceNumber {
            SequenceNumber(self.begin.get())
        }

        fn durable(&self) -> DurablePosition {
            DurablePosition::from_log(self.durable.get())
        }

        fn next_record(
            &self,
            language: &str,
            held_out: bool,
            from: SequenceNumber,
            up_to: DurablePosition,
        ) -> Result<Option<Arc<Entry>>, StoreError> {
            self.reads.set(self.reads.get() + 1);
            let wanted = |entry: &&Arc<Entry>| match &entry.payload {
                Payload::Record(record) => &*record.language == language && record.held_out == held_out,
                _ => false,
            };
            let visible = &self.entries[..up_to.end().0 as usize];
            Ok(visible.iter().skip(from.0.max(self.begin.get()) as usize).find(wanted).cloned())
        }

        fn cursors(&self, up_to: DurablePosition) -> Result<BTreeMap<Arc<str>, SourceCursor>, StoreError> {
            let (sequence, begin) = (up_to.end(), Records::begin(self));
            if sequence < begin {
                return Err(StoreError::Removed { sequence, begin });
            }
            let visible = &self.entries[..up_to.end().0 as usize];
            Ok(visible.iter().map(|entry| (entry.cursor.source.clone(), entry.cursor.clone())).collect())
        }
    }
}
