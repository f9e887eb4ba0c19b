//! What the daemon tells about itself, and the commands it takes: `ops` serves both.

use crate::figures::Figures;
use crate::live::Live;
use crate::pipeline::{Controls, Pipeline};
use crate::push::Inboxes;
use crossbeam::channel::{Sender, bounded};
use ingest::quarantine::Which;
use ops::{Command, CommandError, Push, PushTarget, Stage};
use prometheus::Registry;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, UNIX_EPOCH};
use store::LogReader;
use store::stage::StageControl;
use teacher::{Activity, TeacherWatch};
use trainer::{Event, ReleaseError, ReleaseStatus, Releases, Request, TrainerError};

/// A checkpoint or an export is answered within this time, or the client is told to look later.
const REQUEST_LIMIT: Duration = Duration::from_secs(120);

/// Shared between supervisor and HTTP server.
pub struct Status {
    controls: Controls,
    log: LogReader,
    ingest: Option<Arc<ingest::IngestStatus>>,
    requests: Option<Sender<Request>>,
    shutdown: Sender<()>,
    stopping: AtomicBool,
    started: Instant,
    steps: Option<u64>,
    releases: Option<Releases>,
    inboxes: Arc<Inboxes>,
    live: Option<Arc<Live>>,
    teachers: Vec<(String, TeacherWatch)>,
    seen: Mutex<Seen>,
}

/// What was seen of the pipeline so far.
struct Seen {
    figures: Figures,
    step: Value,
    evaluation: Value,
    waiting_for: Option<String>,
    failure: Option<String>,
}

impl Status {
    /// The status of `pipeline`; a shutdown command is sent to `shutdown`.
    pub fn new(pipeline: &Pipeline, registry: Registry, steps: Option<u64>, shutdown: Sender<()>) -> Self {
        Self {
            controls: pipeline.controls.clone(),
            log: pipeline.log.clone(),
            ingest: pipeline.ingest.clone(),
            requests: pipeline.requests.clone(),
            shutdown,
            stopping: AtomicBool::new(false),
            started: Instant::now(),
            steps,
            releases: pipeline.releases.clone(),
            inboxes: Arc::clone(&pipeline.inboxes),
            live: pipeline.live.clone(),
            teachers: pipeline.teachers.clone(),
            seen: Mutex::new(Seen {
                figures: Figures::new(registry),
                step: Value::Null,
                evaluation: Value::Null,
                waiting_for: None,
                failure: None,
            }),
        }
    }

    /// Takes note of what the trainer reports. Returns the event's name and data for the live feed.
    pub fn note(&self, event: &Event) -> (&'static str, Value) {
        let mut seen = self.seen();
        match event {
            Event::Step(report) => {
                seen.step = serde_json::to_value(report).unwrap_or(Value::Null);
                seen.waiting_for = None;
                ("step", seen.step.clone())
            }
            Event::Evaluation(report) => {
                seen.evaluation = serde_json::to_value(report).unwrap_or(Value::Null);
                ("evaluation", seen.evaluation.clone())
            }
            Event::Checkpoint { step, path } => ("checkpoint", json!({"step": step, "path": path})),
            Event::Waiting { language } => {
                seen.waiting_for = Some(language.to_string());
                ("waiting", json!({"language": language}))
            }
            Event::Release(release) => ("release", serde_json::to_value(release).unwrap_or(Value::Null)),
            Event::Resumed { step, evaluation } => {
                seen.step = json!({"step": step});
                seen.evaluation = serde_json::to_value(evaluation).unwrap_or(Value::Null);
                ("resumed", seen.step.clone())
            }
        }
    }

    /// The daemon is on its way out; `failure` says why if that was not asked for.
    pub fn set_stopping(&self, failure: Option<String>) {
        self.stopping.store(true, Ordering::Relaxed);
        self.seen().failure = failure;
    }

    /// Takes a new reading of the metrics and passes it to `show`.
    pub fn refresh<T>(&self, show: impl FnOnce(&Figures) -> T) -> T {
        let mut seen = self.seen();
        seen.figures.read();
        show(&seen.figures)
    }

    /// The language that training waits for.
    pub fn waiting_for(&self) -> Option<String> {
        self.seen().waiting_for.clone()
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self) -> &'static str {
        let stages = [&self.controls.ingest, &self.controls.teacher, &self.controls.trainer];
        match () {
            () if self.stopping.load(Ordering::Relaxed) => "stopping",
            () if stages.iter().any(|stage| stage.paused()) => "paused",
            () => "running",
        }
    }

    fn set_paused(&self, stage: Option<Stage>, paused: bool) -> Value {
        let stages = [
            (Stage::Ingest, &self.controls.ingest),
            (Stage::Teacher, &self.controls.teacher),
            (Stage::Trainer, &self.controls.trainer),
        ];
        for (name, control) in stages {
            if stage.is_none_or(|stage| stage == name) {
                control.set_paused(paused);
            }
        }
        json!({"state": self.state()})
    }

    /// Has a release begun or cancelled. Answers how it is.
    fn release(
        &self,
        ask: impl FnOnce(&Releases) -> Result<ReleaseStatus, ReleaseError>,
    ) -> Result<Value, CommandError> {
        let error = |status, code, message| CommandError { status, code, message };
        let releases = self.releases.as_ref();
        let releases = releases.ok_or_else(|| error(409, "no_student", "this run trains no student".to_owned()))?;
        let release = ask(releases).map_err(|failed| {
            let message = failed.to_string();
            match failed {
                ReleaseError::Running { .. } | ReleaseError::Beginning => error(409, "release_running", message),
                ReleaseError::NoneRunning => error(409, "no_release", message),
                ReleaseError::NoSteps => error(400, "invalid_body", message),
                ReleaseError::TrunkEnded => error(409, "trainer_ended", message),
                ReleaseError::Branch(_) => error(409, "cannot_branch", message),
                ReleaseError::NoAnswer => error(504, "timeout", message),
                ReleaseError::Trainer(TrainerError::ExportTarget { .. }) => error(400, "invalid_out", message),
                ReleaseError::Trainer(_) => error(500, "failed", message),
            }
        })?;
        serde_json::to_value(release).map_err(|failed| error(500, "failed", failed.to_string()))
    }

    /// What is read, how, and what was changed about that.
    fn corpora(&self) -> Value {
        let status = self.ingest.as_ref().map(|ingest| serde_json::to_value(&**ingest).unwrap_or(Value::Null));
        let mut status = status.unwrap_or(Value::Null);
        if let (Value::Object(fields), Some(live)) = (&mut status, &self.live) {
            fields.insert("changes".to_owned(), live.latest());
        }
        status
    }

    /// Sends a request to the trainer and waits for its answer.
    fn ask_trainer(
        &self,
        request: impl FnOnce(Sender<Result<PathBuf, String>>) -> Request,
    ) -> Result<Value, CommandError> {
        let error = |status, code, message: &str| CommandError { status, code, message: message.to_owned() };
        let requests = self.requests.as_ref().ok_or_else(|| error(409, "no_student", "this run trains no student"))?;
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

/// A teacher's name, and what it is doing.
fn teacher_status((name, watch): &(String, TeacherWatch)) -> (String, Value) {
    let (state, since) = match watch.activity() {
        Activity::Idle => ("idle", None),
        Activity::Labelling(since) => ("labelling", Some(since)),
        Activity::Stalled(since) => ("stalled", Some(since)),
    };
    let since = since.and_then(|since| since.duration_since(UNIX_EPOCH).ok()).map(|since| since.as_secs_f64());
    let dropped_copies = watch.dropped_copies();
    (name.clone(), json!({"state": state, "since_unix_seconds": since, "dropped_copies": dropped_copies}))
}

impl ops::Control for Status {
    fn status(&self) -> Value {
        let seen = self.seen();
        let paused = |control: &StageControl| json!({"paused": control.paused()});
        let waiting = seen.waiting_for.as_ref().map(|language| format!("labelled text of `{language}`"));
        let has_no_room = seen.figures.value("mergedistill_log_waiting_for_room") > 0.0;
        let mut train = seen.step.clone();
        if self.requests.is_some() {
            if !train.is_object() {
                train = json!({"step": 0});
            }
            train["steps"] = json!(self.steps);
        }
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "pid": std::process::id(),
            "state": self.state(),
            "failure": seen.failure,
            "uptime_seconds": self.started.elapsed().as_secs_f64(),
            "stages": {
                "ingest": paused(&self.controls.ingest),
                "teacher": paused(&self.controls.teacher),
                "log": {"paused": false, "waiting": has_no_room.then_some("disk space")},
                "trainer": {"paused": self.controls.trainer.paused(), "waiting": waiting},
            },
            "rates": {
                "label_tokens_per_second": seen.figures.rate("mergedistill_teacher_tokens_total"),
                "train_tokens_per_second": seen.figures.rate("mergedistill_train_tokens_total"),
            },
            "log": {
                "appended": seen.figures.value("mergedistill_log_appended_sequence"),
                "durable": self.log.durable().end(),
                "begin": self.log.begin(),
                "bytes": seen.figures.value("mergedistill_log_size_bytes") as u64,
                "segments": seen.figures.value("mergedistill_log_segments") as u64,
            },
            "teachers": self.teachers.iter().map(teacher_status).collect::<serde_json::Map<_, _>>(),
            "corpora": self.corpora(),
            "inboxes": self.inboxes.status(),
            "train": train,
            "evaluation": seen.evaluation,
            "release": self.releases.as_ref().and_then(Releases::status),
        })
    }

    fn ready(&self) -> Result<(), String> {
        match self.state() {
            "stopping" => Err("the daemon is stopping".to_owned()),
            _ => self.inboxes.failure().map_or(Ok(()), Err),
        }
    }

    fn alive(&self) -> Result<(), String> {
        self.seen().failure.clone().map_or(Ok(()), Err)
    }

    fn push(&self, target: &PushTarget) -> Result<Box<dyn Push>, CommandError> {
        self.inboxes.push(target)
    }

    fn command(&self, command: Command) -> Result<Value, CommandError> {
        match command {
            Command::Pause { stage } => Ok(self.set_paused(stage, true)),
            Command::Resume { stage } => Ok(self.set_paused(stage, false)),
            Command::Checkpoint => self.ask_trainer(|reply| Request::Checkpoint { reply }),
            Command::Export { out } => self.ask_trainer(|reply| Request::Export { out, reply }),
            Command::Release { steps, out } => self.release(|releases| releases.begin(steps, out)),
            Command::CancelRelease => self.release(Releases::cancel),
            Command::RetryQuarantined { ids, corpus } => {
                let which = if ids.is_empty() { Which::All { corpus } } else { Which::Notes(ids) };
                self.inboxes.retry(&which, self.log.durable().end())
            }
            Command::ChangeCorpora(change) => match &self.live {
                Some(live) => live.change(change),
                None => {
                    let message = "this run has no corpus, so it reads nothing".to_owned();
                    Err(CommandError { status: 409, code: "no_corpus", message })
                }
            },
            Command::Shutdown => {
                let _ = self.shutdown.try_send(()); // Full: a shutdown is under way.
                Ok(json!({"state": "stopping"}))
            }
        }
    }
}
