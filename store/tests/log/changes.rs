//! What a program did to a disk and has not synced: what may be there after a crash, or not.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A write survives a crash in pieces of this size, smaller than any disk's.
const PIECE_BYTES: u64 = 128;

/// A change of a file.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    Write(u64, Vec<u8>),
    Truncate(u64),
}

/// A change of the names of files.
#[derive(Clone, Debug)]
pub(crate) enum NameChange {
    Appears(PathBuf, Option<usize>),
    Vanishes(PathBuf),
    /// One change, until one of its two folders is synced and the other is not.
    Renamed(PathBuf, PathBuf, Option<usize>),
}

/// An arbitrary choice of what survives a crash; 0: nothing, 1: everything.
pub(crate) fn survivors(seed: u64) -> impl FnMut() -> bool {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        match seed {
            0 => false,
            1 => true,
            _ => state >> 63 == 0,
        }
    }
}

impl Change {
    pub(crate) fn apply(&self, content: &mut Vec<u8>) {
        match self {
            Self::Write(offset, bytes) => {
                let end = *offset as usize + bytes.len();
                if content.len() < end {
                    content.resize(end, 0);
                }
                content[*offset as usize..end].copy_from_slice(bytes);
            }
            Self::Truncate(length) => content.resize(*length as usize, 0),
        }
    }

    /// What of it reaches the disk, or does not, by itself.
    pub(crate) fn pieces(&self) -> Vec<Self> {
        let Self::Write(offset, bytes) = self else { return vec![self.clone()] };
        let first = (PIECE_BYTES - offset % PIECE_BYTES).min(bytes.len() as u64);
        let (head, rest) = bytes.split_at(first as usize);
        let starts = (offset + first..).step_by(PIECE_BYTES as usize);
        let rest = starts.zip(rest.chunks(PIECE_BYTES as usize));
        std::iter::once((*offset, head)).chain(rest).map(|(at, piece)| Self::Write(at, piece.to_vec())).collect()
    }
}

impl NameChange {
    pub(crate) fn apply(&self, names: &mut BTreeMap<PathBuf, Option<usize>>) {
        match self {
            Self::Appears(path, file) => {
                names.insert(path.clone(), *file);
            }
            Self::Vanishes(path) => {
                names.remove(path);
            }
            Self::Renamed(from, to, file) => {
                names.remove(from);
                names.insert(to.clone(), *file);
            }
        }
    }

    /// The name that appears or vanishes.
    pub(crate) fn target(&self) -> &Path {
        match self {
            Self::Appears(path, _) | Self::Vanishes(path) | Self::Renamed(_, path, _) => path,
        }
    }

    /// What is durable of it once `dir` is synced, and what is not.
    pub(crate) fn split(self, dir: &Path) -> (Option<Self>, Option<Self>) {
        let inside = |path: &Path| path.parent() == Some(dir);
        match self {
            Self::Appears(ref path, _) | Self::Vanishes(ref path) if inside(path) => (Some(self), None),
            Self::Appears(..) | Self::Vanishes(_) => (None, Some(self)),
            Self::Renamed(from, to, file) => match (inside(&from), inside(&to)) {
                (true, true) => (Some(Self::Renamed(from, to, file)), None),
                (true, false) => (Some(Self::Vanishes(from)), Some(Self::Appears(to, file))),
                (false, true) => (Some(Self::Appears(to, file)), Some(Self::Vanishes(from))),
                (false, false) => (None, Some(Self::Renamed(from, to, file))),
            },
        }
    }
}
