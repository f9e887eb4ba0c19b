//! A thread that looks at a feed's folder whenever the kernel reports that something happened there, and from time to
//! time anyway: a network file system reports nothing, and neither does a kernel that has run out of watches.

use crate::IngestError;
use crossbeam::channel::{Receiver, Sender, TryRecvError, at, bounded, never, select};
use notify::event::{EventKind, ModifyKind, RenameMode};
use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Reports of the kernel that wait to be looked at, at most; beyond them the whole folder is looked through.
const LIMIT_REPORTS: usize = 4096;
/// How often a folder is looked through that the kernel does not report on, at least.
const POLL_WITHOUT_REPORTS: Duration = Duration::from_secs(1);
/// A look that is wanted at once, or was wanted before now, comes after this long.
const SHORTEST_WAIT: Duration = Duration::from_millis(5);

/// What looks at the files.
pub(super) trait Lookout: Send + 'static {
    /// Looks at what happened. Returns when to look again, even if nothing more happens.
    fn look(&mut self, happened: &Happened) -> Result<Option<Instant>, IngestError>;

    /// Looking failed, and is given up.
    fn fail(&self, error: IngestError);
}

/// What has happened since the last look.
#[derive(Debug, Default)]
pub(super) struct Happened {
    /// Paths with the kernel's reports; `true`: a complete file was renamed to it.
    pub(super) paths: Vec<(PathBuf, bool)>,
    /// Anything may have happened.
    pub(super) anything: bool,
}

/// Which folder is watched, and how.
#[derive(Clone, Debug)]
pub(super) struct Watching {
    /// Name of the corpus, for the thread.
    pub(super) corpus: String,
    pub(super) folder: PathBuf,
    /// Folders inside it too.
    pub(super) recursive: bool,
    /// How often it is looked through, whatever the kernel reports.
    pub(super) poll: Duration,
    /// Whether the kernel is asked for reports.
    pub(super) reports: bool,
}

/// The thread; dropping it ends it.
#[derive(Debug)]
pub(super) struct WatchThread {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl WatchThread {
    /// Starts to watch. The first look is at everything.
    pub(super) fn start(watching: Watching, lookout: impl Lookout) -> Result<Self, IngestError> {
        let (stop, stopped) = bounded(0);
        let folder = watching.folder.clone();
        let thread = std::thread::Builder::new()
            .name(format!("feed-{}", watching.corpus))
            .spawn(move || watch(&watching, lookout, &stopped))
            .map_err(|source| IngestError::Io { doing: "start a thread to watch", path: folder, source })?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for WatchThread {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // It does not panic; if it did, there is nobody left to tell.
        }
    }
}

fn watch(watching: &Watching, mut lookout: impl Lookout, stopped: &Receiver<()>) {
    let reports = if watching.reports { Reports::open(watching) } else { None };
    let poll = if reports.is_some() { watching.poll } else { watching.poll.min(POLL_WITHOUT_REPORTS) };
    let poll = poll.max(SHORTEST_WAIT);
    let mut next_poll = Instant::now();
    let mut happened = Happened { paths: Vec::new(), anything: true };
    loop {
        let wanted = match lookout.look(&happened) {
            Ok(wanted) => wanted,
            Err(error) => return lookout.fail(error),
        };
        let now = Instant::now();
        if happened.anything {
            next_poll = now + poll;
        }
        let wake = wanted.map_or(next_poll, |wanted| wanted.max(now + SHORTEST_WAIT).min(next_poll));
        let none = never();
        happened = Happened::default();
        select! {
            recv(stopped) -> _ => return,
            recv(reports.as_ref().map_or(&none, |reports| &reports.receiver)) -> report => {
                report.iter().for_each(|report| happened.add(report));
            }
            recv(at(wake)) -> _ => {}
        }
        happened.anything |= Instant::now() >= next_poll;
        if let Some(reports) = &reports {
            happened.anything |= reports.lost.swap(false, Ordering::Relaxed);
            reports.receiver.try_iter().take(LIMIT_REPORTS).for_each(|report| happened.add(&report));
        }
        if stopped.try_recv() == Err(TryRecvError::Disconnected) {
            return;
        }
    }
}

impl Happened {
    fn add(&mut self, report: &notify::Result<notify::Event>) {
        let Ok(event) = report else {
            self.anything = true;
            return;
        };
        self.anything |= event.need_rescan();
        let rename = match event.kind {
            EventKind::Access(_) => return,
            EventKind::Modify(ModifyKind::Name(mode)) => Some(mode),
            _ => None,
        };
        let last = event.paths.len().saturating_sub(1);
        for (index, path) in event.paths.iter().enumerate() {
            let complete = match rename {
                Some(RenameMode::To) => true,
                Some(RenameMode::Both) => index == last,
                _ => false,
            };
            self.paths.push((path.clone(), complete));
        }
    }
}

/// The kernel's reports.
struct Reports {
    receiver: Receiver<notify::Result<notify::Event>>,
    /// Set when there were too many.
    lost: Arc<AtomicBool>,
    _watcher: RecommendedWatcher,
}

impl Reports {
    /// `None`, with a warning, if the kernel does not report on this folder.
    fn open(watching: &Watching) -> Option<Self> {
        let (sender, receiver) = bounded(LIMIT_REPORTS);
        let lost = Arc::new(AtomicBool::new(false));
        let overflow = Arc::clone(&lost);
        let handler = move |report| {
            if sender.try_send(report).is_err() {
                overflow.store(true, Ordering::Relaxed);
            }
        };
        let mode = if watching.recursive { RecursiveMode::Recursive } else { RecursiveMode::NonRecursive };
        // Neither does a look through the folder go where a link leads.
        let config = notify::Config::default().with_follow_symlinks(false);
        let opened = RecommendedWatcher::new(handler, config).and_then(|mut watcher| {
            // What is behind the folder's own name is watched, a link or not.
            watcher.watch(&watching.folder.join("."), mode)?;
            Ok(watcher)
        });
        match opened {
            Ok(watcher) => Some(Self { receiver, lost, _watcher: watcher }),
            Err(error) => {
                let folder = watching.folder.display();
                tracing::warn!(corpus = watching.corpus, %folder, %error, "the kernel does not report changes; looking for them every second");
                None
            }
        }
    }
}

/// Whether a file of that name is still being written, or is none of ours: names that begin with a dot, and the
/// endings that tools give to what is not complete.
pub(super) fn is_temporary(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let unfinished = [".tmp", ".part", ".partial", ".crdownload", ".swp", "~"];
    name.starts_with('.') || unfinished.iter().any(|ending| name.ends_with(ending))
}

/// `None`: there is no such file (any more).
pub(super) fn present<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Passes on what it is told. Wants to look again at once.
    struct Told(Sender<(Vec<(PathBuf, bool)>, bool)>, bool);

    impl Lookout for Told {
        fn look(&mut self, happened: &Happened) -> Result<Option<Instant>, IngestError> {
            let _ = self.0.try_send((happened.paths.clone(), happened.anything));
            Ok(self.1.then(Instant::now))
        }

        fn fail(&self, error: IngestError) {
            panic!("{error}");
        }
    }

    #[test]
    fn without_reports_the_folder_is_looked_through_again_and_again() {
        let folder = tempfile::tempdir().unwrap();
        for (reports, folder) in [(false, folder.path().to_owned()), (true, folder.path().join("none"))] {
            let (sender, told) = bounded(64);
            let poll = Duration::from_millis(5);
            let watching = Watching { corpus: "c".to_owned(), folder, recursive: true, poll, reports };
            let thread = WatchThread::start(watching, Told(sender, false)).unwrap();
            for _ in 0..3 {
                assert_eq!(told.recv_timeout(Duration::from_secs(30)).unwrap(), (Vec::new(), true));
            }
            drop(thread);
            assert_eq!(told.iter().filter(|(_, anything)| !anything).count(), 0, "its thread has ended");
        }
    }

    #[test]
    fn who_wants_to_look_again_at_once_puts_off_no_look_through_the_folder() {
        let folder = tempfile::tempdir().unwrap().path().to_owned();
        let (sender, told) = bounded(0);
        let poll = Duration::from_millis(20);
        let watching = Watching { corpus: "c".to_owned(), folder, recursive: true, poll, reports: false };
        let _thread = WatchThread::start(watching, Told(sender, true)).unwrap();
        let start = Instant::now();
        let mut through = 0;
        while through < 3 {
            assert!(start.elapsed() < Duration::from_secs(30), "it was looked through {through} times");
            through += usize::from(told.recv_timeout(Duration::from_secs(1)).is_ok_and(|(_, anything)| anything));
        }
    }

    #[test]
    fn temporary_names_are_known() {
        for name in [".a", "a.tmp", "a.txt.part", "a~", ".git", "a.crdownload"] {
            assert!(is_temporary(Path::new("in").join(name).as_path()), "{name}");
        }
        for name in ["a", "a.txt", "tmp", "a.tmp.gz", "part-0001.parquet"] {
            assert!(!is_temporary(Path::new("in").join(name).as_path()), "{name}");
        }
    }
}
