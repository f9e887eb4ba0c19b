//! `metrics.jsonl`: a line for every step and every evaluation; and the same for TensorBoard, in files beside it.
//!
//! Steps after the last checkpoint are done again after a crash, and their lines are written again; so lines beyond the
//! point at which training goes on are removed first, and each step is in the file once. The file is read line by line, and
//! cut where those lines begin; it is written anew only if a line to keep follows one to remove.

use crate::evaluate::EvaluationReport;
use crate::tensorboard::EventFile;
use crate::{TrainerError, durable};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// Where the last evaluation is looked for: the file of a long run is large, and evaluations are not rare.
const LATEST_BYTES: u64 = 16 << 20;

/// The file, open for appending.
pub(crate) struct RunLog {
    path: PathBuf,
    file: File,
    evaluation: Option<EvaluationReport>,
    /// The step at which training goes on, and its lines.
    step: u64,
    lines: Vec<Value>,
    event_file: Option<EventFile>,
}

/// What a reading of the file found.
#[derive(Default)]
struct Found {
    /// Where the first line to remove begins.
    cut_at: Option<u64>,
    /// Whether a line to keep follows it.
    is_mixed: bool,
    /// The last evaluation that is kept.
    evaluation: Option<EvaluationReport>,
    /// Lines of the step at which training goes on.
    lines: Vec<Value>,
}

impl RunLog {
    /// Opens `path`, without the lines of steps after `step` and of evaluations after `evaluated`.
    pub(crate) fn open(path: &Path, step: u64, evaluated: Option<u64>) -> Result<Self, TrainerError> {
        if !path.exists() {
            durable::replace(path, b"")?;
        }
        let found = look(path, step, evaluated).map_err(TrainerError::io("read", path))?;
        if found.is_mixed {
            durable::replace_with(path, |to| {
                each_line(
                    path,
                    |_, line| if kept(line, step, evaluated).is_some() { to.write_all(line) } else { Ok(()) },
                )
            })?;
        }
        let file = OpenOptions::new().append(true).open(path).map_err(TrainerError::io("open", path))?;
        if let (Some(cut_at), false) = (found.cut_at, found.is_mixed) {
            file.set_len(cut_at).and_then(|()| file.sync_all()).map_err(TrainerError::io("cut", path))?;
        }
        let Found { evaluation, lines, .. } = found;
        Ok(Self { path: path.to_owned(), file, evaluation, step, lines, event_file: None })
    }

    /// Writes what follows for TensorBoard too, in a new file of `folder`. What cannot be written there is left out.
    pub(crate) fn with_event_file(mut self, folder: &Path) -> Self {
        self.event_file = EventFile::create(folder, self.step, &self.lines);
        self
    }

    /// Notes the last evaluation.
    pub(crate) fn has_evaluated(&mut self, report: &EvaluationReport) {
        self.evaluation = Some(report.clone());
    }

    /// The last evaluation: that which was in the file when it was opened, or was noted since.
    pub(crate) fn evaluation(&self) -> Option<&EvaluationReport> {
        self.evaluation.as_ref()
    }

    /// Appends a line.
    pub(crate) fn append(&mut self, line: &impl Serialize) -> Result<(), TrainerError> {
        let line = serde_json::to_value(line).map_err(io::Error::from);
        let written = line.and_then(|line| self.file.write_all(format!("{line}\n").as_bytes()).map(|()| line));
        let line = written.map_err(TrainerError::io("write", &self.path))?;
        if let Some(event_file) = &mut self.event_file {
            event_file.write(&line);
        }
        Ok(())
    }

    /// Makes the lines durable.
    pub(crate) fn sync(&self) -> Result<(), TrainerError> {
        self.file.sync_all().map_err(TrainerError::io("make durable", &self.path))
    }
}

fn look(path: &Path, step: u64, evaluated: Option<u64>) -> io::Result<Found> {
    let mut found = Found::default();
    each_line(path, |at, line| {
        if let Some(line) = kept(line, step, evaluated) {
            found.is_mixed |= found.cut_at.is_some();
            // One of a student that computes no numbers cannot be read.
            let evaluation =
                line.get("evaluation").and_then(|evaluation| EvaluationReport::deserialize(evaluation).ok());
            found.evaluation = evaluation.or(found.evaluation.take());
            if line["step"] == step {
                found.lines.push(line);
            }
        } else {
            found.cut_at.get_or_insert(at);
        }
        Ok(())
    })?;
    Ok(found)
}

/// The last evaluation until `step`, if there is one among the latest lines.
pub(crate) fn last_evaluation(path: &Path, step: u64) -> Result<Option<EvaluationReport>, TrainerError> {
    let read = || {
        let mut file = File::open(path)?;
        let first = file.metadata()?.len().saturating_sub(LATEST_BYTES);
        file.seek(SeekFrom::Start(first))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map(|_| bytes)
    };
    let bytes = match read() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        read => read.map_err(TrainerError::io("read", path))?,
    };
    // A line that is cut at its beginning is not JSON.
    let lines = bytes.split_inclusive(|byte| *byte == b'\n').rev();
    let mut evaluations = lines.filter_map(|line| {
        let line = kept(line, step, Some(step))?;
        EvaluationReport::deserialize(line.get("evaluation")?).ok()
    });
    Ok(evaluations.next())
}

/// Passes each line, with its end, and the offset at which it begins.
fn each_line(path: &Path, mut take: impl FnMut(u64, &[u8]) -> io::Result<()>) -> io::Result<()> {
    let mut file = BufReader::new(File::open(path)?);
    let (mut at, mut line) = (0, Vec::new());
    loop {
        line.clear();
        let bytes = file.read_until(b'\n', &mut line)?;
        if bytes == 0 {
            return Ok(());
        }
        take(at, &line)?;
        at += bytes as u64;
    }
}

/// A line, if it is whole and of the past. What a crash left of the last line is not JSON.
fn kept(line: &[u8], step: u64, evaluated: Option<u64>) -> Option<Value> {
    let value = serde_json::from_slice::<Value>(line.strip_suffix(b"\n")?).ok()?;
    let at = value["step"].as_u64()?;
    let is_past = match value.get("evaluation") {
        Some(_) => evaluated.is_some_and(|evaluated| at <= evaluated),
        None => at <= step,
    };
    is_past.then_some(value)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use serde_json::json;

    #[test]
    fn lines_after_the_checkpoint_are_written_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut log = RunLog::open(&path, 0, None).unwrap();
        log.append(&json!({"step": 0, "evaluation": {}})).unwrap();
        for step in 1..=4 {
            log.append(&json!({"step": step, "loss": 1.0})).unwrap();
        }
        log.append(&json!({"step": 4, "evaluation": {}})).unwrap();
        std::fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\"step\": 5, \"lo").unwrap();

        let mut log = RunLog::open(&path, 4, Some(0)).unwrap();
        log.append(&json!({"step": 4, "evaluation": {}})).unwrap();
        let steps = |path: &Path| -> Vec<(u64, bool)> {
            let text = std::fs::read_to_string(path).unwrap();
            let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
            lines.map(|line| (line["step"].as_u64().unwrap(), line.get("evaluation").is_some())).collect()
        };
        let whole = [(0, true), (1, false), (2, false), (3, false), (4, false), (4, true)];
        assert_eq!(steps(&path), whole);

        RunLog::open(&path, 2, Some(0)).unwrap();
        assert_eq!(steps(&path), whole[..3]);
        RunLog::open(&path, 0, None).unwrap();
        assert_eq!(steps(&path), []);
    }

    #[test]
    fn it_is_cut_in_place_unless_a_line_to_keep_follows() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let evaluation = |step| format!("{{\"step\":{step},\"evaluation\":{{\"step\":{step},\"languages\":{{}}}}}}\n");
        let lines = ["{\"step\":1}\n".to_owned(), evaluation(1), "{\"step\":2}\n".to_owned(), evaluation(2)];
        for (text, step, evaluated, kept, last) in [
            (lines.concat(), 2, Some(2), lines.concat(), Some(2)),
            (lines.concat(), 1, Some(1), lines[..2].concat(), Some(1)),
            (lines.concat(), 2, None, lines[0].clone() + &lines[2], None),
            (lines[..2].concat() + "{\"step\":2}", 2, Some(2), lines[..2].concat(), Some(1)),
        ] {
            std::fs::write(&path, &text).unwrap();
            // A second name shows whether the file was written anew.
            let other = folder.path().join("other");
            std::fs::hard_link(&path, &other).unwrap();
            let log = RunLog::open(&path, step, evaluated).unwrap();
            assert_eq!(log.evaluation().map(|evaluation| evaluation.step), last);
            assert_eq!(std::fs::read_to_string(&path).unwrap(), kept);
            let is_in_place = evaluated.is_some();
            assert_eq!(std::fs::read_to_string(&other).unwrap(), if is_in_place { kept } else { text });
            std::fs::remove_file(&other).unwrap();
        }
    }
}
