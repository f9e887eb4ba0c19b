//! The end of a batch: what its last line says about the batch as a whole.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Opens the commit inside the last line. Inside of a JSON string it cannot stand: a quote is escaped there.
const COMMIT: &[u8] = b",\"commit\":";
const CHECKSUM: &[u8] = b",\"crc32\":";
/// Ends the commit, its line and the batch.
const END: &[u8] = b"}}\n";

/// What the last line of a batch says about it, besides the checksum.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Commit {
    /// Documents of the batch; as many lines.
    pub(super) documents: u64,
    /// Bytes of the batch that stand before the commit.
    pub(super) bytes: u64,
    /// The file was durable up to here when the batch was written.
    pub(super) durable: u64,
    /// Characters of the texts by language; under the empty one where the corpus has a fixed language.
    pub(super) characters: BTreeMap<String, u64>,
    /// Idempotency key of the batch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) key: Option<String>,
}

/// What a file holds, from a place where a batch begins.
#[derive(Debug, Default)]
pub(super) struct Scan {
    /// Where the last whole batch ends.
    pub(super) end: u64,
    /// Documents of whole batches.
    pub(super) documents: u64,
    /// Whole batches, in order.
    pub(super) commits: Vec<Commit>,
    /// Where damage begins that was durable once: something behind it says so.
    pub(super) corrupt_at: Option<u64>,
}

/// Makes a batch of `lines`, each a JSON object that ends in `}` and a line end: the commit goes into the last one.
pub(super) fn seal(lines: &mut Vec<u8>, commit: &mut Commit) {
    lines.truncate(lines.len().saturating_sub(2)); // Without the last `}` and line end.
    commit.bytes = lines.len() as u64;
    lines.extend_from_slice(COMMIT);
    // A struct of numbers and strings always serialises.
    lines.extend_from_slice(serde_json::to_string(commit).unwrap_or_default().as_bytes());
    lines.pop(); // The commit's own `}`.
    let checksum = crc32fast::hash(lines);
    lines.extend_from_slice(CHECKSUM);
    lines.extend_from_slice(checksum.to_string().as_bytes());
    lines.extend_from_slice(END);
}

/// Walks over the batches of a file.
pub(super) fn scan(file: &[u8]) -> Scan {
    let mut scan = Scan::default();
    let (mut begin, mut lines) = (0, 0);
    for (from, to) in lines_of(file) {
        lines += 1;
        if !file[from..to].ends_with(END) {
            continue;
        }
        match read(file, from, to).filter(|(at, commit)| *at == begin && commit.documents == lines) {
            Some((_, commit)) => {
                (begin, lines) = (to, 0);
                scan.documents += commit.documents;
                scan.commits.push(commit);
            }
            None => break,
        }
    }
    scan.end = begin as u64;
    let later = lines_of(&file[begin..]).filter_map(|(from, to)| read(file, begin + from, begin + to));
    let proven = later.into_iter().any(|(_, commit)| commit.durable > scan.end);
    scan.corrupt_at = proven.then_some(scan.end);
    scan
}

/// The commit in the line at `from..to`, and where its batch begins; `None`: there is none, or it is damaged.
fn read(file: &[u8], from: usize, to: usize) -> Option<(usize, Commit)> {
    let line = file[from..to].strip_suffix(END)?;
    let commit_at = memchr::memmem::rfind(line, COMMIT)?;
    let checksum_at = memchr::memmem::rfind(line, CHECKSUM).filter(|at| *at > commit_at)?;
    let checksum: u32 = std::str::from_utf8(&line[checksum_at + CHECKSUM.len()..]).ok()?.parse().ok()?;
    let mut object = line[commit_at + COMMIT.len()..checksum_at].to_vec();
    object.push(b'}');
    let commit: Commit = serde_json::from_slice(&object).ok()?;
    let begin = (from + commit_at).checked_sub(usize::try_from(commit.bytes).ok()?)?;
    (crc32fast::hash(&file[begin..from + checksum_at]) == checksum).then_some((begin, commit))
}

/// The lines that end, with their line ends.
fn lines_of(bytes: &[u8]) -> impl Iterator<Item = (usize, usize)> {
    let mut from = 0;
    memchr::memchr_iter(b'\n', bytes).map(move |at| {
        let line = (from, at + 1);
        from = at + 1;
        line
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(texts: &[&str], durable: u64, key: Option<&str>) -> Vec<u8> {
        let mut lines = Vec::new();
        for text in texts {
            lines.extend_from_slice(format!("{{\"text\":{}}}\n", serde_json::json!(text)).as_bytes());
        }
        let mut commit =
            Commit { documents: texts.len() as u64, durable, key: key.map(str::to_owned), ..Commit::default() };
        seal(&mut lines, &mut commit);
        lines
    }

    #[test]
    fn what_was_sealed_is_found_again() {
        let awkward = ["plain", "}}\n,\"commit\":{\"crc32\":1}}\n", "\u{1F40C} {\"commit\":1}"];
        let mut file = batch(&awkward, 0, Some(",\"crc32\":5}}\n"));
        let first = file.len() as u64;
        file.extend(batch(&["another"], first, None));
        let found = scan(&file);
        assert_eq!((found.end, found.documents, found.corrupt_at), (file.len() as u64, 4, None));
        assert_eq!(found.commits[0].key.as_deref(), Some(",\"crc32\":5}}\n"));
        assert_eq!(found.commits[1], Commit { documents: 1, bytes: 17, durable: first, ..Commit::default() });
        let lines: Vec<serde_json::Value> = file
            .split_inclusive(|byte| *byte == b'\n')
            .map(|line| serde_json::from_slice(line).expect("JSON"))
            .collect();
        assert_eq!(lines[1]["text"], awkward[1]);
    }

    #[test]
    fn a_batch_is_there_as_a_whole_or_not_at_all() {
        let first = batch(&["one", "two"], 0, None);
        let second = batch(&["three", "four"], 0, None);
        let whole = [first.clone(), second.clone()].concat();
        for length in 0..whole.len() {
            let expected = if length < first.len() { 0 } else { first.len() };
            for torn in [whole[..length].to_vec(), [&whole[..length], &vec![0; whole.len() - length]].concat()] {
                let found = scan(&torn);
                assert_eq!((found.end, found.corrupt_at), (expected as u64, None), "{length}");
            }
        }
    }

    #[test]
    fn damage_of_what_was_durable_is_told_from_a_torn_tail() {
        let first = batch(&["one", "two"], 0, None);
        let unsynced = batch(&["three"], 0, None);
        let synced = batch(&["three"], first.len() as u64, None);
        for at in 0..first.len() {
            let damaged = |behind: &Vec<u8>| {
                let mut file = [first.clone(), behind.clone()].concat();
                file[at] ^= 1;
                scan(&file)
            };
            let (torn, corrupt) = (damaged(&unsynced), damaged(&synced));
            assert_eq!((torn.end, torn.corrupt_at), (0, None), "byte {at}");
            assert_eq!((corrupt.end, corrupt.corrupt_at), (0, Some(0)), "byte {at}");
        }
    }
}
