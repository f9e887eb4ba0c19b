//! `mergedistill finetune`.

mod suite;
mod suite_runs;

use super::{print_json, print_line};
use crate::cli::{FinetuneArgs, MetricArg, TaskArg};
use crate::failure::{ExitCode, Failure};
use crate::threads::cores;
use model::{Encoder, RolePool, Tokenizer};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;
use trainer::downstream::fine_tune::Progress;
use trainer::downstream::scores::Scores;
use trainer::downstream::words::Columns;
use trainer::downstream::{
    DataSet, Destination, DownstreamError, FineTuneOptions, FineTuning, Given, Metric, Outcome, Predictions, Report,
    Split, Task, Test, run,
};

/// What the test examples of a split are called.
const OF_SPLIT: &str = "test";

/// What is printed with --json.
#[derive(Debug, Serialize)]
struct Printed<'a> {
    model: &'a Path,
    tokenizer: &'a Path,
    threads: usize,
    seconds: f64,
    #[serde(flatten)]
    report: &'a Report,
}

/// The files of one run, read.
struct Files {
    train: DataSet,
    dev: Option<DataSet>,
    tests: Vec<Test>,
}

/// Fine-tunes one model on one file and scores it, or all models of a suite on all its tasks.
pub fn finetune(args: &FinetuneArgs) -> Result<(), Failure> {
    if let Some(suite) = &args.suite {
        return suite_runs::suite(args, suite);
    }
    let (Some(folder), Some(task), Some(train)) = (&args.model, args.task, &args.train) else {
        return Err(Failure::new(ExitCode::Usage, "--model, --task and --train are needed"));
    };
    let task = Task::from(task);
    let of_model = |error: model::ModelError| Failure::new(ExitCode::of_model(&error), error);
    let encoder = Encoder::load(folder).map_err(of_model)?;
    let tokenizer_folder = args.tokenizer.as_ref().unwrap_or(folder);
    let tokenizer = Tokenizer::load(tokenizer_folder).map_err(of_model)?;
    let options = FineTuneOptions::new(task, &given(args), encoder.configuration.max_position_embeddings, args.seed)?;
    let files = read_files(args, task, train)?;
    let threads = args.threads.unwrap_or_else(cores);
    let destination = args.out.as_ref().map(|out| Destination::claim(out, folder, tokenizer_folder)).transpose()?;
    let pool = RolePool::alone("finetune", threads).map_err(of_model)?;
    let started = Instant::now();
    let work = FineTuning {
        encoder: &encoder,
        tokenizer: &tokenizer,
        task,
        train: &files.train,
        dev: files.dev.as_ref(),
        tests: &files.tests,
        options: &options,
    };
    let Outcome { report, model, predictions } = pool.install(|| run(&work, log_progress(started)))?;
    let seconds = started.elapsed().as_secs_f64();
    if let Some(destination) = &destination {
        model.save(destination, &report.classes)?;
    }
    if let Some(path) = &args.predictions {
        write_predictions(path, &predictions)?;
    }
    for (name, classes) in &report.unknown_classes {
        tracing::warn!(
            test = name,
            classes = classes.join(" "),
            "classes that the training examples lack count as wrong"
        );
    }
    if args.json {
        return print_json(&Printed { model: folder, tokenizer: tokenizer_folder, threads, seconds, report: &report });
    }
    lines(&report, seconds).iter().try_for_each(|line| print_line(line))
}

/// Writes what a model says of the examples of each test. The file is whole or not there.
fn write_predictions(path: &Path, predictions: &BTreeMap<String, Predictions>) -> Result<(), Failure> {
    let lines = predictions.iter().map(|(test, of)| of.lines(test)).collect::<Result<String, _>>();
    let lines = lines.map_err(|error| Failure::new(ExitCode::Software, error))?;
    write_whole(path, &lines)
}

/// Written beside it and renamed.
fn write_whole(path: &Path, text: &str) -> Result<(), Failure> {
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    std::fs::write(&partial, text).map_err(|error| Failure::io("write", &partial, &error))?;
    std::fs::rename(&partial, path).map_err(|error| Failure::io("put in place", path, &error))
}

/// Says in the log how far it is.
fn log_progress(started: Instant) -> impl FnMut(Progress) {
    move |progress| match progress {
        Progress::Step { step, steps, loss } => tracing::debug!(step, steps, loss, "step"),
        Progress::Epoch(epoch) => {
            let (loss, seconds) = (format!("{:.4}", epoch.loss), started.elapsed().as_secs());
            let score = epoch.score.map(|score| format!("{score:.2}"));
            tracing::info!(epoch = epoch.epoch, loss, score, seconds, "epoch");
        }
    }
}

fn given(args: &FinetuneArgs) -> Given {
    Given {
        preset: args.preset,
        epochs: args.epochs,
        learning_rate: args.learning_rate,
        batch: args.batch,
        max_length: args.max_length,
        warmup_ratio: args.warmup_ratio,
        weight_decay: args.weight_decay,
        dropout: args.dropout,
        metric: args.metric.map(Metric::from),
        doc_stride: args.doc_stride,
        clip_norm: None,
    }
}

fn read_files(args: &FinetuneArgs, task: Task, train: &Path) -> Result<Files, Failure> {
    let columns = Columns { word: args.word_column, tag: args.tag_column };
    let read = |path: &Path| DataSet::read(task, path, columns);
    let named: Vec<(String, PathBuf)> = args.tests.iter().map(|argument| named(argument)).collect();
    check_names(&named, args.split)?;
    let tests = named.into_iter().map(|(name, path)| Ok(Test::new(name, read(&path)?)));
    let mut tests = tests.collect::<Result<Vec<_>, DownstreamError>>()?;
    let whole = read(train)?;
    let Some(parts) = args.split else {
        let dev = args.dev.as_deref().map(read).transpose()?;
        return Ok(Files { train: whole, dev, tests });
    };
    let Split { train, dev, test } = whole.split(parts)?;
    tests.extend(test.map(|test| Test::new(OF_SPLIT, test)));
    Ok(Files { train, dev, tests })
}

/// Refuses two tests of one name; that of a split's last part is "test".
fn check_names(tests: &[(String, PathBuf)], split: Option<[u32; 3]>) -> Result<(), Failure> {
    let of_split = split.filter(|parts| parts[2] > 0).map(|_| OF_SPLIT);
    let names: Vec<&str> = of_split.into_iter().chain(tests.iter().map(|(name, _)| name.as_str())).collect();
    let twice = (1..names.len()).find(|at| names[..*at].contains(&names[*at])).map(|at| names[at]);
    let Some(name) = twice else { return Ok(()) };
    let advice = if of_split == Some(name) { "; that of --split has this name" } else { "" };
    let reason = format!("two test files are called `{name}`{advice}; name them: --test one=FILE two=FILE");
    Err(Failure::new(ExitCode::Usage, reason))
}

/// The name and the path in `[NAME=]FILE`; without a name that of the file, without what follows its last dot.
fn named(argument: &str) -> (String, PathBuf) {
    if let Some((name, path)) = argument.split_once('=')
        && !name.is_empty()
        && !name.contains(['/', '.'])
    {
        return (name.to_owned(), PathBuf::from(path));
    }
    let path = PathBuf::from(argument);
    let stem = path.file_stem().map_or_else(|| argument.to_owned(), |stem| stem.to_string_lossy().into_owned());
    (stem, path)
}

fn lines(report: &Report, seconds: f64) -> Vec<String> {
    let mut lines = vec![format!(
        "{} training examples, {} epochs, {seconds:.1} s; epoch {} was kept",
        report.train_examples,
        report.epochs.len(),
        report.best_epoch
    )];
    lines.extend(report.dev.as_ref().map(|scores| scored("dev", scores)));
    lines.extend(report.tests.iter().map(|(name, scores)| scored(name, scores)));
    lines
}

fn scored(name: &str, scores: &Scores) -> String {
    let scores: Vec<String> = scores.iter().map(|(metric, score)| format!("{metric} {score:.2}")).collect();
    format!("{name:<12} {}", scores.join("   "))
}

impl From<TaskArg> for Task {
    fn from(task: TaskArg) -> Self {
        match task {
            TaskArg::Token => Self::Token,
            TaskArg::Sequence => Self::Sequence,
            TaskArg::Pair => Self::Pair,
            TaskArg::QuestionAnswering => Self::QuestionAnswering,
        }
    }
}

impl From<MetricArg> for Metric {
    fn from(metric: MetricArg) -> Self {
        match metric {
            MetricArg::Accuracy => Self::Accuracy,
            MetricArg::F1 => Self::F1,
            MetricArg::Precision => Self::Precision,
            MetricArg::Recall => Self::Recall,
            MetricArg::ExactMatch => Self::ExactMatch,
        }
    }
}

impl From<DownstreamError> for Failure {
    fn from(error: DownstreamError) -> Self {
        let code = match error {
            DownstreamError::Read { ref source, .. } => ExitCode::of_io(source),
            DownstreamError::Line { .. } | DownstreamError::File { .. } | DownstreamError::Diverged { .. } => {
                ExitCode::DataError
            }
            DownstreamError::Options(_) => ExitCode::Usage,
            DownstreamError::Target { .. } => ExitCode::CannotCreate,
            DownstreamError::Model(ref source) => ExitCode::of_model(source),
            DownstreamError::Trainer(source) => return (*source).into(),
        };
        Self::new(code, error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_files_have_names() {
        for (argument, name, path) in [
            ("de=a/b.tsv", "de", "a/b.tsv"),
            ("a/b.test.tsv", "b.test", "a/b.test.tsv"),
            ("a=b/c.tsv", "a", "b/c.tsv"),
            ("./a=b.tsv", "a=b", "./a=b.tsv"),
            ("=b.tsv", "=b", "=b.tsv"),
        ] {
            assert_eq!(named(argument), (name.to_owned(), PathBuf::from(path)));
        }
    }
}
