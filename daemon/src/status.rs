//! What the daemon tells about itself, and the commands it takes: `ops` serves both.

mod carrying_out;

use crate::configuration::Teacher;
use crate::figures::Figures;
use crate::history::History;
use crate::live::{Addition, Effective, Live, Reach, Reload};
use crate::pipeline::{Controls, KnownTeacher, Pipeline};
use crate::push::Inboxes;
use crate::watchdog::Watch;
use carrying_out::Drain;
use crossbeam::channel::Sender;
use ingest::quarantine::Which;
use ops::{Command, CommandError, Push, PushTarget, Question};
use prometheus::Registry;
use serde_json::{Value, json};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::time::{Instant, UNIX_EPOCH};
use store::pulse::Wait;
use store::stage::StageControl;
use store::{Arrivals, LogReader};
use teacher::remote::Roster;
use teacher::{Activity, TeacherWatch};
use trainer::{Event, Releases, Request};

/// Shared between supervisor and HTTP server.
pub struct Status {
    /// The stages, which are other ones once a teacher was added.
    stages: RwLock<Arc<Stages>>,
    shutdown: Sender<()>,
    additions: Sender<Addition>,
    reload: Reload,
    history: History,
    stopping: AtomicBool,
    /// Whether the stages are just being opened anew.
    renewing: AtomicBool,
    started: Instant,
    steps: Option<u64>,
    seen: Mutex<Seen>,
    /// Which stages are stuck.
    watch: OnceLock<Watch>,
    /// Whether a drain is under way.
    drain: Drain,
}

/// What is asked and told of a pipeline.
struct Stages {
    controls: Controls,
    configuration: Effective,
    log: LogReader,
    ingest: Option<Arc<ingest::IngestStatus>>,
    requests: Option<Sender<Request>>,
    releases: Option<Releases>,
    inboxes: Arc<Inboxes>,
    live: Option<Arc<Live>>,
    teachers: Vec<KnownTeacher>,
    roster: Option<Roster>,
    arrivals: Option<Arrivals>,
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
    /// The status of `pipeline`, whose course goes to `history`; a shutdown command is sent to `shutdown`, a teacher that is to be added to `additions`; `reload` changes settings.
    pub fn new(
        pipeline: &Pipeline,
        registry: Registry,
        steps: Option<u64>,
        shutdown: Sender<()>,
        additions: Sender<Addition>,
        reload: Reload,
        history: History,
    ) -> Self {
        Self {
            stages: RwLock::new(Arc::new(Stages::of(pipeline))),
            shutdown,
            additions,
            reload,
            history,
            stopping: AtomicBool::new(false),
            renewing: AtomicBool::new(false),
            started: Instant::now(),
            steps,
            seen: Mutex::new(Seen {
                figures: Figures::new(registry),
                step: Value::Null,
                evaluation: Value::Null,
                waiting_for: None,
                failure: None,
            }),
            watch: OnceLock::new(),
            drain: Drain::default(),
        }
    }

    /// Which stages are stuck is asked of `watch`, from the first call on.
    pub fn is_watched_by(&self, watch: Watch) {
        let _ = self.watch.set(watch); // Later ones change nothing.
    }

    /// Takes note of what the trainer reports. Returns the event's name and data for the live feed.
    pub fn note(&self, event: &Event) -> (&'static str, Value) {
        self.history.note(event);
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

    /// Reads the configuration file again; what came of it goes to the log.
    pub fn reload_on_signal(&self) {
        tracing::info!("SIGHUP: reading the configuration again");
        if let Err(error) = ops::Control::command(self, Command::Reload) {
            tracing::error!(code = error.code, "the configuration stays as it was: {error}");
        }
    }

    /// The stages are about to be opened anew: until they are, nothing can be asked of them.
    pub fn set_renewing(&self) {
        self.renewing.store(true, Ordering::Relaxed);
    }

    /// The stages were opened anew. Those that are paused stay so.
    pub fn renew(&self, pipeline: &Pipeline) {
        let mut stages = self.stages.write().unwrap_or_else(PoisonError::into_inner);
        let (before, after) = (&stages.controls, &pipeline.controls);
        for (before, after) in
            [(&before.ingest, &after.ingest), (&before.teacher, &after.teacher), (&before.trainer, &after.trainer)]
        {
            after.set_paused(before.paused());
        }
        if let Some(live) = &stages.live {
            live.replace();
        }
        let opened = Arc::new(Stages::of(pipeline));
        *stages = Arc::clone(&opened);
        // Whoever asks for the status holds what was seen, and looks at the stages.
        drop(stages);
        let mut seen = self.seen();
        seen.figures.forget();
        seen.waiting_for = None;
        self.renewing.store(false, Ordering::Relaxed);
        // They were opened with what was set before; a reload may have been going on beside.
        self.reload.tell_anew(&opened.reach());
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

    fn stages(&self) -> Arc<Stages> {
        Arc::clone(&self.stages.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// What the daemon is doing, in a word.
    pub fn state(&self) -> &'static str {
        let Controls { ingest, teacher, trainer, .. } = &self.stages().controls;
        let stages = [ingest, teacher, trainer];
        match () {
            () if self.stopping.load(Ordering::Relaxed) => "stopping",
            () if self.renewing.load(Ordering::Relaxed) => "renewing",
            () if stages.iter().any(|stage| stage.paused()) => "paused",
            () => "running",
        }
    }

    /// What is read, how, and what was changed about that.
    fn corpora(stages: &Stages) -> Value {
        let status = stages.ingest.as_ref().map(|ingest| serde_json::to_value(&**ingest).unwrap_or(Value::Null));
        let mut status = status.unwrap_or(Value::Null);
        if let (Value::Object(fields), Some(live)) = (&mut status, &stages.live) {
            fields.insert("changes".to_owned(), live.latest());
        }
        status
    }
}

impl Stages {
    /// Those who are told of other settings.
    fn reach(&self) -> Reach<'_> {
        Reach {
            requests: self.requests.as_ref(),
            releases: self.releases.as_ref(),
            live: self.live.as_deref(),
            teachers: &self.teachers,
            inboxes: &self.inboxes,
        }
    }

    fn of(pipeline: &Pipeline) -> Self {
        Self {
            controls: pipeline.controls.clone(),
            configuration: pipeline.configuration.clone(),
            log: pipeline.log.clone(),
            ingest: pipeline.ingest.clone(),
            requests: pipeline.requests.clone(),
            releases: pipeline.releases.clone(),
            inboxes: Arc::clone(&pipeline.inboxes),
            live: pipeline.live.clone(),
            teachers: pipeline.teachers.clone(),
            roster: pipeline.roster.clone(),
            arrivals: pipeline.arrivals.clone(),
        }
    }

    /// What training waits for.
    fn lack_of(&self, language: &str) -> String {
        let reason = self.ingest.as_ref().and_then(|ingest| ingest.standstill(language));
        let reason = reason.map_or_else(String::new, |reason| format!(", {reason}"));
        format!("labelled text of `{language}`{reason}")
    }

    /// Whether others are to label for a teacher, and nobody does.
    fn lacks_workers(&self, section: &Teacher) -> bool {
        let is_elsewhere = section.labelled_by.is_elsewhere();
        is_elsewhere && self.roster.as_ref().is_some_and(|roster| !roster.has(&section.name))
    }

    /// By name, what each teacher is, and what it is doing.
    fn teachers(&self, figures: &Figures) -> Value {
        let paused = self.live.as_ref().map(|live| live.paused_teachers()).unwrap_or_default();
        let teachers = self.teachers.iter().enumerate().map(|(index, KnownTeacher { section, watch })| {
            let (state, since) = match watch.as_ref().map_or(Activity::Idle, TeacherWatch::activity) {
                Activity::Idle => ("idle", None),
                Activity::Labelling(since) if self.lacks_workers(section) => ("waiting", Some(since)),
                Activity::Labelling(since) => ("labelling", Some(since)),
                Activity::Stalled(since) => ("stalled", Some(since)),
                Activity::Lost(since) => ("lost", Some(since)),
            };
            let since = since.and_then(|since| since.duration_since(UNIX_EPOCH).ok()).map(|since| since.as_secs_f64());
            let status = json!({
                "index": index,
                "languages": section.languages,
                "labels": section.labels,
                "labelled_by": section.labelled_by,
                "paused": paused.contains(&section.name),
                "state": state,
                "since_unix_seconds": since,
                "dropped_copies": watch.as_ref().map_or(0, TeacherWatch::dropped_copies),
                "tokens_per_second": figures.rate(&format!("mergedistill_teacher_tokens_total{{{}}}", section.name)),
            });
            (section.name.clone(), status)
        });
        Value::Object(teachers.collect())
    }
}

impl ops::Control for Status {
    fn status(&self) -> Value {
        let stages = self.stages();
        let seen = self.seen();
        let paused = |control: &StageControl| json!({"paused": control.paused()});
        let waiting = seen.waiting_for.as_ref().map(|language| stages.lack_of(language));
        let lacks_space = stages.ingest.as_ref().is_some_and(|ingest| ingest.lacks_space());
        let has_no_room = seen.figures.value("mergedistill_log_waiting_for_room") > 0.0;
        let mut train = seen.step.clone();
        if stages.requests.is_some() {
            if !train.is_object() {
                train = json!({"step": 0});
            }
            train["steps"] = json!(self.steps);
        }
        let (durable, (log_bytes, log_segments)) = (stages.log.durable().end(), stages.log.size());
        let mut status = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "pid": std::process::id(),
            "state": self.state(),
            "failure": seen.failure,
            "stuck": self.watch.get().map(Watch::stuck).unwrap_or_default(),
            "uptime_seconds": self.started.elapsed().as_secs_f64(),
            "stages": {
                "ingest": {"paused": stages.controls.ingest.paused(), "waiting": lacks_space.then_some("disk space")},
                "teacher": paused(&stages.controls.teacher),
                "log": {"paused": false, "waiting": has_no_room.then_some("disk space")},
                "trainer": {"paused": stages.controls.trainer.paused(), "waiting": waiting},
            },
            "rates": {
                "label_tokens_per_second": seen.figures.rate("mergedistill_teacher_tokens_total"),
                "train_tokens_per_second": seen.figures.rate("mergedistill_train_tokens_total"),
            },
            "log": {
                "appended": seen.figures.find("mergedistill_log_appended_sequence").unwrap_or(durable.0 as f64),
                "durable": durable,
                "begin": stages.log.begin(),
                "bytes": log_bytes,
                "segments": log_segments,
                "backlog_bytes": seen.figures.find("mergedistill_log_backlog_bytes"),
                "max_backlog_bytes": seen.figures.find("mergedistill_log_backlog_limit_bytes"),
            },
            "retention": self.reload.retention(),
            "memory_bytes": seen.figures.find("process_resident_memory_bytes"),
            "quarantine": {
                "reasons": seen.figures.by_label("mergedistill_ingest_quarantined_total"),
                "bytes": seen.figures.find("mergedistill_ingest_quarantine_bytes"),
                "dropped": seen.figures.find("mergedistill_ingest_quarantine_dropped_total"),
            },
            "teachers": stages.teachers(&seen.figures),
            "workers": stages.roster.as_ref().map(Roster::workers),
            "corpora": Self::corpora(&stages),
            "inboxes": stages.inboxes.status(),
            "arrival_to_gradient": stages.arrivals.as_ref().map(Arrivals::delays),
            "train": train,
            "evaluation": seen.evaluation,
            "release": stages.releases.as_ref().and_then(Releases::status),
            "warnings": crate::warnings::latest(),
        });
        for reading in store::pulse::readings() {
            if let Some(Value::Object(stage)) = status["stages"].get_mut(reading.stage) {
                stage.insert("waits_for".to_owned(), json!(reading.waits_for.map(Wait::describe)));
            }
        }
        status
    }

    fn ready(&self) -> Result<(), String> {
        match self.state() {
            "stopping" => Err("the daemon is stopping".to_owned()),
            "renewing" => Err("a teacher is being added".to_owned()),
            _ => self.stages().inboxes.failure().map_or(Ok(()), Err),
        }
    }

    fn alive(&self) -> Result<(), String> {
        // Asked first: what is stuck may hold up all else.
        let trouble = self.watch.get().and_then(Watch::trouble);
        trouble.or_else(|| self.seen().failure.clone()).map_or(Ok(()), Err)
    }

    fn push(&self, target: &PushTarget) -> Result<Box<dyn Push>, CommandError> {
        self.stages().inboxes.push(target)
    }

    fn answer(&self, question: Question) -> Result<Value, CommandError> {
        match question {
            Question::Configuration => self.configuration(),
            Question::Segments => Ok(self.segments()),
            Question::History(query) => Ok(self.history.answer(&query)),
            Question::LogLevel => Ok(self.reload.level()),
            Question::Retention => Ok(self.reload.retention()),
        }
    }

    fn command(&self, command: Command) -> Result<Value, CommandError> {
        let waits =
            matches!(command, Command::Pause { .. } | Command::Resume { .. } | Command::Drain | Command::Shutdown);
        if self.renewing.load(Ordering::Relaxed) && !waits {
            let message = "a teacher is being added, and the stages are opened anew; ask again in a moment".to_owned();
            return Err(CommandError { status: 503, code: "renewing", message });
        }
        let stages = self.stages();
        let no_corpus = |message: &str| CommandError { status: 409, code: "no_corpus", message: message.to_owned() };
        match command {
            Command::Pause { stage } => Ok(self.set_paused(stage, true)),
            Command::Resume { stage } => Ok(self.set_paused(stage, false)),
            Command::Drain => self.drain(),
            Command::Checkpoint => self.ask_trainer(|reply| Request::Checkpoint { reply }),
            Command::Export { out, languages } => {
                self.check_languages(&languages)?;
                self.ask_trainer(|reply| Request::Export { out, languages, reply })
            }
            Command::Release { steps, out } => self.release(|releases| releases.begin(steps, out)),
            Command::CancelRelease => self.release(Releases::cancel),
            Command::RetryQuarantined { ids, corpus } => {
                let which = if ids.is_empty() { Which::All { corpus } } else { Which::Notes(ids) };
                stages.inboxes.retry(&which, stages.log.durable().end())
            }
            Command::ChangeCorpora(change) => {
                let live = stages.live.as_ref().ok_or_else(|| no_corpus("this run has no corpus, so it reads nothing"));
                live?.change(change)
            }
            Command::ChangeTeachers(change) => {
                let live =
                    stages.live.as_ref().ok_or_else(|| no_corpus("this run has no corpus, so it labels nothing"));
                live?.change_teachers(change, &self.additions)
            }
            Command::Reload => {
                let answer = self.reload.reload(&stages.reach());
                let opened = self.stages();
                if !Arc::ptr_eq(&stages, &opened) {
                    self.reload.tell_anew(&opened.reach());
                }
                answer
            }
            Command::SetLogLevel { level } => self.reload.set_level(&level),
            Command::SetRetention { retain_bytes, retain_hours } => {
                self.reload.set_retention(retain_bytes, retain_hours, &stages.reach())
            }
            Command::Shutdown => {
                let _ = self.shutdown.try_send(()); // Full: a shutdown is under way.
                Ok(json!({"state": "stopping"}))
            }
        }
    }
}
