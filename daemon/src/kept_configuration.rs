//! `configuration.toml` in the state folder: the configuration as it takes effect, so that a state folder says by itself how its run
//! came about. The daemon writes it when it starts and whenever it changes, and never reads it; commands that look at a state
//! folder do. Relative paths are made absolute, for the folder that they were relative to is another one.

use crate::configuration::Configuration;
use crate::failure::{ExitCode, Failure};
use crate::live::Effective;
use crate::state_folder::write_durably;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

const FILE: &str = "configuration.toml";
/// So begins what was written here.
const MARK: &str = "# The configuration of this run as it takes effect";
const HEAD: &str = "\
# The configuration of this run as it takes effect, defaults, live changes and all. The daemon writes this file at every start\n\
# and change, and does not read it: change the one that `run` was given.\n\n";

/// One writes at a time.
static WRITING: Mutex<()> = Mutex::new(());

/// Writes the configuration into its state folder. The run does not depend on it, so what goes wrong is only reported. A file of
/// that name that somebody else wrote stays.
pub fn keep(configuration: &Configuration) {
    let _one_at_a_time = WRITING.lock().unwrap_or_else(PoisonError::into_inner);
    write(configuration);
}

/// The same for what takes effect since a change: of several at once the last one is kept.
pub fn keep_latest(configuration: &Effective) {
    let _one_at_a_time = WRITING.lock().unwrap_or_else(PoisonError::into_inner);
    write(&configuration.get());
}

/// Reads what was kept in `state_dir`, which may have been moved since, and its log with it.
pub fn load(state_dir: &Path) -> Result<Configuration, Failure> {
    let path = state_dir.join(FILE);
    if !path.is_file() {
        let message = format!(
            "{} is not there: the state folder is of an earlier version; give the configuration with --config",
            path.display()
        );
        return Err(Failure::new(ExitCode::NoInput, message));
    }
    let mut configuration = Configuration::load(&path)?;
    if let Ok(inside) = configuration.store.path.strip_prefix(&configuration.run.state_dir) {
        configuration.store.path = state_dir.join(inside);
    }
    configuration.run.state_dir = state_dir.to_owned();
    Ok(configuration)
}

fn write(configuration: &Configuration) {
    let path = configuration.run.state_dir.join(FILE);
    let text = toml::to_string(&with_absolute_paths(configuration.clone())).map_err(|error| error.to_string());
    let written = text.and_then(|text| match is_ours(&path) {
        true => write_durably(&path, (HEAD.to_owned() + &text).as_bytes()).map_err(|error| error.to_string()),
        false => Err("there is another file of that name".to_owned()),
    });
    if let Err(error) = written {
        tracing::warn!(file = %path.display(), error, "the configuration cannot be kept in the state folder");
    }
}

/// Whether the file at `path` was written here, or is yet to be.
fn is_ours(path: &Path) -> bool {
    match std::fs::read(path) {
        Ok(text) => text.starts_with(MARK.as_bytes()),
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
    }
}

fn with_absolute_paths(mut configuration: Configuration) -> Configuration {
    let paths = [&mut configuration.run.state_dir, &mut configuration.store.path, &mut configuration.ops.socket];
    paths.into_iter().for_each(make_absolute);
    configuration.ops.token_file.iter_mut().for_each(make_absolute);
    configuration.teacher.iter_mut().for_each(|teacher| make_absolute(&mut teacher.path));
    configuration.evaluate.files.iter_mut().for_each(|file| make_pattern_absolute(&mut file.path));
    for corpus in &mut configuration.corpus {
        corpus.path.iter_mut().for_each(make_pattern_absolute);
        corpus.watch.iter_mut().chain(&mut corpus.follow).for_each(make_absolute);
    }
    configuration
}

fn make_absolute(path: &mut PathBuf) {
    // It fails only without a working directory; then the path is of no use anyway.
    if let Ok(absolute) = std::path::absolute(&*path) {
        *path = absolute;
    }
}

fn make_pattern_absolute(pattern: &mut String) {
    let mut path = PathBuf::from(&*pattern);
    make_absolute(&mut path);
    if let Ok(absolute) = path.into_os_string().into_string() {
        *pattern = absolute;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
    use super::*;

    const TEXT: &str = "\
        run.state_dir = \"here\"\nops.token_file = \"token\"\nevaluate.files = [{language = \"en\", path = \"held/*.txt\"}]\n\
        student.layers = 3\ntrain.steps = 9\ntrain.learning_rate = 0.0007\n\
        [[teacher]]\nname = \"en\"\npath = \"teachers/en\"\nlanguages = [\"en\"]\n\
        [[corpus]]\nname = \"en\"\nlanguage = \"en\"\npath = \"text/*.txt\"\n\
        [[corpus]]\nname = \"more\"\nlanguage = \"en\"\nwatch = \"drop\"\n";

    #[test]
    fn what_is_kept_reads_back_wherever_the_folder_is() {
        let dir = tempfile::tempdir().unwrap();
        let mut configuration = Configuration::parse(TEXT, Path::new("somewhere")).unwrap();
        configuration.run.state_dir = dir.path().join("here");
        configuration.store.path = dir.path().join("here/log");
        std::fs::create_dir(&configuration.run.state_dir).unwrap();
        keep(&configuration);
        let read = load(&configuration.run.state_dir).unwrap();
        let here = std::env::current_dir().unwrap().join("somewhere");
        assert_eq!(read.teacher[0].path, here.join("teachers/en"));
        assert_eq!(read.corpus[0].path, [here.join("text/*.txt").to_str().unwrap()]);
        assert_eq!(read.corpus[1].watch, Some(here.join("drop")));
        assert_eq!(read.evaluate.files[0].path, here.join("held/*.txt").to_str().unwrap());
        assert_eq!(read.ops.token_file, Some(here.join("token")));
        assert_eq!((read.student.unwrap().layers, read.train.learning_rate), (3, 0.0007));
        assert_eq!(read.store.path, configuration.store.path);

        // Again, unless somebody else has written it.
        configuration.train.learning_rate = 0.5;
        keep(&configuration);
        assert_eq!(load(&configuration.run.state_dir).unwrap().train.learning_rate, 0.5);
        let path = configuration.run.state_dir.join(FILE);
        std::fs::write(&path, TEXT).unwrap();
        keep(&configuration);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), TEXT);

        let moved = dir.path().join("moved");
        std::fs::remove_file(&path).unwrap();
        keep(&configuration);
        std::fs::rename(&configuration.run.state_dir, &moved).unwrap();
        let read = load(&moved).unwrap();
        assert_eq!((read.run.state_dir, read.store.path), (moved.clone(), moved.join("log")));
        std::fs::remove_file(moved.join(FILE)).unwrap();
        assert!(load(&moved).unwrap_err().message.contains("give the configuration with --config"));
    }
}
