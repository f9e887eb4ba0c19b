//! A mirror has the bytes of the log that it follows, and only whole ones that belong to it.

use crate::memory_disk::{Fault, MemoryDisk};
use crate::sample::{
    DIR, append_blocks, block, check_content, durable, entry, open, options, read, sealed, segments, unsealed, verify,
};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use store::log::{LogMirror, Need, Piece, Place, Retention, Taken};
use store::{LogReader, Payload, SequenceNumber, StoreError};

const ENDS: [u64; 6] = [4, 9, 15, 20, 26, 31];

/// All pieces of a log from `from` on, each of at most so many bytes.
pub(crate) fn pieces(reader: &LogReader, from: Place, most_bytes: u64) -> Vec<Piece> {
    let (mut pieces, mut at) = (Vec::new(), from);
    while let Some(piece) = reader.piece(at, most_bytes).unwrap() {
        at = piece.after();
        pieces.push(piece);
    }
    pieces
}

pub(crate) fn mirror(disk: &MemoryDisk) -> Result<LogMirror, StoreError> {
    LogMirror::open_on(Arc::new(disk.clone()), Path::new(DIR))
}

/// The segments, each as long as it is used.
pub(crate) fn content(disk: &MemoryDisk) -> BTreeMap<PathBuf, Vec<u8>> {
    let files = disk.files(Path::new(DIR));
    files.into_iter().filter(|(path, _)| path.extension().is_some_and(|end| end == "seg")).collect()
}

#[test]
fn a_mirror_has_the_same_bytes() {
    for log in [unsealed(&ENDS), sealed(&ENDS)] {
        for most_bytes in [1, 3000, 1 << 20] {
            let copy = MemoryDisk::default();
            let mut mirror = mirror(&copy).unwrap();
            let source = read(&log).unwrap();
            for piece in pieces(&source, source.first_place(), most_bytes) {
                assert_eq!(mirror.take(&piece).unwrap(), Taken::New);
                assert_eq!(mirror.take(&piece).unwrap(), Taken::Known, "the same once more");
                if piece.end.0 > 0 {
                    // Readers see it while it grows.
                    assert_eq!(check_content(&read(&copy).unwrap()), piece.end.0);
                }
            }
            assert_eq!(mirror.durable(), durable(31));
            assert!(content(&copy) == content(&log), "other bytes");
            drop(mirror);
            verify(&copy).unwrap();
        }
    }
}

#[test]
fn a_mirror_follows_a_log_that_grows() {
    let (disk, copy) = (MemoryDisk::default(), MemoryDisk::default());
    let mut log = open(&disk, &options(2000)).unwrap().0;
    let reader = log.reader();
    let (mut mirror, mut at) = (mirror(&copy).unwrap(), reader.first_place());
    for end in 1..40_u64 {
        log.append(&block(end - 1..end)).unwrap();
        assert_eq!(
            reader.piece(at, 1 << 20).unwrap().map(|piece| piece.end.0).filter(|next| *next == end),
            None,
            "not durable"
        );
        log.sync().unwrap();
        while let Some(piece) = reader.piece(at, 1 << 20).unwrap() {
            at = piece.after();
            assert_eq!(mirror.take(&piece).unwrap(), Taken::New);
        }
        assert_eq!(mirror.durable(), durable(end));
    }
    log.seal().unwrap();
    assert!(segments(&copy).len() > 3);
    check_content(&read(&copy).unwrap());
}

#[test]
fn what_does_not_belong_there_is_refused_and_harms_nothing() {
    let source = read(&sealed(&ENDS)).unwrap();
    let all = pieces(&source, source.first_place(), 1);
    let copy = MemoryDisk::default();
    let mut mirror = mirror(&copy).unwrap();
    assert_eq!(mirror.take(&all[1]).unwrap(), Taken::Gap, "blocks before their segment");
    // A header, a block, a footer for each segment.
    for next in 0..6 {
        assert!(next == 0 || mirror.take(&all[9]).unwrap() == Taken::Gap, "segments are missing");
        for at in [0, all[next].bytes.len() / 2, all[next].bytes.len() - 1] {
            let mut damaged = all[next].clone();
            damaged.bytes[at] ^= 1;
            assert!(mirror.take(&damaged).is_err(), "piece {next}, byte {at}");
            let cut = Piece { bytes: all[next].bytes[..at].to_vec(), ..all[next].clone() };
            assert!(cut.bytes.is_empty() || mirror.take(&cut).is_err(), "piece {next}, {at} bytes");
        }
        assert_eq!(mirror.take(&all[next]).unwrap(), Taken::New);
    }
    let before = content(&copy);
    for (piece, number) in all[6..].iter().zip(6..) {
        assert_eq!(mirror.take(piece).unwrap(), Taken::New, "piece {number}");
    }
    assert!(before.iter().all(|(path, bytes)| content(&copy)[path].starts_with(bytes)));
    assert!(content(&copy) == content(&sealed(&ENDS)));
    // Another log does not continue this one.
    let other = MemoryDisk::default();
    let mut log = open(&other, &options(1)).unwrap().0;
    append_blocks(&mut log, &[3, 31, 33]);
    let last = pieces(&log.reader(), Place { segment: SequenceNumber(31), offset: 0 }, 1).remove(0);
    let is_another = |taken: Result<Taken, StoreError>| matches!(taken, Err(StoreError::AnotherLog { .. }));
    assert!(is_another(mirror.take(&last)));
    // Nor are these pieces the ones that are there: with other bytes, in a segment of which there is none, in a longer one.
    let before = content(&copy);
    let others = pieces(&log.reader(), Place::default(), 1);
    for piece in others[1..].iter().filter(|piece| piece.at.segment < SequenceNumber(31)) {
        assert!(is_another(mirror.take(piece)), "{:?}", piece.at);
    }
    let (first, block) = (all[0].clone(), all[1].clone());
    let other_bytes =
        |piece: &Piece| Piece { bytes: piece.bytes.iter().map(|byte| byte ^ 1).collect(), ..piece.clone() };
    assert!(is_another(mirror.take(&other_bytes(&first))) && is_another(mirror.take(&other_bytes(&block))));
    assert!(is_another(mirror.take(&Piece { bytes: [&block.bytes[..]; 9].concat(), ..block })));
    assert!(content(&copy) == before);
    assert!(matches!(self::mirror(&copy), Err(StoreError::InUse { .. })), "one mirror at a time");
}

#[test]
fn a_mirror_begins_where_retention_left_the_log() {
    let disk = sealed(&ENDS);
    let mut log = open(&disk, &options(1)).unwrap().0;
    let retention = Retention { bytes: 1, age: None, held_out: "/state/held-out".into() };
    let need = Need::default();
    need.set(SequenceNumber(20), "a test");
    log.retain(&retention, Some(&need)).unwrap();
    let reader = log.reader();
    assert_eq!(reader.first_place().segment, SequenceNumber(20));
    assert!(matches!(reader.piece(Place::default(), 1), Err(StoreError::Removed { .. })));
    let copy = MemoryDisk::default();
    let mut mirror = mirror(&copy).unwrap();
    for piece in pieces(&reader, reader.first_place(), 1 << 20) {
        assert_eq!(mirror.take(&piece).unwrap(), Taken::New);
    }
    drop(mirror);
    let copied = read(&copy).unwrap();
    assert_eq!((copied.begin(), copied.durable()), (SequenceNumber(20), durable(31)));
    assert!(matches!(copied.entry(SequenceNumber(30)).unwrap().payload, Payload::Record(_)));
    verify(&copy).unwrap();
}

/// Takes all pieces; gives how far it is durable, as the mirror says.
fn take_all(disk: &MemoryDisk, all: &[Piece], told: &mut u64) -> Result<(), StoreError> {
    let mut mirror = mirror(disk)?;
    for piece in all {
        mirror.take(piece)?;
        *told = mirror.durable().end().0;
    }
    Ok(())
}

#[test]
fn a_crash_at_any_operation_loses_nothing_of_a_mirror() {
    let source = read(&sealed(&ENDS[..3])).unwrap();
    check_crashes(&pieces(&source, source.first_place(), 1), 0);
    // And of one that begins later than with its first entry.
    check_crashes(&pieces(&source, Place { segment: SequenceNumber(4), offset: 0 }, 1), 4);
}

fn check_crashes(all: &[Piece], begin: u64) {
    let whole = MemoryDisk::default();
    take_all(&whole, all, &mut 0).unwrap();
    for operation in 0..whole.operations() {
        for seed in 0..4_u64 {
            let disk = MemoryDisk::default();
            disk.fail_at(operation, Fault::Crash);
            let mut told = 0;
            let _ = take_all(&disk, all, &mut told); // What comes last may fail unnoticed.
            let mut bits = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | u64::from(seed == 1);
            let disk = disk.after_crash(|| {
                bits = bits.rotate_left(1);
                bits & 1 == 1
            });
            let context = format!("from {begin}: crash at operation {operation}, choice {seed}");
            if told > begin {
                let there = read(&disk).unwrap_or_else(|error| panic!("{context}: {error}"));
                let end = there.durable().end().0;
                assert!(end >= told, "{context}");
                assert!(
                    (begin..end).all(|number| *there.entry(SequenceNumber(number)).unwrap() == entry(number)),
                    "{context}"
                );
            }
            // The pieces come again, and the rest.
            take_all(&disk, all, &mut told).unwrap_or_else(|error| panic!("{context}: {error}"));
            assert!(content(&disk) == content(&whole), "{context}");
        }
    }
}
