use super::samples::{Folder, TABLE, compress, parquet, read, read_from};
use crate::format::{Compression, DocumentReader, Format, FormatOptions, IngestError, TextDocuments};

const GOOD: &str = "A good document.";

/// What a reader makes of bytes.
struct Case {
    name: &'static str,
    options: FormatOptions,
    file: Vec<u8>,
    /// Texts, and reasons of rejection, in order.
    expected: Vec<Result<&'static str, &'static str>>,
}

#[test]
fn nothing_malformed_takes_a_good_document_with_it() {
    let folder = Folder::new();
    let cases = [text_cases(), json_cases(), packed_cases(), parquet_cases()].concat();
    assert!(cases.len() >= 40, "{}", cases.len());
    for Case { name, options, file, expected } in cases {
        let path = folder.write("file", file);
        let found = read(&path, &options);
        let outcomes: Vec<Result<&str, &str>> =
            found.iter().map(|(_, text)| text.as_deref().map_err(|reason| *reason)).collect();
        assert_eq!(outcomes, expected, "{name}");
        for (index, (offset, _)) in found.iter().enumerate() {
            assert_eq!(read_from(&path, &options, *offset).as_deref(), Some(&found[index..]), "{name}, from {offset}");
        }
    }
}

fn case(
    name: &'static str,
    options: impl Into<FormatOptions>,
    file: impl Into<Vec<u8>>,
    expected: &[Result<&'static str, &'static str>],
) -> Case {
    Case { name, options: options.into(), file: file.into(), expected: expected.to_vec() }
}

impl Clone for Case {
    fn clone(&self) -> Self {
        Self { options: self.options.clone(), file: self.file.clone(), expected: self.expected.clone(), ..*self }
    }
}

/// Between two good documents.
fn between(middle: &[u8], separator: &[u8]) -> Vec<u8> {
    [GOOD.as_bytes(), middle, GOOD.as_bytes()].join(separator)
}

fn text_cases() -> Vec<Case> {
    let line = FormatOptions { documents: TextDocuments::Line, ..Format::Text.into() };
    let whole = FormatOptions { documents: TextDocuments::File, ..Format::Text.into() };
    let large = vec![b'x'; (8 << 20) + 1];
    let bad: [(&str, &[u8], &'static str); 8] = [
        ("a stray continuation byte", b"caf\x80", "not_utf8"),
        ("latin-1", b"caf\xE9 au lait", "not_utf8"),
        ("an overlong encoding", b"\xC0\xAF", "not_utf8"),
        ("half of a surrogate pair", b"\xED\xA0\x80", "not_utf8"),
        ("a character cut off", b"caf\xC3", "not_utf8"),
        ("UTF-16", b"m\0e\0n\0u\0", "nul_byte"),
        ("a NUL byte", b"me\0nu", "nul_byte"),
        ("a gigantic document", &large, "too_large"),
    ];
    let mut cases = Vec::new();
    for (name, bytes, reason) in bad {
        cases.push(case(name, Format::Text, between(bytes, b"\n\n"), &[Ok(GOOD), Err(reason), Ok(GOOD)]));
        cases.push(case(name, line.clone(), between(bytes, b"\n"), &[Ok(GOOD), Err(reason), Ok(GOOD)]));
        cases.push(case(name, whole.clone(), between(bytes, b"\n"), &[Err(reason)]));
    }
    cases.push(case("lone carriage returns", line.clone(), "a\rb", &[Ok("a\rb")]));
    cases.push(case("white space alone", whole, " \n\t\r\n ", &[]));
    cases.push(case("a control character", line, "a\u{1}b", &[Ok("a\u{1}b")]));
    cases
}

fn json_cases() -> Vec<Case> {
    let good = format!("{{\"text\": \"{GOOD}\"}}");
    let deep_other = format!("{{\"other\": {}1{}, \"text\": \"deep\"}}", "[".repeat(100_000), "]".repeat(100_000));
    let deep_text = format!("{{\"text\": {}1{}}}", "[".repeat(100_000), "]".repeat(100_000));
    let unclosed = format!("{{\"text\": {}", "[{\"a\":".repeat(100_000));
    let large = format!("{{\"text\": \"{}\"}}", "x".repeat(8 << 20));
    let bad: [(&str, &[u8], Result<&'static str, &'static str>); 22] = [
        ("no JSON", b"A plain line.", Err("malformed_json")),
        ("an array", b"[\"text\"]", Err("malformed_json")),
        ("a string", b"\"text\"", Err("malformed_json")),
        ("a cut line", b"{\"text\": \"a me", Err("malformed_json")),
        ("no value", b"{\"text\": }", Err("malformed_json")),
        ("two objects", b"{\"text\": \"a\"} {\"text\": \"b\"}", Err("malformed_json")),
        ("a trailing comma", b"{\"text\": \"a\",}", Err("malformed_json")),
        ("single quotes", b"{'text': 'a'}", Err("malformed_json")),
        ("half of a surrogate pair", b"{\"text\": \"\\ud83e\"}", Err("malformed_json")),
        ("an unknown escape", b"{\"text\": \"\\q\"}", Err("malformed_json")),
        ("a raw tab", b"{\"text\": \"a\tb\"}", Err("malformed_json")),
        ("not a number", b"{\"text\": NaN}", Err("malformed_json")),
        ("never closed", unclosed.as_bytes(), Err("malformed_json")),
        ("no text", b"{\"texts\": \"a\"}", Err("missing_text")),
        ("null", b"{\"text\": null}", Err("missing_text")),
        ("a number", b"{\"text\": 1e999}", Err("malformed_json")),
        ("deep text", deep_text.as_bytes(), Err("missing_text")),
        ("deep elsewhere", deep_other.as_bytes(), Ok("deep")),
        ("an escaped NUL", b"{\"text\": \"a\\u0000b\"}", Err("nul_byte")),
        ("a NUL byte", b"{\"text\": \"a\0b\"}", Err("nul_byte")),
        ("not UTF-8", b"{\"text\": \"caf\xE9\"}", Err("not_utf8")),
        ("a gigantic line", large.as_bytes(), Err("too_large")),
    ];
    let file = |bytes: &[u8]| [good.as_bytes(), bytes, good.as_bytes()].join(b"\n".as_slice());
    bad.map(|(name, bytes, outcome)| case(name, Format::JsonLines, file(bytes), &[Ok(GOOD), outcome, Ok(GOOD)]))
        .to_vec()
}

fn packed_cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let line = FormatOptions { documents: TextDocuments::Line, ..Format::Text.into() };
    let text = format!("{GOOD}\n{GOOD}\n").into_bytes();
    let broken = "broken_compression";
    let kinds = [Compression::Gzip, Compression::Bzip2, Compression::Zstd];
    for compression in kinds {
        let options = FormatOptions { compression, ..line.clone() };
        let packed = compress(compression, &text);
        let all = [Ok(GOOD), Ok(GOOD), Err(broken)];
        cases.push(case("not compressed", options.clone(), text.as_slice(), &[Err(broken)]));
        for other in kinds.iter().filter(|other| **other != compression) {
            cases.push(case("compressed otherwise", options.clone(), compress(*other, &text), &[Err(broken)]));
        }
        cases.push(case("a header alone", options.clone(), &packed[..6], &[Err(broken)]));
        cases.push(case("something behind the end", options.clone(), [&packed, b"garbage".as_slice()].concat(), &all));
        cases.push(case("a second member cut off", options.clone(), [&packed, &packed[..9]].concat(), &all));
        let other = if compression == Compression::Gzip { Compression::Zstd } else { Compression::Gzip };
        let mixed = [packed.clone(), compress(other, &text)].concat();
        cases.push(case("a second member of another kind", options.clone(), mixed, &all));
        cases.push(case("read as it is", FormatOptions { compression: Compression::None, ..options }, packed, &[]));
    }
    // What is in a compressed file, read as text, differs; only that it makes no good document is known.
    cases.retain(|case| case.options.compression != Compression::None);
    let mut crc = compress(Compression::Gzip, &text);
    let at = crc.len() - 8;
    crc[at] ^= 1;
    cases.push(case("a wrong checksum", line.clone(), crc, &[Ok(GOOD), Ok(GOOD), Err(broken)]));
    // A Zstandard frame that wants a window of 2 GiB.
    let window = [0x28, 0xB5, 0x2F, 0xFD, 0x00, 0xA8, 0x01, 0x00, 0x00];
    cases.push(case("a gigantic window", line, window, &[Err(broken)]));
    cases
}

fn parquet_cases() -> Vec<Case> {
    let good = Some(GOOD.as_bytes());
    let rows = |middle: Option<&'static [u8]>| parquet(TABLE, &[("en", good), ("en", middle), ("en", good)]);
    let around = |reason| [Ok(GOOD), Err(reason), Ok(GOOD)];
    let file = rows(good);
    let named = |text: &str| FormatOptions { text_field: text.to_owned(), ..Format::Parquet.into() };
    let with_language = FormatOptions { language_field: Some("body".to_owned()), ..Format::Parquet.into() };
    let encrypted = [&file[..file.len() - 4], b"PARE"].concat();
    let mut footer = file.clone();
    let at = footer.len() - 8;
    footer[at..at + 4].copy_from_slice(&u32::MAX.to_le_bytes());
    let mut negative = file.clone();
    negative[at..at + 4].copy_from_slice(&0_u32.to_le_bytes());
    let empty = parquet(TABLE, &[]);
    let gigantic: &'static [u8] = vec![b'x'; (8 << 20) + 1].leak();
    vec![
        case("a row without text", Format::Parquet, rows(None), &around("missing_text")),
        case("a row that is not UTF-8", Format::Parquet, rows(Some(b"caf\xE9")), &around("not_utf8")),
        case("a row with a NUL", Format::Parquet, rows(Some(b"a\0b")), &around("nul_byte")),
        case("a gigantic row", Format::Parquet, rows(Some(gigantic)), &around("too_large")),
        case("no rows", Format::Parquet, empty, &[]),
        case("an empty file", Format::Parquet, [], &[Err("broken_parquet")]),
        case("text", Format::Parquet, "A plain line.\n", &[Err("broken_parquet")]),
        case("cut off", Format::Parquet, &file[..file.len() - 1], &[Err("broken_parquet")]),
        case("the beginning alone", Format::Parquet, &file[..file.len() / 2], &[Err("broken_parquet")]),
        case("the end alone", Format::Parquet, &file[file.len() - 8..], &[Err("broken_parquet")]),
        case("encrypted", Format::Parquet, encrypted, &[Err("broken_parquet")]),
        case("a gigantic footer", Format::Parquet, footer, &[Err("broken_parquet")]),
        case("an empty footer", Format::Parquet, negative, &[Err("broken_parquet")]),
        case("compressed once more", Format::Parquet, compress(Compression::Gzip, &file), &[Err("broken_parquet")]),
        case("no such column", named("body"), file.clone(), &[Err("missing_text")]),
        case("a column of numbers", named("id"), file.clone(), &[Err("missing_text")]),
        case("no column for the language", with_language, file, &[Err("missing_text")]),
    ]
}

#[test]
fn a_rejection_says_where_and_why() {
    let folder = Folder::new();
    let rejected = |options: &FormatOptions, file: &[u8], words: &[&str]| {
        let path = folder.write("file", file);
        let mut reader = DocumentReader::open(&path, options, 0, false).unwrap().unwrap();
        let mut last = None;
        while let Some(document) = reader.next_document().unwrap() {
            last = document.text.err();
        }
        let rejection = last.unwrap();
        assert!(words.iter().all(|word| rejection.detail.contains(word)), "{rejection:?}");
        rejection
    };
    let packed = compress(Compression::Gzip, b"First.\n\nSecond.");
    let rejection = rejected(&Format::Text.into(), &packed[..packed.len() - 8], &["byte 8", "compressed"]);
    assert_eq!((rejection.size_bytes, rejection.excerpt.as_str()), (7, "Second."));
    let table = parquet(TABLE, &[("en", Some(b"A row."))]);
    let options = FormatOptions { text_field: "body".to_owned(), ..Format::Parquet.into() };
    rejected(&options, &table, &["`body`", "id, lang, text"]);
    rejected(&Format::Parquet.into(), &table[..table.len() - 3], &["does not end as a Parquet file"]);
    let large = [b"A line.\n".as_slice(), &vec![b'x'; 9 << 20]].concat();
    let rejection = rejected(&Format::Text.into(), &large, &["9437192 bytes"]);
    assert_eq!((rejection.size_bytes, rejection.excerpt.len()), (large.len() as u64, 512));
}

#[test]
fn what_is_no_file_is_an_error_that_names_it() {
    let folder = Folder::new();
    for format in [Format::Text, Format::JsonLines, Format::Parquet] {
        for (offset, growing) in [(0, false), (7, false), (0, true)] {
            let missing = folder.path("missing");
            let error = DocumentReader::open(&missing, &format.into(), offset, growing).err().unwrap();
            assert!(matches!(error, IngestError::Io { path, .. } if path == missing));
        }
    }
    let itself = folder.path(".");
    let mut reader = DocumentReader::open(&itself, &FormatOptions::default(), 0, false).unwrap().unwrap();
    assert!(matches!(reader.next_document(), Err(IngestError::Io { .. })));
    let mut reader = DocumentReader::open(&itself, &Format::Parquet.into(), 0, false).unwrap().unwrap();
    assert!(matches!(reader.next_document(), Err(IngestError::Io { .. })));
}
