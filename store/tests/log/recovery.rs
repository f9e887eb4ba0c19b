//! A test for each row of the recovery table in `store::log`.

use crate::memory_disk::MemoryDisk;
use crate::sample::{
    DIR, append_blocks, block, check_content, durable, identity, open, open_as, options, read, sealed, segments,
    unsealed, verify,
};
use std::path::{Path, PathBuf};
use store::{LogOptions, Recovery, SequenceNumber, StoreError};

/// The only or last segment's path and content.
fn last_segment(disk: &MemoryDisk) -> (PathBuf, Vec<u8>) {
    let path = segments(disk).pop().unwrap();
    (path.clone(), disk.files(Path::new(DIR)).remove(&path).unwrap())
}

fn content(disk: &MemoryDisk, path: &Path) -> Vec<u8> {
    disk.files(Path::new(DIR)).remove(path).unwrap()
}

/// Opens, appends to the end of 20 entries, stops cleanly; everything must be there and verify.
fn goes_on(disk: &MemoryDisk, from: u64, segment_bytes: u64) -> Recovery {
    let readable = read(disk).map(|reader| check_content(&reader));
    let (mut log, recovery) = open(disk, &options(segment_bytes)).unwrap();
    assert_eq!((recovery.durable, log.next()), (durable(from), SequenceNumber(from)));
    assert!(readable.is_err() || readable.unwrap() == from, "a reader sees what recovery finds");
    append_blocks(&mut log, &[20]);
    log.seal().unwrap();
    let verification = verify(disk).unwrap();
    assert_eq!((verification.entries, verification.torn), (20, None));
    assert_eq!(check_content(&read(disk).unwrap()), 20);
    recovery
}

/// A torn tail must be reported by `verify`, cut and kept.
fn is_torn(disk: &MemoryDisk, from: u64, tail: &[u8]) {
    assert_eq!(verify(disk).unwrap().torn.unwrap().bytes, tail.len() as u64);
    let recovery = goes_on(disk, from, 1 << 20);
    assert_eq!(recovery.torn_bytes, tail.len() as u64);
    let kept = recovery.torn.unwrap().kept.unwrap();
    assert_eq!(content(disk, &kept), tail);
}

/// Writer, reader and verify must all call it corrupt, at the same place, and change nothing.
fn is_corrupt(disk: &MemoryDisk, path: &Path, offset: u64) {
    let before = disk.files(Path::new(DIR));
    let failures = [
        open(disk, &options(1 << 20)).map(|_| ()).unwrap_err(),
        read(disk).map(|_| ()).unwrap_err(),
        verify(disk).map(|_| ()).unwrap_err(),
    ];
    for failure in failures {
        let StoreError::Corrupt { segment, offset: at, .. } = &failure else { panic!("{failure}") };
        assert_eq!((segment.as_path(), *at), (path, offset), "{failure}");
        assert!(failure.is_corruption());
    }
    let mut after = disk.files(Path::new(DIR));
    after.retain(|path, _| before.contains_key(path));
    assert_eq!(before, after);
}

/// Where the blocks of an unsealed log that end at `ends` end in its file.
fn offsets(ends: &[u64]) -> Vec<usize> {
    let length = |blocks: usize| last_segment(&unsealed(&ends[..blocks])).1.len();
    (0..=ends.len()).map(length).collect()
}

#[test]
fn row_1_a_new_log() {
    let disk = MemoryDisk::default();
    assert!(matches!(read(&disk), Err(StoreError::NoLog { .. })));
    let recovery = goes_on(&disk, 0, 1 << 20);
    assert_eq!(recovery.segments, 0);
}

#[test]
fn row_2_an_unsealed_segment_goes_on() {
    let disk = unsealed(&[5, 9]);
    goes_on(&disk, 9, 1 << 20);
    assert_eq!(segments(&disk).len(), 1);
    let disk = unsealed(&[]);
    goes_on(&disk, 0, 1 << 20);
    assert_eq!(segments(&disk).len(), 1);
}

#[test]
fn row_3_after_a_clean_stop_a_segment_begins() {
    let disk = sealed(&[5, 9]);
    goes_on(&disk, 9, 1 << 20);
    assert_eq!(segments(&disk).len(), 3);
}

#[test]
fn row_4_a_torn_tail_is_cut_and_kept() {
    let offsets = offsets(&[5, 9, 12]);
    let (path, whole) = last_segment(&unsealed(&[5, 9, 12]));
    let tails = [
        whole[offsets[2]..offsets[3] - 1].to_vec(), // half a block
        b"MDbk".to_vec(),
        vec![0; 5000],
        b"anything else".repeat(100),
    ];
    for tail in tails {
        let disk = unsealed(&[5, 9]);
        disk.put(&path, [&whole[..offsets[2]], &tail].concat());
        is_torn(&disk, 9, &tail);
    }
}

#[test]
fn row_4_a_torn_footer_is_cut() {
    let disk = sealed(&[5]);
    let (path, whole) = last_segment(&disk);
    let end = offsets(&[5])[1];
    for cut in [whole.len() - 1, end + 1] {
        let disk = disk.copy();
        disk.put(&path, whole[..cut].to_vec());
        is_torn(&disk, 5, &whole[end..cut]);
    }
    let tail = [0; 17];
    disk.put(&path, [&whole[..], &tail].concat());
    is_torn(&disk, 5, &tail);
}

#[test]
fn row_4_an_unsynced_block_that_overtook_another_is_torn_too() {
    let disk = MemoryDisk::default();
    let (mut log, _) = open(&disk, &options(1 << 20)).unwrap();
    append_blocks(&mut log, &[5]);
    log.append(&block(5..9)).unwrap();
    log.append(&block(9..12)).unwrap(); // neither is durable
    let offsets = offsets(&[5, 9, 12]);
    let disk = disk.copy();
    let (path, mut bytes) = last_segment(&disk);
    bytes[offsets[1]..offsets[2]].fill(0);
    disk.put(&path, bytes.clone());
    is_torn(&disk, 5, &bytes[offsets[1]..]);
}

#[test]
fn row_5_damage_before_durable_data_is_corrupt() {
    let ends = [5, 9, 12];
    let offsets = offsets(&ends);
    for damaged in 0..2 {
        for at in [offsets[damaged] + 40, offsets[damaged + 1] - 1] {
            let disk = unsealed(&ends);
            let (path, mut bytes) = last_segment(&disk);
            bytes[at] ^= 0x10;
            disk.put(&path, bytes);
            is_corrupt(&disk, &path, offsets[damaged] as u64);
        }
    }
    // A footer too proves that the block before it was durable.
    let disk = sealed(&[5]);
    let (path, mut bytes) = last_segment(&disk);
    bytes[offsets[1] - 1] ^= 0x10;
    bytes.extend([0; 3]); // so that the footer is not found from the end
    disk.put(&path, bytes);
    is_corrupt(&disk, &path, offsets[0] as u64);
}

#[test]
fn row_6_blocks_out_of_order_are_corrupt() {
    let offsets = offsets(&[5, 9, 12]);
    let (path, whole) = last_segment(&unsealed(&[5, 9, 12]));
    let part = |number: usize| &whole[offsets[number]..offsets[number + 1]];
    let hole = [&whole[..offsets[1]], part(2)].concat();
    let duplicate = [&whole[..offsets[2]], part(1)].concat();
    let other = last_segment(&unsealed(&[4, 9])).1;
    let other_offsets = self::offsets(&[4, 9]);
    let mixture = [&whole[..offsets[0]], &other[other_offsets[1]..]].concat();
    for (bytes, at) in [(hole, offsets[1]), (duplicate, offsets[2]), (mixture, offsets[0])] {
        let disk = unsealed(&[5, 9, 12]);
        disk.put(&path, bytes);
        is_corrupt(&disk, &path, at as u64);
    }
}

#[test]
fn row_7_a_torn_header_is_set_aside() {
    for keep in [0, 7, 15, 200] {
        let disk = unsealed(&[]);
        let (path, whole) = last_segment(&disk);
        disk.put(&path, whole[..keep].to_vec());
        let (_, recovery) = open(&disk, &options(1 << 20)).unwrap();
        assert_eq!(recovery.torn.unwrap().bytes, keep as u64);
    }
    let disk = sealed(&[5, 9]);
    let path = Path::new(DIR).join("00000000000000000009.seg");
    disk.put(&path, vec![0; 300]);
    is_torn(&disk, 9, &[0; 300]);
}

#[test]
fn row_8_a_damaged_header_before_data_is_corrupt() {
    let disk = unsealed(&[5]);
    let (path, mut bytes) = last_segment(&disk);
    bytes[100] ^= 1;
    disk.put(&path, bytes);
    is_corrupt(&disk, &path, 0);

    let disk = sealed(&[5, 9]);
    let path = segments(&disk).remove(0);
    disk.put(&path, content(&disk, &path)[..50].to_vec());
    is_corrupt(&disk, &path, 0);
}

#[test]
fn row_9_foreign_files_are_corrupt() {
    let disk = unsealed(&[5]);
    let (path, bytes) = last_segment(&disk);
    disk.put(&path, b"{\"not\": \"a log, but long enough to be one\"}".repeat(10));
    is_corrupt(&disk, &path, 0);

    let renamed = Path::new(DIR).join("00000000000000000005.seg");
    disk.put(&path, bytes.clone());
    disk.put(&renamed, bytes.clone());
    is_corrupt(&disk, &renamed, 0);

    disk.delete(&renamed);
    let odd = Path::new(DIR).join("7.seg");
    disk.put(&odd, bytes);
    is_corrupt(&disk, &odd, 0);

    disk.delete(&odd);
    disk.put(&Path::new(DIR).join("notes.txt"), b"not the log's business".to_vec());
    goes_on(&disk, 5, 1 << 20);
}

#[test]
fn row_10_a_newer_version_is_refused() {
    let disk = unsealed(&[5]);
    let (path, mut bytes) = last_segment(&disk);
    bytes[8] = 5;
    let header = 16 + u32::from_le_bytes(bytes[12..16].try_into().unwrap()) as usize;
    let checksum = crc32fast::hash(&bytes[..header]).to_le_bytes();
    bytes[header..header + 4].copy_from_slice(&checksum);
    disk.put(&path, bytes);
    for failure in [open(&disk, &options(1)).map(|_| ()), read(&disk).map(|_| ())] {
        assert!(matches!(failure, Err(StoreError::NewerVersion { version: 5, supported: 4, .. })));
    }
}

#[test]
fn row_11_a_missing_segment_is_corrupt() {
    let disk = sealed(&[5, 9, 12]);
    let files = segments(&disk);
    let middle = disk.copy();
    middle.delete(&files[1]);
    let end = content(&disk, &files[0]).len();
    let blocks_end = offsets(&[5])[1];
    assert!(blocks_end < end);
    is_corrupt(&middle, &files[0], blocks_end as u64);

    disk.delete(&files[0]);
    is_corrupt(&disk, &files[1], 0);
}

#[test]
fn row_12_another_predecessor_is_corrupt() {
    let disk = sealed(&[5, 9]);
    let other = MemoryDisk::default();
    let mut log = open(&other, &options(1)).unwrap().0;
    append_blocks(&mut log, &[2]);
    append_blocks(&mut log, &[5]);
    log.seal().unwrap();
    // Two segments of 0..2 and 2..5 end at the same entry as the one of 0..5, but with another block.
    for path in segments(&other) {
        disk.put(&path, content(&other, &path));
    }
    is_corrupt(&disk, &segments(&disk)[2], 0);
}

#[test]
fn row_13_a_lost_footer_costs_a_scan() {
    let disk = sealed(&[5, 9]);
    let path = segments(&disk).remove(0);
    let bytes = content(&disk, &path);
    let blocks_end = offsets(&[5])[1];
    let mut flipped = bytes.clone();
    flipped[blocks_end + 40] ^= 1;
    for damaged in [bytes[..bytes.len() - 3].to_vec(), bytes[..blocks_end].to_vec(), flipped] {
        let disk = disk.copy();
        disk.put(&path, damaged.clone());
        assert_eq!(verify(&disk).unwrap().footers_lost, std::slice::from_ref(&path));
        assert_eq!(goes_on(&disk, 9, 1 << 20).footers_lost, 1);
        assert_eq!(content(&disk, &path), damaged);
    }
}

#[test]
fn row_14_a_segment_cut_short_before_another_is_corrupt() {
    let disk = sealed(&[5, 9]);
    let path = segments(&disk).remove(0);
    let bytes = content(&disk, &path);
    let offsets = offsets(&[5]);
    disk.put(&path, bytes[..offsets[1] - 1].to_vec());
    is_corrupt(&disk, &path, offsets[0] as u64);
    disk.put(&path, bytes[..offsets[0]].to_vec());
    is_corrupt(&disk, &path, offsets[0] as u64);
}

#[test]
fn row_15_a_log_shorter_than_what_refers_to_it_is_corrupt() {
    let disk = unsealed(&[5, 9]);
    let (path, bytes) = last_segment(&disk);
    let torn = bytes[..bytes.len() - 1].to_vec();
    disk.put(&path, torn.clone());
    let required = |required| LogOptions { required: SequenceNumber(required), ..options(1 << 20) };
    let failure = open(&disk, &required(9)).map(|_| ()).unwrap_err();
    assert!(matches!(failure, StoreError::TooShort { end: SequenceNumber(5), .. }), "{failure}");
    assert!(failure.is_corruption());
    assert!(read(&disk).unwrap().require(durable(9)).is_err_and(|failure| failure.is_corruption()));
    assert_eq!(content(&disk, &path), torn, "evidence is not cut");
    read(&disk).unwrap().require(durable(5)).unwrap();
    open(&disk, &required(5)).unwrap();
}

#[test]
fn row_16_another_identity_is_refused() {
    let disk = unsealed(&[5, 9]);
    let (path, bytes) = last_segment(&disk);
    let torn = bytes[..bytes.len() - 1].to_vec();
    disk.put(&path, torn.clone());
    let mut other = identity();
    other.settings.insert("run.seed".to_owned(), "1".to_owned());
    let failure = open_as(&disk, &other, &options(1 << 20)).map(|_| ()).unwrap_err();
    assert!(matches!(failure, StoreError::IdentityMismatch { .. }), "{failure}");
    assert_eq!(content(&disk, &path), torn, "nothing is cut");
}

#[test]
fn row_17_an_appended_teacher_begins_a_segment() {
    let mut grown = identity();
    let mut teacher = grown.teachers[0].clone();
    teacher.name = "new".to_owned();
    grown.teachers.push(teacher);
    for (disk, files) in [(unsealed(&[5]), 2), (unsealed(&[]), 1), (sealed(&[5]), 2)] {
        let (log, _) = open_as(&disk, &grown, &options(1 << 20)).unwrap();
        assert_eq!(segments(&disk).len(), files);
        drop(log);
        assert_eq!(read(&disk).unwrap().identity(), &grown);
        verify(&disk).unwrap();
        assert!(matches!(open(&disk, &options(1)), Err(StoreError::IdentityMismatch { .. })));
    }
}

#[test]
fn row_18_an_unfinished_segment_is_removed() {
    let disk = sealed(&[5]);
    let path = Path::new(DIR).join("00000000000000000005.seg.tmp");
    disk.put(&path, b"MDlog".to_vec());
    goes_on(&disk, 5, 1 << 20);
    assert!(!disk.files(Path::new(DIR)).contains_key(&path));
}

#[test]
fn row_19_damage_in_a_sealed_segment_is_found_when_read() {
    let disk = sealed(&[5, 9]);
    let path = segments(&disk).remove(0);
    let mut bytes = content(&disk, &path);
    let offsets = offsets(&[5]);
    bytes[offsets[1] - 1] ^= 1;
    disk.put(&path, bytes);
    let reader = read(&disk).unwrap();
    let failures = [reader.entry(SequenceNumber(0)).map(|_| ()).unwrap_err(), verify(&disk).map(|_| ()).unwrap_err()];
    for failure in failures {
        let StoreError::Corrupt { segment, offset, .. } = &failure else { panic!("{failure}") };
        assert_eq!((segment, *offset), (&path, offsets[0] as u64));
    }
    assert!(reader.entry(SequenceNumber(5)).is_ok(), "other blocks can be read");
}
