//! A file's bytes, decompressed. Memory is bounded whatever the file says: one buffer, and a decoder's window.

use super::options::Compression;
use bzip2::read::MultiBzDecoder;
use flate2::read::MultiGzDecoder;
use std::fs::File;
use std::io::{self, BufReader, ErrorKind, Read, Seek, SeekFrom};
use std::path::Path;

const BUFFER_BYTES: usize = 256 << 10;
/// What a decoder is asked for at a time. When it meets damage it drops what it made in that call.
const STEP_BYTES: usize = 16 << 10;
/// Zstandard's window is at most 1 << this: 128 MiB, the format's own limit for decoders without special orders.
const ZSTD_WINDOW_LOG: u32 = 27;

const GZIP_MAGIC: &[u8] = &[0x1F, 0x8B];
/// Behind `BZh` and a digit comes the first block, or the end of an empty stream.
const BZIP2_MAGIC: &[u8] = b"BZh";
const BZIP2_BLOCKS: [&[u8]; 2] = [&[0x31, 0x41, 0x59, 0x26, 0x53, 0x59], &[0x17, 0x72, 0x45, 0x38, 0x50, 0x90]];
const ZSTD_MAGIC: &[u8] = &[0x28, 0xB5, 0x2F, 0xFD];
/// Behind a byte of 0x50 to 0x5F: a frame to be skipped, with which parallel compressors begin.
const ZSTD_SKIPPABLE_MAGIC: &[u8] = &[0x2A, 0x4D, 0x18];
/// As long as the longest of the above.
const MAGIC_BYTES: usize = 10;

/// What there is to read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fill {
    /// `buffer` holds as many bytes as were asked for.
    Bytes,
    /// `buffer` holds all that is left; a growing file may have more later.
    End,
    /// `buffer` holds all that is left, since what comes then cannot be decompressed; says why.
    Broken(String),
}

/// Reads a file, decompressed, from its start.
pub(super) struct ByteStream {
    file: File,
    compression: Compression,
    growing: bool,
    /// Bytes of the file that may be read; of one that is not compressed.
    readable_bytes: u64,
    source: Source,
    buffer: Vec<u8>,
    first: usize,
    /// Of the byte at `first`, in the decompressed file.
    position_bytes: u64,
}

enum Source {
    /// Nothing was read yet.
    Unopened,
    /// Too short to see what it is.
    Undecided,
    Plain,
    Compressed(Box<dyn Read + Send>),
    /// A growing compressed file was read to its end. A decoder cannot go on behind an end, so it starts again once
    /// there is more.
    Exhausted {
        file_bytes: u64,
        /// Whether the compressed stream ends there.
        complete: bool,
    },
    Broken(String),
}

impl ByteStream {
    pub(super) fn open(path: &Path, compression: Compression, growing: bool) -> io::Result<Self> {
        Ok(Self {
            file: File::open(path)?,
            compression,
            growing,
            readable_bytes: u64::MAX,
            source: Source::Unopened,
            buffer: Vec::new(),
            first: 0,
            position_bytes: 0,
        })
    }

    /// The bytes that were read and not consumed.
    pub(super) fn buffer(&self) -> &[u8] {
        &self.buffer[self.first..]
    }

    pub(super) fn consume(&mut self, bytes: usize) {
        self.first += bytes;
        self.position_bytes += bytes as u64;
    }

    /// Offset of the first byte of the buffer in the decompressed file.
    pub(super) fn position_bytes(&self) -> u64 {
        self.position_bytes
    }

    /// Whether the end may not be the end.
    pub(super) fn is_growing(&self) -> bool {
        self.growing
    }

    /// What stands behind `readable_bytes` may still change: it is not read, as if it were not there.
    pub(super) fn limit(&mut self, readable_bytes: u64) -> io::Result<()> {
        self.readable_bytes = readable_bytes;
        let held_bytes = self.buffer().len() as u64;
        let kept_bytes = readable_bytes.saturating_sub(self.position_bytes).min(held_bytes);
        if matches!(self.source, Source::Plain) && kept_bytes < held_bytes {
            self.buffer.truncate(self.first + kept_bytes as usize);
            self.file.seek(SeekFrom::Start(self.position_bytes + kept_bytes))?;
        }
        Ok(())
    }

    /// The file has its final size.
    pub(super) fn seal(&mut self) {
        self.growing = false;
    }

    /// Reads until the buffer holds `wanted` bytes (at most 256 KiB), or there are no more.
    pub(super) fn fill(&mut self, wanted: usize) -> io::Result<Fill> {
        while self.buffer().len() < wanted {
            self.buffer.drain(..self.first);
            self.first = 0;
            let fill = self.read_more()?;
            if fill != Fill::Bytes {
                return Ok(fill);
            }
        }
        Ok(Fill::Bytes)
    }

    /// Goes to `position_bytes`, which lies ahead; `false`: the file ends, or breaks, before.
    pub(super) fn skip_to(&mut self, position_bytes: u64) -> io::Result<bool> {
        if matches!(self.source, Source::Unopened) {
            self.source = self.detect()?;
        }
        if matches!(self.source, Source::Plain) && position_bytes - self.position_bytes > self.buffer().len() as u64 {
            if self.file.metadata()?.len() < position_bytes {
                return Ok(false);
            }
            self.file.seek(SeekFrom::Start(position_bytes))?;
            (self.first, self.position_bytes) = (0, position_bytes);
            self.buffer.clear();
        }
        while self.position_bytes < position_bytes {
            if self.fill(1)? != Fill::Bytes {
                return Ok(false);
            }
            let left = usize::try_from(position_bytes - self.position_bytes).unwrap_or(usize::MAX);
            self.consume(left.min(self.buffer().len()));
            store::pulse::beat(); // A large compressed file takes its time.
        }
        Ok(true)
    }

    /// Appends to the buffer.
    fn read_more(&mut self) -> io::Result<Fill> {
        loop {
            match &mut self.source {
                Source::Unopened | Source::Undecided => {
                    self.source = self.detect()?;
                    if matches!(self.source, Source::Undecided) {
                        return Ok(Fill::End);
                    }
                }
                Source::Plain => {
                    let left = self.readable_bytes.saturating_sub(self.position_bytes + self.buffer.len() as u64);
                    let limit = usize::try_from(left).map_or(BUFFER_BYTES, |left| left.min(BUFFER_BYTES));
                    let read = append(&mut self.file, &mut self.buffer, limit)?;
                    return Ok(if read == 0 { Fill::End } else { Fill::Bytes });
                }
                Source::Compressed(decoder) => match append(decoder, &mut self.buffer, STEP_BYTES) {
                    Ok(0) if self.growing => self.source = self.exhausted(true)?,
                    Ok(0) => return Ok(Fill::End),
                    Ok(_) => return Ok(Fill::Bytes),
                    Err(error) if error.raw_os_error().is_some() => return Err(error),
                    Err(error) if self.growing && error.kind() == ErrorKind::UnexpectedEof => {
                        self.source = self.exhausted(false)?;
                    }
                    Err(error) => self.source = Source::Broken(error.to_string()),
                },
                Source::Exhausted { file_bytes, complete } => {
                    if (self.growing || *complete) && self.file.metadata()?.len() <= *file_bytes {
                        return Ok(Fill::End);
                    }
                    self.restart()?;
                }
                Source::Broken(detail) => return Ok(Fill::Broken(detail.clone())),
            }
        }
    }

    fn exhausted(&mut self, complete: bool) -> io::Result<Source> {
        Ok(Source::Exhausted { file_bytes: self.file.stream_position()?, complete })
    }

    /// Decompresses the file again, up to where it was. (Everything in the buffer was consumed or is read again.)
    fn restart(&mut self) -> io::Result<()> {
        let read_bytes = self.position_bytes + self.buffer().len() as u64;
        self.source = self.detect()?;
        let Source::Compressed(decoder) = &mut self.source else { return Ok(()) };
        match io::copy(&mut decoder.take(read_bytes), &mut io::sink()) {
            Ok(bytes) if bytes == read_bytes => {}
            Ok(_) => self.source = Source::Broken("it is shorter than it was".to_owned()),
            Err(error) if error.raw_os_error().is_some() => return Err(error),
            Err(error) => self.source = Source::Broken(error.to_string()),
        }
        Ok(())
    }

    /// Looks at the file's first bytes, and goes to its start.
    fn detect(&mut self) -> io::Result<Source> {
        self.file.rewind()?;
        let mut compression = self.compression;
        if compression == Compression::Auto {
            let mut head = Vec::with_capacity(MAGIC_BYTES);
            self.file.by_ref().take(MAGIC_BYTES as u64).read_to_end(&mut head)?;
            self.file.rewind()?;
            match detected(&head) {
                None if self.growing => return Ok(Source::Undecided),
                found => compression = found.unwrap_or(Compression::None),
            }
        }
        let input = BufReader::with_capacity(BUFFER_BYTES, self.file.try_clone()?);
        Ok(match compression {
            Compression::Auto | Compression::None => Source::Plain,
            Compression::Gzip => Source::Compressed(Box::new(MultiGzDecoder::new(input))),
            Compression::Bzip2 => Source::Compressed(Box::new(MultiBzDecoder::new(input))),
            Compression::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(input)?;
                decoder.window_log_max(ZSTD_WINDOW_LOG)?;
                Source::Compressed(Box::new(decoder))
            }
        })
    }
}

/// How a file that begins with `head` is compressed; `None`: it is too short to say.
fn detected(head: &[u8]) -> Option<Compression> {
    let bzip2 = BZIP2_BLOCKS.map(|block| {
        let level = head.get(BZIP2_MAGIC.len()).copied().filter(u8::is_ascii_digit).unwrap_or(b'9');
        [BZIP2_MAGIC, &[level], block].concat()
    });
    let skippable =
        [&[head.first().copied().filter(|byte| byte >> 4 == 5).unwrap_or(0x50)], ZSTD_SKIPPABLE_MAGIC].concat();
    let magics = [
        (GZIP_MAGIC, Compression::Gzip),
        (&bzip2[0], Compression::Bzip2),
        (&bzip2[1], Compression::Bzip2),
        (ZSTD_MAGIC, Compression::Zstd),
        (&skippable, Compression::Zstd),
    ];
    match magics.iter().find(|(magic, _)| head.starts_with(magic)) {
        Some((_, compression)) => Some(*compression),
        None if magics.iter().any(|(magic, _)| magic.starts_with(head)) => None,
        None => Some(Compression::None),
    }
}

/// Reads at most `limit` bytes behind what `buffer` holds; returns how many.
fn append(source: &mut impl Read, buffer: &mut Vec<u8>, limit: usize) -> io::Result<usize> {
    let held = buffer.len();
    buffer.resize(held + limit, 0);
    let read = loop {
        match source.read(&mut buffer[held..]) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            read => break read,
        }
    };
    buffer.truncate(held + read.as_ref().copied().unwrap_or(0));
    read
}
