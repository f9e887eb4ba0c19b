//! `metrics.jsonl`: a line for every step and every evaluation.
//!
//! Steps after the last checkpoint are done again after a crash, and their lines are written again; so lines beyond the
//! point at which training goes on are removed first, and each step is in the file once.

use crate::{TrainerError, durable};
use serde::Serialize;
use serde_json::Value;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

/// The file, open for appending.
pub(crate) struct RunLog {
    path: PathBuf,
    file: File,
}

impl RunLog {
    /// Opens `path`, without the lines of steps after `step` and of evaluations after `evaluated`.
    pub(crate) fn open(path: &Path, step: u64, evaluated: Option<u64>) -> Result<Self, TrainerError> {
        let content = match std::fs::read(path) {
            Ok(content) => content,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(TrainerError::io("read", path)(error)),
        };
        let kept: Vec<u8> = content
            .split_inclusive(|byte| *byte == b'\n')
            .filter(|line| keep(line, step, evaluated))
            .flatten()
            .copied()
            .collect();
        if kept != content || !path.exists() {
            durable::replace(path, &kept)?;
        }
        let file = OpenOptions::new().append(true).open(path).map_err(TrainerError::io("open", path))?;
        Ok(Self { path: path.to_owned(), file })
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

/// Whether a line is whole and of the past. What a crash left of the last line is not JSON.
fn keep(line: &[u8], step: u64, evaluated: Option<u64>) -> bool {
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
}
