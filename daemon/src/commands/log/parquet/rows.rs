//! Rows on their way into a Parquet file, column by column.
//!
//! Parquet flattens lists: beside the values a *definition level* says how deep something is there at all (no list, an empty
//! list, an empty list in a list, a value), and a *repetition level* which list the value continues (0: a new row).

use parquet::basic::{Compression, Encoding, Type, ZstdLevel};
use parquet::data_type::{BoolType, ByteArray, ByteArrayType, DataType, FloatType, Int32Type, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::parser::parse_message_type;
use parquet::schema::types::{SchemaDescriptor, TypePtr};
use std::io::Write;
use std::sync::Arc;
use store::{Label, MaskedCopy, Record, SequenceNumber};

/// Memory that the rows of a row group may take.
pub(super) const GROUP_BYTES: usize = 64 << 20;

/// Level of zstd.
const ZSTD_LEVEL: i32 = 3;

/// Key of the log's identity in the file's metadata.
const IDENTITY_KEY: &str = "mergedistill.identity";

const SCHEMA: &str = "
message copy {
    required int64 seq;
    required binary source (STRING);
    required binary document (STRING);
    required int64 span_first;
    required int64 span_end;
    required binary language (STRING);
    required int32 round;
    required boolean held_out;
    required binary teacher (STRING);
    required group token_ids (LIST) { repeated group list { required int32 element; } }
    required group masked_positions (LIST) { repeated group list { required int32 element; } }
    required group gold_ids (LIST) { repeated group list { required int32 element; } }
    optional int32 top_k;
    optional group top_ids (LIST) {
        repeated group list { required group element (LIST) { repeated group list { required int32 element; } } }
    }
    optional group top_logits (LIST) {
        repeated group list { required group element (LIST) { repeated group list { required float element; } } }
    }
    optional group log_sum_exp (LIST) { repeated group list { required float element; } }
    optional group gold_logits (LIST) { repeated group list { required float element; } }
    optional binary text (STRING);
    optional binary computed_in (STRING);
}";

/// Definition level of an empty list in a column of lists; a value is one deeper.
const EMPTY: i16 = 0;
/// The same where there may be no list, which is 0.
const OPTIONAL_EMPTY: i16 = 1;
/// Of an empty list in a list; a value is one deeper.
const EMPTY_INNER: i16 = 2;

/// The file's schema, and how its columns are stored. Columns of numbers that rise have their differences stored, floats their
/// bytes apart; all others have a dictionary.
pub(super) fn layout(identity_json: String) -> Result<(TypePtr, WriterProperties), ParquetError> {
    let schema = Arc::new(parse_message_type(SCHEMA)?);
    let mut properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(ZSTD_LEVEL)?))
        .set_statistics_enabled(EnabledStatistics::Chunk)
        .set_key_value_metadata(Some(vec![KeyValue::new(IDENTITY_KEY.to_owned(), identity_json)]));
    for column in SchemaDescriptor::new(Arc::clone(&schema)).columns() {
        let encoding = match column.physical_type() {
            Type::INT64 => Encoding::DELTA_BINARY_PACKED,
            Type::FLOAT => Encoding::BYTE_STREAM_SPLIT,
            _ => continue,
        };
        let path = column.path();
        properties = properties.set_column_dictionary_enabled(path.clone(), false);
        properties = properties.set_column_encoding(path.clone(), encoding);
    }
    Ok((schema, properties.build()))
}

/// A copy with its record.
pub(super) struct Row<'a> {
    pub(super) sequence: SequenceNumber,
    pub(super) record: &'a Record,
    pub(super) copy: &'a MaskedCopy,
    pub(super) teacher: &'a str,
}

/// Rows that have not been written yet.
#[derive(Default)]
pub(super) struct Rows {
    seq: Vec<i64>,
    source: Vec<ByteArray>,
    document: Vec<ByteArray>,
    span_first: Vec<i64>,
    span_end: Vec<i64>,
    language: Vec<ByteArray>,
    round: Vec<i32>,
    held_out: Vec<bool>,
    teacher: Vec<ByteArray>,
    token_ids: Nested<i32>,
    masked_positions: Nested<i32>,
    gold_ids: Nested<i32>,
    top_k: Nested<i32>,
    top_ids: Nested<i32>,
    top_logits: Nested<f32>,
    log_sum_exp: Nested<f32>,
    gold_logits: Nested<f32>,
    text: Nested<ByteArray>,
    computed_in: Nested<ByteArray>,
    /// Of all columns, about.
    bytes: usize,
}

impl Rows {
    /// Adds a row.
    ///
    /// # Errors
    /// When a number is too large for its column; the row is then in some columns, and nothing may be written any more.
    pub(super) fn push(&mut self, row: &Row<'_>) -> Result<(), String> {
        let Row { sequence, record, copy, teacher } = *row;
        self.seq.push(int64("sequence number", sequence.0)?);
        self.source.push(record.source.as_bytes().to_vec().into());
        self.document.push(record.document.as_bytes().to_vec().into());
        self.span_first.push(int64("span", record.span.first)?);
        self.span_end.push(int64("span", record.span.end)?);
        self.language.push(record.language.as_bytes().to_vec().into());
        self.round.push(int32("round", record.round)?);
        self.held_out.push(record.held_out);
        self.teacher.push(teacher.as_bytes().to_vec().into());
        self.token_ids.list(&int32s("token id", &copy.token_ids)?, EMPTY);
        self.masked_positions.list(&int32s("position", &copy.masked_positions)?, EMPTY);
        self.gold_ids.list(&int32s("gold id", &copy.gold_ids)?, EMPTY);
        self.push_label(copy.label.as_ref())?;
        match &record.text {
            Some(text) => self.text.value(text.as_bytes().to_vec().into()),
            None => self.text.null(),
        }
        match &copy.label {
            Some(label) => self.computed_in.value(label.computed_in.name().into()),
            None => self.computed_in.null(),
        }
        let label_values = copy.label.as_ref().map_or(0, |label| 2 * (label.top_ids.len() + label.positions()));
        let values = copy.token_ids.len() + 2 * copy.masked_positions.len() + label_values;
        // A value has four bytes and two levels; a string a header of its own.
        let text_bytes = record.text.as_ref().map_or(0, |text| text.len() + 64);
        self.bytes += 8 * values + 4 * 64 + record.document.len() + 64 + text_bytes;
        Ok(())
    }

    fn push_label(&mut self, label: Option<&Label>) -> Result<(), String> {
        let Some(label) = label else {
            [&mut self.top_k, &mut self.top_ids].into_iter().for_each(Nested::null);
            [&mut self.top_logits, &mut self.log_sum_exp, &mut self.gold_logits].into_iter().for_each(Nested::null);
            return Ok(());
        };
        let (k, positions) = (label.top_k, label.positions());
        let top_k = i32::try_from(k).map_err(|_| format!("top_k {k}"))?;
        self.top_k.value(top_k);
        self.top_ids.lists(&int32s("token id", &label.top_ids)?, k, positions);
        self.top_logits.lists(&label.top_logits, k, positions);
        self.log_sum_exp.list(&label.log_sum_exp, OPTIONAL_EMPTY);
        self.gold_logits.list(&label.gold_logits, OPTIONAL_EMPTY);
        Ok(())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.seq.is_empty()
    }

    /// Memory that the rows take, about.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Writes the rows as a row group, and forgets them.
    pub(super) fn write<W: Write + Send>(&mut self, writer: &mut SerializedFileWriter<W>) -> Result<(), ParquetError> {
        let rows = std::mem::take(self);
        let mut group = writer.next_row_group()?;
        put::<Int64Type, _>(&mut group, &rows.seq, None, None)?;
        put::<ByteArrayType, _>(&mut group, &rows.source, None, None)?;
        put::<ByteArrayType, _>(&mut group, &rows.document, None, None)?;
        put::<Int64Type, _>(&mut group, &rows.span_first, None, None)?;
        put::<Int64Type, _>(&mut group, &rows.span_end, None, None)?;
        put::<ByteArrayType, _>(&mut group, &rows.language, None, None)?;
        put::<Int32Type, _>(&mut group, &rows.round, None, None)?;
        put::<BoolType, _>(&mut group, &rows.held_out, None, None)?;
        put::<ByteArrayType, _>(&mut group, &rows.teacher, None, None)?;
        for lists in [&rows.token_ids, &rows.masked_positions, &rows.gold_ids] {
            lists.put::<Int32Type, _>(&mut group)?;
        }
        put::<Int32Type, _>(&mut group, &rows.top_k.values, Some(&rows.top_k.definitions), None)?;
        rows.top_ids.put::<Int32Type, _>(&mut group)?;
        for lists in [&rows.top_logits, &rows.log_sum_exp, &rows.gold_logits] {
            lists.put::<FloatType, _>(&mut group)?;
        }
        for strings in [&rows.text, &rows.computed_in] {
            put::<ByteArrayType, _>(&mut group, &strings.values, Some(&strings.definitions), None)?;
        }
        group.close()?;
        Ok(())
    }
}

/// Values of a column with their levels.
#[derive(Default)]
struct Nested<T> {
    values: Vec<T>,
    definitions: Vec<i16>,
    repetitions: Vec<i16>,
}

impl<T: Clone> Nested<T> {
    /// A row without a value, in an optional column.
    fn null(&mut self) {
        self.level(0, 0);
    }

    /// A row with one value, in an optional column.
    fn value(&mut self, value: T) {
        self.level(1, 0);
        self.values.push(value);
    }

    /// A row with a list. `empty`: definition level of an empty one.
    fn list(&mut self, values: &[T], empty: i16) {
        if values.is_empty() {
            self.level(empty, 0);
        }
        for at in 0..values.len() {
            self.level(empty + 1, i16::from(at > 0));
        }
        self.values.extend_from_slice(values);
    }

    /// A row with `count` lists of `width` values each, in an optional column.
    fn lists(&mut self, values: &[T], width: usize, count: usize) {
        if count == 0 {
            self.level(OPTIONAL_EMPTY, 0);
        }
        for list in 0..count {
            let continues_row = i16::from(list > 0);
            if width == 0 {
                self.level(EMPTY_INNER, continues_row);
            }
            for at in 0..width {
                self.level(EMPTY_INNER + 1, if at > 0 { 2 } else { continues_row });
            }
        }
        self.values.extend_from_slice(values);
    }

    fn level(&mut self, definition: i16, repetition: i16) {
        self.definitions.push(definition);
        self.repetitions.push(repetition);
    }

    fn put<D: DataType<T = T>, W: Write + Send>(
        &self,
        group: &mut SerializedRowGroupWriter<'_, W>,
    ) -> Result<(), ParquetError> {
        put::<D, W>(group, &self.values, Some(&self.definitions), Some(&self.repetitions))
    }
}

/// Writes the next column of the schema.
fn put<D: DataType, W: Write + Send>(
    group: &mut SerializedRowGroupWriter<'_, W>,
    values: &[D::T],
    definitions: Option<&[i16]>,
    repetitions: Option<&[i16]>,
) -> Result<(), ParquetError> {
    let column = group.next_column()?;
    let mut column = column.ok_or_else(|| ParquetError::General("more columns than in the schema".to_owned()))?;
    column.typed::<D>().write_batch(values, definitions, repetitions)?;
    column.close()
}

fn int64(what: &str, value: u64) -> Result<i64, String> {
    i64::try_from(value).map_err(|_| format!("{what} {value}"))
}

fn int32(what: &str, value: u32) -> Result<i32, String> {
    i32::try_from(value).map_err(|_| format!("{what} {value}"))
}

fn int32s(what: &str, values: &[u32]) -> Result<Vec<i32>, String> {
    values.iter().map(|value| int32(what, *value)).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn levels(fill: impl FnOnce(&mut Nested<i32>)) -> (Vec<i32>, Vec<i16>, Vec<i16>) {
        let mut nested = Nested::default();
        fill(&mut nested);
        (nested.values, nested.definitions, nested.repetitions)
    }

    #[test]
    fn each_write_is_a_row_group_and_empties_the_rows() {
        let (schema, properties) = layout("{}".to_owned()).unwrap();
        let mut file = tempfile::tempfile().unwrap();
        let mut writer = SerializedFileWriter::new(&mut file, schema, properties.into()).unwrap();
        let copy = MaskedCopy {
            teacher: 0,
            token_ids: vec![2, 4, 3],
            masked_positions: vec![1],
            gold_ids: vec![9],
            label: None,
        };
        let record = Record {
            source: "en".into(),
            document: "en.txt@0".into(),
            span: store::Span { first: 0, end: 9 },
            language: "en".into(),
            round: 0,
            held_out: true,
            copies: Vec::new(),
            text: None,
        };
        let mut rows = Rows::default();
        for count in [3_u64, 2] {
            for number in 0..count {
                let row = Row { sequence: SequenceNumber(number), record: &record, copy: &copy, teacher: "en" };
                rows.push(&row).unwrap();
            }
            assert!(rows.bytes() > 100 * count as usize && !rows.is_empty());
            rows.write(&mut writer).unwrap();
            assert!(rows.bytes() == 0 && rows.is_empty());
        }
        let metadata = writer.close().unwrap();
        let groups: Vec<i64> = metadata.row_groups().iter().map(|group| group.num_rows()).collect();
        assert_eq!(groups, [3, 2]);
    }

    #[test]
    fn numbers_that_do_not_fit_are_refused() {
        assert_eq!(int32s("id", &[1, 1 << 31]), Err("id 2147483648".to_owned()));
        assert_eq!(int64("span", u64::MAX), Err(format!("span {}", u64::MAX)));
        assert_eq!(int32s("id", &[0, (1 << 31) - 1]), Ok(vec![0, i32::MAX]));
    }

    #[test]
    fn lists_have_the_levels_that_parquet_wants() {
        let lists =
            |nested: &mut Nested<i32>| [&[7, 8][..], &[], &[9]].iter().for_each(|list| nested.list(list, EMPTY));
        assert_eq!(levels(lists), (vec![7, 8, 9], vec![1, 1, 0, 1], vec![0, 1, 0, 0]));
        let optional = |nested: &mut Nested<i32>| {
            nested.null();
            nested.list(&[], OPTIONAL_EMPTY);
            nested.list(&[5], OPTIONAL_EMPTY);
        };
        assert_eq!(levels(optional), (vec![5], vec![0, 1, 2], vec![0, 0, 0]));
    }

    #[test]
    fn lists_of_lists_have_the_levels_that_parquet_wants() {
        let rows = |nested: &mut Nested<i32>| {
            nested.lists(&[1, 2, 3, 4], 2, 2);
            nested.null();
            nested.lists(&[], 2, 0);
            nested.lists(&[], 0, 2);
        };
        let expected = (vec![1, 2, 3, 4], vec![3, 3, 3, 3, 0, 1, 2, 2], vec![0, 2, 1, 2, 0, 0, 0, 1]);
        assert_eq!(levels(rows), expected);
    }
}
