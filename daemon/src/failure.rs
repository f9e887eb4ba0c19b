//! Why the program ends, and with which exit code (sysexits(3)).

use ingest::IngestError;
use model::ModelError;
use model::device::DeviceError;
use ops::{ClientError, OpsError};
use std::fmt;
use std::io::ErrorKind;
use store::StoreError;
use teacher::TeacherError;
use teacher::remote::LogStreamError;
use trainer::TrainerError;

/// Exit codes, named as in sysexits(3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitCode {
    /// `ctl status`: nobody is there. As for scripts that start services (LSB), not as in sysexits(3).
    NotRunning = 3,
    /// `ctl status`: it cannot be told whether somebody is there.
    UnknownStatus = 4,
    /// The command line was wrong.
    Usage = 64,
    /// Input data are broken; a corrupt log too.
    DataError = 65,
    /// An input does not exist or cannot be read.
    NoInput = 66,
    /// A bug.
    Software = 70,
    /// An output cannot be created.
    CannotCreate = 73,
    /// Reading or writing failed.
    IoError = 74,
    /// Something is in use; try again.
    TemporaryFailure = 75,
    /// Permissions do not allow it.
    NotPermitted = 77,
    /// The configuration is wrong.
    Configuration = 78,
}

/// What to do about a full disk.
const FREE_SPACE: &str = "free some space and start again: nothing that was durable is lost";

/// An error on its way to the user.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The process's exit code.
    pub code: ExitCode,
    /// What was being done, to what, and what to do about it.
    pub message: String,
}

impl Failure {
    /// A failure with an exit code and a message.
    pub fn new(code: ExitCode, message: impl fmt::Display) -> Self {
        Self { code, message: message.to_string() }
    }

    /// As [`Failure::new`], with advice if the disk is full: libraries pass the system's words on, not its error.
    fn of_system(code: ExitCode, message: impl fmt::Display) -> Self {
        let message = message.to_string();
        match message.contains("(os error 28)") {
            true => Self::new(ExitCode::IoError, format!("{message}: the disk is full; {FREE_SPACE}")),
            false => Self::new(code, message),
        }
    }

    /// A failure to read or write `path`.
    pub fn io(doing: &str, path: &std::path::Path, error: &std::io::Error) -> Self {
        let code = ExitCode::of_io(error);
        Self::of_system(code, format!("cannot {doing} {}: {error}", path.display()))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.message.fmt(f)
    }
}

impl std::error::Error for Failure {}

impl ExitCode {
    /// The code for a failure of the operating system.
    pub fn of_io(error: &std::io::Error) -> Self {
        match error.kind() {
            ErrorKind::NotFound => Self::NoInput,
            ErrorKind::PermissionDenied | ErrorKind::AlreadyExists | ErrorKind::ReadOnlyFilesystem => {
                Self::CannotCreate
            }
            _ => Self::IoError,
        }
    }

    /// The code for a model's folder that cannot be used.
    pub fn of_model(error: &ModelError) -> Self {
        match error {
            ModelError::Read { source, .. } => Self::of_io(source),
            ModelError::NoWeights { .. } | ModelError::NoTokenizer { .. } => Self::NoInput,
            ModelError::Write { .. } => Self::IoError,
            ModelError::Threads { .. } | ModelError::Instructions { .. } => Self::Software,
            ModelError::Device(DeviceError::Unusable { .. }) => Self::Configuration,
            ModelError::Device(_) => Self::TemporaryFailure,
            _ => Self::DataError,
        }
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        let code = match &error {
            StoreError::NoSpace { .. } | StoreError::NoRoom { .. } => ExitCode::IoError,
            StoreError::Io { source, .. } => ExitCode::of_io(source),
            StoreError::Corrupt { .. }
            | StoreError::TooShort { .. }
            | StoreError::AnotherLog { .. }
            | StoreError::NewerVersion { .. }
            | StoreError::Unmergeable { .. } => ExitCode::DataError,
            StoreError::OutputUnusable { .. } => ExitCode::CannotCreate,
            StoreError::Selection { .. } => ExitCode::Usage,
            StoreError::IdentityMismatch { .. } => ExitCode::Configuration,
            StoreError::NoLog { .. } => ExitCode::NoInput,
            StoreError::InUse { .. } | StoreError::Removed { .. } => ExitCode::TemporaryFailure,
            _ => ExitCode::Software,
        };
        Self::new(code, error)
    }
}

impl From<IngestError> for Failure {
    fn from(error: IngestError) -> Self {
        let code = match &error {
            IngestError::NothingMatches { .. } => ExitCode::NoInput,
            IngestError::Pattern { .. } | IngestError::Options(_) => ExitCode::Configuration,
            IngestError::Io { source, .. } => ExitCode::of_io(source),
            IngestError::Changed { .. } | IngestError::Inbox { .. } => ExitCode::DataError,
            IngestError::Gone { .. } => ExitCode::NoInput,
            IngestError::Tokenise { .. } | IngestError::Metrics(_) => ExitCode::Software,
        };
        Self::of_system(code, error)
    }
}

impl From<LogStreamError> for Failure {
    fn from(error: LogStreamError) -> Self {
        let code = match error {
            LogStreamError::Store(error) => return error.into(),
            LogStreamError::Link(_) => ExitCode::TemporaryFailure,
            LogStreamError::AnotherLog { .. } => ExitCode::Configuration,
            LogStreamError::Gap { .. } | LogStreamError::Message(_) => ExitCode::DataError,
            LogStreamError::Start(_) => ExitCode::Software,
        };
        Self::new(code, error)
    }
}

impl From<TeacherError> for Failure {
    fn from(error: TeacherError) -> Self {
        let code = match &error {
            TeacherError::Model { source, .. } => ExitCode::of_model(source),
            TeacherError::NonFinite { .. } => ExitCode::DataError,
            TeacherError::FewWords { .. } => ExitCode::Configuration,
            TeacherError::Worker { .. } => ExitCode::DataError,
            TeacherError::Quarantine { .. } => ExitCode::IoError,
            TeacherError::Link(_) => ExitCode::TemporaryFailure,
            TeacherError::Thread { .. } | TeacherError::Metrics(_) | TeacherError::Panicked(_) => ExitCode::Software,
        };
        Self::new(code, error)
    }
}

impl From<TrainerError> for Failure {
    fn from(error: TrainerError) -> Self {
        let code = match error {
            TrainerError::Io { ref source, .. } => ExitCode::of_io(source),
            TrainerError::Corrupt { .. } | TrainerError::LogBehind { .. } | TrainerError::Diverged { .. } => {
                ExitCode::DataError
            }
            TrainerError::Identity { .. } | TrainerError::Configuration(_) => ExitCode::Configuration,
            TrainerError::ExportTarget { .. } => ExitCode::CannotCreate,
            TrainerError::Removed { .. } => ExitCode::TemporaryFailure,
            TrainerError::NoCheckpoint { .. } | TrainerError::Unreplayable { .. } => ExitCode::NoInput,
            TrainerError::Model(ref source) => ExitCode::of_model(source),
            TrainerError::Store(source) => return source.into(),
            _ => ExitCode::Software,
        };
        Self::of_system(code, error)
    }
}

impl From<OpsError> for Failure {
    fn from(error: OpsError) -> Self {
        let code = match &error {
            error if error.in_use() => ExitCode::TemporaryFailure,
            OpsError::TokenFile { source, .. } if source.kind() == ErrorKind::PermissionDenied => {
                ExitCode::NotPermitted
            }
            OpsError::Http { source, .. } | OpsError::Socket { source, .. } | OpsError::TokenFile { source, .. } => {
                ExitCode::of_io(source)
            }
            OpsError::NotASocket { .. } => ExitCode::CannotCreate,
            OpsError::NotLoopback { .. }
            | OpsError::SocketPathTooLong { .. }
            | OpsError::Token { .. }
            | OpsError::Controller { .. }
            | OpsError::Activation { .. } => ExitCode::Configuration,
            _ => ExitCode::Software,
        };
        let advice = match &error {
            OpsError::TokenFile { source, .. } if source.kind() == ErrorKind::PermissionDenied => {
                "\nThe file stays root's: the service reads it by LoadCredential= (a drop-in, see mergedistill.service), and token_file names the \
                 copy in /run/credentials/mergedistill.service. Anyone else who starts the daemon needs to own the file."
            }
            _ => "",
        };
        Self::of_system(code, format!("{error}{advice}"))
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let code = match &error {
            ClientError::NoSocket { .. } | ClientError::NobodyListens { .. } | ClientError::Silent { .. } => {
                ExitCode::TemporaryFailure
            }
            ClientError::Connect { source, .. } => ExitCode::of_io(source),
            ClientError::Request { .. } => ExitCode::Software,
            ClientError::NotAllowed { .. } => ExitCode::NotPermitted,
            _ => ExitCode::IoError,
        };
        let advice = match &error {
            ClientError::NoSocket { .. } => {
                "\nStart one with `mergedistill run --config FILE` or `systemctl start mergedistill`, or name the socket of one that runs: \
                 --socket PATH, or MERGEDISTILL_SOCKET."
            }
            ClientError::NobodyListens { .. } => {
                "\nIf it is a socket, a daemon that was killed left it there; the next start takes its place: `mergedistill run --config FILE`, or \
                 `systemctl start mergedistill`."
            }
            ClientError::NotAllowed { .. } => {
                "\nUse sudo, or have an administrator add you to the group of the socket (`stat --format %G SOCKET` names it)."
            }
            _ => "",
        };
        Self::new(code, format!("{error}{advice}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_configuration_says_of_control_has_an_exit_code() {
        let token = |kind: ErrorKind| OpsError::TokenFile { path: "token".into(), source: kind.into() };
        let controller = OpsError::Controller { name: "alcie".to_owned(), reason: "there is no such user".to_owned() };
        for (error, code) in [
            (token(ErrorKind::PermissionDenied), ExitCode::NotPermitted),
            (token(ErrorKind::NotFound), ExitCode::NoInput),
            (controller, ExitCode::Configuration),
        ] {
            let failure = Failure::from(error);
            assert_eq!(failure.code, code, "{failure}");
            assert_eq!(failure.message.contains("LoadCredential="), code == ExitCode::NotPermitted, "{failure}");
        }
    }
}
