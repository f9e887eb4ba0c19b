//! Sockets that the service manager listens on before the daemon does, and while it is started anew (`sd_listen_fds(3)`).
//!
//! What kind of socket it is says which door it is for, so their names (`LISTEN_FDNAMES`) appear in messages alone. Their files, and
//! who may connect, are the service manager's: nothing of that is changed, and nothing removed.

use crate::OpsError;
use crate::listen::{self, check_loopback};
use listenfd::ListenFd;
use std::env;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixListener;

/// The sockets that this process was started with; none, if it was not started for sockets.
#[derive(Debug, Default)]
pub struct Activated {
    pub(crate) http: Option<TcpListener>,
    pub(crate) control: Option<UnixListener>,
}

impl Activated {
    /// Takes the sockets from the environment: `LISTEN_FDS` many, from descriptor 3 on, if `LISTEN_PID` is this process. To be called
    /// once, before there are other threads: it removes these variables.
    ///
    /// # Errors
    /// When one is neither a stream socket on a loopback address nor a unix stream socket, or there are two of a kind.
    pub fn take() -> Result<Self, OpsError> {
        let names = env::var("LISTEN_FDNAMES").unwrap_or_default();
        let mut names = names.split(':');
        let (mut passed, mut activated) = (ListenFd::from_env(), Self::default());
        for number in 0..passed.len() {
            let name = names.next().filter(|name| !name.is_empty()).unwrap_or("without a name");
            let refused = |reason: String| OpsError::Activation { number, name: name.to_owned(), reason };
            if let Ok(Some(control)) = passed.take_unix_listener(number) {
                control.set_nonblocking(true).map_err(|error| refused(error.to_string()))?;
                if activated.control.replace(control).is_some() {
                    return Err(refused("it is a second unix socket; there is one door for control".to_owned()));
                }
            } else if let Ok(Some(http)) = passed.take_tcp_listener(number) {
                let address = http.local_addr().map_err(|error| refused(error.to_string()))?;
                check_loopback(address)?;
                http.set_nonblocking(true).map_err(|error| refused(error.to_string()))?;
                if activated.http.replace(http).is_some() {
                    return Err(refused(
                        "it is a second TCP socket; there is one for metrics and live page".to_owned(),
                    ));
                }
            } else {
                return Err(refused("it is neither a TCP nor a unix stream socket".to_owned()));
            }
        }
        Ok(activated)
    }

    /// Fails if nobody can listen for HTTP at `address`, unless that socket was passed. A start that would be refused for it is better refused at once.
    ///
    /// # Errors
    /// [`OpsError::Http`], [`OpsError::NotLoopback`].
    pub fn try_http(&self, address: SocketAddr) -> Result<(), OpsError> {
        match self.http {
            Some(_) => Ok(()),
            None => listen::tcp(address).map(drop),
        }
    }
}
