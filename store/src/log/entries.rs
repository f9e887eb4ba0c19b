//! Columns of the entries: what each is, its cursor, and its record's key.

use crate::log::codec::{Compaction, Tables};
use crate::log::column::{Column, ColumnBytes, Columns};
use crate::log::error::Damage;
use crate::log::labels::{self, CopyColumns, Shape, storage_order};
use crate::log::wire::{Wire, put_rows, put_varint, take_rows};
use crate::{Entry, Payload, Record, SequenceNumber, Skip, SourceCursor, Span};
use std::collections::HashMap;
use std::sync::Arc;

const KIND_RECORD: u8 = 0;
const KIND_SKIP: u8 = 1;
const KIND_END: u8 = 2;
const KIND_RECORD_WITH_TEXT: u8 = 3;

/// Writes entries, which are well-formed (see [`crate::log::validate`]), as columns; labels with compact precision if there is a
/// `compaction`.
///
/// # Errors
/// When a label cannot be held with compact precision.
pub(crate) fn encode(entries: &[Entry], compaction: Option<&mut Compaction>) -> Result<Columns, Damage> {
    let mut columns = Columns::default();
    let mut strings = Dictionary::default();
    let cursors: Vec<_> = entries.iter().map(|entry| cursor_row(&entry.cursor, &mut strings)).collect();
    put_rows(&cursors, columns.get_mut(Column::Cursors));
    let mut records = RecordRows::default();
    let mut skips = Vec::new();
    let mut copies = Vec::new();
    for entry in entries {
        let kind = match &entry.payload {
            Payload::Record(record) => {
                records.push(record, &mut strings);
                copies.extend(&record.copies);
                match &record.text {
                    Some(text) => {
                        columns.get_mut(Column::Texts).extend_from_slice(text.as_bytes());
                        KIND_RECORD_WITH_TEXT
                    }
                    None => KIND_RECORD,
                }
            }
            Payload::Skip(skip) => {
                skips.push([strings.number(&skip.reason), strings.number(&skip.document)]);
                KIND_SKIP
            }
            Payload::End => KIND_END,
        };
        columns.get_mut(Column::Kinds).push(kind);
    }
    put_rows(&records.rows, columns.get_mut(Column::Records));
    put_rows(&skips, columns.get_mut(Column::Skips));
    let shapes: Vec<_> = copies.iter().map(|copy| Shape::of(copy)).collect();
    let rows: Vec<_> = shapes.iter().map(|shape| shape.row()).collect();
    put_rows(&rows, columns.get_mut(Column::Copies));
    let stored: Vec<_> = storage_order(&shapes).into_iter().map(|index| copies[index]).collect();
    labels::encode_tokens(&stored, compaction.as_ref().map(|compaction| &compaction.tables), &mut columns);
    labels::encode_computed_in(&stored, columns.get_mut(Column::ComputedIn));
    match compaction {
        None => labels::encode(&stored, &mut columns),
        Some(compaction) => labels::encode_compactly(&stored, compaction, &mut columns)?,
    }
    strings.write(columns.get_mut(Column::Strings));
    Ok(columns)
}

/// Reads the `count` entries from `first` on. `column` gives a column's bytes, none for one that is absent; `tables` those of the
/// segment, if they are needed.
pub(crate) fn decode<E: From<Damage>>(
    first: SequenceNumber,
    count: usize,
    tables: impl FnOnce() -> Result<Arc<Tables>, E>,
    mut column: impl FnMut(Column) -> Result<ColumnBytes, E>,
) -> Result<Vec<Entry>, E> {
    let mut plain = |name: Column| Ok::<_, E>(column(name)?.plain()?);
    let strings = Strings::read(&plain(Column::Strings)?)?;
    let kinds = plain(Column::Kinds)?;
    if kinds.len() != count {
        return Err(Damage::new(format!("{} kinds of {count} entries", kinds.len())).into());
    }
    let cursors = read_cursors(&strings, &plain(Column::Cursors)?, count)?;
    let records = kinds.iter().filter(|kind| is_record(**kind)).count();
    let skips = kinds.iter().filter(|kind| **kind == KIND_SKIP).count();
    let texts = plain(Column::Texts)?;
    let mut payloads = Payloads {
        records: read_records(&strings, &plain(Column::Records)?, records)?.into_iter(),
        skips: read_skips(&strings, &plain(Column::Skips)?, skips)?.into_iter(),
        copies: Vec::new().into_iter(),
        texts: Wire::new(&texts),
    };
    let copies = payloads.records.as_slice().iter().map(|(_, copies)| *copies).sum();
    payloads.copies = read_copies(&plain(Column::Copies)?, copies, tables, &mut column)?.into_iter();
    let mut entries = Vec::with_capacity(count);
    for ((sequence, kind), cursor) in (first.0..).zip(kinds).zip(cursors) {
        let payload = payloads.next(kind)?;
        entries.push(Entry { sequence: SequenceNumber(sequence), cursor, payload });
    }
    payloads.texts.finish()?;
    Ok(entries)
}

fn is_record(kind: u8) -> bool {
    matches!(kind, KIND_RECORD | KIND_RECORD_WITH_TEXT)
}

/// Reads the last cursor of each source among the first `below` of a block's `count` cursors, and nothing else.
pub(crate) fn decode_last_cursors<E: From<Damage>>(
    count: usize,
    below: usize,
    mut column: impl FnMut(Column) -> Result<ColumnBytes, E>,
) -> Result<Vec<SourceCursor>, E> {
    let strings = Strings::read(&column(Column::Strings)?.plain()?)?;
    let rows = cursor_rows(&column(Column::Cursors)?.plain()?, count)?;
    let mut last: Vec<[u64; 8]> = Vec::new();
    for row in rows.into_iter().take(below).rev() {
        if last.iter().all(|known| known[0] != row[0]) {
            last.push(row);
        }
    }
    Ok(last.into_iter().map(|row| cursor(&strings, row)).collect::<Result<_, _>>()?)
}

/// A record without its text and the content of its copies.
#[derive(Debug)]
pub(crate) struct Outline {
    pub(crate) sequence: SequenceNumber,
    /// The record, without text and copies.
    pub(crate) record: Record,
    pub(crate) has_text: bool,
    /// Teacher and lengths of each copy.
    pub(crate) copies: Vec<Shape>,
}

/// Reads the outlines of the records among the `count` entries from `first` on.
pub(crate) fn decode_outlines<E: From<Damage>>(
    first: SequenceNumber,
    count: usize,
    mut column: impl FnMut(Column) -> Result<ColumnBytes, E>,
) -> Result<Vec<Outline>, E> {
    let mut plain = |name: Column| Ok::<_, E>(column(name)?.plain()?);
    let strings = Strings::read(&plain(Column::Strings)?)?;
    let kinds = plain(Column::Kinds)?;
    if kinds.len() != count {
        return Err(Damage::new(format!("{} kinds of {count} entries", kinds.len())).into());
    }
    let of_records: Vec<_> = (first.0..).zip(kinds).filter(|(_, kind)| is_record(*kind)).collect();
    let records = read_records(&strings, &plain(Column::Records)?, of_records.len())?;
    let copies = records.iter().map(|(_, copies)| *copies).sum();
    let mut shapes = read_shapes(&plain(Column::Copies)?, &plain(Column::ComputedIn)?, copies)?.into_iter();
    let outlines = of_records.into_iter().zip(records).map(|((sequence, kind), (record, copies))| Outline {
        sequence: SequenceNumber(sequence),
        record,
        has_text: kind == KIND_RECORD_WITH_TEXT,
        copies: shapes.by_ref().take(copies).collect(),
    });
    Ok(outlines.collect())
}

struct Payloads<'a> {
    records: std::vec::IntoIter<(Record, usize)>,
    skips: std::vec::IntoIter<Skip>,
    copies: std::vec::IntoIter<crate::MaskedCopy>,
    texts: Wire<'a>,
}

impl Payloads<'_> {
    fn next(&mut self, kind: u8) -> Result<Payload, Damage> {
        let missing = || Damage::new("an entry without its content");
        match kind {
            KIND_RECORD | KIND_RECORD_WITH_TEXT => {
                let (mut record, copies) = self.records.next().ok_or_else(missing)?;
                record.copies = self.copies.by_ref().take(copies).collect();
                if kind == KIND_RECORD_WITH_TEXT {
                    record.text = Some(read_text(&mut self.texts, record.span)?);
                }
                Ok(Payload::Record(record))
            }
            KIND_SKIP => self.skips.next().map(Payload::Skip).ok_or_else(missing),
            KIND_END => Ok(Payload::End),
            kind => Err(Damage::new(format!("an entry of kind {kind}"))),
        }
    }
}

/// The text of a record, which is as long as its span.
fn read_text(wire: &mut Wire<'_>, span: Span) -> Result<Arc<str>, Damage> {
    let bytes = wire.take(narrow::<usize>(span.end - span.first, "length of a text")?)?;
    std::str::from_utf8(bytes).map(Arc::from).map_err(|_| Damage::new("a text that is not UTF-8"))
}

fn cursor_row<'a>(cursor: &'a SourceCursor, strings: &mut Dictionary<'a>) -> [u64; 8] {
    [
        strings.number(&cursor.source),
        strings.number(&cursor.language),
        strings.number(&cursor.file),
        cursor.document_offset_bytes,
        cursor.next_byte.wrapping_add(1), // DOCUMENT_DONE becomes 0
        u64::from(cursor.round),
        cursor.characters_available,
        u64::from(cursor.ended),
    ]
}

fn read_cursors(strings: &Strings, bytes: &[u8], count: usize) -> Result<Vec<SourceCursor>, Damage> {
    cursor_rows(bytes, count)?.into_iter().map(|row| cursor(strings, row)).collect()
}

fn cursor_rows(bytes: &[u8], count: usize) -> Result<Vec<[u64; 8]>, Damage> {
    let mut wire = Wire::new(bytes);
    let rows = take_rows(&mut wire, count)?;
    wire.finish()?;
    Ok(rows)
}

fn cursor(strings: &Strings, row: [u64; 8]) -> Result<SourceCursor, Damage> {
    Ok(SourceCursor {
        source: strings.get(row[0])?,
        language: strings.get(row[1])?,
        file: strings.get(row[2])?,
        document_offset_bytes: row[3],
        next_byte: row[4].wrapping_sub(1),
        round: narrow(row[5], "round")?,
        characters_available: row[6],
        ended: flag(row[7])?,
    })
}

/// Rows of the records table: source, document, language, first byte as distance from the end of the previous span
/// of the same document (else from 0), length, round, held out, copies.
#[derive(Default)]
struct RecordRows {
    rows: Vec<[u64; 8]>,
    ends: SpanEnds,
}

impl RecordRows {
    fn push<'a>(&mut self, record: &'a Record, strings: &mut Dictionary<'a>) {
        let source = strings.number(&record.source);
        let document = strings.number(&record.document);
        let previous = self.ends.replace(source, document, record.span.end);
        self.rows.push([
            source,
            document,
            strings.number(&record.language),
            record.span.first.wrapping_sub(previous),
            record.span.end.wrapping_sub(record.span.first),
            u64::from(record.round),
            u64::from(record.held_out),
            record.copies.len() as u64,
        ]);
    }
}

/// Records without their copies, and how many each has.
fn read_records(strings: &Strings, bytes: &[u8], count: usize) -> Result<Vec<(Record, usize)>, Damage> {
    let mut wire = Wire::new(bytes);
    let rows = take_rows::<8>(&mut wire, count)?;
    wire.finish()?;
    let mut ends = SpanEnds::default();
    let record = |row: [u64; 8]| {
        let first = row[3].wrapping_add(ends.get(row[0], row[1]));
        let end = first
            .checked_add(row[4])
            .ok_or_else(|| Damage::new(format!("a span of {} bytes from {first} on", row[4])))?;
        ends.replace(row[0], row[1], end);
        let record = Record {
            source: strings.get(row[0])?,
            document: strings.get(row[1])?,
            span: Span { first, end },
            language: strings.get(row[2])?,
            round: narrow(row[5], "round")?,
            held_out: flag(row[6])?,
            copies: Vec::new(),
            text: None,
        };
        Ok((record, narrow::<u32>(row[7], "number of copies")? as usize))
    };
    rows.into_iter().map(record).collect()
}

/// End of the latest span of a source, while it stays in one document.
#[derive(Default)]
struct SpanEnds(HashMap<u64, (u64, u64)>);

impl SpanEnds {
    fn get(&self, source: u64, document: u64) -> u64 {
        self.0.get(&source).filter(|(previous, _)| *previous == document).map_or(0, |(_, end)| *end)
    }

    /// Sets the end and returns the previous one.
    fn replace(&mut self, source: u64, document: u64, end: u64) -> u64 {
        let previous = self.get(source, document);
        self.0.insert(source, (document, end));
        previous
    }
}

fn read_skips(strings: &Strings, bytes: &[u8], count: usize) -> Result<Vec<Skip>, Damage> {
    let mut wire = Wire::new(bytes);
    let rows = take_rows::<2>(&mut wire, count)?;
    wire.finish()?;
    rows.into_iter().map(|row| Ok(Skip { reason: strings.get(row[0])?, document: strings.get(row[1])? })).collect()
}

/// Teacher and lengths of the copies of all records, one record after another, and what their labels were computed in.
fn read_shapes(table: &[u8], computed_in: &[u8], count: usize) -> Result<Vec<Shape>, Damage> {
    let mut wire = Wire::new(table);
    let rows = take_rows::<4>(&mut wire, count)?;
    wire.finish()?;
    let mut shapes = rows.into_iter().map(Shape::from_row).collect::<Result<Vec<_>, _>>()?;
    labels::decode_computed_in(computed_in, &mut shapes)?;
    Ok(shapes)
}

/// The copies of all records, one record after another.
fn read_copies<E: From<Damage>>(
    table: &[u8],
    count: usize,
    tables: impl FnOnce() -> Result<Arc<Tables>, E>,
    mut column: impl FnMut(Column) -> Result<ColumnBytes, E>,
) -> Result<Vec<crate::MaskedCopy>, E> {
    let shapes = read_shapes(table, &column(Column::ComputedIn)?.plain()?, count)?;
    let order = storage_order(&shapes);
    let in_order: Vec<_> = order.iter().map(|index| shapes[*index]).collect();
    // With compact precision tokens are ranks, and positions and labels are entropy-coded.
    let ranks = column(Column::TokenRanks)?.plain()?;
    let stored = if ranks.is_empty() {
        let tokens = labels::decode_tokens(&column(Column::TokenIds)?.plain()?, None, &in_order)?;
        CopyColumns::load(column)?.decode(&in_order, tokens)?
    } else {
        let tables = tables()?;
        let tokens = labels::decode_tokens(&ranks, Some(&tables), &in_order)?;
        labels::decode_compact(labels::load_compact(&in_order, column)?, &in_order, tokens, &tables)?
    };
    let mut copies: Vec<_> = order.into_iter().zip(stored).collect();
    copies.sort_unstable_by_key(|(index, _)| *index);
    Ok(copies.into_iter().map(|(_, copy)| copy).collect())
}

/// Numbers strings in order of first use.
#[derive(Default)]
struct Dictionary<'a> {
    numbers: HashMap<&'a str, u64>,
    strings: Vec<&'a str>,
}

impl<'a> Dictionary<'a> {
    fn number(&mut self, string: &'a str) -> u64 {
        *self.numbers.entry(string).or_insert_with(|| {
            self.strings.push(string);
            self.strings.len() as u64 - 1
        })
    }

    fn write(&self, out: &mut Vec<u8>) {
        for string in &self.strings {
            put_varint(string.len() as u64, out);
            out.extend_from_slice(string.as_bytes());
        }
    }
}

struct Strings(Vec<Arc<str>>);

impl Strings {
    fn read(bytes: &[u8]) -> Result<Self, Damage> {
        let mut wire = Wire::new(bytes);
        let mut strings = Vec::new();
        while wire.remaining() > 0 {
            let length = narrow::<u32>(wire.varint()?, "length of a string")? as usize;
            let string =
                std::str::from_utf8(wire.take(length)?).map_err(|_| Damage::new("a string that is not UTF-8"))?;
            strings.push(Arc::from(string));
        }
        Ok(Self(strings))
    }

    fn get(&self, number: u64) -> Result<Arc<str>, Damage> {
        let string = usize::try_from(number).ok().and_then(|number| self.0.get(number));
        string.cloned().ok_or_else(|| Damage::new(format!("string {number} of {}", self.0.len())))
    }
}

fn narrow<T: TryFrom<u64>>(value: u64, what: &str) -> Result<T, Damage> {
    T::try_from(value).map_err(|_| Damage::new(format!("{what} {value}")))
}

fn flag(value: u64) -> Result<bool, Damage> {
    match value {
        0 => Ok(false),
        1 => Ok(true),
        value => Err(Damage::new(format!("{value} as a yes or no"))),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::ComputedIn;
    use proptest::prelude::*;

    proptest! {
        /// What passes a checksum but was never written by us must not take the process down.
        #[test]
        fn any_columns_are_read_or_refused(count in 0_usize..40, bytes: [Vec<u8>; Column::ALL.len()], coded_from: Option<u8>) {
            let column = |column: Column| {
                let coded_from = coded_from.filter(|_| column > Column::TokenIds && column < Column::TokenRanks).map(usize::from);
                Ok::<_, Damage>(ColumnBytes { coded_from, bytes: bytes[column as usize - 1].clone() })
            };
            let _ = decode(SequenceNumber(0), count, || Ok(Arc::default()), column);
            let _ = decode_last_cursors(count, count / 2, column);
            let _ = decode_outlines(SequenceNumber(0), count, column);
        }

        #[test]
        fn damaged_columns_are_read_or_refused(damage: Vec<(u8, u16, u8)>, cut in 0_u16..3, compact: bool) {
            let entries: Vec<_> = (0..6).map(entry).collect();
            let mut compaction = compact.then(Compaction::default);
            let mut columns = encode(&entries, compaction.as_mut()).unwrap();
            for (column, at, value) in damage {
                let bytes = columns.get_mut(Column::ALL[usize::from(column) % Column::ALL.len()]);
                let length = bytes.len().max(1);
                if let Some(byte) = bytes.get_mut(usize::from(at) % length) {
                    *byte = value;
                }
            }
            let copies = columns.get_mut(Column::TopIds);
            copies.truncate(copies.len() - usize::from(cut));
            let column = |column: Column| Ok::<_, Damage>(columns.get(column).clone());
            let _ = decode(SequenceNumber(0), entries.len(), || Ok(Arc::default()), column);
        }
    }

    fn entry(sequence: u64) -> Entry {
        let copy = |teacher| crate::MaskedCopy {
            teacher,
            token_ids: vec![2, 300, 4, 70_000, 3],
            masked_positions: vec![2, 3],
            gold_ids: vec![9, 300],
            label: Some(crate::Label {
                top_k: 2,
                top_ids: vec![9, 8, 7, 6],
                top_logits: vec![4.0, 3.0, 2.0, 1.0],
                log_sum_exp: vec![5.0, 6.0],
                gold_logits: vec![4.0, -1.0],
                computed_in: if sequence == 2 { ComputedIn::Bfloat16 } else { ComputedIn::Float32 },
            }),
        };
        let record = Record {
            source: "en".into(),
            document: "a.txt@0".into(),
            span: Span { first: sequence, end: sequence + 1 },
            language: "en".into(),
            round: 0,
            held_out: false,
            copies: vec![copy(1), copy(0)],
            text: (sequence % 2 == 1).then(|| "a".into()),
        };
        let payload = match sequence {
            4 => Payload::Skip(Skip { document: "b".into(), reason: "c".into() }),
            5 => Payload::End,
            _ => Payload::Record(record),
        };
        let cursor = SourceCursor::start("en".into(), "en".into(), 9);
        Entry { sequence: SequenceNumber(sequence), cursor, payload }
    }
}
