//! The measurement: the pipeline of `run`, for a few seconds, in a temporary folder.

use super::figures::{CorpusFigures, Figures, LabelFigures, LogFigures, MemoryFigures, TeacherFigures, TrainFigures};
use super::measuring::{Changes, Drought, Measured, wait};
use super::sizes::Sizes;
use crate::commands::bench::peak_rss_mib;
use crate::commands::temporary_folder::TemporaryFolder;
use crate::configuration::{Configuration, Corpus, CorpusOrigin, LabelledBy};
use crate::failure::{ExitCode, Failure};
use crate::inputs::Inputs;
use crate::live::Effective;
use crate::pipeline::{Pipeline, Setup};
use crate::state_folder::StateFolder;
use crate::threads::Pools;
use prometheus::Registry;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use store::{LogReader, LogStat, Payload, SequenceNumber};

/// Records of the sample that are looked at, at most.
const RECORDS_MAX: u64 = 20_000;
/// A stream may bring nothing for so many times as long as labelling is measured.
const PATIENCE: u32 = 10;
/// Never reached in a measurement.
const NEVER: u64 = 1 << 40;

/// Runs what `configuration` asks for, each kind of work for about `seconds`, and measures.
pub(super) fn measure(configuration: &Configuration, sizes: Sizes, seconds: f64) -> Result<Figures, Failure> {
    let folder = TemporaryFolder::create(&std::env::temp_dir())?;
    let mut sampled = sampled(configuration, folder.path())?;
    sizes.apply(&mut sampled);
    let mut inputs = Inputs::open(&sampled)?;
    let state = Arc::new(StateFolder::open(&sampled.run.state_dir)?);
    let identity = crate::refusals::compare(&sampled, &mut inputs)?;
    state.note_start(&identity.unwrap_or_default())?;
    let without_models = resident_bytes();
    let runners = crate::pipeline::load_runners(&sampled, &inputs.teachers)?;
    let teacher_bytes = resident_bytes().saturating_sub(without_models);
    let registry = Registry::new();
    let on = crate::run::open_student_devices(&sampled)?;
    let pools = Pools::open(sampled.threads)?;
    let setup = Setup {
        configuration: &sampled,
        effective: &Effective::new(sampled.clone()),
        inputs: &inputs,
        state: &state,
        runners,
        registry: &registry,
        inbox_registry: &registry,
        inboxes: None,
        pools,
        until_step: None,
        on,
        follower: None,
        required: SequenceNumber(0),
    };
    let mut pipeline = Pipeline::open(setup)?;
    let status = pipeline.ingest.clone();
    let phases = Phases { seconds: Duration::from_secs_f64(seconds), sampled: &sampled, registry: &registry };
    let (label, train) = phases.run(&mut pipeline)?;
    pipeline.inboxes.close();
    pipeline.join();

    let stat = store::stat(&sampled.store.path)?;
    let tallies = tally(&sampled.store.path, &inputs)?;
    let status = status.map(|status| serde_json::to_value(&*status)).transpose();
    let status = status.map_err(|error| Failure::new(ExitCode::Software, error))?;
    let log = log_figures(&stat);
    let batch = configuration.train.batch_examples;
    let train = train.map(|train| train.scaled(batch, sizes.batch_examples, log.tokens_per_copy));
    Ok(Figures {
        corpora: status.map(|status| corpora(&status, configuration, &tallies)).unwrap_or_default(),
        label,
        log,
        memory: MemoryFigures {
            peak_rss_bytes: peak_rss_mib().map(|mib| mib << 20),
            teacher_bytes,
            sampled_window_examples: sampled.train.shuffle_examples,
        },
        checkpoint_bytes: newest_checkpoint_bytes(&sampled.run.state_dir),
        train,
        sizes,
    })
}

/// The configuration of the measurement: the same work, but nothing that waits for much text, and nothing that reads what can be
/// read only once.
fn sampled(configuration: &Configuration, folder: &Path) -> Result<Configuration, Failure> {
    let mut sampled = configuration.clone();
    // What this machine does is measured; the run's streams are not touched.
    sampled.cluster = None;
    sampled.teacher.iter_mut().for_each(|teacher| teacher.labelled_by = LabelledBy::Daemon);
    sampled.run.state_dir = folder.join("state");
    let read_once =
        |origin: CorpusOrigin<'_>| matches!(origin, CorpusOrigin::Http | CorpusOrigin::Stdin | CorpusOrigin::Pipe(_));
    sampled.corpus.retain(|corpus| !read_once(corpus.origin()));
    if !configuration.corpus.is_empty() {
        if sampled.corpus.is_empty() {
            let message = "there is no [[corpus]] whose text is there to measure with; give one with `path` to a sample of what will come";
            return Err(Failure::new(ExitCode::Configuration, message));
        }
        sampled.store.path = sampled.run.state_dir.join("log");
    }
    for corpus in &mut sampled.corpus {
        if has_end(corpus) {
            corpus.rounds = Some(u32::MAX); // It must not end before the measurement does.
        }
    }
    (sampled.store.retain_bytes, sampled.store.retain_hours) = (0, 0.0);
    sampled.evaluate.files.clear();
    (sampled.evaluate.holdout_fraction, sampled.evaluate.every_steps) = (0.0, NEVER);
    let train = &mut sampled.train;
    train.when_short = "replay";
    train.max_passes = 0;
    train.steps = train.steps.map(|_| NEVER);
    train.checkpoint_every_steps = NEVER;
    Ok(sampled)
}

/// Whether it is a list of files.
pub(super) fn has_end(corpus: &Corpus) -> bool {
    matches!(corpus.origin(), CorpusOrigin::Files(_))
}

/// The work, one kind after another: labelling, both, training.
struct Phases<'a> {
    seconds: Duration,
    sampled: &'a Configuration,
    registry: &'a Registry,
}

impl Phases<'_> {
    fn run(&self, pipeline: &mut Pipeline) -> Result<(Option<LabelFigures>, Option<TrainFigures>), Failure> {
        let labels = pipeline.teachers.iter().any(|teacher| teacher.watch.is_some());
        let trains = self.sampled.student.is_some();
        pipeline.controls.trainer.set_paused(true);
        let mut running = pipeline.start()?;
        let mut labelling = Changes::new(self.registry, "mergedistill_teacher_tokens_total");
        let (alone, busy) = self.label_alone(pipeline, &mut labelling, labels, trains)?;
        let mut train = None;
        let mut label_both = None;
        if trains {
            pipeline.controls.trainer.set_paused(false);
            labelling.restart();
            let both = self.train(pipeline, &mut labelling)?;
            label_both = labelling.rate();
            pipeline.controls.ingest.set_paused(true);
            pipeline.controls.teacher.set_paused(true);
            let alone = if labels { self.train(pipeline, &mut labelling)? } else { both };
            train = Some(TrainFigures::of(both, alone));
        }
        pipeline.controls.stop();
        let limit = Instant::now() + Duration::from_secs(self.sampled.run.stop_limit_seconds);
        while running > 0 {
            let end = pipeline.ends.recv_deadline(limit).map_err(|_| {
                Failure::new(ExitCode::TemporaryFailure, "the measurement did not stop in time; try again")
            })?;
            running -= 1;
            end.result?;
        }
        let label = alone.map(|tokens_per_second| LabelFigures {
            tokens_per_second_alone: tokens_per_second,
            tokens_per_second_beside_training: label_both.unwrap_or(tokens_per_second),
            teachers: busy,
        });
        Ok((label, train))
    }

    /// Labels for a while, and until there is enough to train on.
    fn label_alone(
        &self,
        pipeline: &Pipeline,
        labelling: &mut Changes,
        labels: bool,
        trains: bool,
    ) -> Result<(Option<f64>, BTreeMap<String, TeacherFigures>), Failure> {
        if pipeline.ingest.is_none() {
            return Ok((None, BTreeMap::new()));
        }
        let start = Instant::now();
        let wanted = if trains { self.sampled.train.shuffle_examples as u64 } else { 1 };
        let mut drought = Drought::after(self.patience());
        let mut is_enough = false;
        wait(pipeline, |_| {
            let is_measured = !labels || labelling.look() >= 3;
            let end = pipeline.log.durable().end().0;
            is_enough = start.elapsed() >= self.seconds && is_measured && end >= wanted;
            is_enough || drought.has_begun(pipeline)
        })?;
        if !is_enough {
            return Err(drought.failure());
        }
        let elapsed = start.elapsed().as_secs_f64();
        let teachers = super::measuring::teachers(self.registry, elapsed);
        Ok((labelling.rate().filter(|_| labels), teachers))
    }

    /// How long a stream may bring nothing: until its files are complete, and were looked through.
    fn patience(&self) -> Duration {
        let settle = self.sampled.corpus.iter().filter_map(|corpus| corpus.settle_seconds).fold(0.0, f64::max);
        Duration::from_secs_f64(settle) + self.seconds * PATIENCE
    }

    /// Trains for a while. The first step allocates, or still has the other work beside it, and does not count.
    fn train(&self, pipeline: &Pipeline, labelling: &mut Changes) -> Result<Measured, Failure> {
        let mut steps = Vec::new();
        let mut start = None;
        wait(pipeline, |reports| {
            labelling.look();
            for report in reports {
                if start.is_none() {
                    start = Some(Instant::now());
                } else {
                    steps.push(report);
                }
            }
            steps.len() >= 2 && start.is_some_and(|start| start.elapsed() >= self.seconds)
        })?;
        Ok(Measured::of(&steps))
    }
}

/// What the records of one corpus come to.
#[derive(Default)]
struct Tally {
    records: u64,
    copies: u64,
    /// By teacher.
    tokens: BTreeMap<String, u64>,
}

fn tally(log: &Path, inputs: &Inputs) -> Result<BTreeMap<String, Tally>, Failure> {
    let log = LogReader::open(log)?;
    let mut tallies: BTreeMap<String, Tally> = BTreeMap::new();
    let mut sequence = log.begin();
    let end = log.durable().end().min(SequenceNumber(sequence.0 + RECORDS_MAX));
    while sequence < end {
        let entry = log.entry(sequence)?;
        if let Payload::Record(record) = &entry.payload {
            let tally = tallies.entry(record.source.to_string()).or_default();
            tally.records += 1;
            tally.copies += record.copies.len() as u64;
            for copy in &record.copies {
                let name = &inputs.teachers[usize::from(copy.teacher)].section.name;
                *tally.tokens.entry(name.clone()).or_default() += copy.token_ids.len() as u64;
            }
        }
        sequence = sequence.next();
    }
    Ok(tallies)
}

/// Characters of a corpus are those that ingestion counted; what a character comes to in tokens and copies is that of the records of the
/// sample, whose characters are known on average.
fn corpora(
    status: &serde_json::Value,
    configuration: &Configuration,
    tallies: &BTreeMap<String, Tally>,
) -> Vec<CorpusFigures> {
    let listed = status["corpora"].as_array().map(Vec::as_slice).unwrap_or_default();
    let figures = listed.iter().map(|corpus| {
        let number = |key: &str| corpus[key].as_f64().unwrap_or_default();
        let source = corpus["name"].as_str().unwrap_or_default();
        let section = configuration.corpus.iter().find(|section| {
            source == section.name || source.strip_prefix(&section.name).is_some_and(|rest| rest.starts_with(':'))
        });
        let per_example = number("characters_consumed") / number("examples").max(1.0);
        let tally = tallies.get(source).filter(|_| per_example > 0.0);
        let per_character = |count: u64, tally: &Tally| count as f64 / tally.records.max(1) as f64 / per_example;
        CorpusFigures {
            name: source.to_owned(),
            language: corpus["language"].as_str().unwrap_or_default().to_owned(),
            files_bytes: section.map_or(0, |section| files_bytes(&section.path)),
            characters: number("characters_available") as u64,
            rounds: section.filter(|section| has_end(section)).map(|section| section.rounds.unwrap_or(1)),
            sampled_records: tally.map_or(0, |tally| tally.records),
            examples_per_character: tally.map(|tally| per_character(tally.records, tally)),
            copies_per_character: tally.map(|tally| per_character(tally.copies, tally)),
            tokens_per_character: tally.map(|tally| {
                tally.tokens.iter().map(|(name, tokens)| (name.clone(), per_character(*tokens, tally))).collect()
            }),
        }
    });
    figures.collect()
}

fn files_bytes(patterns: &[String]) -> u64 {
    let files = patterns.iter().filter_map(|pattern| ingest::expand(Path::new(pattern)).ok()).flatten();
    files.filter_map(|file| file.metadata().ok()).map(|metadata| metadata.len()).sum()
}

fn log_figures(stat: &LogStat) -> LogFigures {
    let per = |value: u64, of: u64| value as f64 / of.max(1) as f64;
    LogFigures {
        bytes: stat.bytes,
        sampled_tokens: stat.corpus_tokens,
        bytes_per_token: per(stat.bytes, stat.corpus_tokens),
        tokens_per_copy: per(stat.corpus_tokens, stat.copies),
        masked_positions_per_token: per(stat.masked_positions, stat.corpus_tokens),
        copies_per_record: per(stat.copies, stat.records),
    }
}

fn newest_checkpoint_bytes(state_dir: &Path) -> Option<u64> {
    let checkpoints = std::fs::read_dir(state_dir.join("checkpoints")).ok()?;
    let folders = checkpoints.filter_map(Result::ok).filter(|entry| entry.path().is_dir());
    folders.map(|folder| folder_bytes(&folder.path())).max()
}

fn folder_bytes(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
    entries.filter_map(|entry| entry.metadata().ok()).filter(|metadata| metadata.is_file()).map(|file| file.len()).sum()
}

/// Memory of this process that is resident now; 0 where the system does not tell.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    let kib: u64 = line.trim().strip_suffix("kB").and_then(|number| number.trim().parse().ok()).unwrap_or(0);
    kib << 10
}
