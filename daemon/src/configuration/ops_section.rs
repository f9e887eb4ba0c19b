//! `[ops]`

use super::sections::{Run, path};
use super::table::Table;
use serde::Serialize;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// In `ops.control`: everybody whom the socket's permissions let in.
const EVERYBODY: &str = "*";

/// `[ops]`
#[derive(Clone, Debug, Serialize)]
pub struct Ops {
    /// Loopback address of the read-only HTTP endpoint; port 0: any free one.
    pub http: SocketAddr,
    /// Unix socket of the control endpoint.
    pub socket: PathBuf,
    /// File with the token that opens control, and pushing, on the HTTP endpoint; none: neither is open there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
    /// Users and `@groups` who may change something over the socket; `*`: everybody whom its permissions let in.
    pub control: Vec<String>,
    /// Whether training writes event files for TensorBoard.
    pub tensorboard: bool,
    /// How much to log; the command line and the environment come first.
    pub log: String,
}

impl Ops {
    /// Who may change something over the socket; `None`: everybody whom its permissions let in.
    pub fn controllers(&self) -> Result<Option<ops::Controllers>, ops::OpsError> {
        if self.control.iter().any(|name| name == EVERYBODY) {
            return Ok(None);
        }
        ops::Controllers::find(self.control.iter().map(String::as_str)).map(Some)
    }

    pub(super) fn read(mut table: Table, folder: &Path, run: &Run) -> Self {
        let fallback = SocketAddr::from(([127, 0, 0, 1], 0));
        let http = table.string("http", "127.0.0.1:0");
        let http = http.parse().unwrap_or_else(|_| {
            table.problem("http", format!("\"{http}\" is not an address and port, e.g. \"127.0.0.1:9400\""));
            fallback
        });
        if !http.ip().is_loopback() {
            table.problem("http", format!("{http} is not a loopback address; use 127.0.0.1 or [::1]"));
        }
        let socket = path(&mut table, "socket", folder).unwrap_or_else(|| run.state_dir.join("control.sock"));
        let token_file = path(&mut table, "token_file", folder);
        let control = table.strings_or("control", &[EVERYBODY]);
        let tensorboard = table.boolean("tensorboard", true);
        let log = table.string("log", "info");
        if let Err(message) = crate::level::filter(&log) {
            table.problem("log", message);
        }
        table.finish();
        Self { http, socket, token_file, control, tensorboard, log }
    }
}
