//! The idempotency keys of the latest batches, and the file in which they outlive the documents.
//!
//! `keys` is written anew whenever a file of documents is full, before the next one begins: the number of the first
//! document that it does not cover, the characters that had arrived until then, and the keys until then, oldest first.
//! The keys of later batches stand in the commits behind that number. All numbers are little-endian:
//!
//! | bytes | what |
//! | --- | --- |
//! | 8 | `MDKEYS1\n` |
//! | 8 | number of the first document that is not covered |
//! | 4 | length of the characters, which follow: a JSON object, characters by language |
//! | 8 | number of keys, each of which follows as the first 16 bytes of its SHA-256 |
//! | 4 | CRC-32 of all before |

use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashSet, VecDeque};

const MAGIC: &[u8; 8] = b"MDKEYS1\n";
const KEY_BYTES: usize = 16;

/// A key, shortened to a fixed size: two different ones that meet here are not to be expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct KeyHash([u8; KEY_BYTES]);

impl KeyHash {
    pub(super) fn of(key: &str) -> Self {
        let digest = Sha256::digest(key.as_bytes());
        let mut hash = [0; KEY_BYTES];
        hash.copy_from_slice(&digest[..KEY_BYTES]);
        Self(hash)
    }
}

/// The latest keys. Takes about 50 bytes a key.
#[derive(Debug)]
pub(super) struct KeyWindow {
    limit: usize,
    order: VecDeque<KeyHash>,
    known: HashSet<KeyHash>,
}

impl KeyWindow {
    /// Remembers the latest `limit` keys.
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, order: VecDeque::new(), known: HashSet::new() }
    }

    pub(super) fn contains(&self, key: KeyHash) -> bool {
        self.known.contains(&key)
    }

    pub(super) fn insert(&mut self, key: KeyHash) {
        if !self.known.insert(key) {
            return;
        }
        self.order.push_back(key);
        if self.order.len() > self.limit
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
    }
}

/// What the file `keys` says.
#[derive(Debug)]
pub(super) struct KeysFile {
    /// Number of the first document that is not covered.
    pub(super) covers: u64,
    /// Characters of the documents before that, by language.
    pub(super) characters: BTreeMap<String, u64>,
    /// Keys of the batches before that, as far as they are remembered; oldest first.
    pub(super) keys: Vec<KeyHash>,
}

pub(super) fn encode(covers: u64, characters: &BTreeMap<String, u64>, keys: &KeyWindow) -> Vec<u8> {
    // A map of strings and numbers always serialises.
    let characters = serde_json::to_vec(characters).unwrap_or_default();
    let mut bytes = Vec::with_capacity(64 + characters.len() + KEY_BYTES * keys.order.len());
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&covers.to_le_bytes());
    bytes.extend_from_slice(&(characters.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&characters);
    bytes.extend_from_slice(&(keys.order.len() as u64).to_le_bytes());
    keys.order.iter().for_each(|key| bytes.extend_from_slice(&key.0));
    let checksum = crc32fast::hash(&bytes);
    bytes.extend_from_slice(&checksum.to_le_bytes());
    bytes
}

/// `None`: the file is damaged.
pub(super) fn decode(bytes: &[u8]) -> Option<KeysFile> {
    let (content, checksum) = bytes.split_last_chunk::<4>()?;
    let rest = content.strip_prefix(MAGIC)?;
    if crc32fast::hash(content) != u32::from_le_bytes(*checksum) {
        return None;
    }
    let (covers, rest) = rest.split_first_chunk::<8>()?;
    let (length, rest) = rest.split_first_chunk::<4>()?;
    let (characters, rest) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
    let (count, rest) = rest.split_first_chunk::<8>()?;
    let (keys, over) = rest.as_chunks::<KEY_BYTES>();
    if !over.is_empty() || keys.len() as u64 != u64::from_le_bytes(*count) {
        return None;
    }
    Some(KeysFile {
        covers: u64::from_le_bytes(*covers),
        characters: serde_json::from_slice(characters).ok()?,
        keys: keys.iter().map(|key| KeyHash(*key)).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_keys_are_forgotten_first() {
        let mut keys = KeyWindow::new(3);
        let hash = |number: u32| KeyHash::of(&number.to_string());
        for number in [1, 2, 3, 2, 4] {
            keys.insert(hash(number));
        }
        assert_eq!([1, 2, 3, 4].map(|number| keys.contains(hash(number))), [false, true, true, true]);
    }

    #[test]
    fn a_file_of_keys_is_whole_or_damaged() {
        let mut keys = KeyWindow::new(10);
        ["one", "two"].iter().for_each(|key| keys.insert(KeyHash::of(key)));
        let characters = BTreeMap::from([("en".to_owned(), 7), ("de".to_owned(), 9)]);
        let bytes = encode(12, &characters, &keys);
        let file = decode(&bytes).expect("whole");
        assert_eq!((file.covers, file.characters), (12, characters));
        assert_eq!(file.keys, ["one", "two"].map(KeyHash::of));
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 4;
            assert!(decode(&damaged).is_none() && decode(&bytes[..at]).is_none(), "byte {at}");
        }
    }
}
