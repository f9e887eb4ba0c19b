//! A log that is written from the entries of others.
//!
//! It grows in a folder beside the wanted one, `<name>.partial`, which gets its name when everything in it is durable and
//! sealed: what has the wanted name is whole. Entries are numbered from 0. Where an entry is left out, a later one of its source
//! carries the cursor on; if none follows, a skip at the end of the log does.

use crate::log::disk::{Disk, StdDisk};
use crate::log::error::StoreError;
use crate::log::hint;
use crate::log::options::{LogOptions, Precision};
use crate::log::writer::LogWriter;
use crate::{Entry, Identity, Payload, SequenceNumber, Skip, SourceCursor};
use prometheus::Registry;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use std::{fs, io};

/// Ending of the folder's name while the log grows.
const PARTIAL: &str = ".partial";

/// Reason of the skips that carry the last cursor of a source whose last entry was left out.
pub const LEFT_OUT: &str = "left out of this copy of the log";

/// Most memory that the entries of a block may take before they are encoded, by a rough count, where blocks are joined.
const JOINED_BYTES: u64 = 64 << 20;

/// What a new log holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Written {
    /// Entries.
    pub entries: u64,
    /// Records among them.
    pub records: u64,
    /// Skips among them.
    pub skips: u64,
    /// Skips among these that were not in the logs that were read: they carry the last cursors of sources.
    pub cursors: u64,
    /// Copies of all records.
    pub copies: u64,
    /// Masked positions of all copies.
    pub masked_positions: u64,
    /// Segments.
    pub segments: u64,
    /// Bytes of the segments.
    pub bytes: u64,
}

/// A log that grows.
#[derive(Debug)]
pub(crate) struct NewLog {
    log: LogWriter,
    /// Where it is, and where it is wanted.
    partial: PathBuf,
    out: PathBuf,
    /// Whether the rests of several old blocks may become one. A compact block has one rounding for all its labels, so labels that
    /// were compact before would be rounded again.
    joins: bool,
    /// Entries of the next block, and what they take in memory.
    pending: Vec<Entry>,
    pending_bytes: u64,
    /// States of the sources where the old logs have got to, and where this one has.
    reached: BTreeMap<Arc<str>, SourceCursor>,
    carried: BTreeMap<Arc<str>, SourceCursor>,
    written: Written,
}

impl NewLog {
    /// Begins a log that is to be at `out`, from logs of this precision.
    pub(crate) fn create(
        out: &Path,
        identity: &Identity,
        options: &LogOptions,
        from: Precision,
    ) -> Result<Self, StoreError> {
        let partial = prepare(out)?;
        let opened = LogWriter::open(&partial, identity, options, &Registry::new());
        let (log, _) = opened.inspect_err(|_| discard(&partial))?;
        Ok(Self {
            log,
            partial,
            out: out.to_owned(),
            joins: from == Precision::Exact || options.precision == Precision::Exact,
            pending: Vec::new(),
            pending_bytes: 0,
            reached: BTreeMap::new(),
            carried: BTreeMap::new(),
            written: Written::default(),
        })
    }

    /// Adds an entry, whose sequence number it changes.
    pub(crate) fn push(&mut self, mut entry: Entry) {
        entry.sequence = SequenceNumber(self.written.entries);
        self.written.entries += 1;
        match &entry.payload {
            Payload::Record(record) => {
                self.written.records += 1;
                self.written.copies += record.copies.len() as u64;
                let masked = record.copies.iter().map(|copy| copy.masked_positions.len() as u64);
                self.written.masked_positions += masked.sum::<u64>();
            }
            Payload::Skip(_) => self.written.skips += 1,
            Payload::End => {}
        }
        self.reach(entry.cursor.clone());
        self.carried.insert(Arc::clone(&entry.cursor.source), entry.cursor.clone());
        self.pending_bytes += memory_bytes(&entry);
        self.pending.push(entry);
    }

    /// Notes a source's state that no entry carries yet.
    pub(crate) fn reach(&mut self, cursor: SourceCursor) {
        self.reached.insert(Arc::clone(&cursor.source), cursor);
    }

    /// Whether anything is known of a source.
    pub(crate) fn knows(&self, source: &str) -> bool {
        self.reached.contains_key(source)
    }

    /// To be called after the entries of an old block, which took `bytes` of memory: a new block has about that size too.
    pub(crate) fn end_block(&mut self, bytes: u64) -> Result<(), StoreError> {
        if self.pending_bytes >= bytes.min(JOINED_BYTES) || !self.joins { self.flush() } else { Ok(()) }
    }

    /// Adds what carries the last cursors, and gives the log its name. After a failure nothing is left of it.
    pub(crate) fn finish(mut self) -> Result<Written, StoreError> {
        let left: Vec<_> =
            self.reached.values().filter(|cursor| self.carried.get(&cursor.source) != Some(cursor)).collect();
        for cursor in left.into_iter().cloned().collect::<Vec<_>>() {
            let document = format!("{}@{}", cursor.file, cursor.document_offset_bytes).into();
            let payload = Payload::Skip(Skip { document, reason: LEFT_OUT.into() });
            self.push(Entry { sequence: SequenceNumber::default(), cursor, payload });
            self.written.cursors += 1;
        }
        if let Err(error) = self.flush() {
            self.discard();
            return Err(error);
        }
        let Self { log, partial, out, mut written, .. } = self;
        let named = log.seal().and_then(|()| name(&StdDisk, &partial, &out));
        named.inspect_err(|_| discard(&partial))?;
        (written.segments, written.bytes) = measure(&out)?;
        Ok(written)
    }

    /// Removes what was written.
    pub(crate) fn discard(self) {
        let partial = self.partial;
        drop(self.log);
        discard(&partial);
    }

    fn flush(&mut self) -> Result<(), StoreError> {
        self.log.append(&self.pending)?;
        self.pending.clear();
        self.pending_bytes = 0;
        if self.log.sync_due() == Some(Duration::ZERO) {
            self.log.sync()?;
        }
        Ok(())
    }
}

/// What an entry takes in memory, roughly.
pub(crate) fn memory_bytes(entry: &Entry) -> u64 {
    let Payload::Record(record) = &entry.payload else { return 200 };
    let of_copy = |copy: &crate::MaskedCopy| {
        let per_position = 8 + copy.label.as_ref().map_or(0, |label| 8 + 8 * label.top_k as u64);
        200 + 4 * copy.token_ids.len() as u64 + per_position * copy.masked_positions.len() as u64
    };
    400 + record.text.as_ref().map_or(0, |text| text.len() as u64) + record.copies.iter().map(of_copy).sum::<u64>()
}

/// Refuses a folder inside a log: that one's reader would take it for damage, and a copy of it for its own.
pub(crate) fn refuse_inside_log(out: &Path) -> Result<(), StoreError> {
    // Only what is there says what `..` and links mean.
    let parents = out.ancestors().skip(1).map(|dir| if dir.as_os_str().is_empty() { Path::new(".") } else { dir });
    let Some(above) = parents.into_iter().find_map(|dir| dir.canonicalize().ok()) else { return Ok(()) };
    match above.ancestors().find(|dir| dir.join(hint::NAME).exists()) {
        None => Ok(()),
        Some(dir) => {
            let what = format!("it would lie in the log in {}; name a folder beside that", dir.display());
            Err(StoreError::OutputUnusable { dir: out.to_owned(), what })
        }
    }
}

/// Refuses a folder in which something is; gives the one in which the log is to grow.
pub(crate) fn prepare(out: &Path) -> Result<PathBuf, StoreError> {
    let unusable = |dir: &Path, what: &str| StoreError::OutputUnusable { dir: dir.to_owned(), what: what.to_owned() };
    let name = out.file_name().ok_or_else(|| unusable(out, "it names no folder"))?;
    refuse_inside_log(out)?;
    let mut partial = name.to_owned();
    partial.push(PARTIAL);
    let partial = out.with_file_name(partial);
    for (dir, what) in [
        (out, "it is not empty; name a folder that does not exist"),
        (&partial, "it is in the way, perhaps the rest of a copy that did not finish; remove it"),
    ] {
        match fs::read_dir(dir).map(|mut names| names.next().is_some()) {
            Ok(true) => return Err(unusable(dir, what)),
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => return Err(unusable(dir, "it is no folder")),
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(StoreError::io("reading", dir, error)),
            Ok(false) | Err(_) => {}
        }
    }
    Ok(partial)
}

/// Gives a sealed log its name, durably.
pub(crate) fn name(disk: &dyn Disk, partial: &Path, out: &Path) -> Result<(), StoreError> {
    disk.rename(partial, out).map_err(|error| StoreError::io("giving its name to", out, error))?;
    let parent = out.parent().unwrap_or(Path::new(""));
    disk.sync_dir(parent).map_err(|error| StoreError::io("making durable the names in", parent, error))
}

/// Removes a log that was not finished. That this fails is worth a line, and hides no cause.
pub(crate) fn discard(partial: &Path) {
    if let Err(error) = fs::remove_dir_all(partial) {
        tracing::warn!(path = %partial.display(), %error, "could not remove the rest of a log that was not finished");
    }
}

/// Segments, and their bytes.
pub(crate) fn measure(dir: &Path) -> Result<(u64, u64), StoreError> {
    let failed = |error| StoreError::io("reading", dir, error);
    let mut sum = (0, 0);
    for entry in fs::read_dir(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if entry.path().extension().is_some_and(|extension| extension == "seg") {
            sum = (sum.0 + 1, sum.1 + entry.metadata().map_err(failed)?.len());
        }
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::log::disk::{Access, DiskFile};
    use std::sync::Mutex;

    /// Notes what it is asked for.
    #[derive(Debug, Default)]
    struct Recorder(Mutex<Vec<String>>);

    impl Recorder {
        fn note(&self, what: String) -> io::Result<()> {
            self.0.lock().unwrap().push(what);
            Ok(())
        }
    }

    impl Disk for Recorder {
        fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
            self.note(format!("create {}", dir.display()))
        }

        fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
            self.note(format!("list {}", dir.display())).map(|()| Vec::new())
        }

        fn open(&self, _: &Path, _: Access) -> io::Result<Arc<dyn DiskFile>> {
            Err(io::ErrorKind::Unsupported.into())
        }

        fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
            self.note(format!("rename {} {}", from.display(), to.display()))
        }

        fn remove(&self, path: &Path) -> io::Result<()> {
            self.note(format!("remove {}", path.display()))
        }

        fn sync_dir(&self, dir: &Path) -> io::Result<()> {
            self.note(format!("sync {}", dir.display()))
        }
    }

    #[test]
    fn the_name_of_a_new_log_is_made_durable() {
        let disk = Recorder::default();
        name(&disk, Path::new("/logs/new.partial"), Path::new("/logs/new")).unwrap();
        assert_eq!(*disk.0.lock().unwrap(), ["rename /logs/new.partial /logs/new", "sync /logs"]);
    }
}
