//! Every truncation and every flipped bit of a small log.

use crate::memory_disk::MemoryDisk;
use crate::sample::{DIR, check_content, durable, open, options, read, sealed, segments, unsealed, verify};
use std::path::Path;
use store::StoreError;

const ENDS: [u64; 3] = [2, 4, 5];

/// A prefix of the log that ends with a block, as reader and writer see it; how many entries it has.
fn recovered(disk: &MemoryDisk) -> Result<u64, StoreError> {
    let seen = check_content(&read(disk)?);
    let (log, recovery) = open(disk, &options(1 << 30))?;
    assert_eq!(recovery.durable, durable(seen));
    assert_eq!(check_content(&log.reader()), seen);
    assert!(seen == 0 || ENDS.contains(&seen), "{seen} is not the end of a block");
    Ok(seen)
}

#[test]
fn every_truncation_loses_only_what_was_cut() {
    let disk = unsealed(&ENDS);
    let path = segments(&disk).remove(0);
    let whole = disk.files(Path::new(DIR)).remove(&path).unwrap();
    let block_ends: Vec<usize> =
        (1..=ENDS.len()).map(|blocks| unsealed(&ENDS[..blocks]).files(Path::new(DIR))[&path].len()).collect();
    for length in 0..=whole.len() {
        let disk = disk.copy();
        disk.put(&path, whole[..length].to_vec());
        let kept = block_ends.iter().rposition(|end| *end <= length).map_or(0, |block| ENDS[block]);
        let (log, recovery) = open(&disk, &options(1 << 30)).unwrap();
        assert_eq!(recovery.durable, durable(kept), "cut to {length} of {}", whole.len());
        assert_eq!(check_content(&log.reader()), kept);
        drop(log);
        verify(&disk).unwrap();
    }
}

#[test]
fn every_truncation_of_a_sealed_segment_is_noticed() {
    let disk = sealed(&ENDS);
    for (number, path) in segments(&disk).into_iter().enumerate() {
        let whole = disk.files(Path::new(DIR)).remove(&path).unwrap();
        for length in 0..whole.len() {
            let disk = disk.copy();
            disk.put(&path, whole[..length].to_vec());
            match verify(&disk) {
                // The last one: everything before is there. Others: only the footer may go.
                Ok(found) if number == 2 => assert!(found.durable >= durable(4)),
                Ok(found) => assert_eq!((found.durable, &found.footers_lost), (durable(5), &vec![path.clone()])),
                Err(error) => assert!(number < 2 && error.is_corruption(), "{error}"),
            }
        }
    }
}

/// Flips every bit of every segment. `verify` must say so, and nothing may be read that was not written.
fn every_flip_is_noticed(disk: &MemoryDisk) {
    for path in segments(disk) {
        let whole = disk.files(Path::new(DIR)).remove(&path).unwrap();
        for bit in 0..whole.len() * 8 {
            let disk = disk.copy();
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            disk.put(&path, bytes);
            let verified = verify(&disk);
            let (quiet, corrupt) = match &verified {
                Ok(found) => (found.torn.is_none() && found.footers_lost.is_empty(), false),
                Err(error) => (false, error.is_corruption() || matches!(error, StoreError::NoLog { .. })),
            };
            assert!(!quiet, "bit {bit} of {} went unnoticed", path.display());
            if !corrupt {
                let kept = recovered(&disk).unwrap();
                let last = disk.files(Path::new(DIR)).keys().rev().any(|file| *file == path);
                assert!(kept == 5 || last && kept >= 4, "bit {bit} of {}: {kept} entries left", path.display());
            }
        }
    }
}

#[test]
fn every_flipped_bit_of_an_unsealed_log_is_noticed() {
    every_flip_is_noticed(&unsealed(&ENDS));
}

#[test]
fn every_flipped_bit_of_a_sealed_log_is_noticed() {
    every_flip_is_noticed(&sealed(&ENDS));
}

/// The file with the positions is never believed when there is no writer.
#[test]
fn every_flipped_bit_of_the_position_file_is_harmless() {
    let disk = unsealed(&ENDS);
    let path = Path::new(DIR).join("POSITION");
    let whole = disk.files(Path::new(DIR)).remove(&path).unwrap();
    for bit in 0..whole.len() * 8 {
        let disk = disk.copy();
        let mut bytes = whole.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        disk.put(&path, bytes);
        assert_eq!(recovered(&disk).unwrap(), 5);
    }
}
