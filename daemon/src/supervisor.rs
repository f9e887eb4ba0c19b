//! Runs a configuration from start to stop: starts pipeline and HTTP server, watches both, stops them in order. To add a teacher it
//! stops the pipeline alone, in order, and opens it anew.

use crate::configuration::Configuration;
use crate::console::{self, Console};
use crate::failure::{ExitCode, Failure};
use crate::history::History;
use crate::live::{Addition, Reload};
use crate::pipeline::{Ended, Pipeline, StageEnd};
use crate::pumps::Pumps;
use crate::run::{Metrics, Run};
use crate::status::Status;
use crate::terminal::Terminal;
use crate::watchdog::{Watch, Watchdog};
use crossbeam::channel::{Receiver, bounded, select, tick};
use ops::{Activated, CommandError, EventHub, Limits, OpsOptions, Server, Surface, Token};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::sync::Arc;
use std::time::{Duration, Instant};
use store::pulse::{self, Wait};
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
    let activated = Activated::take()?; // While there is no other thread.
    let signals = Caught::hangups()?; // Whoever wants a reload does not end a start.
    let metrics = Metrics::new()?;
    let _pulse = pulse::enter("supervisor");
    let wrong = |message| Failure::new(ExitCode::Configuration, message);
    console.level().configure(&configuration.ops.log).map_err(wrong)?;
    let watchdog = Watchdog::start(Duration::from_secs(configuration.run.stuck_seconds), &metrics.all)?;
    let watch = watchdog.watch();
    watch.says("starting: loading teachers".to_owned());
    let run = Run::open(configuration, until_step, &activated)?;
    watch.says("starting: opening the log and all that reads it".to_owned());
    let pipeline = run.pipeline(&metrics, None)?;
    run.note_start()?;

    let (shutdown_in, shutdown) = bounded(1);
    let (additions_in, additions) = bounded(1);
    let (effective, state) = (run.configuration().clone(), Arc::clone(run.state()));
    let reload = Reload::new(effective, state, console.level().clone(), watch.clone(), &metrics.all)?;
    let configuration = run.configuration().get();
    let steps = configuration.train.steps;
    let registry = metrics.all.clone();
    let (history, _keeper) = History::start(&configuration.run.state_dir, registry.clone())?;
    let status = Arc::new(Status::new(&pipeline, registry, steps, shutdown_in, additions_in, reload, history));
    status.is_watched_by(watch.clone());
    let hub = EventHub::of_this_process();
    let ops = &configuration.ops;
    let token = ops.token_file.as_deref().map(Token::read).transpose()?;
    let control = ops.controllers()?;
    let options =
        OpsOptions { http: Some(ops.http), socket: Some(ops.socket.clone()), token, control, surface: Surface::All };
    let answers = Arc::clone(&status) as Arc<dyn ops::Control>;
    let server =
        Server::start_activated(activated, options, Limits::default(), metrics.all.clone(), answers, hub.clone())?;
    if let Some(address) = server.http_address() {
        console.say(&format!("live page: http://{address}"));
    }
    // Until here SIGTERM and SIGINT end the process at once, which loses nothing.
    let asked = Asked { signals: signals.watch()?, shutdown, additions };
    let inboxes = Arc::clone(&pipeline.inboxes);
    let pumps = Pumps::start(&inboxes)?;

    let supervisor = Supervisor {
        steps,
        stop_limit: Duration::from_secs(configuration.run.stop_limit_seconds),
        status: &status,
        hub: &hub,
        live: console.live(),
        watch: &watch,
        revision: server.revision(),
        failure: None,
        stop_by: None,
        signalled: None,
        renewal: None,
        reload_is_due: false,
        summary: Summary::default(),
    };
    let result = supervisor.supervise(run, pipeline, pumps, asked, &metrics);
    watch.is_stopping(); // By itself, if nobody asked for it.
    inboxes.close();
    server.stop();
    result
}

/// What is asked of the supervisor.
struct Asked {
    signals: Receiver<Told>,
    shutdown: Receiver<()>,
    additions: Receiver<Addition>,
}

struct Supervisor<'a> {
    /// Optimiser steps in all.
    steps: Option<u64>,
    /// How long a stop may take.
    stop_limit: Duration,
    status: &'a Arc<Status>,
    hub: &'a EventHub,
    live: crate::console::Live,
    watch: &'a Watch,
    revision: ops::Revision,
    /// The first failure; those that follow from it are only logged.
    failure: Option<Failure>,
    /// Set once a stop was asked for: the stages have to end by then.
    stop_by: Option<Instant>,
    /// When the first signal came.
    signalled: Option<Instant>,
    /// The teacher that is added when the stages have ended.
    renewal: Option<Addition>,
    /// A reload was asked for that has to wait for that.
    reload_is_due: bool,
    summary: Summary,
}

impl Supervisor<'_> {
    /// Watches the stages, and opens them anew for each teacher that is added, until the run has ended.
    fn supervise(
        mut self,
        mut run: Run,
        mut pipeline: Pipeline,
        mut pumps: Pumps,
        asked: Asked,
        metrics: &Metrics,
    ) -> Result<Summary, Failure> {
        let inboxes = Arc::clone(&pipeline.inboxes);
        loop {
            self.watch.teachers_may_take(run.configuration().get().longest_stall());
            let Some(addition) = self.watch(pipeline, &mut pumps, &asked)? else { break };
            self.watch.says("adding a teacher: opening the stages anew".to_owned());
            // A signal that comes meanwhile is looked at when they run.
            self.watch.is_renewing();
            pipeline = run.add(&addition, metrics, &inboxes, self.status)?;
        }
        self.live.clear();
        pumps.join();
        self.failure.map_or(Ok(self.summary), Err)
    }

    /// Starts the stages and watches them until all of them have ended. Returns a teacher that is to be added before they are
    /// opened anew; `None`: the run has ended, and so have the `pumps`.
    fn watch(&mut self, mut pipeline: Pipeline, pumps: &mut Pumps, asked: &Asked) -> Result<Option<Addition>, Failure> {
        let started = Instant::now();
        let mut stages = Running { count: pipeline.start()?, ingest: pipeline.ingest.is_some() };
        self.watch.is_ready();
        if std::mem::take(&mut self.reload_is_due) {
            self.reload();
        }
        let ticks = tick(Duration::from_millis(250));
        while stages.count > 0 || (self.renewal.is_none() && pumps.running > 0) {
            pulse::waits_for(Wait::Input);
            select! {
                recv(pipeline.events) -> event => if let Ok(event) = event { self.note(event) },
                recv(pipeline.ends) -> end => if let Ok(end) = end {
                    stages.count -= 1;
                    stages.ingest &= end.stage != "ingest";
                    self.stage_ended(end, &pipeline, pumps);
                },
                recv(pumps.ends) -> end => if let Ok(end) = end {
                    pumps.running -= 1;
                    self.stage_ended(end, &pipeline, pumps);
                },
                recv(asked.signals) -> told => match told {
                    Ok(Told::Reload) => self.reload(),
                    Ok(Told::TerminalGone) => self.stop(&pipeline, pumps, "the terminal is gone"),
                    Ok(Told::Stop(signal)) => self.signalled(signal, &pipeline, pumps)?,
                    Err(_) => {}
                },
                recv(asked.shutdown) -> _ => self.stop(&pipeline, pumps, "asked for by a command"),
                recv(asked.additions) -> addition => if let Ok(addition) = addition {
                    self.begin_renewal(addition, &pipeline, stages.ingest);
                },
                recv(ticks) -> _ => self.show(),
            }
            if self.stop_by.is_some_and(|limit| Instant::now() > limit) {
                self.live.clear();
                let (running, limit) = (stages.count + pumps.running, self.stop_limit.as_secs());
                let message = format!("{running} stages did not stop within {limit} s; what was durable is safe");
                let late = Failure::new(ExitCode::TemporaryFailure, message);
                return Err(self.failure.take().unwrap_or(late));
            }
        }
        while let Ok(event) = pipeline.events.try_recv() {
            self.note(event);
        }
        pipeline.join();
        self.summary.elapsed += started.elapsed();
        match self.renewal.take() {
            Some(addition) if self.stop_by.is_none() => Ok(Some(addition)),
            Some(addition) => {
                addition.answer(Err(stopping()));
                Ok(None)
            }
            None => Ok(None),
        }
    }

    /// Shows the figures of this moment.
    fn show(&mut self) {
        let (waiting_for, steps, state) = (self.status.waiting_for(), self.steps, self.status.state());
        self.status.refresh(|figures| {
            self.watch.says(console::status_line(figures, state, steps, waiting_for.as_deref()));
            self.live.show(figures, steps, waiting_for.as_deref());
        });
    }

    /// Has the stages drain, so that they can be opened anew with one more teacher.
    fn begin_renewal(&mut self, addition: Addition, pipeline: &Pipeline, reads: bool) {
        if self.stop_by.is_some() || self.renewal.is_some() {
            return addition.answer(Err(stopping()));
        }
        if !reads {
            let message = "all input has ended: there is nothing that a teacher could label".to_owned();
            return addition.answer(Err(CommandError { status: 409, code: "ingest_ended", message }));
        }
        tracing::info!(
            "opening the stages anew, with one more teacher: draining, making durable, writing a checkpoint"
        );
        self.status.set_renewing();
        self.renewal = Some(addition);
        pipeline.controls.stop();
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

    fn stage_ended(&mut self, end: StageEnd, pipeline: &Pipeline, pumps: &Pumps) {
        match end.result {
            Ok(Ended::Done) => tracing::info!(stage = end.stage, "stage ended"),
            Ok(Ended::Trainer(Outcome::Stopped { step })) if self.renewal.is_some() => {
                tracing::info!(step, "training stopped, to go on");
            }
            Ok(Ended::Trainer(outcome)) => {
                tracing::info!(?outcome, "training ended");
                self.summary.outcome = Some(outcome);
                self.stop(pipeline, pumps, "training has ended");
            }
            Err(failure) => {
                tracing::error!(stage = end.stage, "{failure}");
                let first = self.failure.get_or_insert(failure);
                self.status.set_stopping(Some(first.message.clone()));
                self.stop(pipeline, pumps, "a stage failed");
            }
        }
    }

    /// Has the configuration read again, beside all else.
    fn reload(&mut self) {
        if self.stop_by.is_some() {
            return;
        }
        if self.renewal.is_some() {
            tracing::info!("SIGHUP: the configuration is read again once the teacher is there");
            self.reload_is_due = true;
            return;
        }
        ops::notify::reloading();
        let (status, watch, revision) = (Arc::clone(self.status), self.watch.clone(), self.revision.clone());
        let reload = move || {
            revision.grow();
            status.reload_on_signal();
            revision.grow();
            watch.is_reloaded();
        };
        if let Err(error) = std::thread::Builder::new().name("reload".to_owned()).spawn(reload) {
            tracing::error!(%error, "the configuration cannot be read again: there is no thread for it");
            self.watch.is_reloaded();
        }
    }

    /// The first signal asks for a stop, a later one ends the wait for it. Some senders (`timeout`, a terminal's process
    /// group) deliver the same signal twice at once.
    fn signalled(&mut self, signal: &str, pipeline: &Pipeline, pumps: &Pumps) -> Result<(), Failure> {
        let first = *self.signalled.get_or_insert_with(Instant::now);
        if first.elapsed() > SAME_SIGNAL {
            let stopped = Failure::new(ExitCode::TemporaryFailure, "stopped at once by a second signal");
            return Err(self.failure.take().unwrap_or(stopped));
        }
        self.stop(pipeline, pumps, signal);
        Ok(())
    }

    fn stop(&mut self, pipeline: &Pipeline, pumps: &Pumps, why: &str) {
        if self.stop_by.is_none() {
            self.status.set_stopping(self.failure.as_ref().map(|failure| failure.message.clone()));
            self.watch.is_stopping();
            tracing::info!(why, "stopping: draining, making durable, writing a checkpoint");
            self.stop_by = Some(Instant::now() + self.stop_limit);
            pipeline.controls.stop();
            pumps.stop();
        }
    }
}

/// The stages that run.
struct Running {
    count: usize,
    /// Whether ingest is among them.
    ingest: bool,
}

fn stopping() -> CommandError {
    CommandError { status: 503, code: "stopping", message: "the daemon is stopping".to_owned() }
}

/// What a signal tells.
enum Told {
    /// Its name.
    Stop(&'static str),
    TerminalGone,
    Reload,
}

/// Signals that do not end the process.
struct Caught {
    signals: Signals,
    terminal: Terminal,
}

impl Caught {
    /// SIGHUP alone, which waits until it is watched.
    fn hangups() -> Result<Self, Failure> {
        let terminal = Terminal::of_start();
        Ok(Self { signals: Signals::new([SIGHUP]).map_err(unwatchable)?, terminal })
    }

    /// SIGTERM and SIGINT too, and what each tells to a channel.
    fn watch(self) -> Result<Receiver<Told>, Failure> {
        let Self { mut signals, terminal } = self;
        [SIGTERM, SIGINT].into_iter().try_for_each(|signal| signals.add_signal(signal)).map_err(unwatchable)?;
        let (send, receive) = bounded(4);
        let watch = move || {
            for signal in signals.forever() {
                let told = match signal {
                    SIGHUP if terminal.is_gone() => Told::TerminalGone,
                    SIGHUP => Told::Reload,
                    SIGINT => Told::Stop("SIGINT"),
                    _ => Told::Stop("SIGTERM"),
                };
                if send.send(told).is_err() {
                    return;
                }
            }
        };
        std::thread::Builder::new().name("signals".to_owned()).spawn(watch).map_err(unwatchable)?;
        Ok(receive)
    }
}

fn unwatchable(error: std::io::Error) -> Failure {
    Failure::new(ExitCode::Software, format!("cannot watch signals: {error}"))
}
