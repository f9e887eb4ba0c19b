//! Compiled kernels on disk, so that not every start waits for the compiler (20 seconds for bfloat16).

use sha2::{Digest, Sha256};
use std::io;
use std::path::{Path, PathBuf};

/// Before the code comes its hash.
const HASH_BYTES: usize = 32;

/// Compiled code, by what it was compiled from.
#[derive(Debug)]
pub(super) struct Cache {
    folder: PathBuf,
}

impl Cache {
    /// Where caches belong: the folder that systemd gives a service (`CacheDirectory=`), or the user's. `None`: there is neither.
    pub(super) fn of_user() -> Option<Self> {
        let named = |name: &str| {
            let first = std::env::split_paths(&std::env::var_os(name)?).next()?;
            first.is_absolute().then_some(first)
        };
        let of_user = || named("XDG_CACHE_HOME").or_else(|| Some(named("HOME")?.join(".cache")));
        let folder = named("CACHE_DIRECTORY").or_else(|| Some(of_user()?.join("mergedistill")))?;
        Some(Self { folder: folder.join("kernels") })
    }

    /// What was kept of this `kind` (its precision and architecture) and `source` (with all else that matters); `None` also where it is damaged.
    pub(super) fn load(&self, kind: &str, source: &[u8]) -> Option<Vec<u8>> {
        let found = std::fs::read(self.path(kind, source)).ok()?;
        let (hash, code) = found.split_at_checked(HASH_BYTES)?;
        (Sha256::digest(code).as_slice() == hash).then(|| code.to_vec())
    }

    /// Keeps it, in place of what was kept of this kind. What cannot be kept is compiled again the next time.
    pub(super) fn keep(&self, kind: &str, source: &[u8], code: &[u8]) {
        let path = self.path(kind, source);
        if let Err(error) = self.write(kind, &path, code) {
            tracing::debug!(path = %path.display(), %error, "compiled kernels are not kept");
        }
    }

    fn write(&self, kind: &str, path: &Path, code: &[u8]) -> io::Result<()> {
        std::fs::create_dir_all(&self.folder)?;
        let begins = [format!("{kind}-"), format!("{kind}.")];
        for entry in std::fs::read_dir(&self.folder)? {
            let entry = entry?;
            if begins.iter().any(|begin| entry.file_name().to_string_lossy().starts_with(begin)) {
                let _ = std::fs::remove_file(entry.path()); // Another process may have been faster.
            }
        }
        // Under another name until all of it is there.
        let part = self.folder.join(format!("{kind}.{}.part", std::process::id()));
        std::fs::write(&part, [Sha256::digest(code).as_slice(), code].concat())?;
        std::fs::rename(&part, path).inspect_err(|_| drop(std::fs::remove_file(&part)))
    }

    fn path(&self, kind: &str, source: &[u8]) -> PathBuf {
        let digits: String = Sha256::digest(source)[..12].iter().map(|byte| format!("{byte:02x}")).collect();
        self.folder.join(format!("{kind}-{digits}"))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

    use super::*;

    #[test]
    fn what_was_compiled_is_found_again_unless_it_is_damaged_or_of_another_source() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache { folder: folder.path().join("kernels") };
        assert_eq!(cache.load("sm_90a-float32", b"source"), None);
        cache.keep("sm_90a-float32", b"source", b"code");
        cache.keep("sm_90a-bfloat16", b"source", b"narrow code");
        assert_eq!(cache.load("sm_90a-float32", b"source").unwrap(), b"code");
        assert_eq!(cache.load("sm_90a-bfloat16", b"source").unwrap(), b"narrow code");
        assert_eq!(cache.load("sm_90a-float32", b"another source"), None);

        cache.keep("sm_90a-float32", b"another source", b"other code");
        assert_eq!(cache.load("sm_90a-float32", b"another source").unwrap(), b"other code");
        assert_eq!(cache.load("sm_90a-float32", b"source"), None, "one of each kind is enough");

        let path = cache.path("sm_90a-float32", b"another source");
        let mut bytes = std::fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(cache.load("sm_90a-float32", b"another source"), None);
        std::fs::write(&path, b"short").unwrap();
        assert_eq!(cache.load("sm_90a-float32", b"another source"), None);
        assert_eq!(std::fs::read_dir(&cache.folder).unwrap().count(), 2, "nothing else is left");
    }

    #[test]
    fn a_folder_that_cannot_be_written_to_is_no_error() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache { folder: folder.path().join("file/kernels") };
        std::fs::write(folder.path().join("file"), "").unwrap();
        cache.keep("sm_80-float32", b"source", b"code");
        assert_eq!(cache.load("sm_80-float32", b"source"), None);
    }
}
