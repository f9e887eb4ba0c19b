use super::samples::{
    Folder, Read, TABLE, Table, compress, compress_in_members, drain, json_lines, parquet, read, rows,
};
use super::samples::{TEXTS, paragraphs};
use crate::format::{Compression, DocumentReader, Format, FormatOptions, count};
use ::parquet::basic::Compression as Codec;
use ::parquet::file::properties::WriterVersion;

/// Bits that are turned over in a damaged byte.
const FLIPS: [u8; 3] = [0x01, 0x80, 0xFF];

const KINDS: [Compression; 3] = [Compression::Gzip, Compression::Bzip2, Compression::Zstd];

/// Reads a damaged file, again from its last documents, and counts it. Nothing of it may panic or be an error.
fn survive(folder: &Folder, options: &FormatOptions, file: &[u8], what: &dyn Fn() -> String) -> Vec<Read> {
    let path = folder.write("damaged", file);
    let found = read(&path, options);
    let broken = |read: &Read| matches!(read.1, Err("broken_compression" | "broken_parquet"));
    assert!(!found.iter().rev().skip(1).any(broken), "{}: what is broken is the end", what());
    for (index, (offset, _)) in found.iter().enumerate().rev().take(2) {
        let reader = DocumentReader::open(&path, options, *offset, false).unwrap();
        let mut reader = reader.unwrap_or_else(|| panic!("{}: nothing begins at {offset}", what()));
        assert_eq!(drain(&mut reader), found[index..], "{}, from {offset}", what());
    }
    count(&path, options, 0, false).unwrap();
    found
}

#[test]
fn any_damaged_byte_of_a_compressed_file() {
    let folder = Folder::new();
    let texts = &TEXTS[..3];
    for compression in KINDS {
        for (format, file) in [(Format::Text, paragraphs(texts)), (Format::JsonLines, json_lines(texts))] {
            let options = FormatOptions { compression, ..format.into() };
            let packed = compress_in_members(compression, &file, 2);
            let first = compress(compression, &file[..file.len().div_ceil(2)]).len();
            let good = read(&folder.write("whole", &packed), &options);
            // Of the first member: those behind which another one begins in it.
            let unharmed = good.iter().filter(|(offset, _)| *offset <= file.len().div_ceil(2) as u64).count() - 1;
            assert!(unharmed > 0);
            for at in 0..packed.len() {
                let mut damaged = packed.clone();
                damaged[at] ^= FLIPS[at % FLIPS.len()];
                let found = survive(&folder, &options, &damaged, &|| format!("{compression:?} at {at}"));
                let kept = if at < first { 0 } else { unharmed };
                assert_eq!(found[..kept], good[..kept], "{compression:?} at {at}");
            }
        }
    }
}

#[test]
fn any_cut_of_a_compressed_file() {
    let folder = Folder::new();
    for compression in KINDS {
        let file = json_lines(&TEXTS[..4]);
        let options = FormatOptions { compression, ..Format::JsonLines.into() };
        // Each line in its own member: all lines before the cut are good.
        let members: Vec<Vec<u8>> =
            file.split_inclusive(|byte| *byte == b'\n').map(|line| compress(compression, line)).collect();
        let whole = members.concat();
        let good = read(&folder.write("whole", &whole), &options);
        let mut ends = members.iter().scan(0, |end, member| {
            *end += member.len();
            Some(*end)
        });
        let ends: Vec<usize> = ends.by_ref().collect();
        for cut in 0..whole.len() {
            let found = survive(&folder, &options, &whole[..cut], &|| format!("{compression:?} cut at {cut}"));
            let complete = ends.iter().filter(|end| **end <= cut).count();
            assert_eq!(found[..complete], good[..complete], "{compression:?} cut at {cut}");
            let between = cut == 0 || ends.contains(&cut);
            let broken = found.last().is_some_and(|read| read.1 == Err("broken_compression"));
            assert!(broken != between || (cut == 0 && broken), "{compression:?} cut at {cut}: {found:?}");
        }
    }
}

#[test]
fn any_damaged_byte_of_a_parquet_file() {
    let folder = Folder::new();
    let language = FormatOptions { language_field: Some("lang".to_owned()), ..Format::Parquet.into() };
    let options = FormatOptions { id_field: Some("id".to_owned()), ..language };
    let second = WriterVersion::PARQUET_2_0;
    let tables = [
        Table { codec: Codec::UNCOMPRESSED, ..TABLE },
        Table { codec: Codec::ZSTD(Default::default()), version: second, ..TABLE },
        Table { dictionary: true, optional: false, ..TABLE },
    ];
    let rows: [(&str, Option<&[u8]>); 4] =
        [("en", Some(b"A menu.")), ("de", Some("Ein Menü.".as_bytes())), ("en", None), ("en", Some(b"A menu."))];
    for table in tables {
        let rows = if table.optional { &rows[..] } else { &rows[..2] };
        let whole = parquet(table, rows);
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= FLIPS[at % FLIPS.len()];
            survive(&folder, &options, &damaged, &|| format!("{table:?} at {at}"));
        }
    }
}

#[test]
fn any_cut_of_a_parquet_file() {
    let folder = Folder::new();
    let whole = parquet(TABLE, &rows()[..4]);
    for cut in 0..whole.len() {
        let found = survive(&folder, &Format::Parquet.into(), &whole[..cut], &|| format!("cut at {cut}"));
        assert_eq!(found, [(0, Err("broken_parquet"))], "cut at {cut}");
    }
}

#[test]
fn rows_before_a_damaged_page_come_out() {
    let folder = Folder::new();
    let table = Table { codec: Codec::ZSTD(Default::default()), ..TABLE };
    let whole = parquet(table, &rows());
    let good = read(&folder.write("whole", &whole), &Format::Parquet.into());
    // The last text page's data: a Zstandard frame whose magic is spoilt.
    let magic = [0x28, 0xB5, 0x2F, 0xFD];
    let at = whole.windows(4).rposition(|window| window == magic).unwrap();
    let mut damaged = whole;
    damaged[at] ^= 0xFF;
    let found = survive(&folder, &Format::Parquet.into(), &damaged, &|| "a spoilt page".to_owned());
    let kept = found.len() - 1;
    assert!(kept >= good.len() - 2, "pages have two rows: {found:?}");
    assert_eq!(found[..kept], good[..kept]);
    assert_eq!(found[kept], (kept as u64, Err("broken_parquet")));
}
