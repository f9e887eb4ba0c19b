use crate::format::{Compression, Format, FormatOptions, TextDocuments};

#[test]
fn options_that_do_not_go_together_are_refused() {
    let check = |format: Format, expected: Option<&str>, change: &dyn Fn(&mut FormatOptions)| {
        let mut options = FormatOptions::from(format);
        change(&mut options);
        let error = options.validate("wiki").err().map(|error| error.to_string());
        match expected {
            None => assert_eq!(error, None, "{options:?}"),
            Some(words) => {
                let error = error.unwrap_or_default();
                assert!(error.contains(words) && error.contains("`wiki`"), "{options:?}: {error}");
            }
        }
    };
    for format in [Format::Text, Format::JsonLines, Format::Parquet] {
        check(format, None, &|_| {});
        check(format, None, &|options| options.compression = Compression::None);
    }
    check(Format::Text, None, &|options| options.documents = TextDocuments::File);
    check(Format::Text, Some("language_field"), &|options| options.language_field = Some("lang".to_owned()));
    check(Format::Text, Some("id_field"), &|options| options.id_field = Some("id".to_owned()));
    check(Format::JsonLines, Some("documents"), &|options| options.documents = TextDocuments::Line);
    check(Format::JsonLines, None, &|options| options.text_field = "page.text".to_owned());
    for name in ["", ".", "a.", ".a", "a..b"] {
        check(Format::JsonLines, Some("text_field"), &|options| options.text_field = name.to_owned());
        check(Format::Parquet, Some("id_field"), &|options| options.id_field = Some(name.to_owned()));
    }
    check(Format::Parquet, Some("compression"), &|options| options.compression = Compression::Gzip);
}
