//! The pipeline: corpora → ingest → teachers → log → trainer. Follow one batch from top to bottom.
//!
//! One named thread per stage, bounded queues between them. A queue's sender belongs to the stage before it, so a
//! stage that ends — done, stopped or failed — closes its queue, and the stages after it drain and end in turn.

use crate::configuration::Configuration;
use crate::failure::{ExitCode, Failure};
use crate::inputs::{Inputs, LoadedTeacher};
use crate::log_stage::{Keeping, LogStage};
use crate::threads::Pools;
use crossbeam::channel::{Receiver, Sender, bounded, unbounded};
use ingest::{Ingest, IngestOptions, IngestStatus, IngestTeacher};
use prometheus::Registry;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;
use store::log::Retention;
use store::stage::{StageControl, StageMetrics};
use store::{Entry, Group, LogOptions, LogReader, LogWriter, SequenceNumber};
use teacher::{Labelling, LabellingOptions, Runner, RunnerOptions};
use trainer::{Event, Outcome, Request, Trainer, TrainerProgress};

/// Events of the trainer that wait for the supervisor, at most.
const EVENTS: usize = 256;

/// How one stage ended.
#[derive(Debug)]
pub struct StageEnd {
    /// Its name.
    pub stage: &'static str,
    /// Why it ended: its work is done or it was told to, or it failed.
    pub result: Result<Ended, Failure>,
}

/// A stage that did not fail.
#[derive(Debug)]
pub enum Ended {
    /// Its input ended, or it was stopped.
    Done,
    /// The trainer, and how far it got.
    Trainer(Outcome),
}

/// Switches of the stages.
#[derive(Clone, Debug, Default)]
pub struct Controls {
    /// Reads, tokenises, masks.
    pub ingest: StageControl,
    /// Labels.
    pub teacher: StageControl,
    /// Trains.
    pub trainer: StageControl,
    /// Writes the log. It is told of a stop only to end a wait for disk space: otherwise it writes all that it is given.
    pub log: StageControl,
}

impl Controls {
    /// Stops every stage at its next safe point: what is in flight is labelled and made durable.
    pub fn stop(&self) {
        for stage in [&self.ingest, &self.teacher, &self.trainer, &self.log] {
            stage.stop();
        }
    }
}

/// The stages: opened, and running once [`Pipeline::start`] was called.
pub struct Pipeline {
    /// Switches.
    pub controls: Controls,
    /// Each stage reports its end here, once.
    pub ends: Receiver<StageEnd>,
    /// What the trainer reports. Never disconnected.
    pub events: Receiver<Event>,
    /// Asks the trainer for a checkpoint or an export; `None`: there is no trainer.
    pub requests: Option<Sender<Request>>,
    /// The log.
    pub log: LogReader,
    /// What ingest is doing; `None`: there is no corpus.
    pub ingest: Option<Arc<IngestStatus>>,
    bodies: Vec<(&'static str, Body)>,
    threads: Vec<JoinHandle<()>>,
    end: Sender<StageEnd>,
    _events: Sender<Event>,
}

/// What a stage's thread does.
type Body = Box<dyn FnOnce() -> Result<Ended, Failure> + Send>;

/// Everything the stages are started with.
pub struct Setup<'a> {
    /// The configuration.
    pub configuration: &'a Configuration,
    /// Its teachers and corpora.
    pub inputs: &'a Inputs,
    /// The teachers that label, loaded; none if there is nothing to label.
    pub runners: Vec<Runner>,
    /// Where stages register their metrics.
    pub registry: &'a Registry,
    /// The threads of labelling and training.
    pub pools: Pools,
    /// Stop training after this step.
    pub until_step: Option<u64>,
    /// The log must reach this far, because a checkpoint or the journal refers to it.
    pub required: SequenceNumber,
}

impl Pipeline {
    /// Opens everything that the configuration asks for. Whatever can be refused is refused here, before any stage runs.
    pub fn open(mut setup: Setup<'_>) -> Result<Self, Failure> {
        let controls = Controls::default();
        let progress = Arc::new(TrainerProgress::default());
        let mut bodies = Vec::new();
        let (log, ingest) = if setup.configuration.corpus.is_empty() {
            (open_reader(&setup)?, None)
        } else {
            let (log, ingest) = open_labelling(&mut setup, &controls, &progress, &mut bodies)?;
            (log, Some(ingest))
        };
        let (events_in, events) = bounded(EVENTS);
        let requests = match &setup.configuration.student {
            Some(_) => {
                let (requests, body) = open_trainer(&setup, &controls, log.clone(), progress, events_in.clone())?;
                bodies.push(("trainer", body));
                Some(requests)
            }
            None => None,
        };
        let (end, ends) = unbounded(); // one message per stage
        let threads = Vec::new();
        Ok(Self { controls, ends, events, requests, log, ingest, bodies, threads, end, _events: events_in })
    }

    /// Starts a thread per stage. Returns how many will report their end.
    pub fn start(&mut self) -> Result<usize, Failure> {
        for (stage, body) in std::mem::take(&mut self.bodies) {
            let end = self.end.clone();
            let thread = std::thread::Builder::new().name(stage.to_owned()).spawn(move || {
                let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body));
                let panicked =
                    |_| Err(Failure::new(ExitCode::Software, format!("stage `{stage}` panicked; this is a bug")));
                let _ = end.send(StageEnd { stage, result: result.unwrap_or_else(panicked) });
            });
            let failed = |error| Failure::new(ExitCode::Software, format!("cannot start thread `{stage}`: {error}"));
            self.threads.push(thread.map_err(failed)?);
        }
        Ok(self.threads.len())
    }

    /// Waits for the threads, which have all reported their end.
    pub fn join(self) {
        for thread in self.threads {
            let _ = thread.join(); // A panic was reported as the stage's end.
        }
    }
}

/// corpora → ingest → \[groups\] → teachers → \[complete groups\] → log
fn open_labelling(
    setup: &mut Setup<'_>,
    controls: &Controls,
    progress: &Arc<TrainerProgress>,
    bodies: &mut Vec<(&'static str, Body)>,
) -> Result<(LogReader, Arc<IngestStatus>), Failure> {
    let runners = std::mem::take(&mut setup.runners);
    let Setup { configuration, registry, .. } = *setup;
    let log = open_writer(setup)?;
    let reader = log.reader();
    let ingest = open_ingest(setup, &log)?;
    let status = ingest.status();
    let (groups_in, groups) = bounded::<Group>(1);
    let (complete_in, complete) = bounded::<Vec<Entry>>(1);

    let control = controls.ingest.clone();
    let gate = backlog_gate(configuration, reader.clone(), progress);
    let body = move || ingest.run(&control, &gate, groups_in).map(|()| Ended::Done).map_err(Failure::from);
    bodies.push(("ingest", Box::new(body)));

    let options = LabellingOptions {
        depth: configuration.queue.depth,
        control: controls.teacher.clone(),
        pool: setup.pools.label()?,
    };
    let registry_of_teachers = registry.clone();
    let body = move || {
        let labelling = Labelling::start(runners, &options, groups, complete_in, &registry_of_teachers)?;
        labelling.join().map(|()| Ended::Done).map_err(Failure::from)
    };
    bodies.push(("teacher", Box::new(body)));

    let metrics = StageMetrics::register(registry, "log")
        .map_err(|error| Failure::new(ExitCode::Software, format!("cannot register a metric: {error}")))?;
    let stage = LogStage::new(log, keeping(setup, &reader, progress)?, controls.log.clone(), metrics);
    let body = move || stage.run(&complete).map(|()| Ended::Done).map_err(Failure::from);
    bodies.push(("log", Box::new(body)));
    Ok((reader, status))
}

/// log → trainer → student
fn open_trainer(
    setup: &Setup<'_>,
    controls: &Controls,
    log: LogReader,
    progress: Arc<TrainerProgress>,
    events: Sender<Event>,
) -> Result<(Sender<Request>, Body), Failure> {
    let Setup { configuration, inputs, registry, until_step, pools, .. } = setup;
    let Some(options) = crate::training::options(configuration, inputs, *until_step, pools.train.clone()) else {
        return Err(Failure::new(ExitCode::Configuration, "there is no [student]"));
    };
    let mut trainer = Trainer::open(options, log, progress, registry)?;
    let (requests_in, requests) = bounded(16);
    let control = controls.trainer.clone();
    let body = move || {
        let mut publish = |event| match event {
            // A console that is held up costs the report of a step, never the step.
            Event::Step(_) => drop(events.try_send(event)),
            _ => drop(events.send(event)),
        };
        trainer.run(&control, &requests, &mut publish).map(Ended::Trainer).map_err(Failure::from)
    };
    Ok((requests_in, Box::new(body)))
}

fn open_writer(setup: &Setup<'_>) -> Result<LogWriter, Failure> {
    let Setup { configuration, inputs, registry, required, .. } = setup;
    let section = &configuration.store;
    let options = LogOptions {
        segment_bytes: section.segment_bytes,
        sync_interval: Duration::from_millis(section.sync_interval_ms),
        top_k: section.top_k,
        precision: section.precision,
        required: *required,
    };
    let (log, recovery) = LogWriter::open(&section.path, &inputs.identity(configuration), &options, registry)?;
    if recovery.torn_bytes > 0 {
        tracing::warn!(bytes = recovery.torn_bytes, "the log had a torn tail; it was cut and kept aside");
    }
    Ok(log)
}

/// What is to be kept of the log. Without a trainer nobody needs more, unless one was at work in this state folder before.
fn keeping(setup: &Setup<'_>, log: &LogReader, progress: &Arc<TrainerProgress>) -> Result<Keeping, Failure> {
    let Setup { configuration, .. } = setup;
    let (section, state_dir) = (&configuration.store, &configuration.run.state_dir);
    let hours = Some(section.retain_hours).filter(|hours| *hours > 0.0);
    let retention = Retention {
        bytes: section.retain_bytes,
        age: hours.map(|hours| Duration::from_secs_f64(3600.0 * hours)),
        held_out: trainer::held_out_path(state_dir),
    };
    let need = match &configuration.student {
        Some(_) => Some(progress.need.clone()),
        None => trainer::need_of_state(state_dir, log)?,
    };
    Ok(Keeping { retention, need })
}

fn open_reader(setup: &Setup<'_>) -> Result<LogReader, Failure> {
    let log = LogReader::open(&setup.configuration.store.path)?;
    if log.durable().end() < setup.required {
        let message = format!(
            "log {} ends at {}, but the checkpoint or journal refers to {}",
            setup.configuration.store.path.display(),
            log.durable(),
            setup.required
        );
        return Err(Failure::new(ExitCode::DataError, message));
    }
    Ok(log)
}

fn open_ingest(setup: &Setup<'_>, log: &LogWriter) -> Result<Ingest, Failure> {
    let Setup { configuration, inputs, registry, .. } = setup;
    let labelling = inputs.teachers.iter().filter(|teacher| teacher.section.labels).count();
    let batch_tokens = configuration.queue.batch_tokens;
    let options = IngestOptions {
        seed: configuration.run.seed,
        alpha: configuration.sampling.alpha,
        corpora: inputs.corpora.clone(),
        mask_probability: configuration.masking.probability,
        max_sequence_length: inputs.max_sequence_length,
        holdout_fraction: configuration.evaluate.holdout_fraction,
        batch_tokens,
        group_tokens: batch_tokens * labelling.max(1), // On average one full batch per teacher.
        quarantine: configuration.run.state_dir.join("quarantine"),
    };
    let teachers = inputs.teachers.iter().map(|teacher| IngestTeacher {
        name: teacher.section.name.clone(),
        languages: teacher.section.languages.clone(),
        labels: teacher.section.labels,
        tokenizer: Arc::clone(&teacher.tokenizer),
    });
    Ok(Ingest::open(options, teachers.collect(), log.cursors(), log.next(), registry)?)
}

/// Loads the weights of the teachers that label; none if there is nothing to label.
pub fn load_runners(configuration: &Configuration, teachers: &[LoadedTeacher]) -> Result<Vec<Runner>, Failure> {
    if configuration.corpus.is_empty() {
        return Ok(Vec::new());
    }
    let labelling = (0..).zip(teachers).filter(|(_, teacher)| teacher.section.labels);
    labelling
        .map(|(index, teacher)| {
            let options = RunnerOptions { name: teacher.section.name.clone(), index, top_k: configuration.store.top_k };
            Ok(Runner::load(&teacher.section.path, &teacher.tokenizer, options)?)
        })
        .collect()
}

/// Backpressure: ingestion goes on while the log holds less than the limit that the trainer still needs, or while the
/// trainer waits for more. Without a trainer there is no limit.
fn backlog_gate(
    configuration: &Configuration,
    log: LogReader,
    progress: &Arc<TrainerProgress>,
) -> impl Fn() -> bool + Send + use<> {
    let limit_bytes = configuration.store.max_backlog_bytes;
    let limited = configuration.student.is_some();
    let progress = Arc::clone(progress);
    move || {
        if !limited || progress.waiting.load(Ordering::Relaxed) {
            return true;
        }
        let needed_from = SequenceNumber(progress.needed_from.load(Ordering::Relaxed));
        log.bytes_between(needed_from, log.durable().end()) < limit_bytes
    }
}
