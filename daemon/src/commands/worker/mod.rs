//! `mergedistill worker`: labels batches of a run on another machine.

mod watched;

use crate::cli::WorkerArgs;
use crate::commands::stop_signal::stopped_by_signals;
use crate::failure::{ExitCode, Failure};
use crate::watchdog::Watchdog;
use model::{RolePool, Tokenizer};
use ops::{EventHub, OpsOptions, Server, Surface};
use prometheus::Registry;
use std::sync::Arc;
use std::time::Duration;
use store::pulse;
use store::stage::StageControl;
use teacher::remote::{Ended, TeacherSpec, Worker, WorkerError, WorkerMetrics, WorkerOptions};
use teacher::{Labeller, Runner, RunnerOptions, TailOptions};
use watched::Watched;

/// A worker that is silent for longer at one batch is stuck.
const STUCK_AFTER: Duration = Duration::from_secs(900);

/// Labels until it is told to stop.
pub fn worker(args: &WorkerArgs) -> Result<(), Failure> {
    let _pulse = pulse::enter("worker");
    let registry = Registry::new();
    let watchdog = Watchdog::start(STUCK_AFTER, &registry)?;
    let from_model = |error: model::ModelError| Failure::new(ExitCode::of_model(&error), error);
    let tokenizer = Tokenizer::load(&args.teacher).map_err(from_model)?;
    let weights = model::fingerprint_weights(&args.teacher).map_err(from_model)?;
    let watch = watchdog.watch();
    let control = stopped_by_signals(move || watch.is_stopping())?;
    let options = options(args)?;
    let failed = |error| Failure::new(ExitCode::Software, format!("cannot register a metric: {error}"));
    let metrics = WorkerMetrics::register(&registry, &options.teacher).map_err(failed)?;
    let watched = Arc::new(Watched::new(&options, metrics.clone(), watchdog.watch()));
    let serving = OpsOptions { http: Some(args.http), surface: Surface::Watching, ..OpsOptions::default() };
    let answers = Arc::clone(&watched) as Arc<dyn ops::Control>;
    let server = Server::start(serving, registry, answers, EventHub::of_this_process())?;
    if let Some(address) = server.http_address() {
        tracing::info!("metrics: http://{address}/metrics");
    }
    let teller = watched.tell(control.clone())?;
    let ended = label(args, &options, (&tokenizer, &weights), &metrics, &watched, &control);
    watchdog.watch().is_stopping();
    control.stop();
    teller.join();
    server.stop();
    let (batches, tokens, _) = metrics.counts();
    tracing::info!(batches, tokens, "the worker has ended");
    ended
}

/// Joins the run, and again each time that it means another teacher, or wants other labels of it.
fn label(
    args: &WorkerArgs,
    options: &WorkerOptions,
    (tokenizer, weights): (&Tokenizer, &str),
    metrics: &WorkerMetrics,
    watched: &Watched,
    control: &StageControl,
) -> Result<(), Failure> {
    let threads = args.threads.unwrap_or_else(crate::threads::cores);
    let pool = RolePool::alone("label", threads).map_err(|error| Failure::new(ExitCode::of_model(&error), error))?;
    let on = args.place.placement()?.on_device();
    loop {
        let Some(worker) = Worker::join(options.clone(), control, metrics).map_err(of_worker)? else { return Ok(()) };
        if let Some(difference) = worker.spec().difference(weights, tokenizer.fingerprint()) {
            return Err(Failure::new(ExitCode::Configuration, format!("{}: {difference}", args.teacher.display())));
        }
        let TeacherSpec { index, top_k, tail_samples, seed, .. } = *worker.spec();
        let tail = TailOptions::of(tail_samples, seed);
        let of_runner = RunnerOptions { name: options.teacher.clone(), index, top_k, tail, on: on.clone() };
        let runner: Arc<dyn Labeller> = Arc::new(pool.install(|| Runner::load(&args.teacher, tokenizer, of_runner))?);
        tracing::info!(teacher = options.teacher, run = args.link.run, worker = options.name, "labels");
        watched.is_ready();
        match worker.run(runner, Arc::clone(&pool), control).map_err(of_worker)? {
            Ended::Stopped => return Ok(()),
            Ended::Changed => {}
        }
    }
}

fn options(args: &WorkerArgs) -> Result<WorkerOptions, Failure> {
    let folder = args.teacher.file_name().map(|name| name.to_string_lossy().into_owned());
    let teacher = args.name.clone().or(folder).ok_or_else(|| {
        Failure::new(ExitCode::Usage, "the teacher's folder has no name: say with --name what the run calls it")
    })?;
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let id = args.id.clone().unwrap_or_else(|| format!("{}/{}", host.trim_end(), std::process::id()));
    let link = args.link.options(1)?;
    let device = args.place.placement()?.to_string();
    Ok(WorkerOptions { link, teacher, name: id, device })
}

fn of_worker(error: WorkerError) -> Failure {
    match error {
        WorkerError::Teacher(error) => Failure::from(error),
        WorkerError::Refused(message) => Failure::new(ExitCode::Configuration, message),
        WorkerError::Link(error) => Failure::new(ExitCode::TemporaryFailure, error),
        WorkerError::Start(error) => Failure::new(ExitCode::Software, error),
    }
}
