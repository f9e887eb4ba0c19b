//! Runs what of a suite is not done yet: a JSON file for each run, so that an interrupted suite goes on where it was.

use super::suite::{Suite, SuiteModel, SuiteTask};
use super::{log_progress, print_json, print_line, write_predictions, write_whole};
use crate::cli::FinetuneArgs;
use crate::failure::{ExitCode, Failure};
use crate::threads::cores;
use model::{Encoder, RolePool, Tokenizer, check_weights, fingerprint_weights};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Instant;
use trainer::downstream::table::{self, Setting, Table};
use trainer::downstream::{
    DataSet, DownstreamError, FineTuneOptions, FineTuning, Given, Metric, Report, Split, Test, run,
};

/// What a run's file holds.
#[derive(Debug, Serialize, Deserialize)]
struct RunFile {
    /// Of everything that the run follows from: another one means that it has to be made again.
    identity: String,
    model: String,
    task: String,
    trained_on: String,
    seed: u64,
    seconds: f64,
    #[serde(flatten)]
    end: End,
}

/// How a run ended. It would diverge again, so that is a result too.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum End {
    Report(Box<Report>),
    /// What was said of it.
    Diverged(String),
}

/// The examples of a language.
struct Examples {
    train: Option<DataSet>,
    dev: Option<DataSet>,
    test: Option<DataSet>,
    /// SHA-256 of the files, and how they are cut.
    fingerprint: String,
}

/// A model, read when the first run needs it.
struct Loaded {
    encoder: Encoder,
    fingerprint: String,
    tokenizers: BTreeMap<PathBuf, Tokenizer>,
}

/// Runs a suite and prints its tables.
pub(super) fn suite(args: &FinetuneArgs, path: &Path) -> Result<(), Failure> {
    let Some(out) = &args.out else {
        return Err(Failure::new(ExitCode::Usage, "--suite needs --out, a folder for the results"));
    };
    let suite = Suite::load(path)?;
    for folder in [Some(out), args.predictions.as_ref()].into_iter().flatten() {
        std::fs::create_dir_all(folder).map_err(|error| Failure::io("create", folder, &error))?;
    }
    look_at_inputs(&suite)?;
    let pool = RolePool::alone("finetune", args.threads.unwrap_or_else(cores)).map_err(of_model)?;
    let (mut tables, mut diverged) = (Vec::new(), Vec::new());
    for task in &suite.tasks {
        let examples = read_examples(task)?;
        let mut outcomes = Vec::new();
        let train = || examples.values().find_map(|examples| examples.train.as_ref());
        let usual = || train().map_or(Metric::Accuracy, DataSet::usual_metric);
        let metric = task.metric.or(task.options.metric).unwrap_or_else(usual);
        for model in &suite.models {
            let mut loaded = load(model, task)?;
            for language in task.files.keys().filter(|language| trains_on(model, task, language)) {
                for &seed in &suite.seeds {
                    let run = Run { model, task, language, seed, out, predictions: args.predictions.as_deref() };
                    let file = pool.install(|| run.result(&mut loaded, &examples))?;
                    if let End::Diverged(reason) = &file.end {
                        tracing::warn!(run = run.name(), "{reason}; its scores are missing");
                        diverged.push(run.name());
                    }
                    outcomes.push(run.outcome(&file.end, metric));
                }
            }
        }
        let settings = [Setting::InLanguage].into_iter().chain(task.zero_shot_from.clone().map(Setting::ZeroShot));
        tables.extend(settings.filter_map(|setting| Table::new(&task.name, setting, metric, &outcomes)));
    }
    let shown = |table: &Table| if args.markdown { table.markdown() } else { table.text() };
    match args.json {
        true => print_json(&json!({ "tables": tables, "diverged": diverged }))?,
        false => tables.iter().try_for_each(|table| print_line(&shown(table)))?,
    }
    match diverged.is_empty() {
        true => Ok(()),
        false => {
            let reason = format!("runs that diverged have no scores: {}; lower the learning rate", diverged.join(", "));
            Err(Failure::new(ExitCode::DataError, reason))
        }
    }
}

/// What the last run needs is missed before the first.
fn look_at_inputs(suite: &Suite) -> Result<(), Failure> {
    for model in &suite.models {
        check_weights(&model.path).map_err(of_model)?;
        let languages = suite.tasks.iter().flat_map(|task| task.files.keys());
        let tokenizers: BTreeSet<&Path> = languages.map(|language| model.tokenizer(language)).collect();
        tokenizers.into_iter().try_for_each(|folder| Tokenizer::load(folder).map(drop)).map_err(of_model)?;
    }
    let files = suite.tasks.iter().flat_map(|task| task.files.values());
    let mut paths = files.flat_map(|files| [&files.train, &files.dev, &files.test]).flatten();
    paths.try_for_each(|path| File::open(path).map(drop).map_err(|error| Failure::io("read", path, &error)))
}

/// Whether a model is fine-tuned on a language: for itself, or to be tested in others.
fn trains_on(model: &SuiteModel, task: &SuiteTask, language: &str) -> bool {
    let from_here = task.zero_shot_from.as_deref() == Some(language);
    task.files[language].train.is_some()
        && (model.speaks(language) || from_here && tested(model, task).next().is_some())
}

/// The languages of a task that a model is tested in.
fn tested<'a>(model: &'a SuiteModel, task: &'a SuiteTask) -> impl Iterator<Item = &'a String> {
    task.files.keys().filter(|language| model.speaks(language))
}

fn read_examples(task: &SuiteTask) -> Result<BTreeMap<String, Examples>, Failure> {
    let mut all = BTreeMap::new();
    for (language, files) in &task.files {
        let mut hash = Sha256::new();
        let mut read = |path: &Option<PathBuf>| -> Result<Option<DataSet>, Failure> {
            let Some(path) = path else { return Ok(None) };
            let bytes = std::fs::read(path).map_err(|error| Failure::io("read", path, &error))?;
            hash.update(Sha256::digest(bytes));
            Ok(Some(DataSet::read(task.kind, path, task.columns())?))
        };
        let [mut train, mut dev, mut test] = [read(&files.train)?, read(&files.dev)?, read(&files.test)?];
        if let (Some(parts), Some(whole)) = (files.split, train.take_if(|_| files.split.is_some())) {
            let split: Split = whole.split(parts)?;
            (train, dev, test) = (Some(split.train), split.dev, split.test);
        }
        let fingerprint = format!("{} {:?} {:?}", hexadecimal(&hash.finalize()), files.split, task.columns());
        all.insert(language.clone(), Examples { train, dev, test, fingerprint });
    }
    Ok(all)
}

fn load(model: &SuiteModel, task: &SuiteTask) -> Result<Loaded, Failure> {
    let mut tokenizers = BTreeMap::new();
    for language in task.files.keys() {
        let folder = model.tokenizer(language);
        if !tokenizers.contains_key(folder) {
            tokenizers.insert(folder.to_owned(), Tokenizer::load(folder).map_err(of_model)?);
        }
    }
    let fingerprint = fingerprint_weights(&model.path).map_err(of_model)?;
    Ok(Loaded { encoder: Encoder::load(&model.path).map_err(of_model)?, fingerprint, tokenizers })
}

/// One run of a suite.
struct Run<'a> {
    model: &'a SuiteModel,
    task: &'a SuiteTask,
    language: &'a str,
    seed: u64,
    out: &'a Path,
    /// Where its predictions are wanted.
    predictions: Option<&'a Path>,
}

impl Run<'_> {
    /// What is stored of it, or what comes of it now.
    fn result(&self, loaded: &mut Loaded, examples: &BTreeMap<String, Examples>) -> Result<RunFile, Failure> {
        let Self { model, task, language, seed, out, predictions } = *self;
        let path = out.join(self.name());
        // What the tables show chooses the best epoch too, unless the options say otherwise.
        let given = Given { metric: task.options.metric.or(task.metric), ..task.options.clone() };
        let positions = loaded.encoder.configuration.max_position_embeddings;
        let options = FineTuneOptions::new(task.kind, &given, positions, seed)?;
        let tests = self.tests();
        let identity = self.identity(loaded, examples, &options, &tests);
        let of_run = format!("{}.jsonl", identity.get(..8).unwrap_or_default());
        let predictions = predictions.map(|folder| folder.join(self.name()).with_extension(of_run));
        if let Some(file) = stored(&path, &identity)?
            && (matches!(file.end, End::Diverged(_)) || predictions.as_ref().is_none_or(|path| path.exists()))
        {
            return Ok(file);
        }
        let tokenizer = |language: &str| loaded.tokenizers.get(model.tokenizer(language)).cloned();
        let tests: Vec<Test> = tests
            .iter()
            .filter_map(|name| {
                let data = examples.get(*name)?.test.clone()?;
                Some(Test { name: (*name).to_owned(), data, tokenizer: tokenizer(name) })
            })
            .collect();
        let own = &examples[language];
        let (Some(train), Some(tokenizer)) = (&own.train, tokenizer(language)) else {
            return Err(Failure::new(ExitCode::Configuration, format!("files.{language} has nothing to train on")));
        };
        tracing::info!(task = task.name, model = model.name, language, seed, "fine-tuning");
        let started = Instant::now();
        let work = FineTuning {
            encoder: &loaded.encoder,
            tokenizer: &tokenizer,
            task: task.kind,
            train,
            dev: own.dev.as_ref(),
            tests: &tests,
            options: &options,
        };
        let end = match run(&work, log_progress(started)) {
            Ok(outcome) => {
                predictions.iter().try_for_each(|path| write_predictions(path, &outcome.predictions))?;
                End::Report(Box::new(outcome.report))
            }
            Err(error @ DownstreamError::Diverged { .. }) => End::Diverged(error.to_string()),
            Err(error) => return Err(error.into()),
        };
        let file = RunFile {
            identity,
            model: model.name.clone(),
            task: task.name.clone(),
            trained_on: language.to_owned(),
            seed,
            seconds: started.elapsed().as_secs_f64(),
            end,
        };
        store(&path, &file)?;
        Ok(file)
    }

    /// Of its file.
    fn name(&self) -> String {
        format!("{}.{}.{}.{}.json", self.task.name, self.model.name, self.language, self.seed)
    }

    fn outcome(&self, end: &End, metric: Metric) -> table::Outcome {
        let score = |language: &str| match end {
            End::Report(report) => report.tests.get(language)?.get(&metric).copied(),
            End::Diverged(_) => None,
        };
        table::Outcome {
            model: self.model.name.clone(),
            role: self.model.role,
            trained_on: self.language.to_owned(),
            seed: self.seed,
            scores: self.tests().into_iter().map(|language| (language.to_owned(), score(language))).collect(),
        }
    }

    /// The languages that are tested.
    fn tests(&self) -> Vec<&str> {
        let from_here = self.task.zero_shot_from.as_deref() == Some(self.language);
        let wanted = tested(self.model, self.task).filter(|language| from_here || *language == self.language);
        wanted.map(String::as_str).collect()
    }

    fn identity(
        &self,
        loaded: &Loaded,
        examples: &BTreeMap<String, Examples>,
        options: &FineTuneOptions,
        tests: &[&str],
    ) -> String {
        let of = |language: &str| {
            let tokenizer = loaded.tokenizers.get(self.model.tokenizer(language)).map_or("", Tokenizer::fingerprint);
            json!([language, examples[language].fingerprint, tokenizer])
        };
        let tests: Vec<_> = tests.iter().map(|language| of(language)).collect();
        // Rates of dropout, the activation and others follow from no weight.
        let model = json!([loaded.fingerprint, loaded.encoder.configuration.to_hugging_face()]);
        let parts = json!(["finetune 2", model, self.task.kind, options, of(self.language), tests]);
        hexadecimal(&Sha256::digest(parts.to_string()))
    }
}

/// The stored run, if there is one of this identity.
fn stored(path: &Path, identity: &str) -> Result<Option<RunFile>, Failure> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Failure::io("read", path, &error)),
    };
    match serde_json::from_slice::<RunFile>(&bytes) {
        Ok(file) if file.identity == identity => Ok(Some(file)),
        Ok(_) => {
            let why = "model, examples or options are others now: it is run again";
            tracing::warn!(path = %path.display(), "{why}");
            Ok(None)
        }
        Err(error) => {
            let reason = format!("{} is not the result of a run ({error}); move it away", path.display());
            Err(Failure::new(ExitCode::DataError, reason))
        }
    }
}

/// A run's file is whole or not there.
fn store(path: &Path, file: &RunFile) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(file).map_err(|error| Failure::new(ExitCode::Software, error))?;
    write_whole(path, &(text + "\n"))
}

fn of_model(error: model::ModelError) -> Failure {
    Failure::new(ExitCode::of_model(&error), error)
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
