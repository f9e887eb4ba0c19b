//! What a log holds, in numbers. Reads headers alone.

use crate::log::column::{Column, Share};
use crate::log::disk::{Disk, StdDisk};
use crate::log::error::StoreError;
use crate::log::index::Seal;
use crate::log::reader::{LogReader, read_block_header};
use crate::{DurablePosition, SequenceNumber, SourceCursor};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// Numbers of a log, up to its durable position.
#[derive(Clone, Debug, Serialize)]
pub struct LogStat {
    /// Examples.
    pub records: u64,
    /// Copies of all examples.
    pub copies: u64,
    /// Masked positions of all copies.
    pub masked_positions: u64,
    /// Tokens of all copies.
    pub corpus_tokens: u64,
    /// Bytes on disk: blocks, and the headers and footers of segments.
    pub bytes: u64,
    /// Stored bytes of positions, gold ids, top-k, log-sum-exp and gold logits.
    pub label_bytes: u64,
    /// Stored bytes of token ids.
    pub token_bytes: u64,
    /// Segment files.
    pub segments: u64,
    /// First sequence number that was not appended.
    pub appended: SequenceNumber,
    /// First sequence number that is not durable.
    pub durable: DurablePosition,
    /// Documents that could not be used.
    pub skips: u64,
    /// Blocks.
    pub blocks: u64,
    /// Stored bytes by column.
    pub column_bytes: BTreeMap<&'static str, u64>,
    /// Records by language.
    pub languages: BTreeMap<Arc<str>, LanguageStat>,
    /// How far ingestion has got in each source.
    pub sources: BTreeMap<Arc<str>, SourceCursor>,
    /// Whether a process is writing the log.
    pub live: bool,
}

/// Records of one language.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LanguageStat {
    /// For training.
    pub records: u64,
    /// For evaluation.
    pub held_out: u64,
}

/// Counts what is in the log in `dir`, live or stopped.
pub fn stat(dir: &Path) -> Result<LogStat, StoreError> {
    stat_on(Arc::new(StdDisk), dir)
}

/// [`stat`] on another file system.
pub fn stat_on(disk: Arc<dyn Disk>, dir: &Path) -> Result<LogStat, StoreError> {
    let reader = LogReader::open_on(disk, dir)?;
    let live = reader.follower().and_then(|follower| follower.live);
    let (segments, blocks, durable) = {
        let state = reader.state();
        let durable = state.durable;
        let segments = state.index.segments().to_vec();
        let blocks: Vec<_> =
            (0..segments.len()).flat_map(|segment| state.index.blocks_of(segment, durable.end())).collect();
        (segments, blocks, durable)
    };
    let mut stat = LogStat {
        records: 0,
        copies: 0,
        masked_positions: 0,
        corpus_tokens: 0,
        bytes: 0,
        label_bytes: 0,
        token_bytes: 0,
        segments: segments.len() as u64,
        appended: live.map_or(durable.end(), |positions| positions.appended.max(durable.end())),
        durable,
        skips: 0,
        blocks: blocks.len() as u64,
        column_bytes: Column::ALL.iter().map(|column| (column.name(), 0)).collect(),
        languages: BTreeMap::new(),
        sources: reader.cursors(durable)?,
        live: live.is_some(),
    };
    for segment in &segments {
        let footer_bytes = if let Seal::Footer { bytes } = segment.seal { bytes } else { 0 };
        stat.bytes += segment.header_bytes + footer_bytes;
    }
    for place in &blocks {
        let header = read_block_header(reader.disk(), place)?;
        stat.bytes += header.bytes();
        stat.label_bytes += header.share_bytes(Share::Labels);
        stat.token_bytes += header.share_bytes(Share::Tokens);
        stat.records += u64::from(header.totals.records);
        stat.skips += u64::from(header.totals.skips);
        stat.copies += u64::from(header.totals.copies);
        stat.masked_positions += header.totals.masked_positions;
        stat.corpus_tokens += header.totals.corpus_tokens;
        for row in &header.directory {
            *stat.column_bytes.entry(row.column.name()).or_default() += u64::from(row.stored_bytes);
        }
        for row in &header.summary {
            let language = stat.languages.entry(Arc::clone(&row.language)).or_default();
            *(if row.held_out { &mut language.held_out } else { &mut language.records }) += u64::from(row.records);
        }
    }
    Ok(stat)
}
