//! A scene: an inbox, clients that push to it, and what is in its files.

use crossbeam::channel::{Receiver, bounded};
use ingest::spool::{Batch, Inbox, InboxMetrics, InboxOptions, PushError, Receipt};
use ingest::{Format, FormatOptions, IngestError};
use prometheus::Registry;
use serde_json::Value;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use store::SourceCursor;
use store::log::disk::Disk;

pub(crate) const DIR: &str = "/inbox/en";

/// Longer than anything here takes; a test that gets there has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// JSON lines with an identifier, read by source `en`.
pub(crate) fn options() -> InboxOptions {
    let format = FormatOptions { id_field: Some("id".to_owned()), ..Format::JsonLines.into() };
    InboxOptions::new(vec!["en".to_owned()], format)
}

pub(crate) fn open(disk: &(impl Disk + Clone + 'static), options: InboxOptions) -> Result<Inbox, IngestError> {
    let metrics = InboxMetrics::register(&Registry::new()).unwrap();
    Inbox::open_on(Arc::new(disk.clone()), "en", Path::new(DIR), options, &metrics)
}

/// The lines of a request with these texts.
pub(crate) fn lines(texts: &[&str]) -> String {
    texts.iter().map(|text| format!("{}\n", serde_json::json!({ "text": text }))).collect()
}

pub(crate) fn batch(inbox: &Inbox, texts: &[&str], key: Option<&str>) -> Result<Batch, PushError> {
    let mut batch = inbox.batch();
    batch.write(lines(texts).as_bytes())?;
    batch.finish(key.map(str::to_owned))
}

/// Begins to push; what becomes of it comes through the channel.
pub(crate) fn begin(inbox: &Inbox, batch: Batch) -> Result<Receiver<Result<Receipt, PushError>>, PushError> {
    let (done, outcome) = bounded(1);
    inbox.push(batch, move |result| done.send(result).unwrap());
    match outcome.try_recv() {
        Ok(Err(error)) => Err(error),
        Ok(done) => {
            let (sender, outcome) = bounded(1);
            sender.send(done).unwrap();
            Ok(outcome)
        }
        Err(_) => Ok(outcome),
    }
}

/// Pushes and waits until it is durable.
pub(crate) fn push(inbox: &Inbox, texts: &[&str], key: Option<&str>) -> Result<Receipt, PushError> {
    let outcome = begin(inbox, batch(inbox, texts, key)?)?;
    outcome.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("no answer"))
}

/// The documents in files of an inbox, oldest first; torn lines are left out.
pub(crate) fn documents<'a>(files: impl IntoIterator<Item = (&'a str, &'a [u8])>) -> Vec<Value> {
    let mut files: Vec<_> = files.into_iter().filter(|(name, _)| name.ends_with(".jsonl")).collect();
    files.sort_unstable();
    let lines = files.iter().flat_map(|(_, content)| content.split_inclusive(|byte| *byte == b'\n'));
    lines.filter_map(|line| serde_json::from_slice(line).ok()).collect()
}

/// The texts on a disk in memory.
pub(crate) fn texts(disk: &crate::memory_disk::MemoryDisk) -> Vec<String> {
    let files = disk.files(Path::new(DIR));
    let files = files.iter().map(|(path, content)| (path.file_name().unwrap().to_str().unwrap(), &content[..]));
    documents(files).iter().map(|document| document["text"].as_str().unwrap().to_owned()).collect()
}

/// Names of the files with documents.
pub(crate) fn names(disk: &crate::memory_disk::MemoryDisk) -> Vec<String> {
    let files = disk.files(Path::new(DIR));
    let names = files.keys().map(|path| path.file_name().unwrap().to_str().unwrap().to_owned());
    names.filter(|name| name.ends_with(".jsonl")).collect()
}

/// The cursor of an entry made of the document at `offset_bytes` of `file`.
pub(crate) fn cursor(source: &str, file: &str, offset_bytes: u64) -> SourceCursor {
    let mut cursor = SourceCursor::start(source.into(), "en".into(), 0);
    cursor.file = file.into();
    cursor.document_offset_bytes = offset_bytes;
    cursor.next_byte = SourceCursor::DOCUMENT_DONE;
    cursor
}

/// Looks again until it is so.
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < PATIENCE, "never happened: {what}");
        std::thread::yield_now();
    }
}
