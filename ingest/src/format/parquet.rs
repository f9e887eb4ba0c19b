//! Parquet files: one document a row, in the form in which Hugging Face data sets come (a column of strings, named
//! `text` mostly). Pages are read one after the other; no row group is ever in memory as a whole.

mod guard;
mod thrift;

use super::document::{DOCUMENT_LIMIT_BYTES, Document, Reason, Rejection, decode, too_large};
use super::options::FormatOptions;
use guard::{GuardedFile, GuardedPages, general};
use parquet::basic::{Compression, Type};
use parquet::column::reader::ColumnReaderImpl;
use parquet::data_type::{ByteArray, ByteArrayType, DataType, Int32Type, Int64Type};
use parquet::errors::{ParquetError, Result as ParquetResult};
use parquet::file::metadata::{ParquetMetaData, RowGroupMetaData};
use parquet::file::serialized_reader::SerializedPageReader;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Reads the rows of a Parquet file as documents.
pub(super) struct Rows {
    path: PathBuf,
    text_field: String,
    id_field: Option<String>,
    language_field: Option<String>,
    /// The next row.
    row: u64,
    state: State,
}

enum State {
    /// The file is not complete, and nothing can be read before it is.
    Growing,
    /// To be read on from `row`.
    Sealed,
    Open(Box<Table>),
    Finished,
}

/// A file with the columns that are read.
struct Table {
    file: GuardedFile,
    metadata: ParquetMetaData,
    columns: Columns<usize>,
    /// The row group to be opened next.
    next_group: usize,
    /// Of the open row group: the columns' readers, and rows to come.
    group: Option<(Columns<Column>, u64)>,
}

struct Columns<T> {
    text: T,
    id: Option<T>,
    language: Option<T>,
}

/// A column of a row group.
enum Column {
    Bytes(ColumnReaderImpl<ByteArrayType>),
    Int32(ColumnReaderImpl<Int32Type>),
    Int64(ColumnReaderImpl<Int64Type>),
}

/// What a column holds in a row.
enum Cell {
    Null,
    Bytes(ByteArray),
    Number(i64),
}

/// A row's cells.
type Row = Columns<Cell>;

/// Why the rest of a file cannot be read.
enum Failure {
    /// The file itself cannot be read.
    Io(io::Error),
    Unusable(Reason, String),
}

impl Rows {
    /// Opens `path` at a row. `Ok(None)`: there is no such row.
    pub(super) fn open(path: &Path, options: &FormatOptions, row: u64, growing: bool) -> io::Result<Option<Self>> {
        let mut rows = Self {
            path: path.to_owned(),
            text_field: options.text_field.clone(),
            id_field: options.id_field.clone(),
            language_field: options.language_field.clone(),
            row,
            state: if growing { State::Growing } else { State::Sealed },
        };
        if growing || row == 0 {
            return std::fs::File::open(path).map(|_| Some(rows));
        }
        match rows.open_table() {
            Ok(Some(table)) => {
                rows.state = State::Open(Box::new(table));
                Ok(Some(rows))
            }
            Ok(None) | Err(Failure::Unusable(..)) => Ok(None),
            Err(Failure::Io(error)) => Err(error),
        }
    }

    /// The next row's document; `None` at the end of the file, or as long as it grows.
    pub(super) fn next_document(&mut self) -> io::Result<Option<Document>> {
        match self.next_row() {
            Ok(Some(row)) => {
                self.row += 1;
                Ok(Some(self.document(self.row - 1, &row)))
            }
            Ok(None) => Ok(None),
            Err(Failure::Io(error)) => Err(error),
            Err(Failure::Unusable(reason, detail)) => {
                self.state = State::Finished;
                let text = Err(Rejection::new(reason, detail, &[]));
                Ok(Some(Document { offset_bytes: self.row, id: None, language: None, arrived_ms: None, text }))
            }
        }
    }

    /// The next row.
    pub(super) fn position(&self) -> u64 {
        self.row
    }

    pub(super) fn seal(&mut self) {
        if matches!(self.state, State::Growing) {
            self.state = State::Sealed;
        }
    }

    fn next_row(&mut self) -> Result<Option<Row>, Failure> {
        if matches!(self.state, State::Sealed) {
            self.state = self.open_table()?.map_or(State::Finished, |table| State::Open(Box::new(table)));
        }
        let State::Open(table) = &mut self.state else { return Ok(None) };
        let file = table.file.clone();
        let row = guarded(&file, || table.next_row())?;
        if row.is_none() {
            self.state = State::Finished;
        }
        Ok(row)
    }

    /// Opens the file, and goes to the row. `None`: there is no such row.
    fn open_table(&self) -> Result<Option<Table>, Failure> {
        let file = GuardedFile::open(&self.path).map_err(Failure::Io)?;
        let metadata = guarded(&file, || file.metadata())?;
        let column = |name: &String, kinds: &[Type]| find_column(&metadata, name, kinds);
        let strings = [Type::BYTE_ARRAY];
        let columns = Columns {
            text: column(&self.text_field, &strings)?,
            id: self
                .id_field
                .as_ref()
                .map(|name| column(name, &[Type::BYTE_ARRAY, Type::INT32, Type::INT64]))
                .transpose()?,
            language: self.language_field.as_ref().map(|name| column(name, &strings)).transpose()?,
        };
        let mut table = Table { file: file.clone(), metadata, columns, next_group: 0, group: None };
        let found = guarded(&file, || table.skip(self.row))?;
        Ok(found.then_some(table))
    }

    fn document(&self, offset_bytes: u64, row: &Row) -> Document {
        let language = match &row.language {
            Some(Cell::Bytes(language)) => std::str::from_utf8(language.data()).ok().map(str::to_owned),
            _ => None,
        };
        let id = match &row.id {
            Some(Cell::Bytes(id)) => Some(String::from_utf8_lossy(id.data()).into_owned()),
            Some(Cell::Number(id)) => Some(id.to_string()),
            Some(Cell::Null) | None => None,
        };
        let mut text = text_of(&row.text, &self.text_field);
        if let (Ok(found), Some(field), None) = (&text, &self.language_field, &language) {
            let detail = format!("column `{field}` holds no language in this row");
            text = Err(Rejection::new(Reason::MissingLanguage, detail, found.as_bytes()));
        }
        Document { offset_bytes, id, language, arrived_ms: None, text }
    }
}

fn text_of(cell: &Cell, field: &str) -> Result<String, Rejection> {
    match cell {
        Cell::Bytes(text) if text.len() > DOCUMENT_LIMIT_BYTES => Err(too_large(text.len() as u64, text.data())),
        Cell::Bytes(text) => decode(text.data().to_vec()),
        Cell::Null | Cell::Number(_) => {
            let detail = format!("column `{field}` holds no text in this row (null)");
            Err(Rejection::new(Reason::MissingText, detail, &[]))
        }
    }
}

/// The column `name`, which has to hold one value (or none) of one of the `kinds` a row.
fn find_column(metadata: &ParquetMetaData, name: &str, kinds: &[Type]) -> Result<usize, Failure> {
    let columns = metadata.file_metadata().schema_descr().columns();
    let found = columns.iter().position(|column| column.path().string() == name);
    let problem = match found.map(|index| &columns[index]) {
        Some(column) if column.max_rep_level() > 0 => format!("column `{name}` holds lists"),
        Some(column) if !kinds.contains(&column.physical_type()) => {
            format!("column `{name}` holds {}, not strings", column.physical_type())
        }
        Some(_) => return Ok(found.unwrap_or_default()),
        None => {
            let mut names: Vec<String> = columns.iter().take(20).map(|column| column.path().string()).collect();
            names.extend((columns.len() > names.len()).then(|| "…".to_owned()));
            format!("there is no column `{name}`; there are: {}", names.join(", "))
        }
    };
    Err(Failure::Unusable(Reason::MissingText, format!("the Parquet file cannot be used: {problem}")))
}

impl Table {
    /// Passes over the first `rows` rows; `false`: there are no more. Inside of a row group they are read, not skipped:
    /// a damaged one then breaks where it broke before.
    fn skip(&mut self, mut rows: u64) -> ParquetResult<bool> {
        while let Some(group) = self.metadata.row_groups().get(self.next_group) {
            if rows == 0 && group.num_rows() != 0 {
                return Ok(true);
            }
            let group_rows = rows_of(group)?;
            if rows < group_rows {
                for _ in 0..rows {
                    self.next_row()?;
                }
                return Ok(true);
            }
            rows -= group_rows;
            self.next_group += 1;
        }
        Ok(false)
    }

    fn next_row(&mut self) -> ParquetResult<Option<Row>> {
        loop {
            match &mut self.group {
                Some((columns, left)) if *left > 0 => {
                    *left -= 1;
                    let text = columns.text.next()?;
                    let id = columns.id.as_mut().map(Column::next).transpose()?;
                    let language = columns.language.as_mut().map(Column::next).transpose()?;
                    return Ok(Some(Row { text, id, language }));
                }
                _ if self.next_group == self.metadata.num_row_groups() => return Ok(None),
                _ => self.open_group()?,
            }
        }
    }

    fn open_group(&mut self) -> ParquetResult<()> {
        self.group = None;
        let group = self.metadata.row_group(self.next_group);
        let rows = rows_of(group)?;
        let open = |index: &usize| Column::open(&self.file, group, *index, rows);
        let columns = Columns {
            text: open(&self.columns.text)?,
            id: self.columns.id.as_ref().map(open).transpose()?,
            language: self.columns.language.as_ref().map(open).transpose()?,
        };
        self.group = Some((columns, rows));
        self.next_group += 1;
        Ok(())
    }
}

fn rows_of(group: &RowGroupMetaData) -> ParquetResult<u64> {
    Ok(u64::try_from(group.num_rows())?)
}

impl Column {
    fn open(file: &GuardedFile, group: &RowGroupMetaData, index: usize, rows: u64) -> ParquetResult<Self> {
        let chunk = group.column(index);
        let description = group.schema_descr().column(index);
        let start = chunk.dictionary_page_offset().unwrap_or(chunk.data_page_offset());
        if start < 0 || chunk.compressed_size() < 0 {
            return Err(general("a column begins or ends before the file".to_owned()));
        }
        if matches!(chunk.compression(), Compression::BROTLI(_) | Compression::LZO) {
            let codec = chunk.compression();
            return Err(general(format!("{codec} is not supported; write the file with snappy, gzip, lz4 or zstd")));
        }
        let file = Arc::new(file.column(chunk.compression()));
        let pages = SerializedPageReader::new(file, chunk, usize::try_from(rows)?, None)?;
        let pages = Box::new(GuardedPages { pages, optional: description.max_def_level() > 0 });
        match description.physical_type() {
            Type::BYTE_ARRAY => Ok(Self::Bytes(ColumnReaderImpl::new(description, pages))),
            Type::INT32 => Ok(Self::Int32(ColumnReaderImpl::new(description, pages))),
            Type::INT64 => Ok(Self::Int64(ColumnReaderImpl::new(description, pages))),
            other => Err(general(format!("values of type {other} are not supported"))),
        }
    }

    fn next(&mut self) -> ParquetResult<Cell> {
        Ok(match self {
            Self::Bytes(reader) => next_value(reader)?.map_or(Cell::Null, Cell::Bytes),
            Self::Int32(reader) => next_value(reader)?.map_or(Cell::Null, |number| Cell::Number(number.into())),
            Self::Int64(reader) => next_value(reader)?.map_or(Cell::Null, Cell::Number),
        })
    }
}

/// The next row's value, or null. One at a time: a value may be as large as a page.
fn next_value<T: DataType>(reader: &mut ColumnReaderImpl<T>) -> ParquetResult<Option<T::T>> {
    let (mut levels, mut values) = (Vec::new(), Vec::new());
    let (rows, _, _) = reader.read_records(1, Some(&mut levels), None, &mut values)?;
    if rows == 1 { Ok(values.pop()) } else { Err(too_few_rows()) }
}

fn too_few_rows() -> ParquetError {
    general("a column has fewer rows than its row group".to_owned())
}

/// Calls into the Parquet reader. It panics on some malformed files, which are not worth more than an error.
fn guarded<T>(file: &GuardedFile, call: impl FnOnce() -> ParquetResult<T>) -> Result<T, Failure> {
    let result = catch_unwind(AssertUnwindSafe(call));
    if let Some(error) = file.take_failure() {
        return Err(Failure::Io(error));
    }
    let detail = match result {
        Ok(Ok(value)) => return Ok(value),
        Ok(Err(error)) => error.to_string(),
        Err(_) => "it is malformed in a way that the reader does not expect".to_owned(),
    };
    Err(Failure::Unusable(Reason::BrokenParquet, format!("the Parquet file cannot be read on: {detail}")))
}
