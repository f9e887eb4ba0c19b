//! What passes between a running trainer and whoever runs it: reports, requests, and how it ended.

use crate::batch::Batch;
use crate::evaluate::EvaluationReport;
use crate::flops::Cost;
use crate::learner::Learned;
use crate::options::EvaluationOptions;
use crate::release::ReleaseStatus;
use crate::schedule::Rates;
use crate::settings::Settings;
use crossbeam::channel::Sender;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;
use store::log::Need;
use store::{Arrivals, SequenceNumber};

/// What others may know of training while it runs: for backpressure ([`Self::backlog_from`]) and retention.
#[derive(Debug, Default)]
pub struct TrainerProgress {
    /// The oldest record that is still to be read for the first time; the log's end, if there is none.
    pub needed_from: AtomicU64,
    /// The language for whose records training waits.
    waiting_for: Mutex<Option<String>>,
    /// From where on training needs the log; retention leaves it.
    pub need: Need,
    /// When the documents of records arrived; `None`: nobody knows.
    pub arrivals: Option<Arrivals>,
    /// Whether training has ended although the run goes on: then what its release still has to read counts.
    ended: AtomicBool,
    /// That of the release beside it, as long as that lives.
    release: Mutex<Weak<TrainerProgress>>,
}

impl TrainerProgress {
    /// Whose first gradients are told to `arrivals`.
    #[must_use]
    pub fn with_arrivals(arrivals: Option<Arrivals>) -> Self {
        Self { arrivals, ..Self::default() }
    }

    /// With this need of the log.
    pub(crate) fn with_need(need: Need) -> Self {
        Self { need, ..Self::default() }
    }

    /// Where the backlog of the log begins: with the oldest record that training, or once it has ended the release that goes on
    /// beside it, has not read. `None`: nothing is a backlog, because whoever reads waits for more of a language that `comes`, or
    /// nobody reads any more. To let others pile up does not help who waits for what does not come.
    #[must_use]
    pub fn backlog_from(&self, comes: &dyn Fn(&str) -> bool) -> Option<SequenceNumber> {
        if self.ended.load(Ordering::Relaxed) {
            let release = self.release.lock().unwrap_or_else(PoisonError::into_inner).upgrade();
            return release.and_then(|release| release.backlog_from(comes));
        }
        let waits = self.waiting_for().is_some_and(|language| comes(&language));
        (!waits).then(|| SequenceNumber(self.needed_from.load(Ordering::Relaxed)))
    }

    /// The language for whose records training waits; `None`: it does not wait, or is paused.
    #[must_use]
    pub fn waiting_for(&self) -> Option<String> {
        self.waiting_for.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn set_waiting_for(&self, language: Option<&str>) {
        *self.waiting_for.lock().unwrap_or_else(PoisonError::into_inner) = language.map(str::to_owned);
    }

    /// Training has ended although the run goes on.
    pub(crate) fn has_ended(&self) {
        self.ended.store(true, Ordering::Relaxed);
    }

    /// A release trains beside this training, until its progress is dropped.
    pub(crate) fn set_release(&self, release: &Arc<Self>) {
        *self.release.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(release);
    }
}

/// What can be asked of a running trainer.
#[derive(Debug)]
pub enum Request {
    /// Write a checkpoint; the answer is its folder.
    Checkpoint {
        /// Where the answer goes.
        reply: Sender<Result<PathBuf, String>>,
    },
    /// Write the student as it is now as a Hugging Face folder; the answer is that folder.
    Export {
        /// The folder.
        out: PathBuf,
        /// The student is cut to these languages; empty: it is not.
        languages: Vec<String>,
        /// Where the answer goes.
        reply: Sender<Result<PathBuf, String>>,
    },
    /// Go on under other settings from the next step on; the answer is how many steps are done before that. Refused, with nothing
    /// changed, if they differ in what needs a restart ([`Settings::can_become`]).
    Change {
        /// All settings as they are to be.
        settings: Box<Settings>,
        /// How the student is to be evaluated.
        evaluation: EvaluationOptions,
        /// Withdrawn, it is not carried out.
        ticket: Ticket,
        /// Where the answer goes.
        reply: Sender<Result<u64, String>>,
    },
    /// Begin the state folder of a release, from the newest checkpoint: that checkpoint, and what the journal says of it. Nothing
    /// of the trunk changes. If nobody takes the answer (a channel without capacity tells), the folder is removed again.
    Branch {
        /// The folder, which is not there yet.
        folder: PathBuf,
        /// Where the answer goes.
        reply: Sender<Result<BranchPoint, String>>,
    },
}

/// With a request: it is either carried out or withdrawn, never both. Cloning shares it.
#[derive(Clone, Debug, Default)]
pub struct Ticket(Arc<AtomicBool>);

impl Ticket {
    /// Carries the request out from now on. `false`: it was withdrawn.
    #[must_use]
    pub fn take(&self) -> bool {
        self.is_first()
    }

    /// Withdraws the request. `false`: it is being carried out, or was.
    #[must_use]
    pub fn withdraw(&self) -> bool {
        self.is_first()
    }

    fn is_first(&self) -> bool {
        !self.0.swap(true, Ordering::AcqRel)
    }
}

/// Where a release branches from the trunk.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BranchPoint {
    /// Steps that are done there.
    pub step: u64,
    /// The rates of the trunk's next step.
    pub rates: Rates,
}

/// What a trainer reports.
#[derive(Clone, Debug)]
pub enum Event {
    /// A step is done.
    Step(StepReport),
    /// The student was evaluated.
    Evaluation(EvaluationReport),
    /// A checkpoint is durable.
    Checkpoint {
        /// Steps done.
        step: u64,
        /// Its folder.
        path: PathBuf,
    },
    /// Training waits for the log to grow.
    Waiting {
        /// The language whose records are missing.
        language: String,
    },
    /// A release began, was evaluated, or ended.
    Release(ReleaseStatus),
    /// Training goes on from a checkpoint.
    Resumed {
        /// Steps done.
        step: u64,
        /// The last evaluation up to there.
        evaluation: Option<EvaluationReport>,
    },
}

/// How training ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All steps are done.
    Finished,
    /// It was told to stop, or has reached the step at which it was to stop.
    Stopped {
        /// Steps done.
        step: u64,
    },
    /// There was nothing left to train on.
    Exhausted {
        /// Steps done.
        step: u64,
    },
}

/// One step. Means are over the batch's masked positions, in nats.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StepReport {
    /// Steps done, this one included.
    pub step: u64,
    /// What is minimised.
    pub loss: f64,
    /// Mean distillation loss of the positions that a teacher labelled.
    pub kd: f64,
    /// Mean loss of the gold labels.
    pub mlm: f64,
    /// Share of gold labels that the student predicts.
    pub top1: f64,
    /// Learning rate.
    pub learning_rate: f64,
    /// Weight of distillation.
    pub lambda: f64,
    /// Norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Whether loss or gradient was not finite, so that the weights are as before.
    pub skipped: bool,
    /// Copies in the batch.
    pub copies: u64,
    /// Their tokens.
    pub tokens: u64,
    /// Their masked positions.
    pub masked_positions: u64,
    /// Copies by language.
    pub languages: BTreeMap<Arc<str>, usize>,
    /// Time that the step took, waiting for records not included.
    pub seconds: f64,
    /// What it has cost, and all steps so far.
    #[serde(flatten)]
    pub cost: Cost,
}

impl StepReport {
    pub(crate) fn new(step: u64, batch: &Batch, learned: &Learned, cost: Cost, elapsed: Duration) -> Self {
        let sums = &learned.sums;
        Self {
            step,
            loss: sums.loss,
            kd: sums.mean_kd(),
            mlm: sums.mean_mlm(),
            top1: sums.correct as f64 / sums.positions.max(1) as f64,
            learning_rate: learned.learning_rate,
            lambda: learned.lambda,
            grad_norm: learned.gradient_norm,
            skipped: learned.skipped.is_some(),
            copies: batch.copies as u64,
            tokens: batch.tokens as u64,
            masked_positions: batch.masked_positions as u64,
            languages: batch.languages.clone(),
            seconds: elapsed.as_secs_f64(),
            cost,
        }
    }
}
