//! Files go once every source has passed them.

use crate::harness::{cursor, names, open, options, push, wait_until};
use crate::memory_disk::MemoryDisk;
use ingest::feed::{Feed, Found};
use ingest::spool::{Inbox, InboxOptions, spooled_format};
use ingest::{Compression, Format, FormatOptions};

fn two_sources() -> InboxOptions {
    InboxOptions { sources: vec!["x:de".to_owned(), "x:en".to_owned()], file_bytes: 300, ..options() }
}

fn fill(inbox: &Inbox, from: usize, to: usize) {
    for number in from..to {
        push(inbox, &[&format!("text {number}")], None).unwrap();
    }
}

#[test]
fn a_file_is_kept_until_every_source_has_passed_it() {
    let disk = MemoryDisk::default();
    let inbox = open(&disk, two_sources()).unwrap();
    fill(&inbox, 0, 10);
    let files = names(&disk);
    assert!(files.len() >= 4);
    inbox.durable(&cursor("x:de", files.last().unwrap(), 0));
    inbox.durable(&cursor("x:en", &files[1], 20));
    inbox.durable(&cursor("x:en", &files[0], 0)); // An older one changes nothing.
    inbox.durable(&cursor("another", files.last().unwrap(), 0));
    wait_until("the first file is gone", || names(&disk) == files[1..]);
    assert_eq!(&*inbox.following(None).unwrap().name, files[1]);
    assert_eq!(&*inbox.following(Some(&files[0])).unwrap().name, files[1], "from a file that is gone");
    assert_eq!(inbox.parts(), files.len());
    assert!(matches!(inbox.find(&cursor("x:de", &files[0], 0)), Found::Removed));
    assert!(matches!(inbox.find(&cursor("x:de", &files[1], 0)), Found::Part(part) if *part.name == files[1]));
    assert!(matches!(inbox.find(&cursor("x:de", files.last().unwrap(), 1 << 20)), Found::Missing(_)));
    assert!(matches!(inbox.find(&cursor("x:de", "00000000000000009999.jsonl", 0)), Found::Missing(_)));
    assert!(matches!(inbox.find(&cursor("x:de", "notes.txt", 0)), Found::Missing(_)));

    inbox.durable(&cursor("x:en", files.last().unwrap(), 0));
    wait_until("all but the last are gone", || names(&disk) == files[files.len() - 1..]);
    inbox.close();
}

#[test]
fn numbers_go_on_after_all_was_taken() {
    let disk = MemoryDisk::default();
    let inbox = open(&disk, two_sources()).unwrap();
    fill(&inbox, 0, 10);
    let last = names(&disk).pop().unwrap();
    let characters = inbox.characters_available(None);
    for source in ["x:de", "x:en"] {
        inbox.durable(&cursor(source, &last, 0));
    }
    inbox.close();
    drop(inbox);
    assert_eq!(names(&disk), std::slice::from_ref(&last));
    let inbox = open(&disk, two_sources()).unwrap();
    assert_eq!(inbox.characters_available(None), characters, "characters never fall");
    fill(&inbox, 10, 20);
    let files = names(&disk);
    assert!(files.len() > 2 && files[0] == last, "{files:?}");
    let numbers: Vec<u64> = files.iter().map(|name| name.trim_end_matches(".jsonl").parse().unwrap()).collect();
    assert!(numbers.is_sorted() && *numbers.last().unwrap() < 20, "{numbers:?}");
}

#[test]
fn characters_are_counted_by_language() {
    let disk = MemoryDisk::default();
    let format = FormatOptions {
        text_field: "t".to_owned(),
        id_field: Some("i".to_owned()),
        language_field: Some("l".to_owned()),
        compression: Compression::Gzip,
        ..Format::JsonLines.into()
    };
    let options = || InboxOptions { format: format.clone(), file_bytes: 200, ..two_sources() };
    for round in 0..3 {
        let inbox = open(&disk, options()).unwrap();
        let available = |language| inbox.characters_available(language);
        assert_eq!((available(Some("en")), available(Some("de")), available(Some("fr"))), (6 * round, 9 * round, 0));
        let mut batch = inbox.batch();
        batch
            .write(
                "{\"t\":\"Größe\",\"l\":\"de\"}\n{\"t\":\"height\",\"l\":\"en\"}\n{\"t\":\"Höhe\",\"l\":\"de\"}"
                    .as_bytes(),
            )
            .unwrap();
        inbox.push(batch.finish(None).unwrap(), |result| assert_eq!(result.unwrap().accepted, 3));
        inbox.close();
        assert_eq!(inbox.characters_available(None), 15 * (round + 1));
    }
    let spooled = spooled_format(&format);
    assert_eq!((spooled.text_field.as_str(), spooled.compression), ("text", Compression::None));
    assert_eq!((spooled.id_field.as_deref(), spooled.language_field.as_deref()), (Some("id"), Some("language")));
}
