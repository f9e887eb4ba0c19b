//! Taking the two addresses the server listens on, and giving the socket's file back.

use crate::OpsError;
use std::fs::{self, DirBuilder, Metadata, Permissions};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// `sun_path` of `sockaddr_un` has 108 bytes, the last of which is 0.
pub(crate) const SOCKET_PATH_BYTES: usize = 107;

/// Owner and group may talk to the daemon.
const SOCKET_MODE: u32 = 0o660;
/// The group has to reach the socket, nobody has to list the rest.
const FOLDER_MODE: u32 = 0o750;

/// The listening socket's place in the file system; removed on drop.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

pub(crate) fn tcp(address: SocketAddr) -> Result<TcpListener, OpsError> {
    check_loopback(address)?;
    let listen = || {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    };
    listen().map_err(|source| OpsError::Http { address, source })
}

/// Refuses addresses that other machines reach.
pub(crate) fn check_loopback(address: SocketAddr) -> Result<(), OpsError> {
    if address.ip().to_canonical().is_loopback() { Ok(()) } else { Err(OpsError::NotLoopback { address }) }
}

/// Refuses a path that is longer than a socket's may be.
///
/// # Errors
/// [`OpsError::SocketPathTooLong`].
pub fn check_socket_path(path: &Path) -> Result<(), OpsError> {
    let (path, length_bytes, limit_bytes) = (path.to_owned(), path.as_os_str().as_bytes().len(), SOCKET_PATH_BYTES);
    if length_bytes > limit_bytes {
        Err(OpsError::SocketPathTooLong { path, length_bytes, limit_bytes })
    } else {
        Ok(())
    }
}

pub(crate) fn unix(path: &Path) -> Result<(UnixListener, SocketFile), OpsError> {
    check_socket_path(path)?;
    let failed = |action| move |source| OpsError::Socket { action, path: path.to_owned(), source };
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(folder).map_err(failed("create the folder of"))?;
    }
    remove_stale(path)?;
    // Connecting takes write permission: until the next line it is the umask that keeps others out.
    let listener = UnixListener::bind(path).map_err(failed("listen on"))?;
    fs::set_permissions(path, Permissions::from_mode(SOCKET_MODE)).map_err(failed("set the permissions of"))?;
    listener.set_nonblocking(true).map_err(failed("listen on"))?;
    let metadata = fs::symlink_metadata(path).map_err(failed("read the metadata of"))?;
    Ok((listener, SocketFile { path: path.to_owned(), identity: identity(&metadata) }))
}

/// Removes the socket that a dead process left behind; nothing else.
fn remove_stale(path: &Path) -> Result<(), OpsError> {
    let failed = |action| move |source| OpsError::Socket { action, path: path.to_owned(), source };
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.file_type().is_socket() => {}
        Ok(_) => return Err(OpsError::NotASocket { path: path.to_owned() }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("read the metadata of")(error)),
    }
    match UnixStream::connect(path) {
        Ok(_answered) => Err(OpsError::SocketInUse { path: path.to_owned() }),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            tracing::info!(path = %path.display(), "removing the control socket of a process that is gone");
            fs::remove_file(path).map_err(failed("remove the stale"))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed("find out who listens on")(error)),
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Another process may have the path by now.
        let still_ours = fs::symlink_metadata(&self.path).is_ok_and(|metadata| identity(&metadata) == self.identity);
        if still_ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the control socket");
        }
    }
}

fn identity(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}
