//! The pipeline: corpora → ingest → teachers → log → trainer. Follow one batch from top to bottom.
//!
//! One named thread per stage, bounded queues between them. A queue's sender belongs to the stage before it, so a
//! stage that ends — done, stopped or failed — closes its queue, and the stages after it drain and end in turn.

use crate::configuration::{Cluster, Configuration, Teacher};
use crate::elsewhere::Elsewhere;
use crate::failure::{ExitCode, Failure};
use crate::inputs::{Inputs, LoadedTeacher};
use crate::live::{Effective, Live, Standing};
use crate::log_stage::LogStage;
use crate::publishing::Publishing;
use crate::push::Inboxes;
use crate::retaining::{Keeping, Retaining};
use crate::state_folder::StateFolder;
use crate::threads::Pools;
use crossbeam::channel::{Receiver, Sender, bounded, unbounded};
use ingest::quarantine::{Quarantine, retry_corpus};
use ingest::{Changes, Ingest, IngestOptions, IngestStatus, IngestTeacher, Overrides};
use model::device::{Precision, Ranks};
use prometheus::Registry;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use store::log::LogMirror;
use store::stage::{StageControl, StageMetrics};
use store::{Arrivals, Entry, Group, LogOptions, LogReader, LogWriter, SequenceNumber};
use teacher::remote::{Coordinator, Follower, InProcess, Roster};
use teacher::{Labeller, Labelling, LabellingOptions, Runner, RunnerOptions, TailOptions, TeacherWatch};
use trainer::{Event, Outcome, Releases, Request, Trainer, TrainerProgress};

/// How long a teacher whose GPU is lost waits before it opens it anew.
const RECOVERY_INTERVAL: Duration = Duration::from_secs(30);

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
    /// Releases beside the trainer; `None`: there is no trainer.
    pub releases: Option<Releases>,
    /// The configuration, as it takes effect.
    pub configuration: Effective,
    /// The log.
    pub log: LogReader,
    /// What ingest is doing; `None`: there is no corpus.
    pub ingest: Option<Arc<IngestStatus>>,
    /// The teachers, in the order of their table.
    pub teachers: Vec<KnownTeacher>,
    /// Where documents are pushed to; empty if no corpus takes any.
    pub inboxes: Arc<Inboxes>,
    /// Changes what is read; `None`: there is no corpus.
    pub live: Option<Arc<Live>>,
    /// Who labels on other machines; `None`: nobody is asked.
    pub roster: Option<Roster>,
    /// How long it takes until documents are learnt from; `None`: nothing arrives, or nothing is learnt.
    pub arrivals: Option<Arrivals>,
    bodies: Vec<(&'static str, Body)>,
    threads: Vec<JoinHandle<()>>,
    end: Sender<StageEnd>,
    _events: Sender<Event>,
}

/// A teacher of the pipeline.
#[derive(Clone, Debug)]
pub struct KnownTeacher {
    /// Its section of the configuration.
    pub section: Teacher,
    /// What it is doing; `None`: it does not label.
    pub watch: Option<TeacherWatch>,
}

/// What a stage's thread does.
pub type Body = Box<dyn FnOnce() -> Result<Ended, Failure> + Send>;

/// Everything the stages are started with.
pub struct Setup<'a> {
    /// The configuration at this moment.
    pub configuration: &'a Configuration,
    /// The configuration, for those who look it up again.
    pub effective: &'a Effective,
    /// Its teachers and corpora.
    pub inputs: &'a Inputs,
    /// The folder that has the history of changes.
    pub state: &'a Arc<StateFolder>,
    /// The teachers that label, loaded; none if there is nothing to label.
    pub runners: Vec<Arc<Runner>>,
    /// Where stages register their metrics.
    pub registry: &'a Registry,
    /// Where inboxes do.
    pub inbox_registry: &'a Registry,
    /// The inboxes of the pipeline before this one; `None`: this is the first.
    pub inboxes: Option<Arc<Inboxes>>,
    /// The threads of labelling and training.
    pub pools: Pools,
    /// Stop training after this step.
    pub until_step: Option<u64>,
    /// The accelerators that the student is trained on; `None`: this processor.
    pub on: Option<Ranks>,
    /// What follows the log; `None`: it is written here, or whole.
    pub follower: Option<Follower>,
    /// The log must reach this far, because a checkpoint or the journal refers to it.
    pub required: SequenceNumber,
}

impl Pipeline {
    /// Opens everything that the configuration asks for. Whatever can be refused is refused here, before any stage runs.
    pub fn open(mut setup: Setup<'_>) -> Result<Self, Failure> {
        let controls = Controls::default();
        let arrivals = arrivals(&setup)?;
        let progress = Arc::new(TrainerProgress::with_arrivals(arrivals.clone()));
        let mut bodies = Vec::new();
        let teachers = known_teachers(&setup);
        let (log, reading, inboxes, roster) = if let Some(follower) = setup.follower.take() {
            (follow(&setup, follower, &controls, &progress, &mut bodies)?, None, Arc::default(), None)
        } else if setup.configuration.corpus.is_empty() {
            let log = LogReader::open(&setup.configuration.store.path)?;
            check_reach(&setup, &log)?;
            (log, None, Arc::default(), None)
        } else {
            let opened = open_labelling(&mut setup, &controls, &progress, &teachers, &mut bodies)?;
            let Labels { log, reading, inboxes, roster } = opened;
            (log, Some(reading), inboxes, roster)
        };
        let ingest = reading.as_ref().map(|reading| Arc::clone(&reading.status));
        crate::waits::register(setup.registry, setup.effective, &controls, &log, &progress, ingest)
            .map_err(|error| Failure::new(ExitCode::Software, format!("cannot register a metric: {error}")))?;
        let (events_in, events) = bounded(EVENTS);
        let (requests, releases, inputs) = match &setup.configuration.student {
            Some(_) => {
                let training = open_trainer(&setup, &controls, log.clone(), progress, events_in.clone())?;
                bodies.push(("trainer", training.body));
                (Some(training.requests), Some(training.releases), Some(training.inputs))
            }
            None => (None, None, None),
        };
        let (ingest, live) = match reading {
            Some(Reading { status, changes }) => {
                let (state, inboxes) = (Arc::clone(setup.state), Arc::clone(&inboxes));
                let live = Live::new(changes, state, inboxes, setup.effective.clone(), setup.inputs, inputs)?;
                (Some(status), Some(Arc::new(live)))
            }
            None => (None, None),
        };
        let (end, ends) = unbounded(); // one message per stage
        let threads = Vec::new();
        Ok(Self {
            controls,
            ends,
            events,
            requests,
            releases,
            configuration: setup.effective.clone(),
            log,
            ingest,
            teachers,
            inboxes,
            live,
            roster,
            arrivals,
            bodies,
            threads,
            end,
            _events: events_in,
        })
    }

    /// Starts a thread per stage. Returns how many will report their end.
    pub fn start(&mut self) -> Result<usize, Failure> {
        for (stage, body) in std::mem::take(&mut self.bodies) {
            let body = move || {
                let _pulse = store::pulse::enter(stage);
                body()
            };
            self.threads.push(spawn(stage, Box::new(body), self.end.clone())?);
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

/// Starts a thread that does what `body` says, and reports its end.
pub fn spawn(stage: &'static str, body: Body, end: Sender<StageEnd>) -> Result<JoinHandle<()>, Failure> {
    let thread = std::thread::Builder::new().name(stage.to_owned()).spawn(move || {
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body));
        let panicked = |_| Err(Failure::new(ExitCode::Software, format!("stage `{stage}` panicked; this is a bug")));
        let _ = end.send(StageEnd { stage, result: result.unwrap_or_else(panicked) });
    });
    thread.map_err(|error| Failure::new(ExitCode::Software, format!("cannot start thread `{stage}`: {error}")))
}

/// The teachers of the inputs, each that labels with a watch.
fn known_teachers(setup: &Setup<'_>) -> Vec<KnownTeacher> {
    let is_labelled = !setup.configuration.corpus.is_empty();
    let known = setup.inputs.teachers.iter().map(|teacher| {
        // When it stalls may have changed since it was opened.
        let now = setup.configuration.teacher.iter().find(|section| section.name == teacher.section.name);
        let stalls = now.unwrap_or(&teacher.section).stall_options();
        KnownTeacher {
            section: teacher.section.clone(),
            watch: (is_labelled && teacher.section.labels).then(|| TeacherWatch::new(stalls)),
        }
    });
    known.collect()
}

/// The two ends of ingest that are held while it runs.
struct Reading {
    status: Arc<IngestStatus>,
    changes: Changes,
}

/// What is held of ingest, teachers and log while they run.
struct Labels {
    log: LogReader,
    reading: Reading,
    inboxes: Arc<Inboxes>,
    roster: Option<Roster>,
}

/// The trainer, and what is held of it while it runs.
struct Training {
    requests: Sender<Request>,
    releases: Releases,
    inputs: trainer::Inputs,
    body: Body,
}

/// corpora → ingest → \[groups\] → teachers → \[complete groups\] → log
fn open_labelling(
    setup: &mut Setup<'_>,
    controls: &Controls,
    progress: &Arc<TrainerProgress>,
    teachers: &[KnownTeacher],
    bodies: &mut Vec<(&'static str, Body)>,
) -> Result<Labels, Failure> {
    let watched = |runner: Arc<dyn Labeller>| {
        let watch = teachers.get(usize::from(runner.index())).and_then(|teacher| teacher.watch.clone());
        (runner, watch.unwrap_or_default())
    };
    let mut here: BTreeMap<u16, Arc<dyn Labeller>> =
        std::mem::take(&mut setup.runners).into_iter().map(|runner| (runner.index(), runner as _)).collect();
    let Setup { configuration, registry, .. } = *setup;
    // The server may refuse, and the log is written to when it is opened.
    let Elsewhere { mut coordinator, teachers: elsewhere, workers } =
        Elsewhere::open(configuration, setup.inputs, registry, &mut here)?;
    let log = open_writer(setup)?;
    let reader = log.reader();
    coordinator.iter_mut().for_each(|coordinator| coordinator.begin(reader.clone()));
    let roster = coordinator.as_ref().map(Coordinator::roster);
    let runners: Vec<_> = here.into_values().chain(elsewhere).map(watched).collect();
    let (inboxes, quarantine) = open_inboxes(setup, &log)?;
    let durable_end = Arc::new(AtomicU64::new(log.next().0));
    setup.state.resume_at(log.next().0)?;
    let ingest = open_ingest(setup, &log, &inboxes, quarantine, &durable_end, &progress.arrivals)?;
    let reading = Reading { status: ingest.status(), changes: ingest.changes() };
    let (groups_in, groups) = bounded::<Group>(1);
    let (complete_in, complete) = bounded::<Vec<Entry>>(1);

    let control = controls.ingest.clone();
    let within_backlog = backlog_gate(setup.effective.clone(), reader.clone(), progress, Arc::clone(&reading.status));
    let durable = reader.clone();
    let gate = move |group: &Group| {
        durable_end.store(durable.durable().end().0, Ordering::Relaxed);
        within_backlog(group)
    };
    let body = move || ingest.run(&control, &gate, groups_in).map(|()| Ended::Done).map_err(Failure::from);
    bodies.push(("ingest", Box::new(body)));

    let options = LabellingOptions {
        depth: configuration.queue.depth,
        control: controls.teacher.clone(),
        recovery_interval: RECOVERY_INTERVAL,
        pool: setup.pools.label()?,
        quarantine: configuration.run.state_dir.join("quarantined-batches"),
    };
    let registry_of_teachers = registry.clone();
    let body = move || {
        let start =
            |(worker, teacher)| InProcess::start(worker, teacher, Arc::clone(&options.pool), options.control.child());
        let workers = workers.into_iter().map(start).collect::<Result<Vec<_>, _>>()?;
        let labelling = Labelling::start(runners, &options, groups, complete_in, &registry_of_teachers)?;
        let ended = labelling.join().map(|()| Ended::Done).map_err(Failure::from);
        drop(workers);
        ended
    };
    bodies.push(("teacher", Box::new(body)));

    let metrics = StageMetrics::register(registry, "log")
        .map_err(|error| Failure::new(ExitCode::Software, format!("cannot register a metric: {error}")))?;
    let (keeping, publishing) = keeping(setup, &reader, progress)?;
    let stage = LogStage::new(log, keeping, Arc::clone(&inboxes), controls.log.clone(), metrics);
    let body = move || {
        let publishing = publishing.map(Publishing::start).transpose()?;
        let ended = stage.run(&complete);
        drop(publishing);
        coordinator.into_iter().for_each(Coordinator::close); // Now all is durable that will be.
        ended.map(|()| Ended::Done).map_err(Failure::from)
    };
    bodies.push(("log", Box::new(body)));
    Ok(Labels { log: reader, reading, inboxes, roster })
}

/// log → trainer → student
fn open_trainer(
    setup: &Setup<'_>,
    controls: &Controls,
    log: LogReader,
    progress: Arc<TrainerProgress>,
    events: Sender<Event>,
) -> Result<Training, Failure> {
    let Setup { configuration, registry, until_step, pools, .. } = setup;
    let options = crate::training::options(configuration, setup.inputs, *until_step, pools.train.clone());
    let Some(mut options) = options else {
        return Err(Failure::new(ExitCode::Configuration, "there is no [student]"));
    };
    options.on.clone_from(&setup.on);
    let inputs = options.inputs.clone();
    let mut trainer = Trainer::open(options.clone(), log.clone(), Arc::clone(&progress), registry)?;
    let (requests_in, requests) = bounded(16);
    let events_of_releases = events.clone();
    let report = Box::new(move |event| drop(events_of_releases.send(event)));
    let control = controls.trainer.clone();
    let releases = Releases::open(options, log, progress, control, requests_in.clone(), report, registry)?;
    let beside = releases.clone();
    let body = move || {
        let mut publish = |event| match event {
            // A console that is held up costs the report of a step, never the step.
            Event::Step(_) => drop(events.try_send(event)),
            _ => drop(events.send(event)),
        };
        beside.run(&mut trainer, requests, &mut publish).map(Ended::Trainer).map_err(Failure::from)
    };
    Ok(Training { requests: requests_in, releases, inputs, body: Box::new(body) })
}

/// The inboxes, or those of the pipeline before, and the quarantine that they share with ingest.
fn open_inboxes(setup: &Setup<'_>, log: &LogWriter) -> Result<(Arc<Inboxes>, Quarantine), Failure> {
    let Setup { configuration, inputs, inbox_registry, .. } = setup;
    if let Some(inboxes) = &setup.inboxes
        && let Some(quarantine) = inboxes.quarantine()
    {
        inboxes.renew(inputs, log.cursors())?;
        return Ok((Arc::clone(inboxes), quarantine));
    }
    let folder = configuration.run.state_dir.join("quarantine");
    let quarantine = Quarantine::new(folder, configuration.quarantine.max_bytes)?;
    let inboxes = Inboxes::open(configuration, inputs, log.cursors(), &quarantine, inbox_registry)?;
    Ok((Arc::new(inboxes), quarantine))
}

fn open_writer(setup: &Setup<'_>) -> Result<LogWriter, Failure> {
    let Setup { configuration, inputs, registry, required, .. } = setup;
    let section = &configuration.store;
    let options = LogOptions {
        segment_bytes: section.segment_bytes,
        sync_interval: Duration::from_millis(section.sync_interval_ms),
        top_k: section.top_k,
        precision: section.precision,
        keep_text: section.keep_text,
        computed_in: may_differ_from_float32(&configuration.teacher),
        required: *required,
    };
    let (log, recovery) = LogWriter::open(&section.path, &inputs.identity(configuration), &options, registry)?;
    if recovery.torn_bytes > 0 {
        tracing::warn!(bytes = recovery.torn_bytes, "the log had a torn tail; it was cut and kept aside");
    }
    Ok(log)
}

/// Whether labels may be computed in something else than float32: on what a worker computes, it says with each.
fn may_differ_from_float32(teachers: &[Teacher]) -> bool {
    let mut labelling = teachers.iter().filter(|teacher| teacher.labels);
    labelling.any(|teacher| teacher.labelled_by.is_elsewhere() || teacher.place.precision != Precision::F32)
}

/// What is to be kept of the log, and what publishes it. Without a trainer nobody needs more, unless one was at work in this state folder before.
fn keeping(
    setup: &Setup<'_>,
    log: &LogReader,
    progress: &Arc<TrainerProgress>,
) -> Result<(Keeping, Option<Publishing>), Failure> {
    let Setup { configuration, .. } = setup;
    let state_dir = &configuration.run.state_dir;
    let need = match &configuration.student {
        Some(_) => Some(progress.need.clone()),
        None => trainer::need_of_state(state_dir, log)?,
    };
    let options = configuration.cluster.as_ref().and_then(Cluster::publisher);
    let publishing = options.map(|options| Publishing::open(options, log.clone(), setup.registry)).transpose()?;
    let need = match &publishing {
        Some(publishing) => Some(publishing.joined_to(need)),
        None => need,
    };
    let held_out = trainer::held_out_path(state_dir);
    Ok((Keeping { configuration: setup.effective.clone(), held_out, need }, publishing))
}

/// Follows the log: a thread takes what is published, and removes what is not to be kept.
fn follow(
    setup: &Setup<'_>,
    follower: Follower,
    controls: &Controls,
    progress: &Arc<TrainerProgress>,
    bodies: &mut Vec<(&'static str, Body)>,
) -> Result<LogReader, Failure> {
    follower.register(setup.registry)?;
    let log = follower.reader()?;
    check_reach(setup, &log)?;
    let mut retaining = Retaining::new(keeping(setup, &log, progress)?.0);
    let control = controls.log.clone();
    let tend = move |log: &mut LogMirror, is_full: bool| {
        retaining.look_up(log);
        if is_full || retaining.due(log).is_zero() {
            retaining.retain(log)?;
        }
        Ok(())
    };
    let body = move || follower.run(&control, tend).map(|()| Ended::Done).map_err(Failure::from);
    bodies.push(("log", Box::new(body)));
    Ok(log)
}

/// The log must reach as far as checkpoint and journal refer to.
fn check_reach(setup: &Setup<'_>, log: &LogReader) -> Result<(), Failure> {
    if log.durable().end() >= setup.required {
        return Ok(());
    }
    let message = format!(
        "log {} ends at {}, but the checkpoint or journal refers to {}",
        setup.configuration.store.path.display(),
        log.durable(),
        setup.required
    );
    Err(Failure::new(ExitCode::DataError, message))
}

fn open_ingest(
    setup: &Setup<'_>,
    log: &LogWriter,
    inboxes: &Inboxes,
    quarantine: Quarantine,
    durable_end: &Arc<AtomicU64>,
    arrivals: &Option<Arrivals>,
) -> Result<Ingest, Failure> {
    let Setup { configuration, inputs, registry, .. } = setup;
    let labelling = inputs.teachers.iter().filter(|teacher| teacher.section.labels).count();
    let batch_tokens = configuration.queue.batch_tokens;
    let options = IngestOptions {
        seed: configuration.run.seed,
        alpha: configuration.sampling.alpha,
        corpora: inputs.corpora.iter().cloned().chain([retry_corpus()]).collect(),
        mask_probability: configuration.masking.probability,
        mask_unit: configuration.masking.unit(),
        max_sequence_length: inputs.max_sequence_length,
        holdout_fraction: configuration.evaluate.holdout_fraction,
        batch_tokens,
        group_tokens: batch_tokens * labelling.max(1), // On average one full batch per teacher.
        linger: Duration::from_millis(configuration.queue.linger_ms),
        feeds: configuration.run.state_dir.join("feeds"),
        durable_end: Arc::clone(durable_end),
        spools: inboxes.feeds(),
        quarantine,
        overrides: overrides(configuration)?,
        keep_text: configuration.store.keep_text,
        arrivals: arrivals.clone(),
    };
    let teachers = inputs.teachers.iter().map(|teacher| IngestTeacher {
        name: teacher.section.name.clone(),
        languages: teacher.section.languages.clone(),
        labels: teacher.section.labels,
        tokenizer: Arc::clone(&teacher.tokenizer),
    });
    Ok(Ingest::open(options, teachers.collect(), log.cursors(), log.next(), registry)?)
}

/// Where documents arrive and are learnt from, it is measured how long that takes.
fn arrivals(setup: &Setup<'_>) -> Result<Option<Arrivals>, Failure> {
    let Setup { configuration, registry, .. } = setup;
    if configuration.corpus.is_empty() || configuration.student.is_none() {
        return Ok(None);
    }
    let failed = |error| Failure::new(ExitCode::Software, format!("cannot register a metric: {error}"));
    Arrivals::register(registry).map(Some).map_err(failed)
}

/// What was set by hand in earlier runs.
fn overrides(configuration: &Configuration) -> Result<Overrides, Failure> {
    let made = StateFolder::changes(&configuration.run.state_dir)?;
    let standing = Standing::of(made.iter().map(|made| &made.change));
    Ok(Overrides {
        shares: standing.shares.into_iter().map(|(language, share)| (language.into(), share)).collect(),
        paused: standing.paused.into_iter().map(Into::into).collect(),
        paused_teachers: standing.paused_teachers.into_iter().map(Into::into).collect(),
        ..Overrides::default()
    })
}

/// Loads the weights of the teachers that label; none if there is nothing to label.
pub fn load_runners(configuration: &Configuration, teachers: &[LoadedTeacher]) -> Result<Vec<Arc<Runner>>, Failure> {
    if configuration.corpus.is_empty() {
        return Ok(Vec::new());
    }
    let labelling =
        (0..).zip(teachers).filter(|(_, teacher)| teacher.section.labels && teacher.section.labelled_by.is_here());
    labelling.map(|(index, teacher)| load_runner(configuration, index, teacher)).collect()
}

/// Loads the weights of the teacher at `index` of the table.
pub fn load_runner(configuration: &Configuration, index: u16, teacher: &LoadedTeacher) -> Result<Arc<Runner>, Failure> {
    let tail = TailOptions::of(configuration.store.tail_samples, configuration.run.seed);
    let name = teacher.section.name.clone();
    let on = teacher.section.place.on_device();
    let options = RunnerOptions { name, index, top_k: configuration.store.top_k, tail, on };
    let runner = Runner::load(&teacher.section.path, &teacher.tokenizer, options)?;
    store::pulse::beat();
    Ok(Arc::new(runner))
}

/// Backpressure: ingestion goes on while the log holds less than the limit that the trainer (or the release that outlives it)
/// still needs, or while that waits for a language that is drawn, or of which the group has something. Without a trainer there is no
/// limit.
fn backlog_gate(
    configuration: Effective,
    log: LogReader,
    progress: &Arc<TrainerProgress>,
    ingest: Arc<IngestStatus>,
) -> impl Fn(&Group) -> bool + Send + use<> {
    let limited = configuration.get().student.is_some();
    let progress = Arc::clone(progress);
    move |group| {
        let comes = |language: &str| {
            let has_some = group.entries.iter().any(|entry| *entry.cursor.language == *language);
            has_some || ingest.standstill(language).is_none()
        };
        match progress.backlog_from(&comes) {
            Some(from) if limited => {
                log.bytes_between(from, log.durable().end()) < configuration.get().store.max_backlog_bytes
            }
            _ => true,
        }
    }
}
