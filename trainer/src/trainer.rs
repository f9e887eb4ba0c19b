//! The training stage: follows the log, trains, evaluates and writes checkpoints, until it is done or told to stop.
//!
//! After every step, in this order: its line in `metrics.jsonl`; an evaluation, if one is due; a checkpoint, if one is due.
//! Stops, pauses and requests are attended to between steps, and while waiting for the log; requests for a release during evaluations too.
//! Under which settings a step is made the journal says ([`crate::settings`]).
//!
//! A release is trained by a trainer of its own, in a folder of its own, which begins at a checkpoint of the trunk's
//! ([`crate::release`]).
//!
//! Steps whose loss or gradient is not finite leave the weights alone. After three in a row training goes back to the last
//! checkpoint of the schedule, without the examples of their batches. If that did not help before, what does not work may be
//! inside that checkpoint: training then goes back to the one before it, and from the last of them to the start. How far it
//! goes back does not depend on checkpoints that somebody happened to ask for; only where it would have to give up, it goes back to the
//! checkpoint that it was taken up from, whatever that is.

mod changing;
mod going_back;
mod targets;

use crate::TrainerError;
use crate::batch::Batch;
use crate::branch::branch;
use crate::checkpoint::{Checkpoints, TrainerState};
use crate::copy_stream::{CopyStream, Next};
use crate::evaluate::{EvaluationReport, Evaluator, HeldOut};
use crate::event::{BranchPoint, Event, Outcome, Request, StepReport, TrainerProgress};
use crate::export;
use crate::flops::Cost;
use crate::growth;
use crate::initial;
use crate::journal::Journal;
use crate::learner::Learner;
use crate::metrics::Metrics;
use crate::need::LogNeeds;
use crate::options::TrainerOptions;
use crate::resume::{self, Resumed};
use crate::run_log::RunLog;
use crate::schedule::Schedule;
use crate::state_folder::{
    checkpoints_path, journal_path, keep_tokenizers, open_run_log, open_vocabulary, tokenizers_path,
};
use crate::vocabulary::Vocabulary;
use crossbeam::channel::{Receiver, Sender};
use model::{RolePool, Working};
use prometheus::Registry;
use serde::Serialize;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use store::LogReader;
use store::pulse::{self, Wait};
use store::stage::StageControl;
use targets::{is_branch, is_due, is_target};

/// How long a wait lasts before stops and requests are looked at.
const ATTENTION: Duration = Duration::from_millis(100);
/// Skipped steps in a row after which training goes back.
const SKIPS_MAX: u32 = 3;

/// The training stage.
pub struct Trainer {
    options: TrainerOptions,
    reader: LogReader,
    vocabulary: Arc<Vocabulary>,
    checkpoints: Checkpoints,
    journal: Journal,
    stream: CopyStream,
    /// A batch that was drawn but not trained on.
    drawn: Option<Batch>,
    learner: Learner,
    /// After the last step that was done.
    state: TrainerState,
    /// The checkpoint that it was opened with; `None`: there was none.
    resumed_from: Option<u64>,
    held_out: HeldOut,
    run_log: RunLog,
    metrics: Metrics,
    progress: Arc<TrainerProgress>,
    /// The sampler's window when `progress` was brought up to date.
    progress_window: Option<u64>,
    /// What of the log is needed.
    needs: LogNeeds,
    /// While there is something to train on.
    working: Option<Working>,
    /// Settings were changed since this was looked at.
    changed: bool,
}

#[derive(Serialize)]
struct EvaluationLine<'a> {
    step: u64,
    evaluation: &'a EvaluationReport,
}

/// What came of asking for a batch.
enum Drawn {
    Batch(Batch),
    /// There is something to attend to before: a stop, or other settings.
    Interrupted,
    End,
}

impl Trainer {
    /// Opens the state folder: training begins, or goes on after the newest checkpoint. `progress` is kept up to date
    /// while the trainer runs.
    ///
    /// # Errors
    /// When options contradict each other, the log or the state folder, or the state folder is damaged.
    pub fn open(
        mut options: TrainerOptions,
        reader: LogReader,
        progress: Arc<TrainerProgress>,
        registry: &Registry,
    ) -> Result<Self, TrainerError> {
        options.check()?;
        options.check_log(reader.identity())?;
        if matches!(options.train.schedule, Schedule::Trunk { lambda_floor, .. } if lambda_floor <= 0.0) {
            tracing::warn!("train.lambda_floor is 0: a teacher that is added later teaches nothing but gold labels");
        }
        let vocabulary = Arc::new(open_vocabulary(&options, &reader)?);
        vocabulary.warnings().iter().for_each(|warning| tracing::warn!("{warning}"));
        keep_tokenizers(&options, &vocabulary)?;
        let mut journal = Journal::open(&journal_path(&options.state_dir))?;
        let checkpoints = Checkpoints::open(&checkpoints_path(&options.state_dir))?;
        initial::prepare(&options, &vocabulary, reader.identity(), &journal, &checkpoints)?;
        let Resumed { mut learner, state, from_checkpoint } =
            resume::resume(&options, &vocabulary, &checkpoints, &journal, |_| true)?;
        options.on.iter().try_for_each(|on| learner.place(on))?;
        growth::note(&mut journal, &state, &vocabulary)?;
        journal.check_reaches(state.stream.windows_used(), reader.durable())?;
        changing::begin(&mut journal, state.step, &mut options)?;
        let metrics = Metrics::register(registry)?;
        metrics.step.set(i64::try_from(state.step).unwrap_or(i64::MAX));
        let run_log = open_run_log(&options, state.step, state.evaluated)?;
        run_log.evaluation().into_iter().for_each(|evaluation| metrics.observe_evaluation(evaluation));
        let mut needs = LogNeeds::new(progress.need.clone(), options.release_name());
        needs.has_checkpoints(&checkpoints, &journal)?;
        let mut trainer = Self {
            stream: resume::stream(&options, &vocabulary, &state.stream),
            drawn: None,
            held_out: HeldOut::new(options.evaluation.max_examples, &options.held_out_path()),
            run_log,
            options,
            reader,
            vocabulary,
            checkpoints,
            journal,
            resumed_from: from_checkpoint.then_some(state.step),
            learner,
            state,
            metrics,
            progress,
            progress_window: None,
            needs,
            working: None,
            changed: false,
        };
        trainer.update_progress(None)?;
        Ok(trainer)
    }

    /// Trains until all steps are done, nothing is left to train on, or `control` says stop; then a checkpoint is durable.
    ///
    /// # Errors
    /// When the log or the state folder cannot be read or written, or training diverges. What was durable stays so.
    pub fn run(
        &mut self,
        control: &StageControl,
        requests: &Receiver<Request>,
        events: &mut dyn FnMut(Event),
    ) -> Result<Outcome, TrainerError> {
        if self.resumed_from.is_some() {
            events(self.resumed());
        }
        let mut desk = Desk { control, requests, events };
        let outcome = self.train(&mut desk);
        self.progress.set_waiting_for(None);
        // A release may go on for long: what this training leaves idle others may use.
        self.working = None;
        outcome
    }

    fn resumed(&self) -> Event {
        Event::Resumed { step: self.state.step, evaluation: self.run_log.evaluation().cloned() }
    }

    fn train(&mut self, desk: &mut Desk<'_>) -> Result<Outcome, TrainerError> {
        loop {
            self.grow(desk)?;
            if !self.attend(desk)? {
                return self.end(desk, Outcome::Stopped { step: self.state.step });
            }
            self.take_up_settings();
            let step = self.state.step;
            if step > 0 && self.evaluation_due() && !self.evaluate(desk)? {
                continue;
            }
            if self.options.train.steps.is_some_and(|steps| step >= steps) {
                return self.finish(desk, Outcome::Finished);
            }
            if is_due(&self.options, &self.journal, step) {
                self.checkpoint(desk)?;
            }
            if self.options.train.until_step.is_some_and(|until| step >= until) {
                return self.end(desk, Outcome::Stopped { step });
            }
            let batch = match self.draw(desk)? {
                Drawn::Batch(batch) => batch,
                Drawn::Interrupted => continue,
                Drawn::End => return self.finish(desk, Outcome::Exhausted { step }),
            };
            // The first batch is drawn before the first evaluation: it says how much of the log there is to evaluate on.
            if step == 0 && self.evaluation_due() && !self.evaluate(desk)? {
                self.drawn = Some(batch);
                continue;
            }
            self.step(&batch, desk)?;
        }
    }

    /// Gives the student the tokens that the journal says it has from this step on, if it has fewer; and writes a checkpoint, so
    /// that the newest one has the vocabulary that is in the state folder.
    fn grow(&mut self, desk: &mut Desk<'_>) -> Result<(), TrainerError> {
        let size = growth::size_after(&self.journal, self.state.step).unwrap_or(0);
        if size <= self.state.vocabulary_size {
            return Ok(());
        }
        resume::grow(&self.options, &self.vocabulary, size, &mut self.learner, &mut self.state)?;
        tracing::info!(step = self.state.step, tokens = size, "the student has grown");
        self.checkpoint(desk).map(drop)
    }

    /// Takes training's share of the cores, until there is something to wait for.
    fn work(&mut self) {
        if self.working.is_none() {
            self.working = self.options.pool.as_ref().map(RolePool::work);
        }
    }

    // --- steps -----------------------------------------------------------------------------------------------------

    fn step(&mut self, batch: &Batch, desk: &mut Desk<'_>) -> Result<(), TrainerError> {
        let started = Instant::now();
        self.work();
        let (learner, step, options) = (&mut self.learner, self.state.step, &self.options.train);
        self.metrics.stage.in_flight.set(i64::try_from(batch.copies).unwrap_or(i64::MAX));
        let learned = self.options.compute(|| learner.step(step, batch, options))?;
        self.metrics.stage.in_flight.set(0);
        self.metrics.halved_batches.inc_by(self.learner.take_halvings());
        self.metrics.device_bytes.set(i64::try_from(self.learner.device_bytes()).unwrap_or(i64::MAX));
        let student = self.learner.student.configuration();
        let cost = Cost::of(batch, student, &self.options.teachers, &mut self.state.totals);
        let report = StepReport::new(step + 1, batch, &learned, cost, started.elapsed());
        match (learned.skipped, &self.progress.arrivals) {
            (Some(reason), _) => self.note_skip(reason, batch)?,
            (None, Some(arrivals)) => arrivals.learnt(&batch.sequences),
            (None, None) => {}
        }
        self.state.skipped_in_a_row = if report.skipped { self.state.skipped_in_a_row + 1 } else { 0 };
        self.state.step += 1;
        self.state.updates = self.learner.optimiser.updates;
        self.state.stream = self.stream.state().clone();
        self.state.totals.masked_positions += report.masked_positions;
        self.state.totals.skipped_steps += u64::from(report.skipped);
        self.run_log.append(&report)?;
        self.metrics.observe_step(&report);
        desk.report(Event::Step(report));
        if self.state.skipped_in_a_row >= SKIPS_MAX { self.roll_back(desk) } else { Ok(()) }
    }

    // --- the log ---------------------------------------------------------------------------------------------------

    /// The next batch; waits for the log to reach far enough.
    fn draw(&mut self, desk: &mut Desk<'_>) -> Result<Drawn, TrainerError> {
        if let Some(batch) = self.drawn.take() {
            return Ok(Drawn::Batch(batch));
        }
        let mut reported = None;
        loop {
            let seen = self.reader.durable();
            let inputs = self.options.inputs.get();
            self.needs.hold(&self.reader);
            let (started, window) = (Instant::now(), self.stream.sampler().window);
            let next = self.stream.next_batch(self.state.step, &self.reader, &mut self.journal)?;
            if self.stream.sampler().window > window {
                self.metrics.has_formed_window(started);
            }
            let short = match next {
                Next::Batch(batch) => {
                    self.update_progress(None)?;
                    return Ok(Drawn::Batch(batch));
                }
                Next::End => {
                    self.update_progress(None)?;
                    return Ok(Drawn::End);
                }
                Next::Short(short) => short,
            };
            self.update_progress(Some(&short.language))?;
            if reported.as_ref() != Some(&short.language) {
                tracing::debug!(language = short.language, from = %short.from, "waiting for records");
                desk.report(Event::Waiting { language: short.language.clone() });
                reported = Some(short.language.clone());
            }
            self.working = None;
            // Before each wait: while other languages stream in none of them lasts.
            loop {
                if !self.attend(desk)? || self.changed {
                    return Ok(Drawn::Interrupted);
                }
                self.progress.set_waiting_for(Some(&short.language)); // A pause is over, if there was one.
                pulse::waits_for(Wait::Input);
                if self.reader.wait_beyond(seen, ATTENTION) > seen || self.options.inputs.get() != inputs {
                    break;
                }
            }
        }
    }

    fn update_progress(&mut self, waiting_for: Option<&str>) -> Result<(), TrainerError> {
        let sampler = self.stream.sampler();
        // What is needed changes with the sampler, which moves from window to window.
        if waiting_for.is_some() || self.progress_window != Some(sampler.window) {
            let durable = self.reader.durable();
            let oldest = sampler.oldest_unread(&self.reader, durable)?;
            let unread = oldest.unwrap_or(durable.end());
            self.progress.needed_from.store(unread.0, Ordering::Relaxed);
            self.progress_window = Some(sampler.window);
            self.needs.has_read(unread, &self.journal);
        }
        self.needs.let_go();
        self.progress.set_waiting_for(waiting_for);
        Ok(())
    }

    // --- evaluation ------------------------------------------------------------------------------------------------

    fn evaluation_due(&self) -> bool {
        let (every, step) = (self.options.evaluation.every_steps, self.state.step);
        self.state.evaluated != Some(step) && (step == 0 || (every > 0 && step.is_multiple_of(every)))
    }

    /// Evaluates the student. Returns `false` if a stop was asked for before it was done.
    fn evaluate(&mut self, desk: &mut Desk<'_>) -> Result<bool, TrainerError> {
        let (step, started) = (self.state.step, Instant::now());
        tracing::debug!(step, "evaluation begins");
        // What training has seen of the log, so that the records do not depend on how fast the log grows.
        let place = if step == 0 { self.stream.state() } else { &self.state.stream };
        let window = place.windows_used().checked_sub(1);
        let up_to = window.and_then(|window| self.journal.window(window)).unwrap_or_default();
        self.needs.hold(&self.reader);
        self.held_out.extend(&self.reader, up_to)?;
        self.needs.let_go();
        self.work();
        let mut evaluator = Evaluator {
            student: &mut self.learner,
            maps: self.vocabulary.maps(),
            options: &self.options,
            tail_samples: self.reader.identity().tail_samples(),
        };
        let (control, requests) = (desk.control, desk.requests);
        let mut later = Vec::new();
        let mut proceed = || {
            // A release begins with what is durable: it need not wait for an evaluation, however long that takes.
            requests.try_iter().for_each(|request| match request {
                Request::Branch { folder, reply } => {
                    begin_release(&folder, &reply, &self.options, &self.checkpoints, &self.journal);
                }
                Request::Checkpoint { .. } | Request::Export { .. } | Request::Change { .. } => later.push(request),
            });
            pulse::beat();
            !control.stopping()
        };
        let report = evaluator.evaluate(step, &self.held_out, up_to, &mut proceed)?;
        later.into_iter().try_for_each(|request| self.answer(request, desk))?;
        let Some(report) = report else { return Ok(false) };
        self.state.evaluated = Some(step);
        self.run_log.append(&EvaluationLine { step, evaluation: &report })?;
        self.run_log.has_evaluated(&report);
        self.metrics.has_evaluated(&report, started);
        desk.report(Event::Evaluation(report));
        Ok(true)
    }

    // --- checkpoints, requests, the end ----------------------------------------------------------------------------

    fn checkpoint(&mut self, desk: &mut Desk<'_>) -> Result<PathBuf, TrainerError> {
        let (step, started) = (self.state.step, Instant::now());
        tracing::debug!(step, "checkpoint begins");
        self.run_log.sync()?;
        self.learner.settle()?;
        let path = self.checkpoints.write(&self.learner.student, &self.learner.optimiser, &self.state)?;
        self.metrics.has_checkpoint(&path, started);
        // Those that training would go back to are kept, however many were asked for since.
        let (keep, last_good) =
            (self.options.train.keep_checkpoints.max(1), step - u64::from(self.state.skipped_in_a_row));
        let mut targets = self.checkpoints.steps()?;
        targets.retain(|step| *step <= last_good && is_target(&self.options, &self.journal, *step));
        let targets = &targets[targets.len().saturating_sub(keep)..];
        let resumed_from = self.resumed_from.filter(|step| targets.last().is_none_or(|target| target < step));
        let is_needed = |step| targets.contains(&step) || is_branch(&self.options, step) || resumed_from == Some(step);
        self.checkpoints.prune(keep, is_needed)?;
        self.needs.has_checkpoints(&self.checkpoints, &self.journal)?;
        desk.report(Event::Checkpoint { step, path: path.clone() });
        Ok(path)
    }

    /// Answers requests, waits while training is paused. Returns `false` if it is to stop.
    ///
    /// # Errors
    /// Those of a request after which training cannot go on.
    fn attend(&mut self, desk: &mut Desk<'_>) -> Result<bool, TrainerError> {
        loop {
            while let Ok(request) = desk.requests.try_recv() {
                self.answer(request, desk)?;
            }
            if desk.control.stopping() {
                return Ok(false);
            }
            if !desk.control.paused() {
                return Ok(true);
            }
            self.working = None;
            // However little there was to read: who is paused reads nothing, and what comes meanwhile is a backlog.
            self.progress.set_waiting_for(None);
            pulse::waits_for(Wait::Pause);
            let _ = desk.control.wait(ATTENTION); // Whether to stop is asked above.
        }
    }

    fn answer(&mut self, request: Request, desk: &mut Desk<'_>) -> Result<(), TrainerError> {
        match request {
            Request::Checkpoint { reply } => drop(send(&reply, self.checkpoint(desk))),
            Request::Export { out, languages, reply } => {
                let tokenizers = tokenizers_path(&self.options.state_dir);
                let bert = self.learner.settle().and_then(|()| self.learner.student.to_bert());
                let step = self.state.step;
                let evaluation = self.run_log.evaluation();
                let exported =
                    bert.and_then(|bert| export::export(&out, &bert, &tokenizers, step, evaluation, &languages));
                drop(send(&reply, exported.map(|exported| exported.path)));
            }
            Request::Change { settings, evaluation, ticket, reply } => {
                return self.answer_change(&settings, evaluation, &ticket, &reply);
            }
            Request::Branch { folder, reply } => {
                begin_release(&folder, &reply, &self.options, &self.checkpoints, &self.journal);
            }
        }
        Ok(())
    }

    /// The last evaluation, then the last checkpoint.
    fn finish(&mut self, desk: &mut Desk<'_>, outcome: Outcome) -> Result<Outcome, TrainerError> {
        let step = self.state.step;
        let done = self.state.evaluated == Some(step) || self.evaluate(desk)?;
        self.end(desk, if done { outcome } else { Outcome::Stopped { step } })
    }

    fn end(&mut self, desk: &mut Desk<'_>, outcome: Outcome) -> Result<Outcome, TrainerError> {
        self.checkpoint(desk)?;
        Ok(outcome)
    }
}

/// Those whom the trainer talks to.
struct Desk<'a> {
    control: &'a StageControl,
    requests: &'a Receiver<Request>,
    events: &'a mut dyn FnMut(Event),
}

impl Desk<'_> {
    fn report(&mut self, event: Event) {
        (self.events)(event);
    }
}

/// Makes the state folder of a release. If nobody waits for it any more, it is removed again.
fn begin_release(
    folder: &Path,
    reply: &Sender<Result<BranchPoint, String>>,
    options: &TrainerOptions,
    checkpoints: &Checkpoints,
    journal: &Journal,
) {
    let answered = send(reply, branch(folder, options, checkpoints, journal));
    if answered.is_err() && folder.exists() {
        tracing::warn!(folder = %folder.display(), "nobody waits for a release any more; its beginning is removed");
        // Best effort: what is left is removed at the next start.
        let _ = fs::remove_dir_all(folder);
    }
}

/// Whoever asked has stopped waiting.
struct NobodyWaits;

/// Answers a request.
fn send<T>(reply: &Sender<Result<T, String>>, answer: Result<T, TrainerError>) -> Result<(), NobodyWaits> {
    if let Err(error) = &answer {
        tracing::error!(%error, "a request failed");
    }
    reply.send(answer.map_err(|error| error.to_string())).map_err(|_| NobodyWaits)
}
