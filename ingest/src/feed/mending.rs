//! What a person says of files that are not what they were, while nobody reads: that one is gone for good, or that it was copied.

use super::followed::HEAD_BYTES;
use super::identity::{Stamp, fingerprint};
use super::manifest::{Followed, Line, Manifest};
use crate::IngestError;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Gives up what was not read of a file of a watched folder, or of a file that was followed. The next start goes on behind it; if there is a
/// file in its place, that is another one.
///
/// # Errors
/// When the corpus has no such file, or that cannot be written down.
pub fn forget(manifests: &Path, corpus: &str, file: &str) -> Result<(), IngestError> {
    let (mut manifest, lines) = open(manifests, corpus)?;
    let name_of = |line: &Line| match line {
        Line::Taken(taken) => Some(Arc::clone(&taken.name)),
        Line::Followed(followed) => Some(Arc::clone(&followed.name)),
        _ => None,
    };
    let Some(name) = lines.iter().filter_map(name_of).find(|name| &**name == file) else {
        let known: Vec<String> = lines.iter().filter_map(name_of).map(|name| format!("`{name}`")).collect();
        let known = match known.as_slice() {
            [] => "it waits for none".to_owned(),
            known => format!("the latest are {}", known[known.len().saturating_sub(10)..].join(", ")),
        };
        return Err(IngestError::Options(format!("corpus `{corpus}` does not wait for a file `{file}`; {known}")));
    };
    write(&mut manifest, &[Line::Forgotten { name }])
}

/// Finds the parts of a followed file that were copied, and have another number in the file system now, by their first bytes: each must be at
/// least as long as when it was seen last, and as far as it `was_read`, and be in the file's folder once. Gives names and places of those that were found.
///
/// # Errors
/// When a part that is still to be read has two copies there, or none; nothing is written down then.
pub fn recognise(
    manifests: &Path,
    corpus: &str,
    file: &Path,
    was_read: impl Fn(&str) -> u64,
) -> Result<Vec<(Arc<str>, PathBuf)>, IngestError> {
    let (mut manifest, lines) = open(manifests, corpus)?;
    let failed = |source| IngestError::Io { doing: "look for copies of", path: file.to_owned(), source };
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut known = Vec::new();
    for mut part in parts(lines) {
        part.bytes = part.bytes.max(was_read(&part.file.name));
        let copies = copies(&part, folder).map_err(failed)?;
        known.push((part, copies));
    }
    let in_place = |(part, copies): &(Known, Vec<(PathBuf, Stamp)>)| {
        copies.iter().any(|(_, stamp)| stamp.inode == part.file.stamp.inode)
    };
    let mut taken: BTreeSet<u64> =
        known.iter().filter(|known| in_place(known)).map(|(part, _)| part.file.stamp.inode).collect();
    known.retain(|known| !in_place(known));
    // Those that are still to be read choose first: a file that begins alike may be what is left of another one.
    known.sort_by_key(|(part, _)| part.finished);
    let mut found = Vec::new();
    for (part, mut copies) in known {
        copies.retain(|(_, stamp)| !taken.contains(&stamp.inode));
        let what = match copies.as_slice() {
            [(path, stamp)] => {
                taken.insert(stamp.inode);
                found.push((Arc::clone(&part.file.name), path.clone(), stamp.inode));
                continue;
            }
            _ if part.finished => continue, // Nobody asks for it any more.
            [] => format!(
                "no file in {} begins as `{}` did, with {} bytes or more; put it back, or forget it",
                folder.display(),
                part.file.name,
                part.bytes
            ),
            several => {
                let paths: Vec<String> = several.iter().map(|(path, _)| path.display().to_string()).collect();
                format!("{} all begin as `{}` did; leave one of them there", paths.join(" and "), part.file.name)
            }
        };
        return Err(IngestError::Options(format!("corpus `{corpus}`: {what}")));
    }
    let lines: Vec<Line> =
        found.iter().map(|(name, _, inode)| Line::Recognised { name: Arc::clone(name), inode: *inode }).collect();
    write(&mut manifest, &lines)?;
    Ok(found.into_iter().map(|(name, path, _)| (name, path)).collect())
}

/// A part of a followed file, as the manifest knows it.
struct Known {
    file: Followed,
    /// Bytes that it had when it was seen last, at least.
    bytes: u64,
    /// A source has read it to its end, or it was given up.
    finished: bool,
}

fn parts(lines: Vec<Line>) -> Vec<Known> {
    let mut parts: BTreeMap<Arc<str>, Known> = BTreeMap::new();
    let mut order = Vec::new();
    for line in lines {
        match line {
            Line::Followed(file) => {
                order.push(Arc::clone(&file.name));
                let (name, bytes) = (Arc::clone(&file.name), file.stamp.bytes);
                parts.insert(name, Known { file, bytes, finished: false });
            }
            Line::Grown { name, bytes, .. } | Line::Closed { name, bytes, .. } => {
                parts.entry(name).and_modify(|part| part.bytes = part.bytes.max(bytes));
            }
            Line::Recognised { name, inode } => {
                parts.entry(name).and_modify(|part| part.file.stamp.inode = inode);
            }
            Line::Finished { name, .. } | Line::Forgotten { name } => {
                parts.entry(name).and_modify(|part| part.finished = true);
            }
            Line::Taken(_) | Line::Past { .. } | Line::PastFiles { .. } => {}
        }
    }
    order.into_iter().filter_map(|name| parts.remove(&name)).collect()
}

/// The files in `folder` that begin as the part did, and are no shorter.
fn copies(part: &Known, folder: &Path) -> io::Result<Vec<(PathBuf, Stamp)>> {
    let mut copies = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let path = entry.path();
        if !entry.file_type()?.is_file() {
            continue;
        }
        let stamp = Stamp::of(&entry.metadata()?);
        let head_bytes = part.file.stamp.bytes.min(HEAD_BYTES);
        if stamp.bytes >= part.bytes && fingerprint(&path, head_bytes)? == part.file.fingerprint {
            copies.push((path, stamp));
        }
    }
    copies.sort_by(|(a, _), (b, _)| a.cmp(b));
    Ok(copies)
}

fn open(manifests: &Path, corpus: &str) -> Result<(Manifest, Vec<Line>), IngestError> {
    let path = Manifest::path_of(manifests, corpus);
    if !path.is_file() {
        let what = "it is no watched folder or followed file that was read before";
        return Err(IngestError::Options(format!("corpus `{corpus}`: {what} ({} is not there)", path.display())));
    }
    Manifest::open(manifests, corpus)
}

fn write(manifest: &mut Manifest, lines: &[Line]) -> Result<(), IngestError> {
    if lines.is_empty() || manifest.append(lines)? { Ok(()) } else { Err(manifest.no_room()) }
}
