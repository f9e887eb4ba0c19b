//! The command line of `worker`.

use super::link::LinkArgs;
use super::place::PlaceArgs;
use super::size;
use clap::Args;
use std::net::SocketAddr;
use std::path::PathBuf;

/// Arguments of `worker`.
#[derive(Debug, Args)]
pub struct WorkerArgs {
    /// The server and the run.
    #[command(flatten)]
    pub link: LinkArgs,
    /// Hugging Face folder of the teacher.
    #[arg(long, value_name = "DIR")]
    pub teacher: PathBuf,
    /// What the run calls the teacher [default: the folder's name].
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// What the worker is called; no other worker of the run is [default: host and process].
    #[arg(long, value_name = "ID")]
    pub id: Option<String>,
    /// Loopback address of metrics, health and status; port 0: any free one.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0", value_parser = loopback)]
    pub http: SocketAddr,
    /// Threads that label on the processor [default: all cores].
    #[arg(long, value_name = "N", value_parser = size(1..=1024))]
    pub threads: Option<usize>,
    /// Where it labels.
    #[command(flatten)]
    pub place: PlaceArgs,
}

/// Metrics are for this machine's scraper.
fn loopback(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr = text.parse().map_err(|_| "give an address and a port, as 127.0.0.1:8478".to_owned())?;
    if address.ip().is_loopback() {
        Ok(address)
    } else {
        Err("only this machine may ask: give a loopback address".to_owned())
    }
}
