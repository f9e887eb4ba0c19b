//! TensorBoard event files beside `metrics.jsonl`: `tensorboard --logdir <state folder>` shows the run, and its releases.
//!
//! Each line of `metrics.jsonl` is an event with a scalar per figure. Whenever training goes on from a checkpoint there is a new file.
//! It begins with a session start at the step of the checkpoint, upon which TensorBoard forgets what earlier files say of
//! that step and later ones; then come that step's own lines again. So each step is shown once, although some are trained twice.
//!
//! Nothing here stops training: what cannot be written is left out, and a warning says so once. `metrics.jsonl` has it all.
//!
//! The format: a file is a sequence of records; a record is the length of its data (8 bytes), the masked CRC-32C of these 8 bytes, the
//! data, and the masked CRC-32C of the data; all little-endian. The mask of `c` is `rotate_right(c, 15) + 0xa282ead8`. The data is a
//! protobuf message, tensorflow's `Event`: 1 wall_time (double, Unix seconds), 2 step (varint), and one of 3 file_version
//! (a string, in the first record), 5 summary, 7 session_log (1 status: 1 is START). A `Summary` repeats 1 value; a value is
//! 1 tag (a string), 2 simple_value (float). TensorBoard reads files in the order of their names.

use serde_json::Value;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// What names of files begin with; then come Unix seconds and [`NAME_END`].
const NAME_BEGIN: &str = "events.out.tfevents.";
const NAME_END: &str = ".mergedistill";
/// The second version of the format, in which a session start says from where on to forget.
const FILE_VERSION: &[u8] = b"brain.Event:2";
/// Figures of a step's line that are shown as they are.
const STEP_FIGURES: [&str; 10] = [
    "loss",
    "kd",
    "mlm",
    "top1",
    "learning_rate",
    "lambda",
    "grad_norm",
    "total_tokens",
    "total_train_flops",
    "total_teacher_flops",
];
/// Figures of a language, and of the student beside a teacher.
const EVALUATION_FIGURES: [&str; 9] =
    ["loss", "top1", "student_loss", "student_top1", "rdt", "ece", "student_ece", "agreement", "retained_mass"];

/// The newest event file of a folder, open for appending.
#[derive(Debug)]
pub(crate) struct EventFile {
    path: PathBuf,
    /// `None`: nothing can be written to it any more.
    file: Option<File>,
    /// Where the last whole record ends.
    whole_bytes: u64,
    /// Whether the last record was left out.
    is_behind: bool,
}

impl EventFile {
    /// A new file in `folder`, for training that goes on at `step`; `lines` are that step's. If it cannot be made, there is none.
    pub(crate) fn create(folder: &Path, step: u64, lines: &[Value]) -> Option<Self> {
        let warn = |error| tracing::warn!(folder = %folder.display(), %error, "no TensorBoard files are written");
        let mut event_file = Self::try_create(folder).map_err(warn).ok()?;
        event_file.append(&[event(step, 3, FILE_VERSION), event(step, 7, &[8, 1])].concat());
        lines.iter().for_each(|line| event_file.write(line));
        Some(event_file)
    }

    /// Writes a line of `metrics.jsonl`.
    pub(crate) fn write(&mut self, line: &Value) {
        let Some(step) = line["step"].as_u64() else { return };
        let mut summary = Vec::new();
        for (tag, scalar) in scalars(line) {
            let mut value = Vec::new();
            put_bytes(&mut value, 1, tag.as_bytes());
            value.push(0x15); // field 2, 4 bytes
            value.extend((scalar as f32).to_le_bytes());
            put_bytes(&mut summary, 1, &value);
        }
        self.append(&event(step, 5, &summary));
    }

    fn try_create(folder: &Path) -> io::Result<Self> {
        if !folder.exists() {
            fs::create_dir(folder)?;
        }
        // A clock that was set back must not put the new file before an old one.
        let mut newest = 0_u64;
        for entry in fs::read_dir(folder)? {
            let name = entry?.file_name();
            let seconds = name.to_str().and_then(|name| name.strip_prefix(NAME_BEGIN)?.split('.').next()?.parse().ok());
            newest = newest.max(seconds.unwrap_or(0));
        }
        let seconds = (unix_seconds() as u64).max(newest.saturating_add(1));
        let path = folder.join(format!("{NAME_BEGIN}{seconds:010}{NAME_END}"));
        let file = OpenOptions::new().append(true).create_new(true).open(&path)?;
        Ok(Self { path, file: Some(file), whole_bytes: 0, is_behind: false })
    }

    /// Appends whole records, or nothing.
    fn append(&mut self, records: &[u8]) {
        let Some(file) = &mut self.file else { return };
        match file.write_all(records) {
            Ok(()) => {
                self.whole_bytes += records.len() as u64;
                if std::mem::take(&mut self.is_behind) {
                    tracing::info!(path = %self.path.display(), "TensorBoard's file is written again");
                }
            }
            Err(error) => {
                if !std::mem::replace(&mut self.is_behind, true) {
                    tracing::warn!(path = %self.path.display(), %error, "TensorBoard's file misses steps; metrics.jsonl has them");
                }
                // Readers stop at half a record.
                if file.set_len(self.whole_bytes).is_err() {
                    self.file = None;
                }
            }
        }
    }
}

/// The figures of a line, each with its tag.
fn scalars(line: &Value) -> Vec<(String, f64)> {
    // What is not finite is null in JSON.
    let number = |value: &Value| value.as_f64().unwrap_or(f64::NAN);
    let mut scalars = Vec::new();
    let Some(evaluation) = line.get("evaluation") else {
        let figures = STEP_FIGURES.iter().filter_map(|name| Some((format!("train/{name}"), number(line.get(name)?))));
        scalars.extend(figures);
        let per_second = number(&line["tokens"]) / number(&line["seconds"]);
        scalars.push(("train/tokens_per_second".to_owned(), per_second));
        return scalars;
    };
    let mut add = |tag: &str, figures: &Value| {
        for name in EVALUATION_FIGURES {
            match figures.get(name) {
                None => {}
                Some(Value::Null) if name == "rdt" => {} // The teacher predicts nothing.
                Some(value) => scalars.push((format!("{tag}/{name}"), number(value))),
            }
        }
    };
    for (set, tag) in [("languages", "evaluation"), ("held_out", "held_out")] {
        for (language, figures) in entries(&evaluation[set]) {
            add(&format!("{tag}/{language}"), figures);
            for (teacher, figures) in entries(&figures["teachers"]) {
                add(&format!("{tag}/{language}/{teacher}"), figures);
            }
        }
    }
    scalars
}

fn entries(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}

/// The record of an event whose `field` holds `content`.
fn event(step: u64, field: u8, content: &[u8]) -> Vec<u8> {
    let mut data = vec![0x09]; // field 1, 8 bytes
    data.extend(unix_seconds().to_le_bytes());
    data.push(0x10); // field 2, a varint
    put_varint(&mut data, step);
    put_bytes(&mut data, field, content);
    record(&data)
}

fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    [&length[..], &masked_crc(&length).to_le_bytes(), data, &masked_crc(data).to_le_bytes()].concat()
}

fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// A field with a length: a string or a message.
fn put_bytes(to: &mut Vec<u8>, field: u8, bytes: &[u8]) {
    to.push(field << 3 | 2);
    put_varint(to, bytes.len() as u64);
    to.extend(bytes);
}

fn put_varint(to: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        to.push(value as u8 | 0x80);
        value >>= 7;
    }
    to.push(value as u8);
}

fn unix_seconds() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use serde_json::json;

    #[test]
    fn names_go_on_in_order_whatever_the_clock_says() {
        let folder = tempfile::tempdir().unwrap();
        let future = "events.out.tfevents.9000000000.elsewhere";
        for name in [future, "events.out.tfevents.odd", "notes"] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        let made = [0, 3].map(|step| EventFile::create(folder.path(), step, &[]).unwrap().path);
        assert!(folder.path().join(future) < made[0] && made[0] < made[1]);
    }

    #[test]
    fn what_is_not_finite_is_shown_and_what_is_unknown_is_not() {
        let found = scalars(&json!({"step": 1, "loss": null, "tokens": 30, "seconds": 0.5}));
        assert!(found[0].0 == "train/loss" && found[0].1.is_nan());
        assert_eq!(found[1..], [("train/tokens_per_second".to_owned(), 60.0)]);
        let set = json!({"de": {"student_loss": 2.0, "teachers": {"a": {"loss": 1.0, "rdt": null}}}});
        let found = scalars(&json!({"step": 1, "evaluation": {"languages": {}, "held_out": set}}));
        assert_eq!(found, [("held_out/de/student_loss".to_owned(), 2.0), ("held_out/de/a/loss".to_owned(), 1.0)]);
    }

    #[test]
    fn a_file_that_takes_nothing_is_left_alone() {
        let file = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let path = PathBuf::from("/dev/full");
        let mut full = EventFile { path, file: Some(file), whole_bytes: 0, is_behind: false };
        full.write(&json!({"step": 1, "loss": 1.0}));
        assert!(full.is_behind && full.whole_bytes == 0);
        full.write(&json!({"step": 2, "loss": 1.0}));
        assert!(full.is_behind);
    }
}
