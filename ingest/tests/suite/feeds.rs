//! Watched folders, corpora with several languages, and what is set while ingestion runs.

use crate::running::run;
use crate::workshop::{Cursors, Workshop, feed_of, open, prose, records, reopen, skips};
use ingest::feed::mending;
use ingest::{CorpusOptions, FeedOptions, Format, Ingest, IngestError, IngestOptions, IngestTeacher, Language};
use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use store::stage::StageControl;
use store::{Entry, Payload, SequenceNumber};

/// Until then a test waits for something to happen.
const LIMIT: Duration = Duration::from_secs(30);

/// A folder, settled fast.
pub(crate) fn watched(workshop: &Workshop, name: &str, settle: Duration) -> CorpusOptions {
    let folder = workshop.path(name);
    fs::create_dir_all(&folder).unwrap();
    feed_of(name, "en", Format::Text, FeedOptions::Watch { folder, settle, poll: Duration::from_millis(50) })
}

/// The next groups of whatever arrives, with `count` entries at least.
pub(crate) fn next_entries(ingest: &mut Ingest, count: usize) -> Vec<Entry> {
    let (mut entries, start) = (Vec::new(), Instant::now());
    while entries.len() < count {
        assert!(start.elapsed() < LIMIT, "only {} of {count} entries came", entries.len());
        entries.extend(ingest.next_group().unwrap().unwrap().entries);
    }
    entries
}

pub(crate) fn documents(entries: &[Entry]) -> Vec<&str> {
    let mut documents: Vec<&str> = records(entries).iter().map(|record| &*record.document).collect();
    documents.dedup();
    documents
}

/// Small groups, so that a test can stop anywhere.
pub(crate) fn options(workshop: &Workshop, corpora: Vec<CorpusOptions>) -> IngestOptions {
    IngestOptions { group_tokens: 1, ..workshop.options(corpora) }
}

/// Everything but the characters available, which depend on when something arrived.
pub(crate) fn content(entry: &Entry) -> Entry {
    let mut entry = entry.clone();
    entry.cursor.characters_available = 0;
    entry
}

/// Stops at every entry and reopens at the log's cursors; compares with `whole`, the entries of one run.
pub(crate) fn check_resume(options: &IngestOptions, teachers: &[IngestTeacher], whole: &[Entry]) {
    let mut cursors = Cursors::new();
    for (index, entry) in whole.iter().enumerate() {
        let mut ingest = reopen(options, teachers, &cursors, SequenceNumber(index as u64)).unwrap();
        let found = next_entries(&mut ingest, 1);
        assert_eq!(content(&found[0]), content(entry), "entry {index}");
        cursors.insert(Arc::clone(&entry.cursor.source), entry.cursor.clone());
    }
}

#[test]
fn files_are_taken_when_they_are_complete_and_in_the_order_of_their_dates() {
    let workshop = Workshop::new();
    let corpus = watched(&workshop, "in", Duration::from_millis(1));
    let day = |day: u64| SystemTime::UNIX_EPOCH + Duration::from_secs(86_400 * day);
    for (name, date) in [("b.txt", 1), ("a.txt", 2), ("sub/c.txt", 3)] {
        let path = workshop.write(&format!("in/{name}"), format!("the menu of {name}\n\nrow"));
        fs::File::options().append(true).open(path).unwrap().set_modified(day(date)).unwrap();
    }
    for name in ["in/.hidden", "in/half.tmp", "in/half.part", "in/.git/x.txt", "in/empty.txt"] {
        workshop.write(name, if name.contains("empty") { "" } else { "menu" });
    }
    let options = options(&workshop, vec![corpus]);
    let teachers = [workshop.word_teacher("words", &["en"])];
    let mut ingest = open(&options, &teachers).unwrap();
    let mut entries = next_entries(&mut ingest, 6);
    assert_eq!(documents(&entries), ["b.txt@0", "b.txt@19", "a.txt@0", "a.txt@19", "sub/c.txt@0", "sub/c.txt@23"]);
    // What is renamed to a good name is complete, and a file in a new folder comes too.
    fs::rename(workshop.path("in/half.tmp"), workshop.path("in/half.txt")).unwrap();
    entries.extend(next_entries(&mut ingest, 1));
    workshop.write("in/new/d.txt", "menu");
    entries.extend(next_entries(&mut ingest, 1));
    assert_eq!(documents(&entries[6..]), ["half.txt@0", "new/d.txt@0"]);
    drop(ingest);
    check_resume(&options, &teachers, &entries);
    // The same folder under another name, and elsewhere, with its files as they were.
    let watch = |folder: PathBuf| {
        let FeedOptions::Watch { settle, poll, .. } = options.corpora[0].feed else { panic!() };
        let mut options = options.clone();
        options.corpora[0].feed = FeedOptions::Watch { folder, settle, poll };
        options
    };
    check_resume(&watch(workshop.path("teachers/../in")), &teachers, &entries);
    fs::rename(workshop.path("in"), workshop.path("moved")).unwrap();
    check_resume(&watch(workshop.path("moved")), &teachers, &entries);
    workshop.write("moved/last.txt", "menu");
    let last = entries.last().unwrap();
    let cursors = Cursors::from([(Arc::clone(&last.cursor.source), last.cursor.clone())]);
    let mut ingest = reopen(&watch(workshop.path("moved")), &teachers, &cursors, last.sequence.next()).unwrap();
    assert_eq!(documents(&next_entries(&mut ingest, 1)), ["last.txt@0"], "nothing is read again");
}

#[test]
fn a_file_that_is_renamed_into_place_does_not_wait_and_one_that_is_written_does() {
    let workshop = Workshop::new();
    let mut corpus = watched(&workshop, "in", Duration::from_secs(3600));
    // The watched folder itself may be a link.
    std::os::unix::fs::symlink(workshop.path("in"), workshop.path("link")).unwrap();
    let (folder, settle, poll) = (workshop.path("link"), Duration::from_secs(3600), Duration::from_secs(3600));
    corpus.feed = FeedOptions::Watch { folder, settle, poll };
    let options = options(&workshop, vec![corpus]);
    let ingest = open(&options, &[workshop.word_teacher("words", &["en"])]).unwrap();
    workshop.write("in/written.txt", "row");
    let control = StageControl::default();
    run(ingest, &control, &|| true, 1, |receiver| {
        let start = Instant::now();
        // The folder may not be watched yet when the first one is renamed.
        for number in 0.. {
            let partial = workshop.write(&format!("in/{number}.part"), "menu");
            fs::rename(partial, workshop.path(&format!("in/{number}.txt"))).unwrap();
            if let Ok(group) = receiver.recv_timeout(Duration::from_millis(20)) {
                assert_ne!(documents(&group.entries), ["written.txt@0"]);
                break;
            }
            assert!(start.elapsed() < LIMIT, "nothing was taken");
        }
        control.stop();
        assert!(receiver.iter().all(|group| documents(&group.entries) != ["written.txt@0"]));
    })
    .unwrap();
}

/// Three files, of which the first is begun when all are known.
fn begun(workshop: &Workshop, options: &IngestOptions, teachers: &[IngestTeacher]) -> Cursors {
    for (name, text) in [("a", "menu\n\nrow"), ("b", "menu"), ("c", "menu")] {
        workshop.write(&format!("in/{name}.txt"), text);
    }
    let (mut ingest, start) = (open(options, teachers).unwrap(), Instant::now());
    let manifest = || fs::read_to_string(options.feeds.join("in.jsonl")).unwrap_or_default();
    while manifest().matches("\"taken\"").count() < 3 {
        assert!(start.elapsed() < LIMIT, "{}", manifest());
        std::thread::yield_now();
    }
    let first = next_entries(&mut ingest, 1).remove(0);
    assert!(documents(std::slice::from_ref(&first)) == ["a.txt@0"] && !manifest().contains("finished"));
    Cursors::from([(Arc::clone(&first.cursor.source), first.cursor.clone())])
}

/// A file that is not what it was stops ingestion, until somebody says that it may go on without.
#[test]
fn what_is_gone_may_be_forgotten() {
    let workshop = Workshop::new();
    let options = options(&workshop, vec![watched(&workshop, "in", Duration::from_millis(1))]);
    let teachers = [workshop.word_teacher("words", &["en"])];
    let cursors = begun(&workshop, &options, &teachers);
    workshop.write("in/a.txt", "another menu\n\nand its row");
    fs::rename(workshop.path("in/b.txt"), workshop.path("in/renamed.txt")).unwrap();
    fs::File::options().append(true).open(workshop.path("in/c.txt")).unwrap().write_all(b" that grew").unwrap();
    for file in ["a.txt", "b.txt", "c.txt"] {
        let ingest = reopen(&options, &teachers, &cursors, SequenceNumber(1));
        let error = match ingest {
            Err(error) => error,
            Ok(mut ingest) => loop {
                if let Err(error) = ingest.next_group() {
                    break error;
                }
            },
        };
        let (named, text) = (format!("`{file}`"), error.to_string());
        assert!(text.contains(&named) && text.contains("corpus forget"), "{text}");
        mending::forget(&options.feeds, "in", file).unwrap();
    }
    let mut ingest = reopen(&options, &teachers, &cursors, SequenceNumber(1)).unwrap();
    let entries = next_entries(&mut ingest, 4);
    let mut found: Vec<&str> = documents(&entries);
    found.sort_unstable();
    assert_eq!(found, ["a.txt~2@0", "a.txt~2@14", "c.txt~2@0", "renamed.txt@0"], "what is there is read, once");
    drop(ingest);
    let last = entries.last().unwrap();
    let cursors = Cursors::from([(Arc::clone(&last.cursor.source), last.cursor.clone())]);
    workshop.write("in/last.txt", "menu");
    let mut ingest = reopen(&options, &teachers, &cursors, last.sequence.next()).unwrap();
    assert_eq!(documents(&next_entries(&mut ingest, 1)), ["last.txt@0"]);
}

/// What is given up may be the rest of a document.
#[test]
fn a_file_may_be_forgotten_in_the_middle_of_a_document() {
    let workshop = Workshop::new();
    let options = options(&workshop, vec![watched(&workshop, "in", Duration::from_millis(1))]);
    let teachers = [workshop.word_teacher("words", &["en"])];
    workshop.write("in/long.txt", "the menu and its row ".repeat(100));
    let mut ingest = open(&options, &teachers).unwrap();
    let first = next_entries(&mut ingest, 1).remove(0);
    assert_ne!(first.cursor.next_byte, store::SourceCursor::DOCUMENT_DONE, "a document of several examples");
    drop(ingest);
    fs::remove_file(workshop.path("in/long.txt")).unwrap();
    workshop.write("in/next.txt", "menu");
    let cursors = Cursors::from([(Arc::clone(&first.cursor.source), first.cursor.clone())]);
    assert!(reopen(&options, &teachers, &cursors, SequenceNumber(1)).is_err());
    mending::forget(&options.feeds, "in", "long.txt").unwrap();
    let mut ingest = reopen(&options, &teachers, &cursors, SequenceNumber(1)).unwrap();
    assert_eq!(documents(&next_entries(&mut ingest, 1)), ["next.txt@0"]);
}

/// A link to a folder is not followed: neither by a look through the folder nor by the kernel's reports.
#[test]
fn folders_behind_links_are_not_read() {
    let workshop = Workshop::new();
    let options = options(&workshop, vec![watched(&workshop, "in", Duration::from_millis(1))]);
    let elsewhere = workshop.write("elsewhere/old.txt", "menu");
    std::os::unix::fs::symlink(elsewhere.parent().unwrap(), workshop.path("in/link")).unwrap();
    std::os::unix::fs::symlink(workshop.path("in"), workshop.path("in/loop")).unwrap();
    workshop.write("in/a.txt", "menu");
    let mut ingest = open(&options, &[workshop.word_teacher("words", &["en"])]).unwrap();
    assert_eq!(documents(&next_entries(&mut ingest, 1)), ["a.txt@0"]);
    workshop.write("elsewhere/new.txt", "menu");
    workshop.write("in/b.txt", "menu");
    assert_eq!(documents(&next_entries(&mut ingest, 1)), ["b.txt@0"]);
    workshop.write("in/c.txt", "menu");
    assert_eq!(documents(&next_entries(&mut ingest, 1)), ["c.txt@0"]);
}

#[test]
fn what_was_read_may_be_removed_or_replaced_and_what_was_not_may_not() {
    let workshop = Workshop::new();
    let options = options(&workshop, vec![watched(&workshop, "in", Duration::from_millis(1))]);
    let teachers = [workshop.word_teacher("words", &["en"])];
    workshop.write("in/a.txt", "menu\n\nrow");
    let mut ingest = open(&options, &teachers).unwrap();
    let first = next_entries(&mut ingest, 2);
    workshop.write("in/next.txt", "menu");
    next_entries(&mut ingest, 1);
    workshop.write("in/a.txt", "the other menu");
    let second = next_entries(&mut ingest, 1);
    assert_eq!(documents(&second), ["a.txt~2@0"]);
    workshop.write("in/last.txt", "menu");
    let last = next_entries(&mut ingest, 1);
    fs::remove_file(workshop.path("in/a.txt")).unwrap();
    drop(ingest);

    let cursor = |entry: &Entry| Cursors::from([(Arc::clone(&entry.cursor.source), entry.cursor.clone())]);
    let mut ingest = reopen(&options, &teachers, &cursor(&second[0]), SequenceNumber(4)).unwrap();
    workshop.write("in/b.txt", "menu");
    let mut again = next_entries(&mut ingest, 1);
    assert_eq!(content(&again[0]), content(&last[0]));
    again.extend(next_entries(&mut ingest, 1));
    assert_eq!(documents(&again), ["last.txt@0", "b.txt@0"]);
    drop(ingest);

    // From there the last part is still to be read, and it is gone.
    let failed = |cursors: &Cursors| match reopen(&options, &teachers, cursors, SequenceNumber(2)) {
        Err(error) => error,
        Ok(mut ingest) => loop {
            match ingest.next_group() {
                Ok(group) => assert_eq!(documents(&group.unwrap().entries), ["next.txt@0"]),
                Err(error) => break error,
            }
        },
    };
    let error = failed(&cursor(&first[1]));
    assert!(matches!(&error, IngestError::Gone { file, .. } if file == "a.txt~2"), "{error}");
    let error = failed(&cursor(&first[0]));
    assert!(matches!(&error, IngestError::Changed { file, .. } if file == "a.txt"), "{error}");
}

#[test]
fn a_file_that_is_replaced_while_it_is_read_is_noticed() {
    let teachers = |workshop: &Workshop| [workshop.word_teacher("words", &["en"])];
    let text = "the menu\n\n".repeat(40_000);
    type Change = fn(&Workshop);
    let changes: [(&str, Change); 3] = [
        ("cut", |workshop| {
            fs::File::options().write(true).open(workshop.path("in/a.txt")).unwrap().set_len(9).unwrap()
        }),
        ("removed", |workshop| fs::remove_file(workshop.path("in/a.txt")).unwrap()),
        ("replaced", |workshop| {
            let other = workshop.write("other", "a row, \n\n".repeat(40_000));
            fs::rename(other, workshop.path("in/a.txt")).unwrap();
        }),
    ];
    for (name, change) in changes {
        for kind in ["watched", "fixed"] {
            let workshop = Workshop::new();
            let mut corpus = watched(&workshop, "in", Duration::from_millis(1));
            let path = workshop.write("in/a.txt", &text);
            if kind == "fixed" {
                corpus.feed = FeedOptions::Files(vec![path]);
            }
            let mut ingest = open(&options(&workshop, vec![corpus]), &teachers(&workshop)).unwrap();
            next_entries(&mut ingest, 3);
            change(&workshop);
            let error = ingest.next_group().unwrap_err();
            assert!(matches!(&error, IngestError::Changed { file, .. } if file == "a.txt"), "{kind}, {name}: {error}");
        }
    }
}

#[test]
fn a_touched_file_is_still_the_same() {
    let workshop = Workshop::new();
    let options = options(&workshop, vec![watched(&workshop, "in", Duration::from_millis(1))]);
    let teachers = [workshop.word_teacher("words", &["en"])];
    let path = workshop.write("in/a.txt", "menu\n\nrow\n\nthe table\n");
    let mut ingest = open(&options, &teachers).unwrap();
    let mut entries = next_entries(&mut ingest, 1);
    fs::File::options().append(true).open(&path).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
    entries.extend(next_entries(&mut ingest, 1));
    fs::copy(&path, workshop.path("copy")).unwrap();
    fs::rename(workshop.path("copy"), &path).unwrap();
    entries.extend(next_entries(&mut ingest, 1));
    drop(ingest);
    check_resume(&options, &teachers, &entries);
}

/// Documents in three languages and in none, with bad ones.
fn mixed(documents: u64) -> String {
    let mut lines = String::new();
    for (index, text) in prose(5, documents).split("\n\n").filter(|text| !text.trim().is_empty()).enumerate() {
        let language = ["en", "de", "en", "fi", "xx", "tr"][index % 6];
        lines += &(serde_json::json!({"text": text, "lang": language, "id": index}).to_string() + "\n");
    }
    lines + "not json\n{\"text\": \"menu\"}\n{\"text\": 3, \"lang\": \"de\"}\n"
}

fn multilingual(feed: FeedOptions) -> CorpusOptions {
    let mut corpus = feed_of("wiki", "en", Format::JsonLines, feed);
    corpus.language = Language::Field;
    corpus.format.language_field = Some("lang".to_owned());
    corpus.format.id_field = Some("id".to_owned());
    corpus
}

#[test]
fn a_language_field_makes_one_source_per_language() {
    let workshop = Workshop::new();
    let mut content = Vec::new();
    for (name, documents) in [("in/a.jsonl", 24), ("in/b.jsonl", 12), ("in/c.jsonl", 6)] {
        content.push(workshop.write(name, mixed(documents)));
    }
    workshop.write("in/d.jsonl", "{\"text\": \"menu\", \"lang\": \"de\"}\n");
    content.push(workshop.path("in/d.jsonl"));
    let teachers = [workshop.word_teacher("words", &["en", "de"]), workshop.letter_teacher("letters", &["tr", "en"])];
    let folder = workshop.path("in");
    let watch = FeedOptions::Watch { folder, settle: Duration::from_millis(1), poll: Duration::from_millis(50) };
    for feed in [FeedOptions::Files(content), watch] {
        let corpus = multilingual(feed);
        assert_eq!(
            corpus.sources(["en", "de", "en"]),
            [("wiki:en".into(), "en".into()), ("wiki:de".into(), "de".into())]
        );
        let finite = corpus.is_finite();
        let options = options(&workshop, vec![corpus]);
        let mut ingest = open(&options, &teachers).unwrap();
        let mut entries: Vec<Entry> = Vec::new();
        // 42 documents in the ratio 2 (en) : 1 (de) : 1 (tr), the rest of unknown language; bad lines; one more German one.
        let distinct = |entries: &[Entry]| {
            let mut all: Vec<(Arc<str>, String)> = Vec::new();
            for entry in entries {
                match &entry.payload {
                    Payload::Record(record) => all.push((Arc::clone(&record.source), record.document.to_string())),
                    Payload::Skip(skip) if &*skip.reason != "other_language" => {
                        all.push((Arc::clone(&entry.cursor.source), skip.document.to_string()));
                    }
                    _ => {}
                }
            }
            all.sort();
            all.dedup();
            all
        };
        while distinct(&entries).len() < 42 + 9 + 1 || (finite && ends(&entries) < 3) {
            entries.extend(next_entries(&mut ingest, 1));
        }
        let of = |source: &str| distinct(&entries).iter().filter(|(name, _)| &**name == source).count();
        assert_eq!(
            (of("wiki:en"), of("wiki:de"), of("wiki:tr")),
            (14 + 14 + 6, 7 + 3 + 1, 7),
            "unknown ones go to the first"
        );
        let unknown = skips(&entries).iter().filter(|(_, reason)| *reason == "unknown_language").count();
        assert_eq!(unknown, 14);
        assert!(documents(&entries).contains(&"a.jsonl@0#0"), "{:?}", &documents(&entries)[..3]);
        drop(ingest);
        check_resume(&options, &teachers, &entries);
        let _ = fs::remove_dir_all(workshop.path("feeds"));
    }
}

fn ends(entries: &[Entry]) -> usize {
    entries.iter().filter(|entry| entry.payload == Payload::End).count()
}

#[test]
fn a_dry_corpus_stops_nobody_and_a_short_group_does_not_wait_for_ever() {
    let workshop = Workshop::new();
    let dry = watched(&workshop, "dry", Duration::from_millis(1));
    let options = workshop.options(vec![dry, workshop.corpus("c", "de", prose(1, 4))]);
    assert!(options.group_tokens > 100);
    let mut ingest = open(&options, &[workshop.word_teacher("words", &["en", "de"])]).unwrap();
    let mut entries = Vec::new();
    while ends(&entries) == 0 {
        entries.extend(ingest.next_group().unwrap().unwrap().entries);
    }
    workshop.write("dry/a.txt", "menu");
    assert_eq!(documents(&next_entries(&mut ingest, 1)), ["a.txt@0"]);
    let status = serde_json::to_value(&*ingest.status()).unwrap();
    let states: Vec<_> = (0..2).map(|index| status["corpora"][index]["state"].as_str().unwrap()).collect();
    assert_eq!(states, ["waiting", "ended"]);
    assert_eq!(status["corpora"][0]["characters_available"], 4);
    assert_eq!(status["corpora"][0]["characters_consumed"], 4);
    assert_eq!(status["languages"][0]["share"], 1.0);
}

/// What arrives while it runs changes the shares at once; what was consumed never does.
#[test]
fn shares_follow_what_has_arrived() {
    const ALPHA: f64 = 0.7;
    let workshop = Workshop::new();
    let languages = ["de", "en", "tr"];
    let corpora = languages.map(|language| {
        let mut corpus = watched(&workshop, language, Duration::from_millis(1));
        corpus.language = Language::Fixed(language.to_owned());
        corpus
    });
    let options = IngestOptions { alpha: ALPHA, ..options(&workshop, corpora.to_vec()) };
    let mut ingest = open(&options, &[workshop.word_teacher("words", &languages)]).unwrap();
    let mut sizes = [0.0; 3];
    // Documents that arrive before each stretch, in thousands.
    for (stretch, arrivals) in [[20, 20, 20], [0, 40, 0], [0, 0, 70]].into_iter().enumerate() {
        for (index, thousands) in arrivals.into_iter().enumerate().filter(|(_, thousands)| *thousands > 0) {
            let partial =
                workshop.write(&format!("{}/{stretch}.part", languages[index]), "menu\n\n".repeat(thousands * 1000));
            fs::rename(partial, workshop.path(&format!("{}/{stretch}.txt", languages[index]))).unwrap();
            sizes[index] += 6000.0 * thousands as f64;
        }
        let (status, start) = (ingest.status(), Instant::now());
        let arrived = || serde_json::to_value(&*status).unwrap()["corpora"].clone();
        while (0..3).any(|index| arrived()[index]["characters_available"] != sizes[index] as u64) {
            assert!(start.elapsed() < LIMIT, "{}", arrived());
            next_entries(&mut ingest, 1);
        }
        let entries = next_entries(&mut ingest, 20_000);
        let weights = sizes.map(|size| f64::powf(size, ALPHA));
        for (language, weight) in languages.iter().zip(weights) {
            let found = entries.iter().filter(|entry| &*entry.cursor.language == *language).count() as f64;
            let (found, expected) = (found / entries.len() as f64, weight / weights.iter().sum::<f64>());
            assert!((found - expected).abs() < 0.01, "stretch {stretch}, {language}: {found}, not {expected}");
        }
    }
}

/// Waits until the manifest of corpus `in` names fewer than `files` files.
fn wait_for_rewriting(workshop: &Workshop, files: usize) {
    let start = Instant::now();
    let manifest = || fs::read_to_string(workshop.path("feeds/in.jsonl")).unwrap();
    while manifest().matches("\"taken\"").count() >= files {
        assert!(start.elapsed() < LIMIT, "it still names {files} files");
        std::thread::yield_now();
    }
}

#[test]
fn what_the_log_durably_has_is_forgotten_and_never_read_again() {
    const FILES: usize = 1100;
    let workshop = Workshop::new();
    let options = options(&workshop, vec![watched(&workshop, "in", Duration::from_millis(1))]);
    let teachers = [workshop.word_teacher("words", &["en"])];
    for number in 0..FILES {
        workshop.write(&format!("in/{number:04}.txt"), "menu");
    }
    let mut ingest = open(&options, &teachers).unwrap();
    let entries = next_entries(&mut ingest, FILES);
    assert_eq!(entries.len(), FILES);
    // Nothing is forgotten before the log says so.
    let manifest = fs::read_to_string(workshop.path("feeds/in.jsonl")).unwrap();
    assert_eq!(manifest.matches("\"taken\"").count(), FILES);
    options.durable_end.store(FILES as u64, std::sync::atomic::Ordering::Relaxed);
    workshop.write("in/last.txt", "row");
    let last = next_entries(&mut ingest, 1);
    wait_for_rewriting(&workshop, 80);
    drop(ingest);

    // It goes on where it stood, with what has come since; files that were read are still there, and are not read again.
    workshop.write("in/later.txt", "the table");
    let cursors = |entry: &Entry| Cursors::from([(Arc::clone(&entry.cursor.source), entry.cursor.clone())]);
    let mut ingest = reopen(&options, &teachers, &cursors(&last[0]), last[0].sequence.next()).unwrap();
    assert_eq!(documents(&next_entries(&mut ingest, 1)), ["later.txt@0"]);
    let characters = serde_json::to_value(&*ingest.status()).unwrap()["corpora"][0]["characters_available"].clone();
    assert_eq!(characters, 4 * FILES as u64 + 3 + 9);
    drop(ingest);
    // A log that is older than what was forgotten is not this one.
    let error = reopen(&options, &teachers, &cursors(&entries[0]), SequenceNumber(1)).err().unwrap();
    assert!(matches!(&error, IngestError::Changed { file, .. } if file == "0000.txt"), "{error}");
    // A new log begins anew.
    let mut ingest = open(&options, &teachers).unwrap();
    assert_eq!(next_entries(&mut ingest, FILES + 2).len(), FILES + 2);
}
