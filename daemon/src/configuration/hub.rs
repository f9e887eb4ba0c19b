//! Models by their name on the Hugging Face hub: `hf://OWNER/NAME@REVISION` is the folder in which `hf download OWNER/NAME` left it. Nothing is
//! downloaded: a daemon that runs for weeks is not to depend on what a name means today.

use std::fs;
use std::path::{Component, Path, PathBuf};

/// What a path begins with that is a name on the hub.
pub(super) const SCHEME: &str = "hf://";

/// Where Hugging Face's tools keep what they download, by the environment variables that they read.
pub(super) fn cache(variable: impl Fn(&str) -> Option<String>) -> PathBuf {
    let folder = |name: &str| variable(name).filter(|folder| !folder.is_empty()).map(PathBuf::from);
    let home = || folder("XDG_CACHE_HOME").or_else(|| Some(folder("HOME")?.join(".cache"))).unwrap_or_default();
    let hub = || folder("HF_HOME").unwrap_or_else(|| home().join("huggingface")).join("hub");
    folder("HF_HUB_CACHE").unwrap_or_else(hub)
}

/// The folder of `name`, `OWNER/NAME` or `NAME` with or without `@REVISION` (a branch, a tag or a commit; default: `main`), in `cache`. The error
/// says what to do.
pub(super) fn find(name: &str, cache: &Path) -> Result<PathBuf, String> {
    let (repository, revision) = name.split_once('@').unwrap_or((name, "main"));
    let is_name = |part: &str| matches!(Path::new(part).components().collect::<Vec<_>>()[..], [Component::Normal(_)]);
    let parts: Vec<&str> = repository.split('/').collect();
    let refers = revision.split('/').all(is_name);
    if parts.len() > 2 || !parts.iter().all(|part| is_name(part)) || !refers {
        return Err(format!(
            "`{SCHEME}{name}` is no model on the Hugging Face hub; expected {SCHEME}OWNER/NAME or {SCHEME}OWNER/NAME@REVISION"
        ));
    }
    let folder = cache.join(format!("models--{}", parts.join("--")));
    let commit = fs::read_to_string(folder.join("refs").join(revision)).unwrap_or_else(|_| revision.to_owned());
    let snapshot = folder.join("snapshots").join(commit.trim());
    if snapshot.is_dir() {
        return Ok(snapshot);
    }
    let at = if revision == "main" { String::new() } else { format!(" --revision {revision}") };
    Err(format!(
        "`{SCHEME}{name}` is not in {}; fetch it with `hf download {repository}{at}`, or set HF_HOME to where it is",
        cache.display()
    ))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn the_cache_is_where_hugging_face_looks_for_it() {
        for (variables, expected) in [
            (&[("HOME", "/h")][..], "/h/.cache/huggingface/hub"),
            (&[("HOME", "/h"), ("XDG_CACHE_HOME", "/c")], "/c/huggingface/hub"),
            (&[("HOME", "/h"), ("HF_HOME", "/hf")], "/hf/hub"),
            (&[("HF_HUB_CACHE", "/cache"), ("HF_HOME", "/hf")], "/cache"),
            (&[("HF_HUB_CACHE", ""), ("HF_HOME", "/hf")], "/hf/hub"),
        ] {
            let variable =
                |name: &str| variables.iter().find(|(is, _)| *is == name).map(|(_, value)| (*value).to_owned());
            assert_eq!(cache(variable), Path::new(expected), "{variables:?}");
        }
    }

    #[test]
    fn a_name_is_the_snapshot_that_was_downloaded() {
        let cache = tempfile::tempdir().unwrap();
        let model = cache.path().join("models--google--muril-base-cased");
        let plain = cache.path().join("models--bert-base-cased");
        for (model, reference, commit) in
            [(&model, "main", "c0ffee"), (&model, "refs-pr-1", "beef"), (&plain, "main", "abad1dea")]
        {
            fs::create_dir_all(model.join("refs")).unwrap();
            fs::write(model.join("refs").join(reference), commit).unwrap();
            fs::create_dir_all(model.join("snapshots").join(commit)).unwrap();
        }
        let check = |name: &str, expected: Result<PathBuf, &str>| match (find(name, cache.path()), expected) {
            (Ok(found), Ok(expected)) => assert_eq!(found, expected, "{name}"),
            (Err(message), Err(part)) => assert!(message.contains(part), "{name}: {message}"),
            (found, expected) => panic!("{name}: {found:?}, not {expected:?}"),
        };
        check("google/muril-base-cased", Ok(model.join("snapshots/c0ffee")));
        check("google/muril-base-cased@refs-pr-1", Ok(model.join("snapshots/beef")));
        check("google/muril-base-cased@c0ffee", Ok(model.join("snapshots/c0ffee")));
        check("bert-base-cased", Ok(plain.join("snapshots/abad1dea")));
        check("bert-base-uncased", Err("hf download bert-base-uncased`"));
        check("bert-base-cased@v1", Err("hf download bert-base-cased --revision v1`"));
        for name in ["", "a/b/c", "../a", "a/..", "a@../../b", "a@", "/a"] {
            check(name, Err("is no model on the Hugging Face hub"));
        }
    }
}
