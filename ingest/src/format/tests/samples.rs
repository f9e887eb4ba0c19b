//! Files of the project's own sample texts, in every form.

use crate::format::{Compression, Count, DocumentReader, Format, FormatOptions, TextDocuments, count};
use ::parquet::basic::Compression as Codec;
use ::parquet::column::writer::ColumnWriter;
use ::parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
use ::parquet::file::properties::{WriterProperties, WriterVersion};
use ::parquet::file::writer::SerializedFileWriter;
use ::parquet::schema::parser::parse_message_type;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tempfile::TempDir;

/// Each is one document in every format; (language, text).
pub(super) const TEXTS: [(&str, &str); 8] = [
    ("en", "The stream opens at dawn.\nEvery document is read once, and only once."),
    ("de", "Ein Tabellenblatt hat Zeilen und Spalten.\nÜber das Menü öffnet man ein zweites."),
    ("fi", "Lähde kirjoittaa, päivä päivältä.\nYksi rivi riittää."),
    ("tr", "Günlük dosyası büyür.\nİlk satır değişmez."),
    ("es", "¿Dónde empieza el texto? Aquí."),
    ("en", "A tab\tand \"quotes\" and a back\\slash: nothing that JSON could not carry."),
    ("it", "Una riga sola, però lunga quanto basta."),
    ("en", "Emoji take four bytes: 🦊🦉.\n  An indented line.\nThe last line."),
];

pub(super) const COMPRESSIONS: [Compression; 4] =
    [Compression::None, Compression::Gzip, Compression::Bzip2, Compression::Zstd];

/// What the reader says of a document: its offset, and its text or why it has none.
pub(super) type Read = (u64, Result<String, &'static str>);

pub(super) struct Folder(TempDir);

impl Folder {
    pub(super) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(super) fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, content).unwrap();
        path
    }
}

/// Every way in which text and JSON lines are read, and a file of [`TEXTS`] for each.
pub(super) fn layouts() -> Vec<(FormatOptions, Vec<u8>)> {
    let text = |documents| FormatOptions { documents, ..Format::Text.into() };
    vec![
        (text(TextDocuments::EmptyLine), paragraphs(&TEXTS)),
        (text(TextDocuments::Line), paragraphs(&TEXTS)),
        (text(TextDocuments::File), paragraphs(&TEXTS)),
        (Format::JsonLines.into(), json_lines(&TEXTS)),
    ]
}

/// Documents between empty lines of several kinds, with line ends of both kinds.
pub(super) fn paragraphs(texts: &[(&str, &str)]) -> Vec<u8> {
    let separators = ["\n\n", "\r\n\r\n", "\n \t\n\n\n", "\n\n\n"];
    let mut file = String::from("\n");
    for (index, (_, text)) in texts.iter().enumerate() {
        file.push_str(text);
        file.push_str(separators[index % separators.len()]);
    }
    file.into_bytes()
}

pub(super) fn json_lines(texts: &[(&str, &str)]) -> Vec<u8> {
    let mut file = String::new();
    for (index, (language, text)) in texts.iter().enumerate() {
        let line = serde_json::json!({ "id": index, "lang": language, "text": text, "other": [index, { "text": 1 }] });
        file.push_str(&line.to_string());
        file.push_str(if index % 3 == 0 { "\r\n" } else { "\n" });
    }
    file.into_bytes()
}

pub(super) fn compress(compression: Compression, bytes: &[u8]) -> Vec<u8> {
    match compression {
        Compression::Auto | Compression::None => bytes.to_vec(),
        Compression::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
            encoder.write_all(bytes).unwrap();
            encoder.finish().unwrap()
        }
        Compression::Bzip2 => {
            let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::default());
            encoder.write_all(bytes).unwrap();
            encoder.finish().unwrap()
        }
        Compression::Zstd => {
            let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 3).unwrap();
            encoder.include_checksum(true).unwrap();
            encoder.write_all(bytes).unwrap();
            encoder.finish().unwrap()
        }
    }
}

/// Compressed in several members, as parallel compressors and `cat` make them.
pub(super) fn compress_in_members(compression: Compression, bytes: &[u8], members: usize) -> Vec<u8> {
    bytes.chunks(bytes.len().div_ceil(members)).flat_map(|part| compress(compression, part)).collect()
}

/// How a Parquet file is written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Table {
    pub(super) codec: Codec,
    pub(super) version: WriterVersion,
    pub(super) dictionary: bool,
    /// Rows of a row group.
    pub(super) group: usize,
    pub(super) optional: bool,
}

pub(super) const TABLE: Table =
    Table { codec: Codec::SNAPPY, version: WriterVersion::PARQUET_1_0, dictionary: false, group: 3, optional: true };

/// A Parquet file with columns `id` (of numbers), `lang` and `text`; pages of two rows.
pub(super) fn parquet(table: Table, rows: &[(&str, Option<&[u8]>)]) -> Vec<u8> {
    let kind = if table.optional { "optional" } else { "required" };
    let schema = format!("message m {{ required int64 id; {kind} binary lang (UTF8); {kind} binary text (UTF8); }}");
    let properties = WriterProperties::builder()
        .set_compression(table.codec)
        .set_writer_version(table.version)
        .set_dictionary_enabled(table.dictionary)
        .set_data_page_row_count_limit(2)
        .set_write_batch_size(1)
        .build();
    let schema = Arc::new(parse_message_type(&schema).unwrap());
    let mut writer = SerializedFileWriter::new(Vec::new(), schema, Arc::new(properties)).unwrap();
    for (group, rows) in rows.chunks(table.group).enumerate() {
        let mut row_group = writer.next_row_group().unwrap();
        let ids: Vec<i64> = (0..rows.len()).map(|row| (group * table.group + row) as i64).collect();
        let mut column = row_group.next_column().unwrap().unwrap();
        column.typed::<Int64Type>().write_batch(&ids, None, None).unwrap();
        column.close().unwrap();
        let strings = [rows.iter().map(|row| Some(row.0.as_bytes())).collect(), rows.iter().map(|row| row.1).collect()];
        for values in strings {
            let values: Vec<Option<&[u8]>> = values;
            let levels: Vec<i16> = values.iter().map(|value| value.is_some().into()).collect();
            let values: Vec<ByteArray> = values.into_iter().flatten().map(|value| value.to_vec().into()).collect();
            let mut column = row_group.next_column().unwrap().unwrap();
            assert!(matches!(column.untyped(), ColumnWriter::ByteArrayColumnWriter(_)));
            let levels = table.optional.then_some(levels.as_slice());
            column.typed::<ByteArrayType>().write_batch(&values, levels, None).unwrap();
            column.close().unwrap();
        }
        row_group.close().unwrap();
    }
    writer.into_inner().unwrap()
}

/// [`TEXTS`] as rows.
pub(super) fn rows() -> Vec<(&'static str, Option<&'static [u8]>)> {
    TEXTS.iter().map(|(language, text)| (*language, Some(text.as_bytes()))).collect()
}

/// All documents from an offset on; `None`: none begins there.
pub(super) fn read_from(path: &Path, options: &FormatOptions, offset_bytes: u64) -> Option<Vec<Read>> {
    let mut reader = DocumentReader::open(path, options, offset_bytes, false).unwrap()?;
    let read = drain(&mut reader);
    assert!(reader.next_document().unwrap().is_none(), "nothing comes behind the end");
    Some(read)
}

pub(super) fn read(path: &Path, options: &FormatOptions) -> Vec<Read> {
    read_from(path, options, 0).unwrap()
}

/// What comes until there is nothing more.
pub(super) fn drain(reader: &mut DocumentReader) -> Vec<Read> {
    let mut read: Vec<Read> = Vec::new();
    while let Some(document) = reader.next_document().unwrap() {
        if let Some((before, _)) = read.last() {
            assert!(*before < document.offset_bytes, "offsets ascend");
        }
        read.push((document.offset_bytes, document.text.map_err(|rejection| rejection.reason.name())));
        assert!(read.len() < 10_000, "a small file has no end");
    }
    read
}

pub(super) fn texts(read: &[Read]) -> Vec<&str> {
    read.iter().filter_map(|(_, text)| text.as_deref().ok()).collect()
}

/// Characters of all languages.
pub(super) fn total(count: &Count) -> u64 {
    count.characters.values().sum()
}

pub(super) fn count_all(path: &Path, options: &FormatOptions) -> Count {
    count(path, options, 0, false).unwrap()
}
