//! A release's state folder, `<state>/releases/<name>/`: `release.json` beside what every trainer keeps.

use super::ReleaseStatus;
use crate::TrainerError;
use crate::checkpoint::Checkpoints;
use crate::durable;
use crate::event::BranchPoint;
use crate::schedule::{CoolDown, LambdaSchedule};
use crate::state_folder::{checkpoints_path, releases_path};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};

/// What a release is, and how it is.
const FILE: &str = "release.json";
/// Names of folders that are not whole begin so.
const PARTIAL: &str = ".partial-";

/// How a release is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReleaseState {
    /// It trains, or does so again after a restart.
    Running,
    /// The student is exported.
    Done,
    /// It could not be finished; a restart changes nothing about that.
    Failed,
    /// Somebody did not want it any more.
    Cancelled,
}

/// A release, as it is known on disk.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Folder {
    /// Where it is.
    pub(crate) path: PathBuf,
    /// Its name.
    pub(crate) name: String,
    pub(super) file: ReleaseFile,
}

/// The content of `release.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct ReleaseFile {
    /// Releases that were begun before it.
    pub(super) number: u64,
    pub(super) state: ReleaseState,
    pub(super) cool_down: CoolDown,
    /// Where the student goes, absolute; `None`: into the release's folder, wherever that is.
    pub(super) out: Option<PathBuf>,
    /// Steps of its own that were done when it ended.
    pub(super) step: u64,
    /// Why it failed.
    pub(super) error: Option<String>,
    /// The last one. As it was written: that of a student that computes no numbers cannot be read as an evaluation.
    pub(super) evaluation: Option<Value>,
}

/// What somebody wants released.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub(super) steps: u64,
    pub(super) lambda_end: f64,
    pub(super) lambda_schedule: LambdaSchedule,
    /// `None`: into the release's folder.
    pub(super) out: Option<PathBuf>,
}

/// All releases of a run, the oldest first. One whose file is damaged is reported and passed over: the run does not depend on it.
pub(super) fn all(state_dir: &Path) -> Result<Vec<Folder>, TrainerError> {
    let mut folders = Vec::new();
    for path in entries(&releases_path(state_dir))? {
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        let file = path.join(FILE);
        if name.starts_with('.') || !file.is_file() {
            continue;
        }
        let bytes = fs::read(&file).map_err(TrainerError::io("read", &file))?;
        match serde_json::from_slice(&bytes) {
            Ok(file) => folders.push(Folder { name: name.to_owned(), path, file }),
            Err(error) => tracing::warn!(file = %file.display(), %error, "a release is damaged; it is passed over"),
        }
    }
    folders.sort_by_key(|folder| folder.file.number);
    Ok(folders)
}

/// Removes what a crash left of releases that were about to begin.
pub(super) fn clean(state_dir: &Path) -> Result<(), TrainerError> {
    let is_partial =
        |path: &&PathBuf| path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(PARTIAL));
    entries(&releases_path(state_dir))?
        .iter()
        .filter(is_partial)
        .try_for_each(|path| fs::remove_dir_all(path).map_err(TrainerError::io("remove", path)))
}

/// Where release `number` is prepared.
pub(super) fn partial(state_dir: &Path, number: u64) -> PathBuf {
    releases_path(state_dir).join(format!("{PARTIAL}{number}"))
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>, TrainerError> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(TrainerError::io("read", folder)(error)),
    };
    entries.map(|entry| entry.map(|entry| entry.path()).map_err(TrainerError::io("read", folder))).collect()
}

impl Folder {
    /// Makes a release of what was prepared in `partial`: from then on it goes on after a crash.
    pub(super) fn begin(
        partial: &Path,
        state_dir: &Path,
        number: u64,
        point: BranchPoint,
        wanted: Wanted,
    ) -> Result<Self, TrainerError> {
        let releases = releases_path(state_dir);
        let first = format!("step-{}", point.step);
        let names = std::iter::once(first.clone()).chain((2..).map(|again| format!("{first}-{again}")));
        // There is always a free one.
        let name = names.into_iter().find(|name| !releases.join(name).exists()).unwrap_or(first);
        let path = releases.join(&name);
        let file = ReleaseFile {
            number,
            state: ReleaseState::Running,
            cool_down: CoolDown {
                from_step: point.step,
                steps: wanted.steps,
                learning_rate: point.rates.learning_rate,
                lambda_start: point.rates.lambda,
                lambda_end: wanted.lambda_end,
                lambda_schedule: wanted.lambda_schedule,
            },
            out: wanted.out,
            step: 0,
            error: None,
            evaluation: None,
        };
        write(partial, &file)?;
        fs::rename(partial, &path).map_err(TrainerError::io("put in place", &path))?;
        if let Err(error) = durable::sync_folder(&releases) {
            // Best effort: the first error is the one to report.
            let _ = fs::remove_dir_all(&path);
            return Err(error);
        }
        Ok(Self { path, name, file })
    }

    /// Where the student goes, absolute.
    pub(super) fn out(&self) -> PathBuf {
        let out = self.file.out.clone().unwrap_or_else(|| self.path.join("student"));
        std::path::absolute(&out).unwrap_or(out)
    }

    /// Notes how the release ended, and removes the checkpoints that are of no use any more.
    pub(super) fn end(&mut self, status: &ReleaseStatus) -> Result<(), TrainerError> {
        let ReleaseStatus { state, step, error, .. } = status.clone();
        let evaluation = status.evaluation.as_ref().and_then(|evaluation| serde_json::to_value(evaluation).ok());
        self.file = ReleaseFile { state, step, error, evaluation, ..self.file.clone() };
        write(&self.path, &self.file)?;
        let folder = checkpoints_path(&self.path);
        match state {
            ReleaseState::Done => Checkpoints::at(&folder).prune(1, |_| false),
            ReleaseState::Cancelled if folder.exists() => {
                fs::remove_dir_all(&folder).map_err(TrainerError::io("remove", &folder))
            }
            _ => Ok(()),
        }
    }
}

fn write(folder: &Path, file: &ReleaseFile) -> Result<(), TrainerError> {
    let path = folder.join(FILE);
    let mut text = serde_json::to_vec_pretty(file).map_err(|error| TrainerError::io("write", &path)(error.into()))?;
    text.push(b'\n');
    durable::replace(&path, &text)
}
