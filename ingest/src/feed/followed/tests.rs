#![allow(clippy::unwrap_used)]

use super::*;
use crate::{FeedOptions, Format};
use std::io::Write;

#[test]
fn what_was_counted_before_is_not_counted_again() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("app.log");
    let append = |text: &str| {
        File::options().create(true).append(true).open(&path).unwrap().write_all(text.as_bytes()).unwrap();
    };
    let line = "a line of the log\n\n";
    let many = line.repeat(NOTED_BYTES as usize / line.len() + 1);
    append(&many);
    let (format, manifests) = (Format::Text.into(), root.path().join("feeds"));
    let options = FeedOptions::Follow { file: path.clone(), settle: Duration::ZERO, poll: Duration::ZERO };
    let open = || {
        let setup = FeedSetup {
            corpus: "c",
            options: &options,
            format: &format,
            manifests: &manifests,
            sources: &["c".into()],
            count: true,
            spool: None,
        };
        setup.open().map(|feed| feed.characters_available(None))
    };
    let characters = open().unwrap();
    assert!(characters > NOTED_BYTES / 2);
    // The manifest is taken at its word.
    let manifest = manifests.join("c.jsonl");
    let text = fs::read_to_string(&manifest).unwrap();
    let noted = text.lines().find(|line| line.contains("\"grown\"")).unwrap();
    let mut noted: serde_json::Value = serde_json::from_str(noted).unwrap();
    noted["characters"][""] = 7.into();
    let followed = text.lines().next().unwrap();
    fs::write(&manifest, format!("{followed}\n{noted}\n")).unwrap();
    let counted = noted["counted"].as_u64().unwrap() as usize;
    let more = "menu\n\nrow\n\n";
    append(more);
    let left = open().unwrap() - 7;
    assert!(left >= 7 && left as usize <= many.len() - counted + more.len(), "{left} characters were counted again");
    // What was cut while nobody looked is noticed.
    File::options().write(true).open(&path).unwrap().set_len(100_000).unwrap();
    assert!(matches!(open(), Err(IngestError::Changed { .. })));
}
