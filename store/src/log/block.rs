//! A block: the unit of append, checksum and read.

use crate::log::codec::{Compaction, SegmentTables};
use crate::log::column::{Coding, Column, ColumnBytes, Columns, Compressor, MAX_COLUMN_BYTES, Share, decompress};
use crate::log::disk::{DiskFile, read_exact_at, read_exact_into};
use crate::log::entries::{self, Outline};
use crate::log::error::{Damage, Fault};
use crate::log::wire::Wire;
use crate::{Entry, Payload, SequenceNumber, SourceCursor};
use std::collections::BTreeMap;
use std::sync::Arc;

/// First bytes of a block.
pub(crate) const BLOCK_MAGIC: [u8; 4] = *b"MDbk";

/// Bytes of a header before its tables.
const FIXED_BYTES: usize = 80;

/// Largest header that is read.
const MAX_HEADER_BYTES: usize = 1 << 20;

/// What binds a block to the one before it: the first block of a log follows the default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Link {
    /// Sequence number of the next entry.
    pub(crate) next: SequenceNumber,
    /// Header checksum of the last block.
    pub(crate) checksum: u32,
}

/// A block's header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BlockHeader {
    /// Bytes of the header itself.
    pub(crate) header_bytes: u64,
    /// Bytes of the columns, as stored.
    pub(crate) payload_bytes: u64,
    /// What comes before this block.
    pub(crate) previous: Link,
    /// Number of entries, at least 1.
    pub(crate) entries: u32,
    /// The log's durable position when this block was written.
    pub(crate) durable: SequenceNumber,
    pub(crate) totals: Totals,
    /// Sorted by language, then held out or not.
    pub(crate) summary: Vec<SummaryRow>,
    pub(crate) directory: Vec<DirectoryRow>,
    /// CRC-32 of the header; the directory holds those of the columns.
    pub(crate) checksum: u32,
}

/// What a block holds, counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    pub(crate) records: u32,
    pub(crate) skips: u32,
    pub(crate) copies: u32,
    pub(crate) masked_positions: u64,
    pub(crate) corpus_tokens: u64,
}

/// Records of one language, held out or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SummaryRow {
    pub(crate) language: Arc<str>,
    pub(crate) held_out: bool,
    pub(crate) records: u32,
}

/// Where a column is; columns lie one after another behind the header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DirectoryRow {
    pub(crate) column: Column,
    pub(crate) coding: Coding,
    pub(crate) raw_bytes: u32,
    pub(crate) stored_bytes: u32,
    pub(crate) checksum: u32,
}

impl BlockHeader {
    /// Bytes of the whole block.
    pub(crate) fn bytes(&self) -> u64 {
        self.header_bytes + self.payload_bytes
    }

    /// Its first sequence number.
    pub(crate) fn first(&self) -> SequenceNumber {
        self.previous.next
    }

    /// What the block after this one must follow.
    pub(crate) fn link(&self) -> Link {
        Link { next: SequenceNumber(self.first().0 + u64::from(self.entries)), checksum: self.checksum }
    }

    /// Stored bytes of the columns that count as `share`.
    pub(crate) fn share_bytes(&self, share: Share) -> u64 {
        let of_share = self.directory.iter().filter(|row| row.column.share() == share);
        of_share.map(|row| u64::from(row.stored_bytes)).sum()
    }

    /// Reads the header at `offset` of a file.
    pub(crate) fn read(file: &dyn DiskFile, offset: u64) -> Result<Self, Fault> {
        Ok(Self::parse(&Self::read_bytes(file, offset)?)?)
    }

    /// Reads the bytes of the header at `offset` of a file, whether they are intact or not.
    pub(crate) fn read_bytes(file: &dyn DiskFile, offset: u64) -> Result<Vec<u8>, Fault> {
        let length = Self::announced_bytes(&read_exact_at(file, offset, 8)?)?;
        Ok(read_exact_at(file, offset, length)?)
    }

    /// Reads the header at the beginning of `bytes`.
    pub(crate) fn parse_first(bytes: &[u8]) -> Result<Self, Damage> {
        let length = Self::announced_bytes(bytes)?;
        Self::parse(bytes.get(..length).ok_or_else(|| Damage::new("a block header that ends too early"))?)
    }

    fn announced_bytes(start: &[u8]) -> Result<usize, Damage> {
        let mut wire = Wire::new(start);
        if wire.take(4)? != BLOCK_MAGIC {
            return Err(Damage::new("no block begins here"));
        }
        let length = wire.u32()? as usize;
        if !(FIXED_BYTES + 4..=MAX_HEADER_BYTES).contains(&length) {
            return Err(Damage::new(format!("a block header of {length} bytes")));
        }
        Ok(length)
    }

    fn parse(bytes: &[u8]) -> Result<Self, Damage> {
        let (body, stored) = bytes.split_last_chunk().ok_or_else(|| Damage::new("a block header without checksum"))?;
        let checksum = u32::from_le_bytes(*stored);
        if crc32fast::hash(body) != checksum {
            return Err(Damage::new("the checksum of a block header does not match"));
        }
        let mut wire = Wire::new(body);
        wire.take(8)?; // magic and length
        let payload_bytes = wire.u64()?;
        let previous = Link { next: SequenceNumber(wire.u64()?), checksum: wire.u32()? };
        let (entries, durable) = (wire.u32()?, SequenceNumber(wire.u64()?));
        let totals = Totals {
            records: wire.u32()?,
            skips: wire.u32()?,
            copies: wire.u32()?,
            masked_positions: wire.u64()?,
            corpus_tokens: wire.u64()?,
        };
        if wire.u32()? != 0 {
            return Err(Damage::new("unknown flags in a block header"));
        }
        let (languages, columns) = (wire.u32()?, wire.u32()?);
        wire.bound(languages as usize)?;
        wire.bound(columns as usize)?;
        let summary = (0..languages).map(|_| SummaryRow::parse(&mut wire)).collect::<Result<_, _>>()?;
        let directory = (0..columns).map(|_| DirectoryRow::parse(&mut wire)).collect::<Result<Vec<_>, _>>()?;
        wire.finish()?;
        let header_bytes = bytes.len() as u64;
        let header =
            Self { header_bytes, payload_bytes, previous, entries, durable, totals, summary, directory, checksum };
        header.check()?;
        Ok(header)
    }

    fn check(&self) -> Result<(), Damage> {
        let stored: u64 = self.directory.iter().map(|row| u64::from(row.stored_bytes)).sum();
        if stored != self.payload_bytes {
            return Err(Damage::new(format!("{} bytes of payload with {stored} bytes of columns", self.payload_bytes)));
        }
        if self.entries == 0 || self.previous.next.0.checked_add(u64::from(self.entries)).is_none() {
            return Err(Damage::new(format!("{} entries from {} on", self.entries, self.previous.next)));
        }
        // A token takes a byte at least, so what blocks count can be added up.
        let of_tokens = |row: &&DirectoryRow| row.column.share() == Share::Tokens;
        let tokens: u64 = self.directory.iter().filter(of_tokens).map(|row| u64::from(row.raw_bytes)).sum();
        let Totals { masked_positions, corpus_tokens, .. } = self.totals;
        if corpus_tokens > tokens || masked_positions > corpus_tokens {
            return Err(Damage::new(format!(
                "{masked_positions} masked positions of {corpus_tokens} tokens in {tokens} bytes"
            )));
        }
        if self.durable > self.first() {
            return Err(Damage::new(format!("a block at {} that was durable up to {}", self.first(), self.durable)));
        }
        Ok(())
    }

    /// The header's bytes, and its checksum.
    fn encode(&self) -> (Vec<u8>, u32) {
        let mut out = BLOCK_MAGIC.to_vec();
        out.extend([0; 4]); // length, below
        out.extend(self.payload_bytes.to_le_bytes());
        out.extend(self.previous.next.0.to_le_bytes());
        out.extend(self.previous.checksum.to_le_bytes());
        out.extend(self.entries.to_le_bytes());
        out.extend(self.durable.0.to_le_bytes());
        out.extend(self.totals.records.to_le_bytes());
        out.extend(self.totals.skips.to_le_bytes());
        out.extend(self.totals.copies.to_le_bytes());
        out.extend(self.totals.masked_positions.to_le_bytes());
        out.extend(self.totals.corpus_tokens.to_le_bytes());
        out.extend(0_u32.to_le_bytes()); // flags
        out.extend((self.summary.len() as u32).to_le_bytes());
        out.extend((self.directory.len() as u32).to_le_bytes());
        debug_assert_eq!(out.len(), FIXED_BYTES);
        for row in &self.summary {
            out.extend((row.language.len() as u16).to_le_bytes());
            out.extend([u8::from(row.held_out), 0]);
            out.extend(row.records.to_le_bytes());
            out.extend(row.language.as_bytes());
        }
        for row in &self.directory {
            out.extend((row.column as u16).to_le_bytes());
            out.extend([row.coding as u8, 0]);
            out.extend(row.raw_bytes.to_le_bytes());
            out.extend(row.stored_bytes.to_le_bytes());
            out.extend(row.checksum.to_le_bytes());
        }
        let length = (out.len() + 4) as u32;
        out[4..8].copy_from_slice(&length.to_le_bytes());
        let checksum = crc32fast::hash(&out);
        out.extend(checksum.to_le_bytes());
        (out, checksum)
    }
}

impl SummaryRow {
    fn parse(wire: &mut Wire<'_>) -> Result<Self, Damage> {
        let length = wire.u16()?;
        let held_out = match wire.u16()? {
            0 => false,
            1 => true,
            other => return Err(Damage::new(format!("{other} as held out or not"))),
        };
        let records = wire.u32()?;
        let language =
            std::str::from_utf8(wire.take(length.into())?).map_err(|_| Damage::new("a language that is not UTF-8"))?;
        Ok(Self { language: language.into(), held_out, records })
    }
}

impl DirectoryRow {
    fn parse(wire: &mut Wire<'_>) -> Result<Self, Damage> {
        let code = wire.u16()?;
        let column = Column::from_code(code).ok_or_else(|| Damage::new(format!("an unknown column {code}")))?;
        let code = wire.u16()?;
        let coding = u8::try_from(code).ok().and_then(Coding::from_code);
        let coding = coding.ok_or_else(|| Damage::new(format!("an unknown coding {code}")))?;
        let row = Self { column, coding, raw_bytes: wire.u32()?, stored_bytes: wire.u32()?, checksum: wire.u32()? };
        if row.raw_bytes as usize > MAX_COLUMN_BYTES {
            return Err(Damage::new(format!("column {} of {} bytes", column.name(), row.raw_bytes)));
        }
        Ok(row)
    }
}

impl DirectoryRow {
    /// Compares a column's stored bytes with its checksum.
    fn check(&self, stored: &[u8]) -> Result<(), Damage> {
        if crc32fast::hash(stored) != self.checksum {
            return Err(Damage::new(format!("the checksum of column {} does not match", self.column.name())));
        }
        Ok(())
    }
}

/// Counts what entries hold.
pub(crate) fn summarise(entries: &[Entry]) -> (Totals, Vec<SummaryRow>) {
    let mut totals = Totals::default();
    let mut languages: BTreeMap<(&Arc<str>, bool), u32> = BTreeMap::new();
    for entry in entries {
        match &entry.payload {
            Payload::Record(record) => {
                totals.records += 1;
                totals.copies += record.copies.len() as u32;
                totals.masked_positions += record.copies.iter().map(|copy| copy.gold_ids.len() as u64).sum::<u64>();
                totals.corpus_tokens += record.copies.iter().map(|copy| copy.token_ids.len() as u64).sum::<u64>();
                *languages.entry((&record.language, record.held_out)).or_default() += 1;
            }
            Payload::Skip(_) => totals.skips += 1,
            Payload::End => {}
        }
    }
    let row = |((language, held_out), records): ((&Arc<str>, bool), u32)| SummaryRow {
        language: Arc::clone(language),
        held_out,
        records,
    };
    (totals, languages.into_iter().map(row).collect())
}

/// A block that has no place in a log yet.
#[derive(Debug)]
pub(crate) struct EncodedBlock {
    header: BlockHeader,
    /// Room for the header, and the payload.
    bytes: Vec<u8>,
}

impl EncodedBlock {
    /// Encodes well-formed entries, at least one; labels with compact precision if there is a `compaction`, that of the segment.
    pub(crate) fn new(
        entries: &[Entry],
        compaction: Option<&mut Compaction>,
        compressor: &mut Compressor,
    ) -> Result<Self, Damage> {
        let columns = entries::encode(entries, compaction)?;
        let (directory, payload) = compress(&columns, compressor)?;
        let (totals, summary) = summarise(entries);
        let header = BlockHeader {
            header_bytes: 0,
            payload_bytes: payload.len() as u64,
            previous: Link::default(),
            entries: u32::try_from(entries.len()).map_err(|_| Damage::new("more than 2^32 entries"))?,
            durable: SequenceNumber::default(),
            totals,
            summary,
            directory,
            checksum: 0,
        };
        let header_bytes = header.encode().0.len();
        if header_bytes > MAX_HEADER_BYTES {
            return Err(Damage::new(format!("its languages need a block header of {header_bytes} bytes")));
        }
        let mut bytes = vec![0; header_bytes];
        bytes.extend(payload);
        Ok(Self { header: BlockHeader { header_bytes: header_bytes as u64, ..header }, bytes })
    }

    /// Bytes it will take.
    pub(crate) fn bytes(&self) -> u64 {
        self.header.bytes()
    }

    /// Bytes of them that its header takes.
    pub(crate) fn header_bytes(&self) -> u64 {
        self.header.header_bytes
    }

    /// The block's bytes as the one after `previous`.
    pub(crate) fn place(self, previous: Link, durable: SequenceNumber) -> (BlockHeader, Vec<u8>) {
        let Self { header, mut bytes } = self;
        let mut header = BlockHeader { previous, durable, ..header };
        let (encoded, checksum) = header.encode();
        header.checksum = checksum;
        bytes[..encoded.len()].copy_from_slice(&encoded);
        (header, bytes)
    }
}

/// Compresses the columns that are not empty and puts them one after another.
fn compress(columns: &Columns, compressor: &mut Compressor) -> Result<(Vec<DirectoryRow>, Vec<u8>), Damage> {
    let mut directory = Vec::new();
    let mut payload = Vec::new();
    for column in Column::ALL {
        let ColumnBytes { coded_from, bytes } = columns.get(*column);
        if bytes.is_empty() {
            continue;
        }
        let raw_bytes = coded_from.unwrap_or(bytes.len());
        if raw_bytes > MAX_COLUMN_BYTES {
            let name = column.name();
            return Err(Damage::new(format!(
                "its block has {raw_bytes} bytes of {name}: append fewer entries at once"
            )));
        }
        let (coding, stored) = match coded_from {
            Some(_) => (Coding::Range, bytes.clone()),
            None => compressor
                .compress(*column, bytes)
                .map_err(|error| Damage::new(format!("compression failed: {error}")))?,
        };
        directory.push(DirectoryRow {
            column: *column,
            coding,
            raw_bytes: raw_bytes as u32,
            stored_bytes: stored.len() as u32,
            checksum: crc32fast::hash(&stored),
        });
        payload.extend(stored);
    }
    Ok((directory, payload))
}

/// A block in a file.
pub(crate) struct StoredBlock<'a> {
    pub(crate) file: &'a dyn DiskFile,
    pub(crate) offset: u64,
    pub(crate) header: &'a BlockHeader,
}

impl StoredBlock<'_> {
    /// Compares every column with its checksum. All are read at once, into `room`.
    pub(crate) fn check(&self, room: &mut Vec<u8>) -> Result<(), Fault> {
        let offset = self.offset + self.header.header_bytes;
        // Before allocating: the header may be intact and the rest of the file gone.
        if offset + self.header.payload_bytes > self.file.length()? {
            return Err(cut_short().into());
        }
        room.resize(self.header.payload_bytes as usize, 0);
        read_exact_into(self.file, offset, room)?;
        let mut columns = room.as_slice();
        for row in &self.header.directory {
            // They are as long together as the payload.
            let (column, rest) = columns.split_at(row.stored_bytes as usize);
            row.check(column)?;
            columns = rest;
        }
        Ok(())
    }

    /// The entries; `tables` are those of the segment.
    pub(crate) fn entries(&self, tables: &SegmentTables) -> Result<Vec<Entry>, Fault> {
        let tables = || tables.load(self.file);
        entries::decode(self.header.first(), self.header.entries as usize, tables, |column| self.column(column))
    }

    /// The last cursor of each source among those of the first `below` entries; reads nothing else.
    pub(crate) fn last_cursors(&self, below: usize) -> Result<Vec<SourceCursor>, Fault> {
        entries::decode_last_cursors(self.header.entries as usize, below, |column| self.column(column))
    }

    /// What the records are; reads no column of their copies' content.
    pub(crate) fn outlines(&self) -> Result<Vec<Outline>, Fault> {
        entries::decode_outlines(self.header.first(), self.header.entries as usize, |column| self.column(column))
    }

    /// A column's bytes; none if it is absent.
    fn column(&self, column: Column) -> Result<ColumnBytes, Fault> {
        let mut offset = self.offset + self.header.header_bytes;
        for row in &self.header.directory {
            if row.column == column {
                let (stored, raw_bytes) = (self.stored(row, offset)?, row.raw_bytes as usize);
                if row.coding == Coding::Range {
                    return Ok(ColumnBytes { coded_from: Some(raw_bytes), bytes: stored });
                }
                let bytes = decompress(row.coding, stored, raw_bytes)
                    .map_err(|Damage(what)| Damage(format!("column {}: {what}", column.name())))?;
                return Ok(ColumnBytes { coded_from: None, bytes });
            }
            offset += u64::from(row.stored_bytes);
        }
        Ok(ColumnBytes::default())
    }

    fn stored(&self, row: &DirectoryRow, offset: u64) -> Result<Vec<u8>, Fault> {
        // Before allocating: the header may be intact and the rest of the file gone.
        if offset + u64::from(row.stored_bytes) > self.file.length()? {
            return Err(cut_short().into());
        }
        let stored = read_exact_at(self.file, offset, row.stored_bytes as usize)?;
        row.check(&stored)?;
        Ok(stored)
    }
}

fn cut_short() -> Damage {
    Damage::new("the file ends in the middle of a block")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// A header that passes its checksum and was never written by us is read or refused.
        #[test]
        fn any_header_is_read_or_refused(mut body in proptest::collection::vec(any::<u8>(), FIXED_BYTES..400), rows in 0_u8..4) {
            body[..4].copy_from_slice(&BLOCK_MAGIC);
            let length = body.len() as u32 + 4;
            body[4..8].copy_from_slice(&length.to_le_bytes());
            for at in [68, 72, 76] {
                body[at..at + 4].copy_from_slice(&[0; 4]);
            }
            (body[72], body[76]) = (rows, rows);
            body.extend(crc32fast::hash(&body).to_le_bytes());
            if let Ok(header) = BlockHeader::parse_first(&body) {
                prop_assert_eq!(header.header_bytes, body.len() as u64);
            }
        }
    }
}
