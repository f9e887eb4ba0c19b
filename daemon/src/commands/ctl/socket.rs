//! Where the daemon's control socket is.

use std::path::{Path, PathBuf};

/// Of a run whose state folder is the default, started here.
const NEARBY: &str = "state/control.sock";
/// Of the service.
pub(super) const SERVICE: &str = "/run/mergedistill/control.sock";
/// The state folder of the service, whose socket is not in it.
pub(super) const SERVICE_STATE: &str = "/var/lib/mergedistill";

/// The socket that was named, or else the one that is there.
pub(super) fn find(named: Option<&Path>) -> PathBuf {
    find_in(Path::new(""), named)
}

fn find_in(folder: &Path, named: Option<&Path>) -> PathBuf {
    let nearby = folder.join(NEARBY);
    match named {
        Some(named) => named.to_owned(),
        None if nearby.exists() => nearby,
        None => PathBuf::from(SERVICE),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
    use super::*;

    #[test]
    fn the_named_one_then_the_nearby_one_then_the_service() {
        let dir = tempfile::tempdir().unwrap();
        let check = |named: Option<&str>, expected: &Path| {
            assert_eq!(find_in(dir.path(), named.map(Path::new)), expected, "{named:?}");
        };
        check(None, Path::new(SERVICE));
        check(Some("/srv/ops.sock"), Path::new("/srv/ops.sock"));
        std::fs::create_dir(dir.path().join("state")).unwrap();
        std::fs::write(dir.path().join(NEARBY), "").unwrap();
        check(None, &dir.path().join(NEARBY));
        check(Some("/srv/ops.sock"), Path::new("/srv/ops.sock"));
    }
}
