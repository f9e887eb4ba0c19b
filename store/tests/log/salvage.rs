//! Reading past damage.

use crate::memory_disk::MemoryDisk;
use crate::sample::{DIR, append_blocks, block, entry, open, options, read, sealed, segments, unsealed};
use std::io::ErrorKind;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use store::log::{Loss, Need, Retention, Salvage};
use store::{Entry, SequenceNumber, StoreError};

const ENDS: [u64; 5] = [2, 4, 5, 9, 11];

fn salvage(disk: &MemoryDisk) -> Result<(Vec<Entry>, Vec<Loss>), StoreError> {
    let mut salvage = Salvage::open_on(Arc::new(disk.clone()), Path::new(DIR))?;
    let mut entries = Vec::new();
    while let Some(block) = salvage.next_block()? {
        entries.extend(block);
    }
    Ok((entries, salvage.losses().to_vec()))
}

/// What is read is what was written, in order, and what is missing is reported as lost. Gives the numbers of what is read.
#[track_caller]
fn check(disk: &MemoryDisk, end: u64) -> (Vec<u64>, Vec<Loss>) {
    check_read(salvage(disk).unwrap(), end)
}

#[track_caller]
fn check_read((entries, losses): (Vec<Entry>, Vec<Loss>), end: u64) -> (Vec<u64>, Vec<Loss>) {
    let numbers: Vec<u64> = entries.iter().map(|entry| entry.sequence.0).collect();
    assert!(numbers.is_sorted_by(|left, right| left < right), "{numbers:?}");
    entries.iter().for_each(|read| assert_eq!(*read, entry(read.sequence.0)));
    let is_lost = |number: u64| {
        let covers = |loss: &Loss| loss.first.0 <= number && loss.end.is_none_or(|end| number < end.0);
        losses.iter().any(covers)
    };
    for number in 0..end {
        assert!(numbers.contains(&number) != is_lost(number), "entry {number}: {numbers:?} {losses:?}");
    }
    (numbers, losses)
}

/// The content of the log's only segment, its path, and where its blocks are.
fn one_segment() -> (MemoryDisk, PathBuf, Vec<u8>, Vec<Range<usize>>) {
    let disk = unsealed(&ENDS);
    let path = segments(&disk).remove(0);
    let content = |disk: &MemoryDisk| disk.files(Path::new(DIR)).remove(&path).unwrap();
    let mut ends: Vec<usize> = (1..=ENDS.len()).map(|blocks| content(&unsealed(&ENDS[..blocks])).len()).collect();
    let bytes = content(&disk);
    let first = 20 + u32::from_le_bytes(bytes[12..16].try_into().unwrap()) as usize;
    ends.insert(0, first);
    let blocks = ends.windows(2).map(|pair| pair[0]..pair[1]).collect();
    (disk, path, bytes, blocks)
}

#[test]
fn an_intact_log_is_read_as_it_is() {
    let disk = sealed(&ENDS);
    assert_eq!(check(&disk, 11), ((0..11).collect(), Vec::new()));
    let (disk, path, bytes, blocks) = one_segment();
    for length in blocks[4].start..=bytes.len() {
        disk.put(&path, bytes[..length].to_vec());
        let end = read(&disk).unwrap().durable().end().0;
        assert_eq!(check(&disk, end), ((0..end).collect(), Vec::new()), "a torn tail is no loss");
    }
    assert!(matches!(salvage(&MemoryDisk::default()), Err(StoreError::NoLog { .. })));
}

/// Whatever byte of a block is damaged: that block is lost, the others are found, and the report says so.
#[test]
fn a_damaged_block_is_left_out() {
    let (disk, path, bytes, blocks) = one_segment();
    for (number, range) in blocks.iter().enumerate().take(ENDS.len() - 1) {
        let lost = number.checked_sub(1).map_or(0, |before| ENDS[before])..ENDS[number];
        for at in range.clone() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x10;
            disk.put(&path, damaged);
            // Nothing proves that the last block but one had been durable unless a later one says so.
            let (numbers, losses) = check(&disk, 11);
            let expected: Vec<u64> = (0..11).filter(|number| !lost.contains(number)).collect();
            assert_eq!(numbers, expected, "byte {at}");
            assert_eq!((losses.len(), losses[0].offset), (1, range.start as u64), "{losses:?}");
            assert_eq!(losses[0].entries(), Some(lost.end - lost.start));
        }
    }
}

/// The same, with all of it gone or overwritten.
#[test]
fn what_is_cut_out_or_overwritten_is_left_out() {
    let (disk, path, bytes, blocks) = one_segment();
    let mut zeroed = bytes.clone();
    zeroed[blocks[1].start..blocks[2].end].fill(0);
    disk.put(&path, zeroed);
    let (numbers, losses) = check(&disk, 11);
    assert_eq!(numbers, [0, 1, 5, 6, 7, 8, 9, 10]);
    assert_eq!((losses.len(), losses[0].bytes), (1, (blocks[2].end - blocks[1].start) as u64));

    let mut cut = bytes.clone();
    cut.drain(blocks[1].clone());
    disk.put(&path, cut);
    let (numbers, losses) = check(&disk, 11);
    assert_eq!(numbers, [0, 1, 4, 5, 6, 7, 8, 9, 10]);
    assert!(losses[0].to_string().contains("entries 2 to 3 are lost (2)"), "{}", losses[0]);

    let mut twice = bytes.clone();
    twice.splice(blocks[2].start..blocks[2].start, bytes[blocks[1].clone()].to_vec());
    disk.put(&path, twice);
    let (numbers, losses) = check(&disk, 11);
    assert_eq!(numbers, (0..11).collect::<Vec<_>>());
    assert!(losses[0].to_string().contains("does not belong there; no entry is lost"), "{}", losses[0]);
}

/// Every bit flip of every segment of a sealed log: what is read is right, and what is not is reported.
#[test]
fn no_flip_is_silent() {
    let disk = sealed(&ENDS[..3]);
    for path in segments(&disk) {
        let whole = disk.files(Path::new(DIR)).remove(&path).unwrap();
        for at in 0..whole.len() {
            let disk = disk.copy();
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << (at % 8);
            disk.put(&path, bytes);
            let last = segments(&disk).last() == Some(&path);
            // Of the last segment nothing says that it was there.
            let (numbers, losses) = check(&disk, if last { 4 } else { 5 });
            assert!(numbers.len() >= 3, "byte {at} of {}: {numbers:?}", path.display());
            assert!(last || !losses.is_empty(), "byte {at} of {} went unnoticed", path.display());
        }
    }
}

#[test]
fn segments_that_are_missing_or_have_no_header_are_left_out() {
    let all = sealed(&ENDS);
    let paths = segments(&all);
    for number in 0..paths.len() {
        let lost = number.checked_sub(1).map_or(0, |before| ENDS[before])..ENDS[number];
        let expected: Vec<u64> = (0..11).filter(|number| !lost.contains(number)).collect();
        let last = number == paths.len() - 1;

        let disk = all.copy();
        disk.delete(&paths[number]);
        let (numbers, losses) = check(&disk, if last { 9 } else { 11 });
        assert_eq!(numbers, expected);
        assert_eq!(losses.len(), usize::from(!last), "nothing says that there was a last segment");

        let disk = all.copy();
        let mut bytes = disk.files(Path::new(DIR)).remove(&paths[number]).unwrap();
        bytes[30] ^= 1;
        disk.put(&paths[number], bytes);
        let (numbers, losses) = check(&disk, 11);
        assert_eq!(numbers, expected);
        assert_eq!(
            (losses.len(), &losses[0].segment, losses[0].entries()),
            (1, &paths[number], Some(lost.end - lost.start))
        );
    }
    let disk = all.copy();
    disk.put(&Path::new(DIR).join("old.seg"), b"MDlogseg".to_vec());
    let (numbers, losses) = check(&disk, 11);
    assert_eq!((numbers.len(), losses.len()), (11, 1));
}

#[test]
fn without_any_header_there_is_nothing_to_read() {
    let disk = sealed(&[5]);
    let path = segments(&disk).remove(0);
    let mut bytes = disk.files(Path::new(DIR)).remove(&path).unwrap();
    bytes[30] ^= 1;
    disk.put(&path, bytes);
    assert!(matches!(salvage(&disk), Err(StoreError::Corrupt { .. })));
}

/// With a live writer nothing is read that is not durable, damaged or not.
#[test]
fn a_live_log_is_read_up_to_where_it_is_durable() {
    let disk = MemoryDisk::default();
    let (mut log, _) = open(&disk, &options(1 << 20)).unwrap();
    append_blocks(&mut log, &ENDS);
    log.append(&block(11..13)).unwrap();
    assert_eq!(check(&disk, 11).0, (0..11).collect::<Vec<_>>());
    log.sync().unwrap();
    assert_eq!(salvage(&disk).unwrap().0.last().unwrap().sequence, SequenceNumber(12));
}

/// A disk that cannot read a place costs what is there, and says so; or nothing is read.
#[test]
fn what_the_disk_cannot_read_is_lost_and_reported() {
    for whole in [unsealed(&ENDS), sealed(&ENDS)] {
        let mut lost = 0;
        for look in 0.. {
            let disk = whole.copy();
            disk.fail_look(look, ErrorKind::Other);
            match salvage(&disk) {
                Ok(read) => lost += 11 - check_read(read, 11).0.len(),
                // The header of the only segment, or the folder.
                Err(StoreError::Corrupt { offset: 0, .. } | StoreError::Io { .. }) => {}
                Err(error) => panic!("{error}"),
            }
            if disk.look_pending() {
                break;
            }
        }
        assert!(lost > 20, "{lost} entries could not be read");
    }
}

/// Segments that retention removed are not lost, and those that it left begin the log.
#[test]
fn what_retention_removed_is_not_lost() {
    let disk = sealed(&ENDS);
    let (mut log, _) = open(&disk, &options(1)).unwrap();
    let (need, held_out) = (Need::default(), Path::new("/state/holdout").to_owned());
    need.set(SequenceNumber(5), "");
    log.retain(&Retention { bytes: 1, age: None, held_out }, Some(&need)).unwrap();
    log.seal().unwrap();
    let (entries, losses) = salvage(&disk).unwrap();
    assert_eq!((entries, losses), (block(5..11), Vec::new()));
    disk.delete(&segments(&disk)[0]);
    let (entries, losses) = salvage(&disk).unwrap();
    assert_eq!((entries, losses.len(), losses[0].entries()), (block(9..11), 1, Some(4)));
}
