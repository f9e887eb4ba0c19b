//! Everything the log asks of a file system, behind two small traits, so that tests can inject faults.

#[cfg(target_os = "linux")]
use rustix::fs::FallocateFlags;
use rustix::io::Errno;
use std::fmt::Debug;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

/// Room that is to be left on a file system that cannot keep it for a file: for what it writes besides content.
const SPARE_BYTES: u64 = 1 << 20;

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// For reading; it must exist.
    Read,
    /// For reading and writing; it must exist.
    Write,
    /// For reading and writing; emptied if it exists, created otherwise.
    Replace,
    /// For reading and writing; kept if it exists, created otherwise.
    Keep,
}

/// A file system.
pub trait Disk: Debug + Send + Sync {
    /// Creates `dir` and what is missing above it. The new names are not durable before
    /// [`Disk::sync_dir`] of the folders that hold them.
    fn create_dir_all(&self, dir: &Path) -> io::Result<()>;
    /// Names of the files in `dir`, in any order; none if the folder does not exist.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;
    /// Opens a file.
    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn DiskFile>>;
    /// Renames a file, atomically replacing `to`.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Makes the names in `dir` durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
}

/// An open file.
pub trait DiskFile: Debug + Send + Sync {
    /// Its length in bytes.
    fn length(&self) -> io::Result<u64>;
    /// Reads at `offset`; like `read(2)`, possibly less than asked, and 0 at the end.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Writes at `offset`; like `write(2)`, possibly less than asked.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize>;
    /// Makes content and length durable.
    fn sync(&self) -> io::Result<()>;
    /// Cuts the file.
    fn truncate(&self, length: u64) -> io::Result<()>;
    /// Makes sure that writes below `end` find room, and leaves content and length as they are. Room that is not used is
    /// given back by [`DiskFile::release`]. A file system that cannot keep room for a file says whether there is some.
    fn reserve(&self, end: u64) -> io::Result<()>;
    /// Gives back the room behind the end of the file.
    fn release(&self) -> io::Result<()>;
    /// When it was written last.
    fn modified(&self) -> io::Result<SystemTime>;
    /// Takes an advisory lock without waiting; `false` if another open file holds a conflicting one.
    /// Held until the file is closed.
    fn try_lock(&self, lock: Lock) -> io::Result<bool>;
}

/// Kind of an advisory lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lock {
    /// Compatible with other shared locks.
    Shared,
    /// Compatible with none.
    Exclusive,
}

/// The operating system's file system.
#[derive(Clone, Copy, Debug, Default)]
pub struct StdDisk;

impl Disk for StdDisk {
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        fs::create_dir_all(dir)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let entries = match fs::read_dir(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry?;
            if !entry.file_type()?.is_dir() {
                names.push(entry.file_name().to_string_lossy().into_owned());
            }
        }
        Ok(names)
    }

    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn DiskFile>> {
        let mut options = OpenOptions::new();
        options.read(true).write(access != Access::Read);
        match access {
            Access::Read | Access::Write => {}
            Access::Replace => {
                options.create(true).truncate(true);
            }
            Access::Keep => {
                options.create(true).truncate(false);
            }
        }
        Ok(Arc::new(StdFile(options.open(path)?)))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        // The parent of a relative name like `log` is the empty path.
        let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
        match sync_names(dir) {
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()), // It has no such operation.
            synced => synced,
        }
    }
}

#[derive(Debug)]
struct StdFile(File);

impl DiskFile for StdFile {
    fn length(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        FileExt::read_at(&self.0, buffer, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        FileExt::write_at(&self.0, bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn truncate(&self, length: u64) -> io::Result<()> {
        self.0.set_len(length)
    }

    fn reserve(&self, end: u64) -> io::Result<()> {
        let length = self.0.metadata()?.len();
        if end <= length {
            return Ok(());
        }
        match allocate(&self.0, length, end - length) {
            Err(Errno::NOTSUP | Errno::NOSYS | Errno::INVAL) => has_room(&self.0, end - length),
            allocated => Ok(allocated?),
        }
    }

    fn release(&self) -> io::Result<()> {
        // Cutting a file where it ends frees what was reserved behind it.
        self.0.set_len(self.0.metadata()?.len())
    }

    fn modified(&self) -> io::Result<SystemTime> {
        self.0.metadata()?.modified()
    }

    fn try_lock(&self, lock: Lock) -> io::Result<bool> {
        let outcome = match lock {
            Lock::Shared => self.0.try_lock_shared(),
            Lock::Exclusive => self.0.try_lock(),
        };
        match outcome {
            Ok(()) => Ok(true),
            Err(TryLockError::WouldBlock) => Ok(false),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }
}

#[cfg(target_os = "linux")]
fn allocate(file: &File, offset: u64, bytes: u64) -> Result<(), Errno> {
    rustix::io::retry_on_intr(|| rustix::fs::fallocate(file, FallocateFlags::KEEP_SIZE, offset, bytes))
}

/// Elsewhere room cannot be reserved behind the end of a file.
#[cfg(not(target_os = "linux"))]
fn allocate(_: &File, _: u64, _: u64) -> Result<(), Errno> {
    Err(Errno::NOTSUP)
}

/// Whether `bytes` more fit on the file system, as things are now.
fn has_room(file: &File, bytes: u64) -> io::Result<()> {
    let statistics = rustix::fs::fstatvfs(file)?;
    let free_bytes = statistics.f_bavail.saturating_mul(statistics.f_frsize);
    match free_bytes >= bytes.saturating_add(SPARE_BYTES) {
        true => Ok(()),
        false => Err(io::ErrorKind::StorageFull.into()),
    }
}

/// Syncs a folder; [`io::ErrorKind::InvalidInput`] if it cannot be synced.
fn sync_names(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Writes all of `bytes` at `offset`.
///
/// # Errors
/// What the disk says; [`io::ErrorKind::WriteZero`] if it takes nothing more.
pub fn write_all_at(file: &dyn DiskFile, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        match file.write_at(bytes, offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                bytes = &bytes[written.min(bytes.len())..];
                offset += written as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Reads exactly `length` bytes at `offset`. The caller has bounded `length` by the file's.
pub(crate) fn read_exact_at(file: &dyn DiskFile, offset: u64, length: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    read_exact_into(file, offset, &mut bytes)?;
    Ok(bytes)
}

/// Reads exactly as many bytes at `offset` as `bytes` has.
pub(crate) fn read_exact_into(file: &dyn DiskFile, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
    let mut done = 0;
    while done < bytes.len() {
        match file.read_at(&mut bytes[done..], offset + done as u64) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => done += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    /// A device that cannot be synced says so; nothing else could.
    #[cfg(target_os = "linux")]
    #[test]
    fn a_sync_of_names_reaches_the_kernel() {
        let refused = super::sync_names("/dev/null".as_ref()).map_err(|error| error.kind());
        assert_eq!(refused, Err(std::io::ErrorKind::InvalidInput));
    }
}
