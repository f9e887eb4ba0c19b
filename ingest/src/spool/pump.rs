//! Standard input and named pipes: what comes through them is moved into an inbox before it is used.
//!
//! A pipe forgets what was read from it, so a process that is killed loses what it has read and not yet made durable: at most
//! 1 MiB of whole documents, and the document that has not ended; what is still inside the pipe goes too when nobody has it
//! open any more. What was made durable is never read twice. (A client that must lose nothing pushes over HTTP, with keys.) A
//! stop in order loses only the document that has not ended, and whole ones if there is no room for them. Without room, or while the log takes nothing, nothing is read, and whoever
//! writes to the pipe waits.

use super::{Batch, BatchBuilder, Inbox, PushError, Receipt};
use crate::IngestError;
use crate::quarantine::{Note, Place, Quarantine};
use crossbeam::channel::bounded;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use store::stage::StageControl;

const BUFFER_BYTES: usize = 64 << 10;
/// Documents that become durable together, at most, but for a larger one.
const BATCH_BYTES: u64 = 1 << 20;
/// Documents do not wait longer than this for others. Also how long a stop may go unnoticed.
const SILENCE: Duration = Duration::from_millis(50);
/// Without room: try again after this long.
const RETRY_INTERVAL: Duration = Duration::from_millis(200);

/// Where documents come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PumpSource {
    /// The process's standard input. Its end is the end of the corpus.
    StandardInput,
    /// A named pipe. When all who write to it have left, the next ones are waited for.
    Pipe(PathBuf),
}

/// Moves documents from a source into an inbox.
#[derive(Debug)]
pub struct Pump<'a> {
    source: PumpSource,
    inbox: &'a Inbox,
    control: &'a StageControl,
    batch: BatchBuilder,
    quarantine: Quarantine,
    buffer: Vec<u8>,
}

/// Why a pump stopped reading.
enum Stopped {
    /// All who wrote have left.
    Ended,
    /// It was told to stop.
    Asked,
}

impl<'a> Pump<'a> {
    /// A pump into `inbox`; documents that cannot be used go to `quarantine`.
    #[must_use]
    pub fn new(source: PumpSource, inbox: &'a Inbox, control: &'a StageControl, quarantine: Quarantine) -> Self {
        Self {
            source,
            inbox,
            control,
            batch: inbox.batch().keeping_all_rejected(),
            quarantine,
            buffer: vec![0; BUFFER_BYTES],
        }
    }

    /// Reads until the source has ended or the stage is told to stop.
    ///
    /// # Errors
    /// When the source cannot be read, the inbox not be written, or the quarantine folder not.
    pub fn run(mut self) -> Result<(), IngestError> {
        match self.source.clone() {
            PumpSource::StandardInput => {
                let input = io::stdin();
                if is_file(input.as_fd()) {
                    let corpus = self.inbox.name();
                    tracing::warn!(
                        corpus,
                        "standard input is a file: a restart reads it again from its start; use `path`"
                    );
                }
                if let Stopped::Ended = self.read_all(input.as_fd(), Path::new("standard input"), false)? {
                    tracing::info!(corpus = self.inbox.name(), "standard input has ended, and with it the corpus");
                    self.inbox.end();
                }
                Ok(())
            }
            PumpSource::Pipe(path) => {
                let mut pipe = open_pipe(&path)?;
                while let Stopped::Ended = self.read_all(pipe.as_fd(), &path, true)? {
                    // Opened before the other is closed: what is written in between stays in the pipe.
                    pipe = open_pipe(&path)?;
                }
                Ok(())
            }
        }
    }

    /// Reads to the end of the input. Every document is durable, or kept in the quarantine, when this returns.
    ///
    /// `never_blocks`: reading does not wait, and says whether somebody could still write. `poll` alone would not: of writers
    /// that came before this end was opened it does not tell that they left.
    fn read_all(&mut self, input: BorrowedFd<'_>, path: &Path, never_blocks: bool) -> Result<Stopped, IngestError> {
        let mut received = false;
        let failed = |source: Errno| IngestError::Io { doing: "read", path: path.to_owned(), source: source.into() };
        loop {
            if self.control.stopping() {
                self.flush()?;
                return Ok(Stopped::Asked);
            }
            if !is_readable(input).map_err(failed)? {
                if !self.flush()? {
                    return Ok(Stopped::Asked);
                }
                if !(never_blocks && received) {
                    continue;
                }
            }
            match rustix::io::read(input, &mut self.buffer[..]) {
                Ok(0) => {
                    self.batch.end();
                    return Ok(if self.flush()? { Stopped::Ended } else { Stopped::Asked });
                }
                Ok(bytes) => {
                    received = true;
                    self.batch.take(&self.buffer[..bytes]);
                }
                Err(Errno::INTR | Errno::AGAIN) => {}
                Err(error) => return Err(failed(error)),
            }
            if self.batch.is_worth(BATCH_BYTES) && !self.flush()? {
                return Ok(Stopped::Asked);
            }
        }
    }

    /// Makes the documents that have ended durable; waits for room. `false`: told to stop before there was.
    fn flush(&mut self) -> Result<bool, IngestError> {
        let Some(batch) = self.batch.split() else { return Ok(true) };
        let mut told = false;
        loop {
            let problem = match self.push(&batch) {
                Ok(_) => break,
                Err(PushError::Closed) => return Ok(false),
                Err(error @ (PushError::Busy { .. } | PushError::Full { .. } | PushError::NoSpace { .. })) => error,
                Err(error) => {
                    let path = self.inbox.folder().to_owned();
                    return Err(IngestError::Inbox { path, problem: error.to_string() });
                }
            };
            if !std::mem::replace(&mut told, true) {
                tracing::info!(corpus = self.inbox.name(), "reading waits for room: {problem}");
            }
            if !self.control.wait(RETRY_INTERVAL) {
                return Ok(false);
            }
        }
        let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis());
        for (line, rejection) in &batch.rejected {
            let document = format!("{now_ms}-{line}");
            let (source, corpus) = (self.inbox.name(), self.inbox.name());
            let place =
                Place { source, corpus, document: &document, sequence: None, offset: *line, path: None, span: None };
            self.quarantine.keep(&Note::new(place, rejection))?;
        }
        Ok(true)
    }

    fn push(&self, batch: &Batch) -> Result<Receipt, PushError> {
        let (done, outcome) = bounded(1);
        self.inbox.push(batch.copy(), move |result| drop(done.send(result)));
        outcome.recv().unwrap_or(Err(PushError::Closed))
    }
}

/// Waits a moment for something to read, or the end of the input.
fn is_readable(input: BorrowedFd<'_>) -> Result<bool, Errno> {
    let silence = Timespec { tv_sec: 0, tv_nsec: i64::from(SILENCE.subsec_nanos()) };
    match rustix::event::poll(&mut [PollFd::new(&input, PollFlags::IN)], Some(&silence)) {
        Ok(ready) => Ok(ready > 0),
        Err(Errno::INTR) => Ok(false),
        Err(error) => Err(error),
    }
}

fn is_file(input: BorrowedFd<'_>) -> bool {
    rustix::fs::fstat(input).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode).is_file())
}

/// Opens a named pipe without waiting for somebody to write to it.
fn open_pipe(path: &Path) -> Result<OwnedFd, IngestError> {
    let failed = |source| IngestError::Io { doing: "open the pipe", path: path.to_owned(), source };
    if !fs::metadata(path).map_err(failed)?.file_type().is_fifo() {
        let problem = format!("`{}` is not a named pipe; make one with mkfifo", path.display());
        return Err(IngestError::Options(problem));
    }
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).map_err(|error| failed(error.into()))
}
