//! `[store]`

use super::sections::{Run, path};
use super::table::Table;
use serde::Serialize;
use std::path::{Path, PathBuf};
use store::Precision;

/// `[store]`
#[derive(Clone, Debug, Serialize)]
pub struct Store {
    /// Folder of the log.
    pub path: PathBuf,
    /// Labels kept per masked position, k.
    pub top_k: usize,
    /// How many of them are drawn from the rest of the vocabulary, so that all together stand for the whole distribution without bias; 0: all
    /// are the teacher's best.
    pub tail_samples: usize,
    /// Tokens in an example, [CLS] and [SEP] included; unset: the student's, or as many as the teachers have positions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_sequence_length: Option<usize>,
    /// How labels are stored.
    pub precision: Precision,
    /// The log holds the text of each example, so that a later teacher can label it (`mergedistill log relabel`).
    pub keep_text: bool,
    /// A segment is sealed when it is this large.
    pub segment_bytes: u64,
    /// Longest time for which appended records may not be durable.
    pub sync_interval_ms: u64,
    /// Ingestion waits while the trainer is this far behind.
    pub max_backlog_bytes: u64,
    /// Sealed segments that nobody needs are removed while the log is larger than this; 0: everything is kept.
    pub retain_bytes: u64,
    /// Sealed segments that nobody needs are removed when their files were written longer ago than this; 0: at no age.
    pub retain_hours: f64,
}

impl Store {
    pub(super) fn read(mut table: Table, folder: &Path, run: &Run) -> Self {
        let path = path(&mut table, "path", folder).unwrap_or_else(|| run.state_dir.join("log"));
        let store = Self {
            path,
            top_k: table.size("top_k", 8, 1..=512),
            tail_samples: table.size("tail_samples", 0, ..=511),
            max_sequence_length: Some(table.size("max_sequence_length", 0, 16..=8192)).filter(|&length| length > 0),
            precision: table.choice("precision", &[("exact", Precision::Exact), ("compact", Precision::Compact)]),
            keep_text: table.boolean("keep_text", false),
            segment_bytes: table.integer("segment_bytes", 134_217_728, 65_536..=1_099_511_627_776),
            sync_interval_ms: table.integer("sync_interval_ms", 200, ..=60_000),
            max_backlog_bytes: table.integer("max_backlog_bytes", 8_589_934_592, 1_048_576..),
            retain_bytes: table.integer("retain_bytes", 0, ..),
            retain_hours: table.number("retain_hours", 0.0, 0.0..=1e6),
        };
        if store.tail_samples >= store.top_k {
            let message = format!(
                "{} of top_k = {}: at least one label has to be the teacher's best; lower it, or raise top_k",
                store.tail_samples, store.top_k
            );
            table.problem("tail_samples", message);
        }
        if store.tail_samples > 0 && store.precision == Precision::Compact {
            table.problem("tail_samples", "goes with precision = \"exact\": compact precision would lose the weights");
        }
        if store.retain_bytes > 0 && store.retain_bytes < store.segment_bytes {
            let message = format!(
                "{} is less than one segment ({}), and only whole segments are removed; raise it, or lower segment_bytes",
                store.retain_bytes, store.segment_bytes
            );
            table.problem("retain_bytes", message);
        }
        table.finish();
        store
    }
}
