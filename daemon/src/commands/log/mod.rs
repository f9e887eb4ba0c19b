//! `mergedistill log …`.

mod audit;
mod copy;
mod dump;
mod parquet;
mod publish;
mod relabel;
mod stat;
mod verify;

use crate::cli::LogCommand;
use crate::failure::{ExitCode, Failure};
use indicatif::{ProgressBar, ProgressStyle};
use model::{ModelError, Tokenizer};
use std::path::Path;
use store::log::{Pass, Progress};

/// Looks into a log, live or stopped, or writes a new one from others.
pub fn log(command: &LogCommand) -> Result<(), Failure> {
    match command {
        LogCommand::Stat(args) => stat::stat(args),
        LogCommand::Verify { log, threads } => verify::verify(log, *threads),
        LogCommand::Dump(args) => dump::dump(args),
        LogCommand::Copy(args) => copy::copy(args),
        LogCommand::Merge(args) => copy::merge(args),
        LogCommand::Audit(args) => audit::audit(args),
        LogCommand::Relabel(args) => relabel::relabel(args),
        LogCommand::Export(args) => parquet::export(args),
        LogCommand::Publish(args) => publish::publish(args),
        LogCommand::Follow(args) => publish::follow(args),
    }
}

/// The tokenizer of a teacher's folder.
fn open_tokenizer(folder: &Path) -> Result<Tokenizer, Failure> {
    if !folder.is_dir() {
        let message = format!("there is no folder {}; correct the path", folder.display());
        return Err(Failure::new(ExitCode::NoInput, message));
    }
    Tokenizer::load(folder).map_err(model_failure)
}

fn model_failure(error: ModelError) -> Failure {
    Failure::new(ExitCode::of_model(&error), error)
}

/// A bar on standard error, if that is a terminal; cleared when dropped.
struct Bar(ProgressBar);

impl Bar {
    fn new(what: &'static str) -> Self {
        let template = "{prefix}  {bar:30} {human_pos} of {human_len} entries  {per_sec}  {eta}";
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        Self(ProgressBar::new(0).with_style(style).with_prefix(what))
    }

    fn show(&self, progress: Progress) {
        if progress.total > 0 {
            self.0.set_length(progress.total);
        }
        self.0.set_position(progress.entries);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// Rows as lines of aligned columns: the first to the left, the others to the right.
fn aligned(rows: &[Vec<String>]) -> Vec<String> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, width))| match column {
            0 => format!("{cell:<width$}"),
            _ => format!("{cell:>width$}"),
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::aligned;

    #[test]
    fn columns_are_aligned() {
        let rows = [vec!["teacher".to_owned(), "copies".to_owned()], vec!["en".to_owned(), "7".to_owned()]];
        assert_eq!(aligned(&rows), ["teacher  copies", "en            7"]);
    }
}
