//! What commands do to the stages, and what is looked up for questions.

use super::Status;
use crossbeam::channel::{Sender, bounded};
use ops::{CommandError, Stage};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, UNIX_EPOCH};
use trainer::{ReleaseError, ReleaseStatus, Releases, Request, TrainerError};

/// A checkpoint or an export is answered within this time, or the client is told to look later.
const REQUEST_LIMIT: Duration = Duration::from_secs(120);
/// How often a drain looks whether somebody ended it.
const DRAIN_INTERVAL: Duration = Duration::from_millis(50);

/// Whether a drain is under way: a second one would use up a place among the commands, and end the first one's hold on ingest.
#[derive(Debug, Default)]
pub(super) struct Drain(AtomicBool);

/// A drain that is under way, until this goes.
struct Draining<'a, F: FnMut()> {
    drain: &'a Drain,
    over: F,
}

impl Drain {
    /// Begins one, unless one is under way. `over` is called when it is over.
    fn begin<F: FnMut()>(&self, over: F) -> Option<Draining<'_, F>> {
        let is_free = self.0.compare_exchange(false, true, Ordering::AcqRel, Ordering::Acquire).is_ok();
        is_free.then(|| Draining { drain: self, over })
    }
}

impl<F: FnMut()> Drop for Draining<'_, F> {
    fn drop(&mut self) {
        (self.over)();
        self.drain.0.store(false, Ordering::Release);
    }
}

impl Status {
    /// Pauses or resumes a stage, or all.
    pub(super) fn set_paused(&self, stage: Option<Stage>, paused: bool) -> Value {
        {
            // Held until it is done: stages that are opened anew take over what is paused.
            let stages = self.stages.read().unwrap_or_else(PoisonError::into_inner);
            let controls = [
                (Stage::Ingest, &stages.controls.ingest),
                (Stage::Teacher, &stages.controls.teacher),
                (Stage::Trainer, &stages.controls.trainer),
            ];
            for (_, control) in controls.iter().filter(|(name, _)| stage.is_none_or(|stage| stage == *name)) {
                control.set_paused(paused);
            }
        }
        json!({"state": self.state()})
    }

    /// Pauses ingest, and waits until all that it has read is labelled and durable. A stop, a resumption, or a pause of what has to
    /// be done first end the wait. There is one drain at a time.
    pub(super) fn drain(&self) -> Result<Value, CommandError> {
        let error = |status, code, message: &str| CommandError { status, code, message: message.to_owned() };
        let no_corpus = || error(409, "no_corpus", "this run has no corpus, so it reads nothing");
        self.stages().ingest.as_ref().ok_or_else(no_corpus)?;
        // When this is over, however that comes, a pause is a pause again.
        let over = || self.stages().ingest.iter().for_each(|ingest| ingest.set_draining(false));
        let _draining = self.drain.begin(over).ok_or_else(|| {
            let message = "a drain is under way; `mergedistill ctl operations` shows it, and resuming ingest ends it";
            error(409, "draining", message)
        })?;
        self.set_paused(Some(Stage::Ingest), true);
        loop {
            // Other ones once a teacher was added; what is paused stays so.
            let stages = self.stages();
            let ingest = stages.ingest.as_ref().ok_or_else(no_corpus)?;
            ingest.set_draining(true);
            let durable = stages.log.durable();
            if self.stopping.load(Ordering::Relaxed) {
                return Err(error(503, "stopping", "the daemon is stopping, which drains as well"));
            }
            if !stages.controls.ingest.paused() {
                return Err(error(409, "resumed", "ingest was resumed before all that it had read was durable"));
            }
            if ingest.is_drained(durable.end()) && !self.renewing.load(Ordering::Relaxed) {
                return Ok(json!({"state": "drained", "durable": durable.end()}));
            }
            if stages.controls.teacher.paused() {
                let message = "the teachers are paused, so what was read is not labelled; resume them and drain again (ingest stays paused)";
                return Err(error(409, "teacher_paused", message));
            }
            let _looks_again = stages.log.wait_beyond(durable, DRAIN_INTERVAL);
        }
    }

    /// The configuration as it takes effect. It has no secrets: the token is in a file of its own.
    pub(super) fn configuration(&self) -> Result<Value, CommandError> {
        let stages = self.stages();
        let configuration = stages.configuration.get();
        let failed = |message| CommandError { status: 500, code: "failed", message };
        // By way of TOML: what is not set is not there, as in a file.
        let table = toml::Table::try_from(&*configuration).map_err(|error| failed(error.to_string()))?;
        serde_json::to_value(table).map_err(|error| failed(error.to_string()))
    }

    /// The segments of the log, oldest first.
    pub(super) fn segments(&self) -> Value {
        let listed = self.stages().log.segments();
        let segments = listed.iter().map(|segment| {
            // Not every file system says; retention may just have removed it.
            let created = segment.path.metadata().and_then(|metadata| metadata.created()).ok();
            let created = created.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
            json!({
                "file": segment.path.file_name().map(|name| name.to_string_lossy()),
                "first_sequence": segment.first,
                "entries": segment.entries,
                "bytes": segment.bytes,
                "sealed": segment.sealed,
                "created_unix_seconds": created.map(|since| since.as_secs_f64()),
            })
        });
        json!({"segments": segments.collect::<Vec<_>>()})
    }

    /// Has a release begun or cancelled. Answers how it is.
    pub(super) fn release(
        &self,
        ask: impl FnOnce(&Releases) -> Result<ReleaseStatus, ReleaseError>,
    ) -> Result<Value, CommandError> {
        let error = |status, code, message| CommandError { status, code, message };
        let stages = self.stages();
        let releases = stages.releases.as_ref();
        let releases = releases.ok_or_else(|| error(409, "no_student", "this run trains no student".to_owned()))?;
        let release = ask(releases).map_err(|failed| {
            let message = failed.to_string();
            match failed {
                ReleaseError::Running { .. } | ReleaseError::Beginning => error(409, "release_running", message),
                ReleaseError::NoneRunning => error(409, "no_release", message),
                ReleaseError::NoSteps => error(400, "invalid_body", message),
                ReleaseError::TrunkEnded => error(409, "trainer_ended", message),
                ReleaseError::Branch(_) => error(409, "cannot_branch", message),
                ReleaseError::NoAnswer | ReleaseError::NotStopped { .. } => error(504, "timeout", message),
                ReleaseError::EndNotWritten { .. } => error(500, "failed", message),
                ReleaseError::Trainer(TrainerError::ExportTarget { .. }) => error(400, "invalid_out", message),
                ReleaseError::Trainer(_) => error(500, "failed", message),
            }
        })?;
        serde_json::to_value(release).map_err(|failed| error(500, "failed", failed.to_string()))
    }

    /// Refuses languages that no teacher of this run has.
    pub(super) fn check_languages(&self, languages: &[String]) -> Result<(), CommandError> {
        let stages = self.stages();
        let known = || stages.teachers.iter().flat_map(|teacher| &teacher.section.languages);
        let Some(unknown) = languages.iter().find(|language| !known().any(|known| known == *language)) else {
            return Ok(());
        };
        let known: BTreeSet<&str> = known().map(String::as_str).collect();
        let message = format!(
            "no teacher has language {unknown:?}; there are: {}",
            known.into_iter().collect::<Vec<_>>().join(", ")
        );
        Err(CommandError { status: 404, code: "unknown_language", message })
    }

    /// Sends a request to the trainer and waits for its answer.
    pub(super) fn ask_trainer(
        &self,
        request: impl FnOnce(Sender<Result<PathBuf, String>>) -> Request,
    ) -> Result<Value, CommandError> {
        let error = |status, code, message: &str| CommandError { status, code, message: message.to_owned() };
        let stages = self.stages();
        let requests =
            stages.requests.as_ref().ok_or_else(|| error(409, "no_student", "this run trains no student"))?;
        let (reply, answer) = bounded(1);
        requests
            .send_timeout(request(reply), REQUEST_LIMIT)
            .map_err(|_| error(409, "trainer_ended", "the trainer has ended or is busy; see the status"))?;
        match answer.recv_timeout(REQUEST_LIMIT) {
            Ok(Ok(path)) => Ok(json!({"path": path})),
            Ok(Err(message)) => Err(error(500, "failed", &message)),
            Err(_) => Err(error(504, "timeout", "no answer from the trainer yet; the request is still queued")),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
    use super::*;
    use std::cell::Cell;

    #[test]
    fn there_is_one_drain_at_a_time_and_its_end_takes_back_what_it_did() {
        let (drain, ended) = (Drain::default(), Cell::new(0));
        let over = || ended.set(ended.get() + 1);
        for round in 1..4 {
            let draining = drain.begin(over).unwrap();
            assert!(drain.begin(|| panic!("it has not begun")).is_none());
            assert_eq!(ended.get(), round - 1);
            drop(draining);
            assert_eq!(ended.get(), round, "however it ended");
        }
    }
}
