//! A folder for what is only measured.

use crate::failure::{ExitCode, Failure};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// A folder that is removed with all that is in it.
#[derive(Debug)]
pub(super) struct TemporaryFolder(PathBuf);

impl TemporaryFolder {
    /// Makes one in the folder `above`, with a name of this process's own.
    ///
    /// # Errors
    /// When it cannot be made.
    pub(super) fn create(above: &Path) -> Result<Self, Failure> {
        let name = format!("mergedistill-{}", std::process::id());
        let mut path = above.join(&name);
        for number in 1.. {
            match fs::create_dir(&path) {
                Ok(()) => break,
                // Of a process that was killed: in a container the next one has the same number.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    path = above.join(format!("{name}-{number}"))
                }
                Err(error) => {
                    let message = format!("cannot create {}: {error}", path.display());
                    return Err(Failure::new(ExitCode::CannotCreate, message));
                }
            }
        }
        Ok(Self(path))
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TemporaryFolder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            tracing::warn!(path = %self.0.display(), %error, "could not remove the temporary folder");
        }
    }
}
