//! What a run's pipelines are opened with: the first one, and those that follow when a teacher is added.

use crate::configuration::Configuration;
use crate::failure::{ExitCode, Failure};
use crate::inputs::Inputs;
use crate::kept_configuration;
use crate::live::{Addition, Effective, MadeChange};
use crate::pipeline::{Pipeline, Setup};
use crate::push::Inboxes;
use crate::refusals;
use crate::state_folder::StateFolder;
use crate::status::Status;
use crate::threads::Pools;
use model::device::Ranks;
use ops::{Activated, CommandError};
use prometheus::Registry;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use serde_json::json;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use store::stage::StageControl;
use store::{Identity, StoreError};
use teacher::Runner;
use teacher::remote::{CaughtUp, Follower};
use trainer::TrainerError;

/// A run: what its pipelines are opened with.
pub struct Run {
    configuration: Effective,
    inputs: Inputs,
    runners: Vec<Arc<Runner>>,
    state: Arc<StateFolder>,
    until_step: Option<u64>,
    /// The accelerators that the student is trained on; `None`: this processor, or there is no student.
    on: Option<Ranks>,
    /// What the log is.
    identity: Identity,
    /// Until it runs.
    follower: Mutex<Option<Follower>>,
}

impl Run {
    /// Looks at everything that the configuration refers to, takes the state folder, and compares it with the configuration. [`Run::note_start`] writes there.
    pub fn open(
        configuration: &Configuration,
        until_step: Option<u64>,
        activated: &Activated,
    ) -> Result<Self, Failure> {
        let (configuration, notes) = crate::live::in_effect(configuration)?;
        notes.iter().for_each(|note| tracing::info!("{note}"));
        let mut inputs = Inputs::open(&configuration)?;
        // Whatever may be wrong with a teacher comes before the state folder says whose it is.
        let runners = crate::pipeline::load_runners(&configuration, &inputs.teachers)?;
        let state = Arc::new(StateFolder::open(&configuration.run.state_dir)?);
        activated.try_http(configuration.ops.http)?;
        let on = open_student_devices(&configuration)?;
        let compared = refusals::compare(&configuration, &mut inputs)?;
        let follower = follow(&configuration)?;
        // What was followed may have come only now.
        let identity = if follower.is_some() { refusals::compare(&configuration, &mut inputs)? } else { compared };
        let identity = identity.ok_or_else(|| StoreError::NoLog { dir: configuration.store.path.clone() })?;
        let (configuration, follower) = (Effective::new(configuration), Mutex::new(follower));
        Ok(Self { configuration, inputs, runners, state, until_step, on, identity, follower })
    }

    /// Notes in the state folder that the run starts, and with which settings: its stages were opened, so nothing refuses it any more.
    pub fn note_start(&self) -> Result<(), Failure> {
        self.state.note_start(&self.identity)?;
        kept_configuration::keep(&self.configuration.get());
        Ok(())
    }

    /// The configuration, as it takes effect.
    pub fn configuration(&self) -> &Effective {
        &self.configuration
    }

    /// The folder that has the history of changes.
    pub fn state(&self) -> &Arc<StateFolder> {
        &self.state
    }

    /// Opens the stages; `inboxes` are those of the stages before.
    pub fn pipeline(&self, metrics: &Metrics, inboxes: Option<Arc<Inboxes>>) -> Result<Pipeline, Failure> {
        let stage_registry = metrics.stages.renew();
        let configuration = self.configuration.get();
        let setup = Setup {
            configuration: &configuration,
            effective: &self.configuration,
            inputs: &self.inputs,
            state: &self.state,
            runners: self.runners.clone(),
            registry: &stage_registry,
            inbox_registry: &metrics.all,
            inboxes,
            pools: Pools::open(configuration.threads)?,
            until_step: self.until_step,
            on: self.on.clone(),
            follower: self.follower.lock().unwrap_or_else(PoisonError::into_inner).take(),
            required: trainer::required_position(&configuration.run.state_dir)?,
        };
        Pipeline::open(setup)
    }

    /// The stages have ended: adds a teacher, and opens them anew. If it cannot be written down they are opened as they were.
    pub fn add(
        &mut self,
        addition: &Addition,
        metrics: &Metrics,
        inboxes: &Arc<Inboxes>,
        status: &Status,
    ) -> Result<Pipeline, Failure> {
        let Addition { teacher, inputs, runner, change, .. } = addition;
        let failed = |failure: &Failure| CommandError { status: 500, code: "failed", message: failure.message.clone() };
        let from_sequence = store::LogReader::open(&self.configuration.get().store.path)?.durable().end().0;
        let wrong = |message| Failure::new(ExitCode::Configuration, message);
        let noted = self.configuration.get().with_teacher(teacher).map_err(wrong).and_then(|configuration| {
            self.state.note_teacher(from_sequence, change, &inputs.identity(&configuration))?;
            self.configuration.change(|now| now.with_teacher(teacher).map_err(wrong))
        });
        if noted.is_ok() {
            self.inputs = inputs.clone();
            kept_configuration::keep_latest(&self.configuration);
            self.runners.extend(runner.clone());
        }
        let pipeline = self.pipeline(metrics, Some(Arc::clone(inboxes)));
        let pipeline = pipeline.inspect_err(|failure| addition.answer(Err(failed(failure))))?;
        status.renew(&pipeline);
        addition.answer(match noted {
            Ok(()) => {
                tracing::info!(from_sequence, "{}", change.describe());
                let at_unix_seconds = crate::state_folder::unix_seconds();
                Ok(json!(MadeChange { from_sequence, at_unix_seconds, change: change.clone() }))
            }
            Err(failure) => Err(failed(&failure)),
        });
        Ok(pipeline)
    }
}

/// The accelerators that the student is trained on; `None`: this processor, or there is no student.
pub fn open_student_devices(configuration: &Configuration) -> Result<Option<Ranks>, Failure> {
    let opened = configuration.student.as_ref().map(|student| student.place.open()).transpose();
    Ok(opened.map_err(TrainerError::from)?.flatten())
}

/// The log that is followed, up to what is published at this moment: training from the same log begins with the same text.
fn follow(configuration: &Configuration) -> Result<Option<Follower>, Failure> {
    let Some(cluster) = configuration.cluster.as_ref().filter(|cluster| cluster.follow) else { return Ok(None) };
    let control = StageControl::default(); // Until the stages run a signal ends the process.
    let Some(mut follower) = Follower::open(cluster.link(), &configuration.store.path, &control)? else {
        return Ok(None);
    };
    match follower.catch_up(&control)? {
        CaughtUp::Whole | CaughtUp::Stopped => tracing::info!(end = follower.end().0, "the log is as it is published"),
        CaughtUp::NoRoom(error) if follower.reader().is_err() => return Err(error.into()),
        CaughtUp::NoRoom(error) => {
            tracing::warn!(%error, end = follower.end().0, "the disk is full before the log is as it is published: training begins with what is there");
        }
    }
    Ok(Some(follower))
}

/// Where metrics are.
pub struct Metrics {
    /// All that is served.
    pub all: Registry,
    stages: StageRegistry,
}

impl Metrics {
    /// Without any yet.
    pub fn new() -> Result<Self, Failure> {
        let metrics = Self { all: Registry::new(), stages: StageRegistry::default() };
        let failed = |error| Failure::new(ExitCode::Software, format!("cannot register the stages' metrics: {error}"));
        metrics.all.register(Box::new(metrics.stages.clone())).map_err(failed)?;
        Ok(metrics)
    }
}

/// The metrics of the stages, as a part of the registry that is served. They begin anew when the stages are opened anew.
#[derive(Clone, Default)]
struct StageRegistry(Arc<RwLock<Registry>>);

impl StageRegistry {
    /// A registry for stages that are being opened; what those before registered is gone.
    fn renew(&self) -> Registry {
        let registry = Registry::new();
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = registry.clone();
        registry
    }
}

impl Collector for StageRegistry {
    /// None: they are other ones each time.
    fn desc(&self) -> Vec<&Desc> {
        Vec::new()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).gather()
    }
}
