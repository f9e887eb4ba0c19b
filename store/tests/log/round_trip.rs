//! What is appended comes back.

use crate::memory_disk::MemoryDisk;
use crate::sample::{
    DIR, block, check_content, durable, entry, float32, open, options, read, segments, textless, verify,
};
use proptest::collection::vec;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use store::{
    ComputedIn, Entry, Label, LogOptions, MaskedCopy, Payload, Precision, Record, SequenceNumber, Skip, SourceCursor,
    Span, StoreError,
};

fn name() -> impl Strategy<Value = Arc<str>> {
    prop_oneof![Just("en"), Just("de"), Just("text/a.txt@0"), Just(""), Just("ü\u{1F600}")].prop_map(Arc::from)
}

fn cursor() -> impl Strategy<Value = SourceCursor> {
    (name(), name(), name(), any::<[u64; 3]>(), any::<u32>(), any::<bool>()).prop_map(
        |(source, language, file, numbers, round, ended)| SourceCursor {
            source,
            language,
            file,
            document_offset_bytes: numbers[0],
            next_byte: if numbers[1] % 3 == 0 { SourceCursor::DOCUMENT_DONE } else { numbers[1] },
            round,
            characters_available: numbers[2],
            ended,
        },
    )
}

fn label(masked: usize, gold_ids: Vec<u32>) -> impl Strategy<Value = Label> {
    let bits =
        || any::<u32>().prop_map(f32::from_bits).prop_filter("NaN is not equal to itself", |value| !value.is_nan());
    (0_usize..5).prop_flat_map(move |top_k| {
        let gold_ids = gold_ids.clone();
        let values = masked * top_k;
        (vec(0_u32..40, values), vec(bits(), values), vec(bits(), masked), vec(bits(), masked), any::<u8>()).prop_map(
            move |(mut top_ids, top_logits, log_sum_exp, mut gold_logits, choice)| {
                for position in (0..masked).filter(|_| top_k > 0) {
                    let at = position * top_k + usize::from(choice) % top_k;
                    top_ids[at] = gold_ids[position];
                    let first = (position * top_k..at + 1).find(|at| top_ids[*at] == gold_ids[position]).unwrap();
                    if choice % 2 == 0 {
                        gold_logits[position] = top_logits[first];
                    }
                }
                let computed_in = ComputedIn::from_code(choice / 64).unwrap_or_default();
                Label { top_k, top_ids, top_logits, log_sum_exp, gold_logits, computed_in }
            },
        )
    })
}

fn copy() -> impl Strategy<Value = MaskedCopy> {
    let tokens = prop_oneof![vec(0_u32..40, 0..30), vec(any::<u32>(), 0..30)];
    (0_u16..3, tokens).prop_flat_map(|(teacher, token_ids)| {
        let positions: Vec<u32> = (0..token_ids.len() as u32).collect();
        let most = positions.len().min(9);
        (Just(teacher), Just(token_ids), proptest::sample::subsequence(positions, 0..=most)).prop_flat_map(
            |(teacher, token_ids, masked_positions)| {
                let masked = masked_positions.len();
                vec(0_u32..40, masked).prop_flat_map(move |gold_ids| {
                    let (token_ids, masked_positions) = (token_ids.clone(), masked_positions.clone());
                    let label = proptest::option::of(label(masked, gold_ids.clone()));
                    label.prop_map(move |label| MaskedCopy {
                        teacher,
                        token_ids: token_ids.clone(),
                        masked_positions: masked_positions.clone(),
                        gold_ids: gold_ids.clone(),
                        label,
                    })
                })
            },
        )
    })
}

fn payload() -> impl Strategy<Value = Payload> {
    let span = any::<(u64, u64)>().prop_map(|(a, b)| (Span { first: a.min(b), end: a.max(b) }, None));
    let text = (0..u64::MAX - 1000, "\\PC{0,40}").prop_map(|(first, text)| {
        let end = first + text.len() as u64;
        (Span { first, end }, Some(Arc::from(text)))
    });
    let covered = prop_oneof![span, text];
    let record = (name(), name(), covered, name(), any::<u32>(), any::<bool>(), vec(copy(), 0..4)).prop_map(
        |(source, document, (span, text), language, round, held_out, copies)| {
            Payload::Record(Record { source, document, span, language, round, held_out, copies, text })
        },
    );
    let skip = (name(), name()).prop_map(|(document, reason)| Payload::Skip(Skip { document, reason }));
    prop_oneof![8 => record, 1 => skip, 1 => Just(Payload::End)]
}

fn blocks() -> impl Strategy<Value = Vec<Vec<Entry>>> {
    vec(vec((cursor(), payload()), 0..12), 0..5).prop_map(|blocks| {
        let mut next = SequenceNumber(0);
        let mut number = |(cursor, payload)| {
            let sequence = next;
            next = next.next();
            Entry { sequence, cursor, payload }
        };
        blocks.into_iter().map(|block| block.into_iter().map(&mut number).collect()).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_entries_come_back(blocks in blocks(), segment_bytes in 1_u64..20_000) {
        let disk = MemoryDisk::default();
        let (mut log, _) = open(&disk, &options(segment_bytes)).unwrap();
        for block in &blocks {
            log.append(block).unwrap();
        }
        log.sync().unwrap();
        let entries: Vec<_> = blocks.into_iter().flatten().collect();
        let cursors: BTreeMap<_, _> = entries.iter().map(|entry| (entry.cursor.source.clone(), entry.cursor.clone())).collect();
        prop_assert_eq!(log.cursors(), &cursors);
        let follower = log.reader();
        log.seal().unwrap();
        for reader in [follower, read(&disk).unwrap()] {
            prop_assert_eq!(reader.durable(), durable(entries.len() as u64));
            prop_assert_eq!(&reader.cursors(reader.durable()).unwrap(), &cursors);
            for entry in &entries {
                prop_assert_eq!(&*reader.entry(entry.sequence).unwrap(), entry);
            }
        }
        let (log, recovery) = open(&disk, &options(segment_bytes)).unwrap();
        prop_assert_eq!(log.cursors(), &cursors);
        prop_assert_eq!(recovery.torn_bytes, 0);
    }
}

/// NaN and negative zero are kept bit for bit too.
#[test]
fn floats_keep_their_bits() {
    let odd = [f32::from_bits(0x7fc0_1234), -0.0, f32::INFINITY, f32::from_bits(1)];
    let mut entries = block(0..1);
    let Payload::Record(record) = &mut entries[0].payload else { panic!("entry 0 is a record") };
    let label = record.copies[0].label.as_mut().unwrap();
    label.top_logits[..4].copy_from_slice(&odd);
    label.log_sum_exp.copy_from_slice(&odd[..2]);
    label.gold_logits.copy_from_slice(&odd[..2]);

    let disk = MemoryDisk::default();
    let (mut log, _) = open(&disk, &options(1 << 20)).unwrap();
    log.append(&entries).unwrap();
    log.sync().unwrap();
    let read = log.reader().entry(SequenceNumber(0)).unwrap();
    let Payload::Record(record) = &read.payload else { panic!("entry 0 is a record") };
    let label = record.copies[0].label.as_ref().unwrap();
    let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(&label.top_logits[..4]), bits(&odd));
    assert_eq!(bits(&label.log_sum_exp), bits(&odd[..2]));
    assert_eq!(bits(&label.gold_logits), bits(&odd[..2]));
}

/// Records are found by language, whatever lies between, and counts agree.
#[test]
fn records_are_found_by_language() {
    let disk = MemoryDisk::default();
    let (mut log, _) = open(&disk, &options(3000)).unwrap();
    for first in (0..100).step_by(4) {
        log.append(&block(first..first + 4)).unwrap();
    }
    log.sync().unwrap();
    let reader = log.reader();
    assert!(segments(&disk).len() > 2, "the log should have several segments");
    for (language, held_out, up_to) in [("en", false, 100), ("de", false, 57), ("de", true, 100), ("xx", false, 100)] {
        let wanted = |entry: &Entry| match &entry.payload {
            Payload::Record(record) => &*record.language == language && record.held_out == held_out,
            _ => false,
        };
        let expected: Vec<_> = block(0..up_to).into_iter().filter(wanted).collect();
        let mut found = Vec::new();
        let mut from = SequenceNumber(0);
        while let Some(entry) = reader.next_record(language, held_out, from, durable(up_to)).unwrap() {
            from = entry.sequence.next();
            found.push((*entry).clone());
        }
        assert_eq!(found, expected);
        if up_to == 100 {
            assert_eq!(reader.count_records(language, held_out, durable(up_to)), expected.len() as u64);
        }
    }
    let languages: Vec<_> = reader.languages(durable(100)).into_iter().collect();
    assert_eq!(languages, [Arc::from("de"), Arc::from("en")]);
    for up_to in [0, 1, 2, 33, 100] {
        let entries = block(0..up_to);
        let expected: BTreeMap<_, _> =
            entries.into_iter().map(|entry| (entry.cursor.source.clone(), entry.cursor)).collect();
        assert_eq!(reader.cursors(durable(up_to)).unwrap(), expected, "cursors at {up_to}");
    }
    let whole = reader.bytes_between(SequenceNumber(0), SequenceNumber(100));
    let (left, right) = (SequenceNumber(0), SequenceNumber(48));
    assert_eq!(whole, reader.bytes_between(left, right) + reader.bytes_between(right, SequenceNumber(100)));
    assert_eq!(reader.bytes_between(SequenceNumber(100), SequenceNumber(100)), 0);
}

/// A log in several segments, continued after a clean stop, reads as one.
#[test]
fn segments_roll_and_a_sealed_log_goes_on() {
    let disk = MemoryDisk::default();
    for run in 0..3 {
        let (mut log, recovery) = open(&disk, &options(2500)).unwrap();
        assert_eq!((recovery.durable, recovery.torn_bytes), (durable(run * 20), 0));
        assert_eq!(log.next(), SequenceNumber(run * 20));
        for first in (run * 20..run * 20 + 20).step_by(4) {
            log.append(&block(first..first + 4)).unwrap();
        }
        log.seal().unwrap();
    }
    let verification = verify(&disk).unwrap();
    assert!(verification.segments > 3, "{verification}");
    assert_eq!((verification.entries, verification.footers_lost.len()), (60, 0));
    assert_eq!(check_content(&read(&disk).unwrap()), 60);
}

/// Blocks that are encoded ahead give the very log that is made without; one that does not fit any more is refused.
#[test]
fn prepared_blocks_make_the_same_log() {
    for precision in [Precision::Exact, Precision::Compact] {
        let options = LogOptions { precision, ..options(1 << 30) };
        let [ahead, plain] = [true, false].map(|ahead| {
            let disk = MemoryDisk::default();
            let (mut log, _) = open(&disk, &options).unwrap();
            let first = log.prepare(&block(0..4), log.next()).unwrap();
            let second = log.prepare(&block(4..6), first.end()).unwrap();
            let stale = log.prepare(&block(0..4), SequenceNumber(0)).unwrap();
            if ahead {
                log.append_prepared(first).unwrap();
                log.append_prepared(second).unwrap();
                let error = log.append_prepared(stale).unwrap_err();
                assert!(error.to_string().contains("the log goes on with 6"), "{error}");
            } else {
                log.append(&block(0..4)).unwrap();
                log.append(&block(4..6)).unwrap();
            }
            log.append(&block(6..9)).unwrap();
            log.seal().unwrap();
            assert_eq!(read(&disk).unwrap().durable(), durable(9));
            disk.files(Path::new(DIR))
        });
        assert!(ahead == plain, "{precision}");
    }
}

/// What was encoded with the tables of a segment cannot go to the next.
#[test]
fn a_block_prepared_for_a_sealed_segment_is_refused() {
    let disk = MemoryDisk::default();
    let (mut log, _) = open(&disk, &LogOptions { precision: Precision::Compact, ..options(1) }).unwrap();
    let [first, second] = [(0..4), (4..6)]
        .map(|range| (range.clone(), log.prepare(&block(range.clone()), SequenceNumber(range.start)).unwrap()));
    log.append_prepared(first.1).unwrap();
    let error = log.append_prepared(second.1).unwrap_err();
    assert!(error.to_string().contains("prepare it again"), "{error}");
    let again = log.prepare(&block(second.0), log.next()).unwrap();
    log.append_prepared(again).unwrap();
    log.seal().unwrap();
    assert_eq!(verify(&disk).unwrap().entries, 6);
}

/// Entries that would break the log are refused, and the log goes on.
#[test]
fn malformed_entries_are_refused() {
    let disk = MemoryDisk::default();
    let (mut log, _) = open(&disk, &options(1 << 20)).unwrap();
    let broken: [fn(&mut MaskedCopy); 5] = [
        |copy| copy.teacher = 3,
        |copy| copy.masked_positions.swap(0, 1),
        |copy| copy.masked_positions[1] = copy.token_ids.len() as u32,
        |copy| copy.gold_ids.push(0),
        |copy| copy.label.as_mut().unwrap().top_ids.push(0),
    ];
    for damage in broken {
        let mut entries = block(0..3);
        let Payload::Record(record) = &mut entries[0].payload else { panic!("entry 0 is a record") };
        damage(&mut record.copies[0]);
        assert!(matches!(log.append(&entries), Err(StoreError::InvalidEntry { .. })));
    }
    for text in ["a".repeat(99), "a".repeat(101), String::new()] {
        let mut entries = block(0..3);
        let Payload::Record(record) = &mut entries[0].payload else { panic!("entry 0 is a record") };
        record.text = Some(text.into());
        assert!(matches!(log.append(&entries), Err(StoreError::InvalidEntry { .. })));
    }
    for hole in [block(1..2), vec![entry(0), entry(2)], vec![entry(0), entry(0)]] {
        assert!(matches!(log.append(&hole), Err(StoreError::InvalidEntry { .. })));
    }
    log.append(&block(0..3)).unwrap();
    log.sync().unwrap();
    assert_eq!(check_content(&log.reader()), 3);
}

/// Format version of each segment.
fn versions(disk: &MemoryDisk) -> Vec<u8> {
    let files = disk.files(Path::new(DIR));
    segments(disk).iter().map(|path| files[path][8]).collect()
}

/// A log without texts is what it was before there were any, and text is kept from where that is switched on.
#[test]
fn text_is_kept_from_where_that_is_switched_on() {
    let disk = MemoryDisk::default();
    let [plain, texts] =
        [false, true].map(|keep_text| LogOptions { keep_text, computed_in: false, ..options(1 << 20) });
    let (block, entry) = (|range| block(range).into_iter().map(float32).collect::<Vec<_>>(), |at| float32(entry(at)));
    let (mut log, _) = open(&disk, &plain).unwrap();
    let refused = log.append(&block(0..5)).unwrap_err();
    assert!(matches!(refused, StoreError::InvalidEntry { .. }), "{refused}");
    assert!(refused.to_string().contains("written without texts"), "{refused}");
    let without: Vec<_> = block(0..5).into_iter().map(textless).collect();
    log.append(&without).unwrap();
    drop(log);
    assert_eq!(versions(&disk), [2]);
    let bytes = disk.files(Path::new(DIR)).remove(&segments(&disk)[0]).unwrap();
    assert!(!bytes.windows(9).any(|window| window == b"keep_text"), "the header has a field more");

    let (mut log, _) = open(&disk, &texts).unwrap();
    log.append(&block(5..12)).unwrap();
    drop(log);
    let (mut log, _) = open(&disk, &plain).unwrap();
    log.append(&[textless(entry(12))]).unwrap();
    log.seal().unwrap();
    assert_eq!(versions(&disk), [2, 3, 2]);
    let expected: Vec<_> = without.into_iter().chain(block(5..12)).chain([textless(entry(12))]).collect();
    let reader = read(&disk).unwrap();
    for entry in &expected {
        assert_eq!(&*reader.entry(entry.sequence).unwrap(), entry);
    }
    assert_eq!(verify(&disk).unwrap().entries, 13);
}

/// The same of labels that were computed in something else than float32.
#[test]
fn a_log_says_what_labels_were_computed_in_from_where_they_may_differ() {
    for precision in [Precision::Exact, Precision::Compact] {
        let disk = MemoryDisk::default();
        let [plain, narrow] =
            [false, true].map(|computed_in| LogOptions { computed_in, precision, ..options(1 << 20) });
        let (mut log, _) = open(&disk, &plain).unwrap();
        let refused = log.append(&block(0..5)).unwrap_err();
        assert!(matches!(refused, StoreError::InvalidEntry { .. }), "{refused}");
        assert!(refused.to_string().contains("labels in bfloat16, and the log is written for float32"), "{refused}");
        let before: Vec<_> = block(0..5).into_iter().map(float32).collect();
        log.append(&before).unwrap();
        drop(log);
        let bytes = disk.files(Path::new(DIR)).remove(&segments(&disk)[0]).unwrap();
        assert!(!bytes.windows(11).any(|window| window == b"computed_in"), "the header has a field more");
        let (mut log, _) = open(&disk, &narrow).unwrap();
        log.append(&block(5..12)).unwrap();
        let all_float32: Vec<_> = block(12..15).into_iter().map(float32).collect();
        log.append(&all_float32).unwrap();
        drop(log);
        let (mut log, _) = open(&disk, &plain).unwrap();
        log.append(&[float32(entry(15))]).unwrap();
        log.seal().unwrap();
        assert_eq!(versions(&disk), [3, 4, 3]);
        assert_eq!(verify(&disk).unwrap().entries, 16);
        let reader = read(&disk).unwrap();
        let expected = before.into_iter().chain(block(5..12)).chain(all_float32).chain([float32(entry(15))]);
        for entry in expected {
            let computed_in = |entry: &Entry| match &entry.payload {
                Payload::Record(record) => {
                    record.copies.iter().map(|copy| copy.label.as_ref().map(|label| label.computed_in)).collect()
                }
                _ => Vec::new(),
            };
            assert_eq!(
                computed_in(&reader.entry(entry.sequence).unwrap()),
                computed_in(&entry),
                "{}",
                entry.sequence.0
            );
        }
    }
}

/// An empty log takes the new setting at once.
#[test]
fn a_log_without_entries_is_begun_again_with_texts() {
    let disk = MemoryDisk::default();
    drop(open(&disk, &LogOptions { keep_text: false, computed_in: false, ..options(1 << 20) }).unwrap());
    let (mut log, _) = open(&disk, &options(1 << 20)).unwrap();
    log.append(&block(0..5)).unwrap();
    log.sync().unwrap();
    assert_eq!(versions(&disk), [4]);
    assert_eq!(check_content(&read(&disk).unwrap()), 5);
}
