//! What the daemon lets itself be asked and told.

use crate::HistoryQuery;
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
    /// `train` `{step, steps (null: without end), loss, lambda, learning_rate, …}`; `log` `{appended, durable, backlog_bytes, max_backlog_bytes, …}`;
    /// `evaluation` `{step, languages: {<language>: {student_loss, student_top1, teachers: {<teacher>: {loss, top1,
    /// student_loss, student_top1, rdt, ece, student_ece, agreement, retained_mass}}}}}`.
    fn status(&self) -> Value;

    /// Whether everything runs that was configured to; the reason if not.
    fn ready(&self) -> Result<(), String>;

    /// Whether the process does what it should, or has to be restarted; the reason if so.
    fn alive(&self) -> Result<(), String>;

    /// Answers a question other than for the status; the value is the answer's body.
    fn answer(&self, question: Question) -> Result<Value, CommandError>;

    /// Carries out a command; the value is the answer's body.
    fn command(&self, command: Command) -> Result<Value, CommandError>;

    /// Opens a batch for documents that a client is about to send. Called on the server's own thread: must not wait.
    fn push(&self, target: &PushTarget) -> Result<Box<dyn Push>, CommandError>;
}

/// What the daemon can be asked, beside its status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    /// The configuration as it takes effect, without secrets.
    Configuration,
    /// The segments of the log, oldest first.
    Segments,
    /// How much is logged.
    LogLevel,
    /// What is kept of the log.
    Retention,
    /// The course of training, and the rates of the last hours.
    History(HistoryQuery),
}

/// Which documents a client is about to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PushTarget {
    /// Name of the corpus.
    pub corpus: String,
    /// How the documents lie in what is sent.
    pub form: PushForm,
    /// Idempotency key: a batch whose key was taken before adds nothing.
    pub key: Option<String>,
}

/// How documents lie in a request's body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PushForm {
    /// A JSON object a line, with the fields that the corpus is configured for.
    JsonLines,
    /// Text; an empty line ends a document.
    Text,
}

/// A batch that is being received. Dropping it takes it back. All methods are called on the server's own thread: none may
/// wait.
pub trait Push: Send {
    /// The next bytes of the body.
    fn write(&mut self, bytes: &[u8]) -> Result<(), CommandError>;

    /// Whether other clients are refused because of what this one and others hold: a slow one makes room then.
    fn pressed(&self) -> bool;

    /// The body is complete. `answer` is called once, on any thread, when the batch is durable or will never be; the value is
    /// the answer's body.
    fn finish(self: Box<Self>, answer: PushAnswer);
}

/// Takes what became of a batch.
pub type PushAnswer = Box<dyn FnOnce(Result<Value, CommandError>) + Send>;

/// What the daemon can be told.
#[derive(Clone, Debug, PartialEq)]
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
    /// Pauses ingest, and waits until all that it has read is labelled and durable.
    Drain,
    /// Writes a checkpoint now.
    Checkpoint,
    /// Writes the student as a Hugging Face folder.
    Export {
        /// The folder, absolute.
        out: PathBuf,
        /// The student is cut to these languages; empty: it is not.
        languages: Vec<String>,
    },
    /// Trains a cool-down beside the training that goes on, and exports its student.
    Release {
        /// Its optimiser steps, at least 1.
        steps: u64,
        /// The folder that the student goes to, absolute; `None`: one that the daemon chooses.
        out: Option<PathBuf>,
    },
    /// Ends the release that is running.
    CancelRelease,
    /// Has quarantined documents tried again.
    RetryQuarantined {
        /// Identifiers of their notes; none: all.
        ids: Vec<String>,
        /// All of this corpus alone.
        corpus: Option<String>,
    },
    /// Changes what is read, from a known entry of the log on.
    ChangeCorpora(CorporaChange),
    /// Changes who labels, from a known entry of the log on.
    ChangeTeachers(TeachersChange),
    /// Reads the configuration file again, and changes what can change while the daemon runs.
    Reload,
    /// Logs so much, until the next reload or restart.
    SetLogLevel {
        /// A level, or tracing's filter syntax.
        level: String,
    },
    /// Keeps so much of the log, until the next reload or restart. What is not given stays.
    SetRetention {
        /// Segments that nobody needs go while the log is larger; 0: whatever its size.
        retain_bytes: Option<u64>,
        /// Segments that nobody needs go when they are older; 0: whatever their age.
        retain_hours: Option<f64>,
    },
    /// Drains, makes durable, writes a checkpoint and ends the process.
    Shutdown,
}

impl Command {
    /// Its name in lists of operations and in the log.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Pause { .. } => "pause",
            Self::Resume { .. } => "resume",
            Self::Drain => "drain",
            Self::Checkpoint => "checkpoint",
            Self::Export { .. } => "export",
            Self::Release { .. } => "release",
            Self::CancelRelease => "cancel_release",
            Self::RetryQuarantined { .. } => "retry_quarantined",
            Self::ChangeCorpora(CorporaChange::Pause { .. }) => "pause_corpus",
            Self::ChangeCorpora(CorporaChange::Resume { .. }) => "resume_corpus",
            Self::ChangeCorpora(CorporaChange::Share { share: Some(_), .. }) => "set_share",
            Self::ChangeCorpora(CorporaChange::Share { share: None, .. }) => "clear_share",
            Self::ChangeCorpora(CorporaChange::Add { .. }) => "add_corpus",
            Self::ChangeCorpora(CorporaChange::Remove { .. }) => "remove_corpus",
            Self::ChangeTeachers(TeachersChange::Pause { .. }) => "pause_teacher",
            Self::ChangeTeachers(TeachersChange::Resume { .. }) => "resume_teacher",
            Self::ChangeTeachers(TeachersChange::Add { .. }) => "add_teacher",
            Self::Reload => "reload",
            Self::SetLogLevel { .. } => "set_log_level",
            Self::SetRetention { .. } => "set_retention",
            Self::Shutdown => "shutdown",
        }
    }

    /// Whether it changes what later questions are answered with, so that the revision moves when it begins and when it is over.
    #[must_use]
    pub fn changes(&self) -> bool {
        !matches!(self, Self::Checkpoint | Self::Export { .. } | Self::Shutdown)
    }
}

/// A change of what is read while the daemon runs.
#[derive(Clone, Debug, PartialEq)]
pub enum CorporaChange {
    /// Suspends a corpus. What arrives meanwhile is kept.
    Pause {
        /// Its name.
        corpus: String,
    },
    /// Takes a pause back.
    Resume {
        /// Name of the corpus.
        corpus: String,
    },
    /// Gives a language a share of the draws.
    Share {
        /// The language.
        language: String,
        /// `None`: the share that follows from its characters.
        share: Option<f64>,
    },
    /// Reads one more corpus.
    Add {
        /// Its section of the configuration.
        section: Value,
        /// What relative paths in it are relative to, absolute.
        folder: PathBuf,
    },
    /// Reads a corpus no more.
    Remove {
        /// Its name.
        corpus: String,
    },
}

/// A change of who labels while the daemon runs.
#[derive(Clone, Debug, PartialEq)]
pub enum TeachersChange {
    /// A teacher gets no copies.
    Pause {
        /// Its name.
        teacher: String,
    },
    /// Takes a pause back.
    Resume {
        /// Name of the teacher.
        teacher: String,
    },
    /// One more teacher labels.
    Add {
        /// Its section of the configuration.
        section: Value,
        /// What relative paths in it are relative to, absolute.
        folder: PathBuf,
    },
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
