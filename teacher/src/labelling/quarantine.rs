//! Batches that nobody could label: their copies go to the log without labels, and a note says why.
//!
//! A batch that fails with one worker after another says something of the batch. When several in a row do, it says something of the teacher, and
//! labelling ends.

use super::members;
use crate::TeacherError;
use prometheus::{IntCounter, Opts, Registry};
use serde::Serialize;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use store::{Group, Payload};

/// So many batches of a teacher may fail one after another.
const MOST_IN_A_ROW: u32 = 3;

/// The quarantined batches of one teacher.
pub(super) struct BatchQuarantine {
    teacher: String,
    folder: PathBuf,
    in_a_row: AtomicU32,
    batches: IntCounter,
    copies: IntCounter,
}

/// What is kept of a batch.
#[derive(Debug, Serialize)]
struct Note<'a> {
    teacher: &'a str,
    /// Why it could not be labelled.
    error: &'a str,
    examples: Vec<Example<'a>>,
}

/// An example of which the teacher has no label.
#[derive(Debug, Serialize)]
struct Example<'a> {
    /// Its entry in the log.
    sequence: u64,
    source: &'a str,
    document: &'a str,
    /// Bytes of the document.
    span: (u64, u64),
    language: &'a str,
    /// As the teacher was to see it.
    token_ids: &'a [u32],
    masked_positions: &'a [u32],
}

impl BatchQuarantine {
    /// Notes go to `folder`, which is made when the first one comes.
    pub(super) fn register(registry: &Registry, teacher: &str, folder: PathBuf) -> Result<Self, TeacherError> {
        let counter =
            |name: &str, help: &str| IntCounter::with_opts(Opts::new(name, help).const_label("teacher", teacher));
        let batches = counter(
            "mergedistill_teacher_quarantined_batches_total",
            "Batches that no worker could label, time after time.",
        )?;
        let copies = counter(
            "mergedistill_teacher_quarantined_copies_total",
            "Masked copies of these batches: they went to the log without the teacher's labels.",
        )?;
        registry.register(Box::new(batches.clone()))?;
        registry.register(Box::new(copies.clone()))?;
        Ok(Self { teacher: teacher.to_owned(), folder, in_a_row: AtomicU32::new(0), batches, copies })
    }

    /// A batch was labelled.
    pub(super) fn note_success(&self) {
        self.in_a_row.store(0, Ordering::Relaxed);
    }

    /// Notes a batch that could not be labelled for `reason`.
    ///
    /// # Errors
    /// When too many have failed in a row, or the note cannot be written.
    pub(super) fn keep(&self, group: &Group, batch: usize, reason: String) -> Result<(), TeacherError> {
        let in_a_row = self.in_a_row.fetch_add(1, Ordering::Relaxed) + 1;
        if in_a_row > MOST_IN_A_ROW {
            let reason = format!("{in_a_row} batches in a row failed; the last one: {reason}");
            return Err(TeacherError::Worker { teacher: self.teacher.clone(), reason });
        }
        let examples =
            group.batches[batch].members.iter().zip(members(group, batch)).filter_map(|(&(entry, _), (_, copy))| {
                let entry = &group.entries[entry as usize];
                let Payload::Record(record) = &entry.payload else { return None };
                Some(Example {
                    sequence: entry.sequence.0,
                    source: &record.source,
                    document: &record.document,
                    span: (record.span.first, record.span.end),
                    language: &record.language,
                    token_ids: &copy.token_ids,
                    masked_positions: &copy.masked_positions,
                })
            });
        let note = Note { teacher: &self.teacher, error: &reason, examples: examples.collect() };
        let copies = note.examples.len();
        // Made again after a crash, it is the same file.
        let first = note.examples.first().map_or(0, |example| example.sequence);
        let path = self.folder.join(format!("{first}-{}-{batch}.json", group.batches[batch].teacher));
        let failed = |source: io::Error| TeacherError::Quarantine { path: path.clone(), source };
        let text = serde_json::to_string_pretty(&note).map_err(|error| failed(error.into()))?;
        fs::create_dir_all(&self.folder).and_then(|()| fs::write(&path, text)).map_err(failed)?;
        tracing::error!(
            teacher = self.teacher,
            copies,
            reason,
            note = %path.display(),
            "no worker could label a batch; its copies go to the log without labels"
        );
        self.batches.inc();
        self.copies.inc_by(copies as u64);
        Ok(())
    }
}
