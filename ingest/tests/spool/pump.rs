//! Named pipes.

use crate::harness::{cursor, documents, options, wait_until};
use ingest::quarantine::Quarantine;
use ingest::spool::{Inbox, InboxMetrics, InboxOptions, Pump, PumpSource};
use ingest::{Format, IngestError};
use prometheus::Registry;
use rustix::fs::{CWD, FileType, Mode};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use store::stage::StageControl;

struct Scene {
    folder: tempfile::TempDir,
    pipe: PathBuf,
}

impl Scene {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        rustix::fs::mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        Self { folder, pipe }
    }

    fn inbox(&self, options: InboxOptions) -> Inbox {
        let metrics = InboxMetrics::register(&Registry::new()).unwrap();
        Inbox::open("en", &self.folder.path().join("inbox"), options, &metrics).unwrap()
    }

    fn texts(&self) -> Vec<String> {
        let read = |entry: std::io::Result<fs::DirEntry>| {
            let path = entry.unwrap().path();
            (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(path).unwrap())
        };
        let files: Vec<_> = fs::read_dir(self.folder.path().join("inbox")).unwrap().map(read).collect();
        let found = documents(files.iter().map(|(name, content)| (name.as_str(), &content[..])));
        found.iter().map(|document| document["text"].as_str().unwrap().to_owned()).collect()
    }

    fn writer(&self) -> File {
        OpenOptions::new().write(true).open(&self.pipe).unwrap()
    }

    /// Runs a pump on `inbox` for as long as `body`.
    fn pumping(&self, inbox: &Inbox, body: impl FnOnce()) {
        /// Stops the pump whatever happens, so that a test that fails ends.
        struct Stop(StageControl);
        impl Drop for Stop {
            fn drop(&mut self) {
                self.0.stop();
            }
        }
        let control = StageControl::default();
        let source = PumpSource::Pipe(self.pipe.clone());
        let quarantine = Quarantine::new(self.folder.path().join("quarantine"), 1 << 20).unwrap();
        std::thread::scope(|scope| {
            let pump = scope.spawn(|| Pump::new(source, inbox, &control, quarantine).run());
            let stop = Stop(control.clone());
            body();
            drop(stop);
            pump.join().unwrap().unwrap();
        });
    }
}

#[test]
fn writers_come_and_go() {
    let scene = Scene::new();
    let inbox = scene.inbox(InboxOptions::new(vec!["en".to_owned()], Format::Text.into()));
    scene.pumping(&inbox, || {
        let mut writer = scene.writer();
        writer.write_all(b"one\n\ntw").unwrap();
        wait_until("the first is durable", || inbox.arrived().documents == 1);
        writer.write_all(b"o\n\n").unwrap();
        wait_until("the second is durable", || inbox.arrived().documents == 2);
        writer.write_all(b"three ends with its writer").unwrap();
        drop(writer);
        wait_until("the third is durable", || inbox.arrived().documents == 3);
        for number in 4..30 {
            write!(scene.writer(), "{number}").unwrap();
            wait_until("it is durable", || inbox.arrived().documents == number);
        }
    });
    let found = scene.texts();
    assert_eq!(found[..4], ["one", "two", "three ends with its writer", "4"]);
    assert_eq!(found.len(), 29);
}

#[test]
fn what_cannot_be_used_goes_to_the_quarantine() {
    let scene = Scene::new();
    let inbox = scene.inbox(options());
    scene.pumping(&inbox, || {
        let mut writer = scene.writer();
        writer.write_all(b"{\"text\":\"good\"}\n{broken\n{\"text\":\"fine\"}\n").unwrap();
        drop(writer);
        let quarantined =
            || fs::read_dir(scene.folder.path().join("quarantine/en")).is_ok_and(|files| files.count() == 1);
        wait_until("it is quarantined", || inbox.arrived().documents == 2 && quarantined());
    });
    let kept = fs::read_dir(scene.folder.path().join("quarantine/en")).unwrap().next().unwrap().unwrap();
    let note: serde_json::Value = serde_json::from_slice(&fs::read(kept.path()).unwrap()).unwrap();
    assert_eq!(
        (&note["reason"], &note["offset"], &note["excerpt"]),
        (&"malformed_json".into(), &2.into(), &"{broken".into())
    );
}

/// More of them in one read than any answer would name.
#[test]
fn of_what_cannot_be_used_nothing_is_lost() {
    let scene = Scene::new();
    let inbox = scene.inbox(options());
    let kept = || fs::read_dir(scene.folder.path().join("quarantine/en")).map_or(0, Iterator::count);
    scene.pumping(&inbox, || {
        scene.writer().write_all("{}\n".repeat(150).as_bytes()).unwrap();
        wait_until("all are quarantined", || kept() == 150);
    });
}

#[test]
fn a_full_inbox_stops_reading_and_loses_nothing() {
    let scene = Scene::new();
    let sizes = InboxOptions { spooled_bytes: 4 << 20, ..options() };
    let inbox = scene.inbox(sizes);
    let text = "x".repeat(10_000);
    scene.pumping(&inbox, || {
        let mut writer = scene.writer();
        let writing = std::thread::spawn(move || {
            for number in 0..800 {
                writeln!(writer, "{}", serde_json::json!({ "text": format!("{number} {text}") })).unwrap();
            }
        });
        wait_until("the inbox is nearly full", || inbox.arrived().documents >= 300);
        assert!(inbox.arrived().documents < 420 && !writing.is_finished(), "more than fits");
        wait_until("all are durable", || {
            inbox.durable(&cursor("en", &newest_file(&inbox), 0));
            inbox.arrived().documents == 800
        });
        writing.join().unwrap();
    });
}

fn newest_file(inbox: &Inbox) -> String {
    use ingest::feed::Feed;
    let mut name = String::new();
    while let Some(part) = inbox.following(Some(&name).filter(|name| !name.is_empty()).map(String::as_str)) {
        name = part.name.to_string();
    }
    name
}

#[test]
fn what_is_no_pipe_is_refused() {
    let scene = Scene::new();
    let inbox = scene.inbox(options());
    let control = StageControl::default();
    let run = |path: &Path| {
        let source = PumpSource::Pipe(path.to_owned());
        let quarantine = Quarantine::new(scene.folder.path().join("quarantine"), 1 << 20).unwrap();
        Pump::new(source, &inbox, &control, quarantine).run().unwrap_err()
    };
    let file = scene.folder.path().join("file");
    assert!(matches!(run(&file), IngestError::Io { doing: "open the pipe", .. }));
    fs::write(&file, "text").unwrap();
    assert!(run(&file).to_string().contains("mkfifo"));
}
