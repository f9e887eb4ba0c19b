//! Changes that were made while the daemon ran: how they stand in `run.json`, and what they come to.

use crate::configuration::{Configuration, Corpus, Teacher};
use crate::failure::{ExitCode, Failure};
use crate::state_folder::StateFolder;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// A change of what is read, or of who labels.
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
        /// Whether the configuration file had it then, so that a restart would find it there.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        configured: bool,
    },
    /// One more corpus is read, which the configuration file has since: for the record, a start finds it there.
    AddCorpusOfFile {
        /// Its name.
        corpus: String,
    },
    /// A corpus is read no more, which the configuration file has no more.
    RemoveCorpusOfFile {
        /// Its name.
        corpus: String,
    },
    /// Each language has a share ∝ n^alpha, as the configuration file says since.
    SetAlpha {
        /// α.
        alpha: f64,
    },
    /// The teacher gets no copies.
    PauseTeacher {
        /// Its name.
        teacher: String,
    },
    /// The teacher gets copies again.
    ResumeTeacher {
        /// Its name.
        teacher: String,
    },
    /// One more teacher labels; it comes after all others in the table.
    AddTeacher {
        /// Its section, with absolute paths.
        teacher: toml::Table,
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
    /// Teachers that are paused.
    pub paused_teachers: BTreeSet<String>,
    /// Teachers that were added, in order.
    added_teachers: Vec<toml::Table>,
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
            Self::RemoveCorpus { corpus, .. } => format!("corpus {corpus} removed"),
            Self::AddCorpusOfFile { corpus } => format!("corpus {corpus} of the configuration file added"),
            Self::RemoveCorpusOfFile { corpus } => format!("corpus {corpus} of the configuration file removed"),
            Self::SetAlpha { alpha } => format!("sampling.alpha set to {alpha}"),
            Self::PauseTeacher { teacher } => format!("teacher {teacher} paused"),
            Self::ResumeTeacher { teacher } => format!("teacher {teacher} resumed"),
            Self::AddTeacher { teacher } => format!("teacher {} added", name_of(teacher)),
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
            Change::AddCorpus { corpus } => {
                let name = name_of(corpus);
                // One that was there before was paused, and not this one.
                self.forget_pauses(name);
                self.added.push((name.to_owned(), corpus.clone()));
            }
            Change::RemoveCorpus { corpus, configured } => {
                let before = self.added.len();
                self.added.retain(|(name, _)| name != corpus);
                if self.added.len() == before || *configured {
                    self.removed.insert(corpus.clone());
                }
                self.forget_pauses(corpus);
            }
            // The file says what is read; only one of another text is not meant by an earlier pause.
            Change::AddCorpusOfFile { corpus } | Change::RemoveCorpusOfFile { corpus } => self.forget_pauses(corpus),
            Change::SetAlpha { .. } => {}
            Change::PauseTeacher { teacher } => {
                self.paused_teachers.insert(teacher.clone());
            }
            Change::ResumeTeacher { teacher } => {
                self.paused_teachers.remove(teacher);
            }
            Change::AddTeacher { teacher } => self.added_teachers.push(teacher.clone()),
        }
    }

    /// Neither the corpus nor one of its sources is paused any more.
    fn forget_pauses(&mut self, corpus: &str) {
        let is_of_it = |name: &String| name.split_once(':').map_or(name.as_str(), |(of, _)| of) == corpus;
        self.paused.retain(|name| !is_of_it(name));
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
        notes.extend(self.paused_teachers.iter().map(|name| format!("teacher {name} was paused")));
        notes.extend(self.paused.iter().map(|name| format!("corpus {name} was paused")));
        notes
            .extend(self.shares.iter().map(|(name, share)| format!("the share of language {name} was set to {share}")));
        Ok((corpora, notes))
    }

    /// The teachers of the configuration as they take effect, and what is to be said about that. `table` are the names of those
    /// that the run has had: once one was added, what the file has beside them comes after them.
    fn teachers(&self, configured: &[Teacher], table: &[String]) -> Result<(Vec<Teacher>, Vec<String>), String> {
        if self.added_teachers.is_empty() {
            return Ok((configured.to_vec(), Vec::new()));
        }
        let mut notes = Vec::new();
        let mut added = Vec::new();
        for section in &self.added_teachers {
            let name = name_of(section);
            if configured.iter().any(|teacher| teacher.name == name) {
                notes.push(format!(
                    "teacher {name} was added while the daemon ran; the configuration file has it too, and is followed"
                ));
                continue;
            }
            let teacher = Teacher::parse(section.clone(), Path::new("/"));
            added.push(
                teacher
                    .map_err(|problem| format!("teacher {name}, which was added while the daemon ran: {problem}"))?,
            );
            notes.push(format!("teacher {name} was added while the daemon ran"));
        }
        let (known, new): (Vec<_>, Vec<_>) =
            configured.iter().cloned().partition(|teacher| table.contains(&teacher.name));
        let mut teachers: Vec<Teacher> = known.into_iter().chain(added).collect();
        let place = |teacher: &Teacher| table.iter().position(|name| *name == teacher.name);
        teachers.sort_by_key(|teacher| place(teacher).unwrap_or(usize::MAX));
        teachers.extend(new);
        Ok((teachers, notes))
    }
}

/// The configuration with the changes that were made in its state folder, and notes on them.
pub fn in_effect(configuration: &Configuration) -> Result<(Configuration, Vec<String>), Failure> {
    let state_dir = &configuration.run.state_dir;
    let changes = StateFolder::changes(state_dir)?;
    if changes.is_empty() {
        return Ok((configuration.clone(), Vec::new()));
    }
    let failed = |problem| {
        let path = state_dir.join("run.json");
        Failure::new(ExitCode::Configuration, format!("{}: {problem}", path.display()))
    };
    let standing = Standing::of(changes.iter().map(|made| &made.change));
    let table = StateFolder::teachers(state_dir)?;
    let (teachers, mut notes) = standing.teachers(&configuration.teacher, &table).map_err(failed)?;
    if configuration.corpus.is_empty() {
        // Nothing is read, but who made the log has to be known.
        return Ok((configuration.with_inputs(Vec::new(), teachers).map_err(failed)?, notes));
    }
    let (corpora, notes_on_corpora) = standing.corpora(&configuration.corpus).map_err(failed)?;
    notes.extend(notes_on_corpora);
    if corpora.is_empty() {
        let problem = "every [[corpus]] of the configuration was removed while the daemon ran; give the text that is to be \
                       read a new name";
        return Err(failed(problem.to_owned()));
    }
    Ok((configuration.with_inputs(corpora, teachers).map_err(failed)?, notes))
}

/// Says of a failure that names a corpus which was added while the daemon ran where that stands, and how to go on without it.
pub fn with_advice(mut failure: Failure, state_dir: &Path) -> Failure {
    let Ok(changes) = StateFolder::changes(state_dir) else { return failure };
    for (name, _) in &Standing::of(changes.iter().map(|made| &made.change)).added {
        let is_named = [format!("corpus `{name}`"), format!("corpus[{name}]"), format!("corpus {name},")]
            .iter()
            .any(|naming| failure.message.contains(naming));
        if is_named {
            let (file, folder) = (state_dir.join("run.json"), state_dir.display());
            failure.message += &format!(
                "\n  corpus {name} was added while the daemon ran, and stands in the history of {}; to run without it: \
                 mergedistill corpus remove --state-dir '{folder}' '{name}'",
                file.display()
            );
        }
    }
    failure
}

/// Notes in the state folder of a daemon that does not run that a corpus which was added while it ran is read no more.
pub fn remove_offline(state_dir: &Path, name: &str) -> Result<(), Failure> {
    if !state_dir.join("run.json").is_file() {
        let message = format!("{} is no state folder: there is no run.json", state_dir.display());
        return Err(Failure::new(ExitCode::NoInput, message));
    }
    let state = StateFolder::open(state_dir)?;
    let changes = StateFolder::changes(state_dir)?;
    let standing = Standing::of(changes.iter().map(|made| &made.change));
    if !standing.added.iter().any(|(added, _)| added == name) {
        let message = format!(
            "corpus {name} was not added while the daemon ran; if it has a [[corpus]] in the configuration file, remove that"
        );
        return Err(Failure::new(ExitCode::Usage, message));
    }
    // From the entry on with which the log goes on: the next start puts that in.
    state.note_change(u64::MAX, &Change::RemoveCorpus { corpus: name.to_owned(), configured: false })
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
        let remove = |name: &str| Change::RemoveCorpus { corpus: name.to_owned(), configured: false };
        let remove_from_file = |name: &str| Change::RemoveCorpus { corpus: name.to_owned(), configured: true };
        let cases: [(&[Change], &[&str], &[&str]); 8] = [
            (&[add("b")], &["a"], &["a", "b"]),
            (&[remove("a")], &["a", "c"], &["c"]),
            (&[remove("a"), add("a")], &["a", "c"], &["c", "a"]),
            (&[remove("a"), add("a"), remove("a")], &["a", "c"], &["c"]),
            // Whoever adds it to the file later has it once.
            (&[add("b")], &["a", "b"], &["a", "b"]),
            (&[add("b"), remove("b")], &["a", "b"], &["a", "b"]),
            // Unless it was removed after that.
            (&[add("b"), remove_from_file("b")], &["a", "b"], &["a"]),
            (&[add("b"), remove_from_file("b"), add("b")], &["a", "b"], &["a", "b"]),
        ];
        for (changes, configured, expected) in cases {
            assert_eq!(names(changes, configured), expected, "{changes:?}");
        }
    }

    #[test]
    fn teachers_keep_their_places_in_the_table() {
        let section = |name: &str| -> toml::Table {
            format!("name = \"{name}\"\npath = \"/{name}\"\nlanguages = [\"en\"]").parse().unwrap()
        };
        let teachers = |changes: &[&str], configured: &[&str], table: &[&str]| -> Vec<String> {
            let changes: Vec<Change> =
                changes.iter().map(|name| Change::AddTeacher { teacher: section(name) }).collect();
            let configured: Vec<Teacher> =
                configured.iter().map(|name| Teacher::parse(section(name), Path::new("/")).unwrap()).collect();
            let table: Vec<String> = table.iter().map(|name| (*name).to_owned()).collect();
            let (teachers, _) = Standing::of(&changes).teachers(&configured, &table).unwrap();
            teachers.into_iter().map(|teacher| teacher.name).collect()
        };
        let check = |changes: &[&str], configured: &[&str], table: &[&str], expected: &[&str]| {
            assert_eq!(teachers(changes, configured, table), expected, "{changes:?} {configured:?} {table:?}");
        };
        check(&["c"], &["a", "b"], &["a", "b", "c"], &["a", "b", "c"]);
        // The file has another one since.
        check(&["c"], &["a", "b", "d"], &["a", "b", "c"], &["a", "b", "c", "d"]);
        // Two were added; the file has the later one, and another place for it.
        check(&["c", "d"], &["d", "a", "b"], &["a", "b", "c", "d"], &["a", "b", "c", "d"]);
        check(&["c", "d"], &["a", "b", "c", "d"], &["a", "b", "c", "d"], &["a", "b", "c", "d"]);
        // The table does not have it yet.
        check(&["c"], &["a", "b", "d"], &["a", "b"], &["a", "b", "c", "d"]);
        // Without additions the file's order is nobody else's business.
        check(&[], &["b", "a"], &["a", "b"], &["b", "a"]);
    }

    #[test]
    fn a_pause_is_that_of_the_corpus_that_was_there() {
        let pause = |name: &str| Change::PauseCorpus { corpus: name.to_owned() };
        let (add, remove) = (Change::AddCorpus { corpus: section("b") }, |configured| Change::RemoveCorpus {
            corpus: "b".to_owned(),
            configured,
        });
        let paused = |changes: &[Change]| Vec::from_iter(Standing::of(changes).paused);
        let all = [pause("a"), pause("b"), pause("b:en"), pause("bb")];
        for last in [add, remove(true), remove(false)] {
            assert_eq!(paused(&[&all[..], std::slice::from_ref(&last)].concat()), ["a", "bb"], "{last:?}");
        }
    }

    #[test]
    fn changes_are_read_as_they_were_written() {
        let changes = [
            Change::RemoveCorpus { corpus: "b".to_owned(), configured: true },
            Change::AddCorpus { corpus: section("b") },
            Change::PauseCorpus { corpus: "b".to_owned() },
            Change::SetShare { language: "en".to_owned(), share: 1.0 },
            Change::ClearShare { language: "en".to_owned() },
            Change::AddTeacher { teacher: section("t") },
            Change::PauseTeacher { teacher: "t".to_owned() },
        ];
        let text = serde_json::to_string(&changes).unwrap();
        assert_eq!(serde_json::from_str::<Vec<Change>>(&text).unwrap(), changes);
        let earlier = r#"{"kind": "remove_corpus", "corpus": "b"}"#;
        let change = Change::RemoveCorpus { corpus: "b".to_owned(), configured: false };
        assert_eq!(serde_json::from_str::<Change>(earlier).unwrap(), change);
        let standing = Standing::of(&changes);
        assert!(standing.paused.contains("b") && standing.shares.is_empty());
        assert!(standing.paused_teachers.contains("t"));
    }

    #[test]
    fn a_corpus_that_was_added_is_removed_without_the_daemon() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        let refusal = remove_offline(path, "b").unwrap_err();
        assert!(refusal.message.contains("no run.json"), "{}", refusal.message);
        {
            let state = StateFolder::open(path).unwrap();
            state.note_start(&store::Identity::default()).unwrap();
            state.note_change(3, &Change::AddCorpus { corpus: section("b") }).unwrap();
            assert_eq!(remove_offline(path, "b").unwrap_err().code, ExitCode::TemporaryFailure, "it runs");
        }
        let failure = |name: &str| {
            let failure = Failure::new(ExitCode::NoInput, format!("corpus[{name}].path: no file"));
            with_advice(failure, path).message
        };
        assert!(failure("b").contains("mergedistill corpus remove --state-dir") && failure("b").contains("run.json"));
        assert_eq!(failure("c"), "corpus[c].path: no file");
        assert_eq!(remove_offline(path, "c").unwrap_err().code, ExitCode::Usage);
        remove_offline(path, "b").unwrap();
        assert_eq!(failure("b"), "corpus[b].path: no file");
        StateFolder::open(path).unwrap().resume_at(7).unwrap();
        let made: Vec<u64> = StateFolder::changes(path).unwrap().iter().map(|made| made.from_sequence).collect();
        assert_eq!(made, [3, 7]);
    }
}
