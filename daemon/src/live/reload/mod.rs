//! Reading the configuration file again while the daemon runs.
//!
//! The file is read and checked as at a start; if anything is wrong with it nothing changes. What it says then is compared, key by key, with
//! the configuration as it takes effect ([`difference`]). A key that may change live ([`keys`]) does, each other one is refused with the
//! reason, and takes effect with the next start. What decides about training or about the order of what is read is durable, in the journal or
//! in `run.json`, before it takes effect; all else is looked up. So a restart with the same file goes on as it was.

mod difference;
mod keys;
mod metrics;

use super::{Effective, Live};
use crate::configuration::{Configuration, Corpus};
use crate::failure::{ExitCode, Failure};
use crate::level::Level;
use crate::pipeline::KnownTeacher;
use crate::push::Inboxes;
use crate::state_folder::StateFolder;
use crate::watchdog::Watch;
use crossbeam::channel::{RecvTimeoutError, SendTimeoutError, Sender, bounded};
use difference::Difference;
use keys::{Class, Part, class_of, form_of};
use metrics::ReloadMetrics;
use ops::CommandError;
use prometheus::Registry;
use serde_json::{Value, json};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use trainer::{EvaluationOptions, Releases, Request, Settings, Ticket};

/// The trainer answers between two steps, or after an evaluation or a checkpoint.
const ANSWER_LIMIT: Duration = Duration::from_secs(120);

/// Keys of what is kept of the log.
const RETENTION: &str = "store.retain_";
const TRAINS_ONLY: &str = "this run only trains, from a log that others write, and removes nothing from it";

/// Changes settings of a running daemon. One reload is made at a time.
#[derive(Debug)]
pub struct Reload {
    configuration: Effective,
    state: Arc<StateFolder>,
    level: Level,
    watch: Watch,
    metrics: ReloadMetrics,
    running: Mutex<()>,
}

/// The running stages, as far as they are told of changes.
pub struct Reach<'a> {
    /// To the trainer; `None`: there is none.
    pub requests: Option<&'a Sender<Request>>,
    /// Beside the trainer.
    pub releases: Option<&'a Releases>,
    /// Changes what is read; `None`: nothing is.
    pub live: Option<&'a Live>,
    /// The teachers.
    pub teachers: &'a [KnownTeacher],
    /// Where documents are pushed to.
    pub inboxes: &'a Inboxes,
}

/// What a reload came to.
#[derive(Default)]
struct Outcome {
    changed: Vec<Difference>,
    /// Keys with the reasons.
    refused: Vec<(String, String)>,
}

impl Reload {
    /// For a daemon that is about to run under `configuration`.
    pub fn new(
        configuration: Effective,
        state: Arc<StateFolder>,
        level: Level,
        watch: Watch,
        registry: &Registry,
    ) -> Result<Self, Failure> {
        let metrics = ReloadMetrics::register(registry)
            .map_err(|error| Failure::new(ExitCode::Software, format!("cannot register a metric: {error}")))?;
        let reload = Self { configuration, state, level, watch, metrics, running: Mutex::default() };
        reload.configuration.set(|now| reload.say_level(now));
        Ok(reload)
    }

    /// Reads the file again. The answer says what was changed, and what was refused.
    pub fn reload(&self, reach: &Reach<'_>) -> Result<Value, CommandError> {
        let _one_at_a_time = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let outcome = self.read_again(reach);
        self.metrics.count(outcome.as_ref().ok().map(|outcome| outcome.refused.len()));
        outcome.map(|outcome| outcome.answer())
    }

    fn read_again(&self, reach: &Reach<'_>) -> Result<Outcome, CommandError> {
        let wanted = self.wanted()?;
        let differences = difference::between(&self.configuration.get(), &wanted);
        let differences = differences.map_err(|error| refusal(500, "failed", error.to_string()))?;
        let mut outcome = Outcome::default();
        let keys = outcome.take_live(differences, self.writes_log(reach));
        let (corpora, keys): (Vec<_>, Vec<_>) = keys.into_iter().partition(|(part, _)| *part == Part::Corpus);
        self.change_keys(keys, reach, &mut outcome)?;
        change_corpora(corpora, &wanted, reach.live, &mut outcome);
        self.configuration.set(|now| tell_origins(&mut now.corpus, &wanted.corpus));
        self.conclude(&outcome);
        Ok(outcome)
    }

    /// How much is logged.
    pub fn level(&self) -> Value {
        json!({ "level": self.level.get() })
    }

    /// Logs so much, until the next reload or restart.
    pub fn set_level(&self, level: &str) -> Result<Value, CommandError> {
        self.level.set(level).map_err(|message| refusal(400, "invalid_level", message))?;
        self.configuration.set(|now| level.clone_into(&mut now.ops.log));
        Ok(self.level())
    }

    /// What is kept of the log.
    pub fn retention(&self) -> Value {
        let store = &self.configuration.get().store;
        json!({ "retain_bytes": store.retain_bytes, "retain_hours": store.retain_hours })
    }

    /// Keeps so much of the log, until the next reload or restart. What is not given stays.
    pub fn set_retention(
        &self,
        bytes: Option<u64>,
        hours: Option<f64>,
        reach: &Reach<'_>,
    ) -> Result<Value, CommandError> {
        if !self.writes_log(reach) {
            return Err(refusal(409, "no_corpus", TRAINS_ONLY));
        }
        let wanted = |key: &str, to: toml::Value| Difference { key: format!("store.{key}"), from: None, to: Some(to) };
        let large = |_| refusal(400, "invalid_retention", "retain_bytes is larger than any disk");
        let bytes = bytes.map(i64::try_from).transpose().map_err(large)?;
        let changes = [
            bytes.map(|bytes| wanted("retain_bytes", bytes.into())),
            hours.map(|hours| wanted("retain_hours", hours.into())),
        ];
        let changes: Vec<&Difference> = changes.iter().flatten().collect();
        let invalid = |message| refusal(400, "invalid_retention", message);
        self.configuration.change(|now| difference::with(now, &changes).map_err(invalid))?;
        crate::kept_configuration::keep_latest(&self.configuration);
        Ok(self.retention())
    }

    /// Whether the log is this run's: it labels, or follows.
    fn writes_log(&self, reach: &Reach<'_>) -> bool {
        reach.live.is_some() || self.configuration.get().follows()
    }

    /// What the file says now.
    fn wanted(&self) -> Result<Configuration, CommandError> {
        let invalid = |failure: Failure| refusal(422, "invalid_configuration", failure.message);
        let Some(file) = self.configuration.get().file.clone() else {
            return Err(refusal(409, "no_file", "this run has no configuration file that could be read again"));
        };
        let read = Configuration::load(&file).map_err(invalid)?;
        let (mut wanted, _) = super::in_effect(&read).map_err(invalid)?;
        self.say_level(&mut wanted);
        Ok(wanted)
    }

    /// The command line and the environment come before the file.
    fn say_level(&self, configuration: &mut Configuration) {
        if let Some(given) = self.level.given() {
            given.clone_into(&mut configuration.ops.log);
        }
    }

    /// Changes what is no corpus.
    fn change_keys(
        &self,
        keys: Vec<(Part, Difference)>,
        reach: &Reach<'_>,
        outcome: &mut Outcome,
    ) -> Result<(), CommandError> {
        let mut keys = outcome.keep_possible(&self.configuration.get(), keys);
        let candidate = |keys: &[(Part, Difference)]| {
            let differences: Vec<&Difference> = keys.iter().map(|(_, difference)| difference).collect();
            difference::with(&self.configuration.get(), &differences)
                .map_err(|message| refusal(422, "invalid_configuration", message))
        };
        // Training first: what that refuses nobody else takes up.
        let for_training = [Part::Training, Part::Alpha];
        if keys.iter().any(|(part, _)| for_training.contains(part))
            && let Err(reason) = tell_trainer(&candidate(&keys)?, reach)
        {
            outcome.refuse_parts(&mut keys, &for_training, &reason);
        }
        if keys.iter().any(|(part, _)| *part == Part::Alpha)
            && let Some(live) = reach.live
            && let Err(error) = live.set_alpha(candidate(&keys)?.sampling.alpha)
        {
            outcome.refuse_parts(&mut keys, &[Part::Alpha], &error.message);
            if let Err(reason) = tell_trainer(&candidate(&keys)?, reach) {
                tracing::error!(reason, "training has another sampling.alpha than what is read; reload again");
            }
        }
        let changed: Vec<Difference> = keys.into_iter().map(|(_, difference)| difference).collect();
        let differences: Vec<&Difference> = changed.iter().collect();
        let invalid = |message| refusal(422, "invalid_configuration", message);
        self.configuration.change(|now| difference::with(now, &differences).map_err(invalid))?;
        crate::kept_configuration::keep_latest(&self.configuration);
        outcome.changed.extend(changed);
        self.tell_stages(reach)
    }

    /// Tells stages that were opened anew, by somebody who may not have seen the latest changes.
    pub fn tell_anew(&self, reach: &Reach<'_>) {
        if let Err(error) = self.tell_stages(reach) {
            tracing::error!(%error, "the stages were opened anew, and do not know what a reload changed");
        }
    }

    /// Tells those who do not look it up.
    fn tell_stages(&self, reach: &Reach<'_>) -> Result<(), CommandError> {
        let now = self.configuration.get();
        self.level.set(&now.ops.log).map_err(|message| refusal(422, "invalid_configuration", message))?;
        reach.inboxes.set_limits(now.queue.inbox_bytes, now.quarantine.max_bytes);
        reach.live.iter().for_each(|live| live.set_linger(Duration::from_millis(now.queue.linger_ms)));
        self.watch.teachers_may_take(now.longest_stall());
        for teacher in &now.teacher {
            let known = reach.teachers.iter().find(|known| known.section.name == teacher.name);
            known
                .and_then(|known| known.watch.as_ref())
                .iter()
                .for_each(|watch| watch.set_options(teacher.stall_options()));
        }
        Ok(())
    }

    /// Says in log and history what was made of it.
    fn conclude(&self, outcome: &Outcome) {
        for (key, reason) in &outcome.refused {
            tracing::warn!(key, reason, "not changed by the reload");
        }
        let changes: Vec<String> = outcome.changed.iter().map(Difference::describe).collect();
        if changes.is_empty() {
            tracing::info!(refused = outcome.refused.len(), "the configuration was read again; nothing changes");
            return;
        }
        for change in &changes {
            tracing::info!(change, "changed by a reload");
        }
        // What has to be durable is so already.
        if let Err(error) = self.state.note_event(&format!("reloaded: {}", changes.join(", "))) {
            tracing::warn!(%error, "the history does not say what was reloaded");
        }
    }
}

impl Outcome {
    /// Refuses what needs a restart, and returns the rest. `writes_log`: whether the log is this run's.
    fn take_live(&mut self, differences: Vec<Difference>, writes_log: bool) -> Vec<(Part, Difference)> {
        let mut live = Vec::new();
        let student_changes = differences.iter().any(|difference| difference.key == "student");
        for difference in differences {
            match class_of(&difference.key) {
                Class::Live(Part::Training) if student_changes => {
                    self.refuse(
                        &difference.key,
                        "needs a restart: it goes with [student], which comes or goes with it",
                    );
                }
                Class::Live(_) if !writes_log && difference.key.starts_with(RETENTION) => {
                    self.refuse(&difference.key, &format!("needs a restart: {TRAINS_ONLY}"));
                }
                Class::Live(part) => live.push((part, difference)),
                Class::Restart(_) if form_of(&difference.key) == "teacher[]" && difference.to.is_none() => {
                    let reason = "cannot change: its labels are in the log; `mergedistill ctl teacher pause`, or another run.state_dir";
                    self.refuse(&difference.key, reason);
                }
                Class::Restart(reason) => self.refuse(&difference.key, &format!("needs a restart: {reason}")),
                Class::Kept(reason) => {
                    let reason = format!("cannot change: {reason}; another value needs another run.state_dir");
                    self.refuse(&difference.key, &reason);
                }
            }
        }
        live
    }

    /// Refuses what does not go with the values that stay, and returns the rest.
    fn keep_possible(&mut self, now: &Configuration, keys: Vec<(Part, Difference)>) -> Vec<(Part, Difference)> {
        let all: Vec<&Difference> = keys.iter().map(|(_, difference)| difference).collect();
        if difference::with(now, &all).is_ok() {
            return keys;
        }
        let mut kept: Vec<(Part, Difference)> = Vec::new();
        for (part, difference) in keys {
            let tried: Vec<&Difference> = kept.iter().map(|(_, kept)| kept).chain([&difference]).collect();
            match difference::with(now, &tried) {
                Ok(_) => kept.push((part, difference)),
                Err(message) => {
                    let reason = format!("does not go with settings that need a restart: {message}");
                    self.refuse(&difference.key, &reason);
                }
            }
        }
        kept
    }

    fn refuse_parts(&mut self, keys: &mut Vec<(Part, Difference)>, parts: &[Part], reason: &str) {
        for (_, difference) in keys.extract_if(.., |(part, _)| parts.contains(part)) {
            self.refuse(&difference.key, reason);
        }
    }

    fn refuse(&mut self, key: &str, reason: &str) {
        self.refused.push((key.to_owned(), reason.to_owned()));
    }

    fn answer(&self) -> Value {
        let changed =
            self.changed.iter().map(|Difference { key, from, to }| json!({"key": key, "from": from, "to": to}));
        let refused = self.refused.iter().map(|(key, reason)| json!({"key": key, "reason": reason}));
        json!({"changed": changed.collect::<Vec<_>>(), "refused": refused.collect::<Vec<_>>()})
    }
}

/// Has training go on under other settings; the error says why it does not.
fn tell_trainer(configuration: &Configuration, reach: &Reach<'_>) -> Result<(), String> {
    let Some(requests) = reach.requests else { return Ok(()) };
    let (settings, evaluation) = crate::training::settings(configuration);
    let step = ask_trainer(requests, &settings, &evaluation, ANSWER_LIMIT)?;
    tracing::info!(step, "training goes on under the settings of the configuration file");
    reach.releases.iter().for_each(|releases| releases.change(&settings, &evaluation));
    Ok(())
}

/// Asks training to go on under other settings; returns after which step it does. The error says why it does not, now or later.
fn ask_trainer(
    requests: &Sender<Request>,
    settings: &Settings,
    evaluation: &EvaluationOptions,
    limit: Duration,
) -> Result<u64, String> {
    let ended = || "training has ended".to_owned();
    let (reply, answer) = bounded(1);
    let ticket = Ticket::default();
    let (settings, evaluation) = (Box::new(settings.clone()), evaluation.clone());
    let request = Request::Change { settings, evaluation, ticket: ticket.clone(), reply };
    requests.send_timeout(request, limit).map_err(|error| match error {
        SendTimeoutError::Disconnected(_) => ended(),
        SendTimeoutError::Timeout(_) => "training is busy; reload again".to_owned(),
    })?;
    match answer.recv_timeout(limit) {
        Ok(answer) => answer,
        Err(RecvTimeoutError::Disconnected) => Err(ended()),
        Err(RecvTimeoutError::Timeout) if ticket.withdraw() => {
            Err(format!("training has not answered within {} s; reload again", limit.as_secs()))
        }
        // It has just begun to.
        Err(RecvTimeoutError::Timeout) => answer.recv().unwrap_or_else(|_| Err(ended())),
    }
}

/// Says of each corpus that is read what `wanted` says: whether it stands in the file, or was added while the daemon ran.
fn tell_origins(corpora: &mut [Corpus], wanted: &[Corpus]) {
    for corpus in corpora {
        if let Some(section) = wanted.iter().find(|section| section.name == corpus.name) {
            corpus.is_added = section.is_added;
        }
    }
}

/// Reads corpora that the file has now, and those no more that it has no more. What comes is first: something has to be read.
fn change_corpora(
    corpora: Vec<(Part, Difference)>,
    wanted: &Configuration,
    live: Option<&Live>,
    outcome: &mut Outcome,
) {
    let (added, others): (Vec<_>, Vec<_>) = corpora.into_iter().partition(|(_, corpus)| corpus.from.is_none());
    for (_, corpus) in added.into_iter().chain(others) {
        match change_corpus(&corpus, wanted, live) {
            Ok(()) => outcome.changed.push(corpus),
            Err(reason) => outcome.refuse(&corpus.key, &reason),
        }
    }
}

fn change_corpus(corpus: &Difference, wanted: &Configuration, live: Option<&Live>) -> Result<(), String> {
    let live = live.ok_or("needs a restart: nothing is read")?;
    let name = corpus.key.strip_prefix("corpus[").and_then(|name| name.strip_suffix(']')).unwrap_or_default();
    let changed = match (&corpus.from, &corpus.to) {
        (None, _) => {
            let section = wanted.corpus.iter().find(|section| section.name == name);
            live.add_from_file(section.ok_or("the file does not have it")?.clone())
        }
        (Some(_), None) => live.remove_from_file(name),
        (Some(_), Some(_)) => {
            return Err("needs a restart: how a corpus is read is settled when it is opened".to_owned());
        }
    };
    changed.map_err(|error| error.message)
}

fn refusal(status: u16, code: &'static str, message: impl Into<String>) -> CommandError {
    CommandError { status, code, message: message.into() }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
    use super::*;
    use crossbeam::channel::unbounded;
    use std::path::Path;

    const TRUNK: &str = r#"
        [[teacher]]
        name = "a"
        path = "teacher"
        languages = ["en"]
        [[corpus]]
        name = "c"
        language = "en"
        path = "*.txt"
        [student]
        [train]
        schedule = "trunk"
        lambda_steps = 1000
        lambda_floor = 0.25
    "#;

    fn parse(text: &str) -> Configuration {
        Configuration::parse(text, Path::new("/")).unwrap()
    }

    /// Keys that change, and those that are refused with the reasons.
    fn reload(from: &str, to: &str, labels: bool) -> (Vec<String>, Vec<(String, String)>) {
        let (now, wanted) = (parse(from), parse(to));
        let mut outcome = Outcome::default();
        let keys = outcome.take_live(difference::between(&now, &wanted).unwrap(), labels);
        let keys = outcome.keep_possible(&now, keys);
        (keys.into_iter().map(|(_, difference)| difference.key).collect(), outcome.refused)
    }

    #[test]
    fn what_would_be_filled_in_by_default_is_refused() {
        let linear = "schedule = \"linear\"\n        steps = 5000\n        learning_rate = 0.25\n";
        let (before, _) = TRUNK.split_once("schedule").unwrap();
        let (changed, refused) = reload(TRUNK, &format!("{before}{linear}"), true);
        assert_eq!(changed, ["train.learning_rate"]);
        let reason = |key: &str| &*refused.iter().find(|(refused, _)| refused == key).unwrap().1;
        assert_eq!(refused.len(), 4, "{refused:?}");
        for key in ["train.schedule", "train.steps"] {
            assert!(reason(key).starts_with("needs a restart"), "{}", reason(key));
        }
        let floor = "does not go with settings that need a restart: train.lambda_floor would become 0.5, not unset";
        assert_eq!(reason("train.lambda_floor"), floor);
        assert!(reason("train.lambda_steps").ends_with("train.lambda_steps would become 0, not unset"));
    }

    #[test]
    fn training_keeps_its_settings_when_the_file_has_no_student_any_more() {
        let (without, _) = TRUNK.split_once("[student]").unwrap();
        let (changed, refused) = reload(TRUNK, &format!("{without}[sampling]\nalpha = 0.5"), true);
        assert_eq!(changed, ["sampling.alpha"]);
        assert!(refused.iter().any(|(key, _)| key == "student"), "{refused:?}");
        assert!(refused.iter().any(|(key, reason)| key == "train.lambda_floor" && reason.contains("[student]")));
    }

    #[test]
    fn a_run_that_only_trains_removes_nothing() {
        let kept = format!("{TRUNK}\n[store]\nretain_hours = 5.0\nsync_interval_ms = 7");
        assert_eq!(reload(TRUNK, &kept, true).0, ["store.retain_hours", "store.sync_interval_ms"]);
        let (changed, refused) = reload(TRUNK, &kept, false);
        assert_eq!(changed, ["store.sync_interval_ms"]);
        assert_eq!(refused, [("store.retain_hours".to_owned(), format!("needs a restart: {TRAINS_ONLY}"))]);
    }

    #[test]
    fn a_change_that_training_does_not_answer_is_withdrawn() {
        let (settings, evaluation) = crate::training::settings(&parse(TRUNK));
        let (requests, received) = unbounded();
        let ask = || ask_trainer(&requests, &settings, &evaluation, Duration::ZERO);
        assert_eq!(ask().unwrap_err(), "training has not answered within 0 s; reload again");
        let Request::Change { ticket, .. } = received.recv().unwrap() else { panic!("another request") };
        assert!(!ticket.take(), "it would be carried out all the same");
        // Training ends with the request in its queue, or before.
        let asked = std::thread::scope(|scope| {
            let asked = scope.spawn(|| ask_trainer(&requests, &settings, &evaluation, ANSWER_LIMIT));
            drop(received.recv().unwrap());
            drop(received);
            asked.join().unwrap()
        });
        assert_eq!(asked.unwrap_err(), "training has ended");
        assert_eq!(ask().unwrap_err(), "training has ended");
    }
}
