use super::samples::{
    COMPRESSIONS, Folder, Read, TABLE, compress_in_members, drain, layouts, parquet, read, read_from, rows, total,
};
use crate::format::{Compression, DocumentReader, Format, FormatOptions, TextDocuments, count};
use std::fs::OpenOptions;
use std::io::Write;

/// Appends `file` to an empty one in pieces of `step` bytes, and reads after each; what came out while it grew, and then.
fn grow(folder: &Folder, options: &FormatOptions, file: &[u8], step: usize) -> (Vec<Read>, Vec<Read>) {
    let path = folder.write("growing", b"");
    let mut reader = DocumentReader::open(&path, options, 0, true).unwrap().unwrap();
    let mut output = OpenOptions::new().append(true).open(&path).unwrap();
    let mut grown = drain(&mut reader);
    for piece in file.chunks(step) {
        output.write_all(piece).unwrap();
        grown.extend(drain(&mut reader));
        if let Some((offset, _)) = grown.last() {
            assert!(reader.position_bytes() > *offset);
        }
    }
    reader.seal();
    let sealed = drain(&mut reader);
    assert!(reader.next_document().unwrap().is_none());
    (grown, sealed)
}

#[test]
fn a_document_comes_once_it_has_an_end() {
    let folder = Folder::new();
    for (options, file) in layouts() {
        for file in [file.as_slice(), file.trim_ascii_end(), b"\xEF\xBB\xBFa menu", b"a menu\n\n\nrows", b"\n"] {
            let expected = read(&folder.write("whole", file), &options);
            for compression in COMPRESSIONS {
                let packed = compress_in_members(compression, file, 3);
                for step in [1, 7, 100, packed.len()] {
                    let (grown, sealed) = grow(&folder, &options, &packed, step);
                    assert_eq!([grown.as_slice(), &sealed].concat(), expected, "{options:?} {compression:?} {step}");
                    let unended = match (options.format, options.documents) {
                        (Format::Text, TextDocuments::File) => expected.len(),
                        (Format::Text, TextDocuments::EmptyLine) => usize::from(!ends_empty(file)),
                        _ => usize::from(!file.ends_with(b"\n")),
                    };
                    assert_eq!(sealed.len(), unended.min(expected.len()), "{options:?} {compression:?} {step}");
                }
            }
        }
    }
}

/// Whether an empty line comes last.
fn ends_empty(file: &[u8]) -> bool {
    file.ends_with(b"\n") && file.trim_ascii_end().len() + 1 < file.len() && file[..file.len() - 1].contains(&b'\n')
}

#[test]
fn a_parquet_file_is_read_once_it_is_sealed() {
    let folder = Folder::new();
    let file = parquet(TABLE, &rows());
    let (grown, sealed) = grow(&folder, &Format::Parquet.into(), &file, 100);
    assert_eq!((grown.len(), sealed.len()), (0, rows().len()));
    let path = folder.path("growing");
    let mut reader = DocumentReader::open(&path, &Format::Parquet.into(), 5, true).unwrap().unwrap();
    assert!(reader.next_document().unwrap().is_none());
    reader.seal();
    assert_eq!(drain(&mut reader), sealed[5..]);
}

#[test]
fn a_growing_file_is_read_on_where_it_was_left() {
    let folder = Folder::new();
    for (options, file) in layouts() {
        let path = folder.write("growing", &file);
        for (index, (offset, _)) in read(&path, &options).iter().enumerate() {
            let mut reader = DocumentReader::open(&path, &options, *offset, true).unwrap().unwrap();
            let mut rest = drain(&mut reader);
            reader.seal();
            rest.extend(drain(&mut reader));
            assert_eq!(rest, read(&path, &options)[index..], "{options:?} {offset}");
        }
        let beyond = file.len() as u64 + 1;
        assert!(DocumentReader::open(&path, &options, beyond, true).unwrap().is_none(), "{options:?}");
    }
}

#[test]
fn what_is_added_is_counted_from_where_counting_ended() {
    let folder = Folder::new();
    for (options, file) in layouts() {
        let whole = count(&folder.write("whole", &file), &options, 0, false).unwrap();
        let path = folder.write("growing", b"");
        let mut output = OpenOptions::new().append(true).open(&path).unwrap();
        let (mut characters, mut end) = (0, 0);
        for piece in file.chunks(10) {
            output.write_all(piece).unwrap();
            let more = count(&path, &options, end, true).unwrap();
            assert!(more.end >= end);
            (characters, end) = (characters + total(&more), more.end);
        }
        assert_eq!((characters, end), (total(&whole), whole.end), "{options:?}");
    }
}

#[test]
fn a_cut_member_of_a_growing_file_is_no_damage_until_it_is_sealed() {
    let folder = Folder::new();
    let options = FormatOptions { documents: TextDocuments::Line, ..Format::Text.into() };
    for compression in [Compression::Gzip, Compression::Bzip2, Compression::Zstd] {
        let packed = [compress_in_members(compression, b"a menu\n", 1), compress_in_members(compression, b"rows\n", 1)];
        let (grown, sealed) = grow(&folder, &options, &packed.concat()[..packed[0].len() + packed[1].len() - 3], 1);
        assert_eq!(grown[0], (0, Ok("a menu".to_owned())), "{compression:?}");
        assert_eq!(sealed.last().map(|read| read.1.clone()), Some(Err("broken_compression")), "{compression:?}");
        let path = folder.path("growing");
        let broken = sealed.last().map_or(0, |read| read.0);
        assert_eq!(read_from(&path, &options, broken).unwrap(), sealed[sealed.len() - 1..], "{compression:?}");
    }
}
