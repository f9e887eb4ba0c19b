//! `metrics.jsonl`, read for drawing: line by line, and on from there when it has grown.

use super::evaluations::Evaluations;
use super::steps::{Step, Steps};
use serde::Deserialize;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use trainer::EvaluationReport;

/// No line of a run is longer; what is, is passed over.
const LINE_BYTES: u64 = 16 << 20;

/// What is drawn of a training.
#[derive(Clone, Debug, Default)]
pub struct Course {
    /// Its steps.
    pub steps: Steps,
    /// Its evaluations.
    pub evaluations: Evaluations,
}

/// A line: of a step, or of an evaluation.
#[derive(Debug, Deserialize)]
pub struct Line {
    pub step: u64,
    pub loss: Option<f64>,
    pub kd: Option<f64>,
    pub mlm: Option<f64>,
    pub top1: Option<f64>,
    pub learning_rate: Option<f64>,
    pub lambda: Option<f64>,
    pub grad_norm: Option<f64>,
    #[serde(default)]
    pub tokens: u64,
    pub seconds: Option<f64>,
    #[serde(default)]
    pub skipped: bool,
    pub evaluation: Option<EvaluationReport>,
}

/// A file of these lines, and how far it was read.
#[derive(Clone, Debug)]
pub struct MetricsFile {
    path: PathBuf,
    read_bytes: u64,
}

impl Course {
    /// Forgets what comes after `step`.
    pub fn cut(&mut self, step: u64) {
        self.steps.cut(step);
        self.evaluations.cut(step);
    }

    /// Goes on with what of `later` comes after the last step.
    pub fn append(&mut self, later: Self) {
        self.steps.append(&later.steps);
        self.evaluations.append(later.evaluations);
    }

    fn take(&mut self, line: Line) {
        match line.evaluation {
            Some(evaluation) => self.evaluations.push(evaluation),
            None => self.steps.push(&Step::from(&line)),
        }
    }
}

impl MetricsFile {
    /// The file at `path`, of which nothing was read yet.
    pub fn new(path: PathBuf) -> Self {
        Self { path, read_bytes: 0 }
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes in the lines that were not read yet, as long as `go_on` says so. A last line without an end is left for later, and one that
    /// is no line of a step or an evaluation is passed over. A file that was cut is read anew. One that is not there has no lines. Returns
    /// whether there was anything new.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn read(&mut self, course: &mut Course, go_on: &dyn Fn() -> bool) -> io::Result<bool> {
        let mut file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        let (bytes, before) = (file.metadata()?.len(), self.read_bytes);
        if bytes < self.read_bytes {
            (self.read_bytes, *course) = (0, Course::default());
        }
        file.seek(SeekFrom::Start(self.read_bytes))?;
        let mut file = BufReader::with_capacity(1 << 18, file);
        let mut text = Vec::new();
        while go_on() {
            text.clear();
            let bytes = io::Read::take(&mut file, LINE_BYTES).read_until(b'\n', &mut text)? as u64;
            if text.last() != Some(&b'\n') && bytes < LINE_BYTES {
                break;
            }
            self.read_bytes += bytes;
            if let Ok(line) = serde_json::from_slice(&text) {
                course.take(line);
            }
        }
        Ok(self.read_bytes != before)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use std::fs;
    use std::io::Write;

    fn step(step: u64) -> String {
        format!("{{\"step\":{step},\"loss\":2.5,\"grad_norm\":null,\"languages\":{{\"en\":8}},\"seconds\":0.1}}\n")
    }

    fn evaluation(step: u64) -> String {
        format!("{{\"step\":{step},\"evaluation\":{{\"step\":{step},\"languages\":{{}}}}}}\n")
    }

    fn read(file: &mut MetricsFile, course: &mut Course) -> (u64, u64) {
        file.read(course, &|| true).unwrap();
        let evaluations = course.evaluations.columns(0, 100)["step"].as_array().unwrap().len();
        (course.steps.last(), evaluations as u64)
    }

    #[test]
    fn a_file_that_grows_or_is_cut_is_followed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let (mut file, mut course) = (MetricsFile::new(path.clone()), Course::default());
        assert_eq!(read(&mut file, &mut course), (0, 0), "there is none yet");
        fs::write(&path, evaluation(0) + &step(1) + &step(2) + "nothing\n[]\n" + &step(3)[..20]).unwrap();
        assert_eq!(read(&mut file, &mut course), (2, 1), "without the line that has no end yet");
        let mut end = fs::OpenOptions::new().append(true).open(&path).unwrap();
        end.write_all((step(3)[20..].to_owned() + &evaluation(3) + &step(4)).as_bytes()).unwrap();
        assert_eq!(read(&mut file, &mut course), (4, 2));
        fs::write(&path, evaluation(0) + &step(1)).unwrap();
        assert_eq!(read(&mut file, &mut course), (1, 1), "it was cut");
        assert!(!file.read(&mut course, &|| true).unwrap(), "nothing new");
        fs::write(&path, evaluation(0) + &step(1) + &step(2)).unwrap();
        assert!(!file.read(&mut course, &|| false).unwrap(), "told to stop");
        assert!(file.read(&mut course, &|| true).unwrap());
    }
}
