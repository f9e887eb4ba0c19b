use super::samples::{Folder, TABLE, TEXTS, count_all, json_lines, parquet, rows, total};
use crate::format::{Document, DocumentReader, Format, FormatOptions};
use std::path::Path;

fn options(text: &str, id: Option<&str>, language: Option<&str>) -> FormatOptions {
    let (id_field, language_field) = (id.map(str::to_owned), language.map(str::to_owned));
    FormatOptions { text_field: text.to_owned(), id_field, language_field, ..Format::JsonLines.into() }
}

fn documents(path: &Path, options: &FormatOptions) -> Vec<Document> {
    let mut reader = DocumentReader::open(path, options, 0, false).unwrap().unwrap();
    std::iter::from_fn(|| reader.next_document().unwrap()).collect()
}

#[test]
fn fields_of_a_json_object() {
    let folder = Folder::new();
    // (line, fields for text, id and language, what comes out)
    type Fields = (&'static str, Option<&'static str>, Option<&'static str>);
    let check = |line: &str, fields: Fields, expected: (Result<&str, &str>, Option<&str>, Option<&str>)| {
        let path = folder.write("lines", line);
        let documents = documents(&path, &options(fields.0, fields.1, fields.2));
        let [document] = &documents[..] else { panic!("{line}: {documents:?}") };
        let text = document.text.as_deref().map_err(|rejection| rejection.reason.name());
        assert_eq!((text, document.id.as_deref(), document.language.as_deref()), expected, "{line}");
    };
    let all: Fields = ("text", Some("id"), Some("lang"));
    check(r#"{"id": "a-1", "lang": "de", "text": "Ein Menü"}"#, all, (Ok("Ein Menü"), Some("a-1"), Some("de")));
    check(r#"{"text": "A menu", "lang": "en"}"#, all, (Ok("A menu"), None, Some("en")));
    check(r#"{"text": "A menu", "lang": "en", "id": -7}"#, all, (Ok("A menu"), Some("-7"), Some("en")));
    check(r#"{"text": "A menu", "lang": "en", "id": null}"#, all, (Ok("A menu"), None, Some("en")));
    check(r#"{"text": "A menu", "id": 3}"#, all, (Err("missing_language"), Some("3"), None));
    check(r#"{"text": "A menu", "lang": null}"#, all, (Err("missing_language"), None, None));
    check(r#"{"text": "A menu", "lang": ["en"]}"#, all, (Err("missing_language"), None, None));
    check(r#"{"lang": "en"}"#, all, (Err("missing_text"), None, Some("en")));
    check(r#"{"id": "x"}"#, all, (Err("missing_text"), Some("x"), None));
    // What WikiExtractor writes with --json.
    let wiki = r#"{"id": "12", "revid": "34", "url": "https://en.example.org/wiki?curid=12", "title": "Menu", "text": "Menu\n\nA menu opens."}"#;
    check(wiki, ("text", None, None), (Ok("Menu\n\nA menu opens."), None, None));
    check(wiki, ("text", Some("id"), None), (Ok("Menu\n\nA menu opens."), Some("12"), None));
    let nested = r#"{"meta": {"text": "no", "lang": {"code": "fi"}}, "body": {"text": "Valikko"}}"#;
    check(nested, ("body.text", None, Some("meta.lang.code")), (Ok("Valikko"), None, Some("fi")));
    check(nested, ("body.title", None, None), (Err("missing_text"), None, None));
    check(nested, ("body", None, None), (Err("missing_text"), None, None));
    check(nested, ("body.text.x", None, None), (Err("missing_text"), None, None));
    for line in [r#"{"a": {"b": "inner"}, "a.b": "outer"}"#, r#"{"a.b": "outer", "a": {"b": "inner"}}"#] {
        check(line, ("a.b", None, None), (Ok("outer"), None, None));
    }
    check(r#"{"": {"": "empty names"}, "text": "A menu"}"#, ("text", None, None), (Ok("A menu"), None, None));
    check(
        r#"{"text": "A menu"}"#,
        ("text", Some("text"), Some("text")),
        (Ok("A menu"), Some("A menu"), Some("A menu")),
    );
    check(r#"{"text": "one", "text": "two"}"#, ("text", None, None), (Err("malformed_json"), None, None));
    check(r#"{"other": 1, "other": 2, "text": "one"}"#, ("text", None, None), (Ok("one"), None, None));
}

#[test]
fn languages_and_identifiers_come_from_their_fields_and_characters_are_counted_by_them() {
    let folder = Folder::new();
    let files = [
        (Format::JsonLines, folder.write("lines", json_lines(&TEXTS))),
        (Format::Parquet, folder.write("table", parquet(TABLE, &rows()))),
    ];
    for (format, path) in files {
        let options = FormatOptions { format, ..options("text", Some("id"), Some("lang")) };
        for (index, document) in documents(&path, &options).into_iter().enumerate() {
            assert_eq!(document.language.as_deref(), Some(TEXTS[index].0));
            assert_eq!(document.id, Some(index.to_string()));
            assert_eq!(document.text.unwrap(), TEXTS[index].1);
        }
        let count = count_all(&path, &options);
        let characters = |language: Option<&str>| -> u64 {
            let texts = TEXTS.iter().filter(|(own, _)| language.is_none_or(|language| language == *own));
            texts.map(|(_, text)| text.chars().count() as u64).sum()
        };
        assert_eq!(count.characters.len(), 6);
        for (language, counted) in &count.characters {
            assert_eq!(*counted, characters(language.as_deref()), "{language:?}");
        }
        let without = count_all(&path, &format.into());
        assert_eq!(without.characters, [(None, characters(None))].into());
        assert_eq!((total(&without), without.end), (total(&count), count.end));
    }
}
