//! A file that grows like a log, and is rotated.

use crate::feeds::{check_resume, documents, next_entries, options};
use crate::workshop::{Cursors, Workshop, feed_of, open, reopen};
use ingest::feed::mending;
use ingest::{FeedOptions, Format, IngestError, IngestOptions, IngestTeacher, TextDocuments};
use std::fs;
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;
use store::stage::StageControl;
use store::{Entry, SequenceNumber};

/// A log that is followed, one document a line.
struct Log {
    workshop: Workshop,
    options: IngestOptions,
    teachers: [IngestTeacher; 1],
}

impl Log {
    fn new() -> Self {
        let workshop = Workshop::new();
        fs::create_dir(workshop.path("logs")).unwrap();
        let (settle, poll) = (Duration::from_millis(1), Duration::from_millis(20));
        let feed = FeedOptions::Follow { file: workshop.path("logs/app.log"), settle, poll };
        let mut corpus = feed_of("app", "en", Format::Text, feed);
        corpus.format.documents = TextDocuments::Line;
        let options = options(&workshop, vec![corpus]);
        let teachers = [workshop.word_teacher("words", &["en"])];
        Self { workshop, options, teachers }
    }

    fn append(&self, text: &str) {
        let path = self.workshop.path("logs/app.log");
        fs::File::options().create(true).append(true).open(path).unwrap().write_all(text.as_bytes()).unwrap();
    }

    fn rename(&self, from: &str, to: &str) {
        fs::rename(self.workshop.path(&format!("logs/{from}")), self.workshop.path(&format!("logs/{to}"))).unwrap();
    }

    fn cursors(entry: &Entry) -> Cursors {
        Cursors::from([(Arc::clone(&entry.cursor.source), entry.cursor.clone())])
    }
}

#[test]
fn lines_come_as_they_are_ended_and_rotation_loses_none() {
    let log = Log::new();
    let mut ingest = open(&log.options, &log.teachers).unwrap();
    log.append("menu\nrow\nhal");
    let mut entries = next_entries(&mut ingest, 2);
    log.append("f the table\n");
    entries.extend(next_entries(&mut ingest, 1));
    log.append("last");
    log.rename("app.log", "app.log.1");
    log.append("first of the second\n");
    entries.extend(next_entries(&mut ingest, 2));
    log.rename("app.log.1", "app.log.2");
    log.rename("app.log", "app.log.1");
    log.append("third\n");
    entries.extend(next_entries(&mut ingest, 1));
    let expected = ["app.log@0", "app.log@5", "app.log@9", "app.log@24", "app.log~2@0", "app.log~3@0"];
    assert_eq!(documents(&entries), expected);
    drop(ingest);
    check_resume(&log.options, &log.teachers, &entries);
}

#[test]
fn rotations_that_nobody_watched_are_made_up_for() {
    let log = Log::new();
    log.append("menu\nrow\n");
    let mut ingest = open(&log.options, &log.teachers).unwrap();
    let mut entries = next_entries(&mut ingest, 1);
    drop(ingest);
    for (number, text) in ["second\n", "third\n"].iter().enumerate() {
        for older in (1..=number).rev() {
            log.rename(&format!("app.log.{older}"), &format!("app.log.{}", older + 1));
        }
        log.rename("app.log", "app.log.1");
        log.append(text);
        let file = fs::File::options().append(true).open(log.workshop.path("logs/app.log")).unwrap();
        let later = std::time::SystemTime::now() + Duration::from_secs(60 * (1 + number as u64));
        file.set_modified(later).unwrap();
    }
    let mut ingest = reopen(&log.options, &log.teachers, &Log::cursors(&entries[0]), SequenceNumber(1)).unwrap();
    entries.extend(next_entries(&mut ingest, 3));
    assert_eq!(documents(&entries), ["app.log@0", "app.log@5", "app.log~2@0", "app.log~3@0"]);
}

#[test]
fn a_log_that_is_cut_or_lost_is_named() {
    let log = Log::new();
    log.append("menu\nrow\n");
    let mut ingest = open(&log.options, &log.teachers).unwrap();
    let entries = next_entries(&mut ingest, 2);
    fs::write(log.workshop.path("logs/app.log"), "row\n").unwrap();
    let error = ingest.next_group().unwrap_err();
    assert!(matches!(&error, IngestError::Changed { file, .. } if file == "app.log"), "{error}");
    assert!(error.to_string().contains("renamed for rotation"), "{error}");
    drop(ingest);

    let reopened = |entry: &Entry| reopen(&log.options, &log.teachers, &Log::cursors(entry), SequenceNumber(1));
    let error = reopened(&entries[0]).err().unwrap();
    assert!(matches!(&error, IngestError::Gone { file, .. } if file == "app.log"), "{error}");
}

#[test]
fn a_rotated_log_that_was_read_may_be_removed() {
    let log = Log::new();
    log.append("menu\nrow\n");
    let mut ingest = open(&log.options, &log.teachers).unwrap();
    let entries = next_entries(&mut ingest, 2);
    log.rename("app.log", "app.log.1");
    log.append("second\n");
    next_entries(&mut ingest, 1);
    drop(ingest);
    fs::remove_file(log.workshop.path("logs/app.log.1")).unwrap();
    let mut ingest = reopen(&log.options, &log.teachers, &Log::cursors(&entries[1]), SequenceNumber(2)).unwrap();
    assert_eq!(documents(&next_entries(&mut ingest, 1)), ["app.log~2@0"]);
    drop(ingest);
    let error = reopen(&log.options, &log.teachers, &Log::cursors(&entries[0]), SequenceNumber(1)).err().unwrap();
    assert!(matches!(&error, IngestError::Changed { file, .. } if file == "app.log"), "{error}");
}

/// Restored from a backup, a file has another number in the file system: it is the one that was followed if somebody says so.
#[test]
fn a_log_that_was_copied_is_recognised_when_somebody_asks_for_it() {
    let log = Log::new();
    log.append("menu\nrow\n");
    let mut ingest = open(&log.options, &log.teachers).unwrap();
    next_entries(&mut ingest, 2);
    log.rename("app.log", "app.log.1");
    log.append("second\nsecond row\n");
    let last = next_entries(&mut ingest, 1).pop().unwrap();
    drop(ingest);
    let copy = |name: &str| {
        fs::copy(log.workshop.path(&format!("logs/{name}")), log.workshop.path("logs/copy")).unwrap();
        log.rename("copy", name);
    };
    ["app.log", "app.log.1"].into_iter().for_each(copy);
    let reopened = || reopen(&log.options, &log.teachers, &Log::cursors(&last), SequenceNumber(3));
    let error = reopened().err().unwrap().to_string();
    assert!(error.contains("corpus recognise") && error.contains("corpus forget"), "{error}");
    let recognise = || mending::recognise(&log.options.feeds, "app", &log.workshop.path("logs/app.log"), |_| 0);

    fs::copy(log.workshop.path("logs/app.log"), log.workshop.path("logs/app.log.old")).unwrap();
    let error = recognise().unwrap_err().to_string();
    assert!(error.contains("app.log.old all begin as `app.log~2` did"), "{error}");
    fs::remove_file(log.workshop.path("logs/app.log.old")).unwrap();
    let names = |found: Vec<(Arc<str>, _)>| found.into_iter().map(|(name, _)| name.to_string()).collect::<Vec<_>>();
    let far = mending::recognise(&log.options.feeds, "app", &log.workshop.path("logs/app.log"), |_| 1000);
    assert!(far.unwrap_err().to_string().contains("with 1000 bytes or more"), "it was read further than the copy goes");
    assert_eq!(names(recognise().unwrap()), ["app.log~2", "app.log"]);
    assert_eq!(names(recognise().unwrap()), [""; 0], "they are known now");
    assert_eq!(documents(&next_entries(&mut reopened().unwrap(), 1)), ["app.log~2@7"]);

    // One that is shorter than it was, or begins otherwise, is another one.
    fs::write(log.workshop.path("logs/app.log"), "third\n").unwrap();
    copy("app.log");
    let error = recognise().unwrap_err().to_string();
    assert!(error.contains("no file in") && error.contains("`app.log~2`"), "{error}");
    mending::forget(&log.options.feeds, "app", "app.log~2").unwrap();
    assert_eq!(documents(&next_entries(&mut reopened().unwrap(), 1)), ["app.log~3@0"]);
    let error = mending::forget(&log.options.feeds, "app", "none.log").unwrap_err().to_string();
    assert!(error.contains("`none.log`") && error.contains("`app.log~3`"), "{error}");
}

#[test]
fn a_paused_corpus_does_not_hide_that_watching_has_failed() {
    let mut log = Log::new();
    log.append("menu\nrow\n");
    log.options.overrides.paused.insert("app".into());
    let ingest = open(&log.options, &log.teachers).unwrap();
    fs::write(log.workshop.path("logs/app.log"), "row\n").unwrap();
    let control = StageControl::default();
    let switch = control.clone();
    let (groups, _nothing_comes) = crossbeam::channel::bounded(1);
    let (end, ended) = crossbeam::channel::bounded(1);
    let stage = std::thread::spawn(move || end.send(ingest.run(&switch, &|_| true, groups)).unwrap());
    let outcome = ended.recv_timeout(Duration::from_secs(30));
    control.stop();
    stage.join().unwrap();
    let error = outcome.unwrap().unwrap_err();
    assert!(matches!(&error, IngestError::Changed { file, .. } if file == "app.log"), "{error}");
}
