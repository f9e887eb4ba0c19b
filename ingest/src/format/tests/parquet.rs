use super::samples::{Folder, TABLE, TEXTS, Table, parquet, read, read_from, rows, texts};
use crate::format::{DocumentReader, Format, FormatOptions};
use ::parquet::basic::{Compression as Codec, Encoding};
use ::parquet::data_type::{ByteArray, ByteArrayType, Int32Type};
use ::parquet::file::properties::{WriterProperties, WriterVersion};
use ::parquet::file::writer::SerializedFileWriter;
use ::parquet::schema::parser::parse_message_type;
use std::sync::Arc;

#[test]
fn rows_do_not_depend_on_how_they_are_stored() {
    let folder = Folder::new();
    let codecs = [
        Codec::UNCOMPRESSED,
        Codec::SNAPPY,
        Codec::GZIP(Default::default()),
        Codec::LZ4,
        Codec::LZ4_RAW,
        Codec::ZSTD(Default::default()),
    ];
    let expected: Vec<_> =
        TEXTS.iter().enumerate().map(|(row, (_, text))| (row as u64, Ok((*text).to_owned()))).collect();
    for codec in codecs {
        for version in [WriterVersion::PARQUET_1_0, WriterVersion::PARQUET_2_0] {
            for (dictionary, optional) in [(false, false), (false, true), (true, false), (true, true)] {
                for group in [1, 3, 100] {
                    let table = Table { codec, version, dictionary, group, optional };
                    let path = folder.write("table", parquet(table, &rows()));
                    assert_eq!(read(&path, &Format::Parquet.into()), expected, "{table:?}");
                    for row in 0..=TEXTS.len() {
                        let rest = read_from(&path, &Format::Parquet.into(), row as u64);
                        let there = row < TEXTS.len();
                        assert_eq!(rest.as_deref(), there.then(|| &expected[row..]), "{table:?}, row {row}");
                    }
                }
            }
        }
    }
}

#[test]
fn pages_of_gzip_that_could_become_too_large_and_do_not() {
    let folder = Folder::new();
    // As good as random: gzip makes about half of it, which is more than is let through without a look.
    let digits = (0_u64..1 << 17).map(|number| format!("{:016x}", number.wrapping_mul(0x9E37_79B9_7F4A_7C15)));
    let text: String = digits.collect();
    let rows = [("en", Some(text.as_bytes())), ("en", None), ("en", Some(b"The tide comes in at six."))];
    for version in [WriterVersion::PARQUET_1_0, WriterVersion::PARQUET_2_0] {
        let codec = Codec::GZIP(Default::default());
        let table = Table { codec, version, dictionary: false, group: 3, optional: true };
        let file = parquet(table, &rows);
        assert!(file.len() > 1 << 19, "{} bytes", file.len());
        let found = read(&folder.write("table", file), &Format::Parquet.into());
        let expected = [Ok(text.clone()), Err("missing_text"), Ok("The tide comes in at six.".to_owned())];
        assert!(found.into_iter().map(|(_, text)| text).eq(expected), "{version:?}");
    }
}

/// A file of one column `name` with the given text values, each definition level at its highest.
fn column(schema: &str, encoding: Encoding, values: &[&str], level: i16) -> Vec<u8> {
    let properties = WriterProperties::builder()
        .set_dictionary_enabled(false)
        .set_encoding(encoding)
        .set_data_page_row_count_limit(3)
        .set_write_batch_size(1)
        .build();
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let mut writer = SerializedFileWriter::new(Vec::new(), schema, Arc::new(properties)).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    let levels = vec![level; values.len()];
    let values: Vec<ByteArray> = values.iter().map(|value| ByteArray::from(*value)).collect();
    column.typed::<ByteArrayType>().write_batch(&values, Some(&levels), Some(&vec![0; values.len()])).unwrap();
    column.close().unwrap();
    group.close().unwrap();
    writer.into_inner().unwrap()
}

#[test]
fn every_encoding_of_strings_and_columns_inside_of_groups() {
    let folder = Folder::new();
    let values: Vec<&str> = TEXTS.iter().map(|(_, text)| *text).cycle().take(300).collect();
    for encoding in [Encoding::PLAIN, Encoding::DELTA_LENGTH_BYTE_ARRAY, Encoding::DELTA_BYTE_ARRAY] {
        for (schema, name, level) in [
            ("message m { required binary text; }", "text", 0),
            ("message m { optional binary text (UTF8); }", "text", 1),
            ("message m { optional group page { optional binary body (UTF8); } }", "page.body", 2),
        ] {
            let options = FormatOptions { text_field: name.to_owned(), ..Format::Parquet.into() };
            let path = folder.write("table", column(schema, encoding, &values, level));
            let all = read(&path, &options);
            assert_eq!(texts(&all), values, "{schema} {encoding}");
            for row in [1, 2, 3, 150, 299] {
                assert_eq!(read_from(&path, &options, row).unwrap(), all[row as usize..], "{schema} {encoding} {row}");
            }
        }
    }
    let lists = "message m { optional group text (LIST) { repeated group list { required binary element (UTF8); } } }";
    let path = folder.write("table", column(lists, Encoding::PLAIN, &["a"], 2));
    let options = FormatOptions { text_field: "text.list.element".to_owned(), ..Format::Parquet.into() };
    assert_eq!(read(&path, &options), [(0, Err("missing_text"))]);
}

#[test]
fn identifiers_may_be_small_numbers_or_absent() {
    let folder = Folder::new();
    let schema = "message m { optional int32 id; required binary text (UTF8); }";
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let mut writer = SerializedFileWriter::new(Vec::new(), schema, Default::default()).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    column.typed::<Int32Type>().write_batch(&[7, -1], Some(&[1, 0, 1]), None).unwrap();
    column.close().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    let values = ["one", "two", "three"].map(ByteArray::from);
    column.typed::<ByteArrayType>().write_batch(&values, None, None).unwrap();
    column.close().unwrap();
    group.close().unwrap();
    let path = folder.write("table", writer.into_inner().unwrap());
    let options = FormatOptions { id_field: Some("id".to_owned()), ..Format::Parquet.into() };
    let mut reader = DocumentReader::open(&path, &options, 0, false).unwrap().unwrap();
    let ids: Vec<Option<String>> = std::iter::from_fn(|| reader.next_document().unwrap()).map(|row| row.id).collect();
    assert_eq!(ids, [Some("7".to_owned()), None, Some("-1".to_owned())]);
}

/// A page's header is `15 type 15 size 15 compressed size …`; a size that does not fit is refused before it is believed.
#[test]
fn what_a_column_cannot_be_is_refused() {
    let folder = Folder::new();
    let check = |file: Vec<u8>, from: &[u8], to: &[u8], words: &str| {
        let at = file.windows(from.len()).rposition(|window| window == from).unwrap();
        let damaged = [&file[..at], to, &file[at + from.len()..]].concat();
        let path = folder.write("table", damaged);
        let mut reader = DocumentReader::open(&path, &Format::Parquet.into(), 0, false).unwrap().unwrap();
        let rejection = reader.next_document().unwrap().unwrap().text.unwrap_err();
        assert!(rejection.detail.contains(words), "{rejection:?}");
        assert!(reader.next_document().unwrap().is_none());
    };
    let text = [b'x'; 40].map(char::from).iter().collect::<String>();
    // One page, of 4 + 40 bytes: 88 as a zigzag number.
    let plain = column("message m { required binary text; }", Encoding::PLAIN, &[&text], 0);
    let gigantic = [0x15, 0x00, 0x15, 0xFE, 0xFF, 0xFF, 0xFF, 0x0F];
    check(plain.clone(), &[0x15, 0x00, 0x15, 0x58], &gigantic, "2147483647 bytes");
    check(plain, &[0x15, 0x00, 0x15, 0x58], &[0x15, 0x00, 0x15, 0x01], "-1 bytes");
    // Lengths: blocks of 128 in 4 parts, one value.
    let lengths = column("message m { required binary text; }", Encoding::DELTA_LENGTH_BYTE_ARRAY, &[&text], 0);
    check(lengths, &[0x80, 0x01, 0x04, 0x01], &[0x80, 0x01, 0x04, 0xFF], "list of lengths");
    let table = Table { dictionary: true, codec: Codec::UNCOMPRESSED, optional: false, ..TABLE };
    let rows = [("en", Some(text.as_bytes()))];
    // Field 7, the dictionary's header: 4C 15 count.
    let many = [0x4C, 0x15, 0xFE, 0xFF, 0xFF, 0xFF, 0x0F];
    check(parquet(table, &rows), &[0x4C, 0x15, 0x02], &many, "2147483647 words");
    // The column's name, and its codec.
    check(parquet(TABLE, &rows), b"\x04text\x15\x02", b"\x04text\x15\x08", "snappy, gzip, lz4 or zstd");
}

/// The metadata's second field is a list of the schema's elements, each with a name (4) and children (5).
#[test]
fn a_schema_that_is_too_deep_or_too_wide_is_refused() {
    let folder = Folder::new();
    let check = |elements: usize, children: &[u8]| {
        let count = [elements as u8 | 0x80, (elements >> 7) as u8 | 0x80, (elements >> 14) as u8];
        let element = [&[0x48, 0x01, b'a', 0x15], children, &[0x00]].concat();
        let metadata = [&[0x15, 0x02, 0x19, 0xFC], count.as_slice(), &element.repeat(elements), &[0x00]].concat();
        let length = (metadata.len() as u32).to_le_bytes();
        let path = folder.write("table", [b"PAR1", metadata.as_slice(), &length, b"PAR1"].concat());
        let mut reader = DocumentReader::open(&path, &Format::Parquet.into(), 0, false).unwrap().unwrap();
        let rejection = reader.next_document().unwrap().unwrap().text.unwrap_err();
        assert!(rejection.detail.contains("is not possible"), "{rejection:?}");
    };
    check(60_000, &[0x02]); // Each is the only child of the one before.
    check(70_000, &[0x00]);
    check(1, &[0xFE, 0xFF, 0xFF, 0xFF, 0x0F]);
}
