use super::samples::{
    COMPRESSIONS, Folder, TEXTS, compress, compress_in_members, count_all, layouts, paragraphs, read, read_from, texts,
};
use crate::format::{Compression, Format, FormatOptions, TextDocuments};

#[test]
fn documents_are_what_was_written() {
    let folder = Folder::new();
    for (options, file) in layouts() {
        let path = folder.write("plain", &file);
        let read = read(&path, &options);
        let lines: Vec<&str> = TEXTS.iter().flat_map(|(_, text)| text.split('\n')).collect();
        let expected: Vec<&str> = match (options.format, options.documents) {
            (Format::Text, TextDocuments::Line) => lines,
            (Format::Text, TextDocuments::File) => {
                vec![std::str::from_utf8(&file).unwrap().strip_suffix('\n').unwrap()]
            }
            _ => TEXTS.iter().map(|(_, text)| *text).collect(),
        };
        assert_eq!(texts(&read), expected, "{options:?}");
        for (offset, text) in &read {
            let text = text.as_ref().unwrap();
            let there = &file[*offset as usize..];
            assert!(options.format == Format::JsonLines || there.starts_with(text.as_bytes()), "{options:?} {offset}");
        }
    }
}

#[test]
fn documents_offsets_and_counts_do_not_depend_on_the_compression() {
    let folder = Folder::new();
    for (options, file) in layouts() {
        let mut marked = b"\xEF\xBB\xBF".to_vec();
        marked.extend(&file);
        for file in [&file, &marked, &file[..file.len() - 1], &Vec::new()] {
            let plain = folder.write("plain", file);
            let (expected, characters) = (read(&plain, &options), count_all(&plain, &options));
            for compression in COMPRESSIONS {
                let mut packed = vec![compress(compression, file)];
                if !file.is_empty() {
                    packed.extend([2, 7].map(|members| compress_in_members(compression, file, members)));
                }
                for packed in packed {
                    let path = folder.write("packed", packed);
                    for compression in [Compression::Auto, compression] {
                        let options = FormatOptions { compression, ..options.clone() };
                        assert_eq!(read(&path, &options), expected, "{options:?}");
                        assert_eq!(count_all(&path, &options), characters, "{options:?}");
                    }
                }
            }
        }
    }
}

#[test]
fn reading_goes_on_at_every_document_and_nowhere_else() {
    let folder = Folder::new();
    for (options, file) in layouts() {
        for compression in COMPRESSIONS {
            let path = folder.write("packed", compress_in_members(compression, &file, 3));
            let all = read(&path, &options);
            for (index, (offset, _)) in all.iter().enumerate() {
                assert_eq!(read_from(&path, &options, *offset).unwrap(), all[index..], "{options:?} {offset}");
            }
            for offset in 1..file.len() as u64 + 3 {
                let line_begins = file.get(offset as usize - 1) == Some(&b'\n');
                let begins = line_begins && options.documents != TextDocuments::File;
                assert_eq!(read_from(&path, &options, offset).is_some(), begins, "{options:?} {offset}");
            }
        }
    }
}

#[test]
fn a_file_is_taken_for_what_it_is() {
    let folder = Folder::new();
    let check = |bytes: &[u8], expected: &[&str]| {
        let path = folder.write("file", bytes);
        let read = read(&path, &FormatOptions::default());
        let texts: Vec<&str> = read.iter().map(|(_, text)| text.as_deref().unwrap_or_else(|reason| reason)).collect();
        assert_eq!(texts, expected, "{:?}", String::from_utf8_lossy(bytes));
    };
    check(b"", &[]);
    for start in ["B", "BZ", "BZh", "BZh9", "BZh91AY, a strange word", "P*M", "(", "\u{1F}"] {
        check(start.as_bytes(), &[start]);
    }
    check(b"\x1F\x8B", &["broken_compression"]);
    check(b"\x28\xB5\x2F\xFD", &["broken_compression"]);
    // What parallel Zstandard compressors put before their frames.
    let mut skippable = b"\x50\x2A\x4D\x18\x04\x00\x00\x00size".to_vec();
    skippable.extend(compress(Compression::Zstd, b"a menu"));
    check(&skippable, &["a menu"]);
    for compression in COMPRESSIONS {
        check(&compress(compression, b""), &[]);
        check(&compress(compression, b" \n\n "), &[]);
    }
}

#[test]
fn a_long_line_is_counted_and_left_and_what_follows_is_read() {
    const LIMIT: usize = 8 << 20;
    let folder = Folder::new();
    let text = FormatOptions { documents: TextDocuments::Line, ..Format::Text.into() };
    for compression in COMPRESSIONS {
        let file = [vec![b'a'; LIMIT], vec![b'b'; 3 * LIMIT], b"a menu".to_vec()].join(&b'\n');
        let path = folder.write("packed", compress(compression, &file));
        let read = read(&path, &text);
        let offsets: Vec<u64> = read.iter().map(|(offset, _)| *offset).collect();
        assert_eq!(offsets, [0, LIMIT as u64 + 1, 4 * LIMIT as u64 + 2]);
        assert_eq!(read[0].1.as_ref().map(String::len), Ok(LIMIT));
        assert_eq!(read[1].1, Err("too_large"));
        assert_eq!(read[2].1.as_deref(), Ok("a menu"));
    }
}

#[test]
fn a_marked_file_goes_on_at_its_first_document() {
    let folder = Folder::new();
    let file = [b"\xEF\xBB\xBF".as_slice(), &paragraphs(&TEXTS)[1..]].concat();
    for compression in COMPRESSIONS {
        let path = folder.write("packed", compress(compression, &file));
        let all = read(&path, &FormatOptions::default());
        assert_eq!(all[0].0, 3);
        for offset in 0..=3 {
            assert_eq!(read_from(&path, &FormatOptions::default(), offset).as_ref(), Some(&all));
        }
        assert_eq!(read_from(&path, &FormatOptions::default(), 4), None);
    }
}
