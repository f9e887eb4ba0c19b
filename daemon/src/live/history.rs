//! Changes that were made while the daemon ran: how they stand in `run.json`, and what they come to.

use crate::configuration::{Configuration, Corpus};
use crate::failure::{ExitCode, Failure};
use crate::state_folder::StateFolder;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// A change of what is read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Change {
    /// The corpus is not drawn.
    PauseCorpus {
        /// Its name.
        corpus: String,
    },
    /// The corpus is drawn again.
    ResumeCorpus {
        /// Its name.
        corpus: String,
    },
    /// A language has this share of the draws.
    SetShare {
        /// The language.
        language: String,
        /// Within (0, 1].
        share: f64,
    },
    /// A language has the share that follows from its characters.
    ClearShare {
        /// The language.
        language: String,
    },
    /// One more corpus is read.
    AddCorpus {
        /// Its section, with absolute paths.
        corpus: toml::Table,
    },
    /// A corpus is read no more.
    RemoveCorpus {
        /// Its name.
        corpus: String,
    },
}

/// A change, and since when it has been in force.
#[derive(Clone, Debug, Serialize)]
pub struct MadeChange {
    /// Sequence number of the first entry that was drawn with it.
    pub from_sequence: u64,
    /// When it was made.
    pub at_unix_seconds: u64,
    /// What was changed.
    pub change: Change,
}

/// What all changes together come to.
#[derive(Clone, Debug, Default)]
pub struct Standing {
    /// Shares that were set, by language.
    pub shares: BTreeMap<String, f64>,
    /// Corpora that are paused.
    pub paused: BTreeSet<String>,
    /// Corpora that were added, in order.
    added: Vec<(String, toml::Table)>,
    /// Corpora of the configuration file that were removed.
    removed: BTreeSet<String>,
}

impl Change {
    /// For people.
    pub fn describe(&self) -> String {
        match self {
            Self::PauseCorpus { corpus } => format!("corpus {corpus} paused"),
            Self::ResumeCorpus { corpus } => format!("corpus {corpus} resumed"),
            Self::SetShare { language, share } => format!("share of language {language} set to {share}"),
            Self::ClearShare { language } => format!("share of language {language} follows from its characters"),
            Self::AddCorpus { corpus } => format!("corpus {} added", name_of(corpus)),
            Self::RemoveCorpus { corpus } => format!("corpus {corpus} removed"),
        }
    }
}

impl Standing {
    /// What the changes come to, in their order.
    pub fn of<'a>(changes: impl IntoIterator<Item = &'a Change>) -> Self {
        let mut standing = Self::default();
        changes.into_iter().for_each(|change| standing.make(change));
        standing
    }

    fn make(&mut self, change: &Change) {
        match change {
            Change::PauseCorpus { corpus } => {
                self.paused.insert(corpus.clone());
            }
            Change::ResumeCorpus { corpus } => {
                self.paused.remove(corpus);
            }
            Change::SetShare { language, share } => {
                self.shares.insert(language.clone(), *share);
            }
            Change::ClearShare { language } => {
                self.shares.remove(language);
            }
            Change::AddCorpus { corpus } => self.added.push((name_of(corpus).to_owned(), corpus.clone())),
            Change::RemoveCorpus { corpus } => {
                let before = self.added.len();
                self.added.retain(|(name, _)| name != corpus);
                if self.added.len() == before {
                    self.removed.insert(corpus.clone());
                }
                let of_it = |name: &String| name == corpus || name.starts_with(&format!("{corpus}:"));
                self.paused.retain(|name| !of_it(name));
            }
        }
    }

    /// The corpora of the configuration as they take effect, and what is to be said about that.
    fn corpora(&self, configured: &[Corpus]) -> Result<(Vec<Corpus>, Vec<String>), String> {
        let mut notes = Vec::new();
        let mut corpora = configured.to_vec();
        corpora.retain(|corpus| !self.removed.contains(&corpus.name));
        let removed = configured.iter().filter(|corpus| self.removed.contains(&corpus.name));
        notes.extend(removed.map(|corpus| format!("corpus {} was removed while the daemon ran", corpus.name)));
        for (name, section) in &self.added {
            if corpora.iter().any(|corpus| corpus.name == *name) {
                notes.push(format!(
                    "corpus {name} was added while the daemon ran; the configuration file has it too, and is followed"
                ));
                continue;
            }
            let corpus = Corpus::parse(section.clone(), Path::new("/"));
            corpora.push(
                corpus.map_err(|problem| format!("corpus {name}, which was added while the daemon ran: {problem}"))?,
            );
            notes.push(format!("corpus {name} was added while the daemon ran"));
        }
        notes.extend(self.paused.iter().map(|name| format!("corpus {name} was paused")));
        notes
            .extend(self.shares.iter().map(|(name, share)| format!("the share of language {name} was set to {share}")));
        Ok((corpora, notes))
    }
}

/// The configuration with the changes that were made in its state folder, and notes on them.
pub fn in_effect(configuration: &Configuration) -> Result<(Configuration, Vec<String>), Failure> {
    let state_dir = &configuration.run.state_dir;
    let changes = StateFolder::changes(state_dir)?;
    if changes.is_empty() || configuration.corpus.is_empty() {
        return Ok((configuration.clone(), Vec::new()));
    }
    let failed = |problem| {
        let path = state_dir.join("run.json");
        Failure::new(ExitCode::Configuration, format!("{}: {problem}", path.display()))
    };
    let standing = Standing::of(changes.iter().map(|made| &made.change));
    let (corpora, notes) = standing.corpora(&configuration.corpus).map_err(failed)?;
    if corpora.is_empty() {
        let problem = "every [[corpus]] of the configuration was removed while the daemon ran; give the text that is to be \
                       read a new name";
        return Err(failed(problem.to_owned()));
    }
    Ok((configuration.with_corpora(corpora).map_err(failed)?, notes))
}

/// The name in a section.
fn name_of(section: &toml::Table) -> &str {
    section.get("name").and_then(toml::Value::as_str).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
    use super::*;

    fn section(name: &str) -> toml::Table {
        format!("name = \"{name}\"\nlanguage = \"en\"\nwatch = \"/in\"\nsettle_seconds = 1.0").parse().unwrap()
    }

    fn names(changes: &[Change], configured: &[&str]) -> Vec<String> {
        let configured: Vec<Corpus> =
            configured.iter().map(|name| Corpus::parse(section(name), Path::new("/")).unwrap()).collect();
        let (corpora, _) = Standing::of(changes).corpora(&configured).unwrap();
        corpora.into_iter().map(|corpus| corpus.name).collect()
    }

    #[test]
    fn corpora_are_those_of_the_file_and_what_was_changed() {
        let add = |name: &str| Change::AddCorpus { corpus: section(name) };
        let remove = |name: &str| Change::RemoveCorpus { corpus: name.to_owned() };
        let cases: [(&[Change], &[&str], &[&str]); 6] = [
            (&[add("b")], &["a"], &["a", "b"]),
            (&[remove("a")], &["a", "c"], &["c"]),
            (&[remove("a"), add("a")], &["a", "c"], &["c", "a"]),
            (&[remove("a"), add("a"), remove("a")], &["a", "c"], &["c"]),
            // Whoever adds it to the file later has it once.
            (&[add("b")], &["a", "b"], &["a", "b"]),
            (&[add("b"), remove("b")], &["a", "b"], &["a", "b"]),
        ];
        for (changes, configured, expected) in cases {
            assert_eq!(names(changes, configured), expected, "{changes:?}");
        }
    }

    #[test]
    fn changes_are_read_as_they_were_written() {
        let changes = [
            Change::AddCorpus { corpus: section("b") },
            Change::PauseCorpus { corpus: "b".to_owned() },
            Change::SetShare { language: "en".to_owned(), share: 1.0 },
            Change::ClearShare { language: "en".to_owned() },
        ];
        let text = serde_json::to_string(&changes).unwrap();
        assert_eq!(serde_json::from_str::<Vec<Change>>(&text).unwrap(), changes);
        let standing = Standing::of(&changes);
        assert!(standing.paused.contains("b") && standing.shares.is_empty());
    }
}
