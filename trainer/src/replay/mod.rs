//! One training step done again, to see what each example contributed to it: what was that spike?
//!
//! Log, journal and seed determine every step, so a step that was made once can be made again: from the newest checkpoint before it
//! the steps in between are trained as they were, by the same code, and then the step itself is computed twice. Once as it was, for
//! its loss and its gradient g; and once copy by copy, each with the weight that its positions had in the batch and with the dropout
//! masks that it had there. So the copies' losses add up to the step's, and their gradients g_i to g: the projections g_i·g/|g| add up to |g|.
//! What `metrics.jsonl` says of the step, and of those before it, is compared with what was computed, to the last bit.
//!
//! Nothing is written and no lock is taken: a run may be going on beside it. What that removes meanwhile (old checkpoints, old segments of the
//! log) a replay may miss; then it says which steps can still be replayed. Besides the log it needs of the run's state folder the journal,
//! a checkpoint (or none: the first weights follow from the seed), `vocab/` and, to compare, `metrics.jsonl`; it needs no teacher.
//!
//! Going back to a checkpoint because steps were not finite begins another *attempt*. A step is that of the last attempt that made it; an earlier one,
//! with the steps that were skipped in it, can be asked for by its number, from 1.

mod account;
mod course;
mod recorded;
mod report;
mod runner;
mod text;

pub use report::{
    Comparison, CopyAccount, Culprit, Difference, Figures, Guess, Neighbours, ParameterGroup, Part, Plan,
    PositionAccount, StepAccount,
};

use crate::TrainerError;
use crate::options::TrainerOptions;
use crate::release;
use crate::state_folder::{metrics_path, vocabulary_path};
use crate::vocabulary::Vocabulary;
use course::{Beginning, Course};
use recorded::{Recorded, last_step};
use runner::Runner;
use std::collections::BTreeMap;
use std::sync::Arc;
use store::{LogReader, StoreError};

/// Which step is to be replayed.
#[derive(Clone, Debug, Default)]
pub struct ReplayOptions {
    /// The step, counted from 1, as in `metrics.jsonl`.
    pub step: u64,
    /// The release that made it; `None`: the run.
    pub release: Option<String>,
    /// The attempt in which it was made; `None`: the last one.
    pub attempt: Option<u64>,
    /// By name of a teacher: whether it labels. Of one that is not there the log says so.
    pub labels: BTreeMap<String, bool>,
}

/// A step that can be replayed, as far as can be told without doing it.
pub struct Replay<'a> {
    log: &'a LogReader,
    vocabulary: Arc<Vocabulary>,
    labels: Vec<bool>,
    course: Course,
    /// The run that the release branches from, if it has to be gone through first.
    trunk: Option<Course>,
    beginning: Beginning,
    recorded: Recorded,
    plan: Plan,
}

impl<'a> Replay<'a> {
    /// Looks at a state folder. Of `options`, which are the run's, teachers and inputs are not looked at; settings that the
    /// journal has count more.
    ///
    /// # Errors
    /// [`TrainerError::Unreplayable`] when the step was not made, or what it needs is gone; failures to read, and what is damaged.
    pub fn open(options: &TrainerOptions, log: &'a LogReader, wanted: &ReplayOptions) -> Result<Self, TrainerError> {
        options.check()?;
        let run = match &wanted.release {
            Some(name) => release::options_of(options, name)?,
            None => options.clone(),
        };
        // In this order: what is recorded of a step is younger than what the journal and the log have of it.
        let metrics = metrics_path(&run.state_dir);
        let last = last_step(&metrics)?;
        let course = Course::open(run, wanted.attempt)?;
        log.refresh()?;
        let vocabulary = Arc::new(Vocabulary::load(&vocabulary_path(&options.state_dir))?);
        check_teachers(&vocabulary, log)?;
        course.check_done(wanted.step, last)?;
        let (trunk, beginning) = find_beginning(&course, options, wanted.step)?;
        let recorded = Recorded::read(&metrics, beginning.step() + 1, wanted.step, course.shared_until)?;
        let steps = wanted.step - beginning.step();
        let replayable = replayable(&course, options, log, last)?;
        let plan = Plan {
            step: wanted.step,
            release: wanted.release.clone(),
            attempt: course.attempt,
            attempts: course.attempts,
            checkpoint: beginning.checkpoint(),
            steps,
            seconds: recorded.seconds(beginning.step() + 1..=wanted.step),
            replayable,
        };
        let labels = labels(&vocabulary, log, wanted);
        Ok(Self { log, vocabulary, labels, course, trunk, beginning, recorded, plan })
    }

    /// Where it begins, and how much is to be done.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Replays the step. `progress` is told after each step how many are done.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn run(self, progress: &mut dyn FnMut(u64)) -> Result<StepAccount, TrainerError> {
        let (step, replayable) = (self.plan.step, self.plan.replayable);
        self.work(progress).map_err(|error| match error {
            TrainerError::Store(StoreError::Removed { sequence, begin }) => TrainerError::Unreplayable {
                step,
                reason: format!(
                    "it needs entry {sequence} of the log, which retention has removed: the log begins with entry {begin}; {}",
                    describe(replayable)
                ),
            },
            other => other,
        })
    }

    fn work(self, progress: &mut dyn FnMut(u64)) -> Result<StepAccount, TrainerError> {
        let Self { log, vocabulary, labels, course, trunk, beginning, recorded, plan } = self;
        let first = beginning.step();
        let (start, release) = match trunk {
            Some(trunk) => (trunk, Some(course)),
            None => (course, None),
        };
        let mut runner = Runner::begin(start, &beginning, log, vocabulary, labels)?;
        if let Some(release) = release {
            while runner.step() < release.options.first_step() {
                runner.train()?;
                progress(runner.step() - first);
            }
            runner = runner.enter(release);
        }
        let mut differs_from = None;
        while runner.step() + 1 < plan.step {
            let figures = runner.train()?;
            if differs_from.is_none() && recorded.differs(runner.step(), &figures) {
                differs_from = Some(runner.step());
            }
            progress(runner.step() - first);
        }
        let account = account::account(&mut runner)?;
        let checkpoint_agrees = runner.checkpoint_agrees(plan.step)?;
        progress(plan.steps);
        let skipped_in_attempts = runner.skipped_in_attempts(plan.step);
        Ok(StepAccount {
            comparison: recorded.compare(plan.step, &account.figures, differs_from, checkpoint_agrees),
            neighbours: recorded.neighbours(plan.step, &account.figures),
            skipped_in_attempts,
            plan,
            figures: account.figures,
            culprit: account.culprit,
            weights_finite: account.weights_finite,
            alignment: account.alignment,
            parameters: account.parameters,
            sources: account.sources,
            teachers: account.teachers,
            languages: account.languages,
            examples: account.examples,
            positions: account.positions,
        })
    }
}

/// Where to begin: in the course itself, or where that is a release without such a checkpoint, in the run that it branches from,
/// whose course is returned then.
fn find_beginning(
    course: &Course,
    run: &TrainerOptions,
    step: u64,
) -> Result<(Option<Course>, Beginning), TrainerError> {
    if let Some(beginning) = course.beginning(step - 1)? {
        return Ok((None, beginning));
    }
    let trunk = Course::before(course, run)?;
    match trunk.beginning(course.options.first_step())? {
        Some(beginning) => Ok((Some(trunk), beginning)),
        None => Err(TrainerError::NoCheckpoint { path: course.options.state_dir.clone() }),
    }
}

/// The first and the last step that can be replayed; `None`: none can.
fn replayable(
    course: &Course,
    run: &TrainerOptions,
    log: &LogReader,
    last: Option<u64>,
) -> Result<Option<(u64, u64)>, TrainerError> {
    let mut first = course.first_replayable(log)?;
    if course.options.trunk.is_some() {
        let branch = course.options.first_step();
        // Its windows from the branch on have to be there too.
        let from_trunk = Course::before(course, run)?.first_replayable(log)?.is_some_and(|first| first <= branch + 1);
        if from_trunk && course.can_form_all(log) {
            first = Some(branch + 1);
        }
    }
    let last = last.unwrap_or(u64::MAX);
    Ok(first.filter(|first| *first <= last).map(|first| (first, last)))
}

fn describe(replayable: Option<(u64, u64)>) -> String {
    match replayable {
        Some((first, u64::MAX)) => format!("steps from {first} on can be replayed"),
        Some((first, last)) => format!("steps {first} to {last} can be replayed"),
        None => "no step can be replayed".to_owned(),
    }
}

/// Copies are mapped by the teachers' places in the log's table.
fn check_teachers(vocabulary: &Vocabulary, log: &LogReader) -> Result<(), TrainerError> {
    for (index, logged) in log.identity().teachers.iter().enumerate() {
        let known = vocabulary.maps().get(index);
        if known.is_none_or(|map| map.teacher != logged.name || map.fingerprint != logged.tokenizer_fingerprint) {
            return Err(TrainerError::Configuration(format!(
                "teacher {} of the log, `{}`, is not that of the vocabulary in the state folder: the log belongs to another run",
                index + 1,
                logged.name
            )));
        }
    }
    Ok(())
}

/// By index into the teacher table: whether the teacher labels.
fn labels(vocabulary: &Vocabulary, log: &LogReader, wanted: &ReplayOptions) -> Vec<bool> {
    let logged = |name: &str| log.identity().teachers.iter().find(|teacher| teacher.name == name);
    let labels = |name: &str| {
        let said = wanted.labels.get(name).copied();
        said.or(logged(name).map(|teacher| teacher.labels)).unwrap_or(true)
    };
    vocabulary.maps().iter().map(|map| labels(&map.teacher)).collect()
}
