//! `metrics.jsonl`: a line for every step and every evaluation.
//!
//! Steps after the last checkpoint are done again after a crash, and their lines are written again; so lines beyond the
//! point at which training goes on are removed first, and each step is in the file once. The file is read line by line, and
//! cut where those lines begin; it is written anew only if a line to keep follows one to remove.

use crate::evaluate::EvaluationReport;
use crate::{TrainerError, durable};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

/// The file, open for appending.
pub(crate) struct RunLog {
    path: PathBuf,
    file: File,
    evaluation: Option<EvaluationReport>,
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
                each_line(path, |_, line| if keep(line, step, evaluated) { to.write_all(line) } else { Ok(()) })
            })?;
        }
        let file = OpenOptions::new().append(true).open(path).map_err(TrainerError::io("open", path))?;
        if let (Some(cut_at), false) = (found.cut_at, found.is_mixed) {
            file.set_len(cut_at).and_then(|()| file.sync_all()).map_err(TrainerError::io("cut", path))?;
        }
        Ok(Self { path: path.to_owned(), file, evaluation: found.evaluation })
    }

    /// The last evaluation that was in the file when it was opened.
    pub(crate) fn evaluation(&self) -> Option<&EvaluationReport> {
        self.evaluation.as_ref()
    }

    /// Appends a line.
    pub(crate) fn append(&mut self, line: &impl Serialize) -> Result<(), TrainerError> {
        let failed = TrainerError::io("write", &self.path);
        let written = serde_json::to_vec(line).map_err(std::io::Error::from).and_then(|mut line| {
            line.push(b'\n');
            self.file.write_all(&line)
        });
        written.map_err(failed)
    }

    /// Makes the lines durable.
    pub(crate) fn sync(&self) -> Result<(), TrainerError> {
        self.file.sync_all().map_err(TrainerError::io("make durable", &self.path))
    }
}

fn look(path: &Path, step: u64, evaluated: Option<u64>) -> io::Result<Found> {
    /// A line with an evaluation that can be read; one of a student that computes no numbers cannot.
    #[derive(Deserialize)]
    struct Line {
        evaluation: EvaluationReport,
    }
    let mut found = Found::default();
    each_line(path, |at, line| {
        if !keep(line, step, evaluated) {
            found.cut_at.get_or_insert(at);
        } else {
            found.is_mixed |= found.cut_at.is_some();
            if let Ok(line) = serde_json::from_slice::<Line>(line) {
                found.evaluation = Some(line.evaluation);
            }
        }
        Ok(())
    })?;
    Ok(found)
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

/// Whether a line is whole and of the past. What a crash left of the last line is not JSON.
fn keep(line: &[u8], step: u64, evaluated: Option<u64>) -> bool {
    let Some(line) = line.strip_suffix(b"\n") else { return false };
    let Ok(value) = serde_json::from_slice::<Value>(line) else { return false };
    match value["step"].as_u64() {
        Some(at) if value.get("evaluation").is_some() => evaluated.is_some_and(|evaluated| at <= evaluated),
        Some(at) => at <= step,
        None => false,
    }
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
