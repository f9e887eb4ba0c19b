use crate::workshop::{Workshop, corpus_of, entries, open, records};
use ingest::{FeedOptions, Format, IngestError, IngestOptions, Language, expand};

#[test]
fn globs_name_files_in_order() {
    let workshop = Workshop::new();
    for name in ["b.txt", "a.txt", "sub/c.txt", "sub/[d].txt", "other.md"] {
        workshop.write(name, "menu");
    }
    std::fs::create_dir(workshop.path("folder.txt")).unwrap();
    let check = |pattern: &str, expected: &[&str]| {
        let expected: Vec<_> = expected.iter().map(|name| workshop.path(name)).collect();
        assert_eq!(expand(&workshop.path(pattern)).unwrap(), expected, "{pattern}");
    };
    check("*.txt", &["a.txt", "b.txt"]);
    check("**/*.txt", &["a.txt", "b.txt", "sub/[d].txt", "sub/c.txt"]);
    check("other.md", &["other.md"]);
    check("sub/[d].txt", &["sub/[d].txt"]);
    for pattern in ["*.json", "missing.txt", "folder.txt"] {
        let error = expand(&workshop.path(pattern)).unwrap_err();
        assert!(
            matches!(&error, IngestError::NothingMatches { pattern: shown } if shown.ends_with(pattern)),
            "{error}"
        );
    }
    assert!(matches!(expand(&workshop.path("a***")), Err(IngestError::Pattern { .. })));
}

#[test]
fn documents_are_named_by_file_and_offset() {
    let workshop = Workshop::new();
    let files = ["p/x/a.txt", "p/y/a.txt", "p/y/b.txt"].map(|name| workshop.write(name, "menu\n\nrow")).to_vec();
    let options = workshop.options(vec![corpus_of("c", "en", Format::Text, files)]);
    let entries = entries(&options, &[workshop.word_teacher("words", &["en"])]);
    let documents: Vec<&str> = records(&entries).iter().map(|record| &*record.document).collect();
    assert_eq!(documents, ["x/a.txt@0", "x/a.txt@6", "y/a.txt@0", "y/a.txt@6", "b.txt@0", "b.txt@6"]);
}

#[test]
fn bad_options_are_refused() {
    let workshop = Workshop::new();
    let check = |expected: &str, change: &dyn Fn(&mut IngestOptions)| {
        let mut options = workshop.options(vec![workshop.corpus("c", "en", "menu")]);
        change(&mut options);
        let error = open(&options, &[workshop.word_teacher("words", &["en"])]).err().unwrap();
        assert!(matches!(&error, IngestError::Options(message) if message.contains(expected)), "{error}");
    };
    check("masking.probability", &|options| options.mask_probability = 0.0);
    check("sampling.alpha", &|options| options.alpha = f64::NAN);
    check("holdout_fraction", &|options| options.holdout_fraction = 1.5);
    check("max_sequence_length", &|options| options.max_sequence_length = 15);
    check("batch_tokens", &|options| options.batch_tokens = 0);
    check("group", &|options| options.group_tokens = 0);
    check("twice", &|options| options.corpora.push(options.corpora[0].clone()));
    check("no files", &|options| options.corpora[0].feed = FeedOptions::Files(Vec::new()));
    check("rounds", &|options| options.corpora[0].rounds = 0);
    check("no teacher has language `fi`", &|options| options.corpora[0].language = Language::Fixed("fi".to_owned()));
}
