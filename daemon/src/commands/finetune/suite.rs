//! The file of `mergedistill finetune --suite`: models, tasks, languages and seeds.
//!
//! ```toml
//! seeds = [0, 1, 2]
//!
//! [[model]]
//! name = "en"                      # of files and rows
//! path = "teachers/en"             # relative to this file
//! role = "teacher"                 # or "student"
//! languages = ["en"]               # those that it is tested in; without it all
//!
//! [[model]]
//! name = "student"
//! path = "student"
//! role = "student"
//! tokenizers = { en = "student/tokenizers/en" }      # by language; others: the model's own
//!
//! [[task]]
//! name = "pos"
//! kind = "token"                   # sequence, pair, question-answering
//! zero_shot_from = "en"            # a model tuned on this language is tested in all of the task's languages
//! options = { epochs = 10, learning_rate = 3e-5 }    # the command's options, with underscores
//! metric = "accuracy"              # that of the tables; without it the task's own
//! files.en = { train = "en.train.tsv", dev = "en.dev.tsv", test = "en.test.tsv" }
//! files.de = { train = "de.tsv", split = [80, 10, 10] }
//! files.it = { test = "it.tsv" }   # no training examples: zero-shot alone
//! ```

use crate::failure::{ExitCode, Failure};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use trainer::downstream::table::Role;
use trainer::downstream::words::Columns;
use trainer::downstream::{FineTuneOptions, Given, Metric, Task};

/// All that is to be run.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Suite {
    #[serde(default = "one_seed")]
    pub(super) seeds: Vec<u64>,
    #[serde(rename = "model")]
    pub(super) models: Vec<SuiteModel>,
    #[serde(rename = "task")]
    pub(super) tasks: Vec<SuiteTask>,
}

/// A model that takes part.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SuiteModel {
    pub(super) name: String,
    pub(super) path: PathBuf,
    pub(super) role: Role,
    #[serde(default)]
    languages: Option<Vec<String>>,
    #[serde(default)]
    tokenizers: BTreeMap<String, PathBuf>,
}

/// A task, with its files by language.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SuiteTask {
    pub(super) name: String,
    pub(super) kind: Task,
    #[serde(default)]
    pub(super) zero_shot_from: Option<String>,
    #[serde(default)]
    pub(super) options: Given,
    #[serde(default)]
    pub(super) metric: Option<Metric>,
    #[serde(default)]
    word_column: Option<usize>,
    #[serde(default)]
    tag_column: Option<usize>,
    pub(super) files: BTreeMap<String, SuiteFiles>,
}

/// A language's examples.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SuiteFiles {
    pub(super) train: Option<PathBuf>,
    pub(super) dev: Option<PathBuf>,
    pub(super) test: Option<PathBuf>,
    pub(super) split: Option<[u32; 3]>,
}

fn one_seed() -> Vec<u64> {
    vec![0]
}

impl Suite {
    /// Reads the file; paths in it are relative to its folder.
    pub(super) fn load(path: &Path) -> Result<Self, Failure> {
        let text = std::fs::read_to_string(path).map_err(|error| Failure::io("read", path, &error))?;
        let failed = |reason: &str| Failure::new(ExitCode::Configuration, format!("{}: {reason}", path.display()));
        let mut suite: Self = toml::from_str(&text).map_err(|error| failed(error.to_string().trim_end()))?;
        suite.check().map_err(|reason| failed(&reason))?;
        let folder = path.parent().unwrap_or(Path::new("."));
        for model in &mut suite.models {
            model.path = folder.join(&model.path);
            model.tokenizers.values_mut().for_each(|path| *path = folder.join(&*path));
        }
        for files in suite.tasks.iter_mut().flat_map(|task| task.files.values_mut()) {
            let paths = [&mut files.train, &mut files.dev, &mut files.test];
            paths.into_iter().flatten().for_each(|path| *path = folder.join(&*path));
        }
        Ok(suite)
    }

    fn check(&self) -> Result<(), String> {
        let names = [
            ("model", self.models.iter().map(|model| &model.name).collect::<Vec<_>>()),
            ("task", self.tasks.iter().map(|task| &task.name).collect()),
        ];
        for (what, names) in names {
            for (at, name) in names.iter().enumerate() {
                check_name(what, name)?;
                if names[..at].contains(name) {
                    return Err(format!("two of the {what}s are called `{name}`"));
                }
            }
        }
        if self.seeds.is_empty() || self.models.is_empty() || self.tasks.is_empty() {
            return Err("expected at least one seed, one [[model]] and one [[task]]".to_owned());
        }
        self.tasks.iter().try_for_each(SuiteTask::check)
    }
}

impl SuiteModel {
    /// Whether it is tested in a language.
    pub(super) fn speaks(&self, language: &str) -> bool {
        self.languages.as_ref().is_none_or(|languages| languages.iter().any(|known| known == language))
    }

    /// Folder of its tokenizer for a language.
    pub(super) fn tokenizer(&self, language: &str) -> &Path {
        self.tokenizers.get(language).unwrap_or(&self.path)
    }
}

impl SuiteTask {
    pub(super) fn columns(&self) -> Columns {
        Columns { word: self.word_column, tag: self.tag_column }
    }

    /// Hyperparameters, but for what depends on the model; the tables' metric is the task's too.
    fn check_options(&self) -> Result<(), String> {
        for metric in [self.options.metric, self.metric] {
            let given = Given { metric, ..self.options.clone() };
            FineTuneOptions::new(self.kind, &given, usize::MAX, 0).map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    fn check(&self) -> Result<(), String> {
        let failed = |reason: &str| Err(format!("task `{}`: {reason}", self.name));
        for (language, files) in &self.files {
            check_name("language", language)?;
            if files.split.is_some() && (files.train.is_none() || files.dev.is_some() || files.test.is_some()) {
                return failed(&format!("files.{language}: a `split` needs `train`, and neither `dev` nor `test`"));
            }
            if files
                .split
                .is_some_and(|parts| parts[0] == 0 || parts[2] == 0 || parts.iter().any(|part| *part > 1 << 20))
            {
                return failed(&format!(
                    "files.{language}: a `split` such as [80, 10, 10]: something to train on, and something to test"
                ));
            }
            if files.test.is_none() && files.split.is_none() {
                return failed(&format!("files.{language}: nothing to test; expected `test` or `split`"));
            }
        }
        self.check_options().or_else(|reason| failed(&reason))?;
        match &self.zero_shot_from {
            Some(from) if self.files.get(from).is_none_or(|files| files.train.is_none()) => {
                failed(&format!("`zero_shot_from` is `{from}`, but there is no files.{from}.train"))
            }
            _ if self.files.values().all(|files| files.train.is_none()) => failed("no language has training examples"),
            _ => Ok(()),
        }
    }
}

/// Names become parts of file names.
fn check_name(what: &str, name: &str) -> Result<(), String> {
    let usable = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
    match !name.is_empty() && name.chars().all(usable) {
        true => Ok(()),
        false => Err(format!("{what} `{name}`: a name has letters of ASCII, digits, `-` and `_` alone")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const WHOLE: &str = r#"
        seeds = [1, 2]
        [[model]]
        name = "en"
        path = "teachers/en"
        role = "teacher"
        languages = ["en"]
        [[model]]
        name = "student"
        path = "/students/a"
        role = "student"
        tokenizers = { en = "tok/en" }
        [[task]]
        name = "pos"
        kind = "token"
        zero_shot_from = "en"
        options = { epochs = 2, learning_rate = 1e-4 }
        metric = "accuracy"
        files.en = { train = "en.tsv", split = [80, 10, 10] }
        files.de = { test = "de.tsv" }
    "#;

    fn load(text: &str) -> Result<Suite, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("suite.toml");
        std::fs::write(&path, text).unwrap();
        let suite = Suite::load(&path).map_err(|failure| failure.message);
        suite.map(|mut suite| {
            let within = |path: &Path| path.strip_prefix(folder.path()).map_or(path.to_owned(), Path::to_owned);
            suite.models.iter_mut().for_each(|model| model.path = within(&model.path));
            suite
        })
    }

    #[test]
    fn a_suite_is_read() {
        let suite = load(WHOLE).unwrap();
        assert_eq!(suite.seeds, [1, 2]);
        assert_eq!(
            [&suite.models[0].path, &suite.models[1].path],
            [Path::new("teachers/en"), Path::new("/students/a")]
        );
        assert!(suite.models[0].speaks("en") && !suite.models[0].speaks("de") && suite.models[1].speaks("de"));
        assert!(suite.models[1].tokenizer("en").ends_with("tok/en"));
        assert_eq!(suite.models[1].tokenizer("de"), Path::new("/students/a"));
        assert_eq!(suite.tasks[0].options.epochs, Some(2));
    }

    #[test]
    fn mistakes_are_named() {
        for (from, to, expected) in [
            ("epochs = 2", "epoch = 2", "unknown field `epoch`"),
            ("kind = \"token\"", "kind = \"tokens\"", "unknown variant `tokens`"),
            ("name = \"student\"", "name = \"en\"", "two of the models are called `en`"),
            ("name = \"pos\"", "name = \"a/b\"", "task `a/b`: a name has letters"),
            ("zero_shot_from = \"en\"", "zero_shot_from = \"de\"", "task `pos`: `zero_shot_from` is `de`, but"),
            ("seeds = [1, 2]", "seeds = []", "expected at least one seed"),
            ("metric = \"accuracy\"", "metric = \"exact_match\"", "task `pos`: this task has no metric exact match"),
            ("epochs = 2", "metric = \"exact_match\"", "task `pos`: this task has no metric exact match"),
            ("epochs = 2", "preset = \"xnli\"", "task `pos`: this task has no preset xnli; it has panx, udpos"),
            ("epochs = 2", "epochs = 0", "task `pos`: epochs is 0; expected at least 1"),
            ("test = \"de.tsv\"", "dev = \"de.tsv\"", "files.de: nothing to test"),
            ("split = [80, 10, 10]", "split = [80, 10, 0]", "files.en: a `split` such as"),
            ("train = \"en.tsv\", ", "", "files.en: a `split` needs `train`"),
        ] {
            let error = load(&WHOLE.replace(from, to)).unwrap_err();
            assert!(error.contains(expected) && error.contains("suite.toml"), "{error}");
        }
    }
}
