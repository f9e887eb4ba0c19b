//! What the log gets does not depend on how text is packed, and damage ends a file, not the stream.

use crate::workshop::{Cursors, Workshop, corpus_of, entries, groups, open, prose, records, reopen, skips};
use flate2::write::GzEncoder;
use ingest::{Format, IngestOptions};
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use std::io::Write;
use std::sync::Arc;
use store::SequenceNumber;

fn gzip(text: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(text).unwrap();
    encoder.finish().unwrap()
}

fn bzip2(text: &[u8]) -> Vec<u8> {
    let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::default());
    encoder.write_all(text).unwrap();
    encoder.finish().unwrap()
}

fn zstd(text: &[u8]) -> Vec<u8> {
    zstd::stream::encode_all(text, 3).unwrap()
}

/// One row a text; an empty value is null.
fn parquet(texts: &[&str]) -> Vec<u8> {
    let schema = Arc::new(parse_message_type("message m { optional binary text (UTF8); }").unwrap());
    let mut writer = SerializedFileWriter::new(Vec::new(), schema, Default::default()).unwrap();
    for rows in texts.chunks(3) {
        let mut group = writer.next_row_group().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        let levels: Vec<i16> = rows.iter().map(|text| i16::from(!text.is_empty())).collect();
        let rows: Vec<ByteArray> = rows.iter().filter(|text| !text.is_empty()).map(|text| (*text).into()).collect();
        column.typed::<ByteArrayType>().write_batch(&rows, Some(&levels), None).unwrap();
        column.close().unwrap();
        group.close().unwrap();
    }
    writer.into_inner().unwrap()
}

#[test]
fn a_compressed_corpus_makes_the_entries_of_the_plain_one() {
    let workshop = Workshop::new();
    let teachers = [workshop.word_teacher("words", &["en"]), workshop.letter_teacher("letters", &["en"])];
    let text = prose(3, 12);
    let options = |bytes: &[u8]| {
        let file = workshop.write("corpus.txt", bytes);
        workshop.options(vec![corpus_of("c", "en", Format::Text, vec![file])])
    };
    let plain = entries(&options(text.as_bytes()), &teachers);
    assert!(plain.len() > 12);
    for packed in [gzip(text.as_bytes()), bzip2(text.as_bytes()), zstd(text.as_bytes())] {
        let options = options(&packed);
        assert_eq!(entries(&options, &teachers), plain);
        // From the cursors of every group on, the rest is the same.
        let mut cursors = Cursors::new();
        let mut next = 0;
        for group in groups(open(&options, &teachers).unwrap()) {
            for entry in group.entries {
                cursors.insert(Arc::clone(&entry.cursor.source), entry.cursor);
                next += 1;
            }
            let ingest = reopen(&options, &teachers, &cursors, SequenceNumber(next)).unwrap();
            let rest: Vec<_> = groups(ingest).into_iter().flat_map(|group| group.entries).collect();
            assert_eq!(rest, plain[next as usize..]);
        }
    }
}

#[test]
fn damage_ends_a_file_and_the_stream_goes_on_with_the_next() {
    let workshop = Workshop::new();
    let text = b"the menu opens a window\n\nclick to save your table";
    let cut = |packed: Vec<u8>| packed[..packed.len() - 8].to_vec();
    let files = [
        ("a.txt.gz", gzip(text)),
        ("b.txt.gz", cut(gzip(text))),
        ("c.txt.bz2", bzip2(text)),
        ("d.txt", text.to_vec()),
        ("e.txt.zst", cut(zstd(text))),
        ("f.txt.zst", zstd(text)),
    ];
    let files = files.map(|(name, bytes)| workshop.write(name, bytes)).to_vec();
    let options = workshop.options(vec![corpus_of("c", "en", Format::Text, files)]);
    let entries = entries(&options, &[workshop.word_teacher("words", &["en"])]);
    let documents: Vec<&str> = records(&entries).iter().map(|record| &*record.document).collect();
    // What was decompressed before the end is good.
    let whole = ["a.txt.gz@0", "a.txt.gz@25", "b.txt.gz@0", "c.txt.bz2@0", "c.txt.bz2@25", "d.txt@0", "d.txt@25"];
    assert_eq!(documents, [&whole[..], &["e.txt.zst@0", "f.txt.zst@0", "f.txt.zst@25"]].concat());
    assert_eq!(skips(&entries), [("b.txt.gz@25", "broken_compression"), ("e.txt.zst@25", "broken_compression")]);
    let notes = workshop.quarantined("c");
    assert_eq!(notes.len(), 2);
    assert!(notes.iter().all(|note| note["reason"] == "broken_compression"), "{notes:?}");
}

#[test]
fn rows_of_parquet_files_are_documents() {
    let workshop = Workshop::new();
    let texts = ["the menu opens", "", "click to save", "your table", "a\0b", "rows and cells"];
    let whole = parquet(&texts);
    let files =
        [("a.parquet", whole.clone()), ("b.parquet", whole[..99].to_vec()), ("c.parquet", parquet(&["a page"]))];
    let files = files.map(|(name, bytes)| workshop.write(name, bytes)).to_vec();
    let options: IngestOptions = workshop.options(vec![corpus_of("c", "en", Format::Parquet, files)]);
    let entries = entries(&options, &[workshop.word_teacher("words", &["en"])]);
    let documents: Vec<&str> = records(&entries).iter().map(|record| &*record.document).collect();
    assert_eq!(documents, ["a.parquet@0", "a.parquet@2", "a.parquet@3", "a.parquet@5", "c.parquet@0"]);
    let skipped = [("a.parquet@1", "missing_text"), ("a.parquet@4", "nul_byte"), ("b.parquet@0", "broken_parquet")];
    assert_eq!(skips(&entries), skipped);
}
