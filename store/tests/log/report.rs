//! What `log stat`, `verify` and `dump` tell.

use crate::memory_disk::MemoryDisk;
use crate::sample::{DIR, append_blocks, block, durable, entry, identity, open, options, sealed, segments, verify};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use store::log::{Need, Pass, PrecisionRange, Retention, TeacherStat, stat_with, verify_with};
use store::{
    ComputedIn, Entry, LanguageStat, LogOptions, LogStat, Payload, Precision, Record, SequenceNumber, StoreError,
};

fn stat(disk: &MemoryDisk) -> LogStat {
    store::log::stat_on(Arc::new(disk.clone()), Path::new(DIR)).unwrap()
}

fn records(entries: &[Entry]) -> impl Iterator<Item = &Record> {
    entries.iter().filter_map(|entry| match &entry.payload {
        Payload::Record(record) => Some(record),
        Payload::Skip(_) | Payload::End => None,
    })
}

#[test]
fn stat_counts_what_is_there() {
    let disk = sealed(&[5, 9, 30]);
    let stat = stat(&disk);
    let entries = block(0..30);
    let copies = || records(&entries).flat_map(|record| &record.copies);
    assert_eq!(stat.records, records(&entries).count() as u64);
    assert_eq!(stat.skips, 30 - stat.records);
    assert_eq!(stat.copies, copies().count() as u64);
    assert_eq!(stat.corpus_tokens, copies().map(|copy| copy.token_ids.len() as u64).sum::<u64>());
    assert_eq!(stat.masked_positions, copies().map(|copy| copy.gold_ids.len() as u64).sum::<u64>());
    let files = disk.files(Path::new(DIR));
    assert_eq!(stat.bytes, segments(&disk).iter().map(|path| files[path].len() as u64).sum::<u64>());
    assert_eq!((stat.segments, stat.blocks, stat.durable), (3, 3, durable(30)));
    assert_eq!(stat.appended, stat.durable.end());
    assert_eq!(stat.languages.values().map(|language| language.records + language.held_out).sum::<u64>(), stat.records);
    assert_eq!(
        stat.languages["de"].held_out,
        records(&entries).filter(|r| &*r.language == "de" && r.held_out).count() as u64
    );
    assert_eq!(stat.sources["de"], entry(28).cursor);
    let label_columns =
        ["masked_positions", "gold_ranks", "gold_ids", "top_ids", "top_logits", "log_sum_exp", "gold_logits"];
    assert_eq!(stat.label_bytes, label_columns.iter().map(|column| stat.column_bytes[column]).sum::<u64>());
    assert_eq!(stat.token_bytes, stat.column_bytes["token_ids"]);
    assert_eq!(stat.text_bytes, stat.column_bytes["texts"]);
    assert!(stat.label_bytes > 0 && stat.token_bytes > 0 && stat.text_bytes > 0);
}

#[test]
fn stat_counts_teachers_and_languages() {
    let stat = stat(&sealed(&[5, 9, 30]));
    let entries = block(0..30);
    for (name, index) in [("en", 0), ("de", 1), ("fi", 2)] {
        let of_teacher = || records(&entries).flat_map(|record| &record.copies).filter(|copy| copy.teacher == index);
        let expected = TeacherStat {
            copies: of_teacher().count() as u64,
            labelled: of_teacher().filter(|copy| copy.label.is_some()).count() as u64,
            computed_in: of_teacher().filter_map(|copy| copy.label.as_ref()).fold(
                BTreeMap::new(),
                |mut counts, label| {
                    *counts.entry(label.computed_in).or_default() += 1;
                    counts
                },
            ),
            dropped: if name == "fi" { 0 } else { of_teacher().filter(|copy| copy.label.is_none()).count() as u64 },
            tokens: of_teacher().map(|copy| copy.token_ids.len() as u64).sum(),
            masked_positions: of_teacher().map(|copy| copy.gold_ids.len() as u64).sum(),
        };
        assert_eq!(stat.teachers[name], expected, "{name}");
        assert_eq!((expected.labelled == 0, expected.copies > 0), (name == "fi", true));
        assert_eq!(expected.computed_in.len(), if name == "fi" { 0 } else { 3 }, "{expected:?}");
    }
    for name in ["en", "de"] {
        let of_language = || records(&entries).filter(|record| &*record.language == name);
        let copies = || of_language().flat_map(|record| &record.copies);
        let held_out = of_language().filter(|record| record.held_out).count() as u64;
        let expected = LanguageStat {
            records: of_language().count() as u64 - held_out,
            held_out,
            texts: of_language().filter(|record| record.text.is_some()).count() as u64,
            copies: copies().count() as u64,
            tokens: copies().map(|copy| copy.token_ids.len() as u64).sum(),
            masked_positions: copies().map(|copy| copy.gold_ids.len() as u64).sum(),
        };
        assert_eq!(stat.languages[name], expected, "{name}");
    }
    assert_eq!((stat.teachers.len(), stat.languages.len(), stat.begin), (3, 2, SequenceNumber(0)));
}

#[test]
fn stat_says_where_the_precision_changed() {
    let disk = sealed(&[5, 9]);
    let compact = LogOptions { precision: Precision::Compact, ..options(1) };
    let (mut log, _) = open(&disk, &compact).unwrap();
    append_blocks(&mut log, &[12, 20]);
    log.seal().unwrap();
    let range = |from, to, precision| {
        let (from, to) = (SequenceNumber(from), SequenceNumber(to));
        PrecisionRange { from, to, precision, top_k: 3 }
    };
    assert_eq!(stat(&disk).precisions, [range(0, 9, Precision::Exact), range(9, 20, Precision::Compact)]);
}

#[test]
fn stat_has_the_promised_fields() {
    let json = serde_json::to_value(stat(&sealed(&[5]))).unwrap();
    let promised = [
        "records",
        "copies",
        "masked_positions",
        "corpus_tokens",
        "bytes",
        "label_bytes",
        "token_bytes",
        "segments",
        "appended",
        "durable",
    ];
    for field in promised {
        assert!(json[field].is_u64(), "{field}: {}", json[field]);
    }
}

#[test]
fn verify_finds_a_record_that_is_there_twice() {
    let disk = MemoryDisk::default();
    let (mut log, _) = open(&disk, &options(1)).unwrap();
    log.append(&block(0..5)).unwrap();
    let mut again = block(5..8);
    again[1].payload = entry(2).payload;
    log.append(&again).unwrap();
    log.seal().unwrap();
    let failure = verify(&disk).unwrap_err();
    assert!(matches!(failure, StoreError::Corrupt { .. }));
    assert!(failure.to_string().contains("entries 2 and 6 are the same record"), "{failure}");
}

/// The same is found with any number of threads, and however little memory the keys may take.
#[test]
fn verify_needs_neither_many_threads_nor_much_memory() {
    let disk = MemoryDisk::default();
    let (mut log, _) = open(&disk, &options(4000)).unwrap();
    append_blocks(&mut log, &(1..=25).map(|number| 4 * number).collect::<Vec<_>>());
    let whole = verify(&disk).unwrap();
    let mut again = block(100..103);
    again[1].payload = entry(2).payload;
    let twice = disk.copy();
    let (mut other, _) = open(&twice, &options(4000)).unwrap();
    other.append(&again).unwrap();
    other.seal().unwrap();
    for (threads, key_bytes) in [(1, 1 << 20), (3, 1 << 20), (2, 300), (1, 8)] {
        let seen = Mutex::new(Vec::new());
        let watch = |progress: store::log::Progress| seen.lock().unwrap().push((progress.entries, progress.total));
        let pass = Pass { threads: Some(threads), watch: &watch, key_bytes };
        let check = |disk: &MemoryDisk| verify_with(Arc::new(disk.clone()), Path::new(DIR), &pass);
        assert_eq!(check(&disk).unwrap(), whole);
        let passes = seen.lock().unwrap().iter().map(|seen| seen.0).max().unwrap() / 100;
        assert_eq!(seen.lock().unwrap().iter().map(|seen| seen.1).max().unwrap(), passes * 100);
        assert_eq!(passes > 1, key_bytes < 1000, "{passes} passes");
        let failure = check(&twice).unwrap_err().to_string();
        assert!(failure.contains("entries 2 and 101 are the same record"), "{failure}");
    }
    assert_eq!((whole.entries, whole.blocks), (100, 25));
    let stat = stat(&disk);
    assert!(whole.bytes < stat.bytes && whole.bytes > stat.label_bytes + stat.token_bytes);
}

/// Of several damaged blocks the first is named, whichever thread finds it first.
/// A log that ends in a block's end looks whole; but its last writer said how far it was durable.
#[test]
fn verify_notices_that_what_was_durable_is_missing() {
    let whole = sealed(&[5, 9, 12]);
    assert_eq!(verify(&whole).unwrap().said_durable, None);
    let last = segments(&whole).pop().unwrap();
    let bytes = whole.files(Path::new(DIR)).remove(&last).unwrap();
    // The segment, its only block, or a piece of that.
    for left in [None, Some(bytes.len() / 2), Some(bytes.len() * 3 / 4)] {
        let disk = whole.copy();
        disk.delete(&last);
        left.into_iter().for_each(|length| disk.put(&last, bytes[..length].to_vec()));
        let verification = verify(&disk).unwrap();
        assert_eq!((verification.durable, verification.said_durable), (durable(9), Some(SequenceNumber(12))));
        let text = verification.to_string();
        assert!(text.contains("missing: 3 entries") && !text.contains("is lost"), "{text}");
        // Who goes on with the log says anew how far it is.
        drop(open(&disk, &options(1)).unwrap());
        assert_eq!(verify(&disk).unwrap().said_durable, None);
    }
}

#[test]
fn verify_names_the_first_damage() {
    let disk = sealed(&[5, 9, 13, 30]);
    for path in &segments(&disk)[1..] {
        let mut bytes = disk.files(Path::new(DIR)).remove(path).unwrap();
        let footer = bytes.windows(4).rposition(|window| window == b"MDft").unwrap();
        bytes[footer - 9] ^= 4;
        disk.put(path, bytes);
    }
    let Err(StoreError::Corrupt { segment, .. }) = verify(&disk) else { panic!("three blocks are damaged") };
    assert_eq!(segment, segments(&disk)[1]);
}

/// Segments that retention removes while the log is read are no damage.
#[test]
fn what_retention_removes_meanwhile_is_left_out() {
    let ends = [5, 9, 13, 17, 21, 30];
    let disk = MemoryDisk::default();
    let (mut log, _) = open(&disk, &options(1)).unwrap();
    append_blocks(&mut log, &ends);
    let log = Mutex::new(log);
    let remove_below = |sequence| {
        let need = Need::default();
        need.set(SequenceNumber(sequence), "");
        let retention = Retention { bytes: 1, age: None, held_out: Path::new("/state/holdout").to_owned() };
        log.lock().unwrap().retain(&retention, Some(&need)).unwrap();
    };
    let after_the_first_block = |progress: store::log::Progress| {
        if progress.entries == 5 {
            remove_below(13);
        }
    };
    let pass = Pass { threads: Some(1), watch: &after_the_first_block, ..Pass::default() };
    let found = verify_with(Arc::new(disk.clone()), Path::new(DIR), &pass).unwrap();
    assert_eq!((found.entries, found.segments, found.durable), (5 + 17, 4, durable(30)));

    let after_the_next = |progress: store::log::Progress| {
        if progress.entries == 4 {
            remove_below(21);
        }
    };
    let pass = Pass { threads: Some(1), watch: &after_the_next, ..Pass::default() };
    let counted = stat_with(Arc::new(disk.clone()), Path::new(DIR), &pass).unwrap();
    let left = block(21..30);
    assert_eq!((counted.begin, counted.records), (SequenceNumber(21), records(&left).count() as u64));
}

#[test]
fn verify_checks_cursors_across_segments() {
    let disk = sealed(&[5, 9]);
    let path = segments(&disk).pop().unwrap();
    let mut bytes = disk.files(Path::new(DIR)).remove(&path).unwrap();
    let header = 16 + u32::from_le_bytes(bytes[12..16].try_into().unwrap()) as usize;
    let at = bytes[..header].windows(6).position(|window| window == b"123456").unwrap();
    bytes[at] = b'9';
    let checksum = crc32fast::hash(&bytes[..header]).to_le_bytes();
    bytes[header..header + 4].copy_from_slice(&checksum);
    disk.put(&path, bytes);
    let failure = verify(&disk).unwrap_err();
    assert!(failure.to_string().contains("cursors"), "{failure}");
}

#[test]
fn dump_has_the_promised_shape() {
    let mut entry = entry(0);
    let Payload::Record(record) = &mut entry.payload else { panic!("entry 0 is a record") };
    let text = record.text.take();
    record.copies.truncate(2);
    let label = record.copies[0].label.as_mut().unwrap();
    label.top_logits = vec![9.5, 8.25, 0.1, 3.5, 2.5, -1.0];
    label.log_sum_exp = vec![11.25, 12.5];
    label.gold_logits = vec![9.5, -3.0];
    label.computed_in = ComputedIn::Bfloat16;
    for copy in &mut record.copies {
        copy.token_ids = vec![2, 10, 4, 11, 4, 3];
        copy.masked_positions = vec![2, 4];
        copy.gold_ids = vec![17, 18];
    }
    let copy = |teacher: &str, label: [Value; 5]| {
        let [top_ids, top_logits, log_sum_exp, gold_logits, computed_in] = label;
        json!({
            "teacher": teacher, "token_ids": [2, 10, 4, 11, 4, 3], "masked_positions": [2, 4], "gold_ids": [17, 18],
            "top_ids": top_ids, "top_logits": top_logits, "log_sum_exp": log_sum_exp, "gold_logits": gold_logits,
            "computed_in": computed_in,
        })
    };
    let labelled = [
        json!([[17, 4, 7999], [3, 2, 1]]),
        json!([[9.5, 8.25, 0.1], [3.5, 2.5, -1.0]]),
        json!([11.25, 12.5]),
        json!([9.5, -3.0]),
        json!("bfloat16"),
    ];
    let mut expected = json!({
        "seq": 0, "source": "en", "document": "text/en.txt@0", "span": [0, 100], "language": "en", "round": 0,
        "held_out": false, "copies": [copy("en", labelled), copy("fi", Default::default())],
    });
    let dumped = store::dump::record_json(&identity(), &entry);
    assert_eq!(dumped, expected);
    assert_eq!(dumped.to_string(), expected.to_string(), "the order of fields too");

    let Payload::Record(record) = &mut entry.payload else { panic!("entry 0 is a record") };
    expected["text"] = json!(text.as_deref());
    record.text = text;
    assert_eq!(store::dump::record_json(&identity(), &entry), expected);
}
