//! The configuration file: every key, its default and its limits.
//!
//! Reading it never stops at the first mistake: all problems are collected, each with the key it is about.
//! Relative paths are relative to the file.

mod cluster_section;
mod corpus_section;
mod hub;
mod ops_section;
mod placement;
mod sections;
mod store_section;
mod student_section;
mod table;
mod threads;
mod train_section;

pub use cluster_section::Cluster;
pub use corpus_section::{Corpus, CorpusOrigin};
pub use placement::{Placement, StudentPlacement};
pub use sections::{Configuration, LabelledBy, Teacher};
pub use threads::Threads;

use crate::failure::{ExitCode, Failure};
use std::path::Path;

impl Configuration {
    /// Reads and validates the file at `path`. The error lists everything that is wrong.
    pub fn load(path: &Path) -> Result<Self, Failure> {
        let text = std::fs::read_to_string(path).map_err(|error| match error.kind() {
            std::io::ErrorKind::InvalidData => {
                Failure::new(ExitCode::Configuration, format!("{} is no UTF-8 text, as TOML is", path.display()))
            }
            _ => Failure::io("read the configuration", path, &error),
        })?;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut configuration = Self::parse(&text, folder).map_err(|problems| {
            let lines: Vec<String> = problems.iter().map(|problem| format!("  {problem}")).collect();
            let count = match problems.len() {
                1 => "1 problem".to_owned(),
                n => format!("{n} problems"),
            };
            Failure::new(ExitCode::Configuration, format!("{} has {count}:\n{}", path.display(), lines.join("\n")))
        })?;
        configuration.file = Some(path.to_owned());
        configuration.threads.warning(crate::threads::cores()).iter().for_each(|warning| tracing::warn!("{warning}"));
        configuration.labels_warning().iter().for_each(|warning| tracing::warn!("{warning}"));
        Ok(configuration)
    }
}

#[cfg(test)]
mod tests;
