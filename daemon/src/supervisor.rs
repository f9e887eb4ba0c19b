//! Runs a configuration from start to stop: starts pipeline and HTTP server, watches both, stops them in order.

use crate::configuration::Configuration;
use crate::console::Console;
use crate::failure::{ExitCode, Failure};
use crate::inputs::Inputs;
use crate::pipeline::{Ended, Pipeline, Setup, StageEnd};
use crate::state_folder::StateFolder;
use crate::status::Status;
use crate::threads::Pools;
use crossbeam::channel::{Receiver, bounded, select, tick};
use ops::{EventHub, OpsOptions, Server, Token};
use prometheus::Registry;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::sync::Arc;
use std::time::{Duration, Instant};
use trainer::{EvaluationReport, Event, Outcome};

/// Signals within this time are one.
const SAME_SIGNAL: Duration = Duration::from_secs(1);

/// What a run came to.
#[derive(Debug, Default)]
pub struct Summary {
    /// How training ended; `None`: nothing was trained.
    pub outcome: Option<Outcome>,
    /// The first evaluation of this process's lifetime.
    pub first_evaluation: Option<EvaluationReport>,
    /// The latest one.
    pub last_evaluation: Option<EvaluationReport>,
    /// Wall-clock time.
    pub elapsed: Duration,
}

/// Runs until the work is done, a signal or a command asks for a stop, or a stage fails.
pub fn run(configuration: &Configuration, until_step: Option<u64>, console: &Console) -> Result<Summary, Failure> {
    let (configuration, notes) = crate::live::in_effect(configuration)?;
    notes.iter().for_each(|note| tracing::info!("{note}"));
    let configuration = &configuration;
    let mut inputs = Inputs::open(configuration)?;
    // Whatever may be wrong with a teacher comes before the state folder says whose it is.
    let runners = crate::pipeline::load_runners(configuration, &inputs.teachers)?;
    let state = Arc::new(StateFolder::open(&configuration.run.state_dir)?);
    if configuration.corpus.is_empty() {
        let log = store::LogReader::open(&configuration.store.path)?;
        inputs.arrange_for(log.identity())?;
        state.check_identity(log.identity())?;
    } else {
        state.check_identity(&inputs.identity(configuration))?;
    }

    let registry = Registry::new();
    let required = trainer::required_position(&configuration.run.state_dir)?;
    let pools = Pools::open(configuration.threads)?;
    let setup = Setup {
        configuration,
        inputs: &inputs,
        state: &state,
        runners,
        registry: &registry,
        pools,
        until_step,
        required,
    };
    let mut pipeline = Pipeline::open(setup)?;

    let (shutdown_in, shutdown) = bounded(1);
    let status = Arc::new(Status::new(&pipeline, registry.clone(), configuration.train.steps, shutdown_in));
    let hub = EventHub::default();
    let ops = &configuration.ops;
    let token = ops.token_file.as_deref().map(Token::read).transpose()?;
    let options = OpsOptions { http: Some(ops.http), socket: Some(ops.socket.clone()), token };
    let server = Server::start(options, registry, Arc::clone(&status) as Arc<dyn ops::Control>, hub.clone())?;
    if let Some(address) = server.http_address() {
        console.say(&format!("live page: http://{address}"));
    }
    // Until here a signal ends the process at once, which loses nothing.
    let signals = watch_signals()?;
    let inboxes = Arc::clone(&pipeline.inboxes);
    let running = pipeline.start()?;
    ops::notify::ready();

    let supervisor = Supervisor {
        configuration,
        status: &status,
        hub: &hub,
        console,
        failure: None,
        stop_by: None,
        signalled: None,
        summary: Summary::default(),
    };
    let result = supervisor.watch(pipeline, running, &signals, &shutdown);
    inboxes.close();
    ops::notify::stopping();
    server.stop();
    result
}

struct Supervisor<'a> {
    configuration: &'a Configuration,
    status: &'a Status,
    hub: &'a EventHub,
    console: &'a Console,
    /// The first failure; those that follow from it are only logged.
    failure: Option<Failure>,
    /// Set once a stop was asked for: the stages have to end by then.
    stop_by: Option<Instant>,
    /// When the first signal came.
    signalled: Option<Instant>,
    summary: Summary,
}

impl Supervisor<'_> {
    /// Watches the stages until all of them have ended.
    fn watch(
        mut self,
        pipeline: Pipeline,
        mut running: usize,
        signals: &Receiver<i32>,
        shutdown: &Receiver<()>,
    ) -> Result<Summary, Failure> {
        let started = Instant::now();
        let mut live = self.console.live();
        let ticks = tick(Duration::from_millis(250));
        while running > 0 {
            select! {
                recv(pipeline.events) -> event => if let Ok(event) = event { self.note(event) },
                recv(pipeline.ends) -> end => if let Ok(end) = end {
                    running -= 1;
                    self.stage_ended(end, &pipeline);
                },
                recv(signals) -> signal => if let Ok(signal) = signal { self.signalled(signal, &pipeline)? },
                recv(shutdown) -> _ => self.stop(&pipeline, "asked for by a command"),
                recv(ticks) -> _ => {
                    let waiting_for = self.status.waiting_for();
                    let steps = self.configuration.train.steps;
                    self.status.refresh(|figures| live.show(figures, steps, waiting_for.as_deref()));
                }
            }
            if self.stop_by.is_some_and(|limit| Instant::now() > limit) {
                live.clear();
                let limit = self.configuration.run.stop_limit_seconds;
                let message = format!("{running} stages did not stop within {limit} s; what was durable is safe");
                return Err(self.failure.unwrap_or_else(|| Failure::new(ExitCode::TemporaryFailure, message)));
            }
        }
        while let Ok(event) = pipeline.events.try_recv() {
            self.note(event);
        }
        live.clear();
        pipeline.join();
        self.summary.elapsed = started.elapsed();
        self.failure.map_or(Ok(self.summary), Err)
    }

    fn note(&mut self, event: Event) {
        let (name, data) = self.status.note(&event);
        self.hub.publish(name, data);
        match event {
            Event::Evaluation(report) => {
                for line in crate::tables::evaluation_lines(&report) {
                    tracing::info!("{line}");
                }
                tracing::debug!(step = report.step, "evaluation done");
                self.summary.first_evaluation.get_or_insert_with(|| report.clone());
                self.summary.last_evaluation = Some(report);
            }
            Event::Checkpoint { step, path } => tracing::info!(step, path = %path.display(), "checkpoint written"),
            Event::Resumed { step, evaluation } => {
                tracing::info!(step, "resumed from a checkpoint");
                self.summary.last_evaluation = evaluation;
            }
            Event::Step(_) | Event::Waiting { .. } | Event::Release(_) => {}
        }
    }

    fn stage_ended(&mut self, end: StageEnd, pipeline: &Pipeline) {
        match end.result {
            Ok(Ended::Done) => tracing::info!(stage = end.stage, "stage ended"),
            Ok(Ended::Trainer(outcome)) => {
                tracing::info!(?outcome, "training ended");
                self.summary.outcome = Some(outcome);
                self.stop(pipeline, "training has ended");
            }
            Err(failure) => {
                tracing::error!(stage = end.stage, "{failure}");
                let first = self.failure.get_or_insert(failure);
                self.status.set_stopping(Some(first.message.clone()));
                self.stop(pipeline, "a stage failed");
            }
        }
    }

    /// The first signal asks for a stop, a later one ends the wait for it. Some senders (`timeout`, a terminal's process
    /// group) deliver the same signal twice at once.
    fn signalled(&mut self, signal: i32, pipeline: &Pipeline) -> Result<(), Failure> {
        let first = *self.signalled.get_or_insert_with(Instant::now);
        if first.elapsed() > SAME_SIGNAL {
            let stopped = Failure::new(ExitCode::TemporaryFailure, "stopped at once by a second signal");
            return Err(self.failure.take().unwrap_or(stopped));
        }
        self.stop(pipeline, if signal == SIGINT { "SIGINT" } else { "SIGTERM" });
        Ok(())
    }

    fn stop(&mut self, pipeline: &Pipeline, why: &str) {
        if self.stop_by.is_none() {
            tracing::info!(why, "stopping: draining, making durable, writing a checkpoint");
            self.status.set_stopping(self.failure.as_ref().map(|failure| failure.message.clone()));
            self.stop_by = Some(Instant::now() + Duration::from_secs(self.configuration.run.stop_limit_seconds));
            pipeline.controls.stop();
        }
    }
}

/// Sends SIGTERM and SIGINT to a channel instead of letting them end the process.
fn watch_signals() -> Result<Receiver<i32>, Failure> {
    let failed = |error: std::io::Error| Failure::new(ExitCode::Software, format!("cannot watch signals: {error}"));
    let mut signals = Signals::new([SIGTERM, SIGINT]).map_err(failed)?;
    let (send, receive) = bounded(4);
    let watch = move || {
        for signal in signals.forever() {
            if send.send(signal).is_err() {
                return;
            }
        }
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(watch).map_err(failed)?;
    Ok(receive)
}
