//! `mergedistill ctl watch`: a running daemon, live. On a terminal a view of everything, otherwise a line per event.

mod draw;
mod lines;
mod news;
mod terminal;
mod view;

use crate::failure::Failure;
use std::io::IsTerminal;
use std::path::Path;

/// Watches the daemon that listens on `socket`, until whoever watches has seen enough.
pub fn watch(socket: &Path, as_json: bool) -> Result<(), Failure> {
    if as_json || !std::io::stdout().is_terminal() || !std::io::stdin().is_terminal() {
        return lines::print(socket, as_json);
    }
    terminal::show(socket)
}
