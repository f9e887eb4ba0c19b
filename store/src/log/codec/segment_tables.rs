//! Finding the tables of a segment when a block of it is read.

use super::tables::Tables;
use crate::log::disk::{DiskFile, read_exact_at};
use crate::log::error::Fault;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

/// Where a segment's tables are. Clones, and those of the other segments of a log, share the memory of the one read last:
/// blocks are mostly read segment by segment, and a large vocabulary's tables should not be kept for each of them.
#[derive(Clone, Debug, Default)]
pub(crate) struct SegmentTables {
    last: LastTables,
    /// Checksum of the segment's header, which tells segments apart.
    header: u32,
    /// Bytes of the segment; empty: there are none.
    bytes: Range<u64>,
}

/// The tables that were read last.
#[derive(Clone, Debug, Default)]
pub(crate) struct LastTables(Arc<Mutex<Last>>);

#[derive(Debug, Default)]
struct Last {
    header: u32,
    tables: Option<Arc<Tables>>,
}

impl LastTables {
    /// Those in `bytes` of the segment whose header has this checksum.
    pub(crate) fn of_segment(&self, header: u32, bytes: Range<u64>) -> SegmentTables {
        SegmentTables { last: self.clone(), header, bytes }
    }
}

impl SegmentTables {
    /// Reads them from the segment's file, unless they were the last to be read.
    pub(crate) fn load(&self, file: &dyn DiskFile) -> Result<Arc<Tables>, Fault> {
        if self.bytes.is_empty() {
            return Ok(Arc::default());
        }
        let last = || self.last.0.lock().unwrap_or_else(PoisonError::into_inner);
        {
            let last = last();
            if let Some(tables) = last.tables.as_ref().filter(|_| last.header == self.header) {
                return Ok(Arc::clone(tables));
            }
        }
        let length = (self.bytes.end - self.bytes.start) as usize;
        let tables = Arc::new(Tables::parse(&read_exact_at(file, self.bytes.start, length)?)?);
        *last() = Last { header: self.header, tables: Some(Arc::clone(&tables)) };
        Ok(tables)
    }
}
