//! `mergedistill corpus`: what a stopped run reads.

use super::{print_json, print_line};
use crate::cli::CorpusCommand;
use crate::configuration::{Configuration, Corpus, CorpusOrigin};
use crate::failure::{ExitCode, Failure};
use crate::state_folder::StateFolder;
use ingest::feed::mending;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use store::LogReader;

/// Changes what a run reads that does not run now.
pub fn corpus(command: &CorpusCommand) -> Result<(), Failure> {
    match command {
        CorpusCommand::Remove { state_dir, name, json } => remove(state_dir, name, *json),
        CorpusCommand::Forget { config, name, file, json } => forget(config, name, file, *json),
        CorpusCommand::Recognise { config, name, json } => recognise(config, name, *json),
    }
}

/// Takes a corpus that was added while the daemon ran out of what is read.
fn remove(state_dir: &Path, name: &str, as_json: bool) -> Result<(), Failure> {
    crate::live::remove_offline(state_dir, name)?;
    match as_json {
        true => print_json(&json!({ "removed": name })),
        false => print_line(&format!("corpus {name} is read no more from the next start on")),
    }
}

/// Gives up what was not read of a file.
fn forget(config: &Path, name: &str, file: &str, as_json: bool) -> Result<(), Failure> {
    let stopped = Stopped::open(config, name)?;
    mending::forget(&stopped.manifests(), name, file)?;
    match as_json {
        true => print_json(&json!({ "corpus": name, "forgotten": file })),
        false => print_line(&format!("corpus {name} goes on without the rest of `{file}` from the next start on")),
    }
}

/// Finds the parts of a followed file that were copied.
fn recognise(config: &Path, name: &str, as_json: bool) -> Result<(), Failure> {
    let stopped = Stopped::open(config, name)?;
    let CorpusOrigin::Follow(file) = stopped.corpus.origin() else {
        let message = format!(
            "corpus `{name}` follows no file; files of a watched folder are known by their content, wherever they were copied"
        );
        return Err(Failure::new(ExitCode::Usage, message));
    };
    let was_read = stopped.was_read()?;
    let found =
        mending::recognise(&stopped.manifests(), name, file, |part| was_read.get(part).copied().unwrap_or_default())?;
    if as_json {
        let found: Vec<_> = found.iter().map(|(part, path)| json!({ "file": part, "path": path })).collect();
        return print_json(&json!({ "corpus": name, "recognised": found }));
    }
    if found.is_empty() {
        return print_line(&format!("corpus {name}: every file is the one that was followed"));
    }
    found.iter().try_for_each(|(part, path)| {
        let bytes = was_read.get(&**part).copied().unwrap_or_default();
        print_line(&format!("`{part}` is {}; the log stands at byte {bytes} of it", path.display()))
    })
}

/// A run that nobody is at work on, and one of its corpora.
struct Stopped {
    configuration: Configuration,
    corpus: Corpus,
    /// Nobody starts meanwhile.
    _state: StateFolder,
}

impl Stopped {
    fn open(config: &Path, name: &str) -> Result<Self, Failure> {
        let configuration = Configuration::load(config)?;
        let state_dir = configuration.run.state_dir.clone();
        if !state_dir.join("run.json").is_file() {
            let message = format!("{} is no state folder: there is no run.json", state_dir.display());
            return Err(Failure::new(ExitCode::NoInput, message));
        }
        let state = StateFolder::open(&state_dir)?;
        let (configuration, _) = crate::live::in_effect(&configuration)?;
        let Some(corpus) = configuration.corpus.iter().find(|corpus| corpus.name == name).cloned() else {
            let known: Vec<&str> = configuration.corpus.iter().map(|corpus| corpus.name.as_str()).collect();
            let message = format!("there is no corpus `{name}`, only {}", known.join(", "));
            return Err(Failure::new(ExitCode::Usage, message));
        };
        Ok(Self { configuration, corpus, _state: state })
    }

    /// Where the log stands in the files of the corpus: where the last document begins that a source of it has read, by the file's name.
    fn was_read(&self) -> Result<BTreeMap<String, u64>, Failure> {
        let log = LogReader::open(&self.configuration.store.path)?;
        let cursors = log.cursors(log.durable())?;
        let own = |source: &str| {
            source.strip_prefix(&self.corpus.name).is_some_and(|rest| rest.is_empty() || rest.starts_with(':'))
        };
        let mut places = BTreeMap::new();
        for cursor in cursors.values().filter(|cursor| own(&cursor.source)) {
            let bytes: &mut u64 = places.entry(cursor.file.to_string()).or_default();
            *bytes = cursor.document_offset_bytes.max(*bytes);
        }
        Ok(places)
    }

    fn manifests(&self) -> PathBuf {
        self.configuration.run.state_dir.join("feeds")
    }
}
