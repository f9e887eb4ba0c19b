//! How a command reaches a NATS server.

use crate::failure::{ExitCode, Failure};
use clap::Args;
use std::path::PathBuf;
use teacher::remote::{LinkOptions, is_run_name};

/// The server, and the run there.
#[derive(Debug, Args)]
pub struct LinkArgs {
    /// The NATS server, as in the run's [cluster]; several of one cluster with commas.
    #[arg(long, value_name = "URL", default_value = "nats://127.0.0.1:4222")]
    pub url: String,
    /// What the run is called there.
    #[arg(long, value_name = "RUN")]
    pub run: String,
    /// User at the server.
    #[arg(long, value_name = "USER", requires = "password_file")]
    pub user: Option<String>,
    /// File that has the user's password.
    #[arg(long, value_name = "FILE", requires = "user")]
    pub password_file: Option<PathBuf>,
    /// A NATS credentials file.
    #[arg(long, value_name = "FILE", conflicts_with = "user")]
    pub credentials: Option<PathBuf>,
    /// Certificates by which the server's is believed, in place of the system's.
    #[arg(long, value_name = "FILE")]
    pub tls_ca: Option<PathBuf>,
    /// Certificate that is shown to the server.
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_certificate: Option<PathBuf>,
    /// Its key.
    #[arg(long, value_name = "FILE", requires = "tls_certificate")]
    pub tls_key: Option<PathBuf>,
}

impl LinkArgs {
    /// What the server is reached with; streams that are made have so many replicas.
    ///
    /// # Errors
    /// When no run can be called so.
    pub fn options(&self, replicas: usize) -> Result<LinkOptions, Failure> {
        if !is_run_name(&self.run) {
            let message = format!("--run {}: letters, digits, - and _ alone", self.run);
            return Err(Failure::new(ExitCode::Usage, message));
        }
        Ok(LinkOptions {
            url: self.url.clone(),
            run: self.run.clone(),
            login: self.user.clone().zip(self.password_file.clone()),
            credentials: self.credentials.clone(),
            tls_ca: self.tls_ca.clone(),
            tls_identity: self.tls_certificate.clone().zip(self.tls_key.clone()),
            stream_bytes: 0,
            replicas,
        })
    }
}
