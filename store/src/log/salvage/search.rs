//! Finding what is intact behind damage.

use crate::SequenceNumber;
use crate::log::block::{BLOCK_MAGIC, BlockHeader};
use crate::log::disk::{DiskFile, read_exact_at};
use crate::log::segment::FOOTER_MAGIC;

/// Bytes that are searched at once.
const SEARCH_BYTES: u64 = 1 << 20;

/// Bytes that are searched at once where the disk cannot read more.
const SECTOR_BYTES: u64 = 4096;

/// One past the last entry of a file whose header is damaged, if a block can be found in it.
pub(super) fn last_entry(file: &dyn DiskFile, length: u64) -> Option<SequenceNumber> {
    let mut end = None;
    let mut offset = 0;
    while offset < length {
        let mut block = BlockHeader::read(file, offset).ok();
        if block.is_none() {
            let found = find(file, offset + 1, length, |at, magic| {
                block = (magic == Magic::Block).then(|| BlockHeader::read(file, at).ok()).flatten();
                block.is_some()
            });
            offset = found.unwrap_or(length);
        }
        let Some(header) = block else { break };
        end = end.max(Some(header.link().next));
        offset = offset.saturating_add(header.bytes());
    }
    end
}

/// What the first bytes of something say that it is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Magic {
    Block,
    Footer,
}

/// The first place in `start..length` where a block or footer seems to begin and `accept` agrees. What the disk cannot read is
/// passed over.
pub(super) fn find(
    file: &dyn DiskFile,
    mut start: u64,
    length: u64,
    mut accept: impl FnMut(u64, Magic) -> bool,
) -> Option<u64> {
    let mut most = SEARCH_BYTES;
    while start < length {
        let bytes = most.min(length - start);
        match read_exact_at(file, start, bytes as usize) {
            Ok(chunk) => {
                for (at, window) in (start..).zip(chunk.windows(4)) {
                    let magic = match window {
                        magic if magic == BLOCK_MAGIC => Magic::Block,
                        magic if magic == FOOTER_MAGIC => Magic::Footer,
                        _ => continue,
                    };
                    if accept(at, magic) {
                        return Some(at);
                    }
                }
                if bytes < most {
                    return None;
                }
                start += bytes - 3; // a magic may straddle two chunks
            }
            Err(_) if bytes > SECTOR_BYTES => most = SECTOR_BYTES,
            Err(_) => start += bytes,
        }
    }
    None
}
