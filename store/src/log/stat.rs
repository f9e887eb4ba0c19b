//! What a log holds, in numbers. Reads the blocks' headers, and of their columns only those that say which teachers and
//! languages have how many copies.

use crate::log::block::BlockHeader;
use crate::log::column::{Column, Share};
use crate::log::disk::{Disk, StdDisk};
use crate::log::entries::Outline;
use crate::log::error::StoreError;
use crate::log::index::{Seal, Segment};
use crate::log::labels::Shape;
use crate::log::options::Precision;
use crate::log::pass::{Meter, Pass, read_blocks};
use crate::log::reader::{LogReader, read_outlines};
use crate::{ComputedIn, DurablePosition, Identity, SequenceNumber, SourceCursor};
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
    /// Stored bytes of texts.
    pub text_bytes: u64,
    /// Segment files.
    pub segments: u64,
    /// First sequence number in the log.
    pub begin: SequenceNumber,
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
    /// How labels are stored, in order; one row unless that changed.
    pub precisions: Vec<PrecisionRange>,
    /// Copies by teacher.
    pub teachers: BTreeMap<String, TeacherStat>,
    /// Records by language.
    pub languages: BTreeMap<Arc<str>, LanguageStat>,
    /// How far ingestion has got in each source.
    pub sources: BTreeMap<Arc<str>, SourceCursor>,
    /// Whether a process is writing the log.
    pub live: bool,
}

/// Copies of one teacher.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TeacherStat {
    /// Copies, with a label or without.
    pub copies: u64,
    /// Copies with a label.
    pub labelled: u64,
    /// The same by what the label was computed in.
    pub computed_in: BTreeMap<ComputedIn, u64>,
    /// Copies without a label although the teacher labels: it had stalled, and nobody waited for it.
    pub dropped: u64,
    /// Tokens of the copies.
    pub tokens: u64,
    /// Masked positions of the copies.
    pub masked_positions: u64,
}

/// Records of one language. Copies, tokens and masked positions are those of all its records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LanguageStat {
    /// For training.
    pub records: u64,
    /// For evaluation.
    pub held_out: u64,
    /// Those of both that have text.
    pub texts: u64,
    /// Copies of both.
    pub copies: u64,
    /// Tokens of the copies.
    pub tokens: u64,
    /// Masked positions of the copies.
    pub masked_positions: u64,
}

/// Entries whose labels are stored in one way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct PrecisionRange {
    /// Its first sequence number.
    pub from: SequenceNumber,
    /// One past its last.
    pub to: SequenceNumber,
    /// How exactly labels are stored.
    pub precision: Precision,
    /// Entries kept per masked position, k.
    pub top_k: usize,
}

/// Counts what is in the log in `dir`, live or stopped.
pub fn stat(dir: &Path) -> Result<LogStat, StoreError> {
    stat_on(Arc::new(StdDisk), dir)
}

/// [`stat`] on another file system.
pub fn stat_on(disk: Arc<dyn Disk>, dir: &Path) -> Result<LogStat, StoreError> {
    stat_with(disk, dir, &Pass::default())
}

/// [`stat`] as `pass` says.
pub fn stat_with(disk: Arc<dyn Disk>, dir: &Path, pass: &Pass<'_>) -> Result<LogStat, StoreError> {
    loop {
        match stat_once(Arc::clone(&disk), dir, pass) {
            Err(StoreError::Removed { .. }) => {} // Retention was quicker; what is left is counted.
            stat => return stat,
        }
    }
}

fn stat_once(disk: Arc<dyn Disk>, dir: &Path, pass: &Pass<'_>) -> Result<LogStat, StoreError> {
    let reader = LogReader::open_on(disk, dir)?;
    let begin = reader.begin();
    let live = reader.follower().and_then(|follower| follower.live);
    let (segments, durable) = {
        let state = reader.state();
        (state.index.segments().to_vec(), state.durable)
    };
    let tally = pass.on_pool(dir, || tally(&reader, &segments, durable, pass))??;
    Ok(LogStat {
        records: tally.languages.values().map(|language| language.records + language.held_out).sum(),
        copies: tally.copies,
        masked_positions: tally.masked_positions,
        corpus_tokens: tally.corpus_tokens,
        bytes: tally.bytes + segments.iter().map(frame_bytes).sum::<u64>(),
        label_bytes: tally.label_bytes,
        token_bytes: tally.token_bytes,
        text_bytes: tally.text_bytes,
        segments: segments.len() as u64,
        begin,
        appended: live.map_or(durable.end(), |positions| positions.appended.max(durable.end())),
        durable,
        skips: tally.skips,
        blocks: tally.blocks,
        column_bytes: Column::ALL
            .iter()
            .zip(tally.column_bytes)
            .map(|(column, bytes)| (column.name(), bytes))
            .collect(),
        precisions: precisions(&segments, durable.end()),
        teachers: by_name(reader.identity(), tally.teachers),
        languages: tally.languages,
        sources: reader.cursors(durable)?,
        live: live.is_some(),
    })
}

/// Bytes of a segment's header and footer.
fn frame_bytes(segment: &Segment) -> u64 {
    let footer_bytes = if let Seal::Footer { bytes } = segment.seal { bytes } else { 0 };
    segment.header_bytes + footer_bytes
}

fn tally(
    reader: &LogReader,
    segments: &[Segment],
    durable: DurablePosition,
    pass: &Pass<'_>,
) -> Result<Tally, StoreError> {
    let meter = Meter::new(pass, durable.end().0.saturating_sub(reader.begin().0));
    let mut sum = Tally::default();
    for segment in segments {
        let range = (segment.header.first_sequence, segment.link.next.min(durable.end()));
        let read = read_blocks(reader, range, &meter, |place| {
            let (header, outlines) = read_outlines(reader.disk(), place)?;
            Ok(Tally::of(&header, &outlines))
        })?;
        read.into_iter().for_each(|block| sum.add(block));
    }
    Ok(sum)
}

/// Sums over blocks.
#[derive(Default)]
struct Tally {
    blocks: u64,
    bytes: u64,
    label_bytes: u64,
    token_bytes: u64,
    text_bytes: u64,
    skips: u64,
    copies: u64,
    masked_positions: u64,
    corpus_tokens: u64,
    column_bytes: [u64; Column::ALL.len()],
    teachers: BTreeMap<u16, TeacherStat>,
    languages: BTreeMap<Arc<str>, LanguageStat>,
}

impl Tally {
    fn of(header: &BlockHeader, outlines: &[Outline]) -> Self {
        let mut tally = Self {
            blocks: 1,
            bytes: header.bytes(),
            label_bytes: header.share_bytes(Share::Labels),
            token_bytes: header.share_bytes(Share::Tokens),
            text_bytes: header.share_bytes(Share::Texts),
            skips: u64::from(header.totals.skips),
            copies: u64::from(header.totals.copies),
            masked_positions: header.totals.masked_positions,
            corpus_tokens: header.totals.corpus_tokens,
            ..Self::default()
        };
        for row in &header.directory {
            let number = Column::ALL.iter().position(|column| *column == row.column);
            if let Some(bytes) = number.and_then(|number| tally.column_bytes.get_mut(number)) {
                *bytes += u64::from(row.stored_bytes);
            }
        }
        for outline in outlines {
            let language = tally.languages.entry(Arc::clone(&outline.record.language)).or_default();
            *(if outline.record.held_out { &mut language.held_out } else { &mut language.records }) += 1;
            language.texts += u64::from(outline.has_text);
            for copy in &outline.copies {
                language.add_copy(copy);
                tally.teachers.entry(copy.teacher).or_default().add_copy(copy);
            }
        }
        tally
    }

    fn add(&mut self, block: Self) {
        self.blocks += block.blocks;
        self.bytes += block.bytes;
        self.label_bytes += block.label_bytes;
        self.token_bytes += block.token_bytes;
        self.text_bytes += block.text_bytes;
        self.skips += block.skips;
        self.copies += block.copies;
        self.masked_positions += block.masked_positions;
        self.corpus_tokens += block.corpus_tokens;
        self.column_bytes.iter_mut().zip(block.column_bytes).for_each(|(sum, bytes)| *sum += bytes);
        for (teacher, numbers) in block.teachers {
            self.teachers.entry(teacher).or_default().add(numbers);
        }
        for (language, numbers) in block.languages {
            self.languages.entry(language).or_default().add(numbers);
        }
    }
}

impl TeacherStat {
    fn add_copy(&mut self, copy: &Shape) {
        self.add(Self {
            copies: 1,
            labelled: u64::from(copy.top_k.is_some()),
            computed_in: copy.top_k.map(|_| (copy.computed_in, 1)).into_iter().collect(),
            dropped: 0, // Only the teacher table says whether it was to have one.
            tokens: copy.tokens as u64,
            masked_positions: copy.masked as u64,
        });
    }

    fn add(&mut self, other: Self) {
        self.copies += other.copies;
        self.labelled += other.labelled;
        for (computed_in, labels) in other.computed_in {
            *self.computed_in.entry(computed_in).or_default() += labels;
        }
        self.dropped += other.dropped;
        self.tokens += other.tokens;
        self.masked_positions += other.masked_positions;
    }
}

impl LanguageStat {
    fn add_copy(&mut self, copy: &Shape) {
        self.copies += 1;
        self.tokens += copy.tokens as u64;
        self.masked_positions += copy.masked as u64;
    }

    fn add(&mut self, other: Self) {
        self.records += other.records;
        self.held_out += other.held_out;
        self.texts += other.texts;
        self.copies += other.copies;
        self.tokens += other.tokens;
        self.masked_positions += other.masked_positions;
    }
}

/// Every teacher of the table, and what is of none of them by its number.
fn by_name(identity: &Identity, mut numbers: BTreeMap<u16, TeacherStat>) -> BTreeMap<String, TeacherStat> {
    let mut named = BTreeMap::new();
    for (index, teacher) in (0..=u16::MAX).zip(&identity.teachers) {
        let mut stat = numbers.remove(&index).unwrap_or_default();
        stat.dropped = if teacher.labels { stat.copies - stat.labelled } else { 0 };
        named.insert(teacher.name.clone(), stat);
    }
    named.extend(numbers.into_iter().map(|(index, stat)| (format!("#{index}"), stat)));
    named
}

/// Segments that store labels alike, taken together.
fn precisions(segments: &[Segment], end: SequenceNumber) -> Vec<PrecisionRange> {
    let mut ranges: Vec<PrecisionRange> = Vec::new();
    for segment in segments {
        let (from, to) = (segment.header.first_sequence, segment.link.next.min(end));
        let (precision, top_k) = (segment.header.precision, segment.header.top_k);
        match ranges.last_mut() {
            Some(last) if (last.precision, last.top_k) == (precision, top_k) => last.to = to,
            _ => ranges.push(PrecisionRange { from, to, precision, top_k }),
        }
    }
    ranges
}
