//! Between a file and the Parquet reader, which takes a file's word for how much memory things need: sizes are looked at
//! before the reader sees them.

use super::thrift::{Item, Problem, varint, walk};
use bytes::Bytes;
use flate2::read::MultiGzDecoder;
use lz4_flex::frame::FrameDecoder;
use parquet::basic::{Compression, Encoding};
use parquet::column::page::{Page, PageMetadata, PageReader};
use parquet::errors::{ParquetError, Result};
use parquet::file::metadata::{ParquetMetaData, ParquetMetaDataReader};
use parquet::file::reader::{ChunkReader, Length};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// A page of a column, compressed and not; writers close one at about 1 MiB, but only after some thousand rows.
const PAGE_LIMIT_BYTES: u64 = 512 << 20;
/// Statistics in a page's header hold whole values.
const PAGE_HEADER_LIMIT_BYTES: usize = 8 << 20;
const PAGE_HEADER_BYTES: usize = 8 << 10;
const FOOTER_LIMIT_BYTES: u64 = 64 << 20;
const DICTIONARY_LIMIT: i64 = 1 << 20;
/// Rows of a page in an encoding that stores lengths apart from values.
const PAGE_ROWS_LIMIT: u64 = 1 << 24;
/// Columns and groups of columns.
const SCHEMA_LIMIT: i64 = 1 << 16;
/// Elements of any list in the metadata, which are columns or row groups at most. The reader reserves for all of them at once.
const LIST_LIMIT: u64 = 1 << 16;
const SCHEMA_DEPTH_LIMIT: usize = 64;

const MAGIC: &[u8] = b"PAR1";
const ENCRYPTED_MAGIC: &[u8] = b"PARE";
/// Length of the metadata, and the magic.
const TAIL_BYTES: u64 = 8;

/// A Parquet file whose sizes are looked at.
#[derive(Clone)]
pub(super) struct GuardedFile {
    source: Arc<Source>,
    /// How its pages are compressed, if they may expand to more than their headers say.
    expanding: Option<Expanding>,
}

/// A compression that the reader decompresses to the end, whatever the header of a page says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expanding {
    Gzip,
    /// The old LZ4 codec: what is not in Hadoop's framing is taken for LZ4 frames.
    Lz4Frames,
}

impl Expanding {
    fn of(compression: Compression) -> Option<Self> {
        match compression {
            Compression::GZIP(_) => Some(Self::Gzip),
            Compression::LZ4 => Some(Self::Lz4Frames),
            _ => None,
        }
    }

    /// Bytes that come out of one, at most.
    fn ratio(self) -> u64 {
        match self {
            Self::Gzip => 1032,
            Self::Lz4Frames => 255,
        }
    }

    /// Whether more than `limit_bytes` come out of `packed`. Where it is damaged is for others to say.
    fn goes_beyond(self, packed: &[u8], limit_bytes: u64) -> bool {
        let count = |unpacked: &mut dyn Read| io::copy(&mut unpacked.take(limit_bytes + 1), &mut io::sink());
        let unpacked_bytes = match self {
            Self::Gzip => count(&mut MultiGzDecoder::new(packed)),
            Self::Lz4Frames => count(&mut FrameDecoder::new(packed)),
        };
        unpacked_bytes.is_ok_and(|bytes| bytes > limit_bytes)
    }
}

struct Source {
    file: File,
    size_bytes: u64,
    /// What went wrong with the file itself, which is not the fault of what it holds.
    failed: Mutex<Option<io::Error>>,
}

impl GuardedFile {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let size_bytes = file.metadata()?.len();
        Ok(Self { source: Arc::new(Source { file, size_bytes, failed: Mutex::new(None) }), expanding: None })
    }

    /// The same file, for a column whose pages are compressed with `compression`.
    pub(super) fn column(&self, compression: Compression) -> Self {
        Self { expanding: Expanding::of(compression), ..self.clone() }
    }

    /// The first error of the system since the last call.
    pub(super) fn take_failure(&self) -> Option<io::Error> {
        self.source.failed.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Reads the file's metadata.
    pub(super) fn metadata(&self) -> Result<ParquetMetaData> {
        let size_bytes = self.source.size_bytes;
        let Some(tail_at) = size_bytes.checked_sub(TAIL_BYTES).filter(|at| *at >= MAGIC.len() as u64) else {
            return Err(general(format!("{size_bytes} bytes are no Parquet file")));
        };
        let tail = self.read(tail_at, TAIL_BYTES as usize)?;
        let (length, magic) = tail.split_at(4);
        if magic == ENCRYPTED_MAGIC {
            return Err(general("the file is encrypted".to_owned()));
        }
        if magic != MAGIC {
            return Err(general("the file does not end as a Parquet file does; it is cut off, or none".to_owned()));
        }
        let length = u64::from(u32::from_le_bytes([length[0], length[1], length[2], length[3]]));
        let Some(metadata_at) = tail_at.checked_sub(length).filter(|_| length <= FOOTER_LIMIT_BYTES) else {
            return Err(general(format!("metadata of {length} bytes is not possible")));
        };
        let metadata = self.read(metadata_at, length as usize)?;
        check_metadata(&metadata)?;
        ParquetMetaDataReader::decode_metadata(&metadata)
    }

    fn read(&self, start: u64, length: usize) -> Result<Vec<u8>> {
        if start.saturating_add(length as u64) > self.source.size_bytes {
            return Err(general(format!("the file has no {length} bytes at byte {start}")));
        }
        let mut bytes = vec![0; length];
        match self.source.file.read_exact_at(&mut bytes, start) {
            Ok(()) => Ok(bytes),
            Err(error) => {
                let text = error.to_string();
                *self.source.failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                Err(general(text))
            }
        }
    }

    /// The header of a page, once nothing in it promises too much.
    fn page_header(&self, start: u64) -> Result<Vec<u8>> {
        let left = usize::try_from(self.source.size_bytes.saturating_sub(start)).unwrap_or(usize::MAX);
        let most = left.min(PAGE_HEADER_LIMIT_BYTES);
        let mut length = most.min(PAGE_HEADER_BYTES);
        loop {
            let mut bytes = self.read(start, length)?;
            let mut problem = None;
            let (mut packed_bytes, mut levels_bytes) = (0, 0);
            let walked = walk(&bytes, &mut |path, item| {
                if let Item::Integer(value) = item {
                    problem = problem.take().or_else(|| page_problem(path, value));
                    match path {
                        [3] => packed_bytes = value,
                        [8, 5 | 6] => levels_bytes += value.clamp(0, PAGE_LIMIT_BYTES as i64),
                        _ => {}
                    }
                }
            });
            match walked {
                _ if problem.is_some() => return Err(general(problem.unwrap_or_default())),
                Ok(length) => {
                    bytes.truncate(length);
                    self.check_expansion(start + length as u64, packed_bytes as u64, levels_bytes as usize)?;
                    return Ok(bytes);
                }
                Err(Problem::Short) if length < most => length = most.min(length * 8),
                Err(_) => return Err(general(format!("no page begins at byte {start}"))),
            }
        }
    }

    /// Refuses a page of `packed_bytes` bytes at `start` that is too large once it is decompressed. Before what is compressed
    /// come `levels_bytes` bytes.
    fn check_expansion(&self, start: u64, packed_bytes: u64, levels_bytes: usize) -> Result<()> {
        let Some(expanding) = self.expanding else { return Ok(()) };
        if packed_bytes <= PAGE_LIMIT_BYTES / expanding.ratio() {
            return Ok(());
        }
        let page = self.read(start, packed_bytes as usize)?;
        if expanding.goes_beyond(page.get(levels_bytes..).unwrap_or_default(), PAGE_LIMIT_BYTES) {
            return Err(general(format!("a page decompresses to more than the limit of {PAGE_LIMIT_BYTES} bytes")));
        }
        Ok(())
    }
}

/// What is wrong with an integer in the header of a page.
fn page_problem(path: &[i64], value: i64) -> Option<String> {
    match path {
        [2 | 3] if !(0..=PAGE_LIMIT_BYTES as i64).contains(&value) => {
            Some(format!("a page of {value} bytes is above the limit of {PAGE_LIMIT_BYTES}"))
        }
        [7, 1] if !(0..=DICTIONARY_LIMIT).contains(&value) => {
            Some(format!("a dictionary of {value} words is above the limit of {DICTIONARY_LIMIT}"))
        }
        _ => None,
    }
}

/// Refuses metadata with too long a list, or a schema that has too many columns or is too deep, before anything reserves memory for
/// it or recurses into it.
fn check_metadata(metadata: &[u8]) -> Result<()> {
    let (mut elements, mut children) = (0, 0);
    let (mut largest, mut longest) = (0, 0);
    let mut open: Vec<i64> = Vec::new(); // Children to come of each group around the next element.
    let mut depth = 0;
    let walked = walk(metadata, &mut |path, item| match (path, item) {
        ([2, 5], Item::Integer(value)) => children = value,
        (_, Item::List(size)) => longest = longest.max(size),
        ([2], Item::StructEnd) => {
            elements += 1;
            largest = largest.max(children);
            if let Some(left) = open.last_mut() {
                *left -= 1;
            }
            if children > 0 {
                open.push(children);
            }
            depth = depth.max(open.len());
            while open.last() == Some(&0) {
                open.pop();
            }
            children = 0;
        }
        _ => {}
    });
    if walked.is_err() {
        return Err(general("its metadata is damaged".to_owned()));
    }
    if longest > LIST_LIMIT {
        return Err(general(format!("metadata with a list of {longest} elements is not possible")));
    }
    if elements > SCHEMA_LIMIT || largest > elements || depth > SCHEMA_DEPTH_LIMIT {
        return Err(general(format!("a schema of {elements} elements, {depth} deep, is not possible")));
    }
    Ok(())
}

impl Length for GuardedFile {
    fn len(&self) -> u64 {
        self.source.size_bytes
    }
}

impl ChunkReader for GuardedFile {
    type T = PageHeader;

    /// The reader reads headers of pages from here, and nothing else.
    fn get_read(&self, start: u64) -> Result<PageHeader> {
        Ok(PageHeader { file: self.clone(), start, bytes: None })
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes> {
        if length as u64 > PAGE_LIMIT_BYTES {
            return Err(general(format!("a page of {length} bytes is above the limit of {PAGE_LIMIT_BYTES}")));
        }
        self.read(start, length).map(Bytes::from)
    }
}

/// A page's header, read when it is asked for.
pub(super) struct PageHeader {
    file: GuardedFile,
    start: u64,
    bytes: Option<io::Cursor<Vec<u8>>>,
}

impl Read for PageHeader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let bytes = match &mut self.bytes {
            Some(bytes) => bytes,
            None => self.bytes.insert(io::Cursor::new(self.file.page_header(self.start).map_err(io::Error::other)?)),
        };
        bytes.read(buffer)
    }
}

/// Pages of a column whose inner counts are looked at.
pub(super) struct GuardedPages<P> {
    pub(super) pages: P,
    /// Whether a row may lack a value: pages then begin with levels.
    pub(super) optional: bool,
}

impl<P: PageReader> PageReader for GuardedPages<P> {
    fn get_next_page(&mut self) -> Result<Option<Page>> {
        let page = self.pages.get_next_page()?;
        page.iter().try_for_each(|page| check_page(page, self.optional))?;
        Ok(page)
    }

    fn peek_next_page(&mut self) -> Result<Option<PageMetadata>> {
        self.pages.peek_next_page()
    }

    fn skip_next_page(&mut self) -> Result<()> {
        self.pages.skip_next_page()
    }

    fn supports_deferred_dictionary(&self) -> bool {
        self.pages.supports_deferred_dictionary()
    }

    fn take_deferred_dictionary(&mut self) -> Result<Option<Page>> {
        self.pages.take_deferred_dictionary()
    }

    fn at_record_boundary(&mut self) -> Result<bool> {
        self.pages.at_record_boundary()
    }
}

impl<P: PageReader> Iterator for GuardedPages<P> {
    type Item = Result<Page>;

    fn next(&mut self) -> Option<Self::Item> {
        self.get_next_page().transpose()
    }
}

/// Refuses a page whose values say that there are more of them than could be.
fn check_page(page: &Page, optional: bool) -> Result<()> {
    let (values, encoding) = match page {
        Page::DataPage { buf, encoding, def_level_encoding, .. } => {
            if optional && *def_level_encoding != Encoding::RLE {
                return Err(general(format!("levels in encoding {def_level_encoding} are not supported")));
            }
            let mut levels = 0;
            if optional {
                let length = buf.get(..4).and_then(|length| <[u8; 4]>::try_from(length).ok());
                let length = length.ok_or_else(|| general("a page ends in its levels".to_owned()))?;
                levels = 4 + u32::from_le_bytes(length) as usize;
            }
            (buf.get(levels..), *encoding)
        }
        Page::DataPageV2 { buf, encoding, def_levels_byte_len, rep_levels_byte_len, .. } => {
            (buf.get((*def_levels_byte_len as usize).saturating_add(*rep_levels_byte_len as usize)..), *encoding)
        }
        Page::DictionaryPage { .. } => return Ok(()),
    };
    let values = values.ok_or_else(|| general("a page ends in its levels".to_owned()))?;
    let lists_of_lengths = match encoding {
        Encoding::DELTA_LENGTH_BYTE_ARRAY => 1,
        Encoding::DELTA_BYTE_ARRAY => 2,
        _ => 0,
    };
    let mut at = 0;
    for _ in 0..lists_of_lengths {
        at = pass_lengths(values, at).map_err(|_| general("a page's list of lengths is damaged".to_owned()))?;
    }
    Ok(())
}

/// Where the list of lengths ends that begins at `at` (encoding `DELTA_BINARY_PACKED`).
fn pass_lengths(values: &[u8], mut at: usize) -> std::result::Result<usize, Problem> {
    let block = varint(values, &mut at)?;
    let parts = varint(values, &mut at)?;
    let count = varint(values, &mut at)?;
    varint(values, &mut at)?; // The first value.
    if block == 0 || parts == 0 || parts > block || block > PAGE_ROWS_LIMIT || count > PAGE_ROWS_LIMIT {
        return Err(Problem::Malformed);
    }
    let part = block / parts;
    let mut left = count.saturating_sub(1);
    while left > 0 {
        varint(values, &mut at)?; // The smallest difference.
        let widths = at..at.saturating_add(parts as usize);
        let widths = values.get(widths).ok_or(Problem::Short)?;
        at += parts as usize;
        for width in widths {
            if left == 0 {
                break;
            }
            at = at.saturating_add((part * u64::from(*width)).div_ceil(8) as usize);
            left = left.saturating_sub(part);
        }
        if at > values.len() {
            return Err(Problem::Short);
        }
    }
    Ok(at)
}

pub(super) fn general(problem: String) -> ParquetError {
    ParquetError::General(problem)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use flate2::write::GzEncoder;
    use lz4_flex::frame::FrameEncoder;
    use std::io::Write as _;

    #[test]
    fn what_gzip_makes_of_a_page_is_counted() {
        let member = |bytes: usize| {
            let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::best());
            encoder.write_all(&vec![b'a'; bytes]).unwrap();
            encoder.finish().unwrap()
        };
        let bomb = member(1 << 20);
        assert!((1 << 20) / bomb.len() as u64 <= Expanding::Gzip.ratio() && bomb.len() < 2000);
        let goes_beyond = |packed: &[u8], limit_bytes| Expanding::Gzip.goes_beyond(packed, limit_bytes);
        assert!(!goes_beyond(&bomb, 1 << 20));
        assert!(goes_beyond(&bomb, (1 << 20) - 1));
        assert!(goes_beyond(&[bomb.clone(), member(1)].concat(), 1 << 20), "members follow one another");
        assert!(!goes_beyond(&bomb[..bomb.len() - 20], 1 << 20), "what is cut off");
        assert!(!goes_beyond(b"no gzip at all", 4));
    }

    #[test]
    fn a_page_of_lz4_frames_that_is_too_large_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("page");
        let check = |bytes: u64, codec| {
            let mut encoder = FrameEncoder::new(Vec::new());
            io::copy(&mut io::repeat(b'a').take(bytes), &mut encoder).unwrap();
            let page = encoder.finish().unwrap();
            assert!(page.len() as u64 > PAGE_LIMIT_BYTES / Expanding::Lz4Frames.ratio(), "it is looked at");
            std::fs::write(&path, &page).unwrap();
            GuardedFile::open(&path).unwrap().column(codec).check_expansion(0, page.len() as u64, 0)
        };
        assert!(check(PAGE_LIMIT_BYTES, Compression::LZ4).is_ok());
        let error = check(PAGE_LIMIT_BYTES + 1, Compression::LZ4).unwrap_err().to_string();
        assert!(error.contains("more than the limit of"), "{error}");
        // Here the reader goes by the header.
        assert!(check(PAGE_LIMIT_BYTES + 1, Compression::LZ4_RAW).is_ok());
    }

    #[test]
    fn metadata_whose_lists_are_too_long() {
        // Field 4, the row groups: a list of structures, none of which has a field.
        let metadata = |row_groups: usize| {
            let varint =
                [row_groups & 0x7F | 0x80, row_groups >> 7 & 0x7F | 0x80, row_groups >> 14].map(|part| part as u8);
            [&[0x49, 0xFC], &varint[..], &vec![0; row_groups], &[0]].concat()
        };
        assert!(check_metadata(&metadata(1 << 16)).is_ok());
        let error = check_metadata(&metadata((1 << 16) + 1)).unwrap_err().to_string();
        assert!(error.contains("a list of 65537 elements"), "{error}");
    }
}
