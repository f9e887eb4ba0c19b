//! What the daemon lets itself be asked and told.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// The daemon, as the server sees it. Called from threads of a pool, several at a time; [`Control::command`]
/// may take seconds, the questions must not.
pub trait Control: Send + Sync {
    /// The state of everything, as a JSON object. The server adds each stage's counters under
    /// `stages.<stage>` (`items_in`, `items_out`, `in_flight`, `last_progress_timestamp_seconds`) from the registry
    /// and leaves what is there already alone.
    ///
    /// The live page shows any object; it gives a place of their own to:
    /// `version`, `state`, `uptime_seconds`; `stages.<stage>.paused` and `.waiting` (text: for what);
    /// `train` `{step, steps, loss, lambda, learning_rate, …}`; `log` `{appended, durable, backlog_bytes, max_backlog_bytes, …}`;
    /// `evaluation` `{step, languages: {<language>: {student_loss, student_top1, teachers: {<teacher>: {loss, top1,
    /// student_loss, student_top1, rdt}}}}}`.
    fn status(&self) -> Value;

    /// Whether everything runs that was configured to; the reason if not.
    fn ready(&self) -> Result<(), String>;

    /// Whether the process does what it should, or has to be restarted; the reason if so.
    fn alive(&self) -> Result<(), String>;

    /// Carries out a command; the value is the answer's body.
    fn command(&self, command: Command) -> Result<Value, CommandError>;
}

/// What the daemon can be told over the unix socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Suspends a stage at its next safe point; all stages without one.
    Pause {
        /// The stage, or all.
        stage: Option<Stage>,
    },
    /// Takes a pause back.
    Resume {
        /// The stage, or all.
        stage: Option<Stage>,
    },
    /// Writes a checkpoint now.
    Checkpoint,
    /// Writes the student as a Hugging Face folder.
    Export {
        /// The folder, absolute.
        out: PathBuf,
    },
    /// Drains, makes durable, writes a checkpoint and ends the process.
    Shutdown,
}

/// A stage that can be paused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// Reads, tokenises and masks the corpora.
    Ingest,
    /// The teacher runners.
    Teacher,
    /// Trains the student.
    Trainer,
}

impl Stage {
    /// Every stage, in the order in which data passes them.
    pub const ALL: [Stage; 3] = [Stage::Ingest, Stage::Teacher, Stage::Trainer];

    /// The name in requests and on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Stage::Ingest => "ingest",
            Stage::Teacher => "teacher",
            Stage::Trainer => "trainer",
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Stage {
    type Err = UnknownStage;

    fn from_str(name: &str) -> Result<Self, UnknownStage> {
        Stage::ALL.into_iter().find(|stage| stage.name() == name).ok_or_else(|| UnknownStage(name.to_owned()))
    }
}

/// A name that is no stage's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a stage: one of ingest, teacher, trainer")]
pub struct UnknownStage(String);

/// Why a command was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct CommandError {
    /// Stable name of the reason, `like_this`.
    pub code: &'static str,
    /// For a person: what happened and what to do about it.
    pub message: String,
    /// HTTP status, 400 to 599.
    pub status: u16,
}
