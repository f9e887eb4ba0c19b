//! A segment file: its name, header and footer.

use crate::log::block::{BlockHeader, Link};
use crate::log::codec::Tables;
use crate::log::column::{Coding, Compressor, decompress};
use crate::log::disk::{DiskFile, read_exact_at};
use crate::log::error::{Damage, Fault, StoreError};
use crate::log::options::{Extras, Precision};
use crate::log::wire::Wire;
use crate::{Identity, SequenceNumber, SourceCursor};
use serde::{Deserialize, Serialize};
use std::ops::Range;
use std::path::Path;

/// First bytes of a segment.
const SEGMENT_MAGIC: [u8; 8] = *b"MDlogseg";

/// The newest format version.
pub(crate) const VERSION: u32 = 4;

/// The format version before labels said what they were computed in: what is written where all are float32, so that earlier programs read it.
const ALL_FLOAT32: u32 = 3;

/// The format version before texts: what is written where none are kept either.
const WITHOUT_TEXTS: u32 = 2;

/// The format version before tables.
const WITHOUT_TABLES: u32 = 1;

/// Bytes of a header around its body: magic, version, length; checksum.
const HEADER_FRAME_BYTES: usize = 20;

/// Largest header body that is read.
const MAX_HEADER_BODY_BYTES: u32 = 64 << 20;

/// First and last bytes of a footer.
pub(crate) const FOOTER_MAGIC: [u8; 4] = *b"MDft";
const FOOTER_END_MAGIC: [u8; 4] = *b"MDnd";

/// Bytes of a footer around its body.
const FOOTER_FRAME_BYTES: u64 = 44;

/// Extension of a segment.
const EXTENSION: &str = ".seg";

/// Extension of a segment whose header is being written.
pub(crate) const UNFINISHED_EXTENSION: &str = ".seg.tmp";

/// File name of the segment that begins with entry `first`.
pub(crate) fn file_name(first: SequenceNumber) -> String {
    format!("{:020}{EXTENSION}", first.0)
}

/// Whether a file in a log's folder claims to be a segment, and if so its first sequence number.
pub(crate) fn parse_file_name(name: &str) -> Option<Result<SequenceNumber, Damage>> {
    let digits = name.strip_suffix(EXTENSION)?;
    let regular = digits.len() == 20 && digits.bytes().all(|byte| byte.is_ascii_digit());
    let number = if regular { digits.parse().ok() } else { None };
    Some(
        number
            .map(SequenceNumber)
            .ok_or_else(|| Damage::new("a segment is named after 20 digits; this is a foreign file")),
    )
}

/// What a segment says about itself and everything before it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct SegmentHeader {
    pub(crate) first_sequence: SequenceNumber,
    /// The end of the segment before this one.
    pub(crate) previous: Option<Predecessor>,
    pub(crate) precision: Precision,
    pub(crate) top_k: usize,
    /// Whether records may have text.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) keep_text: bool,
    /// Whether labels may have been computed in something else than float32.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) computed_in: bool,
    pub(crate) identity: Identity,
    /// Every source's state before the first entry.
    pub(crate) cursors: Vec<SourceCursor>,
    /// Where the tables are in the file.
    #[serde(skip)]
    pub(crate) tables: Range<u64>,
    /// Checksum of the header.
    #[serde(skip)]
    pub(crate) checksum: u32,
}

/// The end of a segment's predecessor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Predecessor {
    pub(crate) last_sequence: SequenceNumber,
    /// Header checksum of its last block.
    pub(crate) checksum: u32,
}

/// Why a segment header cannot be used.
#[derive(Debug)]
pub(crate) enum HeaderFault {
    /// Cut short, empty, zeroes, or bytes that do not fit the checksum: a write that did not finish, or damage.
    Torn(Damage),
    /// Something else entirely.
    Other(StoreError),
}

impl SegmentHeader {
    /// What the first block must follow.
    pub(crate) fn link(&self) -> Link {
        Link { next: self.first_sequence, checksum: self.previous.map_or(0, |previous| previous.checksum) }
    }

    /// What its records may hold.
    pub(crate) fn extras(&self) -> Extras {
        Extras { text: self.keep_text, computed_in: self.computed_in }
    }

    /// How it is written: what segments have in common that one writer goes on with.
    pub(crate) fn layout(&self) -> (Precision, usize, Extras) {
        (self.precision, self.top_k, self.extras())
    }

    /// The oldest format version that has what is in the segment.
    fn version(&self) -> u32 {
        match (self.computed_in, self.keep_text) {
            (true, _) => VERSION,
            (false, true) => ALL_FLOAT32,
            (false, false) => WITHOUT_TEXTS,
        }
    }

    /// The header's bytes, with the tables of compact precision behind its fields.
    pub(crate) fn encode(&mut self, tables: &Tables) -> std::io::Result<Vec<u8>> {
        let fields = serde_json::to_vec(self)?;
        let tables = if self.precision == Precision::Compact { tables.encode()? } else { Vec::new() };
        let mut out = SEGMENT_MAGIC.to_vec();
        out.extend(self.version().to_le_bytes());
        out.extend(((4 + fields.len() + tables.len()) as u32).to_le_bytes());
        out.extend((fields.len() as u32).to_le_bytes());
        out.extend(fields);
        self.tables = out.len() as u64..(out.len() + tables.len()) as u64;
        out.extend(tables);
        self.checksum = crc32fast::hash(&out);
        out.extend(self.checksum.to_le_bytes());
        Ok(out)
    }

    /// Reads the header of the segment at `path` that should begin with `first`; its length too.
    pub(crate) fn read(file: &dyn DiskFile, path: &Path, first: SequenceNumber) -> Result<(Self, u64), HeaderFault> {
        let foreign = |what: &str| HeaderFault::Other(StoreError::corrupt(path, 0, what));
        let torn = |fault| match fault {
            Fault::Damage(damage) => HeaderFault::Torn(damage),
            fault @ Fault::Io(_) => HeaderFault::Other(fault.at(path, 0)),
        };
        let start = read_exact_at(file, 0, 16).map_err(|error| torn(error.into()))?;
        let (magic, rest) = start.split_at(8);
        if magic != SEGMENT_MAGIC {
            let blank = magic.iter().all(|byte| *byte == 0);
            let what = "the file does not begin as a segment of a log does";
            return Err(if blank { HeaderFault::Torn(Damage::new("zeroes")) } else { foreign(what) });
        }
        let mut wire = Wire::new(rest);
        let fields = wire.u32().and_then(|version| Ok((version, wire.u32()?)));
        let (version, body_bytes) = fields.map_err(|damage| torn(damage.into()))?;
        let length = u64::from(body_bytes) + HEADER_FRAME_BYTES as u64;
        if body_bytes > MAX_HEADER_BODY_BYTES || length > file.length().map_err(|error| torn(error.into()))? {
            return Err(HeaderFault::Torn(Damage::new("the header is cut short")));
        }
        let bytes = read_exact_at(file, 0, length as usize).map_err(|error| torn(error.into()))?;
        let (body, checksum) = check_frame(&bytes).map_err(HeaderFault::Torn)?;
        if version > VERSION {
            let newer = StoreError::NewerVersion { segment: path.to_owned(), version, supported: VERSION };
            return Err(HeaderFault::Other(newer));
        }
        let (fields, tables) = match version {
            0 => return Err(foreign("the format version is 0")),
            WITHOUT_TABLES => (body, &[][..]),
            _ => split_body(body).ok_or_else(|| foreign("the header's fields are longer than the header"))?,
        };
        let mut header: Self =
            serde_json::from_slice(fields).map_err(|error| foreign(&format!("the header: {error}")))?;
        header.tables = length - 4 - tables.len() as u64..length - 4;
        header.checksum = checksum;
        if header.keep_text && version <= WITHOUT_TEXTS {
            return Err(foreign(&format!("format version {version} has no texts")));
        }
        if header.computed_in && version <= ALL_FLOAT32 {
            return Err(foreign(&format!("format version {version} has labels in float32 alone")));
        }
        if header.first_sequence != first || !header.follows_itself() {
            return Err(foreign("the header belongs to another place in a log"));
        }
        Ok((header, length))
    }

    fn follows_itself(&self) -> bool {
        match self.previous {
            Some(previous) => previous.last_sequence.0.checked_add(1) == Some(self.first_sequence.0),
            None => self.first_sequence.0 == 0,
        }
    }
}

/// A body's fields and tables.
fn split_body(body: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = body.split_first_chunk()?;
    rest.split_at_checked(u32::from_le_bytes(*length) as usize)
}

/// The body inside a header's frame, and the checksum, if it fits. The frame is the same in every format version.
fn check_frame(bytes: &[u8]) -> Result<(&[u8], u32), Damage> {
    let (framed, stored) = bytes.split_last_chunk().ok_or_else(|| Damage::new("the header is cut short"))?;
    let checksum = u32::from_le_bytes(*stored);
    if crc32fast::hash(framed) != checksum {
        return Err(Damage::new("the checksum of the segment header does not match"));
    }
    let body = framed.get(16..).ok_or_else(|| Damage::new("the header is cut short"))?;
    Ok((body, checksum))
}

/// The end of a sealed segment: its blocks' headers once more, so that opening it costs one read.
#[derive(Debug)]
pub(crate) struct Footer {
    /// Bytes of the footer.
    pub(crate) bytes: u64,
    pub(crate) blocks: Vec<BlockHeader>,
}

impl Footer {
    /// A footer's bytes. `headers` are the encoded headers of all `blocks` blocks, the last of which is linked by `end`.
    pub(crate) fn encode(
        headers: &[u8],
        blocks: u32,
        end: Link,
        compressor: &mut Compressor,
    ) -> std::io::Result<Vec<u8>> {
        let body = compressor.frame(headers)?;
        let mut out = FOOTER_MAGIC.to_vec();
        out.extend((body.len() as u32).to_le_bytes());
        out.extend((headers.len() as u64).to_le_bytes());
        out.extend(blocks.to_le_bytes());
        out.extend(end.checksum.to_le_bytes());
        out.extend(end.next.0.to_le_bytes());
        out.extend(body);
        out.extend(crc32fast::hash(&out).to_le_bytes());
        let length = (out.len() + 8) as u32;
        out.extend(length.to_le_bytes());
        out.extend(FOOTER_END_MAGIC);
        Ok(out)
    }

    /// Reads the footer at the end of a file, for blocks that begin at `blocks_offset` and follow `link`.
    pub(crate) fn read_last(file: &dyn DiskFile, blocks_offset: u64, link: Link) -> Result<Self, Fault> {
        let length = file.length()?;
        let offset = length.checked_sub(8).ok_or_else(|| Damage::new("no footer"))?;
        let end = read_exact_at(file, offset, 8)?;
        let mut wire = Wire::new(&end);
        let footer_bytes = u64::from(wire.u32()?);
        if wire.take(4)? != FOOTER_END_MAGIC {
            return Err(Damage::new("no footer").into());
        }
        let offset = length.checked_sub(footer_bytes).ok_or_else(|| Damage::new("a footer larger than its file"))?;
        Self::read(file, offset, blocks_offset, link)
    }

    /// Reads the footer at `offset`.
    pub(crate) fn read(file: &dyn DiskFile, offset: u64, blocks_offset: u64, link: Link) -> Result<Self, Fault> {
        let bytes = Self::framed(file, offset)?;
        let mut wire = Wire::new(&bytes);
        wire.take(4)?;
        let (body_bytes, raw_bytes, blocks) = (wire.u32()?, wire.u64()?, wire.u32()?);
        let end = Link { checksum: wire.u32()?, next: SequenceNumber(wire.u64()?) };
        // The headers are in the file too, so they cannot be longer than it.
        let raw_bytes = usize::try_from(raw_bytes.min(offset)).unwrap_or(usize::MAX);
        let raw = decompress(Coding::Zstd, wire.take(body_bytes as usize)?.to_vec(), raw_bytes)?;
        let blocks = parse_index(&raw, blocks as usize, (blocks_offset, offset), (link, end))?;
        Ok(Self { bytes: bytes.len() as u64 + 12, blocks })
    }

    /// Whether a footer with a matching checksum is at `offset`.
    pub(crate) fn is_at(file: &dyn DiskFile, offset: u64) -> Result<bool, Fault> {
        match Self::framed(file, offset) {
            Ok(_) => Ok(true),
            Err(Fault::Damage(_)) => Ok(false),
            Err(fault) => Err(fault),
        }
    }

    /// The checksummed bytes of the footer at `offset`.
    fn framed(file: &dyn DiskFile, offset: u64) -> Result<Vec<u8>, Fault> {
        let start = read_exact_at(file, offset, 8)?;
        let mut wire = Wire::new(&start);
        if wire.take(4)? != FOOTER_MAGIC {
            return Err(Damage::new("no footer begins here").into());
        }
        let length = u64::from(wire.u32()?) + FOOTER_FRAME_BYTES;
        let file_bytes = file.length()?;
        if offset.checked_add(length).is_none_or(|end| end > file_bytes) {
            return Err(Damage::new("the footer is cut short").into());
        }
        let mut bytes = read_exact_at(file, offset, length as usize)?;
        let mut tail = Wire::new(&bytes[bytes.len() - 12..]);
        let (checksum, footer_bytes, magic) = (tail.u32()?, u64::from(tail.u32()?), tail.take(4)?);
        if footer_bytes != length || magic != FOOTER_END_MAGIC {
            return Err(Damage::new("the end of the footer is damaged").into());
        }
        bytes.truncate(bytes.len() - 12);
        if crc32fast::hash(&bytes) != checksum {
            return Err(Damage::new("the checksum of the footer does not match").into());
        }
        Ok(bytes)
    }
}

/// The block headers of a footer, if they fill the file from the segment's header to the footer without a gap.
fn parse_index(
    mut raw: &[u8],
    count: usize,
    (mut offset, end_offset): (u64, u64),
    (mut link, end): (Link, Link),
) -> Result<Vec<BlockHeader>, Damage> {
    let mut blocks = Vec::new();
    for _ in 0..count {
        let header = BlockHeader::parse_first(raw)?;
        raw = &raw[header.header_bytes as usize..];
        if header.previous != link {
            return Err(Damage::new("the footer lists blocks that do not follow one another"));
        }
        offset = offset.saturating_add(header.bytes());
        link = header.link();
        blocks.push(header);
    }
    if !raw.is_empty() || offset != end_offset || link != end {
        return Err(Damage::new("the footer belongs to other blocks"));
    }
    Ok(blocks)
}
